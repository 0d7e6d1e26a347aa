//! Tests of sock_diag against the kernel at hand: with sockets of their own, known by
//! their ports, since others come and go beside them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};

use super::*;
use crate::net::netlink::u32_at;

/// A connection from the first to the second, through what listened.
pub(super) fn connected(address: &str) -> (TcpStream, TcpStream, TcpListener) {
    let listener = TcpListener::bind(address).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    (near, far, listener)
}

fn inode(socket: &impl AsFd) -> u64 {
    nix::sys::stat::fstat(socket).unwrap().st_ino
}

fn query(protocol: Protocol, family: impl Into<Option<Family>>, states: States) -> Query<'static> {
    let family = family.into();
    let extensions = extension::INFO | extension::CONGESTION;
    Query { protocol, family, states, extensions, filter: None }
}

/// What the tests look at, of the sockets that have that port of their own.
#[derive(Debug, PartialEq)]
struct Seen {
    state: State,
    local: SocketAddr,
    remote: SocketAddr,
    uid: u32,
    inode: u64,
    cookie: u64,
    mapped: bool,
    info: Option<Vec<u8>>,
    congestion: Option<String>,
}

fn see(socket: &Socket<'_>) -> Seen {
    Seen {
        state: socket.state,
        local: socket.local,
        remote: socket.remote,
        uid: socket.uid,
        inode: socket.inode.into(),
        cookie: socket.cookie,
        mapped: socket.is_mapped(),
        info: socket.tcp_info().map(|info| info.0.to_vec()),
        congestion: socket.congestion().map(str::to_owned),
    }
}

fn dump(query: &Query<'_>, port: u16) -> Vec<Seen> {
    let mut seen = Vec::new();
    let coverage = Diag::open().unwrap().dump(query, |socket| {
        if socket.local.port() == port {
            seen.push(see(socket));
        }
    });
    assert_eq!(coverage, Ok(Coverage::Whole));
    seen
}

#[test]
fn connections_are_listed_as_they_are() {
    let uid = nix::unistd::geteuid().as_raw();
    // An IPv6 socket that takes IPv4 has mapped addresses.
    for (address, target, family) in [
        ("127.0.0.1:0", None, Family::V4),
        ("[::1]:0", None, Family::V6),
        ("[::]:0", Some("127.0.0.1"), Family::V6),
    ] {
        let listener = TcpListener::bind(address).unwrap();
        let mut end = listener.local_addr().unwrap();
        if let Some(target) = target {
            end.set_ip(target.parse().unwrap());
        }
        let mut near = TcpStream::connect(end).unwrap();
        let far = listener.accept().unwrap().0;
        near.write_all(&[7; 1000]).unwrap();
        (&far).read_exact(&mut [0; 1000]).unwrap();

        let seen = dump(&query(Protocol::Tcp, family, States::OPEN), end.port());
        let [one] = seen.as_slice() else { panic!("{address}: {seen:?}") };
        assert_eq!(one.state, State::ESTABLISHED);
        assert_eq!(one.local, far.local_addr().unwrap());
        assert_eq!(one.remote, far.peer_addr().unwrap());
        assert_eq!((one.uid, one.inode), (uid, inode(&far)));
        assert_eq!(one.mapped, target.is_some());
        let info = TcpInfo(one.info.as_deref().unwrap());
        assert_eq!(info.state(), Some(1));
        assert_eq!(info.bytes_received(), Some(1000));
        assert!(!one.congestion.as_deref().unwrap().is_empty());

        // One that listens is listed only where that is asked for.
        let listening =
            dump(&query(Protocol::Tcp, family, States::of(&[State::LISTEN])), end.port());
        let [one] = listening.as_slice() else { panic!("{address}: {listening:?}") };
        assert_eq!((one.state, one.inode), (State::LISTEN, inode(&listener)));
        assert_eq!(one.remote.port(), 0);
    }
}

/// Of TCP by one list, of UDP by two.
#[test]
fn both_families_are_listed_together() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (near, _far, _listener) = connected(address);
        let port = near.local_addr().unwrap().port();
        let seen = dump(&query(Protocol::Tcp, None, States::OPEN), port);
        let [one] = seen.as_slice() else { panic!("{address}: {seen:?}") };
        assert_eq!((one.local, one.inode), (near.local_addr().unwrap(), inode(&near)));
        assert!(one.info.is_some() && one.congestion.is_some());

        let socket = UdpSocket::bind(address).unwrap();
        let local = socket.local_addr().unwrap();
        let seen = dump(&query(Protocol::Udp, None, States::ALL), local.port());
        assert!(seen.iter().any(|one| (one.local, one.inode) == (local, inode(&socket))));
    }
}

#[test]
fn udp_is_established_if_it_is_connected() {
    let near = UdpSocket::bind("[::1]:0").unwrap();
    let far = UdpSocket::bind("[::1]:0").unwrap();
    near.connect(far.local_addr().unwrap()).unwrap();
    let every = query(Protocol::Udp, Family::V6, States::ALL);
    for (socket, state, remote) in [
        (&near, State::ESTABLISHED, far.local_addr().unwrap()),
        (&far, State::CLOSED, "[::]:0".parse().unwrap()),
    ] {
        let seen = dump(&every, socket.local_addr().unwrap().port());
        let [one] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!((one.state, one.remote, one.inode), (state, remote, inode(socket)));
        assert_eq!(one.info, None);
    }
    let flow = FlowId::new(Protocol::Udp, near.local_addr().unwrap(), near.peer_addr().unwrap());
    let mut found = None;
    let is_there = Diag::open().unwrap().look_up(&flow.unwrap(), NO_COOKIE, 0, 0, |socket| {
        found = Some(see(socket).inode);
    });
    assert_eq!((is_there, found), (Ok(true), Some(inode(&near))));
}

#[test]
fn one_is_found_by_its_flow() {
    let mut diag = Diag::open().unwrap();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (near, far, listener) = connected(address);
        let (local, remote) = (near.local_addr().unwrap(), near.peer_addr().unwrap());
        let flow = FlowId::new(Protocol::Tcp, local, remote).unwrap();
        let back = FlowId::new(Protocol::Tcp, remote, local).unwrap();
        for (flow, socket) in [(flow, &near), (back, &far)] {
            let mut cookie = NO_COOKIE;
            for _ in 0..2 {
                let mut found = None;
                let is_there = diag.look_up(&flow, cookie, 0, extension::INFO, |socket| {
                    found = Some(see(socket));
                });
                assert_eq!(is_there, Ok(true), "{flow}");
                let found = found.unwrap();
                assert_eq!(found.inode, inode(socket));
                assert!(found.info.is_some());
                // The kernel compares it with the socket's.
                cookie = found.cookie;
            }
            assert_eq!(diag.look_up(&flow, cookie + (1 << 40), 0, 0, |_| {}), Ok(false));
        }
        // Nothing of that source: the one that listens is not taken for it.
        let other = SocketAddr::new(local.ip(), 1);
        let none = FlowId::new(Protocol::Tcp, remote, other).unwrap();
        assert_eq!(diag.look_up(&none, NO_COOKIE, 0, 0, |_| panic!("told")), Ok(false));
        drop(listener);
    }
}

/// Of both ends.
#[test]
fn one_that_is_bound_to_an_interface_is_found_by_that() {
    let (near, far, _listener) = connected("[::1]:0");
    for socket in [&near, &far] {
        setsockopt(socket, sockopt::BindToDevice, &"lo".into()).unwrap();
    }
    let (local, remote) = (near.local_addr().unwrap(), near.peer_addr().unwrap());
    let mut diag = Diag::open().unwrap();
    for (local, remote) in [(local, remote), (remote, local)] {
        let mut found = Vec::new();
        let every = query(Protocol::Tcp, Family::V6, States::OPEN);
        let coverage = diag.dump(&every, |socket| {
            if (socket.local, socket.remote) == (local, remote) {
                found.push((socket.cookie, socket.interface));
            }
        });
        assert_eq!((coverage, found.len()), (Ok(Coverage::Whole), 1));
        let (cookie, interface) = found[0];
        assert_ne!(interface, 0);
        let flow = FlowId::new(Protocol::Tcp, local, remote).unwrap();
        assert_eq!(diag.look_up(&flow, cookie, interface, 0, |_| {}), Ok(true));
        assert_eq!(diag.look_up(&flow, cookie, 0, 0, |_| {}), Ok(false), "as the kernel is");
    }
}

/// What is not told need not be gone: without tcp_diag the kernel says ENOENT of every socket.
#[test]
fn a_protocol_that_nobody_tells_of_is_refused() {
    let mut diag = Diag::open().unwrap();
    for (protocol, outcome) in [(6, Ok(())), (200, Err(Errno::ENOENT)), (17, Ok(()))] {
        assert_eq!(diag.ask_for(protocol).map_err(|failure| failure.errno), outcome);
    }
    let none =
        FlowId::new(Protocol::Tcp, "192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
    assert_eq!(diag.look_up(&none.unwrap(), NO_COOKIE, 0, 0, |_| ()), Ok(false));
    assert_eq!(diag.tells, [true, false]);
}

#[test]
fn the_control_group_is_told() {
    let (near, far, _listener) = connected("[::1]:0");
    let mut groups = Vec::new();
    let every = query(Protocol::Tcp, Family::V6, States::OPEN);
    let coverage = Diag::open().unwrap().dump(&every, |socket| {
        if u64::from(socket.inode) == inode(&near) || u64::from(socket.inode) == inode(&far) {
            groups.push(socket.cgroup());
        }
    });
    assert_eq!(coverage, Ok(Coverage::Whole));
    assert!(Diag::open().unwrap().tells_cgroups());
    assert_eq!(groups.len(), 2);
    assert!(groups.iter().all(Option::is_some), "{groups:?}");
}

#[test]
fn the_kernel_leaves_out_what_a_filter_refuses() {
    let (near, far, _listener) = connected("[::1]:0");
    let (a, b) = (near.local_addr().unwrap().port(), far.local_addr().unwrap().port());
    let told = |filter: Option<Filter>| -> (bool, bool) {
        let filter = filter.expect("it can be said");
        let query =
            Query { filter: Some(&filter), ..query(Protocol::Tcp, Family::V6, States::OPEN) };
        let mut ports = Vec::new();
        let coverage = Diag::open().unwrap().dump(&query, |socket| ports.push(socket.local.port()));
        assert_eq!(coverage, Ok(Coverage::Whole));
        (ports.contains(&a), ports.contains(&b))
    };
    let any = |lists: &[&[Condition]]| Filter::any_of(lists.iter().copied());
    let not = |condition| Condition::Not(Box::new(condition));
    let prefix = |text: &str| text.parse().unwrap();
    use Condition::{Local, LocalPort, Remote, RemotePort};

    assert_eq!(told(any(&[&[LocalPort(a, a)]])), (true, false));
    assert_eq!(told(any(&[&[RemotePort(a, a)]])), (false, true));
    assert_eq!(told(any(&[&[not(LocalPort(a, a)), RemotePort(a, a)]])), (false, true));
    assert_eq!(told(any(&[&[LocalPort(1, 65535)]])), (true, true));
    assert_eq!(told(any(&[&[LocalPort(b, b)], &[RemotePort(b, b)]])), (true, true));
    assert_eq!(told(any(&[&[LocalPort(a, a), RemotePort(a, a)]])), (false, false));
    assert_eq!(told(any(&[])), (false, false));
    let here = LocalPort(a, a);
    for (net, inside) in [("::1", true), ("::/127", true), ("::/0", true), ("10.0.0.0/8", false)] {
        let list = [Remote(prefix(net)), here.clone()];
        assert_eq!(told(any(&[&list])), (inside, false), "{net}");
        let list = [here.clone(), not(Local(prefix(net)))];
        assert_eq!(told(any(&[&list])), (!inside, false), "not {net}");
    }
    // Both ends of every list are reached.
    let many: Vec<[Condition; 1]> = (0..2000).map(|_| [LocalPort(0, 0)]).collect();
    let lists = many.iter().map(|list| &list[..]);
    assert_eq!(told(Filter::any_of(lists.chain([&[here][..]]))), (true, false));
    let lists = many.iter().cycle().take(10_000).map(|list| &list[..]);
    assert_eq!(Filter::any_of(lists), None);
    assert_eq!(any(&[&[LocalPort(a, a)], &[]]), None, "everything");
}

#[test]
fn mapped_addresses_are_ipv4_to_filters() {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let near = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let _far = listener.accept().unwrap();
    for (net, inside) in
        [("127.0.0.0/8", true), ("0.0.0.0/0", true), ("::/0", false), ("::/90", false)]
    {
        for negated in [false, true] {
            let test = Condition::Remote(net.parse().unwrap());
            let test = if negated { Condition::Not(Box::new(test)) } else { test };
            let filter = Filter::any_of([&[test, Condition::LocalPort(port, port)][..]]).unwrap();
            let query =
                Query { filter: Some(&filter), ..query(Protocol::Tcp, Family::V6, States::OPEN) };
            assert_eq!(dump(&query, port).len(), usize::from(inside != negated), "{net} {negated}");
        }
    }
    drop(near);
}

#[test]
fn no_length_is_trusted() {
    let (near, far, _listener) = connected("127.0.0.1:0");
    let flow = FlowId::new(Protocol::Tcp, near.local_addr().unwrap(), far.local_addr().unwrap());
    let flow = flow.unwrap();
    let query = query(Protocol::Tcp, Family::V4, States::ALL);
    let request = Request::new(BY_FAMILY, 0).fixed(&query.fixed(Some(&flow), NO_COOKIE));
    let mut reply = Vec::new();
    let mut socket = netlink::Socket::sock_diag().unwrap();
    socket.get(&request, |_, payload| reply = payload.to_vec()).unwrap();
    for length in 0..reply.len() {
        let cut = Socket::decode(Protocol::Tcp, &reply[..length]);
        assert_eq!(cut.is_some(), length >= 72);
        if let Some(socket) = cut {
            let _ = (socket.cgroup(), socket.tcp_info(), socket.congestion(), socket.only_ipv6());
            assert_eq!(socket.message().len(), 72);
        }
    }
    reply[0] = 1;
    assert!(Socket::decode(Protocol::Tcp, &reply).is_none(), "a family that is none");
}

/// The octets of each kernel's struct, from 4.18 on, and one field that came last.
#[test]
fn every_length_of_tcp_info_is_read() {
    let bytes: Vec<u8> = (0..=255).chain(0..=255).collect();
    for (length, there) in [
        (104, [false, false, false, false, false]),
        (192, [true, false, false, false, false]),
        (200, [true, true, false, false, false]),
        (224, [true, true, true, false, false]),
        (232, [true, true, true, true, false]),
        (248, [true; 5]),
        (300, [true; 5]),
    ] {
        let info = TcpInfo(&bytes[..length]);
        assert_eq!(info.total_retrans(), u32_at(&bytes, 100));
        let found = [
            info.delivery_rate().is_some(),
            info.delivered_ce().is_some(),
            info.bytes_sent().is_some(),
            info.snd_wnd().is_some(),
            info.total_rto_time().is_some(),
        ];
        assert_eq!(found, there, "{length}");
    }
    assert_eq!(TcpInfo(&[]).state(), None);
    assert_eq!(TcpInfo(&bytes).window_scales(), Some((6, 0)));
}
