//! Tests of flow_json.rs.

use super::*;
use crate::flow::Timestamp;
use crate::part::Context;

fn parse(body: &[u8]) -> Result<Flows, Rejection> {
    super::parse(body, &Context::new(0).names)
}

/// The body in glowd's own shape.
fn normal(body: &str) -> String {
    let flows = parse(body.as_bytes()).unwrap_or_else(|bad| panic!("{body}: {bad:?}"));
    let mut out = Vec::new();
    write(&flows.events, flows.array, &mut out);
    assert_eq!(parse(&out), Ok(flows), "what is written can be read");
    String::from_utf8(out).unwrap()
}

/// What is wrong with the body, as index, field and message.
fn problems(body: &str) -> Vec<(usize, String, String)> {
    let bad = parse(body.as_bytes()).expect_err(body);
    bad.problems.into_iter().map(|p| (p.index, p.field, p.message)).collect()
}

const OWN: &str = r#"{"state":"start","protocol":"tcp","src":"[2001:db8::1]:1094",
    "dst":"[2001:db8::2]:40000","experiment":2,"activity":16}"#;
const OWN_NORMAL: &str = r#"{"state":"start","protocol":"tcp","src":"[2001:db8::1]:1094","dst":"[2001:db8::2]:40000","experiment":2,"activity":16}"#;

/// The good flow with the value of one field replaced, or another field added.
fn with(field: &str, value: &str) -> String {
    let mut flow: serde_json::Value = serde_json::from_str(OWN).unwrap();
    flow[field] = serde_json::from_str(value).unwrap();
    flow.to_string()
}

#[test]
fn the_three_shapes_mean_the_same() {
    assert_eq!(normal(OWN), OWN_NORMAL);
    let of_2024 = r#"{"State":0,"Protocol":0,"Src":{"IP":"2001:db8::1","Port":1094},
        "Dst":{"IP":"2001:db8::2","Port":40000},"Experiment":2,"Activity":16,
        "StartTs":"0001-01-01T00:00:00Z","EndTs":"0001-01-01T00:00:00Z","NetLink":""}"#;
    assert_eq!(normal(of_2024), OWN_NORMAL);
    let of_flowd_go = r#"{"State":2,"Protocol":0,"Family":10,"Src":"[2001:db8::1]:1094",
        "Dst":"[2001:db8::2]:40000","Experiment":2,"Activity":16,
        "StartTs":"0001-01-01T00:00:00Z","EndTs":"0001-01-01T00:00:00Z",
        "CurrentTs":"0001-01-01T00:00:00Z","Application":"","Info":null,"FlowInfoChans":null}"#;
    assert_eq!(normal(of_flowd_go), OWN_NORMAL);
    assert_eq!(normal(&format!(" [{of_2024}, {OWN}] ")), format!("[{OWN_NORMAL},{OWN_NORMAL}]"));
    assert_eq!(normal("[]"), "[]");
}

#[test]
fn every_value_that_a_field_may_have_is_taken() {
    for (field, value, shown) in [
        ("state", "0", r#""state":"start""#),
        ("state", "1", r#""state":"end""#),
        ("state", "2", r#""state":"start""#),
        ("state", "3", r#""state":"end""#),
        ("state", r#""END""#, r#""state":"end""#),
        ("protocol", "1", r#""protocol":"udp""#),
        ("protocol", r#""UDP""#, r#""protocol":"udp""#),
        ("experiment", "511", r#""experiment":511"#),
        ("activity", "0", r#""activity":0"#),
        ("src", r#""[fe80::1%eth0]:7""#, r#""src":"[fe80::1]:7""#),
        ("src", r#"{"ip":"fe80::1%2","PORT":7}"#, r#""src":"[fe80::1]:7""#),
        ("application", r#""a \"b\" \\ c""#, r#""application":"a \"b\" \\ c""#),
        ("application", "null", r#""activity":16}"#),
        (
            "startTs",
            r#""2024-01-02T03:04:05.6Z""#,
            r#""startTime":"2024-01-02T03:04:05.600000+00:00""#,
        ),
        ("EndTime", r#""2024-01-02T03:04:05Z""#, r#""activity":16}"#),
        ("STARTTIME", "null", r#""activity":16}"#),
        ("family", "30", r#""activity":16}"#),
        ("Info", r#"[{"a":[1,2]}]"#, r#""activity":16}"#),
    ] {
        let text = normal(&with(field, value));
        assert!(text.contains(shown), "{field} {value}: {text}");
    }
}

#[test]
fn ipv4_and_mapped_addresses_are_ipv4() {
    for (src, family) in
        [("192.0.2.1:7", 2), ("[::ffff:192.0.2.1]:7", 2), ("[::ffff:192.0.2.1]:7", 10)]
    {
        let mapped = src.starts_with('[');
        let dst = if mapped { r#"{"IP":"::ffff:192.0.2.2","Port":8}"# } else { r#""192.0.2.2:8""# };
        let text = normal(&format!(
            r#"{{"state":3,"protocol":1,"family":{family},"src":"{src}","dst":{dst},
            "experiment":1,"activity":1,"endTs":"2024-01-02T03:04:05Z"}}"#
        ));
        assert!(text.contains(r#""src":"192.0.2.1:7","dst":"192.0.2.2:8""#), "{text}");
        assert!(text.ends_with(r#","endTime":"2024-01-02T03:04:05.000000+00:00"}"#), "{text}");
    }
}

#[test]
fn the_time_that_counts_is_that_of_the_state() {
    let both = r#""startTs":"2024-01-02T03:04:05Z","endTs":"2024-01-02T03:04:06Z","#;
    for (state, micros) in [(0, 1_704_164_645_000_000), (1, 1_704_164_646_000_000)] {
        let flow = OWN.replace(r#""state":"start","#, &format!(r#"{both}"state":{state},"#));
        let flows = parse(flow.as_bytes()).unwrap();
        assert_eq!(flows.events[0].time, Some(Timestamp(micros)));
    }
}

/// Each bad value, the field that is named, and what the message has to contain.
#[test]
fn every_bad_field_is_named() {
    let long = format!("\"{}\"", "x".repeat(129));
    for (field, value, named, message) in [
        ("state", "4", "state", "ongoing"),
        ("state", r#""ongoing""#, "state", "ongoing"),
        ("state", "5", "state", "5 is neither"),
        ("state", "-1", "state", "-1 is neither"),
        ("state", "null", "state", "null"),
        ("state", r#""begin""#, "state", r#""begin" is neither "start" nor "end""#),
        ("protocol", "6", "protocol", "6 is neither"),
        ("protocol", r#""sctp""#, "protocol", "sctp"),
        ("protocol", "{}", "protocol", "an object"),
        ("experiment", "0", "experiment", "experiment 0 is out of range (1 to 511)"),
        ("experiment", "512", "experiment", "out of range"),
        ("experiment", "-2", "experiment", "experiment -2 is not a whole number up to 511"),
        ("experiment", "2.5", "experiment", "2.5"),
        ("experiment", r#""2""#, "experiment", r#""2" is not"#),
        ("experiment", "18446744073709551616", "experiment", "not a whole number"),
        ("activity", "64", "activity", "activity 64 is out of range (0 to 63)"),
        ("activity", "[1]", "activity", "an array"),
        ("src", r#""[2001:db8::1]:0""#, "src", "0 is not a port (1 to 65535)"),
        ("src", r#""[2001:db8::1]:65536""#, "src", "65536 is not a port"),
        ("src", r#""[2001:db8::1]:+7""#, "src", "+7 is not a port"),
        ("src", r#""[2001:db8::1]:""#, "src", "is not a port"),
        ("src", r#""2001:db8::1:7""#, "src", "is not an address and port"),
        ("src", r#""[192.0.2.1]:7""#, "src", "is not an address and port"),
        ("src", r#""[2001:db8::1]""#, "src", "is not an address and port"),
        ("src", r#""localhost:7""#, "src", "is not an address and port"),
        ("src", r#""""#, "src", "is not an address and port"),
        ("src", "7", "src", "7 is neither"),
        ("src", r#"{"Port":7}"#, "src", "IP is missing"),
        ("src", r#"{"IP":"::1"}"#, "src", "Port is missing"),
        ("src", r#"{"IP":"x","Port":7}"#, "src", r#"IP "x" is not an address"#),
        ("src", r#"{"IP":{"IP":1},"Port":7}"#, "src", "IP an object is not an address"),
        ("src", r#"{"IP":"::1","Port":"7"}"#, "src", r#""7" is not a port"#),
        ("src", r#"{"IP":"::1","Port":0}"#, "src", "0 is not a port"),
        ("src", r#"{"IP":"::1","Port":7,"Prot":1}"#, "src", r#"unknown key "Prot""#),
        ("dst", r#""192.0.2.1:7""#, "dst", "two families"),
        ("family", "2", "family", "2 is IPv4, and src and dst are not"),
        ("family", "7", "family", "7 is neither"),
        ("application", &long, "application", "longer than 128 bytes"),
        ("application", r#""a\u0007""#, "application", "printable"),
        ("application", r#""ü""#, "application", "printable"),
        ("application", "1", "application", "1 is not a text"),
        ("startTime", r#""yesterday""#, "startTime", "yesterday"),
        ("EndTs", "5", "endTime", "5 is not a time"),
        ("aplication", "1", "aplication", "unknown key"),
    ] {
        let found = problems(&with(field, value));
        let [(0, at, text)] = &found[..] else { panic!("{field} {value}: {found:?}") };
        assert_eq!(at, named, "{field} {value}: {text}");
        assert!(text.contains(message), "{field} {value}: {text}");
    }
}

/// Defect 17 of the peers: `{}` and State 4 gave 200.
#[test]
fn defect_17_missing_fields_are_all_named() {
    let missing = |fields: &[&str]| -> Vec<_> {
        fields.iter().map(|field| (0, (*field).to_owned(), "is missing".to_owned())).collect()
    };
    let all = ["state", "protocol", "src", "dst", "experiment", "activity"];
    assert_eq!(problems("{}"), missing(&all));
    assert_eq!(
        problems(r#"{"State":0,"Src":"[::1]:1"}"#),
        missing(&["protocol", "dst", "experiment", "activity"])
    );
}

/// Defect 17 of the peers: the examples that flowd-go ships, which its own daemon
/// refuses: ends as objects and the numbers of 2024.
#[test]
fn defect_17_the_examples_that_flowd_go_refuses_are_taken() {
    let text = normal(
        r#"{"State":0,"Protocol":0,"Family":10,"Src":{"IP":"::1","Port":2345},
        "Dst":{"IP":"::1","Port":5777},"Experiment":1,"Activity":2,"StartTs":"2024-11-26T10:00:00Z",
        "EndTs":"0001-01-01T00:00:00Z","Application":"x","FlowInfoChans":null}"#,
    );
    assert_eq!(
        text,
        r#"{"state":"start","protocol":"tcp","src":"[::1]:2345","dst":"[::1]:5777","experiment":1,"activity":2,"application":"x","startTime":"2024-11-26T10:00:00.000000+00:00"}"#
    );
}

#[test]
fn keys_may_not_be_repeated() {
    let twice =
        OWN.replace('}', r#","EXPERIMENT":2,"endTs":null,"endTime":null,"info":1,"Info":1}"#);
    let named: Vec<_> = problems(&twice).into_iter().map(|(_, field, _)| field).collect();
    assert_eq!(named, ["experiment", "endTime", "info"]);
    let inside =
        with("src", "0").replace(r#""src":0"#, r#""src":{"IP":"::1","Ip":"::1","Port":1}"#);
    assert_eq!(problems(&inside)[0].2, r#""Ip" is there more than once"#);
}

#[test]
fn every_bad_flow_of_an_array_is_named() {
    let bad = parse(format!("[{OWN},{},{OWN}]", with("experiment", "999")).as_bytes()).unwrap_err();
    assert_eq!(
        serde_json::to_string(&bad).unwrap(),
        r#"{"error":"1 of 3 flows is bad","problems":[{"index":1,"field":"experiment","message":"experiment 999 is out of range (1 to 511)"}]}"#
    );
    let both = format!("[{},{OWN},{}]", with("state", "9"), with("sate", "9"));
    let bad = parse(both.as_bytes()).unwrap_err();
    assert_eq!(bad.error, "2 of 3 flows are bad");
    assert_eq!(problems(&both).iter().map(|p| p.0).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn the_list_of_problems_is_limited() {
    let many = format!("[{}]", vec!["{}"; 50].join(","));
    let bad = parse(many.as_bytes()).unwrap_err();
    assert_eq!(bad.problems.len(), MAX_PROBLEMS);
    assert_eq!(bad.error, "50 of 50 flows are bad; the first 100 of 300 problems follow");
    let long = format!(r#"{{"{}":1}}"#, "k".repeat(1_000_000));
    assert!(problems(&long).iter().all(|problem| problem.1.len() < 100));
}

#[test]
fn what_is_not_of_flows_is_refused() {
    let error = |body: &str| {
        let bad = parse(body.as_bytes()).unwrap_err();
        assert_eq!(bad.problems, [], "{body}");
        bad.error
    };
    for (body, message) in [
        ("", "the body is not JSON: EOF"),
        ("{", "the body is not JSON: EOF"),
        ("{}{}", "the body is not JSON: trailing characters at line 1 column 3"),
        ("{'a':1}", "the body is not JSON"),
        ("\u{feff}{}", "the body is not JSON"),
        (r#"{"state":1e999}"#, "the body is not JSON: number out of range"),
        ("5", "the body is not of flows: invalid type: integer `5`, expected a flow object or"),
        ("[5]", "the body is not of flows: invalid type: integer `5`, expected a flow object at"),
        ("[[{}]]", "the body is not of flows: invalid type: sequence"),
    ] {
        let said = error(body);
        assert!(said.starts_with(message), "{body}: {said}");
    }
    let deep = format!(r#"{{"state":{}"#, "[".repeat(1_000_000));
    assert!(error(&deep).contains("not JSON"));
    let deep = format!(r#"{{"src":{}"#, r#"{"ip":"#.repeat(1_000_000));
    assert!(error(&deep).contains("recursion limit"));
    assert!(parse(b"{\"state\":\"\xff\"}").is_err());
}

#[test]
fn an_array_has_up_to_ten_thousand_flows() {
    let array = |count: usize| format!("[{}]", vec![OWN; count].join(","));
    assert_eq!(parse(array(MAX_FLOWS).as_bytes()).unwrap().events.len(), MAX_FLOWS);
    let bad = parse(array(MAX_FLOWS + 1).as_bytes()).unwrap_err();
    assert!(bad.error.starts_with("the body is not of flows: more than 10000 flows"), "{bad:?}");
}
