//! Netlink (RFC 3549, netlink(7)): requests are built, sent and answered on the
//! caller's thread. A [`Socket`] owns its descriptor.
//!
//! Nothing that arrives is trusted: whoever sent it has to be the kernel, every
//! length is checked against what is there, and a cut message is an error.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    bind, recvfrom, sendto, socket, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol,
    SockType,
};

pub use super::attributes::{u16_at, u32_at, u64_at, Attributes};
use crate::error::Error;
use crate::sys::socket::set_int_option;

/// Of a message's header.
pub(super) const HEADER: usize = 16;
/// The kernel makes dump messages of up to 32 KiB, or what fits the reader.
const BUFFER: usize = 64 * 1024;
/// A message of a dump has as many octets, or more.
const SHORT: usize = 64;
/// How often a dump is repeated that changed under the reader.
const DUMP_ATTEMPTS: usize = 10;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const F_REQUEST: u16 = 0x1;
const F_ACK: u16 = 0x4;
/// Of a request: all of them (NLM_F_ROOT and NLM_F_MATCH).
const F_DUMP: u16 = 0x300;
/// Of a request that makes something: if there is none.
pub const F_CREATE: u16 = 0x400;
/// Of a request that makes something: fail if there is one.
pub const F_EXCLUSIVE: u16 = 0x200;
/// Of an answer: the dump is not of one moment.
const F_DUMP_INTERRUPTED: u16 = 0x10;
/// Of an acknowledgement: the request's payload is not repeated.
const F_CAPPED: u16 = 0x100;
/// Of an acknowledgement: attributes follow.
const F_ACK_ATTRIBUTES: u16 = 0x200;

/// NLMSGERR_ATTR_MSG: the kernel's reason, in English.
const ERROR_TEXT: u16 = 1;

/// Marks an attribute of attributes.
const NESTED: u16 = 0x8000;

/// Why the kernel did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kernel's error number.
    pub errno: Errno,
    /// Its reason in English, if it gave one (since 4.12).
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from(self.errno))?;
        if !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        Ok(())
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure { errno, text: String::new() }
    }
}

impl Failure {
    /// An error that says what could not be done.
    pub fn because(self, what: impl Into<String>) -> Error {
        Error::os(what, std::io::Error::other(self.to_string()))
    }

    fn malformed() -> Self {
        Failure { errno: Errno::EBADMSG, text: "the kernel's answer makes no sense".into() }
    }
}

/// The outcome of a request.
pub type Outcome<T> = Result<T, Failure>;

/// A request, built front to back.
#[derive(Clone, Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// A request of that type; `flags` besides those that the way of sending sets.
    pub fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | F_REQUEST).to_ne_bytes());
        Request(bytes)
    }

    /// The fixed part that the type demands.
    #[must_use]
    pub fn fixed(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// An attribute. Its value is less than 64 KiB.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).expect("our own attributes are short");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    /// An attribute that is a text with its NUL.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// An attribute that is a 32-bit number.
    #[must_use]
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// An attribute of the attributes that `inner` adds.
    #[must_use]
    pub fn nest(mut self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self = inner(self.attribute(kind | NESTED, &[]));
        let length = u16::try_from(self.0.len() - start).expect("our own attributes are short");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// The bytes to send, with the last fields of the header.
    fn finish(&self, flags: u16, sequence: u32) -> Vec<u8> {
        let mut bytes = self.0.clone();
        let length = u32::try_from(bytes.len()).expect("our own requests are short");
        let flags = u16::from_ne_bytes([bytes[6], bytes[7]]) | flags;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }
}

/// A message of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub kind: u16,
    /// What follows the header: a fixed part and attributes.
    pub payload: Vec<u8>,
}

impl Message {
    /// The attributes behind a fixed part of `fixed` octets; none if it is cut.
    pub fn attributes(&self, fixed: usize) -> Attributes<'_> {
        Attributes(self.payload.get(fixed..).unwrap_or_default())
    }
}

/// A socket that does not wait, for what the kernel says of its own accord to these
/// groups of a protocol, in the network namespace of the thread.
///
/// # Errors
/// The system refuses.
pub(super) fn subscribe(protocol: SockProtocol, groups: u32) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(|number| i32::from_ne_bytes(number.to_ne_bytes()))
}

/// A netlink socket of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket for rtnetlink(7).
    ///
    /// # Errors
    /// The system refuses.
    pub fn route() -> Result<Self, Error> {
        Self::open(SockProtocol::NetlinkRoute)
            .map_err(|errno| Error::os("cannot open a netlink socket", errno))
    }

    /// A socket for sock_diag(7).
    ///
    /// # Errors
    /// The system refuses.
    pub fn sock_diag() -> Result<Self, Error> {
        Self::open(SockProtocol::NetlinkSockDiag)
            .map_err(|errno| Error::os("cannot open a netlink socket for sock_diag", errno))
    }

    fn open(protocol: SockProtocol) -> nix::Result<Self> {
        let family = AddressFamily::Netlink;
        let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // Better messages, and shorter ones: kernels that know them not (before
        // 4.12 and 4.3) work as well without.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let _ = set_int_option(fd.as_fd(), libc::SOL_NETLINK, option, 1);
        }
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Socket { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Has the kernel do something.
    ///
    /// # Errors
    /// It did not.
    pub fn change(&mut self, request: &Request) -> Outcome<()> {
        self.send(request, F_ACK)?;
        loop {
            let mut done = false;
            let sequence = self.sequence;
            each_message(self.receive()?, sequence, |kind, _, message| {
                if kind == NLMSG_ERROR {
                    done = true;
                    return acknowledgement(message, false);
                }
                Ok(())
            })?;
            if done {
                return Ok(());
            }
        }
    }

    /// Everything that the kernel has of the kind asked for, as of one moment.
    ///
    /// # Errors
    /// It refuses, or things changed during each of several attempts.
    pub fn dump(&mut self, request: &Request) -> Outcome<Vec<Message>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(messages) = self.dump_once(request)? {
                return Ok(messages);
            }
        }
        Err(Failure { errno: Errno::EINTR, text: "it changed during each attempt".into() })
    }

    /// None: interrupted.
    fn dump_once(&mut self, request: &Request) -> Outcome<Option<Vec<Message>>> {
        let mut messages = Vec::new();
        let whole = self.dump_each(request, |told| {
            let own =
                |(kind, payload): &(u16, &[u8])| Message { kind: *kind, payload: payload.to_vec() };
            messages.extend(told.iter().map(own));
        })?;
        Ok(whole.then_some(messages))
    }

    /// Tells of what the kernel has of the kind asked for, as many messages at a time as it
    /// sends, each as type and what follows the header. Returns whether all of it is of one
    /// moment, so far as the kernel knows.
    ///
    /// # Errors
    /// It refuses, or fails on the way. Then the rest of the answer may still wait in
    /// this socket, and the next dump may fail.
    pub fn dump_each(
        &mut self,
        request: &Request,
        mut take: impl FnMut(&[(u16, &[u8])]),
    ) -> Outcome<bool> {
        self.send(request, F_DUMP)?;
        let (mut whole, mut done) = (true, false);
        while !done {
            let sequence = self.sequence;
            let datagram = self.receive()?;
            let mut told = Vec::with_capacity(datagram.len() / SHORT);
            let outcome = each_message(datagram, sequence, |kind, flags, message| {
                whole &= flags & F_DUMP_INTERRUPTED == 0;
                match kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR => acknowledgement(message, false)?,
                    NLMSG_DONE => {
                        done = true;
                        acknowledgement(message, true)?;
                    }
                    _ => told.push((kind, &message[HEADER..])),
                }
                Ok(())
            });
            take(&told);
            outcome?;
        }
        Ok(whole)
    }

    /// Asks for one thing and tells of it, as type and what follows the header.
    ///
    /// # Errors
    /// The kernel has no such thing (ENOENT), or refuses.
    pub fn get(&mut self, request: &Request, mut take: impl FnMut(u16, &[u8])) -> Outcome<()> {
        self.send(request, 0)?;
        let mut done = false;
        while !done {
            let sequence = self.sequence;
            each_message(self.receive()?, sequence, |kind, _, message| {
                match kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR => {
                        done = true;
                        acknowledgement(message, false)?;
                    }
                    _ => {
                        done = true;
                        take(kind, &message[HEADER..]);
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn send(&mut self, request: &Request, flags: u16) -> Outcome<()> {
        // Also after a failure in the middle of an answer: what is left of that
        // has another number and is passed over.
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.finish(flags, self.sequence);
        let kernel = NetlinkAddr::new(0, 0);
        loop {
            match sendto(self.fd.as_raw_fd(), &bytes, &kernel, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Waits for a datagram; an empty one if it is not the kernel's.
    fn receive(&mut self) -> Outcome<&[u8]> {
        let (size, sender) = loop {
            // The buffer is larger than what the kernel sends; if that changes, the
            // lengths below do not add up.
            match recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), &mut self.buffer) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(received) => break received,
            }
        };
        if sender.is_none_or(|sender| sender.pid() != 0) {
            return Ok(&[]);
        }
        self.buffer.get(..size).ok_or_else(Failure::malformed)
    }
}

/// Takes each message of a datagram that has that number, as type, flags and the whole
/// of it, header included.
///
/// # Errors
/// The datagram is cut, or `take` fails.
pub fn each_message<'a>(
    datagram: &'a [u8],
    sequence: u32,
    mut take: impl FnMut(u16, u16, &'a [u8]) -> Outcome<()>,
) -> Outcome<()> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = first_message(rest).ok_or_else(Failure::malformed)?;
        let header = (u16_at(message, 4), u16_at(message, 6), u32_at(message, 8));
        let (Some(kind), Some(flags), Some(found)) = header else {
            return Err(Failure::malformed());
        };
        if found == sequence {
            take(kind, flags, message)?;
        }
        rest = rest.get(message.len().next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// The first message of a datagram, its header included. The next one begins at a
/// multiple of four octets. None: it is cut.
pub(super) fn first_message(datagram: &[u8]) -> Option<&[u8]> {
    let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
    datagram.get(..length).filter(|message| message.len() >= HEADER)
}

/// Reads the error of an NLMSG_ERROR or NLMSG_DONE.
fn acknowledgement(message: &[u8], done: bool) -> Outcome<()> {
    let flags = u16_at(message, 6).unwrap_or(0);
    let payload = message.get(HEADER..).unwrap_or_default();
    let code = i32_at(payload, 0).ok_or_else(Failure::malformed)?;
    if code == 0 {
        return Ok(());
    }
    // Then the header of the request, and the rest of it unless capped.
    let request = if done {
        0
    } else if flags & F_CAPPED != 0 {
        HEADER
    } else {
        usize::try_from(u32_at(payload, 4).unwrap_or(0)).unwrap_or(0)
    };
    let attributes = request.checked_next_multiple_of(4).and_then(|r| payload.get(4 + r..));
    let text = attributes
        .filter(|_| flags & F_ACK_ATTRIBUTES != 0)
        .and_then(|bytes| Attributes(bytes).find_text(ERROR_TEXT))
        .unwrap_or_default();
    Err(Failure { errno: Errno::from_raw(code.saturating_neg()), text })
}

#[cfg(test)]
#[path = "netlink_tests.rs"]
mod tests;
