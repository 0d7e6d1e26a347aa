//! Rules: which tag a connection gets by what it is. A rule is a tag and conditions,
//! and the first one whose conditions all hold counts.
//!
//! Some facts of a connection are found only at some expense. So the rules say which
//! one they need next to decide, and it is looked up only then.
//!
//! Pure, but for the names of users: they are looked up once, when a configuration is
//! read, and remembered. Whether control groups are there is looked up for warnings.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::unistd::User;

use crate::config::{Choice, Key, Kind, Section};
use crate::flow::{Protocol, Tag};
use crate::net::ports::PortRange;
use crate::net::prefix::Prefix;
use crate::registry::{Names, Registry};

/// The longest name that the kernel has for a command, in octets.
const LONGEST_COMMAND: usize = 15;

/// The keys of a rule, for tables of those that somebody can obey. Each table has
/// [`keys::EXPERIMENT`] and [`keys::ACTIVITY`].
pub mod keys {
    use super::{Choice, Key, Kind};

    const fn key(name: &'static str, kind: Kind, doc: &'static str) -> Key {
        Key { name, aliases: &[], kind, default: "null", live: true, doc }
    }

    /// The transport protocol.
    pub const PROTOCOL: Key = key(
        "protocol",
        Kind::Choice(&[Choice { name: "tcp", aliases: &[] }, Choice { name: "udp", aliases: &[] }]),
        "The transport protocol.",
    );
    /// Ports of this host.
    pub const LOCAL_PORT: Key = key(
        "localPort",
        Kind::Ports,
        "Port of the end on this host, as in 1094 or [\"1094-1095\", 8443].",
    );
    /// Ports of the other host.
    pub const REMOTE_PORT: Key = key("remotePort", Kind::Ports, "Port of the other end.");
    /// Addresses of this host.
    pub const LOCAL_PREFIX: Key = key(
        "localPrefix",
        Kind::Prefixes,
        "Address of the end on this host. An IPv4 prefix is for IPv4, also on a socket of IPv6; such \
         packets cannot be marked.",
    );
    /// Addresses of the other host.
    pub const REMOTE_PREFIX: Key =
        key("remotePrefix", Kind::Prefixes, "Address of the other end, in the same way.");
    /// Who owns the socket.
    pub const USER: Key = Key {
        aliases: &["uid"],
        ..key(
            "user",
            Kind::Word,
            "The owner of the socket, as name or number: the effective user of the process that made \
             it. A name is looked up when the configuration is read, at the start and at a reload; \
             the static binary knows those in /etc/passwd and from nscd(8) only.",
        )
    };
    /// The service.
    pub const CGROUP: Key = key(
        "cgroup",
        Kind::Path,
        "The control group of the socket, such as \
         /system.slice/system-xrootd.slice/xrootd@clustered.service, or one above it: the path in \
         the hierarchy of version 2, which /proc/PID/cgroup shows behind 0::. Where the kernel does \
         not tell it (before 5.8, and on some of EL8), it is that of a process that has the \
         socket.",
    );
    /// The program.
    pub const COMMAND: Key = key(
        "command",
        Kind::Text,
        "The name of a process that has the socket, as ps -o comm shows it: the first 15 octets. It \
         takes CAP_BPF and CAP_PERFMON, and Linux 5.8 with BTF. Of a connection that another host \
         opens it is known at the next look only: one that is over by then is not found, neither \
         by this rule nor by those behind it, so such rules are best the last.",
    );
    /// The tag's first half.
    pub const EXPERIMENT: Key = key(
        "experiment",
        Kind::Word,
        "The experiment of the tag, by name or id. It has to be given.",
    );
    /// The tag's second half.
    pub const ACTIVITY: Key =
        key("activity", Kind::Word, "The activity of the tag, by name or id. It has to be given.");
}

/// All keys of a rule, for those who can find out everything of a socket.
pub static KEYS: &[Key] = &[
    keys::PROTOCOL,
    keys::LOCAL_PORT,
    keys::REMOTE_PORT,
    keys::LOCAL_PREFIX,
    keys::REMOTE_PREFIX,
    keys::USER,
    keys::CGROUP,
    keys::COMMAND,
    keys::EXPERIMENT,
    keys::ACTIVITY,
];

/// One rule. A condition that is none holds always.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The transport protocol.
    pub protocol: Option<Protocol>,
    /// One of these is the local port; none for any.
    pub local_port: Vec<PortRange>,
    /// One of these is the remote port; none for any.
    pub remote_port: Vec<PortRange>,
    /// One of these has the local address; none for any.
    pub local_prefix: Vec<Prefix>,
    /// One of these has the remote address; none for any.
    pub remote_prefix: Vec<Prefix>,
    /// The owner.
    pub user: Option<u32>,
    /// The control group or one above it, without a slash at its end: the root's is "".
    pub cgroup: Option<String>,
    /// The name of the process.
    pub command: Option<String>,
    /// What the connection gets.
    pub tag: Tag,
}

/// A fact of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fact<T> {
    /// Nobody has looked yet.
    #[default]
    Open,
    /// It cannot be found: conditions on it do not hold.
    Unknown,
    /// This is it.
    Known(T),
}

impl<T> Fact<T> {
    /// The outcome of a look-up.
    pub fn found(value: Option<T>) -> Self {
        value.map_or(Fact::Unknown, Fact::Known)
    }
}

/// A connection, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The end on this host.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Who owns the socket.
    pub uid: Fact<u32>,
    /// Its control group, such as "/system.slice/ssh.service"; "/" is the root.
    pub cgroup: Fact<&'a str>,
    /// The names of the processes that have the socket.
    pub command: Fact<&'a [Box<str>]>,
}

/// A fact that is looked up on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// [`Subject::uid`].
    Uid,
    /// [`Subject::cgroup`].
    Cgroup,
    /// [`Subject::command`].
    Command,
}

/// What the rules say of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It gets this tag.
    Tag(Tag),
    /// It gets none.
    None,
    /// That depends on a fact that is open.
    Depends(Need),
}

/// A list of rules; the first that matches counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// What is wrong with `rules`, which stand in a section under `key`, as far as that
    /// can be said without a registry and a list of users. Each message starts with the
    /// path in the section. Those that were read by a table of these keys only.
    pub fn problems(key: &str, rules: &[Section]) -> Vec<String> {
        let mut problems = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let mut wrong = |what: &str, problem: &dyn std::fmt::Display| {
                problems.push(format!("{key}[{index}].{what}: {problem}"));
            };
            for half in ["experiment", "activity"] {
                if !rule.has(half) {
                    wrong(half, &"is missing: a rule says a tag");
                }
            }
            for list in ["localPort", "remotePort", "localPrefix", "remotePrefix"] {
                if rule.has(list) && rule.list(list).is_empty() {
                    wrong(list, &"names none, so the rule would never match");
                }
            }
            if rule.has("user") && rule.text("user").is_empty() {
                wrong("user", &"must not be empty");
            }
            if let Some(problem) = rule.has("cgroup").then(|| cgroup(rule.text("cgroup")).err()) {
                problem.into_iter().for_each(|problem| wrong("cgroup", &problem));
            }
            if rule.has("command") {
                let command = rule.text("command");
                if command.is_empty() {
                    wrong("command", &"must not be empty");
                } else if command.len() > LONGEST_COMMAND {
                    let longest = "longer than the 15 octets that the kernel keeps of a name";
                    wrong("command", &format_args!("{command:?} is {longest}"));
                }
            }
            let any =
                rule.values().iter().all(|(key, _)| matches!(*key, "experiment" | "activity"));
            if any && index + 1 < rules.len() {
                let next = index + 1;
                problems.push(format!(
                    "{key}[{next}]: never matches, since {key}[{index}] has no conditions"
                ));
            }
        }
        problems
    }

    /// The rules of a section, which [`Rules::problems`] has nothing against. `path` is
    /// that of the list, such as `plugins.netlink.rules`.
    ///
    /// # Errors
    /// An experiment, activity or user is not known; each message starts with the path in
    /// the list, such as `[2].user`.
    pub fn read(path: &str, rules: &[Section], names: &Names) -> Result<Self, Vec<String>> {
        let registry = names.get();
        let (mut read, mut problems) = (Vec::with_capacity(rules.len()), Vec::new());
        for (index, section) in rules.iter().enumerate() {
            let place = format!("{path}[{index}]");
            let tag = tag(section, &registry).and_then(|tag| {
                names
                    .judge_at(&registry, tag, &place)
                    .map_err(|problem| ("experiment", problem))?;
                Ok(tag)
            });
            let user = match section.has("user") {
                true => {
                    known_uid(section.text("user")).map(Some).map_err(|problem| ("user", problem))
                }
                false => Ok(None),
            };
            match (tag, user) {
                (Ok(tag), Ok(user)) => read.push(Rule::read(section, user, tag)),
                (tag, user) => problems.extend(
                    [tag.err(), user.err()]
                        .into_iter()
                        .flatten()
                        .map(|(key, problem)| format!("[{index}].{key}: {problem}")),
                ),
            }
        }
        if problems.is_empty() {
            Ok(Rules(read))
        } else {
            Err(problems)
        }
    }

    /// What they say of a connection.
    pub fn judge(&self, subject: &Subject<'_>) -> Verdict {
        for rule in &self.0 {
            match rule.holds(subject) {
                Ok(true) => return Verdict::Tag(rule.tag),
                Ok(false) => {}
                Err(need) => return Verdict::Depends(need),
            }
        }
        Verdict::None
    }

    /// Warns of control groups that are not there: they may come later, but often their paths are
    /// wrong. `path` is that of the list, as for [`Rules::read`].
    pub fn warn_of_missing_groups(&self, path: &str) {
        // Where none are mounted, whoever needs them says so.
        let Ok(root) = crate::net::connections::root() else { return };
        for (index, rule) in self.0.iter().enumerate() {
            let Some(group) = &rule.cgroup else { continue };
            if !root.join(group.trim_start_matches('/')).is_dir() {
                log::warn!("{path}[{index}].cgroup: there is no control group {group:?} now");
            }
        }
    }

    /// Whether any of them may need that fact.
    pub fn may_need(&self, need: Need) -> bool {
        self.0.iter().any(|rule| match need {
            Need::Uid => rule.user.is_some(),
            Need::Cgroup => rule.cgroup.is_some(),
            Need::Command => rule.command.is_some(),
        })
    }
}

impl Rule {
    /// One that gives every connection this tag.
    pub fn of_all(tag: Tag) -> Self {
        Rule {
            protocol: None,
            local_port: Vec::new(),
            remote_port: Vec::new(),
            local_prefix: Vec::new(),
            remote_prefix: Vec::new(),
            user: None,
            cgroup: None,
            command: None,
            tag,
        }
    }

    fn read(section: &Section, user: Option<u32>, tag: Tag) -> Self {
        /// They were judged when the configuration was read.
        fn list<T: FromStr>(section: &Section, key: &str) -> Vec<T> {
            let texts = if section.has(key) { section.list(key) } else { &[] };
            texts.iter().filter_map(|text| text.parse().ok()).collect()
        }
        let text = |key| section.has(key).then(|| section.text(key));
        Rule {
            protocol: text("protocol").and_then(Protocol::parse),
            local_port: list(section, "localPort"),
            remote_port: list(section, "remotePort"),
            local_prefix: list(section, "localPrefix"),
            remote_prefix: list(section, "remotePrefix"),
            user,
            cgroup: text("cgroup").and_then(|path| cgroup(path).ok()),
            command: text("command").map(str::to_owned),
            tag,
        }
    }

    /// Whether all its conditions hold. Err: that depends on a fact. What costs least is
    /// looked at first.
    fn holds(&self, subject: &Subject<'_>) -> Result<bool, Need> {
        let Subject { protocol, local, remote, .. } = *subject;
        let port = |ranges: &[PortRange], port| {
            ranges.is_empty() || ranges.iter().any(|range| range.contains(port))
        };
        let address = |prefixes: &[Prefix], ip| {
            prefixes.is_empty() || prefixes.iter().any(|prefix| prefix.contains(ip))
        };
        if self.protocol.is_some_and(|wanted| wanted != protocol)
            || !port(&self.local_port, local.port())
            || !port(&self.remote_port, remote.port())
            || !address(&self.local_prefix, local.ip())
            || !address(&self.remote_prefix, remote.ip())
        {
            return Ok(false);
        }
        Ok(holds(self.user, subject.uid, Need::Uid, |wanted, uid| *wanted == uid)?
            && holds(self.cgroup.as_deref(), subject.cgroup, Need::Cgroup, |wanted, path| {
                let below = path.strip_prefix(*wanted);
                below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })?
            && holds(
                self.command.as_deref(),
                subject.command,
                Need::Command,
                |wanted, commands| commands.iter().any(|command| **command == **wanted),
            )?)
    }
}

fn holds<W, T>(
    wanted: Option<W>,
    fact: Fact<T>,
    need: Need,
    same: impl Fn(&W, T) -> bool,
) -> Result<bool, Need> {
    match (wanted, fact) {
        (None, _) => Ok(true),
        (Some(wanted), Fact::Known(fact)) => Ok(same(&wanted, fact)),
        (Some(_), Fact::Unknown) => Ok(false),
        (Some(_), Fact::Open) => Err(need),
    }
}

/// The tag that a section says under `experiment` and `activity`.
///
/// # Errors
/// One of them is not known; the key and what is wrong with its value.
pub fn tag(section: &Section, registry: &Registry) -> Result<Tag, (&'static str, String)> {
    let experiment = registry
        .experiment(section.text("experiment"))
        .map_err(|problem| ("experiment", problem))?;
    registry.activity(experiment, section.text("activity")).map_err(|problem| ("activity", problem))
}

/// A path of a control group as it is compared.
fn cgroup(path: &str) -> Result<String, String> {
    let odd = |part: &str| matches!(part, "" | "." | "..");
    let whole = path.strip_suffix('/').unwrap_or(path);
    let mounted = whole.strip_prefix("/sys/fs/cgroup");
    if mounted.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        return Err(format!("{path:?} is where groups are mounted: leave out /sys/fs/cgroup"));
    }
    match whole.strip_prefix('/') {
        Some(inner) if !inner.split('/').any(odd) => Ok(whole.to_owned()),
        None if path == "/" => Ok(String::new()),
        _ => Err(format!("{path:?} is not a path such as \"/system.slice/ssh.service\"")),
    }
}

/// The numbers of users that were looked up, by name.
static USERS: Mutex<Vec<(String, u32)>> = Mutex::new(Vec::new());

/// The number of a user, given by name or number. It is looked up now, which takes as long
/// as the system's directory of users does, and remembered for rules that are read later,
/// maybe on a thread that must not wait.
///
/// # Errors
/// There is no such user, or it cannot be looked up.
pub fn uid(user: &str) -> Result<u32, String> {
    if user.bytes().all(|byte| byte.is_ascii_digit()) {
        // The largest one says "no user".
        let number = user.parse().ok().filter(|uid| *uid != u32::MAX);
        return number.ok_or_else(|| format!("{user} is not the number of a user"));
    }
    match User::from_name(user) {
        Ok(Some(found)) => {
            let uid = found.uid.as_raw();
            let mut users = users();
            users.retain(|(name, _)| name != user);
            users.push((user.to_owned(), uid));
            Ok(uid)
        }
        Ok(None) => Err(format!("there is no user {user:?}")),
        Err(error) => Err(format!("cannot look up user {user:?}: {error}")),
    }
}

/// The same as it was found last.
fn known_uid(user: &str) -> Result<u32, String> {
    // Nobody waits for the list while another looks up.
    let known = users().iter().find(|(name, _)| name == user).map(|(_, uid)| *uid);
    known.map_or_else(|| uid(user), Ok)
}

fn users() -> MutexGuard<'static, Vec<(String, u32)>> {
    USERS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
