//! The firefly plugin: learns of flows from the fireflies that other programs send
//! (spec sections 3 and 5.3), and relays them if it is told to.
//!
//! One thread receives, judges and hands on in batches, so that the order of the
//! datagrams is the order of the events; `relay` has a thread of its own, since who
//! cannot be reached must not hold up who reports.
//!
//! UDP knows no sender for certain: a datagram may come from anybody who can reach
//! the port, under any address. So it listens on loopback unless the administrator
//! wants otherwise, and then takes datagrams of this host's own addresses only,
//! unless `allowFrom` says more.

mod intake;
mod listener;
mod relay;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use log::info;

use self::intake::{Intake, Rules};
use self::listener::Listener;
use super::{Plugin, Spec};
use crate::config::{Choice, Key, Kind, Section};
use crate::error::Result;
use crate::metrics::families::FIREFLY_DATAGRAMS;
use crate::metrics::{Count, Writer};
use crate::net::collectors::destinations::Collector;
use crate::part::Context;

/// Where messages come from.
const NAME: &str = "plugins.firefly";

/// The registration.
pub(super) static SPEC: Spec = Spec {
    name: "firefly",
    aliases: &[],
    summary: "receives the fireflies of other programs, and relays them",
    keys: &[
        Key {
            name: "bindAddress",
            aliases: &[],
            live: false,
            kind: Kind::Address,
            default: "\"127.0.0.1\"",
            doc: "Address to listen on. The default takes what programs on this host send to \
                  127.0.0.1; \"::\" takes IPv6 and IPv4 on all addresses, of those that allowFrom \
                  names.",
        },
        Key {
            name: "bindPort",
            aliases: &[],
            live: false,
            kind: Kind::Int { min: 0, max: 65535 },
            default: "10514",
            doc: "UDP port to listen on. With 0 the system chooses a free one, which the log \
                  tells at level info; that is useful for tests.",
        },
        Key {
            name: "allowFrom",
            aliases: &[],
            live: true,
            kind: Kind::List,
            default: "[\"local\"]",
            doc: "Whose fireflies are taken, by the address that they come from: prefixes such as \
                  192.0.2.0/24 or 2001:db8::/32, addresses, and the word local for loopback and \
                  the addresses of this host, which are followed when they change. Others are \
                  counted and dropped. Nobody has to authenticate, and the sender of a datagram \
                  is easily forged, in IPv6 also as this host itself: on other addresses than \
                  loopback let a packet filter see to it, and let only networks in whose borders \
                  you trust.",
        },
        Key {
            name: "hasSyslogHeader",
            aliases: &[],
            live: true,
            kind: Kind::Choice(&[
                Choice { name: "auto", aliases: &[] },
                Choice { name: "true", aliases: &[] },
                Choice { name: "false", aliases: &[] },
            ]),
            default: "\"auto\"",
            doc: "Whether a syslog header precedes the JSON document: in some datagrams, in all \
                  (true) or in none (false). What has none where it should, or one where it should \
                  not, is counted as bad. flowd-go has this key and does not look at it: there \
                  false means auto.",
        },
        Key {
            name: "bufferSize",
            aliases: &[],
            live: false,
            kind: Kind::Int { min: 2048, max: 65535 },
            default: "65535",
            doc: "The longest datagram that is taken, in octets. Longer ones are counted as bad.",
        },
        Key {
            name: "receiveBuffer",
            aliases: &[],
            live: false,
            kind: Kind::Int { min: 4096, max: 1 << 30 },
            default: "67108864",
            doc: "How much the kernel keeps until it is read, in octets as it counts them: up to \
                  2304 per firefly. The default is enough for 20,000 that arrive at once. More \
                  than net.core.rmem_max takes CAP_NET_ADMIN. What does not fit is lost, and \
                  counted.",
        },
        Key {
            name: "relay",
            aliases: &[],
            live: true,
            kind: Kind::List,
            default: "[]",
            doc: "Collectors to which each firefly is passed on as it is, also if no label can \
                  carry its tag: host, host:port, [IPv6 address] or [IPv6 address]:port; the \
                  default port is 10514. Names are looked up at the start, every 5 minutes and \
                  after errors. None goes to this plugin itself, and what was passed on in the \
                  last seconds is not passed on again, so that relays may name each other.",
        },
        Key {
            name: "deadline",
            aliases: &[],
            live: false,
            kind: Kind::Retired,
            default: "0",
            doc: "Has no effect: the listener stops at once.",
        },
    ],
    check,
    build,
};

fn check(section: &Section) -> Vec<String> {
    let mut problems = Rules::read(section).err().unwrap_or_default();
    let own = own_address(section);
    for text in section.list("relay") {
        match Collector::parse(text) {
            Err(problem) => problems.push(format!("relay: {text:?}: {problem}")),
            Ok(Collector::Literal(address))
                if relay::certainly_reaches(address, own) && own.port() != 0 =>
            {
                problems.push(format!(
                    "relay: {text:?}: that is this plugin itself, at bindAddress and bindPort"
                ));
            }
            Ok(_) => {}
        }
    }
    problems
}

fn own_address(section: &Section) -> SocketAddr {
    SocketAddr::new(section.address("bindAddress"), section.int("bindPort"))
}

fn build(section: &Section, context: &Context) -> Result<Box<dyn Plugin>> {
    // Judged by `check`, so there are no problems.
    let rules = Rules::read(section).unwrap_or_default();
    let sizes = (section.int("bufferSize"), section.int("receiveBuffer"));
    let intake = Intake::new(rules, context.names.clone());
    let mut listener = Listener::bind(own_address(section), intake, sizes.0, sizes.1)?;
    info!("{NAME}: listening on {}", listener.address());
    listener.relay_to(collectors(section))?;
    let counters = listener.counters();
    context.metrics.add(move |writer| counters.write(writer));
    Ok(Box::new(listener))
}

/// To whom fireflies are relayed, each once.
fn collectors(section: &Section) -> Vec<Collector> {
    let mut collectors: Vec<Collector> = Vec::new();
    for collector in section.list("relay").iter().filter_map(|text| Collector::parse(text).ok()) {
        if !collectors.contains(&collector) {
            collectors.push(collector);
        }
    }
    collectors
}

/// What became of the datagrams.
#[derive(Debug, Default)]
struct Counters {
    /// All that were read.
    received: Count,
    /// From senders that are not allowed.
    forbidden: Count,
    /// No fireflies.
    bad: Count,
    /// Whose tag no label can carry.
    untaggable: Count,
    /// Whose events the dispatcher has.
    taken: Count,
    /// For which the flow table had no room.
    refused: Count,
    /// Dropped by the kernel, for want of room.
    lost: Count,
    /// There is a relay, or there was one.
    relays: AtomicBool,
    relay: relay::Counters,
}

impl Counters {
    /// Writes them as metrics; those of the relay if there is one.
    fn write(&self, writer: &mut Writer) {
        for (result, count) in [
            ("taken", &self.taken),
            ("forbidden", &self.forbidden),
            ("bad", &self.bad),
            ("untaggable", &self.untaggable),
            ("refused", &self.refused),
            ("lost", &self.lost),
        ] {
            writer.number(&FIREFLY_DATAGRAMS, &[result], count.get());
        }
        if self.relays.load(Relaxed) {
            self.relay.write(writer);
        }
    }

    /// Logs them; those of the relay if there is one.
    fn report(&self) {
        info!(
            "{NAME}: {} datagrams received, {} taken, {} of senders that are not allowed, {} bad, \
             {} with a tag that no label can carry, {} refused by the flow table; {} lost for want \
             of room",
            self.received.get(),
            self.taken.get(),
            self.forbidden.get(),
            self.bad.get(),
            self.untaggable.get(),
            self.refused.get(),
            self.lost.get(),
        );
        if self.relays.load(Relaxed) {
            self.relay.report();
        }
    }
}
