//! What rules for packets of no flow have marked, by tag. Each place of map `rules` has a
//! slot of the counters, and the rule behind the table has some in turn. The marker's thread
//! says which tag a slot is for; whoever asks for metrics reads, behind a lock that only
//! these two take.
//!
//! Counters are never set back: what a slot had counted when it got its tag is subtracted,
//! and what it counted for a tag stays that tag's when the slot is given to another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::meter::Counts;
use crate::flow::Tag;
use crate::meter::{Reader, Traffic};
use crate::sys::abi::{MAX_RULES, RULE_SLOTS};

/// The slots of the places of both tables; behind them are those of the rule behind.
#[allow(clippy::cast_possible_truncation)] // a small constant
const PLACES: u32 = 2 * MAX_RULES as u32;

/// The counters of rules.
#[derive(Debug)]
pub(super) struct Ruled {
    counts: Arc<Counts>,
    held: Mutex<Held>,
}

impl Ruled {
    pub(super) fn new(counts: Arc<Counts>) -> Self {
        Ruled { counts, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A rule with that tag is about to be in that place of the map, which is not in use.
    pub(super) fn place(&self, place: u32, tag: Tag) {
        self.held().give(place, tag, self.counts.marked(place));
    }

    /// The slot of the rule behind the table, which is about to have that tag.
    pub(super) fn last(&self, tag: Tag) -> u32 {
        self.held().last(tag, |slot| self.counts.marked(slot))
    }
}

impl Reader for Ruled {
    fn slot(&self, slot: u32) -> Traffic {
        self.counts.marked(slot)
    }

    fn by_rules(&self, tell: &mut dyn FnMut(Tag, Traffic)) {
        self.held().tell(|slot| self.counts.marked(slot), tell);
    }
}

/// Which tag has which slot.
#[derive(Debug, Default)]
struct Held {
    /// Slots with a tag, and what they had counted before it.
    slots: Vec<(u32, Tag, Traffic)>,
    /// What was counted for tags in slots that are another's now, by tag in their order.
    past: Vec<(Tag, Traffic)>,
    /// The last slot that was given to the rule behind the table.
    current: u32,
}

impl Held {
    /// `counted` is what the slot has counted by now.
    fn give(&mut self, slot: u32, tag: Tag, counted: Traffic) {
        let Some(held) = self.slots.iter_mut().find(|(held, ..)| *held == slot) else {
            return self.slots.push((slot, tag, counted));
        };
        let (_, old, before) = *held;
        if old == tag {
            return;
        }
        *held = (slot, tag, counted);
        let key = |tag: Tag| (tag.experiment(), tag.activity());
        match self.past.binary_search_by_key(&key(old), |(tag, _)| key(*tag)) {
            Ok(at) => self.past[at].1.add(counted.since(before)),
            Err(at) => self.past.insert(at, (old, counted.since(before))),
        }
    }

    /// The slot of that tag, or else the one that was given away longest ago.
    fn last(&mut self, tag: Tag, counted: impl Fn(u32) -> Traffic) -> u32 {
        let known = self.slots.iter().find(|(slot, held, _)| *slot >= PLACES && *held == tag);
        let slot = match known {
            Some((slot, ..)) => *slot,
            None if (PLACES..RULE_SLOTS - 1).contains(&self.current) => self.current + 1,
            None => PLACES,
        };
        self.give(slot, tag, counted(slot));
        self.current = slot;
        slot
    }

    fn tell(&self, counted: impl Fn(u32) -> Traffic, tell: &mut dyn FnMut(Tag, Traffic)) {
        self.past.iter().for_each(|(tag, traffic)| tell(*tag, *traffic));
        for (slot, tag, before) in &self.slots {
            tell(*tag, counted(*slot).since(*before));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn tag(activity: u64) -> Tag {
        Tag::new(2, activity).unwrap()
    }

    fn packets(packets: u64) -> Traffic {
        Traffic { packets, octets: 100 * packets }
    }

    /// Packets by activity.
    fn told(held: &Held, counted: &[u64]) -> BTreeMap<u8, u64> {
        let mut told = BTreeMap::<_, Traffic>::new();
        held.tell(|slot| packets(counted[slot as usize]), &mut |tag, traffic| {
            told.entry(tag.activity()).or_default().add(traffic)
        });
        let check = |(activity, sum): (_, Traffic)| {
            assert_eq!(sum.octets, 100 * sum.packets);
            (activity, sum.packets)
        };
        told.into_iter().map(check).collect()
    }

    #[test]
    fn a_tag_keeps_what_was_counted_for_it_whatever_becomes_of_its_rule() {
        let (mut held, mut counted) = (Held::default(), vec![0; 192]);
        let give = |held: &mut Held, place: u32, activity, counted: &[u64]| {
            held.give(place, tag(activity), packets(counted[place as usize]));
        };
        give(&mut held, 0, 1, &counted);
        give(&mut held, 1, 2, &counted);
        give(&mut held, 2, 1, &counted);
        (counted[0], counted[1], counted[2]) = (10, 20, 5);
        assert_eq!(told(&held, &counted), [(1, 15), (2, 20)].into());
        // The other table, where they have changed places, and this one again without one.
        give(&mut held, 64, 2, &counted);
        give(&mut held, 65, 1, &counted);
        (counted[64], counted[65]) = (1, 1);
        assert_eq!(told(&held, &counted), [(1, 16), (2, 21)].into());
        give(&mut held, 0, 2, &counted);
        give(&mut held, 1, 3, &counted);
        assert_eq!(told(&held, &counted), [(1, 16), (2, 21), (3, 0)].into());
        counted[0] += 100;
        counted[1] += 7;
        // The same tag in the same place changes nothing.
        give(&mut held, 0, 2, &counted);
        assert_eq!(told(&held, &counted), [(1, 16), (2, 121), (3, 7)].into());
    }

    #[test]
    fn the_rule_behind_the_table_may_have_any_number_of_tags_in_turn() {
        let (mut held, mut counted) = (Held::default(), vec![0; 192]);
        let mut expected = BTreeMap::new();
        let mut before = 0;
        for round in 0..500 {
            let activity = round * 7 % 64;
            // 128 tags, and each second time one of before.
            let tag = Tag::new(1 + round % 2, activity).unwrap();
            let slot = held.last(tag, |slot| packets(counted[slot as usize]));
            assert!((PLACES..RULE_SLOTS).contains(&slot));
            assert!(round == 0 || slot != before, "what was in use until now is not reused");
            before = slot;
            counted[slot as usize] += 1 + round;
            *expected.entry(tag.activity()).or_default() += 1 + round;
            assert_eq!(told(&held, &counted), expected);
            let again = held.last(tag, |slot| packets(counted[slot as usize]));
            assert_eq!(again, slot);
        }
    }
}
