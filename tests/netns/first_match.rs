//! As of when flows begin that only a look finds.

use nix::sys::signal::Signal;
use serde_json::{json, Value};

use crate::common::{skip_unless_root, v6, Connection, Daemon, Pair, HERE, THERE};

fn config(rules: &Value, immediate: &str) -> Value {
    let netlink = json!({ "rules": rules, "includePrivate": true, "immediate": immediate });
    json!({ "plugins": { "netlink": netlink, "api": {} }, "backends": {} })
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
        daemon.wait_for_line("found 5 connections that were open already; their flows begin now");
        // One that begins later is no such.
        let _later = link(5);
        daemon.wait_for_line("start tcp [fd00::1]:40005");
        let lines = daemon.lines();
        let said = lines.iter().filter(|line| line.contains("that were open already"));
        assert_eq!(said.count(), 1, "{lines:#?}");
        daemon.stop(&["backends: "]);
    }
}
