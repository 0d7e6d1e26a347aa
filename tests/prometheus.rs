//! The metrics of the real binary, unprivileged, on loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use nix::sys::signal::Signal;
use serde_json::{json, Value};

use crate::common::{free_port, wait_for, Daemon, PATIENCE};
use crate::reload::{reload_with, RELOADED};

/// A daemon with pipe and metrics, the latter with these keys, and their port.
fn start(mut keys: Value) -> (Daemon, u16) {
    if keys.get("port").is_none() && keys.get("netlinkPort").is_none() {
        keys["port"] = json!(free_port());
    }
    let port = keys.get("port").or(keys.get("netlinkPort")).and_then(Value::as_u64);
    let port = u16::try_from(port.expect("a port")).expect("a port");
    let config = json!({"plugins": {"namedPipe": {}}, "backends": {"prometheus": keys}});
    (Daemon::start(config), port)
}

/// Sends a request of these lines: head and body of the answer.
fn ask(port: u16, lines: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("to reach the metrics");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "{lines}\r\nConnection: close\r\n\r\n").expect("to send a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

pub(crate) fn scrape(port: u16) -> String {
    let (head, body) = ask(port, "GET /metrics HTTP/1.1\r\nHost: localhost");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    body
}

/// Waits until a scrape has this line.
fn wait_for_sample(port: u16, line: &str) {
    wait_for(line, || scrape(port).lines().any(|found| found == line).then_some(()));
}

#[test]
fn what_becomes_of_events_and_reloads_is_counted() {
    let (mut daemon, port) = start(json!({}));
    daemon.write("start tcp ::1 1 ::2 1094 2 15\nstart tcp ::1 1 ::2 1094 2 15\nnonsense\n");
    daemon.write("start tcp ::1 2 ::2 1094 2 15\nstart tcp ::1 3 ::2 1094 400 63\n");
    daemon.write("end tcp ::1 1 ::2 1094 2 15\nend tcp ::1 1 ::2 1094 2 15\n");
    let event = |result, count| {
        let line =
            format!("glowd_events_total{{plugin=\"namedPipe\",result=\"{result}\"}} {count}");
        wait_for_sample(port, &line);
    };
    event("unknown", 1);
    for (result, count) in
        [("started", 3), ("ended", 1), ("repeated", 1), ("malformed", 1), ("refused", 0)]
    {
        event(result, count);
    }
    wait_for_sample(port, "glowd_flows_open 2");
    let known =
        r#"experiment="atlas",experiment_id="2",activity="Production Input",activity_id="15""#;
    wait_for_sample(port, &format!("glowd_tag_flows_open{{{known}}} 1"));
    // Who is not registered has no names; a tag is gone with its last flow.
    let unknown = r#"experiment="",experiment_id="400",activity="",activity_id="63""#;
    wait_for_sample(port, &format!("glowd_tag_flows_open{{{unknown}}} 1"));
    daemon.write("end tcp ::1 3 ::2 1094 400 63\n");
    event("ended", 2);
    wait_for("the tag to be gone", || (!scrape(port).contains("\"400\"")).then_some(()));

    let before = scrape(port);
    assert!(before.contains("glowd_config_last_reload_successful 1\n"), "{before}");
    daemon.rewrite_text("{");
    daemon.signal(Signal::SIGHUP);
    wait_for_sample(port, "glowd_config_last_reload_successful 0");
    wait_for_sample(port, "glowd_config_reloads_total{result=\"failure\"} 1");
    let time = |text: &str| -> f64 {
        let name = "glowd_config_last_reload_success_timestamp_seconds ";
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a time").parse().expect("a number")
    };
    assert!((time(&before) - time(&scrape(port))).abs() < 1e-6, "the old one is in force");
    daemon
        .rewrite(json!({"plugins": {"namedPipe": {}}, "backends": {"prometheus": {"port": port}}}));
    daemon.signal(Signal::SIGHUP);
    wait_for_sample(port, "glowd_config_last_reload_successful 1");
    assert!(time(&before) < time(&scrape(port)));
    daemon.stop(&["ignored", "is not registered", "configuration not reloaded", "not JSON"]);
}

#[test]
fn only_metrics_are_served_and_not_to_web_pages() {
    let (daemon, port) = start(json!({}));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: localhost", 404),
        ("GET /flows HTTP/1.1\r\nHost: localhost", 404),
        ("POST /metrics HTTP/1.1\r\nHost: localhost", 405),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example.org", 403),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example.org", 403),
        ("POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000", 413),
        ("GET /metrics", 400),
    ] {
        let (head, _) = ask(port, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
    }
    let (head, body) = ask(port, "HEAD /metrics HTTP/1.1\r\nHost: 127.0.0.1:9817");
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head}{body}");
    daemon.stop(&[]);
}

#[test]
fn silent_clients_keep_nobody_from_the_metrics() {
    let (daemon, port) = start(json!({}));
    let connect = |_| TcpStream::connect(("127.0.0.1", port)).expect("to connect");
    let silent: Vec<_> = (0..200).map(connect).collect();
    // Half a request each, and a pipeline whose answers nobody reads.
    for mut stream in &silent {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: loc").unwrap_or_default();
    }
    let mut greedy = connect(0);
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2000);
    greedy.set_nonblocking(true).expect("not to block");
    let _ = greedy.write(request.as_bytes());
    assert!(scrape(port).contains("glowd_flows_open 0\n"));
    drop((silent, greedy));
    daemon.stop(&["the longest idle connection is closed"]);
}

/// A configuration of flowd-go, whose two ports are one here.
#[test]
fn flowd_gos_keys_are_taken() {
    let (port, other) = (free_port(), free_port());
    let keys =
        json!({"log": true, "bindAddress": "127.0.0.1", "netlinkPort": port, "skopsPort": other});
    let (daemon, port) = start(keys);
    assert!(scrape(port).contains("glowd_build_info{version="));
    daemon.wait_for_line("backends.prometheus.log: has no effect any more");
    let remark =
        format!("backends.prometheus.skopsPort: has no effect, since port {port} has all metrics");
    daemon.wait_for_line(&remark);
    daemon.stop(&["skopsPort: has no effect"]);

    // The second alone is the one, and both off are not off.
    let port = free_port();
    let config =
        |keys: Value| json!({"plugins": {"namedPipe": {}}, "backends": {"prometheus": keys}});
    let daemon = Daemon::start(config(json!({"netlinkPort": 0, "skopsPort": port})));
    assert!(scrape(port).contains("glowd_build_info{version="));
    daemon.stop(&[]);
    let daemon = Daemon::start(config(json!({"netlinkPort": 0, "skopsPort": 0})));
    let off =
        "backends.prometheus.port: 0 has the system choose a port, and does not keep it closed";
    daemon.wait_for_line(off);
    daemon.stop(&[off]);
}

/// Two connections on loopback, which an enricher measures as flows.
struct Measured {
    daemon: Daemon,
    port: u16,
    config: Value,
    streams: Vec<(TcpStream, TcpStream)>,
}

impl Measured {
    fn start(keys: Value) -> Self {
        Measured::start_with(keys, json!({}))
    }

    /// With these keys of the top level too.
    fn start_with(mut keys: Value, mut config: Value) -> Self {
        let port = free_port();
        keys["port"] = json!(port);
        config["plugins"] = json!({"namedPipe": {}});
        config["backends"] = json!({"prometheus": keys});
        config["enrichers"] = json!({"period": 100, "netlink": {}});
        let mut daemon = Daemon::start(config.clone());
        let listener = TcpListener::bind("127.0.0.1:0").expect("to listen");
        let to = listener.local_addr().expect("its address");
        let connect = || {
            let mut stream = TcpStream::connect(to).expect("to connect");
            stream.write_all(&[7; 10_000]).expect("to send");
            (stream, listener.accept().expect("to accept").0)
        };
        let streams = vec![connect(), connect()];
        for (stream, _) in &streams {
            daemon.write(&Self::line("start", stream));
        }
        Measured { daemon, port, config, streams }
    }

    fn line(state: &str, stream: &TcpStream) -> String {
        let (from, to) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        format!("{state} tcp {} {} {} {} 2 15\n", from.ip(), from.port(), to.ip(), to.port())
    }

    /// The labels of a series of flows, as they are now.
    fn series(&self, name: &str) -> Vec<String> {
        let text = scrape(self.port);
        let start = format!("{name}{{");
        let samples = text.lines().filter_map(|line| line.strip_prefix(&start));
        samples.map(|sample| sample.rsplit_once("} ").expect("a value").0.to_owned()).collect()
    }

    fn wait_for_series(&self, count: usize) -> Vec<String> {
        wait_for("the series", || {
            Some(self.series("flow_tcp_rtt")).filter(|series| series.len() == count)
        })
    }

    /// Changes a key while it runs.
    fn reload(&mut self, key: &str, value: Value) {
        self.config["backends"]["prometheus"][key] = value;
        let said = reload_with(&mut self.daemon, &self.config);
        assert_eq!(said.last(), Some(&format!("{RELOADED}changed backends.prometheus.{key}")));
    }

    fn sample(&self, line: &str) {
        wait_for_sample(self.port, line);
    }
}

#[test]
fn flows_between_the_same_hosts_have_series_of_their_own_while_they_are_open() {
    let mut flows = Measured::start(json!({}));
    let series = flows.wait_for_series(2);
    for (stream, _) in &flows.streams {
        let (from, to) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let labels = format!(
            "src=\"127.0.0.1\",dst=\"127.0.0.1\",flow=\"<{}:{}>\",exp=\"2\",act=\"15\",\
             experiment=\"atlas\",activity=\"Production Input\",flavour=\"Netlink\"",
            from.port(),
            to.port()
        );
        assert!(series.contains(&labels), "{labels}: {series:#?}");
        flows.sample(&format!("flow_tcp_bytes_sent_total{{{labels}}} 10000"));
    }
    let end = Measured::line("end", &flows.streams[0].0);
    flows.daemon.write(&end);
    let left = flows.wait_for_series(1);
    let port = flows.streams[1].0.local_addr().unwrap().port();
    assert!(left[0].contains(&format!("flow=\"<{port}:")), "{left:?}");
    let end = Measured::line("end", &flows.streams[1].0);
    flows.daemon.write(&end);
    wait_for("no series", || (!scrape(flows.port).contains("flow_tcp_")).then_some(()));
    flows.daemon.stop(&[]);
}

pub(crate) fn per_flow() {
    let mut flows = Measured::start(json!({"perFlow": false}));
    wait_for("samples", || {
        let text = scrape(flows.port);
        let none = "glowd_enricher_samples_total{enricher=\"netlink\"} 0\n";
        (text.contains("glowd_enricher_samples_total") && !text.contains(none)).then_some(())
    });
    assert_eq!(flows.series("flow_tcp_rtt"), [""; 0]);
    flows.reload("perFlow", json!(true));
    flows.wait_for_series(2);
    flows.reload("perFlow", json!(false));
    flows.wait_for_series(0);
    flows.daemon.stop(&[]);
}

pub(crate) fn max_flow_series() {
    let mut flows = Measured::start(json!({"maxFlowSeries": 1}));
    flows.sample("glowd_flows_without_series 1");
    flows.wait_for_series(1);
    flows.reload("maxFlowSeries", json!(2));
    flows.wait_for_series(2);
    flows.sample("glowd_flows_without_series 0");
    flows.daemon.stop(&[]);
}

pub(crate) fn units() {
    let mut flows = Measured::start(json!({"units": "flowd-go"}));
    flows.wait_for_series(2);
    assert_eq!(flows.series("flow_tcp_retrans").len(), 2);
    assert_eq!(flows.series("flow_tcp_rcv_snd_wnd").len(), 2);
    let algorithm = flows.series("flow_tcp_rcv_ca_info");
    assert!(algorithm[0].contains(",alg=\""), "{algorithm:?}");
    assert_eq!(flows.series("flow_tcp_send"), [""; 0]);
    flows.reload("units", json!("flowd"));
    let of_flowd = |labels: &String| {
        labels.contains("exp=\"atlas\",act=\"Production Input\",experiment_id=\"2\",activity_id")
    };
    wait_for("names", || flows.wait_for_series(2).iter().all(of_flowd).then_some(()));
    for name in ["retrans_total", "snd_wnd", "send", "skmem_rcv_buf"] {
        assert_eq!(flows.series(&format!("flow_tcp_{name}")).len(), 2, "{name}");
    }
    let options = flows.series("flow_tcp_ca_info");
    assert!(
        options[0].contains("opts=\"ts sack ") && options[0].contains(" wscale:"),
        "{options:?}"
    );
    // Nothing happens on these connections any more, so their figures stay.
    let port = flows.port;
    let figures = |name: &str| -> Vec<f64> {
        let text = scrape(port);
        let start = format!("flow_tcp_{name}{{");
        let values = text.lines().filter(|line| line.starts_with(&start));
        let values = values.map(|line| line.rsplit_once(' ').expect("a value").1);
        let mut values: Vec<f64> = values.map(|value| value.parse().expect("a number")).collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    };
    let names = ["rtt", "rtt_var", "rto", "minrtt", "pacing_rate", "delivery_rate", "mss"];
    let theirs = names.map(figures);
    flows.reload("units", json!("flowd-go"));
    let factors = [1e-3, 1e-3, 1e-3, 1e-3, 8.0, 8.0, 1.0];
    for ((name, factor), theirs) in names.iter().zip(factors).zip(theirs) {
        wait_for(name, || {
            let ours = figures(name);
            let is_same = |(ours, theirs): (&f64, &f64)| (ours * factor - theirs).abs() < 1e-6;
            (ours.len() == 2 && ours.iter().zip(&theirs).all(is_same)).then_some(())
        });
    }
    flows.daemon.stop(&[]);
}

/// Whether a scan refreshes it or somebody writes it: series do not wait for their flows to end.
#[test]
fn names_that_are_registered_later_reach_the_series_of_open_flows() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("registry.json");
    let register = |experiment: u64, name: &str| {
        let document = json!({"experiments": [{"expId": experiment, "expName": name,
            "activities": [{"activityId": 15, "activityName": "reading"}]}]});
        let new = dir.path().join("new");
        std::fs::write(&new, document.to_string()).expect("to write");
        std::fs::rename(&new, &path).expect("to put it in place");
    };
    register(3, "another");
    let registry = json!({"registryPath": path, "workDir": ""});
    let flows = Measured::start_with(json!({"units": "flowd"}), registry);
    // As flowd calls what is not registered.
    let unknown = flows.wait_for_series(2);
    let labels = "exp=\"default\",act=\"default\",experiment_id=\"2\",activity_id=\"15\"";
    assert!(unknown.iter().all(|series| series.contains(labels)), "{unknown:?}");
    for name in ["first", "second"] {
        register(2, name);
        let labels = format!("exp=\"{name}\",act=\"reading\",experiment_id=\"2\"");
        let named = |series: &String| series.contains(&labels);
        wait_for(name, || flows.wait_for_series(2).iter().all(named).then_some(()));
    }
    // The enricher hears of all sockets of the host, and so of those of tests beside this one.
    flows.daemon.stop(&["is not registered", "sockets go faster than they can be heard of"]);
}
