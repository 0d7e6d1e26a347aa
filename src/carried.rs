//! What connections had carried when the last flow of theirs ended: the next flow of the same
//! connection begins with nothing, whatever the kernel has counted of it by then.
//!
//! Owned by the flow table; pure. The kernel gives a socket's cookie to no other one until the
//! next boot. Memory is bounded (3.3 MB): two generations of up to `GENERATION` connections,
//! the older of which is forgotten when the younger is full.

use std::collections::HashMap;

use crate::flow::Usage;

/// How many connections are remembered at least; twice as many at the most. Little less than a
/// table of 65,536 places holds.
const GENERATION: usize = 57_000;

/// What connections had carried.
#[derive(Debug, Default)]
pub struct Carried {
    young: HashMap<u64, Usage>,
    old: HashMap<u64, Usage>,
}

impl Carried {
    /// Takes note that a flow ended when the connection with that cookie had carried that much,
    /// as its own end counts.
    pub fn note(&mut self, cookie: u64, usage: Usage) {
        if self.young.len() >= GENERATION && !self.young.contains_key(&cookie) {
            // Keeps the memory of both: it is needed again.
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(cookie, usage);
    }

    /// What it had carried when a flow of its ended; nothing if none has.
    pub fn before(&self, cookie: u64) -> Usage {
        let known = self.young.get(&cookie).or_else(|| self.old.get(&cookie));
        known.copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_the_last_are_remembered() {
        let mut carried = Carried::default();
        let usage = |sent| Usage { sent, received: 1 };
        let generation = GENERATION as u64;
        for cookie in 1..=5 * generation {
            carried.note(cookie, usage(cookie));
            // One that is used again and again is never forgotten.
            carried.note(0, usage(cookie));
            let first = cookie.saturating_sub(generation - 2).max(1);
            for known in [first, cookie] {
                assert_eq!(carried.before(known), usage(known), "{known} of {cookie}");
            }
            assert_eq!(carried.before(0), usage(cookie));
        }
        assert_eq!(carried.before(1), Usage::default());
        for map in [&carried.young, &carried.old] {
            assert!(map.len() <= GENERATION && map.capacity() < 60_000);
        }
    }
}
