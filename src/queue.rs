//! A backend's queue: what it is told, and both of its ends, of which the dispatcher
//! has one and the backend's thread the other. It is not bounded here, since a start
//! or an end is never dropped on the way; its depth is known to both.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::Arc;
use std::time::Duration;

use log::warn;

use crate::config::Section;
use crate::flow::{Flow, Tag, Timestamp};
use crate::metrics::families::{QUEUE_EVENTS, SAMPLES_DROPPED};
use crate::metrics::{Count, Family, Metrics};
use crate::warn_limited;

/// Depth of a backend's queue, in events, over which a warning is due.
const DEEP: usize = 100_000;

/// The same over which nothing is added that may wait.
const BUSY: usize = 1_000;

/// What a backend is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A flow was opened.
    Start(Flow),
    /// A flow is over, since that moment.
    End(Flow, Timestamp),
    /// From now on packets that nothing else gives a tag carry this one, or none again.
    Everything(Option<Tag>),
    /// An open flow was measured ([`Flow::info`]). These are left out where a queue is long.
    Sample(Flow),
    /// An open flow goes on, as of that moment: for those who want to know it, once in each
    /// `ongoingPeriod` of its life.
    Ongoing(Flow, Timestamp),
    /// The administrator asks for the counters (SIGUSR1).
    Report,
    /// The backend's section has changed (SIGHUP): what follows is worked on by this
    /// one. To be told of the same values again changes nothing.
    Reload(Arc<Section>),
}

/// Events in their order, shared by all backends.
pub type Batch = Arc<Vec<Event>>;

/// A backend's end of its queue.
#[derive(Debug)]
pub struct Queue {
    batches: Receiver<Batch>,
    depth: Arc<AtomicUsize>,
    wants_samples: Arc<AtomicBool>,
    wants_ongoing: Arc<AtomicBool>,
}

impl Queue {
    /// The next batch; waits for it. None: no more will come.
    pub fn recv(&self) -> Option<Batch> {
        self.batches.recv().ok().map(|batch| self.taken(batch))
    }

    /// The same, but waits no longer than that.
    ///
    /// # Errors
    /// None came, or no more will come.
    pub fn recv_within(&self, patience: Duration) -> Result<Batch, RecvTimeoutError> {
        self.batches.recv_timeout(patience).map(|batch| self.taken(batch))
    }

    /// The next batch, if there is one.
    pub fn try_recv(&self) -> Option<Batch> {
        self.batches.try_recv().ok().map(|batch| self.taken(batch))
    }

    /// Says whether samples are of any use here, as they are taken to be: they are many.
    pub fn want_samples(&self, wanted: bool) {
        self.wants_samples.store(wanted, Ordering::Relaxed);
    }

    /// Says that flows that go on are to be told of here, which they are not otherwise.
    pub fn want_ongoing(&self) {
        self.wants_ongoing.store(true, Ordering::Relaxed);
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
pub(crate) struct Outlet {
    /// The path of the part, such as `backends.marker`.
    pub(crate) name: String,
    batches: Sender<Batch>,
    depth: Arc<AtomicUsize>,
    wants_samples: Arc<AtomicBool>,
    wants_ongoing: Arc<AtomicBool>,
    deep: bool,
    /// Batches of samples that were left out.
    left_out: Arc<Count>,
}

impl Outlet {
    /// Has the queue of the backend called `name` measured.
    pub(crate) fn measure_by(&self, name: &'static str, metrics: &Metrics) {
        self.measure_depth_by(&QUEUE_EVENTS, name, metrics);
        let left_out = self.left_out.clone();
        metrics.add(move |writer| writer.number(&SAMPLES_DROPPED, &[name], left_out.get()));
    }

    /// Has the depth of the queue of the part called `name` measured.
    pub(crate) fn measure_depth_by(
        &self,
        family: &'static Family,
        name: &'static str,
        metrics: &Metrics,
    ) {
        let depth = self.depth.clone();
        metrics.add(move |writer| {
            writer.number(family, &[name], depth.load(Ordering::Relaxed) as u64);
        });
    }

    /// Whether samples are of any use there.
    pub(crate) fn wants_samples(&self) -> bool {
        self.wants_samples.load(Ordering::Relaxed)
    }

    /// Whether flows that go on are to be told of there.
    pub(crate) fn wants_ongoing(&self) -> bool {
        self.wants_ongoing.load(Ordering::Relaxed)
    }

    /// Whether little waits there.
    pub(crate) fn is_free(&self) -> bool {
        self.depth.load(Ordering::Relaxed) < BUSY
    }

    /// Adds a batch of samples where they are wanted, unless the queue is long.
    pub(crate) fn send_samples(&mut self, batch: Batch) {
        if !self.wants_samples() {
            return;
        }
        if self.depth.load(Ordering::Relaxed) < DEEP {
            return self.send(batch);
        }
        self.left_out.add(batch.len() as u64);
        let (name, left_out) = (&self.name, &self.left_out);
        warn_limited!("{name}: too far behind for {left_out} samples of flows so far");
    }

    /// Adds a batch. It never waits.
    pub(crate) fn send(&mut self, batch: Batch) {
        let depth = self.depth.fetch_add(batch.len(), Ordering::Relaxed) + batch.len();
        if depth > DEEP && !self.deep {
            warn!("{}: {depth} events behind", self.name);
            self.deep = true;
        } else if depth < DEEP / 2 {
            self.deep = false;
        }
        // A backend that has died is the main thread's business.
        let _ = self.batches.send(batch);
    }
}

/// A queue for the part with that path.
pub(crate) fn queue(name: String) -> (Outlet, Queue) {
    let (sender, batches) = mpsc::channel();
    let depth = Arc::new(AtomicUsize::new(0));
    let wants_samples = Arc::new(AtomicBool::new(true));
    let wants_ongoing = Arc::<AtomicBool>::default();
    let outlet = Outlet {
        name,
        batches: sender,
        depth: depth.clone(),
        wants_samples: wants_samples.clone(),
        wants_ongoing: wants_ongoing.clone(),
        deep: false,
        left_out: Arc::default(),
    };
    (outlet, Queue { batches, depth, wants_samples, wants_ongoing })
}
