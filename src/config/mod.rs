//! The configuration: one JSON file, read and judged as a whole before anything
//! is touched.

mod key;
mod section;

pub use key::{Choice, Key, Kind, Value};
pub use section::Section;

use crate::{backends, plugins};

/// A configuration that has been judged good.
pub struct Config {
    top: Section,
    /// The plugins that it asks for.
    pub plugins: Vec<(&'static plugins::Spec, Section)>,
    /// The backends that it asks for.
    pub backends: Vec<(&'static backends::Spec, Section)>,
}

impl Config {
    /// `pidPath`.
    pub fn pid_path(&self) -> &str {
        self.top.text("pidPath")
    }

    /// `maxFlows`.
    pub fn max_flows(&self) -> u32 {
        self.top.int("maxFlows")
    }

    /// Which parts run, for the log.
    pub fn summary(&self) -> String {
        let plugins = self.plugins.iter().map(|(_, section)| section.path());
        let backends = self.backends.iter().map(|(_, section)| section.path());
        plugins.chain(backends).collect::<Vec<_>>().join(", ")
    }
}
