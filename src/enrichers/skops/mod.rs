//! The skops enricher: what eBPF programs in the kernel see of the connections of open
//! flows (bpf/skops.bpf.c), once a period, at each change of their state, and at the end.

#[cfg_attr(not(all(target_os = "linux", feature = "ebpf")), path = "absent.rs")]
mod sampler;

#[cfg(all(target_os = "linux", feature = "ebpf"))]
pub(crate) use sampler::trial;

use super::Spec;
use crate::config::{Choice, Key, Kind};
use crate::part::no_rules;

/// The registration.
pub(super) static SPEC: Spec = Spec {
    name: "skops",
    aliases: &[],
    summary: "has eBPF programs in the kernel (Linux 5.9) measure the TCP connections of open \
              flows that have opened since glowd runs, and so knows the last numbers of those \
              that are over before the flow is",
    keys: &[
        Key {
            name: "cgroupPath",
            aliases: &[],
            kind: Kind::Path,
            default: "\"\"",
            live: false,
            doc: "Folder of the control group (version 2) whose connections are measured, with \
                  those of the groups below it; empty for the group that contains all others, \
                  wherever it is mounted.",
        },
        Key {
            name: "programPath",
            aliases: &[],
            kind: Kind::Retired,
            default: "\"\"",
            live: false,
            doc: "Has no effect: the eBPF programs are in the glowd binary.",
        },
        Key {
            name: "debugMode",
            aliases: &[],
            kind: Kind::Bool,
            default: "false",
            live: false,
            doc: "Whether level debug of the log has a line for each sample.",
        },
        Key {
            name: "strategy",
            aliases: &[],
            kind: Kind::Choice(&[
                Choice { name: "poll", aliases: &[] },
                Choice { name: "transition", aliases: &[] },
            ]),
            default: "\"poll\"",
            live: false,
            doc: "When connections are looked at: once a period and when their state changes, or \
                  only then (transition), which costs nothing meanwhile.",
        },
    ],
    check: no_rules,
    build: sampler::build,
};
