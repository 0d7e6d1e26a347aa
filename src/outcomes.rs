//! What became of the events of each plugin, counted by the dispatcher's thread; read by
//! whoever reports it.

use crate::metrics::families::{EVENTS, FLOWS_LIMIT, FLOWS_OPEN};
use crate::metrics::{Count, Writer};
use crate::plugins;

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It opened a flow.
    Started,
    /// It ended one.
    Ended,
    /// It started a flow that was open.
    Repeated,
    /// It gave an open flow another tag.
    Retagged,
    /// It was to end a flow that was not open.
    Unknown,
    /// Somebody else has told of the flow.
    Outranked,
    /// It said that a flow goes on.
    Ongoing,
    /// It came too late.
    Stale,
    /// There was no room for its flow.
    Refused,
    /// It could not be understood.
    Malformed,
}

/// All outcomes, as they are called in metrics.
const NAMES: [(Outcome, &str); 10] = [
    (Outcome::Started, "started"),
    (Outcome::Ended, "ended"),
    (Outcome::Repeated, "repeated"),
    (Outcome::Retagged, "retagged"),
    (Outcome::Unknown, "unknown"),
    (Outcome::Outranked, "outranked"),
    (Outcome::Ongoing, "ongoing"),
    (Outcome::Stale, "stale"),
    (Outcome::Refused, "refused"),
    (Outcome::Malformed, "malformed"),
];

/// The counts of one plugin.
#[derive(Debug, Default)]
pub struct Row([Count; NAMES.len()]);

impl Row {
    /// Counts so many events.
    pub fn add(&self, outcome: Outcome, events: u64) {
        self.0[outcome as usize].add(events);
    }
}

/// The counts of all plugins, and of the daemon itself.
#[derive(Debug)]
pub struct Outcomes {
    rows: Vec<(&'static str, Row)>,
    /// Flows that are open.
    pub open: Count,
}

impl Default for Outcomes {
    fn default() -> Self {
        let names = std::iter::once("glowd").chain(plugins::ALL.iter().map(|spec| spec.name));
        let rows = names.map(|name| (name, Row::default())).collect();
        Outcomes { rows, open: Count::default() }
    }
}

impl Outcomes {
    /// The counts of a source; the daemon's if it is no plugin.
    pub fn of(&self, source: &str) -> &Row {
        let row = self.rows.iter().find(|(name, _)| *name == source);
        &row.unwrap_or(&self.rows[0]).1
    }

    /// How many events of all plugins came to that.
    pub fn sum(&self, outcome: Outcome) -> u64 {
        self.rows.iter().map(|(_, row)| row.0[outcome as usize].get()).sum()
    }

    /// Writes those of the daemon and of the plugins that run as metrics, with how many
    /// flows may be open.
    pub fn write(&self, plugins: &[&str], limit: usize, writer: &mut Writer) {
        writer.number(&FLOWS_OPEN, &[], self.open.get());
        writer.number(&FLOWS_LIMIT, &[], limit as u64);
        let running = |source| source == "glowd" || plugins.contains(&source);
        for (source, row) in self.rows.iter().filter(|(source, _)| running(source)) {
            for ((_, result), count) in NAMES.iter().zip(&row.0) {
                writer.number(&EVENTS, &[source, result], count.get());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_place_and_name() {
        let outcomes = Outcomes::default();
        for (at, (outcome, name)) in NAMES.into_iter().enumerate() {
            assert_eq!(outcome as usize, at, "{name}");
            outcomes.of("api").add(outcome, at as u64 + 1);
            outcomes.of("nobody").add(outcome, 100);
            assert_eq!(outcomes.sum(outcome), at as u64 + 101, "{name}");
        }
        assert_eq!(outcomes.of("glowd").0[0].get(), 100);
    }
}
