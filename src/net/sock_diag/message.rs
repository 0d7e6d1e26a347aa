//! What the kernel says of a socket: struct inet_diag_msg and its attributes
//! (linux/inet_diag.h). Pure; no length that arrives is trusted.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::flow::{FlowId, Protocol};
use crate::net::attributes::{u32_at, u64_at, Attributes};
use crate::net::tcp_info::TcpInfo;

/// Of struct inet_diag_msg.
const FIXED: usize = 72;

/// INET_DIAG_INFO, of TCP: struct tcp_info.
const INFO: u16 = 2;
/// INET_DIAG_CONG.
const CONGESTION: u16 = 4;
/// INET_DIAG_SKV6ONLY.
const ONLY_V6: u16 = 11;
/// INET_DIAG_CGROUP_ID.
const CGROUP: u16 = 21;

/// INET_DIAG_NOCOOKIE: any socket.
pub const NO_COOKIE: u64 = u64::MAX;

/// The family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Family::V4, Family::V6];

    pub(super) fn number(self) -> u8 {
        match self {
            Family::V4 => 2,
            Family::V6 => 10,
        }
    }
}

/// The state of a socket, as the kernel numbers them (net/tcp_states.h). A UDP socket
/// is established if it is connected, and closed if it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(pub u8);

impl State {
    /// A connection, or a connected socket of UDP.
    pub const ESTABLISHED: Self = State(1);
    /// Connecting.
    pub const SYN_SENT: Self = State(2);
    /// Half open: has no socket of its own yet, hence no inode and no owner.
    pub const SYN_RECEIVED: Self = State(3);
    /// Closed on this side.
    pub const FIN_WAIT_1: Self = State(4);
    /// The same, and the other side knows.
    pub const FIN_WAIT_2: Self = State(5);
    /// Over; has no inode and no tcp_info any more.
    pub const TIME_WAIT: Self = State(6);
    /// Not connected, or, of TCP, closed.
    pub const CLOSED: Self = State(7);
    /// Closed on the other side.
    pub const CLOSE_WAIT: Self = State(8);
    /// Closed on both sides, the other side first.
    pub const LAST_ACK: Self = State(9);
    /// Listening.
    pub const LISTEN: Self = State(10);
    /// Closed on both sides at once.
    pub const CLOSING: Self = State(11);

    /// Whether a connection is open on this side at least halfway: data may still be
    /// sent, or the other side has closed and this one has not.
    pub fn is_open(self) -> bool {
        [State::ESTABLISHED, State::SYN_SENT, State::CLOSE_WAIT].contains(&self)
    }
}

impl fmt::Display for State {
    /// As `ss` names them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 12] = [
            "UNKNOWN",
            "ESTAB",
            "SYN-SENT",
            "SYN-RECV",
            "FIN-WAIT-1",
            "FIN-WAIT-2",
            "TIME-WAIT",
            "UNCONN",
            "CLOSE-WAIT",
            "LAST-ACK",
            "LISTEN",
            "CLOSING",
        ];
        f.write_str(NAMES.get(usize::from(self.0)).unwrap_or(&NAMES[0]))
    }
}

/// A set of states: bit n stands for state n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States(pub u32);

impl States {
    /// Every state.
    pub const ALL: Self = States(u32::MAX);
    /// Those of [`State::is_open`], without those that still connect: what carries data.
    pub const OPEN: Self = States(1 << 1 | 1 << 8);

    /// The set of these states.
    pub fn of(states: &[State]) -> Self {
        States(states.iter().fold(0, |set, state| set | 1 << (state.0 & 31)))
    }

    /// Whether the state is in it.
    pub fn contains(self, state: State) -> bool {
        self.0 >> (state.0 & 31) & 1 == 1
    }
}

/// A socket, as the kernel tells of it.
#[derive(Clone, Copy, Debug)]
pub struct Socket<'a> {
    /// Of the query.
    pub protocol: Protocol,
    /// Its own family. One of IPv6 may carry IPv4: then its addresses are IPv4-mapped.
    pub family: Family,
    /// Its state.
    pub state: State,
    /// Its own address and port.
    pub local: SocketAddr,
    /// The other end; port 0 if it is not connected.
    pub remote: SocketAddr,
    /// Who made it; 0, as for root, in states in which nobody owns it (no inode).
    pub uid: u32,
    /// Its number in the file system of sockets; 0 if no process holds it.
    pub inode: u32,
    /// Its number, never given twice until the next boot.
    pub cookie: u64,
    /// The interface that it is bound to; 0: none.
    pub interface: u32,
    /// Octets received that nobody has read, a FIN counted as one; of one that listens:
    /// connections that wait.
    pub unread: u32,
    payload: &'a [u8],
}

impl<'a> Socket<'a> {
    /// Reads a reply, which follows the header of a netlink message. None: it is cut, or
    /// of no family of IP.
    pub fn decode(protocol: Protocol, payload: &'a [u8]) -> Option<Self> {
        let fixed: &[u8; FIXED] = payload.get(..FIXED)?.try_into().ok()?;
        let family = Family::ALL.into_iter().find(|family| family.number() == fixed[0])?;
        let port = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
        let cookie = u64::from(u32_at(fixed, 48)?) << 32 | u64::from(u32_at(fixed, 44)?);
        Some(Socket {
            protocol,
            family,
            state: State(fixed[1]),
            local: SocketAddr::new(read_address(family, &fixed[8..24])?, port(4)),
            remote: SocketAddr::new(read_address(family, &fixed[24..40])?, port(6)),
            uid: u32_at(fixed, 64)?,
            inode: u32_at(fixed, 68)?,
            cookie,
            interface: u32_at(fixed, 40)?,
            unread: u32_at(fixed, 56)?,
            payload,
        })
    }

    /// The id of its control group (of version 2); None before 5.8, and in states in
    /// which it belongs to none.
    pub fn cgroup(&self) -> Option<u64> {
        u64_at(self.find(CGROUP)?, 0)
    }

    /// What TCP knows of the connection, if that was asked for and there is one.
    pub fn tcp_info(&self) -> Option<TcpInfo<'a>> {
        // UDP has something else under that number.
        self.find(INFO).filter(|_| self.protocol == Protocol::Tcp).map(TcpInfo)
    }

    /// The name of its congestion control, if that was asked for.
    pub fn congestion(&self) -> Option<&'a str> {
        let name = self.find(CONGESTION)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        std::str::from_utf8(&name[..end]).ok()
    }

    /// Whether it takes IPv6 only; told of those that listen or are not connected.
    pub fn only_ipv6(&self) -> Option<bool> {
        self.find(ONLY_V6)?.first().map(|flag| *flag != 0)
    }

    /// Whether it is a socket of IPv6 that carries IPv4.
    pub fn is_mapped(&self) -> bool {
        matches!(self.local.ip(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some())
    }

    /// The flow whose source it is, with IPv4-mapped addresses as IPv4.
    ///
    /// # Errors
    /// It is not connected.
    pub fn flow(&self) -> Result<FlowId, String> {
        FlowId::new(self.protocol, self.local, self.remote)
    }

    /// Whether it is the socket of that flow's source.
    pub fn is_of(&self, flow: &FlowId) -> bool {
        self.flow().as_ref() == Ok(flow)
    }

    /// What the kernel says of any socket ([`crate::net::tcp_info::DiagMessage`]).
    pub fn message(&self) -> &'a [u8] {
        &self.payload[..FIXED]
    }

    /// All that the kernel says of it besides, as attributes (INET_DIAG_*).
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes(&self.payload[FIXED..])
    }

    fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.attributes().find(kind)
    }
}

fn read_address(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => <[u8; 4]>::try_from(bytes.get(..4)?).ok().map(|ip| Ipv4Addr::from(ip).into()),
        Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(|ip| Ipv6Addr::from(ip).into()),
    }
}

/// Writes an address to the front of `bytes`, which has room for either.
pub(super) fn write_address(bytes: &mut [u8], address: IpAddr) {
    match address {
        IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes[..16].copy_from_slice(&address.octets()),
    }
}
