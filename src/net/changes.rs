//! Hears that interfaces or addresses have changed (rtnetlink(7), groups RTNLGRP_LINK,
//! RTNLGRP_IPV4_IFADDR and RTNLGRP_IPV6_IFADDR). Used by the thread that owns it.
//!
//! A notification says that something is different, not how things are: whoever
//! hears of one lists the interfaces again. So one that is lost, because the socket's
//! buffer was full, does no harm as long as any arrives; and the kernel says that
//! some were lost. Only what a list cannot show is kept: which interfaces and addresses went,
//! since another interface may have got the number of one of them, and an address may be there
//! again in another network.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{recvfrom, NetlinkAddr, SockProtocol};

use super::attributes::Attributes;
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

/// What went, each once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// Interfaces, by their indices.
    pub links: Vec<u32>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Some notifications were lost, so more may have gone.
    pub more: bool,
}

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

    /// Takes the notifications that are there, does not wait, and returns what went. More
    /// may be there afterwards.
    ///
    /// # Errors
    /// The system refuses.
    pub fn take(&mut self) -> nix::Result<Gone> {
        let mut gone = Gone::default();
        for _ in 0..AT_ONCE {
            match recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), &mut self.buffer) {
                // Other processes may send to us, too.
                Ok((_, sender)) if sender.is_none_or(|sender| sender.pid() != 0) => {}
                Ok((size, _)) => {
                    let end = size.min(self.buffer.len());
                    gone.read(&self.buffer[..end]);
                }
                Err(Errno::EAGAIN) => break,
                // Some were lost: the list will tell.
                Err(Errno::ENOBUFS) => gone.more = true,
                Err(Errno::EINTR) => {}
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

impl Gone {
    /// Takes note of what a datagram says went.
    fn read(&mut self, mut datagram: &[u8]) {
        while let Some(message) = first_message(datagram) {
            let family = message.get(HEADER);
            match u16_at(message, 4) {
                // A bridge says of a port that leaves it what the kernel says of an interface
                // that goes, under a family of its own.
                Some(libc::RTM_DELLINK) if family == Some(&0) => {
                    note(&mut self.links, u32_at(message, HEADER + 4));
                }
                Some(libc::RTM_DELADDR) => note(&mut self.addresses, address(message)),
                _ => {}
            }
            datagram = datagram.get(message.len().next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn note<T: PartialEq>(list: &mut Vec<T>, item: Option<T>) {
    list.extend(item.filter(|item| !list.contains(item)));
}

/// The address that a message is about: struct ifaddrmsg and its attributes, of which
/// IFA_LOCAL is this host's own, and IFA_ADDRESS is too unless the link is point-to-point.
fn address(message: &[u8]) -> Option<IpAddr> {
    let attributes = Attributes(message.get(HEADER + 8..)?);
    let found = attributes.clone().find(libc::IFA_LOCAL).or(attributes.find(libc::IFA_ADDRESS))?;
    match found.len() {
        4 => <[u8; 4]>::try_from(found).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(found).ok().map(IpAddr::from),
    }
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

    fn departures(datagram: &[u8]) -> Vec<u32> {
        let mut gone = Gone::default();
        gone.read(datagram);
        gone.links.into_iter().collect()
    }

    #[test]
    fn addresses_that_go_are_told() {
        let told = |kind, attributes: &[(u16, &[u8])]| {
            let mut bytes = message(kind, 2, 1);
            bytes.truncate(HEADER + 8);
            for (kind, value) in attributes {
                bytes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
                bytes.extend(kind.to_ne_bytes());
                bytes.extend(*value);
            }
            bytes[0] = u8::try_from(bytes.len()).unwrap();
            let mut gone = Gone::default();
            gone.read(&bytes);
            // No length is trusted.
            (0..bytes.len()).for_each(|length| Gone::default().read(&bytes[..length]));
            gone.addresses.into_iter().map(|ip| ip.to_string()).collect::<Vec<_>>()
        };
        let (peer, own) = (&[10, 0, 0, 1][..], &[10, 0, 0, 2][..]);
        let both = [(libc::IFA_ADDRESS, peer), (libc::IFA_LOCAL, own)];
        assert_eq!(told(libc::RTM_DELADDR, &both), ["10.0.0.2"]);
        assert_eq!(told(libc::RTM_NEWADDR, &both), [""; 0]);
        let v6 = [(libc::IFA_ADDRESS, &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..])];
        assert_eq!(told(libc::RTM_DELADDR, &v6), ["fd00::5"]);
        assert_eq!(told(libc::RTM_DELADDR, &[(libc::IFA_LOCAL, &[1, 2])]), [""; 0]);
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
