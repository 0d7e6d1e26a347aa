//! What a flow's start and end do to packets, and what the daemon's own end does.

use std::collections::HashSet;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::rig::{each, is_marked, is_plain, line, of, Rig, Strategy, ATLAS, CMS, STRATEGIES};
use crate::common::packet::{TCP, UDP};
use crate::common::{
    ethernet, ipv6, segment, skip_unless_root, udp, v6, Connection, RawSender, DEVICE, HERE,
    HERE_TOO, PATIENCE, THERE,
};

const COUNT: usize = 50;

#[test]
fn udp_is_marked_from_start_to_end() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        let mut rig = Rig::new(strategy, "auto");
        let (from, to) = (v6(HERE, 40_000), v6(THERE, 5001));
        let (socket, sink) = rig.pair.udp(from, to);
        let send = || {
            (0..COUNT).for_each(|n| assert_eq!(socket.send(&vec![1; n]).expect("to send"), n));
        };
        send();
        rig.obey(&line(true, "udp", from, to, ATLAS));
        send();
        rig.obey(&line(false, "udp", from, to, ATLAS));
        send();
        let mut buffer = [0; 100];
        for n in (0..COUNT).chain(0..COUNT).chain(0..COUNT) {
            assert_eq!(crate::common::receive(&sink, &mut buffer).expect("a datagram"), n);
        }
        let packets = rig.finish();
        let flow: Vec<_> = packets.iter().filter(of(UDP, 40_000, 5001)).cloned().collect();
        assert_eq!(flow.len(), 3 * COUNT);
        each(&flow[..COUNT], is_plain);
        each(&flow[COUNT..2 * COUNT], |packet| is_marked(packet, strategy, ATLAS));
        each(&flow[2 * COUNT..], is_plain);
    }
}

/// The connection is older than the flow, and outlives it.
#[test]
fn tcp_is_marked_from_start_to_end() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        let mut rig = Rig::new(strategy, "auto");
        let (from, to) = (v6(HERE, 40_000), v6(THERE, 1094));
        let ends = ((&rig.pair.here, from), (&rig.pair.there, to));
        let mut connection = Connection::open(ends.0, ends.1, 0);
        connection.ping_pong(COUNT);
        let started = rig.captured();
        rig.obey(&line(true, "tcp", from, to, CMS));
        let first = rig.captured();
        connection.ping_pong(COUNT);
        let last = rig.captured();
        rig.obey(&line(false, "tcp", from, to, CMS));
        let ended = rig.captured();
        connection.ping_pong(COUNT);
        drop(connection);
        rig.daemon.stop(&[]);
        let packets = rig.capture.finish();
        let flow = of(TCP, 40_000, 1094);
        let marked = |packet: &_| is_marked(packet, strategy, CMS);
        assert!(each(packets[..started].iter().filter(&flow), is_plain) >= COUNT);
        assert!(each(packets[first..last].iter().filter(&flow), marked) >= COUNT);
        assert!(each(packets[ended..].iter().filter(&flow), is_plain) >= COUNT);
    }
}

#[test]
fn defect_04_a_start_of_udp_marks_udp_and_not_tcp() {
    if skip_unless_root() {
        return;
    }
    for (protocol, other) in [("udp", "tcp"), ("tcp", "udp")] {
        let mut rig = Rig::new(Strategy::Label, "auto");
        let (from, to) = (v6(HERE, 40_000), v6(THERE, 1094));
        rig.obey(&line(true, protocol, from, to, ATLAS));
        let ends = ((&rig.pair.here, from), (&rig.pair.there, to));
        Connection::open(ends.0, ends.1, 0).ping_pong(COUNT);
        let (socket, sink) = rig.pair.udp(from, to);
        for _ in 0..COUNT {
            socket.send(b"datagram").expect("to send");
            crate::common::receive(&sink, &mut [0; 100]).expect("a datagram");
        }
        let packets = rig.finish();
        for number in [TCP, UDP] {
            let flow = packets.iter().filter(of(number, 40_000, 1094));
            let marked = (number == TCP) == (protocol == "tcp");
            let count = each(flow, |packet| match marked {
                true => is_marked(packet, Strategy::Label, ATLAS),
                false => is_plain(packet),
            });
            assert!(count >= COUNT, "{protocol} was started, {other} was not: {count}");
        }
    }
}

/// One server, one source port, two local addresses: two flows.
#[test]
fn defect_05_two_local_addresses_do_not_share_a_tag() {
    if skip_unless_root() {
        return;
    }
    let mut rig = Rig::new(Strategy::Label, "auto");
    let to = v6(THERE, 1094);
    let (one, two) = (v6(HERE, 40_000), v6(HERE_TOO, 40_000));
    let sockets = [udp(&rig.pair.here, one, to), udp(&rig.pair.here, two, to)];
    let _sink = rig.pair.there.enter(|| std::net::UdpSocket::bind(to)).expect("to bind");
    let send = || {
        for socket in &sockets {
            (0..COUNT).for_each(|_| assert_eq!(socket.send(b"datagram").expect("to send"), 8));
        }
    };
    rig.obey(&(line(true, "udp", one, to, ATLAS) + &line(true, "udp", two, to, CMS)));
    send();
    rig.obey(&line(false, "udp", one, to, ATLAS));
    send();
    let packets = rig.finish();
    let of_address = |address: &str| {
        let ip = *v6(address, 1).ip();
        let flow = packets.iter().filter(of(UDP, 40_000, 1094));
        flow.filter(|packet| packet.src == ip).cloned().collect::<Vec<_>>()
    };
    let (one, two) = (of_address(HERE), of_address(HERE_TOO));
    assert_eq!((one.len(), two.len()), (2 * COUNT, 2 * COUNT));
    each(&one[..COUNT], |packet| is_marked(packet, Strategy::Label, ATLAS));
    each(&one[COUNT..], is_plain);
    each(&two, |packet| is_marked(packet, Strategy::Label, CMS));
}

/// The label of a UDP flow now, by a datagram.
fn label(rig: &Rig, socket: &std::net::UdpSocket) -> u32 {
    let from = rig.capture.count();
    socket.send(b"datagram").expect("to send");
    let port = socket.local_addr().expect("an address").port();
    let found = rig.capture.find(from, PATIENCE, |packet| packet.src_port == port);
    found.expect("the datagram arrives").label
}

#[test]
fn defect_07_a_repeated_start_keeps_the_label() {
    if skip_unless_root() {
        return;
    }
    let mut rig = Rig::new(Strategy::Label, "auto");
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 5001));
    let (socket, _sink) = rig.pair.udp(from, to);
    let start = line(true, "udp", from, to, ATLAS);
    rig.obey(&start);
    let first = label(&rig, &socket);
    rig.obey(&start.repeat(20));
    assert_eq!(label(&rig, &socket), first);
    rig.obey(&line(true, "udp", from, to, CMS));
    let other = label(&rig, &socket);
    rig.obey(&line(false, "udp", from, to, CMS));
    assert_eq!(label(&rig, &socket), 0);
    let packets = rig.finish();
    let flow: Vec<_> = packets.iter().filter(of(UDP, 40_000, 5001)).collect();
    is_marked(flow[0], Strategy::Label, ATLAS).expect("the first tag");
    is_marked(flow[2], Strategy::Label, CMS).expect("the second tag");
    assert_eq!(first & 0xc_0103, other & 0xc_0103, "the entropy is the flow's");
}

/// A killed daemon leaves nothing that needs help: the next one starts, takes over,
/// and what it leaves in the end is nothing.
#[test]
fn defect_08_after_a_kill_a_restart_works() {
    if skip_unless_root() {
        return;
    }
    for attach in ["tcx", "clsact"] {
        let mut rig = Rig::new(Strategy::Label, attach);
        let (from, to) = (v6(HERE, 40_000), v6(THERE, 5001));
        let (socket, _sink) = rig.pair.udp(from, to);
        let start = line(true, "udp", from, to, ATLAS);
        rig.obey(&start);
        let before = label(&rig, &socket);
        for _ in 0..3 {
            rig.restart();
            rig.obey("");
            assert_eq!(label(&rig, &socket), 0, "{attach}: the old program still marks");
            rig.obey(&start);
            assert_eq!(label(&rig, &socket), before, "{attach}: the label outlives a restart");
        }
        let Rig { pair, daemon, capture, .. } = rig;
        daemon.stop(&["left"]);
        let from = capture.count();
        socket.send(b"datagram").expect("to send");
        let last = capture.find(from, PATIENCE, |packet| packet.src_port == 40_000);
        assert_eq!(last.expect("the datagram arrives").label, 0, "{attach}: still marked");
        let qdiscs = pair.here.run(&format!("tc qdisc show dev {DEVICE}"));
        assert!(!qdiscs.contains("clsact"), "{attach}: {qdiscs}");
        drop(capture);
    }
}

/// As soon as the daemon has ended nothing is marked, however it was told to.
#[test]
fn the_end_of_the_daemon_is_the_end_of_marking() {
    if skip_unless_root() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut rig = Rig::new(Strategy::HopByHop, "auto");
        let (from, to) = (v6(HERE, 40_000), v6(THERE, 5001));
        let (socket, _sink) = rig.pair.udp(from, to);
        rig.obey(&line(true, "udp", from, to, ATLAS));
        socket.send(b"datagram").expect("to send");
        assert_eq!(rig.daemon.end_by(signal).code(), Some(0));
        socket.send(b"datagram").expect("to send");
        let packets = rig.capture.finish();
        let flow: Vec<_> = packets.iter().filter(of(UDP, 40_000, 5001)).collect();
        assert_eq!(flow.len(), 2);
        is_marked(flow[0], Strategy::HopByHop, ATLAS).expect("a marked packet");
        is_plain(flow[1]).expect("a plain packet");
    }
}

/// 10,000 flows, each started and ended 10 us later: no entry is left behind that
/// would mark the next connection with the same ports.
#[test]
fn defect_19_start_and_end_10_us_apart_leave_nothing_marked() {
    if skip_unless_root() {
        return;
    }
    let mut rig = Rig::new(Strategy::Label, "auto");
    let to = v6(THERE, 5001);
    let ports = 10_001..=20_000;
    for port in ports.clone() {
        let (from, started) = (v6(HERE, port), Instant::now());
        rig.daemon.write(&line(true, "udp", from, to, ATLAS));
        while started.elapsed().as_micros() < 10 {
            std::hint::spin_loop();
        }
        rig.daemon.write(&line(false, "udp", from, to, ATLAS));
    }
    rig.obey("");
    let sender = RawSender::new(&rig.pair.here, DEVICE);
    for port in ports {
        let from = v6(HERE, port);
        let datagram = segment(UDP, from, to, &[]);
        sender.send(&ethernet(&[], &ipv6(0, from, to, UDP, &datagram)));
    }
    let packets = rig.finish();
    let flows = packets.iter().filter(|packet| packet.dst_port == 5001);
    let ports: HashSet<u16> = flows.clone().map(|packet| packet.src_port).collect();
    assert_eq!(ports.len(), 10_000);
    each(flows, is_plain);
}
