//! The flows that ended last, so that late news of them opens none again.
//!
//! Datagrams change their order, and a firefly may come back: two hosts that
//! report to each other would otherwise keep a flow alive between them for ever,
//! each taking the other's late report of its start for a new one. News is late if
//! it says that the flow began before it ended here.
//!
//! Owned by the flow table; pure. Its memory is bounded: two generations of up to
//! `GENERATION` flows, the older of which is forgotten when the younger is full.

use crate::flow::{FlowId, Timestamp};
use crate::flow_map::FlowMap;

/// How many of the last flows are remembered at least; twice as many at the most.
const GENERATION: usize = 4096;

/// From when to when a flow was open.
type Life = (Timestamp, Timestamp);

/// The flows that ended last.
#[derive(Debug, Default)]
pub struct Closed {
    young: FlowMap<Life>,
    old: FlowMap<Life>,
}

impl Closed {
    /// Takes note of the end of a flow.
    pub fn note(&mut self, id: FlowId, start: Timestamp, end: Timestamp) {
        if self.young.len() >= GENERATION && !self.young.contains_key(&id) {
            // Keeps the memory of both: it is needed again.
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        let life = self.young.entry(id).or_insert((start, end));
        // Two may tell of one end, by clocks of their own.
        *life = if start < life.1 { (life.0.min(start), life.1.max(end)) } else { (start, end) };
    }

    /// Whether a flow that is said to have begun at `start` is known to be over.
    /// Without a time it begins now, which is after every end.
    pub fn covers(&self, id: &FlowId, start: Option<Timestamp>) -> bool {
        let life = self.young.get(id).or_else(|| self.old.get(id));
        // A flow may begin in the very microsecond in which the one before ended; one
        // that began when that one began is that one, however short it was.
        life.zip(start).is_some_and(|(life, start)| start == life.0 || start < life.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Protocol;
    use std::net::SocketAddr;

    fn id(number: u32) -> FlowId {
        let src = SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0000 + number).into(), 1);
        FlowId::new(Protocol::Tcp, src, "192.0.2.1:2".parse().unwrap()).unwrap()
    }

    #[test]
    fn what_began_before_the_end_is_late() {
        let mut closed = Closed::default();
        closed.note(id(1), Timestamp(5), Timestamp(9));
        closed.note(id(2), Timestamp(5), Timestamp(5));
        let at = |number, start| closed.covers(&id(number), Some(Timestamp(start)));
        assert_eq!([1, 5, 8, 9, 10].map(|start| at(1, start)), [true, true, true, false, false]);
        assert_eq!([4, 5, 6].map(|start| at(2, start)), [true, true, false], "no time at all");
        assert!(!at(3, 1) && !closed.covers(&id(1), None));
    }

    #[test]
    fn memory_is_bounded_and_the_last_are_remembered() {
        let mut closed = Closed::default();
        let last = 10 * u32::try_from(GENERATION).unwrap();
        for number in 0..last {
            closed.note(id(number), Timestamp(1), Timestamp(2));
            assert!(closed.young.len() <= GENERATION && closed.old.len() <= GENERATION);
            let first = number.saturating_sub(u32::try_from(GENERATION).unwrap() - 1);
            assert!(closed.covers(&id(first), Some(Timestamp(1))), "{first} of {number}");
        }
        assert!(!closed.covers(&id(0), Some(Timestamp(1))));
    }
}
