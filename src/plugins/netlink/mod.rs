//! The netlink plugin: finds the connections of this host by itself and gives them tags
//! by rules (sock_diag(7); spec section 5.4). Runs on a thread of its own, which sleeps in
//! poll(2) between two looks; owns a netlink socket, and what it knows of connections.
//!
//! What it finds yields to what was told (`Inlet::for_what_is_found`). The kernel does
//! not keep when a connection began, so its flow begins when it is found.

#[cfg(target_os = "linux")]
mod choice;
#[cfg_attr(not(target_os = "linux"), path = "absent.rs")]
mod finder;
#[cfg(target_os = "linux")]
mod known;
#[cfg(target_os = "linux")]
mod reports;
#[cfg(target_os = "linux")]
mod scan;

use super::Spec;
use crate::config::{Choice, Key, Kind, Section};
use crate::rules::{self, Rules};

/// Where messages come from.
#[cfg(target_os = "linux")]
const NAME: &str = "plugins.netlink";

/// The registration.
pub(super) static SPEC: Spec = Spec {
    name: "netlink",
    aliases: &["netstat"],
    summary:
        "finds the TCP and UDP connections of this host by itself and gives them tags by rules",
    keys: &[
        Key {
            name: "rules",
            aliases: &[],
            kind: Kind::Rules(rules::KEYS),
            default: "[]",
            live: true,
            doc:
                "Which connections get which tag: a list of objects with the keys below, of which \
                  the first counts whose conditions all hold. A connection that matches none is \
                  left alone. In messages all lists are counted from 0. A connection that is \
                  open already when glowd starts, or when rules come that it matches, is found \
                  as well. Its start is when it was found, since the kernel does not keep the \
                  true one; a line of the log says of how many that is so, and of such a flow \
                  GET /flows says startUnknown, and that its source is netlink. It is open from the first SYN that this \
                  host sends, or from when it is established, until nothing but the wait at its \
                  end is left. Of UDP, sockets that are connected are found. What a program tells \
                  of a connection by other plugins counts more, its end included.",
        },
        Key {
            name: "experiment",
            aliases: &[],
            kind: Kind::Word,
            default: "\"\"",
            live: true,
            doc: "The experiment, by name or id, of all connections that no rule matches; with \
                  activity. It is as if a rule without conditions were the last. Empty: they get \
                  no tag.",
        },
        Key {
            name: "activity",
            aliases: &[],
            kind: Kind::Word,
            default: "\"\"",
            live: true,
            doc: "The activity, by name or id, that goes with experiment.",
        },
        Key {
            name: "exclude",
            aliases: &["internalNetworks"],
            kind: Kind::Prefixes,
            default: "[]",
            live: true,
            doc: "Networks whose connections are left alone whatever the rules say: prefixes or \
                  addresses of the other end.",
        },
        Key {
            name: "includePrivate",
            aliases: &[],
            kind: Kind::Bool,
            default: "false",
            live: true,
            doc: "Whether connections are looked at whose other end has no address of the \
                  internet: loopback and this host itself, link-local addresses, private ones \
                  (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, fc00::/7) and shared ones \
                  (100.64.0.0/10).",
        },
        Key {
            name: "immediate",
            aliases: &[],
            kind: Kind::Choice(&[
                Choice { name: "auto", aliases: &[] },
                Choice { name: "true", aliases: &[] },
                Choice { name: "false", aliases: &[] },
            ]),
            default: "\"auto\"",
            live: false,
            doc:
                "Whether the kernel also tells of TCP connections at once, so that short ones are \
                  not missed and what this host opens is marked from its first packet of data: by \
                  an eBPF program on the control group that contains all others, beside those of \
                  others there. Meanwhile others can attach programs for sockets to that group only \
                  as one of many (BPF_F_ALLOW_MULTI), and those that see the same connections are \
                  told of their changes of state too (BPF_SOCK_OPS_STATE_CB), whether they have \
                  asked for it or not. It takes CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and Linux \
                  5.10 with BTF; where it cannot be, auto means looking once in a period only. A SYN from outside counts for \
                  nothing, since anybody can send those, so what another host opens is a flow \
                  once the connection is established.",
        },
        Key {
            name: "period",
            aliases: &[],
            kind: Kind::Int { min: 100, max: 3_600_000 },
            default: "1000",
            live: true,
            doc: "How often is looked, in ms. Where that takes long, the next look is later, so \
                  that it costs a fifth of a core at the most.",
        },
    ],
    check: problems,
    build: finder::build,
};

/// What is wrong with a section, as far as that can be said without a registry.
fn problems(section: &Section) -> Vec<String> {
    let mut problems = Rules::problems("rules", section.rules("rules"));
    let given = |key| !section.text(key).is_empty();
    match (given("experiment"), given("activity")) {
        (true, false) => problems.push("activity: has to be given with experiment".into()),
        (false, true) => problems.push("experiment: has to be given with activity".into()),
        _ => {}
    }
    problems
}
