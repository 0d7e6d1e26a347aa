//! Whom a request was meant for, by its Host (RFC 9110 section 7.2). Pure.
//!
//! A web page can make a name of its own resolve to 127.0.0.1 (DNS rebinding). The
//! browser then takes a server on loopback for the page's own, and says neither
//! `Origin` nor `Sec-Fetch-Site: cross-site`. What it cannot change is the name in
//! the Host: a server on loopback that answers to addresses and `localhost` only
//! is out of reach.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The authority, if it has one, and the path of a request's target (RFC 9112
/// section 3.2). A target of another form is returned as a path, and no route will
/// match it.
pub fn split_target(target: &str) -> (Option<&str>, &str) {
    let (mut authority, mut path) = (None, target);
    let scheme = target.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"));
    if let Some(scheme) = scheme {
        let rest = &target[scheme.len()..];
        let (before, after) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        (authority, path) = (Some(before), after);
    }
    match path.split_once('?').map_or(path, |(path, _)| path) {
        "" => (authority, "/"),
        path => (authority, path),
    }
}

/// Whether a Host, or the authority of a target, names its host without DNS: by an
/// IP address (IPv6 in brackets) or as `localhost`, with a port or without.
pub fn needs_no_dns(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    if let Some(rest) = host.strip_prefix('[') {
        let Some((ip, port)) = rest.split_once(']') else { return false };
        return ip.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || is_port(port));
    }
    let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
    // A dot at the end is the root of DNS, to which `localhost` belongs no less.
    let local = name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case("localhost");
    (local || name.parse::<Ipv4Addr>().is_ok()) && (port.is_empty() || is_port(port))
}

/// A colon and digits, which may be none (RFC 3986 section 3.2.3).
fn is_port(text: &str) -> bool {
    let digits = text.strip_prefix(':');
    digits.is_some_and(|digits| digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_out_of_targets() {
        for (target, authority, path) in [
            ("/", None, "/"),
            ("/flow?a=/b?c", None, "/flow"),
            ("http://h:1/flow?x", Some("h:1"), "/flow"),
            ("HTTP://h", Some("h"), "/"),
            ("http://h?x", Some("h"), "/"),
            ("http:///x", Some(""), "/x"),
            ("*", None, "*"),
            ("h:443", None, "h:443"),
            ("?", None, "/"),
        ] {
            assert_eq!(split_target(target), (authority, path), "{target}");
        }
    }

    #[test]
    fn only_addresses_and_localhost_need_no_dns() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:7777",
            "192.0.2.1:80",
            "[::1]",
            "[::1]:7777",
            "[::ffff:127.0.0.1]:1",
            "localhost",
            "localhost:7777",
            "LocalHost.",
            "localhost.:7777",
            "localhost:",
        ] {
            assert!(needs_no_dns(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            ".",
            ":7777",
            "glowd",
            "example.org:7777",
            "localhost.example.org",
            "evil.localhost",
            "localhost..",
            "127.0.0.1.example.org",
            "127.1",
            "0x7f000001",
            "localhost@example.org",
            "example.org@localhost",
            "localhost:7777@example.org",
            "localhost:example.org",
            "localhost:1:2",
            "::1",
            "[::1",
            "[::1]x",
            "[::1]7777",
            "[127.0.0.1]",
            "[localhost]",
            "127.0.0.1, example.org",
            "127.0.0.1 example.org",
        ] {
            assert!(!needs_no_dns(host.as_bytes()), "{host}");
        }
        assert!(!needs_no_dns(b"localhost\xff"));
    }
}
