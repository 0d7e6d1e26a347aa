//! What TCP knows of a connection: struct tcp_info (linux/tcp.h), what its congestion control
//! says besides, and the message that they come with (linux/inet_diag.h). Pure.
//!
//! struct tcp_info has grown with the kernel, 104 octets and more, and never changed otherwise;
//! the others may. So each field is read at its offset, and is None where the kernel's is
//! shorter: of tcp_info there is on 4.18 (EL8) all up to `delivered_ce`, and what came later
//! says since when.

use super::attributes::{u16_at, u32_at, u64_at};

/// A tcp_info as it came, of whatever length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo<'a>(pub &'a [u8]);

impl TcpInfo<'_> {
    /// Where the fields are that tell how long ago something last happened: these change while
    /// nothing happens.
    pub const AGES: std::ops::Range<usize> = 44..60;
}

/// What BBR says of a connection: a struct tcp_bbr_info.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BbrInfo<'a>(pub &'a [u8]);

/// What Vegas says of a connection, and other congestion controls that watch its round-trip
/// time (Illinois, NV, Westwood+, YeAH): a struct tcpvegas_info.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VegasInfo<'a>(pub &'a [u8]);

/// What DCTCP says of a connection: a struct tcp_dctcp_info.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DctcpInfo<'a>(pub &'a [u8]);

/// What the kernel says of any socket: a struct inet_diag_msg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiagMessage<'a>(pub &'a [u8]);

/// Methods that read a field each: what it is, its name, how it is read, where.
macro_rules! fields {
    ($of:ident: $($(#[$doc:meta])* $name:ident: $type:ty = $read:ident($at:literal);)*) => {
        impl $of<'_> {
            $($(#[$doc])* pub fn $name(self) -> Option<$type> { $read(self.0, $at) })*
        }
    };
}

fn u8_at(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

fields! { TcpInfo:
    /// State, as the kernel numbers them: 1 established.
    state: u8 = u8_at(0);
    /// State of the congestion control: 0 open, 1 disorder, 2 CWR, 3 recovery, 4 loss.
    ca_state: u8 = u8_at(1);
    /// Retransmissions of the segment at hand in a row.
    retransmits: u8 = u8_at(2);
    /// Unanswered probes of a window of 0 or keep-alive.
    probes: u8 = u8_at(3);
    /// By how many doublings the time-out has grown.
    backoff: u8 = u8_at(4);
    /// What was negotiated: 1 timestamps, 2 SACK, 4 window scaling, 8 ECN, 16 ECN seen,
    /// 32 data in the SYN.
    options: u8 = u8_at(5);
    /// Retransmission time-out, in us.
    rto: u32 = u32_at(8);
    /// Time-out of delayed acknowledgements, in us.
    ato: u32 = u32_at(12);
    /// Segment size to the other side, in octets.
    snd_mss: u32 = u32_at(16);
    /// Segment size of the other side, as estimated, in octets.
    rcv_mss: u32 = u32_at(20);
    /// Segments in flight; of one that listens: connections that wait.
    unacked: u32 = u32_at(24);
    /// Segments acknowledged out of order.
    sacked: u32 = u32_at(28);
    /// Segments taken for lost.
    lost: u32 = u32_at(32);
    /// Retransmitted segments in flight.
    retrans: u32 = u32_at(36);
    /// Nothing any more: 0 since 4.15.
    fackets: u32 = u32_at(40);
    /// Since data was last sent, in ms.
    last_data_sent: u32 = u32_at(44);
    /// Nothing: always 0.
    last_ack_sent: u32 = u32_at(48);
    /// Since data last arrived, in ms.
    last_data_recv: u32 = u32_at(52);
    /// Since an acknowledgement last arrived, in ms.
    last_ack_recv: u32 = u32_at(56);
    /// Path MTU, in octets.
    pmtu: u32 = u32_at(60);
    /// Bound of the receive window, in octets.
    rcv_ssthresh: u32 = u32_at(64);
    /// Round-trip time, smoothed, in us.
    rtt: u32 = u32_at(68);
    /// Its mean deviation, in us.
    rttvar: u32 = u32_at(72);
    /// Slow-start threshold, in segments.
    snd_ssthresh: u32 = u32_at(76);
    /// Congestion window, in segments.
    snd_cwnd: u32 = u32_at(80);
    /// Segment size that was announced, in octets.
    advmss: u32 = u32_at(84);
    /// Reordering that is reckoned with, in segments.
    reordering: u32 = u32_at(88);
    /// Round-trip time as a receiver estimates it, in us.
    rcv_rtt: u32 = u32_at(92);
    /// Space of the receive buffer that is tuned, in octets.
    rcv_space: u32 = u32_at(96);
    /// Segments retransmitted so far.
    total_retrans: u32 = u32_at(100);
    /// Rate of pacing, in octets per second; all ones: unbounded.
    pacing_rate: u64 = u64_at(104);
    /// Its bound; likewise.
    max_pacing_rate: u64 = u64_at(112);
    /// Octets acknowledged so far, SYN and FIN counted as one each.
    bytes_acked: u64 = u64_at(120);
    /// Octets received so far, the FIN counted as one.
    bytes_received: u64 = u64_at(128);
    /// Segments sent so far.
    segs_out: u32 = u32_at(136);
    /// Segments received so far.
    segs_in: u32 = u32_at(140);
    /// Octets in the send buffer that were not sent yet.
    notsent_bytes: u32 = u32_at(144);
    /// Smallest round-trip time lately, in us; all ones: none was measured.
    min_rtt: u32 = u32_at(148);
    /// Segments with data received so far.
    data_segs_in: u32 = u32_at(152);
    /// Segments with data sent so far.
    data_segs_out: u32 = u32_at(156);
    /// Rate of delivery, in octets per second.
    delivery_rate: u64 = u64_at(160);
    /// Time in which there was data to send, in us.
    busy_time: u64 = u64_at(168);
    /// Of that, limited by the receive window.
    rwnd_limited: u64 = u64_at(176);
    /// Of that, limited by the send buffer.
    sndbuf_limited: u64 = u64_at(184);
    /// Segments delivered so far, by SACK too.
    delivered: u32 = u32_at(192);
    /// Of those, with a mark of congestion.
    delivered_ce: u32 = u32_at(196);
    /// Octets of data sent so far, retransmissions included. 4.19.
    bytes_sent: u64 = u64_at(200);
    /// Octets of data retransmitted so far. 4.19.
    bytes_retrans: u64 = u64_at(208);
    /// Segments that arrived twice at the other side. 4.19.
    dsack_dups: u32 = u32_at(216);
    /// Reorderings seen. 4.19.
    reord_seen: u32 = u32_at(220);
    /// Segments received out of order. 5.4.
    rcv_ooopack: u32 = u32_at(224);
    /// The window that the other side announced, in octets. 5.4.
    snd_wnd: u32 = u32_at(228);
    /// The window that was announced to it, in octets. 6.2.
    rcv_wnd: u32 = u32_at(232);
    /// Times that another path was tried. 6.2.
    rehash: u32 = u32_at(236);
    /// Retransmission time-outs so far. 6.7.
    total_rto: u16 = u16_at(240);
    /// Recoveries of those so far. 6.7.
    total_rto_recoveries: u16 = u16_at(242);
    /// Time spent in them, in ms. 6.7.
    total_rto_time: u32 = u32_at(244);
}

fields! { BbrInfo:
    /// The lower half of [`BbrInfo::bandwidth`].
    low: u32 = u32_at(0);
    /// The upper half.
    high: u32 = u32_at(4);
    /// Smallest round-trip time of the last 10 s, in us.
    min_rtt: u32 = u32_at(8);
    /// By how much the pace is above the bandwidth, in 256ths.
    pacing_gain: u32 = u32_at(12);
    /// By how much the congestion window is above what fills the path, in 256ths.
    cwnd_gain: u32 = u32_at(16);
}

fields! { VegasInfo:
    /// 1 while it acts, 0 while Reno does in its place.
    enabled: u32 = u32_at(0);
    /// Round-trip times measured since the window was last set.
    rtt_count: u32 = u32_at(4);
    /// Round-trip time, in us: the smallest of all, or the mean, as the congestion control has
    /// it; 2147483647: none was measured.
    rtt: u32 = u32_at(8);
    /// The smallest since the window was last set, in us; likewise.
    min_rtt: u32 = u32_at(12);
}

fields! { DctcpInfo:
    /// 1 while it acts, 0 while Reno does in its place, since the path has no ECN.
    enabled: u16 = u16_at(0);
    /// Whether the last segment that arrived had a mark of congestion.
    ce_state: u16 = u16_at(2);
    /// The share of octets that met congestion, smoothed, in 1024ths.
    alpha: u32 = u32_at(4);
    /// Octets acknowledged in this round trip that met congestion.
    marked: u32 = u32_at(8);
    /// Octets acknowledged in this round trip.
    acked: u32 = u32_at(12);
}

fields! { DiagMessage:
    /// The family: 2 IPv4, 10 IPv6.
    family: u8 = u8_at(0);
    /// State, as of [`TcpInfo::state`].
    state: u8 = u8_at(1);
    /// Which timer runs: 0 none, 1 retransmission, 2 another one, 3 TIME-WAIT, 4 probes of a
    /// window of 0.
    timer: u8 = u8_at(2);
    /// How often it has run out in a row.
    retrans: u8 = u8_at(3);
    /// The source's port, its octets as they are on the wire.
    src_port: u16 = u16_at(4);
    /// The destination's, likewise.
    dst_port: u16 = u16_at(6);
    /// The interface that it is bound to; 0: none.
    interface: u32 = u32_at(40);
    /// The lower half of its number.
    cookie_low: u32 = u32_at(44);
    /// The upper half.
    cookie_high: u32 = u32_at(48);
    /// Until the timer runs out, in ms.
    expires: u32 = u32_at(52);
    /// Octets that wait to be read.
    unread: u32 = u32_at(56);
    /// Octets that were not acknowledged, or not yet sent.
    unacked: u32 = u32_at(60);
    /// Who made it.
    uid: u32 = u32_at(64);
    /// Its number in the file system of sockets.
    inode: u32 = u32_at(68);
}

impl BbrInfo<'_> {
    /// The bandwidth of the path, as estimated, in octets per second.
    pub fn bandwidth(self) -> Option<u64> {
        Some(u64::from(self.high()?) << 32 | u64::from(self.low()?))
    }
}

impl DiagMessage<'_> {
    /// The addresses of source and destination, as words of which the octets are as they are
    /// on the wire; of IPv4 only the first is not 0.
    pub fn addresses(self) -> Option<[[u32; 4]; 2]> {
        let mut words = [[0; 4]; 2];
        for (index, word) in words.iter_mut().flatten().enumerate() {
            *word = u32_at(self.0, 8 + 4 * index)?;
        }
        Some(words)
    }
}

impl TcpInfo<'_> {
    /// Why data in the SYN did not work: 0 it did, or was not tried; 1 no cookie, 2 data was
    /// not acknowledged, 3 the SYN was sent again.
    pub fn fastopen_failure(self) -> Option<u8> {
        let flags = *self.0.get(7)?;
        Some(if cfg!(target_endian = "little") { flags >> 1 } else { flags >> 5 } & 3)
    }

    /// How many of this side's SYN and FIN have been acknowledged; None: not all data has been,
    /// or it is not counted by itself, as before 4.19.
    pub fn acknowledged_control(self) -> Option<u64> {
        let data = self.bytes_sent()?.saturating_sub(self.bytes_retrans()?);
        self.bytes_acked()?.checked_sub(data).filter(|_| self.unacked() == Some(0))
    }

    /// Whether the delivery rate was limited by what the program had to send.
    pub fn is_app_limited(self) -> Option<bool> {
        let bit = if cfg!(target_endian = "little") { 1 } else { 128 };
        self.0.get(7).map(|flags| flags & bit != 0)
    }

    /// Shifts of the windows, to the other side and from it.
    pub fn window_scales(self) -> Option<(u8, u8)> {
        let both = *self.0.get(6)?;
        // Bit fields: where the first one lies is the architecture's.
        let (low, high) = (both & 15, both >> 4);
        Some(if cfg!(target_endian = "little") { (low, high) } else { (high, low) })
    }
}
