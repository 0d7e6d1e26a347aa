//! A configuration key as the tables of the parts declare it: name, type, range,
//! default and documentation. Parser, `glowd conf` and glowd.conf(5) all read it.

use serde::Serializer;

use super::Section;

/// A key of a section.
#[derive(Debug)]
pub struct Key {
    /// Canonical name, flowd-go's where it has one.
    pub name: &'static str,
    /// Other names, of older configurations.
    pub aliases: &'static [&'static str],
    /// Type and range.
    pub kind: Kind,
    /// The default, as JSON text; it satisfies `kind`. In a rule it is `null`: what
    /// is not given is no condition.
    pub default: &'static str,
    /// Whether a change is applied on reload (SIGHUP); others need a restart. Keys
    /// that a rule ties together are all live, or none of them is.
    pub live: bool,
    /// What it does, for glowd.conf(5): sentences in roff-free plain text.
    pub doc: &'static str,
}

impl Key {
    /// The address that a server listens on: loopback, unless told otherwise.
    pub const fn bind_address(doc: &'static str) -> Self {
        let (name, default) = ("bindAddress", "\"127.0.0.1\"");
        Key { name, aliases: &[], kind: Kind::Address, default, live: false, doc }
    }

    /// The TCP port that a server listens on.
    pub const fn port(
        name: &'static str,
        aliases: &'static [&'static str],
        default: &'static str,
    ) -> Self {
        let doc =
            "TCP port to listen on. With 0 the system chooses a free one, which the log tells \
                   at level info; that is useful for tests.";
        Key { name, aliases, kind: Kind::Int { min: 0, max: 65535 }, default, live: false, doc }
    }
}

/// The type of a value, with its range.
#[derive(Debug)]
pub enum Kind {
    /// true or false.
    Bool,
    /// A whole number in that range, both ends included.
    Int {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// Any text.
    Text,
    /// The path of a file; "" for none.
    Path,
    /// An IP address, without port.
    Address,
    /// File permissions as octal text, such as "0660".
    Mode,
    /// One of these, in any case.
    Choice(&'static [Choice]),
    /// A list of texts, or one text for a list of one.
    List,
    /// A name or a number, which is kept as text; "" for none.
    Word,
    /// Names and numbers, which are kept as texts: one, or a list of them.
    Words,
    /// TCP or UDP ports: a number, a text such as "5000-5100", or a list of them.
    Ports,
    /// IP prefixes or addresses: a text or a list of them.
    Prefixes,
    /// A list of objects with the keys of this table, of which none has to be given.
    Rules(&'static [Key]),
    /// An object of texts, whose keys may be anything.
    Map,
    /// An object with the keys of this table, or null: it is off then.
    Section(&'static [Key]),
    /// Has no effect any more: accepted with any value, and said to be so.
    Retired,
}

/// A value of [`Kind::Choice`].
#[derive(Debug)]
pub struct Choice {
    /// Canonical.
    pub name: &'static str,
    /// Other names, of older configurations.
    pub aliases: &'static [&'static str],
}

/// A value that has passed its key's table.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Value {
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Int`].
    Int(i64),
    /// Of the kinds that are text; a choice is canonical.
    Text(String),
    /// Of the kinds that are lists of texts, or may be.
    List(Vec<String>),
    /// Of [`Kind::Rules`]; each has the keys that were given.
    Rules(Vec<Section>),
    /// Of [`Kind::Map`], in the order of the text.
    Map(#[serde(serialize_with = "as_map")] Vec<(String, String)>),
    /// Of [`Kind::Section`].
    Section(Option<Section>),
}

fn as_map<S: Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(key, value)| (key, value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TOP;
    use crate::{backends, enrichers, plugins};

    fn distinct<'n>(place: &str, names: impl Iterator<Item = (&'n str, &'n [&'n str])>) {
        let mut seen: Vec<String> = Vec::new();
        for (name, aliases) in names {
            for name in aliases.iter().chain([&name]) {
                let name = name.to_ascii_lowercase();
                let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                assert!(name.bytes().all(legal), "{place}: {name}");
                assert!(!seen.contains(&name), "{place}: {name} twice");
                seen.push(name);
            }
        }
    }

    #[test]
    fn the_tables_are_sound() {
        let top = [("plugins", &[][..]), ("enrichers", &[]), ("backends", &[])];
        let names = |keys: &'static [Key]| keys.iter().map(|key| (key.name, key.aliases));
        distinct("top level", names(TOP).chain(top));
        distinct("plugins", plugins::ALL.iter().map(|spec| (spec.name, spec.aliases)));
        let enrichers = enrichers::ALL.iter().map(|spec| (spec.name, spec.aliases));
        distinct("enrichers", names(enrichers::KEYS).chain(enrichers));
        distinct("backends", backends::ALL.iter().map(|spec| (spec.name, spec.aliases)));

        let plugins = plugins::ALL.iter().map(|spec| (spec.name, spec.summary, spec.keys));
        let backends = backends::ALL.iter().map(|spec| (spec.name, spec.summary, spec.keys));
        let enrichers = enrichers::ALL.iter().map(|spec| (spec.name, spec.summary, spec.keys));
        for (part, summary, keys) in plugins.chain(enrichers).chain(backends) {
            assert!(!summary.is_empty() && !summary.ends_with('.'), "{part}: {summary:?}");
            distinct(part, names(keys));
        }
        let plugins = plugins::ALL.iter().flat_map(|spec| spec.keys);
        let backends = backends::ALL.iter().flat_map(|spec| spec.keys);
        let enrichers = enrichers::ALL.iter().flat_map(|spec| spec.keys).chain(enrichers::KEYS);
        for key in TOP.iter().chain(plugins).chain(enrichers).chain(backends) {
            let name = key.name;
            // Panics if it is not of its kind.
            let default = key.default_value();
            assert_eq!(default.is_none(), matches!(key.kind, Kind::Retired), "{name}");
            assert!(serde_json::from_str::<serde_json::Value>(key.default).is_ok(), "{name}");
            assert!(key.doc.ends_with('.') && key.doc.is_ascii(), "{name}: {}", key.doc);
            assert!(!key.doc.contains("  "), "{name}: {}", key.doc);
            if let Kind::Rules(keys) = &key.kind {
                distinct(name, names(keys));
                for key in *keys {
                    assert_eq!((key.default, key.live), ("null", true), "{name}: {}", key.name);
                    assert!(!matches!(key.kind, Kind::Retired | Kind::Rules(_)), "{}", key.name);
                    assert!(key.doc.ends_with('.') && key.doc.is_ascii(), "{}", key.name);
                }
            }
            if let Kind::Section(keys) = key.kind {
                distinct(name, names(keys));
                for inner in keys {
                    assert!(inner.default_value().is_some(), "{name}.{}", inner.name);
                    assert!(inner.doc.ends_with('.') && inner.doc.is_ascii(), "{}", inner.name);
                    assert_eq!(inner.live, key.live, "{name}.{}", inner.name);
                }
            }
            if let Kind::Choice(choices) = &key.kind {
                distinct(name, choices.iter().map(|choice| (choice.name, choice.aliases)));
                let canonical = choices.iter().any(|choice| {
                    default == Some(Value::Text(choice.name.to_owned()))
                        && key.default == format!("{:?}", choice.name)
                });
                assert!(canonical, "{name}: the default is not canonical");
            }
        }
    }
}
