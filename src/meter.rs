//! What counts the packets of flows: the marker, if it can. The flow table asks it.

use crate::flow::{Protocol, Tag, Timestamp, Usage};

/// Packets, and octets of their payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets; several that the kernel hands on as one are one.
    pub packets: u64,
    /// Octets of their payload, behind the header of TCP or UDP.
    pub octets: u64,
}

impl Traffic {
    /// Adds to it.
    pub fn add(&mut self, more: Traffic) {
        self.packets = self.packets.wrapping_add(more.packets);
        self.octets = self.octets.wrapping_add(more.octets);
    }

    /// What is more than there was before, or nothing: counters are read while they change.
    #[must_use]
    pub fn since(self, before: Traffic) -> Traffic {
        Traffic {
            packets: self.packets.saturating_sub(before.packets),
            octets: self.octets.saturating_sub(before.octets),
        }
    }
}

/// What was counted of a flow since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// The meter's number for the flow.
    pub slot: u32,
    /// What had left with a mark there before, of other flows.
    pub before: Traffic,
    /// What left.
    pub left: Traffic,
    /// What of that could not be marked.
    pub unmarked: Traffic,
    /// What arrived; None: nobody counts it.
    pub received: Option<Traffic>,
    /// When the last packet was counted, on this host's clock, to a second.
    pub last: Option<Timestamp>,
}

impl Counted {
    /// What the flow has carried, if both directions are counted, marked or not. What TCP
    /// sends again counts again.
    pub fn usage(&self) -> Option<Usage> {
        self.received.map(|received| Usage { received: received.octets, sent: self.left.octets })
    }
}

/// Tells any thread what has left with a mark since the start.
pub trait Reader: Send + Sync {
    /// In a slot of the meter's, whichever flows had it.
    fn slot(&self, slot: u32) -> Traffic;

    /// Tells what rules for packets of no flow have marked, each tag at least once: its parts
    /// are to be added up.
    fn by_rules(&self, tell: &mut dyn FnMut(Tag, Traffic));
}

/// Counts packets of flows, each of which has a slot of the meter's while it is open.
pub trait Meter: Send {
    /// A slot for another flow; None: there is none left, and it is not counted.
    fn open(&mut self) -> Option<u32>;

    /// What was counted there, of a flow of that protocol, since it was opened.
    fn read(&self, slot: u32, protocol: Protocol) -> Counted;

    /// The flow is over.
    fn close(&mut self, slot: u32);
}
