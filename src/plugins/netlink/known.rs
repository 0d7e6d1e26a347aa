//! The connections that are known: which are new, which are gone, and what of them the
//! dispatcher was told. Used by the plugin's thread.
//!
//! It goes in rounds. In each, all connections are seen that are there; which of them are
//! news is judged then, and what was not seen is asked for by name before it counts as
//! gone. Connections may be reported between two rounds as well; the next one confirms
//! them.

use std::mem::take;

use super::choice::Connection;
use crate::dispatcher::{Inlet, Refused};
use crate::flow::{FlowEvent, FlowId, FlowState, Tag, Timestamp};
use crate::flow_map::FlowMap;

/// How many starts are sent at once.
const BATCH: usize = 512;

/// How often a connection is judged again of which a fact could not be found. (The
/// process that has it may only just have got it.)
const RETRIES: u8 = 3;

/// A connection. There may be 50,000 of them, so it is small.
#[derive(Debug)]
struct Known {
    cookie: u64,
    /// The kernel wants to know it to look the socket up.
    interface: u32,
    /// What the rules say.
    tag: Option<Tag>,
    /// What the dispatcher was told: a start with that tag, and no end.
    told: Option<Tag>,
    /// The last round in which it was seen.
    round: u32,
    /// By which rules it was judged.
    epoch: u8,
    /// How often it is still to be judged again.
    retries: u8,
}

/// What a judge found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Its tag.
    Tag(Tag),
    /// It gets none, and to find that out costs nothing.
    Nothing,
    /// It gets none, which is to be remembered since it was costly to find out.
    RememberNothing,
    /// It gets none as far as can be said now; what it has got before it keeps.
    NothingYet,
    /// Nobody has the socket yet: ask again in the next round.
    Undecided,
}

/// How many of them are like that. To go through all of them takes a millisecond, and nothing
/// is different in most rounds.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    /// Seen in this round.
    seen: usize,
    /// Of which the dispatcher was told.
    told: usize,
    /// Of which the dispatcher does not know what the rules say.
    untold: usize,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Connections {
    all: FlowMap<Known>,
    counts: Counts,
    /// Those seen in this round that have to be judged.
    news: Vec<Connection>,
    /// Those that are over, whose end was not told yet.
    over: Vec<(FlowId, Tag, Option<Timestamp>)>,
    round: u32,
    epoch: u8,
    /// How many starts are sent next.
    batch: usize,
    /// How many starts the flow table has no room for.
    pub(super) waiting: usize,
    /// How many connections without a tag are remembered at the most.
    most: usize,
    /// How many flows began when they were told, since nobody knows when their connections
    /// did. Whoever says so sets it back.
    pub(super) undated: usize,
}

impl Connections {
    /// None yet. Up to `most` will be remembered.
    pub(super) fn new(most: usize) -> Self {
        Connections {
            all: FlowMap::default(),
            counts: Counts::default(),
            news: Vec::new(),
            over: Vec::new(),
            round: 0,
            epoch: 0,
            batch: BATCH,
            waiting: 0,
            most,
            undated: 0,
        }
    }

    /// How many are known, and how many of them have a tag that was told.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.all.len(), self.counts.told)
    }

    /// All of them are to be judged again.
    pub(super) fn forget_judgements(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// What the rules say of a connection.
    #[cfg(all(test, feature = "ebpf"))]
    pub(super) fn tag(&self, id: &FlowId) -> Option<Tag> {
        self.all.get(id)?.tag
    }

    /// Begins a round.
    pub(super) fn begin_round(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.counts.seen = 0;
        self.news.clear();
    }

    /// The connections are there. Nothing else is done in this loop, so that the processor gets
    /// the next ones from memory meanwhile.
    pub(super) fn see(&mut self, there: &[Connection]) {
        for connection in there {
            if let Some(known) = self.all.get_mut(&connection.id) {
                if known.cookie == connection.cookie {
                    self.counts.seen += usize::from(known.round != self.round);
                    known.round = self.round;
                    known.interface = connection.interface;
                    if known.epoch == self.epoch && known.retries == 0 {
                        continue;
                    }
                }
            }
            self.news.push(*connection);
        }
    }

    /// Those that were seen in this round and have to be judged.
    pub(super) fn news(&mut self) -> Vec<Connection> {
        let Connections { all, news, round, .. } = self;
        let mut news = take(news);
        // UDP may have several sockets of the same ends: the one that is known counts.
        news.retain(|new| {
            let known = all.get(&new.id);
            known.is_none_or(|known| known.cookie == new.cookie || known.round != *round)
        });
        news
    }

    /// Whether a report of the connection says something new: also if a look came before it
    /// and saw nobody who holds the socket.
    pub(super) fn is_new(&self, connection: &Connection) -> bool {
        self.all.get(&connection.id).is_none_or(|known| {
            let undecided = known.tag.is_none() && known.retries > 0;
            known.cookie != connection.cookie || undecided
        })
    }

    /// Takes what was found of a connection that was reported at `time`; the next round judges
    /// it again, since it may have got another owner by then.
    pub(super) fn reported(
        &mut self,
        connection: &Connection,
        finding: Finding,
        time: Option<Timestamp>,
    ) {
        let before = self.over.len();
        self.judged(connection, finding);
        // One that had these ends was over before: with a later end than this one's begin, this
        // one would be taken for it.
        self.over[before..].iter_mut().for_each(|(.., end)| *end = time);
        if let Some(known) = self.all.get_mut(&connection.id) {
            known.retries = 1;
        }
    }

    /// Whether the connection is one of which the dispatcher was not told yet.
    pub(super) fn is_untold(&self, id: &FlowId, cookie: u64) -> bool {
        let known = self.all.get(id).filter(|known| known.cookie == cookie);
        known.is_some_and(|known| known.tag != known.told)
    }

    /// Takes what was found of a connection that is there.
    pub(super) fn judged(&mut self, connection: &Connection, finding: Finding) {
        let id = connection.id;
        let tag = match finding {
            Finding::Undecided => return,
            Finding::Tag(tag) => Some(tag),
            _ => None,
        };
        if let (Finding::NothingYet, Some(known)) = (finding, self.all.get_mut(&id)) {
            // Nobody holds the socket in sight (it may be on its way to another process), but
            // who did was found before.
            let is_same = known.cookie == connection.cookie && known.epoch == self.epoch;
            if is_same && known.tag.is_some() {
                known.retries = known.retries.saturating_sub(1);
                return;
            }
        }
        let mut told = None;
        let mut retries = RETRIES;
        if let Some(known) = self.remove(&id) {
            if known.cookie == connection.cookie && (tag.is_some() || known.told.is_none()) {
                told = known.told;
                if known.epoch == self.epoch {
                    retries = known.retries.saturating_sub(1);
                }
            } else if let Some(told) = known.told {
                self.over.push((id, told, None));
            }
        }
        let remember = match finding {
            Finding::Tag(_) => true,
            Finding::RememberNothing | Finding::NothingYet => self.all.len() < self.most,
            Finding::Nothing | Finding::Undecided => false,
        };
        if remember {
            if finding != Finding::NothingYet {
                retries = 0;
            }
            let Connections { round, epoch, .. } = *self;
            let Connection { cookie, interface, .. } = *connection;
            let known = Known { cookie, interface, tag, told, round, epoch, retries };
            self.counts.seen += 1;
            self.counts.told += usize::from(told.is_some());
            self.counts.untold += usize::from(tag != told);
            self.all.insert(id, known);
        }
    }

    fn remove(&mut self, id: &FlowId) -> Option<Known> {
        let known = self.all.remove(id)?;
        self.counts.seen -= usize::from(known.round == self.round);
        self.counts.told -= usize::from(known.told.is_some());
        self.counts.untold -= usize::from(known.tag != known.told);
        Some(known)
    }

    /// Those that were not seen in this round although they are known, with their
    /// cookies and interfaces. Those without a tag are forgotten.
    pub(super) fn unseen(&mut self) -> Vec<(FlowId, u64, u32)> {
        let mut unseen = Vec::new();
        if self.counts.seen == self.all.len() {
            return unseen;
        }
        let Connections { all, counts, round, .. } = self;
        all.retain(|id, known| {
            if known.round == *round {
                return true;
            }
            if known.told.is_none() {
                counts.untold -= usize::from(known.tag.is_some());
                return false;
            }
            unseen.push((*id, known.cookie, known.interface));
            true
        });
        unseen
    }

    /// The connection is over, since then if that is known.
    pub(super) fn gone(&mut self, id: &FlowId, cookie: u64, since: Option<Timestamp>) {
        if self.all.get(id).is_some_and(|known| known.cookie == cookie) {
            if let Some(tag) = self.remove(id).and_then(|known| known.told) {
                self.over.push((*id, tag, since));
            }
        }
    }

    /// A table that was once large does not stay so for good.
    pub(super) fn give_memory_back(&mut self) {
        if self.all.capacity() > 4096 && self.all.len() < self.all.capacity() / 8 {
            self.all.shrink_to(self.all.len() * 2);
        }
    }

    /// Those of which the dispatcher does not know what the rules say.
    pub(super) fn untold(&self) -> Vec<(FlowId, Option<Timestamp>)> {
        if self.counts.untold == 0 {
            return Vec::new();
        }
        let untold = self.all.iter().filter(|(_, known)| known.tag != known.told);
        untold.map(|(id, _)| (*id, None)).collect()
    }

    /// Tells the dispatcher of the ends, and of the starts of `untold`, with their times if
    /// those are known, as far as there is room for them. What is refused is `waiting`, and tried again when this is called
    /// again.
    pub(super) fn tell(
        &mut self,
        out: &Inlet,
        untold: &[(FlowId, Option<Timestamp>)],
    ) -> Result<(), Refused> {
        let ends = take(&mut self.over);
        let ends = ends.into_iter().map(|(id, tag, time)| event(FlowState::End, id, tag, time));
        out.send_each(ends.collect())?;
        let mut rest = untold;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.batch.min(rest.len()));
            let start = |(id, time): &(FlowId, Option<Timestamp>)| {
                let known = self.all.get(id).filter(|known| known.tag != known.told)?;
                Some(event(FlowState::Start, *id, known.tag?, *time))
            };
            match out.send_all(now.iter().filter_map(start).collect()) {
                Ok(()) => {
                    for (id, time) in now {
                        if let Some(known) = self.all.get_mut(id) {
                            // One with another tag begins now indeed.
                            let opens = known.told.is_none() && known.tag.is_some();
                            self.undated += usize::from(opens && time.is_none());
                            self.counts.told += usize::from(known.tag.is_some());
                            self.counts.told -= usize::from(known.told.is_some());
                            self.counts.untold -= usize::from(known.tag != known.told);
                            known.told = known.tag;
                        }
                    }
                    rest = later;
                    self.batch = (self.batch * 2).min(BATCH);
                }
                // Which of them it was is not said.
                Err(Refused::Full { .. }) if now.len() > 1 => self.batch = now.len() / 2,
                Err(Refused::Full { limit, .. }) => {
                    self.batch = 1;
                    self.waiting = rest.len();
                    return Err(Refused::Full { events: rest.len(), limit });
                }
                Err(Refused::Stopping) => return Err(Refused::Stopping),
            }
        }
        self.waiting = 0;
        Ok(())
    }
}

fn event(state: FlowState, id: FlowId, tag: Tag, time: Option<Timestamp>) -> FlowEvent {
    FlowEvent { state, id, tag, time, application: None, usage: None }
}

#[cfg(test)]
#[path = "known_tests.rs"]
mod tests;
