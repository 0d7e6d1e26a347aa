//! Lists the sockets of TCP and UDP that this host has (sock_diag(7)). Used by the
//! thread that owns the [`Diag`], which holds the netlink socket.
//!
//! A [`Query`] is one request: sockets of one protocol and one family or all, in chosen states, of
//! which the kernel can leave out those that a [`Filter`] refuses. Sockets are borrowed
//! from the reply: nothing is allocated for one.
//!
//! A dump is not of one moment. The kernel walks its tables piece by piece, and while
//! it rests between two pieces a socket may come, go, or move to where the walk has been.
//! A socket that goes makes the kernel miss another one of the same bucket, and it does not
//! say so. So what a dump lacks need not be gone: ask for it by name
//! ([`Diag::look_up`]), or wait for the next dump, before anything ends.

mod ends;
mod filter;
mod message;
#[cfg(test)]
mod ss_tests;
#[cfg(test)]
mod tests;

use nix::errno::Errno;

pub use ends::Ends;
pub use filter::{Condition, Filter};
pub use message::{Family, Socket, State, States, NO_COOKIE};

pub use super::tcp_info::TcpInfo;

use super::netlink::{self, Failure, Outcome, Request};
use crate::error::Error;
use crate::flow::{FlowId, Protocol};

/// SOCK_DIAG_BY_FAMILY: request and replies.
const BY_FAMILY: u16 = 20;
/// TCPDIAG_GETSOCK, the older request, and its replies: the sockets of TCP, of all families.
const OF_TCP: u16 = 18;
/// INET_DIAG_REQ_BYTECODE: the attribute of a request that is the filter.
const BYTECODE: u16 = 1;

/// What the kernel is to say of each socket besides what costs nothing; the sum of what
/// is wanted. (The control group comes by itself, from 5.8 on.)
pub mod extension {
    /// struct inet_diag_meminfo.
    pub const MEMORY: u8 = 1;
    /// struct tcp_info ([`super::Socket::tcp_info`]). Makes a dump twice as dear.
    pub const INFO: u8 = 1 << 1;
    /// The congestion control's name ([`super::Socket::congestion`]).
    pub const CONGESTION: u8 = 1 << 3;
    /// Numbers by SK_MEMINFO_*, among which are those of [`MEMORY`].
    pub const SOCKET_MEMORY: u8 = 1 << 6;
}

/// Which sockets.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The sockets' own family: an IPv4-mapped connection is one of IPv6. None: any, which of
    /// TCP costs one walk through the kernel's table instead of two.
    pub family: Option<Family>,
    /// In which states.
    pub states: States,
    /// Of [`extension`].
    pub extensions: u8,
    /// Which of those to leave out already in the kernel.
    pub filter: Option<&'a Filter>,
}

/// How much of what was asked for was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Coverage {
    /// All, with the proviso that the module names.
    Whole,
    /// The kernel says that it changed on the way, or it ran out of memory. What was
    /// told is true; nothing must be concluded from what was not.
    Partial,
}

/// A connection to sock_diag, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Diag {
    /// None after a failure in the middle of a reply, whose rest nobody wants.
    socket: Option<netlink::Socket>,
    /// Whether the kernel is known to tell of sockets of TCP, and of UDP.
    tells: [bool; 2],
}

impl Diag {
    /// A connection.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open() -> Result<Self, Error> {
        Ok(Diag { socket: Some(netlink::Socket::sock_diag()?), tells: [false; 2] })
    }

    /// Tells of each socket that the query asks for.
    ///
    /// # Errors
    /// The kernel refuses: ENOENT if it has no tcp_diag or udp_diag, EINVAL if it does not
    /// know an instruction of the filter. Some sockets may have been told before.
    pub fn dump(
        &mut self,
        query: &Query<'_>,
        mut take: impl FnMut(&Socket<'_>),
    ) -> Outcome<Coverage> {
        self.dump_some(query, |sockets| sockets.iter().for_each(&mut take))
    }

    /// The same, but tells of as many sockets at a time as the kernel does, some hundreds. Who
    /// looks each up in a table has them all at hand: their ways to memory overlap.
    ///
    /// # Errors
    /// As for [`Diag::dump`].
    pub fn dump_some(
        &mut self,
        query: &Query<'_>,
        mut take: impl FnMut(&[Socket<'_>]),
    ) -> Outcome<Coverage> {
        if query.family.is_some() {
            return self.dump_family(query, take);
        }
        if query.protocol == Protocol::Tcp {
            let outcome = self.dump_by(OF_TCP, &query.fixed_of_tcp(), query, &mut take);
            // A kernel without it has the other one. (Of a filter that it does not know it
            // says the same.)
            let is_unknown =
                |failure: &Failure| matches!(failure.errno, Errno::EINVAL | Errno::EOPNOTSUPP);
            if !outcome.as_ref().is_err_and(is_unknown) {
                return outcome;
            }
        }
        let mut coverage = Coverage::Whole;
        for family in Family::ALL {
            let query = Query { family: Some(family), ..*query };
            if self.dump_family(&query, &mut take)? == Coverage::Partial {
                coverage = Coverage::Partial;
            }
        }
        Ok(coverage)
    }

    fn dump_family(
        &mut self,
        query: &Query<'_>,
        take: impl FnMut(&[Socket<'_>]),
    ) -> Outcome<Coverage> {
        self.dump_by(BY_FAMILY, &query.fixed(None, NO_COOKIE), query, take)
    }

    fn dump_by(
        &mut self,
        kind: u16,
        fixed: &[u8],
        query: &Query<'_>,
        mut take: impl FnMut(&[Socket<'_>]),
    ) -> Outcome<Coverage> {
        let mut request = Request::new(kind, 0).fixed(fixed);
        if let Some(filter) = query.filter {
            request = request.attribute(BYTECODE, filter.bytecode());
        }
        let outcome = self.socket()?.dump_each(&request, |told| {
            let mut sockets = Vec::with_capacity(told.len());
            let told = told.iter().filter(|(found, _)| *found == kind);
            sockets.extend(told.filter_map(|(_, told)| Socket::decode(query.protocol, told)));
            take(&sockets);
        });
        match outcome {
            Ok(true) => Ok(Coverage::Whole),
            Ok(false) => Ok(Coverage::Partial),
            Err(failure) => {
                self.socket = None;
                self.tells = [false; 2];
                // The reader was too slow, or there was no memory for the next piece.
                let partial = matches!(failure.errno, Errno::ENOBUFS | Errno::ENOMEM);
                if partial {
                    Ok(Coverage::Partial)
                } else {
                    Err(failure)
                }
            }
        }
    }

    /// Tells of the socket of that flow, whose source is this host, if there is one:
    /// returns whether there is. With a `cookie` (or [`NO_COOKIE`]) it is that very socket
    /// and not another one that got its ports. One that is bound to an interface is found only
    /// by that `interface` ([`Socket::interface`]); others are found by any, and by 0.
    ///
    /// Costs about a microsecond, however many sockets there are. States and filter of a
    /// query do not apply.
    ///
    /// # Errors
    /// As for [`Diag::dump`].
    pub fn look_up(
        &mut self,
        flow: &FlowId,
        cookie: u64,
        interface: u32,
        extensions: u8,
        mut take: impl FnMut(&Socket<'_>),
    ) -> Outcome<bool> {
        let query = Query {
            protocol: flow.protocol(),
            family: Some(if flow.is_ipv6() { Family::V6 } else { Family::V4 }),
            states: States::ALL,
            extensions,
            filter: None,
        };
        let mut fixed = query.fixed(Some(flow), cookie);
        fixed[44..48].copy_from_slice(&interface.to_ne_bytes());
        let request = Request::new(BY_FAMILY, 0).fixed(&fixed);
        let mut found = false;
        let outcome = self.socket()?.get(&request, |kind, payload| {
            let socket = Socket::decode(query.protocol, payload).filter(|_| kind == BY_FAMILY);
            // Where there is no such connection, but a socket that listens or is bound
            // to the source, the kernel tells of that one.
            if let Some(socket) = socket.filter(|socket| socket.is_of(flow)) {
                found = true;
                take(&socket);
            }
        });
        match outcome {
            Ok(()) => Ok(found),
            // Another one has those ports now.
            Err(Failure { errno: Errno::ESTALE, .. }) => Ok(false),
            // There is no such socket, or nobody who knows.
            Err(Failure { errno: Errno::ENOENT, .. }) => {
                let tells = usize::from(query.protocol == Protocol::Udp);
                if !self.tells[tells] {
                    self.ask_for(query.protocol.number())?;
                    self.tells[tells] = true;
                }
                Ok(false)
            }
            Err(failure) => {
                self.socket = None;
                Err(failure)
            }
        }
    }

    /// Whether the kernel tells the control groups of sockets (5.8; those of EL8 need not):
    /// of one that
    /// is made for the question. If that cannot be seen, it is taken to.
    pub fn tells_cgroups(&mut self) -> bool {
        let Ok(socket) = std::net::UdpSocket::bind("0.0.0.0:0") else { return true };
        let Ok(local) = socket.local_addr() else { return true };
        let states = States::of(&[State::CLOSED]);
        let (protocol, family) = (Protocol::Udp, Some(Family::V4));
        let only = [Condition::LocalPort(local.port(), local.port())];
        let filter = Filter::any_of([&only[..]]);
        let query = Query { protocol, family, states, extensions: 0, filter: filter.as_ref() };
        let mut told = true;
        let outcome = self.dump(&query, |socket| {
            told &= socket.local.port() != local.port() || socket.cgroup().is_some();
        });
        outcome.is_err() || told
    }

    /// Asks for no socket of a protocol: ENOENT if the kernel does not tell of those, since it
    /// has no tcp_diag or udp_diag.
    fn ask_for(&mut self, protocol: u8) -> Outcome<()> {
        let (family, states) = (Some(Family::V4), States(0));
        let query = Query { protocol: Protocol::Tcp, family, states, extensions: 0, filter: None };
        let mut fixed = query.fixed(None, NO_COOKIE);
        fixed[1] = protocol;
        let request = Request::new(BY_FAMILY, 0).fixed(&fixed);
        let outcome = self.socket()?.dump_each(&request, |_| ());
        if outcome.is_err() {
            self.socket = None;
        }
        outcome.map(|_| ())
    }

    fn socket(&mut self) -> Outcome<&mut netlink::Socket> {
        match &mut self.socket {
            Some(socket) => Ok(socket),
            none => {
                let open = netlink::Socket::sock_diag()
                    .map_err(|error| Failure { errno: Errno::EMFILE, text: error.to_string() })?;
                Ok(none.insert(open))
            }
        }
    }
}

impl Query<'_> {
    /// struct inet_diag_req_v2.
    fn fixed(&self, flow: Option<&FlowId>, cookie: u64) -> [u8; 56] {
        let mut bytes = [0; 56];
        bytes[0] = self.family.map_or(0, Family::number);
        bytes[1] = self.protocol.number();
        bytes[2] = self.extensions;
        bytes[4..8].copy_from_slice(&self.states.0.to_ne_bytes());
        if let Some(flow) = flow {
            // For UDP the kernel's two ends are those of a packet that arrives.
            let (first, second) = match self.protocol {
                Protocol::Tcp => (flow.src(), flow.dst()),
                Protocol::Udp => (flow.dst(), flow.src()),
            };
            bytes[8..10].copy_from_slice(&first.port().to_be_bytes());
            bytes[10..12].copy_from_slice(&second.port().to_be_bytes());
            message::write_address(&mut bytes[12..28], first.ip());
            message::write_address(&mut bytes[28..44], second.ip());
        }
        let cookie = cookie.to_ne_bytes();
        // Two words, the lower one first.
        let (low, high) = if cfg!(target_endian = "little") { (0, 4) } else { (4, 0) };
        bytes[48..52].copy_from_slice(&cookie[low..low + 4]);
        bytes[52..56].copy_from_slice(&cookie[high..high + 4]);
        bytes
    }

    /// struct inet_diag_req, of all sockets.
    fn fixed_of_tcp(&self) -> [u8; 60] {
        let mut bytes = [0; 60];
        bytes[3] = self.extensions;
        bytes[52..56].copy_from_slice(&self.states.0.to_ne_bytes());
        bytes
    }
}
