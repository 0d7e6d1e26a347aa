//! A section of the configuration after it has been judged: a value for every key
//! of its table.

use std::net::IpAddr;

use super::key::Value;

/// The values of a part, by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    path: String,
    values: Vec<(&'static str, Value)>,
}

/// The getters panic if the key is not in the part's table, or of another kind:
/// that is a bug, and every part's test that builds it would meet it.
impl Section {
    /// A section at `path`, such as `plugins.api`, of values that were judged.
    pub fn new(path: impl Into<String>, values: Vec<(&'static str, Value)>) -> Self {
        Section { path: path.into(), values }
    }

    /// Where it stands, such as `plugins.api`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// All keys and values, in the order of the table.
    pub fn values(&self) -> &[(&'static str, Value)] {
        &self.values
    }

    /// A true or false.
    pub fn bool(&self, key: &str) -> bool {
        match self.get(key) {
            Value::Bool(value) => *value,
            other => panic!("{}.{key} is {other:?}", self.path),
        }
    }

    /// A number. `T` has to hold the whole range of the key.
    pub fn int<T: TryFrom<i64>>(&self, key: &str) -> T {
        match self.get(key) {
            Value::Int(value) => T::try_from(*value)
                .unwrap_or_else(|_| panic!("{}.{key}: {value} does not fit", self.path)),
            other => panic!("{}.{key} is {other:?}", self.path),
        }
    }

    /// A text, path or choice.
    pub fn text(&self, key: &str) -> &str {
        match self.get(key) {
            Value::Text(value) => value,
            other => panic!("{}.{key} is {other:?}", self.path),
        }
    }

    /// A list of texts.
    pub fn list(&self, key: &str) -> &[String] {
        match self.get(key) {
            Value::List(value) => value,
            other => panic!("{}.{key} is {other:?}", self.path),
        }
    }

    /// A list of rules.
    pub fn rules(&self, key: &str) -> &[Section] {
        match self.get(key) {
            Value::Rules(value) => value,
            other => panic!("{}.{key} is {other:?}", self.path),
        }
    }

    /// An object of texts.
    pub fn map(&self, key: &str) -> &[(String, String)] {
        match self.get(key) {
            Value::Map(value) => value,
            other => panic!("{}.{key} is {other:?}", self.path),
        }
    }

    /// A section inside this one; none: it is off.
    pub fn section(&self, key: &str) -> Option<&Section> {
        match self.get(key) {
            Value::Section(value) => value.as_ref(),
            other => panic!("{}.{key} is {other:?}", self.path),
        }
    }

    /// Whether the key has a value: in a rule only those have one that were given.
    pub fn has(&self, key: &str) -> bool {
        self.values.iter().any(|(name, _)| *name == key)
    }

    /// An IP address.
    pub fn address(&self, key: &str) -> IpAddr {
        let text = self.text(key);
        text.parse().unwrap_or_else(|_| panic!("{}.{key} is {text:?}", self.path))
    }

    /// File permissions.
    pub fn mode(&self, key: &str) -> u32 {
        let text = self.text(key);
        u32::from_str_radix(text, 8).unwrap_or_else(|_| panic!("{}.{key} is {text:?}", self.path))
    }

    /// Another value for a key that it has.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        if let Some((_, old)) = self.values.iter_mut().find(|(name, _)| *name == key) {
            *old = value;
        }
    }

    fn get(&self, key: &str) -> &Value {
        let found = self.values.iter().find(|(name, _)| *name == key);
        &found.unwrap_or_else(|| panic!("{} has no key {key}", self.path)).1
    }
}
