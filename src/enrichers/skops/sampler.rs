//! Loads bpf/skops.bpf.c, tells it of the open flows and reads the samples that it takes.
//! Runs on the enricher's thread, which sleeps in poll(2); owns the programs' links and maps,
//! which end with it.
//!
//! Samples at changes of state lie in a ring buffer that two threads read: this one, and the
//! dispatcher's in its last look at a flow that ends. So a connection that closes, and a flow
//! that ends at once, are not a race: what is read is kept until the dispatcher has it
//! for sure.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::time::{clock_getres, clock_gettime, ClockId};

use crate::config::Section;
use crate::dispatcher::{Event, Inlet, Queue};
use crate::enrichers::Enricher;
use crate::error::{At, Error, Result};
use crate::flow::{FlowId, Protocol, Timestamp};
use crate::flow_info::{FlowInfo, Kinds, LastLook};
use crate::metrics::families::{ENRICHER_DROPPED, ENRICHER_FAILED, ENRICHER_SAMPLES};
use crate::metrics::Count;
use crate::net::connections;
use crate::net::sock_diag::{Diag, State, NO_COOKIE};
use crate::part::Context;
use crate::shutdown::Stop;
use crate::sys::abi::{FlowKey, TcpSample};
use crate::sys::bpf::{Link, Map, OpenObject, PerCpuArray, RingBuffer, SKOPS};
use crate::sys::iter::Iter;
use crate::warn_limited;

/// Where messages come from.
const NAME: &str = "enrichers.skops";
/// As many samples go to the dispatcher at a time.
const BATCH: usize = 256;
/// After so many samples at once a pause is made.
const MANY: usize = 4_096;
const PAUSE: Duration = Duration::from_millis(10);
/// The queue of those flows that start and end is emptied at least as often: a connection
/// is not watched before.
const PATIENCE: Duration = Duration::from_millis(100);

struct Sampler {
    // First, so that no program runs any more when the rest goes.
    _link: Link,
    /// None: changes of state are all.
    look: Option<Iter<TcpSample>>,
    samples: RingBuffer<TcpSample>,
    changes: Arc<Mutex<Changes>>,
    watched: Map<FlowKey, u32>,
    /// How many entries that has room for.
    capacity: u32,
    /// The interfaces of sockets that are bound to one, until the dispatcher gets it.
    bound: Option<Map<FlowKey, u32>>,
    lost: PerCpuArray,
    period: Duration,
    is_verbose: bool,
    /// Whether anybody reads what is said only in full.
    in_full: Arc<AtomicBool>,
    counters: Arc<Counters>,
}

/// What became of samples.
#[derive(Default)]
struct Counters {
    taken: Count,
    /// The dispatcher was behind.
    lost: Count,
    /// There was no room in the ring buffer.
    unread: Count,
    /// Looks and watches that the kernel refused.
    failed: Count,
}

/// Samples at changes of state.
struct Changes {
    ring: RingBuffer<TcpSample>,
    /// The last one of each flow, and whether the dispatcher was given it.
    found: HashMap<FlowId, (FlowInfo, bool)>,
}

pub(super) fn build(section: &Section, context: &Context) -> Result<Box<dyn Enricher>> {
    open(section, context)
        .map(|sampler| Box::new(sampler) as Box<dyn Enricher>)
        .at("measuring by eBPF takes Linux 5.9 with BTF, and cgroup2")
}

fn open(section: &Section, context: &Context) -> Result<Sampler> {
    let polls = section.text("strategy") == "poll";
    let cgroup = match section.text("cgroupPath") {
        "" => connections::root()?,
        path => PathBuf::from(path),
    };
    let (period, is_verbose) = (context.period, section.bool("debugMode"));
    let in_full = context.in_full.clone();
    let sampler =
        Sampler { period, is_verbose, in_full, ..load(polls, &cgroup, context.max_flows)? };
    let counted = sampler.counters.clone();
    context.metrics.add(move |writer| {
        writer.number(&ENRICHER_SAMPLES, &["skops"], counted.taken.get());
        let lost = counted.lost.get() + counted.unread.get();
        writer.number(&ENRICHER_DROPPED, &["skops"], lost);
        writer.number(&ENRICHER_FAILED, &["skops"], counted.failed.get());
    });
    Ok(sampler)
}

/// Has the programs measure that many flows at the most.
fn load(polls: bool, cgroup: &Path, max_flows: u32) -> Result<Sampler> {
    let mut object = OpenObject::from_memory("skops", &SKOPS.unpack()?)?;
    object.set_rodata(".rodata.here", &connections::here()?)?;
    object.set_rodata(".rodata.jiffy", &jiffy()?)?;
    object.set_max_entries("watched", max_flows)?;
    object.set_max_entries("bound", max_flows)?;
    if polls {
        object.set_max_entries("samples", room(max_flows))?;
    } else {
        object.retain_programs(|name| name == "states")?;
    }
    let object = object.load()?;
    let look = || Iter::attach_to_map(object.program("look")?, &object, "sockets");
    let look = polls.then(look).transpose()?;
    let ring = object.ring_buffer("changes")?;
    Ok(Sampler {
        look,
        samples: object.ring_buffer("samples")?,
        changes: Arc::new(Mutex::new(Changes { ring, found: HashMap::new() })),
        watched: object.map("watched")?,
        capacity: max_flows,
        bound: Some(object.map("bound")?),
        lost: object.per_cpu_array("lost")?,
        period: Duration::MAX,
        is_verbose: false,
        in_full: Arc::default(),
        counters: Arc::default(),
        _link: connections::attach(&object, "states", cgroup)?,
    })
}

/// Whether the programs measure a connection of this process, which is in that control
/// group: while it is open, and when it closes. Nothing is left of them.
///
/// # Errors
/// What the kernel lacks or refuses.
pub(crate) fn trial(cgroup: &Path) -> Result<()> {
    let mut sampler = load(true, cgroup, 1)?;
    let made = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| {
        let near = TcpStream::connect(listener.local_addr()?)?;
        Ok((near.local_addr()?, near.peer_addr()?, near, listener.accept()?))
    });
    let (here, there, near, _far) =
        made.map_err(|error| Error::os("cannot connect to 127.0.0.1", error))?;
    let id = FlowId::new(Protocol::Tcp, here, there).map_err(Error::config)?;
    let watched = key(&id).map_or(Ok(()), |key| sampler.watched.update(&key, &0));
    watched.map_err(|error| Error::os("cannot watch a flow", error))?;
    let (samples, mut seen) = (&mut sampler.samples, false);
    // No other connection is watched.
    let take = || {
        while samples.pop().is_some() {
            seen = true;
        }
    };
    sampler.look.as_ref().map_or(Ok(()), |look| look.run(take))?;
    drop(near);
    let mut changes = lock(&sampler.changes);
    changes.read();
    if seen && changes.found.contains_key(&id) {
        return Ok(());
    }
    Err(Error::os("the programs are attached, but not run", Errno::ENOENT))
}

/// Octets for the samples of half of the flows, within bounds. The kernel has as many lists of
/// sockets as CPUs, and where there is no more room it goes through one of them again to find
/// where it was. More than the bound would be written to and read from outside of the
/// processor's caches, which costs as much as that.
fn room(flows: u32) -> u32 {
    (flows.min(1 << 20) * 152).next_power_of_two().clamp(256 << 10, 4 << 20)
}

/// The length of the kernel's jiffy, in us.
fn jiffy() -> Result<u32> {
    let length = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE);
    let length = length.map_err(|error| Error::os("cannot ask for the length of a tick", error))?;
    Ok(u32::try_from(length.tv_nsec() / 1000).unwrap_or(0).max(1))
}

/// For how long this thread has had a core. (Pauses, and who else wants it, do not count.)
fn busy() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

impl Enricher for Sampler {
    fn last_look(&mut self) -> Result<Option<LastLook>> {
        let (changes, bound) = (self.changes.clone(), self.bound.take());
        let in_full = self.in_full.clone();
        let mut diag = Diag::open()?;
        Ok(Some(Box::new(move |id| {
            if id.protocol() != Protocol::Tcp {
                return None;
            }
            let change = {
                let mut changes = lock(&changes);
                changes.read();
                changes.found.remove(id)
            };
            // The socket knows more, if there is one.
            let in_full = in_full.load(Relaxed);
            let found = look(&mut diag, id, 0, in_full).or_else(|| {
                let interface = bound.as_ref()?.lookup(&key(id)?).ok()?;
                look(&mut diag, id, interface, in_full)
            });
            found.or(change.map(|(info, _)| info))
        })))
    }

    fn capacity(&self) -> Option<u32> {
        Some(self.capacity)
    }

    fn run(mut self: Box<Self>, watch: Queue, out: Inlet, stop: Stop) -> Result<()> {
        let reports = lock(&self.changes).ring.as_fd().try_clone_to_owned();
        let reports = reports.map_err(|error| Error::os("cannot copy a descriptor", error))?;
        let mut next = Instant::now() + self.period;
        loop {
            let wait = next.saturating_duration_since(Instant::now()).min(PATIENCE);
            // Rounded up, or the last part of a millisecond is spent asking.
            let wait = PollTimeout::try_from(wait + Duration::from_millis(1));
            let mut fds = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(reports.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, wait.unwrap_or(PollTimeout::MAX)) {
                Ok(_) if fds[0].any() == Some(true) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::os("cannot poll", errno)),
            }
            self.follow(&watch);
            lock(&self.changes).read();
            if Instant::now() >= next {
                let before = busy();
                self.measure(&out);
                // A fifth of a core at the most.
                next = (next + self.period).max(Instant::now() + 4 * (busy() - before));
            }
        }
    }
}

impl Sampler {
    /// Tells the programs which flows have started and ended.
    fn follow(&mut self, watch: &Queue) {
        while let Some(batch) = watch.try_recv() {
            for event in batch.iter() {
                let outcome = match event {
                    Event::Start(flow) => {
                        key(&flow.id).map_or(Ok(()), |key| self.watched.update(&key, &0))
                    }
                    Event::End(flow, _) => {
                        // It is missing if it could not be told.
                        let _ = key(&flow.id).map(|key| self.watched.delete(&key));
                        Ok(())
                    }
                    _ => Ok(()),
                };
                if let Err(error) = outcome {
                    self.counters.failed.add(1);
                    warn_limited!("{NAME}: cannot watch a flow: {error}");
                }
            }
        }
    }

    /// Has samples taken, and hands them on with those that were taken since.
    fn measure(&mut self, out: &Inlet) {
        let mut sink = Sink { out, batch: Vec::new(), taken: 0, lost: 0 };
        let Sampler { look, samples, changes, is_verbose, .. } = self;
        let is_verbose = *is_verbose;
        let mut take = |id: FlowId, info: FlowInfo| {
            if is_verbose {
                let rtt = info.tcp_info().and_then(|tcp| tcp.rtt()).unwrap_or(0);
                log::debug!("{NAME}: {id}: {:?}, rtt {rtt} us", info.usage());
            }
            sink.push(id, info);
        };
        {
            let mut changes = lock(changes);
            changes.read();
            changes.found.retain(|id, (info, is_told)| {
                let is_new = !std::mem::replace(is_told, true);
                if is_new {
                    take(*id, info.clone());
                }
                is_new
            });
            if changes.found.capacity() > 4096 {
                changes.found.shrink_to_fit();
            }
        }
        let outcome = look.as_ref().map_or(Ok(()), |look| {
            look.run(|| {
                let (now, mut count) = (Timestamp::now(), 0);
                while let Some(sample) = samples.pop() {
                    count += 1;
                    if let Some((id, info)) = decode(&sample, now) {
                        take(id, info);
                    }
                    // So that the dispatcher, whose inbox has room for more than that, keeps up.
                    if count % MANY == 0 {
                        thread::sleep(PAUSE);
                    }
                }
            })
        });
        if let Err(error) = outcome {
            self.counters.failed.add(1);
            warn_limited!("{NAME}: cannot look at the sockets of flows: {error}");
        }
        sink.flush();
        self.counters.taken.add(sink.taken);
        self.counters.lost.add(sink.lost);
        if sink.lost > 0 {
            let lost = sink.lost;
            warn_limited!("{NAME}: the dispatcher is behind; samples given up: {lost}");
        }
        // The map is there as long as this.
        let unread = self.lost.sums().ok().and_then(|sums| sums.first().copied()).unwrap_or(0);
        if unread > self.counters.unread.get() {
            self.counters.unread.set(unread);
            warn_limited!("{NAME}: {unread} changes of state so far found no room to be told");
        }
    }
}

/// Samples on their way to the dispatcher.
struct Sink<'a> {
    out: &'a Inlet,
    batch: Vec<(FlowId, FlowInfo)>,
    taken: u64,
    lost: u64,
}

impl Sink<'_> {
    fn push(&mut self, id: FlowId, info: FlowInfo) {
        self.batch.push((id, info));
        if self.batch.len() == BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let count = self.batch.len() as u64;
        let full = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        if count > 0 && !self.out.samples(full) {
            self.lost += count;
        } else {
            self.taken += count;
        }
    }
}

impl Changes {
    /// Takes what the program has told.
    fn read(&mut self) {
        let now = Timestamp::now();
        while let Some(sample) = self.ring.pop() {
            if let Some((id, info)) = decode(&sample, now) {
                self.found.insert(id, (info, false));
            }
        }
    }
}

/// What sock_diag(7) tells of a flow's socket, if there is a whole one. One that is bound to an
/// interface is found only by that; the others by any.
fn look(diag: &mut Diag, id: &FlowId, interface: u32, in_full: bool) -> Option<FlowInfo> {
    let (mut found, kinds) = (None, Kinds::new(u8::MAX, in_full));
    let outcome = diag.look_up(id, NO_COOKIE, interface, kinds.extensions(), |socket| {
        if ![State::TIME_WAIT, State::SYN_RECEIVED].contains(&socket.state) {
            let (now, cookie, message) = (Timestamp::now(), socket.cookie, socket.message());
            found = Some(FlowInfo::new(now, cookie, kinds, message, socket.attributes()));
        }
    });
    if let Err(failure) = outcome {
        warn_limited!("{NAME}: cannot look at {id} at its end: {failure}");
    }
    found
}

/// A thread that has panicked has left the data as it was.
fn lock(changes: &Mutex<Changes>) -> MutexGuard<'_, Changes> {
    changes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the programs know a flow by; None: it is not TCP.
fn key(id: &FlowId) -> Option<FlowKey> {
    let ip = |end: SocketAddr| match end.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    (id.protocol() == Protocol::Tcp).then(|| FlowKey {
        src: ip(id.src()),
        dst: ip(id.dst()),
        src_port: id.src().port().to_be_bytes(),
        dst_port: id.dst().port().to_be_bytes(),
        protocol: Protocol::Tcp.number(),
        pad: [0; 3],
    })
}

fn decode(sample: &TcpSample, now: Timestamp) -> Option<(FlowId, FlowInfo)> {
    let end = |ip: [u8; 16], port| {
        SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes(port))
    };
    let FlowKey { src, dst, src_port, dst_port, .. } = sample.key;
    let id = FlowId::new(Protocol::Tcp, end(src, src_port), end(dst, dst_port)).ok()?;
    let info = sample.info.as_flattened();
    Some((id, FlowInfo::by_program(now, sample.cookie, info, &sample.congestion)))
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
