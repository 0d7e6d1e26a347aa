//! One address that is asked for: its socket, the transactions with all servers, and the
//! schedule of RFC 8489 section 6.2.1. Runs on the thread of whoever asks.
//!
//! The first request goes to the first server only, the second to the first two, and so
//! on; the first good answer ends it. So the preferred server is heard where it works,
//! one that is dead costs half a second, and the time for all is that for one.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::message::{mapped_address, request, Fault, TransactionId};
use crate::net::collectors::destinations::takes_fireflies;

/// How long the first request is waited for. After each request it is twice as long.
pub(super) const RTO: Duration = Duration::from_millis(500);
/// So many requests go to the first server (Rc).
const REQUESTS: u32 = 7;
/// So many times RTO the last one is waited for (Rm): 39.5 s in all.
const LAST_WAIT: u32 = 16;
/// So many servers are asked at the most.
const SERVERS: usize = 16;
/// Why there is no answer for an address that the kernel has yet to find unique on its
/// link (RFC 4862 section 5.4): it tells when it has.
pub(super) const NOT_YET: &str = "it cannot be used yet";
/// As many datagrams are read at once; a flood of them keeps nobody from stopping.
const AT_ONCE: usize = 64;

/// The public address and who says so, or why there is none.
pub(super) type Outcome = Result<(IpAddr, SocketAddr), String>;

/// What came of asking for some addresses.
pub(super) type Outcomes = Vec<(IpAddr, Outcome)>;

/// A server and the transaction with it.
#[derive(Debug)]
struct Asked {
    server: SocketAddr,
    id: TransactionId,
    /// It has answered, but not with an address.
    hopeless: bool,
}

/// An address that is asked for.
#[derive(Debug)]
pub(super) struct Inquiry {
    local: IpAddr,
    socket: UdpSocket,
    asked: Vec<Asked>,
    rto: Duration,
    /// How many requests went to the first server.
    sent: u32,
    /// When the next ones go, or it is given up.
    next: Instant,
    /// What to say if nobody answers.
    cause: String,
}

impl Inquiry {
    /// Opens the socket. Nothing is sent before the first [`Inquiries::step`].
    ///
    /// # Errors
    /// The address cannot be used, or no server is of its family.
    pub(super) fn start(
        local: IpAddr,
        servers: &[SocketAddr],
        rto: Duration,
        now: Instant,
    ) -> Result<Self, String> {
        let random = RandomState::new();
        let fit = servers.iter().filter(|server| server.is_ipv4() == local.is_ipv4());
        let asked = fit.take(SERVERS).enumerate().map(|(at, server)| {
            let mut id = TransactionId::default();
            id[..8].copy_from_slice(&random.hash_one((local, at)).to_ne_bytes());
            id[8..].copy_from_slice(&random.hash_one((at, local)).to_ne_bytes()[..4]);
            Asked { server: *server, id, hopeless: false }
        });
        let asked: Vec<_> = asked.collect();
        if asked.is_empty() {
            return Err("no STUN server has an address of this family".to_owned());
        }
        let open = || {
            let socket = UdpSocket::bind((local, 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|error: std::io::Error| match error.kind() {
            std::io::ErrorKind::AddrNotAvailable => NOT_YET.to_owned(),
            _ => format!("cannot open a socket: {error}"),
        })?;
        let cause = "no STUN server answers".to_owned();
        Ok(Inquiry { local, socket, asked, rto, sent: 0, next: now, cause })
    }

    /// Sends what is due. An outcome: it is given up.
    fn send(&mut self, now: Instant) -> Option<Outcome> {
        if now < self.next {
            return None;
        }
        if self.sent == REQUESTS {
            return Some(Err(self.cause.clone()));
        }
        let wait = if self.sent + 1 == REQUESTS { LAST_WAIT } else { 1 << self.sent };
        self.sent += 1;
        self.next = now + self.rto * wait;
        // With the last one to all that are left.
        let reach = if self.sent == REQUESTS { SERVERS } else { self.sent as usize };
        for asked in self.asked.iter().take(reach).filter(|asked| !asked.hopeless) {
            if let Err(error) = self.socket.send_to(&request(&asked.id), asked.server) {
                self.cause = format!("cannot send to {}: {error}", asked.server);
            }
        }
        None
    }

    /// Reads what has arrived. An outcome: there is no more to wait for.
    fn read(&mut self) -> Option<Outcome> {
        // More than an answer has; of what is longer the length does not add up.
        let mut buffer = [0; 1500];
        for _ in 0..AT_ONCE {
            let (length, from) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // An interrupted call, or news of an earlier datagram.
                Err(_) => continue,
            };
            let same = |to: SocketAddr| (to.ip(), to.port()) == (from.ip(), from.port());
            let Some(asked) = self.asked.iter_mut().find(|asked| same(asked.server)) else {
                log::debug!("{}: {} sends a datagram unasked", super::NAME, from);
                continue;
            };
            let problem = match mapped_address(&buffer[..length], &asked.id) {
                Ok(ip) => {
                    let ip = ip.to_canonical();
                    let good = takes_fireflies(ip) && !ip.is_loopback();
                    if good && ip.is_ipv4() == self.local.is_ipv4() {
                        return Some(Ok((ip, from)));
                    }
                    format!("it says {ip}, which cannot be")
                }
                Err(fault @ (Fault::Stray | Fault::Malformed)) => {
                    log::debug!("{}: passing over an answer of {from}: {fault}", super::NAME);
                    continue;
                }
                Err(fault) => fault.to_string(),
            };
            asked.hopeless = true;
            self.cause = format!("the answer of {from} is of no use: {problem}");
            if self.asked.iter().all(|asked| asked.hopeless) {
                return Some(Err(self.cause.clone()));
            }
        }
        None
    }
}

/// All that are asked for at a time.
#[derive(Debug, Default)]
pub(super) struct Inquiries(Vec<Inquiry>);

impl Inquiries {
    pub(super) fn add(&mut self, inquiry: Inquiry) {
        self.0.push(inquiry);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether that address is being asked for.
    pub(super) fn has(&self, local: IpAddr) -> bool {
        self.0.iter().any(|inquiry| inquiry.local == local)
    }

    /// Forgets those that are not wanted any more.
    pub(super) fn retain(&mut self, wanted: impl Fn(IpAddr) -> bool) {
        self.0.retain(|inquiry| wanted(inquiry.local));
    }

    /// Sends what is due and sleeps until one of `others` is readable, an answer comes,
    /// or it is `until`. Returns which of the others are readable, and what came to an
    /// end.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn step(
        &mut self,
        others: &[BorrowedFd<'_>],
        until: Option<Instant>,
    ) -> nix::Result<(Vec<bool>, Outcomes)> {
        let mut outcomes = Outcomes::new();
        let now = Instant::now();
        self.end(&mut outcomes, |inquiry| inquiry.send(now));
        let due = self.0.iter().map(|inquiry| inquiry.next).chain(until).min();
        let timeout = match due {
            _ if !outcomes.is_empty() => PollTimeout::ZERO,
            None => PollTimeout::NONE,
            Some(due) => {
                // Up: a wait that ends too early would be one for nothing.
                let left = due.saturating_duration_since(now) + Duration::from_micros(999);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        let sockets = self.0.iter().map(|inquiry| inquiry.socket.as_fd());
        let mut fds: Vec<_> = others
            .iter()
            .copied()
            .chain(sockets)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let readable = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let readable: Vec<bool> = fds.iter().take(others.len()).map(readable).collect();
        self.end(&mut outcomes, Inquiry::read);
        Ok((readable, outcomes))
    }

    /// Does something with each, and takes those out that came to an end by it.
    fn end(
        &mut self,
        outcomes: &mut Outcomes,
        mut act: impl FnMut(&mut Inquiry) -> Option<Outcome>,
    ) {
        self.0.retain_mut(|inquiry| match act(inquiry) {
            None => true,
            Some(outcome) => {
                outcomes.push((inquiry.local, outcome));
                false
            }
        });
    }
}
