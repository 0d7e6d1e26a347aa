//! Hears of the TCP sockets of this host that go, with what TCP knew of them (sock_diag(7),
//! groups SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY; 4.3). Used by the
//! thread that owns the [`Ends`], which holds the netlink socket.
//!
//! The kernel tells of a socket when nothing holds it any more, some microseconds late: a
//! connection that this side closed first is TIME-WAIT by then, and is told as closed. While
//! nobody listens it costs the kernel nothing.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, recvfrom, setsockopt, sockopt, NetlinkAddr, SockProtocol};

use super::{Socket, BY_FAMILY};
use crate::error::{Error, Result};
use crate::flow::Protocol;
use crate::net::netlink::{each_message, subscribe, HEADER};

/// The groups, as bits of an address.
const GROUPS: u32 = 1 << 0 | 1 << 2;
/// As many are taken at once; a flood of them keeps nobody from acting.
const AT_ONCE: usize = 8192;
/// One has some 400 octets.
const BUFFER: usize = 4096;
/// What the kernel may keep for us, which it doubles: several thousand of them.
const WAITING: usize = 4 << 20;
/// Ends are heard of no more often where the kernel keeps that many for us, and as much more often
/// as it keeps fewer.
const REST: Duration = Duration::from_millis(50);

/// What the kernel tells of, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Ends {
    fd: OwnedFd,
    buffer: Vec<u8>,
    rest: Duration,
}

impl Ends {
    /// Hears of what goes from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open() -> Result<Self> {
        let fd = subscribe(SockProtocol::NetlinkSockDiag, GROUPS)
            .map_err(|errno| Error::os("cannot hear of sockets that go", errno))?;
        if setsockopt(&fd, sockopt::RcvBufForce, &WAITING).is_err() {
            // Without CAP_NET_ADMIN it is less: net.core.rmem_max at the most.
            let _ = setsockopt(&fd, sockopt::RcvBuf, &WAITING);
        }
        let room = getsockopt(&fd, sockopt::RcvBuf).map_or(0, |room| room.min(2 * WAITING));
        #[allow(clippy::cast_possible_truncation)] // some millions
        let rest = REST * room as u32 / (2 * WAITING) as u32;
        Ok(Ends { fd, buffer: vec![0; BUFFER], rest })
    }

    /// So long it may be left alone between two looks without losing more than it would anyway.
    pub fn rest(&self) -> Duration {
        self.rest
    }

    /// Tells of the sockets that went, and does not wait. Returns whether some were lost,
    /// since there were too many.
    ///
    /// # Errors
    /// The system refuses.
    pub fn take(&mut self, mut take: impl FnMut(&Socket<'_>)) -> nix::Result<bool> {
        let mut lost = false;
        for _ in 0..AT_ONCE {
            let size = match recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), &mut self.buffer) {
                // Other processes may send to us, too.
                Ok((_, sender)) if sender.is_none_or(|sender| sender.pid() != 0) => continue,
                Ok((size, _)) => size,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => {
                    lost = true;
                    continue;
                }
                Err(errno) => return Err(errno),
            };
            let datagram = self.buffer.get(..size).unwrap_or_default();
            // One that is cut tells of nothing.
            let _ = each_message(datagram, 0, |kind, _, message| {
                if kind == BY_FAMILY {
                    Socket::decode(Protocol::Tcp, &message[HEADER..]).iter().for_each(&mut take);
                }
                Ok(())
            });
        }
        Ok(lost)
    }
}

impl AsFd for Ends {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
