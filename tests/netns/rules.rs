//! Rules of the marker: packets of no flow that carry a tag.

use std::net::Shutdown;

use serde_json::json;

use super::rig::{each, is_marked, is_plain, line, of, Rig, Strategy, ATLAS, CMS, STRATEGIES};
use crate::common::packet::{Packet, TCP, UDP};
use crate::common::{skip_unless_root, udp, v6, Connection, Pair, HERE, HERE_TOO, PATIENCE, THERE};

#[test]
fn packets_of_no_flow_carry_the_tag_of_the_first_rule_that_fits() {
    if skip_unless_root() {
        return;
    }
    let rules = json!([
        {"protocol": "tcp", "remotePort": [1094, "2000-2100"], "experiment": "atlas", "activity": 15},
        {"localPrefix": HERE, "remotePrefix": ["192.0.2.0/24", format!("{THERE}/127")],
         "localPort": "40000-40010", "experiment": 3, "activity": "Analysis Input"},
    ]);
    for strategy in STRATEGIES {
        let mut rig = Rig::with(Pair::new(), strategy, json!({"rules": rules.clone()}), None);
        let transfer = |port, octets| {
            let ends = ((&rig.pair.here, v6(HERE, 40_000)), (&rig.pair.there, v6(THERE, port)));
            let mut connection = Connection::open(ends.0, ends.1, 0xb8);
            connection.send_bulk(octets);
        };
        transfer(2050, 1 << 20);
        transfer(2101, 1 << 16);
        // Source, ports, and whether a rule fits.
        for (from, port, to) in
            [(HERE, 40_001, 2050), (HERE, 40_011, 2051), (HERE_TOO, 40_002, 2052)]
        {
            let (from, to) = (v6(from, port), v6(THERE, to));
            let _sink = udp(&rig.pair.there, to, from);
            udp(&rig.pair.here, from, to).send(b"x").expect("to send");
        }
        // A flow of its own wins, and its end gives it back to the rule.
        let (from, to) = (v6(HERE, 40_003), v6(THERE, 2053));
        let _sink = udp(&rig.pair.there, to, from);
        let socket = udp(&rig.pair.here, from, to);
        for open in [false, true, false] {
            rig.obey(&if open { line(true, "udp", from, to, ATLAS) } else { String::new() });
            socket.send(if open { b"of a flow" } else { b"of nobody" }).expect("to send");
            rig.obey(&if open { line(false, "udp", from, to, ATLAS) } else { String::new() });
        }
        let packets = rig.finish();
        let marked = |tag| move |packet: &Packet| is_marked(packet, strategy, tag);
        let of = |protocol, src, dst| packets.iter().filter(of(protocol, src, dst));
        let most = if strategy == Strategy::Label { 10 } else { 16 };
        assert!(each(of(TCP, 40_000, 2050), marked(ATLAS)) >= most);
        assert!(each(of(TCP, 40_000, 2101), marked(CMS)) > 1);
        assert_eq!(each(of(UDP, 40_001, 2050), marked(CMS)), 1);
        assert_eq!(each(of(UDP, 40_011, 2051), is_plain), 1);
        assert_eq!(each(of(UDP, 40_002, 2052), is_plain), 1);
        let own: Vec<_> = of(UDP, 40_003, 2053).collect();
        assert_eq!(own.len(), 3);
        for (packet, tag) in own.iter().zip([CMS, ATLAS, CMS]) {
            is_marked(packet, strategy, tag).expect("the flow's tag while it is open");
        }
        assert_eq!(own[0].label, own[2].label);
    }
}

/// The label of a connection stays when a plugin tells of it.
#[test]
fn a_flow_with_the_tag_of_its_rule_keeps_its_label() {
    if skip_unless_root() {
        return;
    }
    let rules = json!([{"experiment": 2, "activity": 15}]);
    let mut rig = Rig::with(Pair::new(), Strategy::Label, json!({"rules": rules}), None);
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 1094));
    let mut connection = Connection::open((&rig.pair.here, from), (&rig.pair.there, to), 0);
    connection.ping_pong(5);
    // The probes of the rig are marked by the rule too, so an end shows by its answer.
    for start in [true, false] {
        rig.daemon.write(&line(start, "tcp", from, to, ATLAS));
        rig.daemon.wait_for_line(if start { "start tcp" } else { "end tcp" });
        connection.ping_pong(5);
    }
    // An acknowledgement may be delayed beyond the daemon's end: a FIN bears it, and is the
    // last that this side sends as long as the other keeps its end open.
    connection.client.shutdown(Shutdown::Write).expect("to end it");
    let is_fin = |packet: &Packet| packet.src_port == 40_000 && packet.tcp_flags & 1 == 1;
    rig.capture.find(0, PATIENCE, is_fin).expect("its FIN");
    rig.daemon.stop(&[]);
    let packets = rig.capture.finish();
    let labels: std::collections::BTreeSet<u32> =
        packets.iter().filter(of(TCP, 40_000, 1094)).map(|packet| packet.label).collect();
    assert_eq!(labels.len(), 1, "{labels:x?}");
}
