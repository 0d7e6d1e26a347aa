//! Connections of the API: kept alive, limited in number, time and memory.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

#[test]
fn connections_are_kept_alive_and_pipelined_as_the_client_wants() {
    let api = Api::new();
    let mut client = api.connect();
    let mut pipeline = String::new();
    for port in 1..=1000 {
        let body = flow("start", port);
        let length = body.len();
        pipeline += &format!(
            "POST /flow HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        );
    }
    pipeline +=
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n";
    let mut writer = client.stream.try_clone().unwrap();
    let sender = thread::spawn(move || writer.write_all(pipeline.as_bytes()).unwrap());
    for port in 1..=1000 {
        let answer = client.answer();
        assert_eq!(answer.json()["src"], format!("[2001:db8::1]:{port}"), "in order");
    }
    let last = client.answer();
    assert_eq!((last.header("Connection"), &last.json()["flows"]), (Some("close"), &json!(1000)));
    client.closed();
    sender.join().unwrap();

    let mut client = api.connect();
    client.send("GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(client.answer().header("Connection"), Some("keep-alive"));
    client.send("GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer().header("Connection"), Some("close"));
    client.closed();
    // A client may close its half after the request.
    let mut client = api.connect();
    client.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer().status, 200);
    client.closed();
}

#[test]
fn chunks_and_expectations_are_served() {
    let api = Api::new();
    let mut client = api.connect();
    let body = flow("start", 1);
    let head = "POST /flow HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n";
    client.send(format!("{head}Content-Length: {}\r\n\r\n", body.len()));
    assert_eq!(client.answer().status, 100);
    client.send(&body);
    assert_eq!(client.answer().status, 200);
    client.send("POST /flow HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    for byte in body.bytes() {
        client.send([b'1', b'\r', b'\n', byte, b'\r', b'\n']);
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    assert_eq!(api.inlet.count(), Ok(1));
}

#[test]
fn bytes_that_are_no_request_are_refused_and_the_connection_closed() {
    let api = Api::new();
    for (bytes, status) in [
        ("\x16\x03\x01\x02\x00".to_owned(), 400),
        ("GET / HTTP/2.0\r\n\r\n".to_owned(), 505),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(9000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "a: b\r\n".repeat(65)), 431),
    ] {
        let mut client = api.connect();
        client.send(bytes);
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("Connection")), (status, Some("close")));
        assert!(answer.json()["error"].is_string());
        client.closed();
    }
}

#[test]
fn the_port_answers_while_200_idle_connections_are_open() {
    let api = Api::new();
    let mut idle: Vec<_> = (0..200).map(|_| api.connect()).collect();
    for port in 1..=100 {
        assert_eq!(api.post(&flow("start", port)).status, 200);
    }
    // And those that were idle are served when they wake up.
    for client in &mut idle {
        assert_eq!(client.ask("GET", "/healthz", "").json()["flows"], 100);
    }
}

#[test]
fn the_longest_idle_makes_room_when_there_are_too_many() {
    let settings = Settings { connections: 3, ..Settings::default() };
    let api = Api::start(Ipv4Addr::LOCALHOST, settings, 10);
    let mut clients: Vec<_> = (0..3).map(|_| api.connect()).collect();
    // The first has a request under way, so the second is the longest idle.
    clients[0].send("GET /healthz HTTP/1.1\r\n");
    for client in &mut clients[1..] {
        client.ask("GET", "/healthz", "");
    }
    assert_eq!(api.connect().ask("GET", "/healthz", "").status, 200);
    clients[1].closed();
    clients[0].send("Host: localhost\r\n\r\n");
    assert_eq!(clients[0].answer().status, 200);
    assert_eq!(clients[2].ask("GET", "/healthz", "").status, 200);
}

fn short() -> Settings {
    let short = Duration::from_millis(200);
    Settings { request: short, idle: short, write: short, linger: short, ..Settings::default() }
}

#[test]
fn slow_and_silent_clients_are_cut_off() {
    let api = Api::start(Ipv4Addr::LOCALHOST, short(), 10);
    let begin = Instant::now();
    let mut silent = api.connect();
    let mut stalled = api.connect();
    stalled.send("POST /flow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n{");
    // Bytes that trickle in do not put the end off.
    let mut slow = api.connect();
    slow.stream.set_nodelay(true).unwrap();
    slow.stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let head = b"GET / HTTP/1.1\r\nA: ".iter().copied();
    for byte in head.chain(std::iter::repeat(b'x')) {
        // The answer may come before the last byte is written.
        let _ = slow.stream.write(&[byte]);
        let mut bytes = [0; 1000];
        if let Ok(count) = slow.stream.read(&mut bytes) {
            slow.pending.extend_from_slice(&bytes[..count]);
            break;
        }
        assert!(begin.elapsed() < PATIENCE);
    }
    slow.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(slow.answer().status, 408);
    let answer = stalled.answer();
    assert_eq!((answer.status, answer.header("Connection")), (408, Some("close")));
    silent.closed();
    stalled.closed();
    slow.closed();
    assert!(begin.elapsed() >= Duration::from_millis(200));
    assert_eq!(Settings::default().request, Duration::from_secs(10));
}

#[test]
fn an_empty_line_between_requests_starts_no_timer_and_stops_none() {
    let idle = Duration::from_millis(400);
    let settings = Settings { idle, request: Duration::from_millis(20), ..short() };
    let api = Api::start(Ipv4Addr::LOCALHOST, settings, 10);
    let mut client = api.connect();
    let begin = Instant::now();
    assert_eq!(client.ask("GET", "/healthz", "").status, 200);
    client.stream.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
    let mut bytes = [0; 100];
    // The end comes at the time of the idle, and without an answer.
    let end = loop {
        // It may have come before the line is written.
        let _ = client.stream.write(b"\r\n");
        match client.read(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            end => break end,
        }
    };
    assert!(matches!(end, Ok(0) | Err(_)), "{}", bytes.escape_ascii());
    assert!(begin.elapsed() >= idle);
}

#[test]
fn who_does_not_read_the_answers_is_cut_off() {
    // The flows are a long request with a long answer, which may take their time.
    let write = Duration::from_secs(2);
    let settings = Settings { request: PATIENCE, write, ..Settings::default() };
    let api = Api::start(Ipv4Addr::LOCALHOST, settings, 100_000);
    let flows: Vec<_> = (1..=10_000).map(|port| flow("start", port)).collect();
    assert_eq!(api.post(&format!("[{}]", flows.join(","))).status, 200);
    let mut client = api.connect();
    // 50 listings of 2 MB each, which no socket buffer holds.
    client.send("GET /flows HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(50));
    // The others do not wait for it meanwhile.
    assert_eq!(api.get("/healthz")["flows"], 10_000);
    let deadline = Instant::now() + PATIENCE;
    // A write tells that the connection is gone without taking an answer.
    while client.stream.write(b"G").is_ok() {
        assert!(Instant::now() < deadline, "not cut off");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn memory_is_limited_over_all_connections() {
    let settings =
        Settings { memory: 1 << 20, request: PATIENCE, linger: PATIENCE, ..Settings::default() };
    let api = Api::start(Ipv4Addr::LOCALHOST, settings, 10);
    let mut clients: Vec<_> = (0..4).map(|_| api.connect()).collect();
    for client in &mut clients {
        client.stream.set_nonblocking(true).unwrap();
        client.pending = vec![b' '; 2_000_000];
        let head = "POST /flow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n";
        client.pending.splice(..0, head.bytes());
    }
    // Half of four long bodies: more than one of them does not fit.
    let deadline = Instant::now() + PATIENCE;
    while clients.len() > 1 {
        clients.retain_mut(|client| {
            if let Ok(count) = client.stream.write(&client.pending) {
                client.pending.drain(..count);
            }
            let mut bytes = [0; 12];
            let refused = client.stream.read(&mut bytes).is_ok();
            assert!(!refused || &bytes == b"HTTP/1.1 503");
            !refused
        });
        assert_eq!(api.post(&flow("start", 1)).status, 200, "short requests are served on");
        assert!(Instant::now() < deadline, "{} are left", clients.len());
    }
}

#[test]
fn ipv6_is_served_and_the_end_is_prompt() {
    let api = Api::start(Ipv6Addr::LOCALHOST, Settings::default(), 10);
    assert!(api.address.is_ipv6());
    let mut client = api.connect();
    assert_eq!(client.ask("POST", "/flow", &flow("start", 1)).status, 200);
    let begin = Instant::now();
    drop(api);
    assert!(begin.elapsed() < Duration::from_secs(5));
    client.closed();
}
