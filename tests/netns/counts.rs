//! What the marker counts of flows, against what was sent.

use std::io::{Read, Write};

use serde_json::{json, Value};

use super::rig::{line, Strategy, ATLAS, STRATEGIES};
use crate::common::{
    skip_unless_root, udp, v6, wait_for, Connection, Daemon, Namespace, Offload, Pair, DEVICE,
    HERE, PATIENCE, THERE,
};

fn daemon(pair: &Pair, strategy: Strategy, received: &str) -> Daemon {
    let config = json!({
        "plugins": {"namedPipe": {}, "api": {"bindPort": 7777}},
        "backends": {"marker": {
            "targetInterfaces": [DEVICE], "markingStrategy": strategy.name(),
            "countReceived": received
        }}
    });
    Daemon::start_in(&pair.here, config)
}

/// The only open flow, as GET /flows tells of it.
fn flow(pair: &Pair, daemon: &Daemon) -> Value {
    let (_, answer) = pair.here.enter(|| daemon.get("/flows"));
    answer["flows"][0].clone()
}

/// How many segments of TCP the host has sent again.
pub(super) fn retransmitted(host: &Namespace) -> u64 {
    let text = host.run("cat /proc/thread-self/net/snmp");
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let place = names.split(' ').position(|name| name == "RetransSegs").expect("the name");
    values.split(' ').nth(place).and_then(|value| value.parse().ok()).expect("a number")
}

#[test]
fn usage_is_what_was_sent_and_received_to_the_octet() {
    if skip_unless_root() {
        return;
    }
    const SENT: u64 = 3_000_001;
    const ANSWERED: u64 = 70_003;
    for strategy in STRATEGIES {
        for offload in [Offload::Tso, Offload::None] {
            let pair = Pair::new();
            pair.set_device(1500, offload);
            let mut daemon = daemon(&pair, strategy, "all");
            let (from, to) = (v6(HERE, 40_000), v6(THERE, 1094));
            daemon.write(&line(true, "tcp", from, to, ATLAS));
            daemon.wait_for_line("start tcp");
            // The marker hears of it behind the dispatcher.
            wait_for("the entry", || flow(&pair, &daemon)["marked"].is_object().then_some(()));
            daemon.write(&line(true, "udp", v6(HERE, 9), v6(THERE, 9), ATLAS));
            let sink = udp(&pair.there, v6(THERE, 9), v6(HERE, 9));
            let probe = udp(&pair.here, v6(HERE, 9), v6(THERE, 9));
            wait_for("the probe to be counted", || {
                probe.send(b"x").expect("to send");
                let (_, answer) = pair.here.enter(|| daemon.get("/flows"));
                let flows = answer["flows"].as_array().expect("flows").clone();
                let counted = |flow: &Value| flow["marked"]["packets"].as_u64() > Some(0);
                flows.iter().any(counted).then_some(())
            });
            daemon.write(&line(false, "udp", v6(HERE, 9), v6(THERE, 9), ATLAS));
            drop((sink, probe));
            let mut connection = Connection::open((&pair.here, from), (&pair.there, to), 0);
            connection.send_bulk(usize::try_from(SENT).expect("small"));
            let answer = vec![7; usize::try_from(ANSWERED).expect("small")];
            let Connection { client, server } = &mut connection;
            std::thread::scope(|scope| {
                scope.spawn(|| server.write_all(&answer).expect("to answer"));
                client.read_exact(&mut vec![0; answer.len()]).expect("the answer");
            });
            drop(connection);
            daemon.write(&line(false, "tcp", from, to, ATLAS));
            let said = daemon.wait_for_line("end tcp");
            let (_, over) = said.split_once(" over, ").expect("the figures");
            let mut figures = over.split(' ').filter_map(|word| word.parse::<u64>().ok());
            for (octets, host) in [(SENT, &pair.here), (ANSWERED, &pair.there)] {
                let found = figures.next().expect("a figure");
                // What is sent again counts again.
                let most = octets + 65_535 * retransmitted(host);
                assert!((octets..=most).contains(&found), "{strategy:?}, {offload:?}: {said}");
            }
            daemon.stop(&["would exceed", "GSO"]);
        }
    }
}

#[test]
fn datagrams_are_counted_by_flow_and_direction_and_slots_begin_anew() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let mut daemon = daemon(&pair, Strategy::Label, "udp");
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 5001));
    let here = udp(&pair.here, from, to);
    let there = udp(&pair.there, to, from);
    for round in 1..4 {
        daemon.write(&line(true, "udp", from, to, ATLAS));
        let marked = || flow(&pair, &daemon)["marked"].clone();
        // Empty ones until the marker has it.
        wait_for("a packet to be counted", || {
            here.send(b"").expect("to send");
            (marked()["packets"].as_u64() > Some(0)).then_some(())
        });
        for length in 0..100 * round {
            here.send(&vec![1; length]).expect("to send");
            there.send(&[1; 3]).expect("to send");
            here.recv(&mut [0; 3]).expect("an answer");
        }
        let sent: usize = (0..100 * round).sum();
        let usage = json!({"sent": sent, "received": 300 * round});
        let now = flow(&pair, &daemon);
        assert_eq!((&now["usage"], &now["marked"]["octets"]), (&usage, &json!(sent)));
        assert_eq!(now["marked"]["receivedPackets"], json!(100 * round));
        let last = now["marked"]["last"].as_str().expect("a time").to_owned();
        let last = glowd::flow::Timestamp::parse(&last).expect("a time").0;
        let ago = glowd::flow::Timestamp::now().0.saturating_sub(last);
        assert!(ago < 60_000_000, "{ago} us ago");
        daemon.write(&line(false, "udp", from, to, ATLAS));
        wait_for("the end", || flow(&pair, &daemon).is_null().then_some(()));
        // They are nobody's.
        here.send(b"unmarked").expect("to send");
    }
    daemon.stop(&[]);
}

/// Without the other direction it is not known what a flow has carried, and so not told.
#[test]
fn what_leaves_is_counted_without_a_look_at_what_arrives() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let mut daemon = daemon(&pair, Strategy::Label, "off");
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 5001));
    let here = udp(&pair.here, from, to);
    let _there = udp(&pair.there, to, from);
    daemon.write(&line(true, "udp", from, to, ATLAS));
    let now = wait_for("packets to be counted", || {
        here.send(b"12345").expect("to send");
        let now = flow(&pair, &daemon);
        (now["marked"]["packets"].as_u64() > Some(2)).then_some(now)
    });
    assert_eq!(now["marked"]["octets"], json!(5 * now["marked"]["packets"].as_u64().unwrap()));
    assert!(now["usage"].is_null() && now["marked"]["receivedPackets"].is_null(), "{now}");
    assert_eq!(pair.here.run(&format!("tc filter show dev {DEVICE} ingress")), "");
    daemon.stop(&[]);
}

/// The shipped configuration has the enricher; one without it is as ordinary.
#[test]
fn the_end_of_any_flow_says_what_it_has_carried_by_default() {
    if skip_unless_root() {
        return;
    }
    const SENT: usize = 300_001;
    const ANSWERED: usize = 7003;
    for enrichers in [json!({}), json!({"netlink": {}, "period": 100})] {
        let pair = Pair::new();
        let sink = pair.here.enter(|| std::net::UdpSocket::bind("[::1]:9999")).expect("a sink");
        sink.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let config = json!({
            "plugins": {"namedPipe": {}, "api": {"bindPort": 7777}},
            "enrichers": enrichers,
            "backends": {
                "marker": {"targetInterfaces": [DEVICE]},
                "firefly": {"sendToDestination": false, "collectors": ["[::1]:9999"]}
            }
        });
        let mut daemon = Daemon::start_in(&pair.here, config);
        let (from, to) = (v6(HERE, 40_000), v6(THERE, 1094));
        for protocol in ["tcp", "udp"] {
            daemon.write(&line(true, protocol, from, to, ATLAS));
        }
        let here = udp(&pair.here, from, to);
        let there = udp(&pair.there, to, from);
        wait_for("both flows to be counted", || {
            here.send(b"").expect("to send");
            let (_, answer) = pair.here.enter(|| daemon.get("/flows"));
            let flows = answer["flows"].as_array().expect("flows").clone();
            let counted = |flow: &Value| flow["marked"]["packets"].as_u64() > Some(0);
            (flows.len() == 2 && flows.iter().any(counted)).then_some(())
        });
        let mut connection = Connection::open((&pair.here, from), (&pair.there, to), 0);
        connection.send_bulk(SENT);
        connection.server.write_all(&[7; ANSWERED]).expect("to answer");
        connection.client.read_exact(&mut [0; ANSWERED]).expect("the answer");
        for _ in 0..10 {
            here.send(&[1; 50]).expect("to send");
            there.send(&[1; 20]).expect("to send");
            here.recv(&mut [0; 20]).expect("an answer");
        }
        drop(connection);
        for protocol in ["tcp", "udp"] {
            daemon.write(&line(false, protocol, from, to, ATLAS));
        }
        let mut ends = 0;
        while ends < 2 {
            let mut datagram = [0; 2048];
            let length = sink.recv(&mut datagram).expect("a firefly");
            let start = datagram.iter().position(|octet| *octet == b'{').expect("a document");
            let firefly: Value =
                serde_json::from_slice(&datagram[start..length]).expect("a document");
            if firefly["flow-lifecycle"]["state"] != "end" {
                continue;
            }
            ends += 1;
            let usage = &firefly["usage"];
            let exact = if firefly["flow-id"]["protocol"] == "udp" {
                json!({"sent": 500, "received": 200})
            } else {
                json!({"sent": SENT, "received": ANSWERED})
            };
            // What is sent again counts again where no enricher measures.
            let again = retransmitted(&pair.here) + retransmitted(&pair.there);
            let most = |key: &str| exact[key].as_u64().unwrap() + 65_535 * again;
            let fits = |key: &str| {
                let range = exact[key].as_u64().unwrap()..=most(key);
                usage[key].as_u64().is_some_and(|octets| range.contains(&octets))
            };
            let is_measured = enrichers != json!({}) || firefly["flow-id"]["protocol"] == "udp";
            assert!(
                if is_measured { *usage == exact } else { fits("sent") && fits("received") },
                "{firefly}"
            );
        }
        daemon.stop(&[]);
    }
}
