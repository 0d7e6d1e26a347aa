//! Packets of every shape that a flow's packets can have.

use std::net::UdpSocket;

use nix::sys::socket::{setsockopt, sockopt};

use super::rig::{config, each, is_marked, is_plain, line, of, Rig, Strategy, ATLAS, STRATEGIES};
use crate::common::packet::{Packet, DESTINATION, FRAGMENT, HOP_BY_HOP, TCP, UDP};
use crate::common::{
    ethernet, ipv6, segment, set_traffic_class, skip_unless_root, udp, v6, wait_for, Daemon,
    Namespace, RawSender, Tun, DEVICE, HERE, THERE,
};

const COUNT: usize = 100;
const PORTS: (u16, u16) = (40_000, 5001);

/// A rig with a UDP and a TCP flow open between the ports.
fn rig(strategy: Strategy) -> Rig {
    let mut rig = Rig::new(strategy, "auto");
    let (from, to) = ends();
    rig.obey(&(line(true, "udp", from, to, ATLAS) + &line(true, "tcp", from, to, ATLAS)));
    rig
}

fn ends() -> (std::net::SocketAddrV6, std::net::SocketAddrV6) {
    (v6(HERE, PORTS.0), v6(THERE, PORTS.1))
}

/// With a socket that sends packets of the flow, and the one that they are for.
fn sending(strategy: Strategy) -> (Rig, UdpSocket, UdpSocket) {
    let rig = rig(strategy);
    let (from, to) = ends();
    let (socket, sink) = rig.pair.udp(from, to);
    (rig, socket, sink)
}

fn of_flow(packet: &&Packet) -> bool {
    of(UDP, PORTS.0, PORTS.1)(packet) || of(TCP, PORTS.0, PORTS.1)(packet)
}

#[test]
fn defect_01_all_traffic_classes_survive() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        let (rig, socket, _sink) = sending(strategy);
        for class in 0..=255 {
            set_traffic_class(&socket, class);
            socket.send(&[class]).expect("to send");
        }
        let packets = rig.finish();
        let flow: Vec<_> = packets.iter().filter(of_flow).cloned().collect();
        assert_eq!(flow.len(), 256);
        each(&flow, |packet| is_marked(packet, strategy, ATLAS));
        let kept = |packet: &&Packet| packet.traffic_class == packet.rest[8];
        assert_eq!(flow.iter().filter(kept).count(), 256);
    }
}

/// Sends small TCP and UDP frames with these tags in the data, and returns what
/// arrives, which is complete and has its tags and data unchanged.
fn tagged(strategy: Strategy, vlans: &[(u16, u16)]) -> Vec<Packet> {
    let rig = rig(strategy);
    let (from, to) = ends();
    let sender = RawSender::new(&rig.pair.here, DEVICE);
    for n in 0..COUNT {
        for protocol in [TCP, UDP] {
            let segment = segment(protocol, from, to, &vec![1; n]);
            sender.send(&ethernet(vlans, &ipv6(0xbb, from, to, protocol, &segment)));
        }
    }
    let mut packets = rig.finish();
    packets.retain(|packet| of_flow(&packet));
    assert_eq!(packets.len(), 2 * COUNT, "{strategy:?}: frames with {vlans:04x?} were lost");
    for (n, pair) in packets.chunks(2).enumerate() {
        for (packet, protocol) in pair.iter().zip([TCP, UDP]) {
            assert_eq!(packet.vlans, vlans, "{strategy:?}: {packet}");
            assert_eq!(packet.rest, segment(protocol, from, to, &vec![1; n]), "{packet}");
            assert_eq!(packet.traffic_class, 0xbb);
        }
    }
    packets
}

#[test]
fn defect_02_small_frames_with_a_vlan_tag_in_the_data_arrive_marked() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        for tag in [(0x8100, 0x2005), (0x88a8, 7)] {
            each(&tagged(strategy, &[tag]), |packet| is_marked(packet, strategy, ATLAS));
        }
    }
}

#[test]
fn defect_02_small_frames_with_two_tags_in_the_data_arrive_marked() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        for outer in [(0x88a8, 7), (0x8100, 0x2007)] {
            let packets = tagged(strategy, &[outer, (0x8100, 0x2005)]);
            each(&packets, |packet| is_marked(packet, strategy, ATLAS));
        }
    }
}

#[test]
fn a_packet_never_outgrows_the_mtu() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        let (rig, socket, sink) = sending(strategy);
        // All that fits a frame: 1500 octets without the headers of IPv6 and UDP.
        let full = 1500 - 40 - 8;
        for size in full - 20..=full {
            assert_eq!(socket.send(&vec![1; size]).expect("to send"), size);
            assert_eq!(crate::common::receive(&sink, &mut [0; 2000]).expect("a datagram"), size);
        }
        let packets = rig.finish();
        let count = each(packets.iter().filter(of_flow), |packet| {
            match packet.data_length + strategy.octets() <= full {
                true => is_marked(packet, strategy, ATLAS),
                false => is_plain(packet),
            }
        });
        assert_eq!(count, 21, "{strategy:?}");
    }
}

/// Only the first fragment has ports. All arrive, and make the datagram.
#[test]
fn defect_04_of_fragments_the_first_is_marked() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        let (rig, socket, sink) = sending(strategy);
        let datagram: Vec<u8> = (0..4000).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut buffer = vec![0; 5000];
        for _ in 0..10 {
            socket.send(&datagram).expect("to send");
            let length = crate::common::receive(&sink, &mut buffer).expect("the datagram");
            assert!(buffer[..length] == datagram, "{strategy:?}: the datagram was damaged");
        }
        let mut packets = rig.finish();
        packets.retain(|packet| packet.fragment().is_some());
        assert_eq!(packets.len(), 30, "{strategy:?}");
        for packet in &packets {
            assert_eq!(packet.payload_length, packet.actual_length, "{packet}");
            assert!(packet.actual_length + 40 <= 1500, "{packet}");
        }
        let first = |packet: &&Packet| packet.fragment() == Some((0, true));
        assert_eq!(packets.iter().filter(first).count(), 10);
        if strategy == Strategy::Label {
            each(packets.iter().filter(first), |packet| {
                let mut whole = packet.clone();
                whole.extensions.retain(|header| header.kind != FRAGMENT);
                is_marked(&whole, strategy, ATLAS)
            });
        }
    }
}

/// A label can be written whatever follows. A second hop-by-hop header would be
/// illegal, so such a packet passes as it is.
#[test]
fn defect_04_packets_with_extension_headers_are_found() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        for kind in [HOP_BY_HOP, DESTINATION] {
            let rig = rig(strategy);
            let (from, to) = ends();
            let sender = RawSender::new(&rig.pair.here, DEVICE);
            // PadN, as long as it gets in one unit, and in two.
            let headers = [vec![UDP, 0, 1, 4, 0, 0, 0, 0], {
                let mut long = vec![UDP, 1, 1, 12];
                long.resize(16, 0);
                long
            }];
            for header in &headers {
                let payload = [&header[..], &segment(UDP, from, to, b"data")].concat();
                sender.send(&ethernet(&[], &ipv6(0, from, to, kind, &payload)));
            }
            let packets = rig.finish();
            let flow: Vec<_> = packets.iter().filter(of_flow).collect();
            assert_eq!(flow.len(), 2, "{strategy:?}, header {kind}");
            for (packet, header) in flow.into_iter().zip(&headers) {
                assert_eq!(packet.rest, segment(UDP, from, to, b"data"), "{packet}");
                let own = |bytes: &[u8]| bytes[1..] == header[1..];
                let kept = packet.extensions.iter().filter(|found| own(&found.bytes)).count();
                assert_eq!(kept, 1, "{strategy:?}: {packet}");
                let mut rest = packet.clone();
                rest.extensions.clear();
                match strategy {
                    Strategy::Label => {
                        is_marked(&rest, strategy, ATLAS).expect("a label");
                        assert_eq!(packet.extensions.len(), 1);
                    }
                    _ => is_plain(&rest).expect("no label"),
                }
                let hop_by_hop = |found: &&_| extension_kind(found) == HOP_BY_HOP;
                assert!(packet.extensions.iter().filter(hop_by_hop).count() <= 1, "{packet}");
                let first_only = packet.extensions.iter().skip(1).all(|h| h.kind != HOP_BY_HOP);
                assert!(first_only, "hop-by-hop comes first: {packet}");
                if kind == HOP_BY_HOP && strategy != Strategy::Destination {
                    assert_eq!(packet.extensions.len(), 1, "unchanged: {packet}");
                    assert_eq!(packet.extensions[0].bytes, *header);
                }
            }
        }
    }
}

fn extension_kind(header: &crate::common::packet::Extension) -> u8 {
    header.kind
}

/// Datagrams that leave as one super-packet (udp(7), UDP_SEGMENT): the device does
/// not cut them. Each of its datagrams leaves room for the headers.
#[test]
fn udp_super_packets_are_marked() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        let (rig, socket, sink) = sending(strategy);
        setsockopt(&socket, sockopt::UdpGsoSegment, &1000).expect("UDP_SEGMENT");
        let data = [7; 5000];
        for _ in 0..COUNT {
            assert_eq!(socket.send(&data).expect("to send"), 5000);
            for _ in 0..5 {
                assert_eq!(
                    crate::common::receive(&sink, &mut [0; 2000]).expect("a datagram"),
                    1000
                );
            }
        }
        let packets = rig.finish();
        let super_packets = packets.iter().filter(of_flow);
        let count = each(super_packets.clone(), |packet| is_marked(packet, strategy, ATLAS));
        assert_eq!(count, COUNT, "{strategy:?}: they leave as they are");
        assert!(super_packets.clone().all(|packet| packet.data_length == data.len()));
    }
}

/// Between the device's header, which there is none of, and IPv6 there is no tag.
#[test]
fn a_device_without_ethernet_header_is_marked() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        let here = Namespace::new();
        here.sysctl("ipv6/auto_flowlabels", "0");
        let mut tun = Tun::new(&here, "tun0");
        here.ip(&format!("-6 address add {HERE}/64 dev tun0 nodad"));
        here.ip("link set tun0 up");
        let marker = serde_json::json!({
            "targetInterfaces": ["tun0"], "markingStrategy": strategy.name(),
        });
        let mut daemon = Daemon::start_in(&here, config(&marker));
        let (from, to) = ends();
        let socket = udp(&here, from, to);
        daemon.write(&line(true, "udp", from, to, ATLAS));
        // Nothing says when the marker has obeyed but the packets themselves.
        let packet = wait_for("a marked packet", || {
            socket.send(b"datagram").expect("to send");
            let packet = tun.next(|packet| of_flow(&packet));
            if let Err(marked) = is_plain(&packet) {
                is_marked(&packet, strategy, ATLAS).unwrap_or_else(|error| panic!("{error}"));
                return Some((packet, marked));
            }
            None
        });
        assert_eq!(&packet.0.rest[8..], b"datagram");
        daemon.stop(&[]);
        socket.send(b"datagram").expect("to send");
        is_plain(&tun.next(|packet| of_flow(&packet))).expect("a plain packet");
    }
}
