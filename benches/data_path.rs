//! The marker by BPF_PROG_TEST_RUN.

use std::process::Command;

use glowd::sys::abi::{
    FlowKey, FlowValue, Rule, RulesHead, Settings, Strategy, COUNT_ALL, COUNT_UDP, NO_SLOT,
    RULE_SLOTS, RULE_TCP,
};
use glowd::sys::bpf::{possible_cpus, Object, OpenObject, Program, MARKER};
use glowd::sys::probe::has_check_mtu;

use crate::row;

#[path = "../tests/marker/packet.rs"]
#[allow(dead_code)] // the tests use more of it
mod packet;

use packet::{Packet, DST, SRC, TCP, UDP};

const FLOWS: u32 = 50_000;
const FLOW: FlowValue =
    FlowValue { label: 0xD0143, experiment: 2, activity: 16, flags: 0, slot: NO_SLOT };

pub(crate) const SECTIONS: &[crate::Section] = &[("marker", rows)];

fn rows() {
    let dir = tempfile::tempdir().unwrap();
    let empty = empty(dir.path());
    let empty = empty.program("empty").unwrap();
    let label = marker(Strategy::Label);
    let label = label.program("marker_eth").unwrap();

    let matching = frame_of_flow(0);
    let other = Packet::tcp(100).with(|p| p.dst[0] = 9).frame();
    let ipv4 = packet::frame_of(0x0800, &[0x45; 100]);
    // The same flow, without counting it.
    let uncounted = marker(Strategy::Label);
    let flows = uncounted.map::<FlowKey, FlowValue>("flows").unwrap();
    flows.update(&key_of_flow(0), &FLOW).unwrap();
    let uncounted = uncounted.program("marker_eth").unwrap();
    let [floor, hit, miss, foreign, bare] = interleaved([
        (empty, &matching),
        (label, &matching),
        (label, &other),
        (label, &ipv4),
        (uncounted, &matching),
    ]);
    let above = |time: f64| format!("{:+.0} ns {:.2}x", time - floor, time / floor);
    row("an empty program, the floor", format!("{floor:.0} ns"), "(flowd-go's machine: 16 ns)");
    row("label, IPv6/TCP, match: above the floor", above(hit), "+20 ns 2.25x");
    row("of that, counting the packet", format!("{:+.0} ns", hit - bare), "<= 5 ns");
    row("label, IPv6/TCP, no match: above the floor", above(miss), "+17 ns 2.06x");
    row("label, not IPv6: above the floor", above(foreign), "+2 ns 1.13x");

    let datagram = Packet::udp(100).frame();
    let (one, many) = (with_rules(1, true), with_rules(64, true));
    let uncounted = with_rules(1, false);
    let programs = [&one, &many, &uncounted].map(|object| object.program("marker_eth").unwrap());
    let [floor, first, none, last, bare] = interleaved([
        (empty, &matching),
        (programs[0], &other),
        (programs[1], &datagram),
        (programs[1], &other),
        (programs[2], &other),
    ]);
    let above = |time: f64| format!("{:+.0} ns {:.2}x", time - floor, time / floor);
    row("label, no flow, the only rule fits: above the floor", above(first), "+80 ns");
    row("of that, counting the packet", format!("{:+.0} ns", first - bare), "<= 5 ns");
    row("label, no flow, none of 64 rules fits: above the floor", above(none), "+500 ns");
    row("label, no flow, the 64th rule fits: above the floor", above(last), "+550 ns");

    arriving(empty);

    let frames: Vec<Vec<u8>> = (0..FLOWS).map(frame_of_flow).collect();
    let same = one_at_a_time(label, (0..FLOWS).map(|_| &frames[0]));
    let random = one_at_a_time(label, shuffled(FLOWS).map(|flow| &frames[flow as usize]));
    let ratio = format!("{:.1}x", random / same);
    row("label, a random one of 50,000 flows, against one flow", ratio, "<= 5x (flowd-go 9x)");

    // Repeating a run would grow the packet again and again, so one at a time.
    let floor = one_at_a_time(empty, (0..FLOWS).map(|_| &frames[0]));
    for (strategy, name) in Strategy::ALL.into_iter().skip(1) {
        let object = marker(strategy);
        let program = object.program("marker_eth").unwrap();
        let time = one_at_a_time(program, (0..FLOWS).map(|_| &frames[0]));
        let measured = format!("{:+.0} ns {:.2}x", time - floor, time / floor);
        row(&format!("{name}, match: above the floor"), measured, "+50 ns 2.16x");
    }
}

/// What arrives, with what may be counted of it.
fn arriving(empty: &Program) {
    let back = |packet: Packet| {
        let turned = packet.with(|p| {
            std::mem::swap(&mut p.src, &mut p.dst);
            let (first, rest) = p.transport.split_at_mut(2);
            first.swap_with_slice(&mut rest[..2]);
        });
        turned.frame()
    };
    let flow_of = |packet: Packet| {
        let (src, port) = end_of_flow(0);
        packet.with(|p| {
            p.src = src;
            p.transport[..2].copy_from_slice(&port.to_be_bytes());
        })
    };
    let [udp, all] = [COUNT_UDP, COUNT_ALL].map(|received| {
        let object = marker_counting(Strategy::Label, received);
        let flows = object.map::<FlowKey, FlowValue>("flows").unwrap();
        let key = FlowKey { protocol: UDP, ..key_of_flow(0) };
        flows.update(&key, &FlowValue { slot: RULE_SLOTS, ..FLOW }).unwrap();
        object
    });
    let [udp, all] = [&udp, &all].map(|object| object.program("room_eth").unwrap());
    let segment = back(flow_of(Packet::tcp(100)));
    let datagram = back(flow_of(Packet::udp(100)));
    let others = back(Packet::udp(100).with(|p| p.dst[0] = 9));
    let ipv4 = packet::frame_of(0x0800, &[0x45; 100]);
    let [floor, passed, counted, no_flow, foreign, both] = interleaved([
        (empty, &segment),
        (udp, &segment),
        (udp, &datagram),
        (udp, &others),
        (udp, &ipv4),
        (all, &segment),
    ]);
    let above = |time: f64| format!("{:+.0} ns {:.2}x", time - floor, time / floor);
    row("arriving, counting UDP: TCP, above the floor", above(passed), "+2 ns");
    row("arriving, counting UDP: not IPv6, above the floor", above(foreign), "+2 ns");
    row("arriving, counting UDP: UDP of a flow, above the floor", above(counted), "+40 ns");
    row("arriving, counting UDP: UDP of no flow, above the floor", above(no_flow), "+30 ns");
    row("arriving, counting all: TCP of a flow, above the floor", above(both), "+40 ns");
}

fn marker(strategy: Strategy) -> Object {
    marker_counting(strategy, 0)
}

fn marker_counting(strategy: Strategy, count_received: u8) -> Object {
    let mut object = OpenObject::from_memory("marker", &MARKER.unpack().unwrap()).unwrap();
    let check_mtu = u8::from(has_check_mtu());
    let slots = RULE_SLOTS + FLOWS;
    let settings =
        Settings { strategy: strategy as u8, check_mtu, count_received, slots, debug: 0 };
    object.set_rodata(".rodata.settings", &settings).unwrap();
    object.set_max_entries("flows", 100_000).unwrap();
    let cpus = u32::try_from(possible_cpus().unwrap()).unwrap();
    object.set_max_entries("counts", slots * cpus).unwrap();
    let object = object.load().unwrap();
    let flows = object.map("flows").unwrap();
    for flow in 0..FLOWS {
        flows.update(&key_of_flow(flow), &FlowValue { slot: RULE_SLOTS + flow, ..FLOW }).unwrap();
    }
    object
}

/// The marker with so many rules, of which only the last is for TCP; `counted`: in a slot
/// that there is.
fn with_rules(count: u32, counted: bool) -> Object {
    let object = marker(Strategy::Label);
    let rules = object.map("rules").unwrap();
    for at in 0..count {
        let rule = Rule {
            local_last: u16::MAX,
            remote_first: if at + 1 < count { 9 } else { 0 },
            remote_last: if at + 1 < count { 9 } else { u16::MAX },
            label: FLOW.label | if counted { at << 20 } else { 0xfff << 20 },
            experiment: FLOW.experiment,
            activity: FLOW.activity,
            classes: RULE_TCP,
            ..Rule::default()
        };
        rules.update(&at, &rule).unwrap();
    }
    let head = RulesHead { version: 2, ..RulesHead::default() };
    object.map(".data.rules").unwrap().update(&0_u32, &head).unwrap();
    object
}

/// The program that benches/empty.bpf.c is.
fn empty(dir: &std::path::Path) -> Object {
    let object = dir.join("empty.bpf.o");
    let clang = std::env::var_os("CLANG").unwrap_or("clang".into());
    let mut command = Command::new(clang);
    command.args(["-target", "bpf", "-O2", "-g", "-c", "benches/empty.bpf.c", "-o"]).arg(&object);
    command.args(["-idirafter", "/usr/include/x86_64-linux-gnu"]);
    assert!(command.status().unwrap().success(), "clang");
    OpenObject::from_file(&object).unwrap().load().unwrap()
}

fn end_of_flow(flow: u32) -> ([u8; 16], u16) {
    let mut src = SRC;
    src[12..16].copy_from_slice(&(flow / 1000).to_be_bytes());
    (src, 10_000 + (flow % 1000) as u16)
}

fn key_of_flow(flow: u32) -> FlowKey {
    let (src, src_port) = end_of_flow(flow);
    FlowKey {
        src,
        dst: DST,
        src_port: src_port.to_be_bytes(),
        dst_port: packet::DST_PORT.to_be_bytes(),
        protocol: TCP,
        pad: [0; 3],
    }
}

fn frame_of_flow(flow: u32) -> Vec<u8> {
    let (src, port) = end_of_flow(flow);
    let packet = Packet::tcp(100).with(|p| {
        p.src = src;
        p.transport[..2].copy_from_slice(&port.to_be_bytes());
    });
    packet.frame()
}

/// Nanoseconds per run of each in a repeat loop: the least of many short rounds,
/// taken in turns, since whatever disturbs a round only adds to it.
fn interleaved<const N: usize>(programs: [(&Program, &Vec<u8>); N]) -> [f64; N] {
    let mut least = [f64::INFINITY; N];
    for _ in 0..300 {
        for (least, (program, frame)) in least.iter_mut().zip(&programs) {
            let run = program.test_run(frame, None, 20_000).unwrap();
            *least = least.min(run.duration.as_nanos() as f64);
        }
    }
    least
}

/// Mean nanoseconds per run, each by a call of its own; the least of five rounds.
fn one_at_a_time<'a>(program: &Program, frames: impl Iterator<Item = &'a Vec<u8>> + Clone) -> f64 {
    let round = || {
        let (mut sum, mut count) = (0, 0);
        for frame in frames.clone() {
            sum += program.test_run(frame, None, 1).unwrap().duration.as_nanos();
            count += 1;
        }
        sum as f64 / f64::from(count)
    };
    (0..5).map(|_| round()).fold(f64::INFINITY, f64::min)
}

/// The numbers below `count` in an order without order.
fn shuffled(count: u32) -> impl Iterator<Item = u32> + Clone {
    // 48,271 has no factor in common with 50,000.
    (0..count).map(move |at| (u64::from(at) * 48_271 % u64::from(count)) as u32)
}
