//! The open flows: what each is, since when, and what a new event changes.
//!
//! Owned by the dispatcher; only its thread touches it. How many flows may be
//! open is not its business but that of [`Admission`], whose tickets it holds.

use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use crate::carried::Carried;
use crate::closed::Closed;
use crate::entropy::EntropyKey;
use crate::flow::{Flow, FlowEvent, FlowId, FlowState, News, Tag, Timestamp, Usage};
use crate::flow_info::FlowInfo;
use crate::meter::Meter;

/// In microseconds.
const SECOND: u64 = 1_000_000;

/// How long the end of a flow is awaited that is gone from the system: who tells of
/// flows may have more to say of it than who finds them. In microseconds.
pub const GRACE: u64 = 5 * SECOND;

/// Counts the flows that are open or promised, so that whoever sends a start
/// learns at once, without waiting for the dispatcher, whether there is room.
#[derive(Debug)]
pub struct Admission {
    limit: AtomicUsize,
    used: AtomicUsize,
}

impl Admission {
    /// Room for `limit` flows.
    pub fn new(limit: usize) -> Self {
        Admission { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) }
    }

    /// How many flows may be open (`maxFlows`).
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets how many flows may be open. If more are, they stay, and there is room
    /// again when enough of them have ended.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Whether more flows are open or promised than may be.
    pub fn is_over(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit()
    }

    /// Takes `tickets` of what is left, or none. No ticket is always to be had.
    pub fn reserve(&self, tickets: usize) -> bool {
        if tickets == 0 {
            return true;
        }
        let limit = self.limit();
        let take = |used: usize| used.checked_add(tickets).filter(|used| *used <= limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Takes as many tickets as the number of flows grows by at the most, if there is
    /// room at that moment; it is negative if flows end before one starts. Returns
    /// how many were taken.
    pub fn reserve_growth(&self, most: isize) -> Option<usize> {
        let (limit, tickets) = (self.limit(), usize::try_from(most).unwrap_or(0));
        let take = |used: usize| {
            let fits = used.checked_add_signed(most).is_none_or(|peak| peak <= limit);
            fits.then(|| used.checked_add(tickets)).flatten()
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().map(|_| tickets)
    }

    /// Gives tickets back.
    pub fn release(&self, tickets: usize) {
        self.used.fetch_sub(tickets, Ordering::Relaxed);
    }
}

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
    flows: HashMap<FlowId, Stored>,
    /// Those that are over since a short time.
    closed: Closed,
    /// What they had left their connections with.
    carried: Carried,
    /// Open ones that were heard of and are gone from the system since that time.
    gone: HashMap<FlowId, Timestamp>,
    key: EntropyKey,
    meter: Option<Box<dyn Meter>>,
}

/// A flow without its id, which is the key, and without its label, which follows from
/// the id: 50,000 of them are a third of the daemon's memory.
#[derive(Debug)]
struct Stored {
    tag: Tag,
    start: Timestamp,
    source: &'static str,
    authority: Authority,
    application: Option<Arc<str>>,
    news: Option<Arc<News>>,
    /// The meter's.
    slot: Option<u32>,
}

impl Stored {
    fn flow(&self, id: FlowId, key: &EntropyKey, meter: Option<&dyn Meter>) -> Flow {
        Flow {
            id,
            tag: self.tag,
            label: self.tag.label(key.entropy(&id)),
            start: self.start,
            source: self.source,
            application: self.application.clone(),
            news: self.news.clone(),
            counted: meter.zip(self.slot).map(|(meter, slot)| meter.read(slot, id.protocol())),
        }
    }

    /// Whether the event is of a flow of the same 5-tuple that was before this one, as
    /// when the other end echoes what was said of it. Clocks of whole seconds may put
    /// the end of a flow before its start.
    fn is_news_of_an_earlier_life(&self, event: &FlowEvent) -> bool {
        let Some(time) = event.time else { return false };
        match event.state {
            FlowState::End if event.tag != self.tag => time <= self.start,
            FlowState::End => time.0.saturating_add(SECOND) <= self.start.0,
            FlowState::Start => event.tag != self.tag && time < self.start,
            FlowState::Ongoing => false,
        }
    }

    /// What becomes of an event that has no effect on the flow; None: it has one.
    fn refuses(
        &self,
        event: &FlowEvent,
        (source, authority): (&'static str, Authority),
    ) -> Option<Change> {
        match (authority, self.authority) {
            (Authority::Found, Authority::Heard) if event.state == FlowState::End => {
                Some(Change::Awaited)
            }
            (Authority::Found, Authority::Heard | Authority::Told) => Some(Change::Outranked),
            // The first that found it keeps it: else two of them would take it from each
            // other, with an end and a start each time.
            (Authority::Found, Authority::Found) if source != self.source => {
                Some(Change::Outranked)
            }
            (Authority::Heard, _) if self.is_news_of_an_earlier_life(event) => Some(Change::Stale),
            _ => None,
        }
    }

    /// Takes note of who else has told of it: the best counts.
    fn learn(&mut self, authority: Authority) {
        self.authority = self.authority.max(authority);
    }

    /// Takes note of an event at `now`.
    fn hear(&mut self, usage: Option<Usage>, now: Timestamp) {
        let news = self.news();
        news.heard = now;
        if let Some(usage) = usage {
            news.usage = Some(usage);
            news.told = now;
        }
    }

    /// Keeps a sample, which knows better than what was told before, unless it is of another
    /// socket than the one before. `carried` knows what its connection had carried before
    /// this flow.
    ///
    /// Of a flow that both enrichers measure netlink's count, or its fireflies and series would
    /// change their form each time; but the last numbers of a socket may be the other's alone.
    fn measure(&mut self, mut info: FlowInfo, carried: &Carried) -> bool {
        let before = self.news.as_ref().and_then(|news| news.info.as_ref());
        let earlier = match before {
            Some(before) if before.cookie != info.cookie => return false,
            Some(before) if info.by_program && !before.by_program && !info.is_closed() => {
                return false;
            }
            Some(before) => {
                info.by_program &= before.by_program;
                info.complete(before);
                None
            }
            None => Some(carried.before(info.cookie)),
        };
        let news = self.news();
        if info.usage().is_some() {
            news.usage = None;
        }
        news.earlier = earlier.unwrap_or(news.earlier);
        news.info = Some(Arc::new(info));
        true
    }

    /// To be changed; a copy if others have it, as they do where backends want samples.
    fn news(&mut self) -> &mut News {
        let heard = self.start;
        let fresh = || Arc::new(News { heard, ..News::default() });
        Arc::make_mut(self.news.get_or_insert_with(fresh))
    }

    /// Has `carried` know what the flow leaves its connection with.
    fn leave(&self, carried: &mut Carried) {
        let info = self.news.as_ref().and_then(|news| news.info.as_ref());
        if let Some((info, usage)) = info.and_then(|info| Some((info, info.usage()?))) {
            carried.note(info.cookie, usage);
        }
    }
}

impl FlowTable {
    /// An empty table, whose labels get their entropy by `key`.
    pub fn new(key: EntropyKey) -> Self {
        let (flows, closed, gone) = (HashMap::new(), Closed::default(), HashMap::new());
        FlowTable { flows, closed, carried: Carried::default(), gone, key, meter: None }
    }

    /// Has flows that are opened from now on counted by `meter`.
    pub fn set_meter(&mut self, meter: Option<Box<dyn Meter>>) {
        self.meter = meter;
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
            if let Some(change) = stored.refuses(&event, (source, authority)) {
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
                let FlowEvent { tag, application, usage, .. } = event;
                let usage = usage.map(|usage| *usage);
                let mut new =
                    Stored { tag, start, source, authority, application, news: None, slot: None };
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
                        new.slot = open(&mut self.meter, &id);
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
                        new.slot = open(&mut self.meter, &id);
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
    pub fn would_end(&self, event: &FlowEvent, by: (&'static str, Authority)) -> bool {
        self.flows.get(&event.id).is_some_and(|stored| {
            let ends = match event.state {
                FlowState::Start => event.tag != stored.tag,
                FlowState::Ongoing => false,
                FlowState::End => true,
            };
            ends && stored.refuses(event, by).is_none()
        })
    }

    /// Keeps a sample of a flow. Returns the flow, if that is wanted, it is open and the
    /// sample of the socket that it has had.
    pub fn measure(&mut self, id: &FlowId, info: FlowInfo, wanted: bool) -> Option<Flow> {
        let stored = self.flows.get_mut(id)?;
        let flow = |stored: &mut Stored| stored.flow(*id, &self.key, self.meter.as_deref());
        (stored.measure(info, &self.carried) && wanted).then(|| flow(stored))
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

/// A slot for that flow; none for one of IPv4, which is not marked.
fn open(meter: &mut Option<Box<dyn Meter>>, id: &FlowId) -> Option<u32> {
    meter.as_mut().filter(|_| id.is_ipv6())?.open()
}

fn close(meter: &mut Option<Box<dyn Meter>>, slot: Option<u32>) {
    if let Some((meter, slot)) = meter.as_mut().zip(slot) {
        meter.close(slot);
    }
}

#[cfg(test)]
#[path = "flow_table_tests.rs"]
mod tests;
