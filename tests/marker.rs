//! The eBPF programs by BPF_PROG_TEST_RUN: packet in, verdict and packet out. Root. A
//! row is a packet and what has to come out. What a test run cannot show is in `netns`:
//! GSO (a test run's packets have no GSO type), and a VLAN tag beside the data, which is
//! not part of what a test run returns.

mod arriving;
mod packet;
mod rig;
mod room;
mod rules;
mod twice;

use glowd::sys::abi::{FlowKey, FlowValue, Strategy};
use packet::*;
use rig::{Rig, TC_ACT_UNSPEC};

use crate::common::skip_unless_root;

const EXPERIMENT: u16 = 2;
const ACTIVITY: u8 = 16;
/// Experiment 2, activity 16 with all entropy bits set (spec section 1.2).
const LABEL: u32 = 0xD0143;
const FLOW: FlowValue =
    FlowValue { label: LABEL, experiment: EXPERIMENT, activity: ACTIVITY, flags: 0 };

const HEADER_STRATEGIES: [Strategy; 3] =
    [Strategy::HopByHop, Strategy::Destination, Strategy::HopByHopDestination];

fn key(protocol: u8) -> FlowKey {
    FlowKey {
        src: SRC,
        dst: DST,
        src_port: SRC_PORT.to_be_bytes(),
        dst_port: DST_PORT.to_be_bytes(),
        protocol,
        pad: [0; 3],
    }
}

/// The marker with that strategy and one TCP and one UDP flow open.
fn rig(strategy: Strategy) -> Rig {
    let rig = Rig::new(strategy);
    rig.open(key(TCP), FLOW);
    rig.open(key(UDP), FLOW);
    rig
}

/// The 8 octets of spec section 2.1.
fn option(next: u8) -> [u8; 8] {
    let [high, low] = EXPERIMENT.to_be_bytes();
    [next, 0, 0x1e, 3, high, low, ACTIVITY, 0]
}

/// What has to become of a packet of the flow.
fn marked(packet: &Packet, strategy: Strategy) -> Packet {
    let mut out = packet.clone();
    let headers: &[u8] = match strategy {
        Strategy::Label => {
            out.label = LABEL;
            &[]
        }
        Strategy::HopByHop => &[HOP_BY_HOP],
        Strategy::Destination => &[DESTINATION],
        Strategy::HopByHopDestination => &[HOP_BY_HOP, DESTINATION],
    };
    for number in headers.iter().rev() {
        out.extensions.insert(0, (*number, option(0).to_vec()));
    }
    // In a test run the outermost tag ends up beside the data.
    if strategy != Strategy::Label && !out.tags.is_empty() {
        out.tags.remove(0);
    }
    out
}

#[track_caller]
fn assert_marked(rig: &Rig, packet: &Packet, what: &str) {
    let run = rig.egress(&packet.frame());
    assert_eq!(run.verdict, TC_ACT_UNSPEC, "{what}");
    let mut expected = marked(packet, rig.strategy);
    if expected.payload_len.is_some() {
        expected.payload_len = packet.payload_len;
    }
    assert_eq!(run.packet, expected.frame(), "{:?}: {what}", rig.strategy);
    assert_eq!(rig.take_unmarked(), [], "{:?}: {what}", rig.strategy);
}

/// The packet leaves as it came; `reason` (a constant of abi.h) is counted, or
/// nothing.
#[track_caller]
fn assert_untouched(rig: &Rig, frame: &[u8], reason: Option<&str>, what: &str) {
    let run = rig.egress(frame);
    assert_eq!(run.verdict, TC_ACT_UNSPEC, "{what}");
    assert_eq!(run.packet, frame, "{:?}: {what}", rig.strategy);
    let counted = rig.take_unmarked();
    let expected: Vec<_> = reason.map(|reason| (reason.to_owned(), 1)).into_iter().collect();
    assert_eq!(counted, expected, "{:?}: {what}", rig.strategy);
}

fn all_strategies() -> impl Iterator<Item = Strategy> {
    Strategy::ALL.into_iter().map(|(strategy, _)| strategy)
}

/// Defect 4 of the peers: UDP was never marked.
#[test]
fn defect_04_tcp_and_udp_are_marked_each_by_its_own_flow() {
    if skip_unless_root() {
        return;
    }
    for strategy in all_strategies() {
        let both = rig(strategy);
        assert_marked(&both, &Packet::tcp(100), "TCP");
        assert_marked(&both, &Packet::tcp(0), "TCP without data");
        assert_marked(&both, &Packet::udp(100), "UDP");
        let only_udp = Rig::new(strategy);
        only_udp.open(key(UDP), FLOW);
        assert_marked(&only_udp, &Packet::udp(1), "UDP");
        let tcp = Packet::tcp(1).frame();
        assert_untouched(&only_udp, &tcp, None, "a UDP flow does not mark TCP");
    }
}

/// Defect 1 of the peers: half of the traffic class was overwritten.
#[test]
fn defect_01_every_traffic_class_survives() {
    if skip_unless_root() {
        return;
    }
    for strategy in all_strategies() {
        let rig = rig(strategy);
        for class in 0..=255 {
            let packet = Packet::tcp(10).with(|p| p.traffic_class = class);
            assert_marked(&rig, &packet, "traffic class");
        }
    }
}

#[test]
fn whatever_label_was_there_is_replaced_or_left() {
    if skip_unless_root() {
        return;
    }
    for strategy in all_strategies() {
        let rig = rig(strategy);
        for label in [1, 0xFFFFF, LABEL, 0x12345] {
            assert_marked(&rig, &Packet::tcp(10).with(|p| p.label = label), "label");
        }
    }
}

/// Spec section 2.1: `06 00 1E 03 00 02 10 00` for experiment 2, activity 16.
#[test]
fn headers_are_the_octets_of_the_specification() {
    if skip_unless_root() {
        return;
    }
    let out = rig(Strategy::HopByHop).egress(&Packet::tcp(0).frame()).packet;
    assert_eq!(out[14 + 6], 0);
    assert_eq!(out[54..62], [0x06, 0x00, 0x1E, 0x03, 0x00, 0x02, 0x10, 0x00]);
    let out = rig(Strategy::Destination).egress(&Packet::udp(0).frame()).packet;
    assert_eq!(out[14 + 6], 60);
    assert_eq!(out[54..62], [0x11, 0x00, 0x1E, 0x03, 0x00, 0x02, 0x10, 0x00]);
    let out = rig(Strategy::HopByHopDestination).egress(&Packet::tcp(0).frame()).packet;
    assert_eq!(out[14 + 6], 0);
    assert_eq!(out[54..62], [0x3C, 0x00, 0x1E, 0x03, 0x00, 0x02, 0x10, 0x00]);
    assert_eq!(out[62..70], [0x06, 0x00, 0x1E, 0x03, 0x00, 0x02, 0x10, 0x00]);
    assert_eq!(out[18..20], [0, 36], "payload length");
    // Experiment 511 has an octet of its own for its ninth bit.
    let rig = Rig::new(Strategy::HopByHop);
    rig.open(key(TCP), FlowValue { experiment: 511, activity: 63, ..FLOW });
    let out = rig.egress(&Packet::tcp(0).frame()).packet;
    assert_eq!(out[54..62], [0x06, 0x00, 0x1E, 0x03, 0x01, 0xFF, 0x3F, 0x00]);
}

/// Defect 5 of the peers: source address and protocol were not in the key.
#[test]
fn defect_05_only_the_whole_five_tuple_matches() {
    if skip_unless_root() {
        return;
    }
    for strategy in all_strategies() {
        let rig = rig(strategy);
        let others = [
            Packet::tcp(9).with(|p| p.src[15] = 9),
            Packet::tcp(9).with(|p| p.dst[15] = 9),
            Packet::tcp(9).with(|p| p.src[0] = 9),
            Packet::tcp(9).with(|p| p.dst[0] = 9),
            Packet::tcp(9).with(|p| p.transport[1] ^= 1),
            Packet::tcp(9).with(|p| p.transport[3] ^= 1),
            Packet::tcp(9).with(|p| std::mem::swap(&mut p.src, &mut p.dst)),
        ];
        for packet in others {
            assert_untouched(&rig, &packet.frame(), None, "another 5-tuple");
        }
    }
}

#[test]
fn what_is_not_ipv6_with_ports_leaves_as_it_came() {
    if skip_unless_root() {
        return;
    }
    let long = [0x45; 80];
    for strategy in all_strategies() {
        let rig = rig(strategy);
        for (what, frame) in [
            ("ARP", frame_of(0x0806, &[0; 28])),
            ("IPv4", frame_of(0x0800, &long)),
            ("PPPoE", frame_of(0x8864, &long)),
            ("MPLS", frame_of(0x8847, &long)),
            ("IPv4 in a VLAN", frame_of(0x8100, &[&[0, 5, 8, 0][..], &long].concat())),
            ("no IPv6 version", Packet::tcp(9).with(|p| p.version = 4).frame()),
            ("ICMPv6", Packet::other(ICMPV6, &[128; 40]).frame()),
            ("no next header", Packet::other(NO_NEXT_HEADER, &[0; 40]).frame()),
            ("ESP", Packet::other(ESP, &[0; 40]).frame()),
            ("SCTP", Packet::other(132, &[0; 40]).frame()),
        ] {
            assert_untouched(&rig, &frame, None, what);
        }
        let three = Packet::tcp(9).tag(0x8100, 1).tag(0x8100, 2).tag(0x8100, 3);
        assert_untouched(&rig, &three.frame(), None, "three tags");
    }
}

#[test]
fn a_packet_cut_short_anywhere_leaves_as_it_came() {
    if skip_unless_root() {
        return;
    }
    for strategy in all_strategies() {
        let rig = rig(strategy);
        let plain = Packet::tcp(0);
        let tagged = Packet::tcp(0).tag(0x88a8, 7).tag(0x8100, 5);
        let extended = Packet::udp(0).extension(ROUTING, &[0; 24]);
        // A test run refuses frames that call themselves IPv6 and are shorter than
        // its header, so that is shown by the tagged one.
        for (packet, shortest, ports) in [(plain, 54, 54), (tagged, 15, 62), (extended, 54, 78)] {
            let frame = packet.frame();
            for length in shortest..ports + 4 {
                assert_untouched(&rig, &frame[..length], None, "cut short");
            }
        }
    }
}

/// Defect 2 of the peers: QinQ was never marked, and header strategies dropped
/// every tagged frame.
#[test]
fn defect_02_tags_in_the_data_are_no_obstacle() {
    if skip_unless_root() {
        return;
    }
    for strategy in all_strategies() {
        let rig = rig(strategy);
        for packet in [Packet::tcp(20), Packet::udp(1400)] {
            let once = packet.clone().tag(0x8100, 0x2005);
            assert_marked(&rig, &once, "802.1Q");
            assert_marked(&rig, &packet.clone().tag(0x88a8, 7).tag(0x8100, 5), "802.1ad QinQ");
            assert_marked(&rig, &packet.clone().tag(0x8100, 7).tag(0x8100, 5), "802.1Q twice");
        }
    }
}

/// Defect 4 of the peers: no packet with an extension header was marked.
#[test]
fn defect_04_label_is_written_behind_any_extension_headers() {
    if skip_unless_root() {
        return;
    }
    let rig = rig(Strategy::Label);
    let routing = [0; 24];
    let authentication = [0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let first_fragment = [0, 0, 0, 1, 0, 0, 0, 9];
    let routing = {
        let mut bytes = routing;
        bytes[1] = 2;
        bytes
    };
    for (what, packet) in [
        ("hop-by-hop", Packet::tcp(9).extension(HOP_BY_HOP, &PADDING_OPTIONS)),
        ("destination", Packet::udp(9).extension(DESTINATION, &PADDING_OPTIONS)),
        ("routing", Packet::tcp(9).extension(ROUTING, &routing)),
        ("authentication", Packet::tcp(9).extension(AH, &authentication)),
        ("mobility", Packet::udp(9).extension(MOBILITY, &PADDING_OPTIONS)),
        ("first fragment", Packet::udp(9).extension(FRAGMENT, &first_fragment)),
        (
            "all of RFC 8200 section 4.1",
            Packet::tcp(9)
                .extension(HOP_BY_HOP, &PADDING_OPTIONS)
                .extension(DESTINATION, &PADDING_OPTIONS)
                .extension(ROUTING, &routing)
                .extension(FRAGMENT, &first_fragment)
                .extension(AH, &authentication)
                .extension(DESTINATION, &PADDING_OPTIONS)
                .extension(MOBILITY, &PADDING_OPTIONS),
        ),
        ("in QinQ", Packet::tcp(9).tag(0x88a8, 1).tag(0x8100, 2).extension(ROUTING, &routing)),
    ] {
        assert_marked(&rig, &packet, what);
    }
    let eight = (0..8).fold(Packet::tcp(9), |p, _| p.extension(DESTINATION, &PADDING_OPTIONS));
    assert_untouched(&rig, &eight.frame(), None, "eight extension headers");
    let huge = Packet::tcp(9).extension(DESTINATION, &[0, 255, 1, 4, 0, 0, 0, 0]);
    assert_untouched(&rig, &huge.frame(), None, "a header that claims more than there is");
}

#[test]
fn later_fragments_pass_and_are_counted() {
    if skip_unless_root() {
        return;
    }
    for strategy in all_strategies() {
        let rig = rig(strategy);
        for offset in [8_u16, 0x10, 0xfff8] {
            let [high, low] = offset.to_be_bytes();
            let packet = Packet::udp(9).extension(FRAGMENT, &[0, 0, high, low, 0, 0, 0, 9]);
            assert_untouched(&rig, &packet.frame(), Some("FRAGMENT"), "later fragment");
        }
    }
}

#[test]
fn a_second_hop_by_hop_header_is_never_inserted() {
    if skip_unless_root() {
        return;
    }
    let packet = Packet::tcp(9).extension(HOP_BY_HOP, &PADDING_OPTIONS);
    for strategy in [Strategy::HopByHop, Strategy::HopByHopDestination] {
        let reason = Some("HOP_BY_HOP");
        assert_untouched(&rig(strategy), &packet.frame(), reason, "hop-by-hop");
    }
    let reason = Some("EXTENSION");
    assert_untouched(&rig(Strategy::Destination), &packet.frame(), reason, "hop-by-hop");
}

#[test]
fn hop_by_hop_goes_before_other_headers_and_destination_keeps_away() {
    if skip_unless_root() {
        return;
    }
    let packets = [
        Packet::tcp(9).extension(DESTINATION, &PADDING_OPTIONS),
        Packet::udp(9).extension(FRAGMENT, &[0, 0, 0, 1, 0, 0, 0, 9]),
        Packet::tcp(9).extension(ROUTING, &[0; 8]),
    ];
    for packet in packets {
        assert_marked(&rig(Strategy::HopByHop), &packet, "hop-by-hop comes first");
        for strategy in [Strategy::Destination, Strategy::HopByHopDestination] {
            let reason = Some("EXTENSION");
            assert_untouched(&rig(strategy), &packet.frame(), reason, "extension header");
        }
    }
}
