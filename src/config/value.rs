//! Judges one value by the kind of its key.

use std::net::IpAddr;

use super::json::{Json, Member, Node};
use super::key::{Choice, Key, Kind, Value};
use super::nearest::nearest;
use super::problem::Problem;
use crate::net::ports::PortRange;
use crate::net::prefix::Prefix;

impl Kind {
    /// What a value of this kind is, for a message.
    fn expected(&self) -> String {
        match self {
            Kind::Bool => "true or false".into(),
            Kind::Int { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Text => "a text".into(),
            Kind::Path => "a path (a text)".into(),
            Kind::Address => "an IP address (a text, such as \"127.0.0.1\" or \"::1\")".into(),
            Kind::Mode => "octal permissions (a text, such as \"0660\")".into(),
            Kind::Choice(choices) => format!("one of {}", names(choices, ", ")),
            Kind::List => "a list of texts".into(),
            Kind::Word => "a name or a number".into(),
            Kind::Words => "a name or a number, or a list of them".into(),
            Kind::Ports => PORTS.into(),
            Kind::Prefixes => {
                "a prefix (a text, such as \"192.0.2.0/24\") or a list of them".into()
            }
            Kind::Rules(_) => "a list of objects".into(),
            Kind::Map => "an object of texts".into(),
            Kind::Section(_) => "an object ({} for the defaults)".into(),
            Kind::Retired => "anything".into(),
        }
    }

    /// The type as the man page shows it.
    pub fn type_name(&self) -> String {
        match self {
            Kind::Bool => "boolean".into(),
            Kind::Int { min, max } => format!("integer, {min} to {max}"),
            Kind::Text => "text".into(),
            Kind::Path => "path".into(),
            Kind::Address => "IP address".into(),
            Kind::Mode => "octal mode".into(),
            Kind::Choice(choices) => names(choices, " | "),
            Kind::List => "list of text".into(),
            Kind::Word => "name or number".into(),
            Kind::Words => "list of names and numbers".into(),
            Kind::Ports => "list of ports".into(),
            Kind::Prefixes => "list of prefixes".into(),
            Kind::Rules(_) => "list of objects".into(),
            Kind::Map => "object of text".into(),
            Kind::Section(_) => "object".into(),
            Kind::Retired => "any".into(),
        }
    }
}

const PORTS: &str = "a port, a range (a text, such as \"5000-5100\") or a list of them";

fn names(choices: &[Choice], between: &str) -> String {
    choices.iter().map(|choice| choice.name).collect::<Vec<_>>().join(between)
}

impl Key {
    /// Whether it is one of a rule: what is not given there has no value.
    pub(crate) fn is_of_a_rule(&self) -> bool {
        self.default == "null" && !matches!(self.kind, Kind::Section(_))
    }

    /// The value of the key where the configuration does not say. None: the key
    /// has no effect, or is one of a rule, so it has no value.
    ///
    /// # Panics
    /// The table is wrong; a test reads every default.
    pub fn default_value(&self) -> Option<Value> {
        if matches!(self.kind, Kind::Retired) || self.is_of_a_rule() {
            return None;
        }
        let value = super::json::parse(self.default).and_then(|node| judge(&self.kind, node));
        Some(
            value.unwrap_or_else(|problem| panic!("default of {}: {}", self.name, problem.message)),
        )
    }
}

/// The value of `kind` that stands at `node`, in its canonical form.
///
/// # Errors
/// It is none. The message lacks the key's path; that of an item of a list begins with its
/// place there, as in `[0]: `.
pub(super) fn judge(kind: &Kind, node: Node<'_>) -> Result<Value, Problem> {
    let at = node.at;
    let problem = |message: String| Problem { at, message };
    let json = node.open().map_err(&problem)?;
    let wrong = |json: &Json<'_>, expected: &str| problem(unexpected(json, expected));
    let value = match (kind, json) {
        (Kind::Bool, Json::Bool(value)) => Value::Bool(value),
        (Kind::Int { min, max }, Json::Number(number)) => match number.parse::<i64>() {
            Ok(value) if (*min..=*max).contains(&value) => Value::Int(value),
            Err(_) if number.contains(['.', 'e', 'E']) => {
                return Err(wrong(&Json::Number(number), &kind.expected()));
            }
            _ => {
                let number = shorten(number);
                return Err(problem(format!("{number} is out of range ({min} to {max})")));
            }
        },
        (Kind::List | Kind::Words | Kind::Ports | Kind::Prefixes, Json::List(nodes)) => {
            let texts = nodes.into_iter().enumerate().map(|(index, node)| {
                let text = node.open().and_then(|json| item(kind, json));
                text.map_err(|message| Problem {
                    at: node.at,
                    message: format!("[{index}]: {message}"),
                })
            });
            Value::List(texts.collect::<Result<_, _>>()?)
        }
        (Kind::List | Kind::Prefixes, Json::Text(text)) => {
            Value::List(vec![item(kind, Json::Text(text)).map_err(problem)?])
        }
        (Kind::Words | Kind::Ports, json @ (Json::Text(_) | Json::Number(_))) => {
            Value::List(vec![item(kind, json).map_err(problem)?])
        }
        // Whether the number is one that can be is for those to say who know its range.
        (Kind::Word, Json::Number(number)) if is_id(number) => Value::Text(number.to_owned()),
        // Those in a section are judged with it; this is for defaults.
        (Kind::Rules(_), Json::List(nodes)) if nodes.is_empty() => Value::Rules(Vec::new()),
        (
            Kind::Text | Kind::Path | Kind::Address | Kind::Mode | Kind::Choice(_) | Kind::Word,
            Json::Text(text),
        ) => Value::Text(judge_text(kind, text).map_err(problem)?),
        (Kind::Map, Json::Object(members)) => {
            let mut pairs: Vec<(String, String)> = Vec::with_capacity(members.len());
            for Member { at, key, value } in members {
                let wrong = |at| {
                    let key = format!("{:?}", shorten(&key));
                    move |message| Problem { at, message: format!("{key}: {message}") }
                };
                let text = value.open().and_then(|json| item(kind, json));
                let text = text.map_err(wrong(value.at))?;
                if pairs.iter().any(|(known, _)| *known == key) {
                    return Err(wrong(at)("given a second time".into()));
                }
                pairs.push((key, text));
            }
            Value::Map(pairs)
        }
        // Anything else in it is for who judges sections.
        (Kind::Section(_), Json::Null) => Value::Section(None),
        // A choice may have true and false among its names.
        (Kind::Choice(choices), Json::Bool(value))
            if choices.iter().any(|choice| choice.name == value.to_string()) =>
        {
            Value::Text(value.to_string())
        }
        (kind, json) => return Err(wrong(&json, &kind.expected())),
    };
    Ok(value)
}

fn judge_text(kind: &Kind, text: String) -> Result<String, String> {
    let wrong = |text: String| unexpected(&Json::Text(text), &kind.expected());
    if text.contains('\0') {
        return Err("contains a NUL character".into());
    }
    match kind {
        Kind::Address => {
            // flowd-go wants IPv6 in brackets.
            let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            match bare.unwrap_or(&text).parse::<IpAddr>() {
                Ok(address) if bare.is_none() || address.is_ipv6() => Ok(address.to_string()),
                _ => Err(wrong(text)),
            }
        }
        Kind::Mode => {
            let octal = (1..=4).contains(&text.len())
                && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
            match u32::from_str_radix(&text, 8) {
                Ok(mode) if octal && mode <= 0o777 => Ok(format!("{mode:04o}")),
                _ => Err(wrong(text)),
            }
        }
        Kind::Choice(choices) => {
            let known = |choice: &&Choice| {
                let mut names = choice.aliases.iter().chain([&choice.name]);
                names.any(|name| name.eq_ignore_ascii_case(&text))
            };
            if let Some(choice) = choices.iter().find(known) {
                return Ok(choice.name.to_owned());
            }
            let names =
                choices.iter().flat_map(|choice| [&choice.name].into_iter().chain(choice.aliases));
            let hint = match nearest(&text, names.copied()) {
                Some(name) => format!(": did you mean \"{name}\"?"),
                None => String::new(),
            };
            Err(wrong(text) + &hint)
        }
        _ => Ok(text),
    }
}

/// Whether a number is whole and not negative.
fn is_id(number: &str) -> bool {
    !number.contains(['.', 'e', 'E', '-'])
}

/// An item of a list of that kind, as text.
fn item(kind: &Kind, json: Json<'_>) -> Result<String, String> {
    let text = match (kind, json) {
        (_, Json::Text(text)) if text.is_empty() || text.contains('\0') => {
            return Err(unexpected(&Json::Text(text), "a text that is not empty"));
        }
        (_, Json::Text(text)) => text,
        (Kind::Ports, Json::Number(number)) => number.to_owned(),
        (Kind::Words, Json::Number(number)) if is_id(number) => number.to_owned(),
        (Kind::Words, json) => return Err(unexpected(&json, "a name or a number")),
        (Kind::Ports, json) => return Err(unexpected(&json, "a port or a range")),
        (_, json) => return Err(unexpected(&json, "a text")),
    };
    match kind {
        Kind::Ports => text.parse::<PortRange>().map(|range| range.to_string()),
        Kind::Prefixes => text.parse::<Prefix>().map(|prefix| prefix.to_string()),
        _ => return Ok(text),
    }
    .map_err(|problem| format!("{:?}: {problem}", shorten(&text)))
}

/// Says what was found and what should be there.
pub(super) fn unexpected(found: &Json<'_>, expected: &str) -> String {
    let found = match found {
        Json::Null => "null".into(),
        Json::Bool(value) => value.to_string(),
        Json::Number(number) => format!("the number {}", shorten(number)),
        Json::Text(text) => format!("the text {:?}", shorten(text)),
        Json::List(_) => "a list".into(),
        Json::Object(_) => "an object".into(),
    };
    format!("found {found}, expected {expected}")
}

/// What fits into a message.
pub(super) fn shorten(text: &str) -> String {
    shorten_to(60, text)
}

/// The first `longest` characters.
pub(super) fn shorten_to(longest: usize, text: &str) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::json::parse;

    const CHOICES: Kind = Kind::Choice(&[
        Choice { name: "label", aliases: &["flowLabel"] },
        Choice { name: "destination", aliases: &[] },
    ]);
    const PORT: Kind = Kind::Int { min: 1, max: 65535 };

    fn judged(kind: &Kind, text: &str) -> Result<Value, String> {
        judge(kind, parse(text).unwrap()).map_err(|problem| problem.message)
    }

    #[test]
    fn good_values_become_canonical() {
        let text = |text: &str| Value::Text(text.into());
        let map = Value::Map(vec![("b".into(), "1".into()), ("a".into(), "2".into())]);
        for (kind, json, value) in [
            (Kind::Bool, "true", Value::Bool(true)),
            (PORT, "65535", Value::Int(65535)),
            (Kind::Text, r#""""#, text("")),
            (Kind::Path, r#""/run/x""#, text("/run/x")),
            (Kind::Address, r#""127.0.0.1""#, text("127.0.0.1")),
            (Kind::Address, r#""[0:0::1]""#, text("::1")),
            (Kind::Mode, r#""660""#, text("0660")),
            (Kind::Mode, r#""0666""#, text("0666")),
            (CHOICES, r#""FLOWLABEL""#, text("label")),
            (Kind::List, r#""lo""#, Value::List(vec!["lo".into()])),
            (Kind::List, r#"["a", "b"]"#, Value::List(vec!["a".into(), "b".into()])),
            (Kind::List, "[]", Value::List(vec![])),
            (Kind::Word, "\"atlas\"", text("atlas")),
            (Kind::Word, "2", text("2")),
            (Kind::Words, "2", Value::List(vec!["2".into()])),
            (Kind::Words, r#"[2, "cms"]"#, Value::List(vec!["2".into(), "cms".into()])),
            (Kind::Ports, "1094", Value::List(vec!["1094".into()])),
            (Kind::Ports, r#"["1094-1095", 7]"#, Value::List(vec!["1094-1095".into(), "7".into()])),
            (Kind::Ports, "\"7-7\"", Value::List(vec!["7".into()])),
            (Kind::Prefixes, "\"::1\"", Value::List(vec!["::1/128".into()])),
            (Kind::Prefixes, "[]", Value::List(vec![])),
            (Kind::Map, "{}", Value::Map(vec![])),
            (Kind::Map, r#"{"b": "1", "a": "2"}"#, map),
            (Kind::Section(&[]), "null", Value::Section(None)),
        ] {
            assert_eq!(judged(&kind, json), Ok(value), "{json}");
        }
    }

    #[test]
    fn bad_values_say_what_was_found_and_what_is_expected() {
        for (kind, json, message) in [
            (Kind::Bool, "1", "found the number 1, expected true or false"),
            (Kind::Bool, "\"true\"", "found the text \"true\", expected true or false"),
            (PORT, "0", "0 is out of range (1 to 65535)"),
            (PORT, "70000", "70000 is out of range (1 to 65535)"),
            (PORT, "99999999999999999999", "99999999999999999999 is out of range (1 to 65535)"),
            (PORT, "-1", "-1 is out of range (1 to 65535)"),
            (PORT, "1.5", "found the number 1.5, expected a whole number from 1 to 65535"),
            (PORT, "1e3", "found the number 1e3, expected a whole number from 1 to 65535"),
            (PORT, "\"1\"", "found the text \"1\", expected a whole number from 1 to 65535"),
            (Kind::Text, "null", "found null, expected a text"),
            (Kind::Path, "{}", "found an object, expected a path (a text)"),
            (Kind::Path, r#""a\u0000b""#, "contains a NUL character"),
            (Kind::List, "[1]", "[0]: found the number 1, expected a text"),
            (Kind::Word, "2.5", "found the number 2.5, expected a name or a number"),
            (Kind::Word, "[2]", "found a list, expected a name or a number"),
            (Kind::Words, "[2, 2.5]", "[1]: found the number 2.5, expected a name or a number"),
            (Kind::Ports, "true", "found true, expected a port, a range (a text, such as \"5000-5100\") or a list of them"),
            (Kind::Ports, "0", "\"0\": 0 is not a port (1 to 65535)"),
            (Kind::Ports, "[1, 1e3]", "[1]: \"1e3\": \"1e3\" is not a port (1 to 65535)"),
            (Kind::Ports, "[1, null]", "[1]: found null, expected a port or a range"),
            (Kind::Ports, "\"9-8\"", "\"9-8\": the first port is after the last"),
            (Kind::Prefixes, "[\"::1\", \"x\"]", "[1]: \"x\": \"x\" is not an IP address"),
            (
                Kind::List,
                r#"["lo", ""]"#,
                "[1]: found the text \"\", expected a text that is not empty",
            ),
            (Kind::List, "true", "found true, expected a list of texts"),
            (Kind::Map, "[]", "found a list, expected an object of texts"),
            (Kind::Map, r#"{"a": 1}"#, "\"a\": found the number 1, expected a text"),
            (Kind::Map, r#"{"a": "1", "a": "1"}"#, "\"a\": given a second time"),
            (
                CHOICES,
                "\"lable\"",
                "found the text \"lable\", expected one of label, destination: did you mean \
                 \"label\"?",
            ),
            (CHOICES, "[]", "found a list, expected one of label, destination"),
        ] {
            assert_eq!(judged(&kind, json).unwrap_err(), message, "{json}");
        }
        for (kind, json) in [
            (Kind::Address, "\"localhost\""),
            (Kind::Address, "\"[127.0.0.1]\""),
            (Kind::Address, "\"\""),
            (Kind::Mode, "\"0680\""),
            (Kind::Mode, "\"07777\""),
            (Kind::Mode, "\"1777\""),
            (Kind::Mode, "\"+66\""),
            (Kind::Mode, "\"\""),
            (Kind::Mode, "660"),
        ] {
            judged(&kind, json).unwrap_err();
        }
    }

    #[test]
    fn long_values_are_cut_in_messages() {
        let message = judged(&Kind::Bool, &format!("{:?}", "ä".repeat(10_000))).unwrap_err();
        assert!(message.contains("ä...\""), "{message}");
        assert!(message.chars().count() < 120, "{message}");
    }
}
