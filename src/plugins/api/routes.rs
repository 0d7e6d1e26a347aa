//! The routes of the API: what each request means. Runs on the plugin's thread and
//! owns nothing.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::Serialize;

use super::flow_json;
use crate::dispatcher::{Inlet, Refused};
use crate::flow::{Flow, FlowEvent, FlowId, FlowState, Protocol, Tag, Usage};
use crate::meter::{Counted, Traffic};
use crate::net::http::{Answer, Method, Request, Service};
use crate::registry::{Names, Registry};
use crate::texts::OPENAPI;

/// What a route works with.
pub(super) struct Call<'a> {
    body: &'a [u8],
    inlet: &'a Inlet,
    names: &'a Names,
    /// Whether nothing may change: the method is HEAD.
    safe: bool,
    /// Whether there is no memory left for a long answer.
    crowded: bool,
}

/// A route: method, path, a name for people, and what it does. The handler writes
/// the body of the answer and returns its status.
struct Route {
    method: &'static str,
    path: &'static str,
    name: &'static str,
    handler: fn(&Call<'_>, &mut Vec<u8>) -> u16,
}

const ROUTES: &[Route] = &[
    Route { method: "GET", path: "/", name: "list the routes", handler: list_routes },
    Route {
        method: "GET",
        path: "/dummy/start",
        name: "start a flow for a test",
        handler: dummy_start,
    },
    Route {
        method: "GET",
        path: "/dummy/end",
        name: "end the flow for a test",
        handler: dummy_end,
    },
    Route { method: "POST", path: "/flow", name: "take flow events", handler: post_flow },
    Route { method: "GET", path: "/flows", name: "list the open flows", handler: list_flows },
    Route { method: "GET", path: "/healthz", name: "tell whether glowd works", handler: health },
    Route { method: "GET", path: "/openapi.json", name: "describe the API", handler: openapi },
];

/// What answers the requests.
pub(super) struct Api<'a> {
    pub(super) inlet: &'a Inlet,
    pub(super) names: &'a Names,
}

impl Service for Api<'_> {
    fn answer(&mut self, request: &Request<'_>, crowded: bool, out: &mut Vec<u8>) -> Answer {
        let head = &request.head;
        let Some(route) = ROUTES.iter().find(|route| route.path == head.path) else {
            let routes: Vec<_> =
                ROUTES.iter().map(|r| format!("{} {}", r.method, r.path)).collect();
            let path: String = head.path.chars().take(100).collect();
            let text = format!("there is no {path:?}");
            write_json(out, &Failure { error: &text, routes });
            return Answer::json(404);
        };
        // HEAD is GET whose answer's body stays away (RFC 9110 section 9.3.2).
        let allow = if route.method == "GET" { "GET, HEAD" } else { route.method };
        let suits = match head.method {
            Method::Get | Method::Head => route.method == "GET",
            Method::Post => route.method == "POST",
            Method::Other => false,
        };
        if !suits {
            let text = format!("{} knows only {allow}", route.path);
            return Answer { allow, ..Answer::error(405, &text, out) };
        }
        let Api { inlet, names } = *self;
        let safe = head.method == Method::Head;
        let call = Call { body: &request.body, inlet, names, safe, crowded };
        Answer::json((route.handler)(&call, out))
    }
}

/// There is no such route.
#[derive(Serialize)]
struct Failure<'a> {
    error: &'a str,
    /// What there is instead.
    routes: Vec<String>,
}

/// Writes an error as JSON, and returns its status.
fn error(out: &mut Vec<u8>, status: u16, message: &str) -> u16 {
    Answer::error(status, message, out).status
}

fn write_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    // Neither our values nor a Vec can make it fail.
    let _ = serde_json::to_writer(out, value);
}

/// As flowd-go and the 2024 glowd have it, down to the indentation.
fn list_routes(_: &Call<'_>, out: &mut Vec<u8>) -> u16 {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Listing {
        api_routes: Vec<Entry>,
    }
    #[derive(Serialize)]
    struct Entry {
        method: &'static str,
        path: &'static str,
        name: &'static str,
    }
    let entry = |&Route { method, path, name, .. }: &Route| Entry { method, path, name };
    let listing = Listing { api_routes: ROUTES.iter().map(entry).collect() };
    let pretty = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    // As in write_json.
    let _ = listing.serialize(&mut serde_json::Serializer::with_formatter(out, pretty));
    200
}

fn dummy_start(call: &Call<'_>, out: &mut Vec<u8>) -> u16 {
    dummy(call, FlowState::Start, out)
}

fn dummy_end(call: &Call<'_>, out: &mut Vec<u8>) -> u16 {
    dummy(call, FlowState::End, out)
}

/// The flow that the 2024 glowd and flowd-go make up, with the largest ids that
/// fit a label: theirs did not.
fn dummy(call: &Call<'_>, state: FlowState, out: &mut Vec<u8>) -> u16 {
    let end = |port| SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port);
    let id = FlowId::new(Protocol::Tcp, end(2345), end(5777));
    match (id, Tag::new(Tag::MAX_EXPERIMENT, Tag::MAX_ACTIVITY)) {
        (Ok(id), Ok(tag)) => {
            let event = FlowEvent { state, id, tag, time: None, application: None, usage: None };
            accept(call, vec![event], false, out)
        }
        (Err(message), _) | (_, Err(message)) => error(out, 500, &message),
    }
}

fn post_flow(call: &Call<'_>, out: &mut Vec<u8>) -> u16 {
    match flow_json::parse(call.body, call.names) {
        Ok(flows) => accept(call, flows.events, flows.array, out),
        Err(rejection) => {
            call.inlet.malformed(1);
            write_json(out, &rejection);
            400
        }
    }
}

/// Hands the events over and answers with them.
fn accept(call: &Call<'_>, events: Vec<FlowEvent>, array: bool, out: &mut Vec<u8>) -> u16 {
    let start = out.len();
    flow_json::write(&events, array, out);
    // Flows are not opened by asking what it would look like (RFC 9110 section 9.2.1).
    if call.safe {
        return 200;
    }
    match call.inlet.send_all(events) {
        Ok(()) => 200,
        Err(refused) => {
            out.truncate(start);
            refusal(refused, out)
        }
    }
}

fn refusal(refused: Refused, out: &mut Vec<u8>) -> u16 {
    error(out, 503, &refused.to_string())
}

/// Sorted by start time, so that two listings can be compared.
fn list_flows(call: &Call<'_>, out: &mut Vec<u8>) -> u16 {
    if call.crowded {
        return error(out, 503, "too many long answers are on their way already");
    }
    let mut flows = match call.inlet.flows() {
        Ok(flows) => flows,
        Err(refused) => return refusal(refused, out),
    };
    flows.sort_unstable_by_key(|flow| {
        (flow.start, flow.id.src(), flow.id.dst(), flow.id.protocol().number())
    });
    let registry = call.names.get();
    out.extend_from_slice(b"{\"flows\":[");
    for (index, flow) in flows.iter().enumerate() {
        out.extend_from_slice(if index > 0 { b"," } else { b"" });
        write_flow(flow, &registry, out);
    }
    out.extend_from_slice(b"]}");
    200
}

fn write_flow(flow: &Flow, registry: &Registry, out: &mut Vec<u8>) {
    // As in write_json. Plugin names need no escape.
    let _ = write!(
        out,
        r#"{{"protocol":"{}","src":"{}","dst":"{}","experiment":{},"activity":{},"label":{},"labelHex":"{:#07x}","startTime":"{}","source":"{}""#,
        flow.id.protocol(),
        flow.id.src(),
        flow.id.dst(),
        flow.tag.experiment(),
        flow.tag.activity(),
        flow.label,
        flow.label,
        flow.start,
        flow.source
    );
    let (experiment, activity) = registry.names(flow.tag);
    let application = flow.application.as_deref();
    for (key, text) in
        [("experimentName", experiment), ("activityName", activity), ("application", application)]
    {
        if let Some(text) = text {
            let _ = write!(out, ",\"{key}\":");
            write_json(out, text);
        }
    }
    if flow.is_undated {
        out.extend_from_slice(br#","startUnknown":true"#);
    }
    if let Some(Usage { received, sent }) = flow.usage() {
        let _ = write!(out, r#","usage":{{"received":{received},"sent":{sent}}}"#);
    }
    if let Some(Counted { left, unmarked, received, last, .. }) = flow.counted {
        let Traffic { packets, octets } = left;
        let _ = write!(out, r#","marked":{{"packets":{packets},"octets":{octets}"#);
        let Traffic { packets, octets } = unmarked;
        let _ = write!(out, r#","unmarkedPackets":{packets},"unmarkedOctets":{octets}"#);
        if let Some(Traffic { packets, octets }) = received {
            let _ = write!(out, r#","receivedPackets":{packets},"receivedOctets":{octets}"#);
        }
        if let Some(last) = last {
            let _ = write!(out, r#","last":"{last}""#);
        }
        out.push(b'}');
    }
    let _ = write!(out, r#","lastHeard":"{}"}}"#, flow.heard());
}

/// Asks the dispatcher, through which everything goes.
fn health(call: &Call<'_>, out: &mut Vec<u8>) -> u16 {
    match call.inlet.count() {
        Ok(flows) => {
            #[derive(Serialize)]
            struct Health {
                status: &'static str,
                flows: usize,
            }
            write_json(out, &Health { status: "ok", flows });
            200
        }
        Err(refused) => refusal(refused, out),
    }
}

fn openapi(_: &Call<'_>, out: &mut Vec<u8>) -> u16 {
    out.extend_from_slice(OPENAPI.read().as_bytes());
    200
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::part::Context;
    use std::collections::BTreeSet;

    #[test]
    fn the_description_has_exactly_the_routes() {
        let document: serde_json::Value = serde_json::from_str(&OPENAPI.read()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let mut described = BTreeSet::new();
        let other = document["components"]["responses"]["Other"]["description"].as_str();
        assert!(["404", "405", "417", "501", "505"]
            .iter()
            .all(|code| other.unwrap().contains(code)));
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                // What a connection answers, or what stands in front of all routes.
                let responses = operation["responses"].as_object().unwrap();
                for status in ["200", "400", "403", "408", "413", "431", "503", "default"] {
                    assert!(responses.contains_key(status), "{method} {path}: {status}");
                }
                described.insert((method.to_uppercase(), path.clone()));
            }
        }
        let known = |route: &Route| (route.method.to_owned(), route.path.to_owned());
        assert_eq!(described, ROUTES.iter().map(known).collect());
    }

    #[test]
    fn the_description_refers_only_to_what_it_has() {
        let document: serde_json::Value = serde_json::from_str(&OPENAPI.read()).unwrap();
        let mut references = 0;
        for part in OPENAPI.read().split("\"$ref\": \"#").skip(1) {
            let pointer = part.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            references += 1;
        }
        assert!(references > 0);
        let fields = &document["components"]["schemas"]["Flow"]["properties"];
        let known: BTreeSet<_> = fields.as_object().unwrap().keys().cloned().collect();
        let written = br#"{"state":0,"protocol":0,"src":"[::1]:1","dst":"[::1]:1","experiment":1,
            "activity":1,"application":"x","startTime":"2024-01-01T00:00:00Z"}"#;
        let mut out = Vec::new();
        flow_json::write(
            &flow_json::parse(written, &Context::new(0).names).unwrap().events,
            false,
            &mut out,
        );
        let keys: serde_json::Value = serde_json::from_slice(&out).unwrap();
        for key in keys.as_object().unwrap().keys() {
            assert!(known.contains(key), "{key}");
        }
    }

    #[test]
    fn the_description_has_every_field_of_an_open_flow() {
        let end = |port| SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port);
        let now = crate::flow::Timestamp::now();
        let news = crate::flow::News {
            heard: now,
            usage: Some(Usage { received: 1, sent: 2 }),
            ..crate::flow::News::default()
        };
        let traffic = Traffic { packets: 1, octets: 2 };
        let counted = Counted {
            left: traffic,
            unmarked: traffic,
            received: Some(traffic),
            last: Some(now),
            ..Counted::default()
        };
        let flow = Flow {
            id: FlowId::new(Protocol::Tcp, end(1), end(2)).unwrap(),
            tag: Tag::new(2, 16).unwrap(),
            label: 1,
            start: now,
            is_undated: true,
            source: "api",
            application: Some("x".into()),
            news: Some(news.into()),
            counted: Some(counted),
        };
        let mut out = Vec::new();
        write_flow(&flow, &Context::new(0).names.get(), &mut out);
        let written: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let document: serde_json::Value = serde_json::from_str(&OPENAPI.read()).unwrap();
        let described = &document["components"]["schemas"]["OpenFlow"];
        let keys = |value: &serde_json::Value| -> BTreeSet<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(keys(&written), keys(&described["properties"]));
        for inner in ["usage", "marked"] {
            let known = &described["properties"][inner]["properties"];
            assert_eq!(keys(&written[inner]), keys(known), "{inner}");
        }
    }
}
