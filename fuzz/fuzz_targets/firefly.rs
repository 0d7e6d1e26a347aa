//! Fireflies: any datagram is judged without a panic and within bounds, whether a
//! header precedes it makes no difference to what it says, and what is read is what
//! our own encoder would write and read again.
#![no_main]

use std::sync::Arc;

use glowd::firefly::{decode, Encoder, Header, Stage};
use glowd::flow::{Flow, FlowState, News, Tag, Timestamp};
use libfuzzer_sys::fuzz_target;

const GOOD: &[u8] = br#"<134>1 - se1 xrootd - firefly-json - {"version":1,"flow-lifecycle":{"state":"end","start-time":"2024-11-26T10:00:00.25+00:00","end-time":"2024-11-26T10:00:01Z"},"usage":{"received":1,"sent":2},"netlink":{"rtt":0.1},"context":{"experiment-id":2,"activity-id":16,"application":"x"},"flow-id":{"afi":"ipv6","src-ip":"2001:db8::1","dst-ip":"2001:db8::2","protocol":"tcp","src-port":2345,"dst-port":1094}}"#;

/// Judges a datagram.
fn judge(datagram: &[u8]) {
    let always = decode(datagram, Header::Always);
    let never = decode(datagram, Header::Never);
    assert!(always.is_err() || never.is_err());
    let report = match (decode(datagram, Header::Auto), always.or(never)) {
        (Ok(report), Ok(same)) => {
            assert_eq!(report, same);
            report
        }
        (Err(fault), Err(_)) => {
            assert!(fault.to_string().len() < 1000);
            return;
        }
        (auto, other) => panic!("{auto:?} {other:?}"),
    };
    assert_eq!(report.clone().turned().turned(), report);
    assert!(report.application.as_ref().is_none_or(|name| (1..=128).contains(&name.len())));
    let Ok(event) = report.clone().event() else {
        assert!(Tag::new(report.ids.0, report.ids.1).is_err());
        return;
    };
    if Tag::new(report.ids.0, report.ids.1).is_err() {
        assert_eq!(event.state, FlowState::End, "whose flow has a tag of its own");
        return;
    }
    let start = report.start.unwrap_or(Timestamp(0));
    let flow = Flow {
        id: event.id,
        tag: event.tag,
        label: 0,
        start,
        is_undated: false,
        source: "fuzz",
        application: event.application,
        news: Some(Arc::new(News { heard: start, usage: report.usage, ..News::default() })),
        counted: None,
    };
    let end = (event.state == FlowState::End).then(|| event.time.unwrap_or(start));
    let mut written = Vec::new();
    Encoder::new(Some(b"host")).encode(
        &flow,
        end.map_or(Stage::Start, Stage::End),
        start,
        &mut written,
    );
    let read = decode(&written, Header::Always).expect("our own");
    assert_eq!((read.id, read.ids), (report.id, report.ids));
    assert_eq!((read.start, read.end), (Some(start), end));
    assert_eq!(read.usage, report.usage.filter(|_| end.is_some()));
}

// A fuzzer finds a whole document too slowly: the input also replaces a part of a good
// one, from its first two bytes on, as many as its third says.
fuzz_target!(|input: &[u8]| {
    judge(input);
    if let [at, rough, length, rest @ ..] = input {
        let mut datagram = GOOD.to_vec();
        let at = (usize::from(*at) + usize::from(*rough) * 4).min(datagram.len());
        let end = (at + usize::from(*length)).min(datagram.len());
        datagram.splice(at..end, rest.iter().copied());
        judge(&datagram);
    }
});
