//! What the enricher skops costs, with real connections on loopback: CPU time of all the
//! daemon's threads, kernel included, as the share of one core at a period of a second, and
//! its resident memory; and what its programs cost who opens connections.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use glowd::flow::Protocol;
use glowd::net::sock_diag::{Diag, Family, Query, States};
use serde_json::json;

use crate::control::in_own_network;
use crate::process::Daemon;
use crate::row;
use crate::scan::Held;

pub(crate) const SECTIONS: &[crate::Section] = &[("skops", skops), ("states", states)];

/// The sockets of this network, as starts of flows.
fn starts() -> Vec<String> {
    let mut lines = Vec::new();
    let query = Query {
        protocol: Protocol::Tcp,
        family: Family::V6,
        states: States::OPEN,
        extensions: 0,
        filter: None,
    };
    let coverage = Diag::open().unwrap().dump(&query, |socket| {
        let (src, dst) = (socket.local, socket.remote);
        let (from, to) = (format!("{} {}", src.ip(), src.port()), dst.ip());
        lines.push(format!("start tcp {from} {to} {} 2 16\n", dst.port()));
    });
    assert!(coverage.is_ok());
    lines
}

/// The cheapest of some periods, since others use the machine too.
fn share(daemon: &Daemon) -> f64 {
    let period = |_| {
        let (before, since) = (daemon.cpu(), Instant::now());
        thread::sleep(Duration::from_secs(2));
        (daemon.cpu() - before).as_secs_f64() / since.elapsed().as_secs_f64() * 100.0
    };
    (0..4).map(period).fold(f64::INFINITY, f64::min)
}

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
        let mut pipe = std::fs::OpenOptions::new().write(true).open(daemon.pipe()).unwrap();
        pipe.write_all(lines.concat().as_bytes()).unwrap();
        drop(pipe);
        while daemon.open_flows() < lines.len() as u64 {}
        // One period is over, so each has a sample.
        thread::sleep(Duration::from_secs(2));
        let measured = format!("{:.2} %", share(&daemon));
        row(&format!("enricher skops, {flows} flows once a second"), measured, reach[0]);
        let measured = format!("{:.1} MB", daemon.resident());
        row("the same, resident memory", measured, reach[1]);
        daemon.stop();
    }
}

/// Nanoseconds for a connection that is no flow, opened and closed.
fn connection(listener: &TcpListener) -> f64 {
    const TIMES: u32 = 4000;
    let target = listener.local_addr().unwrap();
    let round = |_| {
        let since = Instant::now();
        for _ in 0..TIMES {
            let near = TcpStream::connect(target).unwrap();
            // The other side closes first, and its port is the same each time: no port is
            // left waiting.
            listener.accept().unwrap().0.shutdown(Shutdown::Both).unwrap();
            drop(near);
        }
        since.elapsed().as_nanos() as f64 / f64::from(TIMES)
    };
    (0..5).map(round).fold(f64::INFINITY, f64::min)
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
