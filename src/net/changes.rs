//! Hears that interfaces or addresses have changed (rtnetlink(7), groups RTNLGRP_LINK,
//! RTNLGRP_IPV4_IFADDR and RTNLGRP_IPV6_IFADDR). Used by the thread that owns it.
//!
//! A notification says that something is different, not how things are: whoever
//! hears of one lists the interfaces again. So one that is lost, because the socket's
//! buffer was full, does no harm as long as any arrives; and the kernel says that
//! some were lost. Only what a list cannot show is kept: which interfaces went, since
//! another may have got the number of one of them.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{recvfrom, NetlinkAddr, SockProtocol};

use super::netlink::{first_message, subscribe, u16_at, u32_at, HEADER};
use crate::error::{Error, Result};

/// As many datagrams are taken at once; a flood of them keeps nobody from acting.
const AT_ONCE: usize = 1000;
/// More than a notification has; of one that is longer the rest is not needed.
const BUFFER: usize = 16 * 1024;

/// Of [`Changes::open`]: interfaces and their IPv6 addresses (RTMGRP_LINK and
/// RTMGRP_IPV6_IFADDR).
pub const LINKS: u32 = 0x1 | 0x100;
/// The same: all addresses (RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR).
pub const ADDRESSES: u32 = 0x10 | 0x100;

/// A socket that is readable when something has changed in the network namespace of
/// the thread that opened it.
#[derive(Debug)]
pub struct Changes {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Changes {
    /// Hears of what changes from now on: [`LINKS`] or [`ADDRESSES`].
    ///
    /// # Errors
    /// The system refuses.
    pub fn open(groups: u32) -> Result<Self> {
        let fd = subscribe(SockProtocol::NetlinkRoute, groups).map_err(|errno: Errno| {
            Error::os("cannot open a netlink socket for notifications", errno)
        })?;
        Ok(Changes { fd, buffer: vec![0; BUFFER] })
    }

    /// Takes the notifications that are there, does not wait, and returns the indices
    /// of interfaces that went. More may be there afterwards.
    ///
    /// # Errors
    /// The system refuses.
    pub fn take(&mut self) -> nix::Result<BTreeSet<u32>> {
        let mut gone = BTreeSet::new();
        for _ in 0..AT_ONCE {
            match recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), &mut self.buffer) {
                // Other processes may send to us, too.
                Ok((_, sender)) if sender.is_none_or(|sender| sender.pid() != 0) => {}
                Ok((size, _)) => {
                    let end = size.min(self.buffer.len());
                    gone.extend(departures(&self.buffer[..end]));
                }
                Err(Errno::EAGAIN) => break,
                // Some were lost: the list will tell.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(gone)
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The interfaces that a datagram says went.
fn departures(mut datagram: &[u8]) -> Vec<u32> {
    let mut gone = Vec::new();
    while let Some(message) = first_message(datagram) {
        // A bridge says of a port that leaves it what the kernel says of an interface
        // that goes, under a family of its own.
        let (family, index) = (message.get(HEADER), u32_at(message, HEADER + 4));
        if u16_at(message, 4) == Some(libc::RTM_DELLINK) && family == Some(&0) {
            gone.extend(index);
        }
        datagram = datagram.get(message.len().next_multiple_of(4)..).unwrap_or_default();
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, family: u8, index: u32) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + 16];
        bytes[0] = 32;
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[HEADER] = family;
        bytes[HEADER + 4..HEADER + 8].copy_from_slice(&index.to_ne_bytes());
        bytes
    }

    #[test]
    fn interfaces_that_go_are_told_from_ports_that_leave() {
        let bridge = 7;
        let datagram = [
            message(libc::RTM_NEWLINK, 0, 1),
            message(libc::RTM_DELLINK, 0, 2),
            message(libc::RTM_DELLINK, bridge, 3),
            message(libc::RTM_DELADDR, 0, 4),
            message(libc::RTM_DELLINK, 0, 5),
        ];
        let datagram = datagram.concat();
        assert_eq!(departures(&datagram), [2, 5]);
        for length in 0..datagram.len() {
            // No length is trusted.
            assert!(departures(&datagram[..length]).len() < 2);
        }
        assert_eq!(departures(&[0; 64]), [0; 0]);
    }

    #[test]
    fn it_does_not_wait() {
        let mut changes = Changes::open(LINKS | ADDRESSES).unwrap();
        // Those of other tests may arrive; there is an end to them.
        changes.take().unwrap();
    }
}
