//! The iperf3 plugin with a real iperf3.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{json, Value};

use super::connections::{foreign, Group};
use super::rig::{each, is_marked, is_plain, Strategy, Tag, ATLAS, CMS};
use crate::common::packet::{Packet, TCP};
use crate::common::{
    skip_unless_root, wait_for, Capture, Daemon, Namespace, Pair, DEVICE, HERE, THERE,
};

pub(super) const PORT: u16 = 5201;
const STREAMS: usize = 4;

/// A server for one test, killed when dropped.
pub(super) struct Server(Child);

impl Server {
    pub(super) fn start(namespace: &Namespace) -> Self {
        let mut command = Command::new("iperf3");
        command.args(["-s", "-1", "-p", &PORT.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = namespace.enter(|| command.spawn()).expect("iperf3 (tools/deps test)");
        wait_for("iperf3 to listen", || {
            let listening = namespace.run(&format!("ss -Hltn sport = :{PORT}"));
            (!listening.is_empty()).then_some(())
        });
        Server(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Four streams of two megabytes each, at a pace at which a moment is not much.
fn client(more: &str, to: &str) -> String {
    format!("timeout 60 iperf3 -6 -c {to} -p {PORT} -P {STREAMS} -n 8M -b 5M {more} >/dev/null")
}

fn run(namespace: &Namespace, mut command: Command) {
    let output = namespace.enter(|| command.output()).expect("bash");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn config(plugin: &Value) -> Value {
    json!({
        "plugins": {"iperf3": plugin},
        "backends": {"marker": {"targetInterfaces": [DEVICE]}}
    })
}

/// The tags of the flows that the daemon has told of, in that order; each has ended
/// with the tag that it began with.
fn tags(daemon: &Daemon, count: usize) -> Vec<(u16, Tag)> {
    let port = |line: &str, which: usize| -> u16 {
        let ends: Vec<_> = line.split("]:").collect();
        ends[which].split([' ', ':']).next().and_then(|port| port.parse().ok()).expect("a port")
    };
    let found = |what: &str| {
        let lines = daemon.lines();
        let lines = lines.into_iter().filter(|line| line.contains(&format!("iperf3: {what} tcp")));
        lines.collect::<Vec<_>>()
    };
    wait_for("all flows to end", || (found("end").len() >= count).then_some(()));
    let (starts, ends) = (found("start"), found("end"));
    assert_eq!((starts.len(), ends.len()), (count, count), "{starts:#?}\n{ends:#?}");
    let tag_of = |line: &str| {
        let is = |tag: Tag| {
            line.contains(&format!("experiment {} activity {}", tag.experiment, tag.activity))
        };
        [ATLAS, CMS].into_iter().find(|tag| is(*tag)).unwrap_or_else(|| panic!("{line}"))
    };
    let tagged = |lines: &[String]| {
        lines.iter().map(|line| ((port(line, 1), port(line, 2)), tag_of(line))).collect::<Vec<_>>()
    };
    let (starts, ends) = (tagged(&starts), tagged(&ends));
    for (ports, tag) in &ends {
        let start = starts.iter().find(|(other, _)| other == ports).expect("it has begun");
        assert_eq!(start.1.experiment, tag.experiment, "{ports:?}");
    }
    let other = |(one, two): (u16, u16)| if one == PORT { two } else { one };
    starts.into_iter().map(|(ports, tag)| (other(ports), tag)).collect()
}

/// That of each flow all is marked by its tag, from a little behind its begin to its
/// end.
fn judge(packets: &[Packet], tags: &[(u16, Tag)], from_client: bool) {
    let mut flows: BTreeMap<u16, Vec<&Packet>> = BTreeMap::new();
    for packet in packets.iter().filter(|packet| packet.protocol == TCP) {
        let (source, destination) = (packet.src_port, packet.dst_port);
        match (source == PORT, destination == PORT) {
            (false, true) if from_client => flows.entry(source).or_default().push(packet),
            (true, false) if !from_client => flows.entry(destination).or_default().push(packet),
            _ => is_plain(packet).expect("the other host's"),
        }
    }
    assert_eq!(flows.len(), tags.len());
    let (mut octets, mut marked) = (0, 0);
    for (port, packets) in flows {
        let tag = tags.iter().find(|(known, _)| *known == port).expect("a flow of it").1;
        let is = |packet: &&&Packet| is_marked(packet, Strategy::Label, tag).is_ok();
        let first = packets.iter().position(|packet| is(&packet)).expect("a marked packet");
        let last = packets.iter().rposition(|packet| is(&packet)).expect("a marked packet");
        each(packets[..first].iter().copied(), is_plain);
        each(packets[first..=last].iter().copied(), |packet| {
            is_marked(packet, Strategy::Label, tag)
        });
        each(packets[last + 1..].iter().copied(), is_plain);
        let sum = |packets: &[&Packet]| packets.iter().map(|p| p.data_length).sum::<usize>();
        octets += sum(&packets);
        marked += sum(&packets[first..=last]);
    }
    assert!(octets >= 8 << 20, "{octets}");
    println!("{marked} of {octets} octets were marked");
    assert!(marked * 2 > octets, "only {marked} of {octets} octets were marked");
}

#[test]
fn parallel_streams_get_tags_in_turn() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let plugin = json!({ "experimentIDs": ["atlas", 3], "activityIDs": [15, "14"],
        "minDestinationPort": PORT, "maxDestinationPort": PORT });
    let daemon = Daemon::start_in(&pair.here, config(&plugin));
    let _server = Server::start(&pair.there);
    let capture = Capture::start(&pair.there, DEVICE);
    let mut command = Command::new("bash");
    command.args(["-c", &client("", THERE)]);
    run(&pair.here, command);
    let tags = tags(&daemon, STREAMS + 1);
    for pair in tags.windows(2) {
        assert_ne!(pair[0].1.experiment, pair[1].1.experiment, "{tags:?}");
    }
    assert_eq!(tags[0].1.experiment, ATLAS.experiment, "the control connection is the first");
    let log = daemon.lines().join("\n");
    assert!(log.contains("iperf3"), "the program has a name: {log}");
    daemon.stop(&[]);
    judge(&capture.finish(), &tags, true);
}

#[test]
fn a_server_here_that_sends_is_marked_too() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let plugin = json!({ "experimentIDs": [2, 3], "activityIDs": [15, 14], "randomIDs": true,
        "minSourcePort": PORT, "maxSourcePort": PORT });
    let daemon = Daemon::start_in(&pair.here, config(&plugin));
    let _server = Server::start(&pair.here);
    let capture = Capture::start(&pair.there, DEVICE);
    let mut command = Command::new("bash");
    command.args(["-c", &client("-R", HERE)]);
    run(&pair.there, command);
    let tags = tags(&daemon, STREAMS + 1);
    daemon.stop(&[]);
    judge(&capture.finish(), &tags, false);
}

/// Also that others' programs stay there, and that nothing of a killed glowd does.
#[test]
fn only_connections_of_the_control_group_are_found() {
    if skip_unless_root() {
        return;
    }
    let (pair, group) = (Pair::new(), Group::new());
    let (_object, _link) = foreign(&group);
    let others = group.programs();
    let plugin = json!({ "experimentIDs": [2], "activityIDs": [15], "minDestinationPort": PORT,
        "cgroupPath": group.0 });
    let mut daemon = Daemon::start_in(&pair.here, config(&plugin));
    assert_eq!(group.programs().len(), 2);
    let capture = Capture::start(&pair.there, DEVICE);
    {
        let _server = Server::start(&pair.there);
        let mut command = Command::new("bash");
        command.args(["-c", &client("", THERE)]);
        run(&pair.here, command);
    }
    {
        let _server = Server::start(&pair.there);
        run(&pair.here, group.command(&client("", THERE)));
    }
    let tags = tags(&daemon, STREAMS + 1);
    daemon.end_by(Signal::SIGKILL);
    wait_for("the program to go", || (group.programs() == others).then_some(()));
    let is_found = |packet: &Packet| tags.iter().any(|(port, _)| packet.src_port == *port);
    let (found, others): (Vec<_>, Vec<_>) =
        capture.finish().into_iter().filter(|packet| packet.protocol == TCP).partition(is_found);
    assert!(each(&others, is_plain) > 100, "the first client's, and what the servers sent");
    judge(&found, &tags, true);
}
