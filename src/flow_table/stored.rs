//! One open flow, as the table keeps it: what an event means for it, and what is measured of it.
//! Only the dispatcher's thread touches it, through the table.

use std::sync::Arc;

use super::{Authority, Change, SECOND};
use crate::carried::Carried;
use crate::entropy::EntropyKey;
use crate::flow::{Flow, FlowEvent, FlowId, FlowState, News, Tag, Timestamp, Usage};
use crate::flow_info::FlowInfo;
use crate::meter::Meter;

/// A flow without its id, which is the key, and without its label, which follows from
/// the id: 50,000 of them are a third of the daemon's memory.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) tag: Tag,
    pub(super) start: Timestamp,
    /// That is when it was found, since nobody knows when it began.
    pub(super) is_undated: bool,
    pub(super) source: &'static str,
    pub(super) authority: Authority,
    /// Its source is elsewhere, and its destination here.
    pub(super) is_turned: bool,
    pub(super) application: Option<Arc<str>>,
    pub(super) news: Option<Arc<News>>,
    /// The meter's.
    pub(super) slot: Option<u32>,
}

impl Stored {
    pub(super) fn flow(&self, id: FlowId, key: &EntropyKey, meter: Option<&dyn Meter>) -> Flow {
        Flow {
            id,
            tag: self.tag,
            label: self.tag.label(key.entropy(&id)),
            start: self.start,
            is_undated: self.is_undated,
            source: self.source,
            application: self.application.clone(),
            news: self.news.clone(),
            counted: meter.zip(self.slot).map(|(meter, slot)| meter.read(slot, id.protocol())),
        }
    }

    /// Whether the event is of a flow of the same 5-tuple that was before this one, as
    /// when the other end echoes what was said of it. Clocks of whole seconds may put
    /// the end of a flow before its start.
    fn is_news_of_an_earlier_life(&self, event: &FlowEvent, now: Timestamp) -> bool {
        let Some(time) = event.time else { return false };
        match event.state {
            FlowState::End if event.tag != self.tag => time <= self.start,
            // Whoever told of a start that is yet to come may have a right clock by now.
            FlowState::End => self.start <= now && time.0.saturating_add(SECOND) <= self.start.0,
            FlowState::Start => event.tag != self.tag && time < self.start,
            FlowState::Ongoing => false,
        }
    }

    /// What becomes of an event that has no effect on the flow; None: it has one.
    pub(super) fn refuses(
        &self,
        event: &FlowEvent,
        (source, authority): (&'static str, Authority),
        now: Timestamp,
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
            (Authority::Heard, _) if self.is_news_of_an_earlier_life(event, now) => {
                Some(Change::Stale)
            }
            _ => None,
        }
    }

    /// Takes a slot; none for a flow whose packets are not marked: one of IPv4, and one whose
    /// source is elsewhere.
    pub(super) fn open(&mut self, meter: &mut Option<Box<dyn Meter>>, id: &FlowId) {
        let meter = meter.as_mut().filter(|_| id.is_ipv6() && !self.is_turned);
        self.slot = meter.and_then(|meter| meter.open());
    }

    /// Takes note of who else has told of it: the best counts.
    pub(super) fn learn(&mut self, authority: Authority) {
        self.authority = self.authority.max(authority);
    }

    /// Takes note of an event at `now`.
    pub(super) fn hear(&mut self, usage: Option<Usage>, now: Timestamp) {
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
    pub(super) fn measure(&mut self, mut info: FlowInfo, carried: &Carried) -> bool {
        let before = self.news.as_ref().and_then(|news| news.info.as_ref());
        let earlier = match before {
            // But the late last word of a connection that was over when the flow began.
            Some(before) if before.cookie != info.cookie => {
                if !before.is_over() || before.usage() != Some(carried.before(before.cookie)) {
                    return false;
                }
                Some(carried.before(info.cookie))
            }
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
        let is_turned = self.is_turned;
        let news = self.news();
        news.is_turned = is_turned;
        if info.usage().is_some() {
            news.usage = None;
        }
        news.earlier = earlier.unwrap_or(news.earlier);
        // Nobody else has it where no backend wants samples.
        match news.info.as_mut().and_then(Arc::get_mut) {
            Some(before) => *before = info,
            None => news.info = Some(Arc::new(info)),
        }
        true
    }

    /// To be changed; a copy if others have it, as they do where backends want samples.
    pub(super) fn news(&mut self) -> &mut News {
        let heard = self.start;
        let fresh = || Arc::new(News { heard, ..News::default() });
        Arc::make_mut(self.news.get_or_insert_with(fresh))
    }

    /// Has `carried` know what the flow leaves its connection with.
    pub(super) fn leave(&self, carried: &mut Carried) {
        let info = self.news.as_ref().and_then(|news| news.info.as_ref());
        if let Some((info, usage)) = info.and_then(|info| Some((info, info.usage()?))) {
            carried.note(info.cookie, usage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow_table::FlowTable;

    #[test]
    fn only_what_was_found_without_a_time_has_no_known_start() {
        use Authority::{Found, Heard, Told};
        let end = |port| std::net::SocketAddr::new([10, 0, 0, 1].into(), port);
        let id = FlowId::new(crate::flow::Protocol::Tcp, end(1), end(2)).unwrap();
        let event = |activity, time| {
            let (state, tag) = (FlowState::Start, Tag::new(2, activity).unwrap());
            FlowEvent { state, id, tag, time, application: None, usage: None }
        };
        let time = Some(Timestamp(3));
        for (authority, time, expected) in [
            (Found, None, true),
            (Found, time, false),
            (Heard, None, false),
            (Told, None, false),
            (Told, time, false),
        ] {
            let mut table = FlowTable::new(EntropyKey::of_this_boot());
            table.apply(event(16, time), ("a", authority), Timestamp(5));
            let flow = table.flow(&id).unwrap();
            assert_eq!(flow.is_undated, expected, "{authority:?} {time:?}");
            // Who else tells of it says nothing of its start; with another tag it begins now.
            table.apply(event(16, Some(Timestamp(4))), ("b", Told), Timestamp(6));
            let told = table.flow(&id).unwrap();
            assert_eq!((told.start, told.is_undated), (flow.start, expected));
            table.apply(event(15, None), ("a", Told), Timestamp(7));
            let flow = table.flow(&id).unwrap();
            assert_eq!((flow.start, flow.is_undated), (Timestamp(7), false));
        }
    }
}
