//! The structs that glowd and its eBPF programs share: bpf/abi.h in Rust. A test
//! has clang compile the header and compares.
//!
//! Owns nothing; used by whichever thread talks to a map.
#![allow(unsafe_code)]

/// A type that is nothing but its bytes.
///
/// # Safety
/// The type is `repr(C)` or a primitive, has no padding that the compiler put
/// there, and every bit pattern is a value of it.
pub unsafe trait Plain: Copy + Default {}

// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}

/// `struct flow_key`: the key of map `flows`. Ports are in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKey {
    /// Source address, in network order.
    pub src: [u8; 16],
    /// Destination address, in network order.
    pub dst: [u8; 16],
    /// Source port, in network order.
    pub src_port: [u8; 2],
    /// Destination port, in network order.
    pub dst_port: [u8; 2],
    /// IPPROTO_TCP or IPPROTO_UDP.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}
// SAFETY: bytes only, so without padding; each may have any value.
unsafe impl Plain for FlowKey {}

/// `FLOW_NO_ROOM`: a flag of a flow whose path has no room for a header.
pub const FLOW_NO_ROOM: u8 = 1;

/// `struct flow_value`: the value of map `flows`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowValue {
    /// Flow label, 20 bits: tag and entropy. 0: no flow.
    pub label: u32,
    /// Experiment id, 1 to 511.
    pub experiment: u16,
    /// Activity id, 0 to 63.
    pub activity: u8,
    /// `FLOW_*`.
    pub flags: u8,
    /// Where its packets are counted, or `NO_SLOT`.
    pub slot: u32,
}
// SAFETY: integers that fill twelve octets without a gap (the test below asks the
// C compiler for the offsets).
unsafe impl Plain for FlowValue {}

/// `NO_SLOT`: the slot of a flow that is counted nowhere.
pub const NO_SLOT: u32 = u32::MAX;

/// `struct count`: what one CPU has counted in a slot; the value of map `counts`, which has
/// a block of slots for each CPU, the first [`RULE_SLOTS`] of which are for rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets that left.
    pub packets: u64,
    /// Octets of their payload.
    pub octets: u64,
    /// Packets that arrived.
    pub received_packets: u64,
    /// Octets of their payload.
    pub received_octets: u64,
    /// When the last one was, in jiffies.
    pub last: u64,
    /// Of the packets that left, those without a mark.
    pub unmarked_packets: u64,
    /// Octets of their payload.
    pub unmarked_octets: u64,
}
// SAFETY: integers of one size.
unsafe impl Plain for Count {}

/// `MAX_RULES`: how many rules a table of map `rules` holds; it has two tables.
pub const MAX_RULES: usize = 64;

/// `RULE_SLOTS`: how many slots rules have, the first of all: one for each place of map
/// `rules`, and those of the rule behind the table.
pub const RULE_SLOTS: u32 = 192;

/// `RULE_TCP`: a class of protocols that a rule is for.
pub const RULE_TCP: u8 = 1;
/// `RULE_UDP`: another.
pub const RULE_UDP: u8 = 2;
/// `RULE_OTHER`: all others.
pub const RULE_OTHER: u8 = 4;

/// `struct rule`: what tag packets of no flow carry that meet all its conditions; the
/// value of map `rules`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Source, then destination address, each half of it in network order.
    pub address: [[u8; 8]; 4],
    /// Which of their bits have to be so, likewise.
    pub mask: [[u8; 8]; 4],
    /// The first source port.
    pub local_first: u16,
    /// The last.
    pub local_last: u16,
    /// The first destination port.
    pub remote_first: u16,
    /// The last.
    pub remote_last: u16,
    /// Flow label without entropy; above its 20 bits the slot where its packets are
    /// counted. 0: no rule, and none behind it.
    pub label: u32,
    /// Experiment id, 1 to 511.
    pub experiment: u16,
    /// Activity id, 0 to 63.
    pub activity: u8,
    /// `RULE_*`.
    pub classes: u8,
}
// SAFETY: bytes and integers that fill 80 octets without a gap (the test below asks
// the C compiler for the offsets).
unsafe impl Plain for Rule {}

/// `struct rules_head`: which table of rules is in use, and the rule behind it, which
/// every packet meets. The whole of section `.data.rules`; all zero: no rules.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RulesHead {
    /// Flow label and slot, likewise. 0: there is no rule behind the table.
    pub label: u32,
    /// Experiment id, 1 to 511.
    pub experiment: u16,
    /// Activity id, 0 to 63.
    pub activity: u8,
    /// 0: no table; else its lowest bit says which.
    pub version: u8,
}
// SAFETY: integers that fill eight octets without a gap.
unsafe impl Plain for RulesHead {}

impl RulesHead {
    /// Its eight octets.
    pub fn word(self) -> u64 {
        let [a, b, c, d] = self.label.to_ne_bytes();
        let [e, f] = self.experiment.to_ne_bytes();
        u64::from_ne_bytes([a, b, c, d, e, f, self.activity, self.version])
    }
}

// SAFETY: integers; `struct entropy_key`, the whole of section `.rodata.entropy`.
unsafe impl Plain for [u64; 2] {}

/// Where a packet carries the tag (`settings.strategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Strategy {
    /// In the flow label.
    Label = 0,
    /// In a hop-by-hop options header.
    HopByHop = 1,
    /// In a destination options header.
    Destination = 2,
    /// In both headers.
    HopByHopDestination = 3,
}

impl Strategy {
    /// All, with the names that the configuration knows them by.
    pub const ALL: [(Strategy, &'static str); 4] = [
        (Strategy::Label, "label"),
        (Strategy::HopByHop, "hopByHop"),
        (Strategy::Destination, "destination"),
        (Strategy::HopByHopDestination, "hopByHopDestination"),
    ];

    /// The strategy of that canonical name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known)| *known == name).map(|(strategy, _)| strategy)
    }

    /// Whether packets grow by a header, for which there has to be room.
    pub fn adds_header(self) -> bool {
        self != Strategy::Label
    }
}

/// `COUNT_NONE`: packets that arrive are not counted.
pub const COUNT_NONE: u8 = 0;
/// `COUNT_UDP`: those of UDP are.
pub const COUNT_UDP: u8 = 1;
/// `COUNT_ALL`: those of TCP and UDP are.
pub const COUNT_ALL: u8 = 2;

/// `struct settings`: what is chosen before the programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// A [`Strategy`].
    pub strategy: u8,
    /// 0 or 1: a line to the kernel's trace pipe per packet of a flow.
    pub debug: u8,
    /// 0 or 1: the kernel has bpf_check_mtu (5.12).
    pub check_mtu: u8,
    /// `COUNT_*`: which packets of flows that arrive are counted.
    pub count_received: u8,
    /// For each CPU; 0: nothing is counted.
    pub slots: u32,
}
// SAFETY: integers that fill eight octets without a gap.
unsafe impl Plain for Settings {}

/// `enum unmarked_reason`: why packets of a flow went out unmarked, in the order
/// of map `unmarked`, as the log says it.
pub const UNMARKED_REASONS: [&str; 9] = [
    "are fragments after the first, which carry no ports",
    "have a hop-by-hop header already, and a second is illegal",
    "have an extension header where the tag's would go",
    "would exceed the interface's MTU",
    "would exceed the path's MTU",
    "are jumbograms, or would exceed the payload length",
    "have more VLAN tags than the kernel lets a program move",
    "are of a GSO type that cannot grow a header",
    "met a kernel without memory",
];

/// The same reasons in a word or two, as metrics say them.
pub const UNMARKED_LABELS: [&str; UNMARKED_REASONS.len()] =
    ["fragment", "hop_by_hop", "extension", "mtu", "path_mtu", "length", "vlan", "gso", "kernel"];

/// `CAPTURED_DATA`: how many octets of a packet the selftest captures.
pub const CAPTURED_DATA: usize = 128;

/// `struct captured`: a packet as the selftest's program saw it arrive.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Of the packet, Ethernet header included.
    pub len: u32,
    /// Payload of a segment, in octets; 0: not GSO, or the kernel does not say.
    pub gso_size: u32,
    /// As it begins; zeroes behind its end.
    pub data: [u8; CAPTURED_DATA],
}

impl Default for Captured {
    fn default() -> Self {
        Captured { len: 0, gso_size: 0, data: [0; CAPTURED_DATA] }
    }
}
// SAFETY: two integers and bytes, without a gap; each may have any value.
unsafe impl Plain for Captured {}

/// `struct __sk_buff` of linux/bpf.h as far as BPF_PROG_TEST_RUN reads or writes
/// it; what it refuses to take is padding here and has to be zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkBuff {
    #[doc(hidden)]
    pub pad_0: [u32; 2],
    /// The packet's mark.
    pub mark: u32,
    #[doc(hidden)]
    pub pad_1: [u32; 5],
    /// Its priority.
    pub priority: u32,
    /// The interface that it came in by.
    pub ingress_ifindex: u32,
    /// The interface that it is on.
    pub ifindex: u32,
    #[doc(hidden)]
    pub pad_2: u32,
    /// Room for programs to talk to each other.
    pub cb: [u32; 5],
    #[doc(hidden)]
    pub pad_3: [u32; 21],
    /// Time stamp, in nanoseconds.
    pub tstamp: u64,
    /// Length on the wire, in octets.
    pub wire_len: u32,
    /// Number of segments.
    pub gso_segs: u32,
    #[doc(hidden)]
    pub pad_4: [u32; 2],
    /// Payload of a segment, in octets; 0: not GSO.
    pub gso_size: u32,
    #[doc(hidden)]
    pub pad_5: u32,
    #[doc(hidden)]
    pub pad_6: [u32; 2],
}
// SAFETY: integers without a gap: `tstamp` is at offset 152, a multiple of 8, and
// the size is one too. The test below asks the C compiler.
unsafe impl Plain for SkBuff {}

/// `struct socket_holder`: what bpf/processes.bpf.c writes of each open file that is a
/// socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketHolder {
    /// The id of the process's control group, of version 2.
    pub cgroup: u64,
    /// Of the socket.
    pub inode: u32,
    /// The process that has it open.
    pub pid: u32,
    /// The command of that process; ends in a NUL.
    pub command: [u8; 16],
}
// SAFETY: integers and bytes that fill 32 octets without a gap (the test below asks the
// C compiler for the offsets); each may have any value.
unsafe impl Plain for SocketHolder {}

/// `struct connection`: a record of ring buffer `reports` of bpf/connections.bpf.c.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionReport {
    /// When: CLOCK_MONOTONIC, in nanoseconds.
    pub time: u64,
    /// The socket's cookie (SO_COOKIE).
    pub cookie: u64,
    /// The number of the socket's control group; 0: unknown.
    pub cgroup: u64,
    /// Local address, in network order; IPv4 as IPv4-mapped IPv6.
    pub local: [u8; 16],
    /// Remote address, likewise.
    pub remote: [u8; 16],
    /// Local port, in network order.
    pub local_port: [u8; 2],
    /// Remote port, in network order.
    pub remote_port: [u8; 2],
    /// The socket's user.
    pub uid: u32,
    /// The process that opens it; 0: unknown.
    pub pid: u32,
    /// `CONNECTION_OPENED` and the like.
    pub change: u8,
    /// 0 or 1: the other end has opened it.
    pub passive: u8,
    /// Zero.
    pub pad: [u8; 2],
    /// The command of that process; ends in a NUL.
    pub command: [u8; 16],
    /// The interface that the socket is bound to; 0: none.
    pub interface: u32,
    /// Zero.
    pub pad_too: u32,
}
// SAFETY: integers and bytes that fill 96 octets without a gap (the test below asks the
// C compiler for the offsets); each may have any value.
unsafe impl Plain for ConnectionReport {}

/// `CONNECTION_OPENED`: its SYN has not left yet.
pub const CONNECTION_OPENED: u8 = 1;
/// `CONNECTION_ESTABLISHED`.
pub const CONNECTION_ESTABLISHED: u8 = 2;
/// `CONNECTION_CLOSED`.
pub const CONNECTION_CLOSED: u8 = 3;

/// `struct port_ranges`: of both ends of a connection, in host order; both ends of a
/// range belong to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRanges {
    /// Lowest local port.
    pub local_first: u16,
    /// Highest local port.
    pub local_last: u16,
    /// Lowest remote port.
    pub remote_first: u16,
    /// Highest remote port.
    pub remote_last: u16,
}
// SAFETY: four integers of the same size.
unsafe impl Plain for PortRanges {}

/// `PORT_RANGES`: the most that a filter has.
pub const PORT_RANGES: usize = 16;

/// `struct connection_filter`: the value of map `filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionFilter {
    /// How many of the ranges count; 0: all ports are wanted.
    pub count: u32,
    /// 0 or 1: connections from or to loopback addresses are not wanted.
    pub no_loopback: u32,
    /// 0 or 1: map `groups` is to tell where their control groups are.
    pub groups: u32,
    /// Zero.
    pub pad: u32,
    /// The ranges.
    pub ranges: [PortRanges; PORT_RANGES],
}
// SAFETY: integers without a gap, the ranges' size being a multiple of theirs.
unsafe impl Plain for ConnectionFilter {}

/// `struct group`: the value of map `groups`, whose key is the number of a control group.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Group {
    /// The number of the group that it is in; 0: it is the root.
    pub parent: u64,
    /// Its folder's name; ends in a NUL.
    pub name: [[u8; 16]; 16],
}
// SAFETY: an integer, and octets behind it.
unsafe impl Plain for Group {}

/// `struct tcp_sample`: a record of the ring buffers of bpf/skops.bpf.c.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpSample {
    /// From here to the other end. IPv4 is IPv4-mapped IPv6.
    pub key: FlowKey,
    /// Of the socket.
    pub cookie: u64,
    /// Name of the congestion control; ends in a NUL.
    pub congestion: [u8; 16],
    /// `struct tcp_info` as of 5.4.
    pub info: [[u8; 8]; 29],
}
// SAFETY: octets, and an integer at a multiple of its size, without a gap (the tests ask
// the C compiler for the offsets).
unsafe impl Plain for TcpSample {}

#[cfg(test)]
#[path = "abi_tests.rs"]
mod tests;
