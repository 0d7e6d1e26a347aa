//! The daemon as the unprivileged user that the RPM will make (decision 10).

use nix::sys::signal::Signal;

use super::rig::{config, each, is_marked, line, of, Rig, ATLAS, STRATEGIES};
use crate::common::packet::UDP;
use crate::common::{
    skip_unless_root, udp, v6, wait_for, Daemon, Nobody, Pair, DEVICE, HERE, THERE, UNIT,
};

#[test]
fn three_capabilities_are_enough() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        for attach in ["tcx", "clsact"] {
            let mut rig = Rig::on_as(Pair::new(), strategy, attach, Some(UNIT));
            let (from, to) = (v6(HERE, 40_000), v6(THERE, 5001));
            let (socket, sink) = (udp(&rig.pair.here, from, to), udp(&rig.pair.there, to, from));
            rig.obey(&line(true, "udp", from, to, ATLAS));
            (0..9).for_each(|_| assert_eq!(socket.send(&[7; 100]).expect("to send"), 100));
            (0..9).for_each(|_| {
                assert_eq!(crate::common::receive(&sink, &mut [0; 200]).expect("a datagram"), 100)
            });
            let packets = rig.finish();
            let flow = packets.iter().filter(of(UDP, 40_000, 5001));
            assert_eq!(each(flow, |packet| is_marked(packet, strategy, ATLAS)), 9);
        }
    }
}

/// On every kernel, in one line, and nothing stays.
#[test]
fn a_missing_capability_is_named() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let marker = serde_json::json!({ "targetInterfaces": [DEVICE], "attach": "clsact" });
    for (has, missing) in [
        ("-all,+net_admin,+perfmon", "CAP_BPF"),
        ("-all,+bpf,+perfmon", "CAP_NET_ADMIN"),
        ("-all,+bpf,+net_admin", "CAP_PERFMON"),
        ("-all", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"),
    ] {
        let failure = Daemon::try_start_as(config(&marker), Some(&pair.here), Some(Nobody(has)));
        let failure = failure.err().expect("it cannot mark");
        assert_eq!(failure.status.code(), Some(71), "{}", failure.log);
        let named: Vec<_> = failure.log.lines().filter(|line| line.contains("CAP_")).collect();
        let expected =
            format!("backends.marker: cannot load the eBPF programs: glowd lacks {missing}");
        assert!(named.len() == 1 && named[0].ends_with(&expected), "{}", failure.log);
        let left = pair.here.run(&format!("tc qdisc show dev {DEVICE}"));
        assert!(!left.contains("clsact"), "{left}");
    }
}

/// They are known only when it is tried, and the daemon has to go on by what it has.
#[test]
fn rules_that_take_capabilities_are_refused_by_a_reload_as_a_whole() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let config = |rule: serde_json::Value, level: &str| {
        let netlink =
            serde_json::json!({"immediate": "false", "includePrivate": true, "rules": [rule]});
        serde_json::json!({"plugins": {"netlink": netlink}, "backends": {}, "logLevel": level})
    };
    let plain = serde_json::json!({"remotePort": 7000, "experiment": 2, "activity": 15});
    let mut costly = plain.clone();
    costly["command"] = serde_json::json!("curl");
    let before = config(plain.clone(), "info");
    let daemon = Daemon::try_start_as(before, Some(&pair.here), Some(Nobody("-all")));
    let daemon = daemon.unwrap_or_else(|failure| panic!("{failure:#?}"));
    daemon.wait_for_line("ready: ");
    let failure = "plugins.netlink: which process has a socket takes an eBPF iterator";
    let refusal = "configuration not reloaded: it has a problem; the old one stays in force";
    let count = |text: &str| daemon.lines().iter().filter(|line| line.contains(text)).count();
    // The second time as well: it was not taken for what is in force.
    for times in 1..=2 {
        daemon.rewrite(config(costly.clone(), "warn"));
        daemon.signal(Signal::SIGHUP);
        wait_for("the refusal", || (count(refusal) == times).then_some(()));
        assert_eq!(count(failure), times, "{:#?}", daemon.lines());
    }
    daemon.rewrite(config(plain, "info"));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_line("configuration reloaded: nothing changed");
    daemon.stop(&[failure, refusal, "backends: "]);
}

/// Not the kernel, which can.
#[test]
fn what_is_told_at_once_takes_capabilities_that_are_named() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let netlink = serde_json::json!({"immediate": "true", "experiment": 2, "activity": 15});
    let config = serde_json::json!({"plugins": {"netlink": netlink}, "backends": {}});
    for (has, missing) in [
        ("-all,+net_admin,+perfmon", "CAP_BPF"),
        ("-all,+bpf,+perfmon", "CAP_NET_ADMIN"),
        ("-all,+bpf,+net_admin", "CAP_PERFMON"),
    ] {
        let failure = Daemon::try_start_as(config.clone(), Some(&pair.here), Some(Nobody(has)));
        let failure = failure.err().expect("it is not told");
        assert_eq!(failure.status.code(), Some(71), "{}", failure.log);
        assert!(
            failure.log.contains(&format!("at once: glowd lacks {missing}")),
            "{}",
            failure.log
        );
        assert!(!failure.log.contains("ring buffers"), "{}", failure.log);
    }
}
