//! JSON (RFC 8259) with the place of every key and value. serde_json does the
//! parsing: a raw value is a slice of the text, so where it points is where it
//! stands.
//!
//! A value is opened one level at a time, by whoever knows what it has to be. So
//! nothing here recurses, however deep a text is nested.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess};
use serde_json::value::RawValue;

use super::problem::Problem;

/// A value that stands in a text, well formed but not opened yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'t> {
    /// Its first byte, from the start of the text.
    pub(super) at: usize,
    raw: &'t str,
}

/// A value, opened.
#[derive(Debug)]
pub(super) enum Json<'t> {
    Null,
    Bool(bool),
    /// As it was written.
    Number(&'t str),
    Text(String),
    List(Vec<Node<'t>>),
    /// In the order of the text, duplicates included.
    Object(Vec<Member<'t>>),
}

/// A key and its value.
#[derive(Debug)]
pub(super) struct Member<'t> {
    /// The key's first byte, from the start of the text.
    pub(super) at: usize,
    pub(super) key: String,
    pub(super) value: Node<'t>,
}

/// Checks that the whole of `text` is JSON.
pub(super) fn parse(text: &str) -> Result<Node<'_>, Problem> {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(raw) => Ok(Node { at: offset(text, raw.get()), raw: raw.get() }),
        Err(error) => {
            // serde_json counts bytes, and at the end of the text it may say 0.
            let lines = text.split_inclusive('\n').take(error.line().saturating_sub(1));
            let line_start: usize = lines.map(str::len).sum();
            let at = (line_start + error.column().saturating_sub(1)).min(text.len());
            let at = (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            let closes = text[at..].starts_with(['}', ']']);
            let message = if closes && text[..at].trim_end().ends_with(',') {
                "not JSON: a comma stands before the closing bracket".into()
            } else {
                format!("not JSON: {}", reason(&error))
            };
            Err(Problem { at, message })
        }
    }
}

impl<'t> Node<'t> {
    /// Opens the value by one level.
    ///
    /// # Errors
    /// A text in it is no Unicode (half of a surrogate pair).
    pub(super) fn open(&self) -> Result<Json<'t>, String> {
        let opened = match self.raw.as_bytes().first() {
            Some(b'n') => Ok(Json::Null),
            Some(b't') => Ok(Json::Bool(true)),
            Some(b'f') => Ok(Json::Bool(false)),
            Some(b'"') => serde_json::from_str(self.raw).map(Json::Text),
            Some(b'[') => serde_json::from_str::<Vec<&RawValue>>(self.raw)
                .map(|items| Json::List(items.into_iter().map(|item| self.inner(item)).collect())),
            Some(b'{') => serde_json::from_str::<Members<'_>>(self.raw).and_then(|members| {
                let member = |(key, value): &(&'t RawValue, &'t RawValue)| {
                    let name = serde_json::from_str(key.get())?;
                    Ok(Member { at: self.inner(key).at, key: name, value: self.inner(value) })
                };
                members.0.iter().map(member).collect::<Result<_, _>>().map(Json::Object)
            }),
            _ => Ok(Json::Number(self.raw)),
        };
        opened.map_err(|error| reason(&error))
    }

    /// Whether it is null.
    pub(super) fn is_null(&self) -> bool {
        self.raw == "null"
    }

    /// A value that stands inside this one.
    fn inner(&self, raw: &'t RawValue) -> Node<'t> {
        Node { at: self.at + offset(self.raw, raw.get()), raw: raw.get() }
    }
}

/// Where in `text` its slice `part` begins.
fn offset(text: &str, part: &str) -> usize {
    part.as_ptr().addr() - text.as_ptr().addr()
}

/// The message without the place, which is said in front.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

/// The members of an object, duplicates included.
struct Members<'t>(Vec<(&'t RawValue, &'t RawValue)>);

impl<'t> Deserialize<'t> for Members<'t> {
    fn deserialize<D: Deserializer<'t>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Visitor)
    }
}

struct Visitor;

impl<'t> de::Visitor<'t> for Visitor {
    type Value = Members<'t>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(text: &str) -> Vec<Member<'_>> {
        match parse(text).unwrap().open().unwrap() {
            Json::Object(members) => members,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn places_are_those_of_the_text() {
        let text = " { \"a\" : [1, \"x\"] ,\n\"b\\u0041\":{\"c\":null}, \"a\":2}";
        let members = members(text);
        let keys: Vec<_> = members.iter().map(|member| member.key.as_str()).collect();
        assert_eq!(keys, ["a", "bA", "a"], "duplicates stay");
        assert!(text[members[1].at..].starts_with("\"b\\u0041\""));
        let Json::List(items) = members[0].value.open().unwrap() else { panic!() };
        assert!(text[items[1].at..].starts_with("\"x\""));
        let Json::Object(inner) = members[1].value.open().unwrap() else { panic!() };
        assert!(text[inner[0].value.at..].starts_with("null"));
    }

    #[test]
    fn what_is_not_json_says_where() {
        for (text, at) in [
            ("", 0),
            ("{\"a\": 1,}", 8),
            ("{\"a\": 1} x", 9),
            ("{\n  a: 1}", 4),
            ("{\n", 2),
            ("{\"ä\" 1}", 6),
            ("{1: 2}", 1),
            ("// no", 0),
        ] {
            let problem = parse(text).unwrap_err();
            assert_eq!(problem.at, at, "{text:?}: {}", problem.message);
            assert!(problem.message.starts_with("not JSON: "), "{}", problem.message);
            assert!(!problem.message.contains(" line "), "{}", problem.message);
        }
    }

    #[test]
    fn depth_costs_nothing() {
        let deep = "[".repeat(400_000) + &"]".repeat(400_000);
        assert!(
            matches!(parse(&deep).unwrap().open().unwrap(), Json::List(items) if items.len() == 1)
        );
    }

    #[test]
    fn half_a_surrogate_pair_is_an_error() {
        parse("\"\\ud800\"").unwrap().open().unwrap_err();
    }
}
