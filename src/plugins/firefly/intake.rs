//! Judges one datagram: who may send, what it says, and which way round its flow is.
//!
//! Runs on the plugin's thread and owns what it knows of this host's addresses.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::{Counters, NAME};
use crate::config::Section;
use crate::firefly::{decode, Header, Report};
use crate::flow::{FlowEvent, FlowState};
use crate::net::addresses::Local;
use crate::net::inbox::Arrival;
use crate::net::prefix::Prefix;
use crate::registry::Names;
use crate::warn_limited;

/// What the configuration says of datagrams: one value, to be put in another's place
/// while the plugin runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    header: Header,
    /// Whether this host itself may send.
    local: bool,
    allowed: Vec<Prefix>,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { header: Header::Auto, local: true, allowed: Vec::new() }
    }
}

impl Rules {
    /// What a section says.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(super) fn read(section: &Section) -> Result<Self, Vec<String>> {
        let header = match section.text("hasSyslogHeader") {
            "true" => Header::Always,
            "false" => Header::Never,
            _ => Header::Auto,
        };
        let mut rules = Rules { header, local: false, allowed: Vec::new() };
        let mut problems = Vec::new();
        for text in section.list("allowFrom") {
            if text.eq_ignore_ascii_case("local") {
                rules.local = true;
                continue;
            }
            match text.parse() {
                Ok(prefix) => rules.allowed.push(prefix),
                Err(problem) => problems.push(format!("allowFrom: {text:?}: {problem}")),
            }
        }
        if section.list("allowFrom").is_empty() {
            problems.push("allowFrom: nobody may send anything".into());
        }
        if problems.is_empty() {
            Ok(rules)
        } else {
            Err(problems)
        }
    }

    /// Whether the sender of a datagram to `to` may send.
    fn allow(&self, from: IpAddr, to: Option<Ipv6Addr>, local: &mut Local) -> bool {
        let is_v4 = from.to_canonical().is_ipv4();
        // An IPv6 packet whose source looks like IPv4: the kernel looks at the sources of
        // IPv4 packets only, and lets none from outside be this host's.
        if to.is_some_and(|to| is_v4 && to.to_ipv4_mapped().is_none()) {
            return false;
        }
        // Prefixes first: they know all at once.
        self.allowed.iter().any(|prefix| prefix.contains(from))
            || (self.local && local.contains(from))
    }
}

/// Judges datagrams.
#[derive(Debug)]
pub(super) struct Intake {
    rules: Rules,
    names: Arc<Names>,
    local: Local,
    /// The last count of what the kernel has dropped.
    dropped: u32,
}

/// What a datagram is worth.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Drop,
    /// It is a firefly, but no flow can be made of it.
    Relay,
    /// It is a firefly, and this is its event.
    Take(FlowEvent),
}

impl Intake {
    pub(super) fn new(rules: Rules, names: Arc<Names>) -> Self {
        Intake { rules, names, local: Local::default(), dropped: 0 }
    }

    /// Works by these rules from now on.
    pub(super) fn obey(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Judges a datagram and counts it, unless it is good.
    pub(super) fn judge(
        &mut self,
        datagram: &[u8],
        arrival: Arrival,
        counters: &Counters,
    ) -> Verdict {
        if let Some(dropped) = arrival.dropped.filter(|dropped| *dropped != self.dropped) {
            let more = dropped.wrapping_sub(self.dropped);
            self.dropped = dropped;
            counters.lost.add(more.into());
            warn_limited!("{NAME}: the kernel dropped {more} datagrams: receiveBuffer is full");
        }
        counters.received.add(1);
        let Some(from) = arrival.from else { return Verdict::Drop };
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        if !self.rules.allow(from.ip(), arrival.to, &mut self.local) {
            counters.forbidden.add(1);
            warn_limited!("{NAME}: dropped a datagram from {from}, which allowFrom does not name");
            return Verdict::Drop;
        }
        let bad = |fault: &dyn std::fmt::Display| {
            counters.bad.add(1);
            warn_limited!("{NAME}: dropped a datagram from {from}, which is no firefly: {fault}");
            Verdict::Drop
        };
        if arrival.cut {
            return bad(&format_args!("it is longer than {} octets (bufferSize)", datagram.len()));
        }
        let report = match decode(datagram, self.rules.header) {
            Ok(report) => self.face_outwards(report),
            Err(fault) => return bad(&fault),
        };
        let id = report.id;
        let event = report.event().and_then(|event| {
            if event.state != FlowState::End {
                self.names.judge(&self.names.get(), event.tag, "firefly")?;
            }
            Ok(event)
        });
        match event {
            Ok(event) => Verdict::Take(event),
            Err(fault) => {
                counters.untaggable.add(1);
                warn_limited!("{NAME}: cannot take the flow {id}, of {from}: {fault}");
                Verdict::Relay
            }
        }
    }

    /// The report, turned round if only then its source is this host: it is the
    /// packets that leave this host that are marked. What is between others stays.
    fn face_outwards(&mut self, report: Report) -> Report {
        let (src, dst) = (report.id.src().ip(), report.id.dst().ip());
        if !self.local.contains(src) && self.local.contains(dst) {
            return report.turned();
        }
        report
    }
}
