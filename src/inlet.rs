//! The way into the dispatcher: what plugins and the main thread can tell it and ask it.
//!
//! Whoever sends waits while the dispatcher is behind, and learns at once if the flow
//! table is full.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender, SyncSender};
use std::sync::Arc;
use std::time::Duration;

use crate::config::Section;
use crate::flow::{Flow, FlowEvent, FlowId, FlowState, Tag};
use crate::flow_info::FlowInfo;
use crate::flow_table::{Admission, Authority};

/// Which plugin tells, and how it knows.
pub(crate) type Source = (&'static str, Authority);

/// Logs the counters of a plugin. The dispatcher calls it: plugins wait for the
/// outside and cannot be told.
pub type Reporter = Box<dyn Fn() + Send>;

/// What the dispatcher is told.
pub(crate) enum Message {
    Events {
        source: Source,
        events: Vec<FlowEvent>,
        admitted: Admitted,
    },
    List(Sender<Answer>),
    Count(Sender<Answer>),
    Malformed(Source, u64),
    Everything(Option<Tag>),
    Samples(Vec<(FlowId, FlowInfo)>),
    Report,
    Reporter(Reporter),
    Ready(Sender<Answer>),
    Reload(Reload, Sender<Answer>),
    /// Blocks the dispatcher until the other end hangs up.
    #[cfg(test)]
    Wedge(mpsc::Receiver<()>),
}

/// What a reload means for the dispatcher and those behind it.
#[derive(Clone, Debug, Default)]
pub struct Reload {
    /// How many flows may be open from now on (`maxFlows`).
    pub max_flows: u32,
    /// After what silence a flow is taken to be over (`idleTimeout`).
    pub idle_timeout: Option<Duration>,
    /// How often flows that go on are told of (`ongoingPeriod`).
    pub ongoing_period: Option<Duration>,
    /// The sections of backends, by name.
    pub sections: Vec<(&'static str, Arc<Section>)>,
    /// What the status says from now on beside the figures.
    pub remark: Option<String>,
}

/// What the dispatcher answers. One type for all questions, since a channel is some KB of
/// code for each type that it carries.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// To [`Message::List`].
    pub(crate) flows: Vec<Flow>,
    /// To [`Message::Count`]; of refused events to [`Admitted::Undecided`].
    pub(crate) count: usize,
}

/// Who holds the tickets for the starts of a batch.
pub(crate) enum Admitted {
    /// The sender reserved one for each.
    Yes,
    /// There were not enough; the dispatcher knows which flows are open and so
    /// decides exactly: all or nothing, or each for itself. It answers with the
    /// number of refused events.
    Undecided { all_or_nothing: bool, refused: Sender<Answer> },
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
    /// How many messages wait, or wait for room.
    waiting: Arc<AtomicUsize>,
    admission: Arc<Admission>,
    source: Source,
}

impl Inlet {
    /// A way in for the daemon itself. Who takes a message takes it away from
    /// `waiting`.
    pub(crate) fn new(
        messages: SyncSender<Message>,
        waiting: Arc<AtomicUsize>,
        admission: Arc<Admission>,
    ) -> Self {
        Inlet { messages, waiting, admission, source: ("glowd", Authority::Told) }
    }

    /// Waits for room.
    fn put(&self, message: Message) -> Result<(), Refused> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.messages.send(message).map_err(|_| {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            Refused::Stopping
        })
    }

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
            return self.put(message);
        }
        let answer = self.ask(|refused| {
            let admitted = Admitted::Undecided { all_or_nothing, refused };
            Message::Events { source, events, admitted }
        })?;
        match answer.count {
            0 => Ok(()),
            events => Err(Refused::Full { events, limit: self.admission.limit() }),
        }
    }

    /// The open flows, in no order, after all that this plugin has sent so far.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub fn flows(&self) -> Result<Vec<Flow>, Refused> {
        self.ask(Message::List).map(|answer| answer.flows)
    }

    /// How many flows are open, as [`Inlet::flows`] would list them. Cheap, and
    /// an answer proves that the dispatcher works.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub fn count(&self) -> Result<usize, Refused> {
        self.ask(Message::Count).map(|answer| answer.count)
    }

    /// Counts so many events that could not be understood.
    pub fn malformed(&self, events: u64) {
        // A daemon that is stopping counts no more.
        let _ = self.put(Message::Malformed(self.source, events));
    }

    /// Has packets that nothing else gives a tag carry this one from now on; none: no tag.
    pub fn everything(&self, tag: Option<Tag>) {
        // A daemon that is stopping marks no more.
        let _ = self.put(Message::Everything(tag));
    }

    /// Hands samples over, and waits for nobody: while the dispatcher is behind they are
    /// given up, which is what false says.
    pub fn samples(&self, samples: Vec<(FlowId, FlowInfo)>) -> bool {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let is_taken = self.messages.try_send(Message::Samples(samples)).is_ok();
        if !is_taken {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        is_taken
    }

    /// Has the service manager told that the daemon is ready: by the dispatcher, so
    /// that it is true.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub fn ready(&self) -> Result<(), Refused> {
        self.ask(Message::Ready).map(drop)
    }

    /// Has `reload` hold for all that is sent from now on, and the service manager
    /// told that the daemon is ready again.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub fn reload(&self, reload: Reload) -> Result<(), Refused> {
        self.ask(|answer| Message::Reload(reload, answer)).map(drop)
    }

    fn ask(&self, question: impl FnOnce(Sender<Answer>) -> Message) -> Result<Answer, Refused> {
        let (sender, answer) = mpsc::channel();
        self.put(question(sender))?;
        answer.recv().map_err(|_| Refused::Stopping)
    }

    /// Asks everybody to log their counters.
    pub fn report(&self) {
        // A daemon that is stopping has nothing to report.
        let _ = self.put(Message::Report);
    }

    /// Keeps the dispatcher from its work until what is returned is dropped.
    #[cfg(test)]
    pub(crate) fn wedge(&self) -> SyncSender<()> {
        let (release, released) = mpsc::sync_channel(0);
        assert!(self.put(Message::Wedge(released)).is_ok());
        release
    }

    /// Has `reporter` called whenever somebody asks for the counters.
    pub fn report_with(&self, reporter: Reporter) {
        // A daemon that is stopping reports no more.
        let _ = self.put(Message::Reporter(reporter));
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

/// How many of them may open a flow.
pub(crate) fn starts(events: &[FlowEvent]) -> usize {
    events.iter().filter(|event| event.state != FlowState::End).count()
}
