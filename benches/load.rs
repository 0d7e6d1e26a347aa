//! What several sections measure with: flows of real connections, the CPU time of a daemon,
//! and the time that a connection takes.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use glowd::flow::Protocol;
use glowd::net::sock_diag::{Coverage, Diag, Family, Query, States};

use crate::process::Daemon;

/// The sockets of this network, as starts of flows.
pub(crate) fn starts() -> Vec<String> {
    let mut lines = Vec::new();
    let query = Query {
        protocol: Protocol::Tcp,
        family: Some(Family::V6),
        states: States::OPEN,
        extensions: 0,
        filter: None,
    };
    let listed = Diag::open().unwrap().dump(&query, |socket| {
        let (src, dst) = (socket.local, socket.remote);
        let (from, to) = (format!("{} {}", src.ip(), src.port()), dst.ip());
        lines.push(format!("start tcp {from} {to} {} 2 16\n", dst.port()));
    });
    assert_eq!(listed, Ok(Coverage::Whole));
    lines
}

/// Tells the daemon of these flows, and returns when each has been measured once.
pub(crate) fn tell(daemon: &Daemon, lines: &[String]) {
    let mut pipe = std::fs::OpenOptions::new().write(true).open(daemon.pipe()).unwrap();
    pipe.write_all(lines.concat().as_bytes()).unwrap();
    drop(pipe);
    while daemon.open_flows() < lines.len() as u64 {}
    // One period is over.
    thread::sleep(Duration::from_secs(2));
}

/// The cheapest of some periods, since others use the machine too.
pub(crate) fn share(daemon: &Daemon) -> f64 {
    let period = |_| {
        let (before, since) = (daemon.cpu(), Instant::now());
        thread::sleep(Duration::from_secs(2));
        (daemon.cpu() - before).as_secs_f64() / since.elapsed().as_secs_f64() * 100.0
    };
    (0..4).map(period).fold(f64::INFINITY, f64::min)
}

/// Nanoseconds for a connection of nobody's interest, opened and closed.
pub(crate) fn connection(listener: &TcpListener) -> f64 {
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
