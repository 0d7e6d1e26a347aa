//! Enrichers measure the flows that are open.
//!
//! To add one: a file `src/enrichers/<key in snake_case>.rs` with a `SPEC`, and its
//! two lines below.

mod netlink;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod rig;
mod skops;

#[cfg(all(target_os = "linux", feature = "ebpf"))]
pub(crate) use skops::trial as try_skops;

use crate::config::{Key, Kind};
use crate::dispatcher::{Inlet, Queue};
use crate::error::Result;
use crate::flow_info::LastLook;
use crate::part;
use crate::shutdown::Stop;

/// A source of samples.
pub trait Enricher: Send {
    /// How the dispatcher looks at a flow when that ends, if that can be done at once.
    ///
    /// # Errors
    /// The system refuses what that takes.
    fn last_look(&mut self) -> Result<Option<LastLook>> {
        Ok(None)
    }

    /// Runs on a thread of its own until `stop` says so; waits with `stop` in its poll set,
    /// and not for `watch`, which tells of the flows that start and end. An error stops the
    /// daemon.
    fn run(self: Box<Self>, watch: Queue, out: Inlet, stop: Stop) -> Result<()>;
}

/// The registration of an enricher.
pub type Spec = part::Spec<dyn Enricher>;

/// The keys beside the enrichers: what holds for all of them.
pub const KEYS: &[Key] = &[Key {
    name: "period",
    aliases: &[],
    kind: Kind::Int { min: 100, max: 3_600_000 },
    default: "1000",
    live: false,
    doc: "How often flows are measured, in ms. Where that takes long it is done less often, so \
          that it costs a fifth of a core at the most.",
}];

/// All enrichers, in the order of the documentation.
pub const ALL: &[&Spec] = &[&netlink::SPEC, &skops::SPEC];
