//! A configuration key as the tables of the parts declare it: name, type, range,
//! default and documentation. Parser, `glowd conf` and glowd.conf(5) all read it.

/// A key of a section.
#[derive(Debug)]
pub struct Key {
    /// Canonical name, flowd-go's where it has one.
    pub name: &'static str,
    /// Other names, of older configurations.
    pub aliases: &'static [&'static str],
    /// Type and range.
    pub kind: Kind,
    /// The default, as JSON text; it satisfies `kind`.
    pub default: &'static str,
    /// What it does, for glowd.conf(5): sentences in roff-free plain text.
    pub doc: &'static str,
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
    /// Of [`Kind::List`].
    List(Vec<String>),
}
