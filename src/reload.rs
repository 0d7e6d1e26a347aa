//! Reads the configuration again when SIGHUP asks for it. Runs on the main thread;
//! owns the configuration in force: what the daemon was started with, and every live
//! value since.
//!
//! The file is judged as a whole, as at the start, and one with a problem is refused
//! as a whole; so is one that a part cannot obey, as far as that can be tried before. What can change live goes to whom it concerns: the level to the log
//! facade, `maxFlows` and the backends' sections through the dispatcher's channel, in
//! order with the events, the plugins' sections to their [`Live`]. What cannot is named,
//! again at each reload until it is as it was or the daemon was restarted.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use log::{error, info, warn, LevelFilter};

use crate::config::live::Live;
use crate::config::{Change, Config, Section};
use crate::dispatcher::{Inlet, Reload};
use crate::error::{At, Class, Error, Result};
use crate::flow::Timestamp;
use crate::metrics::families::{RELOADS, RELOAD_GOOD, RELOAD_TIME};
use crate::metrics::{Count, Metrics, Value, Writer};
use crate::part::Trial;
use crate::systemd::Notifier;

/// Where the configuration is from, and what the command line says instead of it.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file, as an absolute path.
    pub path: PathBuf,
    /// `--log-level`, which wins over `logLevel`.
    pub log_level: Option<LevelFilter>,
}

/// What it takes to reload.
pub struct Reloader {
    origin: Origin,
    config: Config,
    /// How many flows backends and enrichers have room for, if that is bounded, and which has
    /// the least.
    capacity: Option<(u32, &'static str)>,
    /// The plugins with live keys, by the path of their sections.
    plugins: Vec<(String, Live)>,
    /// Of the parts that may find out late that they cannot obey, by the path of their
    /// sections.
    trials: Vec<(String, Trial)>,
    history: Arc<History>,
}

/// What the metrics say of reloads.
#[derive(Debug, Default)]
struct History {
    succeeded: Count,
    failed: Count,
    /// Whether the last one failed.
    in_vain: Count,
    /// When what is in force was read, in us since 1970.
    read: Count,
}

impl History {
    fn write(&self, writer: &mut Writer) {
        writer.number(&RELOADS, &["success"], self.succeeded.get());
        writer.number(&RELOADS, &["failure"], self.failed.get());
        writer.number(&RELOAD_GOOD, &[], 1 - self.in_vain.get());
        writer.sample(&RELOAD_TIME, &[], Value::Millionths(self.read.get()));
    }
}

/// What a reload has come to, as paths of keys and parts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    changed: Vec<String>,
    pending: Vec<String>,
}

impl Reloader {
    /// Begins with the configuration that the daemon was started with.
    pub fn new(
        origin: Origin,
        config: Config,
        capacity: Option<(u32, &'static str)>,
        plugins: Vec<(String, Live)>,
        trials: Vec<(String, Trial)>,
    ) -> Self {
        let history = Arc::<History>::default();
        history.read.set(Timestamp::now().0);
        Reloader { origin, config, capacity, plugins, trials, history }
    }

    /// Has reloads measured.
    pub fn measure_by(&self, metrics: &Metrics) {
        let history = self.history.clone();
        metrics.add(move |writer| history.write(writer));
    }

    /// Reads the file and applies what can be applied, or leaves all as it is; says in
    /// the log and to the service manager what became of it.
    pub fn reload(&mut self, inlet: &Inlet, notifier: &Notifier) {
        notifier.tell_reloading();
        let order = match self.read() {
            Ok(new) => {
                self.history.succeeded.add(1);
                self.history.in_vain.set(0);
                self.history.read.set(Timestamp::now().0);
                let level = self.origin.log_level.unwrap_or(new.log_level());
                // Whichever level lets more through, it lets what is said here through.
                log::set_max_level(log::max_level().max(level));
                new.log_notes();
                self.adopt(&new).say();
                log::set_max_level(level);
                for (path, live) in &self.plugins {
                    if let Some(section) = self.config.section(path) {
                        live.publish(Arc::new(section.clone()));
                    }
                }
                self.order(self.backends(), None)
            }
            Err(problems) => {
                self.history.failed.add(1);
                self.history.in_vain.set(1);
                let problems = problems.to_string();
                problems.lines().for_each(|problem| error!("{problem}"));
                let count = match problems.lines().count() {
                    1 => "a problem".to_owned(),
                    count => format!("{count} problems"),
                };
                warn!("configuration not reloaded: it has {count}; the old one stays in force");
                let remark = format!("the new configuration has {count}, the old one is in force");
                self.order(Vec::new(), Some(remark))
            }
        };
        // A daemon whose dispatcher is gone is about to stop, and says why itself.
        let _ = inlet.reload(order);
    }

    fn read(&self) -> Result<Config> {
        let path = &self.origin.path;
        // To open a pipe that nobody writes to would take for ever.
        if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            let why = "it is not a regular file";
            return Err(Error::config(format!("cannot read {path:?} again: {why}")));
        }
        let config = Config::load(path)?;
        // What parts find out when they are built, so that all is in force or nothing.
        config.check_names(&config.names()?, false)?;
        self.try_out(&config)?;
        Ok(config)
    }

    /// Has the parts try what they would get if `new` were adopted.
    fn try_out(&self, new: &Config) -> Result<()> {
        let mut next = self.config.clone();
        for change in self.config.changes(new) {
            if self.obstacle(&change, new).is_none() {
                next.adopt(&change);
            }
        }
        let mut problems = Vec::new();
        for (path, trial) in &self.trials {
            let (old, new) = (self.config.section(path), next.section(path));
            // What is in force has been tried, by obeying it.
            if let Some(section) = new.filter(|new| old != Some(new)) {
                problems.extend(trial(section).at(path.as_str()).err());
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        let problems: Vec<_> = problems.iter().map(Error::to_string).collect();
        Err(Error::new(Class::Os, problems.join("\n")))
    }

    /// Has in force what can change live, and tells what cannot.
    fn adopt(&mut self, new: &Config) -> Outcome {
        let mut outcome = Outcome::default();
        for change in self.config.changes(new) {
            if let Some(reason) = self.obstacle(&change, new) {
                warn!("{change} needs a restart{reason}");
                outcome.pending.push(change.path());
                continue;
            }
            self.config.adopt(&change);
            outcome.changed.push(change.path());
        }
        if let Some(level) = self.origin.log_level {
            if let Some(at) = outcome.changed.iter().position(|path| path == "logLevel") {
                let level = level.as_str().to_lowercase();
                warn!("logLevel: no effect, since --log-level {level} wins over it");
                outcome.changed.remove(at);
            }
        }
        outcome
    }

    /// Why a change cannot be applied, if so: "" if its key is not live.
    fn obstacle(&self, change: &Change, new: &Config) -> Option<String> {
        if !change.is_live() {
            return Some(String::new());
        }
        let (room, who) = self.capacity.filter(|(room, _)| new.max_flows() > *room)?;
        (change.path() == "maxFlows").then(|| format!(": {who} has room for {room}"))
    }

    /// The sections of backends that have live keys.
    fn backends(&self) -> Vec<(&'static str, Arc<Section>)> {
        let live = self.config.backends.iter();
        let live = live.filter(|(spec, _)| spec.keys.iter().any(|key| key.live));
        live.map(|(spec, section)| (spec.name, Arc::new(section.clone()))).collect()
    }

    fn order(&self, sections: Vec<(&'static str, Arc<Section>)>, remark: Option<String>) -> Reload {
        let (max_flows, idle_timeout) = (self.config.max_flows(), self.config.idle_timeout());
        let ongoing_period = self.config.ongoing_period();
        Reload { max_flows, idle_timeout, ongoing_period, sections, remark }
    }
}

impl Outcome {
    fn say(&self) {
        let mut text = match self.changed.as_slice() {
            [] => "nothing changed".to_owned(),
            changed => format!("changed {}", changed.join(", ")),
        };
        if !self.pending.is_empty() {
            text.push_str(&format!("; needs a restart: {}", self.pending.join(", ")));
        }
        info!("configuration reloaded: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(max_flows: u32) -> Config {
        let text = format!(r#"{{"maxFlows": {max_flows}, "plugins": {{"api": {{}}}}}}"#);
        Config::parse(&text, "c").map_err(|error| error.to_string()).unwrap()
    }

    #[test]
    fn what_a_part_cannot_obey_is_refused_before_anything_is_adopted() {
        let config = |period: u64, max_flows: u32| {
            let text = format!(
                r#"{{"maxFlows": {max_flows}, "plugins": {{"netlink": {{"period": {period}}}}}}}"#
            );
            Config::parse(&text, "c").map_err(|error| error.to_string()).unwrap()
        };
        let origin = Origin { path: "/nowhere".into(), log_level: None };
        let trial: Trial = Box::new(|section| match section.int::<u64>("period") {
            300 => Err(Error::config("300 is odd")),
            _ => Ok(()),
        });
        let trials = vec![("plugins.netlink".to_owned(), trial)];
        let mut reloader = Reloader::new(origin, config(300, 9), None, Vec::new(), trials);
        reloader.try_out(&config(300, 8)).unwrap_or_else(|_| panic!("what is in force is"));
        for _ in 0..2 {
            reloader.try_out(&config(200, 9)).unwrap_or_else(|_| panic!("it is tried only"));
        }
        reloader.adopt(&config(200, 9));
        let refused = reloader.try_out(&config(300, 9)).unwrap_err();
        assert_eq!(refused.to_string(), "plugins.netlink: 300 is odd");
    }

    #[test]
    fn a_limit_beyond_the_room_of_a_backend_needs_a_restart() {
        let origin = Origin { path: "/nowhere".into(), log_level: None };
        let capacity = Some((100, "marker"));
        let mut reloader = Reloader::new(origin, config(100), capacity, Vec::new(), Vec::new());
        for (max_flows, changed, in_force) in [
            (50, true, 50),
            (101, false, 50),
            (100, true, 100),
            (101, false, 100),
            (100, false, 100),
        ] {
            let Outcome { changed: names, pending } = reloader.adopt(&config(max_flows));
            assert_eq!(names.contains(&"maxFlows".to_owned()), changed, "{max_flows}");
            assert_eq!(pending.contains(&"maxFlows".to_owned()), max_flows > 100, "{max_flows}");
            assert_eq!(reloader.config.max_flows(), in_force);
        }
        let new = config(101);
        let change = &reloader.config.changes(&new)[0];
        let said = format!("{change} needs a restart{}", reloader.obstacle(change, &new).unwrap());
        assert_eq!(said, "maxFlows: 100 -> 101 needs a restart: marker has room for 100");
        // Nobody who bounds it.
        reloader.capacity = None;
        reloader.adopt(&config(101));
        assert_eq!(reloader.config.max_flows(), 101);
    }
}
