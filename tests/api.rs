//! The HTTP API: a real server, dispatcher and clients on loopback.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod client;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use glowd::part::Context;
use glowd::plugins::api::{flow_json, Settings};
use glowd::plugins::named_pipe::line;
use glowd::registry::{Names, Registry, Unknown};
use serde_json::json;

use client::{Api, PATIENCE};

fn flow(state: &str, port: u16) -> String {
    format!(
        r#"{{"state":"{state}","protocol":"tcp","src":"[2001:db8::1]:{port}","dst":"[2001:db8::2]:1094","experiment":2,"activity":16}}"#
    )
}

#[test]
fn a_flow_is_taken_listed_and_ended() {
    let api = Api::new();
    let mut client = api.connect();
    let body = r#"{"State":0,"Protocol":1,"Src":{"IP":"::1","Port":7},"Dst":{"IP":"::2","Port":8},
        "Experiment":3,"Activity":14,"StartTs":"2024-11-26T10:00:00Z","Application":"xrootd"}"#;
    let answer = client.ask("POST", "/flow", body);
    assert_eq!(answer.status, 200);
    let normal = json!({"state": "start", "protocol": "udp", "src": "[::1]:7", "dst": "[::2]:8",
        "experiment": 3, "activity": 14, "application": "xrootd",
        "startTime": "2024-11-26T10:00:00.000000+00:00"});
    assert_eq!(answer.json(), normal);
    client.ask("POST", "/flow?x", &format!("[{},{}]", flow("start", 2), flow("start", 1)));

    let listing = client.ask("GET", "/flows", "").json();
    let flows = listing["flows"].as_array().unwrap();
    let ports: Vec<_> = flows.iter().map(|flow| flow["src"].as_str().unwrap()).collect();
    assert_eq!(ports, ["[::1]:7", "[2001:db8::1]:1", "[2001:db8::1]:2"], "by start time");
    let label = flows[0]["label"].as_u64().unwrap();
    assert_eq!(label & 0x3_FEFC, 196_664, "of experiment 3, activity 14");
    let mut expected = json!({"protocol": "udp", "src": "[::1]:7", "dst": "[::2]:8",
        "experiment": 3, "experimentName": "cms", "activity": 14,
        "activityName": "Analysis Input", "source": "api", "application": "xrootd",
        "startTime": "2024-11-26T10:00:00.000000+00:00"});
    expected["label"] = json!(label);
    expected["labelHex"] = json!(format!("{label:#07x}"));
    expected["lastHeard"] = flows[0]["lastHeard"].clone();
    assert!(flows[0]["lastHeard"].as_str() > flows[0]["startTime"].as_str(), "{}", flows[0]);
    assert_eq!(flows[0], expected);
    assert_eq!(client.ask("GET", "/healthz", "").json(), json!({"status": "ok", "flows": 3}));

    client.ask("POST", "/flow", &body.replace("\"State\":0", "\"State\":1"));
    let both = format!("[{},{}]", flow("end", 2), flow("end", 1));
    assert_eq!(client.ask("POST", "/flow", &both).status, 200);
    assert_eq!(client.ask("GET", "/flows", "").json(), json!({"flows": []}));
}

#[test]
fn the_manual_shows_the_three_shapes_of_a_flow_and_lines_that_are_good() {
    let text = include_str!("../man/glowd.8");
    let flows: Vec<_> = text
        .split("\n{\n")
        .skip(1)
        .map(|rest| format!("{{{}}}", rest.split("\n}\n").next().unwrap()))
        .map(|json| flow_json::parse(json.as_bytes(), &Context::new(0).names).unwrap())
        .collect();
    assert_eq!(flows.len(), 3);
    assert!(flows.iter().all(|flow| *flow == flows[0]), "{flows:?}");
    let lines: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# echo ")?.strip_suffix(" > np"))
        .map(|line| line::parse(line.as_bytes(), &Registry::snapshot()).unwrap().unwrap())
        .collect();
    assert_eq!(lines[0], flows[0].events[0]);
    assert_eq!((lines.len(), lines[1].id), (3, lines[0].id));
    assert_eq!(lines[2].tag, lines[0].tag);
}

#[test]
fn names_are_taken_where_ids_are_and_shown_beside_them() {
    let api = Api::new();
    let flow = |experiment: serde_json::Value, activity: serde_json::Value| {
        json!({"state": "start", "protocol": "tcp", "src": "[::1]:1", "dst": "[::1]:2",
               "experiment": experiment, "activity": activity})
        .to_string()
    };
    let answer = api.post(&flow(json!("ATLAS"), json!("production input")));
    assert_eq!(answer.status, 200, "{answer:?}");
    let listed = &api.get("/flows")["flows"][0];
    assert_eq!((&listed["experiment"], &listed["activity"]), (&json!(2), &json!(15)));
    assert_eq!(listed["experimentName"], "atlas");
    assert_eq!(listed["activityName"], "Production Input");
    let answer = api.post(&flow(json!("atlsa"), json!("x")));
    assert_eq!(answer.status, 400);
    let problems = answer.json()["problems"].clone();
    let message = "\"atlsa\" is no experiment: did you mean \"atlas\"?";
    assert_eq!(problems, json!([{"index": 0, "field": "experiment", "message": message}]));
    // Ids that are not registered have no names.
    assert_eq!(api.post(&flow(json!(400), json!(0))).status, 200);
    let listed = api.get("/flows")["flows"][0].clone();
    assert_eq!((&listed["experiment"], listed.get("experimentName")), (&json!(400), None));

    let names = Arc::new(Names::fixed(Registry::snapshot(), Unknown::Refuse));
    let api = Api::start_with(Ipv4Addr::LOCALHOST, Settings::default(), 10, names);
    let answer = api.post(&flow(json!(2), json!(63)));
    assert_eq!(answer.status, 400);
    let message = "experiment 2 activity 63 is not registered (unknownIds is refuse)";
    assert_eq!(answer.json()["problems"][0]["message"], message);
    assert_eq!(api.post(&flow(json!("atlas"), json!(9))).status, 200);
}

#[test]
fn the_routes_of_flowd_go_are_there() {
    let api = Api::new();
    let routes = api.ask("GET", "/", "");
    let text = String::from_utf8_lossy(&routes.body);
    assert!(
        text.starts_with("{\n    \"ApiRoutes\": [\n        {\n            \"method\": "),
        "{text}"
    );
    let listed = routes.json()["ApiRoutes"].as_array().unwrap().len();
    assert_eq!(api.get("/openapi.json")["paths"].as_object().unwrap().len(), listed);
    for state in ["start", "end"] {
        let expected = json!({"state": state, "protocol": "tcp", "src": "[::1]:2345",
            "dst": "[::1]:5777", "experiment": 511, "activity": 63});
        let path = format!("/dummy/{state}");
        let head = api.ask("HEAD", &path, "");
        let length = head.header("Content-Length").unwrap().to_owned();
        assert_eq!((head.status, length), (200, expected.to_string().len().to_string()));
        assert_eq!(api.inlet.count(), Ok(usize::from(state == "end")), "HEAD changes nothing");
        assert_eq!(api.get(&path), expected);
        assert_eq!(api.inlet.count(), Ok(usize::from(state == "start")));
    }
}

#[test]
fn a_wrong_method_or_path_is_told_what_there_is() {
    let api = Api::new();
    let mut client = api.connect();
    for (method, path, allow) in
        [("GET", "/flow", "POST"), ("POST", "/flows", "GET, HEAD"), ("PUT", "/", "GET, HEAD")]
    {
        let answer = client.ask(method, path, "{}");
        assert_eq!((answer.status, answer.header("Allow")), (405, Some(allow)), "{method} {path}");
        assert!(answer.json()["error"].is_string());
    }
    let answer = client.ask("GET", "/flow/", "");
    assert_eq!(answer.status, 404);
    assert!(answer.json()["routes"].as_array().unwrap().contains(&json!("POST /flow")));
    let head = client.ask("HEAD", "/openapi.json", "");
    let length = head.header("Content-Length").unwrap().to_owned();
    let body = client.ask("GET", "/openapi.json", "").body;
    assert_eq!((head.status, length), (200, body.len().to_string()));
}

/// Defect 17 of the peers: `{}` and State 4 gave 200.
#[test]
fn defect_17_what_is_no_flow_gets_400_and_changes_nothing() {
    let api = Api::new();
    let answer = api.post("{}");
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["problems"].as_array().unwrap().len(), 6);
    let ongoing = flow("start", 1).replace("\"start\"", "4");
    let answer = api.post(&ongoing);
    assert_eq!((answer.status, &answer.json()["problems"][0]["field"]), (400, &json!("state")));
    assert_eq!(api.post("").status, 400);
    let mixed = format!("[{},{}]", flow("start", 1), flow("start", 0));
    let answer = api.post(&mixed);
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"], "1 of 2 flows is bad");
    assert_eq!(answer.json()["problems"][0]["index"], 1);
    assert_eq!(api.inlet.count(), Ok(0), "all or nothing");
}

/// Defect 17 of the peers: a body of 20 MB took 163 MB of memory.
#[test]
fn defect_17_a_body_over_4_mib_gets_413_before_it_is_read() {
    let settings = Settings { linger: PATIENCE, ..Settings::default() };
    let api = Api::start(Ipv4Addr::LOCALHOST, settings, 10);
    let mut client = api.connect();
    client.send("POST /flow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("Connection")), (413, Some("close")));
    client.closed();
    // In chunks nobody knows beforehand; the answer arrives although the client is
    // still sending.
    let mut client = api.connect();
    client.send("POST /flow HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
    for _ in 0..5 {
        client.send(&chunk);
    }
    assert_eq!(client.answer().status, 413);
    let mut client = api.connect();
    let padded = format!("{}{}", " ".repeat((4 << 20) - flow("start", 1).len()), flow("start", 1));
    assert_eq!(client.ask("POST", "/flow", &padded).status, 200, "4 MiB are good");
}

#[test]
fn ten_thousand_flows_are_taken_at_once() {
    let api = Api::new();
    let flows = |count: u16| {
        let flows: Vec<_> = (1..=count).map(|port| flow("start", port)).collect();
        format!("[{}]", flows.join(","))
    };
    let answer = api.post(&flows(10_001));
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().unwrap().contains("more than 10000 flows"));
    assert_eq!(api.inlet.count(), Ok(0));
    let answer = api.post(&flows(10_000));
    assert_eq!((answer.status, answer.json().as_array().unwrap().len()), (200, 10_000));
    assert_eq!(api.inlet.count(), Ok(10_000));
    assert_eq!(api.get("/flows")["flows"].as_array().unwrap().len(), 10_000);
}

#[test]
fn a_full_table_refuses_all_or_nothing() {
    let api = Api::start(Ipv4Addr::LOCALHOST, Settings::default(), 2);
    assert_eq!(api.post(&flow("start", 1)).status, 200);
    let answer = api.post(&format!("[{},{}]", flow("start", 2), flow("start", 3)));
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json(), json!({"error": "the flow table is full (maxFlows is 2)"}));
    assert_eq!(api.inlet.count(), Ok(1));
    assert_eq!(api.post(&format!("[{},{}]", flow("end", 1), flow("start", 2))).status, 200);
    assert_eq!(api.post(&flow("start", 3)).status, 200);
    assert_eq!(api.ask("GET", "/dummy/start", "").status, 503);
}

#[test]
fn a_web_page_is_refused() {
    let api = Api::new();
    let mut client = api.connect();
    for line in ["Origin: http://example.org", "Sec-Fetch-Site: cross-site"] {
        client.send(format!("GET /dummy/start HTTP/1.1\r\nHost: localhost\r\n{line}\r\n\r\n"));
        assert_eq!(client.answer().status, 403);
    }
    assert_eq!(api.inlet.count(), Ok(0));
}

/// By DNS rebinding a web page reaches loopback under a name of its own, without an
/// Origin.
#[test]
fn on_loopback_a_host_that_needs_dns_is_refused() {
    let api = Api::new();
    let mut client = api.connect();
    let rebound = [
        "/dummy/start HTTP/1.1\r\nHost: rebind.example.org:7777",
        "/dummy/start HTTP/1.1\r\nHost: localhost.example.org",
        "http://example.org/dummy/start HTTP/1.1\r\nHost: localhost",
        "/dummy/start HTTP/1.0\r\nConnection: keep-alive\r\nHost: example.org",
    ];
    for request in rebound {
        client.send(format!("GET {request}\r\n\r\n"));
        let answer = client.answer();
        assert_eq!(answer.status, 403, "{request}");
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.starts_with("the Host is neither an IP address nor localhost"), "{error}");
    }
    assert_eq!(api.inlet.count(), Ok(0));
    for host in ["127.0.0.1", "127.0.0.1:7777", "[::1]:7777", "LOCALHOST", "localhost.:7777"] {
        client.send(format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.answer().status, 200, "{host}");
    }
    client.send("GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    client.send("GET /healthz HTTP/1.1\r\n\r\n");
    assert_eq!(client.answer().status, 400);
}

#[test]
fn on_other_addresses_any_host_is_served() {
    let api = Api::start(Ipv4Addr::UNSPECIFIED, Settings::default(), 10);
    let mut client = api.connect();
    client.send("GET /healthz HTTP/1.1\r\nHost: storage.example.org\r\n\r\n");
    assert_eq!(client.answer().status, 200);
}

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
    let api = Api::start(Ipv4Addr::LOCALHOST, short(), 100_000);
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
    let settings = Settings { memory: 1 << 20, linger: PATIENCE, ..Settings::default() };
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
