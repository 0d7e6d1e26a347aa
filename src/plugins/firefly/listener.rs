//! The plugin's thread: receives datagrams in batches, in order (recvmmsg(2)).
//!
//! Owns the socket. The dispatcher's back-pressure reaches the senders as a full
//! receive buffer, whose losses the kernel counts.

use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::intake::{Intake, Rules, Verdict};
use super::relay::{Parcel, Relay};
use super::{Counters, NAME};
use crate::config::live::Live;
use crate::dispatcher::{Inlet, Refused};
use crate::error::{Error, Result};
use crate::net::collectors::destinations::Collector;
use crate::net::collectors::resolver::{Lookup, Pace};
use crate::net::inbox::Inbox;
use crate::net::udp;
use crate::plugins::Plugin;
use crate::shutdown::Stop;
use crate::warn_limited;

/// How many batches are still read at the stop, so that no sender can hold us here.
const LAST_BATCHES: usize = 4096;

/// The plugin.
pub(super) struct Listener {
    socket: UdpSocket,
    address: SocketAddr,
    inbox: Inbox,
    intake: Intake,
    counters: Arc<Counters>,
    relay: Option<Relay>,
    /// To whom it relays.
    collectors: Vec<Collector>,
    /// How their names are looked up.
    pub(super) lookup: Lookup,
    live: Live,
}

impl Listener {
    /// Takes the address.
    ///
    /// # Errors
    /// It is taken, or not one of this host.
    pub(super) fn bind(
        address: SocketAddr,
        intake: Intake,
        longest: usize,
        buffer: usize,
    ) -> Result<Self> {
        let cannot = |error| Error::os(format!("cannot listen on {address}"), error);
        let (socket, got) = udp::listener(address, buffer).map_err(cannot)?;
        if got < buffer {
            log::warn!(
                "{NAME}: the kernel buffers {got} octets, not {buffer} (receiveBuffer), so bursts \
                 may be lost: it takes CAP_NET_ADMIN, or a larger net.core.rmem_max"
            );
        }
        let address = socket.local_addr().map_err(cannot)?;
        let (inbox, live) = (Inbox::new(longest), Live::new()?);
        let lookup = |host: &str, port| (host, port).to_socket_addrs().map(Iterator::collect);
        Ok(Listener {
            socket,
            address,
            inbox,
            intake,
            counters: Arc::default(),
            relay: None,
            collectors: Vec::new(),
            lookup: Arc::new(lookup),
            live,
        })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Has what is taken from now on relayed to these. What those of before have not got yet
    /// they get.
    ///
    /// # Errors
    /// The system has no socket or no thread for it; then all stays as it is.
    pub(super) fn relay_to(&mut self, collectors: Vec<Collector>) -> Result<()> {
        if collectors == self.collectors {
            return Ok(());
        }
        self.relay = if collectors.is_empty() {
            None
        } else {
            let (to, counters, lookup) = (collectors.clone(), self.counters(), self.lookup.clone());
            let relay = Relay::start(to, self.address, counters, lookup, Pace::default())?;
            self.counters.relays.store(true, Relaxed);
            Some(relay)
        };
        self.collectors = collectors;
        Ok(())
    }

    /// Takes a batch of what has arrived; false: nothing has.
    fn receive(&mut self, out: &Inlet) -> std::result::Result<bool, Refused> {
        let Listener { socket, inbox, intake, counters, relay, .. } = self;
        let (mut events, mut parcel) = (Vec::new(), Parcel::default());
        let mut malformed = 0;
        let received = inbox.receive(socket.as_fd(), |datagram, arrival| {
            let verdict = intake.judge(datagram, arrival, counters);
            if relay.is_some() && verdict != Verdict::Drop {
                parcel.add(datagram);
            }
            match verdict {
                Verdict::Take(event) => events.push(event),
                Verdict::Drop | Verdict::Relay => malformed += 1,
            }
        });
        if malformed > 0 {
            out.malformed(malformed);
        }
        if let Some(relay) = relay {
            relay.pass(parcel);
        }
        let count = events.len() as u64;
        match out.send_each(events) {
            Ok(()) => counters.taken.add(count),
            Err(refused @ Refused::Full { events, .. }) => {
                counters.taken.add(count - events as u64);
                counters.refused.add(events as u64);
                warn_limited!("{NAME}: cannot open {events} flows: {refused}");
            }
            Err(refused @ Refused::Stopping) => return Err(refused),
        }
        match received {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(Errno::EINTR) => Ok(true),
            Err(error) => {
                warn_limited!("{NAME}: cannot receive: {}", error.desc());
                Ok(false)
            }
        }
    }

    /// Works until `stop` says so.
    fn work(&mut self, out: &Inlet, stop: &Stop) -> Result<()> {
        loop {
            let mut fds = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.live.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(Error::os("cannot poll", error)),
            }
            let stopping = fds[0].any().unwrap_or(true);
            if let Some(section) = self.live.take() {
                // Judged when it was read, so there are no problems.
                self.intake.obey(Rules::read(&section).unwrap_or_default());
                if let Err(error) = self.relay_to(super::collectors(&section)) {
                    log::error!("{NAME}.relay: {error}; the collectors stay those of before");
                }
            }
            // What was there before the stop is still taken.
            let batches = if stopping { LAST_BATCHES } else { 1 };
            for _ in 0..batches {
                match self.receive(out) {
                    Ok(true) => {}
                    Ok(false) => break,
                    // The daemon is.
                    Err(_) => return Ok(()),
                }
            }
            if stopping {
                return Ok(());
            }
        }
    }
}

impl Plugin for Listener {
    fn run(mut self: Box<Self>, out: Inlet, stop: Stop) -> Result<()> {
        let counters = self.counters();
        out.report_with(Box::new(move || counters.report()));
        self.work(&out.for_what_is_heard(), &stop)
    }

    fn live(&self) -> Option<Live> {
        Some(self.live.clone())
    }
}
