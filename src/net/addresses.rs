//! Which addresses are this host's own (getifaddrs(3)).
//!
//! Runs on the thread of whoever asks, in whose network namespace it looks, and
//! owns the last answer.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;

/// How old an answer may be that does not know an address.
const FRESH: Duration = Duration::from_secs(1);

/// How old an answer may be that knows it: an address may have moved to another host.
const STALE: Duration = Duration::from_secs(10);

/// The addresses of the host's interfaces, read again, at most once a second, when
/// somebody asks for one that is not among them: so an address is known a second
/// after it appeared, and one that is gone for ten.
#[derive(Debug, Default)]
pub struct Local {
    known: HashSet<IpAddr>,
    read: Option<Instant>,
}

impl Local {
    /// Whether the address, which may be IPv4-mapped, is one of this host: of an
    /// interface, or a loopback address.
    pub fn contains(&mut self, address: IpAddr) -> bool {
        self.contains_at(address, Instant::now)
    }

    fn contains_at(&mut self, address: IpAddr, now: impl FnOnce() -> Instant) -> bool {
        let address = address.to_canonical();
        if address.is_loopback() {
            return true;
        }
        let now = now();
        let known = self.known.contains(&address);
        let patience = if known { STALE } else { FRESH };
        if self.read.is_some_and(|read| now.duration_since(read) < patience) {
            return known;
        }
        self.read = Some(now);
        match list() {
            Ok(all) => self.known = all,
            Err(error) => {
                crate::warn_limited!("cannot list the addresses of this host: {error}");
            }
        }
        self.known.contains(&address)
    }
}

/// All addresses of this host's interfaces.
///
/// # Errors
/// The system refuses.
pub fn list() -> nix::Result<HashSet<IpAddr>> {
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
    };
    Ok(getifaddrs()?.filter_map(|interface| interface.address.and_then(ip)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_known() {
        let mut local = Local::default();
        let start = Instant::now();
        let mut contains = |address: &str, seconds| {
            let now = || start + Duration::from_secs(seconds);
            local.contains_at(address.parse().unwrap(), now)
        };
        for own in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            assert!(contains(own, 0), "{own}");
        }
        for other in ["203.0.113.77", "2001:db8:ffff::77", "0.0.0.0", "::"] {
            assert!(!contains(other, 0), "{other}");
        }
        assert!(!contains("203.0.113.78", 1));
        assert_eq!(local.read, Some(start + FRESH), "not more often");
    }
}
