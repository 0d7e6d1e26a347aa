//! Which of the open flows are told of as going on, and when: each once a period of its
//! own life, whether anything measures it or not. Used by the dispatcher's thread.
//!
//! Nothing is kept of a flow for that. Its periods count from its start, so flows take
//! turns as they began. Where many began at once they would burst the network once a
//! period: so a few are told of at a time, in the order in which they were found, and
//! no others are looked for before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::flow::{Flow, FlowId, Timestamp};
use crate::flow_table::FlowTable;
use crate::queue::{Event, Outlet};

/// So many are told of at a time at the most,
const BURST: usize = 100;
/// and this is the time until the next: 10,000 a second.
const PACE: Duration = Duration::from_millis(10);
/// The longest time between two looks for those that are due; else a tenth of a period.
const LOOK: Duration = Duration::from_secs(1);

/// The turns of flows that go on.
#[derive(Debug)]
pub(crate) struct Turns {
    /// In us; 0: nobody is to be told.
    period: u64,
    /// When to go on.
    next: Instant,
    /// Up to when what is due was looked for.
    seen: Timestamp,
    /// Those whose turn it is, the next one last.
    due: Vec<FlowId>,
}

impl Turns {
    /// Nobody has one.
    pub(crate) fn none() -> Self {
        Turns { period: 0, next: Instant::now(), seen: Timestamp::now(), due: Vec::new() }
    }

    /// Has each flow told of once in such a period; none: never.
    pub(crate) fn set_period(&mut self, period: Option<Duration>) {
        let period = period.map_or(0, |p| u64::try_from(p.as_micros()).unwrap_or(u64::MAX));
        if self.period != period {
            *self = Turns { period, ..Turns::none() };
        }
    }

    /// Tells those who want to know it of the flows whose turn it is; returns when it is that
    /// of others. If they have no time for it, it waits: starts and ends come first.
    pub(crate) fn tell(&mut self, table: &FlowTable, outlets: &mut [Outlet]) -> Option<Duration> {
        let is_free = outlets.iter().all(|outlet| !outlet.wants_ongoing() || outlet.is_free());
        let (flows, patience) = self.take(table, is_free);
        if !flows.is_empty() {
            let events = flows.into_iter().map(|(flow, at)| Event::Ongoing(flow, at));
            let batch = Arc::new(events.collect::<Vec<_>>());
            let outlets = outlets.iter_mut().filter(|outlet| outlet.wants_ongoing());
            outlets.for_each(|outlet| outlet.send(batch.clone()));
        }
        patience
    }

    /// The flows to tell of, if `is_free` says that they will not wait behind others, with
    /// the moment; and how soon to ask again.
    fn take(
        &mut self,
        table: &FlowTable,
        is_free: bool,
    ) -> (Vec<(Flow, Timestamp)>, Option<Duration>) {
        if self.period == 0 {
            return (Vec::new(), None);
        }
        let now = Instant::now();
        if let Some(early) = self.next.checked_duration_since(now).filter(|d| !d.is_zero()) {
            return (Vec::new(), Some(early));
        }
        let at = Timestamp::now();
        if table.count() == 0 {
            // Whoever comes next has not been missed so far.
            (self.seen, self.due) = (at, Vec::new());
            return (Vec::new(), None);
        }
        let flows = if is_free { self.step(table, at) } else { Vec::new() };
        let look = Duration::from_micros(self.period / 10).clamp(PACE, LOOK);
        let pause = if self.due.is_empty() && is_free { look } else { PACE };
        self.next = now + pause;
        (flows.into_iter().map(|flow| (flow, at)).collect(), Some(pause))
    }

    /// The next of them at that moment.
    fn step(&mut self, table: &FlowTable, at: Timestamp) -> Vec<Flow> {
        if self.due.is_empty() {
            self.due = table.due(self.period, self.seen, at);
            self.seen = at;
        }
        let turn = self.due.split_off(self.due.len().saturating_sub(BURST));
        // One that is over may have begun again.
        let is_old = |flow: &Flow| at.0.saturating_sub(flow.start.0) >= self.period;
        let flows = turn.iter().rev().filter_map(|id| table.flow(id)).filter(is_old).collect();
        if self.due.is_empty() {
            // There may have been many.
            self.due = Vec::new();
        }
        flows
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::entropy::EntropyKey;
    use crate::flow::{FlowEvent, FlowState, Protocol, Tag};
    use crate::flow_table::Authority;

    /// In us.
    const PERIOD: u64 = 1_000_000;
    const NOON: u64 = 1_632_300_000_000_000;

    fn id(number: u16) -> FlowId {
        let end = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        FlowId::new(Protocol::Udp, end(1 + number), end(1094)).unwrap()
    }

    /// That many flows, each of which began so long after noon.
    fn table(count: u16, start: impl Fn(u64) -> u64) -> FlowTable {
        let mut table = FlowTable::new(EntropyKey::of_this_boot());
        for number in 0..count {
            let time = Timestamp(NOON + start(number.into()));
            let event = FlowEvent {
                state: FlowState::Start,
                id: id(number),
                tag: Tag::new(2, 16).unwrap(),
                time: Some(time),
                application: None,
                usage: None,
            };
            table.apply(event, ("test", Authority::Told), time);
        }
        table
    }

    fn turns() -> Turns {
        let mut turns = Turns::none();
        turns.set_period(Some(Duration::from_micros(PERIOD)));
        turns.seen = Timestamp(NOON);
        turns
    }

    /// How long after its start each flow was told of, with a step each `pace`.
    fn told(table: &FlowTable, pace: u64, until: u64) -> HashMap<FlowId, Vec<u64>> {
        let (mut turns, mut told) = (turns(), HashMap::<_, Vec<u64>>::new());
        for at in (0..=until).step_by(usize::try_from(pace).unwrap()) {
            let flows = turns.step(table, Timestamp(NOON + at));
            assert!(flows.len() <= BURST);
            for flow in flows {
                told.entry(flow.id).or_default().push(NOON + at - flow.start.0);
            }
        }
        told
    }

    #[test]
    fn each_flow_has_a_turn_once_in_each_period_of_its_life() {
        let table = table(90, |number| number * 7_919);
        let told = told(&table, 100_000, 10 * PERIOD);
        assert_eq!(told.len(), 90);
        for times in told.values() {
            assert!((9..=10).contains(&times.len()), "{times:?}");
            for (index, time) in (1..).zip(times) {
                // As soon as it is looked for.
                assert!((index * PERIOD..index * PERIOD + 100_000).contains(time), "{times:?}");
            }
        }
    }

    #[test]
    fn many_that_began_at_once_take_turns() {
        // 60 steps for all of them.
        let table = table(6_000, |_| 0);
        let told = told(&table, 10_000, 3 * PERIOD + 600_000);
        assert_eq!(told.len(), 6_000);
        for times in told.values() {
            assert_eq!(times.len(), 3, "{times:?}");
            assert!(times.windows(2).all(|two| two[1] - two[0] == PERIOD), "{times:?}");
            assert!(times[0] < PERIOD + 600_000, "{times:?}");
        }
    }

    #[test]
    fn where_there_are_too_many_all_have_turns_and_less_often() {
        // 300 steps of 10 ms.
        let table = table(30_000, |number| number * 30);
        let told = told(&table, 10_000, 12 * PERIOD);
        assert_eq!(told.len(), 30_000);
        for times in told.values() {
            assert!((2..=4).contains(&times.len()), "{times:?}");
        }
    }

    #[test]
    fn a_clock_that_is_set_gives_nobody_two_turns() {
        let table = table(10, |_| 0);
        let mut turns = turns();
        let mut step = |at: u64| turns.step(&table, Timestamp(NOON + at)).len();
        assert_eq!([step(PERIOD - 1), step(PERIOD), step(PERIOD + 1)], [0, 10, 0]);
        // An hour ahead, and back.
        assert_eq!([step(3600 * PERIOD), step(3600 * PERIOD + 1), step(PERIOD + 2)], [10, 0, 0]);
        assert_eq!([step(2 * PERIOD - 1), step(2 * PERIOD)], [0, 10]);
    }

    #[test]
    fn nobody_who_is_over_or_has_just_begun_again_has_a_turn() {
        let mut table = table(u16::try_from(BURST).unwrap() + 2, |_| 0);
        let mut turns = turns();
        assert_eq!(turns.step(&table, Timestamp(NOON + PERIOD)).len(), BURST);
        let waiting = turns.due.clone();
        assert_eq!(waiting.len(), 2);
        for (state, id) in [
            (FlowState::End, waiting[0]),
            (FlowState::End, waiting[1]),
            (FlowState::Start, waiting[1]),
        ] {
            let (tag, now) = (Tag::new(2, 16).unwrap(), Timestamp(NOON + PERIOD));
            let event = FlowEvent { state, id, tag, time: None, application: None, usage: None };
            table.apply(event, ("test", Authority::Told), now);
        }
        assert_eq!(turns.step(&table, Timestamp(NOON + PERIOD + 1)), []);
    }

    #[test]
    fn nobody_is_told_of_where_that_would_wait_or_is_not_asked_for() {
        let table = table(1, |_| 0);
        let mut turns = turns();
        assert_eq!(turns.take(&table, false), (Vec::new(), Some(PACE)));
        turns.next = Instant::now();
        let (flows, pause) = turns.take(&table, true);
        assert_eq!((flows.len(), pause), (1, Some(Duration::from_millis(100))));
        turns.set_period(None);
        assert_eq!(turns.take(&table, true), (Vec::new(), None));
    }
}
