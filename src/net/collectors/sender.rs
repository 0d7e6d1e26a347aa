//! Sends datagrams in batches and says what became of each (sendmmsg(2), udp(7)).
//!
//! Runs on the thread of whoever sends and owns its sockets: a lane for the
//! collectors and one for the destinations, per family. Datagrams to neighbours
//! that do not answer neighbour discovery (RFC 4861) or ARP stay in the buffer of
//! their socket for seconds, so the destinations must not share one with the
//! collectors. sendmmsg stops at the first datagram that the kernel refuses: that
//! one is told of and the rest goes on. A full buffer is waited for, but only for
//! as long as the `Patience` of its lane lasts.

use std::io;
#[cfg(target_os = "linux")]
use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use log::info;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::error::{Error, Result};
use crate::net::udp::{self, Family};
#[cfg(target_os = "linux")]
use crate::sys::udp as mmsg;

/// How many datagrams are sent together.
const BATCH: usize = 64;

/// How long a full buffer of the collectors is waited for while nothing gets
/// through. Then what does not fit is dropped at once.
const COLLECTORS: Duration = Duration::from_secs(1);

/// How long a full buffer of the destinations is waited for.
const DESTINATIONS: Duration = Duration::from_millis(100);

/// Which part of the time goes by in waiting for destinations at the most, as a
/// divisor. Buffers that empty slowly, since neighbours are given up one after the
/// other, would otherwise slow the collectors down to their own pace.
const SHARE: u32 = 10;

/// The shortest wait, which is poll's.
const TICK: Duration = Duration::from_millis(1);

/// Who a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// The destination of the flow.
    Destination,
    /// The collector of that index.
    Collector(usize),
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel took it.
    Sent,
    /// The socket's buffer stayed full.
    Full,
    /// The kernel refused it.
    Failed(Errno),
}

/// A datagram that waits to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Where its payload is, in the payloads of its batch.
    payload: Range<usize>,
    /// The address.
    pub to: SocketAddr,
    /// Who that is.
    pub recipient: Recipient,
}

/// Collects datagrams and sends them.
#[derive(Debug)]
pub struct Sender {
    payloads: Vec<u8>,
    /// In the order of sending: the collectors' by family, then the destinations'.
    lanes: [Lane; 4],
}

/// A kind of recipient in a family: the socket, if this host has the family, and
/// what waits for it, in order.
#[derive(Debug)]
struct Lane {
    wire: Option<Udp>,
    patience: Patience,
    letters: Vec<Letter>,
}

/// How long a full buffer may still be waited for.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    /// What was waited and is not restored yet; more than the limit if a wait took
    /// longer than it was to.
    spent: Duration,
    /// Up to when time has restored it; none: what gets through restores it.
    restored: Option<Instant>,
}

impl Patience {
    /// Any datagram that gets through restores it: the network is slow, not dead.
    fn of_collectors() -> Self {
        Patience { limit: COLLECTORS, spent: Duration::ZERO, restored: None }
    }

    /// Only time restores it, a [`SHARE`] of what goes by.
    fn of_destinations() -> Self {
        let restored = Some(Instant::now());
        Patience { limit: DESTINATIONS, spent: Duration::ZERO, restored }
    }

    fn got_through(&mut self) {
        if self.restored.is_none() {
            self.spent = Duration::ZERO;
        }
    }

    /// How long a wait may be; none: too short for one.
    fn left(&mut self) -> Option<Duration> {
        if let Some(restored) = &mut self.restored {
            let now = Instant::now();
            let more = now.duration_since(*restored) / SHARE;
            self.spent = self.spent.saturating_sub(more);
            *restored = now;
        }
        self.limit.checked_sub(self.spent).filter(|left| *left >= TICK)
    }

    fn spend(&mut self, waited: Duration) {
        self.spent += waited;
    }
}

impl Sender {
    /// Opens the sockets.
    ///
    /// # Errors
    /// Neither family can be had, or one for another reason than that the host
    /// has no such family.
    ///
    /// `who` is the part that sends, for the log; `to_destinations`: whether it sends to
    /// others than collectors.
    pub fn open(who: &str, to_destinations: bool) -> Result<Self> {
        let none = |patience| Lane { wire: None, patience, letters: Vec::new() };
        let open = |family: Family, patience| {
            let wire = match udp::sender(family) {
                Ok(socket) => Some(Udp(socket)),
                Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => None,
                Err(error) => {
                    return Err(Error::os(format!("cannot create an {family} socket"), error));
                }
            };
            Ok(Lane { wire, patience, letters: Vec::new() })
        };
        let mut lanes = [
            open(Family::V4, Patience::of_collectors())?,
            open(Family::V6, Patience::of_collectors())?,
            none(Patience::of_destinations()),
            none(Patience::of_destinations()),
        ];
        if to_destinations {
            lanes[2] = open(Family::V4, Patience::of_destinations())?;
            lanes[3] = open(Family::V6, Patience::of_destinations())?;
        }
        if lanes.iter().all(|lane| lane.wire.is_none()) {
            let cause = io::Error::from(Errno::EAFNOSUPPORT);
            return Err(Error::os("cannot create a socket", cause));
        }
        for (family, lane) in [Family::V4, Family::V6].iter().zip(&lanes) {
            if lane.wire.is_none() {
                info!("{who}: this host has no {family}, so its fireflies fail");
            }
        }
        Ok(Sender { payloads: Vec::new(), lanes })
    }

    /// Whether there is a socket for that address.
    pub fn reaches(&self, to: &SocketAddr) -> bool {
        // All lanes of a family that are in use have a socket, or none.
        self.lanes[lane(to, Recipient::Collector(0))].wire.is_some()
    }

    /// Adds the datagram that `write` writes for each of the recipients.
    pub fn post(
        &mut self,
        recipients: impl IntoIterator<Item = (SocketAddr, Recipient)>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut recipients = recipients.into_iter().peekable();
        if recipients.peek().is_none() {
            return;
        }
        let start = self.payloads.len();
        write(&mut self.payloads);
        for (to, recipient) in recipients {
            let letter = Letter { payload: start..self.payloads.len(), to, recipient };
            self.lanes[lane(&to, recipient)].letters.push(letter);
        }
    }

    /// Whether there are enough of them to be worth a system call.
    pub fn is_full(&self) -> bool {
        self.lanes.iter().any(|lane| lane.letters.len() >= BATCH)
    }

    /// Sends all that was added, the collectors' first, and tells what became of
    /// each.
    pub fn flush(&mut self, mut tell: impl FnMut(&Letter, Outcome)) {
        for lane in &mut self.lanes {
            match &mut lane.wire {
                Some(wire) => {
                    send(wire, &mut lane.patience, &self.payloads, &lane.letters, &mut tell);
                }
                None => {
                    for letter in &lane.letters {
                        tell(letter, Outcome::Failed(Errno::EAFNOSUPPORT));
                    }
                }
            }
            lane.letters.clear();
        }
        self.payloads.clear();
    }
}

/// Which lane is for that recipient at that address.
fn lane(to: &SocketAddr, recipient: Recipient) -> usize {
    let first = match recipient {
        Recipient::Collector(_) => 0,
        Recipient::Destination => 2,
    };
    first + usize::from(to.is_ipv6())
}

/// A way onto the network.
trait Wire {
    /// Sends the first ones of `letters`, of which there is at least one, in order.
    /// Returns how many went, at least one, or why not even the first did.
    fn send(&mut self, payloads: &[u8], letters: &[Letter]) -> nix::Result<usize>;

    /// Waits until the first may fit, for at most that long, which is a [`TICK`] or
    /// more.
    fn wait(&mut self, limit: Duration, why: Errno);
}

/// Sends all the letters over `wire` and tells what became of each, in order.
fn send(
    wire: &mut impl Wire,
    patience: &mut Patience,
    payloads: &[u8],
    letters: &[Letter],
    tell: &mut impl FnMut(&Letter, Outcome),
) {
    let mut rest = letters;
    while let [first, others @ ..] = rest {
        match wire.send(payloads, rest) {
            Ok(count) => {
                let (sent, left) = rest.split_at(count);
                sent.iter().for_each(|letter| tell(letter, Outcome::Sent));
                rest = left;
                patience.got_through();
            }
            Err(Errno::EINTR) => {}
            Err(why @ (Errno::EAGAIN | Errno::ENOBUFS)) => match patience.left() {
                Some(left) => {
                    let since = Instant::now();
                    wire.wait(left, why);
                    patience.spend(since.elapsed());
                }
                None => {
                    rest.iter().for_each(|letter| tell(letter, Outcome::Full));
                    return;
                }
            },
            Err(error) => {
                tell(first, Outcome::Failed(error));
                rest = others;
            }
        }
    }
}

/// A UDP socket as a wire.
#[derive(Debug)]
struct Udp(UdpSocket);

impl Wire for Udp {
    #[cfg(target_os = "linux")]
    fn send(&mut self, payloads: &[u8], letters: &[Letter]) -> nix::Result<usize> {
        let datagrams: Vec<mmsg::Datagram<'_>> = letters
            .iter()
            .take(mmsg::BATCH)
            .map(|letter| (IoSlice::new(&payloads[letter.payload.clone()]), letter.to.into()))
            .collect();
        mmsg::send(self.0.as_fd(), &datagrams)
    }

    #[cfg(not(target_os = "linux"))]
    fn send(&mut self, payloads: &[u8], letters: &[Letter]) -> nix::Result<usize> {
        for (count, letter) in letters.iter().enumerate() {
            match self.0.send_to(&payloads[letter.payload.clone()], letter.to) {
                Ok(_) => {}
                Err(error) if count == 0 => {
                    return Err(Errno::from_raw(error.raw_os_error().unwrap_or_default()));
                }
                Err(_) => return Ok(count),
            }
        }
        Ok(letters.len())
    }

    fn wait(&mut self, limit: Duration, why: Errno) {
        if why == Errno::ENOBUFS {
            // The queue of an interface is full, which no file descriptor tells.
            std::thread::sleep(limit.min(TICK));
            return;
        }
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        let limit = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        // Whatever poll says, the next try to send knows better.
        let _ = poll(&mut fds, PollTimeout::from(limit));
    }
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
