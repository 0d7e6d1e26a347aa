//! Frames as the test writes them, octet by octet, sent through an AF_PACKET socket
//! (packet(7)), and their parts.

use std::net::SocketAddrV6;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    sendto, socket, AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike,
};

use super::netns::Namespace;
use super::packet::{TCP, UDP};

/// A socket that sends whole frames through a device.
pub(crate) struct RawSender {
    socket: OwnedFd,
    device: LinkAddr,
}

impl RawSender {
    pub(crate) fn new(namespace: &Namespace, device: &str) -> Self {
        namespace.enter(|| {
            let kind = (AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC);
            let socket = socket(kind.0, kind.1, kind.2, None).expect("a socket");
            let link = getifaddrs()
                .expect("the addresses")
                .filter(|interface| interface.interface_name == device)
                .find_map(|interface| interface.address?.as_link_addr().copied())
                .expect("the device's link address");
            assert_eq!(link.family(), Some(AddressFamily::Packet));
            RawSender { socket, device: link }
        })
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.device, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }
}

/// An Ethernet header with these VLAN tags, outermost first, in front of an IPv6
/// packet.
pub(crate) fn ethernet(vlans: &[(u16, u16)], packet: &[u8]) -> Vec<u8> {
    // Both are locally administered; nobody has the first.
    let mut frame = vec![0x02, 0, 0, 0, 0, 0xfe, 0x02, 0, 0, 0, 0, 0xfd];
    for (tpid, tci) in vlans {
        frame.extend(tpid.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend(0x86dd_u16.to_be_bytes());
    frame.extend(packet);
    frame
}

/// An IPv6 packet with hop limit 64. `first` is the number of its first header.
pub(crate) fn ipv6(
    traffic_class: u8,
    from: SocketAddrV6,
    to: SocketAddrV6,
    first: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = (6 << 28 | u32::from(traffic_class) << 20).to_be_bytes().to_vec();
    packet.extend(u16::try_from(payload.len()).expect("a length").to_be_bytes());
    packet.extend([first, 64]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(payload);
    packet
}

/// A TCP segment (an ACK) or a UDP datagram with these data. Its checksum is not
/// right: nobody looks at it.
pub(crate) fn segment(protocol: u8, from: SocketAddrV6, to: SocketAddrV6, data: &[u8]) -> Vec<u8> {
    let mut segment = from.port().to_be_bytes().to_vec();
    segment.extend(to.port().to_be_bytes());
    match protocol {
        TCP => segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0xde, 0xad, 0, 0]),
        UDP => {
            segment.extend(u16::try_from(8 + data.len()).expect("a length").to_be_bytes());
            segment.extend([0xde, 0xad]);
        }
        other => panic!("no ports in protocol {other}"),
    }
    segment.extend(data);
    segment
}
