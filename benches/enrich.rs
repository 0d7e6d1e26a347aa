//! What the enricher netlink costs the whole daemon, with real connections on loopback: CPU
//! time of all its threads, kernel included, as the share of one core at a period of a second,
//! and resident memory. And what hearing of each socket that goes costs who opens them.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use glowd::net::sock_diag::Ends;
use serde_json::{json, Value};

use crate::control::in_own_network;
use crate::load::{connection, share, starts, tell};
use crate::process::Daemon;
use crate::row;
use crate::scan::Held;

pub(crate) const SECTIONS: &[crate::Section] = &[("enrich", enrich), ("ends", ends)];

fn enrich() {
    in_own_network();
    let mut held = Held::default();
    for (connections, flows, reach) in [
        (500, "1,000", ["", ""]),
        (4_500, "10,000", ["a fifth of the next", ""]),
        (20_000, "50,000", ["< 10 % of a core", "< 64 MB"]),
    ] {
        held.add(connections);
        measure("lean", flows, reach);
    }
    measure("full", "50,000", ["< 10 % of a core", "< 64 MB"]);
    with_prometheus("netlink", json!({ "netlink": {} }), || ());
}

/// Of all connections there are.
fn measure(mode: &str, flows: &str, reach: [&str; 2]) {
    let daemon = Daemon::start(json!({
        "maxFlows": 60_000,
        "plugins": { "namedPipe": {} },
        "enrichers": { "period": 1000, "netlink": {} },
        "backends": { "firefly": { "sendToDestination": false, "collectors": ["127.0.0.1:9"],
                                   "enrich": true, "enrichmentMode": mode } },
    }));
    let lines = starts();
    tell(&daemon, &lines);
    let measured = format!("{:.2} %", share(&daemon));
    row(&format!("enricher netlink, {flows} flows once a second, {mode}"), measured, reach[0]);
    let measured = format!("{:.1} MB", daemon.resident());
    row("the same, resident memory", measured, reach[1]);
    daemon.stop();
}

/// The last row again, with somebody who reads the samples: 10,000 flows have series.
/// `connect` opens the connections that are not there yet.
pub(crate) fn with_prometheus(name: &str, mut enrichers: Value, connect: impl FnOnce()) {
    enrichers["period"] = json!(1000);
    let daemon = Daemon::start(json!({
        "maxFlows": 60_000,
        "plugins": { "namedPipe": {} },
        "enrichers": enrichers,
        "backends": { "prometheus": {} },
    }));
    connect();
    let lines = starts();
    assert!(lines.len() >= 50_000, "{}", lines.len());
    tell(&daemon, &lines);
    let measured = format!("{:.2} %", share(&daemon));
    row(&format!("enricher {name}, 50,000 flows, prometheus"), measured, "< 10 % of a core");
    let measured = format!("{:.1} MB", daemon.resident());
    row("the same, resident memory", measured, "< 64 MB");
    daemon.stop();
}

fn ends() {
    in_own_network();
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let alone = connection(&listener);
    row("a connection opened and closed, nobody hears of it", format!("{alone:.0} ns"), "");
    let mut ends = Ends::open().unwrap();
    let (sender, stopped) = std::sync::mpsc::channel::<()>();
    let reader = thread::spawn(move || {
        let (mut told, mut lost) = (0_u64, 0);
        while stopped
            .recv_timeout(Duration::from_millis(50))
            .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            lost += u64::from(ends.take(|_| told += 1).unwrap());
        }
        (told, lost)
    });
    let heard = connection(&listener);
    drop(sender);
    let (told, lost) = reader.join().unwrap();
    assert!(told > 4000, "{told}");
    row("the same, both its sockets are heard of", format!("{heard:.0} ns"), "");
    row("times that some were lost", format!("{lost}"), "0");
}
