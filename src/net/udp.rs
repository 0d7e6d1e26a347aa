//! UDP sockets that only send, or only receive (udp(7), ipv6(7)).
//!
//! Runs on the thread of whoever asks, and owns nothing.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use nix::sys::socket::{
    bind, getsockopt, setsockopt, socket, sockopt, AddressFamily, SockFlag, SockType,
    SockaddrStorage,
};

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

/// A non-blocking socket that is bound to `address`; on the unspecified address of
/// IPv6 it receives IPv4 as well. It is asked to buffer `buffer` octets, as the
/// kernel counts them: more than twice what is in a small datagram. Returns how
/// many it buffers.
///
/// # Errors
/// The address is taken, or not one of this host.
pub fn listener(address: SocketAddr, buffer: usize) -> io::Result<(UdpSocket, usize)> {
    let domain = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = close_on_exec(domain)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
    }
    // Linux doubles what it is asked for, and means the doubled number.
    let wish = if cfg!(target_os = "linux") { buffer / 2 } else { buffer };
    #[cfg(target_os = "linux")] // goes beyond net.core.rmem_max, with CAP_NET_ADMIN
    let forced = setsockopt(&fd, sockopt::RcvBufForce, &wish).is_ok();
    #[cfg(not(target_os = "linux"))]
    let forced = false;
    if !forced {
        let _ = setsockopt(&fd, sockopt::RcvBuf, &wish);
    }
    #[cfg(target_os = "linux")] // since 2.6.33
    setsockopt(&fd, sockopt::RxqOvfl, &1)?;
    #[cfg(target_os = "linux")] // whom a datagram was sent to
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(address))?;
    let buffer = getsockopt(&fd, sockopt::RcvBuf)?;
    let socket = UdpSocket::from(fd);
    socket.set_nonblocking(true)?;
    Ok((socket, buffer))
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
