//! Which flow an IPv6 packet belongs to (RFC 8200). Pure.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::flow::{FlowId, Protocol};

const HEADER: usize = 40;
/// More extension headers than a packet has.
const MOST_HEADERS: usize = 8;

/// The flow of a packet, which begins with its IPv6 header and may be cut. None: it is
/// not of TCP or UDP, or a fragment without ports, or malformed.
pub fn flow_of(packet: &[u8]) -> Option<FlowId> {
    if packet.first()? >> 4 != 6 {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).into())
    };
    let (src, dst) = (address(8)?, address(24)?);
    let (mut next, mut at) = (*packet.get(6)?, HEADER);
    for _ in 0..MOST_HEADERS {
        let protocol = match next {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => {
                next = *packet.get(at)?;
                at += 8 * (usize::from(*packet.get(at + 1)?) + 1);
                continue;
            }
            // A fragment, the first of which has the ports.
            44 if packet.get(at + 2..at + 4)? < &[0, 8] => {
                next = *packet.get(at)?;
                at += 8;
                continue;
            }
            _ => return None,
        };
        let port = |at: usize| -> Option<u16> {
            Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?))
        };
        let (src, dst) = (SocketAddr::new(src, port(at)?), SocketAddr::new(dst, port(at + 2)?));
        return FlowId::new(protocol, src, dst).ok();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        for last in [1, 2] {
            packet.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).octets());
        }
        packet.extend(rest);
        packet
    }

    #[test]
    fn the_flow_is_found_behind_extension_headers() {
        const PORTS: [u8; 4] = [0x9c, 0x40, 0x04, 0x46];
        let flow = |protocol| format!("{protocol} [2001:db8::1]:40000 -> [2001:db8::2]:1094");
        let options = |next| [next, 0, 0x1e, 3, 0, 2, 16, 0];
        for (next, rest, protocol) in [
            (6, PORTS.to_vec(), "tcp"),
            (17, PORTS.to_vec(), "udp"),
            (0, [&options(6)[..], &PORTS].concat(), "tcp"),
            (0, [&options(60)[..], &options(17), &PORTS].concat(), "udp"),
            // Two units long, then the first fragment.
            (60, [&[44, 1][..], &[0; 14], &[6, 0, 0, 1, 0, 0, 0, 9], &PORTS].concat(), "tcp"),
        ] {
            let found = flow_of(&packet(next, &rest)).expect("a flow").to_string();
            assert_eq!(found, flow(protocol));
        }
    }

    #[test]
    fn what_has_no_ports_or_lies_has_no_flow() {
        let later = [&[6, 0, 0, 8, 0, 0, 0, 9][..], &[1, 2, 3, 4]].concat();
        let chain: Vec<u8> = [60, 0, 0, 0, 0, 0, 0, 0].repeat(40);
        for (next, rest) in [
            (58, vec![1; 20]),
            (6, vec![1, 2, 3]),
            (6, vec![0, 0, 1, 1]),
            (44, later),
            (0, vec![6, 255, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]),
            (60, chain),
            (0, vec![6]),
        ] {
            assert_eq!(flow_of(&packet(next, &rest)), None, "{next} {rest:?}");
        }
        let whole = packet(6, &[1; 20]);
        assert!((0..44).all(|length| flow_of(&whole[..length]).is_none()));
        assert_eq!(flow_of(&[0x45; 60]), None);
    }
}
