//! The netlink enricher: what the kernel knows of the sockets of open flows
//! (sock_diag(7)), once a period and at the end.

#[cfg_attr(not(target_os = "linux"), path = "absent.rs")]
mod sampler;

use super::Spec;
use crate::config::{Key, Kind};

/// The registration.
pub(super) static SPEC: Spec = Spec {
    name: "netlink",
    aliases: &[],
    summary: "takes from the kernel how much the connections of open flows have carried, and \
              what else TCP knows of them",
    keys: &[
        Key {
            name: "protocol",
            aliases: &[],
            kind: Kind::Int { min: 6, max: 17 },
            default: "6",
            live: false,
            doc: "Of which protocol flows are looked at: 6 for TCP or 17 for UDP, of which the \
                  kernel does not count what it has carried.",
        },
        Key {
            name: "ext",
            aliases: &[],
            kind: Kind::Int { min: 0, max: 255 },
            default: "255",
            live: false,
            doc: "What the kernel is asked for beside the addresses, as the sum of: 1 memory, 2 \
                  tcp_info, 4 what the congestion control says, 8 its name, 16 type of service, \
                  32 traffic class, 64 memory of the socket, 128 what is shut down. Only 2, 8 \
                  and 64 are asked for unless fireflies are in enrichmentMode full. Without \
                  tcp_info it is not known how much a flow has carried.",
        },
        Key {
            name: "state",
            aliases: &[],
            kind: Kind::Int { min: 1, max: 4_294_967_295 },
            default: "3071",
            live: false,
            doc: "In which states sockets are looked at, as the sum of two to the power of the \
                  numbers that the kernel gives them. The default is all but those that listen.",
        },
    ],
    check: |section| match section.int("protocol") {
        6 | 17 => Vec::new(),
        other => vec![format!("protocol: {other} is neither 6 (TCP) nor 17 (UDP)")],
    },
    build: sampler::build,
};
