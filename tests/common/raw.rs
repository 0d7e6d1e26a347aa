//! Frames as the test writes them, octet by octet, sent through an AF_PACKET socket
//! (packet(7)), and their parts.

use std::net::SocketAddrV6;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{
    sendto, setsockopt, socket, AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike,
};
// The first expands to the others.
use nix::{setsockopt_impl, sockopt_impl};

use super::netns::Namespace;
use super::packet::{TCP, UDP};

/// A socket that sends whole frames through a device.
pub(crate) struct RawSender {
    socket: OwnedFd,
    device: LinkAddr,
}

impl RawSender {
    pub(crate) fn new(namespace: &Namespace, device: &str) -> Self {
        let (socket, device) = sending_socket(namespace, device);
        RawSender { socket, device }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.device, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }
}

sockopt_impl!(
    /// A virtio-net header in front of each frame (virtio 1.2, section 5.1.6).
    VnetHeader,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    libc::c_int
);

/// A socket that sends frames which the kernel, or the device, cuts into segments.
pub(crate) struct SuperSender(RawSender);

impl SuperSender {
    pub(crate) fn new(namespace: &Namespace, device: &str) -> Self {
        let sender = RawSender::new(namespace, device);
        setsockopt(&sender.socket, VnetHeader, &1).expect("PACKET_VNET_HDR");
        SuperSender(sender)
    }

    /// Sends a frame that ends in a transport header (at `transport`, of [`segment`])
    /// and data, to be cut into pieces of `size` octets of data.
    pub(crate) fn send(&self, mut frame: Vec<u8>, protocol: u8, transport: usize, size: u16) {
        const NEEDS_CHECKSUM: u8 = 1;
        let (kind, field, header) = match protocol {
            TCP => (4, 16, 20),
            UDP => (5, 6, 8),
            other => panic!("protocol {other} is not cut"),
        };
        // The sum over the pseudo header; who cuts adds the rest.
        let length = u32::try_from(frame.len() - transport).expect("small").to_be_bytes();
        let addresses = &frame[transport - 32..transport];
        let sum = sum(&[addresses, &length, &[0, 0, 0, protocol]].concat());
        frame[transport + field..transport + field + 2].copy_from_slice(&sum.to_be_bytes());
        let number = |value: usize| u16::try_from(value).expect("small");
        let lengths = [number(transport + header), size, number(transport), number(field)];
        let mut bytes = vec![NEEDS_CHECKSUM, kind];
        lengths.iter().for_each(|length| bytes.extend(length.to_ne_bytes()));
        bytes.extend(frame);
        self.0.send(&bytes);
    }
}

/// The sum of RFC 1071, not inverted.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        _ => u32::from(pair[0]) << 8,
    });
    let fold = |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    };
    u16::try_from(words.fold(0, fold)).expect("folded")
}

/// A socket that captures nothing, and the device's address for it.
pub(super) fn sending_socket(namespace: &Namespace, device: &str) -> (OwnedFd, LinkAddr) {
    namespace.enter(|| {
        let kind = (AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(kind.0, kind.1, kind.2, None).expect("a socket");
        let link = getifaddrs()
            .expect("the addresses")
            .filter(|interface| interface.interface_name == device)
            .find_map(|interface| interface.address?.as_link_addr().copied())
            .expect("the device's link address");
        assert_eq!(link.family(), Some(AddressFamily::Packet));
        (socket, link)
    })
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
