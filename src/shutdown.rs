//! How the daemon is told to stop: the stop token that every waiting thread has
//! in its poll set, and the thread that waits for signals.
//!
//! The token is one end of a socket pair. Dropping the other end makes it
//! readable for good, for everybody, so nobody polls a flag.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sys::pthread::{pthread_kill, Pthread};
use nix::sys::signal::{SigSet, Signal};

use crate::daemon::Life;
use crate::error::{Error, Result};

/// Readable (hung up) once the daemon is to stop.
#[derive(Clone, Debug)]
pub struct Stop(Arc<UnixStream>);

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Held by the owner of the daemon's life: dropping it stops everybody.
#[derive(Debug)]
pub struct Stopper(#[allow(dead_code)] UnixStream); // held for its Drop

/// A stop token and the handle that fires it.
pub fn stop_token() -> Result<(Stopper, Stop)> {
    let (stopper, stop) =
        UnixStream::pair().map_err(|error| Error::os("cannot create a socket pair", error))?;
    Ok((Stopper(stopper), Stop(Arc::new(stop))))
}

/// The signals that mean something to glowd, and the one that wakes the thread
/// that waits for them, so that it sees that it is over.
const HANDLED: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1];
const GO_HOME: Signal = Signal::SIGUSR2;

/// The thread that turns signals into messages. It owns nothing else, and ends
/// when this is dropped.
#[derive(Debug)]
pub struct Signals {
    thread: Option<JoinHandle<()>>,
    over: Arc<AtomicBool>,
}

/// Blocks the signals in the calling thread and all that it will start. They wait for
/// [`Signals`]: one that comes before it is not lost, and kills nobody.
///
/// # Errors
/// None that Linux knows.
pub fn block_signals() -> Result<()> {
    blocked().map(drop)
}

fn blocked() -> Result<SigSet> {
    let mut set = SigSet::from_iter(HANDLED);
    set.add(GO_HOME);
    set.thread_block().map_err(|error| Error::os("cannot block signals", error))?;
    Ok(set)
}

impl Signals {
    /// Blocks the signals in the calling thread and all that it will start, so
    /// it has to come before the first of them; then starts the waiting thread.
    pub fn start(life: Sender<Life>) -> Result<Self> {
        let set = blocked()?;
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let wait = move || loop {
            match set.wait() {
                // Anybody can send it; only with the flag it is from us.
                Ok(GO_HOME) if seen.load(Ordering::Acquire) => return,
                Ok(GO_HOME) | Err(Errno::EINTR) => {}
                Ok(signal) => {
                    if life.send(Life::Signal(signal)).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        };
        let thread = thread::Builder::new()
            .name("signals".into())
            .spawn(wait)
            .map_err(|error| Error::os("cannot start the signal thread", error))?;
        Ok(Signals { thread: Some(thread), over })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.over.store(true, Ordering::Release);
            // It is joined below, so the id is still good. The thread may have
            // ended already; then there is nothing to wake.
            // The standard library calls musl's pthread_t a number, libc a pointer.
            let _ = pthread_kill(thread.as_pthread_t() as Pthread, GO_HOME);
            let _ = thread.join();
        }
    }
}
