//! UDP sockets that only send (udp(7), ipv6(7)).
//!
//! Runs on the thread of whoever asks, and owns nothing.

use std::fmt;
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, socket, sockopt, AddressFamily, SockFlag, SockType};

/// What a socket for sending is asked to buffer, in octets. The kernel gives less
/// if it must. Datagrams to a neighbour that does not answer wait here for
/// seconds; a few such neighbours do not stop those to others, many do. So what
/// must not be stopped needs a socket of its own.
const SEND_BUFFER: usize = 4 << 20;

/// The family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6, and no IPv4 behind mapped addresses.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// A non-blocking, unconnected socket to send from. An unconnected socket is not
/// told of ICMP errors, so that one dead receiver costs the others nothing.
pub fn sender(family: Family) -> io::Result<UdpSocket> {
    let domain = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let fd = close_on_exec(domain)?;
    if family == Family::V6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    // Nobody reads what strangers may send here, so it should not cost memory.
    // Sizes are wishes: the socket serves with any.
    let _ = setsockopt(&fd, sockopt::RcvBuf, &0);
    #[cfg(target_os = "linux")] // goes beyond net.core.wmem_max, with CAP_NET_ADMIN
    let forced = setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER).is_ok();
    #[cfg(not(target_os = "linux"))]
    let forced = false;
    if !forced {
        let _ = setsockopt(&fd, sockopt::SndBuf, &SEND_BUFFER);
    }
    let socket = UdpSocket::from(fd);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn close_on_exec(domain: AddressFamily) -> nix::Result<OwnedFd> {
    socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

#[cfg(not(target_os = "linux"))]
fn close_on_exec(domain: AddressFamily) -> nix::Result<OwnedFd> {
    use nix::fcntl::{fcntl, FcntlArg, FdFlag};
    let fd = socket(domain, SockType::Datagram, SockFlag::empty(), None)?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}
