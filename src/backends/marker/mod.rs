//! The marker: writes the tag of each open flow into its packets with an eBPF
//! program on the way out of the interfaces. Linux only.
//!
//! Here are its keys and their rules. `backend` runs it, and `tag` turns flows into map
//! entries. `choice` says which interfaces are marked, `follow` keeps up with their
//! changes, `rules` is for packets of no flow, `meter` counts those of flows and `ruled` those,
//! `programs` loads, `attach` puts the programs on an interface, `owner` knows a filter's maker. The programs are in bpf/marker.bpf.c.

#[cfg(not(all(target_os = "linux", feature = "ebpf")))]
mod absent;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod attach;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod backend;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod choice;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod follow;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod meter;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod owner;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod programs;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod ruled;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod rules;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod tag;
#[cfg(test)]
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod tests;

#[cfg(not(all(target_os = "linux", feature = "ebpf")))]
use absent::build;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
use backend::build;

#[cfg(not(all(target_os = "linux", feature = "ebpf")))]
pub use absent::clean;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
pub use attach::clean;

use super::Spec;
use crate::config::{Choice, Key, Kind, Section};
use crate::rules::{keys, Rules};

pub(super) static SPEC: Spec = Spec {
    name: "marker",
    aliases: &["ebpf"],
    summary: "Writes the tag of each open IPv6 flow into the packets that leave by the chosen \
              interfaces",
    keys: KEYS,
    check,
    build,
};

static KEYS: &[Key] = &[
    Key {
        name: "targetInterfaces",
        aliases: &["targetInterface"],
        kind: Kind::List,
        default: "[]",
        live: false,
        doc: "The interfaces whose outgoing packets are marked: names, and patterns as in \
              glob(7), in which * stands for any text, ? for one character and [0-3] for one of \
              those. A name or pattern behind an \
              exclamation mark says which not to mark, also of those that are discovered. A name \
              that does not exist at the start, or an interface of that name whose packets begin \
              with a header that glowd does not know, keeps glowd from starting; a pattern may \
              match nothing. Without any, and without discoverInterfaces, it is the loopback, lo.",
    },
    Key {
        name: "discoverInterfaces",
        aliases: &[],
        kind: Kind::Bool,
        default: "false",
        live: false,
        doc: "Whether all interfaces with a public IPv6 address are marked, besides those that \
              targetInterfaces says. See INTERFACES.",
    },
    Key {
        name: "markingStrategy",
        aliases: &[],
        kind: Kind::Choice(&[
            Choice { name: "label", aliases: &["flowLabel"] },
            Choice { name: "hopByHop", aliases: &["hopByHopHeader"] },
            Choice { name: "destination", aliases: &[] },
            Choice { name: "hopByHopDestination", aliases: &["hopByHopDestHeaders"] },
        ]),
        default: r#""label""#,
        live: false,
        doc:
            "Where packets carry the tag: in the flow label, in a hop-by-hop options header, in a \
              destination options header, or in both headers. A header makes packets 8 octets \
              longer, both make them 16; connections that open while glowd runs leave room for \
              it. Headers need Linux 5.7, or a distribution's kernel with its features. Many \
              networks drop packets with such headers (RFC 7872), and Linux hosts that forward \
              merged segments to a link of a smaller MTU can stall connections with a \
              destination options header: try the whole path before you choose one.",
    },
    Key {
        name: "rules",
        aliases: &[],
        kind: Kind::Rules(RULE_KEYS),
        default: "[]",
        live: true,
        doc:
            "Tags for packets of TCP and UDP that belong to no open flow: those of the first rule \
              whose conditions all hold. This host's end is the source. There may be 64 rules, \
              where each combination of the ports and prefixes that a rule lists counts as one.",
    },
    Key {
        name: "matchAll",
        aliases: &[],
        kind: Kind::Bool,
        default: "false",
        live: false,
        doc: "Whether packets that belong to no open flow and meet no rule carry a tag too: that \
              of the flow that was opened last and is still open. Fragments of a packet after its \
              first never carry one, since nothing in them says which flow they are of.",
    },
    Key {
        name: "countReceived",
        aliases: &[],
        kind: Kind::Choice(&[
            Choice { name: "auto", aliases: &[] },
            Choice { name: "off", aliases: &[] },
            Choice { name: "udp", aliases: &[] },
            Choice { name: "all", aliases: &[] },
        ]),
        default: r#""auto""#,
        live: false,
        doc:
            "Which packets that arrive for open flows are counted, by a program on the way in of \
              the same interfaces: none, those of UDP, or those of TCP and UDP. With auto it is udp \
              if enricher netlink is configured, which knows more of TCP, and otherwise all. What leaves \
              is always counted; the usage of a flow takes both, see COUNTERS in glowd(8). A packet \
              of TCP that arrives costs about 1 ns with udp and, like one of UDP, 40 ns where it is \
              counted. Nothing is counted before Linux 5.6, unless the kernel has its features.",
    },
    Key {
        name: "attach",
        aliases: &[],
        kind: Kind::Choice(&[
            Choice { name: "auto", aliases: &[] },
            Choice { name: "tcx", aliases: &[] },
            Choice { name: "clsact", aliases: &[] },
        ]),
        default: r#""auto""#,
        live: false,
        doc:
            "How the programs are attached: by tcx, which needs Linux 6.6, by filters on a clsact \
              qdisc, or by tcx where the kernel has it and clsact elsewhere.",
    },
    Key {
        name: "removeQdisc",
        aliases: &[],
        kind: Kind::Bool,
        default: "true",
        live: false,
        doc: "Whether glowd, when it stops, removes a clsact qdisc that it has made and on which \
              there are no filters of others. It never removes one that it found.",
    },
    Key {
        name: "programPath",
        aliases: &[],
        kind: Kind::Path,
        default: r#""""#,
        live: false,
        doc: "A file with compiled eBPF programs to load instead of those in the glowd binary; \
              empty for those.",
    },
    Key {
        name: "debugMode",
        aliases: &[],
        kind: Kind::Bool,
        default: "false",
        live: false,
        doc:
            "Whether the eBPF program writes a line to the kernel's trace pipe for each packet of \
              an open flow. It slows these packets down.",
    },
];

/// What a packet shows.
static RULE_KEYS: &[Key] = &[
    keys::PROTOCOL,
    keys::LOCAL_PORT,
    keys::REMOTE_PORT,
    keys::LOCAL_PREFIX,
    keys::REMOTE_PREFIX,
    keys::EXPERIMENT,
    keys::ACTIVITY,
];

/// How many combinations of ports and prefixes the rules may come to.
const MOST_RULES: usize = 64;

fn check(section: &Section) -> Vec<String> {
    let mut problems = check_interfaces(section);
    let rules = section.rules("rules");
    problems.extend(Rules::problems("rules", rules));
    let count = combinations(rules);
    if count > MOST_RULES {
        problems.push(format!(
            "rules: come to {count} combinations of ports and prefixes, and {MOST_RULES} is the most"
        ));
    }
    problems
}

/// How many combinations of ports and prefixes there are.
fn combinations(rules: &[Section]) -> usize {
    let length = |rule: &Section, key| if rule.has(key) { rule.list(key).len() } else { 1 };
    let lists = ["localPort", "remotePort", "localPrefix", "remotePrefix"];
    let each = |rule| lists.iter().map(|key| length(rule, key)).fold(1, usize::saturating_mul);
    rules.iter().map(each).fold(0, usize::saturating_add)
}

fn check_interfaces(section: &Section) -> Vec<String> {
    let names = section.list("targetInterfaces");
    let mut problems = Vec::new();
    if names.iter().any(|name| matches!(name.as_str(), "" | "!")) {
        problems.push("targetInterfaces: contains an empty name".into());
    }
    for (at, name) in names.iter().enumerate() {
        if !name.is_empty() && names[..at].contains(name) {
            problems.push(format!("targetInterfaces contains {name:?} twice"));
        }
    }
    let only_exceptions = !names.is_empty() && names.iter().all(|name| name.starts_with('!'));
    if only_exceptions && !section.bool("discoverInterfaces") {
        problems.push(
            "targetInterfaces: only says what not to mark; name an interface, or set \
             discoverInterfaces"
                .into(),
        );
    }
    problems
}

#[cfg(test)]
mod key_tests {
    use super::*;
    use crate::config::Value;

    #[test]
    fn interfaces_are_named_once_each_and_not_only_excepted() {
        let problems = |names: &[&str], discover| {
            let names = names.iter().map(ToString::to_string).collect();
            let values = vec![
                ("targetInterfaces", Value::List(names)),
                ("discoverInterfaces", Value::Bool(discover)),
            ];
            check_interfaces(&Section::new("backends.marker", values)).len()
        };
        assert_eq!(problems(&["eth0", "eth1"], false), 0);
        assert_eq!(problems(&[], false), 0);
        assert_eq!(problems(&["", ""], false), 1);
        assert_eq!(problems(&["eth*", "!"], false), 1);
        assert_eq!(problems(&["eth0", "eth1", "eth0", "eth0"], false), 2);
        assert_eq!(problems(&["!eth0"], false), 1);
        assert_eq!(problems(&["!eth0"], true), 0);
        assert_eq!(problems(&["eth*", "!eth0"], false), 0);
    }
}
