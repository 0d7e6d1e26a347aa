//! The keys of the firefly backend.

use crate::config::{Choice, Key, Kind};
use crate::stun;

pub(super) const KEYS: &[Key] = &[
    Key {
        name: "sendToDestination",
        aliases: &[],
        kind: Kind::Bool,
        default: "true",
        live: true,
        doc: "Whether fireflies go to the destination address of the flow, so that the \
              networks on the path see them. The destination needs no listener. Multicast, \
              broadcast and unspecified addresses get none.",
    },
    Key {
        name: "collectors",
        aliases: &[],
        kind: Kind::List,
        default: "[]",
        live: true,
        doc: "Who else gets all fireflies: host, host:port, [IPv6 address] or \
              [IPv6 address]:port; the default port is 10514. Names are looked up at the \
              start, every 5 minutes and after errors; while a name has no address its \
              fireflies are lost and counted.",
    },
    Key {
        name: "destinationPort",
        aliases: &["fireflyDestinationPort"],
        kind: Kind::Int { min: 1, max: 65535 },
        default: "10514",
        live: true,
        doc: "UDP port of the fireflies to the destination of the flow. It does not change \
              the port of the collectors.",
    },
    Key {
        name: "prependSyslog",
        aliases: &[],
        kind: Kind::Bool,
        default: "true",
        live: true,
        doc: "Whether an RFC 5424 syslog header precedes the JSON document. The published \
              collector drops fireflies without it.",
    },
    Key {
        name: "sendToCollector",
        aliases: &[],
        kind: Kind::Bool,
        default: "false",
        live: true,
        doc: "Whether collectorAddress and collectorPort name a collector, as in flowd-go: \
              the same as one more entry of collectors.",
    },
    Key {
        name: "collectorAddress",
        aliases: &[],
        kind: Kind::Text,
        default: r#""127.0.0.1""#,
        live: true,
        doc: "Name or address of that collector, without brackets. Has no effect unless \
              sendToCollector is true.",
    },
    Key {
        name: "collectorPort",
        aliases: &[],
        kind: Kind::Int { min: 1, max: 65535 },
        default: "10514",
        live: true,
        doc: "UDP port of that collector. Has no effect unless sendToCollector is true.",
    },
    Key {
        name: "enrich",
        aliases: &[],
        kind: Kind::Bool,
        default: "false",
        live: true,
        doc: "Whether fireflies of flows that go on or end say what TCP knows of the \
              connection. That takes an enricher.",
    },
    Key {
        name: "enrichmentMode",
        aliases: &[],
        kind: Kind::Choice(&[
            Choice { name: "lean", aliases: &[] },
            Choice { name: "compatible", aliases: &[] },
            Choice { name: "full", aliases: &[""] },
        ]),
        default: "\"lean\"",
        live: true,
        doc: "How it is said, in the object netlink: as flowd-go does, a little (lean) or all \
              (full), in us and octets per second, or as flowd does (compatible), in whole ms. \
              Its rtt is in ms in each of them, since collectors read that. A firefly is \
              never longer than 1232 octets: what does not fit is left out, in the order that \
              FIREFLIES has.",
    },
    Key {
        name: "ongoingPeriod",
        aliases: &[],
        kind: Kind::Int { min: 0, max: 86_400_000 },
        default: "0",
        live: true,
        doc: "How often a flow that goes on gets a firefly that says so, in ms since its start, \
              with what is known by then of what it has carried, by an enricher or the marker. All open flows get them, measured or not, and 10,000 a second in \
              all; where more are due each gets them less often. With 0 there are none.",
    },
    Key {
        name: "stun",
        aliases: &[],
        kind: Kind::Section(stun::KEYS),
        default: "null",
        live: true,
        doc: "Has the public addresses of this host in fireflies in the place of its private \
              ones, where the host is behind NAT; see PUBLIC ADDRESSES. Off unless it is \
              there; {} means all of its defaults.",
    },
];
