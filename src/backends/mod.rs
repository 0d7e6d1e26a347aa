//! Backends act on the flow events that the dispatcher has accepted.
//!
//! To add one: a file `src/backends/<key in snake_case>.rs` with a `SPEC`, and its
//! two lines below.

mod firefly;
mod marker;

use crate::dispatcher::Queue;
use crate::error::Result;
use crate::part;

pub use marker::clean as clean_marker;

/// A sink of flow events.
pub trait Backend: Send {
    /// Runs on a thread of its own until `events` hangs up. An error stops the
    /// daemon.
    fn run(self: Box<Self>, events: Queue) -> Result<()>;
}

/// The registration of a backend.
pub type Spec = part::Spec<dyn Backend>;

/// All backends, in the order of the documentation.
pub const ALL: &[&Spec] = &[&marker::SPEC, &firefly::SPEC];
