//! What the enricher netlink costs the whole daemon, with real connections on loopback: CPU
//! time of all its threads, kernel included, as the share of one core at a period of a second,
//! and resident memory. And what hearing of each socket that goes costs who opens them.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use glowd::flow::Protocol;
use glowd::net::sock_diag::{Diag, Ends, Family, Query, States};

use crate::control::in_own_network;
use crate::process::Daemon;
use crate::row;
use crate::scan::Held;

pub(crate) const SECTIONS: &[crate::Section] = &[("enrich", enrich), ("ends", ends)];

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

fn enrich() {
    in_own_network();
    let mut held = Held::default();
    for (connections, flows, reach) in [
        (500, "1,000", ["", ""]),
        (4_500, "10,000", ["a fifth of the next", ""]),
        (20_000, "50,000", ["< 10 % of a core", "< 64 MB"]),
    ] {
        held.add(connections);
        let daemon = Daemon::start(serde_json::json!({
            "maxFlows": 60_000,
            "plugins": { "namedPipe": {} },
            "enrichers": { "period": 1000, "netlink": {} },
            "backends": { "firefly": { "sendToDestination": false, "collectors": ["127.0.0.1:9"] } },
        }));
        let lines = starts();
        let mut pipe = std::fs::OpenOptions::new().write(true).open(daemon.pipe()).unwrap();
        pipe.write_all(lines.concat().as_bytes()).unwrap();
        drop(pipe);
        while daemon.open_flows() < lines.len() as u64 {}
        // One period is over, so each has a sample.
        thread::sleep(Duration::from_secs(2));
        let measured = format!("{:.2} %", share(&daemon));
        row(&format!("enricher netlink, {flows} flows once a second"), measured, reach[0]);
        let measured = format!("{:.1} MB", daemon.resident());
        row("the same, resident memory", measured, reach[1]);
        daemon.stop();
    }
}

/// Nanoseconds for a connection of nobody's interest, opened and closed.
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
