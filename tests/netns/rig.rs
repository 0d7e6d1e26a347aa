//! Two hosts, the daemon on one, a capture on the other; and what a packet of a
//! flow has to look like there, from the specification's text (sections 1 and 2).

use std::net::{SocketAddrV6, UdpSocket};

use serde_json::{json, Value};

use crate::common::packet::{Packet, DESTINATION, HOP_BY_HOP, UDP};
use crate::common::{
    udp, v6, wait_for, Capture, Daemon, Nobody, Pair, DEVICE, HERE, PATIENCE, THERE,
};

/// The bits of a label that say the tag, and those that are entropy.
const TAG_BITS: u32 = 0x3_fefc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    Label,
    HopByHop,
    Destination,
    HopByHopDestination,
}

pub(crate) const STRATEGIES: [Strategy; 4] =
    [Strategy::Label, Strategy::HopByHop, Strategy::Destination, Strategy::HopByHopDestination];

impl Strategy {
    /// Its name in the configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Strategy::Label => "label",
            Strategy::HopByHop => "hopByHop",
            Strategy::Destination => "destination",
            Strategy::HopByHopDestination => "hopByHopDestination",
        }
    }

    /// By how many octets a packet grows.
    pub(crate) fn octets(self) -> usize {
        match self {
            Strategy::Label => 0,
            Strategy::HopByHop | Strategy::Destination => 8,
            Strategy::HopByHopDestination => 16,
        }
    }
}

/// A tag, and the label without entropy that says it (section 1.2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tag {
    pub(crate) experiment: u8,
    pub(crate) activity: u8,
    label: u32,
}

/// Rows of the specification's table.
pub(crate) const ATLAS: Tag = Tag { experiment: 2, activity: 15, label: 0x1_003c };
pub(crate) const ATLAS_OUTPUT: Tag = Tag { experiment: 2, activity: 16, label: 0x1_0040 };
pub(crate) const CMS: Tag = Tag { experiment: 3, activity: 14, label: 0x3_0038 };

/// Judges whether the packet carries the tag as the strategy demands, octet by
/// octet, on a packet that left the sender without extension headers and label.
pub(crate) fn is_marked(packet: &Packet, strategy: Strategy, tag: Tag) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{what}: {packet}"));
    if packet.payload_length != packet.actual_length {
        return wrong(&format!("payload length is {}", packet.payload_length));
    }
    if packet.payload_length < packet.extension_octets() {
        return wrong("the payload is shorter than its headers");
    }
    if strategy == Strategy::Label {
        if packet.label & TAG_BITS != tag.label {
            return wrong(&format!("the label does not say {tag:?}"));
        }
    } else if packet.label != 0 {
        return wrong("the label was touched");
    }
    let option = |next| vec![next, 0, 0x1e, 3, 0, tag.experiment, tag.activity, 0];
    let expected = match strategy {
        Strategy::Label => vec![],
        Strategy::HopByHop => vec![(HOP_BY_HOP, option(packet.protocol))],
        Strategy::Destination => vec![(DESTINATION, option(packet.protocol))],
        Strategy::HopByHopDestination => {
            vec![(HOP_BY_HOP, option(DESTINATION)), (DESTINATION, option(packet.protocol))]
        }
    };
    let found = packet.extensions.iter().map(|header| (header.kind, header.bytes.clone()));
    if !found.eq(expected) {
        return wrong("the extension headers are not what they should be");
    }
    Ok(())
}

/// Judges whether the packet is as it left the sender.
pub(crate) fn is_plain(packet: &Packet) -> Result<(), String> {
    let plain = packet.label == 0
        && packet.extensions.is_empty()
        && packet.payload_length == packet.actual_length;
    if plain {
        Ok(())
    } else {
        Err(format!("should not be marked: {packet}"))
    }
}

/// Panics with the first packet that is not as it should be.
pub(crate) fn each<'a>(
    packets: impl IntoIterator<Item = &'a Packet>,
    judge: impl Fn(&Packet) -> Result<(), String>,
) -> usize {
    let mut count = 0;
    for packet in packets {
        if let Err(error) = judge(packet) {
            panic!("packet {count}: {error}");
        }
        count += 1;
    }
    count
}

/// The ports of the flow that shows what the marker has done so far.
const PROBE: (u16, u16) = (9, 1009);

/// The daemon on one host, a capture on the other.
pub(crate) struct Rig {
    pub(crate) pair: Pair,
    pub(crate) daemon: Daemon,
    pub(crate) capture: Capture,
    strategy: Strategy,
    probe: UdpSocket,
    probe_open: bool,
    probes: u64,
    /// Takes the probes in, or the other host would answer each with an error.
    _sink: UdpSocket,
}

/// A configuration with the marker, with these settings of it, and the pipe.
pub(crate) fn config(marker: &Value) -> Value {
    json!({ "plugins": { "namedPipe": {} }, "backends": { "marker": marker } })
}

/// A daemon that marks what fireflies tell of.
pub(crate) fn listening(pair: &Pair, plugin: &Value) -> Daemon {
    let backends = json!({ "marker": { "targetInterfaces": [DEVICE] } });
    Daemon::start_in(&pair.here, json!({ "plugins": { "firefly": plugin }, "backends": backends }))
}

impl Rig {
    pub(crate) fn new(strategy: Strategy, attach: &str) -> Self {
        Self::on(Pair::new(), strategy, attach)
    }

    /// On hosts that were prepared.
    pub(crate) fn on(pair: Pair, strategy: Strategy, attach: &str) -> Self {
        Self::on_as(pair, strategy, attach, None)
    }

    /// The same, with a daemon that is not root.
    pub(crate) fn on_as(
        pair: Pair,
        strategy: Strategy,
        attach: &str,
        user: Option<Nobody>,
    ) -> Self {
        Self::with(pair, strategy, json!({ "attach": attach }), user)
    }

    /// With a daemon that marks also what no flow claims.
    pub(crate) fn matching_all(pair: Pair, strategy: Strategy) -> Self {
        Self::with(pair, strategy, json!({ "matchAll": true }), None)
    }

    /// With these settings of the marker; interfaces are the device's if they say
    /// nothing of them.
    pub(crate) fn with(
        pair: Pair,
        strategy: Strategy,
        mut marker: Value,
        user: Option<Nobody>,
    ) -> Self {
        if marker.get("targetInterfaces").is_none() {
            marker["targetInterfaces"] = json!([DEVICE]);
        }
        marker["markingStrategy"] = json!(strategy.name());
        let daemon = Daemon::try_start_as(config(&marker), Some(&pair.here), user);
        let daemon = daemon.unwrap_or_else(|failure| panic!("{failure:#?}"));
        let capture = Capture::start(&pair.there, DEVICE);
        let sink = udp(&pair.there, v6(THERE, PROBE.1), v6(HERE, PROBE.0));
        let probe = udp(&pair.here, v6(HERE, PROBE.0), v6(THERE, PROBE.1));
        Rig { pair, daemon, capture, strategy, probe, probe_open: false, probes: 0, _sink: sink }
    }

    /// Writes the lines to the pipe and returns when the marker has obeyed them:
    /// events keep their order, so a probe flow that is opened or closed behind
    /// them tells.
    pub(crate) fn obey(&mut self, lines: &str) {
        self.probe_open = !self.probe_open;
        let probe = line(self.probe_open, "udp", v6(HERE, PROBE.0), v6(THERE, PROBE.1), ATLAS);
        self.daemon.write(&format!("{lines}{probe}"));
        self.await_probe(self.probe_open);
    }

    /// Kills the daemon and starts it again. No flow is open then.
    pub(crate) fn restart(&mut self) {
        self.daemon.kill_and_restart(Some(&self.pair.here));
        self.probe_open = false;
    }

    /// How many packets were captured, all that have arrived so far among them.
    pub(crate) fn captured(&mut self) -> usize {
        self.send_probe();
        self.capture.count()
    }

    /// Sends probes until one arrives that is marked, or until one is not.
    fn await_probe(&mut self, marked: bool) {
        wait_for("the marker to obey", || {
            let probe = self.send_probe();
            (is_marked(&probe, self.strategy, ATLAS).is_ok() == marked).then_some(())
        });
    }

    /// Sends a probe and returns it as it was captured.
    fn send_probe(&mut self) -> Packet {
        let from = self.capture.count();
        self.probes += 1;
        let number = self.probes.to_be_bytes();
        self.probe.send(&number).expect("to send a probe");
        let this = |packet: &Packet| is_probe(packet) && packet.rest[8..] == number;
        self.capture.find(from, PATIENCE, this).expect("the probe arrives")
    }

    /// Stops the daemon and returns what was captured until then, without probes.
    pub(crate) fn finish(self) -> Vec<Packet> {
        self.finish_with(&[])
    }

    /// The same; the daemon's log may have warnings with one of these texts.
    pub(crate) fn finish_with(mut self, warnings: &[&str]) -> Vec<Packet> {
        // What is sent later, such as the last octets of a connection, is not marked.
        let end = self.captured();
        self.daemon.stop(warnings);
        let mut packets = self.capture.finish();
        packets.truncate(end);
        packets.retain(|packet| !is_probe(packet));
        packets
    }
}

fn is_probe(packet: &Packet) -> bool {
    (packet.protocol, packet.src_port, packet.dst_port) == (UDP, PROBE.0, PROBE.1)
}

/// A line for the pipe.
pub(crate) fn line(
    start: bool,
    protocol: &str,
    from: SocketAddrV6,
    to: SocketAddrV6,
    tag: Tag,
) -> String {
    let state = if start { "start" } else { "end" };
    let (src, sport, dst, dport) = (from.ip(), from.port(), to.ip(), to.port());
    let Tag { experiment, activity, .. } = tag;
    format!("{state} {protocol} {src} {sport} {dst} {dport} {experiment} {activity}\n")
}

/// Whether the packet belongs to that flow, by protocol and ports.
pub(crate) fn of(protocol: u8, src: u16, dst: u16) -> impl Fn(&&Packet) -> bool {
    move |packet| (packet.protocol, packet.src_port, packet.dst_port) == (protocol, src, dst)
}
