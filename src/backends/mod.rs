//! Backends act on the flow events that the dispatcher has accepted.
//!
//! To add one: a file `src/backends/<key in snake_case>.rs` with a `SPEC`, and its
//! two lines below.

mod firefly;
mod marker;
mod prometheus;

use crate::dispatcher::Queue;
use crate::error::Result;
use crate::meter::Meter;
use crate::part;

pub use marker::clean as clean_marker;
pub(crate) use prometheus::series;

/// A sink of flow events.
pub trait Backend: Send {
    /// How many open flows it has room for, since it was built; none: for any number.
    fn capacity(&self) -> Option<u32> {
        None
    }

    /// What counts the packets of flows, if it does that. Asked for once, before it runs.
    fn meter(&mut self) -> Option<Box<dyn Meter>> {
        None
    }

    /// What tries its section before a reload takes effect, if it may turn out then that the
    /// section cannot be obeyed: the reload is refused as a whole. Asked for once, before it
    /// runs.
    fn trial(&self) -> Option<part::Trial> {
        None
    }

    /// Runs on a thread of its own until `events` hangs up. An error stops the
    /// daemon.
    fn run(self: Box<Self>, events: Queue) -> Result<()>;
}

/// The registration of a backend.
pub type Spec = part::Spec<dyn Backend>;

/// All backends, in the order of the documentation.
pub const ALL: &[&Spec] = &[&marker::SPEC, &firefly::SPEC, &prometheus::SPEC];

/// The example of CONTRIBUTING.md, which has to compile and to work.
#[cfg(test)]
#[path = "../../tests/data/example/ledger.rs"]
mod ledger;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Section;
    use crate::dispatcher::Dispatcher;
    use crate::entropy::EntropyKey;
    use crate::part::Context;

    #[test]
    fn the_example_runs_until_its_queue_hangs_up() {
        let spec = &ledger::SPEC;
        let values = spec.keys.iter().map(|key| (key.name, key.default_value().unwrap()));
        let section = Section::new("backends.ledger", values.collect());
        let backend = (spec.build)(&section, &Context::new(1)).unwrap();
        let (mut dispatcher, inlet) = Dispatcher::new(1, EntropyKey::of_this_boot());
        let queue = dispatcher.attach("test");
        inlet.report();
        drop(inlet);
        dispatcher.run();
        backend.run(queue).unwrap();
    }
}
