//! The network interfaces of this namespace and their IPv6 addresses (rtnetlink(7),
//! RTM_GETLINK and RTM_GETADDR).

use std::net::Ipv6Addr;

use super::netlink::{u16_at, u32_at, Attributes, Message, Request, Socket};
use crate::error::Result;

/// struct ifinfomsg.
const FIXED: usize = 16;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GSO_MAX_SIZE: u16 = 41;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;

/// struct ifaddrmsg.
const ADDRESS_FIXED: usize = 8;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Of the flags in ifaddrmsg: another host has the address (RFC 4862 section 5.4).
const IFA_F_DADFAILED: u8 = 0x08;

/// An interface as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number in this namespace.
    pub index: u32,
    /// Its name, up to 15 octets.
    pub name: String,
    /// ARPHRD_*: what its packets begin with.
    pub arphrd: u16,
    /// Largest packet, in octets, without the link's own header.
    pub mtu: u32,
    /// Largest packet of IPv6 that the kernel segments on the way out, in octets
    /// without the link's own header; 0 if it does not say (before 4.16).
    pub gso_max_size: u32,
    /// IFF_*.
    pub flags: u32,
    /// What made it, such as "veth" or "bond"; "" for hardware and the loopback.
    pub kind: String,
    /// What it is a port of, such as "bridge" or "bond"; "" if of nothing.
    pub port_of: String,
}

/// All interfaces, by index.
///
/// # Errors
/// The kernel refuses.
pub fn list(socket: &mut Socket) -> Result<Vec<Interface>> {
    let request = Request::new(libc::RTM_GETLINK, 0).fixed(&[0; FIXED]);
    let messages =
        socket.dump(&request).map_err(|failure| failure.because("cannot list interfaces"))?;
    Ok(messages.iter().filter_map(parse).collect())
}

/// None: not about an interface, or cut.
fn parse(message: &Message) -> Option<Interface> {
    if message.kind != libc::RTM_NEWLINK {
        return None;
    }
    let number = |kind| message.attributes(FIXED).find(kind).and_then(|value| u32_at(value, 0));
    let info = message.attributes(FIXED).find(IFLA_LINKINFO).unwrap_or_default();
    Some(Interface {
        arphrd: u16_at(&message.payload, 2)?,
        index: u32_at(&message.payload, 4)?,
        flags: u32_at(&message.payload, 8)?,
        name: message.attributes(FIXED).find_text(IFLA_IFNAME)?,
        mtu: number(IFLA_MTU).unwrap_or(0),
        gso_max_size: number(IFLA_GSO_MAX_SIZE).unwrap_or(0),
        kind: Attributes(info).find_text(IFLA_INFO_KIND).unwrap_or_default(),
        port_of: Attributes(info).find_text(IFLA_INFO_SLAVE_KIND).unwrap_or_default(),
    })
}

/// The IPv6 addresses of all interfaces, each with its interface's index. One that
/// turned out to be another host's is left out.
///
/// # Errors
/// The kernel refuses.
pub fn ipv6_addresses(socket: &mut Socket) -> Result<Vec<(u32, Ipv6Addr)>> {
    let mut fixed = [0; ADDRESS_FIXED];
    fixed[0] = AF_INET6;
    let messages = socket
        .dump(&Request::new(libc::RTM_GETADDR, 0).fixed(&fixed))
        .map_err(|failure| failure.because("cannot list addresses"))?;
    Ok(messages.iter().filter_map(parse_address).collect())
}

/// libc::AF_INET6, as ifaddrmsg has it.
const AF_INET6: u8 = 10;

/// None: not an IPv6 address, or cut, or not usable.
fn parse_address(message: &Message) -> Option<(u32, Ipv6Addr)> {
    let &[family, _, flags, ..] = &message.payload[..] else {
        return None;
    };
    if message.kind != libc::RTM_NEWADDR || family != AF_INET6 || flags & IFA_F_DADFAILED != 0 {
        return None;
    }
    let attributes = message.attributes(ADDRESS_FIXED);
    // On a link between two points the other number is that of the far end.
    let octets = attributes.clone().find(IFA_LOCAL).or_else(|| attributes.find(IFA_ADDRESS))?;
    let octets: [u8; 16] = octets.try_into().ok()?;
    Some((u32_at(&message.payload, 4)?, octets.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_listed() {
        let all = list(&mut Socket::route().unwrap()).unwrap();
        let lo = all.iter().find(|interface| interface.name == "lo").unwrap();
        assert_eq!((lo.index, lo.arphrd, lo.kind.as_str()), (1, 772, ""));
        assert!(lo.mtu >= 1280 && lo.flags & 0x8 != 0, "{lo:?}");
        assert!(lo.gso_max_size >= 1280, "{lo:?}");
    }

    #[test]
    fn a_cut_message_is_no_interface() {
        let whole = [&[0, 0, 4, 3, 1, 0, 0, 0][..], &[0; 8], &[7, 0, 3, 0, b'l', b'o', 0, 0]];
        let whole = Message { kind: libc::RTM_NEWLINK, payload: whole.concat() };
        assert_eq!(parse(&whole).unwrap().name, "lo");
        for length in 0..whole.payload.len() - 1 {
            let cut = Message { payload: whole.payload[..length].to_vec(), ..whole };
            assert_eq!(parse(&cut), None, "{length}");
        }
    }

    #[test]
    fn a_local_address_is_told_from_the_far_ends() {
        let (near, far) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let attribute =
            |kind: u8, address: Ipv6Addr| [&[20, 0, kind, 0][..], &address.octets()].concat();
        let message = |flags: u8, attributes: &[Vec<u8>]| {
            let fixed = [&[10, 64, flags, 0][..], &7_u32.to_ne_bytes()].concat();
            Message { kind: libc::RTM_NEWADDR, payload: [fixed, attributes.concat()].concat() }
        };
        let both = message(0, &[attribute(1, far), attribute(2, near)]);
        assert_eq!(parse_address(&both), Some((7, near)));
        assert_eq!(parse_address(&message(0, &[attribute(1, near)])), Some((7, near)));
        assert_eq!(parse_address(&message(8, &[attribute(1, near)])), None, "a duplicate");
        assert_eq!(parse_address(&message(0, &[])), None);
        for length in 0..28 {
            let payload = message(0, &[attribute(1, near)]).payload[..length].to_vec();
            assert_eq!(parse_address(&Message { payload, ..both }), None, "{length}");
        }
    }

    #[test]
    fn the_addresses_of_this_host_are_listed() {
        let addresses = ipv6_addresses(&mut Socket::route().unwrap()).unwrap();
        // A host may have no IPv6; whatever it has is on an interface.
        let all = list(&mut Socket::route().unwrap()).unwrap();
        for (index, address) in addresses {
            assert!(index > 0 && !address.is_unspecified(), "{address}");
            assert!(address != Ipv6Addr::LOCALHOST || index == 1, "{all:?}");
        }
    }
}
