//! A proof for each key that is live: its new value is obeyed.

mod netlink;

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use glowd::config::TOP;
use glowd::{backends, enrichers, plugins};
use nix::sys::signal::Signal;
use serde_json::{json, Value};

use netlink::{
    netlink_activity, netlink_exclude, netlink_experiment, netlink_include_private, netlink_period,
    netlink_rules,
};

use super::{config, line, reload_with, Sink, RELOADED};
use crate::common::{
    free_port, skip_unless_root, udp, v6, wait_for, Capture, Daemon, Pair, DEVICE, HERE, PATIENCE,
    THERE,
};

/// Each key that is said to be live, with a proof that its new value is obeyed.
const LIVE: &[(&str, fn())] = &[
    ("maxFlows", max_flows),
    ("idleTimeout", idle_timeout),
    ("logLevel", log_level),
    ("plugins.namedPipe.mode", pipe_mode),
    ("plugins.namedPipe.group", pipe_group),
    ("plugins.firefly.allowFrom", allow_from),
    ("plugins.firefly.hasSyslogHeader", has_syslog_header),
    ("plugins.firefly.relay", firefly_relay),
    ("plugins.netlink.rules", netlink_rules),
    ("plugins.netlink.experiment", netlink_experiment),
    ("plugins.netlink.activity", netlink_activity),
    ("plugins.netlink.exclude", netlink_exclude),
    ("plugins.netlink.includePrivate", netlink_include_private),
    ("plugins.netlink.period", netlink_period),
    ("backends.marker.rules", marker_rules),
    ("backends.firefly.sendToDestination", send_to_destination),
    ("backends.firefly.collectors", collectors),
    ("backends.firefly.destinationPort", destination_port),
    ("backends.firefly.prependSyslog", prepend_syslog),
    ("backends.firefly.sendToCollector", send_to_collector),
    ("backends.firefly.collectorAddress", collector_address),
    ("backends.firefly.collectorPort", collector_port),
    ("backends.prometheus.perFlow", crate::prometheus::per_flow),
    ("backends.prometheus.maxFlowSeries", crate::prometheus::max_flow_series),
    ("backends.prometheus.units", crate::prometheus::units),
    ("backends.firefly.enrich", enrich),
    ("backends.firefly.enrichmentMode", enrichment_mode),
    ("backends.firefly.ongoingPeriod", ongoing_period),
    ("backends.firefly.stun", stun),
];

/// That every other change is reported is what `config::change` tests, key by key.
#[test]
fn every_key_that_is_live_is_obeyed() {
    let mut live: BTreeSet<String> = BTreeSet::new();
    let names = |path: &str, keys: &'static [glowd::config::Key]| {
        let names = keys.iter().filter(|key| key.live).map(|key| key.name);
        names.map(|name| format!("{path}{name}")).collect::<Vec<_>>()
    };
    live.extend(names("", TOP));
    for spec in plugins::ALL {
        live.extend(names(&format!("plugins.{}.", spec.name), spec.keys));
    }
    live.extend(names("enrichers.", enrichers::KEYS));
    for spec in enrichers::ALL {
        live.extend(names(&format!("enrichers.{}.", spec.name), spec.keys));
    }
    for spec in backends::ALL {
        live.extend(names(&format!("backends.{}.", spec.name), spec.keys));
    }
    let proven: BTreeSet<String> = LIVE.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(proven, live);
    LIVE.iter().for_each(|(_, proof)| proof());
}

/// A flow that a firefly told of lasts with 0, and then no longer than a second.
fn idle_timeout() {
    let port = free_port();
    let mut config = json!({"idleTimeout": 0, "plugins": {"api": {"bindPort": free_port()}, "firefly": {"bindPort": port}},
                            "backends": {}});
    let mut daemon = Daemon::start(config.clone());
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&start_of(1), ("127.0.0.1", port)).unwrap();
    let flows = |daemon: &Daemon| daemon.get("/flows").1["flows"].as_array().unwrap().len();
    wait_for("the flow", || (flows(&daemon) == 1).then_some(()));
    config["idleTimeout"] = json!(1);
    let said = reload_with(&mut daemon, &config);
    assert_eq!(said.last(), Some(&format!("{RELOADED}changed idleTimeout")));
    wait_for("the flow to be over", || (flows(&daemon) == 0).then_some(()));
    daemon.stop(&["backends: ", "bursts may be lost"]);
}

/// The start of a flow from port `source`, long ago.
fn start_of(source: u16) -> Vec<u8> {
    let firefly = json!({
        "version": 1,
        "flow-lifecycle": {"state": "start", "start-time": "2026-01-02T03:04:05Z"},
        "flow-id": {"afi": "ipv6", "src-ip": "2001:db8::1", "dst-ip": "2001:db8::2",
                    "protocol": "tcp", "src-port": source, "dst-port": 1094},
        "context": {"experiment-id": 2, "activity-id": 16}
    });
    firefly.to_string().into_bytes()
}

fn collectors() {
    super::collectors_change_between_the_start_and_the_end_of_a_flow();
}

/// That with `before` as the value of `key` the plugin does not take a firefly, and
/// with `after` it does.
fn firefly_plugin(key: &str, before: Value, after: Value) {
    let port = free_port();
    let mut config = json!({"plugins": {"api": {"bindPort": free_port()}, "firefly": {"bindPort": port}}, "backends": {}});
    config["plugins"]["firefly"][key] = before;
    let mut daemon = Daemon::start(config.clone());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let send = |source: u16| {
        socket.send_to(&start_of(source), ("127.0.0.1", port)).unwrap();
    };
    send(1);
    wait_for("the datagram to be dropped", || {
        daemon.lines().iter().any(|line| line.contains("dropped a datagram")).then_some(())
    });
    config["plugins"]["firefly"][key] = after;
    let said = reload_with(&mut daemon, &config);
    assert_eq!(said.last(), Some(&format!("{RELOADED}changed plugins.firefly.{key}")));
    // The plugin hears of it by and by.
    let source = wait_for("a firefly to be taken", || {
        send(2);
        daemon.get("/flows").1["flows"][0]["src"].as_str().map(str::to_owned)
    });
    assert_eq!(source, "[2001:db8::1]:2");
    // Who is not root has the buffer that everybody may have.
    daemon.stop(&["dropped a datagram", "backends: ", "bursts may be lost"]);
}

fn allow_from() {
    firefly_plugin("allowFrom", json!(["192.0.2.0/24"]), json!(["local"]));
}

fn has_syslog_header() {
    firefly_plugin("hasSyslogHeader", json!("true"), json!("auto"));
}

/// One collector after another, then none. Each firefly is another one, since what was passed
/// on is not passed on again.
fn firefly_relay() {
    let port = free_port();
    let sinks = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let relay = |to: &[&UdpSocket]| {
        let names = to.iter().map(|sink| sink.local_addr().unwrap().to_string());
        let firefly = json!({"bindPort": port, "relay": names.collect::<Vec<_>>()});
        json!({"plugins": {"firefly": firefly, "api": {"bindPort": free_port()}}, "backends": {}})
    };
    let config = relay(&[]);
    let api = config["plugins"]["api"].clone();
    let mut daemon = Daemon::start(config);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut source = 0;
    for to in [&[&sinks[0]][..], &[&sinks[1]], &[&sinks[0], &sinks[1]], &[]] {
        let mut config = relay(to);
        config["plugins"]["api"] = api.clone();
        let said = reload_with(&mut daemon, &config);
        assert_eq!(said.last(), Some(&format!("{RELOADED}changed plugins.firefly.relay")));
        // The plugin hears of it by and by: then all who are to get a firefly do, and nobody else.
        wait_for("the collectors", || {
            source += 1;
            let firefly = start_of(source);
            socket.send_to(&firefly, ("127.0.0.1", port)).unwrap();
            wait_for("the flow", || (daemon.get("/healthz").1["flows"] == source).then_some(()));
            let got = sinks.each_ref().map(|sink| {
                sink.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                let mut buffer = [0; 4000];
                std::iter::from_fn(|| {
                    sink.recv(&mut buffer).ok().map(|size| buffer[..size] == firefly)
                })
                .any(|same| same)
            });
            let wanted = sinks.each_ref().map(|sink| to.iter().any(|to| std::ptr::eq(*to, sink)));
            (got == wanted).then_some(())
        });
    }
    daemon.stop(&["backends: ", "bursts may be lost"]);
}

/// By the labels of datagrams that leave a namespace.
fn marker_rules() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let rule =
        |activity| json!([{"remotePort": 5001, "experiment": "atlas", "activity": activity}]);
    let marker = |rules| json!({"targetInterfaces": [DEVICE], "rules": rules});
    let with = |rules| json!({"plugins": {"namedPipe": {}}, "backends": {"marker": marker(rules)}});
    let mut daemon = Daemon::start_in(&pair.here, with(json!([])));
    let capture = Capture::start(&pair.there, DEVICE);
    let _sink = udp(&pair.there, v6(THERE, 5001), v6(HERE, 40_000));
    let socket = udp(&pair.here, v6(HERE, 40_000), v6(THERE, 5001));
    // Without the bits of entropy.
    let label = || {
        let from = capture.count();
        socket.send(b"x").expect("to send");
        capture.find(from, PATIENCE, |packet| packet.dst_port == 5001).expect("it").label & 0x3_fefc
    };
    assert_eq!(label(), 0);
    for (rules, expected) in [
        (rule("Production Input"), 0x1_003c),
        (rule("16"), 0x1_0040),
        (json!([]), 0),
        (rule("Production Input"), 0x1_003c),
    ] {
        let said = reload_with(&mut daemon, &with(rules));
        assert_eq!(said.last(), Some(&format!("{RELOADED}changed backends.marker.rules")));
        wait_for("the label", || (label() == expected).then_some(()));
    }
    // Names that nobody knows leave all as it is.
    reload_with(&mut daemon, &with(rule("nonsense")));
    let failure = "rules[0].activity: ";
    daemon.wait_for_line(failure);
    assert_eq!(label(), 0x1_003c);
    drop(capture);
    daemon.stop(&[failure, "configuration not reloaded"]);
}

fn max_flows() {
    let sink = Sink::new();
    let mut config = config(&sink);
    config["maxFlows"] = json!(2);
    let mut daemon = Daemon::start(config.clone());
    let refused = |daemon: &Daemon, count: u32| {
        wait_for("refusals", || {
            daemon.signal(Signal::SIGUSR1);
            let count = format!(", {count} refused,");
            daemon.lines().iter().any(|line| line.contains(&count)).then_some(())
        });
    };
    daemon.write(&(line("start", 1) + &line("start", 2) + &line("start", 3)));
    assert_eq!((sink.next().1, sink.next().1), (1, 2));
    refused(&daemon, 1);
    config["maxFlows"] = json!(3);
    let said = reload_with(&mut daemon, &config);
    assert_eq!(said.last(), Some(&format!("{RELOADED}changed maxFlows")));
    daemon.write(&line("start", 3));
    assert_eq!(sink.next(), ("start".into(), 3));
    // Lower than what is open: that stays.
    config["maxFlows"] = json!(1);
    reload_with(&mut daemon, &config);
    daemon.write(&line("start", 4));
    refused(&daemon, 2);
    assert_eq!(daemon.get("/healthz").1["flows"], 3);
    daemon.write(&(line("end", 1) + &line("end", 2) + &line("end", 3) + &line("start", 5)));
    let ends = ["end", "end", "end", "start"].map(|_| sink.next());
    assert_eq!(ends[3], ("start".into(), 5));
    daemon.stop(&["the flow table is full (maxFlows is "]);
}

fn log_level() {
    let mut config = json!({ "plugins": { "namedPipe": {} }, "logLevel": "warn" });
    let mut daemon = Daemon::start_by(crate::common::glowd(), config.clone());
    assert_eq!(daemon.lines(), [""; 0]);
    config["logLevel"] = json!("debug");
    daemon.rewrite(config.clone());
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_line(&format!("{RELOADED}changed logLevel"));
    daemon.write(&line("start", 1));
    daemon.wait_for_line("debug: namedPipe: start tcp");
    config["logLevel"] = json!("error");
    config["plugins"]["namedPipe"]["mode"] = json!("0600");
    let said = reload_with(&mut daemon, &config);
    let changed = "changed logLevel, plugins.namedPipe.mode";
    assert_eq!(said.last(), Some(&format!("{RELOADED}{changed}")));
    // That is the last thing that is said, and a moment later it holds: before the plugin hears.
    let path = daemon.pipe_path();
    wait_for("the level", || {
        let found = fs::metadata(&path).expect("the pipe").permissions().mode();
        (found & 0o777 == 0o600).then_some(())
    });
    let before = daemon.lines().len();
    daemon.write("nonsense\n");
    daemon.write(&line("end", 1));
    daemon.end_by(Signal::SIGTERM);
    assert_eq!(daemon.lines().len(), before, "{:#?}", daemon.lines());

    // The flag wins, and a reload says so.
    let mut daemon = Daemon::start(config.clone());
    config["logLevel"] = json!("warn");
    let said = reload_with(&mut daemon, &config);
    let overruled = "logLevel: no effect, since --log-level debug wins over it";
    assert!(said.contains(&format!("warn: {overruled}")), "{said:#?}");
    assert_eq!(said.last(), Some(&format!("{RELOADED}nothing changed")));
    daemon.write(&line("start", 1));
    daemon.wait_for_line("debug: namedPipe: start tcp");
    daemon.stop(&[overruled, "backends: "]);
}

fn pipe_mode() {
    let mut config = json!({ "plugins": { "namedPipe": { "mode": "0660" } } });
    let mut daemon = Daemon::start(config.clone());
    let path = daemon.pipe_path();
    // A writer that has it open already goes on.
    daemon.write(&line("start", 1));
    daemon.wait_for_line("start tcp 127.0.0.1:1 ");
    for mode in [0o622, 0o600] {
        config["plugins"]["namedPipe"]["mode"] = json!(format!("{mode:04o}"));
        let said = reload_with(&mut daemon, &config);
        assert_eq!(said.last(), Some(&format!("{RELOADED}changed plugins.namedPipe.mode")));
        wait_for("the mode", || {
            let found = fs::metadata(&path).expect("the pipe").permissions().mode();
            (found & 0o7777 == mode).then_some(())
        });
    }
    daemon.write(&line("end", 1));
    daemon.wait_for_line("end tcp 127.0.0.1:1 ");
    daemon.stop(&[]);
    assert!(!path.exists());
}

fn pipe_group() {
    if skip_unless_root() {
        return;
    }
    let mut config = json!({ "plugins": { "namedPipe": {} } });
    let mut daemon = Daemon::start(config.clone());
    let path = daemon.pipe_path();
    let group = || fs::metadata(&path).expect("the pipe").gid();
    let usual = group();
    for (name, gid) in [(json!("65534"), 65534), (json!("2"), 2), (json!(""), usual)] {
        config["plugins"]["namedPipe"]["group"] = name;
        let said = reload_with(&mut daemon, &config);
        assert_eq!(said.last(), Some(&format!("{RELOADED}changed plugins.namedPipe.group")));
        wait_for("the group", || (group() == gid).then_some(()));
    }
    // One that cannot be given leaves all as it is.
    config["plugins"]["namedPipe"] = json!({ "group": "no such group", "mode": "0600" });
    reload_with(&mut daemon, &config);
    let failure = "plugins.namedPipe: group: there is no group \"no such group\"";
    daemon.wait_for_line(failure);
    assert_eq!((group(), fs::metadata(&path).expect("the pipe").mode() & 0o777), (usual, 0o660));
    daemon.stop(&[failure, "configuration not reloaded"]);
}

/// Starts a daemon by `before`, changes `key` of the firefly backend to `value`, and
/// returns what the two sinks get of a flow's start before, and of its end after.
fn firefly(before: Value, key: &str, value: Value, sinks: [&Sink; 2]) -> [String; 2] {
    let mut config = json!({ "plugins": { "namedPipe": {} }, "backends": { "firefly": before } });
    let mut daemon = Daemon::start(config.clone());
    daemon.write(&line("start", 1));
    let start = sinks[0].text();
    config["backends"]["firefly"][key] = value;
    let said = reload_with(&mut daemon, &config);
    assert_eq!(said, [format!("{RELOADED}changed backends.firefly.{key}")]);
    daemon.write(&line("end", 1));
    let end = sinks[1].text();
    daemon.stop(&[]);
    assert!(start.contains("\"start\"") && end.contains("\"end\""), "{start} {end}");
    assert!(sinks.iter().all(|sink| sink.has_nothing()));
    [start, end]
}

fn send_to_destination() {
    let (collector, destination) = (Sink::new(), Sink::new());
    let mut before = json!({ "destinationPort": destination.port(), "sendToDestination": true });
    before["collectors"] = json!([collector.name()]);
    let mut config = json!({ "plugins": { "namedPipe": {} }, "backends": { "firefly": before } });
    let mut daemon = Daemon::start(config.clone());
    daemon.write(&line("start", 1));
    assert_eq!((collector.next().1, destination.next().1), (1, 1));
    config["backends"]["firefly"]["sendToDestination"] = json!(false);
    reload_with(&mut daemon, &config);
    daemon.write(&line("start", 2));
    assert_eq!(collector.next().1, 2);
    config["backends"]["firefly"]["sendToDestination"] = json!(true);
    reload_with(&mut daemon, &config);
    daemon.write(&line("start", 3));
    assert_eq!((collector.next().1, destination.next().1), (3, 3), "none of the second");
    daemon.stop(&[]);
}

fn destination_port() {
    let (old, new) = (Sink::new(), Sink::new());
    let before = json!({ "destinationPort": old.port() });
    firefly(before, "destinationPort", json!(new.port()), [&old, &new]);
}

fn prepend_syslog() {
    let sink = Sink::new();
    let before = json!({ "sendToDestination": false, "collectors": [sink.name()] });
    let [start, end] = firefly(before, "prependSyslog", json!(false), [&sink, &sink]);
    assert!(start.starts_with('<') && end.starts_with('{'), "{start} {end}");
}

fn send_to_collector() {
    let (destination, collector) = (Sink::new(), Sink::new());
    let mut before = json!({ "destinationPort": destination.port() });
    before["collectorPort"] = json!(collector.port());
    let mut config = json!({ "plugins": { "namedPipe": {} }, "backends": { "firefly": before } });
    let mut daemon = Daemon::start(config.clone());
    daemon.write(&line("start", 1));
    assert_eq!(destination.next().1, 1);
    config["backends"]["firefly"]["sendToCollector"] = json!(true);
    reload_with(&mut daemon, &config);
    daemon.write(&line("start", 2));
    assert_eq!((collector.next().1, destination.next().1), (2, 2));
    daemon.stop(&[]);
}

/// The first firefly of a real connection that has `word` in it, when the value of `key`
/// has become `after`. Before, there was none.
fn of_a_connection(mut firefly: Value, key: &str, after: Value, word: &str) {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _far = listener.accept().unwrap();
    let port = |end: std::net::SocketAddr| end.port();
    let ports = (port(near.local_addr().unwrap()), port(near.peer_addr().unwrap()));
    let line = |state| format!("{state} tcp ::1 {} ::1 {} 2 16\n", ports.0, ports.1);
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    firefly["sendToDestination"] = json!(false);
    firefly["collectors"] = json!([sink.local_addr().unwrap().to_string()]);
    let mut config = json!({ "plugins": { "namedPipe": {} },
                             "enrichers": { "period": 100, "netlink": {} },
                             "backends": { "firefly": firefly } });
    let mut daemon = Daemon::start(config.clone());
    let mut buffer = [0; 2000];
    let mut next = || {
        let size = crate::common::receive(&sink, &mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..size]).into_owned()
    };
    daemon.write(&(line("start") + &line("end") + &line("start")));
    for _ in 0..3 {
        let firefly = next();
        assert!(!firefly.contains(word), "{firefly}");
    }
    config["backends"]["firefly"][key] = after;
    reload_with(&mut daemon, &config);
    // Backend and enricher hear of it by and by.
    wait_for("one that has it", || {
        // Without an end only a flow that goes on has another one.
        let count = if key == "ongoingPeriod" { 1 } else { 2 };
        if count == 2 {
            daemon.write(&(line("end") + &line("start")));
        }
        (0..count).map(|_| next()).any(|firefly| firefly.contains(word)).then_some(())
    });
    daemon.stop(&["has no effect without an enricher"]);
}

fn enrich() {
    of_a_connection(json!({}), "enrich", json!(true), "\"netlink\":{\"rtt\":");
}

fn enrichment_mode() {
    let lean = json!({ "enrich": true });
    of_a_connection(lean.clone(), "enrichmentMode", json!("compatible"), "\"bytes_acked\":");
    // The enricher has to ask for more.
    of_a_connection(lean, "enrichmentMode", json!("full"), "\"skBuff\":{\"rQueue\":");
}

fn ongoing_period() {
    of_a_connection(json!({}), "ongoingPeriod", json!(200), "\"state\":\"ongoing\"");
}

fn stun() {
    let sink = Sink::new();
    let before = json!({ "sendToDestination": false, "collectors": [sink.name()] });
    let stun = json!({ "stunServers": [], "manualMapping": { "127.0.0.1": "192.0.2.1" } });
    let [start, end] = firefly(before, "stun", stun, [&sink, &sink]);
    assert!(start.contains("\"src-ip\":\"127.0.0.1\",\"dst-ip\":\"127.0.0.1\""), "{start}");
    assert!(end.contains("\"src-ip\":\"192.0.2.1\",\"dst-ip\":\"192.0.2.1\""), "{end}");
}

/// One that flowd-go's keys name, and nobody else.
fn named(port: u16) -> Value {
    json!({ "sendToDestination": false, "sendToCollector": true, "collectorPort": port })
}

fn collector_address() {
    let old = Sink::new();
    let new = Sink::at(&format!("127.0.0.2:{}", old.port()));
    firefly(named(old.port()), "collectorAddress", json!("127.0.0.2"), [&old, &new]);
}

fn collector_port() {
    let (old, new) = (Sink::new(), Sink::new());
    firefly(named(old.port()), "collectorPort", json!(new.port()), [&old, &new]);
}
