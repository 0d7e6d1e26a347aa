//! Takes the samples. Runs on the enricher's thread, which sleeps in poll(2); owns a
//! netlink socket and the list of open flows. The last look at a flow that ends has a socket of
//! its own, on the dispatcher's thread.
//!
//! One dump for all flows, whatever their number. The kernel leaves out what is no flow's
//! where a few ports say it. What a dump lacks keeps the sample that it has: nothing ends here.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::config::Section;
use crate::dispatcher::{Event, Inlet, Queue};
use crate::enrichers::Enricher;
use crate::error::{Error, Result};
use crate::flow::{FlowId, Protocol, Timestamp};
use crate::flow_info::{FlowInfo, LastLook};
use crate::metrics::families::{ENRICHER_DROPPED, ENRICHER_SAMPLES};
use crate::metrics::Count;
use crate::net::sock_diag::{
    Condition, Diag, Family, Filter, Query, Socket, State, States, NO_COOKIE,
};
use crate::part::Context;
use crate::shutdown::Stop;
use crate::warn_limited;

/// Where messages come from.
const NAME: &str = "enrichers.netlink";
/// As many samples go to the dispatcher at a time.
const BATCH: usize = 256;
/// More ports than that are not said to the kernel, which would test each of them for
/// each socket.
const PORTS: usize = 16;
/// The queue of those flows that start and end is emptied at least as often.
const PATIENCE: Duration = Duration::from_secs(1);

struct Sampler {
    diag: Diag,
    protocol: Protocol,
    extensions: u8,
    states: States,
    period: Duration,
    flows: HashSet<FlowId>,
    /// Of `flows`, if they have not changed since; none: the kernel filters nothing.
    filter: Option<Filter>,
    is_filter_old: bool,
    counters: Arc<Counters>,
}

/// What became of samples.
#[derive(Default)]
struct Counters {
    taken: Count,
    /// The dispatcher was behind.
    lost: Count,
}

pub(super) fn build(section: &Section, context: &Context) -> Result<Box<dyn Enricher>> {
    let udp = section.int::<u8>("protocol") == Protocol::Udp.number();
    let counters = Arc::<Counters>::default();
    let counted = counters.clone();
    context.metrics.add(move |writer| {
        writer.number(&ENRICHER_SAMPLES, &["netlink"], counted.taken.get());
        writer.number(&ENRICHER_DROPPED, &["netlink"], counted.lost.get());
    });
    Ok(Box::new(Sampler {
        counters,
        diag: Diag::open()?,
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
        extensions: section.int("ext"),
        states: States(section.int("state")),
        period: context.period,
        flows: HashSet::new(),
        filter: None,
        is_filter_old: false,
    }))
}

impl Enricher for Sampler {
    fn last_look(&mut self) -> Result<Option<LastLook>> {
        let (mut diag, protocol, extensions) = (Diag::open()?, self.protocol, self.extensions);
        Ok(Some(Box::new(move |id| {
            if id.protocol() != protocol {
                return None;
            }
            let mut found = None;
            let outcome = diag.look_up(id, NO_COOKIE, extensions, |socket| {
                found = sample(socket, Timestamp::now());
            });
            if let Err(failure) = outcome {
                warn_limited!("{NAME}: cannot look at {id} at its end: {failure}");
            }
            found
        })))
    }

    fn run(mut self: Box<Self>, watch: Queue, out: Inlet, stop: Stop) -> Result<()> {
        let mut next = Instant::now() + self.period;
        loop {
            let wait = next.saturating_duration_since(Instant::now()).min(PATIENCE);
            // Rounded up, or the last part of a millisecond is spent asking.
            let wait = PollTimeout::try_from(wait + Duration::from_millis(1));
            let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, wait.unwrap_or(PollTimeout::MAX)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(Error::os("cannot poll", errno)),
            }
            self.follow(&watch);
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
    /// Learns which flows have started and ended.
    fn follow(&mut self, watch: &Queue) {
        while let Some(batch) = watch.try_recv() {
            for event in batch.iter() {
                let is_new = match event {
                    Event::Start(flow) if flow.id.protocol() == self.protocol => {
                        self.flows.insert(flow.id)
                    }
                    Event::End(flow, _) => self.flows.remove(&flow.id),
                    _ => false,
                };
                self.is_filter_old |= is_new;
            }
        }
        if self.flows.capacity() > 4096 && self.flows.len() < self.flows.capacity() / 8 {
            self.flows.shrink_to(self.flows.len() * 2);
        }
    }

    /// Takes a sample of each flow whose socket the kernel tells of.
    fn measure(&mut self, out: &Inlet) {
        if self.is_filter_old {
            self.is_filter_old = false;
            self.filter = filter(&self.flows);
        }
        let (has_v4, has_v6) = self
            .flows
            .iter()
            .fold((false, false), |(v4, v6), id| (v4 || !id.is_ipv6(), v6 || id.is_ipv6()));
        let Sampler { diag, protocol, extensions, states, flows, filter, .. } = self;
        let (mut samples, mut lost, mut taken) = (Vec::new(), 0, 0);
        let mut now = Timestamp::now();
        // Sockets of IPv6 may carry IPv4.
        for (family, wanted) in [(Family::V4, has_v4), (Family::V6, has_v4 || has_v6)] {
            if !wanted {
                continue;
            }
            let query = Query {
                protocol: *protocol,
                family,
                states: *states,
                extensions: *extensions,
                filter: filter.as_ref(),
            };
            let outcome = diag.dump(&query, |socket| {
                let Ok(id) = socket.flow() else { return };
                if !flows.contains(&id) {
                    return;
                }
                let Some(info) = sample(socket, now) else { return };
                samples.push((id, info));
                taken += 1;
                if samples.len() == BATCH {
                    let full = std::mem::replace(&mut samples, Vec::with_capacity(BATCH));
                    lost += if out.samples(full) { 0 } else { BATCH };
                    now = Timestamp::now();
                }
            });
            // A dump that is not whole lacks samples, which nobody misses.
            if let Err(failure) = outcome {
                if failure.errno == Errno::EINVAL && filter.take().is_some() {
                    log::debug!("{NAME}: the kernel does not filter sockets: {failure}");
                    continue;
                }
                warn_limited!("{NAME}: cannot look at the sockets of flows: {failure}");
            }
        }
        let rest = samples.len();
        if rest > 0 && !out.samples(samples) {
            lost += rest;
        }
        self.counters.taken.add(taken);
        self.counters.lost.add(lost as u64);
        if lost > 0 {
            warn_limited!("{NAME}: the dispatcher is behind, so {lost} samples were given up");
        }
    }
}

/// What the kernel says of a socket; None: nothing that is worth more than what it said
/// before.
fn sample(socket: &Socket<'_>, now: Timestamp) -> Option<FlowInfo> {
    // Not a whole socket, or not any more.
    if [State::TIME_WAIT, State::SYN_RECEIVED].contains(&socket.state) {
        return None;
    }
    Some(FlowInfo::new(now, socket.cookie, socket.attributes()))
}

/// For the ports of the flows, on the side that has fewer of them.
fn filter(flows: &HashSet<FlowId>) -> Option<Filter> {
    let few = |port: fn(&FlowId) -> u16| {
        let mut ports = BTreeSet::new();
        flows
            .iter()
            .all(|id| {
                ports.insert(port(id));
                ports.len() <= PORTS
            })
            .then_some(ports)
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
