//! A look at all sockets (sock_diag(7)): one dump per protocol, whatever the
//! number of connections. Runs on the plugin's thread; owns its netlink socket, and what
//! it takes to find the facts that rules need.

use std::collections::HashMap;
use std::time::Instant;

use log::warn;
use nix::errno::Errno;

use super::choice::{Choice, Connection};
use super::known::{Connections, Finding};
use super::NAME;
use crate::error::Result;
use crate::flow::Protocol;
use crate::net::addresses::Local;
use crate::net::cgroups::{Cgroups, Places};
use crate::net::processes::Processes;
use crate::net::sock_diag::{Diag, Filter, Query, Socket, State, States};
use crate::rules::{Fact, Need, Subject, Verdict};
use crate::warn_limited;

/// In which a connection is open: data may leave this host. A request that nobody has
/// answered (SYN-RECV) is none yet: anybody can make those.
const OPEN: &[State] = &[
    State::SYN_SENT,
    State::ESTABLISHED,
    State::FIN_WAIT_1,
    State::FIN_WAIT_2,
    State::CLOSE_WAIT,
    State::CLOSING,
    State::LAST_ACK,
];

/// Looks for connections.
#[derive(Debug)]
pub(super) struct Scanner {
    diag: Diag,
    filter: Option<Filter>,
    facts: Facts,
    /// Before, no report has the folders of control groups be read.
    next_read: Instant,
}

/// What the rules may need to know of a socket.
#[derive(Debug)]
struct Facts {
    local: Local,
    /// Whether it is looked at all, not at what is reported.
    looks: bool,
    cgroups: Option<Cgroups>,
    processes: Option<Processes>,
    /// Of this round: who has a socket, by its inode.
    holders: HashMap<u32, Holders>,
}

/// The processes that have a socket.
#[derive(Debug, Default)]
struct Holders {
    commands: Vec<Box<str>>,
    /// The control group of one of them.
    cgroup: Option<u64>,
}

impl Scanner {
    /// What it takes to look by that choice.
    ///
    /// # Errors
    /// The system refuses, or does not know facts that the rules need.
    pub(super) fn open(choice: &Choice) -> Result<Self> {
        let needed = |need| choice.rules.may_need(need);
        let mut facts = Facts {
            local: Local::default(),
            looks: true,
            cgroups: needed(Need::Cgroup).then(Cgroups::find).transpose()?,
            processes: needed(Need::Command).then(Processes::open).transpose()?,
            holders: HashMap::new(),
        };
        let mut diag = Diag::open()?;
        if facts.cgroups.is_some() && facts.processes.is_none() && !diag.tells_cgroups() {
            facts.find_cgroups_by_process(choice);
        }
        Ok(Scanner { diag, filter: choice.filter(), facts, next_read: Instant::now() })
    }

    /// A round: looks at all connections, and judges those that are new.
    pub(super) fn look(&mut self, choice: &Choice, connections: &mut Connections) {
        connections.begin_round();
        self.facts.looks = true;
        if let Some(cgroups) = &mut self.facts.cgroups {
            cgroups.begin_round();
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            if choice.wants(protocol) {
                self.dump(protocol, connections);
            }
        }
        self.judge_all(choice, connections);
        let mut silent: Option<Protocol> = None;
        // A dump may lack what is there.
        for (id, cookie, interface) in connections.unseen() {
            if silent == Some(id.protocol()) {
                continue;
            }
            let mut found = None;
            let is_there =
                self.diag.look_up(&id, cookie, interface, 0, |socket| found = connection(socket));
            match (is_there, found) {
                (Ok(_), Some(connection)) => connections.see(&[connection]),
                (Ok(_), None) => connections.gone(&id, cookie, None),
                // Then it cannot be said.
                (Err(failure), _) => {
                    warn_limited!("{NAME}: cannot look for {id}: {}", failure.text);
                    silent = Some(id.protocol());
                }
            }
        }
        // Of those some may not match any more.
        self.judge_all(choice, connections);
        connections.give_memory_back();
    }

    fn dump(&mut self, protocol: Protocol, connections: &mut Connections) {
        let states = match protocol {
            Protocol::Tcp => States::of(OPEN),
            Protocol::Udp => States::of(&[State::ESTABLISHED]),
        };
        loop {
            let filter = self.filter.as_ref();
            let query = Query { protocol, family: None, states, extensions: 0, filter };
            let outcome = self.diag.dump_some(&query, |sockets| {
                let there: Vec<Connection> = sockets.iter().filter_map(connection).collect();
                connections.see(&there);
            });
            match outcome {
                // What was not told is asked for by name.
                Ok(_) => return,
                Err(failure) if failure.errno == Errno::EINVAL && self.filter.is_some() => {
                    log::debug!("{NAME}: the kernel does not filter sockets: {}", failure.text);
                    self.filter = None;
                }
                Err(failure) => {
                    warn_limited!("{NAME}: cannot list sockets of {protocol}: {}", failure.text);
                    return;
                }
            }
        }
    }

    /// Judges what is new in this round.
    fn judge_all(&mut self, choice: &Choice, connections: &mut Connections) {
        let news = connections.news();
        let mut nameless = Vec::new();
        for new in news {
            match self.facts.judge(choice, &new, Fact::Open) {
                Ok(finding) => connections.judged(&new, finding),
                Err(Need::Command | Need::Cgroup) if new.inode != 0 => nameless.push(new),
                // Nobody has it yet.
                Err(_) => connections.judged(&new, Finding::Undecided),
            }
        }
        if nameless.is_empty() {
            return;
        }
        if !self.facts.find_holders(&nameless) {
            nameless.iter().for_each(|new| connections.judged(new, Finding::Undecided));
            return;
        }
        for new in nameless {
            let holders = self.facts.holders.remove(&new.inode);
            let found = holders.is_some();
            let finding = match self.facts.judge(choice, &new, Fact::found(holders.as_ref())) {
                Ok(Finding::Nothing | Finding::RememberNothing) if !found => Finding::NothingYet,
                Ok(Finding::Nothing) => Finding::RememberNothing,
                Ok(finding) => finding,
                Err(_) => Finding::Undecided,
            };
            connections.judged(&new, finding);
        }
    }

    /// Asks there first where control groups are.
    pub(super) fn ask(&mut self, places: Places) {
        if let Some(cgroups) = &mut self.facts.cgroups {
            cgroups.ask(places);
        }
    }

    /// Reports follow. Where their control groups are the kernel has told; should it not have,
    /// the folders of all groups are read. That is dear, and whoever may connect decides how
    /// often there is one that is new: it is done once in a period, and others wait for the next
    /// look.
    pub(super) fn begin_reports(&mut self, choice: &Choice) {
        self.facts.looks = false;
        let now = Instant::now();
        if now >= self.next_read {
            self.next_read = now + choice.period;
            if let Some(cgroups) = &mut self.facts.cgroups {
                cgroups.begin_round();
            }
        }
    }

    /// Judges a connection that was reported, as far as that can be done at once.
    pub(super) fn judge(&mut self, choice: &Choice, new: &Connection, command: &str) -> Finding {
        let holders = Holders { commands: vec![command.into()], cgroup: None };
        let fact = if command.is_empty() { Fact::Open } else { Fact::Known(&holders) };
        self.facts.judge(choice, new, fact).unwrap_or(Finding::Undecided)
    }
}

impl Facts {
    /// What the rules say of a connection; Err: that takes a fact that is open.
    fn judge(
        &mut self,
        choice: &Choice,
        connection: &Connection,
        holders: Fact<&Holders>,
    ) -> std::result::Result<Finding, Need> {
        let Facts { local, cgroups, processes, looks, .. } = self;
        let (command, group) = match holders {
            Fact::Open => (Fact::Open, None),
            Fact::Unknown => (Fact::Unknown, None),
            Fact::Known(holders) => (Fact::Known(&holders.commands[..]), holders.cgroup),
        };
        let group = connection.cgroup.or(group);
        let mut subject = Subject {
            protocol: connection.id.protocol(),
            local: connection.id.src(),
            remote: connection.id.dst(),
            uid: connection.uid.map_or(Fact::Open, Fact::Known),
            cgroup: Fact::Open,
            command,
        };
        let mut verdict = choice.judge(&subject, local);
        let (mut costly, mut is_told) = (false, true);
        if verdict == Verdict::Depends(Need::Cgroup) {
            is_told = group.is_some();
            let may_be_found = matches!(holders, Fact::Open) && processes.is_some();
            // A socket that nobody has may not have got its group yet.
            if !is_told && (connection.inode == 0 || may_be_found) {
                return Err(Need::Cgroup);
            }
            if !is_told && processes.is_none() {
                // No reason to leave the rules behind it out.
                warn_limited!(
                    "{NAME}: the kernel does not tell the control groups of sockets (5.8 does), \
                     so rules by cgroup hold for no connection that was not reported"
                );
            }
            costly = true;
            let path = cgroups.as_mut().zip(group);
            subject.cgroup = match path.map_or(Fact::Unknown, |(groups, id)| groups.path(id)) {
                // Its group may have been made a moment ago.
                Fact::Open if !*looks => return Err(Need::Cgroup),
                // The sockets were listed before the folders were read.
                Fact::Open => Fact::Unknown,
                found => found,
            };
            verdict = choice.judge(&subject, local);
        }
        match verdict {
            Verdict::Tag(tag) => Ok(Finding::Tag(tag)),
            // A report may have told it.
            Verdict::None if !is_told => Ok(Finding::NothingYet),
            Verdict::None if costly => Ok(Finding::RememberNothing),
            Verdict::None => Ok(Finding::Nothing),
            Verdict::Depends(need) => Err(need),
        }
    }

    /// Where the kernel does not tell the group of a socket, that of a process that has it is
    /// the nearest to it.
    fn find_cgroups_by_process(&mut self, choice: &Choice) {
        match Processes::open() {
            Ok(processes) => self.processes = Some(processes),
            Err(error) => {
                for (index, rule) in choice.rules.0.iter().enumerate() {
                    if rule.cgroup.is_some() {
                        warn!(
                            "{NAME}.rules[{index}].cgroup: holds for no connection that is not \
                             found at once (immediate), since the kernel does not tell the \
                             control groups of sockets (5.8 does), and {error}"
                        );
                    }
                }
            }
        }
    }

    /// Finds out which processes have these sockets; false: that cannot be said now.
    fn find_holders(&mut self, nameless: &[Connection]) -> bool {
        let Facts { processes, holders, .. } = self;
        holders.clear();
        let wanted: std::collections::HashSet<u32> =
            nameless.iter().map(|connection| connection.inode).collect();
        let Some(processes) = processes else { return true };
        let outcome = processes.each(|holder| {
            if wanted.contains(&holder.inode) {
                let name = String::from_utf8_lossy(holder.command);
                let found = holders.entry(holder.inode).or_default();
                found.cgroup = Some(holder.cgroup);
                if !found.commands.iter().any(|known| **known == *name) {
                    found.commands.push(name.into());
                }
            }
        });
        if let Err(error) = &outcome {
            warn_limited!("{NAME}: cannot find out which process has a socket: {error}");
        }
        outcome.is_ok()
    }
}

/// The connection of a socket, if it has one that is open.
fn connection(socket: &Socket<'_>) -> Option<Connection> {
    let State(state) = socket.state;
    let open = OPEN.contains(&State(state));
    // What is left of a connection waits in this state as well.
    if !open || socket.state == State::FIN_WAIT_2 && socket.inode == 0 {
        return None;
    }
    Some(Connection {
        id: socket.flow().ok()?,
        cookie: socket.cookie,
        inode: socket.inode,
        interface: socket.interface,
        uid: (socket.inode != 0).then_some(socket.uid),
        cgroup: socket.cgroup(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{FlowId, Tag};
    use crate::rules::{Rule, Rules};

    /// As kernels before 5.8 do.
    #[test]
    fn a_group_that_the_kernel_does_not_tell_leaves_the_other_rules_alone() {
        let tags = [1, 2].map(|activity| Tag::new(2, activity).unwrap());
        let grouped = Rule { cgroup: Some("/a".into()), ..Rule::of_all(tags[0]) };
        let ends = ["[2001:db8::1]:5", "[2001:db8::2]:6"].map(|end| end.parse().unwrap());
        let id = FlowId::new(Protocol::Tcp, ends[0], ends[1]).unwrap();
        let (local, holders) = (Local::default(), HashMap::new());
        let mut facts = Facts { local, looks: true, cgroups: None, processes: None, holders };
        let mut judge = |rules: Vec<Rule>, inode| {
            let choice = Choice::of_rules(Rules(rules));
            let one = Connection { id, cookie: 1, inode, interface: 0, uid: Some(0), cgroup: None };
            facts.judge(&choice, &one, Fact::Open)
        };
        let both = || vec![grouped.clone(), Rule::of_all(tags[1])];
        assert_eq!(judge(both(), 7), Ok(Finding::Tag(tags[1])));
        assert_eq!(judge(vec![grouped.clone()], 7), Ok(Finding::NothingYet));
        assert_eq!(judge(both(), 0), Err(Need::Cgroup), "it may get one");
    }

    #[cfg(feature = "ebpf")]
    #[test]
    fn a_group_that_the_kernel_does_not_tell_is_that_of_a_process() {
        use crate::net::sock_diag::NO_COOKIE;
        use crate::sys::bpf::lacking_capabilities;
        use std::net::{TcpListener, TcpStream};

        if let Some(lacking) = lacking_capabilities() {
            println!("SKIP: needs root for bpf(2): {lacking}");
            return;
        }
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let Some(own) = groups.lines().find_map(|line| line.strip_prefix("0::")) else {
            println!("SKIP: there are no control groups of version 2");
            return;
        };
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, remote) = (near.local_addr().unwrap(), near.peer_addr().unwrap());
        let id = FlowId::new(Protocol::Tcp, local, remote).unwrap();
        for (group, activity) in [(own.trim_end_matches('/'), 1), ("/none/such", 2)] {
            let tags = [1, 2].map(|activity| Tag::new(2, activity).unwrap());
            let grouped = Rule { cgroup: Some(group.into()), ..Rule::of_all(tags[0]) };
            let choice = Choice::of_rules(Rules(vec![grouped, Rule::of_all(tags[1])]));
            let mut scanner = Scanner::open(&choice).unwrap();
            assert!(scanner.diag.tells_cgroups() && scanner.facts.processes.is_none());
            scanner.facts.find_cgroups_by_process(&choice);
            let mut seen = None;
            let query = scanner.diag.look_up(&id, NO_COOKIE, 0, 0, |it| seen = connection(it));
            assert_eq!(query, Ok(true));
            let mut connections = Connections::new(10);
            connections.begin_round();
            connections.see(&[Connection { cgroup: None, ..seen.unwrap() }]);
            scanner.judge_all(&choice, &mut connections);
            let tag = connections.tag(&id);
            assert_eq!(tag.map(Tag::activity), Some(activity), "{group}");
        }
    }
}
