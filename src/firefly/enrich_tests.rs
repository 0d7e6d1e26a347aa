//! Tests of enrich.rs.

use std::collections::BTreeSet;

use super::*;
use crate::flow::Timestamp;
use crate::flow_info::Kinds;
use crate::net::attributes::Attributes;
use serde_json::{json, Value};

fn attributes(of: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in of {
        let length = u16::try_from(4 + value.len()).unwrap();
        bytes.extend_from_slice(&[length.to_ne_bytes(), kind.to_ne_bytes()].concat());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// A sample whose octets are all `fill`, but for the state and the round-trip time, with
/// everything that the kernel says under that congestion control.
fn sample_under(control: &[u8], answer: (u16, &[u8]), fill: u8, rtt: u32) -> FlowInfo {
    let mut info = vec![fill; 280];
    info[0] = 1;
    info[68..72].copy_from_slice(&rtt.to_ne_bytes());
    let bytes = attributes(&[
        (2, &info),
        (4, control),
        answer,
        (5, &[fill]),
        (6, &[fill]),
        (7, &[fill; 36]),
        (8, &[fill]),
        (1, &[fill; 16]),
        (21, &[fill; 8]),
    ]);
    let kinds = Kinds::new(u8::MAX, true);
    FlowInfo::new(Timestamp(0), 1, kinds, &[fill; 72], Attributes(&bytes))
}

fn sample(fill: u8, rtt: u32) -> FlowInfo {
    sample_under(b"bbr\0", (16, &[fill; 20]), fill, rtt)
}

fn added(mode: Mode, info: &FlowInfo, longest: usize) -> String {
    let mut out = b"head {\"version\":1}".to_vec();
    add(mode, info, None, &mut out, 5, longest, info.time);
    let text = String::from_utf8(out).unwrap();
    assert!(text.len() <= 5 + longest.max(13), "{text}");
    text[5..].to_owned()
}

fn parsed(mode: Mode, info: &FlowInfo) -> Value {
    let document: Value = serde_json::from_str(&added(mode, info, 10_000)).unwrap();
    document["netlink"].clone()
}

/// Each member that is no object, with where it is.
fn members(value: &Value) -> BTreeSet<String> {
    let of = value.as_object().unwrap().iter();
    of.flat_map(|(key, value)| match value {
        Value::Object(_) if key != "id" => {
            let inner = members(value);
            assert!(!inner.is_empty(), "{key} is empty");
            inner.iter().map(|inner| format!("{key}.{inner}")).collect()
        }
        _ => vec![format!("{key}={value}")],
    })
    .collect()
}

#[test]
fn each_mode_has_the_keys_that_its_readers_know() {
    let info = sample(1, 1_234_056);
    assert_eq!(
        parsed(Mode::Lean, &info),
        json!({
            "rtt": 1234.056,
            "tcpInfo": {
                "Retransmits": 1, "sndMss": 0x0101_0101, "pMtu": 0x0101_0101, "rtt": 1_234_056,
                "rttVar": 0x0101_0101, "sndSsThresh": 0x0101_0101, "sndCwnd": 0x0101_0101,
                "advMss": 0x0101_0101, "minRtt": 0x0101_0101,
                "deliveryRate": 0x0101_0101_0101_0101_u64,
                "bytesSent": 0x0101_0101_0101_0101_u64,
            },
            "cong": { "algorithm": "bbr" },
        })
    );
    let flat = parsed(Mode::Compatible, &info);
    assert_eq!(flat["rtt"], 1234.056);
    assert_eq!(flat["rttvar"], 0x0101_0101 / 1000);
    assert_eq!(flat["snd_ssthresh"], 0, "there is none");
    assert_eq!((&flat["state"], &flat["backoff"]), (&"established".into(), &1.into()));
    assert_eq!(flat["opts"], json!(["ts"]));
    assert_eq!(flat["bytes_received"], 0x0101_0101_0101_0101_u64);
    assert!(flat.as_object().unwrap().values().all(|value| !value.is_object()));
}

/// The keys of flowd-go, and `tClass` and `shutdown`, which it asks for and does not tell.
#[test]
fn all_that_is_known_is_told_in_full() {
    let full = parsed(Mode::Full, &sample(1, 1_234_056));
    let keys =
        |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&full), "bbr cong memInfo rtt shutdown skBuff skMemInfo tcpInfo tos");
    assert_eq!(
        keys(&full["tcpInfo"]),
        "advMss ato backoff busyTime bytesAcked bytesRecv bytesRetrans bytesSent caState \
         dataSegsIn dataSegsOut delivered deliveredCe deliveryRate deliveryRateAppLimited \
         dsAckDups fAckets fastOpenClientFail lastAckRecv lastAckSent lastDataRecv lastDataSent \
         lost maxPacingRate minRtt notsentBytes options pMtu pacingRate probes rcvMss rcvOooPack \
         rcvRtt rcvSpace rcvSsThresh rcvdWscale reordSeen reordering retrans retransmits rto rtt \
         rttVar rwndLimited sAcked segsIn segsOut sndBufLimited sndCwnd sndMss sndSsThresh sndWnd \
         sndWscale state totalRetrans unAcked"
    );
    let (one, two, four) = (1, 0x0101, 0x0101_0101);
    assert_eq!((&full["rtt"], &full["tcpInfo"]["rtt"]), (&1234.056.into(), &1_234_056.into()));
    assert_eq!(full["cong"], json!({ "algorithm": "bbr" }));
    assert_eq!(full["tos"], json!({ "tos": one, "tClass": one }));
    assert_eq!(full["shutdown"], one);
    assert_eq!(
        full["bbr"],
        json!({ "bbrBW": 0x0101_0101_0101_0101_u64, "bbrMinRTT": four, "bbrPacingGain": four,
                "bbrCwndGain": four })
    );
    assert_eq!(
        full["skMemInfo"],
        json!({ "rMemAlloc": four, "rcvBuff": four, "WMemAlloc": four, "sndBuff": four,
                "fwdAlloc": four, "wMemQueued": four, "optMem": four, "backlog": four,
                "drops": four })
    );
    assert_eq!(full["memInfo"], json!({ "rMem": four, "wMem": four, "fMem": four, "tMem": four }));
    assert_eq!(
        full["skBuff"],
        json!({ "family": one, "state": one, "timer": one, "retrans": one, "expires": four,
                "rQueue": four, "wQueue": four, "uid": four, "iNode": four,
                "id": { "srcPort": two, "dstPort": two, "srcIP": [four, four, four, four],
                        "dstIP": [four, four, four, four], "ifId": four,
                        "cookie": [four, four] } })
    );
    let vegas = parsed(Mode::Full, &sample_under(b"nv\0", (3, &[1; 16]), 1, 1));
    let said = json!({ "enabled": four, "rttCount": four, "rtt": four, "minRtt": four });
    assert_eq!((&vegas["vegasInfo"], vegas.get("bbr")), (&said, None));
    let dctcp = parsed(Mode::Full, &sample_under(b"dctcp\0", (9, &[1; 16]), 1, 1));
    let said =
        json!({ "enabled": two, "ceState": two, "alpha": four, "abeCn": four, "abTot": four });
    assert_eq!((&dctcp["dctcpInfo"], dctcp.get("bbr")), (&said, None));
}

/// Each is found at its place, whatever the kernel's structs have behind it or lack.
#[test]
fn what_congestion_controls_say_may_be_longer_or_shorter() {
    let bytes: Vec<u8> = (0..64).collect();
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let half = |at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap());
    let said = |kind, length: usize| {
        let info = sample_under(b"any\0", (kind, &bytes[..length]), 1, 1);
        parsed(Mode::Full, &info)
    };
    let wide = u64::from(word(4)) << 32 | u64::from(word(0));
    for length in 0..=64 {
        let (bbr, vegas, dctcp) = (said(16, length), said(3, length), said(9, length));
        for (block, key, end, value) in [
            (&bbr["bbr"], "bbrBW", 8, wide),
            (&bbr["bbr"], "bbrMinRTT", 12, word(8).into()),
            (&bbr["bbr"], "bbrPacingGain", 16, word(12).into()),
            (&bbr["bbr"], "bbrCwndGain", 20, word(16).into()),
            (&vegas["vegasInfo"], "enabled", 4, word(0).into()),
            (&vegas["vegasInfo"], "rttCount", 8, word(4).into()),
            (&vegas["vegasInfo"], "rtt", 12, word(8).into()),
            (&vegas["vegasInfo"], "minRtt", 16, word(12).into()),
            (&dctcp["dctcpInfo"], "enabled", 2, half(0).into()),
            (&dctcp["dctcpInfo"], "ceState", 4, half(2).into()),
            (&dctcp["dctcpInfo"], "alpha", 8, word(4).into()),
            (&dctcp["dctcpInfo"], "abeCn", 12, word(8).into()),
            (&dctcp["dctcpInfo"], "abTot", 16, word(12).into()),
        ] {
            let found = block.get(key).map(|value| value.as_u64().unwrap());
            assert_eq!(found, (length >= end).then_some(value), "{key} in {length}");
        }
    }
}

#[test]
fn a_round_trip_below_a_millisecond_is_not_0() {
    for mode in [Mode::Lean, Mode::Compatible, Mode::Full] {
        assert_eq!(parsed(mode, &sample(0, 7))["rtt"], 0.007);
    }
}

/// What there is only grows with the room, by as much as there is room for, and begins with
/// the round-trip time.
#[test]
fn what_does_not_fit_is_left_out_in_order() {
    for mode in [Mode::Lean, Mode::Compatible, Mode::Full] {
        let info = sample(255, u32::MAX);
        let whole = added(mode, &info, 10_000);
        let (mut before, mut size) = (BTreeSet::new(), 13);
        for longest in 13..=whole.len() {
            let text = added(mode, &info, longest);
            let document: Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert_eq!(document["version"], 1);
            let Some(netlink) = document.get("netlink") else { continue };
            let now = members(netlink);
            assert!(now.contains("rtt=4294967.295"), "{text}");
            assert!(now.is_superset(&before), "{text}");
            // Room that is left is not enough for the next one.
            if now.len() > before.len() {
                assert_eq!((now.len(), text.len()), (before.len() + 1, longest), "{text}");
                size = longest;
            }
            assert_eq!(text.len(), size);
            before = now;
        }
        assert_eq!(before, members(&parsed(mode, &info)));
    }
}

/// As the man page has it.
#[test]
fn the_order_is_what_members_are_worth() {
    let info = sample(255, u32::MAX);
    let (mut before, mut order) = (BTreeSet::new(), Vec::new());
    for longest in 13..=added(Mode::Full, &info, 10_000).len() {
        let document: Value = serde_json::from_str(&added(Mode::Full, &info, longest)).unwrap();
        let Some(netlink) = document.get("netlink") else { continue };
        let now = members(netlink);
        order.extend(now.difference(&before).map(|member| {
            let end = if member.starts_with("skBuff.id") { "=" } else { "." };
            let part = member.split(end).next().unwrap();
            part.split('=').next().unwrap().to_owned()
        }));
        before = now;
    }
    order.dedup();
    assert_eq!(
        order.join(" "),
        "rtt tcpInfo cong bbr tcpInfo skBuff skMemInfo tos memInfo tcpInfo shutdown skBuff.id"
    );
}

#[test]
fn nothing_is_added_of_a_socket_without_tcp_info() {
    let kinds = Kinds::new(u8::MAX, true);
    let info = FlowInfo::new(Timestamp(0), 1, kinds, &[], Attributes(&[]));
    assert_eq!(added(Mode::Full, &info, 10_000), "{\"version\":1}");
    let bytes = attributes(&[(7, &[1; 36])]);
    let info = FlowInfo::new(Timestamp(0), 1, kinds, &[1; 72], Attributes(&bytes));
    for mode in [Mode::Lean, Mode::Compatible] {
        assert_eq!(added(mode, &info, 10_000), "{\"version\":1}");
    }
    let all = parsed(Mode::Full, &info);
    let keys: Vec<_> = all.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["memInfo", "skBuff", "skMemInfo"], "the memory is a part of the socket's");
}

#[test]
fn a_second_block_takes_all_but_the_round_trip_time() {
    let info = sample(1, 1_234_056);
    for mode in [Mode::Lean, Mode::Compatible, Mode::Full] {
        let mut out = b"{}".to_vec();
        add(mode, &info, Some("skOps"), &mut out, 0, 10_000, info.time);
        let document: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(document["netlink"], json!({ "rtt": 1234.056 }));
        assert_eq!(document["skOps"], parsed(mode, &info));
    }
}
