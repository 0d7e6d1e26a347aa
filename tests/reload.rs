//! SIGHUP with the real binary: what is applied, what is named, what is refused.

mod live;

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::Mode;
use serde_json::{json, Value};

use crate::common::{free_port, glowd_words, receive, wait_for, Daemon, PATIENCE};
#[cfg(feature = "ebpf")]
use crate::common::{skip_unless_root, Namespace};

pub(crate) const RELOADED: &str = "info: configuration reloaded: ";

/// A receiver of fireflies on loopback.
struct Sink(UdpSocket);

impl Sink {
    fn new() -> Self {
        Sink::at("127.0.0.1:0")
    }

    fn at(address: &str) -> Self {
        let socket = UdpSocket::bind(address).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Sink(socket)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().expect("its address").port()
    }

    fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// The next firefly, as text.
    fn text(&self) -> String {
        let mut buffer = [0; 2048];
        let length = receive(&self.0, &mut buffer).expect("a firefly");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// The state and source port that the next firefly tells.
    fn next(&self) -> (String, u64) {
        let text = self.text();
        let json = text.find('{').and_then(|at| serde_json::from_str(&text[at..]).ok());
        let firefly: Value = json.unwrap_or_else(|| panic!("not a firefly: {text}"));
        let state = firefly["flow-lifecycle"]["state"].as_str().expect("a state");
        (state.to_owned(), firefly["flow-id"]["src-port"].as_u64().expect("a port"))
    }

    fn has_nothing(&self) -> bool {
        self.0.set_nonblocking(true).expect("to set it");
        let nothing = self.0.recv(&mut [0; 2048]).is_err();
        self.0.set_nonblocking(false).expect("to set it");
        nothing
    }
}

fn line(state: &str, port: u16) -> String {
    format!("{state} tcp 127.0.0.1 {port} 127.0.0.1 1094 2 16\n")
}

/// Pipe, API and fireflies to that collector.
fn config(collector: &Sink) -> Value {
    json!({
        "plugins": { "namedPipe": {}, "api": { "bindPort": free_port() } },
        "backends": {
            "firefly": { "sendToDestination": false, "collectors": [collector.name()] },
        },
    })
}

/// How many lines there are up to the last that a start or a reload ends with.
fn closed(lines: &[String]) -> usize {
    let closers = ["info: ready: ", RELOADED, "warn: configuration not reloaded: "];
    let closes = |line: &String| closers.iter().any(|closer| line.starts_with(closer));
    lines.iter().rposition(closes).map_or(0, |at| at + 1)
}

/// The lines of the log that are the answer to SIGHUP, without those of single events.
fn reload(daemon: &mut Daemon) -> Vec<String> {
    if closed(&daemon.lines()) == 0 {
        daemon.wait_for_line("info: ready: ");
    }
    let before = closed(&daemon.lines());
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_notice(|notice| notice.starts_with("READY=1\n"));
    let mut lines = wait_for("the reload's last line", || {
        let lines = daemon.lines();
        let after = closed(&lines);
        (after > before).then(|| lines[before..after].to_vec())
    });
    lines.retain(|line| !line.starts_with("debug: "));
    lines
}

/// The same with another configuration in the place of its own.
pub(crate) fn reload_with(daemon: &mut Daemon, config: &Value) -> Vec<String> {
    daemon.rewrite(config.clone());
    reload(daemon)
}

#[test]
fn collectors_change_between_the_start_and_the_end_of_a_flow() {
    let (old, new) = (Sink::new(), Sink::new());
    let mut config = config(&old);
    let mut daemon = Daemon::start(config.clone());
    daemon.write(&line("start", 1));
    assert_eq!(old.next(), ("start".into(), 1));
    config["backends"]["firefly"]["collectors"] = json!([new.name()]);
    let said = reload_with(&mut daemon, &config);
    assert_eq!(said, [format!("{RELOADED}changed backends.firefly.collectors")]);
    daemon.write(&line("end", 1));
    assert_eq!(new.next(), ("end".into(), 1));
    assert!(old.has_nothing());
    // One that is added gets what follows, one that stays misses nothing.
    config["backends"]["firefly"]["collectors"] = json!([new.name(), old.name()]);
    reload_with(&mut daemon, &config);
    daemon.write(&line("start", 2));
    assert_eq!((new.next(), old.next()), (("start".into(), 2), ("start".into(), 2)));
    daemon.stop(&[]);
}

#[test]
fn a_broken_configuration_is_refused_whole_and_the_old_one_stays() {
    let (old, new) = (Sink::new(), Sink::new());
    let before = config(&old);
    let mut daemon = Daemon::start(before.clone());
    daemon.write(&line("start", 1));
    assert_eq!(old.next().0, "start");
    let mut broken = config(&new);
    broken["maxFlows"] = json!(0);
    broken["plugins"]["api"]["bindProt"] = json!(1);
    broken["backends"]["firefly"]["destinationPort"] = json!("x");
    let said = reload_with(&mut daemon, &broken);
    let errors: Vec<_> = said.iter().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 3, "{said:#?}");
    for path in ["maxFlows: ", "plugins.api.bindProt: ", "backends.firefly.destinationPort: "] {
        assert!(errors.iter().any(|line| line.contains(path)), "{path}: {errors:#?}");
    }
    let place = daemon.dir().join("conf.json").display().to_string();
    assert!(errors.iter().all(|line| line.contains(&format!("{place}:1:"))), "{errors:#?}");
    let refusal = "configuration not reloaded: it has 3 problems; the old one stays in force";
    assert_eq!(said[3..], [format!("warn: {refusal}")]);
    let remark = "; the new configuration has 3 problems, the old one is in force";
    assert!(daemon.notices().last().is_some_and(|notice| notice.ends_with(remark)));

    // Through the connection and the pipe that were there, to the old collector.
    daemon.write(&line("end", 1));
    assert_eq!(old.next(), ("end".into(), 1));
    assert!(new.has_nothing());
    assert_eq!(daemon.get("/flows").0, 200);

    // So is what is no configuration at all, or not there.
    for text in ["", "{", "[]"] {
        daemon.rewrite_text(text);
        let said = reload(&mut daemon);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[1].contains("it has a problem"), "{said:?}");
    }
    let path = daemon.dir().join("conf.json");
    fs::remove_file(&path).expect("to remove it");
    assert!(reload(&mut daemon)[0].contains("No such file"));
    // A pipe that nobody writes to would be waited for in open(2).
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("a FIFO");
    assert!(reload(&mut daemon)[0].contains("again: it is not a regular file"));

    let said = reload_with(&mut daemon, &before);
    assert_eq!(said, [format!("{RELOADED}nothing changed")]);
    assert!(daemon.notices().last().is_some_and(|notice| notice.ends_with(" errors")));
    daemon.stop(&["conf.json", refusal, "it has a problem"]);
}

#[test]
fn what_needs_a_restart_is_named_until_it_is_as_it_was() {
    let sink = Sink::new();
    let before = config(&sink);
    let mut daemon = Daemon::start(before.clone());
    let mut after = before.clone();
    let port = before["plugins"]["api"]["bindPort"].clone();
    after["plugins"] = json!({ "api": { "bindPort": 1 } });
    after["backends"]["marker"] = json!({});
    after["log"] = json!("syslog");
    after["maxFlows"] = json!(7);
    let said = reload_with(&mut daemon, &after);
    let warnings = [
        "warn: log: \"stderr\" -> \"syslog\" needs a restart".to_owned(),
        "warn: plugins.namedPipe: stopping it needs a restart".to_owned(),
        format!("warn: plugins.api.bindPort: {port} -> 1 needs a restart"),
        "warn: backends.marker: starting it needs a restart".to_owned(),
    ];
    let pending =
        "; needs a restart: log, plugins.namedPipe, plugins.api.bindPort, backends.marker";
    let last = |changed: &str| vec![format!("{RELOADED}{changed}{pending}")];
    assert_eq!(said, [&warnings[..], &last("changed maxFlows")[..]].concat());
    assert_eq!(reload(&mut daemon), [&warnings[..], &last("nothing changed")[..]].concat());
    // Nothing of it has happened.
    daemon.write(&line("start", 1));
    assert_eq!(sink.next().0, "start");
    assert_eq!(daemon.get("/flows").0, 200);
    let said = reload_with(&mut daemon, &before);
    assert_eq!(said, [format!("{RELOADED}changed maxFlows")]);
    daemon.stop(&["needs a restart"]);
}

/// Its name is looked up by a thread of the backend's, which comes and goes.
#[test]
fn a_collector_by_name_comes_and_goes() {
    let (old, new) = (Sink::new(), Sink::new());
    let mut config = config(&old);
    let mut daemon = Daemon::start(config.clone());
    let named = format!("localhost:{}", new.port());
    config["backends"]["firefly"]["collectors"] = json!([old.name(), named]);
    reload_with(&mut daemon, &config);
    daemon.wait_for_line("collector \"localhost\" is at ");
    config["backends"]["firefly"]["collectors"] = json!([old.name()]);
    reload_with(&mut daemon, &config);
    daemon.write(&line("start", 1));
    assert_eq!(old.next(), ("start".into(), 1));
    assert!(new.has_nothing());
    let threads = format!("/proc/{}/task", daemon.pid());
    wait_for("the thread to end", || {
        let mut names = fs::read_dir(&threads)
            .expect("its threads")
            .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
        (!names.any(|name| name.trim() == "firefly.names")).then_some(())
    });
    daemon.stop(&[]);
}

/// While flows come, reload after reload, of good and of broken files: every start
/// and every end is told once, by one collector or the other.
#[test]
fn a_storm_of_reloads_loses_no_event() {
    const FLOWS: u16 = 2000;
    let sinks = [Sink::new(), Sink::new()];
    let names = sinks.each_ref().map(Sink::name);
    let mut config = config(&sinks[0]);
    let mut daemon = Daemon::start(config.clone());
    let (tell, told) = mpsc::channel();
    for sink in sinks {
        let tell = tell.clone();
        // As much as the system lets us have.
        setsockopt(&sink.0, sockopt::RcvBuf, &(4 << 20)).expect("SO_RCVBUF");
        // Ends with the process: the socket is the test's alone.
        thread::spawn(move || while tell.send(sink.next()).is_ok() {});
    }
    let mut seen = BTreeSet::new();
    for (round, first) in (1..=FLOWS).step_by(20).enumerate() {
        let ports = first..first + 20;
        let lines: String = ports.map(|port| line("start", port) + &line("end", port)).collect();
        daemon.write(&lines);
        config["backends"]["firefly"]["collectors"] = json!([names[round % 2]]);
        match round % 5 {
            0 => daemon.rewrite_text("{ broken"),
            _ => daemon.rewrite(config.clone()),
        }
        daemon.signal(Signal::SIGHUP);
        // No more on their way than the sockets have room for.
        for _ in 0..lines.lines().count() {
            let firefly = told.recv_timeout(PATIENCE).expect("a firefly");
            assert!(seen.insert(firefly.clone()), "{firefly:?} came twice");
        }
        // Or the service manager, which has a thread like others, falls behind.
        daemon.notices();
    }
    assert_eq!(seen.len(), usize::from(FLOWS) * 2);
    daemon.stop(&["conf.json:1:", "configuration not reloaded: it has a problem"]);
}

/// A shell that sends itself SIGHUP and becomes glowd: the signal waits, since it is
/// blocked in whoever starts the shell, and is there before glowd's first step.
#[test]
fn a_hangup_during_the_start_or_the_stop_harms_nobody() {
    SigSet::from_iter([Signal::SIGHUP]).thread_block().expect("to block it");
    for _ in 0..3 {
        let mut command = Command::new("sh");
        command.args(["-c", "kill -HUP $$; exec \"$0\" \"$@\""]).args(glowd_words());
        let mut daemon = Daemon::start_by(command, json!({ "plugins": { "namedPipe": {} } }));
        daemon.wait_for_line(RELOADED);
        (0..100).for_each(|_| daemon.signal(Signal::SIGHUP));
        daemon.signal(Signal::SIGTERM);
        let status = wait_for("glowd to end", || {
            daemon.signal(Signal::SIGHUP);
            daemon.ended()
        });
        assert_eq!(status.code(), Some(0), "{status}");
        assert!(!daemon.pipe_path().exists() && !daemon.dir().join("glowd.pid").exists());
    }
}

#[test]
fn a_relative_path_is_read_again_too() {
    let mut command = Command::new("bash");
    // What follows the words of glowd is --conf, the path and run.
    let script = "cd \"$(dirname \"${@: -2:1}\")\" && exec \"${@:1:$#-3}\" --conf conf.json run";
    command.args(["-c", script, "bash"]).args(glowd_words());
    let mut config = json!({ "plugins": { "namedPipe": {} } });
    let mut daemon = Daemon::start_by(command, config.clone());
    config["maxFlows"] = json!(5);
    let said = reload_with(&mut daemon, &config);
    assert_eq!(said.last(), Some(&format!("{RELOADED}changed maxFlows")), "{said:#?}");
    daemon.stop(&[]);
}

/// What the marker was built with holds until a restart.
#[cfg(feature = "ebpf")]
#[test]
fn the_marker_s_room_is_that_of_the_start() {
    if skip_unless_root() {
        return;
    }
    let namespace = Namespace::new();
    namespace.ip("link set lo up");
    let config = |max_flows: u32, strategy: &str| {
        json!({
            "maxFlows": max_flows,
            "plugins": { "namedPipe": {} },
            "backends": { "marker": { "markingStrategy": strategy } },
        })
    };
    let mut daemon = Daemon::start_in(&namespace, config(50, "label"));
    let said = reload_with(&mut daemon, &config(60, "hopByHop"));
    let expected = [
        "warn: maxFlows: 50 -> 60 needs a restart: marker has room for 50".to_owned(),
        "warn: backends.marker.markingStrategy: \"label\" -> \"hopByHop\" needs a restart"
            .to_owned(),
        format!(
            "{RELOADED}nothing changed; needs a restart: maxFlows, backends.marker.markingStrategy"
        ),
    ];
    assert_eq!(said, expected);
    let said = reload_with(&mut daemon, &config(40, "label"));
    assert_eq!(said, [format!("{RELOADED}changed maxFlows")]);
    daemon.stop(&["needs a restart"]);
}

/// Without the marker too.
#[cfg(feature = "ebpf")]
#[test]
fn the_room_of_enricher_skops_is_that_of_the_start() {
    if skip_unless_root() {
        return;
    }
    let config = |max_flows: u32| {
        json!({
            "maxFlows": max_flows,
            "plugins": { "namedPipe": {} },
            "enrichers": { "skops": {} },
            "backends": { "firefly": {} },
        })
    };
    let mut daemon = Daemon::start(config(50));
    let expected = [
        "warn: maxFlows: 50 -> 60 needs a restart: skops has room for 50".to_owned(),
        format!("{RELOADED}nothing changed; needs a restart: maxFlows"),
    ];
    assert_eq!(reload_with(&mut daemon, &config(60)), expected);
    assert_eq!(reload_with(&mut daemon, &config(40)), [format!("{RELOADED}changed maxFlows")]);
    daemon.stop(&["needs a restart"]);
}
