//! Packets that the kernel lays out in unusual ways: tunnels that the device does not
//! know, jumbograms, frames from a ring, super-packets with tags in their data; and
//! what passes through the host.

use std::net::SocketAddrV6;

use super::rig::{config, each, is_marked, is_plain, line, of, Rig, Strategy, ATLAS, STRATEGIES};
use crate::common::packet::{Packet, HOP_BY_HOP, TCP, UDP};
use crate::common::{
    ethernet, ipv6, segment, skip_unless_root, sum, v6, wait_for, Capture, Connection, Daemon,
    Namespace, Offload, Pair, RawSender, SuperSender, TxRing, DEVICE, HERE, THERE,
};

const BULK: usize = 4 << 20;

fn ends() -> (SocketAddrV6, SocketAddrV6) {
    (v6(HERE, 40_000), v6(THERE, 5001))
}

/// A rig with a UDP and a TCP flow open between the ends.
fn rig(pair: Pair, strategy: Strategy) -> Rig {
    let mut rig = Rig::on(pair, strategy, "auto");
    let (from, to) = ends();
    rig.obey(&(line(true, "udp", from, to, ATLAS) + &line(true, "tcp", from, to, ATLAS)));
    rig
}

/// What a VXLAN packet over IPv6 is to the marker: UDP. A super-packet of it holds a
/// TCP super-packet.
#[test]
fn a_tunnel_carries_bulk_tcp() {
    if skip_unless_root() {
        return;
    }
    const PORT: u16 = 4789;
    for strategy in STRATEGIES {
        for offload in ["on", "off"] {
            println!("{strategy:?}, segmentation of tunnels {offload}");
            let pair = Pair::new();
            for (host, own, other, inner) in
                [(&pair.here, HERE, THERE, "fd03::1"), (&pair.there, THERE, HERE, "fd03::2")]
            {
                host.ip(&format!(
                    "link add vxlan0 type vxlan id 5 local {own} remote {other} dev {DEVICE} \
                     dstport {PORT}"
                ));
                host.ip(&format!("-6 address add {inner}/64 dev vxlan0 nodad"));
                host.ip("link set vxlan0 up");
                for feature in ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"] {
                    host.run(&format!("ethtool -K {DEVICE} {feature} {offload}"));
                }
            }
            let mut rig = Rig::matching_all(pair, strategy);
            rig.obey(&line(true, "udp", v6(HERE, 1), v6(THERE, 2), ATLAS));
            let drops = |Pair { here, there }: &Pair| here.drops(DEVICE) + there.drops(DEVICE);
            let before = drops(&rig.pair);
            // The tunnel's devices speak also before and behind the daemon's life.
            let start = rig.captured();
            let (here, there) = (&rig.pair.here, &rig.pair.there);
            let (from, to) = (v6("fd03::1", 40_000), v6("fd03::2", 1094));
            let mut connection = Connection::open((here, from), (there, to), 0);
            connection.ping_pong(50);
            let small = rig.captured();
            connection.send_bulk(BULK);
            drop(connection);
            assert_eq!(drops(&rig.pair), before, "packets were dropped");
            let end = rig.captured();
            rig.daemon.stop(&[]);
            let captured = rig.capture.finish();
            let tunnel = |packet: &&Packet| (packet.protocol, packet.dst_port) == (UDP, PORT);
            let small = captured[start..small].iter().filter(tunnel);
            let count = each(small, |packet| is_marked(packet, strategy, ATLAS));
            assert!(count >= 50, "{count}");
            let packets: Vec<_> = captured[start..end].iter().filter(tunnel).cloned().collect();
            let octets: usize = packets.iter().map(|packet| packet.data_length).sum();
            assert!(octets >= BULK, "{octets} octets were captured");
            each(&packets, |packet| {
                let marked = is_marked(packet, strategy, ATLAS);
                if offload == "off" && packet.actual_length + 40 > 1500 {
                    return Err(format!("exceeds the MTU: {packet}"));
                }
                match strategy {
                    Strategy::Label => marked,
                    _ => marked.or_else(|_| is_plain(packet)),
                }
            });
        }
    }
}

#[test]
fn frames_from_a_ring_arrive_marked() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        for vlans in [&[][..], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 5)]] {
            let rig = rig(Pair::new(), strategy);
            let (from, to) = ends();
            let mut ring = TxRing::new(&rig.pair.here, DEVICE);
            let data: Vec<u8> = (0..120).collect();
            for n in 0..60 {
                let segment = segment([UDP, TCP][n % 2], from, to, &data[n..]);
                ring.send(&ethernet(vlans, &ipv6(0xbb, from, to, [UDP, TCP][n % 2], &segment)));
            }
            let mut packets = rig.finish();
            packets.retain(|packet| packet.dst_port == to.port());
            assert_eq!(packets.len(), 60, "{strategy:?}");
            for (n, packet) in packets.iter().enumerate() {
                is_marked(packet, strategy, ATLAS).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(packet.vlans, vlans, "{packet}");
                assert_eq!(packet.traffic_class, 0xbb, "{packet}");
                assert_eq!(packet.rest, segment([UDP, TCP][n % 2], from, to, &data[n..]));
            }
        }
    }
}

/// Super-packets with tags in the data, which the kernel cuts behind the marker: the
/// pieces arrive marked, with their tags, and each with a right checksum.
#[test]
fn tagged_super_packets_are_cut_into_marked_segments() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        for vlans in [&[][..], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 0x2005)]] {
            for protocol in [TCP, UDP] {
                println!("{strategy:?}, {vlans:04x?}, protocol {protocol}");
                let pair = Pair::new();
                pair.set_device(1500, Offload::Gso);
                // Checksums too are made before the device.
                pair.here.run(&format!("ethtool -K {DEVICE} tx off tx-udp-segmentation off"));
                let rig = rig(pair, strategy);
                let (from, to) = ends();
                let sender = SuperSender::new(&rig.pair.here, DEVICE);
                let data: Vec<u8> = (0..1000).map(|n| u8::try_from(n % 251).unwrap()).collect();
                let payload = segment(protocol, from, to, &data);
                let frame = ethernet(vlans, &ipv6(0xbb, from, to, protocol, &payload));
                // As small as the capture keeps whole.
                sender.send(frame, protocol, 14 + 4 * vlans.len() + 40, 100);
                let mut packets = rig.finish();
                packets.retain(|packet| packet.dst_port == to.port());
                assert_eq!(packets.len(), 10);
                for (packet, data) in packets.iter().zip(data.chunks(100)) {
                    is_marked(packet, strategy, ATLAS).unwrap_or_else(|error| panic!("{error}"));
                    assert_eq!(packet.vlans, vlans, "{packet}");
                    assert_eq!(packet.traffic_class, 0xbb, "{packet}");
                    assert!(packet.rest.ends_with(data), "{packet}");
                    let length = u32::try_from(packet.rest.len()).unwrap().to_be_bytes();
                    let (src, dst) = (packet.src.octets(), packet.dst.octets());
                    let pseudo = [&src[..], &dst, &length, &[0, 0, 0, protocol]].concat();
                    assert_eq!(sum(&[pseudo, packet.rest.clone()].concat()), 0xffff, "{packet}");
                }
            }
        }
    }
}

/// What the kernel's jumbo payload option (RFC 2675) says, if that is the packet's
/// first header.
fn jumbo_length(packet: &Packet) -> Option<usize> {
    let first = packet.extensions.first()?;
    let length = first.bytes.strip_prefix(&[TCP, 0, 0xc2, 4])?;
    (first.kind == HOP_BY_HOP && packet.payload_length == 0)
        .then(|| u32::from_be_bytes(length.try_into().expect("four octets")) as usize)
}

/// Super-packets of more than 64 KB (BIG TCP) have a hop-by-hop header already.
#[test]
fn jumbograms_arrive() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        let pair = Pair::new();
        for host in [&pair.here, &pair.there] {
            host.ip(&format!("link set {DEVICE} gso_max_size 185000 gro_max_size 185000"));
        }
        let rig = rig(pair, strategy);
        let ((here, there), (from, to)) = ((&rig.pair.here, &rig.pair.there), ends());
        let mut connection = Connection::open((here, from), (there, to), 0);
        let is_jumbo = |packet: &Packet| jumbo_length(packet).is_some();
        let mut sent = 0;
        wait_for("a jumbogram", || {
            connection.send_bulk(BULK);
            sent += BULK;
            rig.capture.find(0, std::time::Duration::ZERO, is_jumbo)
        });
        drop(connection);
        let packets = rig.finish_with(&["gso_max_size"]);
        let flow: Vec<_> = packets.iter().filter(of(TCP, 40_000, 5001)).cloned().collect();
        assert!(flow.iter().map(|packet| packet.data_length).sum::<usize>() >= sent);
        each(&flow, |packet| {
            let Some(length) = jumbo_length(packet) else {
                return is_marked(packet, strategy, ATLAS);
            };
            let mut rest = packet.clone();
            rest.extensions.remove(0);
            rest.payload_length = length;
            match strategy {
                Strategy::Label => is_marked(&rest, strategy, ATLAS),
                _ => is_plain(&rest),
            }
        });
    }
}

/// A third host behind the daemon's, which forwards a SYN from `there` to it: what
/// arrives for each of these TCP options and data.
fn forwarded(strategy: Strategy, rows: &[(&[u8], &[u8])]) -> Vec<Vec<u8>> {
    let pair = Pair::new();
    let inside = Namespace::new();
    let here = &pair.here;
    here.ip(&format!("link add veth1 type veth peer name {DEVICE} netns {}", inside.path()));
    here.ip("link set veth1 up");
    here.sysctl("ipv6/conf/all/forwarding", "1");
    // To which the harness sends.
    here.ip(&format!("link set {DEVICE} address 02:00:00:00:00:fe"));
    inside.ip(&format!("link set {DEVICE} up"));
    here.ip("-6 route add fd04::/64 dev veth1");
    here.ip("-6 neighbour add fd04::1 lladdr 02:00:00:00:00:01 dev veth1 nud permanent");
    let marker = serde_json::json!({
        "targetInterfaces": [DEVICE], "markingStrategy": strategy.name(),
    });
    let daemon = Daemon::start_in(here, config(&marker));
    let capture = Capture::start(&inside, DEVICE);
    let sender = RawSender::new(&pair.there, DEVICE);
    let arrived = (1..).zip(rows).map(|(port, (options, data))| {
        // Of its own, since one that was taken for lost may come late.
        let (from, to) = (v6(THERE, port), v6("fd04::1", 40_000));
        let syn = syn(from, to, options, data);
        // The first ones may be lost: the kernel connects a queue when it likes.
        wait_for("the SYN", || {
            let before = capture.count();
            sender.send(&ethernet(&[], &ipv6(0, from, to, TCP, &syn)));
            let wait = std::time::Duration::from_millis(50);
            capture.find(before, wait, |packet| packet.src_port == port)
        })
    });
    let arrived: Vec<_> = arrived.map(|packet| packet.rest).collect();
    daemon.stop(&[]);
    arrived
}

fn syn(from: SocketAddrV6, to: SocketAddrV6, options: &[u8], data: &[u8]) -> Vec<u8> {
    let mut syn = segment(TCP, from, to, &[]);
    syn[12] = u8::try_from((20 + options.len()) / 4).expect("a length") << 4;
    syn[13] = 0x02;
    [&syn, options, data].concat()
}

#[test]
fn of_a_syn_only_the_mss_option_is_changed() {
    if skip_unless_root() {
        return;
    }
    // TCP-AO, RFC 5925: kind 29, and its digest covers the other options.
    let authenticated = [&[2, 4, 0x05, 0xa0, 29, 16, 1, 1][..], &[0xaa; 12]].concat();
    let like_mss = [&[2, 4, 0x05, 0xdc][..], b"data"].concat();
    let rows: [(&[u8], &[u8]); 4] = [
        (&[2, 4, 0x05, 0xa0], b""),
        (&[], &like_mss),
        (&[1, 3, 3, 7], &like_mss),
        (&authenticated, b""),
    ];
    let to = v6("fd04::1", 40_000);
    for strategy in STRATEGIES {
        let arrived = forwarded(strategy, &rows);
        let mss = 1440 - u16::try_from(strategy.octets()).expect("small");
        assert_eq!(arrived[0][20..24], [[2, 4], mss.to_be_bytes()].concat(), "{strategy:?}");
        for (port, (arrived, (options, data))) in (1..).zip(arrived.iter().zip(rows)).skip(1) {
            assert_eq!(*arrived, syn(v6(THERE, port), to, options, data), "{strategy:?}");
        }
    }
}
