//! Waits for many sockets at once: epoll(7) on Linux, whose cost does not grow
//! with the idle ones, and poll(2) elsewhere. Used by the thread that owns it.

use std::time::Duration;

#[cfg(not(target_os = "linux"))]
pub use portable::Poller;

#[cfg(target_os = "linux")]
pub use linux::Poller;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nothing for now.
    None,
    /// Bytes, a connection, or the end of them.
    Read,
    /// Room for bytes.
    Write,
}

/// In milliseconds, rounded up: to wake early would be to wake for nothing.
fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::time::Duration;

    use nix::errno::Errno;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

    use super::{millis, Interest};

    /// The sockets that are waited for.
    #[derive(Debug)]
    pub struct Poller {
        epoll: Epoll,
        events: Vec<EpollEvent>,
    }

    impl Poller {
        /// Waits for nothing yet.
        pub fn new() -> nix::Result<Self> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            Ok(Poller { epoll, events: vec![EpollEvent::empty(); 128] })
        }

        /// Adds a socket under a token of the caller's. It leaves when it is closed.
        pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> nix::Result<()> {
            self.epoll.add(fd, EpollEvent::new(flags(interest), token))
        }

        /// Waits for something else from now on.
        pub fn set(&self, fd: impl AsFd, token: u64, interest: Interest) -> nix::Result<()> {
            self.epoll.modify(fd, &mut EpollEvent::new(flags(interest), token))
        }

        /// Waits, at the longest for `timeout`, and fills `ready` with the tokens
        /// of what is ready or broken. `all` yields the same sockets as were
        /// added; only the portable poller needs it.
        pub fn wait<'a>(
            &mut self,
            _all: impl Iterator<Item = (u64, BorrowedFd<'a>, Interest)>,
            timeout: Option<Duration>,
            ready: &mut Vec<u64>,
        ) -> nix::Result<()> {
            let timeout = timeout
                .and_then(|timeout| EpollTimeout::try_from(millis(timeout)).ok())
                .unwrap_or(EpollTimeout::NONE);
            ready.clear();
            match self.epoll.wait(&mut self.events, timeout) {
                Ok(count) => ready.extend(self.events[..count].iter().map(EpollEvent::data)),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        }
    }

    fn flags(interest: Interest) -> EpollFlags {
        match interest {
            Interest::None => EpollFlags::empty(),
            Interest::Read => EpollFlags::EPOLLIN,
            Interest::Write => EpollFlags::EPOLLOUT,
        }
    }
}

// On Linux only the test below uses it, and nobody else can.
#[cfg(any(test, not(target_os = "linux")))]
#[cfg_attr(target_os = "linux", allow(unreachable_pub))]
mod portable {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::time::Duration;

    use nix::errno::Errno;
    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

    use super::{millis, Interest};

    /// The sockets that are waited for: it remembers none, see [`Poller::wait`].
    #[derive(Debug)]
    pub struct Poller(());

    impl Poller {
        /// Waits for nothing yet.
        #[allow(clippy::unnecessary_wraps)] // the same signature as on Linux
        pub fn new() -> nix::Result<Self> {
            Ok(Poller(()))
        }

        /// Adds a socket under a token of the caller's.
        #[allow(clippy::unnecessary_wraps, clippy::unused_self)] // as above
        pub fn add(&self, _: impl AsFd, _: u64, _: Interest) -> nix::Result<()> {
            Ok(())
        }

        /// Waits for something else from now on.
        #[allow(clippy::unnecessary_wraps, clippy::unused_self)] // as above
        pub fn set(&self, _: impl AsFd, _: u64, _: Interest) -> nix::Result<()> {
            Ok(())
        }

        /// Waits, at the longest for `timeout`, and fills `ready` with the tokens
        /// of what is ready or broken, out of `all` that were added.
        pub fn wait<'a>(
            &mut self,
            all: impl Iterator<Item = (u64, BorrowedFd<'a>, Interest)>,
            timeout: Option<Duration>,
            ready: &mut Vec<u64>,
        ) -> nix::Result<()> {
            let (tokens, mut fds): (Vec<u64>, Vec<PollFd<'a>>) =
                all.map(|(token, fd, interest)| (token, PollFd::new(fd, flags(interest)))).unzip();
            let timeout = timeout
                .and_then(|timeout| PollTimeout::try_from(millis(timeout)).ok())
                .unwrap_or(PollTimeout::NONE);
            ready.clear();
            match poll(&mut fds, timeout) {
                Ok(_) => {
                    let happened = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
                    let pairs = tokens.iter().zip(&fds);
                    ready.extend(pairs.filter(|(_, fd)| happened(fd)).map(|(token, _)| token));
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        }
    }

    fn flags(interest: Interest) -> PollFlags {
        match interest {
            Interest::None => PollFlags::empty(),
            Interest::Read => PollFlags::POLLIN,
            Interest::Write => PollFlags::POLLOUT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    macro_rules! tells_what_is_ready {
        ($name:ident, $poller:ty) => {
            #[test]
            fn $name() {
                let mut poller = <$poller>::new().unwrap();
                let (near, mut far) = UnixStream::pair().unwrap();
                let mut ready = vec![1, 2, 3];
                poller.add(&near, 7, Interest::Read).unwrap();
                let mut told = |interest, timeout| {
                    poller.set(&near, 7, interest).unwrap();
                    let all = [(7, near.as_fd(), interest)].into_iter();
                    poller.wait(all, timeout, &mut ready).unwrap();
                    ready.clone()
                };
                let soon = Some(Duration::from_micros(1));
                assert_eq!(told(Interest::Read, soon), [0; 0]);
                assert_eq!(told(Interest::Write, None), [7]);
                far.write_all(b"x").unwrap();
                assert_eq!(told(Interest::Read, None), [7]);
                assert_eq!(told(Interest::None, soon), [0; 0]);
                drop(far);
                assert_eq!(told(Interest::Read, None), [7]);
            }
        };
    }
    #[cfg(target_os = "linux")]
    tells_what_is_ready!(epoll_tells_what_is_ready, linux::Poller);
    tells_what_is_ready!(poll_tells_what_is_ready, portable::Poller);

    #[test]
    fn a_timeout_is_never_cut_short() {
        assert_eq!(millis(Duration::from_micros(1)), 1);
        assert_eq!(millis(Duration::from_millis(5)), 5);
        assert_eq!(millis(Duration::from_secs(u64::MAX)), i32::MAX);
    }
}
