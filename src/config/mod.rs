//! The configuration: one JSON file, read and judged as a whole before anything
//! is touched. The main thread does it, at the start and at each reload; the parts
//! get their sections.

mod change;
mod check;
mod json;
mod key;
pub mod live;
pub mod nearest;
mod problem;
mod rules;
mod section;
mod service_dirs;
mod value;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use log::{Level, LevelFilter};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::error::{Class, Error, Result};
use crate::log::Destination;
use crate::registry::{Names, Registry, Unknown};
use crate::{backends, enrichers, plugins};

pub use change::Change;
pub use key::{Choice, Key, Kind, Value};
pub use problem::{Note, Position, Problem};
pub use rules::TOP;
pub use section::Section;

/// Where the configuration is if nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/glowd/conf.json";

/// More than any configuration needs, in bytes.
const LONGEST: u64 = 1 << 20;

/// A configuration that has been judged good.
#[derive(Clone)]
pub struct Config {
    top: Section,
    /// The plugins that it asks for.
    pub plugins: Vec<(&'static plugins::Spec, Section)>,
    /// What holds for all enrichers.
    measuring: Section,
    /// The enrichers that it asks for.
    pub enrichers: Vec<(&'static enrichers::Spec, Section)>,
    /// The backends that it asks for.
    pub backends: Vec<(&'static backends::Spec, Section)>,
    /// What the operator should know of it.
    pub notes: Vec<Note>,
}

impl Config {
    /// Reads and judges the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, or has problems: all of them, a line each.
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let cannot = |cause: std::io::Error| {
            let hint = match cause.kind() {
                std::io::ErrorKind::NotFound => " (use --conf PATH to name another)",
                _ => "",
            };
            Error::config(format!("cannot read the configuration {name:?}: {cause}{hint}"))
        };
        let file = File::open(path).map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        let mut bytes = Vec::new();
        file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(cannot)?;
        if bytes.len() as u64 > LONGEST {
            return Err(Error::config(format!("{name}: longer than {LONGEST} bytes")));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let good = error.utf8_error().valid_up_to();
            let start = String::from_utf8_lossy(&error.as_bytes()[..good]);
            Error::config(format!("{name}:{}: not UTF-8", Position::of(&start, start.len())))
        })?;
        let mut config = Config::parse(&text, &name)?;
        if metadata.is_file() && metadata.mode() & 0o002 != 0 {
            let text = format!("{name}: anybody may write to this file (chmod o-w {name})");
            config.notes.push(Note { level: Level::Warn, text });
        }
        Ok(config)
    }

    /// Judges `text`, which is called `name` in messages.
    ///
    /// # Errors
    /// It has problems: all of them, a line each.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        Config::judge(text, name, plugins::ALL, backends::ALL)
    }

    /// Judges `text` against the tables of these parts.
    pub(crate) fn judge(
        text: &str,
        name: &str,
        plugins: &[&'static plugins::Spec],
        backends: &[&'static backends::Spec],
    ) -> Result<Self> {
        // RFC 8259 section 8.1 allows to ignore what some editors put there.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut judge = check::Judge::new(text, name);
        let Some(root) = judge.root() else {
            return match judge.finish() {
                Err(problems) => Err(Error::config(problems)),
                Ok(_) => Err(Error::internal("no configuration and no problem")),
            };
        };
        let parts = ["plugins", "enrichers", "backends"];
        let names: Vec<_> = TOP
            .iter()
            .map(check::Name::of_key)
            .chain(parts.map(|canonical| check::Name { canonical, aliases: &[] }))
            .collect();
        let mut given = judge.members("", root, "key", &names);
        let backends_node = given.pop().flatten();
        let enrichers_node = given.pop().flatten();
        let plugins_node = given.pop().flatten();
        let none = || enrichers::KEYS.iter().map(|_| None).collect();
        let (measuring, enrichers) = match enrichers_node {
            Some(member) => judge.keys_and_parts(
                ("enrichers", "enricher or key"),
                member.value,
                enrichers::KEYS,
                enrichers::ALL,
            ),
            None => (judge.section("enrichers", enrichers::KEYS, none()), Vec::new()),
        };
        let mut config = Config {
            measuring,
            enrichers,
            top: judge.section("", TOP, given),
            plugins: plugins_node.map_or_else(Vec::new, |member| {
                judge.parts("plugins", "plugin", member.value, plugins)
            }),
            backends: backends_node.map_or_else(Vec::new, |member| {
                judge.parts("backends", "backend", member.value, backends)
            }),
            notes: Vec::new(),
        };
        if judge.is_good() {
            rules::move_stun_servers(&mut config, &mut judge);
            rules::choose_port(&mut config, &mut judge);
            for message in rules::problems(&config) {
                judge.rule(message);
            }
            for (level, message) in rules::remarks(&config) {
                judge.remark(level, &message);
            }
        }
        config.notes = judge.finish().map_err(Error::config)?;
        Ok(config)
    }

    /// The effective configuration, defaults filled in, as JSON; itself a valid
    /// configuration.
    pub fn to_json(&self) -> String {
        // It serializes to strings and numbers only, in memory.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// `pidPath`.
    pub fn pid_path(&self) -> &str {
        self.top.text("pidPath")
    }

    /// `idleTimeout`; none: never.
    pub fn idle_timeout(&self) -> Option<Duration> {
        let seconds: u64 = self.top.int("idleTimeout");
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    /// `ongoingPeriod` of the backend firefly; none: never, or there is no such backend.
    pub fn ongoing_period(&self) -> Option<Duration> {
        let firefly = self.backends.iter().find(|(spec, _)| spec.name == "firefly");
        let millis: u64 = firefly.map_or(0, |(_, section)| section.int("ongoingPeriod"));
        (millis > 0).then(|| Duration::from_millis(millis))
    }

    /// `maxFlows`.
    pub fn max_flows(&self) -> u32 {
        self.top.int("maxFlows")
    }

    /// What `registryPath`, `workDir` and `unknownIds` say.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub fn names(&self) -> Result<Names> {
        let unknown = match self.top.text("unknownIds") {
            "accept" => Unknown::Accept,
            "refuse" => Unknown::Refuse,
            _ => Unknown::Warn,
        };
        Names::open(self.top.text("registryPath"), self.top.text("workDir"), unknown)
    }

    /// Whether the experiments, activities and users that are given by name are known, and the
    /// tags registered, if `names` refuses others. `is_loud`: warns of tags that are not, if
    /// they are accepted with a warning; parts that are built do that themselves.
    ///
    /// # Errors
    /// Some are not: a line each. If all those are users, it is the system that does not know
    /// them, as it may later.
    pub fn check_names(&self, names: &Names, is_loud: bool) -> Result<()> {
        let registry: &Registry = &names.get();
        let judge = |tag, section: &Section| {
            if is_loud || names.refuses() {
                names.judge_at(registry, tag, &section.path())
            } else {
                Ok(())
            }
        };
        let (mut problems, mut users) = (Vec::new(), Vec::new());
        for section in self.sections() {
            let inner = section.values().iter().filter_map(|(_, value)| match value {
                Value::Rules(rules) => Some(rules),
                _ => None,
            });
            for section in inner.flatten().chain([section]) {
                let mut wrong = |key: &str, problem: String| {
                    problems.push(format!("{}.{key}: {problem}", section.path()));
                };
                let given = |key| section.has(key) && !section.text(key).is_empty();
                if given("experiment") && given("activity") {
                    let judged = crate::rules::tag(section, registry)
                        .and_then(|tag| judge(tag, section).map_err(|text| ("experiment", text)));
                    if let Err((key, problem)) = judged {
                        wrong(key, problem);
                    }
                }
                if section.has("experimentIDs") && section.has("activityIDs") {
                    let pairs =
                        section.list("experimentIDs").iter().zip(section.list("activityIDs"));
                    for (experiment, activity) in pairs {
                        match registry.experiment(experiment) {
                            Err(problem) => wrong("experimentIDs", problem),
                            Ok(id) => {
                                let judged = registry
                                    .activity(id, activity)
                                    .and_then(|tag| judge(tag, section));
                                judged.unwrap_or_else(|text| wrong("activityIDs", text));
                            }
                        }
                    }
                }
                if section.has("user") {
                    if let Err(problem) = crate::rules::uid(section.text("user")) {
                        users.push(format!("{}.user: {problem}", section.path()));
                    }
                }
            }
        }
        let class = if problems.is_empty() { Class::Os } else { Class::Config };
        problems.append(&mut users);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Error::new(class, problems.join("\n")))
        }
    }

    /// `enrichers.period`.
    pub fn period(&self) -> Duration {
        Duration::from_millis(self.measuring.int("period"))
    }

    /// `log`.
    pub fn log_destination(&self) -> Destination {
        match self.top.text("log") {
            "syslog" => Destination::Syslog,
            _ => Destination::Stderr,
        }
    }

    /// `logLevel`.
    pub fn log_level(&self) -> LevelFilter {
        // Its choices are the facade's own words.
        self.top.text("logLevel").parse().unwrap_or(LevelFilter::Info)
    }

    /// Logs what the operator should know of it.
    pub fn log_notes(&self) {
        for note in &self.notes {
            log::log!(note.level, "{}", note.text);
        }
    }

    /// Which parts run, for the log.
    pub fn summary(&self) -> String {
        let plugins = self.plugins.iter().map(|(_, section)| section.path());
        let backends = self.backends.iter().map(|(_, section)| section.path());
        let enrichers = self.enrichers.iter().map(|(_, section)| section.path());
        plugins.chain(enrichers).chain(backends).collect::<Vec<_>>().join(", ")
    }

    /// The section at that path, such as `plugins.api`.
    pub(crate) fn section(&self, path: &str) -> Option<&Section> {
        self.sections().find(|section| section.path() == path)
    }

    /// All sections, the top level's own keys first.
    fn sections(&self) -> impl Iterator<Item = &Section> {
        let plugins = self.plugins.iter().map(|(_, section)| section);
        let backends = self.backends.iter().map(|(_, section)| section);
        let enrichers = self.enrichers.iter().map(|(_, section)| section);
        let enrichers = std::iter::once(&self.measuring).chain(enrichers);
        std::iter::once(&self.top).chain(plugins).chain(enrichers).chain(backends)
    }
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        /// Sections under their own names.
        struct Parts<'c>(Vec<(&'static str, &'c Section)>);

        /// Enrichers under their own names, and what holds for all of them.
        struct Measuring<'c>(&'c Config);

        impl Serialize for Measuring<'_> {
            fn serialize<S: Serializer>(
                &self,
                serializer: S,
            ) -> std::result::Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(None)?;
                for (key, value) in self.0.measuring.values() {
                    map.serialize_entry(key, value)?;
                }
                for (spec, section) in &self.0.enrichers {
                    map.serialize_entry(spec.name, section)?;
                }
                map.end()
            }
        }

        impl Serialize for Parts<'_> {
            fn serialize<S: Serializer>(
                &self,
                serializer: S,
            ) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().copied())
            }
        }

        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.top.values() {
            map.serialize_entry(key, value)?;
        }
        let plugins = self.plugins.iter().map(|(spec, section)| (spec.name, section)).collect();
        map.serialize_entry("plugins", &Parts(plugins))?;
        if !self.enrichers.is_empty() {
            map.serialize_entry("enrichers", &Measuring(self))?;
        }
        let backends = self.backends.iter().map(|(spec, section)| (spec.name, section)).collect();
        map.serialize_entry("backends", &Parts(backends))?;
        map.end()
    }
}

impl Serialize for Section {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.values().iter().map(|(key, value)| (key, value)))
    }
}
