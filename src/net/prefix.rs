//! Sets of addresses: prefixes of IPv4 and IPv6 (RFC 4632, RFC 4291). Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address and how many of its first bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The bits behind the length are 0.
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// That of all addresses of IPv4.
    pub fn any_ipv4() -> Self {
        Prefix { address: std::net::Ipv4Addr::UNSPECIFIED.into(), length: 0 }
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits count.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the address is of the prefix. An IPv4-mapped one counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let length = u32::from(self.length);
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(prefix), IpAddr::V4(address)) => {
                let differ = u32::from(prefix) ^ u32::from(address);
                differ.checked_shr(32 - length).unwrap_or(0) == 0
            }
            (IpAddr::V6(prefix), IpAddr::V6(address)) => {
                let differ = u128::from(prefix) ^ u128::from(address);
                differ.checked_shr(128 - length).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// The address, and which of its bits count; None for IPv4.
    pub fn bits_v6(&self) -> Option<(u128, u128)> {
        let IpAddr::V6(address) = self.address else { return None };
        Some((address.into(), u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0)))
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// Reads `address/length`, or an address, which is a prefix of all its bits.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr =
            address.parse().map_err(|_| format!("{address:?} is not an IP address"))?;
        let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => bits,
            // Digits only: Rust would take a plus sign.
            Some(length) => Some(length)
                .filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|length| length.parse().ok())
                .filter(|length| *length <= bits)
                .ok_or_else(|| format!("/{length} is not a length (/0 to /{bits})"))?,
        };
        // As `ss` shows IPv4 on a socket of IPv6; senders are compared as IPv4.
        let (address, length) = match (address.to_canonical(), length.checked_sub(96)) {
            (canonical, Some(rest)) if canonical != address => (canonical, rest),
            _ => (address, length),
        };
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = Prefix { address, length };
        let cut = match address {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                IpAddr::V4((u32::from(ip) & mask).into())
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                IpAddr::V6((u128::from(ip) & mask).into())
            }
        };
        if cut != address {
            return Err(format!(
                "the address has bits behind its length: {} is meant, or {address}/{bits}",
                Prefix { address: cut, length }
            ));
        }
        Ok(prefix)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_contain_what_begins_like_them() {
        for (prefix, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.0"),
            ("192.0.2.0/31", "::ffff:192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("2001:db8::/127", "2001:db8::1", "2001:db8::2"),
            ("::/0", "fe80::1", "10.0.0.1"),
            ("::1", "::1", "::2"),
        ] {
            let parsed: Prefix = prefix.parse().unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{inside} in {prefix}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{outside} in {prefix}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for (text, problem) in [
            ("", "\"\" is not an IP address"),
            ("host/8", "\"host\" is not an IP address"),
            ("10.0.0.0/33", "/33 is not a length (/0 to /32)"),
            ("::/129", "/129 is not a length (/0 to /128)"),
            ("::/+1", "/+1 is not a length (/0 to /128)"),
            ("10.0.0.0/", "/ is not a length (/0 to /32)"),
            (
                "10.0.0.1/8",
                "the address has bits behind its length: 10.0.0.0/8 is meant, or 10.0.0.1/32",
            ),
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap_err(), problem);
        }
    }
}
