//! Fireflies as input between two hosts: from either end of a flow, and back and forth.

use std::net::{SocketAddrV6, UdpSocket};

use nix::sys::signal::Signal;
use serde_json::json;

use super::rig::{is_marked, is_plain, line, listening, Strategy, ATLAS};
use crate::common::packet::{Packet, UDP};
use crate::common::{
    ethernet, ipv6, segment, skip_unless_root, sum, udp, v6, wait_for, Capture, Daemon, Pair,
    RawSender, DEVICE, HERE, PATIENCE, THERE,
};

const PORT: u16 = 10_514;

/// As dCache writes it: the client is the source.
pub(super) fn firefly(state: &str, src: SocketAddrV6, dst: SocketAddrV6) -> String {
    format!(
        r#"<134>1 2024-11-26T10:00:00Z {} dCache - firefly-json - {}"#,
        src.ip(),
        json!({
            "version": 1,
            "flow-lifecycle": { "state": state },
            "flow-id": {
                "afi": "ipv6", "src-ip": src.ip(), "dst-ip": dst.ip(), "protocol": "udp",
                "src-port": src.port(), "dst-port": dst.port()
            },
            "context": { "experiment-id": 2, "activity-id": 15 }
        })
    )
}

/// What leaves the host from a port, as it arrives.
struct Traffic<'a> {
    capture: &'a Capture,
    socket: UdpSocket,
    _sink: UdpSocket,
}

impl Traffic<'_> {
    fn packet(&self) -> Packet {
        let from = self.capture.count();
        self.socket.send(b"datagram").expect("to send");
        let port = self.socket.local_addr().expect("its address").port();
        let found = self.capture.find(from, PATIENCE, |packet| packet.src_port == port);
        found.expect("the datagram arrives")
    }
}

#[test]
fn a_firefly_from_the_other_end_marks_what_leaves_here() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let daemon = listening(&pair, &json!({"bindAddress": "::", "allowFrom": [THERE]}));
    let capture = Capture::start(&pair.there, DEVICE);
    let reporter = udp(&pair.there, v6(THERE, 999), v6(HERE, PORT));
    let stranger = udp(&pair.here, v6(HERE, 999), v6(HERE, PORT));
    let report = |text: String| assert_eq!(reporter.send(text.as_bytes()).ok(), Some(text.len()));
    // The second address appears while the daemon runs.
    for (address, port) in [(HERE, 40_000), ("fd00::77", 40_001)] {
        if address != HERE {
            pair.here.ip(&format!("-6 address add {address}/64 dev {DEVICE} nodad"));
        }
        let (here, there) = (v6(address, port), v6(THERE, 5001));
        let (socket, sink) = (udp(&pair.here, here, there), udp(&pair.there, there, here));
        let traffic = Traffic { capture: &capture, socket, _sink: sink };
        is_plain(&traffic.packet()).expect("nobody has said anything");
        stranger.send(firefly("start", there, here).as_bytes()).expect("to send");
        daemon.wait_for_line("which allowFrom does not name");
        is_plain(&traffic.packet()).expect("nobody who may say so has said anything");
        wait_for("the mark", || {
            // It is asked again, at most a second later, whose address that is.
            report(firefly("start", there, here));
            is_marked(&traffic.packet(), Strategy::Label, ATLAS).ok()
        });
        report(firefly("end", there, here));
        wait_for("the end", || is_plain(&traffic.packet()).ok());
    }
    daemon.stop(&["which allowFrom does not name"]);
}

/// IPv6 packets from outside may have any source, also one that looks like IPv4.
#[test]
fn who_sends_ipv6_cannot_pass_for_ipv4() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let config = json!({
        "plugins": {"api": {}, "firefly": {"bindAddress": "::", "allowFrom": ["local", "10.9.0.0/16"]}},
        "backends": {}
    });
    let daemon = Daemon::start_in(&pair.there, config);
    let sender = RawSender::new(&pair.here, DEVICE);
    let to = v6(THERE, PORT);
    let text = firefly("start", v6(HERE, 1), v6(THERE, 2));
    for (count, source) in ["::ffff:127.0.0.1", "::ffff:10.9.1.1"].iter().enumerate() {
        let from = v6(source, 999);
        let mut datagram = segment(UDP, from, to, text.as_bytes());
        let length = u32::try_from(datagram.len()).expect("small").to_be_bytes();
        datagram[6..8].copy_from_slice(&[0, 0]);
        let parts =
            [&from.ip().octets()[..], &to.ip().octets(), &length, &[0, 0, 0, UDP], &datagram];
        let checksum = !sum(&parts.concat());
        datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
        let mut frame = ethernet(&[], &ipv6(0, from, to, UDP, &datagram));
        // To whoever is there.
        frame[..6].fill(0xff);
        sender.send(&frame);
        wait_for("the datagram to be dropped", || {
            let lines = daemon.lines();
            let dropped =
                lines.iter().filter(|line| line.contains("which allowFrom does not name"));
            (dropped.count() == count + 1).then_some(())
        });
    }
    let own = udp(&pair.there, v6(THERE, 999), to);
    own.send(text.as_bytes()).expect("to send");
    wait_for("the flow", || {
        pair.there.enter(|| daemon.get("/flows").1["flows"][0].is_object()).then_some(())
    });
    daemon.stop(&["which allowFrom does not name", "backends: "]);
}

/// Each tells the other of its flows, as fireflies go to the destination. A start that
/// comes back after the end would be a new flow, of which the other is told in turn.
#[test]
fn two_hosts_that_tell_each_other_come_to_rest() {
    if skip_unless_root() {
        return;
    }
    const FLOWS: u16 = 2000;
    let pair = Pair::new();
    let config = json!({
        "plugins": {
            "namedPipe": {},
            "firefly": {"bindAddress": "::", "allowFrom": ["local", "fd00::/64"]}
        },
        "backends": {"firefly": {}}
    });
    let mut here = Daemon::start_in(&pair.here, config.clone());
    let there = Daemon::start_in(&pair.there, config);
    let to = v6(THERE, 5001);
    for port in 1..=FLOWS {
        let from = v6(HERE, port);
        let lines = [true, false].map(|start| line(start, "udp", from, to, ATLAS));
        here.write(&lines.concat());
    }
    // A start and an end of each, both ways.
    let done = format!("plugins.firefly: {0} datagrams received, {0} taken", 2 * FLOWS);
    let flows = format!("flows: 0 open of 100000, {FLOWS} started, {FLOWS} ended, ");
    for daemon in [&here, &there] {
        wait_for("all to be told", || {
            daemon.signal(Signal::SIGUSR1);
            let lines = daemon.lines();
            let last = lines.iter().rev().find(|line| line.contains("datagrams received"))?;
            last.contains(&done).then_some(())
        });
    }
    for daemon in [&here, &there] {
        let before = daemon.lines().len();
        daemon.signal(Signal::SIGUSR1);
        let report = wait_for("the report", || {
            let lines = daemon.lines();
            // The flows come first, so behind an older report's end there is all of it.
            let (at, _) =
                lines.iter().enumerate().skip(before).find(|(_, line)| line.contains("flows: "))?;
            let rest = &lines[at..];
            let received = rest.iter().find(|line| line.contains("datagrams received"))?;
            Some((rest[0].clone(), received.clone()))
        });
        assert!(report.0.contains(&flows) && report.1.contains(&done), "{report:?}");
    }
    here.stop(&[]);
    there.stop(&[]);
}
