//! Many datagrams in one system call (sendmmsg(2), recvmmsg(2)). nix has them too,
//! but cannot say how many went without looking at addresses that were never filled
//! in, and allocates for each that arrives.
//!
//! Runs on the thread of whoever asks; what receives owns its buffers.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io::IoSlice;
use std::mem;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

/// How many datagrams one call moves at the most.
pub const BATCH: usize = 64;

/// A datagram: what, and to whom.
pub type Datagram<'a> = (IoSlice<'a>, SockaddrStorage);

/// Sends the first ones of `datagrams` in order, up to [`BATCH`], and returns how
/// many the kernel took.
///
/// # Errors
/// Why it did not even take the first. If it refuses a later one, the next call
/// that begins with that one tells why.
pub fn send(socket: BorrowedFd<'_>, datagrams: &[Datagram<'_>]) -> nix::Result<usize> {
    // SAFETY: an mmsghdr of zero bytes is one of null pointers and zero lengths.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    let mut count = 0;
    for (header, (payload, to)) in headers.iter_mut().zip(datagrams) {
        header.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
        header.msg_hdr.msg_namelen = to.len();
        // An IoSlice is an iovec.
        header.msg_hdr.msg_iov = ptr::from_ref(payload).cast_mut().cast();
        header.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: the first `count` headers are filled in. Their pointers are to what
    // `datagrams` borrows, which outlives the call, and the kernel writes only to
    // the headers.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
    Errno::result(sent).map(i32::unsigned_abs).map(|sent| sent as usize)
}

/// Room for a sockaddr_in or a sockaddr_in6.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(8))]
struct Name([u8; 32]);

/// Room for two control messages: a 32-bit number and an in6_pktinfo.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Control([u8; 80]);

/// A datagram that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its length; what does not fit into its buffer is lost.
    pub length: usize,
    /// Whether some of it was lost.
    pub cut: bool,
    /// Who sent it; none: of a family that a UDP socket does not have.
    pub from: Option<SocketAddr>,
    /// Whom it was sent to, if the socket is of IPv6 and has IPV6_RECVPKTINFO; IPv4
    /// is mapped.
    pub to: Option<Ipv6Addr>,
    /// How many datagrams the kernel had dropped since the socket was opened, for
    /// want of room, when this one arrived: modulo 2^32, and only if the socket has
    /// SO_RXQ_OVFL and it is not 0.
    pub dropped: Option<u32>,
}

/// Buffers to receive into.
#[derive(Debug)]
pub struct Inbox {
    payloads: Vec<u8>,
    size: usize,
    names: [Name; BATCH],
    controls: [Control; BATCH],
}

impl Inbox {
    /// For datagrams of up to `size` octets. Memory that no datagram has touched is
    /// only reserved.
    ///
    /// # Panics
    /// `size` is 0.
    pub fn new(size: usize) -> Self {
        assert_ne!(size, 0, "nothing fits into nothing");
        let (names, controls) = ([Name::default(); BATCH], [Control([0; 80]); BATCH]);
        Inbox { payloads: vec![0; size * BATCH], size, names, controls }
    }

    /// Takes what has arrived at a non-blocking socket, up to [`BATCH`] datagrams, and
    /// tells of each in order. Returns how many there were.
    ///
    /// # Errors
    /// EAGAIN if nothing has arrived, or why not.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        mut take: impl FnMut(&[u8], Arrival),
    ) -> nix::Result<usize> {
        // SAFETY: an mmsghdr of zero bytes is one of null pointers and zero lengths.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let none = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let mut vectors = [none; BATCH];
        let names = self.names.iter_mut().zip(&mut self.controls);
        let buffers = self.payloads.chunks_exact_mut(self.size).zip(names);
        for ((header, vector), (payload, (name, control))) in
            headers.iter_mut().zip(&mut vectors).zip(buffers)
        {
            *vector = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
            header.msg_hdr.msg_name = ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = size_of_u32::<Name>();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = ptr::from_mut(control).cast();
            // Its type depends on the C library; 32 fits each.
            #[allow(clippy::cast_possible_truncation)]
            let length = mem::size_of::<Control>() as _;
            header.msg_hdr.msg_controllen = length;
        }
        let batch = libc::c_uint::try_from(BATCH).unwrap_or(libc::c_uint::MAX);
        // SAFETY: all BATCH headers are filled in. Their pointers are to buffers that
        // nothing else borrows until it returns, with their true lengths.
        let received = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), batch, 0, ptr::null_mut())
        };
        let count = Errno::result(received)?.unsigned_abs() as usize;
        let names = self.names.iter().zip(&self.controls);
        let arrived = headers[..count].iter().zip(self.payloads.chunks_exact(self.size).zip(names));
        for (header, (payload, (name, control))) in arrived {
            let length = (header.msg_len as usize).min(payload.len());
            // Its type depends on the C library.
            #[allow(clippy::unnecessary_cast)]
            let control = &control.0[..(header.msg_hdr.msg_controllen as usize).min(80)];
            let dropped = number_of(control, libc::SOL_SOCKET, libc::SO_RXQ_OVFL);
            let arrival = Arrival {
                length,
                cut: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
                from: name.address(),
                to: target_of(control),
                dropped,
            };
            take(&payload[..length], arrival);
        }
        Ok(count)
    }
}

#[allow(clippy::cast_possible_truncation)] // a few octets
fn size_of_u32<T>() -> u32 {
    mem::size_of::<T>() as u32
}

impl Name {
    /// ip(7), ipv6(7): family in the host's order, port and address in the network's.
    fn address(&self) -> Option<SocketAddr> {
        let bytes = &self.0;
        let port = u16::from_be_bytes([bytes[2], bytes[3]]);
        let ip: IpAddr = match c_int::from(u16::from_ne_bytes([bytes[0], bytes[1]])) {
            libc::AF_INET => <[u8; 4]>::try_from(&bytes[4..8]).ok()?.into(),
            libc::AF_INET6 => <[u8; 16]>::try_from(&bytes[8..24]).ok()?.into(),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    }
}

/// The data of the control message of that level and type (cmsg(3)), if it is there.
fn control_of(mut controls: &[u8], level: c_int, kind: c_int) -> Option<&[u8]> {
    // A length, as large as a pointer and counted with the header; level and type.
    const HEADER: usize = mem::size_of::<usize>() + 8;
    while controls.len() >= HEADER {
        let (header, _) = controls.split_at(HEADER);
        let number = |at: usize| <[u8; 4]>::try_from(header.get(at..at + 4)?).ok();
        // Its upper half, if it has one, is 0.
        let low = if cfg!(target_endian = "big") { mem::size_of::<usize>() - 4 } else { 0 };
        let length = u32::from_ne_bytes(number(low)?) as usize;
        let data = controls.get(HEADER..length)?;
        let found =
            (i32::from_ne_bytes(number(HEADER - 8)?), i32::from_ne_bytes(number(HEADER - 4)?));
        if found == (level, kind) {
            return Some(data);
        }
        controls = controls.get(length.next_multiple_of(mem::size_of::<usize>())..)?;
    }
    None
}

/// The number in a control message, such as that of SO_RXQ_OVFL (socket(7)).
fn number_of(controls: &[u8], level: c_int, kind: c_int) -> Option<u32> {
    let data = control_of(controls, level, kind)?;
    data.get(..4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The address that IPV6_PKTINFO says (RFC 3542 section 6.1).
fn target_of(controls: &[u8]) -> Option<Ipv6Addr> {
    let data = control_of(controls, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)?;
    let address: [u8; 16] = data.get(..16)?.try_into().ok()?;
    Some(address.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn datagrams_arrive_in_order_with_their_senders() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(address).unwrap();
            socket.set_nonblocking(true).unwrap();
            let sender = UdpSocket::bind(address).unwrap();
            let payload = |length: usize| vec![u8::try_from(length).unwrap(); length];
            let mut inbox = Inbox::new(100);
            let nothing = inbox.receive(socket.as_fd(), |_, _| panic!("nothing was sent"));
            assert_eq!(nothing, Err(Errno::EAGAIN));
            for length in 0..BATCH + 60 {
                sender.send_to(&payload(length), socket.local_addr().unwrap()).unwrap();
            }
            let mut next = 0;
            while next < BATCH + 60 {
                let take = |found: &[u8], arrival: Arrival| {
                    assert_eq!(found, &payload(next)[..next.min(100)]);
                    let from = Some(sender.local_addr().unwrap());
                    let (cut, length) = (next > 100, found.len());
                    assert_eq!(arrival, Arrival { length, cut, from, to: None, dropped: None });
                    next += 1;
                };
                assert!(inbox.receive(socket.as_fd(), take).unwrap() <= BATCH);
            }
        }
    }

    #[test]
    fn it_is_told_whom_a_datagram_was_sent_to() {
        use nix::sys::socket::{setsockopt, sockopt};
        let socket = UdpSocket::bind("[::]:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true).unwrap();
        setsockopt(&socket, sockopt::RxqOvfl, &1).unwrap();
        let port = socket.local_addr().unwrap().port();
        let mut inbox = Inbox::new(10);
        for (from, to) in [("127.0.0.1", "::ffff:127.0.0.1"), ("::1", "::1")] {
            UdpSocket::bind((from, 0)).unwrap().send_to(b"x", (from, port)).unwrap();
            let mut told = None;
            assert_eq!(inbox.receive(socket.as_fd(), |_, arrival| told = arrival.to), Ok(1));
            assert_eq!(told, Some(to.parse().unwrap()));
        }
        // Cut short, or of no length.
        assert_eq!(control_of(&[0; 80], 0, 0), None);
        assert_eq!(target_of(&[24; 30]), None);
    }

    #[test]
    fn what_the_kernel_drops_is_counted() {
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RxqOvfl, &1).unwrap();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &4096).unwrap();
        let sender = UdpSocket::bind("[::1]:0").unwrap();
        let send = || sender.send_to(&[0; 500], socket.local_addr().unwrap()).unwrap();
        (0..100).for_each(|_| assert_eq!(send(), 500));
        let mut inbox = Inbox::new(1000);
        let mut dropped = None;
        let mut received =
            inbox.receive(socket.as_fd(), |_, arrival| dropped = arrival.dropped).unwrap();
        assert_eq!(dropped, None, "they were there before any was dropped");
        assert!(received < BATCH);
        send();
        received += inbox.receive(socket.as_fd(), |_, arrival| dropped = arrival.dropped).unwrap();
        assert_eq!(dropped.map(|dropped| dropped as usize + received), Some(101));
    }
}
