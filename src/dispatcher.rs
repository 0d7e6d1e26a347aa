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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::Arc;

use log::{info, warn};

use crate::entropy::EntropyKey;
use crate::flow::{Flow, FlowEvent, FlowId, FlowState, Timestamp};
use crate::flow_table::{Admission, Change, FlowTable};
use crate::log::About;

/// How many batches may wait for the dispatcher before their senders do.
const INBOX: usize = 64;

/// Depth of a backend's queue, in events, over which a warning is due.
const DEEP: usize = 100_000;

/// What a backend is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A flow was opened.
    Start(Flow),
    /// A flow is over, since that moment.
    End(Flow, Timestamp),
    /// The administrator asks for the counters (SIGUSR1).
    Report,
}

/// Logs the counters of a plugin. The dispatcher calls it: plugins wait for the
/// outside and cannot be told.
pub type Reporter = Box<dyn Fn() + Send>;

/// Events in their order, shared by all backends.
pub type Batch = Arc<Vec<Event>>;

/// What the dispatcher is told.
enum Message {
    Events { source: &'static str, events: Vec<FlowEvent>, admitted: Admitted },
    List(Sender<Vec<Flow>>),
    Count(Sender<usize>),
    Report,
    Reporter(Reporter),
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
    source: &'static str,
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
        let (sender, answer) = mpsc::channel();
        self.messages.send(Message::List(sender)).map_err(|_| Refused::Stopping)?;
        answer.recv().map_err(|_| Refused::Stopping)
    }

    /// How many flows are open, as [`Inlet::flows`] would list them. Cheap, and
    /// an answer proves that the dispatcher works.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub fn count(&self) -> Result<usize, Refused> {
        let (sender, answer) = mpsc::channel();
        self.messages.send(Message::Count(sender)).map_err(|_| Refused::Stopping)?;
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
        Inlet { source, ..self.clone() }
    }
}

/// A backend's end of its queue.
#[derive(Debug)]
pub struct Queue {
    batches: Receiver<Batch>,
    depth: Arc<AtomicUsize>,
}

impl Queue {
    /// The next batch; waits for it. None: no more will come.
    pub fn recv(&self) -> Option<Batch> {
        self.batches.recv().ok().map(|batch| self.taken(batch))
    }

    /// The next batch, if there is one.
    pub fn try_recv(&self) -> Option<Batch> {
        self.batches.try_recv().ok().map(|batch| self.taken(batch))
    }

    fn taken(&self, batch: Batch) -> Batch {
        self.depth.fetch_sub(batch.len(), Ordering::Relaxed);
        batch
    }

    /// How many events still wait here. A backend that can fall behind for good
    /// sheds work by it, so that memory stays bounded.
    pub fn depth(&self) -> usize {
        self.depth.load(Ordering::Relaxed)
    }
}

/// The dispatcher's end of a backend's queue.
struct Outlet {
    name: &'static str,
    batches: Sender<Batch>,
    depth: Arc<AtomicUsize>,
    deep: bool,
}

/// What became of the events so far.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    started: u64,
    ended: u64,
    repeated: u64,
    retagged: u64,
    unknown_ends: u64,
    stale: u64,
    refused: u64,
}

/// The dispatcher, to be run on a thread of its own.
pub struct Dispatcher {
    messages: Receiver<Message>,
    outlets: Vec<Outlet>,
    table: FlowTable,
    admission: Arc<Admission>,
    counters: Counters,
    reporters: Vec<Reporter>,
}

impl Dispatcher {
    /// A dispatcher for up to `max_flows` open flows, and the way into it.
    pub fn new(max_flows: u32, key: EntropyKey) -> (Self, Inlet) {
        let (sender, messages) = mpsc::sync_channel(INBOX);
        let admission = Arc::new(Admission::new(max_flows as usize));
        let inlet = Inlet { messages: sender, admission: admission.clone(), source: "glowd" };
        let table = FlowTable::new(key);
        let counters = Counters::default();
        let (outlets, reporters) = (Vec::new(), Vec::new());
        (Dispatcher { messages, outlets, table, admission, counters, reporters }, inlet)
    }

    /// A queue for the backend called `name`.
    pub fn attach(&mut self, name: &'static str) -> Queue {
        let (sender, batches) = mpsc::channel();
        let depth = Arc::new(AtomicUsize::new(0));
        self.outlets.push(Outlet { name, batches: sender, depth: depth.clone(), deep: false });
        Queue { batches, depth }
    }

    /// Runs until the last inlet is gone.
    pub fn run(mut self) {
        while let Ok(message) = self.messages.recv() {
            match message {
                Message::Events { source, events, admitted } => {
                    self.take(source, events, admitted);
                }
                // Whoever asked may have gone away since.
                Message::List(answer) => drop(answer.send(self.table.flows())),
                Message::Count(answer) => drop(answer.send(self.table.count())),
                Message::Report => self.report(),
                Message::Reporter(reporter) => self.reporters.push(reporter),
            }
        }
    }

    fn take(&mut self, source: &'static str, events: Vec<FlowEvent>, admitted: Admitted) {
        match admitted {
            Admitted::Yes => {
                let tickets = starts(&events);
                self.apply(source, events, tickets);
            }
            Admitted::Undecided { all_or_nothing, refused } => {
                let need = if all_or_nothing { self.need(&events) } else { 0 };
                let rejected = if self.admission.reserve(need) {
                    self.apply(source, events, need)
                } else {
                    events.len()
                };
                self.counters.refused += rejected as u64;
                // The sender waits for this, unless it has died.
                let _ = refused.send(rejected);
            }
        }
    }

    /// By how many flows the table grows at the most while it takes the events.
    fn need(&self, events: &[FlowEvent]) -> usize {
        let mut open: HashMap<FlowId, bool> = HashMap::new();
        let (mut growth, mut most) = (0_isize, 0);
        for event in events {
            let now = open.entry(event.id).or_insert_with(|| self.table.contains(&event.id));
            let then = event.state != FlowState::End;
            growth += isize::from(then) - isize::from(*now);
            *now = then;
            most = most.max(growth);
        }
        most.unsigned_abs()
    }

    /// Applies the events, for which `tickets` are reserved; a start that finds
    /// none left takes one, or is refused. Returns how many were refused.
    fn apply(&mut self, source: &'static str, events: Vec<FlowEvent>, mut tickets: usize) -> usize {
        let now = Timestamp::now();
        let mut out = Vec::with_capacity(events.len());
        let mut refused = 0;
        for event in events {
            let (id, time, state) = (event.id, event.time.unwrap_or(now), event.state);
            let about = |tag| About::new(source, state, id, tag);
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
                    about(Some(tag)).debug(format_args!("{tag}, label {label:#07x}"));
                    tickets -= 1;
                    self.counters.started += 1;
                    out.push(Event::Start(flow));
                }
                Change::Closed(flow) => {
                    about(Some(flow.tag)).debug(format_args!("{}", flow.tag));
                    tickets += 1;
                    self.counters.ended += 1;
                    let end = time.max(flow.start);
                    out.push(Event::End(flow, end));
                }
                Change::Retagged { old, new } => {
                    about(Some(new.tag)).debug(format_args!("{} becomes {}", old.tag, new.tag));
                    self.counters.retagged += 1;
                    let end = new.start.max(old.start);
                    out.push(Event::End(old, end));
                    out.push(Event::Start(new));
                }
                Change::Repeated => {
                    about(Some(told)).debug(format_args!("open already"));
                    self.counters.repeated += 1;
                }
                Change::Goes => about(Some(told)).debug(format_args!("goes on")),
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
            let depth = outlet.depth.fetch_add(batch.len(), Ordering::Relaxed) + batch.len();
            if depth > DEEP && !outlet.deep {
                warn!("backends.{}: {depth} events behind", outlet.name);
                outlet.deep = true;
            } else if depth < DEEP / 2 {
                outlet.deep = false;
            }
            // A backend that has died is the main thread's business.
            let _ = outlet.batches.send(batch.clone());
        }
    }

    fn report(&mut self) {
        let Counters { started, ended, repeated, retagged, unknown_ends, stale, refused } =
            self.counters;
        info!(
            "flows: {} open of {}, {started} started, {ended} ended, {repeated} repeated starts, \
             {retagged} retagged, {unknown_ends} ends of unknown flows, {stale} late, \
             {refused} refused",
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
mod tests {
    use super::*;
    use crate::flow::{Protocol, Tag};
    use std::thread;

    fn event(state: FlowState, port: u16) -> FlowEvent {
        let src = std::net::SocketAddr::new("2001:db8::1".parse().unwrap(), port);
        let id = FlowId::new(Protocol::Tcp, src, "[2001:db8::2]:1094".parse().unwrap()).unwrap();
        FlowEvent {
            state,
            id,
            tag: Tag::new(2, 16).unwrap(),
            time: None,
            application: None,
            usage: None,
        }
    }
    use FlowState::{End, Start};

    /// Runs a dispatcher with room for `room` flows while `talk` talks to it, and
    /// returns what a backend was told, as state and source port.
    fn with_dispatcher(room: u32, talk: impl FnOnce(&Inlet)) -> Vec<(FlowState, u16)> {
        let (mut dispatcher, inlet) = Dispatcher::new(room, EntropyKey::of_this_boot());
        let queue = dispatcher.attach("test");
        let thread = thread::spawn(|| dispatcher.run());
        talk(&inlet);
        drop(inlet);
        thread.join().unwrap();
        let mut told = Vec::new();
        while let Some(batch) = queue.recv() {
            told.extend(batch.iter().filter_map(|event| match event {
                Event::Start(flow) => Some((Start, flow.id.src().port())),
                Event::End(flow, _) => Some((End, flow.id.src().port())),
                Event::Report => None,
            }));
        }
        assert_eq!(queue.depth(), 0);
        told
    }

    #[test]
    fn a_full_table_refuses_exactly_what_does_not_fit() {
        let told = with_dispatcher(2, |inlet| {
            inlet.send_all(vec![event(Start, 1)]).unwrap();
            let all = inlet.send_all(vec![event(Start, 2), event(Start, 3)]);
            assert_eq!(all, Err(Refused::Full { events: 2, limit: 2 }), "all or nothing");
            let each = inlet.send_each(vec![event(Start, 2), event(Start, 3)]);
            assert_eq!(each, Err(Refused::Full { events: 1, limit: 2 }), "each for itself");
            inlet.send_all(vec![event(Start, 1)]).expect("a repeated start needs no room");
            inlet.send_all(vec![event(End, 1), event(Start, 4)]).expect("room was made");
            inlet.send_each(vec![event(End, 2), event(Start, 5)]).expect("room was made");
            assert_eq!((inlet.flows().unwrap().len(), inlet.count()), (2, Ok(2)));
        });
        assert_eq!(told, [(Start, 1), (Start, 2), (End, 1), (Start, 4), (End, 2), (Start, 5)]);
    }

    #[test]
    fn room_is_given_back() {
        with_dispatcher(3, |inlet| {
            for _ in 0..1000 {
                let pair = vec![event(Start, 1), event(Start, 1), event(End, 1), event(End, 1)];
                inlet.send_each(pair).unwrap();
            }
            inlet.send_all((1..=3).map(|port| event(Start, port)).collect()).unwrap();
            assert_eq!(inlet.flows().unwrap().len(), 3);
            inlet.send_all(vec![event(Start, 4)]).unwrap_err();
        });
    }

    /// A start and its end in any number of batches leave nothing, in order.
    #[test]
    fn order_is_kept() {
        let told = with_dispatcher(10, |inlet| {
            for port in 1..=5000 {
                inlet.send_each(vec![event(Start, port)]).unwrap();
                inlet.send_each(vec![event(End, port)]).unwrap();
            }
            assert_eq!(inlet.flows().unwrap(), []);
        });
        let expected = (1..=5000).flat_map(|port| [(Start, port), (End, port)]);
        assert!(told.into_iter().eq(expected));
    }
}
