//! The HTTP API: a real server, dispatcher and clients on loopback.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod client;
mod connections;

use std::net::Ipv4Addr;
use std::sync::Arc;

use glowd::part::Context;
use glowd::plugins::api::{flow_json, Settings};
use glowd::plugins::named_pipe::line;
use glowd::registry::{Names, Registry, Unknown};
use serde_json::json;

use client::Api;

use crate::common::PATIENCE;

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
