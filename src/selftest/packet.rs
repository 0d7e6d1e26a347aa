//! Decodes captured packets (RFC 8200, 9293, 768) and judges what tag they carry. It
//! shares nothing with the marker, so that a mistake there is not repeated here.

use std::fmt;

use crate::sys::abi::{Captured, Strategy};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;

const ETHERNET: usize = 14;
const IPV6: usize = 40;

/// The tag that is written.
pub(super) const EXPERIMENT: u16 = 300;
pub(super) const ACTIVITY: u8 = 37;
/// Its bits in a flow label: the experiment's nine bits in reverse order from bit 17
/// down, the activity's six from bit 7 down; the others are the flow's entropy.
const LABEL: u32 = 0b001_101_001 << 9 | 37 << 2;
const LABEL_MASK: u32 = 0x1ff << 9 | 0x3f << 2;
/// Its option: type, length, the experiment's 16 bits, the activity, Pad1.
const OPTION: [u8; 6] = [0x1e, 3, 1, 44, 37, 0];

/// A packet as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) label: u32,
    /// Whether it is as long as its header says.
    is_whole: bool,
    /// The extension headers: their number, the next one's, and what follows the length.
    headers: Vec<(u8, u8, [u8; 6])>,
    pub(super) protocol: u8,
    pub(super) source: u16,
    pub(super) destination: u16,
    /// Octets behind the TCP or UDP header.
    pub(super) data: usize,
    /// Whether it is to be cut into segments still.
    pub(super) gso: bool,
    /// The largest packet of it on the wire, without the Ethernet header.
    pub(super) wire: usize,
}

/// None: not TCP or UDP in IPv6, or malformed.
pub(super) fn decode(captured: &Captured) -> Option<Packet> {
    let bytes = captured.data.get(..captured.data.len().min(captured.len as usize))?;
    let ip = bytes.get(ETHERNET..)?;
    let length = (captured.len as usize).checked_sub(ETHERNET)?;
    let word = |at: usize| Some(u16::from_be_bytes(ip.get(at..at + 2)?.try_into().ok()?));
    let first = u32::from_be_bytes(ip.get(..4)?.try_into().ok()?);
    if first >> 28 != 6 {
        return None;
    }
    let (mut protocol, mut at) = (*ip.get(6)?, IPV6);
    let mut headers = Vec::new();
    while protocol == HOP_BY_HOP || protocol == DESTINATION {
        let header = ip.get(at..at + 8)?;
        if header[1] != 0 {
            return None;
        }
        headers.push((protocol, header[0], header[2..8].try_into().ok()?));
        (protocol, at) = (header[0], at + 8);
    }
    let transport = match protocol {
        TCP => usize::from(ip.get(at + 12)? >> 4) * 4,
        UDP => 8,
        _ => return None,
    };
    let data = length.checked_sub(at + transport)?;
    let segment = if captured.gso_size == 0 { data } else { captured.gso_size as usize };
    Some(Packet {
        label: first & 0xf_ffff,
        is_whole: Some(usize::from(word(4)?)) == length.checked_sub(IPV6),
        headers,
        protocol,
        source: word(at)?,
        destination: word(at + 2)?,
        data,
        gso: captured.gso_size != 0,
        wire: at + transport + segment,
    })
}

impl Packet {
    /// Whether it carries the tag as the strategy says, and nothing else.
    pub(super) fn is_marked(&self, strategy: Strategy) -> bool {
        let both = [HOP_BY_HOP, DESTINATION];
        let kinds: &[u8] = match strategy {
            Strategy::Label => &[],
            Strategy::HopByHop => &both[..1],
            Strategy::Destination => &both[1..],
            Strategy::HopByHopDestination => &both,
        };
        let next = kinds.iter().skip(1).copied().chain([self.protocol]);
        let expected = kinds.iter().zip(next).map(|(kind, next)| (*kind, next, OPTION));
        let label = match strategy {
            Strategy::Label => self.label & LABEL_MASK == LABEL,
            _ => self.label == 0,
        };
        self.is_whole && label && expected.eq(self.headers.iter().copied())
    }

    /// Whether it is as it was sent.
    pub(super) fn is_plain(&self) -> bool {
        self.is_whole && self.label == 0 && self.headers.is_empty()
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.protocol == TCP { "TCP" } else { "UDP" };
        let Packet { source, destination, label, data, wire, .. } = self;
        write!(f, "{protocol} {source} to {destination}, label {label:05x}, {data} octets of ")?;
        write!(f, "data, {wire} on the wire")?;
        self.headers.iter().try_for_each(|(kind, _, octets)| write!(f, ", [{kind}: {octets:02x?}]"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::sys::abi::CAPTURED_DATA;

    /// A packet of UDP with that label and these headers, of `length` octets of data.
    pub(in super::super) fn captured(
        label: u32,
        headers: &[(u8, [u8; 8])],
        length: usize,
    ) -> Captured {
        let mut bytes = vec![0; ETHERNET];
        bytes.extend((6 << 28 | label).to_be_bytes());
        let payload = headers.len() * 8 + 8 + length;
        bytes.extend(u16::try_from(payload).unwrap().to_be_bytes());
        bytes.extend([headers.first().map_or(UDP, |(kind, _)| *kind), 64]);
        bytes.resize(ETHERNET + IPV6, 0);
        headers.iter().for_each(|(_, header)| bytes.extend(header));
        bytes.extend([0x9c, 0x40, 0x13, 0x89, 0, 0, 0, 0]);
        bytes.resize(bytes.len() + length, 7);
        let mut captured =
            Captured { len: u32::try_from(bytes.len()).unwrap(), ..Default::default() };
        bytes.resize(CAPTURED_DATA.max(bytes.len()), 0);
        captured.data.copy_from_slice(&bytes[..CAPTURED_DATA]);
        captured
    }

    #[test]
    fn tags_are_read_from_labels_and_options() {
        // The label as glowd's own code makes it, entropy aside.
        let tag = crate::flow::Tag::new(u64::from(EXPERIMENT), u64::from(ACTIVITY)).unwrap();
        assert_eq!(tag.label(0) & LABEL_MASK, LABEL);
        let plain = decode(&captured(0, &[], 20)).unwrap();
        assert_eq!((plain.source, plain.destination), (40_000, 5001));
        assert_eq!((plain.data, plain.wire, plain.gso), (20, 68, false));
        assert!(plain.is_plain() && Strategy::ALL.iter().all(|(s, _)| !plain.is_marked(*s)));
        let labelled = decode(&captured(LABEL | 0xc_0103, &[], 20)).unwrap();
        assert!(labelled.is_marked(Strategy::Label) && !labelled.is_plain());
        let wrong = decode(&captured(LABEL ^ 1 << 2, &[], 20)).unwrap();
        assert!(!wrong.is_marked(Strategy::Label));
        let option = |next| [next, 0, 0x1e, 3, 1, 44, 37, 0];
        let both = [(HOP_BY_HOP, option(DESTINATION)), (DESTINATION, option(UDP))];
        let both = decode(&captured(0, &both, 20)).unwrap();
        assert!(both.is_marked(Strategy::HopByHopDestination));
        assert!(!both.is_marked(Strategy::HopByHop) && both.wire == 84);
        let one = decode(&captured(0, &[(DESTINATION, option(UDP))], 20)).unwrap();
        assert!(one.is_marked(Strategy::Destination) && !one.is_marked(Strategy::HopByHop));
    }

    #[test]
    fn super_packets_are_as_long_as_their_segments() {
        let captured = Captured { gso_size: 1000, ..captured(0, &[], 5000) };
        let packet = decode(&captured).unwrap();
        assert_eq!((packet.data, packet.wire, packet.gso), (5000, 1048, true));
    }

    #[test]
    fn what_is_cut_or_has_a_wrong_length_is_neither_marked_nor_plain() {
        let whole = captured(0, &[], 9);
        for len in 0..whole.len {
            let packet = decode(&Captured { len, ..whole });
            assert!(packet.is_none_or(|packet| !packet.is_plain()), "{len}");
        }
    }
}
