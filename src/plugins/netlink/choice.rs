//! What the configuration says: which connections get which tag, and how often is
//! looked. Pure, but for the names of users.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Section;
use crate::flow::{FlowId, Protocol};
use crate::net::addresses::Local;
use crate::net::connections::{Ports, Wanted};
use crate::net::ports::PortRange;
use crate::net::prefix::Prefix;
use crate::net::sock_diag::{Condition, Filter};
use crate::registry::{Names, Registry};
use crate::rules::{self, Need, Rule, Rules, Subject, Verdict};

/// Networks that are not reached through the internet: this host, links, private use,
/// and addresses that several may share (RFC 1122, 1918, 3927, 4193, 4291, 6598).
const PRIVATE: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::/127",
    "fc00::/7",
    "fe80::/10",
];

/// Beyond so many alternatives the kernel is not told what the rules want: it would
/// try one after the other for each socket.
const MOST_ALTERNATIVES: usize = 64;

/// What to look for.
#[derive(Debug)]
pub(super) struct Choice {
    section: Section,
    /// By which names the rules were read.
    registry: Arc<Registry>,
    pub(super) rules: Rules,
    /// Whose connections are left out, by the address of the other end: private ones too,
    /// unless they are included.
    exclude: Vec<Prefix>,
    include_private: bool,
    /// From the start of one look to the next.
    pub(super) period: Duration,
}

impl Choice {
    /// What a section says.
    ///
    /// # Errors
    /// An experiment, activity or user is not known: all of them, each with the key
    /// in front.
    pub(super) fn read(section: &Section, names: &Names) -> Result<Self, Vec<String>> {
        let path = format!("{}.rules", section.path());
        let registry = names.get();
        let (mut read, mut problems) = match Rules::read(&path, section.rules("rules"), names) {
            Ok(rules) => (rules, Vec::new()),
            Err(problems) => {
                let problems = problems.iter().map(|problem| format!("rules{problem}"));
                (Rules::default(), problems.collect())
            }
        };
        if !section.text("experiment").is_empty() {
            let tag = rules::tag(section, &registry).and_then(|tag| {
                let judged = names.judge_at(&registry, tag, &section.path());
                judged.map(|()| tag).map_err(|problem| ("experiment", problem))
            });
            match tag {
                Ok(tag) => read.0.push(Rule::of_all(tag)),
                Err((key, problem)) => problems.push(format!("{key}: {problem}")),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        // They were judged when the configuration was read.
        let exclude = section.list("exclude").iter().map(String::as_str);
        let include_private = section.bool("includePrivate");
        let private = if include_private { &[] } else { PRIVATE };
        Ok(Choice {
            section: section.clone(),
            registry,
            rules: read,
            exclude: exclude
                .chain(private.iter().copied())
                .filter_map(|t| t.parse().ok())
                .collect(),
            include_private,
            period: Duration::from_millis(section.int("period")),
        })
    }

    /// Of rules that nobody has configured, with everything included.
    #[cfg(test)]
    pub(super) fn of_rules(rules: Rules) -> Self {
        Choice {
            section: Section::new("plugins.netlink", Vec::new()),
            registry: Arc::new(Registry::snapshot()),
            rules,
            exclude: Vec::new(),
            include_private: true,
            period: Duration::from_secs(1),
        }
    }

    /// Warns of control groups that rules name and that are not there.
    pub(super) fn warn_of_missing_groups(&self) {
        self.rules.warn_of_missing_groups(&format!("{}.rules", self.section.path()));
    }

    /// The same by the names of now, if they are others.
    pub(super) fn reread(&self, names: &Names) -> Option<Result<Self, Vec<String>>> {
        let is_new = !Arc::ptr_eq(&self.registry, &names.get());
        is_new.then(|| Choice::read(&self.section, names))
    }

    /// Keeps the rules, and is not asked again until the names are others again.
    pub(super) fn stay(&mut self, names: &Names) {
        self.registry = names.get();
    }

    /// What the rules say of a connection that is not left out.
    pub(super) fn judge(&self, subject: &Subject<'_>, local: &mut Local) -> Verdict {
        if self.excludes(subject.remote.ip(), local) {
            return Verdict::None;
        }
        self.rules.judge(subject)
    }

    fn excludes(&self, remote: IpAddr, local: &mut Local) -> bool {
        self.exclude.iter().any(|prefix| prefix.contains(remote))
            || !self.include_private && local.contains(remote)
    }

    /// Whether any connection of that protocol can match.
    pub(super) fn wants(&self, protocol: Protocol) -> bool {
        self.rules.0.iter().any(|rule| rule.protocol.is_none_or(|wanted| wanted == protocol))
    }

    /// Which connections the kernel has to tell of at once.
    pub(super) fn wanted(&self) -> Wanted {
        let any = 1..=u16::MAX;
        let mut ports = Vec::new();
        for rule in self.rules.0.iter().filter(|rule| rule.protocol != Some(Protocol::Udp)) {
            let ranges = |ranges: &[PortRange]| match ranges {
                [] => vec![any.clone()],
                some => some.iter().map(|range| range.first()..=range.last()).collect(),
            };
            for local in ranges(&rule.local_port) {
                for remote in ranges(&rule.remote_port) {
                    ports.push(Ports { local: local.clone(), remote });
                }
            }
            // Then it is all of them, for there is no room for so many.
            if ports.len() > MOST_ALTERNATIVES {
                break;
            }
        }
        if ports.is_empty() {
            // None, which an empty list does not say: no connection has such ports.
            ports.push(Ports { local: 0..=0, remote: 0..=0 });
        }
        let groups = self.rules.may_need(Need::Cgroup);
        Wanted { ports, no_loopback: !self.include_private, groups }
    }

    /// What the kernel can leave out: it may list more than what matches, never less.
    pub(super) fn filter(&self) -> Option<Filter> {
        let excluded: Vec<Condition> = self
            .exclude
            .iter()
            .map(|prefix| Condition::Not(Box::new(Condition::Remote(*prefix))))
            .collect();
        let mut lists = Vec::new();
        for rule in &self.rules.0 {
            lists.extend(alternatives(rule));
            if lists.len() > MOST_ALTERNATIVES {
                lists = vec![Vec::new()];
                break;
            }
        }
        lists.iter_mut().for_each(|list| list.extend_from_slice(&excluded));
        Filter::any_of(lists.iter().map(Vec::as_slice))
    }
}

/// The rule as lists of conditions, of which one has to hold: more than there may be, if
/// there are more than that.
fn alternatives(rule: &Rule) -> Vec<Vec<Condition>> {
    let ports = |ranges: &[PortRange], make: fn(u16, u16) -> Condition| -> Vec<Condition> {
        ranges.iter().map(|range| make(range.first(), range.last())).collect()
    };
    let prefixes = |prefixes: &[Prefix], make: fn(Prefix) -> Condition| -> Vec<Condition> {
        prefixes.iter().map(|prefix| make(*prefix)).collect()
    };
    let mut lists = vec![Vec::new()];
    for options in [
        ports(&rule.local_port, Condition::LocalPort),
        ports(&rule.remote_port, Condition::RemotePort),
        prefixes(&rule.local_prefix, Condition::Local),
        prefixes(&rule.remote_prefix, Condition::Remote),
    ] {
        if options.is_empty() || lists.len() > MOST_ALTERNATIVES {
            continue;
        }
        let with = |option: &Condition| {
            let mut lists = lists.clone();
            lists.iter_mut().for_each(|list| list.push(option.clone()));
            lists
        };
        lists = options.iter().take(MOST_ALTERNATIVES + 1).flat_map(with).collect();
    }
    lists
}

/// A connection, as the kernel tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    /// Its source is this host.
    pub(super) id: FlowId,
    /// The number of its socket, never given twice.
    pub(super) cookie: u64,
    /// Its number in the file system of sockets; 0: no process has it (yet, or any more).
    pub(super) inode: u32,
    /// The interface that it is bound to; 0: none.
    pub(super) interface: u32,
    /// Who made it; None: nobody has it.
    pub(super) uid: Option<u32>,
    /// Its control group, if the kernel tells.
    pub(super) cgroup: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Tag;

    #[test]
    fn without_a_rule_for_tcp_no_connection_is_reported() {
        let tag = Tag::new(2, 16).unwrap();
        let udp = Rule { protocol: Some(Protocol::Udp), ..Rule::of_all(tag) };
        let any = Ports { local: 1..=u16::MAX, remote: 1..=u16::MAX };
        // No connection has a port 0; an empty list would say all.
        let none = Ports { local: 0..=0, remote: 0..=0 };
        let wanted = |rules| Choice::of_rules(Rules(rules)).wanted().ports;
        assert_eq!(wanted(vec![udp.clone(), Rule::of_all(tag)]), [any]);
        assert_eq!(wanted(vec![udp]), std::slice::from_ref(&none));
        assert_eq!(wanted(Vec::new()), [none]);
    }
}
