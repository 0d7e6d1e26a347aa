//! Sends a firefly at the start and at the end of each flow, and meanwhile as often as is
//! wanted, to the flow's destination and to collectors.
//!
//! Runs on the backend's thread; a resolver thread beside it keeps the addresses
//! of collectors that are configured by name. Fireflies are sent once and never
//! repeated. Whatever goes wrong with one costs that one only and is counted: the
//! daemon neither stalls nor stops because somebody cannot be reached, and what
//! waits for destinations holds up nothing for collectors.

mod keys;
#[cfg(test)]
mod tests;

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;

use log::{debug, error, info};
use nix::errno::Errno;

use super::{Backend, Spec};
use crate::config::Section;
use crate::dispatcher::{Event, Queue};
use crate::error::Result;
use crate::firefly::{Encoder, Mode, Stage};
use crate::flow::{Flow, Timestamp};
use crate::metrics::families::{FIREFLIES_FAILED, FIREFLIES_SENT, QUEUE_DROPPED};
use crate::metrics::{Count, Writer};
use crate::net::collectors::destinations::{self, takes_fireflies};
use crate::net::collectors::resolver::{Lookup, Pace, Resolver};
use crate::net::collectors::sender::{Letter, Outcome, Recipient, Sender};
use crate::stun::{self, Stun};
use crate::warn_limited;

/// Where messages come from.
const NAME: &str = "backends.firefly";

/// How many events may wait. What is beyond is not sent, so that memory stays
/// bounded when flows come faster than the network takes their fireflies.
const BACKLOG: usize = 262_144;

/// The firefly backend.
pub(super) static SPEC: Spec = Spec {
    name: "firefly",
    aliases: &[],
    summary: "sends a firefly, a UDP datagram that describes the flow, when a flow starts and ends",
    keys: keys::KEYS,
    check: |section| {
        let mut problems = section.section("stun").map(stun::problems).unwrap_or_default();
        problems.iter_mut().for_each(|problem| problem.insert_str(0, "stun."));
        match collectors(section) {
            Err(more) => problems.extend(more),
            Ok(collectors) if collectors.is_empty() && !section.bool("sendToDestination") => {
                problems.push(
                    "sendToDestination: false, and neither collectors nor sendToCollector: there \
                     is nothing to send to"
                        .into(),
                );
            }
            Ok(_) => {}
        }
        problems
    },
    build: |section, context| {
        let lookup = |host: &str, port| (host, port).to_socket_addrs().map(Iterator::collect);
        let mut firefly = Firefly::new(section, Arc::new(lookup), Pace::default(), BACKLOG)?;
        firefly.in_full = context.in_full.clone();
        firefly.tell_enrichers();
        let counters = firefly.counters.clone();
        context.metrics.add(move |writer| counters.write(writer));
        Ok(Box::new(firefly))
    },
};

/// The collectors of both spellings, each once; or what is wrong with them.
fn collectors(section: &Section) -> std::result::Result<Vec<destinations::Collector>, Vec<String>> {
    let parse = |text: &String| {
        let parsed = destinations::Collector::parse(text);
        parsed.map_err(|problem| format!("collectors: {text:?}: {problem}"))
    };
    let mut parsed: Vec<_> = section.list("collectors").iter().map(parse).collect();
    if section.bool("sendToCollector") {
        let (host, port) = (section.text("collectorAddress"), section.int("collectorPort"));
        let named = destinations::Collector::new(host, port);
        parsed.push(named.map_err(|problem| format!("collectorAddress: {problem}")));
    }
    let (mut collectors, mut problems) = (Vec::new(), Vec::new());
    for parsed in parsed {
        match parsed {
            Err(problem) => problems.push(problem),
            Ok(collector) if collectors.contains(&collector) => {}
            Ok(collector) => collectors.push(collector),
        }
    }
    if problems.is_empty() {
        Ok(collectors)
    } else {
        Err(problems)
    }
}

/// A collector at work.
#[derive(Debug)]
struct Collector {
    /// As configured, for the log.
    name: String,
    /// Of the family of a socket, the preferred one first; none: not known yet.
    addresses: Vec<SocketAddr>,
    /// The one in use.
    current: usize,
}

/// What became of the fireflies of one kind of recipient.
#[derive(Debug, Default, PartialEq)]
struct Fate {
    sent: Count,
    failed: Count,
    /// The socket's buffer stayed full.
    dropped: Count,
}

/// What became of all fireflies.
#[derive(Debug, Default, PartialEq)]
struct Counters {
    destinations: Fate,
    collectors: Fate,
    /// To destinations that can take none.
    unsuitable: Count,
    /// To collectors whose address is not known yet.
    unresolved: Count,
    /// Events that were not looked at since too many waited.
    shed: Count,
}

impl Counters {
    /// Writes them as metrics.
    fn write(&self, writer: &mut Writer) {
        for (kind, fate, reason, count) in [
            ("destination", &self.destinations, "unsuitable", &self.unsuitable),
            ("collector", &self.collectors, "unresolved", &self.unresolved),
        ] {
            writer.number(&FIREFLIES_SENT, &[kind], fate.sent.get());
            writer.number(&FIREFLIES_FAILED, &[kind, "error"], fate.failed.get());
            writer.number(&FIREFLIES_FAILED, &[kind, "buffer"], fate.dropped.get());
            writer.number(&FIREFLIES_FAILED, &[kind, reason], count.get());
        }
        writer.number(&QUEUE_DROPPED, &["firefly"], self.shed.get());
    }
}

/// Who gets fireflies, and in what form: all that a section says.
#[derive(Debug)]
struct Plan {
    /// Port of the flows' destinations; none: they get no firefly.
    destination_port: Option<u16>,
    collectors: Vec<Collector>,
    /// Of the collectors that are configured by name.
    resolver: Option<Resolver>,
    /// Which collector each of the resolver's names is.
    named: Vec<usize>,
    encoder: Encoder,
}

impl Plan {
    fn new(section: &Section, lookup: &Lookup, pace: Pace) -> Result<Self> {
        // Judged by `check`, so there are no problems.
        let configured = collectors(section).unwrap_or_default();
        let (mut collectors, mut named, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for collector in configured {
            let name = collector.to_string();
            let addresses = match collector {
                destinations::Collector::Literal(address) => vec![address],
                destinations::Collector::Named { host, port } => {
                    named.push(collectors.len());
                    names.push((host, port));
                    Vec::new()
                }
            };
            collectors.push(Collector { name, addresses, current: 0 });
        }
        let resolver = (!names.is_empty())
            .then(|| Resolver::start(NAME, names, lookup.clone(), pace))
            .transpose()?;
        let hostname = nix::unistd::gethostname().unwrap_or_default();
        let hostname = section.bool("prependSyslog").then_some(hostname.as_encoded_bytes());
        let mut encoder = Encoder::new(hostname);
        encoder.enrich(section.bool("enrich").then(|| match section.text("enrichmentMode") {
            "compatible" => Mode::Compatible,
            "full" => Mode::Full,
            _ => Mode::Lean,
        }));
        Ok(Plan {
            encoder,
            destination_port: section
                .bool("sendToDestination")
                .then(|| section.int("destinationPort")),
            collectors,
            resolver,
            named,
        })
    }
}

/// The backend.
struct Firefly {
    plan: Plan,
    /// Knows the public addresses, if it is asked for.
    stun: Option<Stun>,
    sender: Sender,
    counters: Arc<Counters>,
    backlog: usize,
    /// The section of `plan`, and what else it takes to make one.
    section: Section,
    lookup: Lookup,
    pace: Pace,
    /// Whether fireflies say all that is known of a connection.
    in_full: Arc<AtomicBool>,
}

impl Firefly {
    fn new(section: &Section, lookup: Lookup, pace: Pace, backlog: usize) -> Result<Self> {
        let sender = Sender::open(NAME, true)?;
        let plan = Plan::new(section, &lookup, pace)?;
        let stun = start_stun(section, &lookup)?;
        let (counters, section) = (Arc::default(), section.clone());
        let in_full = Arc::default();
        Ok(Firefly { plan, stun, sender, counters, backlog, section, lookup, pace, in_full })
    }

    /// Has them ask the kernel for what is said, and for no more.
    fn tell_enrichers(&self) {
        self.in_full.store(self.plan.encoder.is_full(), Relaxed);
    }

    /// Works by `section` from now on. A collector that stays keeps the addresses
    /// that are known, so that it misses nothing while its name is looked up anew.
    fn reload(&mut self, section: &Section) {
        if self.section == *section {
            return;
        }
        // What is known of public addresses is kept if nothing of it has changed.
        let same = self.section.section("stun") == section.section("stun");
        let stun = if same { Ok(None) } else { start_stun(section, &self.lookup) };
        match stun.and_then(|stun| Ok((stun, Plan::new(section, &self.lookup, self.pace)?))) {
            Ok((stun, mut plan)) => {
                if !same {
                    self.stun = stun;
                }
                for collector in &mut plan.collectors {
                    let old = self.plan.collectors.iter().find(|old| old.name == collector.name);
                    if let Some(Collector { addresses, current, .. }) = old {
                        collector.addresses.clone_from(addresses);
                        collector.current = *current;
                    }
                }
                self.plan = plan;
                self.tell_enrichers();
                self.section = section.clone();
            }
            // It lacks a thread or a descriptor: nothing that could have been tried before.
            Err(error) => error!("backends.firefly: {error}; all stays as it was"),
        }
    }

    /// Sends until the queue hangs up.
    fn work(&mut self, events: &Queue) {
        // What is measured comes with the flow.
        events.want_samples(false);
        events.want_ongoing();
        while let Some(first) = events.recv() {
            let mut next = Some(first);
            while let Some(batch) = next {
                self.hear_of_addresses();
                self.take(&batch, events.depth());
                next = events.try_recv();
            }
            self.flush();
        }
    }

    /// Takes what the resolver has found since.
    fn hear_of_addresses(&mut self) {
        let Firefly { plan: Plan { resolver, named, collectors, .. }, sender, .. } = self;
        let Some(resolver) = resolver else { return };
        resolver.news(|index, mut addresses| {
            addresses.retain(|address| sender.reaches(address));
            let collector = &mut collectors[named[index]];
            if collector.addresses != addresses {
                collector.addresses = addresses;
                collector.current = 0;
            }
        });
    }

    /// Sends the fireflies of a batch, the last ones excepted, or sheds them if
    /// too many events wait behind it.
    fn take(&mut self, batch: &[Event], behind: usize) {
        let mut shed = 0_u64;
        for event in batch {
            match event {
                // Nothing to tell of.
                Event::Everything(_) | Event::Sample(_) => {}
                Event::Report => {
                    self.flush();
                    self.report();
                }
                Event::Reload(section) => {
                    // What waits is for those who were to get it.
                    self.flush();
                    self.reload(section);
                }
                _ if behind > self.backlog => shed += 1,
                Event::Start(flow) => self.post(flow, Stage::Start, Timestamp::now()),
                Event::Ongoing(flow, at) => self.post(flow, Stage::Ongoing, *at),
                Event::End(flow, end) => self.post(flow, Stage::End(*end), Timestamp::now()),
            }
        }
        if shed > 0 {
            self.counters.shed.add(shed);
            warn_limited!(
                "backends.firefly: {behind} events behind, so {shed} were dropped unsent"
            );
        }
    }

    /// Adds the firefly of a flow, of that moment, for all its recipients.
    fn post(&mut self, flow: &Flow, stage: Stage, now: Timestamp) {
        let Firefly { plan, stun, sender, counters, .. } = self;
        let Plan { destination_port, collectors, encoder, .. } = plan;
        let destination = destination_port.and_then(|port| {
            let ip = flow.id.dst().ip();
            if takes_fireflies(ip) {
                return Some((SocketAddr::new(ip, port), Recipient::Destination));
            }
            debug!("backends.firefly: {}: its destination can take no firefly", flow.id);
            counters.unsuitable.add(1);
            None
        });
        let collectors = collectors.iter().enumerate().filter_map(|(index, collector)| {
            let address = collector.addresses.get(collector.current);
            if address.is_none() {
                counters.unresolved.add(1);
                warn_limited!(
                    "backends.firefly: collector {} has no address yet, so its fireflies are lost",
                    collector.name
                );
            }
            Some((*address?, Recipient::Collector(index)))
        });
        sender.post(destination.into_iter().chain(collectors), |out| {
            let outside = stun.as_ref().and_then(|stun| stun.outside(flow));
            encoder.encode(outside.as_ref().unwrap_or(flow), stage, now, out);
        });
        if sender.is_full() {
            self.flush();
        }
    }

    /// Sends what was added and counts what became of it.
    fn flush(&mut self) {
        let Firefly { plan: Plan { collectors, resolver, .. }, sender, counters, .. } = self;
        sender.flush(|letter, outcome| {
            let fate = match letter.recipient {
                Recipient::Destination => &counters.destinations,
                Recipient::Collector(_) => &counters.collectors,
            };
            match outcome {
                Outcome::Sent => fate.sent.add(1),
                Outcome::Full => {
                    fate.dropped.add(1);
                    full(letter, collectors);
                }
                Outcome::Failed(error) => {
                    fate.failed.add(1);
                    let collector = match letter.recipient {
                        Recipient::Destination => None,
                        Recipient::Collector(index) => Some(&mut collectors[index]),
                    };
                    failed(letter, error, collector, resolver.as_ref());
                }
            }
        });
    }

    fn report(&self) {
        let Counters { destinations, collectors, unsuitable, unresolved, shed } = &*self.counters;
        info!(
            "backends.firefly: to destinations {destinations}, {unsuitable} that can take none; \
             to collectors {collectors}, {unresolved} without an address; \
             {shed} events dropped unsent"
        );
        if let Some(stun) = &self.stun {
            info!("backends.firefly.stun: public addresses: {}", stun.report());
        }
    }
}

/// What knows the public addresses; none: it is not asked for.
fn start_stun(section: &Section, lookup: &Lookup) -> Result<Option<Stun>> {
    section.section("stun").map(|section| Stun::start(section, lookup)).transpose()
}

/// Logs that there was no room. Each kind has a limit of its own, as each has a
/// buffer.
fn full(letter: &Letter, collectors: &[Collector]) {
    let to = letter.to;
    match letter.recipient {
        Recipient::Destination => warn_limited!(
            "backends.firefly: cannot send to the destination {to}: \
             the buffer of the destinations stays full"
        ),
        Recipient::Collector(index) => warn_limited!(
            "backends.firefly: cannot send to collector {} ({to}): \
             the buffer of the collectors stays full",
            collectors[index].name
        ),
    }
}

/// Logs a failure; a collector is tried at its next address, and looked up again.
fn failed(
    letter: &Letter,
    error: Errno,
    collector: Option<&mut Collector>,
    resolver: Option<&Resolver>,
) {
    let (to, cause) = (letter.to, error.desc());
    // Each kind has a limit of its own: dead destinations are many.
    let Some(collector) = collector else {
        warn_limited!("backends.firefly: cannot send to the destination {to}: {cause}");
        return;
    };
    warn_limited!("backends.firefly: cannot send to collector {} ({to}): {cause}", collector.name);
    // The first failure of a batch moves on, the others are of the old address.
    if collector.addresses.get(collector.current) == Some(&to) {
        collector.current = (collector.current + 1) % collector.addresses.len();
    }
    if let Some(resolver) = resolver {
        resolver.ask();
    }
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fate { sent, failed, dropped } = self;
        write!(f, "{sent} sent, {failed} failed, {dropped} dropped on a full buffer")
    }
}

impl Backend for Firefly {
    fn run(mut self: Box<Self>, events: Queue) -> Result<()> {
        self.work(&events);
        Ok(())
    }
}
