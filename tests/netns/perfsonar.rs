//! The perfsonar plugin on a host that measures.

use std::net::UdpSocket;

use serde_json::{json, Value};

use super::rig::{each, is_marked, is_plain, line, of, Strategy, ATLAS, CMS, STRATEGIES};
use crate::common::packet::{Packet, TCP, UDP};
use crate::common::{
    bound, skip_unless_root, udp, v6, wait_for, Capture, Connection, Daemon, Pair, DEVICE, HERE,
    PATIENCE, THERE,
};
use crate::firefly::SCHEMA;

/// A daemon on one host, which sends fireflies to a collector there.
struct Host {
    pair: Pair,
    daemon: Daemon,
    capture: Capture,
    collector: UdpSocket,
}

impl Host {
    fn new(strategy: Strategy, pair: Pair, mut perfsonar: Value) -> Self {
        perfsonar["experiment"] = json!("atlas");
        perfsonar["activityId"] = json!(15);
        let collector = pair.here.enter(|| UdpSocket::bind("[::1]:0")).expect("a collector");
        collector.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let collectors = json!([collector.local_addr().expect("its address").to_string()]);
        let config = json!({
            "plugins": {"namedPipe": {}, "api": {"bindPort": 7777}, "perfsonar": perfsonar},
            "backends": {
                "marker": {"targetInterfaces": [DEVICE], "markingStrategy": strategy.name()},
                "firefly": {"sendToDestination": false, "collectors": collectors}
            }
        });
        let capture = Capture::start(&pair.there, DEVICE);
        let daemon = Daemon::start_in(&pair.here, config);
        Host { pair, daemon, capture, collector }
    }

    /// Sends datagrams from a port until one arrives that is as wanted.
    fn await_datagram(&self, ports: (u16, u16), wanted: impl Fn(&Packet) -> bool) {
        let (from, to) = (v6(HERE, ports.0), v6(THERE, ports.1));
        let _sink = udp(&self.pair.there, to, from);
        // Not connected, so that it is no flow.
        let socket = bound(&self.pair.here, from);
        wait_for("a datagram as it should be", || {
            let start = self.capture.count();
            socket.send_to(b"probe", to).expect("to send");
            let it = |packet: &Packet| (packet.src_port, packet.dst_port) == ports;
            wanted(&self.capture.find(start, PATIENCE, it).expect("it")).then_some(())
        });
    }

    /// The next firefly: its state, ports and tag. It is one by the schema.
    fn firefly(&self) -> (String, u64, u64, u64) {
        let mut buffer = [0; 2048];
        let length = crate::common::receive(&self.collector, &mut buffer).expect("a firefly");
        let text = std::str::from_utf8(&buffer[..length]).expect("text");
        let json = &text[text.find('{').expect("a document")..];
        let document: Value = serde_json::from_str(json).expect("JSON");
        let errors: Vec<_> = SCHEMA.iter_errors(&document).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}: {text}");
        let (flow, context) = (&document["flow-id"], &document["context"]);
        assert!(flow["src-ip"] != "::" && flow["dst-ip"] != "::", "{text}");
        let number = |value: &Value| value.as_u64().expect("a number");
        assert_eq!(context["experiment-id"].as_u64().map(|id| id < 4), Some(true));
        let state = document["flow-lifecycle"]["state"].as_str().expect("a state").to_owned();
        let activity = number(&context["activity-id"]);
        (state, number(&flow["src-port"]), number(&flow["dst-port"]), activity)
    }
}

#[test]
fn everything_that_a_measuring_host_sends_carries_its_tag() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        let mut host = Host::new(strategy, Pair::new(), json!({}));
        host.await_datagram((9, 1009), |packet| is_marked(packet, strategy, ATLAS).is_ok());
        let start = host.capture.count();
        let (from, to) = (v6(HERE, 40_000), v6(THERE, 5201));
        Connection::open((&host.pair.here, from), (&host.pair.there, to), 0).send_bulk(1 << 20);
        for port in 5300..5310 {
            let (from, to) = (v6(HERE, 40_000), v6(THERE, port));
            let _sink = udp(&host.pair.there, to, from);
            udp(&host.pair.here, from, to).send(b"x").expect("to send");
        }
        // Other flows are as ever.
        let (from, to) = (v6(HERE, 40_001), v6(THERE, 5202));
        host.daemon.write(&line(true, "udp", from, to, CMS));
        assert_eq!(host.firefly(), ("start".into(), 40_001, 5202, CMS.activity.into()));
        host.await_datagram((40_001, 5202), |packet| is_marked(packet, strategy, CMS).is_ok());
        host.daemon.write(&line(false, "udp", from, to, CMS));
        assert_eq!(host.firefly(), ("end".into(), 40_001, 5202, CMS.activity.into()));
        host.await_datagram((40_001, 5202), |packet| is_marked(packet, strategy, ATLAS).is_ok());
        let end = host.capture.count();
        host.daemon.stop(&[]);
        let (from, to) = (v6(HERE, 40_002), v6(THERE, 5203));
        let _sink = udp(&host.pair.there, to, from);
        udp(&host.pair.here, from, to).send(b"plain").expect("to send");
        host.capture.find(end, PATIENCE, |packet| packet.dst_port == 5203).expect("it");
        // There was no firefly but those of the flow that was told.
        host.collector.set_nonblocking(true).expect("not to wait");
        host.collector.recv(&mut [0; 1]).expect_err("nothing");
        let captured = host.capture.finish();
        let ours = |packet: &Packet| is_marked(packet, strategy, ATLAS);
        let packets = &captured[start..end];
        assert!(each(packets.iter().filter(of(TCP, 40_000, 5201)), ours) > 16);
        for port in 5300..5310 {
            assert_eq!(each(packets.iter().filter(of(UDP, 40_000, port)), ours), 1);
        }
        let after = captured[end..].iter().filter(of(UDP, 40_002, 5203));
        assert_eq!(each(after, is_plain), 1);
    }
}

#[test]
fn each_measurement_has_its_fireflies_if_that_is_wanted() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let ends = |port| ((&pair.here, v6(HERE, 40_000)), (&pair.there, v6(THERE, port)));
    let open = |port| Connection::open(ends(port).0, ends(port).1, 0);
    let old = open(5201);
    let strategy = Strategy::Label;
    let host = Host::new(
        strategy,
        pair,
        json!({
            "fireflies": true, "includePrivate": true, "exclude": "127.0.0.0/8"
        }),
    );
    assert_eq!(host.firefly(), ("start".into(), 40_000, 5201, 15));
    let pair = &host.pair;
    let ends = |port| ((&pair.here, v6(HERE, 40_000)), (&pair.there, v6(THERE, port)));
    let new = Connection::open(ends(5202).0, ends(5202).1, 0);
    assert_eq!(host.firefly(), ("start".into(), 40_000, 5202, 15));
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 5203));
    let sink = udp(&pair.there, to, from);
    let socket = udp(&pair.here, from, to);
    assert_eq!(host.firefly(), ("start".into(), 40_000, 5203, 15));
    host.await_datagram((9, 1009), |packet| is_marked(packet, strategy, ATLAS).is_ok());
    for (mut connection, port) in [(old, 5201), (new, 5202)] {
        connection.ping_pong(3);
        drop(connection);
        assert_eq!(host.firefly(), ("end".into(), 40_000, port, 15));
    }
    drop((socket, sink));
    assert_eq!(host.firefly(), ("end".into(), 40_000, 5203, 15));
    let (_, flows) = host.pair.here.enter(|| host.daemon.get("/flows"));
    assert_eq!(flows["flows"], json!([]));
    let end = host.capture.count();
    host.daemon.stop(&[]);
    let packets = host.capture.finish();
    let ours = |packet: &Packet| is_marked(packet, strategy, ATLAS);
    assert!(each(packets[..end].iter().filter(of(TCP, 40_000, 5202)), ours) > 3);
}
