//! All parts at once under the unit's confinement: each does its work, and none complains.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use serde_json::{json, Value};

use crate::common::{receive, v6, wait_for, DEVICE, HERE, PATIENCE, THERE};
use crate::machine::{Machine, Probe};
use crate::rig::Strategy;

/// A transfer of a process inside: which one it is, its port on the other host, the octets
/// that it sends, the plugin that finds it, and the tag that it gets.
struct Transfer {
    name: &'static str,
    port: u16,
    octets: usize,
    plugin: &'static str,
    tag: (u64, u64),
    /// How it is started.
    by: &'static [&'static str],
}

/// One for each kind of rule, and one that the eBPF program of iperf3 reports.
const TRANSFERS: [Transfer; 4] = [
    Transfer {
        name: "user",
        port: 1094,
        octets: 5000,
        plugin: "netlink",
        tag: (2, 15),
        by: &["--uid=storage", "bash"],
    },
    Transfer {
        name: "cgroup",
        port: 1095,
        octets: 6000,
        plugin: "netlink",
        tag: (2, 16),
        by: &["--slice=transfers.slice", "bash"],
    },
    Transfer {
        name: "command",
        port: 1096,
        octets: 7000,
        plugin: "netlink",
        tag: (3, 15),
        by: &["transferd"],
    },
    Transfer {
        name: "iperf3",
        port: 5201,
        octets: 8000,
        plugin: "iperf3",
        tag: (3, 14),
        by: &["bash"],
    },
];

fn config(relay: &UdpSocket, collector: &UdpSocket) -> Value {
    let named = |socket: &UdpSocket| {
        json!([format!("collector.example.org:{}", socket.local_addr().expect("it").port())])
    };
    json!({
        "plugins": {
            "namedPipe": {},
            "api": {},
            "firefly": { "relay": named(relay) },
            "netlink": { "includePrivate": true, "period": 200, "rules": [
                { "user": "storage", "experiment": 2, "activity": 15 },
                { "cgroup": "/transfers.slice", "experiment": 2, "activity": 16 },
                { "command": "transferd", "experiment": 3, "activity": 15 }
            ] },
            "iperf3": { "minDestinationPort": 5201, "maxDestinationPort": 5201,
                        "experimentIDs": [3], "activityIDs": [14] },
            "perfsonar": { "experiment": 2, "activity": 15 }
        },
        "enrichers": { "period": 200, "netlink": {}, "skops": {} },
        "backends": {
            "marker": { "targetInterfaces": [DEVICE] },
            "firefly": { "sendToDestination": false, "collectors": named(collector),
                         "enrich": true, "enrichmentMode": "full", "ongoingPeriod": 500 },
            "prometheus": {}
        }
    })
}

/// A socket inside that waits for fireflies.
fn sink(machine: &Machine) -> UdpSocket {
    let sink = machine.pair.here.enter(|| UdpSocket::bind("[::1]:0")).expect("a socket");
    sink.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    sink
}

/// The next datagram: its JSON document.
fn next(sink: &UdpSocket) -> Value {
    let mut buffer = [0; 2000];
    let length = receive(sink, &mut buffer).expect("a firefly");
    let text = std::str::from_utf8(&buffer[..length]).expect("text");
    serde_json::from_str(&text[text.find('{').expect("a document")..]).expect("JSON")
}

/// What is open: the other end's port, who found it, the tag.
fn open(machine: &Machine) -> BTreeSet<(String, String, u64, u64)> {
    let answer = machine.get(7777, "/flows");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let body: Value = serde_json::from_str(body).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let number = |value: &Value| value.as_u64().expect("a number");
    let flows = body["flows"].as_array().expect("flows").iter();
    flows
        .map(|flow| {
            let tag = (number(&flow["experiment"]), number(&flow["activity"]));
            (text(&flow["dst"]), text(&flow["source"]), tag.0, tag.1)
        })
        .collect()
}

/// What the journal has at warning and above of the unit, systemd's own lines included.
fn complaints(machine: &Machine) -> String {
    machine.output(&["journalctl", "--sync"]);
    let words = ["journalctl", "-q", "-o", "cat", "-p", "warning", "-u", "glowd"];
    machine.run(&words)
}

#[test]
fn all_parts_work_in_the_unit_at_once() {
    let machine = Machine::boot();
    machine.run(&["useradd", "storage"]);
    // A process is called after its file.
    machine.run(&["cp", "/bin/bash", "/usr/local/bin/transferd"]);
    machine.run(&["systemctl", "start", "transfers.slice"]);
    machine.write("/etc/hosts", "127.0.0.1 localhost\n::1 collector.example.org\n");
    let (relay, collector) = (sink(&machine), sink(&machine));
    machine.configure("conf", &config(&relay, &collector));
    machine.run(&["systemctl", "start", "glowd"]);
    assert_eq!(complaints(&machine), "");

    // perfsonar: what is no flow is marked too.
    let capture = machine.capture();
    let mut probe = Probe::new(&machine, &capture, Strategy::Label);
    probe.await_marked(true);

    // Rules by user, control group and command; reports of the kernel.
    let mut streams: Vec<TcpStream> = TRANSFERS.iter().map(|one| start(&machine, one)).collect();
    let expected: BTreeSet<_> = TRANSFERS
        .iter()
        .map(|one| (format!("[{THERE}]:{}", one.port), one.plugin.to_owned(), one.tag.0, one.tag.1))
        .collect();
    let mut found = BTreeSet::new();
    wait_for("the flows", || {
        found = open(&machine);
        (found.is_superset(&expected)).then_some(())
    });
    assert_eq!(found, expected);

    // A firefly is taken, and passed on to a collector by its name.
    let told = json!({
        "version": 1,
        "flow-lifecycle": {"state": "start", "start-time": "2026-01-02T03:04:05Z"},
        "flow-id": {"afi": "ipv6", "src-ip": HERE, "dst-ip": THERE, "protocol": "tcp",
                    "src-port": 50_000, "dst-port": 1099},
        "context": {"experiment-id": 2, "activity-id": 16}
    });
    let sender = machine.pair.here.enter(|| UdpSocket::bind("127.0.0.1:0")).expect("a socket");
    sender.send_to(told.to_string().as_bytes(), "127.0.0.1:10514").expect("to send");
    assert_eq!(next(&relay), told);

    // Both enrichers measure, and a scrape shows all of it.
    let samples = [
        "glowd_flows_open 5".to_owned(),
        "glowd_events_total{plugin=\"netlink\",result=\"started\"} 3".to_owned(),
        "glowd_events_total{plugin=\"iperf3\",result=\"started\"} 1".to_owned(),
        "glowd_events_total{plugin=\"firefly\",result=\"started\"} 1".to_owned(),
        "glowd_relayed_fireflies_total{result=\"sent\"} 1".to_owned(),
        format!("glowd_interface_attached{{interface=\"{DEVICE}\"}} 1"),
    ];
    wait_for("a scrape with everything", || {
        let text = machine.get(9817, "/metrics");
        let has = |line: &String| text.lines().any(|found| found == line);
        let measured = |enricher: &str| {
            let name = format!("glowd_enricher_samples_total{{enricher=\"{enricher}\"}} ");
            text.lines().any(|line| line.strip_prefix(&name).is_some_and(|count| count != "0"))
        };
        let series = text.lines().filter(|line| line.starts_with("flow_tcp_rtt{")).count();
        let all = samples.iter().all(has) && measured("netlink") && measured("skops");
        (all && series == TRANSFERS.len()).then_some(())
    });

    // Each end has what its connection has carried.
    for stream in &mut streams {
        stream.write_all(b"\n").expect("to let it end");
    }
    let mut ends = BTreeSet::new();
    while ends.len() < TRANSFERS.len() {
        let document = next(&collector);
        if document["flow-lifecycle"]["state"] == "end" {
            assert!(document["netlink"]["rtt"].is_number(), "{document}");
            let number = |part: &str, key: &str| document[part][key].as_u64().expect("a number");
            ends.insert((
                number("flow-id", "dst-port"),
                number("usage", "sent"),
                number("usage", "received"),
            ));
        }
    }
    let carried = TRANSFERS.iter().map(|one| (one.port.into(), one.octets as u64, 1));
    assert_eq!(ends, carried.collect());
    let journal = machine.journal("glowd");
    assert!(!journal.contains("not at once"), "{journal}");
    assert_eq!(complaints(&machine), "");
    // Where there is one it is seen.
    assert!(machine.write_as("root", "/run/glowd/np", "nonsense"));
    let told = wait_for("a complaint", || Some(complaints(&machine)).filter(|it| !it.is_empty()));
    assert_eq!(told.lines().count(), 1, "{told}");
    machine.run(&["systemctl", "stop", "glowd"]);
    assert_eq!(complaints(&machine), told);
    assert_eq!(machine.property("glowd", "Result"), "success");
    machine.assert_nothing_is_left("/run/glowd");
}

/// Has a process inside connect, send and wait for a line; the other end of its connection,
/// which has received all of it.
fn start(machine: &Machine, transfer: &Transfer) -> TcpStream {
    let Transfer { name, port, octets, by, .. } = transfer;
    let to = v6(THERE, *port);
    let listener = machine.pair.there.enter(|| TcpListener::bind(to)).expect("to listen");
    let unit = format!("--unit=by-{name}");
    let script = format!(
        "exec 3<>/dev/tcp/{THERE}/{port}; head -c {octets} /dev/zero >&3; read -r line <&3"
    );
    let mut words = vec!["systemd-run", "--quiet", "--collect", &unit];
    words.extend(*by);
    words.extend(["-c", &script]);
    machine.run(&words);
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.read_exact(&mut vec![0; *octets]).expect("all that it sends");
    stream
}
