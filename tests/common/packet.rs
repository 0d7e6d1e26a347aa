//! A decoder of Ethernet, VLAN tags and IPv6 with extension headers, TCP and UDP:
//! what the tests believe of a packet. Written from the RFCs (8200, 9293, 768) and
//! IEEE 802.1Q, and shares nothing with the daemon, so that a mistake there is not
//! repeated here.

use std::fmt;
use std::net::Ipv6Addr;

pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const DESTINATION: u8 = 60;

const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// What a frame starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Ethernet,
    /// The IP header, as on a tun device.
    None,
}

/// An extension header as it stands in the packet, its next-header octet included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extension {
    /// Its own protocol number.
    pub(crate) kind: u8,
    pub(crate) bytes: Vec<u8>,
}

/// An IPv6 packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// (TPID, TCI), outermost first.
    pub(crate) vlans: Vec<(u16, u16)>,
    pub(crate) traffic_class: u8,
    pub(crate) label: u32,
    /// As the header says it.
    pub(crate) payload_length: usize,
    /// What follows the IPv6 header, by the length of the frame.
    pub(crate) actual_length: usize,
    pub(crate) src: Ipv6Addr,
    pub(crate) dst: Ipv6Addr,
    pub(crate) extensions: Vec<Extension>,
    /// The upper-layer protocol.
    pub(crate) protocol: u8,
    /// 0 for other than TCP and UDP, and in fragments other than the first.
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    /// The octet with FIN, SYN, RST, ...; 0 for other than TCP.
    pub(crate) tcp_flags: u8,
    /// TCP's sequence number.
    pub(crate) sequence: u32,
    /// Octets behind the TCP or UDP header.
    pub(crate) data_length: usize,
    /// The upper-layer header and what is behind it, as far as it was captured.
    pub(crate) rest: Vec<u8>,
}

impl Packet {
    /// Its fragment header: offset in octets, and whether more follow.
    pub(crate) fn fragment(&self) -> Option<(u16, bool)> {
        let header = self.extensions.iter().find(|header| header.kind == FRAGMENT)?;
        let field = be16(&header.bytes, 2)?;
        Some((field & 0xfff8, field & 1 == 1))
    }

    /// The octets of all extension headers.
    pub(crate) fn extension_octets(&self) -> usize {
        self.extensions.iter().map(|header| header.bytes.len()).sum()
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{} -> {}:{} protocol {} tc {:02x} label {:05x} flags {:02x} data {}",
            self.src,
            self.src_port,
            self.dst,
            self.dst_port,
            self.protocol,
            self.traffic_class,
            self.label,
            self.tcp_flags,
            self.data_length,
        )?;
        self.vlans.iter().try_for_each(|(tpid, tci)| write!(f, " vlan {tpid:04x}/{tci:04x}"))?;
        self.extensions.iter().try_for_each(|h| write!(f, " [{}: {:02x?}]", h.kind, h.bytes))
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets))
}

/// Decodes a frame of `length` octets of which `frame` holds at least the headers.
/// `stripped` is the VLAN tag that the kernel took out of it. None if it is not
/// IPv6, or is malformed.
pub(crate) fn decode(
    link: Link,
    frame: &[u8],
    length: usize,
    stripped: Option<(u16, u16)>,
) -> Option<Packet> {
    let mut vlans = Vec::from_iter(stripped);
    let mut at = 0;
    if link == Link::Ethernet {
        at = 12;
        let mut ethertype = be16(frame, at)?;
        while matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            vlans.push((ethertype, be16(frame, at + 2)?));
            at += 4;
            ethertype = be16(frame, at)?;
        }
        if ethertype != ETHERTYPE_IPV6 {
            return None;
        }
        at += 2;
    }
    let first = be32(frame, at)?;
    if first >> 28 != 6 {
        return None;
    }
    let payload_length = usize::from(be16(frame, at + 4)?);
    let (src, dst) = (address(frame, at + 8)?, address(frame, at + 24)?);
    let mut protocol = *frame.get(at + 6)?;
    at += 40;
    let actual_length = length.checked_sub(at)?;
    let mut extensions = Vec::new();
    let mut later_fragment = false;
    while matches!(protocol, HOP_BY_HOP | DESTINATION | ROUTING | FRAGMENT) && !later_fragment {
        let size = match protocol {
            FRAGMENT => 8,
            _ => (usize::from(*frame.get(at + 1)?) + 1) * 8,
        };
        let bytes = frame.get(at..at + size)?.to_vec();
        later_fragment = protocol == FRAGMENT && be16(&bytes, 2)? & 0xfff8 != 0;
        let next = bytes[0];
        extensions.push(Extension { kind: protocol, bytes });
        (protocol, at) = (next, at + size);
    }
    #[allow(clippy::cast_possible_truncation)] // masked
    let traffic_class = (first >> 20 & 0xff) as u8;
    let mut packet = Packet {
        vlans,
        traffic_class,
        label: first & 0xf_ffff,
        payload_length,
        actual_length,
        src,
        dst,
        extensions,
        protocol,
        src_port: 0,
        dst_port: 0,
        tcp_flags: 0,
        sequence: 0,
        data_length: length.checked_sub(at)?,
        rest: frame.get(at..)?.to_vec(),
    };
    if matches!(protocol, TCP | UDP) && !later_fragment {
        packet.src_port = be16(frame, at)?;
        packet.dst_port = be16(frame, at + 2)?;
        let header = if protocol == TCP {
            packet.sequence = be32(frame, at + 4)?;
            packet.tcp_flags = *frame.get(at + 13)?;
            usize::from(*frame.get(at + 12)? >> 4) * 4
        } else {
            8
        };
        packet.data_length = packet.data_length.checked_sub(header)?;
    }
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    /// Traffic class ba, label 1003c.
    const IPV6: [u8; 4] = [0x6b, 0xa1, 0x00, 0x3c];

    fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = IPV6.to_vec();
        packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        packet.extend([next, 64]);
        packet.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(payload);
        packet
    }

    fn ethernet(types: &[u8], packet: &[u8]) -> Vec<u8> {
        [&MACS[..], types, packet].concat()
    }

    fn tcp(data: &[u8]) -> Vec<u8> {
        let header = [0x9c, 0x40, 0x04, 0x46, 1, 2, 3, 4, 0, 0, 0, 0, 0x60, 0x18, 1, 0];
        let rest = [0, 0, 0, 0, 2, 4, 5, 0xa0]; // checksum, urgent pointer, an option
        [&header[..], &rest, data].concat()
    }

    fn all(link: Link, frame: &[u8]) -> Packet {
        decode(link, frame, frame.len(), None).expect("decodes")
    }

    #[test]
    fn tcp_over_ethernet_is_decoded() {
        let frame = ethernet(&[0x86, 0xdd], &ipv6(TCP, &tcp(b"hello")));
        let packet = all(Link::Ethernet, &frame);
        assert_eq!((packet.traffic_class, packet.label), (0xba, 0x1_003c));
        assert_eq!((packet.src_port, packet.dst_port), (40_000, 1094));
        assert_eq!((packet.sequence, packet.tcp_flags), (0x0102_0304, 0x18));
        assert_eq!((packet.payload_length, packet.actual_length), (29, 29));
        assert_eq!((packet.data_length, &packet.rest[24..]), (5, &b"hello"[..]));
        assert_eq!(packet.src.to_string(), "fd00::1");
        assert_eq!(packet.dst.to_string(), "fd00::2");
        assert_eq!((packet.vlans.len(), packet.extensions.len()), (0, 0));
        assert_eq!(packet.fragment(), None);
    }

    #[test]
    fn extension_headers_are_kept_in_order() {
        let hop_by_hop = [DESTINATION, 0, 0x1e, 3, 0, 2, 15, 0];
        let destination = [UDP, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let udp = [0x9c, 0x40, 0x04, 0x46, 0, 11, 0, 0, 1, 2, 3];
        let payload = [&hop_by_hop[..], &destination, &udp].concat();
        let packet = all(Link::None, &ipv6(HOP_BY_HOP, &payload));
        let kinds: Vec<u8> = packet.extensions.iter().map(|header| header.kind).collect();
        assert_eq!(kinds, [HOP_BY_HOP, DESTINATION]);
        assert_eq!(packet.extensions[0].bytes, hop_by_hop);
        assert_eq!(packet.extensions[1].bytes, destination);
        assert_eq!(packet.extension_octets(), 24);
        assert_eq!((packet.protocol, packet.src_port, packet.data_length), (UDP, 40_000, 3));
    }

    #[test]
    fn vlan_tags_in_the_data_and_stripped_ones_are_listed() {
        let types = [0x88, 0xa8, 0, 7, 0x81, 0, 0x20, 5, 0x86, 0xdd];
        let frame = ethernet(&types, &ipv6(TCP, &tcp(&[])));
        assert_eq!(all(Link::Ethernet, &frame).vlans, [(0x88a8, 7), (0x8100, 0x2005)]);
        let frame = ethernet(&types[4..], &ipv6(TCP, &tcp(&[])));
        let packet = decode(Link::Ethernet, &frame, frame.len(), Some((0x88a8, 7))).unwrap();
        assert_eq!(packet.vlans, [(0x88a8, 7), (0x8100, 0x2005)]);
    }

    #[test]
    fn fragments_after_the_first_have_no_ports() {
        let first = [&[UDP, 0, 0, 1, 0, 0, 0, 9][..], &[0x9c, 0x40, 4, 70, 9, 9, 0, 0]].concat();
        let packet = all(Link::None, &ipv6(FRAGMENT, &first));
        assert_eq!((packet.fragment(), packet.src_port), (Some((0, true)), 40_000));
        let last = [&[UDP, 0, 5, 0xa0, 0, 0, 0, 9][..], &[0x9c, 0x40]].concat();
        let packet = all(Link::None, &ipv6(FRAGMENT, &last));
        assert_eq!((packet.fragment(), packet.src_port), (Some((0x5a0, false)), 0));
        assert_eq!((packet.protocol, packet.data_length), (UDP, 2));
    }

    #[test]
    fn a_frame_that_was_cut_keeps_its_length() {
        let frame = ethernet(&[0x86, 0xdd], &ipv6(TCP, &tcp(&[0; 1000])));
        let packet = decode(Link::Ethernet, &frame[..100], frame.len(), None).unwrap();
        assert_eq!((packet.actual_length, packet.data_length), (1024, 1000));
    }

    #[test]
    fn what_is_not_ipv6_or_is_malformed_is_none() {
        let frame = ethernet(&[0x86, 0xdd], &ipv6(TCP, &tcp(&[])));
        for length in 0..frame.len() - 4 {
            let cut = &frame[..length];
            assert_eq!(decode(Link::Ethernet, cut, length, None), None, "{length}");
        }
        let arp = ethernet(&[0x08, 0x06], &ipv6(TCP, &tcp(&[])));
        assert_eq!(decode(Link::Ethernet, &arp, arp.len(), None), None);
        assert_eq!(decode(Link::None, &[0x45; 60], 60, None), None);
    }
}
