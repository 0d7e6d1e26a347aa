//! Usage of flows whose source is the other host, which supplies the data, as told by the pipe;
//! and beside what the marker counts.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};

use serde_json::{json, Value};

use super::counts::retransmitted;
use super::rig::{line, ATLAS, ATLAS_OUTPUT, CMS};
use crate::common::{
    receive, skip_unless_root, udp, v6, wait_for, Connection, Daemon, Pair, DEVICE, HERE, THERE,
};

/// A daemon on `here` that marks, measures once in `period` ms, and counts what arrives, and
/// where its fireflies go.
fn daemon(pair: &Pair, enricher: &str, period: u64) -> (Daemon, UdpSocket) {
    let sink = pair.here.enter(|| UdpSocket::bind("[::1]:0")).expect("a socket");
    let collector = sink.local_addr().expect("an address").to_string();
    let firefly = json!({ "collectors": [collector], "sendToDestination": false, "enrich": true });
    let config = json!({
        "plugins": { "namedPipe": {}, "api": { "bindPort": 7777 } },
        "enrichers": { "period": period, enricher: {} },
        "backends": {
            "firefly": firefly,
            "marker": { "targetInterfaces": [DEVICE], "countReceived": "all" },
        },
    });
    (Daemon::start_in(&pair.here, config), sink)
}

/// The next firefly's state and all of it.
fn next(sink: &UdpSocket) -> (String, Value) {
    let mut buffer = [0; 4000];
    let size = receive(sink, &mut buffer).expect("a firefly");
    let start = buffer.iter().position(|octet| *octet == b'{').expect("a document");
    let firefly: Value = serde_json::from_slice(&buffer[start..size]).expect("JSON");
    (firefly["flow-lifecycle"]["state"].as_str().expect("a state").to_owned(), firefly)
}

fn carry(from: &mut TcpStream, to: &mut TcpStream, octets: usize) {
    std::thread::scope(|scope| {
        scope.spawn(|| from.write_all(&vec![7; octets]).expect("to send"));
        to.read_exact(&mut vec![0; octets]).expect("to receive");
    });
}

fn flow(pair: &Pair, daemon: &Daemon) -> Value {
    pair.here.enter(|| daemon.get("/flows")).1["flows"][0].clone()
}

/// Usage is as the source counts, and what TCP knows is of the socket here.
#[test]
fn what_a_flow_from_the_other_host_carries_is_measured_here() {
    if skip_unless_root() {
        return;
    }
    for (enricher, period) in [("netlink", 100), ("netlink", 3_600_000), ("skops", 100)] {
        let pair = Pair::new();
        let (mut daemon, sink) = daemon(&pair, enricher, period);
        let (from, to) = (v6(THERE, 40_000), v6(HERE, 1094));
        let mut connection = Connection::open((&pair.there, from), (&pair.here, to), 0);
        let Connection { client, server } = &mut connection;
        let mut told = Vec::new();
        for (tag, there, back) in [(ATLAS, 300_000, 500), (ATLAS_OUTPUT, 40, 7)] {
            daemon.write(&line(true, "tcp", from, to, tag));
            wait_for("the flow", || {
                (flow(&pair, &daemon)["activity"] == tag.activity).then_some(())
            });
            carry(client, server, there);
            carry(server, client, back);
            let usage = json!({ "sent": there, "received": back });
            wait_for("a sample", || {
                (period > 1000 || flow(&pair, &daemon)["usage"] == usage).then_some(())
            });
            // Nothing of it leaves here with a mark, and so nothing is counted.
            assert!(flow(&pair, &daemon)["marked"].is_null());
            told.push(usage);
        }
        // The other way on the same connection, as when the next request is an upload.
        daemon.write(&line(false, "tcp", from, to, ATLAS));
        daemon.write(&line(true, "tcp", to, from, ATLAS));
        wait_for("the flow", || flow(&pair, &daemon)["marked"].is_object().then_some(()));
        carry(server, client, 6_000);
        daemon.write(&line(false, "tcp", to, from, ATLAS));
        told.push(json!({ "sent": 6_000, "received": 0 }));
        for (index, usage) in told.iter().enumerate() {
            let (state, _) = next(&sink);
            assert_eq!(state, "start");
            let (state, end) = next(&sink);
            assert_eq!((&*state, &end["usage"]), ("end", usage), "{index}: {end}");
            let source = if index < 2 { THERE } else { HERE };
            assert_eq!(end["flow-id"]["src-ip"], json!(source), "{end}");
            // Who has sent most of it is this socket's other end, and then this one.
            assert!(end["netlink"]["rtt"].as_f64() > Some(0.0), "{end}");
            let sent = end["netlink"]["tcpInfo"]["bytesSent"].as_u64().expect("a number");
            assert_eq!(sent >= 6_000, index == 2, "{end}");
        }
        daemon.stop(&[]);
    }
}

/// The marker sees nothing of it, and so does not say that it has carried nothing.
#[test]
fn datagrams_from_the_other_host_have_no_usage_rather_than_none_carried() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let (mut daemon, sink) = daemon(&pair, "netlink", 100);
    let (from, to) = (v6(THERE, 40_000), v6(HERE, 5001));
    let (there, here) = (udp(&pair.there, from, to), udp(&pair.here, to, from));
    daemon.write(&line(true, "udp", from, to, ATLAS));
    assert_eq!(next(&sink).0, "start");
    there.send(&[7; 900]).expect("to send");
    here.recv(&mut [0; 1000]).expect("a datagram");
    daemon.write(&line(false, "udp", from, to, ATLAS));
    let (state, end) = next(&sink);
    assert_eq!((&*state, &end["usage"]), ("end", &Value::Null), "{end}");
    daemon.stop(&[]);
}

/// Flows on one connection, one after the other.
#[test]
fn what_is_measured_and_what_the_marker_counts_begin_anew_together() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let (mut daemon, _sink) = daemon(&pair, "netlink", 100);
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 1094));
    let mut connection = Connection::open((&pair.here, from), (&pair.there, to), 0);
    let Connection { client, server } = &mut connection;
    for tag in [ATLAS, ATLAS_OUTPUT, CMS] {
        daemon.write(&line(true, "tcp", from, to, tag));
        wait_for("the flow", || (flow(&pair, &daemon)["activity"] == tag.activity).then_some(()));
        let before = retransmitted(&pair.here);
        // The marker hears of it behind the dispatcher.
        let mut sent = 0_u64;
        let marked = wait_for("the marker", || {
            carry(client, server, 1);
            sent += 1;
            flow(&pair, &daemon)["marked"]["octets"].as_u64().filter(|marked| *marked > 0)
        });
        carry(client, server, 50_000);
        sent += 50_000;
        wait_for("a sample", || (flow(&pair, &daemon)["usage"]["sent"] == sent).then_some(()));
        let octets = flow(&pair, &daemon)["marked"]["octets"].as_u64().expect("a number");
        // What is sent again counts again.
        let most = marked + 50_000 + 65_535 * (retransmitted(&pair.here) - before);
        assert!((marked + 50_000..=most).contains(&octets), "{octets} with {marked} before");
        if tag.activity == ATLAS_OUTPUT.activity {
            daemon.write(&line(false, "tcp", from, to, tag));
        }
    }
    daemon.stop(&[]);
}
