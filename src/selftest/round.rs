//! One way of attaching with one strategy: the daemon is started, told of two flows, sees
//! real traffic, is told that they are over, and is stopped; every packet that arrives has
//! to be as it should at each stage, and nothing may be left at the end.

use std::fmt;

use super::cable::Cable;
use super::capture::Capture;
use super::daemon::Daemon;
use super::packet::{Packet, ACTIVITY, EXPERIMENT, TCP, UDP};
use super::traffic::{Flow, Traffic};
use super::watch::Watch;
use crate::error::{At, Class, Error, Result};
use crate::net::tc::{self, Hook};
use crate::sys::abi::Strategy;
use crate::sys::bpf;

/// Octets of TCP while the flow is open, and after it.
const BULK: (usize, usize) = (400_000, 200_000);
const AFTER: (usize, usize) = (50_000, 10_000);
/// Lengths of datagrams: small, and as long as fits a header.
const DATAGRAMS: [usize; 20] = [
    8, 9, 64, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1100, 1200, 1300, 1400, 1420,
    1430, 1436,
];

/// What was seen while the flows were open.
#[derive(Debug, Default)]
pub(super) struct Seen {
    way: String,
    tcp: usize,
    gso: usize,
    udp: usize,
    other: usize,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { way, tcp, gso, udp, other } = self;
        write!(f, "{tcp} packets of TCP ({gso} of them GSO) and {udp} of UDP marked, ")?;
        write!(f, "{other} of others not; attached by {way}, and off again")
    }
}

/// Tries it.
///
/// # Errors
/// What went wrong.
pub(super) fn run(
    cable: &mut Cable,
    capture: &mut Capture,
    watch: &Watch,
    attach: &str,
    (strategy, name): (Strategy, &str),
) -> Result<Seen> {
    watch.begin();
    let mut traffic = Traffic::open(cable)?;
    let judge = Judge {
        strategy,
        mtu: cable.near.interface.mtu as usize,
        tcp: traffic.tcp,
        udp: traffic.udp,
        other: traffic.other,
    };
    let mut daemon = Daemon::start(&cable.near.interface.name, attach, name, watch)?;
    let way = daemon.attached_by().unwrap_or_else(|| attach.to_owned());

    capture.drain()?;
    traffic.send_udp(100, watch)?;
    judge.all(&capture.drain()?, false).at("before the flow")?;

    let flows = [traffic.tcp, traffic.udp];
    let tell = |state: &str| flows.iter().map(|flow| line(state, flow)).collect::<String>();
    daemon.write(&tell("start"))?;
    // Lines are obeyed in order, so when the second flow is marked, so is the first.
    watch.until("packets to be marked", || {
        traffic.send_udp(100, watch)?;
        let packets = capture.drain()?;
        Ok(packets
            .iter()
            .any(|p| judge.is_of(p, &judge.udp) && p.is_marked(strategy))
            .then_some(()))
    })?;

    traffic.connect(watch)?;
    for (at, octets) in DATAGRAMS.into_iter().enumerate() {
        traffic.send_udp(octets, watch)?;
        traffic.send_other(octets, watch)?;
        if at == DATAGRAMS.len() / 2 {
            traffic.transfer(BULK.0, BULK.1, watch)?;
        }
    }
    let mut seen = judge.all(&capture.drain()?, true).at("during the flow")?;
    seen.way = way;

    daemon.write(&tell("end"))?;
    watch.until("packets to be plain again", || {
        traffic.send_udp(100, watch)?;
        let packets = capture.drain()?;
        Ok(packets.iter().any(|p| judge.is_of(p, &judge.udp) && p.is_plain()).then_some(()))
    })?;
    traffic.transfer(AFTER.0, AFTER.1, watch)?;
    traffic.send_udp(100, watch)?;
    traffic.send_other(100, watch)?;
    judge.all(&capture.drain()?, false).at("after the flow")?;

    daemon.stop(watch)?;
    nothing_is_left(cable)?;
    Ok(seen)
}

/// What packets should be like.
struct Judge {
    strategy: Strategy,
    /// Of the cable, in octets.
    mtu: usize,
    tcp: Flow,
    udp: Flow,
    other: Flow,
}

impl Judge {
    fn is_of(&self, packet: &Packet, flow: &Flow) -> bool {
        let protocol = if flow.protocol == "tcp" { TCP } else { UDP };
        let found = (packet.protocol, packet.source, packet.destination);
        found == (protocol, flow.from.port(), flow.to.port())
    }

    /// Judges all packets of the three flows; those of two are `open` or not.
    fn all(&self, packets: &[Packet], open: bool) -> Result<Seen> {
        let wrong = |what: String, packet: &Packet| {
            Err(Error::new(Class::Internal, format!("a packet {what}: {packet}")))
        };
        let (mut seen, mut octets) = (Seen::default(), 0);
        for packet in packets {
            let (tcp, udp) = (self.is_of(packet, &self.tcp), self.is_of(packet, &self.udp));
            if !tcp && !udp && !self.is_of(packet, &self.other) {
                continue;
            }
            if packet.wire > self.mtu {
                return wrong(format!("is longer than the MTU of {}", self.mtu), packet);
            }
            if open && (tcp || udp) {
                if !packet.is_marked(self.strategy) {
                    return wrong("of the flow is not marked as it should be".into(), packet);
                }
            } else if !packet.is_plain() {
                return wrong("is not as it was sent".into(), packet);
            }
            if tcp {
                seen.tcp += 1;
                seen.gso += usize::from(packet.gso);
                octets += packet.data;
            } else if udp {
                seen.udp += 1;
            } else {
                seen.other += 1;
            }
        }
        let few =
            open && (octets < BULK.0 || seen.udp < DATAGRAMS.len() || seen.other < DATAGRAMS.len());
        if few {
            let Seen { udp, other, .. } = seen;
            return Err(Error::new(
                Class::Internal,
                format!("only {octets} octets of TCP, {udp} and {other} datagrams were captured"),
            ));
        }
        Ok(seen)
    }
}

/// A line for the pipe.
fn line(state: &str, flow: &Flow) -> String {
    let Flow { protocol, from, to } = flow;
    let (src, sport, dst, dport) = (from.ip(), from.port(), to.ip(), to.port());
    format!("{state} {protocol} {src} {sport} {dst} {dport} {EXPERIMENT} {ACTIVITY}\n")
}

/// Whether the near end is as it was made.
fn nothing_is_left(cable: &mut Cable) -> Result<()> {
    let index = cable.near.interface.index;
    let left = |what: &str| Err(Error::internal(format!("the daemon has left {what}")));
    let kind = tc::qdisc(&mut cable.socket, index)
        .map_err(|failure| failure.because("cannot look for qdiscs"))?;
    if let Some(kind) = kind {
        return left(&format!("a {kind} qdisc"));
    }
    for hook in Hook::BOTH {
        // Where there is no tcx, none of it is left.
        if bpf::tcx_programs(index, hook).is_ok_and(|programs| !programs.is_empty()) {
            return left(&format!("a program on {}", hook.name()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selftest::packet::decode;
    use crate::selftest::packet::tests::captured;
    use std::net::{Ipv6Addr, SocketAddrV6};

    /// Of flows whose destination is port 5001, as in [`captured`].
    fn judge() -> Judge {
        let port = |port| SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0);
        let flow = |protocol, from| Flow { protocol, from: port(from), to: port(5001) };
        Judge {
            strategy: Strategy::Label,
            mtu: 1500,
            tcp: flow("tcp", 40_000),
            udp: flow("udp", 40_000),
            other: flow("udp", 40_001),
        }
    }

    #[test]
    fn a_packet_that_is_not_as_it_should_be_fails_the_round() {
        let judge = judge();
        let marked = decode(&captured(0xd294, &[], 100)).unwrap();
        let plain = decode(&captured(0, &[], 100)).unwrap();
        let (mut of_other, mut foreign) = (marked.clone(), marked.clone());
        (of_other.source, foreign.source) = (40_001, 1);
        let mut long = plain.clone();
        long.wire = 1501;
        for (packet, open, text) in [
            (&plain, true, "is not marked"),
            (&marked, false, "is not as it was sent"),
            (&of_other, true, "is not as it was sent"),
            (&long, false, "is longer than the MTU of 1500"),
        ] {
            let error = judge.all(std::slice::from_ref(packet), open).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        assert_eq!(judge.all(&[plain.clone(), plain], false).unwrap().udp, 2);
        judge.all(&[foreign], false).unwrap();
        // All as it should be, but not all of it.
        let error = judge.all(&[marked], true).unwrap_err().to_string();
        assert!(error.contains("only 0 octets of TCP, 1 and 0 datagrams"), "{error}");
    }

    #[test]
    fn a_line_has_the_eight_words() {
        let text = line("start", &judge().udp);
        assert_eq!(text, "start udp ::1 40000 ::1 5001 300 37\n");
    }
}
