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
use crate::sys::abi::{Count, COUNT_ALL, COUNT_UDP, RULE_SLOTS};
use crate::sys::bpf::{possible_cpus, Mapped, Object};

/// How much memory of the kernel the counters take at the most, in octets.
const MEMORY: usize = 96 << 20;

/// How many slots there are for rules and up to `max_flows` open flows, and how many CPUs
/// count.
pub(super) fn size(max_flows: u32) -> Result<(u32, u32)> {
    let cpus = possible_cpus()?;
    let slots = MEMORY / (size_of::<Count>() * cpus);
    let number = |number| u32::try_from(number).unwrap_or(u32::MAX);
    Ok((max_flows.saturating_add(RULE_SLOTS).min(number(slots)), number(cpus)))
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
    ticks: Ticks,
}

impl Slots {
    /// Those of flows; `received`: which packets that arrive are counted.
    pub(super) fn new(counts: Arc<Counts>, received: u8) -> Result<Self> {
        let (before, free) = (Vec::new(), VecDeque::new());
        Ok(Slots { counts, received, before, free, ticks: Ticks::new()? })
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
        let slot = if fresh < self.counts.slots { Some(fresh) } else { self.free.pop_front() }?;
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
        let (left, received) = (since(left), since(received));
        let any = left.packets != 0 || received.packets != 0;
        Counted {
            slot,
            left,
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
