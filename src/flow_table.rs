//! The open flows: what each is, since when, and what a new event changes.
//!
//! Owned by the dispatcher; only its thread touches it. How many flows may be
//! open is not its business but that of [`Admission`], whose tickets it holds.

use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use crate::closed::Closed;
use crate::entropy::EntropyKey;
use crate::flow::{Flow, FlowEvent, FlowId, FlowState, News, Tag, Timestamp, Usage};
use crate::flow_info::FlowInfo;
use crate::meter::Meter;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// It looked at the system and applied a rule.
    Found,
    /// The program that has the flow, or somebody for it, sent a datagram, which may be
    /// late or the echo of one that glowd has sent.
    Heard,
    /// They said so, in order.
    Told,
}

impl Authority {
    /// Whether what this one says has no effect on what `other` has said.
    fn yields_to(self, other: Authority) -> bool {
        self == Authority::Found && other != Authority::Found
    }
}

/// What an event did to the table.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A flow was opened.
    Opened(Flow),
    /// The flow was open, with this very tag: nothing changed but when it was last
    /// heard of and, if the event tells, what it has carried.
    Repeated,
    /// A plugin that was told of the flow has it: what another found has no effect.
    Outranked,
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
            counted: meter.zip(self.slot).map(|(meter, slot)| meter.read(slot)),
        }
    }

    /// Whether the event is of a flow of the same 5-tuple that was before this one, as
    /// when the other end echoes what was said of it. Clocks of whole seconds may put
    /// the end of a flow before its start.
    fn is_news_of_an_earlier_life(&self, event: &FlowEvent) -> bool {
        const SECOND: u64 = 1_000_000;
        let Some(time) = event.time else { return false };
        match event.state {
            FlowState::End if event.tag != self.tag => time <= self.start,
            FlowState::End => time.0.saturating_add(SECOND) <= self.start.0,
            FlowState::Start => event.tag != self.tag && time < self.start,
            FlowState::Ongoing => false,
        }
    }

    /// Takes note of an event at `now`.
    fn hear(&mut self, usage: Option<Usage>, now: Timestamp) {
        let usage = usage.or_else(|| self.news.as_ref()?.usage);
        let info = self.news.as_ref().and_then(|news| news.info.clone());
        self.news = Some(Arc::new(News { heard: now, usage, info }));
    }

    /// Keeps a sample, unless it is of another socket than the one before.
    fn measure(&mut self, mut info: FlowInfo) -> bool {
        let news = self.news.as_deref();
        let before = news.and_then(|news| news.info.as_ref());
        if before.is_some_and(|before| before.cookie != info.cookie) {
            return false;
        }
        info.before = before.map(|before| before.time);
        self.news = Some(Arc::new(News {
            heard: news.map_or(self.start, |news| news.heard),
            usage: news.and_then(|news| news.usage),
            info: Some(Arc::new(info)),
        }));
        true
    }
}

impl FlowTable {
    /// An empty table, whose labels get their entropy by `key`.
    pub fn new(key: EntropyKey) -> Self {
        FlowTable { flows: HashMap::new(), closed: Closed::default(), key, meter: None }
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
            if authority.yields_to(stored.authority) {
                return Change::Outranked;
            }
            if authority == Authority::Heard && stored.is_news_of_an_earlier_life(&event) {
                return Change::Stale;
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
                        slot.get_mut().authority = authority;
                        slot.get_mut().hear(usage, now);
                        Change::Goes
                    }
                    Entry::Occupied(mut slot) if slot.get().tag == tag => {
                        // From now on only they who were told can end it.
                        slot.get_mut().authority = authority;
                        slot.get_mut().hear(usage, now);
                        Change::Repeated
                    }
                    Entry::Occupied(mut slot) => {
                        new.slot = open(&mut self.meter, &id);
                        let old = slot.insert(new);
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
                if let Some(usage) = event.usage {
                    stored.hear(Some(*usage), now);
                }
                self.closed.note(id, stored.start, end.max(stored.start));
                let flow = stored.flow(id, &self.key, self.meter.as_deref());
                close(&mut self.meter, stored.slot);
                Change::Closed(flow)
            }
        }
    }

    /// Keeps a sample of a flow. Returns the flow, if it is open and the sample of the
    /// socket that it has had.
    pub fn measure(&mut self, id: &FlowId, info: FlowInfo) -> Option<Flow> {
        let stored = self.flows.get_mut(id)?;
        stored.measure(info).then(|| stored.flow(*id, &self.key, self.meter.as_deref()))
    }

    /// A table that was once large does not stay so for good.
    fn give_memory_back(&mut self) {
        if self.flows.capacity() > 4096 && self.flows.len() < self.flows.capacity() / 8 {
            self.flows.shrink_to(self.flows.len() * 2);
        }
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
mod tests {
    use super::*;
    use crate::flow::Protocol;

    const API: (&str, Authority) = ("api", Authority::Told);
    const PIPE: (&str, Authority) = ("namedPipe", Authority::Told);
    const FIREFLY: (&str, Authority) = ("firefly", Authority::Heard);
    const FINDER: (&str, Authority) = ("netlink", Authority::Found);

    fn event(state: FlowState, port: u16, activity: u64) -> FlowEvent {
        let src = std::net::SocketAddr::new("2001:db8::1".parse().unwrap(), port);
        let dst = "[2001:db8::2]:1094".parse().unwrap();
        FlowEvent {
            state,
            id: FlowId::new(Protocol::Tcp, src, dst).unwrap(),
            tag: Tag::new(2, activity).unwrap(),
            time: None,
            application: None,
            usage: None,
        }
    }

    fn table() -> FlowTable {
        FlowTable::new(EntropyKey::of_this_boot())
    }

    #[test]
    fn a_flow_opens_once_and_closes_once() {
        let mut table = table();
        let opened = table.apply(event(FlowState::Start, 7, 16), API, Timestamp(5));
        let Change::Opened(flow) = opened else { panic!("{opened:?}") };
        assert_eq!((flow.start, flow.source), (Timestamp(5), "api"));
        assert_eq!(Tag::from_label(flow.label), Some(flow.tag));
        let again = table.apply(event(FlowState::Start, 7, 16), PIPE, Timestamp(6));
        assert_eq!(again, Change::Repeated);
        let news = News { heard: Timestamp(6), usage: None, info: None };
        let flow = Flow { news: Some(Arc::new(news)), ..flow };
        assert_eq!(table.flows(), vec![flow.clone()], "a repeated start changes nothing");
        let closed = table.apply(event(FlowState::End, 7, 1), API, Timestamp(7));
        assert_eq!(closed, Change::Closed(flow), "with the flow's own tag");
        let unknown = table.apply(event(FlowState::End, 7, 16), API, Timestamp(8));
        assert_eq!((unknown, table.count()), (Change::Unknown, 0));
    }

    /// Defect 7 of the peers: a repeated start drew the entropy anew.
    #[test]
    fn defect_07_entropy_lasts_for_the_life_of_the_flow() {
        let mut labels = Vec::new();
        for _ in 0..2 {
            // A new table is what a restart makes.
            let mut table = table();
            table.apply(event(FlowState::Start, 7, 16), API, Timestamp(5));
            table.apply(event(FlowState::Start, 7, 16), API, Timestamp(6));
            labels.extend(table.flows().iter().map(|flow| flow.label));
        }
        assert_eq!(labels.len(), 2);
        assert_eq!(labels[0], labels[1]);
    }

    #[test]
    fn an_ongoing_event_updates_totals_and_opens_what_is_not_open() {
        let usage = |sent| Some(Usage { received: 1, sent });
        let told = |state, time, usage: Option<Usage>| FlowEvent {
            time: Some(Timestamp(time)),
            usage: usage.map(Box::new),
            ..event(state, 7, 16)
        };
        let mut table = table();
        let opened = table.apply(told(FlowState::Ongoing, 3, usage(10)), FIREFLY, Timestamp(5));
        let Change::Opened(flow) = opened else { panic!("{opened:?}") };
        assert_eq!(
            (flow.start, flow.heard(), flow.usage()),
            (Timestamp(3), Timestamp(5), usage(10))
        );
        // It says nothing of the tag and the start of a flow that is known.
        for (sent, at) in [(20, 6), (30, 7)] {
            let other = FlowEvent {
                tag: Tag::new(3, 1).unwrap(),
                ..told(FlowState::Ongoing, 4, usage(sent))
            };
            assert_eq!(table.apply(other, API, Timestamp(at)), Change::Goes);
            let news = News { heard: Timestamp(at), usage: usage(sent), info: None };
            let now = Flow { news: Some(Arc::new(news)), ..flow.clone() };
            assert_eq!(table.flows(), [now]);
        }
        let closed = table.apply(told(FlowState::End, 9, None), FIREFLY, Timestamp(9));
        let Change::Closed(closed) = closed else { panic!("{closed:?}") };
        assert_eq!(closed.usage(), usage(30), "the last totals that were told");
    }

    /// As when the network changes the order of datagrams, or a firefly comes back.
    #[test]
    fn late_news_open_no_flow_again() {
        let at = |state, time| FlowEvent { time: Some(Timestamp(time)), ..event(state, 7, 16) };
        let mut table = table();
        table.apply(at(FlowState::Start, 10), FIREFLY, Timestamp(11));
        table.apply(at(FlowState::End, 20), FIREFLY, Timestamp(21));
        for (state, time) in [(FlowState::Start, 10), (FlowState::Ongoing, 19)] {
            assert_eq!(table.apply(at(state, time), FIREFLY, Timestamp(22)), Change::Stale);
        }
        let next = table.apply(at(FlowState::Start, 20), FIREFLY, Timestamp(23));
        assert!(matches!(next, Change::Opened(_)), "the same 5-tuple, used again: {next:?}");
        table.apply(at(FlowState::End, 30), FIREFLY, Timestamp(31));
        // Who does not say when means now.
        let now = table.apply(event(FlowState::Start, 7, 16), PIPE, Timestamp(32));
        assert!(matches!(now, Change::Opened(_)), "{now:?}");
        // The end overtook the start.
        let early = FlowEvent { time: Some(Timestamp(50)), ..event(FlowState::End, 8, 16) };
        assert_eq!(table.apply(early, FIREFLY, Timestamp(51)), Change::Unknown);
        let late = FlowEvent { time: Some(Timestamp(40)), ..event(FlowState::Start, 8, 16) };
        assert_eq!(table.apply(late, FIREFLY, Timestamp(52)), Change::Stale);
    }

    /// Two daemons that report to each other: each hears what it has said.
    #[test]
    fn the_echo_of_a_new_tag_changes_nothing() {
        use FlowState::{End, Start};
        let at = |state, activity, time| FlowEvent {
            time: Some(Timestamp(time)),
            ..event(state, 7, activity)
        };
        let mut table = table();
        table.apply(event(Start, 7, 16), PIPE, Timestamp(5));
        table.apply(event(Start, 7, 15), PIPE, Timestamp(9));
        for echo in [at(Start, 16, 5), at(End, 16, 9)] {
            assert_eq!(table.apply(echo, FIREFLY, Timestamp(10)), Change::Stale);
        }
        assert_eq!(table.apply(at(Start, 15, 9), FIREFLY, Timestamp(10)), Change::Repeated);
        assert_eq!(table.flows()[0].tag.activity(), 15);
        // Its own end counts, also by a clock of whole seconds.
        let second = 1_000_000;
        table.apply(at(End, 15, 20), FIREFLY, Timestamp(20));
        table.apply(at(Start, 16, 5 * second + 7), FIREFLY, Timestamp(6 * second));
        let before = table.apply(at(End, 16, 4 * second), FIREFLY, Timestamp(6 * second));
        assert_eq!(before, Change::Stale, "of the flow before");
        let own = table.apply(at(End, 16, 5 * second), FIREFLY, Timestamp(6 * second));
        assert!(matches!(own, Change::Closed(_)), "{own:?}");
    }

    #[test]
    fn silent_is_who_was_only_heard_and_long_ago() {
        let mut table = table();
        let silent = |table: &FlowTable, then| {
            let mut ports: Vec<_> =
                table.silent_since(Timestamp(then)).iter().map(|(id, _)| id.src().port()).collect();
            ports.sort_unstable();
            ports
        };
        for (port, who) in [(1, API), (2, FIREFLY), (3, FIREFLY), (4, FINDER), (5, FIREFLY)] {
            table.apply(event(FlowState::Start, port, 16), who, Timestamp(10));
        }
        assert_eq!(silent(&table, 9), [0; 0]);
        assert_eq!(silent(&table, 10), [2, 3, 5]);
        // Each kind of news counts, and who is told of a flow ends it.
        table.apply(event(FlowState::Ongoing, 2, 16), FIREFLY, Timestamp(20));
        table.apply(event(FlowState::Start, 3, 16), FIREFLY, Timestamp(20));
        table.apply(event(FlowState::Start, 5, 16), API, Timestamp(11));
        assert_eq!(silent(&table, 19), [0; 0]);
        assert_eq!(silent(&table, 20), [2, 3]);
    }

    #[test]
    fn who_tells_in_order_may_open_a_flow_again_as_it_was() {
        let start = || FlowEvent { time: Some(Timestamp(5)), ..event(FlowState::Start, 7, 16) };
        let mut table = table();
        for _ in 0..2 {
            let opened = table.apply(start(), API, Timestamp(8));
            assert!(matches!(opened, Change::Opened(_)), "{opened:?}");
            table.apply(event(FlowState::End, 7, 16), API, Timestamp(9));
        }
        assert_eq!(table.apply(start(), FIREFLY, Timestamp(10)), Change::Stale);
        // A clock that is ahead bars nothing.
        let end = FlowEvent { time: Some(Timestamp(1 << 60)), ..event(FlowState::End, 7, 16) };
        table.apply(end, FIREFLY, Timestamp(11));
        let next = FlowEvent { time: Some(Timestamp(12)), ..event(FlowState::Start, 7, 16) };
        let opened = table.apply(next, FIREFLY, Timestamp(13));
        assert!(matches!(opened, Change::Opened(_)), "{opened:?}");
    }

    #[test]
    fn another_tag_ends_the_old_flow_and_starts_the_new() {
        let mut table = table();
        table.apply(event(FlowState::Start, 7, 16), API, Timestamp(5));
        let change = table.apply(event(FlowState::Start, 7, 15), API, Timestamp(9));
        let Change::Retagged { old, new } = change else { panic!("{change:?}") };
        assert_eq!((old.tag.activity(), old.start), (16, Timestamp(5)));
        assert_eq!((new.tag.activity(), new.start), (15, Timestamp(9)));
        assert_eq!(old.label & 0xC_0103, new.label & 0xC_0103);
        assert_eq!(table.flows(), vec![new]);
    }

    #[test]
    fn who_was_told_knows_better_than_who_found() {
        use FlowState::{End, Start};
        let mut table = table();
        let mut apply = |state, activity, who| match table.apply(
            event(state, 7, activity),
            who,
            Timestamp(5),
        ) {
            Change::Opened(flow) => format!("opened {}", flow.tag.activity()),
            Change::Closed(flow) => format!("closed {}", flow.tag.activity()),
            Change::Retagged { new, .. } => format!("retagged {}", new.tag.activity()),
            other => format!("{other:?}"),
        };
        // What was found may be corrected and ended by who was told.
        assert_eq!(apply(Start, 1, FINDER), "opened 1");
        assert_eq!(apply(Start, 2, FINDER), "retagged 2");
        assert_eq!(apply(Start, 3, API), "retagged 3");
        // Not the other way round, but among equals the last one counts.
        assert_eq!(apply(Start, 1, FINDER), "Outranked");
        assert_eq!(apply(End, 1, FINDER), "Outranked");
        assert_eq!(apply(Start, 4, PIPE), "retagged 4");
        assert_eq!(apply(End, 4, API), "closed 4");
        assert_eq!(apply(End, 1, FINDER), "Unknown");
        // Who is told of what was found takes it over.
        assert_eq!(apply(Start, 1, FINDER), "opened 1");
        assert_eq!(apply(Start, 1, API), "Repeated");
        assert_eq!(apply(End, 1, FINDER), "Outranked");
        assert_eq!(apply(End, 1, PIPE), "closed 1");
    }

    #[test]
    fn admission_never_exceeds_its_limit() {
        let room = Admission::new(3);
        assert!(room.reserve(2));
        assert!(!room.reserve(2), "all or nothing");
        assert!(room.reserve(1));
        assert!(!room.reserve(1));
        room.release(3);
        assert!(room.reserve(3) && !room.reserve(usize::MAX));
        assert_eq!(room.reserve_growth(isize::MAX), None);
    }

    #[test]
    fn a_lower_limit_leaves_what_is_open_and_lets_nothing_in() {
        let room = Admission::new(5);
        assert!(room.reserve(5) && !room.is_over());
        room.set_limit(3);
        assert!(room.is_over() && room.reserve(0) && !room.reserve(1));
        assert_eq!(room.reserve_growth(0), None, "as many as before are too many");
        assert_eq!(room.reserve_growth(-1), None);
        assert_eq!(room.reserve_growth(-2), Some(0), "three are not");
        room.release(3);
        assert_eq!(room.reserve_growth(1), Some(1));
        assert!(!room.is_over() && !room.reserve(1) && room.limit() == 3);
        room.set_limit(4);
        assert!(room.reserve(1));
    }
}
