//! Fireflies on the wire, against schema and collector.

#![allow(clippy::unwrap_used)] // the helpers are tests too

mod collector;
mod measured;
mod shared;
mod told;
mod usage;

use std::net::UdpSocket;
use std::sync::LazyLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use glowd::config::{Kind, Section, Value};
use glowd::dispatcher::{Dispatcher, Inlet};
use glowd::entropy::EntropyKey;
use glowd::firefly::{Encoder, Stage, MAX_LEN};
use glowd::flow::{Flow, FlowEvent, FlowId, FlowState, Protocol, Tag, Timestamp};
use glowd::part::Context;
use serde_json::Value as Json;

use collector::{collected, Stored};

use crate::common::{free_port, PATIENCE};

use FlowState::{End, Start};

pub(crate) static SCHEMA: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
    let schema = serde_json::from_str(include_str!("data/firefly.schema.json")).unwrap();
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
});

/// The document of a datagram, which is proved to be as the schema says.
fn valid(datagram: &str) -> Json {
    assert!(datagram.len() <= MAX_LEN, "{datagram}");
    let start = datagram.find('{').unwrap();
    let document = serde_json::from_str(&datagram[start..]).unwrap();
    if let Err(error) = SCHEMA.validate(&document) {
        panic!("{error}: {datagram}");
    }
    document
}

/// The firefly backend behind a dispatcher.
struct Rig {
    inlet: Option<Inlet>,
    threads: Vec<JoinHandle<()>>,
}

impl Rig {
    /// Configured by its defaults, but for `values`.
    fn new(values: &[(&'static str, Value)]) -> Self {
        let spec = glowd::backends::ALL.iter().find(|spec| spec.name == "firefly").unwrap();
        let section = Section::new("backends.firefly", section(values));
        assert_eq!((spec.check)(&section), Vec::<String>::new());
        let backend = (spec.build)(&section, &Context::new(100)).unwrap();
        let (mut dispatcher, inlet) = Dispatcher::new(100, EntropyKey::of_this_boot());
        let queue = dispatcher.attach("firefly");
        let sink = thread::spawn(move || backend.run(queue).unwrap());
        let hub = thread::spawn(move || dispatcher.run());
        Rig { inlet: Some(inlet), threads: vec![hub, sink] }
    }

    fn tell(&self, events: Vec<FlowEvent>) {
        self.inlet.as_ref().unwrap().send_all(events).unwrap();
    }

    /// Stops it in order, and says how long that took.
    fn stop(mut self) -> Duration {
        let since = Instant::now();
        self.inlet = None;
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        since.elapsed()
    }
}

/// All values of the section: the defaults, but for `values`.
fn section(values: &[(&'static str, Value)]) -> Vec<(&'static str, Value)> {
    let spec = glowd::backends::ALL.iter().find(|spec| spec.name == "firefly").unwrap();
    let default = |key: &glowd::config::Key| {
        let default: Json = serde_json::from_str(key.default).unwrap();
        match key.kind {
            Kind::Bool => Value::Bool(default.as_bool().unwrap()),
            Kind::Int { .. } => Value::Int(default.as_i64().unwrap()),
            Kind::Text | Kind::Choice(_) => Value::Text(default.as_str().unwrap().into()),
            Kind::List => Value::List(serde_json::from_value(default).unwrap()),
            Kind::Section(_) => Value::Section(None),
            _ => panic!("{} is of another kind", key.name),
        }
    };
    let value = |key: &glowd::config::Key| {
        let given = values.iter().find(|(name, _)| *name == key.name);
        (key.name, given.map_or_else(|| default(key), |(_, value)| value.clone()))
    };
    spec.keys.iter().map(value).collect()
}

fn list(collectors: &[String]) -> (&'static str, Value) {
    ("collectors", Value::List(collectors.to_vec()))
}

fn port(of: &UdpSocket) -> (&'static str, Value) {
    ("destinationPort", Value::Int(of.local_addr().unwrap().port().into()))
}

const NO_DESTINATION: (&str, Value) = ("sendToDestination", Value::Bool(false));

fn sink(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sinks on both loopback addresses with one port.
fn sinks() -> [UdpSocket; 2] {
    for _ in 0..100 {
        let v6 = sink("[::1]:0");
        let port = v6.local_addr().unwrap().port();
        if let Ok(v4) = UdpSocket::bind(("127.0.0.1", port)) {
            v4.set_read_timeout(Some(PATIENCE)).unwrap();
            return [v4, v6];
        }
    }
    panic!("no port is free in both families");
}

fn receive(socket: &UdpSocket) -> String {
    let mut buffer = [0; 65536];
    let length = crate::common::receive(socket, &mut buffer).expect("a firefly");
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

fn is_empty(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).unwrap();
    let nothing = crate::common::receive(socket, &mut [0; 1]).is_err();
    socket.set_nonblocking(false).unwrap();
    nothing
}

fn event(state: FlowState, protocol: Protocol, src: &str, dst: &str) -> FlowEvent {
    let id = FlowId::new(protocol, src.parse().unwrap(), dst.parse().unwrap()).unwrap();
    let tag = Tag::new(2, 16).unwrap();
    FlowEvent { state, id, tag, time: None, application: None, usage: None }
}

fn tcp6(state: FlowState, src_port: u16) -> FlowEvent {
    event(state, Protocol::Tcp, &format!("[2001:db8::1]:{src_port}"), "[::1]:1094")
}

#[test]
fn every_kind_of_firefly_is_valid_and_taken_by_the_collector() {
    let sinks = sinks();
    let rig = Rig::new(&[port(&sinks[0])]);
    let odd = "a \"quoted\" \\ \u{1}\u{7f}\n<134>1 - - {} 日本\u{2028}";
    let long = "\"".repeat(5000);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (sink, src, dst, afi) in [
            (&sinks[0], "192.0.2.1:2345", "127.0.0.1:1094", "ipv4"),
            (&sinks[1], "[2001:db8::1]:2345", "[::1]:65535", "ipv6"),
            (&sinks[0], "[::ffff:192.0.2.1]:1", "[::ffff:127.0.0.1]:1", "ipv4"),
        ] {
            for application in [None, Some("xrootd v5"), Some(""), Some(odd), Some(&*long)] {
                let application = application.map(Into::into);
                let start = FlowEvent { application, ..event(Start, protocol, src, dst) };
                let end = FlowEvent { state: End, ..start.clone() };
                rig.tell(vec![start]);
                rig.tell(vec![end]);
                let datagrams = [receive(sink), receive(sink)];
                let documents = datagrams.each_ref().map(|datagram| valid(datagram));
                for (datagram, state) in datagrams.iter().zip(["start", "end"]) {
                    let document = collected(datagram).expect("it is taken").document;
                    assert_eq!(document, valid(datagram));
                    assert_eq!(document["flow-lifecycle"]["state"], state);
                    assert_eq!(document["flow-id"]["afi"], afi);
                    assert_eq!(document["flow-id"]["protocol"], protocol.name());
                    assert_eq!(document.get("usage"), None);
                }
                assert_eq!(documents[0]["flow-id"], documents[1]["flow-id"]);
                assert_eq!(documents[0]["context"], documents[1]["context"]);
                assert_eq!(documents[0]["context"]["experiment-id"], 2);
            }
        }
    }
    rig.stop();
    assert!(sinks.iter().all(is_empty));
}

/// The hostname is the host's; here it is anything.
#[test]
fn odd_hostnames_do_not_lose_the_firefly() {
    let id = event(Start, Protocol::Tcp, "[2001:db8::1]:1", "[2001:db8::2]:2").id;
    let tag = Tag::new(1, 1).unwrap();
    let start = Timestamp::now();
    let flow = Flow {
        id,
        tag,
        label: 0,
        start,
        is_undated: false,
        source: "test",
        application: None,
        news: None,
        counted: None,
    };
    let long = "x".repeat(300);
    for (name, host) in [
        ("se1.example.org", "se1.example.org"),
        ("red_gridftp10.unl.edu", "red-gridftp10.unl.edu"),
        ("my host", "my-host"),
        ("{\"", "-"),
        ("-", "-"),
        ("", "-"),
        ("ÿ\u{feff}.x", "x"),
        (&long, &long[..63]),
    ] {
        for end in [None, Some(start)] {
            let mut datagram = Vec::new();
            Encoder::new(Some(name.as_bytes())).encode(
                &flow,
                end.map_or(Stage::Start, Stage::End),
                start,
                &mut datagram,
            );
            let datagram = String::from_utf8(datagram).unwrap();
            let stored = collected(&datagram).unwrap_or_else(|| panic!("{datagram}"));
            assert_eq!((&*stored.host, &stored.document), (host, &valid(&datagram)));
        }
    }
}

/// The judge is worth something only if it refuses what the collector does.
#[test]
fn what_the_collector_drops_is_known() {
    let document = r#"{"flow-lifecycle":{"state":"start"}}"#;
    let taken = [
        "<134>1 - - glowd - firefly-json -",
        "<134>1 2021-09-22T11:12:27.808092+00:00 host.example glowd - firefly-json -",
    ];
    let dropped = [
        "",
        "<134>1  host glowd - firefly-json -",
        "<134>1 2021-09-22T11:12:27.808092+00:00 my_host glowd - firefly-json -",
        "<134>1 2021-09-22T11:12:27.808092+00:00 my host glowd - firefly-json -",
    ];
    for header in taken {
        assert!(collected(&format!("{header} {document}")).is_some(), "{header}");
    }
    for header in dropped {
        assert!(collected(&format!("{header} {document}")).is_none(), "{header}");
    }
    let invalid = r#"{"version":1,"flow-lifecycle":{"state":"end","start-time":"","end-time":""}}"#;
    assert!(!SCHEMA.is_valid(&serde_json::from_str(invalid).unwrap()));
}

/// Defect 18: END had `"start-time":""` and the header of both an empty timestamp.
#[test]
fn defect_18_start_and_end_have_their_times() {
    let [v4, v6] = sinks();
    drop(v4);
    let rig = Rig::new(&[port(&v6)]);
    let before = Timestamp::now();
    rig.tell(vec![tcp6(Start, 1)]);
    let start = receive(&v6);
    rig.tell(vec![tcp6(End, 1)]);
    let end = receive(&v6);
    let after = Timestamp::now();

    let [start, end] = [start, end].map(|datagram| {
        valid(&datagram);
        let stored = collected(&datagram).expect("the collector takes it");
        assert_eq!(stored.document["flow-lifecycle"]["current-time"], *stored.time);
        stored
    });
    let time = |stored: &Stored, key: &str| {
        let text = stored.document["flow-lifecycle"][key].as_str().unwrap().to_string();
        assert!(text.len() == 32 && text.ends_with("+00:00"), "{text}");
        Timestamp::parse(&text).unwrap()
    };
    let (began, ended) = (time(&end, "start-time"), time(&end, "end-time"));
    assert_eq!(time(&start, "start-time"), began);
    assert!(before <= began && began <= ended && ended <= after);
    assert!(began <= time(&start, "current-time") && ended <= time(&end, "current-time"));
    assert_eq!(start.document["flow-lifecycle"].get("end-time"), None);
    assert_eq!(start.duration(), None);
    assert!(end.duration().is_some());
    rig.stop();
}

#[test]
fn an_end_without_a_start_is_not_sent() {
    let sink = sink("[::1]:0");
    let rig = Rig::new(&[port(&sink)]);
    rig.tell(vec![tcp6(End, 1), tcp6(Start, 1), tcp6(Start, 1), tcp6(End, 1), tcp6(End, 1)]);
    rig.stop();
    for state in ["start", "end"] {
        assert_eq!(valid(&receive(&sink))["flow-lifecycle"]["state"], state);
    }
    assert!(is_empty(&sink));
}

#[test]
fn collectors_get_the_fireflies_of_both_families() {
    let (v4, v6) = (sink("127.0.0.1:0"), sink("[::1]:0"));
    let addresses = [&v4, &v6].map(|sink| sink.local_addr().unwrap().to_string());
    let rig = Rig::new(&[list(&addresses), NO_DESTINATION]);
    rig.tell(vec![tcp6(Start, 1), event(Start, Protocol::Udp, "10.0.0.1:1", "127.0.0.1:2")]);
    rig.tell(vec![tcp6(End, 1)]);
    rig.stop();
    for sink in [&v4, &v6] {
        for (state, afi) in [("start", "ipv6"), ("start", "ipv4"), ("end", "ipv6")] {
            let document = valid(&receive(sink));
            assert_eq!(document["flow-lifecycle"]["state"], state);
            assert_eq!(document["flow-id"]["afi"], afi);
        }
        assert!(is_empty(sink));
    }
}

/// Whichever address it prefers, exactly one datagram comes.
#[test]
fn collectors_are_found_by_name() {
    let sinks = sinks();
    let port = sinks[0].local_addr().unwrap().port();
    let rig = Rig::new(&[list(&[format!("LocalHost:{port}")]), NO_DESTINATION]);
    sinks.iter().for_each(|sink| sink.set_nonblocking(true).unwrap());
    // Until the name has an address, fireflies are lost.
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 2048];
    let mut src_port = 0;
    let found = loop {
        src_port += 1;
        rig.tell(vec![tcp6(Start, src_port), tcp6(End, src_port)]);
        if let Some(found) = sinks.iter().position(|sink| sink.peek(&mut buffer).is_ok()) {
            break found;
        }
        assert!(Instant::now() < deadline, "nothing came");
        thread::sleep(Duration::from_millis(1));
    };
    rig.stop();
    let mut received = Vec::new();
    while let Ok(length) = crate::common::receive(&sinks[found], &mut buffer) {
        let document = valid(std::str::from_utf8(&buffer[..length]).unwrap());
        received.push(document["flow-id"]["src-port"].as_u64().unwrap());
    }
    assert_eq!(received.last(), Some(&src_port.into()));
    assert!(received.chunks(2).all(|pair| pair[0] == pair[1]), "{received:?}");
    assert!(is_empty(&sinks[1 - found]));
}

#[test]
fn a_collector_named_twice_is_used_once() {
    let sink = sink("[::1]:0");
    let address = sink.local_addr().unwrap();
    let same = ["[0:0::1]", "[::0001]"].map(|ip| format!("{ip}:{}", address.port()));
    let rig = Rig::new(&[
        list(&same),
        NO_DESTINATION,
        ("sendToCollector", Value::Bool(true)),
        ("collectorAddress", Value::Text("::1".into())),
        ("collectorPort", Value::Int(address.port().into())),
    ]);
    rig.tell(vec![tcp6(Start, 1)]);
    rig.stop();
    valid(&receive(&sink));
    assert!(is_empty(&sink));
}

#[test]
fn flowd_go_s_keys_name_a_collector_and_the_header_can_be_left_out() {
    let sink = sink("127.0.0.1:0");
    let rig = Rig::new(&[
        NO_DESTINATION,
        ("prependSyslog", Value::Bool(false)),
        ("sendToCollector", Value::Bool(true)),
        ("collectorPort", Value::Int(sink.local_addr().unwrap().port().into())),
    ]);
    rig.tell(vec![tcp6(Start, 1), tcp6(End, 1)]);
    rig.stop();
    for _ in 0..2 {
        let datagram = receive(&sink);
        assert!(datagram.starts_with("{\"version\":1,"), "{datagram}");
        valid(&datagram);
    }
    assert!(is_empty(&sink));
}

/// Destinations that the kernel refuses, that answer with ICMP errors and that
/// take no datagram at all, in one batch with those that are well.
#[test]
fn dead_destinations_do_not_disturb_the_collectors() {
    let (v4, v6) = (sink("127.0.0.1:0"), sink("[::1]:0"));
    // Nobody listens there, on either address.
    let closed_port = ("destinationPort", Value::Int(free_port().into()));
    let addresses = [&v4, &v6].map(|sink| sink.local_addr().unwrap().to_string());
    let rig = Rig::new(&[list(&addresses), closed_port]);
    let destinations = ["127.0.0.1", "[::1]", "127.255.255.255", "224.0.0.1", "[::]", "[ff02::1]"];
    for round in 0..200_u16 {
        let starts = destinations.iter().map(|destination| {
            let src = if destination.starts_with('[') { "[2001:db8::1]" } else { "10.0.0.1" };
            let (src, dst) = (format!("{src}:{}", round + 1), format!("{destination}:1"));
            event(Start, Protocol::Tcp, &src, &dst)
        });
        let starts: Vec<_> = starts.collect();
        let ends = starts.iter().map(|start| FlowEvent { state: End, ..start.clone() });
        let ends: Vec<_> = ends.collect();
        rig.tell(starts);
        rig.tell(ends);
        for sink in [&v4, &v6] {
            for state in ["start", "end"] {
                for destination in destinations {
                    let document = valid(&receive(sink));
                    assert_eq!(document["flow-id"]["src-port"], round + 1);
                    assert_eq!(document["flow-lifecycle"]["state"], state);
                    let ip = destination.trim_matches(['[', ']']);
                    assert_eq!(document["flow-id"]["dst-ip"], ip);
                }
            }
        }
    }
    rig.stop();
}

#[test]
fn what_cannot_be_configured_is_said() {
    let spec = glowd::backends::ALL.iter().find(|spec| spec.name == "firefly").unwrap();
    let problems = |values: &[_]| (spec.check)(&Section::new("backends.firefly", section(values)));
    assert_eq!(
        problems(&[NO_DESTINATION]),
        ["sendToDestination: false, and neither collectors nor sendToCollector: there is \
          nothing to send to"]
    );
    let bad = ["a:0".to_string(), "::1".to_string(), "a".to_string()];
    assert_eq!(
        problems(&[
            list(&bad),
            ("sendToCollector", Value::Bool(true)),
            ("collectorAddress", Value::Text("a b".into())),
        ]),
        [
            "collectors: \"a:0\": port \"0\" is not a port (1 to 65535)",
            "collectors: \"::1\": an IPv6 address has to be in brackets",
            "collectorAddress: \"a b\" is not the name of a host",
        ]
    );
    // Without sendToCollector its address means nothing.
    assert!(problems(&[("collectorAddress", Value::Text("a b".into()))]).is_empty());
}

/// Nobody answers for the name of a collector, and yet it stops at once.
#[test]
fn stopping_is_prompt() {
    let sink = sink("[::1]:0");
    let rig = Rig::new(&[port(&sink), list(&["collector.invalid".into()])]);
    rig.tell(vec![tcp6(Start, 1)]);
    valid(&receive(&sink));
    let took = rig.stop();
    assert!(took < Duration::from_secs(1), "{took:?}");
}
