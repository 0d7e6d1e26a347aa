//! That the harness sees what is there, without a daemon: a capture that lost or
//! misread packets would prove nothing.

use super::rig::{each, is_plain, of};
use crate::common::packet::{TCP, UDP};
use crate::common::{
    ethernet, ipv6, segment, set_traffic_class, skip_unless_root, udp, v6, Capture, Connection,
    Namespace, Offload, Pair, RawSender, Tun, DEVICE, HERE, THERE,
};

const BULK: usize = 4 << 20;

#[test]
fn every_octet_of_a_transfer_is_captured_whoever_cuts_it() {
    if skip_unless_root() {
        return;
    }
    for mtu in [1500, 9000] {
        for offload in [Offload::Tso, Offload::Gso, Offload::None] {
            let pair = Pair::new();
            pair.set_device(mtu, offload);
            let capture = Capture::start(&pair.there, DEVICE);
            let ends = ((&pair.here, v6(HERE, 40_000)), (&pair.there, v6(THERE, 1094)));
            let mut connection = Connection::open(ends.0, ends.1, 0xb8);
            connection.send_bulk(BULK);
            connection.ping_pong(10);
            drop(connection);
            let packets = capture.finish();
            let flow: Vec<_> = packets.iter().filter(of(TCP, 40_000, 1094)).cloned().collect();
            each(&flow, is_plain);
            let octets: usize = flow.iter().map(|packet| packet.data_length).sum();
            assert!(octets >= BULK + 640, "{octets} at MTU {mtu}, {offload:?}");
            let largest = flow.iter().map(|packet| packet.actual_length + 40).max();
            let super_packets = largest > Some(usize::try_from(mtu).expect("small"));
            assert_eq!(super_packets, offload == Offload::Tso, "{largest:?}");
            assert!(flow.iter().all(|packet| packet.traffic_class & 0xfc == 0xb8));
            assert!(flow.iter().any(|packet| packet.traffic_class == 0xba), "ECN is in use");
        }
    }
}

#[test]
fn frames_arrive_with_tags_and_octets_as_they_were_sent() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let capture = Capture::start(&pair.there, DEVICE);
    let sender = RawSender::new(&pair.here, DEVICE);
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 5001));
    let rows: [&[(u16, u16)]; 4] =
        [&[], &[(0x8100, 5)], &[(0x88a8, 7)], &[(0x88a8, 7), (0x8100, 5)]];
    for vlans in rows {
        let datagram = segment(UDP, from, to, b"data");
        sender.send(&ethernet(vlans, &ipv6(0xbb, from, to, UDP, &datagram)));
    }
    let mut packets = capture.finish();
    packets.retain(|packet| packet.dst_port == 5001);
    assert_eq!(packets.len(), rows.len());
    for (packet, vlans) in packets.iter().zip(rows) {
        assert_eq!(packet.vlans, vlans);
        assert_eq!(packet.traffic_class, 0xbb);
        assert_eq!(packet.rest, segment(UDP, from, to, b"data"));
    }
}

#[test]
fn a_tun_device_gives_packets_without_a_link_header() {
    if skip_unless_root() {
        return;
    }
    let here = Namespace::new();
    here.sysctl("ipv6/auto_flowlabels", "0");
    let mut tun = Tun::new(&here, "tun0");
    here.ip(&format!("-6 address add {HERE}/64 dev tun0 nodad"));
    here.ip("link set tun0 up");
    let socket = udp(&here, v6(HERE, 40_000), v6(THERE, 5001));
    set_traffic_class(&socket, 0x2e);
    socket.send(b"datagram").expect("to send");
    let packet = tun.next(|packet| packet.dst_port == 5001);
    is_plain(&packet).expect("as it was sent");
    assert_eq!((packet.traffic_class, &packet.rest[8..]), (0x2e, &b"datagram"[..]));
}
