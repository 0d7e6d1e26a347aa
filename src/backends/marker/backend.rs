//! The marker at work: keeps the map of flows as the dispatcher says, while another
//! thread keeps the programs on the interfaces.
//!
//! Built on the main thread, run on its own. Owns the programs' maps, and the thread
//! that follows the interfaces.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use log::{debug, error, info};

use super::choice::Wanted;
use super::follow::{Follower, Names, View};
use super::meter::Slots;
use super::programs::Programs;
use super::ruled::Ruled;
use super::rules::{self, Table};
use super::tag::{self, Newest};
use crate::backends::Backend;
use crate::config::Section;
use crate::dispatcher::{Event, Queue};
use crate::error::{Error, Result};
use crate::flow::{Flow, Tag};
use crate::log::limit::Limit;
use crate::meter::Meter;
use crate::metrics::families::{INTERFACE_ATTACHED, MAP_ENTRIES, MAP_ENTRIES_LIMIT, UNMARKED};
use crate::metrics::{interfaces, Count, Metrics};
use crate::part::{Context, Trial};
use crate::queue::RecvTimeoutError;
use crate::registry::{self, Registry};
use crate::sys::abi::{FlowKey, FlowValue, UNMARKED_LABELS, UNMARKED_REASONS};
use crate::sys::bpf::{Map, PerCpuArray};
use crate::warn_limited;

pub(super) struct Marker {
    /// None: it is on its own thread.
    pub(super) follower: Option<Follower>,
    names: Names,
    pub(super) flows: Map<FlowKey, FlowValue>,
    unmarked: Arc<PerCpuArray>,
    pub(super) rules: Table,
    /// With `matchAll`.
    newest: Option<Newest>,
    /// What a plugin wants all other packets to carry.
    everything: Option<Tag>,
    registry: Arc<registry::Names>,
    /// None: there are no rules.
    given: Option<Given>,
    /// None: it was given away, or there is none.
    meter: Option<Slots>,
    /// None: nothing is counted.
    ruled: Option<Arc<Ruled>>,
    /// How many entries map `flows` has room for.
    capacity: u32,
    /// How many entries map `flows` has.
    pub(super) entries: Arc<Count>,
}

/// The rules as the configuration has them.
struct Given {
    section: Arc<Section>,
    /// By which names they were read.
    registry: Arc<Registry>,
}

/// How often is looked whether the registry has changed, if rules may name what is in it.
const LOOK: Duration = Duration::from_secs(1);

pub(super) fn build(section: &Section, context: &Context) -> Result<Box<dyn Backend>> {
    let marker = Marker::new(section, context)?;
    marker.measure_by(&context.metrics);
    Ok(Box::new(marker))
}

impl Marker {
    pub(super) fn new(section: &Section, context: &Context) -> Result<Self> {
        let wanted = Wanted::new(section);
        let mut view = View::open()?;
        let links = view.links()?;
        // Cheap, and the likeliest mistake, so first.
        wanted.demand(&links)?;
        let programs = Programs::load(section, context)?;
        let follower = Follower::new(wanted, view, programs, &links)?;
        let object = follower.programs().object();
        let counts = follower.programs().counts()?;
        let ruled = counts.clone().map(Ruled::new).map(Arc::new);
        let received = follower.programs().count_received();
        let meter = counts.map(|counts| Slots::new(counts, received)).transpose()?;
        let mut table = Table::new(object, ruled.clone())?;
        let given = Given::new(Arc::new(section.clone()), context.names.get());
        let found = rules::read(section, &context.names)?;
        table.set(&found).map_err(|cause| Error::os("cannot set the rules", cause))?;
        Ok(Marker {
            flows: object.map("flows")?,
            unmarked: Arc::new(object.per_cpu_array("unmarked")?),
            rules: table,
            newest: section.bool("matchAll").then(Newest::default),
            everything: None,
            given,
            registry: context.names.clone(),
            meter,
            ruled,
            capacity: context.max_flows,
            entries: Arc::default(),
            names: follower.names(),
            follower: Some(follower),
        })
    }

    /// Says in the metrics what it does.
    fn measure_by(&self, metrics: &Metrics) {
        let (unmarked, entries, capacity) =
            (self.unmarked.clone(), self.entries.clone(), self.capacity);
        let names = self.names.clone();
        if let Some(ruled) = &self.ruled {
            metrics.read_packets_by(ruled.clone());
        }
        metrics.add(move |writer| {
            writer.number(&MAP_ENTRIES, &["flows"], entries.get());
            writer.number(&MAP_ENTRIES_LIMIT, &["flows"], capacity.into());
            // A copy, since the thread that follows the interfaces needs them too.
            let names = names.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for (interface, attached) in &names {
                writer.number(&INTERFACE_ATTACHED, &[interface], u64::from(*attached));
            }
            interfaces::write(names.iter().map(|(name, _)| name.as_str()), writer);
            // What the kernel refuses to tell has no sample.
            for (count, reason) in unmarked.sums().unwrap_or_default().iter().zip(UNMARKED_LABELS) {
                writer.number(&UNMARKED, &[reason], *count);
            }
        });
    }

    /// Does what the events say, in their order.
    pub(super) fn apply(&mut self, batch: &[Event]) {
        for (at, event) in batch.iter().enumerate() {
            match event {
                Event::Start(flow) => self.open(flow),
                Event::End(flow, _) => {
                    // A flow with a new tag: its entry is overwritten next, and no packet
                    // goes unmarked in between.
                    let next = batch.get(at + 1);
                    if matches!(next, Some(Event::Start(next)) if next.id == flow.id) {
                        self.entries.take(1);
                    } else {
                        self.close(flow);
                    }
                }
                Event::Report => {
                    info!("backends.marker: {} flows are in the map", self.entries);
                    info!("backends.marker: interfaces marked: {}", self.interfaces());
                    self.report();
                }
                Event::Everything(tag) => {
                    self.everything = *tag;
                    self.set_last_rule();
                }
                Event::Reload(section) => self.reload(section),
                // It marks what it marks.
                Event::Sample(_) | Event::Ongoing(..) => {}
            }
        }
    }

    fn open(&mut self, flow: &Flow) {
        let Some(key) = tag::key(&flow.id) else {
            debug!("backends.marker: {}: not marked, since it is IPv4", flow.id);
            return;
        };
        match self.flows.update(&key, &tag::value(flow)) {
            Ok(()) => self.entries.add(1),
            Err(cause) => {
                // The map has room for maxFlows flows, so the kernel is in trouble.
                static LIMIT: Limit = Limit::new();
                if LIMIT.pass().is_some() {
                    error!("backends.marker: {}: cannot mark: {cause}", flow.id);
                }
            }
        }
        if let Some(newest) = &mut self.newest {
            newest.opened(flow);
            self.set_last_rule();
        }
    }

    fn close(&mut self, flow: &Flow) {
        let Some(key) = tag::key(&flow.id) else {
            return;
        };
        match self.flows.delete(&key) {
            Ok(()) => self.entries.take(1),
            Err(cause) => {
                warn_limited!("backends.marker: {}: cannot stop marking: {cause}", flow.id);
            }
        }
        if let Some(newest) = &mut self.newest {
            newest.closed(&flow.id);
            self.set_last_rule();
        }
    }

    /// What packets carry that meet no other rule.
    fn set_last_rule(&mut self) {
        let tag = self.everything.or_else(|| self.newest.as_ref()?.tag());
        if let Err(cause) = self.rules.set_last(tag) {
            warn_limited!("backends.marker: cannot set the tag of packets of no flow: {cause}");
        }
    }

    /// Other rules; if they cannot be, those in force stay.
    fn reload(&mut self, section: &Arc<Section>) {
        let given = Given::new(section.clone(), self.registry.get());
        match self.set_rules(section) {
            Ok(()) => self.given = given,
            Err(error) => error!("backends.marker: {error}; the rules stay as they were"),
        }
    }

    /// The same rules, if names may mean other ids than before.
    pub(super) fn look_up_names(&mut self) {
        let Some(given) = &mut self.given else { return };
        let registry = self.registry.get();
        if Arc::ptr_eq(&registry, &given.registry) {
            return;
        }
        given.registry = registry;
        let section = given.section.clone();
        if let Err(error) = self.set_rules(&section) {
            error!("backends.marker: by the registry of now: {error}; the rules stay as they were");
        }
    }

    fn set_rules(&mut self, section: &Section) -> Result<()> {
        let found = rules::read(section, &self.registry)?;
        self.rules.set(&found).map_err(|cause| Error::os("cannot set the rules", cause))
    }

    /// The names of those that are marked, or "none".
    pub(super) fn interfaces(&self) -> String {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let marked = names.iter().filter(|(_, attached)| *attached);
        let marked: Vec<&str> = marked.map(|(name, _)| name.as_str()).collect();
        if marked.is_empty() {
            return "none".into();
        }
        marked.join(", ")
    }

    /// Logs how many packets were left unmarked, if any were.
    fn report(&self) {
        let counters = match self.unmarked.sums() {
            Ok(counters) => counters,
            Err(cause) => {
                error!("backends.marker: cannot read the counters: {cause}");
                return;
            }
        };
        for (count, reason) in counters.iter().zip(UNMARKED_REASONS) {
            if *count > 0 {
                info!("backends.marker: {count} packets went unmarked: they {reason}");
            }
        }
    }
}

impl Given {
    fn new(section: Arc<Section>, registry: Arc<Registry>) -> Option<Self> {
        (!section.rules("rules").is_empty()).then_some(Given { section, registry })
    }
}

impl Backend for Marker {
    fn capacity(&self) -> Option<u32> {
        Some(self.capacity)
    }

    fn meter(&mut self) -> Option<Box<dyn Meter>> {
        Some(Box::new(self.meter.take()?))
    }

    fn trial(&self) -> Option<Trial> {
        let names = self.registry.clone();
        Some(Box::new(move |section| rules::read(section, &names.quiet()).map(drop)))
    }

    fn run(mut self: Box<Self>, events: Queue) -> Result<()> {
        // Beside this thread, so that an event never waits for an interface.
        let _following = self.follower.take().map(Follower::start).transpose()?;
        events.want_samples(false);
        loop {
            let batch = match &self.given {
                None => events.recv().ok_or(RecvTimeoutError::Disconnected),
                Some(_) => events.recv_within(LOOK),
            };
            self.look_up_names();
            match batch {
                Ok(batch) => self.apply(&batch),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.report();
        Ok(())
    }
}
