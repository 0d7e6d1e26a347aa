//! The marker's rules for packets of no flow: turns those of the configuration into the
//! entries of the eBPF map, and puts them there so that no packet sees half a change.
//! Owned by the marker's thread.

use std::io;
use std::sync::Arc;

use super::ruled::Ruled;
use crate::config::Section;
use crate::error::{Error, Result};
use crate::flow::{Protocol, Tag};
use crate::net::ports::PortRange;
use crate::net::prefix::Prefix;
use crate::registry::Names;
use crate::rules::Rules;
use crate::sys::abi::{Rule, RulesHead, MAX_RULES, RULE_TCP, RULE_UDP};
use crate::sys::bpf::{Map, Object, Word};

/// What the rules of that section come to.
///
/// # Errors
/// A name is not known.
pub(super) fn read(section: &Section, names: &Names) -> Result<Vec<Rule>> {
    let path = format!("{}.rules", section.path());
    let rules = Rules::read(&path, section.rules("rules"), names);
    let rules = rules.map_err(|problems| {
        let problems: Vec<_> = problems.iter().map(|problem| format!("rules{problem}")).collect();
        Error::config(problems.join("; "))
    })?;
    Ok(entries(&rules))
}

/// An entry for each combination of what a rule lists. Prefixes of IPv4 have none, since
/// its packets cannot carry a tag.
fn entries(rules: &Rules) -> Vec<Rule> {
    let mut entries = Vec::new();
    for rule in &rules.0 {
        let any = [(0, u16::MAX)];
        let ports = |ranges: &[PortRange]| match ranges {
            [] => any.to_vec(),
            ranges => ranges.iter().map(|range| (range.first(), range.last())).collect(),
        };
        let prefixes = |prefixes: &[Prefix]| match prefixes {
            [] => vec![(0, 0)],
            prefixes => prefixes.iter().filter_map(|prefix| prefix.bits_v6()).collect(),
        };
        for (local, local_mask) in prefixes(&rule.local_prefix) {
            for (remote, remote_mask) in prefixes(&rule.remote_prefix) {
                for (local_first, local_last) in ports(&rule.local_port) {
                    for (remote_first, remote_last) in ports(&rule.remote_port) {
                        entries.push(Rule {
                            address: halves(local, remote),
                            mask: halves(local_mask, remote_mask),
                            local_first,
                            local_last,
                            remote_first,
                            remote_last,
                            label: rule.tag.label(0),
                            experiment: rule.tag.experiment(),
                            activity: rule.tag.activity(),
                            classes: match rule.protocol {
                                None => RULE_TCP | RULE_UDP,
                                Some(Protocol::Tcp) => RULE_TCP,
                                Some(Protocol::Udp) => RULE_UDP,
                            },
                        });
                    }
                }
            }
        }
    }
    entries
}

fn halves(local: u128, remote: u128) -> [[u8; 8]; 4] {
    [local >> 64, local, remote >> 64, remote].map(|half| {
        #[allow(clippy::cast_possible_truncation)] // the lower half is meant
        let half = half as u64;
        half.to_be_bytes()
    })
}

/// A label's; above them the maps have the slot of a rule.
const LABEL_BITS: u32 = 20;

/// The word that says which table is in use.
#[derive(Debug)]
enum Head {
    /// Changed at once.
    Word(Word),
    /// Copied by the kernel, which promises no more than its eight octets: where maps
    /// cannot be mapped (before 5.5).
    Map(Map<u32, RulesHead>),
}

/// The rules in the kernel.
#[derive(Debug)]
pub(super) struct Table {
    rules: Map<u32, Rule>,
    head: Head,
    /// Counts what they mark; None: nothing is counted.
    ruled: Option<Arc<Ruled>>,
    /// As it is in the kernel.
    now: RulesHead,
    /// Of the table that was written last; its lowest bit says which of the two.
    version: u8,
}

impl Table {
    /// Of those programs, empty.
    ///
    /// # Errors
    /// They are not ours.
    pub(super) fn new(object: &Object, ruled: Option<Arc<Ruled>>) -> Result<Self> {
        const HEAD: &str = ".data.rules";
        let head = match object.word(HEAD) {
            Ok(word) => Head::Word(word),
            Err(_) => Head::Map(object.map(HEAD)?),
        };
        let (rules, now) = (object.map("rules")?, RulesHead::default());
        Ok(Table { rules, head, ruled, now, version: 0 })
    }

    /// Replaces all rules but the last one. Packets go by the old ones until all new
    /// ones are there.
    ///
    /// # Errors
    /// There are too many, or the kernel refuses; then the old ones stay.
    pub(super) fn set(&mut self, rules: &[Rule]) -> io::Result<()> {
        let mut version = 0;
        if !rules.is_empty() {
            if rules.len() > MAX_RULES {
                return Err(io::Error::other("too many rules"));
            }
            // Never 0, and the other table.
            version = if self.version == u8::MAX { 2 } else { self.version + 1 };
            let first = if version & 1 == 0 { 0 } else { u32::try_from(MAX_RULES).unwrap_or(0) };
            let end = (rules.len() < MAX_RULES).then(Rule::default);
            for (place, rule) in (first..).zip(rules.iter().chain(&end)) {
                let mut rule = *rule;
                if let Ok(tag) = Tag::new(rule.experiment.into(), rule.activity.into()) {
                    rule.label |= place << LABEL_BITS;
                    self.ruled.iter().for_each(|ruled| ruled.place(place, tag));
                }
                self.rules.update(&place, &rule)?;
            }
        }
        self.publish(RulesHead { version, ..self.now })?;
        if version != 0 {
            self.version = version;
        }
        Ok(())
    }

    /// Sets the tag of what meets no other rule; none for no tag.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn set_last(&mut self, tag: Option<Tag>) -> io::Result<()> {
        let slot = |tag| self.ruled.as_ref().map_or(0, |ruled| ruled.last(tag));
        let (label, experiment, activity) = tag.map_or((0, 0, 0), |tag| {
            (tag.label(0) | slot(tag) << LABEL_BITS, tag.experiment(), tag.activity())
        });
        self.publish(RulesHead { label, experiment, activity, ..self.now })
    }

    /// What is behind the table now.
    #[cfg(test)]
    pub(super) fn last(&self) -> Option<Tag> {
        let RulesHead { experiment, activity, .. } = self.now;
        Tag::new(experiment.into(), activity.into()).ok()
    }

    fn publish(&mut self, head: RulesHead) -> io::Result<()> {
        if head != self.now {
            match &self.head {
                Head::Word(word) => word.store(head.word()),
                Head::Map(map) => map.update(&0, &head)?,
            }
            self.now = head;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Rule> {
        let text = format!("{{\"backends\": {{\"marker\": {{\"rules\": {text}}}}}}}");
        let config = crate::config::Config::parse(&text, "test").unwrap();
        let (_, section) = &config.backends[0];
        let names = config.names().unwrap();
        let entries = super::read(section, &names).unwrap();
        assert!(entries.len() <= super::super::combinations(section.rules("rules")), "{text}");
        entries
    }

    #[test]
    fn a_rule_without_conditions_is_for_all_of_tcp_and_udp() {
        let tag = Tag::new(2, 16).unwrap();
        let expected = Rule {
            local_last: u16::MAX,
            remote_last: u16::MAX,
            label: tag.label(0),
            experiment: 2,
            activity: 16,
            classes: RULE_TCP | RULE_UDP,
            ..Rule::default()
        };
        assert_eq!(read(r#"[{"experiment": "atlas", "activity": 16}]"#), [expected]);
        assert_eq!(read("[]"), []);
        assert_eq!(MAX_RULES, super::super::MOST_RULES);
    }

    #[test]
    fn what_a_rule_lists_is_combined() {
        let entries = read(
            r#"[{"protocol": "tcp", "localPort": [1094, "2000-2100"], "localPrefix": "2001:db8::/33",
                 "remotePrefix": ["192.0.2.0/24", "2001:db8:1::/48", "::1"], "remotePort": 7,
                 "experiment": 2, "activity": 16},
                {"remotePrefix": "10.0.0.0/8", "experiment": 2, "activity": 16},
                {"protocol": "udp", "experiment": 3, "activity": 14}]"#,
        );
        assert_eq!(entries.len(), 5);
        let first = entries[0];
        assert_eq!((first.local_first, first.local_last), (1094, 1094));
        assert_eq!((first.remote_first, first.remote_last, first.classes), (7, 7, RULE_TCP));
        assert_eq!(first.address[0], [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0]);
        assert_eq!(first.mask[0], [255, 255, 255, 255, 0x80, 0, 0, 0]);
        assert_eq!(
            (first.address[2], first.address[3]),
            ([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0], [0; 8])
        );
        assert_eq!((first.mask[2], first.mask[3]), ([255, 255, 255, 255, 255, 255, 0, 0], [0; 8]));
        assert_eq!((entries[1].local_first, entries[1].local_last), (2000, 2100));
        assert_eq!(
            (entries[2].address[3], entries[2].mask[3]),
            ([0, 0, 0, 0, 0, 0, 0, 1], [255; 8])
        );
        assert_eq!((entries[4].classes, entries[4].experiment), (RULE_UDP, 3));
    }
}
