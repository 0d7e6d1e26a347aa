//! Whom fireflies are for: which of the flows' destinations can take one, and how
//! collectors are named in the configuration.
//!
//! Pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::firefly::PORT;

/// A collector as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collector {
    /// By address.
    Literal(SocketAddr),
    /// By name, lower case, or by an address with the name of its zone: its
    /// addresses have to be looked up.
    Named {
        /// As the resolver wants it.
        host: String,
        /// UDP port.
        port: u16,
    },
}

impl Collector {
    /// Reads `host`, `host:port`, `[v6]` or `[v6]:port`.
    ///
    /// # Errors
    /// Says what is wrong, without the text itself.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_or(text, PORT)
    }

    /// The same, of another service with another default port.
    ///
    /// # Errors
    /// The same.
    pub fn parse_or(text: &str, default_port: u16) -> Result<Self, String> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or("the closing ] is missing")?;
                if !host.contains(':') {
                    return Err(format!("{host:?} is not an IPv6 address"));
                }
                match port.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if port.is_empty() => (host, None),
                    None => return Err(format!("{port:?} is not :port")),
                }
            }
            None => match text.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err("an IPv6 address has to be in brackets".into());
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            None => default_port,
            // Digits only: Rust would take a plus sign.
            Some(port) => Some(port)
                .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|port| port.parse().ok())
                .filter(|port| *port != 0)
                .ok_or_else(|| format!("port {port:?} is not a port (1 to 65535)"))?,
        };
        Self::new(host, port)
    }

    /// A collector by its host's name or address, which needs no brackets.
    ///
    /// # Errors
    /// Says what is wrong with the host.
    pub fn new(host: &str, port: u16) -> Result<Self, String> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            if !takes_fireflies(ip) {
                return Err(format!("{ip} is not the address of one host"));
            }
            return Ok(Collector::Literal(SocketAddr::new(ip, port)));
        }
        if host.contains(':') {
            let zoned = host.split_once('%').is_some_and(|(ip, zone)| {
                ip.parse::<Ipv6Addr>().is_ok() && !zone.is_empty() && is_plain(zone)
            });
            if !zoned {
                return Err(format!("{host:?} is not an IPv6 address"));
            }
            return Ok(Collector::Named { host: host.into(), port });
        }
        let labels_are_good = host
            .strip_suffix('.')
            .unwrap_or(host)
            .split('.')
            .all(|label| (1..=63).contains(&label.len()) && is_plain(label));
        if !labels_are_good || host.len() > 253 {
            return Err(format!("{host:?} is not the name of a host"));
        }
        // The resolver would take 10.1 for 10.0.0.1.
        if host.rsplit('.').next().is_some_and(|last| last.parse::<u64>().is_ok()) {
            return Err(format!("{host:?} is not an IPv4 address"));
        }
        Ok(Collector::Named { host: host.to_ascii_lowercase(), port })
    }
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Collector::Literal(address) => address.fmt(f),
            Collector::Named { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Collector::Named { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Whether the address is that of one host. A datagram to any other would reach
/// many, or nobody.
pub fn takes_fireflies(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !ip.is_multicast() && !ip.is_unspecified() && !broadcast
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(text: &str) -> Collector {
        Collector::Literal(text.parse().unwrap())
    }

    fn named(host: &str, port: u16) -> Collector {
        Collector::Named { host: host.into(), port }
    }

    #[test]
    fn collectors_are_read() {
        for (text, collector) in [
            ("10.0.0.1", literal("10.0.0.1:10514")),
            ("10.0.0.1:514", literal("10.0.0.1:514")),
            ("[2001:db8::1]", literal("[2001:db8::1]:10514")),
            ("[2001:db8::1]:65535", literal("[2001:db8::1]:65535")),
            ("[::ffff:10.0.0.1]:1", literal("10.0.0.1:1")),
            ("[fe80::1%eth0]:1", named("fe80::1%eth0", 1)),
            ("Collector.scitags.org", named("collector.scitags.org", 10514)),
            ("us_1.scitags.org.:10333", named("us_1.scitags.org.", 10333)),
            ("3com", named("3com", 10514)),
        ] {
            let parsed = Collector::parse(text).unwrap();
            assert_eq!(parsed, collector, "{text}");
            assert_eq!(Collector::parse(&parsed.to_string()), Ok(collector), "{text}");
        }
    }

    #[test]
    fn what_names_no_collector_is_refused() {
        for (text, problem) in [
            ("", "\"\" is not the name of a host"),
            ("a b", "\"a b\" is not the name of a host"),
            ("a..b", "\"a..b\" is not the name of a host"),
            ("udp://a", "port \"//a\" is not a port (1 to 65535)"),
            ("a:", "port \"\" is not a port (1 to 65535)"),
            ("a:0", "port \"0\" is not a port (1 to 65535)"),
            ("a:65536", "port \"65536\" is not a port (1 to 65535)"),
            ("a:+1", "port \"+1\" is not a port (1 to 65535)"),
            ("10.0.0.300", "\"10.0.0.300\" is not an IPv4 address"),
            ("10.1", "\"10.1\" is not an IPv4 address"),
            ("2001:db8::1", "an IPv6 address has to be in brackets"),
            ("[2001:db8::1", "the closing ] is missing"),
            ("[2001:db8::1]10514", "\"10514\" is not :port"),
            ("[2001:db8::g]", "\"2001:db8::g\" is not an IPv6 address"),
            ("[collector]", "\"collector\" is not an IPv6 address"),
            ("[fe80::1%]", "\"fe80::1%\" is not an IPv6 address"),
            ("0.0.0.0", "0.0.0.0 is not the address of one host"),
            ("[ff02::1]", "ff02::1 is not the address of one host"),
            ("255.255.255.255:1", "255.255.255.255 is not the address of one host"),
        ] {
            assert_eq!(Collector::parse(text), Err(problem.to_string()), "{text}");
        }
    }
}
