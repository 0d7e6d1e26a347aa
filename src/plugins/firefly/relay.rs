//! Passes fireflies on to collectors, as they came.
//!
//! A thread of its own, which owns its sockets; a resolver thread beside it keeps
//! the addresses of collectors that are configured by name. It ends when the
//! listener is gone and all is sent that waits. What waits is bounded in octets;
//! what is beyond is dropped and counted.
//!
//! Loops. A datagram that stays as it is cannot carry a hop limit, so the limit is
//! kept here: each datagram is passed on once, whoever it comes from. It is known
//! by a keyed hash of its octets for as long as [`MEMORY`] lasts, which is longer
//! than any way round at any rate that one thread reaches. A firefly says when it was
//! sent, so two are not the same by chance; where a sender repeats itself, nothing
//! is lost. And none is sent to the listener itself, by whatever name.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{error, info};

use super::NAME;
use crate::error::{Error, Result};
use crate::metrics::families::RELAYED;
use crate::metrics::{Count, Writer};
use crate::net::addresses::Local;
use crate::net::collectors::destinations;
use crate::net::collectors::resolver::{Lookup, Pace, Resolver};
use crate::net::collectors::sender::{Letter, Outcome, Recipient, Sender};
use crate::warn_limited;

/// How many octets may wait to be passed on.
const BACKLOG: usize = 16 << 20;

/// How long a datagram is known at least, unless [`GENERATION`] others came since.
const MEMORY: Duration = Duration::from_secs(30);

/// How many of the last datagrams are known at least.
const GENERATION: usize = 131_072;

/// What became of what was to be passed on.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) sent: Count,
    pub(super) failed: Count,
    /// A buffer of the socket stayed full.
    pub(super) full: Count,
    /// Too much waited.
    pub(super) shed: Count,
    /// Passed on before.
    pub(super) known: Count,
    /// Would have come back to the listener.
    pub(super) own: Count,
    /// The collector had no address.
    pub(super) unresolved: Count,
}

impl Counters {
    pub(super) fn write(&self, writer: &mut Writer) {
        for (result, count) in [
            ("sent", &self.sent),
            ("failed", &self.failed),
            ("buffer", &self.full),
            ("backlog", &self.shed),
            ("repeated", &self.known),
            ("own", &self.own),
            ("unresolved", &self.unresolved),
        ] {
            writer.number(&RELAYED, &[result], count.get());
        }
    }

    pub(super) fn report(&self) {
        info!(
            "{NAME}: relayed {}, {} failed, {} dropped on a full buffer, {} dropped since too much \
             waited, {} passed on before, {} that would have come back, {} without an address",
            self.sent.get(),
            self.failed.get(),
            self.full.get(),
            self.shed.get(),
            self.known.get(),
            self.own.get(),
            self.unresolved.get(),
        );
    }
}

/// Datagrams to be passed on, in order.
#[derive(Debug, Default)]
pub(super) struct Parcel {
    octets: Vec<u8>,
    ends: Vec<usize>,
}

impl Parcel {
    pub(super) fn add(&mut self, datagram: &[u8]) {
        self.octets.extend_from_slice(datagram);
        self.ends.push(self.octets.len());
    }

    fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.octets[start..*end])
    }
}

/// Whether a datagram to `address` reaches a listener that is bound to `own`, as far as
/// can be told without knowing the addresses of this host.
pub(super) fn certainly_reaches(address: SocketAddr, own: SocketAddr) -> bool {
    reaches(address, own, |ip| ip.is_loopback())
}

fn reaches(
    address: SocketAddr,
    own: SocketAddr,
    is_local: impl FnOnce(std::net::IpAddr) -> bool,
) -> bool {
    let (ip, bound) = (address.ip().to_canonical(), own.ip().to_canonical());
    address.port() == own.port()
        && if bound.is_unspecified() {
            // That of IPv6 takes both families.
            (bound.is_ipv6() || ip.is_ipv4()) && is_local(ip)
        } else {
            ip == bound
        }
}

/// The relay, as the listener sees it.
#[derive(Debug)]
pub(super) struct Relay {
    parcels: Option<mpsc::Sender<Parcel>>,
    /// Octets that wait.
    waiting: Arc<AtomicUsize>,
    counters: Arc<super::Counters>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts to relay to `collectors` what the listener at `own` takes.
    ///
    /// # Errors
    /// The system has no socket or no thread for it.
    pub(super) fn start(
        collectors: Vec<destinations::Collector>,
        own: SocketAddr,
        counters: Arc<super::Counters>,
        lookup: Lookup,
        pace: Pace,
    ) -> Result<Self> {
        let (mut known, mut named, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for collector in collectors {
            let name = collector.to_string();
            let addresses = match collector {
                destinations::Collector::Literal(address) => vec![address],
                destinations::Collector::Named { host, port } => {
                    named.push(known.len());
                    names.push((host, port));
                    Vec::new()
                }
            };
            known.push(Collector { name, addresses, current: 0 });
        }
        let resolver = (!names.is_empty()).then(|| Resolver::start(NAME, names, lookup, pace));
        let (parcels, queue) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let worker = Worker {
            queue,
            waiting: waiting.clone(),
            counters: counters.clone(),
            collectors: known,
            resolver: resolver.transpose()?,
            named,
            sender: Sender::open(NAME, false)?,
            own,
            local: Local::default(),
            passed: Passed::new(),
        };
        let thread = thread::Builder::new()
            .name("firefly.relay".into())
            .spawn(move || worker.run())
            .map_err(|error| Error::os("cannot start the relay's thread", error))?;
        Ok(Relay { parcels: Some(parcels), waiting, counters, thread: Some(thread) })
    }

    /// Has a parcel passed on, unless too much waits.
    pub(super) fn pass(&self, parcel: Parcel) {
        let (size, count) = (parcel.octets.len(), parcel.ends.len());
        if count == 0 {
            return;
        }
        if self.waiting.fetch_add(size, Ordering::Relaxed) + size > BACKLOG {
            self.waiting.fetch_sub(size, Ordering::Relaxed);
            self.counters.relay.shed.add(count as u64);
            warn_limited!("{NAME}: cannot relay {count} fireflies: too many wait");
            return;
        }
        if let Some(parcels) = &self.parcels {
            // Its panic is reported at the end.
            let _ = parcels.send(parcel);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.parcels = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("{NAME}: the relay's thread panicked");
        }
    }
}

/// A collector at work.
#[derive(Debug)]
struct Collector {
    /// As configured, for the log.
    name: String,
    /// The preferred one first; none: not known yet.
    addresses: Vec<SocketAddr>,
    /// The one in use.
    current: usize,
}

/// What the thread owns.
struct Worker {
    queue: Receiver<Parcel>,
    waiting: Arc<AtomicUsize>,
    counters: Arc<super::Counters>,
    collectors: Vec<Collector>,
    resolver: Option<Resolver>,
    /// Which collector each of the resolver's names is.
    named: Vec<usize>,
    sender: Sender,
    own: SocketAddr,
    local: Local,
    passed: Passed,
}

impl Worker {
    fn run(mut self) {
        while let Ok(parcel) = self.queue.recv() {
            self.hear_of_addresses();
            self.pass(&parcel);
            self.waiting.fetch_sub(parcel.octets.len(), Ordering::Relaxed);
        }
    }

    fn hear_of_addresses(&mut self) {
        let Worker { resolver: Some(resolver), named, collectors, sender, .. } = self else {
            return;
        };
        resolver.news(|index, mut addresses| {
            addresses.retain(|address| sender.reaches(address));
            let collector = &mut collectors[named[index]];
            if collector.addresses != addresses {
                (collector.addresses, collector.current) = (addresses, 0);
            }
        });
    }

    /// Sends the datagrams of a parcel that were not sent before.
    fn pass(&mut self, parcel: &Parcel) {
        let Worker { collectors, sender, own, local, passed, counters, .. } = self;
        let counters = &counters.relay;
        let (mut unresolved, mut own_ones) = (0, 0);
        let mut recipients = Vec::new();
        for (index, collector) in collectors.iter().enumerate() {
            let Some(address) = collector.addresses.get(collector.current).copied() else {
                unresolved += 1;
                warn_limited!(
                    "{NAME}: collector {} has no address yet, so it misses fireflies",
                    collector.name
                );
                continue;
            };
            if reaches(address, *own, |ip| local.contains(ip)) {
                own_ones += 1;
                warn_limited!(
                    "{NAME}: collector {} ({address}) is this plugin itself and gets nothing",
                    collector.name
                );
                continue;
            }
            recipients.push((address, Recipient::Collector(index)));
        }
        for datagram in parcel.datagrams() {
            if !passed.is_new(datagram) {
                counters.known.add(1);
                continue;
            }
            counters.unresolved.add(unresolved);
            counters.own.add(own_ones);
            sender.post(recipients.iter().copied(), |octets| octets.extend_from_slice(datagram));
        }
        self.flush();
    }

    /// Sends what was added and counts what became of it.
    fn flush(&mut self) {
        let Worker { collectors, resolver, sender, counters, .. } = self;
        let counters = &counters.relay;
        sender.flush(|letter, outcome| match outcome {
            Outcome::Sent => counters.sent.add(1),
            Outcome::Full => {
                counters.full.add(1);
                warn_limited!("{NAME}: cannot relay to {}: the buffer stays full", letter.to);
            }
            Outcome::Failed(cause) => {
                counters.failed.add(1);
                failed(letter, cause, collectors);
                if let Some(resolver) = resolver {
                    resolver.ask();
                }
            }
        });
    }
}

/// Logs a failure; the collector is tried at its next address.
fn failed(letter: &Letter, cause: nix::errno::Errno, collectors: &mut [Collector]) {
    let Recipient::Collector(index) = letter.recipient else { return };
    let (collector, to) = (&mut collectors[index], letter.to);
    warn_limited!("{NAME}: cannot relay to {} ({to}): {}", collector.name, cause.desc());
    // The first failure of a batch moves on, the others are of the old address.
    if collector.addresses.get(collector.current) == Some(&to) {
        collector.current = (collector.current + 1) % collector.addresses.len();
    }
}

/// The hashes of what was passed on, in two generations.
struct Passed {
    /// So that nobody can make two datagrams look the same.
    key: RandomState,
    young: HashSet<u64>,
    old: HashSet<u64>,
    /// When the young one began.
    since: Instant,
}

impl Passed {
    fn new() -> Self {
        let (young, old) = (HashSet::new(), HashSet::new());
        Passed { key: RandomState::new(), young, old, since: Instant::now() }
    }

    /// Whether the datagram was not seen before; it was from now on.
    fn is_new(&mut self, datagram: &[u8]) -> bool {
        self.is_new_at(datagram, Instant::now())
    }

    fn is_new_at(&mut self, datagram: &[u8], now: Instant) -> bool {
        let age = now.duration_since(self.since);
        if age >= MEMORY || self.young.len() >= GENERATION {
            self.old = mem::take(&mut self.young);
            if age >= 2 * MEMORY {
                self.old = HashSet::new();
            }
            self.since = now;
        }
        let hash = self.key.hash_one(datagram);
        !self.old.contains(&hash) && self.young.insert(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_new_once() {
        let mut passed = Passed::new();
        let start = passed.since;
        let mut is_new = |text: &str, seconds| {
            passed.is_new_at(text.as_bytes(), start + Duration::from_secs(seconds))
        };
        assert!(is_new("a", 0) && is_new("b", 0));
        assert!(!is_new("a", 29) && !is_new("b", 31) && !is_new("a", 59));
        assert!(is_new("a", 61), "it came round no more");
        assert!(!is_new("a", 62) && is_new("c", 62));
        assert!(is_new("a", 200));
    }

    #[test]
    fn memory_is_bounded() {
        let mut passed = Passed::new();
        let now = passed.since;
        for number in 0..3 * GENERATION {
            assert!(passed.is_new_at(&number.to_ne_bytes(), now));
            assert!(passed.young.len() <= GENERATION && passed.old.len() <= GENERATION);
            let first = number.saturating_sub(GENERATION - 1);
            assert!(!passed.is_new_at(&first.to_ne_bytes(), now));
        }
    }

    /// What a relay takes whose thread does nothing.
    #[test]
    fn what_waits_is_bounded() {
        let (parcels, _queue) = mpsc::channel();
        let counters = Arc::new(super::super::Counters::default());
        let waiting = Arc::new(AtomicUsize::new(0));
        let relay =
            Relay { parcels: Some(parcels), waiting: waiting.clone(), counters, thread: None };
        for parcels in 1..=2 * BACKLOG / (64 * 60_000) {
            let mut parcel = Parcel::default();
            (0..64).for_each(|_| parcel.add(&[0; 60_000]));
            relay.pass(parcel);
            let waiting = waiting.load(Ordering::Relaxed);
            assert!(waiting <= BACKLOG);
            let taken = waiting / 60_000;
            assert_eq!(relay.counters.relay.shed.get(), (parcels * 64 - taken) as u64);
        }
        assert!(relay.counters.relay.shed.get() > 0);
    }

    #[test]
    fn the_way_to_oneself_is_known() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (own, to, reached) in [
            ("127.0.0.1:10514", "127.0.0.1:10514", true),
            ("127.0.0.1:10514", "[::ffff:127.0.0.1]:10514", true),
            ("127.0.0.1:10514", "127.0.0.1:10515", false),
            ("127.0.0.1:10514", "192.0.2.1:10514", false),
            ("127.0.0.1:10514", "127.0.0.2:10514", false),
            ("[::1]:10514", "127.0.0.1:10514", false),
            ("0.0.0.0:10514", "192.0.2.1:10514", true),
            ("0.0.0.0:10514", "[2001:db8::1]:10514", false),
            ("[::]:10514", "192.0.2.1:10514", true),
            ("[::]:10514", "[2001:db8::1]:10514", true),
            ("[::]:10514", "[2001:db8::9]:10514", false),
        ] {
            let local = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap());
            let found = reaches(at(to), at(own), |ip| ip.is_loopback() || local.contains(&ip));
            assert_eq!(found, reached, "{own} hears {to}");
        }
    }
}
