//! From an event's arrival to its effect, by a daemon as a whole.

use std::fs::{self, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use glowd::net::uninterrupted;
use glowd::sys::abi::{FlowKey, FlowValue};
use glowd::sys::bpf::Map;
use glowd::sys::udp;
use nix::sched::{unshare, CloneFlags};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{json, Value};

use crate::process::{Binary, Daemon, API};
use crate::{percentile, row};

const DST: &str = "2001:db8::2";
const DST_PORT: u16 = 1094;

pub(crate) const SECTIONS: &[crate::Section] = &[
    ("latency", latency),
    ("connect", connect),
    ("pipe", || Binary::each(pipe_throughput)),
    ("api", api),
    ("firefly", fireflies),
    ("listener", listener),
    ("start", || Binary::each(start_and_stop)),
    ("memory", || Binary::each(memory)),
    ("size", || Binary::each(size)),
];

/// So that nothing of the host is touched; children inherit it.
pub(crate) fn in_own_network() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}

fn api() {
    in_own_network();
    echo();
    Binary::each(|binary| {
        post(binary, 1);
        post(binary, 4);
    });
}

/// Source of the flow of that number.
fn source(flow: u32) -> (Ipv6Addr, u16) {
    let high = 0xfd00;
    let low = (flow / 50_000) as u16;
    (Ipv6Addr::new(high, 0, 0, 0, 0, 0, 0, low + 1), 10_000 + (flow % 50_000) as u16)
}

fn line(state: &str, flow: u32) -> String {
    let (ip, port) = source(flow);
    format!("{state} tcp {ip} {port} {DST} {DST_PORT} 2 16\n")
}

fn marker() -> Value {
    json!({"plugins": {"namedPipe": {}}, "backends": {"marker": {}}})
}

/// Microseconds from a line in the pipe until the marker has the flow, for each of these.
pub(crate) fn latencies(daemon: &Daemon, wanted: Range<u32>) -> Vec<f64> {
    let flows: Map<FlowKey, FlowValue> = Map::newest("flows").unwrap();
    let mut pipe = OpenOptions::new().write(true).open(daemon.pipe()).unwrap();
    let mut times = Vec::new();
    for flow in wanted {
        let (src, port) = source(flow);
        let key = FlowKey {
            src: src.octets(),
            dst: DST.parse::<Ipv6Addr>().unwrap().octets(),
            src_port: port.to_be_bytes(),
            dst_port: DST_PORT.to_be_bytes(),
            protocol: 6,
            pad: [0; 3],
        };
        let before = Instant::now();
        pipe.write_all(line("start", flow).as_bytes()).unwrap();
        while flows.lookup(&key).is_err() {
            assert!(before.elapsed() < Duration::from_secs(5), "not our map, or a lost line");
            thread::yield_now();
        }
        times.push(before.elapsed().as_secs_f64() * 1e6);
    }
    times
}

fn latency() {
    in_own_network();
    let mut times = latencies(&Daemon::start(marker()), 0..4000);
    let figure = |times: &mut [f64], share| format!("{:.0} us", percentile(times, share));
    row("pipe line to map entry, p50", figure(&mut times, 0.5), "<= 60 us (flowd-go 122)");
    row("pipe line to map entry, p99", figure(&mut times, 0.99), "<= 500 us (flowd-go 3600)");
}

/// From connect(2), before whose SYN the kernel reports it, until packets are marked; and
/// what the reports cost who connects.
fn connect() {
    in_own_network();
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let to = listener.local_addr().unwrap();
    let life = || {
        let before = Instant::now();
        for _ in 0..2000 {
            let client = TcpStream::connect(to).unwrap();
            let server = listener.accept().unwrap();
            drop(client);
            drop(server);
        }
        before.elapsed().as_secs_f64() / 2000.0 * 1e6
    };
    let alone = life();
    let rule = json!({"remotePort": to.port(), "experiment": 2, "activity": 16});
    for (name, plugin) in [
        ("iperf3", json!({"minDestinationPort": to.port(), "maxDestinationPort": to.port()})),
        ("netlink", json!({"rules": [rule], "includePrivate": true})),
    ] {
        let mut config = marker();
        config["plugins"][name] = plugin;
        let daemon = Daemon::start(config);
        let flows: Map<FlowKey, FlowValue> = Map::newest("flows").unwrap();
        let mut times = Vec::new();
        for _ in 0..2000 {
            let before = Instant::now();
            let client = TcpStream::connect(to).unwrap();
            let from = client.local_addr().unwrap();
            let key = FlowKey {
                src: Ipv6Addr::LOCALHOST.octets(),
                dst: Ipv6Addr::LOCALHOST.octets(),
                src_port: from.port().to_be_bytes(),
                dst_port: to.port().to_be_bytes(),
                protocol: 6,
                pad: [0; 3],
            };
            while flows.lookup(&key).is_err() {
                assert!(before.elapsed() < Duration::from_secs(5), "not our map, or not found");
                thread::yield_now();
            }
            times.push(before.elapsed().as_secs_f64() * 1e6);
            drop(client);
            drop(listener.accept().unwrap());
        }
        let figure = |times: &mut [f64], share| format!("{:.0} us", percentile(times, share));
        let what = |share| format!("connect() to map entry, plugin {name}, {share}");
        row(&what("p50"), figure(&mut times, 0.5), "<= 200 us");
        row(&what("p99"), figure(&mut times, 0.99), "<= 1000 us");
        let (what, told) = (format!("connect, accept and close, told to {name}"), life());
        row(&what, format!("{told:.0} us"), &format!("{alone:.0} us by themselves"));
        drop(daemon);
    }
}

fn pipe_throughput(binary: Binary) {
    const LINES: u32 = 600_000;
    in_own_network();
    let config = json!({"plugins": {"namedPipe": {}}, "backends": {}, "maxFlows": LINES});
    let text: String = (0..LINES).map(|flow| line("start", flow)).collect();
    for chunk in [199, 4096, 1_000_000] {
        let daemon = Daemon::start_binary(binary, config.clone());
        let mut pipe = OpenOptions::new().write(true).open(daemon.pipe()).unwrap();
        let before = Instant::now();
        for chunk in text.as_bytes().chunks(chunk) {
            pipe.write_all(chunk).unwrap();
        }
        wait_for_flows(&daemon, LINES);
        let rate = f64::from(LINES) / before.elapsed().as_secs_f64();
        let what = format!("pipe lines per second, none lost, writes of {chunk} octets");
        binary.row(&what, format!("{:.0}k", rate / 1000.0), ">= 300k (flowd-go 2k)");
    }
}

fn wait_for_flows(daemon: &Daemon, flows: u32) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while daemon.open_flows() < u64::from(flows) {
        assert!(Instant::now() < deadline, "flows were lost");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The floor under the API's figures: a thread that sends back what it gets.
fn echo() {
    const TURNS: u32 = 30_000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        let mut buffer = [0; 256];
        while stream.read_exact(&mut buffer).is_ok() {
            stream.write_all(&buffer).unwrap();
        }
    });
    let before = Instant::now();
    for _ in 0..TURNS {
        let mut buffer = [0; 256];
        client.write_all(&buffer).unwrap();
        client.read_exact(&mut buffer).unwrap();
    }
    let rate = f64::from(TURNS) / before.elapsed().as_secs_f64();
    drop(client);
    server.join().unwrap();
    let measured = format!("{:.1}k", rate / 1000.0);
    row("a bare TCP echo per second, one connection, for comparison", measured, "");
}

fn post(binary: Binary, connections: u32) {
    const REQUESTS: u32 = 60_000;
    let daemon = Daemon::start_binary(binary, marker());
    let each = REQUESTS / connections;
    let before = Instant::now();
    thread::scope(|scope| {
        for connection in 0..connections {
            scope.spawn(move || client(connection * each, each));
        }
    });
    let rate = f64::from(REQUESTS) / before.elapsed().as_secs_f64();
    assert_eq!(daemon.open_flows(), u64::from(REQUESTS));
    let reach = if connections == 1 { ">= 40k (flowd-go 20k)" } else { ">= 60k (flowd-go 29.5k)" };
    let what = format!("POST /flow per second, keep-alive connections: {connections}");
    binary.row(&what, format!("{:.1}k", rate / 1000.0), reach);
}

/// Opens so many flows, one request after the other's response.
fn client(first: u32, count: u32) {
    let mut stream = TcpStream::connect(API).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 65536];
    for flow in first..first + count {
        let (ip, port) = source(flow);
        let body = format!(
            r#"{{"state":"start","protocol":"tcp","src":"[{ip}]:{port}","dst":"[{DST}]:{DST_PORT}","experiment":2,"activity":16}}"#
        );
        let length = body.len();
        let head =
            format!("POST /flow HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut filled = 0;
        while !complete(&buffer[..filled]) {
            let read = stream.read(&mut buffer[filled..]).unwrap();
            assert!(read > 0, "the API closed the connection");
            filled += read;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200"));
    }
}

/// Whether that is a whole response.
fn complete(response: &[u8]) -> bool {
    let text = std::str::from_utf8(response).unwrap();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let (_, length) = head.split_once("Content-Length: ").unwrap();
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    body.len() == length
}

fn fireflies() {
    const FIREFLIES: u32 = 200_000;
    in_own_network();
    let sink = UdpSocket::bind("[::1]:0").unwrap();
    setsockopt(&sink, sockopt::RcvBufForce, &(256 << 20)).unwrap();
    sink.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let collector = sink.local_addr().unwrap().to_string();
    let daemon = Daemon::start(json!({
        "plugins": {"namedPipe": {}},
        "maxFlows": FIREFLIES,
        "backends": {"firefly": {"sendToDestination": false, "collectors": [collector]}}
    }));
    let text: String = (0..FIREFLIES).map(|flow| line("start", flow)).collect();
    let mut pipe = OpenOptions::new().write(true).open(daemon.pipe()).unwrap();
    let before = Instant::now();
    let writer = thread::spawn(move || pipe.write_all(text.as_bytes()).unwrap());
    let mut buffer = [0; 2048];
    let received =
        (0..FIREFLIES).take_while(|_| uninterrupted(|| sink.recv(&mut buffer)).is_ok()).count();
    let rate = received as f64 / before.elapsed().as_secs_f64();
    writer.join().unwrap();
    assert_eq!(received, FIREFLIES as usize, "some were lost");
    let measured = format!("{:.0}k", rate / 1000.0);
    row("fireflies to a UDP sink per second, all received", measured, ">= 60k (flowd-go 13k)");
}

/// Starts of flows, each described by another firefly as XRootD writes them. They are
/// sent as fast as they are taken, with 20,000 on their way.
fn listener() {
    const FIREFLIES: u32 = 600_000;
    const AHEAD: u32 = 20_000;
    const BATCH: u32 = 50;
    in_own_network();
    let daemon = Daemon::start(json!({
        "plugins": {"firefly": {}},
        "maxFlows": FIREFLIES,
        "backends": {}
    }));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = "127.0.0.1:10514".parse::<std::net::SocketAddr>().unwrap().into();
    let firefly = |flow| {
        let (ip, port) = source(flow);
        format!(
            r#"<134>1 - se1.example.org xrootd - firefly-json - {{"version":1,"flow-lifecycle":{{"state":"start","current-time":"2026-11-22T16:06:29.547442+00:00","start-time":"2026-11-22T16:06:29.547442+00:00"}},"usage":{{"received":189,"sent":56}},"netlink":{{"rtt":0.027}},"context":{{"experiment-id":2,"activity-id":16,"application":"xrdcp"}},"flow-id":{{"afi":"ipv6","src-ip":"{ip}","dst-ip":"{DST}","protocol":"tcp","src-port":{port},"dst-port":{DST_PORT}}}}}"#
        )
    };
    let fireflies: Vec<String> = (0..FIREFLIES).map(firefly).collect();
    let before = Instant::now();
    let mut taken = 0;
    for (sent, batch) in (0..).step_by(BATCH as usize).zip(fireflies.chunks(BATCH as usize)) {
        while sent > taken + AHEAD {
            taken = daemon.open_flows() as u32;
            thread::sleep(Duration::from_millis(1));
        }
        let datagrams: Vec<_> =
            batch.iter().map(|firefly| (IoSlice::new(firefly.as_bytes()), to)).collect();
        let mut rest = &datagrams[..];
        while !rest.is_empty() {
            rest = &rest[udp::send(socket.as_fd(), rest).unwrap()..];
        }
    }
    wait_for_flows(&daemon, FIREFLIES);
    let rate = f64::from(FIREFLIES) / before.elapsed().as_secs_f64();
    let measured = format!("{:.0}k", rate / 1000.0);
    row("fireflies taken per second, none lost", measured, ">= 150k (flowd-go loses them)");
}

fn start_and_stop(binary: Binary) {
    in_own_network();
    let config = json!({"plugins": {"namedPipe": {}}, "backends": {"marker": {}, "firefly": {}}});
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        let daemon = Daemon::start_binary(binary, config.clone());
        starts.push(daemon.start_up.as_secs_f64() * 1e3);
        stops.push(daemon.stop().as_secs_f64() * 1e3);
    }
    let figure = |times: &mut [f64]| format!("{:.1} ms", percentile(times, 0.5));
    binary.row("start to ready", figure(&mut starts), "<= 15 ms (flowd-go 30)");
    binary.row("stop", figure(&mut stops), "<= 20 ms (flowd-go 18)");
}

fn memory(binary: Binary) {
    const FLOWS: u32 = 50_000;
    in_own_network();
    let config = json!({"plugins": {"namedPipe": {}}, "backends": {"marker": {}, "firefly": {}}});
    let daemon = Daemon::start_binary(binary, config);
    binary.row(
        "resident memory, idle",
        format!("{:.1} MB", daemon.resident()),
        "<= 3 MB (flowd-go 24)",
    );
    let text: String = (0..FLOWS).map(|flow| line("start", flow)).collect();
    fs::write(daemon.pipe(), text).unwrap();
    wait_for_flows(&daemon, FLOWS);
    let measured = format!("{:.1} MB", daemon.resident());
    binary.row("resident memory, 50,000 flows", measured, "<= 16 MB (flowd-go 36)");
}

fn size(binary: Binary) {
    let size = fs::metadata(binary.path().unwrap()).unwrap().len() as f64 / 1e6;
    let reach = if binary == Binary::Static { "<= 2 MB (flowd-go 22.7)" } else { "" };
    binary.row("binary, stripped", format!("{size:.2} MB"), reach);
}
