//! Rate limit for log lines that somebody outside can trigger.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lets `BURST` lines through per `PERIOD` and counts the others. One per kind of
/// line, usually a `static` beside the code that logs it.
#[derive(Debug)]
pub struct Limit(Mutex<State>);

#[derive(Debug)]
struct State {
    since: Option<Instant>,
    passed: u32,
    held: u64,
}

const BURST: u32 = 5;
const PERIOD: Duration = Duration::from_secs(10);

impl Limit {
    /// A limit that has let nothing through yet.
    #[allow(clippy::new_without_default)] // for statics
    pub const fn new() -> Self {
        Limit(Mutex::new(State { since: None, passed: 0, held: 0 }))
    }

    /// Whether a line may be logged now. `Some(n)`: yes, and `n` lines like it were
    /// held back since the last one that passed.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            state.since = Some(now);
            state.passed = 0;
        }
        if state.passed == BURST {
            state.held += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.held))
    }
}

/// Logs a warning that the outside can trigger, at the rate of its own static
/// [`Limit`], with the number of lines like it that were held back before.
#[macro_export]
macro_rules! warn_limited {
    ($($message:tt)+) => {{
        static LIMIT: $crate::log::limit::Limit = $crate::log::limit::Limit::new();
        match LIMIT.pass() {
            None => {}
            Some(0) => log::warn!($($message)+),
            Some(held) => {
                log::warn!("{} ({held} more like it since the last)", format_args!($($message)+));
            }
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_rest_is_counted() {
        let limit = Limit::new();
        let start = Instant::now();
        let passed = (0..100).filter(|_| limit.pass_at(start).is_some()).count();
        assert_eq!(passed, 5);
        assert_eq!(limit.pass_at(start + PERIOD), Some(95));
        assert_eq!(limit.pass_at(start + PERIOD), Some(0));
    }
}
