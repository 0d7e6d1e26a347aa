//! Which rule counts for connections of control groups that have just been made, and as of
//! when flows begin that only a look finds.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{json, Value};

use super::connections::Group;
use crate::common::{skip_unless_root, v6, wait_for, Connection, Daemon, Pair, HERE, THERE, UNIT};

fn config(rules: &Value, immediate: &str) -> Value {
    let netlink = json!({ "rules": rules, "includePrivate": true, "immediate": immediate });
    json!({ "plugins": { "netlink": netlink, "api": {} }, "backends": {} })
}

/// Services that start again, jobs of a batch system: a group, a short connection, and the
/// group is gone.
#[test]
fn the_first_rule_counts_also_for_a_group_of_a_moment() {
    const ROUNDS: usize = 6;
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let _listener = pair.there.enter(|| TcpListener::bind("[::]:7000")).expect("to listen");
    let place = Group::new();
    let folder = place.0.join("service");
    let path = format!("/{}/service", place.0.file_name().and_then(|n| n.to_str()).expect("text"));
    let rules = json!([
        {"cgroup": path, "remotePort": 7000, "experiment": 2, "activity": 15},
        {"remotePort": 7000, "experiment": 3, "activity": 14}
    ]);
    let mut config = config(&rules, "true");
    // A look would find those whose report has not been read yet, in an order of its own.
    config["plugins"]["netlink"]["period"] = json!(3_600_000);
    let daemon = Daemon::try_start_as(config, Some(&pair.here), Some(UNIT));
    let daemon = daemon.unwrap_or_else(|failure| panic!("{failure:#?}"));
    daemon.wait_for_line("ready: ");
    let connect = |group: &Group| {
        let script =
            format!("echo $$ >{}/cgroup.procs && exec 3<>/dev/tcp/{THERE}/7000", group.0.display());
        let mut command = Command::new("bash");
        command.args(["-c", &script]).stdin(Stdio::null());
        let status = pair.here.enter(|| command.status()).expect("bash");
        assert!(status.success());
    };
    for round in 0..ROUNDS {
        let other = Group(place.0.join(format!("other-{round}")));
        fs::create_dir(&other.0).expect("a group");
        connect(&other);
        drop(other);
        let service = Group(folder.clone());
        fs::create_dir(&service.0).expect("a group");
        let job = Group(folder.join("job"));
        fs::create_dir(&job.0).expect("a group in it");
        // The group itself has to be without processes when another one is below it.
        connect(if round % 2 == 0 { &service } else { &job });
        drop((job, service));
    }
    // The ports from which they were opened, with whether they have the first rule's tag.
    let told = |what: &str| -> Vec<(String, bool)> {
        let of = format!("netlink: {what} tcp ");
        let told = |line: String| {
            let from = line.split_once(&of)?.1.split(' ').next()?.to_owned();
            Some((from, line.contains("experiment 2 activity 15")))
        };
        daemon.lines().into_iter().filter_map(told).collect()
    };
    wait_for("all flows to end", || (told("end").len() >= 2 * ROUNDS).then_some(()));
    let (mut starts, mut ends) = (told("start"), told("end"));
    let tags: Vec<_> = starts.iter().map(|(_, is_first)| *is_first).collect();
    assert_eq!(tags, [false, true].repeat(ROUNDS), "{:#?}", daemon.lines());
    // Several may end in one look.
    starts.sort();
    ends.sort();
    assert_eq!(starts, ends);
    daemon.stop(&["there is no control group", "backends: "]);
}

#[test]
fn connections_that_are_older_than_the_rule_are_said_to_be_so() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let rule = |port: &str| json!([{"remotePort": port, "experiment": 2, "activity": 15}]);
    let link = |port: u16| {
        let ends = (v6(HERE, 40_000 + port), v6(THERE, 7000 + port));
        Connection::open((&pair.here, ends.0), (&pair.there, ends.1), 0)
    };
    for immediate in ["true", "false"] {
        let daemon = Daemon::start_in(&pair.here, config(&rule("1"), immediate));
        daemon.wait_for_line("ready: ");
        let _older: Vec<_> = (0..5).map(link).collect();
        daemon.rewrite(config(&rule("7000-7010"), immediate));
        daemon.signal(Signal::SIGHUP);
        daemon.wait_for_line("found 5 connections of unknown age; their flows begin now");
        let flows = pair.here.enter(|| daemon.get("/flows").1);
        let flows = flows["flows"].as_array().expect("flows");
        assert_eq!(flows.len(), 5, "{flows:?}");
        assert!(flows.iter().all(|flow| flow["startUnknown"] == true), "{flows:?}");
        // One that begins later is no such.
        let _later = link(5);
        daemon.wait_for_line("start tcp [fd00::1]:40005");
        let lines = daemon.lines();
        let said = lines.iter().filter(|line| line.contains("of unknown age"));
        assert_eq!(said.count(), 1, "{lines:#?}");
        daemon.stop(&["backends: "]);
    }
}
