//! Bulk TCP: each strategy by each way of attaching, at both MTUs, whoever cuts the
//! data into segments. All packets from the first SYN on are marked, the stream is
//! complete, and before and behind the flow's life nothing is marked.

use std::collections::HashSet;

use super::rig::{each, is_marked, is_plain, line, of, Rig, Strategy, ATLAS};
use crate::common::packet::{Packet, TCP};
use crate::common::{skip_unless_root, v6, Connection, Offload, Pair, HERE, THERE};

/// Expedited Forwarding, whose lowest bit falls into the octet of the label.
const EF: u8 = 0xb8;
const ECT_0: u8 = 0x02;
const SYN: u8 = 0x02;

const BULK: usize = 4 << 20;
const SMALL: usize = 100;

struct Transfer {
    /// Between the start line and the end line.
    during: Vec<Packet>,
    /// Behind the end line.
    after: Vec<Packet>,
    /// The wire's limit.
    mtu: usize,
}

/// A flow that is announced, opened, used, ended, and used once more.
fn transfer(strategy: Strategy, attach: &str, mtu: u32, offload: Offload) -> Transfer {
    let pair = Pair::new();
    pair.set_device(mtu, offload);
    let mut rig = Rig::on(pair, strategy, attach);
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 1094));
    rig.obey(&line(true, "tcp", from, to, ATLAS));
    let (here, there) = (&rig.pair.here, &rig.pair.there);
    let mut connection = Connection::open((here, from), (there, to), EF);
    connection.send_bulk(BULK);
    connection.ping_pong(SMALL);
    let end = rig.captured();
    rig.obey(&line(false, "tcp", from, to, ATLAS));
    let ended = rig.captured();
    connection.ping_pong(SMALL);
    drop(connection);
    rig.daemon.stop(&[]);
    let packets = rig.capture.finish();
    let flow = |part: &[Packet]| part.iter().filter(of(TCP, 40_000, 1094)).cloned().collect();
    let mtu = usize::try_from(mtu).expect("small");
    Transfer { during: flow(&packets[..end]), after: flow(&packets[ended..]), mtu }
}

fn every_packet_is_marked(strategy: Strategy, attach: &str, mtu: u32, offload: Offload) {
    let Transfer { during, after, mtu } = transfer(strategy, attach, mtu, offload);
    each(&during, |packet| is_marked(packet, strategy, ATLAS));
    let labels: HashSet<u32> = during.iter().map(|packet| packet.label).collect();
    assert_eq!(labels.len(), 1, "the entropy is constant");
    assert!(during[0].tcp_flags & SYN != 0, "the SYN is the first: {}", during[0]);

    let mut sent = None;
    for packet in during.iter().filter(|packet| packet.data_length > 0) {
        let wanted = EF | ECT_0;
        // Only what is sent again may be without ECT (RFC 3168 section 6.1.5).
        let again = sent.is_some_and(|sent| later(sent, packet.sequence));
        let class = packet.traffic_class;
        assert!(class == wanted || again && class == EF, "traffic class: {packet}");
        let length = u32::try_from(packet.data_length).expect("small");
        let end = packet.sequence.wrapping_add(length);
        if sent.is_none_or(|sent| later(end, sent)) {
            sent = Some(end);
        }
    }
    assert!(during.iter().all(|packet| packet.traffic_class & 0xfc == EF), "DSCP");
    let octets: usize = during.iter().map(|packet| packet.data_length).sum();
    assert!(octets >= BULK + SMALL * 64, "{octets} octets were captured");
    if offload == Offload::Tso {
        let largest = during.iter().map(|packet| packet.payload_length).max();
        assert!(largest > Some(mtu), "no super-packet was made: {largest:?}");
    } else {
        each(&during, |packet| match packet.actual_length + 40 <= mtu {
            true => Ok(()),
            false => Err(format!("exceeds the MTU: {packet}")),
        });
        // Full ones, to the last octets that TCP's options leave.
        let full = during.iter().filter(|packet| packet.actual_length + 40 + 32 > mtu).count();
        assert!(full >= BULK / mtu / 2, "{full} full-size packets");
    }
    assert!(after.len() >= SMALL);
    each(&after, is_plain);
}

/// Whether `a` is behind `b` in sequence space.
fn later(a: u32, b: u32) -> bool {
    let distance = a.wrapping_sub(b);
    distance != 0 && distance < 1 << 31
}

fn every_case(strategy: Strategy, attach: &str) {
    if skip_unless_root() {
        return;
    }
    for mtu in [1500, 9000] {
        for offload in [Offload::Tso, Offload::Gso, Offload::None] {
            println!("{strategy:?}, {attach}, MTU {mtu}, {offload:?}");
            every_packet_is_marked(strategy, attach, mtu, offload);
        }
    }
}

#[test]
fn bulk_tcp_is_marked_by_label_on_tcx() {
    every_case(Strategy::Label, "tcx");
}

#[test]
fn bulk_tcp_is_marked_by_label_on_clsact() {
    every_case(Strategy::Label, "clsact");
}

/// Defect 3: full-size segments that are not GSO were left unmarked. They are the
/// cases with [`Offload::None`] of this and the other header strategies.
#[test]
fn defect_03_bulk_tcp_is_marked_by_hop_by_hop_on_tcx() {
    every_case(Strategy::HopByHop, "tcx");
}

#[test]
fn defect_03_bulk_tcp_is_marked_by_hop_by_hop_on_clsact() {
    every_case(Strategy::HopByHop, "clsact");
}

#[test]
fn defect_03_bulk_tcp_is_marked_by_destination_on_tcx() {
    every_case(Strategy::Destination, "tcx");
}

#[test]
fn defect_03_bulk_tcp_is_marked_by_destination_on_clsact() {
    every_case(Strategy::Destination, "clsact");
}

#[test]
fn defect_03_bulk_tcp_is_marked_by_both_headers_on_tcx() {
    every_case(Strategy::HopByHopDestination, "tcx");
}

#[test]
fn defect_03_bulk_tcp_is_marked_by_both_headers_on_clsact() {
    every_case(Strategy::HopByHopDestination, "clsact");
}
