//! The network interfaces of this namespace (rtnetlink(7), RTM_GETLINK).

use super::netlink::{u16_at, u32_at, Message, Request, Socket};
use crate::error::Result;

/// struct ifinfomsg.
const FIXED: usize = 16;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GSO_MAX_SIZE: u16 = 41;
const IFLA_INFO_KIND: u16 = 1;

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
        kind: super::netlink::Attributes(info).find_text(IFLA_INFO_KIND).unwrap_or_default(),
    })
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
}
