//! Ranges of TCP and UDP ports. Pure.

use std::fmt;
use std::str::FromStr;

/// The ports from the first to the last, both included; none is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Whether the port is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// The smallest.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The largest.
    pub fn last(self) -> u16 {
        self.last
    }
}

impl FromStr for PortRange {
    type Err = String;

    /// Reads `port` or `first-last`.
    fn from_str(text: &str) -> Result<Self, String> {
        let port = |digits: &str| {
            let wrong = |shown: &dyn fmt::Display| format!("{shown} is not a port (1 to 65535)");
            // Digits only: Rust would take a plus sign.
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(wrong(&format_args!(
                    "{:?}",
                    digits.chars().take(20).collect::<String>()
                )));
            }
            match digits.parse() {
                Ok(port) if port != 0 => Ok(port),
                _ => Err(wrong(&digits.chars().take(20).collect::<String>())),
            }
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err("the first port is after the last".into());
        }
        Ok(PortRange { first, last })
    }
}

/// As it is read.
impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last != self.first {
            write!(f, "-{}", self.last)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_both_their_ends() {
        for (text, inside, outside) in
            [("1094", 1094, 1095), ("5000-5100", 5100, 5101), ("1-65535", 65535, 0), ("7-7", 7, 6)]
        {
            let range: PortRange = text.parse().unwrap();
            assert!(range.contains(inside) && !range.contains(outside), "{text}");
            assert_eq!(range.to_string().parse(), Ok(range));
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for (text, problem) in [
            ("", "\"\" is not a port (1 to 65535)"),
            ("0", "0 is not a port (1 to 65535)"),
            ("65536", "65536 is not a port (1 to 65535)"),
            ("+1", "\"+1\" is not a port (1 to 65535)"),
            ("1-", "\"\" is not a port (1 to 65535)"),
            ("1-2-3", "\"2-3\" is not a port (1 to 65535)"),
            ("2-1", "the first port is after the last"),
        ] {
            assert_eq!(text.parse::<PortRange>().unwrap_err(), problem);
        }
    }
}
