//! What is decoded of a socket against what `ss -tino` (iproute2) shows of it at the same
//! moment: every word of it.

use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;

/// What `ss` shows of a connection: its flags and congestion control, and its values by name.
struct Shown {
    words: Vec<String>,
    values: Vec<(String, String)>,
}

impl Shown {
    fn parse(text: &str) -> Self {
        let mut shown = Shown { words: Vec::new(), values: Vec::new() };
        // State, queues and addresses come first.
        let mut words = text.split_whitespace().skip(5);
        while let Some(word) = words.next() {
            if ["send", "pacing_rate", "delivery_rate"].contains(&word) {
                shown.values.push((word.to_owned(), words.next().unwrap().to_owned()));
            } else if let Some((name, value)) = word.split_once(':') {
                shown.values.push((name.to_owned(), value.to_owned()));
            } else {
                shown.words.push(word.to_owned());
            }
        }
        shown
    }

    fn number(&self, name: &str) -> Option<f64> {
        let (_, value) = self.values.iter().find(|(found, _)| found == name)?;
        // Behind a time there may be its share in brackets.
        let value = value.split_once("ms").map_or(&**value, |(time, _)| time);
        Some(value.trim_end_matches("bps").parse().unwrap_or_else(|_| panic!("{name}: {value}")))
    }
}

/// Every value that it may show, as we have it, in its unit. (`fackets` is no more.)
fn ours(info: TcpInfo<'_>, name: &str) -> Option<f64> {
    let whole = |number: Option<u32>| number.map(f64::from);
    let ms = |micros: Option<u32>| micros.map(|micros| f64::from(micros) / 1000.0);
    #[allow(clippy::cast_precision_loss)] // as ss does it
    let long = |number: Option<u64>| number.map(|number| number as f64);
    let rate = |octets: Option<u64>| long(octets).map(|octets| octets * 8.0);
    match name {
        "rto" => ms(info.rto()),
        "backoff" => whole(info.backoff().map(u32::from)),
        "ato" => ms(info.ato()),
        "mss" => whole(info.snd_mss()),
        "pmtu" => whole(info.pmtu()),
        "rcvmss" => whole(info.rcv_mss()),
        "advmss" => whole(info.advmss()),
        "cwnd" => whole(info.snd_cwnd()),
        "ssthresh" => whole(info.snd_ssthresh()),
        "bytes_sent" => long(info.bytes_sent()),
        "bytes_retrans" => long(info.bytes_retrans()),
        "bytes_acked" => long(info.bytes_acked()),
        "bytes_received" => long(info.bytes_received()),
        "segs_out" => whole(info.segs_out()),
        "segs_in" => whole(info.segs_in()),
        "data_segs_out" => whole(info.data_segs_out()),
        "data_segs_in" => whole(info.data_segs_in()),
        "lastsnd" => whole(info.last_data_sent()),
        "lastrcv" => whole(info.last_data_recv()),
        "lastack" => whole(info.last_ack_recv()),
        "send" => {
            let window = whole(info.snd_cwnd())? * whole(info.snd_mss())? * 8_000_000.0;
            whole(info.rtt()).map(|rtt| (window / rtt).round())
        }
        "delivery_rate" => rate(info.delivery_rate()),
        "delivered" => whole(info.delivered()),
        "delivered_ce" => whole(info.delivered_ce()),
        // Whole milliseconds.
        "busy" => long(info.busy_time().map(|micros| micros / 1000)),
        "rwnd_limited" => long(info.rwnd_limited().map(|micros| micros / 1000)),
        "sndbuf_limited" => long(info.sndbuf_limited().map(|micros| micros / 1000)),
        "unacked" => whole(info.unacked()),
        "lost" => whole(info.lost()),
        "sacked" => whole(info.sacked()),
        "dsack_dups" => whole(info.dsack_dups()),
        "reordering" => whole(info.reordering()),
        "reord_seen" => whole(info.reord_seen()),
        "rcv_rtt" => ms(info.rcv_rtt()),
        "rcv_space" => whole(info.rcv_space()),
        "rcv_ssthresh" => whole(info.rcv_ssthresh()),
        "notsent" => whole(info.notsent_bytes()),
        "minrtt" => ms(info.min_rtt()),
        "rcv_ooopack" => whole(info.rcv_ooopack()),
        "snd_wnd" => whole(info.snd_wnd()),
        "rcv_wnd" => whole(info.rcv_wnd()),
        "rehash" => whole(info.rehash()),
        _ => None,
    }
}

/// What ss does not show if it is 0.
const ABSENT_IF_ZERO: [&str; 14] = [
    "backoff",
    "ato",
    "bytes_retrans",
    "bytes_received",
    "data_segs_in",
    "delivered_ce",
    "sndbuf_limited",
    "rwnd_limited",
    "unacked",
    "lost",
    "sacked",
    "dsack_dups",
    "notsent",
    "rcv_ooopack",
];

/// Asks until nothing has moved between two looks of ours with ss between them; the times
/// since something happened are the only ones that go on.
fn at_one_moment(flow: &FlowId) -> Option<(Vec<u8>, Vec<u8>, String, String)> {
    let mut diag = Diag::open().unwrap();
    let mut look = || {
        let (mut info, mut algorithm) = (Vec::new(), String::new());
        let wanted = extension::INFO | extension::CONGESTION;
        diag.look_up(flow, NO_COOKIE, 0, wanted, |socket| {
            info = socket.tcp_info().unwrap().0.to_vec();
            algorithm = socket.congestion().unwrap().to_owned();
        })
        .unwrap();
        (info, algorithm)
    };
    let still = |info: &[u8]| {
        let mut still = info.to_vec();
        still[44..60].fill(0);
        still
    };
    let filter = format!("sport = :{} and dport = :{}", flow.src().port(), flow.dst().port());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (before, algorithm) = look();
        let Ok(out) = Command::new("ss").args(["-tinoH", &filter]).output() else {
            println!("SKIP: there is no ss");
            return None;
        };
        let (after, _) = look();
        let text = String::from_utf8(out.stdout).unwrap();
        if still(&before) == still(&after) {
            return Some((before, after, algorithm, text));
        }
        assert!(Instant::now() < deadline, "{text}");
    }
}

fn compare(flow: &FlowId) -> Option<()> {
    let (before, after, algorithm, text) = at_one_moment(flow)?;
    let (info, later) = (TcpInfo(&before), TcpInfo(&after));
    let shown = Shown::parse(&text);
    // As many digits as ss prints, which may be six or so of any number.
    let near = |one: f64, other: f64| (one - other).abs() <= 1e-5 * one.abs().max(other.abs());
    for (name, value) in &shown.values {
        let is = |decoded: Option<f64>, value: &str| {
            let value: f64 = value.parse().unwrap();
            assert!(near(decoded.unwrap(), value), "{name}: {decoded:?} in {text}");
        };
        match &**name {
            "wscale" => {
                let (snd, rcv) = info.window_scales().unwrap();
                assert_eq!(*value, format!("{snd},{rcv}"), "{text}");
            }
            "rtt" => {
                let (rtt, deviation) = value.split_once('/').unwrap();
                is(info.rtt().map(|us| f64::from(us) / 1000.0), rtt);
                is(info.rttvar().map(|us| f64::from(us) / 1000.0), deviation);
            }
            "retrans" => {
                let (now, total) = value.split_once('/').unwrap();
                is(info.retrans().map(f64::from), now);
                is(info.total_retrans().map(f64::from), total);
            }
            "pacing_rate" => {
                let (rate, most) =
                    value.split_once('/').map_or((&**value, None), |(r, m)| (r, Some(m)));
                #[allow(clippy::cast_precision_loss)]
                let bits = |octets: Option<u64>| octets.map(|octets| octets as f64 * 8.0);
                is(bits(info.pacing_rate()), rate.trim_end_matches("bps"));
                let bound = info.max_pacing_rate().filter(|rate| *rate != u64::MAX);
                assert_eq!(bound.is_some(), most.is_some(), "{text}");
                if let Some(most) = most {
                    is(bits(bound), most.trim_end_matches("bps"));
                }
            }
            // Of the socket and of congestion controls, not of tcp_info.
            "timer" | "bbr" | "dctcp" => {}
            name => {
                let value = shown.number(name).unwrap();
                let ends = [info, later].map(|info| {
                    ours(info, name).unwrap_or_else(|| panic!("{name} is not known: {text}"))
                });
                let between = ends[0] <= value && value <= ends[1];
                assert!(near(ends[0], value) || between, "{name}: {ends:?} in {text}");
            }
        }
    }
    for name in ABSENT_IF_ZERO {
        assert!(shown.number(name).is_some() || ours(info, name) == Some(0.0), "{name} in {text}");
    }
    let retransmitted = shown.values.iter().any(|(name, _)| name == "retrans");
    assert_eq!(retransmitted, (info.retrans(), info.total_retrans()) != (Some(0), Some(0)));
    let options = info.options().unwrap();
    for (bit, word) in [(1, "ts"), (2, "sack"), (8, "ecn"), (16, "ecnseen"), (32, "fastopen")] {
        assert_eq!(options & bit != 0, shown.words.iter().any(|found| found == word), "{text}");
    }
    assert_eq!(info.is_app_limited(), Some(shown.words.iter().any(|word| word == "app_limited")));
    assert!(shown.words.contains(&algorithm), "{text}");
    Some(())
}

/// Both ends of it, of one that has carried much, and of one whose reader has stopped.
#[test]
fn tcp_info_is_what_ss_shows() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (mut near, mut far, _listener) = super::tests::connected(address);
        let (local, remote) = (near.local_addr().unwrap(), near.peer_addr().unwrap());
        let there = FlowId::new(Protocol::Tcp, local, remote).unwrap();
        let back = FlowId::new(Protocol::Tcp, remote, local).unwrap();
        for round in 1..=20 {
            near.write_all(&vec![1; 10_000 * round]).unwrap();
            far.read_exact(&mut vec![0; 10_000 * round]).unwrap();
            far.write_all(&[2; 100]).unwrap();
            near.read_exact(&mut [0; 100]).unwrap();
        }
        if compare(&there).and_then(|()| compare(&back)).is_none() {
            return;
        }
        // Limited by the window, with octets that are not sent. Its probes are rare.
        near.set_nonblocking(true).unwrap();
        while near.write(&[3; 65_536]).is_ok() {}
        compare(&there);
        compare(&back);
    }
}
