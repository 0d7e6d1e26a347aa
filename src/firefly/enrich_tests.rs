//! Tests of enrich.rs.

use super::*;
use crate::flow::Timestamp;
use crate::net::attributes::Attributes;
use serde_json::Value;

/// A sample whose octets are all `fill`, but for the state and the round-trip time, with
/// everything that is kept.
fn sample(fill: u8, rtt: u32) -> FlowInfo {
    let mut info = vec![fill; 280];
    info[0] = 1;
    info[68..72].copy_from_slice(&rtt.to_ne_bytes());
    let mut bytes = Vec::new();
    for (kind, value) in
        [(2_u16, &info[..]), (4, b"cubic\0"), (5, &[fill]), (7, &[fill; 36]), (1, &[fill; 16])]
    {
        let length = u16::try_from(4 + value.len()).unwrap();
        bytes.extend_from_slice(&[length.to_ne_bytes(), kind.to_ne_bytes()].concat());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    FlowInfo::new(Timestamp(0), 1, Attributes(&bytes))
}

fn added(mode: Mode, info: &FlowInfo, longest: usize) -> String {
    let mut out = b"head {\"version\":1}".to_vec();
    add(mode, info, None, &mut out, 5, longest);
    let text = String::from_utf8(out).unwrap();
    assert!(text.len() <= 5 + longest.max(13), "{text}");
    text[5..].to_owned()
}

fn parsed(mode: Mode, info: &FlowInfo) -> Value {
    let document: Value = serde_json::from_str(&added(mode, info, 10_000)).unwrap();
    document["netlink"].clone()
}

#[test]
fn each_mode_has_the_keys_that_its_readers_know() {
    let info = sample(1, 1_234_056);
    assert_eq!(
        parsed(Mode::Lean, &info),
        serde_json::json!({
            "rtt": 1234.056,
            "tcpInfo": {
                "Retransmits": 1, "sndMss": 0x0101_0101, "pMtu": 0x0101_0101, "rtt": 1_234_056,
                "rttVar": 0x0101_0101, "sndSsThresh": 0x0101_0101, "sndCwnd": 0x0101_0101,
                "advMss": 0x0101_0101, "minRtt": 0x0101_0101,
                "deliveryRate": 0x0101_0101_0101_0101_u64,
                "bytesSent": 0x0101_0101_0101_0101_u64,
            },
            "cong": { "algorithm": "cubic" },
        })
    );
    let flat = parsed(Mode::Compatible, &info);
    assert_eq!(flat["rtt"], 1234.056);
    assert_eq!(flat["rttvar"], 0x0101_0101 / 1000);
    assert_eq!(flat["snd_ssthresh"], 0, "there is none");
    assert_eq!((&flat["state"], &flat["backoff"]), (&"established".into(), &1.into()));
    assert_eq!(flat["opts"], serde_json::json!(["ts"]));
    assert_eq!(flat["bytes_received"], 0x0101_0101_0101_0101_u64);
    assert!(flat.as_object().unwrap().values().all(|value| !value.is_object()));
    let full = parsed(Mode::Full, &info);
    assert_eq!(full["rtt"], 1234.056);
    assert_eq!(full["tcpInfo"]["totalRetrans"], 0x0101_0101);
    assert_eq!(full["cong"]["algorithm"], "cubic");
    assert_eq!((&full["tos"], &full["skMemInfo"]["drops"]), (&1.into(), &0x0101_0101.into()));
    assert_eq!(full["memInfo"]["tMem"], 0x0101_0101);
}

#[test]
fn a_round_trip_below_a_millisecond_is_not_0() {
    for mode in [Mode::Lean, Mode::Compatible, Mode::Full] {
        assert_eq!(parsed(mode, &sample(0, 7))["rtt"], 0.007);
    }
}

#[test]
fn what_does_not_fit_is_left_out_from_the_end() {
    for mode in [Mode::Lean, Mode::Compatible, Mode::Full] {
        let info = sample(255, u32::MAX);
        let whole = added(mode, &info, 10_000);
        let mut before = String::new();
        for longest in 13..=whole.len() {
            let text = added(mode, &info, longest);
            let document: Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert_eq!(document["version"], 1);
            // It only grows, and is how the whole begins.
            let trimmed = text.trim_end_matches('}');
            assert!(whole.starts_with(trimmed.trim_end_matches('{')), "{text}");
            assert!(text.len() >= before.len());
            before = text;
        }
        assert_eq!(before, whole);
    }
}

#[test]
fn nothing_is_added_of_a_socket_without_tcp_info() {
    let info = FlowInfo::new(Timestamp(0), 1, Attributes(&[]));
    assert_eq!(added(Mode::Full, &info, 10_000), "{\"version\":1}");
}

#[test]
fn a_second_block_takes_all_but_the_round_trip_time() {
    let info = sample(1, 1_234_056);
    for mode in [Mode::Lean, Mode::Compatible, Mode::Full] {
        let mut out = b"{}".to_vec();
        add(mode, &info, Some("skOps"), &mut out, 0, 10_000);
        let document: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(document["netlink"], serde_json::json!({ "rtt": 1234.056 }));
        assert_eq!(document["skOps"], parsed(mode, &info));
    }
}
