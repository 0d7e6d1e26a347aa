//! Usage that fireflies tell, against what is measured: the newer counts, and what comes with the
//! end.

use std::net::{TcpListener, UdpSocket};

use serde_json::{json, Value as Json};

use super::usage::{daemon_with, next, Stream};
use crate::common::{free_port, wait_for, Daemon};

struct Rig {
    daemon: Daemon,
    sink: UdpSocket,
    sender: UdpSocket,
    stream: Stream,
}

impl Rig {
    fn new(period: u64, firefly: Json) -> Self {
        let port = free_port();
        // As much as everybody may have.
        let plugin = json!({ "firefly": { "bindPort": port, "receiveBuffer": 65_536 } });
        let enrichers = json!({ "period": period, "netlink": {} });
        let (daemon, sink) = daemon_with(plugin, enrichers, firefly);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(("127.0.0.1", port)).unwrap();
        let stream = Stream::new(&TcpListener::bind("[::1]:0").unwrap());
        Rig { daemon, sink, sender, stream }
    }

    /// Sends a firefly of the flow, as XRootD does.
    fn tell(&self, state: &str, usage: &Json) {
        let words: Vec<&str> = self.stream.flow.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let mut lifecycle = json!({ "state": state, "start-time": "2024-01-01T00:00:00Z" });
        if state == "end" {
            lifecycle["end-time"] = json!("2030-01-01T00:00:00Z");
        }
        let firefly = json!({
            "version": 1,
            "flow-lifecycle": lifecycle,
            "flow-id": {
                "afi": "ipv6", "src-ip": words[1], "dst-ip": words[3], "protocol": "tcp",
                "src-port": number(2), "dst-port": number(4),
            },
            "context": { "experiment-id": 2, "activity-id": 16 },
            "usage": usage,
        });
        self.sender.send(firefly.to_string().as_bytes()).unwrap();
    }

    fn is(&self, usage: &Json) {
        let now = || self.daemon.get("/flows").1["flows"][0]["usage"].clone();
        wait_for("that usage", || (now() == *usage).then_some(()));
    }

    /// The next firefly's usage, which is of that state.
    fn said(&self, state: &str) -> Json {
        let firefly = next(&self.sink);
        assert_eq!(firefly["flow-lifecycle"]["state"], state, "{firefly}");
        firefly["usage"].clone()
    }
}

fn usage(sent: u64, received: u64) -> Json {
    json!({ "sent": sent, "received": received })
}

/// As XRootD has it in each start, where there is nothing to tell yet.
#[test]
fn usage_of_a_start_is_not_that_of_the_flow() {
    let mut rig = Rig::new(100, json!({ "ongoingPeriod": 1 }));
    rig.tell("start", &usage(0, 0));
    assert_eq!(rig.said("start"), Json::Null);
    rig.stream.carry(500_000, 700);
    let measured = usage(500_000, 700);
    rig.is(&measured);
    // One may have been on its way.
    wait_for("one that tells it", || (rig.said("ongoing") == measured).then_some(()));
    assert_eq!(rig.said("ongoing"), measured);
    let end = format!("end {}\n", rig.stream.flow);
    rig.daemon.write(&end);
    let told = wait_for("the end", || {
        let firefly = next(&rig.sink);
        let is_end = firefly["flow-lifecycle"]["state"] == "end";
        is_end.then(|| firefly["usage"].clone())
    });
    assert_eq!(told, measured);
    rig.daemon.stop(&[]);
}

/// No sample is taken but the last look.
#[test]
fn what_was_told_counts_while_it_is_newer_and_with_the_end() {
    for at_the_end in [false, true] {
        let mut rig = Rig::new(3_600_000, json!({}));
        rig.tell("start", &usage(0, 0));
        rig.said("start");
        rig.is(&usage(0, 0));
        rig.stream.carry(4_000, 10);
        rig.tell("ongoing", &usage(3_999, 9));
        rig.is(&usage(3_999, 9));
        if at_the_end {
            // It counts what the flow had, and other requests may have had the rest.
            rig.tell("end", &usage(3_000, 8));
            assert_eq!(rig.said("end"), usage(3_000, 8));
        } else {
            let end = format!("end {}\n", rig.stream.flow);
            rig.daemon.write(&end);
            assert_eq!(rig.said("end"), usage(4_000, 10));
        }
        rig.daemon.stop(&[]);
    }
}
