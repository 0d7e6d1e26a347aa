//! Interfaces that are discovered, match a pattern, come, go and change while the
//! daemon runs; and packets that pass two of them.

use std::net::UdpSocket;
use std::time::Duration;

use glowd::net::tc::Hook;
use glowd::sys::bpf::tcx_programs;
use nix::net::if_::if_nametoindex;
use nix::sys::signal::Signal;
use serde_json::{json, Value};

use super::passing::{free_device, passes_two};
use super::rig::{config, is_marked, line, Strategy, ATLAS, STRATEGIES};
use crate::common::packet::UDP;
use crate::common::{
    skip_unless_root, udp, v6, wait_for, Capture, Daemon, Namespace, Pair, DEVICE, HERE,
};

/// Public addresses on the two ends of a cable.
const NEAR: &str = "2001:db8::1";
const FAR: &str = "2001:db8::2";
const PORTS: (u16, u16) = (40_000, 5001);

/// Two hosts between which a cable comes and goes.
struct Hosts {
    here: Namespace,
    there: Namespace,
}

/// What is needed to see whether the flow's packets are marked.
struct Cable {
    socket: UdpSocket,
    sink: UdpSocket,
    capture: Capture,
}

impl Hosts {
    fn new() -> Self {
        let hosts = Hosts { here: Namespace::new(), there: Namespace::new() };
        hosts.here.sysctl("ipv6/auto_flowlabels", "0");
        hosts
    }

    /// A daemon with these settings of the marker, to which the flow is open.
    fn daemon(&self, marker: &Value) -> Daemon {
        let mut daemon = Daemon::start_in(&self.here, config(marker));
        daemon.write(&line(true, "udp", v6(NEAR, PORTS.0), v6(FAR, PORTS.1), ATLAS));
        daemon
    }

    /// Plugs a cable in, whose near end is called `name` and has an address.
    fn plug(&self, name: &str) -> Cable {
        let peer = self.there.path();
        self.here.ip(&format!("link add {name} type veth peer name far netns {peer}"));
        for (host, device, address) in [(&self.here, name, NEAR), (&self.there, "far", FAR)] {
            host.ip(&format!("link set {device} up"));
            host.ip(&format!("-6 address add {address}/64 dev {device} nodad"));
        }
        let capture = Capture::start(&self.there, "far");
        let (near, far) = (v6(NEAR, PORTS.0), v6(FAR, PORTS.1));
        Cable { socket: udp(&self.here, near, far), sink: udp(&self.there, far, near), capture }
    }

    /// Gives the near end another name; before Linux 6.2 it has to be down for that.
    fn rename(&self, from: &str, to: &str) {
        self.here.ip(&format!("link set {from} down"));
        self.here.ip(&format!("link set {from} name {to}"));
        self.here.ip(&format!("link set {to} up"));
        self.here.ip(&format!("-6 address add {NEAR}/64 dev {to} nodad"));
    }

    fn unplug(&self, name: &str, cable: Cable) {
        self.here.ip(&format!("link del {name}"));
        let Cable { socket, sink, capture } = cable;
        drop((socket, sink));
        drop(capture);
    }

    /// How many programs of anybody's are on the interface, by either way.
    fn programs(&self, name: &str) -> usize {
        let tcx = self.here.enter(|| {
            let index = if_nametoindex(name).expect("the interface");
            let count = |hook| tcx_programs(index, hook).map_or(0, |programs| programs.len());
            Hook::BOTH.into_iter().map(count).sum::<usize>()
        });
        let qdisc = self.here.run(&format!("tc qdisc show dev {name}"));
        tcx + usize::from(qdisc.contains("clsact"))
    }

    fn wait_until_left(&self, name: &str) {
        wait_for("glowd to leave it", || (self.programs(name) == 0).then_some(()));
    }
}

impl Cable {
    /// Sends datagrams until one arrives that is marked, or until one is not.
    fn wait_until_marked(&self, strategy: Strategy, marked: bool) {
        let this = |packet: &crate::common::packet::Packet| {
            (packet.protocol, packet.src_port, packet.dst_port) == (UDP, PORTS.0, PORTS.1)
        };
        wait_for("a packet to be marked, or not", || {
            let from = self.capture.count();
            // The cable may not carry yet.
            let _ = self.socket.send(b"datagram");
            let packet = self.capture.find(from, Duration::from_millis(20), this)?;
            (is_marked(&packet, strategy, ATLAS).is_ok() == marked).then_some(())
        });
    }
}

#[test]
fn a_hot_plugged_interface_is_marked_while_it_has_a_public_address() {
    if skip_unless_root() {
        return;
    }
    for (attach, strategy) in [("auto", Strategy::Label), ("clsact", Strategy::HopByHop)] {
        let hosts = Hosts::new();
        let marker = json!({ "discoverInterfaces": true, "attach": attach,
                             "markingStrategy": strategy.name() });
        let daemon = hosts.daemon(&marker);
        assert_eq!(hosts.programs("lo"), 0, "the loopback is not discovered");
        for round in 1..=3 {
            let cable = hosts.plug("wan0");
            cable.wait_until_marked(strategy, true);
            // Another address keeps it.
            hosts.here.ip("-6 address add 2001:db8::3/64 dev wan0 nodad");
            hosts.here.ip("-6 address del 2001:db8::3/64 dev wan0");
            cable.wait_until_marked(strategy, true);
            hosts.here.ip(&format!("-6 address del {NEAR}/64 dev wan0"));
            hosts.wait_until_left("wan0");
            hosts.here.ip(&format!("-6 address add {NEAR}/64 dev wan0 nodad"));
            cable.wait_until_marked(strategy, true);
            // It marks already when not all is attached yet, and only then can it be gone.
            let is_attached =
                |line: &&String| line.contains("wan0: marking ") && line.contains("attached by");
            wait_for("all to be attached", || {
                let lines = daemon.lines();
                (lines.iter().filter(is_attached).count() >= 2 * round).then_some(())
            });
            hosts.unplug("wan0", cable);
            daemon.wait_for_line("wan0: the interface is gone");
        }
        let _cable = hosts.plug("wan0");
        wait_for("it to be marked", || (hosts.programs("wan0") > 0).then_some(()));
        daemon.stop(&["no interface with a public IPv6 address is there yet"]);
        assert_eq!(hosts.programs("wan0"), 0, "nothing is left");
    }
}

#[test]
fn an_interface_is_marked_while_its_name_is_wanted() {
    if skip_unless_root() {
        return;
    }
    let hosts = Hosts::new();
    hosts.here.ip("link add named type veth peer name other");
    let daemon = hosts.daemon(&json!({ "targetInterfaces": ["named", "enp?s0", "!enpxs0"] }));
    daemon.wait_for_line("no interface matches \"enp?s0\" yet");
    for name in ["enp3s0", "enp4s0"] {
        let cable = hosts.plug(name);
        cable.wait_until_marked(Strategy::Label, true);
        hosts.rename(name, "enpxs0");
        hosts.wait_until_left("enpxs0");
        cable.wait_until_marked(Strategy::Label, false);
        hosts.rename("enpxs0", name);
        cable.wait_until_marked(Strategy::Label, true);
        hosts.unplug(name, cable);
    }
    // One that was named goes and comes back.
    hosts.here.ip("link del named");
    daemon.wait_for_line("named: the interface is gone");
    let cable = hosts.plug("named");
    cable.wait_until_marked(Strategy::Label, true);
    // It marks already when the list of names is not made anew yet.
    wait_for("the interface to be named", || {
        daemon.signal(Signal::SIGUSR1);
        let named = |line: &String| line.contains("interfaces marked: named");
        daemon.lines().iter().any(named).then_some(())
    });
    daemon.stop(&["no interface matches"]);
    assert_eq!(hosts.programs("named"), 0, "nothing is left");
}

#[test]
fn a_packet_that_passes_a_bridge_and_its_port_is_marked_once() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        let pair = Pair::new();
        free_device(&pair);
        pair.here.ip("link add br0 type bridge mcast_snooping 0");
        pair.here.ip(&format!("link set {DEVICE} master br0"));
        pair.here.ip("link set br0 up");
        pair.here.ip(&format!("-6 address add {HERE}/64 dev br0 nodad"));
        let marker = json!({ "targetInterfaces": ["br?", "veth*"] });
        passes_two(pair, strategy, marker, &["br0", DEVICE]);
    }
}

#[test]
fn a_packet_that_passes_a_macvlan_device_and_its_parent_is_marked_once() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        let pair = Pair::new();
        free_device(&pair);
        pair.here.ip(&format!("link add upper0 link {DEVICE} type macvlan mode bridge"));
        pair.here.ip("link set upper0 up");
        pair.here.ip(&format!("-6 address add {HERE}/64 dev upper0 nodad"));
        pair.here.ip("-6 address add 2001:db8:1::1/64 dev upper0 nodad");
        pair.here.ip(&format!("-6 address add 2001:db8:2::1/64 dev {DEVICE} nodad"));
        let marker = json!({ "targetInterfaces": [], "discoverInterfaces": true });
        passes_two(pair, strategy, marker, &["upper0", DEVICE]);
    }
}

#[test]
fn the_port_of_a_bridge_is_not_discovered() {
    if skip_unless_root() {
        return;
    }
    let hosts = Hosts::new();
    let cable = hosts.plug("wan0");
    let daemon = hosts.daemon(&json!({ "discoverInterfaces": true }));
    cable.wait_until_marked(Strategy::Label, true);
    hosts.here.ip("link add br0 type bridge mcast_snooping 0");
    hosts.here.ip("link set br0 up");
    hosts.here.ip("link set wan0 master br0");
    hosts.here.ip(&format!("-6 address del {NEAR}/64 dev wan0"));
    hosts.here.ip(&format!("-6 address add {NEAR}/64 dev br0 nodad"));
    cable.wait_until_marked(Strategy::Label, true);
    hosts.wait_until_left("wan0");
    assert_ne!(hosts.programs("br0"), 0);
    daemon.stop(&[]);
    assert_eq!(hosts.programs("br0"), 0);
}
