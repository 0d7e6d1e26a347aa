//! The open flows: what each is, since when, and what a new event changes.
//!
//! Owned by the dispatcher; only its thread touches it. How many flows may be
//! open is not its business but that of [`Admission`], whose tickets it holds.

mod stored;

use std::collections::hash_map::Entry;

use self::stored::Stored;
use crate::carried::Carried;
use crate::closed::Closed;
use crate::entropy::EntropyKey;
use crate::flow::{Flow, FlowEvent, FlowId, FlowState, Tag, Timestamp};
use crate::flow_info::FlowInfo;
use crate::flow_map::FlowMap;
use crate::meter::Meter;
use crate::net::addresses::Local;

pub use crate::admission::Admission;

/// In microseconds.
const SECOND: u64 = 1_000_000;

/// How long the end of a flow is awaited that is gone from the system: who tells of
/// flows may have more to say of it than who finds them. In microseconds.
pub const GRACE: u64 = 5 * SECOND;

/// How a plugin knows of a flow. Who was told knows better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Authority {
    /// It looked at the system and applied a rule.
    Found,
    /// The program that has the flow, or somebody for it, sent a datagram, which may be
    /// late or the echo of one that glowd has sent.
    Heard,
    /// They said so, in order.
    Told,
}

/// What an event did to the table.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A flow was opened.
    Opened(Flow),
    /// The flow was open, with this very tag: nothing changed but when it was last
    /// heard of and, if the event tells, what it has carried.
    Repeated,
    /// A plugin that was told of the flow has it, or found it first: what another found
    /// has no effect.
    Outranked,
    /// A flow that was heard of is gone from the system: unless its end is heard within
    /// [`GRACE`], that was it.
    Awaited,
    /// Of an open flow, that it goes on: the same.
    Goes,
    /// Late news of a flow that is over: nothing changed.
    Stale,
    /// The flow was open with another tag: that one is over, this one is open.
    Retagged {
        /// As it was.
        old: Flow,
        /// As it is.
        new: Flow,
    },
    /// A flow was closed.
    Closed(Flow),
    /// An end of a flow that is not open.
    Unknown,
}

/// The open flows.
pub struct FlowTable {
    flows: FlowMap<Stored>,
    /// Those that are over since a short time.
    closed: Closed,
    /// What they had left their connections with.
    carried: Carried,
    /// Open ones that were heard of and are gone from the system since that time.
    gone: FlowMap<Timestamp>,
    key: EntropyKey,
    meter: Option<Box<dyn Meter>>,
    /// What knows this host's addresses; none: nobody measures.
    local: Option<Local>,
    /// How many flows have their source elsewhere and their destination here.
    turned: usize,
}

impl FlowTable {
    /// An empty table, whose labels get their entropy by `key`.
    pub fn new(key: EntropyKey) -> Self {
        let (flows, closed, gone) = (FlowMap::default(), Closed::default(), FlowMap::default());
        let (carried, meter, local) = (Carried::default(), None, None);
        FlowTable { flows, closed, carried, gone, key, meter, local, turned: 0 }
    }

    /// Has flows that are opened from now on counted by `meter`.
    pub fn set_meter(&mut self, meter: Option<Box<dyn Meter>>) {
        if meter.is_some() {
            self.know_addresses();
        }
        self.meter = meter;
    }

    /// Has flows that are opened from now on measured by their sockets, at whichever end of
    /// theirs this host is.
    pub fn know_addresses(&mut self) {
        self.local.get_or_insert_with(Local::default);
    }

    /// Applies an event that arrived at `now` from the plugin `source`, which knows of
    /// it by `authority`.
    pub fn apply(
        &mut self,
        event: FlowEvent,
        (source, authority): (&'static str, Authority),
        now: Timestamp,
    ) -> Change {
        let id = event.id;
        if let Some(stored) = self.flows.get(&id) {
            if let Some(change) = stored.refuses(&event, (source, authority), now) {
                match change {
                    Change::Awaited => {
                        self.gone.entry(id).or_insert(now);
                    }
                    // It is there again.
                    Change::Outranked => {
                        self.gone.remove(&id);
                    }
                    _ => {}
                }
                return change;
            }
        }
        match event.state {
            FlowState::Start | FlowState::Ongoing => {
                let start = event.time.unwrap_or(now);
                let is_undated = authority == Authority::Found && event.time.is_none();
                let FlowEvent { tag, application, usage, .. } = event;
                let usage = usage.map(|usage| *usage);
                let mut new = Stored {
                    tag,
                    start,
                    is_undated,
                    source,
                    authority,
                    is_turned: false,
                    application,
                    news: None,
                    slot: None,
                };
                if start != now || usage.is_some() {
                    new.hear(usage, now);
                }
                match self.flows.entry(id) {
                    // Who tells in order may open a flow again as it was.
                    Entry::Vacant(_)
                        if authority == Authority::Heard && self.closed.covers(&id, event.time) =>
                    {
                        Change::Stale
                    }
                    Entry::Vacant(place) => {
                        new.is_turned = is_turned(&mut self.local, &id);
                        self.turned += usize::from(new.is_turned);
                        new.open(&mut self.meter, &id);
                        Change::Opened(place.insert(new).flow(id, &self.key, self.meter.as_deref()))
                    }
                    Entry::Occupied(mut slot) if event.state == FlowState::Ongoing => {
                        slot.get_mut().learn(authority);
                        slot.get_mut().hear(usage, now);
                        Change::Goes
                    }
                    Entry::Occupied(mut slot) if slot.get().tag == tag => {
                        // From now on only they who were told can end it. But what comes back
                        // of what glowd itself has said tells nothing.
                        let echo = authority == Authority::Heard && slot.get().start == start;
                        if !echo {
                            slot.get_mut().learn(authority);
                        }
                        slot.get_mut().hear(usage, now);
                        Change::Repeated
                    }
                    Entry::Occupied(mut slot) => {
                        new.is_turned = slot.get().is_turned;
                        // It begins with its tag.
                        new.is_undated = false;
                        new.open(&mut self.meter, &id);
                        new.learn(slot.get().authority);
                        let old = slot.insert(new);
                        old.leave(&mut self.carried);
                        let meter = self.meter.as_deref();
                        let new = slot.get().flow(id, &self.key, meter);
                        let change = Change::Retagged { old: old.flow(id, &self.key, meter), new };
                        close(&mut self.meter, old.slot);
                        change
                    }
                }
            }
            FlowState::End => {
                // A clock that is ahead must not bar the flows of the time until then.
                let end = event.time.unwrap_or(now).min(now);
                let Some(mut stored) = self.flows.remove(&id) else {
                    // Its start may be on its way: UDP keeps no order.
                    self.closed.note(id, end, end);
                    return Change::Unknown;
                };
                self.give_memory_back();
                self.turned -= usize::from(stored.is_turned);
                self.gone.remove(&id);
                if let Some(usage) = event.usage {
                    stored.hear(Some(*usage), now);
                    stored.news().told = Timestamp(u64::MAX);
                }
                self.closed.note(id, stored.start, end.max(stored.start));
                stored.leave(&mut self.carried);
                let flow = stored.flow(id, &self.key, self.meter.as_deref());
                close(&mut self.meter, stored.slot);
                Change::Closed(flow)
            }
        }
    }

    /// Whether the event would end a flow that is open: as an end, or with another tag.
    pub fn would_end(
        &self,
        event: &FlowEvent,
        by: (&'static str, Authority),
        now: Timestamp,
    ) -> bool {
        self.flows.get(&event.id).is_some_and(|stored| {
            let ends = match event.state {
                FlowState::Start => event.tag != stored.tag,
                FlowState::Ongoing => false,
                FlowState::End => true,
            };
            ends && stored.refuses(event, by, now).is_none()
        })
    }

    /// Keeps a sample of a flow. Returns the flow, if that is wanted, it is open and the
    /// sample of the socket that it has had.
    pub fn measure(&mut self, id: &FlowId, info: FlowInfo, wanted: bool) -> Option<Flow> {
        let stored = self.flows.get_mut(id)?;
        let flow = |stored: &mut Stored| stored.flow(*id, &self.key, self.meter.as_deref());
        (stored.measure(info, &self.carried) && wanted).then(|| flow(stored))
    }

    /// Whether a flow is open that has that socket on this host.
    pub fn has_socket(&self, socket: &FlowId) -> bool {
        self.flows.contains_key(socket) || self.is_turned(&socket.turned())
    }

    /// Keeps a sample of a socket, for the flow that has it, or for both where two run in opposite
    /// directions. Tells of each to `take` if that is wanted, as [`Self::measure`] does.
    pub fn measure_socket(
        &mut self,
        socket: &FlowId,
        info: FlowInfo,
        wanted: bool,
        mut take: impl FnMut(Flow),
    ) {
        let other = socket.turned();
        if self.is_turned(&other) {
            self.measure(&other, info.clone(), wanted).into_iter().for_each(&mut take);
        }
        if !self.is_turned(socket) {
            self.measure(socket, info, wanted).into_iter().for_each(take);
        }
    }

    /// The flow as its socket on this host has it, whose source is this host.
    pub fn socket_of(&self, id: &FlowId) -> FlowId {
        if self.is_turned(id) {
            id.turned()
        } else {
            *id
        }
    }

    /// Whether that flow is open, its source elsewhere and its destination here.
    pub fn is_turned(&self, id: &FlowId) -> bool {
        self.turned > 0 && self.flows.get(id).is_some_and(|stored| stored.is_turned)
    }

    /// A table that was once large does not stay so for good.
    fn give_memory_back(&mut self) {
        if self.flows.capacity() > 4096 && self.flows.len() < self.flows.capacity() / 8 {
            self.flows.shrink_to(self.flows.len() * 2);
        }
    }

    /// Whether the end of a flow is awaited that is gone from the system.
    pub fn awaits(&self) -> bool {
        !self.gone.is_empty()
    }

    /// The flows whose end was awaited for so long that it will not come, with their tags.
    pub fn given_up(&mut self, now: Timestamp) -> Vec<(FlowId, Tag)> {
        let flows = &self.flows;
        let mut over = Vec::new();
        self.gone.retain(|id, since| {
            let due = since.0.saturating_add(GRACE) <= now.0;
            // One that began since then is another, of the same 5-tuple.
            let stored = flows.get(id).filter(|stored| due && stored.start <= *since);
            over.extend(stored.map(|stored| (*id, stored.tag)));
            !due
        });
        over
    }

    /// The flows that were only heard of, and of which there is no news since `then`,
    /// with their tags.
    pub fn silent_since(&self, then: Timestamp) -> Vec<(FlowId, Tag)> {
        let heard = |stored: &Stored| stored.news.as_ref().map_or(stored.start, |news| news.heard);
        let silent = self
            .flows
            .iter()
            .filter(|(_, stored)| stored.authority == Authority::Heard && heard(stored) <= then);
        silent.map(|(id, stored)| (*id, stored.tag)).collect()
    }

    /// Whether that flow is open.
    pub fn contains(&self, id: &FlowId) -> bool {
        self.flows.contains_key(id)
    }

    /// How many flows are open.
    pub fn count(&self) -> usize {
        self.flows.len()
    }

    /// That flow, if it is open.
    pub fn flow(&self, id: &FlowId) -> Option<Flow> {
        let stored = self.flows.get(id)?;
        Some(stored.flow(*id, &self.key, self.meter.as_deref()))
    }

    /// The flows of whose lives another period (in us, not 0) was over after `since` and
    /// at `now`.
    pub fn due(&self, period: u64, since: Timestamp, now: Timestamp) -> Vec<FlowId> {
        let is_due = |stored: &Stored| {
            let periods = |at: Timestamp| at.0.saturating_sub(stored.start.0) / period;
            periods(now) > periods(since)
        };
        self.flows.iter().filter(|(_, stored)| is_due(stored)).map(|(id, _)| *id).collect()
    }

    /// All open flows, in no order.
    pub fn flows(&self) -> Vec<Flow> {
        self.flows
            .iter()
            .map(|(id, stored)| stored.flow(*id, &self.key, self.meter.as_deref()))
            .collect()
    }
}

/// Whether only the destination of that flow is this host.
fn is_turned(local: &mut Option<Local>, id: &FlowId) -> bool {
    let is_here =
        |local: &mut Local| !local.contains(id.src().ip()) && local.contains(id.dst().ip());
    local.as_mut().is_some_and(is_here)
}

fn close(meter: &mut Option<Box<dyn Meter>>, slot: Option<u32>) {
    if let Some((meter, slot)) = meter.as_mut().zip(slot) {
        meter.close(slot);
    }
}

#[cfg(test)]
#[path = "flow_table_tests.rs"]
mod tests;
