//! The block `netlink` of a firefly: what TCP knows of the flow, in the keys and units
//! that consumers know from flowd and flowd-go. Pure.
//!
//! A datagram has an end, so the keys have an order: from the first that does not fit on,
//! all are left out. First is `rtt`, in milliseconds whatever the mode, since the published
//! collector reads that and nothing else.

use std::fmt::Display;
use std::io::Write;

use crate::flow_info::FlowInfo;
use crate::net::tcp_info::TcpInfo;

/// How much is told, and under which names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What flowd-go calls lean.
    Lean,
    /// As flowd told it: integers in flowd's names.
    Compatible,
    /// All that is known, in flowd-go's names.
    Full,
}

/// An object that is written as far as there is room.
struct Block<'a> {
    out: &'a mut Vec<u8>,
    /// No more octets than that, what closes the objects included.
    limit: usize,
    /// Objects that have to be closed.
    open: usize,
    is_full: bool,
}

impl Block<'_> {
    /// Writes what `write` writes behind a key, unless it is too much.
    fn put(&mut self, key: &str, opens: usize, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        if self.is_full {
            return false;
        }
        let before = self.out.len();
        let comma = if self.out.last() == Some(&b'{') { "" } else { "," };
        // Memory takes all bytes.
        let _ = write!(self.out, "{comma}\"{key}\":");
        write(self.out);
        if self.out.len() + self.open + opens > self.limit {
            self.out.truncate(before);
            self.is_full = true;
        }
        !self.is_full
    }

    fn value(&mut self, key: &str, value: impl Display) {
        self.put(key, 0, |out| drop(write!(out, "{value}")));
    }

    fn number(&mut self, key: &str, value: Option<impl Into<u64>>) {
        if let Some(value) = value {
            self.value(key, value.into());
        }
    }

    /// Milliseconds, of which the fraction is cut off.
    fn millis(&mut self, key: &str, micros: Option<u32>) {
        self.number(key, micros.map(|micros| micros / 1000));
    }

    /// A text of ours, or of the kernel's, which has no character that JSON escapes.
    fn text(&mut self, key: &str, text: &str) {
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        if text.bytes().all(plain) {
            self.value(key, format_args!("\"{text}\""));
        }
    }

    fn object(&mut self, key: &str, inner: impl FnOnce(&mut Self)) {
        if self.put(key, 1, |out| out.push(b'{')) {
            self.open += 1;
            inner(self);
            self.out.push(b'}');
            self.open -= 1;
        }
    }
}

/// Adds the block to the document that `out` ends with, which began at `start` and ends in a
/// brace. The whole is not longer than `longest`. With `second` all but the round-trip time is
/// in a block of that name.
pub(super) fn add(
    mode: Mode,
    info: &FlowInfo,
    second: Option<&str>,
    out: &mut Vec<u8>,
    start: usize,
    longest: usize,
) {
    let Some(tcp) = info.tcp_info() else { return };
    if out.pop() != Some(b'}') {
        return;
    }
    let mut block = Block { out, limit: start + longest, open: 1, is_full: false };
    let rtt = |block: &mut Block<'_>| {
        if let Some(rtt) = tcp.rtt() {
            block.value("rtt", format_args!("{}.{:03}", rtt / 1000, rtt % 1000));
        }
    };
    if second.is_some() {
        block.object("netlink", rtt);
    }
    block.object(second.unwrap_or("netlink"), |block| {
        rtt(block);
        match mode {
            Mode::Lean => lean(block, tcp),
            Mode::Compatible => return compatible(block, tcp),
            Mode::Full => full(block, tcp),
        }
        if let Some(name) = info.congestion() {
            block.object("cong", |block| block.text("algorithm", name));
        }
        if mode == Mode::Full {
            memory(block, info);
        }
    });
    out.push(b'}');
}

fn lean(block: &mut Block<'_>, tcp: TcpInfo<'_>) {
    block.object("tcpInfo", |block| {
        // Written like this by flowd-go.
        block.number("Retransmits", tcp.retransmits());
        leanest(block, tcp);
        block.number("bytesSent", tcp.bytes_sent());
    });
}

fn leanest(block: &mut Block<'_>, tcp: TcpInfo<'_>) {
    block.number("sndMss", tcp.snd_mss());
    block.number("pMtu", tcp.pmtu());
    block.number("rtt", tcp.rtt());
    block.number("rttVar", tcp.rttvar());
    block.number("sndSsThresh", tcp.snd_ssthresh());
    block.number("sndCwnd", tcp.snd_cwnd());
    block.number("advMss", tcp.advmss());
    block.number("minRtt", tcp.min_rtt());
    block.number("deliveryRate", tcp.delivery_rate());
}

fn full(block: &mut Block<'_>, tcp: TcpInfo<'_>) {
    block.object("tcpInfo", |block| {
        leanest(block, tcp);
        block.number("bytesSent", tcp.bytes_sent());
        block.number("bytesRetrans", tcp.bytes_retrans());
        block.number("bytesAcked", tcp.bytes_acked());
        block.number("bytesReceived", tcp.bytes_received());
        block.number("totalRetrans", tcp.total_retrans());
        block.number("retransmits", tcp.retransmits());
        block.number("state", tcp.state());
        block.number("caState", tcp.ca_state());
        block.number("options", tcp.options());
        block.number("rto", tcp.rto());
        block.number("lost", tcp.lost());
        block.number("retrans", tcp.retrans());
        block.number("unAcked", tcp.unacked());
        block.number("sacked", tcp.sacked());
        block.number("pacingRate", tcp.pacing_rate());
        block.number("busyTime", tcp.busy_time());
        block.number("rwndLimited", tcp.rwnd_limited());
        block.number("sndBufLimited", tcp.sndbuf_limited());
        block.number("segsOut", tcp.segs_out());
        block.number("segsIn", tcp.segs_in());
        block.number("dataSegsOut", tcp.data_segs_out());
        block.number("dataSegsIn", tcp.data_segs_in());
        block.number("delivered", tcp.delivered());
        block.number("deliveredCe", tcp.delivered_ce());
        block.number("rcvMss", tcp.rcv_mss());
        block.number("rcvRtt", tcp.rcv_rtt());
        block.number("rcvSpace", tcp.rcv_space());
        block.number("rcvSsThresh", tcp.rcv_ssthresh());
        block.number("sndWnd", tcp.snd_wnd());
        block.number("notSentBytes", tcp.notsent_bytes());
        block.number("reordering", tcp.reordering());
        block.number("reordSeen", tcp.reord_seen());
        block.number("dSackDups", tcp.dsack_dups());
        block.number("rcvOooPack", tcp.rcv_ooopack());
        block.number("ato", tcp.ato());
        block.number("probes", tcp.probes());
        block.number("backoff", tcp.backoff());
        block.number("lastDataSent", tcp.last_data_sent());
        block.number("lastDataRecv", tcp.last_data_recv());
        block.number("lastAckRecv", tcp.last_ack_recv());
        block.number("maxPacingRate", tcp.max_pacing_rate());
    });
}

fn memory(block: &mut Block<'_>, info: &FlowInfo) {
    block.number("tos", info.tos());
    const SOCKET: [&str; 9] = [
        "rMemAlloc",
        "rcvBuf",
        "wMemAlloc",
        "sndBuf",
        "fwdAlloc",
        "wMemQueued",
        "optMem",
        "backlog",
        "drops",
    ];
    numbers(block, "skMemInfo", &SOCKET, |index| info.socket_memory(index));
    numbers(block, "memInfo", &["rMem", "wMem", "fMem", "tMem"], |index| info.memory(index));
}

/// An object of numbers that are known by their index, if there are any.
fn numbers(block: &mut Block<'_>, key: &str, names: &[&str], at: impl Fn(usize) -> Option<u32>) {
    if at(0).is_some() {
        block.object(key, |block| {
            for (index, name) in names.iter().enumerate() {
                block.number(name, at(index));
            }
        });
    }
}

/// States, as flowd writes them.
const STATES: [&str; 12] = [
    "unknown",
    "established",
    "syn-sent",
    "syn-recv",
    "fin-wait-1",
    "fin-wait-2",
    "time-wait",
    "unconnected",
    "close-wait",
    "last-ack",
    "listening",
    "closing",
];

fn compatible(block: &mut Block<'_>, tcp: TcpInfo<'_>) {
    // The kernel's ways to say that there is none yet.
    let rto = tcp.rto().map(|rto| if rto == 3_000_000 { 0 } else { rto });
    let threshold = tcp.snd_ssthresh().map(|size| if size >= 65535 { 0 } else { size });
    block.millis("rttvar", tcp.rttvar());
    block.number("bytes_received", tcp.bytes_received());
    block.number("bytes_acked", tcp.bytes_acked());
    block.number("total_retrans", tcp.total_retrans());
    block.number("delivery_rate", tcp.delivery_rate());
    block.number("snd_cwnd", tcp.snd_cwnd());
    block.number("snd_ssthresh", threshold);
    block.number("min_rtt", tcp.min_rtt());
    block.number("snd_mss", tcp.snd_mss());
    block.number("pmtu", tcp.pmtu());
    let state = tcp.state().and_then(|state| STATES.get(usize::from(state)));
    block.text("state", state.unwrap_or(&STATES[0]));
    block.millis("rto", rto);
    block.number("retrans", tcp.retrans());
    block.number("lost", tcp.lost());
    block.number("pacing_rate", tcp.pacing_rate());
    block.number("busy_time", tcp.busy_time());
    block.number("rwnd_limited", tcp.rwnd_limited());
    block.number("sndbuf_limited", tcp.sndbuf_limited());
    block.number("segs_out", tcp.segs_out());
    block.number("segs_in", tcp.segs_in());
    block.number("data_segs_out", tcp.data_segs_out());
    block.number("data_segs_in", tcp.data_segs_in());
    block.millis("rcv_rtt", tcp.rcv_rtt());
    block.number("rcv_space", tcp.rcv_space());
    block.number("rcv_ssthresh", tcp.rcv_ssthresh());
    block.number("rcv_mss", tcp.rcv_mss());
    block.number("advmss", tcp.advmss());
    block.number("ca_state", tcp.ca_state());
    block.number("retransmits", tcp.retransmits());
    block.number("unacked", tcp.unacked());
    block.number("sacked", tcp.sacked());
    block.number("reordering", tcp.reordering());
    block.number("notsent_bytes", tcp.notsent_bytes());
    if let Some((snd, rcv)) = tcp.window_scales() {
        block.number("snd_wscale", Some(snd));
        block.number("rcv_wscale", Some(rcv));
    }
    if let Some(options) = tcp.options() {
        let names = [(1, "\"ts\""), (2, "\"sack\""), (8, "\"ecn\"")];
        let names = names.iter().filter(|(bit, _)| options & bit != 0).map(|(_, name)| *name);
        block.value("opts", format_args!("[{}]", names.collect::<Vec<_>>().join(",")));
    }
    block.millis("ato", tcp.ato());
    block.number("backoff", tcp.backoff());
    block.number("probes", tcp.probes());
    block.number("last_data_sent", tcp.last_data_sent());
    block.number("last_data_recv", tcp.last_data_recv());
    block.number("last_ack_recv", tcp.last_ack_recv());
    block.number("delivery_rate_app_limited", tcp.is_app_limited().map(u8::from));
    // The kernel has given these up and says 0.
    block.number("last_ack_sent", Some(0_u8));
    block.number("fackets", Some(0_u8));
    block.number("max_pacing_rate", tcp.max_pacing_rate());
}

#[cfg(test)]
#[path = "enrich_tests.rs"]
mod tests;
