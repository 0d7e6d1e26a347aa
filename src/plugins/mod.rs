//! Plugins learn of flow events from outside and hand them to the dispatcher.
//!
//! To add one: a file `src/plugins/<key in snake_case>.rs` with a `SPEC`, and its
//! two lines below.

pub mod api;
mod firefly;
mod iperf3;
pub mod named_pipe;
mod netlink;
mod perfsonar;

use crate::config::live::Live;
use crate::dispatcher::Inlet;
use crate::error::Result;
use crate::part;
use crate::shutdown::Stop;

/// A source of flow events.
pub trait Plugin: Send {
    /// Where its section is published when a key that is live has changed, if it has
    /// such keys. It has this in its poll set while it runs. To be told of the same
    /// values again changes nothing.
    fn live(&self) -> Option<Live> {
        None
    }

    /// What tries its section before a reload takes effect, if it may turn out then that the
    /// section cannot be obeyed: the reload is refused as a whole. Asked for once, before it
    /// runs.
    fn trial(&self) -> Option<part::Trial> {
        None
    }

    /// Runs on a thread of its own until `stop` says so; waits with `stop` in its
    /// poll set. An error stops the daemon.
    fn run(self: Box<Self>, out: Inlet, stop: Stop) -> Result<()>;
}

/// The registration of a plugin.
pub type Spec = part::Spec<dyn Plugin>;

/// All plugins, in the order of the documentation.
pub const ALL: &[&Spec] = &[
    &named_pipe::SPEC,
    &api::SPEC,
    &firefly::SPEC,
    &netlink::SPEC,
    &iperf3::SPEC,
    &perfsonar::SPEC,
];

/// The example of CONTRIBUTING.md, which has to compile and to work.
#[cfg(test)]
#[path = "../../tests/data/example/standing.rs"]
mod standing;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Section;
    use crate::dispatcher::{Dispatcher, Event};
    use crate::entropy::EntropyKey;
    use crate::part::Context;
    use crate::shutdown::stop_token;
    use std::thread;

    #[test]
    fn the_example_opens_its_flow_and_closes_it() {
        let spec = &standing::SPEC;
        let values = spec.keys.iter().map(|key| (key.name, key.default_value().unwrap()));
        let section = Section::new("plugins.standing", values.collect());
        let context = Context::new(1);
        let plugin = (spec.build)(&section, &context).unwrap();
        let (mut dispatcher, inlet) = Dispatcher::new(1, EntropyKey::of_this_boot());
        let queue = dispatcher.attach("test");
        let (stopper, stop) = stop_token().unwrap();
        let hub = thread::spawn(|| dispatcher.run());
        let worker = thread::spawn(|| plugin.run(inlet, stop));
        let start = queue.recv().unwrap();
        assert!(matches!(&start[..], [Event::Start(flow)] if flow.tag.experiment() == 1));
        drop(stopper);
        let end = queue.recv().unwrap();
        assert!(matches!(&end[..], [Event::End(..)]));
        worker.join().unwrap().unwrap();
        hub.join().unwrap();
    }
}
