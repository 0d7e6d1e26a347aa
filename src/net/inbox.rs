//! What datagrams are received into: by many in one system call on Linux, one by
//! one elsewhere. Used by the thread that owns it.

#[cfg(target_os = "linux")]
pub use crate::sys::udp::{Arrival, Inbox};

#[cfg(not(target_os = "linux"))]
pub use portable::{Arrival, Inbox};

#[cfg(not(target_os = "linux"))]
mod portable {
    use std::net::{IpAddr, SocketAddr};
    use std::os::fd::{AsRawFd, BorrowedFd};

    use nix::errno::Errno;
    use nix::sys::socket::{recvfrom, SockaddrStorage};

    /// How many datagrams are taken in turn.
    const BATCH: usize = 64;

    /// A datagram that has arrived.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Arrival {
        /// Its length; what does not fit into its buffer is lost.
        pub length: usize,
        /// Whether some of it was lost.
        pub cut: bool,
        /// Who sent it.
        pub from: Option<SocketAddr>,
        /// The system is not asked.
        pub to: Option<std::net::Ipv6Addr>,
        /// The system does not count what it drops.
        pub dropped: Option<u32>,
    }

    /// A buffer to receive into.
    #[derive(Debug)]
    pub struct Inbox(Vec<u8>);

    impl Inbox {
        /// For datagrams of up to `size` octets.
        pub fn new(size: usize) -> Self {
            // One more tells what was too long.
            Inbox(vec![0; size + 1])
        }

        /// Takes what has arrived on a non-blocking socket and tells of each datagram
        /// in order. Returns how many there were.
        ///
        /// # Errors
        /// EAGAIN if nothing has arrived, or why not.
        pub fn receive(
            &mut self,
            socket: BorrowedFd<'_>,
            mut take: impl FnMut(&[u8], Arrival),
        ) -> nix::Result<usize> {
            let size = self.0.len() - 1;
            for count in 0..BATCH {
                let (length, from) =
                    match recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut self.0) {
                        Ok(received) => received,
                        Err(Errno::EAGAIN) if count > 0 => return Ok(count),
                        Err(error) => return Err(error),
                    };
                let from = from.and_then(|from| {
                    let v4 = from.as_sockaddr_in();
                    let v4 = v4.map(|from| SocketAddr::new(IpAddr::V4(from.ip()), from.port()));
                    let v6 = from.as_sockaddr_in6();
                    v4.or(v6.map(|from| SocketAddr::new(IpAddr::V6(from.ip()), from.port())))
                });
                let (cut, length) = (length > size, length.min(size));
                take(&self.0[..length], Arrival { length, cut, from, to: None, dropped: None });
            }
            Ok(BATCH)
        }
    }
}
