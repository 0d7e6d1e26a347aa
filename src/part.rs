//! What plugins and backends have in common: one registration each, which
//! carries the part's configuration keys and the function that builds it.
//!
//! A part lives in three phases. Check: its keys are judged by their table and
//! by `check`, which touch nothing. Build: `build` acquires what the part needs
//! and may fail. Run: the trait's `run`, on a thread of its own. Undoing is Drop.

use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Key, Section};
use crate::error::Result;
use crate::metrics::Metrics;
use crate::registry::{Names, Registry, Unknown};

/// The registration of a part. `T` is the trait object that it builds.
pub struct Spec<T: ?Sized> {
    /// Configuration key, canonical (`namedPipe`). The part's file is its
    /// snake_case.
    pub name: &'static str,
    /// Names under which other programs' configurations know the part.
    pub aliases: &'static [&'static str],
    /// What it does: a sentence for the man page, without a full stop.
    pub summary: &'static str,
    /// Its keys, in the order of the documentation.
    pub keys: &'static [Key],
    /// Rules over several of its keys; each message starts with the key that
    /// has to change. Pure.
    pub check: fn(&Section) -> Vec<String>,
    /// Acquires what the part needs.
    pub build: fn(&Section, &Context) -> Result<Box<T>>,
}

/// Tries whether a part that runs could obey another section, and changes nothing: it
/// makes what the section takes, and lets go of it. Runs on the main thread, beside the part.
pub type Trial = Box<dyn Fn(&Section) -> Result<()> + Send>;

/// What a part may need to know of the whole when it is built.
#[derive(Clone, Debug)]
pub struct Context {
    /// The most flows that are open at a time (`maxFlows`).
    pub max_flows: u32,
    /// What experiments and activities are called.
    pub names: Arc<Names>,
    /// Where it says what it counts.
    pub metrics: Arc<Metrics>,
    /// How often flows are measured (`enrichers.period`).
    pub period: Duration,
    /// Whether an enricher is to run, which knows what connections of TCP carry.
    pub enriched: bool,
    /// Whether anybody says all that is known of a connection: who says it sets it, and
    /// enrichers ask the kernel for no more than is read.
    pub in_full: Arc<AtomicBool>,
}

impl Context {
    /// For up to `max_flows` flows, with the registry in the binary.
    pub fn new(max_flows: u32) -> Self {
        let names = Names::fixed(Registry::snapshot(), Unknown::Accept);
        Context {
            max_flows,
            names: Arc::new(names),
            metrics: Arc::default(),
            period: Duration::from_secs(1),
            enriched: false,
            in_full: Arc::default(),
        }
    }
}

/// For parts whose keys do not depend on each other.
pub fn no_rules(_: &Section) -> Vec<String> {
    Vec::new()
}
