//! What counts the packets of flows: the marker, if it can. The flow table asks it.

use crate::flow::{Timestamp, Usage};

/// What was counted of a flow since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The meter's number for the flow.
    pub slot: u32,
    /// Packets that left; several that the kernel hands on as one are one.
    pub packets: u64,
    /// Octets of their payload, behind the header of TCP or UDP.
    pub octets: u64,
    /// The same of those that arrived; None: nobody counts them.
    pub received: Option<(u64, u64)>,
    /// When the last one was counted, on this host's clock, to a second.
    pub last: Option<Timestamp>,
}

impl Counted {
    /// What the flow has carried, if both directions are counted. What TCP sends again
    /// counts again.
    pub fn usage(&self) -> Option<Usage> {
        self.received.map(|(_, received)| Usage { received, sent: self.octets })
    }
}

/// Tells any thread how many packets left, and octets of their payload, that were counted
/// in a slot since the start, whichever flows had it.
pub type Reader = Box<dyn Fn(u32) -> (u64, u64) + Send + Sync>;

/// Counts packets of flows, each of which has a slot of the meter's while it is open.
pub trait Meter: Send {
    /// A slot for another flow; None: there is none left, and it is not counted.
    fn open(&mut self) -> Option<u32>;

    /// What was counted there since it was opened.
    fn read(&self, slot: u32) -> Counted;

    /// The flow is over.
    fn close(&mut self, slot: u32);
}
