//! What the programs count of a flow's packets.

use glowd::sys::abi::Count;

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
        },
    );
    rig.egress(&Packet::tcp(1000).frame());
    rig.ingress(&back(&Packet::tcp(500)).frame());
    let before = full * u64::from(cpus());
    assert_eq!(counted(&rig, 1), [before + 1, before + 1000, before + 1, before + 500]);
}
