//! The published collector, as spec section 3.8 describes it, step by step: from a datagram
//! to the event that is stored, on which dashboards are built. Without its table of sites,
//! which it takes from elsewhere and which decides nothing here.

use std::sync::LazyLock;

use glowd::flow::Timestamp;
use regex::Regex;
use serde_json::{json, Value as Json};

/// The header's pattern, retyped from the stock patterns that it is made of. It is anchored
/// nowhere; what follows it is taken for the document.
static HEADER: LazyLock<Regex> = LazyLock::new(|| {
    let date = r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])";
    let time = r"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)";
    let label = r"[0-9A-Za-z][0-9A-Za-z-]{0,62}";
    let word = "[!-~]+";
    Regex::new(&format!(
        r"<\d+>(?P<version>\d+)\s*(?:-|(?P<time>{date}T{time}))\s*(?:-|(?P<host>\b{label}(?:\.{label})*(?:\.?|\b)))\s*(?:(?P<app>{word})|-)\s*(?:-|(?P<proc>{word}))\s*(?:-|(?P<msgid>{word}))\s*(?:-|(?:\[.*?[^\\]\])+)\s*(?P<json>.*)"
    ))
    .unwrap()
});

/// The registry that translates ids.
static REGISTRY: LazyLock<Json> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../data/registry.json")).unwrap());

/// What the collector takes of a datagram, and makes of it.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) time: String,
    pub(crate) host: String,
    /// As it came.
    pub(crate) document: Json,
    /// What is stored; everything else of the document is pruned.
    pub(crate) event: Json,
}

impl Stored {
    /// Of an end, in seconds.
    pub(crate) fn duration(&self) -> Option<f64> {
        self.event["duration"].as_f64()
    }
}

/// None: the collector drops it.
pub(crate) fn collected(datagram: &str) -> Option<Stored> {
    let header = HEADER.captures(datagram)?;
    let part = |name| header.name(name).map_or("-", |part| part.as_str()).to_string();
    let document: Json = serde_json::from_str(&part("json")).ok()?;
    if (&*part("app"), &*part("msgid")) != ("glowd", "firefly-json") {
        return None; // it is stored, under wrong names
    }
    let mut event = json!({});
    add_duration(&document, &mut event);
    add_throughput(&document, &mut event);
    let syslog = json!({
        "timestamp": part("time"), "version": part("version"),
        "hostname": part("host"), "app_name": part("app"),
    });
    rename(&document, syslog, &mut event)?;
    translate(&mut event);
    Some(Stored { time: part("time"), host: part("host"), document, event })
}

/// Seconds from start-time to end-time, to the millisecond; both are renamed if there is an
/// end.
fn add_duration(document: &Json, event: &mut Json) {
    let lifecycle = &document["flow-lifecycle"];
    let time = |key: &str| Some(Timestamp::parse(lifecycle[key].as_str()?)?.0);
    if let Some((start, end)) = time("start-time").zip(time("end-time")) {
        // Ruby's script fails there, and the event is without it.
        assert!(end >= start, "{document}");
        event["duration"] = json!(((end - start) as f64 / 1e3).round() / 1e3);
    }
    for (from, to) in [("start-time", "start"), ("end-time", "end")] {
        if let Some(time) = lifecycle.get(from) {
            event[to] = time.clone();
        }
    }
}

/// Only of what has a duration and both numbers of usage.
fn add_throughput(document: &Json, event: &mut Json) {
    let usage = |key: &str| document["usage"][key].as_f64();
    let duration = event["duration"].as_f64().filter(|duration| *duration > 0.0);
    if let (Some(duration), Some(received), Some(sent)) =
        (duration, usage("received"), usage("sent"))
    {
        event["throughput"] = json!(received.max(sent) / duration);
        event["total_bytes"] = json!(received + sent);
    }
}

/// What is kept, under the names that dashboards know. None: it has no state.
fn rename(document: &Json, syslog: Json, event: &mut Json) -> Option<()> {
    let (id, context) = (&document["flow-id"], &document["context"]);
    let state = document["flow-lifecycle"]["state"].as_str()?;
    // Of these texts, as they came; here they are it.
    let parts = ["src-ip", "dst-ip", "src-port", "dst-port", "protocol"];
    let fingerprint = parts.map(|key| id[key].to_string()).concat();
    let mut meta = json!({
        "src_ip": id["src-ip"], "src_port": id["src-port"],
        "dst_ip": id["dst-ip"], "dst_port": id["dst-port"],
        "protocol": id["protocol"], "ip_version": id["afi"], "state": state,
        "experiment_id": context["experiment-id"], "activity_id": context["activity-id"],
        "application": context["application"], "firefly_version": document["version"],
        "syslog": syslog,
        "id": fingerprint,
    });
    // The source is who supplies the data. The numbers stay where they are.
    let usage = |key: &str| document["usage"][key].as_f64();
    let application = context["application"].as_str().unwrap_or_default();
    if !["http-put", "http-get"].contains(&application) && usage("received") > usage("sent") {
        for (one, other) in [("src_ip", "dst_ip"), ("src_port", "dst_port")] {
            let first = meta[one].take();
            meta[one] = meta[other].take();
            meta[other] = first;
        }
    }
    event["meta"] = meta;
    for (block, key) in [("usage", "received"), ("usage", "sent"), ("netlink", "rtt")] {
        if let Some(value) = document.get(block).and_then(|block| block.get(key)) {
            // The index has it as a number.
            assert!(value.is_number(), "{document}");
            event["values"][block][key] = value.clone();
        }
    }
    Some(())
}

/// Ids to names.
fn translate(event: &mut Json) {
    let named = |list: &Json, key: &str, id: &Json| {
        list.as_array().into_iter().flatten().find(|entry| entry[key] == *id).cloned()
    };
    let meta = &mut event["meta"];
    let experiment = named(&REGISTRY["experiments"], "expId", &meta["experiment_id"]);
    let activity = experiment
        .as_ref()
        .and_then(|one| named(&one["activities"], "activityId", &meta["activity_id"]));
    let name = |entry: Option<Json>, key: &str| entry.map_or("Unknown".into(), |e| e[key].clone());
    meta["activity"] = name(activity, "activityName");
    meta["experiment"] = name(experiment, "expName");
}
