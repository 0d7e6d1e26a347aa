//! Fireflies beside destinations that nobody can reach.

use std::net::UdpSocket;

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

use crate::common::{skip_unless_root, Daemon, Namespace, PATIENCE};

const NEIGHBOURS: u32 = 50;
/// Per family: far more than a send buffer holds.
const FLOWS: u32 = 20_000;

/// Room for all that is sent.
fn sink(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("a sink");
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).expect("SO_RCVBUFFORCE");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

/// Destinations on the link whose addresses nobody has: what is sent to them fills
/// the send buffer for as long as neighbour discovery and ARP try.
#[test]
fn silent_neighbours_cost_the_collectors_nothing() {
    if skip_unless_root() {
        return;
    }
    let host = Namespace::new();
    host.ip("link add near type veth peer name far");
    host.ip("-6 address add fd00::1/64 dev near nodad");
    host.ip("address add 10.0.0.1/24 dev near");
    for family in ["ipv4", "ipv6"] {
        // Else a glowd that is slow enough could do without what is still waiting there.
        host.sysctl(&format!("{family}/neigh/near/retrans_time_ms"), "60000");
    }
    host.ip("link set near up");
    host.ip("link set far up");
    let sinks = host.enter(|| ["[::1]:9999", "127.0.0.1:9999"].map(sink));
    let mut daemon = Daemon::start_in(
        &host,
        json!({
            "plugins": {"namedPipe": {}},
            "maxFlows": 2 * FLOWS,
            "backends": {"firefly": {"collectors": ["[::1]:9999", "127.0.0.1:9999"]}}
        }),
    );
    let line = |flow: u32| {
        let (neighbour, port) = (100 + flow % NEIGHBOURS, 10_000 + flow);
        format!(
            "start tcp fd00::1 {port} fd00::{neighbour} 1094 2 16\n\
             start tcp 10.0.0.1 {port} 10.0.0.{neighbour} 1094 2 16\n"
        )
    };
    let lines: String = (0..FLOWS).map(line).collect();
    daemon.write(&lines);
    let mut buffer = [0; 2048];
    for sink in &sinks {
        let received = (0..2 * FLOWS)
            .take_while(|_| crate::common::receive(sink, &mut buffer).is_ok())
            .count();
        assert_eq!(received, 2 * FLOWS as usize, "the collector has not got them all");
    }

    daemon.signal(Signal::SIGUSR1);
    let report = daemon.wait_for_line("backends.firefly: to destinations ");
    let (destinations, collectors) = report.split_once("; to collectors ").expect("both counts");
    assert!(
        collectors.starts_with(&format!("{} sent, 0 failed, 0 dropped", 4 * FLOWS)),
        "{report}"
    );
    assert!(!destinations.contains(" 0 dropped on a full buffer"), "nothing was full: {report}");
    // What the neighbours have not taken does not hold up the end either.
    daemon.stop(&["cannot send to the destination"]);
}
