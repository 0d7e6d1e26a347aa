//! The header that precedes the document in a datagram: that of an RFC 5424 syslog
//! message. Pure.

use std::io::{self, Write};

use crate::flow::Timestamp;

/// Appends the header of a firefly of glowd's, for a host whose name is safe.
pub(super) fn write(out: &mut Vec<u8>, now: Timestamp, host: &str) -> io::Result<()> {
    // Facility local0, severity info. Exactly one space between the fields: the
    // collector drops what its pattern does not match.
    write!(out, "<134>1 {now} {host} glowd - firefly-json - ")
}

/// Splits a datagram that begins with a header before its document, which begins
/// with the first brace outside of the header's structured data. None: it does not
/// begin with a priority, or no document follows.
///
/// What is between the two is not judged: flowd-go leaves the time empty, XRootD
/// writes `-` for it, relays put other words in, and nothing of it is believed.
pub(super) fn split(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = datagram.strip_prefix(b"<")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=3).contains(&digits) || rest.get(digits) != Some(&b'>') {
        return None;
    }
    // Values of structured data may have braces in them (RFC 5424 section 6.3).
    let (mut in_element, mut in_value, mut escaped) = (false, false, false);
    for (at, byte) in datagram.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_value => escaped = true,
            b'"' if in_element => in_value = !in_value,
            b'[' if !in_value => in_element = true,
            b']' if !in_value => in_element = false,
            b'{' if !in_element => return Some(datagram.split_at(at)),
            _ => {}
        }
    }
    None
}

/// The APP-NAME of a header: the word two before the message id of fireflies.
pub(super) fn app_name(header: &[u8]) -> Option<&[u8]> {
    let mut words = header.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (mut app, mut process) = (words.next()?, words.next()?);
    for word in words {
        if word == b"firefly-json" {
            return Some(app);
        }
        (app, process) = (process, word);
    }
    None
}

/// The name of a host as a HOSTNAME that the collector's pattern takes whole:
/// labels of letters, digits and inner hyphens, up to 63 octets each and 255 in
/// all. Anything else becomes a hyphen; `-`, the nil value, if nothing is left.
pub(super) fn safe_hostname(name: &[u8]) -> String {
    let mut safe = String::new();
    for label in name.split(|byte| *byte == b'.') {
        let byte = |byte: &u8| if byte.is_ascii_alphanumeric() { char::from(*byte) } else { '-' };
        let label: String = label.iter().take(63).map(byte).collect();
        let label = label.trim_matches('-');
        if label.is_empty() {
            continue;
        }
        if safe.len() + 1 + label.len() > 255 {
            break;
        }
        if !safe.is_empty() {
            safe.push('.');
        }
        safe.push_str(label);
    }
    if safe.is_empty() {
        safe.push('-');
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_found_behind_all_kinds_of_headers() {
        for (header, app) in [
            ("<134>1 2021-09-22T11:12:27.808092+00:00 host flowd - firefly-json - ", "flowd"),
            ("<134>1  host flowd-go-2.4.2 - firefly-json - ", "flowd-go-2.4.2"),
            ("<134>1 - host xrootd - firefly-json - ", "xrootd"),
            ("<134>1   -\t host   dCache  -  firefly-json  -  ", "dCache"),
            ("<134>1 - no idea! flowd-go - firefly-json - ", "flowd-go"),
            ("<134>1 - [::1] x - firefly-json - ", "x"),
            ("<134>1 - h x - firefly-json [a@1 b=\"{\\\"]{\" c=\"]\"][d@2] ", "x"),
            ("<134>1 - h x - firefly-json - \u{feff}", "x"),
        ] {
            let datagram = format!("{header}{{}}");
            let (found, document) = split(datagram.as_bytes()).expect(header);
            assert_eq!((found, document), (header.as_bytes(), &b"{}"[..]), "{header}");
            assert_eq!(app_name(found), Some(app.as_bytes()), "{header}");
        }
        let (header, _) = split(b"<14>Feb  1 18:54:27 host flowd: {}").expect("of RFC 3164");
        assert_eq!(app_name(header), None);
        for none in ["", "{}", "<", "<>1 {}", "<1234>1 {}", "<134", "<134>1 - h [ {}", "x<1>{}"] {
            assert_eq!(split(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn hostnames_are_made_safe() {
        let long = "a".repeat(100);
        let deep = "abcdefghi.".repeat(30);
        let rows: [(&[u8], &str); 12] = [
            (b"se1.example.org", "se1.example.org"),
            (b"se1.example.org.", "se1.example.org"),
            (b"red_gridftp10", "red-gridftp10"),
            (b"two words", "two-words"),
            (b"_dmarc.-a-.example", "dmarc.a.example"),
            (b"a..b", "a.b"),
            (b"", "-"),
            (b"_", "-"),
            (b"\xff\x00\n.x", "x"),
            ("büro".as_bytes(), "b--ro"),
            (long.as_bytes(), &long[..63]),
            (deep.as_bytes(), &deep[..249]),
        ];
        for (name, safe) in rows {
            assert_eq!(safe_hostname(name), safe, "{name:?}");
        }
    }
}
