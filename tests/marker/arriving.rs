//! Packets that arrive: what they say about sizes is changed so that headers find room.

use glowd::sys::abi::FLOW_NO_ROOM;

use super::*;

/// A SYN with these options; what MSS it says afterwards, and that nothing else
/// changed but the checksum, which is right.
#[track_caller]
fn clamped(rig: &Rig, options: &[u8], at: usize, to: u16) {
    for flags in [0x02, 0x12, 0xc2] {
        let packet = Packet::tcp_with(flags, options, 0).checksummed(16);
        let run = rig.ingress(&packet.frame());
        assert_eq!(run.verdict, TC_ACT_UNSPEC);
        let mut expected = packet.clone();
        expected.transport[20 + at..22 + at].copy_from_slice(&to.to_be_bytes());
        assert_eq!(run.packet, expected.checksummed(16).frame());
    }
}

/// Defect 3 of the peers: full-size segments stayed unmarked.
#[test]
fn defect_03_the_mss_of_a_syn_leaves_room_for_the_headers() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        let added = if strategy == Strategy::HopByHopDestination { 16 } else { 8 };
        let rig = Rig::with_mtu(strategy, 1500);
        clamped(&rig, &[2, 4, 0x05, 0xa0], 2, 1440 - added);
        // A peer with jumbo frames, and one with a small MTU.
        clamped(&rig, &[2, 4, 0x22, 0xdc], 2, 1440 - added);
        clamped(&rig, &[2, 4, 0x04, 0xc4], 2, 1220 - added);
        // What Linux sends, and padding that puts the value at an odd offset.
        let linux = [2, 4, 0x05, 0xa0, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
        clamped(&rig, &linux, 2, 1440 - added);
        clamped(&rig, &[1, 2, 4, 0x05, 0xa0, 1, 1, 0], 3, 1440 - added);
        clamped(&rig, &[4, 2, 1, 2, 4, 0x05, 0xa0, 0], 5, 1440 - added);
        let jumbo = Rig::with_mtu(strategy, 9000);
        clamped(&jumbo, &[2, 4, 0x22, 0xec], 2, 8940 - added);
    }
}

#[test]
fn arriving_packets_without_need_for_room_stay_as_they_are() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        let rig = Rig::with_mtu(strategy, 1500);
        for (what, packet) in [
            ("no SYN", Packet::tcp_with(0x10, &[2, 4, 0x05, 0xa0], 100)),
            ("SYN without MSS", Packet::tcp_with(0x02, &[1, 3, 3, 7], 0)),
            ("SYN without options", Packet::tcp_with(0x02, &[], 0)),
            ("options that end", Packet::tcp_with(0x02, &[0, 2, 4, 5, 0xa0, 0, 0, 0], 0)),
            ("an option of no length", Packet::tcp_with(0x02, &[9, 0, 2, 4, 5, 0xa0, 0, 0], 0)),
            ("an option of length 1", Packet::tcp_with(0x02, &[9, 1, 2, 4, 5, 0xa0, 0, 0], 0)),
            ("an MSS of odd length", Packet::tcp_with(0x02, &[2, 3, 5, 1], 0)),
            (
                "data like an MSS",
                Packet::tcp_with(0x02, &[], 0).with(|p| p.transport.extend([2, 4, 5, 220])),
            ),
            ("authenticated options", Packet::tcp_with(0x02, &[2, 4, 5, 0xa0, 29, 4, 1, 1], 0)),
            (
                "options without an end",
                Packet::tcp_with(0x02, &[[2, 4, 5, 0xa0].as_slice(), &[1; 36]].concat(), 0),
            ),
            ("an MSS that is absurd", Packet::tcp_with(0x02, &[2, 4, 0, 88], 0)),
            ("UDP", Packet::udp(100)),
            ("echo", Packet::other(ICMPV6, &[128; 40])),
            ("a later fragment", Packet::tcp(99).extension(FRAGMENT, &[0, 0, 1, 0, 0, 0, 0, 9])),
        ] {
            let run = rig.ingress(&packet.frame());
            assert_eq!((run.verdict, run.packet), (TC_ACT_UNSPEC, packet.frame()), "{what}");
        }
        let frame = Packet::tcp_with(0x02, &[2, 4, 0x05, 0xa0], 0).frame();
        for length in 54..frame.len() {
            let run = rig.ingress(&frame[..length]);
            assert_eq!((run.verdict, run.packet), (TC_ACT_UNSPEC, frame[..length].to_vec()));
        }
    }
}

/// A Packet Too Big that says `mtu` about `inner`.
pub(super) fn too_big(mtu: u32, inner: &Packet) -> Packet {
    let mut bytes = vec![2, 0, 0, 0];
    bytes.extend(mtu.to_be_bytes());
    bytes.extend(&inner.ip()[..inner.ip().len().min(600)]);
    Packet::other(ICMPV6, &bytes).with(|p| std::mem::swap(&mut p.src, &mut p.dst)).checksummed(2)
}

#[test]
fn a_path_mtu_is_told_without_the_headers() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        let added = if strategy == Strategy::HopByHopDestination { 16 } else { 8 };
        let rig = rig(strategy);
        for inner in [Packet::tcp(1400), Packet::udp(1400)] {
            let plain = too_big(1400, &inner).frame();
            assert_eq!(rig.ingress(&plain).packet, plain, "one about an unmarked packet");
            let inner = marked(&inner, strategy);
            let run = rig.ingress(&too_big(1400, &inner).frame());
            assert_eq!(run.verdict, TC_ACT_UNSPEC);
            assert_eq!(run.packet, too_big(1400 - added, &inner).frame());
            assert_eq!(rig.flow(&key(inner.protocol)).map(|flow| flow.flags), Some(0));
        }
        let ours = marked(&Packet::tcp(1400), strategy);
        let stranger = too_big(1400, &ours.clone().with(|p| p.src[15] = 9)).frame();
        assert_eq!(rig.ingress(&stranger).packet, stranger, "not of a flow of ours");
        // No room at all: the message stays, and the flow is remembered.
        let smallest = too_big(1280 + added - 1, &ours).frame();
        assert_eq!(rig.ingress(&smallest).packet, smallest);
        assert_eq!(rig.flow(&key(TCP)).map(|flow| flow.flags), Some(FLOW_NO_ROOM));
        assert_eq!(rig.flow(&key(UDP)).map(|flow| flow.flags), Some(0));
    }
}
