//! What the enricher skops costs, with real connections on loopback: CPU time of all the
//! daemon's threads, kernel included, as the share of one core at a period of a second, and
//! its resident memory; and what its programs cost who opens connections.

use std::net::TcpListener;

use serde_json::json;

use crate::control::in_own_network;
use crate::enrich::with_prometheus;
use crate::load::{connection, share, starts, tell};
use crate::process::Daemon;
use crate::row;
use crate::scan::Held;

pub(crate) const SECTIONS: &[crate::Section] = &[("skops", skops), ("states", states)];

fn daemon(strategy: &str) -> Daemon {
    Daemon::start(json!({
        "maxFlows": 60_000,
        "plugins": { "namedPipe": {} },
        "enrichers": { "period": 1000, "skops": { "strategy": strategy } },
        "backends": { "firefly": {} },
    }))
}

fn skops() {
    in_own_network();
    for (connections, flows, reach) in [
        (500, "1,000", ["", ""]),
        (5_000, "10,000", ["a fifth of the next", ""]),
        (25_000, "50,000", ["< 10 % of a core", "< 64 MB"]),
    ] {
        // It measures what opens while it runs.
        let daemon = daemon("poll");
        let mut held = Held::default();
        held.add(connections);
        let lines = starts();
        assert_eq!(lines.len(), 2 * connections);
        tell(&daemon, &lines);
        let measured = format!("{:.2} %", share(&daemon));
        row(&format!("enricher skops, {flows} flows once a second"), measured, reach[0]);
        let measured = format!("{:.1} MB", daemon.resident());
        row("the same, resident memory", measured, reach[1]);
        daemon.stop();
    }
    let mut held = Held::default();
    with_prometheus("skops", json!({ "skops": {} }), || held.add(25_000));
}

fn states() {
    in_own_network();
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let alone = connection(&listener);
    row("a connection opened and closed, nobody watches", format!("{alone:.0} ns"), "");
    let daemon = daemon("poll");
    let watched = connection(&listener);
    row("the same with enricher skops, both ends here", format!("{watched:.0} ns"), "");
    daemon.stop();
}
