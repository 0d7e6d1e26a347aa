//! Real TCP and UDP between the namespaces, with the standard library's sockets
//! where they can do it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Instant;

use glowd::net::uninterrupted;
use nix::sys::socket::{
    bind, connect, setsockopt, socket, sockopt, AddressFamily, SockFlag, SockType, SockaddrIn6,
};

use super::netns::Namespace;
use super::{wait_for, PATIENCE};

pub(crate) fn v6(address: &str, port: u16) -> SocketAddrV6 {
    let ip: Ipv6Addr = address.parse().expect("an IPv6 address");
    SocketAddrV6::new(ip, port, 0, 0)
}

/// A TCP connection between two namespaces, both ends in one hand.
pub(crate) struct Connection {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
}

impl Connection {
    /// Connects `from` to `to`; both addresses and ports are given, since a flow is
    /// announced before its first packet. `traffic_class` is the client's.
    pub(crate) fn open(
        (here, from): (&Namespace, SocketAddrV6),
        (there, to): (&Namespace, SocketAddrV6),
        traffic_class: u8,
    ) -> Self {
        let listener = there.enter(|| TcpListener::bind(to)).expect("to listen");
        let stream = here.enter(|| {
            socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
                .expect("a socket")
        });
        setsockopt(&stream, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
        setsockopt(&stream, sockopt::Ipv6TClass, &i32::from(traffic_class)).expect("IPV6_TCLASS");
        bind(stream.as_raw_fd(), &SockaddrIn6::from(from)).expect("to bind");
        connect(stream.as_raw_fd(), &SockaddrIn6::from(to)).expect("to connect");
        let client = TcpStream::from(stream);
        let (server, _) = listener.accept().expect("to accept");
        for end in [&client, &server] {
            end.set_nodelay(true).expect("TCP_NODELAY");
            end.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            end.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        }
        Connection { client, server }
    }

    /// Sends `octets` from the client, which must arrive complete and in order.
    pub(crate) fn send_bulk(&mut self, octets: usize) {
        // Its length is a prime, so a lost or repeated segment shows.
        let pattern: Vec<u8> = (0..=255).cycle().take(65_521).collect();
        let (client, server) = (&mut self.client, &mut self.server);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut sent = 0;
                while sent < octets {
                    let part = pattern.len().min(octets - sent);
                    client.write_all(&pattern[..part]).expect("to send");
                    sent += part;
                }
            });
            let (mut got, mut buffer) = (0, vec![0; pattern.len()]);
            let start = Instant::now();
            while got < octets {
                if start.elapsed() > PATIENCE {
                    // Else the client would go on.
                    server.shutdown(Shutdown::Both).expect("to end it");
                    panic!("only {got} of {octets} octets arrived in time");
                }
                let at = got % pattern.len();
                let wanted = (pattern.len() - at).min(octets - got);
                let length =
                    uninterrupted(|| server.read(&mut buffer[..wanted])).expect("to receive");
                assert_ne!(length, 0, "the connection ended after {got} of {octets} octets");
                assert!(buffer[..length] == pattern[at..at + length], "octet {got} or behind");
                got += length;
            }
        });
    }

    /// Sends `count` small messages and an answer to each, one after the other.
    pub(crate) fn ping_pong(&mut self, count: usize) {
        let mut buffer = [0; 64];
        for round in 0..count {
            let message = [u8::try_from(round % 256).expect("a byte"); 64];
            self.client.write_all(&message).expect("to send");
            self.server.read_exact(&mut buffer).expect("to receive");
            assert_eq!(buffer, message);
            self.server.write_all(&message).expect("to answer");
            self.client.read_exact(&mut buffer).expect("the answer");
            assert_eq!(buffer, message);
        }
    }
}

/// A UDP socket that is bound. One before it with this address may still be open for a
/// moment after its end: in a child that another test is about to make of this process.
pub(crate) fn bound(namespace: &Namespace, from: SocketAddrV6) -> UdpSocket {
    wait_for("the address to be free", || match namespace.enter(|| UdpSocket::bind(from)) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => None,
        result => Some(result.expect("to bind")),
    })
}

/// A UDP socket that is bound and connected.
pub(crate) fn udp(namespace: &Namespace, from: SocketAddrV6, to: SocketAddrV6) -> UdpSocket {
    let socket = bound(namespace, from);
    socket.connect(to).expect("to connect");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

pub(crate) fn set_traffic_class(socket: &UdpSocket, traffic_class: u8) {
    setsockopt(socket, sockopt::Ipv6TClass, &i32::from(traffic_class)).expect("IPV6_TCLASS");
}
