//! A worker: a named thread whose end, good or bad, is reported to the main
//! thread.

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use crate::daemon::Life;
use crate::error::{At, Error, Result};

/// Starts `work` on a thread called `name`. When it returns or panics, `life`
/// hears of it.
pub fn start(
    name: impl Into<String>,
    life: Sender<Life>,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<JoinHandle<()>> {
    let name = name.into();
    let shown = name.clone();
    let body = move || {
        // What the closure owned was dropped by the unwinding, and nothing of it
        // is looked at again.
        let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            Err(Error::internal(format!("panicked: {}", panic_text(&*panic))))
        });
        // The main thread may be gone already; then nobody needs to know.
        let _ = life.send(Life::Ended { result: result.at(shown.clone()), worker: shown });
    };
    // The kernel shows 15 bytes of a thread's name.
    let thread_name: String = name.chars().take(15).collect();
    thread::Builder::new()
        .name(thread_name)
        .spawn(body)
        .map_err(|error| Error::os("cannot start a thread", error).at(name))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
