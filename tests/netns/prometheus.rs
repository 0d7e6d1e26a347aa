//! A real Prometheus that scrapes a real glowd with real traffic: what it makes of the
//! metrics, and that every query of the dashboard and of the alerts has data.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{json, Value};
use tempfile::TempDir;

use super::listener::firefly;
use super::rig::{line, ATLAS, CMS};
use crate::common::{
    installed, skip_unless_root, udp, v6, wait_for, Connection, Daemon, Namespace, Offload, Pair,
    DEVICE, HERE, PATIENCE, THERE,
};

/// Where glowd's metrics are.
const METRICS: &str = "127.0.0.1:9817";
/// Where Prometheus answers.
const QUERIES: &str = "127.0.0.1:9090";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether Prometheus is here.
fn has_prometheus() -> bool {
    installed(&["prometheus", "promtool"])
}

/// A Prometheus in a namespace, which scrapes glowd there. Killed when dropped.
struct Prometheus {
    child: Child,
    _dir: TempDir,
}

impl Prometheus {
    fn start(namespace: &Namespace) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let config = dir.path().join("prometheus.yml");
        let text = format!(
            "global:\n  scrape_interval: 500ms\n  scrape_timeout: 500ms\nscrape_configs:\n  - job_name: \
             glowd\n    static_configs:\n      - targets: ['{METRICS}']\n"
        );
        fs::write(&config, text).expect("its configuration");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
        command.arg(format!("--web.listen-address={QUERIES}"));
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = namespace.enter(|| command.spawn()).expect("to start Prometheus");
        Prometheus { child, _dir: dir }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// GET in a namespace: head and body; None: nobody answers.
fn get(namespace: &Namespace, at: &str, path: &str, accept: &str) -> Option<(String, String)> {
    let address: SocketAddr = at.parse().expect("an address");
    let mut stream = namespace.enter(|| TcpStream::connect(address)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: {at}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.to_owned(), body.to_owned()))
}

/// What Prometheus answers to an expression: the results, if it could be evaluated.
fn query(namespace: &Namespace, expression: &str) -> Option<Vec<Value>> {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    let escaped: String = expression.bytes().map(escape).collect();
    let path = format!("/api/v1/query?query={escaped}");
    let (_, body) = get(namespace, QUERIES, &path, "*/*")?;
    let answer: Value = serde_json::from_str(&body).ok()?;
    assert_eq!(answer["status"], "success", "{expression}: {answer}");
    answer["data"]["result"].as_array().cloned()
}

/// The value of a result; None: it is no number.
fn value(result: &Value) -> Option<f64> {
    let value: f64 = result["value"][1].as_str()?.parse().ok()?;
    value.is_finite().then_some(value)
}

/// Waits until an expression has a value, and returns the first.
fn value_of(namespace: &Namespace, expression: &str) -> f64 {
    wait_for(expression, || query(namespace, expression)?.iter().find_map(value))
}

/// The expressions of the dashboard, as they are once its variables are chosen.
fn dashboard_queries() -> Vec<String> {
    let text = fs::read_to_string(root().join("dashboards/glowd.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.map(|target| {
        let text = target["expr"].as_str().expect("an expression");
        text.replace("$instance", ".*").replace("$__rate_interval", "10s")
    });
    queries.collect()
}

/// The values that the alerts look at: their expressions without the limit.
fn alert_queries() -> Vec<String> {
    let text = fs::read_to_string(root().join("dashboards/alerts.yml")).expect("the alerts");
    let mut queries: Vec<String> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(expression) = line.trim().strip_prefix("expr: ") else { continue };
        let mut expression = expression.trim_start_matches(">-").to_owned();
        while lines.peek().is_some_and(|line| line.starts_with("          ")) {
            expression.push(' ');
            expression.push_str(lines.next().expect("peeked").trim());
        }
        let limit = expression.rfind([' ']).expect("a limit");
        let operator = expression[..limit].rfind(' ').expect("an operator");
        assert!([" <", " >"].contains(&&expression[operator..limit]), "{expression}");
        queries.push(expression[..operator].to_owned());
    }
    assert_eq!(queries.len(), text.matches("- alert: ").count());
    queries
}

/// All parts that count.
fn config(registry: Option<&Path>) -> Value {
    let mut config = json!({
        "plugins": {"namedPipe": {}, "api": {}, "firefly": {"relay": ["[fd00::2]:10514"]}},
        "backends": {
            "marker": {"targetInterfaces": [DEVICE]},
            "firefly": {"collectors": ["[fd00::2]:10514"]},
            "prometheus": {},
        },
        "enrichers": {"period": 100, "netlink": {}},
    });
    if let Some(path) = registry {
        config["registryPath"] = json!(path.to_str().expect("UTF-8"));
    }
    config
}

/// Flows that come and go, data on one that stays, fireflies that are new each time, one
/// that is none and such a line, until the flag is set.
fn traffic(pair: &Pair, daemon: &mut Daemon, over: &AtomicBool) {
    let ends = ((&pair.here, v6(HERE, 40_000)), (&pair.there, v6(THERE, 1094)));
    let sink = pair.there.enter(|| UdpSocket::bind("[::]:10514")).expect("a collector");
    let sender = pair.here.enter(|| UdpSocket::bind("127.0.0.1:0")).expect("a sender");
    let mut connection = Connection::open(ends.0, ends.1, 0);
    daemon.write(&line(true, "tcp", ends.0 .1, ends.1 .1, ATLAS));
    let other = (v6(HERE, 40_001), v6(THERE, 1094));
    let heard = |port| {
        let states = ["start", "end"].into_iter();
        states.map(move |state| firefly(state, v6(THERE, 1094), v6(HERE, port)))
    };
    for heard in (1024..u16::MAX).cycle().flat_map(heard) {
        if over.load(Ordering::Relaxed) {
            break;
        }
        sender.send_to(heard.as_bytes(), "127.0.0.1:10514").expect("to send");
        connection.send_bulk(1 << 20);
        for start in [true, false] {
            daemon.write(&line(start, "tcp", other.0, other.1, CMS));
        }
        daemon.write("nonsense\n");
        sender.send_to(b"nonsense", "127.0.0.1:10514").expect("to send");
    }
    drop(sink);
}

/// What the daemon says of the nonsense.
const NONSENSE: &[&str] =
    &["ignored", "dropped a datagram", "cannot send", "the dispatcher is behind"];

#[test]
fn prometheus_has_data_for_every_query_of_the_dashboard_and_the_alerts() {
    if skip_unless_root() || !has_prometheus() {
        return;
    }
    let pair = Pair::new();
    let mut daemon = Daemon::start_in(&pair.here, config(None));
    let _prometheus = Prometheus::start(&pair.here);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| traffic(&pair, &mut daemon, &over));
        let _ends = OnDrop(&over);
        let here = &pair.here;
        for expression in dashboard_queries().iter().chain(&alert_queries()) {
            value_of(here, expression);
        }
        wait_for("a flow", || (value_of(here, "glowd_flows_open") >= 1.0).then_some(()));
        let atlas = "glowd_tag_flows_open{experiment=\"atlas\", activity=\"Production Input\", \
                     experiment_id=\"2\", activity_id=\"15\"}";
        wait_for("its tag", || ((value_of(here, atlas) - 1.0).abs() < 0.1).then_some(()));
        let sent =
            format!("rate(glowd_interface_transmit_bytes_total{{interface=\"{DEVICE}\"}}[5s])");
        wait_for("traffic", || (value_of(here, &sent) > 100_000.0).then_some(()));
        // It prefers OpenMetrics, and only that has this type.
        wait_for("the types", || {
            let path = "/api/v1/metadata?metric=glowd_build";
            let (_, body) = get(here, QUERIES, path, "*/*")?;
            let metadata: Value = serde_json::from_str(&body).ok()?;
            (metadata["data"]["glowd_build"][0]["type"] == "info").then_some(())
        });
    });
    daemon.stop(NONSENSE);
}

/// Sets the flag whatever way a test ends.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A registry whose names are as bad as it lets them be.
fn hostile_registry(dir: &Path) -> PathBuf {
    let path = dir.join("registry.json");
    let document = json!({"experiments": [{"expId": 2, "expName": "a\"} 1 # \\", "activities": [
        {"activityId": 15, "activityName": "\\n{}=,\u{2028}\u{e9}\""}]}]});
    fs::write(&path, document.to_string()).expect("a registry");
    path
}

#[test]
fn promtool_finds_nothing_and_both_formats_say_the_same() {
    if skip_unless_root() || !has_prometheus() {
        return;
    }
    let (pair, dir) = (Pair::new(), tempfile::tempdir().expect("a folder"));
    let registry = hostile_registry(dir.path());
    let ends = ((&pair.here, v6(HERE, 40_000)), (&pair.there, v6(THERE, 1094)));
    let mut connection = Connection::open(ends.0, ends.1, 0);
    connection.send_bulk(1 << 20);
    for units in ["flowd", "flowd-go"] {
        let mut config = config(Some(&registry));
        config["backends"]["prometheus"]["units"] = json!(units);
        // Whatever is taken to be measured now and then has time for both scrapes.
        config["enrichers"]["period"] = json!(1000);
        let mut daemon = Daemon::start_in(&pair.here, config);
        daemon.write(&line(true, "tcp", ends.0 .1, ends.1 .1, ATLAS));
        both_formats_are_good(&pair.here);
        daemon.stop(&["is not registered"]);
    }
}

fn both_formats_are_good(here: &Namespace) {
    let text = wait_for("the flow", || {
        let (_, body) = get(here, METRICS, "/metrics", "text/plain")?;
        body.contains("flow_tcp_rtt{").then_some(body)
    });
    let hostile = r#"{experiment="a\"} 1 # \\",experiment_id="2",activity="\\n{}=,"#;
    assert!(text.contains(hostile), "{text}");
    promtool_is_content(&text);
    // What Prometheus asked for before 2.35, since then, and since 3.
    let open = ["0.0.1", "1.0.0", "1.0.0;escaping=allow-utf-8"].map(|version| {
        let accept = format!(
            "application/openmetrics-text; version={version},text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        );
        let (head, open) = get(here, METRICS, "/metrics", &accept).expect("it");
        let version = &version[..5];
        let form = format!("Content-Type: application/openmetrics-text; version={version}; charset");
        assert!(head.contains(&form), "{head}");
        is_open_metrics(&open);
        open
    });
    let [_, open, _] = open;
    let names = |text: &str| -> Vec<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(|line| line.rsplit_once(' ').expect("a value").0.to_owned()).collect()
    };
    assert_eq!(names(&text), names(&open));
}

/// Runs `promtool check metrics` on a scrape.
fn promtool_is_content(text: &str) {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut child =
        promtool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("promtool");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("to write");
    let output = child.wait_with_output().expect("its end");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

/// Judges the form by the specification of OpenMetrics 1.0: HELP and TYPE of a family
/// and then its samples, each family once, suffixes by the type, and the end.
fn is_open_metrics(text: &str) {
    let body = text.strip_suffix("# EOF\n").expect("an end");
    let (mut families, mut samples) = (Vec::new(), Vec::new());
    let mut suffix = "";
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let name = help.split(' ').next().expect("a name").to_owned();
            assert!(!families.contains(&name), "{name} twice");
            families.push(name);
            continue;
        }
        let family = families.last().expect("a family first");
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert_eq!(name, family);
            suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                "gauge" => "",
                _ => panic!("{line}"),
            };
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect("a value");
        let name = sample.split('{').next().expect("a name");
        assert_eq!(name, format!("{family}{suffix}"));
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
        assert!(!samples.contains(&sample), "{sample} twice");
        samples.push(sample);
    }
    assert!(samples.len() > 20);
}

#[test]
fn promtool_accepts_the_alerts_and_each_fires_when_it_should() {
    if !has_prometheus() {
        return;
    }
    let promtool = |words: &[&str]| {
        let mut command = Command::new("promtool");
        let output = command.args(words).current_dir(root().join("dashboards")).output();
        let output = output.expect("promtool");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said
    };
    let said = promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["test", "rules", "alerts_test.yml"]);
    let alerts = fs::read_to_string(root().join("dashboards/alerts.yml")).expect("the alerts");
    let tests = fs::read_to_string(root().join("dashboards/alerts_test.yml")).expect("the tests");
    let names: Vec<_> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(said.contains(&format!("{} rules found", names.len())), "{said}");
    for name in names {
        assert!(tests.contains(&format!("alertname: {name}}}")), "{name} is not told to be silent");
        let fires = format!("alertname: {name}\n        exp_alerts:");
        assert!(tests.contains(&fires), "{name} is not told to fire");
    }
}

#[test]
fn packets_and_octets_of_a_tag_are_exact_and_stay_when_its_flows_end() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let mut daemon = Daemon::start_in(&pair.here, config(None));
    let labels = "experiment=\"atlas\",experiment_id=\"2\",activity=\"Production Input\",\
                  activity_id=\"15\"";
    let wait = |line: String| {
        wait_for(&line, || {
            let (_, body) = get(&pair.here, METRICS, "/metrics", "text/plain")?;
            body.lines().any(|found| found == line).then_some(())
        });
    };
    let _sink = pair.there.enter(|| UdpSocket::bind("[::]:5001")).expect("a sink");
    for round in 1..=3_u16 {
        let ends = (v6(HERE, 40_000 + round), v6(THERE, 5001));
        let socket = udp(&pair.here, ends.0, ends.1);
        daemon.write(&line(true, "udp", ends.0, ends.1, ATLAS));
        wait("glowd_bpf_map_entries{map=\"flows\"} 1".into());
        for _ in 0..1000 {
            socket.send(&[7; 100]).expect("to send");
        }
        let so_far = || {
            wait(format!("glowd_tag_packets_total{{{labels}}} {}", 1000 * u32::from(round)));
            wait(format!("glowd_tag_bytes_total{{{labels}}} {}", 100_000 * u32::from(round)));
        };
        so_far();
        daemon.write(&line(false, "udp", ends.0, ends.1, ATLAS));
        wait("glowd_bpf_map_entries{map=\"flows\"} 0".into());
        so_far();
    }
    daemon.stop(NONSENSE);
}

/// Packets and octets with that mark, as the metrics have them; None: none.
fn tagged(host: &Namespace, experiment: u8, activity: u8) -> Option<(u64, u64)> {
    let (_, body) = get(host, METRICS, "/metrics", "text/plain")?;
    let ids = (format!("_id=\"{experiment}\","), format!("activity_id=\"{activity}\"}}"));
    let number = |name: &str| -> Option<u64> {
        let of =
            |line: &&str| line.starts_with(name) && line.contains(&ids.0) && line.contains(&ids.1);
        body.lines().find(of)?.rsplit(' ').next()?.parse().ok()
    };
    Some((number("glowd_tag_packets_total{")?, number("glowd_tag_bytes_total{")?))
}

/// What rules mark belongs to the totals of its tag, which rules that come and go and flows
/// with the same tag never set back; what cannot be marked does not.
#[test]
fn what_rules_mark_is_counted_by_tag_and_nothing_that_is_unmarked() {
    if skip_unless_root() {
        return;
    }
    const SMALL: usize = 100;
    // With a header it would exceed the MTU of 1500.
    const LARGE: usize = 1452;
    let pair = Pair::new();
    pair.set_device(1500, Offload::None);
    let config = |rules: Value| {
        let mut config = config(None);
        config["backends"]["marker"]["markingStrategy"] = json!("hopByHop");
        config["backends"]["marker"]["rules"] = rules;
        config
    };
    let rule =
        |port: u16, activity| json!({"remotePort": port, "experiment": 2, "activity": activity});
    let mut daemon = Daemon::start_in(&pair.here, config(json!([rule(5001, 15)])));
    let (from, to) = (v6(HERE, 40_001), v6(THERE, 5001));
    let _sink = pair.there.enter(|| UdpSocket::bind("[::]:5001")).expect("a sink");
    let socket = udp(&pair.here, from, to);
    let mut carried = [0; 2];
    let tags = [15, 16];
    // By rules, by those of another table, by a flow, and by the rules again.
    for (round, tag) in [0, 1, 0, 0, 1].into_iter().enumerate() {
        let flow = round == 2;
        if flow {
            daemon.write(&line(true, "udp", from, to, ATLAS));
        } else {
            daemon.rewrite(config(json!([rule(9, 15), rule(5001, tags[tag])])));
            daemon.signal(nix::sys::signal::Signal::SIGHUP);
        }
        // Packets without payload, until it is in force.
        let before = tagged(&pair.here, 2, tags[tag]).map_or(0, |(packets, _)| packets);
        wait_for("the tag", || {
            socket.send(b"").expect("to send");
            let (_, answer) = pair.here.enter(|| daemon.get("/flows"));
            let open = answer["flows"].as_array().is_some_and(|flows| !flows.is_empty());
            let (packets, _) = tagged(&pair.here, 2, tags[tag])?;
            (packets > before && open == flow).then_some(())
        });
        for _ in 0..50 {
            socket.send(&[7; SMALL]).expect("to send");
            socket.send(&[7; LARGE]).expect("to send");
        }
        carried[tag] += 50 * SMALL as u64;
        let totals = || tags.map(|tag| tagged(&pair.here, 2, tag).map_or(0, |(_, octets)| octets));
        wait_for("all octets", || (totals() == carried).then_some(()));
        if flow {
            let (_, answer) = pair.here.enter(|| daemon.get("/flows"));
            let marked = &answer["flows"][0]["marked"];
            assert_eq!(marked["octets"], json!(50 * (SMALL + LARGE)), "{marked}");
            assert_eq!(marked["unmarkedOctets"], json!(50 * LARGE), "{marked}");
            assert_eq!(marked["unmarkedPackets"], json!(50), "{marked}");
            daemon.write(&line(false, "udp", from, to, ATLAS));
            // As long as the marker has it, its tag says nothing of the rules.
            wait_for("the flow to go", || {
                let (_, body) = get(&pair.here, METRICS, "/metrics", "text/plain")?;
                body.contains("\nglowd_bpf_map_entries{map=\"flows\"} 0\n").then_some(())
            });
        }
        assert_eq!(totals(), carried);
    }
    daemon.stop(&[NONSENSE, &["would exceed"]].concat());
}
