//! Packets that were marked already, on an interface above.

use super::*;

#[test]
fn a_packet_that_is_marked_already_is_as_it_should_be() {
    if skip_unless_root() {
        return;
    }
    for strategy in all_strategies() {
        for packet in [Packet::tcp(100), Packet::udp(100)] {
            let frame = marked(&packet, strategy).frame();
            assert_untouched(&rig(strategy), &frame, None, "marked above");
        }
    }
}

#[test]
fn a_packet_that_says_something_else_is_unmarked() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        let reason = if strategy == Strategy::Destination { "EXTENSION" } else { "HOP_BY_HOP" };
        // Experiment, activity, type and length of the option.
        for octet in [4, 5, 6, 2, 3] {
            let mut packet = marked(&Packet::tcp(100), strategy);
            packet.extensions[0].1[octet] ^= 1;
            assert_untouched(&rig(strategy), &packet.frame(), Some(reason), "another option");
        }
    }
}
