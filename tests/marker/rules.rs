//! Rules for packets of no flow, in the kernel.

use std::net::{Ipv6Addr, SocketAddr};

use glowd::entropy::EntropyKey;
use glowd::flow::{FlowId, Protocol, Tag};
use glowd::sys::abi::{Rule, RulesHead, MAX_RULES, RULE_OTHER, RULE_TCP, RULE_UDP};

use super::arriving::too_big;
use super::*;

/// A rule that every packet of TCP and UDP meets.
fn any(experiment: u64, activity: u64) -> Rule {
    let tag = Tag::new(experiment, activity).unwrap();
    Rule {
        local_last: u16::MAX,
        remote_last: u16::MAX,
        label: tag.label(0),
        experiment: tag.experiment(),
        activity: tag.activity(),
        classes: RULE_TCP | RULE_UDP,
        ..Rule::default()
    }
}

fn ours() -> Rule {
    any(EXPERIMENT.into(), ACTIVITY.into())
}

/// The first table is in use, and this one is behind it.
fn head(tag: Option<Tag>) -> RulesHead {
    let version = 2;
    match tag {
        None => RulesHead { version, ..RulesHead::default() },
        Some(tag) => RulesHead {
            label: tag.label(0),
            experiment: tag.experiment(),
            activity: tag.activity(),
            version,
        },
    }
}

/// The label that glowd itself gives a flow of this packet.
fn label(packet: &Packet, tag: Tag) -> u32 {
    let port = |at: usize| u16::from_be_bytes(packet.transport[at..at + 2].try_into().unwrap());
    let protocol = if packet.protocol == TCP { Protocol::Tcp } else { Protocol::Udp };
    let end =
        |ip, at| SocketAddr::new(Ipv6Addr::from_bits(u128::from_be_bytes(ip)).into(), port(at));
    let id = FlowId::new(protocol, end(packet.src, 0), end(packet.dst, 2)).unwrap();
    tag.label(EntropyKey::of_this_boot().entropy(&id))
}

/// The tag that the packet leaves with, if any; nothing else has changed.
#[track_caller]
fn tag_of(rig: &Rig, packet: &Packet) -> Option<Tag> {
    let frame = packet.frame();
    let out = rig.egress(&frame).packet;
    assert_eq!(rig.take_unmarked(), []);
    if out == frame {
        return None;
    }
    assert_eq!(rig.strategy, Strategy::Label);
    let word = u32::from_be_bytes(out[14..18].try_into().unwrap()) & 0xF_FFFF;
    assert_eq!(out, packet.clone().with(|p| p.label = word).frame());
    Tag::from_label(word)
}

#[test]
fn without_rules_packets_of_no_flow_leave_as_they_came() {
    if skip_unless_root() {
        return;
    }
    for strategy in all_strategies() {
        let rig = Rig::new(strategy);
        // Nobody points at it.
        rig.set_rules(0, &[ours()]);
        rig.set_rules(MAX_RULES, &[ours()]);
        assert_untouched(&rig, &Packet::tcp(9).frame(), None, "no rules");
        rig.set_rules(0, &[Rule::default(), ours()]);
        rig.set_rules_head(head(None));
        assert_untouched(&rig, &Packet::tcp(9).frame(), None, "an empty table");
    }
}

#[test]
fn what_no_flow_and_no_rule_claims_carries_the_last_tag() {
    if skip_unless_root() {
        return;
    }
    let last = Tag::new(5, 10).unwrap();
    let strange = Packet::tcp(9).with(|p| p.src[15] = 9);
    let rig = Rig::new(Strategy::Label);
    rig.open(key(TCP), FLOW);
    rig.set_rules_head(RulesHead { version: 0, ..head(Some(last)) });
    assert_marked(&rig, &Packet::tcp(9), "an exact flow wins");
    let ping = Packet::other(ICMPV6, &[128; 40]);
    for packet in [&strange, &Packet::udp(9), &ping, &Packet::other(50, &[7; 40])] {
        assert_eq!(tag_of(&rig, packet), Some(last));
    }
    for strategy in HEADER_STRATEGIES {
        let rig = Rig::new(strategy);
        let ours = Tag::new(EXPERIMENT.into(), ACTIVITY.into()).unwrap();
        rig.set_rules_head(head(Some(ours)));
        assert_marked(&rig, &strange, "no flow of its own");
        let discovery = Packet::other(ICMPV6, &[135; 32]).frame();
        assert_untouched(&rig, &discovery, None, "neighbour discovery");
    }
}

/// A flow's label must not change when an entry with the same tag takes over, and what
/// balances load by labels must see different flows.
#[test]
fn a_rule_gives_each_flow_the_label_that_an_entry_gives() {
    if skip_unless_root() {
        return;
    }
    let tag = Tag::new(EXPERIMENT.into(), ACTIVITY.into()).unwrap();
    let rig = Rig::new(Strategy::Label);
    let mut seen = std::collections::BTreeSet::new();
    for by_rule in [true, false] {
        rig.set_rules(0, &[if by_rule { ours() } else { Rule::default() }]);
        rig.set_rules_head(head((!by_rule).then_some(tag)));
        for at in 0..=255 {
            for packet in [Packet::tcp(9), Packet::udp(9)] {
                let packet = packet.with(|p| {
                    (p.src[at as usize % 16], p.dst[at as usize % 7], p.transport[1]) =
                        (at, at, at);
                });
                let label = label(&packet, tag);
                let expected = packet.clone().with(|p| p.label = label).frame();
                assert_eq!(rig.egress(&packet.frame()).packet, expected);
                let behind = packet.extension(DESTINATION, &PADDING_OPTIONS);
                let expected = behind.clone().with(|p| p.label = label).frame();
                assert_eq!(rig.egress(&behind.frame()).packet, expected);
                seen.insert(label);
            }
        }
    }
    assert_eq!(seen.len(), 32);
}

/// The rule with the first so many bits of the destination's or source's address.
fn prefix(rule: Rule, half: usize, address: [u8; 16], bits: u32) -> Rule {
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
    let address = (u128::from_be_bytes(address) & mask).to_be_bytes();
    let mut rule = rule;
    for word in 0..2 {
        rule.address[half + word].copy_from_slice(&address[word * 8..word * 8 + 8]);
        rule.mask[half + word].copy_from_slice(&mask.to_be_bytes()[word * 8..word * 8 + 8]);
    }
    rule
}

#[test]
fn all_conditions_of_a_rule_have_to_hold() {
    if skip_unless_root() {
        return;
    }
    let (tcp, udp) = (Packet::tcp(9), Packet::udp(9));
    let local = |first, last| Rule { local_first: first, local_last: last, ..ours() };
    let remote = |first, last| Rule { remote_first: first, remote_last: last, ..ours() };
    let of = |classes| Rule { classes, ..ours() };
    let (mut near, mut far) = (DST, DST);
    (near[15], far[7]) = (DST[15] ^ 2, DST[7] ^ 1);
    let cases = [
        (ours(), &tcp, true),
        (ours(), &udp, true),
        (of(RULE_TCP), &tcp, true),
        (of(RULE_TCP), &udp, false),
        (of(RULE_UDP), &udp, true),
        (of(RULE_UDP), &tcp, false),
        (of(RULE_OTHER), &tcp, false),
        (local(SRC_PORT, SRC_PORT), &tcp, true),
        (local(SRC_PORT + 1, u16::MAX), &tcp, false),
        (local(1, SRC_PORT - 1), &udp, false),
        (local(1, SRC_PORT), &udp, true),
        (remote(DST_PORT, DST_PORT), &udp, true),
        (remote(DST_PORT + 1, u16::MAX), &udp, false),
        (remote(0, DST_PORT - 1), &tcp, false),
        (remote(DST_PORT, u16::MAX), &tcp, true),
        (remote(SRC_PORT, SRC_PORT), &tcp, false),
        (prefix(ours(), 2, DST, 128), &tcp, true),
        (prefix(ours(), 2, near, 128), &tcp, false),
        (prefix(ours(), 2, near, 127), &tcp, false),
        (prefix(ours(), 2, near, 126), &tcp, true),
        (prefix(ours(), 2, far, 64), &tcp, false),
        (prefix(ours(), 2, far, 63), &tcp, true),
        (prefix(ours(), 2, [0xff; 16], 0), &tcp, true),
        (prefix(ours(), 2, SRC, 128), &tcp, false),
        (prefix(ours(), 0, SRC, 128), &tcp, true),
        (prefix(ours(), 0, DST, 128), &udp, false),
        (prefix(prefix(ours(), 0, SRC, 64), 2, DST, 64), &udp, true),
        (prefix(prefix(ours(), 0, far, 64), 2, DST, 64), &udp, false),
        (prefix(remote(DST_PORT, DST_PORT), 2, far, 64), &tcp, false),
        (prefix(remote(1, 1), 2, DST, 64), &tcp, false),
    ];
    for strategy in all_strategies() {
        let rig = Rig::new(strategy);
        rig.set_rules_head(head(None));
        for (rule, packet, fits) in cases {
            rig.set_rules(0, &[rule]);
            let what = format!("{rule:?}, protocol {}", packet.protocol);
            if !fits {
                assert_untouched(&rig, &packet.frame(), None, &what);
            } else if strategy == Strategy::Label {
                assert!(tag_of(&rig, packet).is_some(), "{what}");
            } else {
                assert_marked(&rig, packet, &what);
            }
        }
        let discovery = Packet::other(ICMPV6, &[135; 32]).frame();
        rig.set_rules(0, &[ours()]);
        assert_untouched(&rig, &discovery, None, "neither TCP nor UDP");
    }
}

#[test]
fn the_first_rule_that_fits_says_the_tag() {
    if skip_unless_root() {
        return;
    }
    let rig = Rig::new(Strategy::Label);
    let tag = |activity| Tag::new(9, activity).ok();
    let port = |port, activity| Rule { remote_first: port, remote_last: port, ..any(9, activity) };
    let to =
        |port: u16| Packet::tcp(9).with(|p| p.transport[2..4].copy_from_slice(&port.to_be_bytes()));
    // As many as a table holds, in both.
    let rules = |first: u64| -> Vec<Rule> {
        (1000..).take(MAX_RULES).zip(first..).map(|(to, at)| port(to, at % 64)).collect()
    };
    rig.set_rules(0, &rules(0));
    rig.set_rules(MAX_RULES, &rules(7));
    for (version, first) in [(2, 0), (1, 7), (254, 0), (255, 7)] {
        rig.set_rules_head(RulesHead { version, ..head(Tag::new(1, 1).ok()) });
        for (number, at) in (1000..).take(MAX_RULES).zip(first..) {
            assert_eq!(tag_of(&rig, &to(number)), tag(at % 64), "{number}");
        }
        assert_eq!(tag_of(&rig, &to(999)), Tag::new(1, 1).ok(), "none fits");
    }
    // What is behind one that fits, or behind the end, is not looked at.
    rig.set_rules(0, &[port(5, 5), any(9, 6), port(6, 7), Rule::default(), port(8, 8)]);
    rig.set_rules_head(head(None));
    for (to_port, expected) in [(5, tag(5)), (6, tag(6)), (8, tag(6))] {
        assert_eq!(tag_of(&rig, &to(to_port)), expected);
    }
    rig.set_rules(1, &[port(7, 7)]);
    assert_eq!((tag_of(&rig, &to(7)), tag_of(&rig, &to(8))), (tag(7), None));
}

#[test]
fn a_path_without_room_is_remembered_for_what_a_rule_marks() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        let rig = Rig::new(strategy);
        rig.set_rules(0, &[ours()]);
        rig.set_rules_head(head(None));
        let large = Packet::udp(1300);
        assert_marked(&rig, &large, "before");
        let smallest = too_big(1280, &marked(&large, strategy)).frame();
        assert_eq!(rig.ingress(&smallest).packet, smallest);
        assert_untouched(&rig, &large.frame(), Some("PATH_MTU"), "after");
        assert_marked(&rig, &Packet::udp(100), "a small one");
        assert_marked(&rig, &Packet::tcp(1300), "another flow");
        // Anybody can send such a message about what no rule is for.
        let of_no_rule = Packet::udp(1300).with(|p| p.dst[15] ^= 1);
        rig.set_rules(0, &[Rule { classes: RULE_TCP, ..ours() }]);
        let message = too_big(1280, &marked(&of_no_rule, strategy)).frame();
        assert_eq!(rig.ingress(&message).packet, message);
        rig.set_rules(0, &[ours()]);
        assert_marked(&rig, &of_no_rule, "it was not remembered");
    }
}
