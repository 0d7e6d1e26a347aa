//! What the dispatcher's thread itself tells the service manager: that it is alive
//! (WATCHDOG=1), that the daemon is ready (READY=1), and how it is (STATUS).
//!
//! Used on the dispatcher's thread only, which waits for its next message no longer
//! than this says. So a dispatcher that is stuck gives no sign of life, and is
//! restarted (sd_watchdog_enabled(3)).

use std::fmt;
use std::time::{Duration, Instant};

use crate::systemd::Notifier;

/// The least time between two statuses.
const CALM: Duration = Duration::from_secs(5);

/// The least time between two signs of life, whatever the manager asks for.
const FASTEST: Duration = Duration::from_millis(1);

/// How soon READY=1 is told again if the manager has not taken what was told before:
/// without it a start or a reload is never over.
const RETRY: Duration = Duration::from_millis(100);

/// The figures of the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Flows that are open.
    pub flows: usize,
    /// Events that were accepted.
    pub events: u64,
    /// Events that were refused, ended no flow, or could not be understood.
    pub errors: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { flows, events, errors } = self;
        write!(f, "{flows} flows open, {events} events, {errors} errors")
    }
}

/// When something is due to be told, and what was.
#[derive(Debug)]
pub struct Pulse {
    notifier: Notifier,
    /// Between two signs of life: half of what the manager grants.
    period: Option<Duration>,
    next_beat: Instant,
    /// The last status; none before the daemon is ready.
    told: Option<(Tally, Instant)>,
    /// What an operator should know beside the figures.
    remark: Option<String>,
    /// When READY=1 has to be told again, since it was in vain.
    retry: Option<Instant>,
    calm: Duration,
}

impl Pulse {
    /// None if there is nobody to tell: then the dispatcher has nothing to look after.
    pub fn new(notifier: Notifier) -> Option<Self> {
        if !notifier.is_there() {
            return None;
        }
        let period = notifier.watchdog().map(|watchdog| (watchdog / 2).max(FASTEST));
        let next_beat = Instant::now();
        let (told, remark, retry) = (None, None, None);
        Some(Pulse { notifier, period, next_beat, told, remark, retry, calm: CALM })
    }

    /// Tells that the daemon is ready, for the first time or after a reload, with
    /// `remark` behind the status from now on.
    pub fn ready(&mut self, tally: Tally, remark: Option<String>) {
        self.remark = remark;
        self.tell_ready(tally, Instant::now());
    }

    fn tell_ready(&mut self, tally: Tally, now: Instant) {
        let in_vain = self.tell_status("READY=1\n", tally, now);
        self.retry = in_vain.then(|| now + RETRY);
    }

    /// Tells what is due, and returns for how long nothing more is; none: until
    /// something happens.
    pub fn tend(&mut self, tally: Tally) -> Option<Duration> {
        let now = Instant::now();
        let mut wake = None;
        if let Some(period) = self.period {
            if now >= self.next_beat {
                // One that did not arrive is told again in time: two periods are all that
                // the service manager grants.
                let in_vain = self.notifier.tell("WATCHDOG=1");
                self.next_beat = now + if in_vain { RETRY.min(period) } else { period };
            }
            wake = Some(self.next_beat);
        }
        if let Some((_, at)) = self.told.filter(|(told, _)| *told != tally) {
            let due = at + self.calm;
            if now >= due {
                self.tell_status("", tally, now);
            } else {
                wake = Some(wake.map_or(due, |wake| wake.min(due)));
            }
        }
        if self.retry.is_some_and(|retry| now >= retry) {
            self.tell_ready(tally, now);
        }
        wake.into_iter().chain(self.retry).min().map(|wake| wake.duration_since(now))
    }

    fn tell_status(&mut self, before: &str, tally: Tally, now: Instant) -> bool {
        let remark = match &self.remark {
            Some(remark) => format!("; {remark}"),
            None => String::new(),
        };
        self.told = Some((tally, now));
        self.notifier.tell(&format!("{before}STATUS={tally}{remark}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    fn rig(watchdog: Option<Duration>, calm: Duration) -> (Pulse, impl FnMut() -> Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notifier = Notifier::to(path.as_os_str(), watchdog).unwrap();
        let pulse = Pulse { calm, ..Pulse::new(notifier).unwrap() };
        let heard = move || {
            let _dir = &dir;
            let mut buffer = [0; 256];
            let text = |length, buffer: &[u8]| String::from_utf8_lossy(&buffer[..length]).into();
            let mut all = Vec::new();
            while let Ok(length) = manager.recv(&mut buffer) {
                all.push(text(length, &buffer));
            }
            all
        };
        (pulse, heard)
    }

    const LONG: Duration = Duration::from_secs(3600);

    fn tally(events: u64) -> Tally {
        Tally { flows: 1, events, errors: 0 }
    }

    #[test]
    fn nobody_to_tell_is_nothing_to_do() {
        assert!(Pulse::new(Notifier::default()).is_none());
    }

    #[test]
    fn without_a_watchdog_it_sleeps_until_something_changes() {
        let (mut pulse, mut heard) = rig(None, LONG);
        assert_eq!(pulse.tend(tally(5)), None, "no status before it is ready");
        assert!(heard().is_empty());
        pulse.ready(tally(5), None);
        assert_eq!(heard(), ["READY=1\nSTATUS=1 flows open, 5 events, 0 errors"]);
        assert_eq!(pulse.tend(tally(5)), None);
        let sleep = pulse.tend(tally(6)).unwrap();
        assert!(sleep > LONG / 2 && sleep <= LONG, "{sleep:?}");
        assert!(heard().is_empty(), "not before its time");
        pulse.calm = Duration::ZERO;
        assert_eq!(pulse.tend(tally(7)), None);
        assert_eq!(heard(), ["STATUS=1 flows open, 7 events, 0 errors"]);
    }

    #[test]
    fn a_remark_stays_until_the_next_reload() {
        let (mut pulse, mut heard) = rig(None, Duration::ZERO);
        pulse.ready(tally(0), Some("old configuration".into()));
        pulse.tend(tally(1));
        pulse.ready(tally(1), None);
        let told = heard();
        assert!(told[0].ends_with("0 events, 0 errors; old configuration"), "{told:?}");
        assert_eq!(told[1], "STATUS=1 flows open, 1 events, 0 errors; old configuration");
        assert_eq!(told[2], "READY=1\nSTATUS=1 flows open, 1 events, 0 errors");
    }

    #[test]
    fn the_first_beat_is_at_once_and_the_next_after_half_of_the_time() {
        let (mut pulse, mut heard) = rig(Some(LONG), LONG);
        let sleep = pulse.tend(Tally::default()).unwrap();
        assert_eq!(heard(), ["WATCHDOG=1"]);
        assert_eq!(sleep, LONG / 2);
        let left = pulse.tend(Tally::default()).unwrap();
        assert!(left <= sleep);
        assert!(heard().is_empty());
        pulse.next_beat = Instant::now();
        pulse.tend(Tally::default());
        assert_eq!(heard(), ["WATCHDOG=1"]);
    }

    #[test]
    fn ready_is_told_again_until_the_manager_takes_it() {
        let (mut pulse, mut heard) = rig(None, LONG);
        while !pulse.notifier.tell("WATCHDOG=1") {}
        pulse.ready(tally(1), None);
        assert!(pulse.tend(tally(1)).is_some_and(|sleep| sleep <= RETRY));
        assert!(heard().iter().all(|told| told == "WATCHDOG=1"));
        pulse.retry = Some(Instant::now());
        assert_eq!(pulse.tend(tally(1)), None);
        assert_eq!(heard(), ["READY=1\nSTATUS=1 flows open, 1 events, 0 errors"]);
        assert_eq!(pulse.tend(tally(1)), None);
    }

    #[test]
    fn no_manager_makes_it_spin() {
        let (mut pulse, _heard) = rig(Some(Duration::from_micros(1)), LONG);
        assert_eq!(pulse.tend(Tally::default()), Some(FASTEST));
    }
}
