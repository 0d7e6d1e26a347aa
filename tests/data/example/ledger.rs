//! The ledger backend: a line of the log for each flow that is over. Runs on the
//! backend's thread; owns the number of lines so far.

use log::info;

use super::{Backend, Spec};
use crate::config::{Key, Kind, Section};
use crate::dispatcher::{Event, Queue};
use crate::error::Result;
use crate::part::{no_rules, Context};

/// The registration.
pub(super) static SPEC: Spec = Spec {
    name: "ledger",
    aliases: &[],
    summary: "logs each flow when it is over, with its duration",
    keys: &[Key {
        name: "atLeast",
        aliases: &[],
        kind: Kind::Int { min: 0, max: 86_400 },
        default: "0",
        live: true,
        doc: "Seconds that a flow has to have lasted, or it is not logged.",
    }],
    check: no_rules,
    build,
};

struct Ledger {
    at_least: u64,
    lines: u64,
}

fn build(section: &Section, _: &Context) -> Result<Box<dyn Backend>> {
    Ok(Box::new(Ledger { at_least: section.int("atLeast"), lines: 0 }))
}

impl Backend for Ledger {
    fn run(mut self: Box<Self>, events: Queue) -> Result<()> {
        while let Some(batch) = events.recv() {
            for event in batch.iter() {
                match event {
                    Event::End(flow, end) => {
                        let seconds = end.0.saturating_sub(flow.start.0) / 1_000_000;
                        if seconds >= self.at_least {
                            self.lines += 1;
                            info!("backends.ledger: {}: {}, {seconds} s", flow.id, flow.tag);
                        }
                    }
                    Event::Start(_) | Event::Everything(_) => {}
                    Event::Sample(_) | Event::Ongoing(..) => {}
                    Event::Report => info!("backends.ledger: {} flows logged", self.lines),
                    Event::Reload(section) => self.at_least = section.int("atLeast"),
                }
            }
        }
        Ok(())
    }
}
