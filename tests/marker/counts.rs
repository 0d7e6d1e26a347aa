//! What the programs count of a flow's packets.

use glowd::sys::abi::{
    Count, Rule, RulesHead, COUNT_NONE, COUNT_UDP, MAX_RULES, RULE_SLOTS, RULE_TCP, RULE_UDP,
};

use super::rig::{cpus, SLOTS};
use super::*;

/// A marker with a TCP flow in slot 1 and a UDP flow in slot 2.
fn counting(strategy: Strategy) -> Rig {
    let rig = Rig::new(strategy);
    rig.open(key(TCP), FlowValue { slot: 1, ..FLOW });
    rig.open(key(UDP), FlowValue { slot: 2, ..FLOW });
    rig
}

/// The same packet on its way back.
fn back(packet: &Packet) -> Packet {
    packet.clone().with(|p| {
        std::mem::swap(&mut p.src, &mut p.dst);
        let (first, rest) = p.transport.split_at_mut(2);
        first.swap_with_slice(&mut rest[..2]);
    })
}

/// Packets and octets that left, and that arrived.
fn counted(rig: &Rig, slot: u32) -> [u64; 4] {
    let count = rig.count(slot);
    [count.packets, count.octets, count.received_packets, count.received_octets]
}

/// Those of the packets that left without a mark.
fn unmarked(rig: &Rig, slot: u32) -> [u64; 2] {
    let count = rig.count(slot);
    [count.unmarked_packets, count.unmarked_octets]
}

#[test]
fn packets_and_the_octets_of_their_payload_are_counted() {
    if skip_unless_root() {
        return;
    }
    let options = [1; 12];
    for strategy in all_strategies() {
        for (packet, slot, payload) in [
            (Packet::tcp(0), 1, 0),
            (Packet::tcp(1), 1, 1),
            (Packet::tcp(1400), 1, 1400),
            (Packet::tcp_with(0x10, &options, 7), 1, 7),
            (Packet::tcp(9).tag(0x8100, 5), 1, 9),
            (Packet::tcp(9).extension(DESTINATION, &PADDING_OPTIONS), 1, 9),
            (Packet::udp(0), 2, 0),
            (Packet::udp(1200), 2, 1200),
            (Packet::udp(5).tag(0x88a8, 7).tag(0x8100, 5), 2, 5),
            (Packet::udp(5).extension(HOP_BY_HOP, &PADDING_OPTIONS), 2, 5),
        ] {
            let rig = counting(strategy);
            rig.egress(&packet.frame());
            assert_eq!(counted(&rig, slot), [1, payload, 0, 0], "{strategy:?} {packet:?}");
            rig.ingress(&back(&packet).frame());
            assert_eq!(counted(&rig, slot), [1, payload, 1, payload], "{strategy:?} {packet:?}");
            assert_ne!(rig.count(slot).last, 0);
            assert_eq!(counted(&rig, 3 - slot), [0; 4]);
        }
    }
}

#[test]
fn what_is_no_packet_of_a_flow_is_not_counted() {
    if skip_unless_root() {
        return;
    }
    let rig = counting(Strategy::Label);
    rig.egress(&back(&Packet::tcp(9)).frame());
    rig.ingress(&Packet::tcp(9).frame());
    rig.egress(&Packet::tcp(9).with(|p| p.src[15] = 9).frame());
    let later = Packet::udp(9).extension(FRAGMENT, &[0, 0, 0, 8, 0, 0, 0, 9]);
    rig.egress(&later.frame());
    rig.ingress(&back(&Packet::udp(9)).extension(FRAGMENT, &[0, 0, 0, 8, 0, 0, 0, 9]).frame());
    // Flows without a slot, and beyond the last one.
    for slot in [SLOTS, NO_SLOT] {
        rig.open(key(TCP), FlowValue { slot, ..FLOW });
        rig.egress(&Packet::tcp(9).frame());
    }
    assert!((0..SLOTS).all(|slot| counted(&rig, slot) == [0; 4]));
    // The later fragment.
    rig.take_unmarked();
    assert_marked(&rig, &Packet::tcp(9), "marked all the same");
}

#[test]
fn counters_go_past_32_bits() {
    if skip_unless_root() {
        return;
    }
    let rig = counting(Strategy::Label);
    let full = u64::from(u32::MAX);
    rig.set_count(
        1,
        Count {
            packets: full,
            octets: full,
            received_packets: full,
            received_octets: full,
            last: 0,
            unmarked_packets: full,
            unmarked_octets: full,
        },
    );
    rig.egress(&Packet::tcp(1000).frame());
    rig.ingress(&back(&Packet::tcp(500)).frame());
    let before = full * u64::from(cpus());
    assert_eq!(counted(&rig, 1), [before + 1, before + 1000, before + 1, before + 500]);
    assert_eq!(unmarked(&rig, 1), [before, before]);
}

#[test]
fn what_arrives_by_tcp_is_not_counted_where_only_udp_is_wanted() {
    if skip_unless_root() {
        return;
    }
    for strategy in all_strategies() {
        for (received, udp) in [(COUNT_UDP, 1), (COUNT_NONE, 0)] {
            let rig = Rig::counting(strategy, received);
            rig.open(key(TCP), FlowValue { slot: 1, ..FLOW });
            rig.open(key(UDP), FlowValue { slot: 2, ..FLOW });
            for packet in [Packet::tcp(9), Packet::tcp(9).tag(0x8100, 5), Packet::udp(7)] {
                let frame = back(&packet).frame();
                let run = rig.ingress(&frame);
                assert_eq!((run.verdict, run.packet), (TC_ACT_UNSPEC, frame));
            }
            assert_eq!(counted(&rig, 1), [0; 4], "{strategy:?}");
            assert_eq!(counted(&rig, 2), [0, 0, udp, 7 * udp], "{strategy:?}");
        }
    }
}

/// A packet counts as marked if it is: the rest is told, and is part of what the flow sent.
#[test]
fn packets_that_cannot_be_marked_are_told_by_flow_and_rule() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        let rig = counting(strategy);
        let other = Packet::udp(30).with(|p| p.src[15] = 9);
        rig.set_rules(0, &[rule(7)]);
        rig.set_rules_head(RulesHead { version: 2, ..RulesHead::default() });
        let hopping = |packet: Packet| packet.extension(HOP_BY_HOP, &PADDING_OPTIONS);
        for (packet, slot, octets) in
            [(Packet::tcp(20), 1, 20), (Packet::udp(10), 2, 10), (other, 7, 30)]
        {
            rig.egress(&packet.frame());
            assert_eq!(counted(&rig, slot), [1, octets, 0, 0]);
            assert_eq!(unmarked(&rig, slot), [0, 0], "{strategy:?}");
            rig.egress(&hopping(packet).frame());
            assert_eq!(counted(&rig, slot), [2, 2 * octets, 0, 0]);
            assert_eq!(unmarked(&rig, slot), [1, octets], "{strategy:?}");
        }
    }
}

/// The kernel does not let what it cannot cut as TCP grow, and that is known only when the
/// outermost tag has been taken off: it comes back beside the data.
#[test]
fn what_fails_behind_tags_is_counted_by_what_it_was() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        for packet in [
            Packet::tcp(3000),
            Packet::tcp(3000).tag(0x8100, 5),
            Packet::tcp_with(0x10, &[1; 12], 3000).tag(0x8100, 5),
            Packet::tcp(3000).tag(0x88a8, 7).tag(0x8100, 5),
        ] {
            let rig = counting(strategy);
            rig.egress_gso(&packet.frame(), 1400);
            assert_eq!(counted(&rig, 1), [1, 3000, 0, 0], "{strategy:?} {:?}", packet.tags);
            assert_eq!(unmarked(&rig, 1), [1, 3000], "{strategy:?} {:?}", packet.tags);
        }
    }
}

/// A rule for TCP and UDP that is counted in that slot.
fn rule(slot: u32) -> Rule {
    Rule {
        local_last: u16::MAX,
        remote_last: u16::MAX,
        label: (LABEL & 0x3_FEFC) | slot << 20,
        experiment: EXPERIMENT,
        activity: ACTIVITY,
        classes: RULE_TCP | RULE_UDP,
        ..Rule::default()
    }
}

#[test]
fn packets_of_no_flow_are_counted_in_the_slot_of_their_rule() {
    if skip_unless_root() {
        return;
    }
    for strategy in all_strategies() {
        let rig = Rig::new(strategy);
        let last = rule(RULE_SLOTS - 1);
        let rules = [Rule { classes: RULE_TCP, ..rule(5) }, rule(6)];
        rig.set_rules(0, &rules[..1]);
        rig.set_rules(MAX_RULES, &rules[1..]);
        let head = RulesHead {
            label: last.label,
            experiment: last.experiment,
            activity: last.activity,
            version: 2,
        };
        for (version, tcp, udp) in [(2, 5, RULE_SLOTS - 1), (3, 6, 6)] {
            rig.set_rules_head(RulesHead { version, ..head });
            let before = [rig.count(tcp), rig.count(udp)];
            rig.egress(&Packet::tcp(9).frame());
            let out = rig.egress(&Packet::udp(11).frame()).packet;
            if strategy == Strategy::Label {
                // The slot is no part of the label.
                let word = u32::from_be_bytes(out[14..18].try_into().unwrap());
                assert_eq!(word & 0x3_FEFC, LABEL & 0x3_FEFC);
                assert_eq!(word >> 20, 0x600);
            }
            let sum = |at: usize, slot| {
                let now = rig.count(slot);
                (now.packets - before[at].packets, now.octets - before[at].octets)
            };
            let expected = if tcp == udp { [(2, 20); 2] } else { [(1, 9), (1, 11)] };
            assert_eq!([sum(0, tcp), sum(1, udp)], expected, "{strategy:?}");
        }
        // A flow of its own is counted with the flow.
        rig.open(key(TCP), FlowValue { slot: RULE_SLOTS, ..FLOW });
        let before = rig.count(6);
        rig.egress(&Packet::tcp(9).frame());
        assert_eq!((rig.count(6), counted(&rig, RULE_SLOTS)), (before, [1, 9, 0, 0]));
    }
}
