//! Takes the samples. Runs on the enricher's thread, which sleeps in poll(2); owns a
//! netlink socket. The list of open flows is shared with the last look at a flow that ends, on
//! the dispatcher's thread.
//!
//! One dump for all flows, whatever their number. The kernel leaves out what is no flow's
//! where a few ports say it. What a dump lacks keeps the sample that it has: nothing ends here.

#[path = "closed.rs"]
mod closed;
#[path = "watched.rs"]
mod watched;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::config::Section;
use crate::dispatcher::{Inlet, Queue};
use crate::enrichers::Enricher;
use crate::error::{Error, Result};
use crate::flow::{FlowId, Protocol, Timestamp};
use crate::flow_info::{FlowInfo, Kinds, LastLook};
use crate::metrics::families::{ENRICHER_DROPPED, ENRICHER_FAILED, ENRICHER_SAMPLES};
use crate::metrics::Count;
use crate::net::sock_diag::{
    extension, Condition, Diag, Family, Filter, Query, Socket, State, States,
};
use crate::part::Context;
use crate::shutdown::Stop;
use crate::warn_limited;

use watched::Shared;

/// Where messages come from.
const NAME: &str = "enrichers.netlink";
/// As many samples go to the dispatcher at a time.
const BATCH: usize = 256;
/// More ports than that are not said to the kernel, which would test each of them for
/// each socket.
const PORTS: usize = 16;
/// A flow of which samples say the same is measured as often, and handed on once in as many lists
/// as that time has periods.
const TURN: Duration = Duration::from_secs(10);
/// The queue of those flows that start and end is emptied at least as often.
const PATIENCE: Duration = Duration::from_secs(1);

struct Sampler {
    diag: Diag,
    protocol: Protocol,
    wanted: Wanted,
    states: States,
    period: Duration,
    watched: Shared,
    /// Of the flows, as they were; none: the kernel filters nothing.
    filter: Option<Filter>,
    /// None of them is of IPv4.
    only_v6: bool,
    counters: Arc<Counters>,
}

/// What the kernel is asked for.
#[derive(Clone)]
struct Wanted {
    /// As the configuration has it.
    ext: u8,
    /// Whether anybody reads what is said only in full, which makes each list dearer.
    in_full: Arc<AtomicBool>,
}

impl Wanted {
    /// At this moment.
    fn kinds(&self) -> Kinds {
        Kinds::new(self.ext, self.in_full.load(Relaxed))
    }
}

/// What became of samples.
#[derive(Default)]
struct Counters {
    taken: Count,
    /// The dispatcher was behind.
    lost: Count,
    /// Looks that the kernel refused.
    failed: Count,
}

pub(super) fn build(section: &Section, context: &Context) -> Result<Box<dyn Enricher>> {
    Ok(Box::new(sampler(section, context)?))
}

fn sampler(section: &Section, context: &Context) -> Result<Sampler> {
    let udp = section.int::<u8>("protocol") == Protocol::Udp.number();
    let counters = Arc::<Counters>::default();
    let counted = counters.clone();
    context.metrics.add(move |writer| {
        writer.number(&ENRICHER_SAMPLES, &["netlink"], counted.taken.get());
        writer.number(&ENRICHER_DROPPED, &["netlink"], counted.lost.get());
        writer.number(&ENRICHER_FAILED, &["netlink"], counted.failed.get());
    });
    let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
    let wanted = Wanted { ext: section.int("ext"), in_full: context.in_full.clone() };
    Ok(Sampler {
        counters,
        diag: Diag::open()?,
        protocol,
        wanted: wanted.clone(),
        states: States(section.int("state")),
        period: context.period,
        watched: Shared::new(protocol, wanted)?,
        filter: None,
        only_v6: false,
    })
}

impl Enricher for Sampler {
    fn last_look(&mut self) -> Result<Option<LastLook>> {
        let watched = self.watched.clone();
        Ok(Some(Box::new(move |id| watched.lock().last_look(id))))
    }

    fn run(mut self: Box<Self>, watch: Queue, out: Inlet, stop: Stop) -> Result<()> {
        let mut ends = {
            let mut watched = self.watched.lock();
            watched.queue = Some(watch);
            watched.ends()
        };
        let mut next = Instant::now() + self.period;
        let mut rested = Instant::now();
        loop {
            let now = Instant::now();
            let mut wait = next.saturating_duration_since(now).min(PATIENCE);
            let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
            match &ends {
                Some(_) if now < rested => wait = wait.min(rested - now),
                Some((ends, _)) => fds.push(PollFd::new(ends.as_fd(), PollFlags::POLLIN)),
                None => {}
            }
            // Rounded up, or the last part of a millisecond is spent asking.
            let wait = PollTimeout::try_from(wait + Duration::from_millis(1));
            match poll(&mut fds, wait.unwrap_or(PollTimeout::MAX)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) if fds[0].any() == Some(true) => return Ok(()),
                Ok(_) => {
                    let rest = ends.as_ref().map_or(Duration::ZERO, |(_, rest)| *rest);
                    rested = Instant::now() + rest;
                }
                Err(errno) => return Err(Error::os("cannot poll", errno)),
            }
            let (fresh, unheard) = {
                let mut watched = self.watched.lock();
                watched.follow();
                // What nobody reads any more would be readable for ever.
                ends = ends.filter(|_| watched.ends.is_some());
                (std::mem::take(&mut watched.fresh), watched.take_unheard())
            };
            let (taken, lost) = (fresh.len(), hand_on(fresh, &out));
            self.count(taken, lost);
            self.count_unheard(unheard);
            let before = Instant::now();
            if before >= next {
                self.measure(&out);
                // A fifth of a core at the most.
                let after = Instant::now();
                next = (next + self.period).max(after + 4 * (after - before));
            }
        }
    }
}

impl Sampler {
    /// Takes a sample of each flow whose socket the kernel tells of.
    fn measure(&mut self, out: &Inlet) {
        {
            let mut watched = self.watched.lock();
            if std::mem::take(&mut watched.has_changed) {
                self.filter = filter(watched.flows.keys());
                self.only_v6 = watched.flows.keys().all(FlowId::is_ipv6);
            }
            if watched.flows.is_empty() {
                return;
            }
            watched.begin_list();
        }
        let Sampler { diag, protocol, wanted, states, watched, filter, .. } = self;
        let kinds = wanted.kinds();
        let turns = TURN.as_millis() / self.period.as_millis().max(1);
        let turns = u32::try_from(turns).unwrap_or(1).max(1);
        let (mut samples, mut lost, mut taken) = (Vec::new(), 0, 0);
        let mut now = Timestamp::now();
        loop {
            let query = Query {
                protocol: *protocol,
                // Sockets of IPv6 may carry IPv4.
                family: self.only_v6.then_some(Family::V6),
                states: *states,
                extensions: kinds.extensions(),
                filter: filter.as_ref(),
            };
            let outcome = diag.dump_some(&query, |sockets| {
                let there = sockets.iter().filter_map(|socket| Some((socket.flow().ok()?, socket)));
                let mut there: Vec<(FlowId, &Socket<'_>)> = there.collect();
                {
                    let mut watched = watched.lock();
                    watched.keep_watched(&mut there);
                    // In full they say how long ago something last happened.
                    if !kinds.are_full() {
                        taken += watched.keep_changed(&mut there, kinds, turns);
                    }
                }
                for (id, socket) in there {
                    let Some(info) = sample(socket, kinds, now) else { continue };
                    samples.push((id, info));
                    taken += 1;
                    if samples.len() == BATCH {
                        let full = std::mem::replace(&mut samples, Vec::with_capacity(BATCH));
                        lost += hand_on(full, out);
                        now = Timestamp::now();
                    }
                }
            });
            match outcome {
                // A dump that is not whole lacks samples, which nobody misses.
                Ok(_) => {
                    watched.lock().end_list();
                    break;
                }
                Err(failure) if failure.errno == Errno::EINVAL && filter.is_some() => {
                    log::debug!("{NAME}: the kernel does not filter sockets: {failure}");
                    *filter = None;
                }
                Err(failure) => {
                    self.counters.failed.add(1);
                    warn_limited!("{NAME}: cannot look at the sockets of flows: {failure}");
                    break;
                }
            }
        }
        lost += hand_on(samples, out);
        if lost > 0 || kinds.are_full() {
            self.watched.lock().say_all_again();
        }
        self.count(taken, lost);
    }

    fn count(&self, taken: usize, lost: usize) {
        self.counters.taken.add(taken.saturating_sub(lost) as u64);
        self.counters.lost.add(lost as u64);
        if lost > 0 {
            warn_limited!("{NAME}: the dispatcher is behind; samples given up: {lost}");
        }
    }

    fn count_unheard(&self, unheard: usize) {
        self.counters.lost.add(unheard as u64);
        if unheard > 0 {
            warn_limited!(
                "{NAME}: sockets go faster than they can be heard of; flows whose last octets are \
                 not counted: {unheard}"
            );
        }
    }
}

/// Returns how many the dispatcher had no room for.
fn hand_on(samples: Vec<(FlowId, FlowInfo)>, out: &Inlet) -> usize {
    let count = samples.len();
    if count == 0 || out.samples(samples) {
        0
    } else {
        count
    }
}

/// What the kernel says of a socket; None: nothing that is worth more than what it said
/// before.
fn sample(socket: &Socket<'_>, kinds: Kinds, now: Timestamp) -> Option<FlowInfo> {
    says_more(socket, kinds)
        .then(|| FlowInfo::new(now, socket.cookie, kinds, socket.message(), socket.attributes()))
}

/// Not of half a socket, or not any more: what is left of one may still be called FIN-WAIT-2.
fn says_more(socket: &Socket<'_>, kinds: Kinds) -> bool {
    let is_rest = socket.protocol == Protocol::Tcp
        && kinds.extensions() & extension::INFO != 0
        && socket.tcp_info().is_none();
    !is_rest && ![State::TIME_WAIT, State::SYN_RECEIVED].contains(&socket.state)
}

/// For the ports of the flows, on the side that has fewer of them.
fn filter<'a>(flows: impl Iterator<Item = &'a FlowId> + Clone) -> Option<Filter> {
    let few = |port: fn(&FlowId) -> u16| {
        let mut ports = Vec::new();
        for port in flows.clone().map(port) {
            if !ports.contains(&port) {
                ports.push(port);
            }
            if ports.len() > PORTS {
                return None;
            }
        }
        Some(ports)
    };
    let conditions: Vec<[Condition; 1]> = match few(|id| id.src().port()) {
        Some(ports) => ports.into_iter().map(|port| [Condition::LocalPort(port, port)]).collect(),
        None => {
            let ports = few(|id| id.dst().port())?;
            ports.into_iter().map(|port| [Condition::RemotePort(port, port)]).collect()
        }
    };
    Filter::any_of(conditions.iter().map(|list| &list[..]))
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
