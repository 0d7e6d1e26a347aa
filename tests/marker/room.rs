//! Packets that have no room for a header leave as they came.

use glowd::sys::abi::FLOW_NO_ROOM;

use super::*;

#[test]
fn the_payload_length_never_overflows() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        let rig = rig(strategy);
        let added = if strategy == Strategy::HopByHopDestination { 16 } else { 8 };
        for length in [0, u16::MAX, u16::MAX - added + 1] {
            let packet = Packet::tcp(9).with(|p| p.payload_len = Some(length));
            assert_untouched(&rig, &packet.frame(), Some("LENGTH"), "payload length");
        }
    }
}

/// Where the header would not fit the packet stays as it is.
#[test]
fn headers_never_exceed_the_mtu() {
    if skip_unless_root() {
        return;
    }
    for mtu in [1280, 1500] {
        for strategy in HEADER_STRATEGIES {
            let rig = Rig::with_mtu(strategy, mtu);
            rig.open(key(TCP), FLOW);
            rig.open(key(UDP), FLOW);
            let added = if strategy == Strategy::HopByHopDestination { 16 } else { 8 };
            let fits = mtu - 40 - added;
            assert_marked(&rig, &Packet::tcp(fits - 20), "fits exactly");
            assert_marked(&rig, &Packet::udp(fits - 8), "fits exactly");
            let tagged = Packet::udp(fits - 8).tag(0x8100, 5);
            assert_marked(&rig, &tagged, "a tag does not count");
            for beyond in [1, added] {
                let frame = Packet::tcp(fits - 20 + beyond).frame();
                assert_untouched(&rig, &frame, Some("MTU"), "does not fit");
                let frame = Packet::udp(fits - 8 + beyond).tag(0x88a8, 1).tag(0x8100, 5).frame();
                assert_untouched(&rig, &frame, Some("MTU"), "does not fit");
            }
        }
    }
}

#[test]
fn a_flow_whose_path_has_no_room_keeps_its_small_packets_marked() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        let rig = Rig::with_mtu(strategy, 1500);
        rig.open(key(TCP), FlowValue { flags: FLOW_NO_ROOM, ..FLOW });
        let added = if strategy == Strategy::HopByHopDestination { 16 } else { 8 };
        let fits = 1280 - 40 - 20 - added;
        assert_marked(&rig, &Packet::tcp(fits), "fits every path");
        let frame = Packet::tcp(fits + 1).frame();
        assert_untouched(&rig, &frame, Some("PATH_MTU"), "does not fit every path");
    }
}

/// A GSO type that the kernel will not grow: a test run's packets have none.
#[test]
fn what_the_kernel_refuses_to_grow_leaves_as_it_came() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        let rig = rig(strategy);
        let frame = Packet::tcp(3000).frame();
        let run = rig.egress_gso(&frame, 1400);
        assert_eq!((run.verdict, run.packet), (TC_ACT_UNSPEC, frame));
        assert_eq!(rig.take_unmarked(), [("GSO".to_owned(), 1)]);
    }
}
