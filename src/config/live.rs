//! A plugin's live section: how its thread learns of new values while it runs. The
//! main thread publishes, the plugin's thread has it in its poll set and takes.
//! (A backend needs none: it is told in its queue, as of everything else.)
//!
//! It owns a socket pair, whose one end is readable while a section waits. Only the
//! latest waits, so that it never grows.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use super::Section;
use crate::error::{Error, Result};

/// Either end; clones are the same.
#[derive(Clone, Debug)]
pub struct Live(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Option<Arc<Section>>>,
    signal: UnixStream,
    wake: UnixStream,
}

impl Live {
    /// One on which nothing was published.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new() -> Result<Self> {
        let pair = || {
            let (signal, wake) = UnixStream::pair()?;
            signal.set_nonblocking(true)?;
            wake.set_nonblocking(true)?;
            Ok((signal, wake))
        };
        let (signal, wake) = pair()
            .map_err(|error: std::io::Error| Error::os("cannot create a socket pair", error))?;
        Ok(Live(Arc::new(Shared { waiting: Mutex::new(None), signal, wake })))
    }

    /// Puts `section` in the place of what waits.
    pub fn publish(&self, section: Arc<Section>) {
        *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(section);
        // Full: then it is readable.
        let _ = (&self.0.signal).write(&[0]);
    }

    /// What was published last, if it was not taken yet.
    pub fn take(&self) -> Option<Arc<Section>> {
        // First the signal, then the section: one that comes in between is taken now,
        // and its signal wakes for nothing.
        while (&self.0.wake).read(&mut [0; 64]).is_ok_and(|length| length > 0) {}
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Readable while a section waits.
impl AsFd for Live {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

    #[test]
    fn the_latest_section_waits_and_is_seen_by_poll() {
        let live = Live::new().unwrap();
        let readable = || {
            let mut fds = [PollFd::new(live.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
        };
        assert!(!readable() && live.take().is_none());
        // More than the socket has room for.
        for n in 0..100_000 {
            live.clone().publish(Arc::new(Section::new(format!("plugins.n{n}"), vec![])));
        }
        assert!(readable());
        assert_eq!(live.take().unwrap().path(), "plugins.n99999");
        assert!(!readable() && live.take().is_none());
    }
}
