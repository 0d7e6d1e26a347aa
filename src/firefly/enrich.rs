//! The block `netlink` of a firefly: what TCP knows of the flow, in the keys and units
//! that consumers know from flowd and flowd-go. Pure.
//!
//! A datagram has an end, so members are put in the order of what they are worth: from the
//! first that does not fit on, all are left out. First is `rtt`, in milliseconds whatever the
//! mode, since the published collector reads that and nothing else. Where in the document a
//! member is, is another matter: each is in its object ([`PARTS`]).

use std::fmt::{self, Display};
use std::io::Write;

use crate::flow::Timestamp;
use crate::flow_info::FlowInfo;
use crate::net::tcp_info::{DiagMessage, TcpInfo};

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

/// The objects in the block; the first one is the block itself.
const PARTS: [&str; 10] = [
    "",
    "tcpInfo",
    "cong",
    "bbr",
    "dctcpInfo",
    "vegasInfo",
    "skBuff",
    "skMemInfo",
    "memInfo",
    "tos",
];
const ITSELF: usize = 0;
const TCP_INFO: usize = 1;
const CONG: usize = 2;
const BBR: usize = 3;
const DCTCP: usize = 4;
const VEGAS: usize = 5;
const SOCKET: usize = 6;
const SOCKET_MEMORY: usize = 7;
const MEMORY: usize = 8;
const TOS: usize = 9;

/// The members, as far as there is room.
struct Block {
    /// All of them, one behind the other.
    text: Vec<u8>,
    /// Of each: its part, and where it ends.
    members: Vec<(usize, usize)>,
    /// Where the next ones go.
    part: usize,
    /// The parts that have members, bit n stands for n.
    begun: u16,
    /// Octets that are left.
    room: usize,
    is_full: bool,
}

/// What an object takes besides its members, each of which has a comma but for the first.
fn frame(name: &str) -> usize {
    name.len() + r#","":{}"#.len() - 1
}

/// Begins an object, or a member of one if `name` is none.
fn begin(name: Option<&str>, out: &mut Vec<u8>) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    if let Some(name) = name {
        let _ = write!(out, "\"{name}\":{{");
    }
}

impl Block {
    /// For so many octets.
    fn new(room: usize) -> Self {
        let (text, members) = (Vec::with_capacity(room), Vec::with_capacity(64));
        Block { text, members, part: ITSELF, begun: 1 << ITSELF, room, is_full: false }
    }

    /// Puts a member, unless it is too much, or another one was.
    fn value(&mut self, key: &str, value: &dyn Display) {
        let before = self.text.len();
        if !self.is_full {
            // Memory takes all bytes.
            let _ = write!(self.text, "\"{key}\":{value}");
        }
        let is_first = self.begun >> self.part & 1 == 0;
        let size = self.text.len() - before + 1;
        let size = size + if is_first { frame(PARTS[self.part]) } else { 0 };
        self.is_full |= size > self.room;
        if self.is_full {
            self.text.truncate(before);
        } else {
            self.room -= size;
            self.begun |= 1 << self.part;
            self.members.push((self.part, self.text.len()));
        }
    }

    fn number(&mut self, key: &str, value: Option<impl Into<u64>>) {
        self.whole(key, value.map(Into::into));
    }

    fn whole(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.value(key, &value);
        }
    }

    /// Milliseconds, of which the fraction is cut off.
    fn millis(&mut self, key: &str, micros: Option<u32>) {
        self.number(key, micros.map(|micros| micros / 1000));
    }

    /// The smoothed round-trip time, in milliseconds with three decimals.
    fn rtt(&mut self, tcp: TcpInfo<'_>) {
        if let Some(rtt) = tcp.rtt() {
            self.value("rtt", &format_args!("{}.{:03}", rtt / 1000, rtt % 1000));
        }
    }

    /// A text of ours, or of the kernel's, which has no character that JSON escapes.
    fn text(&mut self, key: &str, text: &str) {
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        if text.bytes().all(plain) {
            self.value(key, &format_args!("\"{text}\""));
        }
    }

    /// Adds it under that name to a document that lacks its last brace; not if it is empty.
    fn write(&self, name: &str, out: &mut Vec<u8>) {
        if self.members.is_empty() {
            return;
        }
        begin(Some(name), out);
        for (part, inner) in
            PARTS.iter().enumerate().filter(|(part, _)| self.begun >> part & 1 == 1)
        {
            if part != ITSELF {
                begin(Some(inner), out);
            }
            let mut start = 0;
            for (of, end) in &self.members {
                if *of == part {
                    begin(None, out);
                    out.extend_from_slice(&self.text[start..*end]);
                }
                start = *end;
            }
            if part != ITSELF {
                out.push(b'}');
            }
        }
        out.push(b'}');
    }
}

/// Adds the block to the document that `out` ends with, which began at `start` and ends in a
/// brace. The whole is not longer than `longest`. With `second` all but the round-trip time is
/// in a block of that name. It is `now`.
pub(super) fn add(
    mode: Mode,
    info: &FlowInfo,
    second: Option<&str>,
    out: &mut Vec<u8>,
    start: usize,
    longest: usize,
    now: Timestamp,
) {
    let tcp = match info.tcp_info() {
        Some(tcp) => tcp,
        // Of other protocols there may be something else.
        None if mode == Mode::Full => TcpInfo(&[]),
        None => return,
    };
    if out.pop() != Some(b'}') {
        return;
    }
    let room =
        |name: &str, out: &Vec<u8>| (start + longest).saturating_sub(out.len() + frame(name) + 1);
    if second.is_some() {
        let mut block = Block::new(room("netlink", out));
        block.rtt(tcp);
        block.write("netlink", out);
    }
    let name = second.unwrap_or("netlink");
    let mut block = Block::new(room(name, out));
    block.rtt(tcp);
    match mode {
        Mode::Lean => lean(&mut block, info, tcp),
        Mode::Compatible => compatible(&mut block, info, tcp, now),
        Mode::Full => full(&mut block, info, tcp, now),
    }
    block.write(name, out);
    out.push(b'}');
}

fn lean(block: &mut Block, info: &FlowInfo, tcp: TcpInfo<'_>) {
    block.part = TCP_INFO;
    // Written like this by flowd-go.
    block.number("Retransmits", tcp.retransmits());
    leanest(block, tcp);
    algorithm(block, info);
}

fn leanest(block: &mut Block, tcp: TcpInfo<'_>) {
    block.part = TCP_INFO;
    block.number("sndMss", tcp.snd_mss());
    block.number("pMtu", tcp.pmtu());
    block.number("rtt", tcp.rtt());
    block.number("rttVar", tcp.rttvar());
    block.number("sndSsThresh", tcp.snd_ssthresh());
    block.number("sndCwnd", tcp.snd_cwnd());
    block.number("advMss", tcp.advmss());
    block.number("minRtt", tcp.min_rtt());
    block.number("deliveryRate", tcp.delivery_rate());
    block.number("bytesSent", tcp.bytes_sent());
}

fn algorithm(block: &mut Block, info: &FlowInfo) {
    block.part = CONG;
    if let Some(name) = info.congestion() {
        block.text("algorithm", name);
    }
}

/// In this order: how much was carried and how fast, what bounds that, what waits where, and
/// the rest.
fn full(block: &mut Block, info: &FlowInfo, tcp: TcpInfo<'_>, now: Timestamp) {
    leanest(block, tcp);
    block.number("bytesRetrans", tcp.bytes_retrans());
    block.number("bytesAcked", tcp.bytes_acked());
    block.number("bytesRecv", tcp.bytes_received());
    block.number("totalRetrans", tcp.total_retrans());
    algorithm(block, info);
    control(block, info);
    block.part = TCP_INFO;
    block.number("retransmits", tcp.retransmits());
    block.number("state", tcp.state());
    block.number("caState", tcp.ca_state());
    block.number("lost", tcp.lost());
    block.number("rto", tcp.rto());
    block.number("pacingRate", tcp.pacing_rate());
    block.number("busyTime", tcp.busy_time());
    block.number("rwndLimited", tcp.rwnd_limited());
    block.number("sndBufLimited", tcp.sndbuf_limited());
    let message = info.message();
    if let Some(message) = message {
        socket(block, message);
    }
    memory(block, info);
    block.part = TCP_INFO;
    block.number("options", tcp.options());
    block.number("retrans", tcp.retrans());
    block.number("unAcked", tcp.unacked());
    block.number("sAcked", tcp.sacked());
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
    block.number("notsentBytes", tcp.notsent_bytes());
    block.number("reordering", tcp.reordering());
    block.number("reordSeen", tcp.reord_seen());
    block.number("dsAckDups", tcp.dsack_dups());
    block.number("rcvOooPack", tcp.rcv_ooopack());
    let scales = tcp.window_scales();
    block.number("sndWscale", scales.map(|(snd, _)| snd));
    block.number("rcvdWscale", scales.map(|(_, rcv)| rcv));
    block.number("deliveryRateAppLimited", tcp.is_app_limited());
    block.number("ato", tcp.ato());
    block.number("probes", tcp.probes());
    block.number("backoff", tcp.backoff());
    block.number("lastDataSent", info.ago(tcp.last_data_sent(), now));
    block.number("lastDataRecv", info.ago(tcp.last_data_recv(), now));
    block.number("lastAckRecv", info.ago(tcp.last_ack_recv(), now));
    block.number("maxPacingRate", tcp.max_pacing_rate());
    block.number("fastOpenClientFail", tcp.fastopen_failure());
    block.number("fAckets", tcp.fackets());
    block.number("lastAckSent", tcp.last_ack_sent());
    block.part = ITSELF;
    block.number("shutdown", info.shutdown());
    block.part = SOCKET;
    if let Some(message) = message {
        block.value("id", &Id(message));
    }
}

/// What the congestion control says: one of these at the most.
fn control(block: &mut Block, info: &FlowInfo) {
    if let Some(bbr) = info.bbr() {
        block.part = BBR;
        block.number("bbrBW", bbr.bandwidth());
        block.number("bbrMinRTT", bbr.min_rtt());
        block.number("bbrPacingGain", bbr.pacing_gain());
        block.number("bbrCwndGain", bbr.cwnd_gain());
    }
    if let Some(dctcp) = info.dctcp() {
        block.part = DCTCP;
        block.number("enabled", dctcp.enabled());
        block.number("ceState", dctcp.ce_state());
        block.number("alpha", dctcp.alpha());
        block.number("abeCn", dctcp.marked());
        block.number("abTot", dctcp.acked());
    }
    if let Some(vegas) = info.vegas() {
        block.part = VEGAS;
        block.number("enabled", vegas.enabled());
        block.number("rttCount", vegas.rtt_count());
        block.number("rtt", vegas.rtt());
        block.number("minRtt", vegas.min_rtt());
    }
}

/// What waits in the socket, and whose it is.
fn socket(block: &mut Block, message: DiagMessage<'_>) {
    block.part = SOCKET;
    block.number("rQueue", message.unread());
    block.number("wQueue", message.unacked());
    block.number("timer", message.timer());
    block.number("expires", message.expires());
    block.number("retrans", message.retrans());
    block.number("uid", message.uid());
    block.number("iNode", message.inode());
    block.number("family", message.family());
    block.number("state", message.state());
}

/// The socket's number, ports and addresses: numbers of which the octets are as they are on
/// the wire, since flowd-go has them so.
struct Id<'a>(DiagMessage<'a>);

impl Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.0;
        let port = |port: Option<u16>| port.unwrap_or(0);
        let word = |word: Option<u32>| word.unwrap_or(0);
        write!(f, "{{\"srcPort\":{},", port(message.src_port()))?;
        write!(f, "\"dstPort\":{}", port(message.dst_port()))?;
        let addresses = message.addresses().unwrap_or_default();
        for (name, [a, b, c, d]) in ["srcIP", "dstIP"].iter().zip(addresses) {
            write!(f, ",\"{name}\":[{a},{b},{c},{d}]")?;
        }
        write!(f, ",\"ifId\":{},", word(message.interface()))?;
        let cookie = [message.cookie_low(), message.cookie_high()].map(word);
        write!(f, "\"cookie\":[{},{}]}}", cookie[0], cookie[1])
    }
}

fn memory(block: &mut Block, info: &FlowInfo) {
    block.part = SOCKET_MEMORY;
    // In the order of what they are worth.
    for (name, index) in [
        ("drops", 8),
        ("rcvBuff", 1),
        ("sndBuff", 3),
        ("wMemQueued", 5),
        ("rMemAlloc", 0),
        ("WMemAlloc", 2),
        ("backlog", 7),
        ("fwdAlloc", 4),
        ("optMem", 6),
    ] {
        block.number(name, info.socket_memory(index));
    }
    block.part = TOS;
    block.number("tos", info.tos());
    block.number("tClass", info.traffic_class());
    block.part = MEMORY;
    for (index, name) in ["rMem", "wMem", "fMem", "tMem"].iter().enumerate() {
        block.number(name, info.memory(index));
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

fn compatible(block: &mut Block, info: &FlowInfo, tcp: TcpInfo<'_>, now: Timestamp) {
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
        block.value("opts", &format_args!("[{}]", names.collect::<Vec<_>>().join(",")));
    }
    block.millis("ato", tcp.ato());
    block.number("backoff", tcp.backoff());
    block.number("probes", tcp.probes());
    block.number("last_data_sent", info.ago(tcp.last_data_sent(), now));
    block.number("last_data_recv", info.ago(tcp.last_data_recv(), now));
    block.number("last_ack_recv", info.ago(tcp.last_ack_recv(), now));
    block.number("delivery_rate_app_limited", tcp.is_app_limited());
    // The kernel has given these up and says 0.
    block.number("last_ack_sent", Some(0_u8));
    block.number("fackets", Some(0_u8));
    block.number("max_pacing_rate", tcp.max_pacing_rate());
}

#[cfg(test)]
#[path = "enrich_tests.rs"]
mod tests;
