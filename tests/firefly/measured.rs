//! What is measured of a real transfer, from the socket to the collector's own figures
//! (spec section 3.8).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use glowd::flow::Timestamp;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{json, Value as Json};

use super::collector::{collected, Stored};
use super::valid;
use crate::common::{free_port, receive, wait_for, Daemon, PATIENCE};

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

/// The kernel's own figures, while the flow is open and at its end.
#[test]
fn usage_is_known_to_api_firefly_and_log() {
    let mut rig = Rig::new(json!({}));
    rig.tell("start");
    let start = rig.next();
    assert_eq!(start.document.get("usage"), None);
    rig.send(20_000_000);
    (&rig.far).write_all(&[1; 300]).unwrap();
    (&rig.near).read_exact(&mut [0; 300]).unwrap();
    let usage = json!({ "received": 300, "sent": 20_000_000 });
    wait_for("the usage of the open flow", || {
        let flows = rig.daemon.get("/flows").1;
        (flows["flows"][0]["usage"] == usage).then_some(())
    });
    rig.send(1_000_000);
    rig.tell("end");
    let end = rig.next();
    assert_eq!(end.document["usage"], json!({ "received": 300, "sent": 21_000_000 }));
    rig.daemon.wait_for_line("over, 21000000 octets sent, 300 received");
    rig.daemon.stop(&[]);
}

/// The figures of the published dashboards, against what was sent and how long that took by
/// the clock of who sent it.
#[test]
fn dashboards_have_throughput_and_volume_of_a_transfer_within_2_percent() {
    const ANSWERED: usize = 30_000;
    // Long enough for the time that the lines of the pipe take, or it is done again.
    let mut least = Duration::from_secs(2);
    loop {
        let mut rig = Rig::new(json!({ "enrich": true }));
        let ends = (rig.near.local_addr().unwrap(), rig.near.peer_addr().unwrap());
        let begin = Instant::now();
        rig.tell("start");
        let start = rig.next();
        let started = begin.elapsed();
        let mut sent = 0;
        while begin.elapsed() < least {
            rig.send(5_000_000);
            sent += 5_000_000;
        }
        (&rig.far).write_all(&[1; ANSWERED]).unwrap();
        (&rig.near).read_exact(&mut [0; ANSWERED]).unwrap();
        let took = begin.elapsed();
        rig.tell("end");
        let end = rig.next();
        let doubt = started + (begin.elapsed() - took);
        rig.daemon.stop(&[]);
        if doubt > took / 100 {
            least *= 2;
            assert!(least < PATIENCE, "{doubt:?} of {took:?}");
            continue;
        }

        let near = |found: &Json, truth: f64| (found.as_f64().unwrap() / truth - 1.0).abs() < 0.02;
        let (event, seconds) = (&end.event, took.as_secs_f64());
        assert!(near(&event["throughput"], sent as f64 / seconds), "{sent} in {took:?}: {event}");
        assert!(near(&event["total_bytes"], (sent + ANSWERED) as f64), "{event}");
        assert!(near(&event["duration"], seconds), "{took:?}: {event}");
        // No octet is missing, nor one too many.
        let usage = json!({ "received": ANSWERED, "sent": sent });
        assert_eq!(event["values"]["usage"], usage);
        assert!(event["values"]["netlink"]["rtt"].as_f64() > Some(0.0), "{event}");

        let meta = |event: &Json| {
            let mut meta = event["meta"].clone();
            let state = meta["state"].take();
            let time = meta["syslog"]["timestamp"].take();
            assert!(time.as_str().is_some_and(|time| Timestamp::parse(time).is_some()));
            (meta, state)
        };
        let expected = json!({
            "src_ip": "::1", "src_port": ends.0.port(), "dst_ip": "::1", "dst_port": ends.1.port(),
            "protocol": "tcp", "ip_version": "ipv6", "state": null, "firefly_version": 1,
            "experiment_id": 2, "activity_id": 16, "experiment": "atlas",
            "activity": "Production Output",
            "application": concat!("glowd v", env!("CARGO_PKG_VERSION")),
            "id": format!("\"::1\"\"::1\"{}{}\"tcp\"", ends.0.port(), ends.1.port()),
            "syslog": {
                "timestamp": null, "version": "1", "hostname": end.host, "app_name": "glowd"
            },
        });
        assert_eq!(meta(event), (expected.clone(), json!("end")));
        assert_eq!(meta(&start.event), (expected, json!("start")));
        // Both are of one life, and what makes the rest is not there before the end.
        assert_eq!(start.event["start"], event["start"]);
        for key in ["end", "duration", "throughput", "total_bytes", "values"] {
            assert_eq!(start.event.get(key), None, "{key}");
            assert!(event.get(key).is_some(), "{key}");
        }
        break;
    }
}

/// The other host supplies the data: the collector turns the flow, not the numbers.
#[test]
fn a_download_has_its_supplier_as_source() {
    let mut rig = Rig::new(json!({}));
    rig.tell("start");
    let start = rig.next();
    std::mem::swap(&mut rig.near, &mut rig.far);
    rig.send(3_000_000);
    std::mem::swap(&mut rig.near, &mut rig.far);
    rig.tell("end");
    let end = rig.next();
    assert_eq!(end.event["values"]["usage"], json!({ "received": 3_000_000, "sent": 0 }));
    assert_eq!(end.event["total_bytes"], json!(3_000_000.0));
    let ports = |one: &Stored| {
        (one.event["meta"]["src_port"].clone(), one.event["meta"]["dst_port"].clone())
    };
    let (from, to) = (rig.near.local_addr().unwrap().port(), rig.far.local_addr().unwrap().port());
    assert_eq!(ports(&start), (json!(from), json!(to)));
    assert_eq!(ports(&end), (json!(to), json!(from)));
    assert_eq!(start.event["meta"]["id"], end.event["meta"]["id"]);
    rig.daemon.stop(&[]);
}

/// What a day carries does not fit 32 bits.
#[test]
fn usage_goes_on_past_2_to_the_32() {
    const SENT: usize = (1 << 32) + 70_001;
    let mut rig = Rig::new(json!({ "enrich": true }));
    rig.tell("start");
    rig.next();
    rig.send(SENT);
    wait_for("a sample", || {
        let flows = rig.daemon.get("/flows").1;
        (flows["flows"][0]["usage"]["sent"] == SENT).then_some(())
    });
    rig.tell("end");
    let end = rig.next();
    assert_eq!(end.document["usage"], json!({ "received": 0, "sent": SENT }));
    assert!(end.document["netlink"]["tcpInfo"]["bytesSent"].as_u64() >= Some(SENT as u64));
    assert_eq!(end.event["total_bytes"], json!(SENT as f64));
    rig.daemon.wait_for_line(&format!("over, {SENT} octets sent, 0 received"));
    rig.daemon.stop(&[]);
}

/// In which periods of 300 ms of its life a flow was said to go on.
#[derive(Default)]
struct Periods {
    last: u64,
    count: u64,
}

impl Periods {
    /// Takes note of another firefly, which is of a later period than those before.
    fn note(&mut self, document: &Json) {
        let lifecycle = &document["flow-lifecycle"];
        assert_eq!(lifecycle["state"], "ongoing");
        let time = |key: &str| Timestamp::parse(lifecycle[key].as_str().unwrap()).unwrap().0;
        let period = (time("current-time") - time("start-time")) / 300_000;
        assert!(period > self.last, "{lifecycle} after period {}", self.last);
        self.last = period;
        self.count += 1;
    }
}

/// Nothing measures them: UDP, and a connection of another host.
#[test]
fn flows_that_nobody_measures_say_every_period_that_they_go_on() {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut daemon = Daemon::start(json!({
        "plugins": { "namedPipe": {} },
        "backends": { "firefly": {
            "sendToDestination": false, "ongoingPeriod": 300,
            "collectors": [sink.local_addr().unwrap().to_string()] } },
    }));
    let flows = [("udp", "::1 1 ::1 1094"), ("tcp", "2001:db8::1 1 2001:db8::2 1094")];
    for (protocol, ends) in flows {
        daemon.write(&format!("start {protocol} {ends} 2 16\n"));
    }
    let next = || {
        let mut buffer = [0; 4000];
        let size = receive(&sink, &mut buffer).unwrap();
        valid(std::str::from_utf8(&buffer[..size]).unwrap())
    };
    let of =
        |document: &Json| flows.iter().position(|(p, _)| document["flow-id"]["protocol"] == *p);
    let mut periods = [Periods::default(), Periods::default()];
    while periods.iter().any(|periods| periods.count < 3) {
        let document = next();
        if document["flow-lifecycle"]["state"] != "start" {
            periods[of(&document).unwrap()].note(&document);
        }
    }
    for (protocol, ends) in flows {
        daemon.write(&format!("end {protocol} {ends} 2 16\n"));
    }
    let mut over = 0;
    while over < 2 {
        over += usize::from(next()["flow-lifecycle"]["state"] == "end");
    }
    daemon.stop(&[]);
}

#[test]
fn flows_that_go_on_say_so_every_period() {
    let mut rig = Rig::new(json!({ "ongoingPeriod": 300, "enrich": true }));
    rig.tell("start");
    assert_eq!(state(&rig.next()), "start");
    rig.send(1_000_000);
    let (mut sent, mut periods) = (0, Periods::default());
    while sent < 1_000_000 || periods.count < 4 {
        let ongoing = rig.next();
        periods.note(&ongoing.document);
        assert_eq!(ongoing.duration(), None, "it has no end");
        // Before the first sample nothing is known.
        let Some(usage) = ongoing.document.get("usage") else { continue };
        sent = usage["sent"].as_u64().unwrap();
        let netlink = &ongoing.document["netlink"];
        assert!(netlink["rtt"].as_f64().unwrap() > 0.0, "{netlink}");
        // With retransmissions, which usage is without.
        assert!(netlink["tcpInfo"]["bytesSent"].as_u64() >= Some(sent), "{netlink}");
    }
    assert_eq!(sent, 1_000_000);
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

/// What only this mode says is of the very socket, and known at its end.
#[test]
fn full_mode_says_what_the_socket_and_its_congestion_control_do() {
    let mut rig =
        Rig::new(json!({ "enrich": true, "enrichmentMode": "full", "ongoingPeriod": 100 }));
    let has_bbr = setsockopt(&rig.near, sockopt::TcpCongestion, &"bbr".into()).is_ok();
    let inode = std::fs::read_link(format!("/proc/self/fd/{}", rig.near.as_raw_fd())).unwrap();
    let inode = inode.to_str().unwrap().trim_matches(|c: char| !c.is_ascii_digit()).to_owned();
    rig.tell("start");
    rig.next();
    rig.send(5_000_000);
    // Those before the sample that is wanted know less.
    let ongoing = wait_for("a sample", || {
        let ongoing = rig.next();
        assert_eq!(state(&ongoing), "ongoing");
        (ongoing.document["usage"]["sent"] == 5_000_000).then_some(ongoing)
    });
    rig.tell("end");
    let end = loop {
        let next = rig.next();
        if state(&next) == "end" {
            break next;
        }
    };
    for told in [ongoing, end] {
        let netlink = &told.document["netlink"];
        assert_eq!(netlink["skBuff"]["iNode"].to_string(), inode, "{netlink}");
        assert!(netlink["tcpInfo"]["bytesRecv"].is_u64(), "{netlink}");
        assert!(netlink["skMemInfo"]["rcvBuff"].as_u64() > Some(0), "{netlink}");
        assert_eq!(netlink.get("bbr").is_some(), has_bbr, "{netlink}");
        if has_bbr {
            assert_eq!(netlink["cong"]["algorithm"], "bbr");
            assert!(netlink["bbr"]["bbrBW"].as_u64() > Some(0), "{netlink}");
        }
    }
    rig.daemon.stop(&[]);
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
