//! Builds packets from layers, for the tests that put one in and look at what
//! comes out. Independent of the daemon's own code.

/// Ethernet addresses of the packets.
const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const ESP: u8 = 50;
pub(crate) const AH: u8 = 51;
pub(crate) const NO_NEXT_HEADER: u8 = 59;
pub(crate) const DESTINATION: u8 = 60;
pub(crate) const MOBILITY: u8 = 135;

/// An IPv6 packet in the making.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    /// EtherType and TCI of each VLAN tag in the data, outermost first.
    pub(crate) tags: Vec<(u16, u16)>,
    /// Version, traffic class and flow label.
    pub(crate) version: u8,
    pub(crate) traffic_class: u8,
    pub(crate) label: u32,
    /// Set if the payload length field is to say something else.
    pub(crate) payload_len: Option<u16>,
    pub(crate) src: [u8; 16],
    pub(crate) dst: [u8; 16],
    /// Next-header number and bytes of each extension header; the first byte of
    /// each is filled in when the packet is put together.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    pub(crate) protocol: u8,
    /// The transport header and what follows.
    pub(crate) transport: Vec<u8>,
}

/// Source and destination of the packets, unless said otherwise.
pub(crate) const SRC: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub(crate) const DST: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
pub(crate) const SRC_PORT: u16 = 40_000;
pub(crate) const DST_PORT: u16 = 1094;

impl Packet {
    fn new(protocol: u8, transport: Vec<u8>) -> Self {
        Packet {
            tags: Vec::new(),
            version: 6,
            traffic_class: 0,
            label: 0,
            payload_len: None,
            src: SRC,
            dst: DST,
            extensions: Vec::new(),
            protocol,
            transport,
        }
    }

    /// A segment with a header of 20 octets and so much data.
    pub(crate) fn tcp(data: usize) -> Self {
        Self::tcp_with(0x10, &[], data)
    }

    /// A segment with these flags and options (a multiple of four octets).
    pub(crate) fn tcp_with(flags: u8, options: &[u8], data: usize) -> Self {
        assert_eq!(options.len() % 4, 0);
        let mut bytes = Vec::new();
        bytes.extend(SRC_PORT.to_be_bytes());
        bytes.extend(DST_PORT.to_be_bytes());
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 2]);
        let words = u8::try_from(5 + options.len() / 4).unwrap();
        bytes.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend(options);
        bytes.extend(payload(data));
        Self::new(TCP, bytes)
    }

    /// A datagram with so much data.
    pub(crate) fn udp(data: usize) -> Self {
        let mut bytes = Vec::new();
        bytes.extend(SRC_PORT.to_be_bytes());
        bytes.extend(DST_PORT.to_be_bytes());
        bytes.extend(u16::try_from(data + 8).unwrap().to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(payload(data));
        Self::new(UDP, bytes)
    }

    /// A packet of another protocol with these octets behind the IPv6 header.
    pub(crate) fn other(protocol: u8, bytes: &[u8]) -> Self {
        Self::new(protocol, bytes.to_vec())
    }

    pub(crate) fn tag(mut self, ether_type: u16, tci: u16) -> Self {
        self.tags.push((ether_type, tci));
        self
    }

    pub(crate) fn extension(mut self, number: u8, bytes: &[u8]) -> Self {
        assert!(bytes.len() % 4 == 0, "whole words");
        self.extensions.push((number, bytes.to_vec()));
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The upper-layer checksum of RFC 8200 section 8.1 over the transport bytes
    /// as they are; 0 if the field in it is right.
    pub(crate) fn checksum(&self) -> u16 {
        let length = u32::try_from(self.transport.len()).unwrap().to_be_bytes();
        let mut bytes = [self.src, self.dst].concat();
        bytes.extend(length);
        bytes.extend([0, 0, 0, self.protocol]);
        bytes.extend(&self.transport);
        if bytes.len() % 2 == 1 {
            bytes.push(0);
        }
        let mut sum: u32 = 0;
        for pair in bytes.chunks_exact(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    /// The same with the right checksum at `offset` of the transport bytes.
    pub(crate) fn checksummed(mut self, offset: usize) -> Self {
        self.transport[offset..offset + 2].fill(0);
        let sum = self.checksum();
        self.transport[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
        self
    }

    /// The packet from the IPv6 header on.
    pub(crate) fn ip(&self) -> Vec<u8> {
        let length = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
            + self.transport.len();
        let length = self.payload_len.unwrap_or_else(|| u16::try_from(length).unwrap());
        let word = u32::from(self.version) << 28 | u32::from(self.traffic_class) << 20 | self.label;
        let mut numbers: Vec<u8> = self.extensions.iter().map(|(number, _)| *number).collect();
        numbers.push(self.protocol);
        let mut bytes = word.to_be_bytes().to_vec();
        bytes.extend(length.to_be_bytes());
        bytes.extend([numbers[0], 64]);
        bytes.extend(self.src);
        bytes.extend(self.dst);
        for ((_, header), next) in self.extensions.iter().zip(&numbers[1..]) {
            bytes.push(*next);
            bytes.extend(&header[1..]);
        }
        bytes.extend(&self.transport);
        bytes
    }

    /// The packet as an Ethernet frame.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut bytes = MACS.to_vec();
        for (ether_type, tci) in &self.tags {
            bytes.extend(ether_type.to_be_bytes());
            bytes.extend(tci.to_be_bytes());
        }
        bytes.extend([0x86, 0xdd]);
        bytes.extend(self.ip());
        bytes
    }
}

/// Data that does not repeat with the period of anything.
fn payload(length: usize) -> impl Iterator<Item = u8> {
    (0..length).map(|at| u8::try_from(at * 31 % 251).unwrap())
}

/// An Ethernet frame of something that is not IPv6.
pub(crate) fn frame_of(ether_type: u16, bytes: &[u8]) -> Vec<u8> {
    let mut frame = MACS.to_vec();
    frame.extend(ether_type.to_be_bytes());
    frame.extend(bytes);
    frame
}

/// An options header (hop-by-hop or destination) with one PadN option in it.
pub(crate) const PADDING_OPTIONS: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
