//! Fireflies of a flow of UDP that goes on, which no enricher measures: the marker counts.

use std::net::UdpSocket;

use serde_json::{json, Value};

use super::rig::{line, ATLAS};
use crate::common::{
    receive, skip_unless_root, udp, v6, wait_for, Daemon, Pair, DEVICE, HERE, THERE,
};

#[test]
fn datagrams_are_told_of_while_their_flow_goes_on() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let sink = pair.here.enter(|| UdpSocket::bind("127.0.0.1:0")).expect("a collector");
    let mut daemon = Daemon::start_in(
        &pair.here,
        json!({
            "plugins": { "namedPipe": {} },
            "backends": {
                "marker": { "targetInterfaces": [DEVICE] },
                "firefly": {
                    "sendToDestination": false, "ongoingPeriod": 200,
                    "collectors": [sink.local_addr().expect("its address").to_string()],
                },
            },
        }),
    );
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 5001));
    let (here, there) = (udp(&pair.here, from, to), udp(&pair.there, to, from));
    daemon.write(&line(true, "udp", from, to, ATLAS));
    let next = |state: &str| {
        let mut buffer = [0; 2000];
        let size = receive(&sink, &mut buffer).expect("a firefly");
        let text = String::from_utf8_lossy(&buffer[..size]).into_owned();
        let at = text.find('{').expect("a document");
        let document: Value = serde_json::from_str(&text[at..]).expect("JSON");
        (document["flow-lifecycle"]["state"] == state).then_some(document)
    };
    // Empty ones until the marker has it, in both directions.
    wait_for("an answer to be counted", || {
        here.send(b"").expect("to send");
        there.send(&[1; 7]).expect("to answer");
        next("ongoing").filter(|found| found["usage"]["received"].as_u64() > Some(0))
    });
    for _ in 0..100 {
        here.send(&[7; 300]).expect("to send");
    }
    let ongoing = wait_for("all to be told of", || {
        next("ongoing").filter(|found| found["usage"]["sent"] == 30_000)
    });
    assert_eq!(ongoing["usage"]["received"].as_u64().map(|octets| octets % 7), Some(0));
    assert_eq!(ongoing.get("netlink"), None);
    daemon.write(&line(false, "udp", from, to, ATLAS));
    let end = wait_for("the end", || next("end"));
    assert_eq!(end["usage"], ongoing["usage"]);
    daemon.stop(&[]);
}
