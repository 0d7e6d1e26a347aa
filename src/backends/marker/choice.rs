//! Which interfaces are marked: those that the configuration names, those whose names
//! match a pattern, and those that are discovered. Pure.
//!
//! Discovery takes the interfaces that have a public IPv6 address, since packets leave
//! from where the addresses are: a bridge, a bond or a VLAN device has one, its ports
//! and its parent have none. Where they do have one, see [`Link::is_discovered`]; a
//! packet that passes two marked interfaces is marked once, by the first.

use std::net::Ipv6Addr;

use super::attach::find;
use super::programs::Framing;
use crate::config::Section;
use crate::error::Result;
use crate::net::interfaces::{self, Interface};
use crate::net::netlink::Socket;

/// An interface and what discovery has to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) interface: Interface,
    /// Has a public IPv6 address.
    pub(super) public: bool,
}

impl Link {
    /// All interfaces as they are now.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn list(socket: &mut Socket) -> Result<Vec<Link>> {
        // The addresses last: an interface that is younger than the list is announced.
        let all = interfaces::list(socket)?;
        let addresses = interfaces::ipv6_addresses(socket)?;
        let public: Vec<u32> = addresses
            .into_iter()
            .filter(|(_, address)| is_public(*address))
            .map(|(index, _)| index)
            .collect();
        let link =
            |interface: Interface| Link { public: public.contains(&interface.index), interface };
        Ok(all.into_iter().map(link).collect())
    }

    /// Whether discovery takes it.
    ///
    /// Not the loopback, whose packets stay here, whatever addresses it has. Not a port
    /// of a bridge, a bond or the like: what leaves through it has left through its
    /// master, or is others' and only passes (frames of virtual machines), and what
    /// arrives goes to its master, so an address there is a left-over. A port of a VRF
    /// is an interface like any other. A VLAN or macvlan device and its parent are both
    /// taken if both have addresses: each has its own packets.
    fn is_discovered(&self) -> bool {
        let loopback = self.interface.flags & IFF_LOOPBACK != 0;
        self.public && !loopback && matches!(self.interface.port_of.as_str(), "" | "vrf")
    }
}

/// libc::IFF_LOOPBACK, as the kernel has it.
const IFF_LOOPBACK: u32 = 0x8;

/// Whether it is one of the global unicast addresses that IANA assigns, 2000::/3.
/// Those of the block that are meant for documentation count, since where somebody
/// configures one it stands for a public one; unique local ones (fc00::/7) do not.
fn is_public(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xe000 == 0x2000
}

/// Why an interface is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The configuration has its name: what is wrong with it is an error.
    Named,
    /// It matches a pattern or was discovered.
    Found,
}

/// What the configuration says of interfaces (`targetInterfaces`,
/// `discoverInterfaces`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    names: Vec<String>,
    patterns: Vec<String>,
    /// Without their exclamation marks.
    exceptions: Vec<String>,
    discover: bool,
}

impl Wanted {
    pub(super) fn new(section: &Section) -> Self {
        Self::of(section.list("targetInterfaces"), section.bool("discoverInterfaces"))
    }

    fn of(targets: &[String], discover: bool) -> Self {
        let mut wanted = Wanted { discover, ..Wanted::default() };
        for target in targets {
            if let Some(exception) = target.strip_prefix('!') {
                wanted.exceptions.push(exception.into());
            } else if target.contains(['*', '?', '[']) {
                wanted.patterns.push(target.clone());
            } else {
                wanted.names.push(target.clone());
            }
        }
        if targets.is_empty() && !discover {
            wanted.names.push("lo".into());
        }
        wanted
    }

    /// Why the interface is to be marked, if it is.
    pub(super) fn why(&self, link: &Link) -> Option<Why> {
        let name = link.interface.name.as_str();
        let matches = |patterns: &[String]| patterns.iter().any(|pattern| glob(pattern, name));
        if matches(&self.exceptions) {
            None
        } else if self.names.iter().any(|wanted| wanted == name) {
            Some(Why::Named)
        } else if matches(&self.patterns) || (self.discover && link.is_discovered()) {
            Some(Why::Found)
        } else {
            None
        }
    }

    /// Judges what is named.
    ///
    /// # Errors
    /// An interface does not exist; the message names those that do. Or glowd does not
    /// know what its packets begin with.
    pub(super) fn demand(&self, links: &[Link]) -> Result<()> {
        let all: Vec<&Interface> = links.iter().map(|link| &link.interface).collect();
        self.names.iter().try_for_each(|name| Framing::of(find(&all, name)?).map(|_| ()))
    }

    /// What finds no interface now, for the log.
    pub(super) fn idle(&self, links: &[Link]) -> Vec<String> {
        let mut idle = Vec::new();
        for pattern in &self.patterns {
            let found =
                |link: &Link| glob(pattern, &link.interface.name) && self.why(link).is_some();
            if !links.iter().any(found) {
                idle.push(format!("no interface matches {pattern:?} yet"));
            }
        }
        let found = |link: &Link| link.is_discovered() && self.why(link).is_some();
        if self.discover && !links.iter().any(found) {
            idle.push("no interface with a public IPv6 address is there yet".into());
        }
        idle
    }
}

/// Whether the name matches the pattern, as in glob(7): `*` stands for any text, `?` for
/// any one octet, `[a-cx]` for one of those, `[!a-cx]` for one that is none of them.
fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Behind the last star, and the name's octet that it stands for no more.
    let mut retry = None;
    while n < name.len() {
        let rest = &pattern[p..];
        match rest.first() {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(first) if one_of(rest, name[n]).unwrap_or([b'?', name[n]].contains(first)) => {
                p += class(rest).map_or(1, |inner| inner.len() + 2);
                n += 1;
            }
            _ => match retry {
                Some((behind, start)) => {
                    retry = Some((behind, start + 1));
                    (p, n) = (behind, start + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|octet| *octet == b'*')
}

/// What is between the brackets that the pattern begins with. A bracket that is never closed
/// is one like any other octet.
fn class(pattern: &[u8]) -> Option<&[u8]> {
    let inner = pattern.strip_prefix(b"[")?;
    // The first one may be a closing bracket itself.
    let first = if matches!(inner, [b'!' | b'^', ..]) { 2 } else { 1 };
    let end = first + inner.get(first..)?.iter().position(|octet| *octet == b']')?;
    Some(&inner[..end])
}

/// Whether the octet is one of those that the class at the pattern's begin stands for; None:
/// there is no class.
fn one_of(pattern: &[u8], octet: u8) -> Option<bool> {
    let inner = class(pattern)?;
    let (is_negated, mut rest) = match inner {
        [b'!' | b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut is_in = false;
    while let [low, others @ ..] = rest {
        (is_in, rest) = match others {
            [b'-', high, others @ ..] => (is_in || (*low..=*high).contains(&octet), others),
            _ => (is_in || *low == octet, others),
        };
    }
    Some(is_in != is_negated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, yes, no) in [
            ("eth0", &["eth0"][..], &["eth", "eth00", "Eth0", ""][..]),
            ("eth*", &["eth", "eth0", "eth0.100"], &["et", "veth0"]),
            ("*", &["", "lo", "eth0"], &[]),
            ("enp?s0", &["enp3s0", "enpss0"], &["enps0", "enp33s0", "enp3s1"]),
            ("*.1?0", &["eth0.100", "a.1.120"], &["eth0.10", "eth0.1000"]),
            ("e*h*0", &["eh0", "eth0", "ethh00", "e0h10"], &["eth1", "th0", "eth0a"]),
            ("**a?", &["aa", "ba0", "aaaa"], &["a", "ab0"]),
            ("?", &["a"], &["", "ab"]),
            ("eth[0-3]", &["eth0", "eth3"], &["eth4", "eth", "eth0-3", "eth[0-3]", "eth33"]),
            ("e*[!0-8a]", &["eth9", "eth0b"], &["eth8", "e", "etha"]),
            ("[]x-]?[^-]", &["]0a", "x0a", "-0a"], &["a0a", "x0-", "xa"]),
            ("[z-a]*", &[], &["a", "z", "-", ""]),
            ("a[b", &["a[b"], &["ab", "a["]),
            ("[]", &["[]"], &["[", "]", ""]),
            ("[!]", &["[!]"], &["a", "!"]),
        ] {
            for name in yes {
                assert!(glob(pattern, name), "{pattern} {name}");
            }
            for name in no {
                assert!(!glob(pattern, name), "{pattern} {name}");
            }
        }
        // Neither takes long nor forever.
        assert!(!glob(&"*a".repeat(1000), &"a".repeat(999)));
    }

    #[test]
    fn public_addresses_are_those_of_2000_3() {
        for (address, public) in [
            ("2001:638::1", true),
            ("2a00:139c::1", true),
            ("3fff:ffff::", true),
            ("2001:db8::1", true),
            ("1fff::1", false),
            ("4000::1", false),
            ("fd00::1", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("::1", false),
            ("::", false),
            ("64:ff9b::1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }

    /// An interface by name, kind, what it is a port of, and whether it has a public
    /// address.
    fn link(name: &str, kind: &str, port_of: &str, public: bool) -> Link {
        let loopback = name == "lo";
        let interface = Interface {
            index: 1,
            name: name.into(),
            arphrd: if loopback { 772 } else { 1 },
            mtu: 1500,
            gso_max_size: 65_536,
            flags: if loopback { 0x49 } else { 0x1043 },
            kind: kind.into(),
            port_of: port_of.into(),
        };
        Link { interface, public }
    }

    fn chosen(targets: &[&str], discover: bool, links: &[Link]) -> Vec<String> {
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let wanted = Wanted::of(&targets, discover);
        let chosen = links.iter().filter(|link| wanted.why(link).is_some());
        chosen.map(|link| link.interface.name.clone()).collect()
    }

    #[test]
    fn discovery_takes_each_packet_where_it_leaves_from_an_address() {
        let lo = || link("lo", "", "", true);
        for (what, links, expected) in [
            ("one address", vec![link("eth0", "", "", true), link("eth1", "", "", false)], "eth0"),
            (
                "a bond",
                vec![
                    link("eth0", "", "bond", false),
                    link("eth1", "", "bond", false),
                    link("bond0", "bond", "", true),
                ],
                "bond0",
            ),
            (
                "a team whose port has kept its address",
                vec![link("eth0", "", "team", true), link("team0", "team", "", true)],
                "team0",
            ),
            (
                "a bridge of virtual machines",
                vec![
                    link("eth0", "", "bridge", true),
                    link("vnet0", "tun", "bridge", false),
                    link("br0", "bridge", "", true),
                ],
                "br0",
            ),
            (
                "a bridge without an address, only passed by others' frames",
                vec![link("eth0", "", "bridge", false), link("br0", "bridge", "", false)],
                "",
            ),
            (
                "VLANs on a bond",
                vec![
                    link("eth0", "", "bond", false),
                    link("bond0", "bond", "", false),
                    link("bond0.100", "vlan", "", true),
                    link("bond0.200", "vlan", "", true),
                    link("bond0.300", "vlan", "", false),
                ],
                "bond0.100 bond0.200",
            ),
            (
                "a VLAN and its parent, both with packets of their own",
                vec![link("eth0", "", "", true), link("eth0.100", "vlan", "", true)],
                "eth0 eth0.100",
            ),
            (
                "a bridge on a VLAN",
                vec![
                    link("eth0", "", "", false),
                    link("eth0.100", "vlan", "bridge", false),
                    link("br0", "bridge", "", true),
                ],
                "br0",
            ),
            (
                "a macvlan beside its parent",
                vec![link("eth0", "", "", false), link("macvlan0", "macvlan", "", true)],
                "macvlan0",
            ),
            ("a VRF", vec![link("eth0", "", "vrf", true), link("vrf0", "vrf", "", false)], "eth0"),
            (
                "a tunnel",
                vec![link("eth0", "", "", false), link("wg0", "wireguard", "", true)],
                "wg0",
            ),
            ("the loopback", vec![lo()], ""),
        ] {
            assert_eq!(chosen(&[], true, &links).join(" "), expected, "{what}");
            assert_eq!(chosen(&[], false, &[lo()]), ["lo"], "what is said to be the default");
        }
    }

    #[test]
    fn names_patterns_and_discovery_add_up_and_exceptions_count_for_all() {
        let links = [
            link("lo", "", "", false),
            link("eth0", "", "bond", false),
            link("eth1", "", "bond", false),
            link("bond0", "bond", "", true),
            link("docker0", "bridge", "", true),
        ];
        for (targets, discover, expected) in [
            (&["eth0"][..], false, "eth0"),
            (&["eth*"], false, "eth0 eth1"),
            (&["eth?", "!eth1"], false, "eth0"),
            (&["!eth1", "eth?"], false, "eth0"),
            (&[], true, "bond0 docker0"),
            (&["lo"], true, "lo bond0 docker0"),
            (&["!docker*"], true, "bond0"),
            (&["*"], false, "lo eth0 eth1 bond0 docker0"),
            (&["*", "!lo", "!eth*"], false, "bond0 docker0"),
            (&["eth0", "!eth0"], false, ""),
            (&[], false, "lo"),
        ] {
            assert_eq!(chosen(targets, discover, &links).join(" "), expected, "{targets:?}");
        }
        let wanted = Wanted::of(&["eth0".into(), "bond?".into()], true);
        let why = |at: usize| wanted.why(&links[at]);
        assert_eq!(why(1), Some(Why::Named));
        assert_eq!((why(2), why(3), why(4)), (None, Some(Why::Found), Some(Why::Found)));
    }

    #[test]
    fn what_finds_nothing_is_told() {
        let links = [link("eth0", "", "", false), link("docker0", "bridge", "", true)];
        let idle = |targets: &[&str], discover| {
            let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
            Wanted::of(&targets, discover).idle(&links).concat()
        };
        assert_eq!(idle(&["eth*"], true), "");
        assert!(idle(&["enp*"], true).contains("\"enp*\""));
        assert!(idle(&["eth*", "!eth0"], false).contains("\"eth*\""));
        assert!(idle(&["!docker*"], true).contains("public"));
        // A name is an error instead.
        let named = |name: &str| Wanted::of(&[name.into()], false).demand(&links);
        assert_eq!(idle(&["eth1"], false), "");
        named("eth0").unwrap();
        let refusal = named("eth1").unwrap_err().to_string();
        assert!(refusal.contains("\"eth1\"") && refusal.contains("docker0"), "{refusal}");
        let mut can = link("can0", "can", "", false);
        can.interface.arphrd = 280;
        let refusal = Wanted::of(&["can0".into()], false).demand(&[can]).unwrap_err().to_string();
        assert!(refusal.starts_with("can0: ") && refusal.ends_with("(link type 280)"), "{refusal}");
    }
}
