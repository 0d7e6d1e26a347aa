//! How many flows may be open: tickets in an atomic, which any thread reserves and the flow
//! table holds.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the flows that are open or promised, so that whoever sends a start
/// learns at once, without waiting for the dispatcher, whether there is room.
#[derive(Debug)]
pub struct Admission {
    limit: AtomicUsize,
    used: AtomicUsize,
}

impl Admission {
    /// Room for `limit` flows.
    pub fn new(limit: usize) -> Self {
        Admission { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) }
    }

    /// How many flows may be open (`maxFlows`).
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets how many flows may be open. If more are, they stay, and there is room
    /// again when enough of them have ended.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Whether more flows are open or promised than may be.
    pub fn is_over(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit()
    }

    /// Takes `tickets` of what is left, or none. No ticket is always to be had.
    pub fn reserve(&self, tickets: usize) -> bool {
        if tickets == 0 {
            return true;
        }
        let limit = self.limit();
        let take = |used: usize| used.checked_add(tickets).filter(|used| *used <= limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Takes as many tickets as the number of flows grows by at the most, if there is
    /// room at that moment; it is negative if flows end before one starts. Returns
    /// how many were taken.
    pub fn reserve_growth(&self, most: isize) -> Option<usize> {
        let (limit, tickets) = (self.limit(), usize::try_from(most).unwrap_or(0));
        let take = |used: usize| {
            let fits = used.checked_add_signed(most).is_none_or(|peak| peak <= limit);
            fits.then(|| used.checked_add(tickets)).flatten()
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().map(|_| tickets)
    }

    /// Gives tickets back.
    pub fn release(&self, tickets: usize) {
        self.used.fetch_sub(tickets, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admission_never_exceeds_its_limit() {
        let room = Admission::new(3);
        assert!(room.reserve(2));
        assert!(!room.reserve(2), "all or nothing");
        assert!(room.reserve(1));
        assert!(!room.reserve(1));
        room.release(3);
        assert!(room.reserve(3) && !room.reserve(usize::MAX));
        assert_eq!(room.reserve_growth(isize::MAX), None);
    }

    #[test]
    fn a_lower_limit_leaves_what_is_open_and_lets_nothing_in() {
        let room = Admission::new(5);
        assert!(room.reserve(5) && !room.is_over());
        room.set_limit(3);
        assert!(room.is_over() && room.reserve(0) && !room.reserve(1));
        assert_eq!(room.reserve_growth(0), None, "as many as before are too many");
        assert_eq!(room.reserve_growth(-1), None);
        assert_eq!(room.reserve_growth(-2), Some(0), "three are not");
        room.release(3);
        assert_eq!(room.reserve_growth(1), Some(1));
        assert!(!room.is_over() && !room.reserve(1) && room.limit() == 3);
        room.set_limit(4);
        assert!(room.reserve(1));
    }
}
