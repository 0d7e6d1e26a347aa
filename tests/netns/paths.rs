//! Paths that carry less than the interface: the marker makes the packets larger,
//! and TCP, which does not know, has to find the size that arrives.

use super::rig::{each, is_marked, is_plain, line, of, Rig, Strategy, ATLAS};
use crate::common::packet::{Packet, TCP};
use crate::common::{skip_unless_root, v6, Connection, Offload, Pair, HERE, THERE};

const HEADER_STRATEGIES: [Strategy; 3] =
    [Strategy::HopByHop, Strategy::Destination, Strategy::HopByHopDestination];

const SYN: u8 = 0x02;
const BULK: usize = 3 << 20;
const SMALL: usize = 50;
const MESSAGE: usize = 64;

/// Whether a flow of its own claims the transfer, or the default tag does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Flow,
    MatchAll,
}

/// What arrived of a bulk transfer.
struct Transfer {
    packets: Vec<Packet>,
    /// Those of them before and behind the bulk, which fit each path.
    small: Vec<Packet>,
}

/// A bulk transfer over a path with that MTU, which has to be complete.
fn transfer(strategy: Strategy, mtu: u32, offload: Offload, claim: Claim) -> Transfer {
    println!("{strategy:?}, path MTU {mtu}, {offload:?}, {claim:?}");
    let (pair, router) = Pair::routed(mtu);
    pair.set_device(1500, offload);
    ["here", "there"].iter().for_each(|device| router.set_offload(device, offload));
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 1094));
    let mut rig = match claim {
        Claim::Flow => Rig::on(pair, strategy, "auto"),
        Claim::MatchAll => Rig::matching_all(pair, strategy),
    };
    match claim {
        Claim::Flow => rig.obey(&line(true, "tcp", from, to, ATLAS)),
        Claim::MatchAll => rig.obey(&line(true, "udp", v6(HERE, 1), v6(THERE, 2), ATLAS)),
    }
    let (here, there) = (&rig.pair.here, &rig.pair.there);
    let mut connection = Connection::open((here, from), (there, to), 0);
    connection.ping_pong(SMALL);
    let before = rig.captured();
    connection.send_bulk(BULK);
    let behind = rig.captured();
    connection.ping_pong(SMALL);
    drop(connection);
    // What is sent again later may not meet the daemon any more.
    let end = rig.captured();
    rig.daemon.stop(&[]);
    let mut captured = rig.capture.finish();
    captured.truncate(end);
    let flow = |part: &[Packet]| -> Vec<Packet> {
        part.iter().filter(of(TCP, 40_000, 1094)).cloned().collect()
    };
    let small = [flow(&captured[..before]), flow(&captured[behind..])].concat();
    let packets = flow(&captured);
    assert!(packets[0].tcp_flags & SYN != 0, "the SYN is the first: {}", packets[0]);
    let octets: usize = packets.iter().map(|packet| packet.data_length).sum();
    assert!(octets >= BULK + 2 * SMALL * MESSAGE, "{octets} octets were captured");
    let mtu = usize::try_from(mtu).expect("small");
    // With TSO the last device does not cut them.
    let fits = |packet: &Packet| packet.actual_length + 40 <= mtu || offload == Offload::Tso;
    assert!(packets.iter().all(fits));
    Transfer { packets, small }
}

/// Who may cut the transfer into segments. Not a device behind the router: Linux
/// stalls some connections whose super-packets it forwards whole and with destination
/// options to a narrower link, also those of the socket option IPV6_DSTOPTS without
/// a daemon. Those that stall have a high sequence number, as if the router took a
/// part of it for the length of the segments' headers.
fn offloads(strategy: Strategy) -> &'static [Offload] {
    match strategy {
        Strategy::HopByHop => &[Offload::Tso, Offload::Gso, Offload::None],
        _ => &[Offload::Gso, Offload::None],
    }
}

#[test]
fn what_fits_the_path_is_marked() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        for &offload in offloads(strategy) {
            let Transfer { packets, .. } = transfer(strategy, 1400, offload, Claim::Flow);
            // What does not fit has not arrived.
            each(&packets, |packet| is_marked(packet, strategy, ATLAS));
            let full = packets.iter().filter(|packet| packet.actual_length + 40 + 32 > 1400);
            assert!(full.count() > BULK / 65_536 / 2, "the path is made use of");
        }
    }
}

/// The headers would make packets of less than 1280 octets necessary, which IPv6 does
/// not know (RFC 8200 section 5).
#[test]
fn a_path_without_room_gets_its_large_packets_unmarked() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        for &offload in offloads(strategy) {
            let transfer = transfer(strategy, 1280, offload, Claim::Flow);
            small_ones_are_marked(&transfer, strategy);
            let plain = transfer.packets.iter().filter(|packet| is_plain(packet).is_ok()).count();
            assert!(plain > 0, "some are as large as the path takes them");
        }
    }
}

/// Connections that are no flow of ours get the default tag, and meet the same paths.
#[test]
fn what_no_flow_claims_arrives_by_each_path() {
    if skip_unless_root() {
        return;
    }
    for strategy in HEADER_STRATEGIES {
        for mtu in [1400, 1280] {
            for &offload in offloads(strategy) {
                let transfer = transfer(strategy, mtu, offload, Claim::MatchAll);
                small_ones_are_marked(&transfer, strategy);
            }
        }
    }
}

/// All are marked or as they were sent; those of the messages, and those that open and
/// close the connection, are marked.
fn small_ones_are_marked(transfer: &Transfer, strategy: Strategy) {
    let small = each(&transfer.small, |packet| is_marked(packet, strategy, ATLAS));
    assert!(small >= 2 * SMALL, "{small}");
    each(&transfer.packets, |packet| {
        is_marked(packet, strategy, ATLAS).or_else(|_| is_plain(packet))
    });
}
