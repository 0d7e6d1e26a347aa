//! What an enricher has learned of an open flow: a sample, as it came from the kernel.
//!
//! An enricher makes it, the dispatcher keeps the last one of each flow and hands it to the
//! backends. It is kept in the kernel's own form, of which each reader takes what it needs:
//! 50,000 of them are 20 MB at the most.

use crate::flow::{Timestamp, Usage};
use crate::net::attributes::{u32_at, Attributes};
use crate::net::tcp_info::TcpInfo;

/// INET_DIAG_MEMINFO: struct inet_diag_meminfo.
const MEMORY: u16 = 1;
/// INET_DIAG_INFO, of TCP.
const INFO: u16 = 2;
/// INET_DIAG_CONG.
const CONGESTION: u16 = 4;
/// INET_DIAG_TOS.
const TOS: u16 = 5;
/// INET_DIAG_SKMEMINFO: numbers by SK_MEMINFO_*.
const SOCKET_MEMORY: u16 = 7;

/// What is read of a sample, and so kept.
const READ: [u16; 5] = [MEMORY, INFO, CONGESTION, TOS, SOCKET_MEMORY];

/// A sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// When it was taken.
    pub time: Timestamp,
    /// Of the socket, so that another one with the same ports is told from it.
    pub cookie: u64,
    /// An eBPF program took it, and not sock_diag(7).
    pub by_program: bool,
    attributes: Box<[u8]>,
}

impl FlowInfo {
    /// A sample of the socket with that cookie, as sock_diag(7) tells of it.
    pub fn new(time: Timestamp, cookie: u64, attributes: Attributes<'_>) -> Self {
        let read = attributes.filter(|(kind, _)| READ.contains(kind));
        // Exactly, or it is moved once more to give back the rest.
        let size = read.clone().map(|(_, value)| 4 + value.len().next_multiple_of(4)).sum();
        let mut kept = Vec::with_capacity(size);
        read.for_each(|(kind, value)| append(&mut kept, kind, value));
        FlowInfo { time, cookie, by_program: false, attributes: kept.into() }
    }

    /// A sample that an eBPF program took: a tcp_info, and the name of the congestion
    /// control.
    pub fn by_program(time: Timestamp, cookie: u64, info: &[u8], congestion: &[u8]) -> Self {
        let mut kept = Vec::with_capacity(8 + info.len() + congestion.len());
        append(&mut kept, INFO, info);
        append(&mut kept, CONGESTION, congestion);
        FlowInfo { time, cookie, by_program: true, attributes: kept.into() }
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
        FlowInfo { time, cookie, by_program: false, attributes: kept.into() }
    }

    /// Takes from a sample that was before what this one lacks, as that of a socket that is
    /// gone does.
    pub fn complete(&mut self, before: &FlowInfo) {
        if self.attributes.len() >= before.attributes.len() {
            return;
        }
        let lacking = |(kind, _): &(u16, &[u8])| self.find(*kind).is_none();
        let mut rest = Attributes(&before.attributes).filter(lacking).peekable();
        if rest.peek().is_some() {
            let mut kept = self.attributes.to_vec();
            rest.for_each(|(kind, value)| append(&mut kept, kind, value));
            self.attributes = kept.into();
        }
    }

    /// What TCP knows of the connection; None: it is not TCP, or over.
    pub fn tcp_info(&self) -> Option<TcpInfo<'_>> {
        self.find(INFO).map(TcpInfo)
    }

    /// The name of the congestion control.
    pub fn congestion(&self) -> Option<&str> {
        let name = self.find(CONGESTION)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        std::str::from_utf8(&name[..end]).ok()
    }

    /// The type of service, or traffic class, of its packets.
    pub fn tos(&self) -> Option<u8> {
        self.find(TOS)?.first().copied()
    }

    /// Octets of memory: 0 received, 1 queued to send, 2 set aside, 3 sent and not yet
    /// acknowledged.
    pub fn memory(&self, index: usize) -> Option<u32> {
        u32_at(self.find(MEMORY)?, 4 * index)
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

    /// How much the connection has carried, whatever flows it had: octets of payload, without retransmissions. On
    /// kernels before 4.19 one more may count as sent, for the SYN.
    pub fn usage(&self) -> Option<Usage> {
        let info = self.tcp_info()?;
        let sent = match (info.bytes_sent(), info.bytes_retrans()) {
            (Some(sent), Some(again)) => sent.saturating_sub(again),
            _ => info.bytes_acked()?,
        };
        // The other side's FIN counts as an octet, and these are the states after it.
        let over = [6, 7, 8, 9, 11].contains(&info.state().unwrap_or(0));
        let octets = info.bytes_received()?;
        let only_fin = octets == 1 && info.data_segs_in() == Some(0);
        let received = octets.saturating_sub((over || only_fin).into());
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
