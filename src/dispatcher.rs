//! The dispatcher: the one thread between plugins and backends. It owns the flow
//! table, decides what an event means, and hands the outcome to every backend.
//!
//! Threading. Plugins send batches into one bounded channel and block while it is
//! full: that is the back-pressure, and for the named pipe it reaches the writer.
//! Each backend has a queue of its own, so that a slow one stops neither the
//! others nor the plugins. A queue is not bounded here, since a start or an end is
//! never dropped on the way; its depth is known to both sides, and a backend whose
//! work can fall behind sheds it itself and counts ([`Queue::depth`]). The channel
//! hangs up when the last [`Inlet`] is gone; then the queues hang up in turn.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::info;

use crate::entropy::EntropyKey;
use crate::flow::{Flow, FlowEvent, FlowId, FlowState, Tag, Timestamp, Usage};
use crate::flow_info::{FlowInfo, LastLook};
use crate::flow_map::FlowMap;
use crate::flow_table::{Admission, Authority, Change, FlowTable};
use crate::inlet::{starts, Admitted, Answer, Message, Source};
use crate::log::About;
use crate::meter::Meter;
use crate::metrics::families::{ENRICHER_QUEUE, INBOX_BATCHES, INBOX_LIMIT};
use crate::metrics::Metrics;
use crate::ongoing::Turns;
use crate::outcomes::{Outcome, Outcomes};
use crate::pulse::{Pulse, Tally};
use crate::queue::{queue, Outlet};
use crate::registry::Names;
use crate::watchers::Watchers;

pub use crate::inlet::{Inlet, Refused, Reload, Reporter};
pub use crate::queue::{Batch, Event, Queue};

/// How many batches may wait for the dispatcher before their senders do.
const INBOX: usize = 64;

/// The time between two looks for flows that are gone and whose end is awaited.
const COUNT: Duration = Duration::from_secs(1);

/// The longest time between two looks for flows of which nothing is heard.
const LOOK: Duration = Duration::from_secs(60);

/// The dispatcher, to be run on a thread of its own.
pub struct Dispatcher {
    messages: Receiver<Message>,
    /// How many of them wait.
    waiting: Arc<AtomicUsize>,
    outlets: Vec<Outlet>,
    table: FlowTable,
    admission: Arc<Admission>,
    outcomes: Arc<Outcomes>,
    metrics: Option<Arc<Metrics>>,
    reporters: Vec<Reporter>,
    names: Option<Arc<Names>>,
    /// None: there is no service manager to be told anything.
    pulse: Option<Pulse>,
    /// After what silence a flow is taken to be over; none: never.
    idle_timeout: Option<Duration>,
    /// When to look for such flows again.
    next_look: Instant,
    /// When to look again for flows that are gone and whose end is awaited.
    next_count: Instant,
    /// Those of flows that go on, to be told of.
    turns: Turns,
    watchers: Watchers,
}

impl Dispatcher {
    /// A dispatcher for up to `max_flows` open flows, and the way into it.
    pub fn new(max_flows: u32, key: EntropyKey) -> (Self, Inlet) {
        let (sender, messages) = mpsc::sync_channel(INBOX);
        let admission = Arc::new(Admission::new(max_flows as usize));
        let waiting = Arc::<AtomicUsize>::default();
        let inlet = Inlet::new(sender, waiting.clone(), admission.clone());
        let dispatcher = Dispatcher {
            messages,
            waiting,
            outlets: Vec::new(),
            table: FlowTable::new(key),
            admission,
            outcomes: Arc::default(),
            metrics: None,
            reporters: Vec::new(),
            names: None,
            pulse: None,
            idle_timeout: None,
            next_look: Instant::now(),
            next_count: Instant::now(),
            turns: Turns::none(),
            watchers: Watchers::default(),
        };
        (dispatcher, inlet)
    }

    /// Shows names beside ids in the log.
    pub fn name_by(&mut self, names: Arc<Names>) {
        self.names = Some(names);
    }

    /// Has the dispatcher, which hears of `plugins`, and the queues that are attached from
    /// now on measured.
    pub fn measure_by(&mut self, metrics: Arc<Metrics>, plugins: Vec<&'static str>) {
        let (outcomes, admission) = (self.outcomes.clone(), self.admission.clone());
        let waiting = self.waiting.clone();
        metrics.add(move |writer| {
            outcomes.write(&plugins, admission.limit(), writer);
            writer.number(&INBOX_BATCHES, &[], waiting.load(Ordering::Relaxed) as u64);
            writer.number(&INBOX_LIMIT, &[], INBOX as u64);
        });
        self.metrics = Some(metrics);
    }

    /// Has flows counted by `meter`.
    pub fn set_meter(&mut self, meter: Option<Box<dyn Meter>>) {
        self.table.set_meter(meter);
    }

    /// Has the dispatcher tell the service manager how it is while it runs.
    pub fn set_pulse(&mut self, pulse: Option<Pulse>) {
        self.pulse = pulse;
    }

    /// Ends flows of which nothing was heard for so long, if they were only heard of.
    pub fn set_idle_timeout(&mut self, timeout: Option<Duration>) {
        self.idle_timeout = timeout;
        self.next_look = Instant::now();
    }

    /// Tells backends that want to know it that a flow goes on, once in each such period of
    /// its life; none: never.
    pub fn set_ongoing_period(&mut self, period: Option<Duration>) {
        self.turns.set_period(period);
    }

    /// A queue for the backend called `name`.
    pub fn attach(&mut self, name: &'static str) -> Queue {
        let (outlet, queue) = queue(format!("backends.{name}"));
        if let Some(metrics) = &self.metrics {
            outlet.measure_by(name, metrics);
        }
        self.outlets.push(outlet);
        queue
    }

    /// A queue for the enricher called `name`, which tells it of the flows that are
    /// open. With `last_look` flows are looked at when they end, also with another tag.
    pub fn watch(&mut self, name: &'static str, last_look: Option<LastLook>) -> Queue {
        let (outlet, queue) = queue(format!("enrichers.{name}"));
        if let Some(metrics) = &self.metrics {
            outlet.measure_depth_by(&ENRICHER_QUEUE, name, metrics);
        }
        self.watchers.add(outlet, last_look);
        self.table.know_addresses();
        queue
    }

    /// Runs until the last inlet is gone.
    pub fn run(mut self) {
        while let Some(message) = self.next() {
            match message {
                Message::Events { source, events, admitted } => {
                    self.take(source, events, admitted);
                }
                // Whoever asked may have gone away since.
                Message::List(answer) => {
                    drop(answer.send(Answer { flows: self.table.flows(), count: 0 }));
                }
                Message::Count(answer) => {
                    drop(answer.send(Answer { count: self.table.count(), ..Answer::default() }));
                }
                Message::Malformed((source, _), events) => {
                    self.outcomes.of(source).add(Outcome::Malformed, events);
                }
                Message::Everything(tag) => self.hand_out(vec![Event::Everything(tag)]),
                Message::Samples(samples) => self.measure(samples),
                Message::Report => self.report(),
                Message::Reporter(reporter) => self.reporters.push(reporter),
                Message::Ready(answer) => {
                    self.tell_ready(None);
                    let _ = answer.send(Answer::default());
                }
                Message::Reload(reload, answer) => {
                    self.reload(reload);
                    let _ = answer.send(Answer::default());
                }
                #[cfg(test)]
                Message::Wedge(released) => while released.recv().is_ok() {},
            }
        }
    }

    /// Waits for the next message, and meanwhile does what is due: tells the service
    /// manager, tells of flows that go on, and ends those of which nothing is heard.
    /// None: no more will come.
    fn next(&mut self) -> Option<Message> {
        loop {
            let look = self.end_forgotten_flows();
            let tally = self.tally();
            let pulse = self.pulse.as_mut().and_then(|pulse| pulse.tend(tally));
            let turn = self.turns.tell(&self.table, &mut self.outlets);
            let next = match look.into_iter().chain(pulse).chain(turn).min() {
                Some(patience) => self.messages.recv_timeout(patience),
                None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(message) => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    return Some(message);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Ends the flows that are over although nobody says so, if it is time to look for
    /// them; returns when it is the next time.
    fn end_forgotten_flows(&mut self) -> Option<Duration> {
        self.end_silent_flows().into_iter().chain(self.end_gone_flows()).min()
    }

    /// Those that are gone from the system, and whose end was not heard.
    fn end_gone_flows(&mut self) -> Option<Duration> {
        if !self.table.awaits() {
            return None;
        }
        let now = Instant::now();
        if self.next_count <= now {
            self.next_count = now + COUNT;
            let over = self.table.given_up(Timestamp::now());
            self.end(over);
        }
        Some(self.next_count.duration_since(now))
    }

    /// Those of which nothing was heard for too long.
    fn end_silent_flows(&mut self) -> Option<Duration> {
        let timeout = self.idle_timeout?;
        let now = Instant::now();
        if let Some(early) = self.next_look.checked_duration_since(now).filter(|d| !d.is_zero()) {
            return Some(early);
        }
        let pause = (timeout / 4).min(LOOK);
        self.next_look = now + pause;
        let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        let then = Timestamp(Timestamp::now().0.saturating_sub(micros));
        let silent = self.table.silent_since(then);
        if !silent.is_empty() {
            let count = silent.len();
            info!("{count} flows ended, since nothing was heard of them for {timeout:?}");
            self.end(silent);
        }
        Some(pause)
    }

    fn end(&mut self, flows: Vec<(FlowId, Tag)>) {
        let end = |(id, tag)| FlowEvent {
            state: FlowState::End,
            id,
            tag,
            time: None,
            application: None,
            usage: None,
        };
        let source = ("glowd", Authority::Told);
        self.apply(source, flows.into_iter().map(end).collect(), 0);
    }

    fn tally(&self) -> Tally {
        let sum = |outcomes: &[Outcome]| outcomes.iter().map(|one| self.outcomes.sum(*one)).sum();
        Tally {
            flows: self.table.count(),
            events: sum(&[
                Outcome::Started,
                Outcome::Ended,
                Outcome::Repeated,
                Outcome::Retagged,
                Outcome::Ongoing,
                Outcome::Stale,
                Outcome::Outranked,
            ]),
            errors: sum(&[Outcome::Unknown, Outcome::Refused, Outcome::Malformed]),
        }
    }

    fn tell_ready(&mut self, remark: Option<String>) {
        let tally = self.tally();
        if let Some(pulse) = &mut self.pulse {
            pulse.ready(tally, remark);
        }
    }

    fn reload(&mut self, reload: Reload) {
        let Reload { max_flows, idle_timeout, ongoing_period, sections, remark } = reload;
        self.set_idle_timeout(idle_timeout);
        self.set_ongoing_period(ongoing_period);
        self.admission.set_limit(max_flows as usize);
        for (name, section) in sections {
            let mut parts = self.outlets.iter_mut();
            let path = format!("backends.{name}");
            if let Some(outlet) = parts.find(|outlet| outlet.name == path) {
                outlet.send(Arc::new(vec![Event::Reload(section)]));
            }
        }
        self.tell_ready(remark);
    }

    fn take(&mut self, source: Source, events: Vec<FlowEvent>, admitted: Admitted) {
        match admitted {
            Admitted::Yes => {
                let tickets = starts(&events);
                self.apply(source, events, tickets);
            }
            Admitted::Undecided { all_or_nothing, refused } => {
                let growth = if all_or_nothing { self.growth(&events) } else { None };
                let tickets = match growth {
                    Some(most) => self.admission.reserve_growth(most),
                    None => Some(0),
                };
                let rejected = match tickets {
                    Some(tickets) => self.apply(source, events, tickets),
                    None => events.len(),
                };
                self.outcomes.of(source.0).add(Outcome::Refused, rejected as u64);
                // The sender waits for this, unless it has died.
                let _ = refused.send(Answer { count: rejected, ..Answer::default() });
            }
        }
    }

    /// By how many flows the table has grown at the most whenever one of the events
    /// opens a flow; none if none does.
    fn growth(&self, events: &[FlowEvent]) -> Option<isize> {
        let mut open: FlowMap<bool> = FlowMap::default();
        let (mut growth, mut most) = (0_isize, None);
        for event in events {
            let now = open.entry(event.id).or_insert_with(|| self.table.contains(&event.id));
            let then = event.state != FlowState::End;
            growth += isize::from(then) - isize::from(*now);
            if then && !*now {
                most = most.max(Some(growth));
            }
            *now = then;
        }
        most
    }

    /// Applies the events, for which `tickets` are reserved; a start that finds
    /// none left takes one, or is refused. Returns how many were refused.
    fn apply(&mut self, source: Source, events: Vec<FlowEvent>, mut tickets: usize) -> usize {
        let now = Timestamp::now();
        // Only the log needs it.
        let names = self.names.as_ref().filter(|_| log::log_enabled!(log::Level::Debug));
        let registry = names.map(|names| names.get());
        let registry = registry.as_deref();
        let outcomes = self.outcomes.clone();
        let row = outcomes.of(source.0);
        let mut out = Vec::with_capacity(events.len());
        let mut refused = 0;
        for event in events {
            let (id, time, state) = (event.id, event.time.unwrap_or(now), event.state);
            let about = |tag| About::new(source.0, state, id, tag, registry);
            if tickets == 0 && state != FlowState::End && !self.table.contains(&id) {
                if !self.admission.reserve(1) {
                    about(Some(event.tag)).debug(format_args!("refused, the flow table is full"));
                    refused += 1;
                    continue;
                }
                tickets += 1;
            }
            let told = event.tag;
            self.watchers.look_last(&mut self.table, &event, source, now);
            let socket = self.table.socket_of(&id);
            match self.table.apply(event, source, now) {
                Change::Opened(flow) => {
                    let Flow { tag, label, .. } = flow;
                    about(Some(tag)).debug(format_args!("label {label:#07x}"));
                    tickets -= 1;
                    row.add(Outcome::Started, 1);
                    self.watchers.note(out.len(), &id, Some(self.table.socket_of(&id)));
                    out.push(Event::Start(flow));
                }
                Change::Closed(flow) => {
                    match flow.usage() {
                        None => about(Some(flow.tag)).debug(format_args!("over")),
                        Some(Usage { received, sent }) => about(Some(flow.tag))
                            .debug(format_args!("over, {sent} octets sent, {received} received")),
                    }
                    // Room for another, unless there is none since the limit was lowered.
                    if self.admission.is_over() {
                        self.admission.release(1);
                    } else {
                        tickets += 1;
                    }
                    row.add(Outcome::Ended, 1);
                    let end = time.max(flow.start);
                    self.watchers.note_end(out.len(), &id, socket, &self.table);
                    out.push(Event::End(flow, end));
                }
                Change::Retagged { old, new } => {
                    about(Some(new.tag)).debug(format_args!("instead of {}", old.tag));
                    row.add(Outcome::Retagged, 1);
                    let end = new.start.max(old.start);
                    for event in [Event::End(old, end), Event::Start(new)] {
                        self.watchers.note(out.len(), &id, Some(socket));
                        out.push(event);
                    }
                }
                Change::Outranked => {
                    about(Some(told)).debug(format_args!("no effect: another plugin has the flow"));
                    row.add(Outcome::Outranked, 1);
                }
                Change::Awaited => {
                    about(Some(told)).debug(format_args!("gone; its end is awaited"));
                    row.add(Outcome::Outranked, 1);
                }
                Change::Repeated => {
                    about(Some(told)).debug(format_args!("open already"));
                    row.add(Outcome::Repeated, 1);
                }
                Change::Goes => {
                    about(Some(told)).debug(format_args!("goes on"));
                    row.add(Outcome::Ongoing, 1);
                }
                Change::Stale => {
                    about(Some(told)).debug(format_args!("over already"));
                    row.add(Outcome::Stale, 1);
                }
                Change::Unknown => {
                    about(None).debug(format_args!("not open"));
                    row.add(Outcome::Unknown, 1);
                }
            }
        }
        self.admission.release(tickets);
        outcomes.open.set(self.table.count() as u64);
        self.hand_out(out);
        refused
    }

    fn hand_out(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let batch = Arc::new(events);
        // Who hears of a flow by a backend may close its socket at once: enrichers, who do not
        // keep what they hear of sockets of no flow, come first.
        self.watchers.hand_out(&batch);
        self.outlets.iter_mut().for_each(|outlet| outlet.send(batch.clone()));
    }

    /// Keeps samples, and hands them to the backends.
    fn measure(&mut self, mut samples: Vec<(FlowId, FlowInfo)>) {
        let table = &mut self.table;
        // In a loop of its own, so that the processor gets the next ones from memory meanwhile.
        samples.retain(|(socket, _)| table.has_socket(socket));
        let wanted = self.outlets.iter().any(Outlet::wants_samples);
        let mut events = Vec::with_capacity(if wanted { samples.len() } else { 0 });
        for (socket, info) in samples {
            table.measure_socket(&socket, info, wanted, |flow| events.push(Event::Sample(flow)));
        }
        let batch = Arc::new(events);
        if !batch.is_empty() {
            self.outlets.iter_mut().for_each(|outlet| outlet.send_samples(batch.clone()));
        }
    }

    fn report(&mut self) {
        let sum = |outcome| self.outcomes.sum(outcome);
        info!(
            "flows: {} open of {}, {} started, {} ended, {} repeated starts, {} retagged, \
             {} ends of unknown flows, {} went on, {} late, {} outranked, {} refused, {} malformed",
            self.table.count(),
            self.admission.limit(),
            sum(Outcome::Started),
            sum(Outcome::Ended),
            sum(Outcome::Repeated),
            sum(Outcome::Retagged),
            sum(Outcome::Unknown),
            sum(Outcome::Ongoing),
            sum(Outcome::Stale),
            sum(Outcome::Outranked),
            sum(Outcome::Refused),
            sum(Outcome::Malformed),
        );
        self.reporters.iter().for_each(|report| report());
        self.hand_out(vec![Event::Report]);
    }
}

#[cfg(test)]
#[path = "dispatcher_tests.rs"]
mod tests;
