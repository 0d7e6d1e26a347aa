//! Enricher skops with a real iperf3, beside somebody else's sock_ops program, and what it
//! says where it cannot be.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{json, Value};

use super::connections::{foreign, Group};
use super::counts::retransmitted;
use super::iperf3::{Server, PORT};
use super::rig::{line, ATLAS};
use crate::common::{
    free_port, glowd_words, receive, skip_unless_root, v6, wait_for, Connection, Daemon, Pair,
    DEVICE, HERE, THERE, UNIT,
};

/// Four streams between one pair of hosts, each with its octets to the last one, as the
/// unit's user. A flow that ends with its connection has the numbers of that.
#[test]
fn each_stream_is_measured_to_its_end() {
    if skip_unless_root() {
        return;
    }
    let (pair, group) = (Pair::new(), Group::new());
    let (object, _link) = foreign(&group);
    let counts = object.per_cpu_array("calls").expect("its map");
    let before = group.programs();
    let plugin = json!({ "experimentIDs": [2], "activityIDs": [15], "minDestinationPort": PORT,
        "cgroupPath": group.0 });
    let config = json!({
        "logLevel": "debug",
        "plugins": { "iperf3": plugin },
        "enrichers": { "period": 500, "skops": { "cgroupPath": group.0, "debugMode": true } },
        "backends": { "marker": { "targetInterfaces": [DEVICE] } },
    });
    let daemon = Daemon::try_start_as(config, Some(&pair.here), Some(UNIT));
    let mut daemon = daemon.unwrap_or_else(|failure| panic!("{failure:#?}"));
    assert_eq!(group.programs().len(), before.len() + 2);
    let report = {
        let _server = Server::start(&pair.there);
        let words = format!("exec iperf3 -J -6 -c {THERE} -p {PORT} -P 4 -n 8M -b 20M");
        let output = pair.here.enter(|| group.command(&words).output()).expect("iperf3");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice::<Value>(&output.stdout).expect("a report")
    };
    let octets = |line: &str, behind: &str| -> u64 {
        let before = line.split(behind).next().unwrap_or_default();
        before.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number")
    };
    let ends = || -> Vec<String> {
        let lines = daemon.lines().into_iter();
        lines.filter(|line| line.contains("iperf3: end tcp")).collect()
    };
    wait_for("five ends", || (ends().len() == 5).then_some(()));
    let mut sent: Vec<u64> = ends().iter().map(|line| octets(line, " octets sent")).collect();
    sent.sort_unstable();
    let streams = report["end"]["streams"].as_array().expect("streams").iter();
    // Each begins with 36 letters and a NUL that say which test it belongs to.
    let mut expected: Vec<_> =
        streams.map(|stream| stream["sender"]["bytes"].as_u64().expect("octets") + 37).collect();
    expected.sort_unstable();
    assert_eq!(sent[1..], expected, "and the least is the control connection");
    let log = daemon.lines();
    assert!(log.iter().any(|line| line.contains("enrichers.skops: tcp") && line.contains("rtt")));
    // The other program's flags were left as they were: each connection still has them.
    assert_eq!(counts.sums().expect("its counts"), [5, 5]);
    daemon.end_by(Signal::SIGKILL);
    wait_for("the programs to go", || (group.programs() == before).then_some(()));
}

/// As flowd-go's; `usage` and what the collector reads are in each of them.
#[test]
fn ongoing_fireflies_have_a_block_of_their_own() {
    if skip_unless_root() {
        return;
    }
    let sink = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = sink.local_addr().expect("an address").to_string();
    let mut daemon = Daemon::start(json!({
        "plugins": { "namedPipe": {}, "api": { "bindPort": free_port() } },
        "enrichers": { "period": 100, "skops": {} },
        "backends": { "firefly": { "sendToDestination": false, "collectors": [address],
                                   "enrich": true, "ongoingPeriod": 1 } },
    }));
    let listener = TcpListener::bind("127.0.0.1:0").expect("to listen");
    let mut near = TcpStream::connect(listener.local_addr().expect("it")).expect("to connect");
    let mut far = listener.accept().expect("a connection").0;
    let ports = [near.local_addr(), near.peer_addr()].map(|end| end.expect("an end").port());
    let line = |state| format!("{state} tcp 127.0.0.1 {} 127.0.0.1 {} 2 16\n", ports[0], ports[1]);
    near.write_all(&[1; 5000]).expect("to send");
    far.read_exact(&mut [0; 5000]).expect("to receive");
    daemon.write(&line("start"));
    let mut buffer = [0; 2000];
    let mut next = |state: &str| loop {
        let size = receive(&sink, &mut buffer).expect("a firefly");
        let text = String::from_utf8_lossy(&buffer[..size]).into_owned();
        let document: Value =
            serde_json::from_str(&text[text.find('{').expect("a document")..]).expect("JSON");
        if document["flow-lifecycle"]["state"] == state {
            return document;
        }
    };
    // Those before the first sample have nothing to say.
    let ongoing =
        wait_for("a sample", || Some(next("ongoing")).filter(|found| found["skOps"].is_object()));
    let rtt = ongoing["skOps"]["tcpInfo"]["rtt"].as_f64().expect("microseconds");
    assert_eq!(ongoing["netlink"], json!({ "rtt": ongoing["skOps"]["rtt"] }));
    assert!((ongoing["skOps"]["rtt"].as_f64().expect("ms") * 1000.0 - rtt).abs() < 0.5);
    assert_eq!(ongoing["usage"], json!({ "sent": 5000, "received": 0 }));
    daemon.write(&line("end"));
    let end = next("end");
    assert!(end["netlink"]["rtt"].is_number() && end["skOps"].is_null(), "{end}");
    assert_eq!(end["usage"], json!({ "sent": 5000, "received": 0 }));
    daemon.stop(&[]);
}

/// A connection that is older than the daemon, and one that is over in a moment.
#[test]
fn what_it_does_not_see_the_marker_counts() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let ends = |port| (v6(HERE, port), v6(THERE, 1094));
    let open = |(from, to)| Connection::open((&pair.here, from), (&pair.there, to), 0);
    let old = open(ends(40_000));
    let mut daemon = Daemon::start_in(
        &pair.here,
        json!({
            "plugins": { "namedPipe": {}, "api": { "bindPort": 7777 } },
            "enrichers": { "skops": {} },
            "backends": { "marker": { "targetInterfaces": [DEVICE] } },
        }),
    );
    for (port, old) in [(40_000, Some(old)), (40_001, None)] {
        let (from, to) = ends(port);
        let change = |is_start| line(is_start, "tcp", from, to, ATLAS);
        daemon.write(&change(true));
        wait_for("the flow", || {
            let (_, answer) = pair.here.enter(|| daemon.get("/flows"));
            answer["flows"][0]["marked"].is_object().then_some(())
        });
        daemon.wait_for_marker();
        let Connection { mut client, mut server } = old.unwrap_or_else(|| open((from, to)));
        client.write_all(&[1; 3000]).expect("to send");
        server.read_exact(&mut [0; 3000]).expect("what was sent");
        server.write_all(&[1; 70]).expect("to answer");
        client.read_exact(&mut [0; 70]).expect("the answer");
        drop((client, server));
        daemon.write(&change(false));
        let said = daemon.wait_for_line(&format!("end tcp {from}"));
        let (_, over) = said.split_once(" over, ").expect("the figures");
        let mut figures = over.split(' ').filter_map(|word| word.parse::<u64>().ok());
        for (octets, host) in [(3000, &pair.here), (70, &pair.there)] {
            let found = figures.next().expect("a figure");
            // What is sent again counts again.
            let most = octets + 65_535 * retransmitted(host);
            assert!((octets..=most).contains(&found), "{said}");
        }
    }
    daemon.stop(&[]);
}

#[test]
fn what_is_missing_is_said() {
    if skip_unless_root() {
        return;
    }
    let config = |skops: Value| {
        json!({ "plugins": { "namedPipe": {} }, "enrichers": { "skops": skops },
                "backends": { "firefly": {} } })
    };
    let failure = Daemon::try_start(config(json!({ "cgroupPath": "/proc" })), None);
    let failure = failure.err().expect("it does not start");
    assert_eq!(failure.status.code(), Some(71), "{}", failure.log);
    assert!(failure.log.contains("enrichers.skops: measuring by eBPF takes"), "{}", failure.log);
    assert!(failure.log.contains("control group \"/proc\""), "{}", failure.log);
    // Where cgroup2 is not mounted.
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("conf.json");
    let mut config = config(json!({}));
    config["plugins"]["namedPipe"]["pipePath"] = json!(dir.path().join("np"));
    config["pidPath"] = json!("");
    std::fs::write(&file, config.to_string()).expect("to write the configuration");
    let script = "umount -l -a -t cgroup2; exec \"$@\" run --conf \"$0\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-c", script]).arg(&file).args(glowd_words());
    let output = command.output().expect("unshare");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(71), "{log}");
    assert!(log.contains("enrichers.skops: ") && log.contains("cannot find cgroup2"), "{log}");
}
