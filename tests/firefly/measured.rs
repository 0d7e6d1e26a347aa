//! What is measured of a real transfer, from the socket to the collector's own figures
//! (spec section 3.8).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use serde_json::{json, Value as Json};

use super::{collected, valid, Stored};
use crate::common::{free_port, receive, wait_for, Daemon};

/// A daemon that measures, the pipe lines of a connection, and where its fireflies go.
struct Rig {
    daemon: Daemon,
    sink: UdpSocket,
    near: TcpStream,
    far: TcpStream,
}

impl Rig {
    fn new(mut firefly: Json) -> Self {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        firefly["sendToDestination"] = json!(false);
        firefly["collectors"] = json!([sink.local_addr().unwrap().to_string()]);
        let daemon = Daemon::start(json!({
            "logLevel": "debug",
            "plugins": { "namedPipe": {}, "api": { "bindPort": free_port() } },
            "enrichers": { "period": 100, "netlink": {} },
            "backends": { "firefly": firefly },
        }));
        Rig { daemon, sink, near, far }
    }

    fn tell(&mut self, state: &str) {
        let port = |end: std::net::SocketAddr| end.port();
        let ports = (port(self.near.local_addr().unwrap()), port(self.near.peer_addr().unwrap()));
        self.daemon.write(&format!("{state} tcp ::1 {} ::1 {} 2 16\n", ports.0, ports.1));
    }

    /// The next firefly as the collector has it, schema and length proved.
    fn next(&self) -> Stored {
        let mut buffer = [0; 4000];
        let size = receive(&self.sink, &mut buffer).unwrap();
        let datagram = std::str::from_utf8(&buffer[..size]).unwrap();
        valid(datagram);
        collected(datagram).unwrap_or_else(|| panic!("{datagram}"))
    }

    fn send(&mut self, octets: usize) {
        let block = vec![7; 64 * 1024];
        let mut left = octets;
        let far = &mut self.far;
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut buffer = vec![0; 256 * 1024];
                let mut got = 0;
                while got < octets {
                    got += far.read(&mut buffer).unwrap();
                }
            });
            while left > 0 {
                let part = left.min(block.len());
                self.near.write_all(&block[..part]).unwrap();
                left -= part;
            }
            reader.join().unwrap();
        });
    }
}

fn state(stored: &Stored) -> &str {
    stored.document["flow-lifecycle"]["state"].as_str().unwrap()
}

/// With both numbers of usage the collector computes throughput and total_bytes.
#[test]
fn the_collector_has_the_throughput_of_a_transfer() {
    let mut rig = Rig::new(json!({}));
    rig.tell("start");
    let start = rig.next();
    assert_eq!(start.document.get("usage"), None);
    rig.send(20_000_000);
    (&rig.far).write_all(&[1; 300]).unwrap();
    (&rig.near).read_exact(&mut [0; 300]).unwrap();
    // The API has it while the flow is open.
    let usage = json!({ "received": 300, "sent": 20_000_000 });
    wait_for("the usage of the open flow", || {
        let flows = rig.daemon.get("/flows").1;
        (flows["flows"][0]["usage"] == usage).then_some(())
    });
    rig.send(1_000_000);
    rig.tell("end");
    let end = rig.next();
    assert_eq!(state(&end), "end");
    let part = |key: &str| end.document["usage"][key].as_u64().unwrap();
    let (received, sent) = (part("received"), part("sent"));
    assert_eq!((received, sent), (300, 21_000_000));
    let duration = end.duration.unwrap();
    let throughput = received.max(sent) as f64 / duration;
    let truth = 21_000_000.0 / duration;
    assert!((throughput / truth - 1.0).abs() < 0.02);
    rig.daemon.wait_for_line("over, 21000000 octets sent, 300 received");
    rig.daemon.stop(&[]);
}

#[test]
fn flows_that_go_on_say_so_every_period() {
    let mut rig = Rig::new(json!({ "ongoingPeriod": 300, "enrich": true }));
    rig.tell("start");
    assert_eq!(state(&rig.next()), "start");
    rig.send(1_000_000);
    let (mut sent, mut times) = (0, Vec::new());
    while sent < 1_000_000 || times.len() < 3 {
        let ongoing = rig.next();
        assert_eq!(state(&ongoing), "ongoing");
        assert_eq!(ongoing.duration, None, "it has no end");
        sent = ongoing.document["usage"]["sent"].as_u64().unwrap();
        let lifecycle = &ongoing.document["flow-lifecycle"];
        times.push(lifecycle["current-time"].as_str().unwrap().to_owned());
        let netlink = &ongoing.document["netlink"];
        assert!(netlink["rtt"].as_f64().unwrap() > 0.0, "{netlink}");
        // With retransmissions, which usage is without.
        assert!(netlink["tcpInfo"]["bytesSent"].as_u64() >= Some(sent), "{netlink}");
    }
    assert_eq!(sent, 1_000_000);
    times.dedup();
    assert!(times.len() >= 3, "{times:?}");
    rig.tell("end");
    while state(&rig.next()) != "end" {}
    rig.daemon.stop(&[]);
}

/// Whatever the mode, a datagram is short and as the schema says ([`Rig::next`]).
#[test]
fn every_mode_says_the_round_trip_time_in_ms() {
    for mode in ["lean", "compatible", "full", ""] {
        let mut rig = Rig::new(json!({ "enrich": true, "enrichmentMode": mode }));
        rig.tell("start");
        rig.next();
        rig.send(5_000_000);
        rig.tell("end");
        let end = rig.next();
        let netlink = &end.document["netlink"];
        assert!(netlink["rtt"].as_f64().is_some_and(|rtt| rtt > 0.0), "{mode}: {netlink}");
        assert_eq!(netlink.get("tcpInfo").is_some(), mode != "compatible", "{mode}: {netlink}");
        rig.daemon.stop(&[]);
    }
}

/// The socket is gone when the flow ends: the last sample serves.
#[test]
fn the_last_sample_outlives_the_socket() {
    let mut rig = Rig::new(json!({}));
    rig.tell("start");
    rig.next();
    rig.send(70_000);
    wait_for("a sample", || {
        let flows = rig.daemon.get("/flows").1;
        (flows["flows"][0]["usage"]["sent"] == 70_000).then_some(())
    });
    let line = {
        let port = |end: std::net::SocketAddr| end.port();
        let ports = (port(rig.near.local_addr().unwrap()), port(rig.near.peer_addr().unwrap()));
        format!("end tcp ::1 {} ::1 {} 2 16\n", ports.0, ports.1)
    };
    let Rig { mut daemon, sink, near, far } = rig;
    drop((far, near));
    daemon.write(&line);
    let mut buffer = [0; 4000];
    let size = receive(&sink, &mut buffer).unwrap();
    let end = valid(std::str::from_utf8(&buffer[..size]).unwrap());
    assert_eq!(end["usage"]["sent"], 70_000);
    daemon.stop(&[]);
}
