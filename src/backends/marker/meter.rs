//! The marker's counters of packets: gives each flow a slot of map `counts` while it is
//! open, and adds up what the CPUs have counted there. Owned by the dispatcher. (Those of
//! rules are in `ruled`.)
//!
//! The counters only ever grow, since nobody but the CPU that counts may write them: what
//! was there when a slot was given away is subtracted.

use std::collections::VecDeque;
use std::sync::Arc;

use nix::time::{clock_getres, clock_gettime, ClockId};

use crate::error::{Error, Result};
use crate::flow::{Protocol, Timestamp};
use crate::meter::{Counted, Meter, Traffic};
use crate::metrics;
use crate::sys::abi::{Count, COUNT_ALL, COUNT_UDP, RULE_SLOTS};
use crate::sys::bpf::{possible_cpus, Mapped, Object};

/// How much memory of the kernel the counters take at the most, in octets.
const MEMORY: usize = 96 << 20;

/// How many slots there are for rules and up to `max_flows` open flows, and how many CPUs
/// count.
pub(super) fn size(max_flows: u32) -> Result<(u32, u32)> {
    let possible = possible_cpus()?;
    let (slots, cpus) = fit(max_flows, possible, present_cpus().unwrap_or(possible));
    let flows = slots.saturating_sub(RULE_SLOTS);
    if flows < max_flows {
        log::warn!(
            "backends.marker: with {cpus} CPUs there are counters for {flows} flows, and maxFlows \
             is {max_flows}: while more are open the usage of others is not known, but for TCP by \
             an enricher"
        );
    }
    Ok((slots, cpus))
}

/// A block for each CPU that the system may ever have, which many a virtual machine says are
/// hundreds; or, where not all flows have room then, for fewer, but those that it has. (One
/// that is added later and has no block does not count.)
fn fit(max_flows: u32, possible: usize, present: usize) -> (u32, u32) {
    let number = |number| u32::try_from(number).unwrap_or(u32::MAX);
    let (wanted, room) = (max_flows.saturating_add(RULE_SLOTS), MEMORY / size_of::<Count>());
    let cpus = (room / wanted as usize).clamp(present.min(possible), possible);
    (wanted.min(number(room / cpus)), number(cpus))
}

/// How many CPUs this system has, those that are off included: their numbers are below.
fn present_cpus() -> Option<usize> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/present").ok()?;
    last_of(&list)?.checked_add(1)
}

/// The last number of a list such as 0-3,8-11.
fn last_of(list: &str) -> Option<usize> {
    list.trim_end().rsplit([',', '-']).next()?.parse().ok()
}

/// What the CPUs count; read on any thread.
#[derive(Debug)]
pub(super) struct Counts {
    counts: Mapped<Count>,
    slots: u32,
    cpus: u32,
}

pub(super) struct Slots {
    counts: Arc<Counts>,
    /// `COUNT_*`: what arrives and is counted as well.
    received: u8,
    /// What was in a slot when it was given away last; the first is that of the first flow.
    before: Vec<Count>,
    /// Slots that were given back, the oldest first: a packet that was on its way at the end
    /// of its flow is long gone when the slot is used again.
    free: VecDeque<u32>,
    /// Flows for which there was none.
    lacking: Arc<metrics::Count>,
    ticks: Ticks,
}

impl Slots {
    /// Those of flows; `received`: which packets that arrive are counted.
    pub(super) fn new(counts: Arc<Counts>, received: u8) -> Result<Self> {
        let (before, free) = (Vec::new(), VecDeque::new());
        let lacking = Arc::default();
        Ok(Slots { counts, received, before, free, lacking, ticks: Ticks::new()? })
    }

    /// How many flows began while there was none left, and counts on.
    pub(super) fn lacking(&self) -> Arc<metrics::Count> {
        self.lacking.clone()
    }
}

fn left(count: &Count) -> Traffic {
    Traffic { packets: count.packets, octets: count.octets }
}

fn unmarked(count: &Count) -> Traffic {
    Traffic { packets: count.unmarked_packets, octets: count.unmarked_octets }
}

fn received(count: &Count) -> Traffic {
    Traffic { packets: count.received_packets, octets: count.received_octets }
}

impl Counts {
    /// Those of the loaded programs.
    pub(super) fn new(object: &Object, slots: u32, cpus: u32) -> Result<Self> {
        Ok(Counts { counts: object.mapped("counts")?, slots, cpus })
    }

    /// What has left with a mark, by whatever had the slot.
    pub(super) fn marked(&self, slot: u32) -> Traffic {
        let sum = self.sum(slot);
        left(&sum).since(unmarked(&sum))
    }

    fn sum(&self, slot: u32) -> Count {
        let mut sum = Count::default();
        for cpu in 0..self.cpus {
            let one = self.counts.read((cpu * self.slots + slot) as usize);
            sum.packets = sum.packets.wrapping_add(one.packets);
            sum.octets = sum.octets.wrapping_add(one.octets);
            sum.received_packets = sum.received_packets.wrapping_add(one.received_packets);
            sum.received_octets = sum.received_octets.wrapping_add(one.received_octets);
            sum.last = sum.last.max(one.last);
            sum.unmarked_packets = sum.unmarked_packets.wrapping_add(one.unmarked_packets);
            sum.unmarked_octets = sum.unmarked_octets.wrapping_add(one.unmarked_octets);
        }
        sum
    }
}

impl Meter for Slots {
    fn open(&mut self) -> Option<u32> {
        let used = u32::try_from(self.before.len()).unwrap_or(u32::MAX);
        let fresh = used.saturating_add(RULE_SLOTS);
        // One that was never used has no packets on their way.
        let slot = if fresh < self.counts.slots { Some(fresh) } else { self.free.pop_front() };
        let Some(slot) = slot else {
            self.lacking.add(1);
            return None;
        };
        let sum = self.counts.sum(slot);
        match self.before.get_mut((slot - RULE_SLOTS) as usize) {
            Some(before) => *before = sum,
            None => self.before.push(sum),
        }
        Some(slot)
    }

    fn read(&self, slot: u32, protocol: Protocol) -> Counted {
        let sum = self.counts.sum(slot);
        let place = slot.wrapping_sub(RULE_SLOTS) as usize;
        let before = self.before.get(place).copied().unwrap_or_default();
        let since = |part: fn(&Count) -> Traffic| part(&sum).since(part(&before));
        let is_counted = match self.received {
            COUNT_ALL => true,
            COUNT_UDP => protocol == Protocol::Udp,
            _ => false,
        };
        let (sent, received) = (since(left), since(received));
        let any = sent.packets != 0 || received.packets != 0;
        Counted {
            slot,
            before: left(&before).since(unmarked(&before)),
            left: sent,
            unmarked: since(unmarked),
            received: is_counted.then_some(received),
            last: any.then(|| self.ticks.time_of(sum.last)),
        }
    }

    fn close(&mut self, slot: u32) {
        self.free.push_back(slot);
    }
}

/// The kernel's jiffies as times: ticks of the monotonic clock, which began with five
/// minutes less than 2^32 of them.
struct Ticks {
    /// Nanoseconds.
    length: u64,
}

impl Ticks {
    fn new() -> Result<Self> {
        let failed = |error| Error::os("cannot ask for the length of a tick", error);
        let length = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_err(failed)?;
        Ok(Ticks { length: u64::try_from(length.tv_nsec()).unwrap_or(1).max(1) })
    }

    fn time_of(&self, jiffies: u64) -> Timestamp {
        const SECOND: u64 = 1_000_000_000;
        let first = (1_u64 << 32) - 300 * (SECOND / self.length);
        let since_boot = jiffies.saturating_sub(first).saturating_mul(self.length);
        let uptime = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
            let part = |part: i64| u64::try_from(part).unwrap_or(0);
            part(now.tv_sec()) * SECOND + part(now.tv_nsec())
        });
        let ago = uptime.saturating_sub(since_boot) / 1000;
        Timestamp(Timestamp::now().0.saturating_sub(ago))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_for_the_cpus_that_there_are_if_there_is_no_room_for_more() {
        let slots = |flows| flows + RULE_SLOTS;
        assert_eq!(fit(100_000, 2, 2), (slots(100_000), 2));
        assert_eq!(fit(100_000, 16, 4), (slots(100_000), 16));
        // A virtual machine that may have many.
        assert_eq!(fit(100_000, 240, 4), (slots(100_000), 17));
        assert_eq!(fit(100_000, 240, 17), (slots(100_000), 17));
        // One that has them.
        let (count, cpus) = fit(100_000, 256, 128);
        assert!(cpus == 128 && (14_000..slots(100_000)).contains(&count), "{count}");
        assert_eq!(fit(10_000, 8192, 64), (slots(10_000), 176));
        for flows in [1, 1000, 100_000, 10_000_000, u32::MAX] {
            for (possible, present) in [(1, 1), (2, 4), (240, 1), (8192, 8192)] {
                let (slots, cpus) = fit(flows, possible, present);
                assert!((present.min(possible)..=possible).contains(&(cpus as usize)));
                assert!(slots as usize * cpus as usize * size_of::<Count>() <= MEMORY);
            }
        }
    }

    #[test]
    fn the_system_s_list_of_cpus_is_read() {
        let lists = [("0\n", 0), ("0-3\n", 3), ("0-3,8-11\n", 11), ("0,2", 2)];
        assert!(lists.into_iter().all(|(list, last)| last_of(list) == Some(last)));
        assert_eq!(last_of("\n"), None);
        assert!((1..=possible_cpus().unwrap()).contains(&present_cpus().unwrap()));
    }
}
