//! The marker's counters of packets: gives each flow a slot of map `counts` while it is
//! open, and adds up what the CPUs have counted there. Owned by the dispatcher.
//!
//! The counters only ever grow, since nobody but the CPU that counts may write them: what
//! was there when a slot was given away is subtracted.

use std::collections::VecDeque;
use std::sync::Arc;

use nix::time::{clock_getres, clock_gettime, ClockId};

use crate::error::{Error, Result};
use crate::flow::Timestamp;
use crate::meter::{Counted, Meter, Reader};
use crate::sys::abi::Count;
use crate::sys::bpf::{possible_cpus, Mapped, Object};

/// How much memory of the kernel the counters take at the most, in octets.
const MEMORY: usize = 64 << 20;

/// How many flows can be counted at a time, and how many CPUs count, if up to `max_flows`
/// are open.
pub(super) fn size(max_flows: u32) -> Result<(u32, u32)> {
    let cpus = possible_cpus()?;
    let slots = MEMORY / (size_of::<Count>() * cpus);
    let number = |number| u32::try_from(number).unwrap_or(u32::MAX);
    Ok((max_flows.min(number(slots)), number(cpus)))
}

/// What the CPUs count; read on any thread.
struct Counts {
    counts: Mapped<Count>,
    slots: u32,
    cpus: u32,
}

pub(super) struct Slots {
    counts: Arc<Counts>,
    slots: u32,
    received: bool,
    /// What was in a slot when it was given away last.
    before: Vec<Count>,
    /// Slots that were given back, the oldest first: a packet that was on its way at the end
    /// of its flow is long gone when the slot is used again.
    free: VecDeque<u32>,
    ticks: Ticks,
}

impl Slots {
    /// The slots of the loaded programs; `received`: they count what arrives as well.
    pub(super) fn new(object: &Object, slots: u32, cpus: u32, received: bool) -> Result<Self> {
        let counts = Arc::new(Counts { counts: object.mapped("counts")?, slots, cpus });
        let (before, free) = (Vec::new(), VecDeque::new());
        Ok(Slots { counts, slots, received, before, free, ticks: Ticks::new()? })
    }

    /// What tells any thread the packets that left and the octets of their payload, by slot,
    /// since the start.
    pub(super) fn reader(&self) -> Reader {
        let counts = self.counts.clone();
        Box::new(move |slot| {
            let sum = counts.sum(slot);
            (sum.packets, sum.octets)
        })
    }

    fn sum(&self, slot: u32) -> Count {
        self.counts.sum(slot)
    }
}

impl Counts {
    fn sum(&self, slot: u32) -> Count {
        let mut sum = Count::default();
        for cpu in 0..self.cpus {
            let one = self.counts.read((cpu * self.slots + slot) as usize);
            sum.packets = sum.packets.wrapping_add(one.packets);
            sum.octets = sum.octets.wrapping_add(one.octets);
            sum.received_packets = sum.received_packets.wrapping_add(one.received_packets);
            sum.received_octets = sum.received_octets.wrapping_add(one.received_octets);
            sum.last = sum.last.max(one.last);
        }
        sum
    }
}

impl Meter for Slots {
    fn open(&mut self) -> Option<u32> {
        let used = u32::try_from(self.before.len()).unwrap_or(u32::MAX);
        // One that was never used has no packets on their way.
        let slot = if used < self.slots { Some(used) } else { self.free.pop_front() }?;
        let sum = self.sum(slot);
        match self.before.get_mut(slot as usize) {
            Some(before) => *before = sum,
            None => self.before.push(sum),
        }
        Some(slot)
    }

    fn read(&self, slot: u32) -> Counted {
        let sum = self.sum(slot);
        let before = self.before.get(slot as usize).copied().unwrap_or_default();
        let packets = sum.packets.wrapping_sub(before.packets);
        let received = sum.received_packets.wrapping_sub(before.received_packets);
        let received_octets = sum.received_octets.wrapping_sub(before.received_octets);
        let any = packets != 0 || received != 0;
        Counted {
            slot,
            packets,
            octets: sum.octets.wrapping_sub(before.octets),
            received: self.received.then_some((received, received_octets)),
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
