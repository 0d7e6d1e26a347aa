//! Fireflies of each sender, as they are on the wire, and what is none.

use serde_json::{json, Value as Json};

use super::*;

const SRC: &str = "[2001:db8::1]:2345";
const DST: &str = "[2001:db8:0:1::2]:1094";

fn id(src: &str, dst: &str) -> FlowId {
    FlowId::new(Protocol::Tcp, src.parse().unwrap(), dst.parse().unwrap()).unwrap()
}

fn time(text: &str) -> Option<Timestamp> {
    Some(Timestamp::parse(text).unwrap())
}

/// A report of a start, with nothing but what has to be.
fn report() -> Report {
    Report {
        state: FlowState::Start,
        id: id(SRC, DST),
        ids: (2, 16),
        start: None,
        end: None,
        application: None,
        usage: None,
    }
}

/// The least document, changed at these places.
fn document(changes: &[(&str, Json)]) -> String {
    let mut document = json!({
        "flow-lifecycle": {"state": "start"},
        "flow-id": {
            "src-ip": "2001:db8::1", "dst-ip": "2001:db8:0:1::2", "protocol": "tcp",
            "src-port": 2345, "dst-port": 1094
        },
        "context": {"experiment-id": 2, "activity-id": 16}
    });
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    document.to_string()
}

fn read(datagram: &str) -> Report {
    decode(datagram.as_bytes(), Header::Auto).unwrap_or_else(|fault| panic!("{fault}: {datagram}"))
}

/// Of a production site, by flowd 0.1.2.
#[test]
fn real_fireflies_are_read_to_the_right_flow() {
    let text = include_str!("../../tests/data/fireflies/production-2022.log");
    assert_eq!(text.lines().count(), 200);
    for line in text.lines() {
        let found = read(line);
        // By another way than the one under test.
        let (_, document) = line.split_once(" - firefly-json - ").unwrap();
        let document: Json = serde_json::from_str(document).unwrap();
        let text =
            |pointer: &str| document.pointer(pointer).and_then(Json::as_str).map(str::to_owned);
        let end = |side: &str| {
            let part = |part| document["flow-id"][format!("{side}-{part}")].clone();
            SocketAddr::new(
                part("ip").as_str().unwrap().parse().unwrap(),
                u16::try_from(part("port").as_u64().unwrap()).unwrap(),
            )
        };
        let number = |key| document["context"][key].as_u64().unwrap();
        let moment = |key: &str| {
            text(&format!("/flow-lifecycle/{key}")).map(|text| Timestamp::parse(&text).unwrap())
        };
        let expected = Report {
            state: match document["flow-lifecycle"]["state"].as_str().unwrap() {
                "start" => FlowState::Start,
                state => {
                    assert_eq!(state, "end");
                    FlowState::End
                }
            },
            id: FlowId::new(Protocol::Tcp, end("src"), end("dst")).unwrap(),
            ids: (number("experiment-id"), number("activity-id")),
            start: moment("start-time"),
            end: moment("end-time"),
            application: Some("flowd v0.1.2".into()),
            usage: None,
        };
        assert!(expected.start.is_some());
        assert_eq!(found, expected, "{line}");
        let event = found.clone().event().unwrap();
        let time = if event.state == FlowState::End { found.end } else { found.start };
        assert_eq!((event.id, event.time), (found.id, time));
        assert_eq!(decode(line.as_bytes(), Header::Always).unwrap(), expected);
        decode(line.as_bytes(), Header::Never).unwrap_err();
    }
}

#[test]
fn fireflies_of_each_sender_are_read() {
    let ends =
        r#""src-ip":"2001:db8::1","dst-ip":"2001:db8:0:1::2","src-port":2345,"dst-port":1094"#;
    let start = time("2024-11-26T10:00:00.25Z");
    let end = time("2024-11-26T10:00:01Z");
    let of = |application: &str| Report { application: Some(application.into()), ..report() };
    let rows = [
        (
            "flowd 1.1.7 without a fraction, with what its netlink enricher adds",
            format!(
                r#"<134>1 2024-11-26T10:00:00+00:00 se1.example.org flowd - firefly-json - {{"version": 1, "flow-lifecycle": {{"state": "ongoing", "current-time": "2024-11-26T10:00:00+00:00"}}, "flow-id": {{"afi": "ipv6", {ends}, "protocol": "tcp", "netlink": {{"a": 1}}}}, "context": {{"experiment-id": 2, "activity-id": 16, "application": "flowd v1.1.7"}}, "netlink": ["established", {{"tcp_info": {{"rtt": 0.5, "rto": null}}}}]}}"#
            ),
            Report { state: FlowState::Ongoing, ..of("flowd v1.1.7") },
        ),
        (
            "flowd-go 2.4.2 leaves the header's time empty, and writes local times",
            format!(
                r#"<134>1  se1 flowd-go-2.4.2 - firefly-json - {{"version":1,"flow-lifecycle":{{"state":"end","start-time":"","end-time":"2024-11-26T11:00:01+01:00","current-time":""}},"flow-id":{{"afi":"ipv6",{ends},"protocol":"tcp"}},"context":{{"experiment-id":2,"activity-id":16,"application":"flowd-go v2.4.2"}},"skOps":{{"tcpInfo":{{"rtt":1}}}}}}"#
            ),
            Report { state: FlowState::End, end, ..of("flowd-go v2.4.2") },
        ),
        (
            "the 2024 glowd writes upper case and the year 1",
            format!(
                r#"<134>1 2024-11-26T10:00:01.1+00:00 se1 flowd-go - firefly-json - {{"version":1,"flow-lifecycle":{{"state":"END","start-time":"0001-01-01T00:00:00+00:00","end-time":"2024-11-26T10:00:01.000+00:00","current-time":""}},"flow-id":{{"afi":"ipv6",{ends},"protocol":"TCP"}},"context":{{"experiment-id":2,"activity-id":16,"application":"flowd-go v1.0.0"}}}}"#
            ),
            Report { state: FlowState::End, end, ..of("flowd-go v1.0.0") },
        ),
        (
            "XRootD",
            format!(
                r#"<134>1 - se1.example.org xrootd - firefly-json - {{"version":1,"flow-lifecycle":{{"state":"end","current-time":"2024-11-26T10:00:01.000000+00:00","start-time":"2024-11-26T10:00:00.250000+00:00","end-time":"2024-11-26T10:00:01.000000+00:00"}},"usage":{{"received":1234,"sent":5000000000}},"netlink":{{"rtt":0.125}},"context":{{"experiment-id":2,"activity-id":16,"application":"http-get"}},"flow-id":{{"afi":"ipv6",{ends},"protocol":"tcp"}}}}"#
            ),
            Report {
                state: FlowState::End,
                start,
                end,
                usage: Some(Usage { received: 1234, sent: 5_000_000_000 }),
                ..of("http-get")
            },
        ),
        (
            "a start of dCache has an empty usage",
            format!(
                r#"<134>1 2024-11-26T10:00:00.250Z 2001:db8::1 dCache - firefly-json - {{"version":1,"flow-lifecycle":{{"state":"start","start-time":"2024-11-26T10:00:00.250000000Z","current-time":"2024-11-26T10:00:00.250Z"}},"usage":{{}},"context":{{"experiment-id":2,"activity-id":16,"application":"xrootd"}},"flow-id":{{"afi":"ipv6",{ends},"protocol":"tcp"}}}}"#
            ),
            Report { start, ..of("xrootd") },
        ),
        (
            "an end of dCache counts as the pool does, which is its destination",
            format!(
                r#"<134>1 2024-11-26T10:00:01Z 2001:db8::1 dCache - firefly-json - {{"version":1,"flow-lifecycle":{{"state":"end","start-time":"2024-11-26T10:00:00.250Z","end-time":"2024-11-26T10:00:01Z"}},"usage":{{"received":7,"sent":9}},"storage-stats":{{"read-bw":1e6,"read-idle":"PT1S"}},"context":{{"experiment-id":2,"activity-id":16,"application":"xrootd"}},"flow-id":{{"afi":"ipv6",{ends},"protocol":"tcp"}}}}"#
            ),
            Report {
                state: FlowState::End,
                start,
                end,
                usage: Some(Usage { received: 9, sent: 7 }),
                ..of("xrootd")
            },
        ),
    ];
    for (what, datagram, expected) in rows {
        assert_eq!(read(&datagram), expected, "{what}");
    }
}

#[test]
fn our_own_are_read() {
    use super::super::{Encoder, Stage, MAX_LEN};
    use crate::flow::{Flow, News};
    for (host, application) in [(Some(&b"se1"[..]), Some("a \"b\" \\ {[")), (None, None)] {
        let flow = Flow {
            counted: None,
            id: id(SRC, DST),
            tag: Tag::new(2, 16).unwrap(),
            label: 0,
            start: Timestamp(1_632_309_147_808_092),
            is_undated: false,
            source: "test",
            application: application.map(Into::into),
            news: Some(Arc::new(News {
                heard: Timestamp(0),
                usage: Some(Usage { received: 0, sent: u64::MAX }),
                ..News::default()
            })),
        };
        for end in [None, Some(Timestamp(1_632_309_147_808_093))] {
            let mut datagram = Vec::new();
            Encoder::new(host).encode(
                &flow,
                end.map_or(Stage::Start, Stage::End),
                Timestamp(1),
                &mut datagram,
            );
            assert!(datagram.len() <= MAX_LEN);
            let found = decode(&datagram, Header::Auto).unwrap();
            let state = if end.is_some() { FlowState::End } else { FlowState::Start };
            assert_eq!((found.state, found.id, found.ids), (state, flow.id, (2, 16)));
            assert_eq!((found.start, found.end), (Some(flow.start), end));
            assert_eq!(found.usage, flow.usage().filter(|_| end.is_some()));
            let own = concat!("glowd v", env!("CARGO_PKG_VERSION"));
            assert_eq!(found.application.as_deref(), Some(application.unwrap_or(own)));
        }
    }
}

#[test]
fn what_says_nothing_of_the_flow_may_be_anything() {
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let deep: Json = serde_json::from_str(&deep).unwrap();
    for change in [
        ("/x", json!({"flow-id": {"src-port": 0}})),
        ("/version", json!(1)),
        ("/version", json!(null)),
        ("/netlink", json!([1, {"a": null}])),
        ("/skOps", deep),
        ("/usage", json!(null)),
        ("/usage", json!({"received": 1})),
        ("/usage", json!({"received": 1.5, "sent": -1, "x": {}})),
        ("/usage", json!({"received": {"a": [1]}, "sent": ["x"]})),
        ("/flow-id/afi", json!("IPv6")),
        ("/flow-id/src-ip", json!("2001:DB8:0::1%eth0")),
        ("/flow-id/src-ip", json!("[2001:db8::1]")),
        ("/flow-id/protocol", json!("TCP")),
        ("/flow-lifecycle/state", json!("Start")),
        ("/flow-lifecycle/start-time", json!(null)),
        ("/flow-lifecycle/start-time", json!("")),
        ("/flow-lifecycle/start-time", json!("yesterday")),
        ("/flow-lifecycle/start-time", json!(17)),
        ("/flow-lifecycle/end-time", json!(false)),
        ("/context/application", json!(null)),
        ("/context/application", json!("  ")),
        ("/context/application", json!(5)),
    ] {
        assert_eq!(read(&document(std::slice::from_ref(&change))), report(), "{change:?}");
    }
    let plain = document(&[]);
    for spaced in [
        format!("  {plain}"),
        format!("{plain} \r\n\0"),
        format!("<1>{plain}"),
        format!("<134>1 - - - - - -   {plain}\n"),
        plain.replace(':', " : ").replace(" : ", "\t:\r\n "),
    ] {
        // The times of addresses have no colons here but those between keys and values.
        let spaced = spaced.replace("2001\t:\r\n db8\t:\r\n \t:\r\n 1", "2001:db8::1");
        let spaced =
            spaced.replace("2001\t:\r\n db8\t:\r\n 0\t:\r\n 1\t:\r\n \t:\r\n 2", "2001:db8:0:1::2");
        assert_eq!(read(&spaced), report(), "{spaced:?}");
    }
    let mapped =
        [("/flow-id/src-ip", json!("::ffff:10.0.0.1")), ("/flow-id/dst-ip", json!("10.0.0.2"))];
    assert_eq!(read(&document(&mapped)).id, id("10.0.0.1:2345", "10.0.0.2:1094"));
    let escaped = document(&[]).replace("\"tcp\"", r#""\u0074cp""#);
    assert_eq!(read(&escaped), report());
}

#[test]
fn long_names_of_applications_are_cut() {
    for (name, kept) in [("x".repeat(60_000), "x".repeat(128)), ("日".repeat(99), "日".repeat(42))]
    {
        let found = read(&document(&[("/context/application", json!(name))]));
        assert_eq!(found.application.as_deref(), Some(&*kept));
    }
}

#[test]
fn what_is_no_firefly_is_refused_with_a_reason() {
    let but = |pointer: &str, value: Json| document(&[(pointer, value)]);
    let lacking = |part: &str, key: &str| {
        let mut document: Json = serde_json::from_str(&document(&[])).unwrap();
        document.pointer_mut(part).unwrap().as_object_mut().unwrap().remove(key).unwrap();
        document.to_string()
    };
    for (datagram, reason) in [
        (String::new(), "no syslog header"),
        ("hello".into(), "no syslog header"),
        ("<134>1 - h flowd - firefly-json - nothing".into(), "no syslog header"),
        ("<134>1 - h flowd - firefly-json - {".into(), "EOF"),
        (document(&[]) + "x", "trailing"),
        (document(&[]) + &document(&[]), "trailing"),
        (format!("[{}]", document(&[])), "no syslog header"),
        ("{}".into(), "missing field `flow-lifecycle`"),
        (lacking("", "context"), "missing field `context`"),
        (lacking("/context", "experiment-id"), "missing field `experiment-id`"),
        (lacking("/flow-id", "dst-port"), "missing field `dst-port`"),
        (lacking("/flow-lifecycle", "state"), "missing field `state`"),
        (but("/version", json!(2)), "its version is not 1"),
        (but("/flow-lifecycle/state", json!("restart")), "state \"restart\" is none"),
        (but("/flow-lifecycle/state", json!(2)), "invalid type"),
        (but("/flow-id/protocol", json!("sctp")), "protocol \"sctp\" is neither"),
        (but("/flow-id/src-ip", json!("host")), "\"host\" is not an IP address"),
        (but("/flow-id/src-ip", json!("x".repeat(999))), "xxx\"... is not an IP address"),
        (but("/flow-id/src-ip", json!("10.0.0.1")), "are of two families"),
        (but("/flow-id/src-port", json!(0)), "source port 0"),
        (but("/flow-id/dst-port", json!(65536)), "expected u16"),
        (but("/context/activity-id", json!(-1)), "expected u64"),
        (document(&[]).replace("\"context\"", "\"context\":{},\"context\""), "missing field"),
    ] {
        let fault = decode(datagram.as_bytes(), Header::Auto).unwrap_err().to_string();
        assert!(fault.contains(reason), "{fault:?} does not say {reason:?}: {datagram}");
        assert!(fault.len() < 300, "{fault}");
    }
    let mut broken = document(&[]).into_bytes();
    let at = broken.windows(3).position(|window| window == b"tcp").unwrap();
    broken[at] = 0xff;
    decode(&broken, Header::Auto).unwrap_err();
    decode(document(&[]).as_bytes(), Header::Always).unwrap_err();
    decode(document(&[]).as_bytes(), Header::Never).unwrap();
    let deep = document(&[]).replace("{\"context\"", &format!("{{\"x\":{}", "[".repeat(60_000)));
    decode(deep.as_bytes(), Header::Auto).unwrap_err();
    for ids in [(0, 0), (512, 1), (1, 64), (1023, 1)] {
        let change =
            [("/context/experiment-id", json!(ids.0)), ("/context/activity-id", json!(ids.1))];
        let found = read(&document(&change));
        assert_eq!(found.ids, ids, "it is a firefly");
        found.event().unwrap_err();
    }
}

#[test]
fn a_turned_report_is_of_the_same_flow_from_its_other_end() {
    let usage = Some(Usage { received: 1, sent: 2 });
    let there = Report { usage, ..report() };
    let turned = there.clone().turned();
    let usage = Some(Usage { received: 2, sent: 1 });
    assert_eq!(turned, Report { id: id(DST, SRC), usage, ..report() });
    assert_eq!(turned.turned(), there);
}
