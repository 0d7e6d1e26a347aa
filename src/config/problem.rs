//! What is wrong with a configuration, and where.

use std::fmt;

use log::Level;

/// A place in a text, as editors count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub col: usize,
}

impl Position {
    /// The place of the byte at `offset` of `text`.
    pub fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Position {
            line: before.bytes().filter(|byte| *byte == b'\n').count() + 1,
            col: before[line_start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.col)
    }
}

/// A reason to refuse the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, in bytes from the start of the text.
    pub at: usize,
    /// What, with the full path of the key in front.
    pub message: String,
}

/// Something that the operator should know of a configuration that is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How urgently: info or warn.
    pub level: Level,
    /// What, with file and place in front.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_that_an_editor_shows() {
        let text = "{\n  \"ä\": 1\n}";
        let at = |what| Position::of(text, text.find(what).unwrap()).to_string();
        assert_eq!(at("{"), "1:1");
        assert_eq!(at("\"ä"), "2:3");
        assert_eq!(at("1"), "2:8");
        assert_eq!(at("}"), "3:1");
        assert_eq!(Position::of(text, text.len()).to_string(), "3:2");
    }
}
