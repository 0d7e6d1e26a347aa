//! Plugins learn of flow events from outside and hand them to the dispatcher.
//!
//! To add one: a file `src/plugins/<key in snake_case>.rs` with a `SPEC`, and its
//! two lines below.

pub mod api;
pub mod named_pipe;

use crate::dispatcher::Inlet;
use crate::error::Result;
use crate::part;
use crate::shutdown::Stop;

/// A source of flow events.
pub trait Plugin: Send {
    /// Runs on a thread of its own until `stop` says so; waits with `stop` in its
    /// poll set. An error stops the daemon.
    fn run(self: Box<Self>, out: Inlet, stop: Stop) -> Result<()>;
}

/// The registration of a plugin.
pub type Spec = part::Spec<dyn Plugin>;

/// All plugins, in the order of the documentation.
pub const ALL: &[&Spec] = &[&named_pipe::SPEC, &api::SPEC];
