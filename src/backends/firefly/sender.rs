//! Sends datagrams in batches, one socket per family, and says what became of
//! each (sendmmsg(2), udp(7)).
//!
//! Runs on the firefly backend's thread and owns its sockets. sendmmsg stops at
//! the first datagram that the kernel refuses: that one is told of and the rest
//! goes on. A full socket buffer is waited for, but only for as long as
//! [`PATIENCE`] lasts, which a datagram that gets through restores.

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

/// How long full socket buffers are waited for while nothing gets through. Then
/// what does not fit is dropped at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recipient {
    /// The destination of the flow.
    Destination,
    /// The collector of that index.
    Collector(usize),
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The kernel took it.
    Sent,
    /// The socket's buffer stayed full.
    Full,
    /// The kernel refused it.
    Failed(Errno),
}

/// A datagram that waits to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letter {
    /// Where its payload is, in the payloads of its batch.
    payload: Range<usize>,
    /// The address.
    pub(super) to: SocketAddr,
    /// Who that is.
    pub(super) recipient: Recipient,
}

/// Collects datagrams and sends them.
#[derive(Debug)]
pub(super) struct Sender {
    payloads: Vec<u8>,
    lanes: [Lane; 2],
    patience: Duration,
}

/// A family: its socket, if this host has the family, and what waits for it, in
/// order.
#[derive(Debug)]
struct Lane {
    wire: Option<Udp>,
    letters: Vec<Letter>,
}

impl Sender {
    /// Opens the sockets.
    ///
    /// # Errors
    /// Neither family can be had, or one for another reason than that the host
    /// has no such family.
    pub(super) fn open() -> Result<Self> {
        let open = |family: Family| match udp::sender(family) {
            Ok(socket) => Ok(Lane { wire: Some(Udp(socket)), letters: Vec::new() }),
            Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
                info!("backends.firefly: this host has no {family}, so its fireflies fail");
                Ok(Lane { wire: None, letters: Vec::new() })
            }
            Err(error) => Err(Error::os(format!("cannot create an {family} socket"), error)),
        };
        let lanes = [open(Family::V4)?, open(Family::V6)?];
        if lanes.iter().all(|lane| lane.wire.is_none()) {
            let cause = io::Error::from(Errno::EAFNOSUPPORT);
            return Err(Error::os("cannot create a socket", cause));
        }
        Ok(Sender { payloads: Vec::new(), lanes, patience: PATIENCE })
    }

    /// Whether there is a socket for that address.
    pub(super) fn reaches(&self, to: &SocketAddr) -> bool {
        self.lanes[usize::from(to.is_ipv6())].wire.is_some()
    }

    /// Adds the datagram that `write` writes for each of the recipients.
    pub(super) fn post(
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
            self.lanes[usize::from(to.is_ipv6())].letters.push(letter);
        }
    }

    /// Whether there are enough of them to be worth a system call.
    pub(super) fn is_full(&self) -> bool {
        self.lanes.iter().any(|lane| lane.letters.len() >= BATCH)
    }

    /// Sends all that was added and tells what became of each.
    pub(super) fn flush(&mut self, mut tell: impl FnMut(&Letter, Outcome)) {
        for lane in &mut self.lanes {
            match &mut lane.wire {
                Some(wire) => {
                    send(wire, &mut self.patience, &self.payloads, &lane.letters, &mut tell);
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

/// A way onto the network.
trait Wire {
    /// Sends the first ones of `letters`, of which there is at least one, in order.
    /// Returns how many went, at least one, or why not even the first did.
    fn send(&mut self, payloads: &[u8], letters: &[Letter]) -> nix::Result<usize>;

    /// Waits until the first may fit, for at most that long.
    fn wait(&mut self, limit: Duration, why: Errno);
}

/// Sends all the letters over `wire` and tells what became of each, in order.
fn send(
    wire: &mut impl Wire,
    patience: &mut Duration,
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
                *patience = PATIENCE;
            }
            Err(Errno::EINTR) => {}
            Err(why @ (Errno::EAGAIN | Errno::ENOBUFS)) if !patience.is_zero() => {
                let since = Instant::now();
                wire.wait(*patience, why);
                *patience = patience.saturating_sub(since.elapsed());
            }
            Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                rest.iter().for_each(|letter| tell(letter, Outcome::Full));
                return;
            }
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
            std::thread::sleep(limit.min(Duration::from_millis(1)));
            return;
        }
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        let limit = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX).max(1);
        // Whatever poll says, the next try to send knows better.
        let _ = poll(&mut fds, PollTimeout::from(limit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A wire that does as it is told, then takes everything.
    #[derive(Default)]
    struct Scripted {
        script: VecDeque<nix::Result<usize>>,
        sent: Vec<String>,
        waits: usize,
        /// How long a wait takes.
        slow: Duration,
    }

    impl Wire for Scripted {
        fn send(&mut self, payloads: &[u8], letters: &[Letter]) -> nix::Result<usize> {
            let count = self.script.pop_front().unwrap_or(Ok(letters.len()))?;
            for letter in &letters[..count] {
                let payload = &payloads[letter.payload.clone()];
                self.sent.push(String::from_utf8(payload.to_vec()).unwrap());
            }
            Ok(count)
        }

        fn wait(&mut self, limit: Duration, _: Errno) {
            assert!(limit <= PATIENCE);
            self.waits += 1;
            std::thread::sleep(self.slow);
        }
    }

    /// Sends "0", "1", ... and says what became of them.
    fn sent(wire: &mut Scripted, patience: &mut Duration, count: usize) -> Vec<(u16, Outcome)> {
        let payloads: String = (0..count).map(|number| number.to_string()).collect();
        let letter = |number| Letter {
            payload: number..number + 1,
            to: SocketAddr::from(([127, 0, 0, 1], u16::try_from(number).unwrap())),
            recipient: Recipient::Destination,
        };
        let letters: Vec<_> = (0..count).map(letter).collect();
        let mut told = Vec::new();
        send(wire, patience, payloads.as_bytes(), &letters, &mut |letter, outcome| {
            told.push((letter.to.port(), outcome));
        });
        told
    }

    use Outcome::{Failed, Full, Sent};

    #[test]
    fn a_refused_datagram_costs_no_other() {
        let script = [
            Ok(2),
            Err(Errno::ENETUNREACH),
            Err(Errno::EPERM),
            Err(Errno::EINTR),
            Ok(1),
            Err(Errno::EMSGSIZE),
        ];
        let mut wire = Scripted { script: script.into(), ..Scripted::default() };
        let told = sent(&mut wire, &mut PATIENCE.clone(), 8);
        let outcomes = [
            (0, Sent),
            (1, Sent),
            (2, Failed(Errno::ENETUNREACH)),
            (3, Failed(Errno::EPERM)),
            (4, Sent),
            (5, Failed(Errno::EMSGSIZE)),
            (6, Sent),
            (7, Sent),
        ];
        assert_eq!(told, outcomes);
        assert_eq!(wire.sent, ["0", "1", "4", "6", "7"]);
    }

    #[test]
    fn a_full_buffer_is_waited_for() {
        let script = [Err(Errno::EAGAIN), Err(Errno::ENOBUFS), Ok(1), Err(Errno::EAGAIN)];
        let mut wire = Scripted { script: script.into(), ..Scripted::default() };
        let mut patience = Duration::from_millis(100);
        let told = sent(&mut wire, &mut patience, 3);
        assert_eq!(told, [(0, Sent), (1, Sent), (2, Sent)]);
        assert_eq!(wire.waits, 3);
        assert_eq!(patience, PATIENCE, "what gets through restores it");
    }

    #[test]
    fn a_buffer_that_stays_full_is_given_up() {
        let full = VecDeque::from([Err(Errno::EAGAIN); 1000]);
        let slow = Duration::from_millis(10);
        let mut wire = Scripted { script: full, slow, ..Scripted::default() };
        let mut patience = Duration::from_millis(50);
        assert_eq!(sent(&mut wire, &mut patience, 2), [(0, Full), (1, Full)]);
        assert!((1..=5).contains(&wire.waits), "{}", wire.waits);
        wire.waits = 0;
        assert_eq!(sent(&mut wire, &mut patience, 2), [(0, Full), (1, Full)]);
        assert_eq!(wire.waits, 0, "its patience is gone");
        wire.script.clear();
        assert_eq!(sent(&mut wire, &mut patience, 1), [(0, Sent)]);
        assert_eq!(patience, PATIENCE);
    }

    /// Datagrams to a neighbour that does not answer stay in the socket's buffer.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_buffer_of_the_kernel_s_is_waited_for_and_given_up() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP: a network namespace needs root");
            return;
        }
        // A thread of its own: the namespace is the thread's, and ends with it.
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let ip = |arguments: &str| {
                let mut command = std::process::Command::new("ip");
                let status = command.args(arguments.split(' ')).status().unwrap();
                assert!(status.success(), "ip {arguments}");
            };
            ip("link add near type veth peer name far");
            ip("addr add fd00::1/64 dev near nodad");
            ip("link set near up");
            ip("link set far up");
            let mut sender = Sender::open().unwrap();
            let Udp(socket) = sender.lanes[1].wire.as_ref().unwrap();
            nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::SndBuf, &0).unwrap();
            let outcomes = |sender: &mut Sender| {
                let to = ("[fd00::2]:10514".parse().unwrap(), Recipient::Destination);
                (0..10).for_each(|_| sender.post([to], |out| out.extend([b'x'; 500])));
                let (mut sent, mut full) = (0, 0);
                sender.flush(|_, outcome| match outcome {
                    Sent => sent += 1,
                    Full => full += 1,
                    Failed(error) => panic!("{error}"),
                });
                (sent, full)
            };

            let since = Instant::now();
            let (sent, full) = outcomes(&mut sender);
            assert!(sent > 0 && full > 0 && sent + full == 10, "{sent} {full}");
            let took = since.elapsed();
            assert!(took >= PATIENCE - Duration::from_millis(10), "{took:?}");
            assert!(took < PATIENCE * 2, "{took:?}");

            ip("neigh replace fd00::2 lladdr 02:00:00:00:00:01 nud permanent dev near");
            sender.patience = PATIENCE;
            assert_eq!(outcomes(&mut sender), (10, 0));
        });
        thread.join().unwrap();
    }
}
