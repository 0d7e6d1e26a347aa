//! What an enricher has learned of an open flow: a sample, as it came from the kernel.
//!
//! An enricher makes it, the dispatcher keeps the last one of each flow and hands it to the
//! backends. It is kept in the kernel's own form, of which each reader takes what it needs:
//! 50,000 of them are 18 MB at the most, and 25 MB where fireflies say all that is known.

use std::hash::Hasher;

use crate::flow::{Timestamp, Usage};
use crate::net::attributes::{u32_at, Attributes};
use crate::net::tcp_info::{BbrInfo, DctcpInfo, DiagMessage, TcpInfo, VegasInfo};

/// The message that the attributes follow, kept under a number that is no attribute's.
const MESSAGE: u16 = 0;
/// INET_DIAG_MEMINFO: struct inet_diag_meminfo.
const MEMORY: u16 = 1;
/// INET_DIAG_INFO, of TCP.
const INFO: u16 = 2;
/// INET_DIAG_VEGASINFO.
const VEGAS: u16 = 3;
/// INET_DIAG_CONG.
const CONGESTION: u16 = 4;
/// INET_DIAG_TOS.
const TOS: u16 = 5;
/// INET_DIAG_TCLASS.
const CLASS: u16 = 6;
/// INET_DIAG_SKMEMINFO: numbers by SK_MEMINFO_*.
const SOCKET_MEMORY: u16 = 7;
/// INET_DIAG_SHUTDOWN.
const SHUTDOWN: u16 = 8;
/// INET_DIAG_DCTCPINFO.
const DCTCP: u16 = 9;
/// INET_DIAG_BBRINFO.
const BBR: u16 = 16;

/// The states of a connection that has had the other side's FIN: TIME-WAIT, closed,
/// CLOSE-WAIT, LAST-ACK, CLOSING.
const AFTER_FIN: [u8; 5] = [6, 7, 8, 9, 11];

/// Of a sample that is no older nothing is known of what has happened since, in us.
const FRESH: u64 = 2_000_000;

/// What everybody reads who reads samples.
const ALWAYS: u32 = 1 << INFO | 1 << CONGESTION | 1 << SOCKET_MEMORY;

/// What the kernel is asked for, and what is kept of its answer: attributes, bit n stands for
/// the one of number n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    /// Those that the bits of `ext` (INET_DIAG_*, the first one is 1) stand for; unless samples
    /// are told `in_full` only those that are read then.
    pub fn new(ext: u8, in_full: bool) -> Self {
        let mut asked = u32::from(ext) << 1;
        if asked >> SOCKET_MEMORY & 1 == 1 {
            // The other memory is said in that, and to say it twice costs a twentieth of a list.
            asked &= !(1 << MEMORY);
        }
        // Each congestion control answers for itself.
        let answers = if asked >> VEGAS & 1 == 1 { 1 << DCTCP | 1 << BBR } else { 0 };
        Kinds(if in_full { asked | answers | 1 << MESSAGE } else { asked & ALWAYS })
    }

    /// The bits that ask the kernel for them.
    pub fn extensions(self) -> u8 {
        (self.0 >> 1).to_le_bytes()[0]
    }

    /// Whether they are what is said in full.
    pub fn are_full(self) -> bool {
        self.has(MESSAGE)
    }

    /// A number that changes with what a sample of these kinds says, but for how long ago
    /// something last happened.
    pub fn digest(self, cookie: u64, attributes: Attributes<'_>, mut hasher: impl Hasher) -> u64 {
        hasher.write_u64(cookie);
        for (kind, value) in attributes.filter(|(kind, _)| self.has(*kind)) {
            hasher.write_u64(u64::from(kind) << 32 | value.len() as u64);
            match (kind, value.get(..TcpInfo::AGES.start), value.get(TcpInfo::AGES.end..)) {
                (INFO, Some(before), Some(behind)) => {
                    hasher.write(before);
                    hasher.write(behind);
                }
                _ => hasher.write(value),
            }
        }
        hasher.finish()
    }

    fn has(self, kind: u16) -> bool {
        self.0.checked_shr(kind.into()).unwrap_or(0) & 1 == 1
    }
}

/// A sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// When it was taken.
    pub time: Timestamp,
    /// Of the socket, so that another one with the same ports is told from it.
    pub cookie: u64,
    /// An eBPF program took it, and not sock_diag(7).
    pub by_program: bool,
    /// What it lacks is not there, and not to be had from the sample before.
    is_whole: bool,
    attributes: Box<[u8]>,
}

impl FlowInfo {
    /// A sample of the socket with that cookie, as sock_diag(7) tells of it: its message and
    /// the attributes behind that, of which `kinds` are kept.
    pub fn new(
        time: Timestamp,
        cookie: u64,
        kinds: Kinds,
        message: &[u8],
        attributes: Attributes<'_>,
    ) -> Self {
        let all = std::iter::once((MESSAGE, message)).chain(attributes);
        let kept = all.filter(|(kind, value)| kinds.has(*kind) && !value.is_empty());
        // Exactly, or it is moved once more to give back the rest.
        let (mut size, mut is_whole) = (0, false);
        kept.clone().for_each(|(kind, value)| {
            size += 4 + value.len().next_multiple_of(4);
            is_whole |= kind == INFO;
        });
        let mut bytes = Vec::with_capacity(size);
        kept.for_each(|(kind, value)| append(&mut bytes, kind, value));
        let attributes = bytes.into();
        FlowInfo { time, cookie, by_program: false, is_whole, attributes }
    }

    /// A sample that an eBPF program took: a tcp_info, and the name of the congestion
    /// control.
    pub fn by_program(time: Timestamp, cookie: u64, info: &[u8], congestion: &[u8]) -> Self {
        let mut kept = Vec::with_capacity(8 + info.len() + congestion.len());
        append(&mut kept, INFO, info);
        append(&mut kept, CONGESTION, congestion);
        FlowInfo { by_program: true, ..FlowInfo::part(time, cookie, kept) }
    }

    /// What TCP knew of a socket that is gone, with the state that it was closed in.
    pub fn last(time: Timestamp, cookie: u64, attributes: Attributes<'_>, state: u8) -> Self {
        let mut kept = Vec::new();
        if let Some(info) = attributes.clone().find(INFO) {
            append(&mut kept, INFO, info);
            if let Some(field) = kept.get_mut(4) {
                *field = state;
            }
        }
        FlowInfo::part(time, cookie, kept)
    }

    fn part(time: Timestamp, cookie: u64, kept: Vec<u8>) -> Self {
        let attributes = kept.into();
        FlowInfo { time, cookie, by_program: false, is_whole: false, attributes }
    }

    /// Takes from a sample that was before what this one lacks, as that of a socket that is
    /// gone does.
    pub fn complete(&mut self, before: &FlowInfo) {
        self.correct(before);
        if self.is_whole || self.attributes.len() >= before.attributes.len() {
            return;
        }
        // Another congestion control may have taken over.
        let same = self.congestion().is_none_or(|name| before.congestion() == Some(name));
        let lacking = |(kind, _): &(u16, &[u8])| {
            self.find(*kind).is_none() && (same || ![VEGAS, DCTCP, BBR].contains(kind))
        };
        let mut rest = Attributes(&before.attributes).filter(lacking).peekable();
        if rest.peek().is_some() {
            let mut kept = self.attributes.to_vec();
            rest.for_each(|(kind, value)| append(&mut kept, kind, value));
            self.attributes = kept.into();
        }
    }

    /// Of a socket that is gone: in which state it was closed, as far as it follows from what was
    /// seen of it before (RFC 9293 section 3.3.2). What counts is whether the other side's
    /// FIN has come.
    fn correct(&mut self, before: &FlowInfo) {
        let (Some(then), Some(now)) = (before.tcp_info(), self.tcp_info()) else { return };
        if self.is_whole || self.by_program {
            return;
        }
        let grown =
            |count: fn(TcpInfo<'_>) -> Option<u64>| Some(count(now)?.saturating_sub(count(then)?));
        let octets = grown(|info| info.bytes_received());
        let packets = grown(|info| info.data_segs_in().map(u64::from));
        let state = match (then.state(), now.state()) {
            (Some(seen), _) if AFTER_FIN.contains(&seen) => seen,
            // Nothing has come.
            (Some(seen), _) if octets == Some(0) => seen,
            // Something, and it was no data.
            (_, Some(1..=5)) if packets == Some(0) => 7,
            // Closed on this side, and not held up by anything, so somebody waited for the FIN.
            (Some(5), Some(4)) => 6,
            // In order it does not end so.
            (Some(4 | 5), Some(9)) => 5,
            // This side's FIN has been acknowledged since.
            (Some(1), Some(1)) if grown(|info| info.acknowledged_control()) > Some(0) => 9,
            _ => return,
        };
        // The first attribute.
        if let Some(field) = self.attributes.get_mut(4) {
            *field = state;
        }
    }

    /// What TCP knows of the connection; None: it is not TCP, or over.
    pub fn tcp_info(&self) -> Option<TcpInfo<'_>> {
        self.find(INFO).map(TcpInfo)
    }

    /// How long ago at `now` something last happened, in ms, that had been `age` ago when the
    /// sample was taken: right to the enrichers' period. Where that is a second, an old sample is
    /// the last one since nothing has happened.
    pub fn ago(&self, age: Option<u32>, now: Timestamp) -> Option<u32> {
        let since = Some(now.0.saturating_sub(self.time.0)).filter(|since| *since > FRESH);
        let since = u32::try_from(since.unwrap_or(0) / 1000).unwrap_or(u32::MAX);
        Some(age?.saturating_add(since))
    }

    /// The name of the congestion control.
    pub fn congestion(&self) -> Option<&str> {
        let name = self.find(CONGESTION)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        std::str::from_utf8(&name[..end]).ok()
    }

    /// What BBR says, if that is the congestion control.
    pub fn bbr(&self) -> Option<BbrInfo<'_>> {
        self.find(BBR).map(BbrInfo)
    }

    /// What Vegas says, or one that says the same.
    pub fn vegas(&self) -> Option<VegasInfo<'_>> {
        self.find(VEGAS).map(VegasInfo)
    }

    /// What DCTCP says.
    pub fn dctcp(&self) -> Option<DctcpInfo<'_>> {
        self.find(DCTCP).map(DctcpInfo)
    }

    /// What the kernel says of any socket.
    pub fn message(&self) -> Option<DiagMessage<'_>> {
        self.find(MESSAGE).map(DiagMessage)
    }

    /// The type of service of its packets of IPv4.
    pub fn tos(&self) -> Option<u8> {
        self.find(TOS)?.first().copied()
    }

    /// The traffic class of its packets of IPv6.
    pub fn traffic_class(&self) -> Option<u8> {
        self.find(CLASS)?.first().copied()
    }

    /// Which ways are shut down, as a sum: 1 from the other side, 2 to it.
    pub fn shutdown(&self) -> Option<u8> {
        self.find(SHUTDOWN)?.first().copied()
    }

    /// Octets of memory: 0 received, 1 queued to send, 2 set aside, 3 sent and not yet
    /// acknowledged.
    pub fn memory(&self, index: usize) -> Option<u32> {
        match self.find(MEMORY) {
            Some(memory) => u32_at(memory, 4 * index),
            // The same numbers.
            None => self.socket_memory(*[0, 5, 4, 2].get(index)?),
        }
    }

    /// What the socket has of memory, by SK_MEMINFO_*: 0 received, 1 the receive buffer, 2
    /// sent, 3 the send buffer, 4 set aside, 5 queued to send, 6 options, 7 backlog, 8 packets
    /// dropped.
    pub fn socket_memory(&self, index: usize) -> Option<u32> {
        u32_at(self.find(SOCKET_MEMORY)?, 4 * index)
    }

    /// Whether it is of a socket that was closed for good.
    pub fn is_closed(&self) -> bool {
        // TCP_CLOSE.
        self.tcp_info().and_then(|info| info.state()) == Some(7)
    }

    /// Whether it is of a socket that is gone.
    pub fn is_over(&self) -> bool {
        self.is_closed() || !(self.is_whole || self.by_program)
    }

    /// How much the connection has carried, whatever flows it had: octets of payload, without
    /// retransmissions.
    ///
    /// Kernels before 4.19 do not count the data that was sent, but what was acknowledged: a
    /// little less while data is on its way, and one octet more if this side has opened the
    /// connection, for its SYN. They do not say who has.
    pub fn usage(&self) -> Option<Usage> {
        let info = self.tcp_info()?;
        let state = info.state().unwrap_or(0);
        let sent = match (info.bytes_sent(), info.bytes_retrans()) {
            (Some(sent), Some(again)) => sent.saturating_sub(again),
            // Nothing but a SYN and a FIN.
            _ if info.data_segs_out() == Some(0) => 0,
            // These are the states after this side's FIN, which counts if all is acknowledged.
            _ => {
                let waiting = (info.unacked(), info.notsent_bytes()) != (Some(0), Some(0));
                let over = !waiting && [4, 5, 6, 7, 9, 11].contains(&state);
                info.bytes_acked()?.saturating_sub(over.into())
            }
        };
        // The other side's FIN counts as an octet.
        let octets = info.bytes_received()?;
        let only_fin = octets == 1 && info.data_segs_in() == Some(0);
        let received = octets.saturating_sub((AFTER_FIN.contains(&state) || only_fin).into());
        Some(Usage { received, sent })
    }

    fn find(&self, kind: u16) -> Option<&[u8]> {
        Attributes(&self.attributes).find(kind)
    }
}

/// Adds an attribute, as netlink(7) has them.
fn append(kept: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let Ok(length) = u16::try_from(4 + value.len()) else { return };
    kept.extend_from_slice(&length.to_ne_bytes());
    kept.extend_from_slice(&kind.to_ne_bytes());
    kept.extend_from_slice(value);
    kept.resize(kept.len().next_multiple_of(4), 0);
}

/// How the dispatcher looks at a flow a last time when that ends, on its own thread: at once,
/// since the end does not wait. None: there is no socket any more, or it says nothing.
pub type LastLook = Box<dyn FnMut(&crate::flow::FlowId) -> Option<FlowInfo> + Send>;

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(of: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        of.iter().for_each(|(kind, value)| append(&mut bytes, *kind, value));
        bytes
    }

    fn whole(control: &[u8], answer: u16) -> FlowInfo {
        let bytes = attributes(&[
            (INFO, &[1; 248]),
            (CONGESTION, control),
            (answer, &[1; 20]),
            (TOS, &[1]),
        ]);
        let kinds = Kinds::new(u8::MAX, true);
        FlowInfo::new(Timestamp(7), 1, kinds, &[1; 72], Attributes(&bytes))
    }

    #[test]
    fn an_old_sample_ages() {
        let info = whole(b"cubic\0", VEGAS);
        let at = |micros| info.ago(Some(5), Timestamp(7 + micros));
        assert_eq!([at(0), at(FRESH), at(FRESH + 1000)], [Some(5), Some(5), Some(2006)]);
        assert_eq!((info.ago(Some(5), Timestamp(0)), at(u64::MAX - 7)), (Some(5), Some(u32::MAX)));
        assert_eq!(info.ago(None, Timestamp(u64::MAX)), None);
    }

    #[test]
    fn kinds_are_those_of_ext() {
        for ext in 0..=u8::MAX {
            let once = if ext & 64 == 0 { ext } else { ext & !1 };
            assert_eq!(Kinds::new(ext, true).extensions(), once);
            assert_eq!(Kinds::new(ext, false).extensions(), ext & (2 | 8 | 64));
            assert_eq!(Kinds::new(ext, true).has(BBR), ext & 4 != 0);
        }
        assert!(!Kinds::new(u8::MAX, true).has(21) && !Kinds::new(u8::MAX, true).has(0x3fff));
    }

    /// And whoever took over from BBR says nothing of bandwidth.
    #[test]
    fn a_sample_that_is_whole_takes_nothing_from_the_one_before() {
        let before = whole(b"bbr\0", BBR);
        let mut now = whole(b"vegas\0", VEGAS);
        now.complete(&before);
        assert_eq!(now.bbr(), None);
        assert!(now.vegas().is_some() && now.message().is_some());
    }

    #[test]
    fn a_part_takes_what_it_lacks_of_the_same_congestion_control() {
        let before = whole(b"bbr\0", BBR);
        for (name, due) in [(&b"bbr\0"[..], true), (b"cubic\0", false)] {
            let mut now = FlowInfo::by_program(Timestamp(8), 1, &[2; 232], name);
            now.complete(&before);
            assert_eq!((now.bbr().is_some(), now.tos()), (due, Some(1)));
            assert_eq!(now.tcp_info().unwrap().state(), Some(2));
        }
        let info = attributes(&[(INFO, &[3; 248])]);
        let mut now = FlowInfo::last(Timestamp(8), 1, Attributes(&info), 7);
        now.complete(&before);
        assert_eq!((now.congestion(), now.bbr()), (Some("bbr"), before.bbr()));
        assert_eq!(now.tcp_info().unwrap().state(), Some(7));
    }

    /// A tcp_info of `length` octets, with these octets acknowledged, received and sent, and
    /// packets of data received and sent.
    fn info(length: usize, state: u8, octets: [u64; 3], packets: [u32; 2]) -> Vec<u8> {
        let mut info = vec![0; 248];
        info[0] = state;
        for (at, number) in [(120, octets[0]), (128, octets[1]), (200, octets[2])] {
            info[at..at + 8].copy_from_slice(&number.to_ne_bytes());
        }
        for (at, number) in [(152, packets[0]), (156, packets[1])] {
            info[at..at + 4].copy_from_slice(&number.to_ne_bytes());
        }
        info.truncate(length);
        info
    }

    fn usage(info: &[u8]) -> (u64, u64) {
        let bytes = attributes(&[(INFO, info)]);
        let kinds = Kinds::new(u8::MAX, false);
        let info = FlowInfo::new(Timestamp(1), 1, kinds, &[], Attributes(&bytes));
        info.usage().map(|usage| (usage.sent, usage.received)).unwrap()
    }

    /// As kernels of all ages tell; before 4.19 what was acknowledged has to do.
    #[test]
    fn usage_is_had_from_a_tcp_info_of_any_length() {
        for length in [216, 224, 232, 240, 248] {
            assert_eq!(usage(&info(length, 1, [1001, 70, 1000], [1, 1])), (1000, 70));
            assert_eq!(usage(&info(length, 6, [1002, 71, 1000], [1, 1])), (1000, 70));
        }
        for length in [160, 192, 200, 208] {
            // The other side has opened the connection; this one's FIN is no data.
            assert_eq!(usage(&info(length, 1, [1000, 70, 0], [1, 1])), (1000, 70));
            for state in [5, 6, 7] {
                let received = if state == 5 { 70 } else { 71 };
                let info = info(length, state, [1001, received, 0], [1, 1]);
                assert_eq!(usage(&info), (1000, 70), "{length} {state}");
            }
            // One that waits to be acknowledged is not among what was.
            let mut last = info(length, 9, [1000, 71, 0], [1, 1]);
            last[24] = 1;
            assert_eq!(usage(&last), (1000, 70));
            // The SYN of this side is, as long as it has sent nothing else.
            assert_eq!(usage(&info(length, 1, [1, 0, 0], [0, 0])), (0, 0));
            assert_eq!(usage(&info(length, 6, [2, 1, 0], [0, 0])), (0, 0));
            assert_eq!(usage(&info(length, 1, [1001, 70, 0], [1, 1])), (1001, 70));
        }
    }

    /// How it was closed, by what was seen before.
    #[test]
    fn the_end_of_a_socket_is_corrected_by_what_was_seen_of_it() {
        let seen = |state, received, packets| {
            let bytes = attributes(&[(INFO, &info(248, state, [1, received, 0], [packets, 0]))]);
            let kinds = Kinds::new(u8::MAX, false);
            FlowInfo::new(Timestamp(1), 1, kinds, &[], Attributes(&bytes))
        };
        for (before, told, received, packets, due) in [
            // The FIN was there.
            (8, 1, 101, 1, 8),
            (11, 4, 101, 1, 11),
            // Nothing has come since, or nothing but it.
            (1, 9, 100, 1, 1),
            (5, 9, 100, 1, 5),
            (5, 4, 101, 1, 7),
            (1, 1, 101, 1, 7),
            // Data has, and it may have come with that.
            (1, 9, 120, 2, 9),
            (1, 1, 120, 2, 1),
            (5, 4, 120, 2, 6),
            (4, 9, 120, 2, 5),
            (5, 5, 120, 2, 5),
        ] {
            let bytes = attributes(&[(INFO, &info(248, 7, [1, received, 0], [packets, 0]))]);
            let mut last = FlowInfo::last(Timestamp(2), 1, Attributes(&bytes), told);
            last.complete(&seen(before, 100, 1));
            let state = |info: &FlowInfo| info.tcp_info().unwrap().state();
            assert_eq!(state(&last), Some(due), "{before} {told} {received}");
            // And stays so when it is told again.
            let mut again = FlowInfo::last(Timestamp(2), 1, Attributes(&bytes), told);
            again.complete(&last);
            assert_eq!(state(&again), Some(due), "{before} {told} {received}");
        }
    }
}
