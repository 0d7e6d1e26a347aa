//! The end of every wait: a deadline, or a signal that asks the self-test to stop.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Class, Error, Result};

/// How long one way of marking may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const PAUSE: u16 = 1;

/// Watches the clock and the signals.
pub(super) struct Watch {
    signals: SignalFd,
    interrupted: Cell<Option<Signal>>,
    deadline: Cell<Instant>,
}

impl Watch {
    /// Keeps SIGINT, SIGTERM and SIGHUP from ending the process, so that what it made is
    /// undone; from now on they end every wait.
    pub(super) fn start() -> Result<Self> {
        let set = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        set.thread_block().map_err(|error| Error::os("cannot block signals", error))?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|error| Error::os("cannot wait for signals", error))?;
        let deadline = Cell::new(Instant::now() + PATIENCE);
        Ok(Watch { signals, interrupted: Cell::new(None), deadline })
    }

    /// From now on there is all the time of one way again.
    pub(super) fn begin(&self) {
        self.deadline.set(Instant::now() + PATIENCE);
    }

    /// Whether a signal has come.
    pub(super) fn is_interrupted(&self) -> bool {
        self.check().is_err()
    }

    /// # Errors
    /// A signal has come.
    pub(super) fn check(&self) -> Result<()> {
        if let Ok(Some(signal)) = self.signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
            self.interrupted.set(Signal::try_from(number).ok());
        }
        match self.interrupted.get() {
            Some(signal) => Err(Error::new(Class::Os, format!("interrupted by {signal}"))),
            None => Ok(()),
        }
    }

    /// Waits until `condition` gives a value. `what` is for the error.
    ///
    /// # Errors
    /// It takes too long, a signal comes, or the condition fails.
    pub(super) fn until<T>(
        &self,
        what: &str,
        mut condition: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        loop {
            self.check()?;
            if let Some(value) = condition()? {
                return Ok(value);
            }
            if Instant::now() >= self.deadline.get() {
                return Err(Error::new(Class::Os, format!("waited too long for {what}")));
            }
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(PAUSE)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(Error::os("cannot poll", error)),
            }
        }
    }
}
