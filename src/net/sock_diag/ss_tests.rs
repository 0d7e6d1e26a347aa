//! What is decoded of a socket against what `ss -tinoem --tos` (iproute2) shows of it at the
//! same moment: every word of it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    connect, setsockopt, socket, sockopt, AddressFamily, SockFlag, SockType, SockaddrStorage,
};

use super::*;
use crate::flow::Timestamp;
use crate::flow_info::{FlowInfo, Kinds};
use crate::net::attributes::Attributes;
use crate::net::tcp_info::VegasInfo;

/// What `ss` shows of a connection: how many octets wait on either side, its flags and
/// congestion control, and its values by name.
struct Shown {
    waiting: [u32; 2],
    words: Vec<String>,
    values: Vec<(String, String)>,
}

impl Shown {
    fn parse(text: &str) -> Self {
        let mut words = text.split_whitespace();
        // State, queues and addresses come first.
        let waiting = [1, 0].map(|skip| words.nth(skip).unwrap().parse().unwrap());
        let mut shown = Shown { waiting, words: Vec::new(), values: Vec::new() };
        words.nth(1);
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
fn ours(sample: &FlowInfo, name: &str) -> Option<f64> {
    let info = sample.tcp_info().unwrap();
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
            let vegas = sample.vegas().filter(|vegas| vegas.enabled() == Some(1));
            let rtt = vegas.and_then(VegasInfo::rtt).filter(|rtt| ![0, 0x7fff_ffff].contains(rtt));
            whole(rtt.or(info.rtt())).map(|rtt| (window / rtt).round())
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
        "ino" => whole(sample.message()?.inode()),
        "uid" => whole(sample.message()?.uid()),
        _ => None,
    }
}

/// What ss does not show if it is 0.
const ABSENT_IF_ZERO: [&str; 15] = [
    "uid",
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

/// A socket, as the kernel tells of it.
#[derive(Default)]
struct Look {
    message: Vec<u8>,
    attributes: Vec<u8>,
}

impl Look {
    fn sample(&self) -> FlowInfo {
        let kinds = Kinds::new(u8::MAX, true);
        FlowInfo::new(Timestamp(0), 0, kinds, &self.message, Attributes(&self.attributes))
    }

    /// Without what goes on though nothing happens: times.
    fn still(&self) -> (Vec<u8>, Vec<(u16, Vec<u8>)>) {
        let mut message = self.message.clone();
        message[52..56].fill(0);
        let attributes = Attributes(&self.attributes).map(|(kind, value)| {
            let mut value = value.to_vec();
            if kind == 2 {
                value[44..60].fill(0);
                value[168..192].fill(0);
            }
            (kind, value)
        });
        (message, attributes.collect())
    }
}

/// Asks until nothing has moved between two looks of ours with ss between them.
fn at_one_moment(flow: &FlowId) -> Option<([FlowInfo; 2], String)> {
    let mut diag = Diag::open().unwrap();
    let mut look = || {
        let mut look = Look::default();
        let found = diag.look_up(flow, NO_COOKIE, 0, u8::MAX, |socket| {
            look.message = socket.message().to_vec();
            look.attributes = socket.attributes().0.to_vec();
        });
        assert_eq!(found, Ok(true));
        look
    };
    let filter = format!("sport = :{} and dport = :{}", flow.src().port(), flow.dst().port());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let before = look();
        let Ok(out) = Command::new("ss").args(["-tinoemH", "--tos", &filter]).output() else {
            println!("SKIP: there is no ss");
            return None;
        };
        let after = look();
        let text = String::from_utf8(out.stdout).unwrap();
        if before.still() == after.still() {
            return Some(([before.sample(), after.sample()], text));
        }
        assert!(Instant::now() < deadline, "{text}");
    }
}

/// Equal in as many digits as ss prints, which may be six or so of any number.
fn near(one: f64, other: f64) -> bool {
    (one - other).abs() <= 1e-5 * one.abs().max(other.abs())
}

/// What congestion control and socket say, in brackets behind `name`: in its unit, the
/// letters of which are cut off; None: it is shown elsewhere.
fn in_brackets(sample: &FlowInfo, name: &str) -> Option<String> {
    let memory = |index: usize| sample.socket_memory(index).unwrap();
    let message = sample.message().unwrap();
    let cookie = [message.cookie_high(), message.cookie_low()].map(|half| u64::from(half.unwrap()));
    Some(match name {
        "skmem" => {
            let names = ["r", "rb", "t", "tb", "f", "w", "o", "bl", "d"];
            let all = names.iter().enumerate().map(|(at, name)| format!("{name}{}", memory(at)));
            format!("({})", all.collect::<Vec<_>>().join(","))
        }
        "sk" => format!("{:x}", cookie[0] << 32 | cookie[1]),
        "tos" => hexadecimal(sample.tos()?),
        "tclass" => hexadecimal(sample.traffic_class()?),
        "timer" => {
            let names = ["off", "on", "keepalive", "timewait", "persist"];
            let timer = names[usize::from(message.timer().unwrap())];
            format!("({timer},,{})", message.retrans().unwrap())
        }
        "dctcp" => match sample.dctcp()? {
            says if says.enabled() == Some(0) => "fallback_mode".into(),
            says => format!(
                "(ce_state:{},alpha:{},ab_ecn:{},ab_tot:{})",
                says.ce_state().unwrap(),
                says.alpha().unwrap(),
                says.marked().unwrap(),
                says.acked().unwrap(),
            ),
        },
        _ => return None,
    })
}

/// As `%#x` of printf(3).
fn hexadecimal(number: u8) -> String {
    if number == 0 {
        "0".into()
    } else {
        format!("{number:#x}")
    }
}

/// Each number of "(bw:Nbps,mrtt:N,pacing_gain:N,cwnd_gain:N)".
fn compare_bbr(sample: &FlowInfo, shown: &str) {
    let bbr = sample.bbr().unwrap();
    #[allow(clippy::cast_precision_loss)] // as ss does it
    let mut ours = vec![
        ("bw", bbr.bandwidth().unwrap() as f64 * 8.0),
        ("mrtt", f64::from(bbr.min_rtt().unwrap()) / 1000.0),
        ("pacing_gain", f64::from(bbr.pacing_gain().unwrap()) / 256.0),
        ("cwnd_gain", f64::from(bbr.cwnd_gain().unwrap()) / 256.0),
    ];
    // Gains of 0 are not shown.
    ours.retain(|(name, value)| !name.ends_with("gain") || *value != 0.0);
    let values = shown.trim_matches(['(', ')']).split(',');
    let values: Vec<(&str, f64)> = values
        .map(|value| value.split_once(':').unwrap())
        .map(|(name, value)| (name, value.trim_end_matches("bps").parse().unwrap()))
        .collect();
    assert_eq!(values.len(), ours.len(), "{shown}");
    for (ours, theirs) in ours.iter().zip(&values) {
        assert!(ours.0 == theirs.0 && near(ours.1, theirs.1), "{ours:?} in {shown}");
    }
}

fn compare(flow: &FlowId) -> Option<FlowInfo> {
    let (samples, text) = at_one_moment(flow)?;
    let sample = &samples[0];
    let info = sample.tcp_info().unwrap();
    let shown = Shown::parse(&text);
    let message = sample.message().unwrap();
    let waiting = [message.unread(), message.unacked()].map(Option::unwrap);
    assert_eq!(waiting, shown.waiting, "{text}");
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
            "bbr" => compare_bbr(sample, value),
            // Not of what is told.
            "cgroup" | "class_id" | "v6only" | "fwmark" => {}
            "timer" => {
                let parts: Vec<&str> = value.split(',').collect();
                let untimed = format!("{},,{}", parts[0], parts[2]);
                assert_eq!(in_brackets(sample, name), Some(untimed), "{text}");
            }
            "skmem" | "sk" | "tos" | "tclass" | "dctcp" => {
                assert_eq!(in_brackets(sample, name).as_ref(), Some(value), "{name} in {text}");
            }
            name => {
                let value = shown.number(name).unwrap();
                let ends = samples.each_ref().map(|sample| {
                    ours(sample, name).unwrap_or_else(|| panic!("{name} is not known: {text}"))
                });
                let between = ends[0] <= value && value <= ends[1];
                assert!(near(ends[0], value) || between, "{name}: {ends:?} in {text}");
            }
        }
    }
    for name in ABSENT_IF_ZERO {
        assert!(
            shown.number(name).is_some() || ours(sample, name) == Some(0.0),
            "{name} in {text}"
        );
    }
    let retransmitted = shown.values.iter().any(|(name, _)| name == "retrans");
    assert_eq!(retransmitted, (info.retrans(), info.total_retrans()) != (Some(0), Some(0)));
    let options = info.options().unwrap();
    for (bit, word) in [(1, "ts"), (2, "sack"), (8, "ecn"), (16, "ecnseen"), (32, "fastopen")] {
        assert_eq!(options & bit != 0, shown.words.iter().any(|found| found == word), "{text}");
    }
    assert_eq!(info.is_app_limited(), Some(shown.words.iter().any(|word| word == "app_limited")));
    let algorithm = sample.congestion().unwrap();
    assert!(shown.words.iter().any(|word| word == algorithm), "{text}");
    // Each says its own, and that is shown.
    let shows = |name: &str| shown.values.iter().any(|(found, _)| found == name);
    assert_eq!([sample.bbr().is_some(), sample.dctcp().is_some()], ["bbr", "dctcp"].map(shows));
    assert!(shows("skmem") && shows("ino") && shows("sk"), "{text}");
    let ways = sample.shutdown().unwrap();
    let ways = [if ways & 1 == 0 { "<" } else { "-" }, if ways & 2 == 0 { ">" } else { "-" }];
    assert!(shown.words.contains(&ways.join("-")), "{text}");
    Some(samples[0].clone())
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
        if compare(&there).and_then(|_| compare(&back)).is_none() {
            return;
        }
        // Limited by the window, with octets that are not sent. Its probes are rare.
        near.set_nonblocking(true).unwrap();
        while near.write(&[3; 65_536]).is_ok() {}
        compare(&there);
        compare(&back);
    }
}

/// Connected by IPv6, both ends under that congestion control, from the start or later.
fn connected_under(control: &OsString, from_the_start: bool) -> (TcpStream, TcpStream) {
    let set = |socket: &dyn AsFd| {
        setsockopt(&socket.as_fd(), sockopt::TcpCongestion, control)
            .unwrap_or_else(|errno| panic!("{control:?}: {errno}"));
    };
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let (family, flags) = (AddressFamily::Inet6, SockFlag::SOCK_CLOEXEC);
    let near = socket(family, SockType::Stream, flags, None).unwrap();
    if from_the_start {
        set(&listener);
        set(&near);
    }
    let end: SocketAddr = listener.local_addr().unwrap();
    connect(near.as_raw_fd(), &SockaddrStorage::from(end)).unwrap();
    let near = TcpStream::from(near);
    let far = listener.accept().unwrap().0;
    if !from_the_start {
        set(&near);
        set(&far);
    }
    for socket in [&near, &far] {
        setsockopt(socket, sockopt::Ipv4Tos, &0x10).unwrap();
        setsockopt(socket, sockopt::Ipv6TClass, &0x28).unwrap();
    }
    (near, far)
}

/// Of each one that this kernel has: each fills its own attribute, or none. DCTCP acts only
/// with ECN, which is agreed on at the start.
#[test]
fn what_congestion_controls_say_is_what_ss_shows() {
    let is_root = nix::unistd::geteuid().is_root();
    let which = if is_root { "available" } else { "allowed" };
    let path = format!("/proc/sys/net/ipv4/tcp_{which}_congestion_control");
    for name in std::fs::read_to_string(path).unwrap().split_whitespace() {
        for from_the_start in [true, false] {
            let (mut near, mut far) = connected_under(&name.into(), from_the_start);
            let flow = |stream: &TcpStream| {
                let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
                FlowId::new(Protocol::Tcp, local, remote).unwrap()
            };
            for round in 1..=20 {
                near.write_all(&vec![1; 10_000 * round]).unwrap();
                far.read_exact(&mut vec![0; 10_000 * round]).unwrap();
                far.write_all(&[2; 100]).unwrap();
                near.read_exact(&mut [0; 100]).unwrap();
            }
            let Some(sample) = compare(&flow(&near)) else { return };
            compare(&flow(&far));
            let says = (sample.bbr(), sample.dctcp(), sample.vegas());
            match (name, says) {
                ("bbr", (Some(bbr), None, None)) => {
                    assert!(bbr.bandwidth() > Some(0) && bbr.pacing_gain() > Some(0), "{bbr:?}");
                }
                ("dctcp", (None, Some(dctcp), None)) => {
                    assert_eq!(dctcp.enabled(), Some(from_the_start.into()));
                }
                ("vegas" | "illinois" | "westwood" | "yeah" | "nv", (None, None, says)) => {
                    let says = says.unwrap();
                    assert!(says.enabled().is_some() && says.min_rtt() > Some(0), "{says:?}");
                }
                (_, (None, None, None)) => {}
                other => panic!("{other:?}"),
            }
            // But for the bits of ECN.
            let [tos, class] = [sample.tos(), sample.traffic_class()].map(|all| all.unwrap() & !3);
            assert_eq!((tos, class), (0x10, 0x28));
            println!("{name}, from the start {from_the_start}: the same, {says:?}");
        }
    }
}
