//! A worker: a named thread whose end, good or bad, is reported to the main
//! thread; and all of them, which are ended and joined on every way out.

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use crate::daemon::Life;
use crate::error::{At, Error, Result};
use crate::shutdown::Stopper;

/// The workers that run. Dropping it, be the start complete or not, fires the stop
/// token and waits for them all. What else they wait for has to hang up before: a
/// value that is declared later is dropped earlier.
#[derive(Debug)]
pub struct Workers {
    stopper: Option<Stopper>,
    life: Sender<Life>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// None so far. They end when `stopper` is dropped, and `life` hears of it.
    pub fn new(stopper: Stopper, life: Sender<Life>) -> Self {
        Workers { stopper: Some(stopper), life, threads: Vec::new() }
    }

    /// Starts one more.
    ///
    /// # Errors
    /// The system has no thread for it; then `work` was dropped.
    pub fn start(
        &mut self,
        name: impl Into<String>,
        work: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        self.threads.push(start(name, self.life.clone(), work)?);
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        drop(self.stopper.take());
        for thread in self.threads.drain(..) {
            // A panic was caught and reported by the worker itself.
            let _ = thread.join();
        }
    }
}

/// Starts `work` on a thread called `name`. When it returns or panics, `life`
/// hears of it.
fn start(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use crate::shutdown::stop_token;
    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{mpsc, Arc};

    #[test]
    fn how_it_ended_is_reported() {
        let (life, news) = mpsc::channel();
        let (stopper, _stop) = stop_token().unwrap();
        let mut workers = Workers::new(stopper, life);
        let mut end = |work: fn() -> Result<()>| {
            workers.start("plugins.test", work).unwrap();
            match news.recv().unwrap() {
                Life::Ended { worker, result } => {
                    assert_eq!(worker, "plugins.test");
                    result.map_err(|error| (error.class(), error.to_string()))
                }
                Life::Signal(signal) => panic!("{signal}"),
            }
        };
        end(|| Ok(())).unwrap();
        let failure = end(|| Err(Error::new(Class::Os, "cannot go on"))).unwrap_err();
        assert_eq!(failure, (Class::Os, "plugins.test: cannot go on".into()));
        for (work, text) in [
            ((|| panic!("a str")) as fn() -> Result<()>, "plugins.test: panicked: a str"),
            (|| panic!("a {}", String::from("String")), "plugins.test: panicked: a String"),
            (|| std::panic::panic_any(7), "plugins.test: panicked: no message"),
        ] {
            assert_eq!(end(work).unwrap_err(), (Class::Internal, text.into()));
        }
        assert_eq!(Class::Internal as i32, 70);
    }

    /// As when the third of them could not be started.
    #[test]
    fn half_a_start_is_undone() {
        struct Undo(Arc<AtomicUsize>);
        impl Drop for Undo {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let undone = Arc::new(AtomicUsize::new(0));
        let start = |undone: &Arc<AtomicUsize>| -> Result<()> {
            let (life, _news) = mpsc::channel();
            let (stopper, stop) = stop_token()?;
            let mut workers = Workers::new(stopper, life);
            let (sender, queue) = mpsc::channel::<()>();
            let undo = Undo(undone.clone());
            workers.start("sink", move || {
                let _undo = undo;
                let hung_up = queue.recv();
                hung_up.map_err(|_| Error::internal("as it should be"))
            })?;
            let undo = Undo(undone.clone());
            workers.start("source", move || {
                let _undo = undo;
                let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::NONE).map_err(|error| Error::os("poll", error))?;
                Ok(())
            })?;
            let failed = Err(Error::os("cannot start a thread", nix::errno::Errno::EAGAIN));
            failed?;
            drop(sender);
            Ok(())
        };
        start(&undone).unwrap_err();
        assert_eq!(undone.load(Ordering::SeqCst), 2, "both were waited for");
    }
}
