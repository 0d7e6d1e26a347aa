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

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::Arc;

use log::info;

use crate::config::Section;
use crate::entropy::EntropyKey;
use crate::flow::{Flow, FlowEvent, FlowId, FlowState, Tag, Timestamp};
use crate::flow_table::{Admission, Authority, Change, FlowTable};
use crate::log::About;
use crate::pulse::{Pulse, Tally};
use crate::queue::{queue, Outlet};
use crate::registry::Names;

pub use crate::queue::{Batch, Event, Queue};

/// How many batches may wait for the dispatcher before their senders do.
const INBOX: usize = 64;

/// Which plugin tells, and how it knows.
type Source = (&'static str, Authority);

/// Logs the counters of a plugin. The dispatcher calls it: plugins wait for the
/// outside and cannot be told.
pub type Reporter = Box<dyn Fn() + Send>;

/// What the dispatcher is told.
enum Message {
    Events {
        source: Source,
        events: Vec<FlowEvent>,
        admitted: Admitted,
    },
    List(Sender<Vec<Flow>>),
    Count(Sender<usize>),
    Malformed(u64),
    Everything(Option<Tag>),
    Report,
    Reporter(Reporter),
    Ready(Sender<()>),
    Reload(Reload, Sender<()>),
    /// Blocks the dispatcher until the other end hangs up.
    #[cfg(test)]
    Wedge(Receiver<()>),
}

/// What a reload means for the dispatcher and those behind it.
#[derive(Clone, Debug, Default)]
pub struct Reload {
    /// How many flows may be open from now on (`maxFlows`).
    pub max_flows: u32,
    /// The sections of backends, by name.
    pub sections: Vec<(&'static str, Arc<Section>)>,
    /// What the status says from now on beside the figures.
    pub remark: Option<String>,
}

/// Who holds the tickets for the starts of a batch.
enum Admitted {
    /// The sender reserved one for each.
    Yes,
    /// There were not enough; the dispatcher knows which flows are open and so
    /// decides exactly: all or nothing, or each for itself. It answers with the
    /// number of refused events.
    Undecided { all_or_nothing: bool, refused: Sender<usize> },
}

/// Why events were not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The flow table is full.
    Full {
        /// How many of the events were refused.
        events: usize,
        /// How many flows may be open (`maxFlows`).
        limit: usize,
    },
    /// The daemon is stopping.
    Stopping,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::Full { limit, .. } => {
                write!(f, "the flow table is full (maxFlows is {limit})")
            }
            Refused::Stopping => f.write_str("glowd is stopping"),
        }
    }
}

/// A plugin's way to the dispatcher.
#[derive(Clone)]
pub struct Inlet {
    messages: SyncSender<Message>,
    admission: Arc<Admission>,
    source: Source,
}

impl Inlet {
    /// Hands all of the events over, in order, or none. Blocks while the
    /// dispatcher is behind.
    ///
    /// # Errors
    /// There is no room for them all, or the daemon is stopping.
    pub fn send_all(&self, events: Vec<FlowEvent>) -> Result<(), Refused> {
        self.send(events, true)
    }

    /// Hands the events over, in order, except the starts for which there is no
    /// room. Blocks while the dispatcher is behind.
    ///
    /// # Errors
    /// Some were refused; the others were accepted. Or the daemon is stopping.
    pub fn send_each(&self, events: Vec<FlowEvent>) -> Result<(), Refused> {
        self.send(events, false)
    }

    fn send(&self, events: Vec<FlowEvent>, all_or_nothing: bool) -> Result<(), Refused> {
        if events.is_empty() {
            return Ok(());
        }
        let source = self.source;
        if self.admission.reserve(starts(&events)) {
            let message = Message::Events { source, events, admitted: Admitted::Yes };
            return self.messages.send(message).map_err(|_| Refused::Stopping);
        }
        let (refused, answer) = mpsc::channel();
        let admitted = Admitted::Undecided { all_or_nothing, refused };
        let message = Message::Events { source, events, admitted };
        self.messages.send(message).map_err(|_| Refused::Stopping)?;
        match answer.recv() {
            Ok(0) => Ok(()),
            Ok(events) => Err(Refused::Full { events, limit: self.admission.limit() }),
            Err(_) => Err(Refused::Stopping),
        }
    }

    /// The open flows, in no order, after all that this plugin has sent so far.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub fn flows(&self) -> Result<Vec<Flow>, Refused> {
        self.ask(Message::List)
    }

    /// How many flows are open, as [`Inlet::flows`] would list them. Cheap, and
    /// an answer proves that the dispatcher works.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub fn count(&self) -> Result<usize, Refused> {
        self.ask(Message::Count)
    }

    /// Counts so many events that could not be understood.
    pub fn malformed(&self, events: u64) {
        // A daemon that is stopping counts no more.
        let _ = self.messages.send(Message::Malformed(events));
    }

    /// Has packets that nothing else gives a tag carry this one from now on; none: no tag.
    pub fn everything(&self, tag: Option<Tag>) {
        // A daemon that is stopping marks no more.
        let _ = self.messages.send(Message::Everything(tag));
    }

    /// Has the service manager told that the daemon is ready: by the dispatcher, so
    /// that it is true.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub fn ready(&self) -> Result<(), Refused> {
        self.ask(Message::Ready)
    }

    /// Has `reload` hold for all that is sent from now on, and the service manager
    /// told that the daemon is ready again.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub fn reload(&self, reload: Reload) -> Result<(), Refused> {
        self.ask(|answer| Message::Reload(reload, answer))
    }

    fn ask<T>(&self, question: impl FnOnce(Sender<T>) -> Message) -> Result<T, Refused> {
        let (sender, answer) = mpsc::channel();
        self.messages.send(question(sender)).map_err(|_| Refused::Stopping)?;
        answer.recv().map_err(|_| Refused::Stopping)
    }

    /// Asks everybody to log their counters.
    pub fn report(&self) {
        // A daemon that is stopping has nothing to report.
        let _ = self.messages.send(Message::Report);
    }

    /// Has `reporter` called whenever somebody asks for the counters.
    pub fn report_with(&self, reporter: Reporter) {
        // A daemon that is stopping reports no more.
        let _ = self.messages.send(Message::Reporter(reporter));
    }

    /// The same way in, for another plugin.
    #[must_use]
    pub fn for_source(&self, source: &'static str) -> Self {
        Inlet { source: (source, Authority::Told), ..self.clone() }
    }

    /// The same way in, for events that come as datagrams: one that is late has no
    /// effect.
    #[must_use]
    pub fn for_what_is_heard(&self) -> Self {
        Inlet { source: (self.source.0, Authority::Heard), ..self.clone() }
    }

    /// The same way in, for events that nobody told the plugin of: it found them.
    /// They have no effect on flows that somebody has told of.
    #[must_use]
    pub fn for_what_is_found(&self) -> Self {
        Inlet { source: (self.source.0, Authority::Found), ..self.clone() }
    }
}

/// What became of the events so far.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    started: u64,
    ended: u64,
    repeated: u64,
    retagged: u64,
    unknown_ends: u64,
    outranked: u64,
    ongoing: u64,
    stale: u64,
    refused: u64,
    malformed: u64,
}

/// The dispatcher, to be run on a thread of its own.
pub struct Dispatcher {
    messages: Receiver<Message>,
    outlets: Vec<Outlet>,
    table: FlowTable,
    admission: Arc<Admission>,
    counters: Counters,
    reporters: Vec<Reporter>,
    names: Option<Arc<Names>>,
    /// None: there is no service manager to be told anything.
    pulse: Option<Pulse>,
}

impl Dispatcher {
    /// A dispatcher for up to `max_flows` open flows, and the way into it.
    pub fn new(max_flows: u32, key: EntropyKey) -> (Self, Inlet) {
        let (sender, messages) = mpsc::sync_channel(INBOX);
        let admission = Arc::new(Admission::new(max_flows as usize));
        let inlet = Inlet {
            messages: sender,
            admission: admission.clone(),
            source: ("glowd", Authority::Told),
        };
        let dispatcher = Dispatcher {
            messages,
            outlets: Vec::new(),
            table: FlowTable::new(key),
            admission,
            counters: Counters::default(),
            reporters: Vec::new(),
            names: None,
            pulse: None,
        };
        (dispatcher, inlet)
    }

    /// Shows names beside ids in the log.
    pub fn name_by(&mut self, names: Arc<Names>) {
        self.names = Some(names);
    }

    /// Has the dispatcher tell the service manager how it is while it runs.
    pub fn set_pulse(&mut self, pulse: Option<Pulse>) {
        self.pulse = pulse;
    }

    /// A queue for the backend called `name`.
    pub fn attach(&mut self, name: &'static str) -> Queue {
        let (outlet, queue) = queue(name);
        self.outlets.push(outlet);
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
                Message::List(answer) => drop(answer.send(self.table.flows())),
                Message::Count(answer) => drop(answer.send(self.table.count())),
                Message::Malformed(events) => self.counters.malformed += events,
                Message::Everything(tag) => self.hand_out(vec![Event::Everything(tag)]),
                Message::Report => self.report(),
                Message::Reporter(reporter) => self.reporters.push(reporter),
                Message::Ready(answer) => {
                    self.tell_ready(None);
                    let _ = answer.send(());
                }
                Message::Reload(reload, answer) => {
                    self.reload(reload);
                    let _ = answer.send(());
                }
                #[cfg(test)]
                Message::Wedge(released) => while released.recv().is_ok() {},
            }
        }
    }

    /// Waits for the next message, and meanwhile tells the service manager what is
    /// due. None: no more will come.
    fn next(&mut self) -> Option<Message> {
        loop {
            let tally = self.tally();
            let Some(patience) = self.pulse.as_mut().and_then(|pulse| pulse.tend(tally)) else {
                return self.messages.recv().ok();
            };
            match self.messages.recv_timeout(patience) {
                Ok(message) => return Some(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn tally(&self) -> Tally {
        let Counters { started, ended, repeated, retagged, unknown_ends, .. } = self.counters;
        let Counters { ongoing, stale, outranked, refused, malformed, .. } = self.counters;
        Tally {
            flows: self.table.count(),
            events: started + ended + repeated + retagged + ongoing + stale + outranked,
            errors: unknown_ends + refused + malformed,
        }
    }

    fn tell_ready(&mut self, remark: Option<String>) {
        let tally = self.tally();
        if let Some(pulse) = &mut self.pulse {
            pulse.ready(tally, remark);
        }
    }

    fn reload(&mut self, Reload { max_flows, sections, remark }: Reload) {
        self.admission.set_limit(max_flows as usize);
        for (name, section) in sections {
            if let Some(outlet) = self.outlets.iter_mut().find(|outlet| outlet.name == name) {
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
                self.counters.refused += rejected as u64;
                // The sender waits for this, unless it has died.
                let _ = refused.send(rejected);
            }
        }
    }

    /// By how many flows the table has grown at the most whenever one of the events
    /// opens a flow; none if none does.
    fn growth(&self, events: &[FlowEvent]) -> Option<isize> {
        let mut open: HashMap<FlowId, bool> = HashMap::new();
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
            match self.table.apply(event, source, now) {
                Change::Opened(flow) => {
                    let Flow { tag, label, .. } = flow;
                    about(Some(tag)).debug(format_args!("label {label:#07x}"));
                    tickets -= 1;
                    self.counters.started += 1;
                    out.push(Event::Start(flow));
                }
                Change::Closed(flow) => {
                    about(Some(flow.tag)).debug(format_args!("over"));
                    // Room for another, unless there is none since the limit was lowered.
                    if self.admission.is_over() {
                        self.admission.release(1);
                    } else {
                        tickets += 1;
                    }
                    self.counters.ended += 1;
                    let end = time.max(flow.start);
                    out.push(Event::End(flow, end));
                }
                Change::Retagged { old, new } => {
                    about(Some(new.tag)).debug(format_args!("instead of {}", old.tag));
                    self.counters.retagged += 1;
                    let end = new.start.max(old.start);
                    out.push(Event::End(old, end));
                    out.push(Event::Start(new));
                }
                Change::Outranked => {
                    about(Some(told)).debug(format_args!("no effect: somebody told of the flow"));
                    self.counters.outranked += 1;
                }
                Change::Repeated => {
                    about(Some(told)).debug(format_args!("open already"));
                    self.counters.repeated += 1;
                }
                Change::Goes => {
                    about(Some(told)).debug(format_args!("goes on"));
                    self.counters.ongoing += 1;
                }
                Change::Stale => {
                    about(Some(told)).debug(format_args!("over already"));
                    self.counters.stale += 1;
                }
                Change::Unknown => {
                    about(None).debug(format_args!("not open"));
                    self.counters.unknown_ends += 1;
                }
            }
        }
        self.admission.release(tickets);
        self.hand_out(out);
        refused
    }

    fn hand_out(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let batch = Arc::new(events);
        for outlet in &mut self.outlets {
            outlet.send(batch.clone());
        }
    }

    fn report(&mut self) {
        let Counters { started, ended, repeated, retagged, unknown_ends, .. } = self.counters;
        let Counters { ongoing, stale, outranked, refused, malformed, .. } = self.counters;
        info!(
            "flows: {} open of {}, {started} started, {ended} ended, {repeated} repeated starts, \
             {retagged} retagged, {unknown_ends} ends of unknown flows, {ongoing} went on, \
             {stale} late, {outranked} outranked, {refused} refused, {malformed} malformed",
            self.table.count(),
            self.admission.limit()
        );
        self.reporters.iter().for_each(|report| report());
        self.hand_out(vec![Event::Report]);
    }
}

/// How many of them may open a flow.
fn starts(events: &[FlowEvent]) -> usize {
    events.iter().filter(|event| event.state != FlowState::End).count()
}

#[cfg(test)]
#[path = "dispatcher_tests.rs"]
mod tests;
