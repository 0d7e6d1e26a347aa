//! What is different between the configuration in force and a new one.
//!
//! Pure; used on the main thread.

use std::fmt;

use super::key::{Key, Value};
use super::value::shorten_to;
use super::{Config, Section, TOP};
use crate::enrichers;
use crate::part::Spec;

/// The longest text of a value in a message, in characters.
const LONGEST: usize = 200;

/// One difference.
#[derive(Debug)]
pub enum Change {
    /// A key has another value.
    Value {
        /// The path of its section; "" at the top level.
        section: String,
        /// The key.
        key: &'static Key,
        /// As it is.
        old: Value,
        /// As it shall be.
        new: Value,
    },
    /// A part that does not run is asked for; its path.
    Added(String),
    /// A part that runs is not asked for any more; its path.
    Removed(String),
}

impl Change {
    /// The full path of the key or part.
    pub fn path(&self) -> String {
        match self {
            Change::Value { section, key, .. } if section.is_empty() => key.name.to_owned(),
            Change::Value { section, key, .. } => format!("{section}.{}", key.name),
            Change::Added(path) | Change::Removed(path) => path.clone(),
        }
    }

    /// Whether it can be applied while the daemon runs.
    pub fn is_live(&self) -> bool {
        matches!(self, Change::Value { key, .. } if key.live)
    }
}

/// Reads well before "needs a restart".
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = |value: &Value| {
            // It is text, numbers and lists of them, in memory.
            shorten_to(LONGEST, &serde_json::to_string(value).unwrap_or_default())
        };
        match self {
            Change::Value { old, new, .. } => {
                write!(f, "{}: {} -> {}", self.path(), json(old), json(new))
            }
            Change::Added(path) => write!(f, "{path}: starting it"),
            Change::Removed(path) => write!(f, "{path}: stopping it"),
        }
    }
}

impl Config {
    /// What would change if `new` were in force, in the order of the documentation.
    pub fn changes(&self, new: &Config) -> Vec<Change> {
        let mut changes = Vec::new();
        values(&mut changes, TOP, &self.top, &new.top);
        parts(&mut changes, &self.plugins, &new.plugins);
        values(&mut changes, enrichers::KEYS, &self.measuring, &new.measuring);
        parts(&mut changes, &self.enrichers, &new.enrichers);
        parts(&mut changes, &self.backends, &new.backends);
        changes
    }

    /// Has the new value of `change` in force from now on. Parts stay as they are.
    pub fn adopt(&mut self, change: &Change) {
        let Change::Value { section: path, key, new, .. } = change else { return };
        let plugins = self.plugins.iter_mut().map(|(_, section)| section);
        let enrichers = self.enrichers.iter_mut().map(|(_, section)| section);
        let backends = self.backends.iter_mut().map(|(_, section)| section);
        let own = [&mut self.top, &mut self.measuring];
        let mut sections = own.into_iter().chain(plugins).chain(enrichers).chain(backends);
        if let Some(section) = sections.find(|section| section.path() == path) {
            section.set(key.name, new.clone());
        }
    }
}

/// The differences of the values of a section.
fn values(changes: &mut Vec<Change>, keys: &'static [Key], old: &Section, new: &Section) {
    for key in keys {
        let value = |section: &Section| {
            let found = section.values().iter().find(|(name, _)| *name == key.name);
            found.map(|(_, value)| value.clone())
        };
        // A retired key has no value.
        let (Some(was), Some(is)) = (value(old), value(new)) else { continue };
        if was != is {
            let section = old.path().to_owned();
            changes.push(Change::Value { section, key, old: was, new: is });
        }
    }
}

/// The differences of the parts of a kind.
fn parts<T: ?Sized>(
    changes: &mut Vec<Change>,
    old: &[(&'static Spec<T>, Section)],
    new: &[(&'static Spec<T>, Section)],
) {
    let find = |parts: &[(&'static Spec<T>, Section)], name: &str| {
        parts.iter().position(|(spec, _)| spec.name == name)
    };
    for (spec, section) in old {
        match find(new, spec.name) {
            Some(at) => values(changes, spec.keys, section, &new[at].1),
            None => changes.push(Change::Removed(section.path().to_owned())),
        }
    }
    let added = new.iter().filter(|(spec, _)| find(old, spec.name).is_none());
    changes.extend(added.map(|(_, section)| Change::Added(section.path().to_owned())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Kind;
    use crate::{backends, plugins};
    use serde_json::json;

    fn config(value: &serde_json::Value) -> Config {
        Config::parse(&value.to_string(), "c").map_err(|error| error.to_string()).unwrap()
    }

    fn shown(changes: &[Change]) -> Vec<String> {
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn changes_say_what_was_and_what_shall_be() {
        let old = json!({ "maxFlows": 5, "plugins": { "api": {} }, "backends": { "marker": {} } });
        let new = json!({
            "maxFlows": 6, "log": "syslog",
            "plugins": { "namedPipe": {} },
            "backends": { "marker": { "markingStrategy": "hopByHop", "targetInterfaces": "eth0" } },
        });
        let mut force = config(&old);
        let changes = force.changes(&config(&new));
        let expected = [
            "maxFlows: 5 -> 6",
            r#"log: "stderr" -> "syslog""#,
            "plugins.api: stopping it",
            "plugins.namedPipe: starting it",
            r#"backends.marker.targetInterfaces: [] -> ["eth0"]"#,
            r#"backends.marker.markingStrategy: "label" -> "hopByHop""#,
        ];
        assert_eq!(shown(&changes), expected);
        // What is adopted is in force, and what cannot be is told again.
        changes.iter().filter(|change| change.is_live()).for_each(|change| force.adopt(change));
        assert_eq!(force.max_flows(), 6);
        assert_eq!(shown(&force.changes(&config(&new))), expected[1..]);
        assert!(force.changes(&force).is_empty());
    }

    #[test]
    fn long_values_are_cut() {
        let list = |letter: &str| json!({ "stunServers": [letter.repeat(5000)] });
        let changes = config(&list("a")).changes(&config(&list("b")));
        assert!(changes[0].to_string().len() < 500, "{}", changes[0]);
    }

    /// A configuration of all parts.
    fn all() -> Config {
        let mut all = json!({ "plugins": {}, "enrichers": {}, "backends": {} });
        enrichers::ALL.iter().for_each(|spec| all["enrichers"][spec.name] = json!({}));
        plugins::ALL.iter().for_each(|spec| all["plugins"][spec.name] = json!({}));
        backends::ALL.iter().for_each(|spec| all["backends"][spec.name] = json!({}));
        config(&all)
    }

    /// Whichever key it is: the difference is seen, and whether it is live is what
    /// its table says.
    #[test]
    fn a_change_of_any_key_is_seen() {
        let named = |path: String| move |key| (path.clone(), key);
        let top = TOP.iter().map(named(String::new()));
        let plugins = plugins::ALL.iter();
        let plugins =
            plugins.flat_map(|spec| spec.keys.iter().map(named(format!("plugins.{}", spec.name))));
        let enrichers = enrichers::ALL.iter();
        let enrichers = enrichers
            .flat_map(|spec| spec.keys.iter().map(named(format!("enrichers.{}", spec.name))));
        let measuring = enrichers::KEYS.iter().map(named("enrichers".into()));
        let enrichers = measuring.chain(enrichers);
        let backends = backends::ALL.iter();
        let backends = backends
            .flat_map(|spec| spec.keys.iter().map(named(format!("backends.{}", spec.name))));
        let mut seen = 0;
        for (section, key) in top.chain(plugins).chain(enrichers).chain(backends) {
            let Some(old) = key.default_value() else {
                assert!(matches!(key.kind, Kind::Retired) && !key.live, "{}", key.name);
                continue;
            };
            let new = match &old {
                Value::Bool(value) => Value::Bool(!value),
                Value::Int(value) => Value::Int(value + 1),
                Value::Text(value) => Value::Text(format!("other {value}")),
                Value::List(value) => Value::List([&value[..], &["other".into()]].concat()),
                Value::Rules(value) => {
                    Value::Rules([&value[..], &[Section::new("rules[0]", Vec::new())]].concat())
                }
                Value::Map(_) => Value::Map(vec![("other".into(), "other".into())]),
                Value::Section(_) => Value::Section(Some(Section::new("", Vec::new()))),
            };
            let change = Change::Value { section, key, old, new };
            let mut new = all();
            new.adopt(&change);
            let changes = all().changes(&new);
            assert_eq!(shown(&changes), shown(std::slice::from_ref(&change)));
            assert_eq!(changes[0].is_live(), key.live);
            seen += 1;
        }
        assert!(seen > 20, "{seen}");
    }
}
