//! The grammar of a line of the named pipe (spec section 5.1): bytes in, flow
//! event out. Pure, and without allocation for a good line; it owns nothing and
//! runs on the plugin's thread.
//!
//! ```text
//! state protocol source-address source-port destination-address destination-port experiment activity
//! ```
//!
//! Fields are separated by any white space; state and protocol are written in any
//! case. Experiment and activity are ids or registered names; a name may have blanks,
//! since the activity ends the line. `end` may leave out both, since the flow's own
//! tag counts then: its event carries the smallest valid tag. Lines without a field and those that
//! begin with `#` mean nothing.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::flow::{FlowEvent, FlowId, FlowState, Protocol, Tag};
use crate::registry::Registry;

/// What the fields are called in messages, in their order.
const FIELDS: [&str; 8] = [
    "state",
    "protocol",
    "source address",
    "source port",
    "destination address",
    "destination port",
    "experiment",
    "activity",
];

/// How many of them an end needs.
const WITHOUT_IDS: usize = 6;

/// What is wrong with a line. Formatted only if somebody wants to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault<'a> {
    /// The line is not UTF-8 from that byte on, counted from 1.
    Encoding(usize),
    /// It has that many fields.
    Count(usize),
    /// A field is not what it has to be.
    Field {
        /// Which one, counted from 1.
        number: usize,
        /// What it says.
        text: &'a str,
        /// What is wrong with that.
        why: &'static str,
    },
    /// A field is one of its kind, but its value cannot be.
    Value {
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong.
        why: String,
    },
}

impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Encoding(at) => write!(f, "byte {at} is not UTF-8"),
            Fault::Count(count) => {
                let s = if *count == 1 { "" } else { "s" };
                write!(f, "{count} field{s}, not {} ({})", FIELDS.len(), FIELDS.join(", "))
            }
            Fault::Field { number, text, why } => {
                let name = FIELDS[number - 1];
                write!(f, "field {number} ({name}): {} {why}", Quoted(text.as_bytes()))
            }
            Fault::Value { number, why } => {
                write!(f, "field {number} ({}): {why}", FIELDS[number - 1])
            }
        }
    }
}

/// Outside bytes as they may stand in a log: in quotes, on one line, escaped, and
/// not longer than the eye takes in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quoted<'a>(pub(super) &'a [u8]);

impl Quoted<'_> {
    /// How many bytes are shown.
    const SHOWN: usize = 100;
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(Self::SHOWN)];
        let rest = if shown.len() < self.0.len() { "..." } else { "" };
        write!(f, "\"{}\"{rest}", shown.escape_ascii())
    }
}

/// The flow event that a line says, if it says one. The line comes without its
/// newline.
///
/// # Errors
/// It says none and is neither empty nor a comment.
pub fn parse<'l>(line: &'l [u8], registry: &Registry) -> Result<Option<FlowEvent>, Fault<'l>> {
    let text = match std::str::from_utf8(line) {
        Ok(text) => text.trim(),
        // A comment may be in whatever encoding its author has.
        Err(_) if line.trim_ascii_start().starts_with(b"#") => return Ok(None),
        Err(error) => return Err(Fault::Encoding(error.valid_up_to() + 1)),
    };
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let mut fields = [""; FIELDS.len()];
    let mut count = 0;
    for word in text.split_whitespace() {
        if let Some(field) = fields.get_mut(count) {
            *field = word;
        }
        count += 1;
    }
    // Names of activities have blanks, and nothing follows them.
    let mut activity = Cow::Borrowed(fields[7]);
    if count > FIELDS.len() && number(&activity).is_none() {
        activity = text.split_whitespace().skip(7).collect::<Vec<_>>().join(" ").into();
        count = FIELDS.len();
    }
    let state = FlowState::parse(fields[0]).filter(|state| *state != FlowState::Ongoing);
    let has_ids = count == FIELDS.len();
    if !has_ids && (count, state) != (WITHOUT_IDS, Some(FlowState::End)) {
        return Err(Fault::Count(count));
    }
    let fault = |number: usize, why| Fault::Field { number, text: fields[number - 1], why };

    let state = state.ok_or_else(|| {
        let ongoing = fields[0].eq_ignore_ascii_case("ongoing");
        fault(1, if ongoing { "cannot be said here, only start and end" } else { NO_STATE })
    })?;
    let protocol =
        Protocol::parse(fields[1]).ok_or_else(|| fault(2, "is neither \"tcp\" nor \"udp\""))?;
    let end = |at: usize| {
        let ip = address(fields[at - 1]).ok_or_else(|| fault(at, "is not an IP address"))?;
        let port = number(fields[at])
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)
            .ok_or_else(|| fault(at + 1, "is not a port (1 to 65535)"))?;
        Ok(SocketAddr::new(ip, port))
    };
    let (src, dst) = (end(3)?, end(5)?);
    // The ports are good, so it can only be the families.
    let id = FlowId::new(protocol, src, dst).map_err(|why| Fault::Value { number: 5, why })?;
    let tag = if has_ids {
        let value = |number| move |why| Fault::Value { number, why };
        let experiment = registry.experiment(word(fields[6]).map_err(value(7))?);
        let experiment = experiment.map_err(value(7))?;
        registry.activity(experiment, word(&activity).map_err(value(8))?).map_err(value(8))?
    } else {
        Tag::new(1, 0).map_err(|why| Fault::Value { number: 7, why })?
    };
    Ok(Some(FlowEvent { state, id, tag, time: None, application: None, usage: None }))
}

/// A word that may be an id or a name. Names that do not pass here cannot be said in a
/// line, but by their ids.
fn word(text: &str) -> Result<&str, String> {
    if text.len() <= 128 && text.is_ascii() {
        return Ok(text);
    }
    Err(format!("{} is neither a number nor a registered name", Quoted(text.as_bytes())))
}

const NO_STATE: &str = "is neither \"start\" nor \"end\"";

/// An address as people write it: IPv6 also in brackets, or with a zone index
/// (RFC 4007 section 11), which says nothing about the flow's packets.
fn address(text: &str) -> Option<IpAddr> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match (bracketed, bracketed.unwrap_or(text).split_once('%')) {
        (None, None) => text.parse().ok(),
        (Some(inner), None) => inner.parse().ok().map(Ipv6Addr::into),
        (_, Some((_, ""))) => None,
        (_, Some((ip, _))) => ip.parse().ok().map(Ipv6Addr::into),
    }
}

/// A decimal number without sign. One that is too large for 64 bits is too large
/// for every range as well.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[u8]) -> Result<Option<FlowEvent>, Fault<'_>> {
        super::parse(line, &Registry::snapshot())
    }

    fn event(line: &str) -> FlowEvent {
        match parse(line.as_bytes()) {
            Ok(Some(event)) => event,
            other => panic!("{line:?} is {other:?}"),
        }
    }

    fn shown(line: &str) -> String {
        let FlowEvent { state, id, tag, .. } = event(line);
        format!("{} {id} {} {}", state.name(), tag.experiment(), tag.activity())
    }

    fn fault(line: &[u8]) -> String {
        parse(line).expect_err("a fault").to_string()
    }

    #[test]
    fn good_lines() {
        let v4 = "start tcp 10.0.0.1:1 -> 10.0.0.2:2 3 4";
        let v6 = "end udp [2001:db8::1]:65535 -> [2001:db8::2]:1 511 63";
        let local = "start tcp [fe80::1]:1 -> [fe80::2]:2 1 0";
        let rows = [
            ("start tcp 10.0.0.1 1 10.0.0.2 2 3 4", v4),
            ("START Tcp 10.0.0.1 1 10.0.0.2 2 3 4\r", v4),
            ("\t start \t tcp\t10.0.0.1  1 10.0.0.2\u{b}2\u{c}3\u{a0}4  ", v4),
            ("start tcp ::ffff:10.0.0.1 1 10.0.0.2 2 3 4", v4),
            ("start tcp 10.0.0.1 1 [::ffff:10.0.0.2] 00002 0003 4", v4),
            ("end udp 2001:db8::1 65535 2001:DB8:0::2 1 511 63", v6),
            ("end udp [2001:db8::1] 65535 [2001:db8::2] 1 511 63", v6),
            ("start tcp 10.0.0.1 1 10.0.0.2 2 CMS Data  challenge", v4),
            ("start tcp 10.0.0.1 1 10.0.0.2 2 3 data Challenge\r", v4),
            ("start tcp fe80::1%eth0 1 fe80::2%2 2 1 0", local),
            ("start tcp [fe80::1%eth0] 1 fe80::2 2 1 0", local),
        ];
        for (line, expected) in rows {
            assert_eq!(shown(line), expected, "{line:?}");
        }
        let event = event("start tcp 10.0.0.1 1 10.0.0.2 2 3 4");
        assert_eq!((event.time, event.application), (None, None));
    }

    #[test]
    fn an_end_needs_no_ids() {
        assert_eq!(shown("End tcp ::1 1 ::2 2"), "end tcp [::1]:1 -> [::2]:2 1 0");
        assert!(fault(b"start tcp ::1 1 ::2 2").starts_with("6 fields, not 8 (state, protocol,"));
        assert!(fault(b"end tcp ::1 1 ::2 2 3").starts_with("7 fields, not 8"));
    }

    #[test]
    fn lines_that_mean_nothing() {
        let comment = b" # caf\xe9";
        for line in [&b""[..], b" \t\r", "\u{a0}\u{b}".as_bytes(), b"#", b"  # a", comment] {
            assert_eq!(parse(line), Ok(None), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn bad_lines_are_told_which_field_is_wrong() {
        let rows = [
            ("hello", "1 field, not 8 (state, protocol, "),
            ("start tcp ::1 1 ::2 2 3 4 5", "9 fields, not 8"),
            ("restart tcp ::1 1 ::2 2 3 4", r#"field 1 (state): "restart" is neither "start" nor"#),
            ("Ongoing tcp ::1 1 ::2 2 3 4", r#"field 1 (state): "Ongoing" cannot be said here"#),
            ("start sctp ::1 1 ::2 2 3 4", r#"field 2 (protocol): "sctp" is neither "tcp" nor"#),
            (
                "start tcp 10.0.0 1 10.0.0.2 2 3 4",
                r#"field 3 (source address): "10.0.0" is not an IP address"#,
            ),
            ("start tcp [10.0.0.1] 1 10.0.0.2 2 3 4", "field 3 (source address): "),
            ("start tcp 10.0.0.1%1 1 10.0.0.2 2 3 4", "field 3 (source address): "),
            ("start tcp fe80::1% 1 fe80::2 2 3 4", "field 3 (source address): "),
            ("start tcp [::1 1 ::2 2 3 4", "field 3 (source address): "),
            (
                "start tcp ::1 0 ::2 2 3 4",
                r#"field 4 (source port): "0" is not a port (1 to 65535)"#,
            ),
            ("start tcp ::1 +1 ::2 2 3 4", r#"field 4 (source port): "+1" is not a port"#),
            ("start tcp ::1 1 host 2 3 4", r#"field 5 (destination address): "host" is not an IP"#),
            (
                "start tcp ::1 1 10.0.0.2 2 3 4",
                "field 5 (destination address): source ::1 and destination 10.0.0.2 are of two",
            ),
            ("start tcp ::1 1 ::2 65536 3 4", r#"field 6 (destination port): "65536" is not a"#),
            (
                "start tcp ::1 1 ::2 2 csm 4",
                r#"field 7 (experiment): "csm" is no experiment: did you mean "cms"?"#,
            ),
            ("start tcp ::1 1 ::2 2 0 4", "field 7 (experiment): experiment 0 is out of range"),
            (
                "end tcp ::1 1 ::2 2 99999 99999",
                "field 7 (experiment): experiment 99999 is out of range (1 to 511)",
            ),
            (
                "start tcp ::1 1 ::2 2 3 -4",
                r#"field 8 (activity): "-4" is no activity of cms: registered"#,
            ),
            ("start tcp ::1 1 ::2 2 3 64", "field 8 (activity): activity 64 is out of range"),
            (
                "start tcp ::1 1 ::2 2 3 99999999999999999999999",
                "field 8 (activity): activity 18446744073709551615 is out of range",
            ),
            (
                "start tcp ::1 1 ::2 2 \u{e4}tlas 4",
                r#"field 7 (experiment): "\xc3\xa4tlas" is neither a number nor a reg"#,
            ),
            (
                "start tcp ::1 1 ::2 2 cms Data Challange",
                "field 8 (activity): \"Data Challange\" is",
            ),
            ("start\0tcp ::1 1 ::2 2 3 4 5", r#"field 1 (state): "start\x00tcp" is neither"#),
        ];
        for (line, expected) in rows {
            let fault = fault(line.as_bytes());
            assert!(fault.starts_with(expected), "{line:?}: {fault}");
        }
        assert_eq!(fault(b"start tcp \xff"), "byte 11 is not UTF-8");
    }

    #[test]
    fn quotes_are_short_and_harmless() {
        assert_eq!(Quoted(b"a\x1b[2J\"\n").to_string(), r#""a\x1b[2J\"\n""#);
        let long = Quoted(&[b'x'; 4096]).to_string();
        assert_eq!(long, format!("\"{}\"...", "x".repeat(100)));
    }
}
