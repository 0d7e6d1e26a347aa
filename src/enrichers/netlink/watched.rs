//! The flows that are measured, and what TCP knew of those whose sockets are gone. Used by
//! the enricher's thread and, when a flow ends, by the dispatcher's; either has it for some
//! microseconds at a time, so neither waits for a list.
//!
//! A socket may go between two samples and before its flow ends. The kernel tells of that,
//! of every connection of the host, and here is kept what is of a flow that is open.

use std::hash::BuildHasher;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::closed::closed_in;
use super::{sample, says_more, Wanted, NAME};
use crate::dispatcher::{Event, Queue};
use crate::error::Result;
use crate::flow::{FlowId, Protocol, Timestamp};
use crate::flow_info::{FlowInfo, Kinds};
use crate::flow_map::FlowMap;
use crate::net::sock_diag::{extension, Diag, Ends, Socket, NO_COOKIE};
use crate::warn_limited;

/// So long the kernel may take to tell of a socket that has just gone, in ms: a worker of it
/// does, which has to wait for a busy CPU like any other.
const TELLING: u8 = 100;
/// After a wait in vain there is none for so long, and for twice as long each time: where
/// flows have no sockets here, ends are not held up.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is known of an open flow's socket.
#[derive(Default)]
pub(super) struct Known {
    /// The last list that had it, by number; 0: none had.
    seen: u32,
    /// What the last sample said that was handed on, see [`Kinds::digest`].
    said: u64,
    /// What TCP knew when it went.
    last: Option<Box<FlowInfo>>,
}

impl Known {
    /// It was there, and the kernel has not told of its end.
    fn is_thought_there(&self) -> bool {
        self.last.is_none() && self.seen != 0
    }
}

pub(super) struct Watched {
    /// Those that are open.
    pub(super) flows: FlowMap<Known>,
    /// Of flows whose sockets are bound to an interface: which. The kernel wants to know it.
    pub(super) bound: FlowMap<u32>,
    /// `flows` has got other keys.
    pub(super) has_changed: bool,
    /// What has not yet been handed on of the sockets that went.
    pub(super) fresh: Vec<(FlowId, FlowInfo)>,
    pub(super) queue: Option<Queue>,
    /// Lists that have been begun.
    lists: u32,
    /// After so many of them the kernel gave up telling of sockets, and no list has been made
    /// since then that shows which.
    deaf_since: Option<u32>,
    /// Added to what samples say: where it is another, all of them have changed.
    changes: u64,
    /// Sockets of flows that went unheard of, and are not yet counted.
    unheard: usize,
    /// None: the kernel does not tell, or does not any more.
    pub(super) ends: Option<Ends>,
    diag: Diag,
    protocol: Protocol,
    wanted: Wanted,
    /// Not to be waited for before, and the pause after that.
    patient_from: Instant,
    pause: Duration,
}

/// For two threads.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Watched>>);

impl Shared {
    pub(super) fn new(protocol: Protocol, wanted: Wanted) -> Result<Self> {
        // Of UDP the kernel knows nothing that is worth hearing.
        let worth = protocol == Protocol::Tcp && wanted.ext & extension::INFO != 0;
        let ends = worth.then(Ends::open).and_then(|ends| {
            let say = |error| {
                log::warn!("{NAME}: what is sent shortly before a socket goes is missed: {error}");
            };
            ends.map_err(say).ok()
        });
        Ok(Shared(Arc::new(Mutex::new(Watched {
            flows: FlowMap::default(),
            bound: FlowMap::default(),
            has_changed: false,
            fresh: Vec::new(),
            queue: None,
            lists: 0,
            deaf_since: None,
            changes: 0,
            unheard: 0,
            ends,
            diag: Diag::open()?,
            protocol,
            wanted,
            patient_from: Instant::now(),
            pause: PAUSE,
        }))))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// What is readable when a socket has gone, and how long it may be left alone.
    pub(super) fn ends(&self) -> Option<(OwnedFd, Duration)> {
        let ends = self.ends.as_ref()?;
        Some((ends.as_fd().try_clone_to_owned().ok()?, ends.rest()))
    }

    /// Learns which flows have started and ended, and which of them have lost their socket.
    pub(super) fn follow(&mut self) {
        let Watched { queue, flows, bound, protocol, has_changed, .. } = self;
        *has_changed |= learn(queue.as_ref(), flows, bound, *protocol);
        if self.flows.capacity() > 4096 && self.flows.len() < self.flows.capacity() / 8 {
            self.flows.shrink_to(self.flows.len() * 2);
        }
        self.take_ends();
    }

    /// A list is begun.
    pub(super) fn begin_list(&mut self) {
        self.lists = self.lists.saturating_add(1);
    }

    /// Leaves out the sockets of no flow, all at a time, so that the processor gets the next ones
    /// from memory meanwhile.
    pub(super) fn keep_watched(&mut self, there: &mut Vec<(FlowId, &Socket<'_>)>) {
        let list = self.lists;
        there.retain(|(id, socket)| {
            let Some(known) = self.flows.get_mut(id) else { return false };
            if is_whole(socket) {
                known.seen = list;
            }
            if socket.interface != 0 {
                self.bound.insert(*id, socket.interface);
            }
            true
        });
    }

    /// Leaves out those of which a sample says what the last one said that was handed on: most
    /// connections are idle most of the time. But each has its turn once in `turns` lists,
    /// since a backend may have been kept from one, or begun to want it. Returns how many are left
    /// out.
    pub(super) fn keep_changed(
        &mut self,
        there: &mut Vec<(FlowId, &Socket<'_>)>,
        kinds: Kinds,
        turns: u32,
    ) -> usize {
        let Watched { flows, lists, changes, .. } = self;
        let hasher = flows.hasher().clone();
        let mut same = 0;
        there.retain(|(id, socket)| {
            let Some(known) = flows.get_mut(id).filter(|_| says_more(socket, kinds)) else {
                return false;
            };
            let said = kinds.digest(socket.cookie, socket.attributes(), hasher.build_hasher());
            let said = said.wrapping_add(*changes);
            let has_changed = std::mem::replace(&mut known.said, said) != said;
            let turn = socket.cookie.wrapping_add(u64::from(*lists)) % u64::from(turns);
            let is_kept = has_changed || turn == 0;
            same += usize::from(!is_kept);
            is_kept
        });
        same
    }

    /// Has the next list leave out nothing: what was handed on may not have arrived, or was said
    /// in another way.
    pub(super) fn say_all_again(&mut self) {
        self.changes = self.changes.wrapping_add(1);
    }

    /// A list is made. If the kernel gave up telling of sockets, it shows whose may have gone;
    /// the one after that does, since the kernel may still be about to tell.
    pub(super) fn end_list(&mut self) {
        let Watched { flows, bound, diag, lists, deaf_since: Some(since), unheard, .. } = self
        else {
            return;
        };
        let is_missing = |known: &Known| known.is_thought_there() && known.seen + 1 < *lists;
        for (id, known) in flows.iter_mut().filter(|(_, known)| is_missing(known)) {
            // A list has the states that are asked for, and not every one that it should.
            let interface = bound.get(id).copied().unwrap_or(0);
            let mut is_there = false;
            let _ = diag.look_up(id, NO_COOKIE, interface, extension::INFO, |socket| {
                is_there = is_whole(socket);
            });
            if !is_there {
                known.seen = 0;
                *unheard += 1;
            }
        }
        if *since + 1 < *lists {
            self.deaf_since = None;
        }
    }

    /// How many sockets of flows went unheard of since it was asked.
    pub(super) fn take_unheard(&mut self) -> usize {
        std::mem::take(&mut self.unheard)
    }

    /// Takes what the kernel tells of sockets that went.
    pub(super) fn take_ends(&mut self) {
        let Watched { queue, flows, bound, protocol, has_changed, fresh, .. } = self;
        let (diag, lists, deaf_since) = (&mut self.diag, self.lists, &mut self.deaf_since);
        let Some(ends) = &mut self.ends else { return };
        let outcome = ends.take(|socket| {
            let Ok(id) = socket.flow() else { return };
            if !flows.contains_key(&id) {
                // It may have begun since the first of many was taken.
                *has_changed |= learn(queue.as_ref(), flows, bound, *protocol);
            }
            let Some(known) = flows.get_mut(&id) else { return };
            let place = diag.in_place_of(&id, socket.interface).ok().flatten();
            let state = closed_in(socket, place);
            let info =
                FlowInfo::last(Timestamp::now(), socket.cookie, socket.attributes(), state.0);
            fresh.push((id, info.clone()));
            known.last = Some(Box::new(info));
        });
        match outcome {
            Ok(false) => {}
            // Most sockets are no flow's, so this says little yet.
            Ok(true) => *deaf_since = Some(lists),
            Err(errno) => {
                log::warn!("{NAME}: cannot hear of sockets that go: {errno}");
                self.ends = None;
            }
        }
    }

    /// Looks at a flow that ends.
    pub(super) fn last_look(&mut self, id: &FlowId) -> Option<FlowInfo> {
        if id.protocol() != self.protocol {
            return None;
        }
        let mut found = None;
        let interface = self.bound.get(id).copied().unwrap_or(0);
        let kinds = self.wanted.kinds();
        let outcome = self.diag.look_up(id, NO_COOKIE, interface, kinds.extensions(), |socket| {
            found = sample(socket, kinds, Timestamp::now());
        });
        if let Err(failure) = outcome {
            warn_limited!("{NAME}: cannot look at {id} at its end: {failure}");
        }
        if found.is_some() {
            return found;
        }
        self.follow();
        found = self.hear_of(id);
        if self.deaf_since.is_some() && self.flows.get(id).is_some_and(Known::is_thought_there) {
            self.unheard += 1;
        }
        found
    }

    /// What TCP knew when that flow's socket went, which may have been a moment ago.
    fn hear_of(&mut self, id: &FlowId) -> Option<FlowInfo> {
        let since = Instant::now();
        let end = since + Duration::from_millis(TELLING.into());
        loop {
            if let Some(last) = self.flows.get(id)?.last.clone() {
                self.pause = PAUSE;
                return Some(*last);
            }
            // If it had a socket a moment ago, the kernel will tell.
            let now = Instant::now();
            let ends = self.ends.as_ref().filter(|_| self.patient_from <= since)?;
            if now >= end {
                self.patient_from = now + self.pause;
                self.pause = LONGEST_PAUSE.min(2 * self.pause);
                return None;
            }
            let mut fds = [PollFd::new(ends.as_fd(), PollFlags::POLLIN)];
            // Rounded up, or the last part of a millisecond is spent asking.
            let left = PollTimeout::try_from(end - now + Duration::from_millis(1));
            let _ = poll(&mut fds, left.unwrap_or(PollTimeout::from(TELLING)));
            self.take_ends();
        }
    }
}

/// Learns which flows have started and ended; returns whether they are others now.
fn learn(
    queue: Option<&Queue>,
    flows: &mut FlowMap<Known>,
    bound: &mut FlowMap<u32>,
    protocol: Protocol,
) -> bool {
    let mut has_changed = false;
    while let Some(batch) = queue.and_then(Queue::try_recv) {
        for event in batch.iter() {
            has_changed |= match event {
                Event::Start(flow) if flow.id.protocol() == protocol => {
                    flows.insert(flow.id, Known::default()).is_none()
                }
                Event::End(flow, _) => {
                    bound.remove(&flow.id);
                    flows.remove(&flow.id).is_some()
                }
                _ => false,
            };
        }
    }
    has_changed
}

/// Not what is left of a socket, such as one that is TIME-WAIT.
fn is_whole(socket: &Socket<'_>) -> bool {
    socket.tcp_info().is_some()
}
