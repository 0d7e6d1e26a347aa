//! What is sent over the cable in one round: a flow of TCP and one of UDP, which will be
//! marked, and one of UDP that will not. Owns the sockets. None of them blocks, so that
//! every wait has its end in `watch`.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    bind, connect, getsockname, socket, AddressFamily, SockFlag, SockType, SockaddrIn6,
};

use super::cable::Cable;
use super::watch::Watch;
use crate::error::{At, Error, Result};
use crate::sys::socket::set_int_option;

/// A prime, so that a lost or repeated piece of the stream shows.
const PATTERN: usize = 65_521;
/// A datagram that has not arrived by then is sent again.
const AGAIN: Duration = Duration::from_millis(50);

/// Addresses and ports of a flow, as its packets have them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) protocol: &'static str,
    pub(super) from: SocketAddrV6,
    pub(super) to: SocketAddrV6,
}

/// The sockets at both ends.
pub(super) struct Traffic {
    pub(super) tcp: Flow,
    pub(super) udp: Flow,
    pub(super) other: Flow,
    client: Client,
    listener: TcpListener,
    udp_socket: UdpSocket,
    other_socket: UdpSocket,
    sink: UdpSocket,
    pattern: Vec<u8>,
    datagrams: u64,
}

enum Client {
    /// It has a port, and is not connected.
    Bound(OwnedFd),
    Connected {
        near: TcpStream,
        far: TcpStream,
    },
}

impl Traffic {
    /// Opens the sockets, and sends nothing.
    pub(super) fn open(cable: &Cable) -> Result<Self> {
        let fail = |what: &str| {
            let what = format!("cannot open a socket for {what}");
            move |error| Error::os(what.clone(), error)
        };
        let far = cable.far.port(0);
        let (listener, sink) = cable.at_far(|| {
            let listener = TcpListener::bind(far).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(listener)
            });
            Ok::<_, Error>((listener.map_err(fail("TCP"))?, plain_udp(far).map_err(fail("UDP"))?))
        })??;
        let to = |address: std::io::Result<SocketAddr>| match address {
            Ok(SocketAddr::V6(address)) => Ok(address),
            Ok(_) => Err(Error::internal("a socket has an IPv4 address")),
            Err(error) => Err(fail("IPv6")(error)),
        };
        let (tcp_to, udp_to) = (to(listener.local_addr())?, to(sink.local_addr())?);
        // Seen from the near end, by its own interface.
        let near = |to: SocketAddrV6| cable.near_to_far(to.port());
        let client = plain_tcp(cable.near.port(0)).map_err(|errno| fail("TCP")(errno.into()))?;
        let name: SockaddrIn6 =
            getsockname(client.as_raw_fd()).map_err(|errno| fail("TCP")(errno.into()))?;
        let connected = |to: SocketAddrV6| {
            let socket = plain_udp(cable.near.port(0))?;
            socket.connect(near(to))?;
            Ok(socket)
        };
        let udp_socket = connected(udp_to).map_err(fail("UDP"))?;
        let other_socket = connected(udp_to).map_err(fail("UDP"))?;
        let flow = |protocol, from, to| Flow { protocol, from, to };
        Ok(Traffic {
            tcp: flow("tcp", cable.near.port(name.port()), near(tcp_to)),
            udp: flow("udp", to(udp_socket.local_addr())?, near(udp_to)),
            other: flow("udp", to(other_socket.local_addr())?, near(udp_to)),
            client: Client::Bound(client),
            listener,
            udp_socket,
            other_socket,
            sink,
            pattern: (0..=255).cycle().take(PATTERN).collect(),
            datagrams: 0,
        })
    }

    /// Sends a datagram of the UDP flow, of at least 8 octets, and waits until it has
    /// arrived as it was sent.
    pub(super) fn send_udp(&mut self, octets: usize, watch: &Watch) -> Result<()> {
        self.datagrams += 1;
        deliver(&self.udp_socket, &self.sink, &self.datagram(octets), watch)
    }

    /// The same of the flow that will not be marked.
    pub(super) fn send_other(&mut self, octets: usize, watch: &Watch) -> Result<()> {
        self.datagrams += 1;
        deliver(&self.other_socket, &self.sink, &self.datagram(octets), watch)
    }

    fn datagram(&self, octets: usize) -> Vec<u8> {
        let mut datagram = self.datagrams.to_be_bytes().to_vec();
        datagram.extend(&self.pattern[..octets - datagram.len()]);
        datagram
    }

    /// Connects the TCP flow.
    pub(super) fn connect(&mut self, watch: &Watch) -> Result<()> {
        let Client::Bound(client) = &self.client else { return Ok(()) };
        let client = client.try_clone().map_err(|error| Error::os("cannot connect", error))?;
        match connect(client.as_raw_fd(), &SockaddrIn6::from(self.tcp.to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(Error::os("cannot connect", errno)),
        }
        let far = watch.until("a connection of TCP", || match self.listener.accept() {
            Ok((far, _)) => Ok(Some(far)),
            Err(error) => would_block(error).at("cannot accept a connection"),
        })?;
        let near = TcpStream::from(client);
        far.set_nonblocking(true)
            .and_then(|()| near.set_nodelay(true))
            .map_err(|error| Error::os("cannot set up a connection", error))?;
        self.client = Client::Connected { near, far };
        Ok(())
    }

    /// Sends so many octets to the far end and so many back, at the same time, and waits
    /// until they have arrived as they were sent.
    pub(super) fn transfer(&mut self, out: usize, back: usize, watch: &Watch) -> Result<()> {
        let Client::Connected { near, far } = &self.client else {
            return Err(Error::internal("not connected"));
        };
        let pattern = &self.pattern;
        let mut ways = [Way::new(near, far, out), Way::new(far, near, back)];
        watch.until("a transfer of TCP", || {
            for way in &mut ways {
                way.move_on(pattern).at("a transfer of TCP")?;
            }
            Ok(ways.iter().all(|way| way.received == way.total).then_some(()))
        })
    }
}

/// One direction of a transfer.
struct Way<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    total: usize,
    sent: usize,
    received: usize,
}

impl<'a> Way<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream, total: usize) -> Self {
        Way { from, to, total, sent: 0, received: 0 }
    }

    /// Sends and receives what is possible now.
    fn move_on(&mut self, pattern: &[u8]) -> Result<()> {
        while self.sent < self.total {
            let rest = &pattern[self.sent % pattern.len()..];
            match self.from.write(&rest[..rest.len().min(self.total - self.sent)]) {
                Ok(count) => self.sent += count,
                Err(error) => {
                    would_block::<()>(error).at("cannot send")?;
                    break;
                }
            }
        }
        let mut buffer = vec![0; pattern.len()];
        while self.received < self.total {
            let rest = &pattern[self.received % pattern.len()..];
            let wanted = rest.len().min(self.total - self.received);
            match self.to.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(Error::internal("the connection has ended")),
                Ok(count) if buffer[..count] != rest[..count] => {
                    let at = self.received;
                    return Err(Error::internal(format!("octet {at} or one behind it is wrong")));
                }
                Ok(count) => self.received += count,
                Err(error) => {
                    would_block::<()>(error).at("cannot receive")?;
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Sends `datagram` until the sink has it.
fn deliver(from: &UdpSocket, sink: &UdpSocket, datagram: &[u8], watch: &Watch) -> Result<()> {
    let mut sent: Option<Instant> = None;
    let mut buffer = vec![0; datagram.len() + 1];
    watch.until("a datagram to arrive", || {
        if sent.is_none_or(|sent| sent.elapsed() > AGAIN) {
            from.send(datagram).map_err(|error| Error::os("cannot send a datagram", error))?;
            sent = Some(Instant::now());
        }
        match sink.recv(&mut buffer) {
            // One that was sent again may arrive twice.
            Ok(length) => Ok((buffer[..length] == *datagram).then_some(())),
            Err(error) => would_block(error).at("cannot receive a datagram"),
        }
    })
}

/// Waits until a datagram gets from end to end: at first the kernel drops them, since a
/// device's queue is connected only some time after it came up.
///
/// # Errors
/// None does in time.
pub(super) fn await_cable(cable: &Cable, watch: &Watch) -> Result<()> {
    watch.begin();
    Traffic::open(cable)?
        .send_udp(100, watch)
        .at("no datagram gets from one end of the veth pair to the other (is there a firewall?)")
}

fn would_block<T>(error: std::io::Error) -> Result<Option<T>> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(None),
        _ => Err(Error::new(crate::error::Class::Os, error.to_string())),
    }
}

/// Without the label that the kernel may give to packets of its own accord.
fn without_label(socket: impl AsFd) -> std::io::Result<()> {
    set_int_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL, 0)
}

fn plain_udp(address: SocketAddrV6) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    without_label(&socket)?;
    Ok(socket)
}

fn plain_tcp(address: SocketAddrV6) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet6, SockType::Stream, flags, None)?;
    let refused =
        |error: std::io::Error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    without_label(&socket).map_err(refused)?;
    bind(socket.as_raw_fd(), &SockaddrIn6::from(address))?;
    Ok(socket)
}
