//! A tap on the host's interfaces: IPv6 packets as they arrive and leave, from the IPv6
//! header on and cut (packet(7)). Used by whoever opened it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    recvfrom, setsockopt, socket, sockopt, AddressFamily, LinkAddr, SockFlag, SockProtocol,
    SockType,
};

use crate::error::{Error, Result};
use crate::net::interfaces;
use crate::net::netlink;
use crate::sys::socket::keep_ipv6;

/// How much of a packet is kept: the IPv6 header, its extensions and ports.
const LENGTH: u32 = 256;

/// What the kernel may keep until it is read, in octets.
const BUFFER: usize = 8 << 20;

/// The open tap.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
    /// By index; none: all are wanted.
    wanted: HashMap<u32, String>,
    all: bool,
    buffer: Vec<u8>,
}

/// A packet.
#[derive(Debug)]
pub struct Seen<'t> {
    /// The interface's name, or its index if it is new.
    pub interface: String,
    /// Whether it leaves the host there.
    pub outgoing: bool,
    /// From the IPv6 header on.
    pub bytes: &'t [u8],
}

impl Tap {
    /// A tap on these interfaces; on all, if none is named.
    ///
    /// # Errors
    /// There is no such interface, or the process lacks CAP_NET_RAW.
    pub fn open(names: &[String]) -> Result<Self> {
        let links = interfaces::list(&mut netlink::Socket::route()?)?;
        if let Some(name) = names.iter().find(|name| !links.iter().any(|l| l.name == **name)) {
            let known: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
            return Err(Error::usage(format!(
                "there is no interface {name:?}; there are {}",
                known.join(", ")
            )));
        }
        let all = names.is_empty();
        let wanted = links
            .into_iter()
            .filter(|link| all || names.contains(&link.name))
            .map(|link| (link.index, link.name))
            .collect();
        let cannot = |error: io::Error| {
            let hint = match error.raw_os_error() {
                Some(libc::EPERM) => " (it takes CAP_NET_RAW, which root has)",
                _ => "",
            };
            Error::os("cannot watch packets", io::Error::other(format!("{error}{hint}")))
        };
        // All protocols: a socket for one does not see what leaves the host.
        let socket = socket(
            AddressFamily::Packet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .map_err(|errno| cannot(errno.into()))?;
        keep_ipv6(socket.as_fd(), LENGTH).map_err(cannot)?;
        // As much as the system allows.
        let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
        Ok(Tap { socket, wanted, all, buffer: vec![0; LENGTH as usize] })
    }

    /// Waits for the next packet.
    ///
    /// # Errors
    /// The system refuses.
    pub fn wait(&mut self) -> Result<Seen<'_>> {
        loop {
            let got = recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut self.buffer);
            let (length, from) = match got {
                Ok((length, Some(from))) => (length, from),
                // The interface has gone down, which ends nothing.
                Ok((_, None)) | Err(Errno::EINTR | Errno::ENETDOWN) => continue,
                Err(errno) => return Err(Error::os("cannot receive packets", errno)),
            };
            let from = from.as_ref();
            let index = u32::try_from(from.sll_ifindex).unwrap_or(0);
            let interface = match self.wanted.get(&index) {
                Some(name) => name.clone(),
                None if self.all => index.to_string(),
                None => continue,
            };
            let outgoing = from.sll_pkttype == libc::PACKET_OUTGOING;
            return Ok(Seen { interface, outgoing, bytes: &self.buffer[..length] });
        }
    }
}
