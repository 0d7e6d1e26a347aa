//! The iperf3 plugin: gives the connections of a performance test, which are known by
//! their ports, tags from a list. Linux only.
//!
//! Its thread sleeps in poll(2) until the kernel reports connections
//! ([`crate::net::connections`]), and owns what it takes to know when they are over.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::{Plugin, Spec};
use crate::config::{Key, Kind, Section};
use crate::dispatcher::{Inlet, Refused};
use crate::error::{Error, Result};
use crate::flow::{FlowEvent, FlowId, FlowState, Tag, Timestamp};
use crate::net::connections::{self, Change, Connection, Connections, Ports, Wanted};
use crate::part::Context;
use crate::shutdown::Stop;
use crate::warn_limited;

/// Where messages come from.
const NAME: &str = "plugins.iperf3";

/// While flows are open, they are looked after so often: another program of the control group
/// may have taken back that the end of a connection is told.
const LOOK: Duration = Duration::from_secs(30);

/// The pause after a look is at least so many times as long as that took: who makes reports get
/// lost does not decide how much it costs.
const REST: u32 = 4;

/// What the flow table has no room for is tried again after so long.
const RETRY: Duration = Duration::from_secs(1);

/// How many reports are read before the dispatcher gets what they say.
const BATCH: usize = 1024;

const PORT: Kind = Kind::Int { min: 0, max: 65535 };

const fn port(name: &'static str, doc: &'static str) -> Key {
    Key { name, aliases: &[], kind: PORT, default: "0", live: false, doc }
}

/// The registration.
pub(super) static SPEC: Spec = Spec {
    name: "iperf3",
    aliases: &[],
    summary: "finds the TCP connections of performance tests by their ports, and gives them tags \
              in turn or at random",
    keys: &[
        port(
            "minSourcePort",
            "Lowest port on this host's end of a connection; 0 for any. Without any of the four, \
             all connections are found.",
        ),
        port("maxSourcePort", "Highest port on this host's end of a connection; 0 for any."),
        port(
            "minDestinationPort",
            "Lowest port on the other end of a connection; 0 for any. Where iperf3 runs as a \
             client against servers on its default port, this and maxDestinationPort are 5201.",
        ),
        port("maxDestinationPort", "Highest port on the other end of a connection; 0 for any."),
        Key {
            name: "experimentIDs",
            aliases: &[],
            kind: Kind::Words,
            default: "[\"1\"]",
            live: false,
            doc: "Experiments of the tags, by name or id. The first belongs to the first of \
                  activityIDs, and so on.",
        },
        Key {
            name: "activityIDs",
            aliases: &[],
            kind: Kind::Words,
            default: "[\"1\"]",
            live: false,
            doc: "Activities of the tags, by name or id: as many as there are experimentIDs.",
        },
        Key {
            name: "randomIDs",
            aliases: &[],
            kind: Kind::Bool,
            default: "false",
            live: false,
            doc: "Whether the tag of a connection is drawn at random. If not, connections get the \
                  tags in turn. The control connection of a test is one too.",
        },
        Key {
            name: "cgroupPath",
            aliases: &[],
            kind: Kind::Path,
            default: "\"\"",
            live: false,
            doc: "Folder of the control group (version 2) whose connections are found, with those \
                  of the groups below it; empty for the group that contains all others, wherever \
                  it is mounted.",
        },
        Key {
            name: "programPath",
            aliases: &[],
            kind: Kind::Retired,
            default: "\"\"",
            live: false,
            doc: "Has no effect: the eBPF program is in the glowd binary.",
        },
        Key {
            name: "debugMode",
            aliases: &[],
            kind: Kind::Retired,
            default: "false",
            live: false,
            doc: "Has no effect: level debug of the log has a line for each flow.",
        },
    ],
    check,
    build,
};

fn check(section: &Section) -> Vec<String> {
    let mut problems = Vec::new();
    for end in ["SourcePort", "DestinationPort"] {
        let (min, max): (u16, u16) =
            (section.int(&format!("min{end}")), section.int(&format!("max{end}")));
        if max != 0 && min > max {
            problems.push(format!("max{end}: {max} is below min{end}, {min}"));
        }
    }
    let lengths = ["experimentIDs", "activityIDs"].map(|key| section.list(key).len());
    if lengths[0] == 0 {
        problems.push("experimentIDs: is empty".into());
    }
    if lengths[0] != lengths[1] {
        let [experiments, activities] = lengths;
        problems.push(format!(
            "activityIDs: has a length of {activities} instead of {experiments}, as experimentIDs"
        ));
    }
    // Whether names are registered the registry says, later.
    let id = |word: &String| word.parse::<u64>().unwrap_or(1);
    for word in section.list("experimentIDs") {
        problems.extend(Tag::new(id(word), 1).err().map(|text| format!("experimentIDs: {text}")));
    }
    for word in section.list("activityIDs") {
        problems.extend(Tag::new(1, id(word)).err().map(|text| format!("activityIDs: {text}")));
    }
    problems
}

fn build(section: &Section, context: &Context) -> Result<Box<dyn Plugin>> {
    let registry = context.names.get();
    let mut tags = Vec::new();
    for (experiment, activity) in
        section.list("experimentIDs").iter().zip(section.list("activityIDs"))
    {
        let tag = registry.tag(experiment, activity).map_err(Error::config)?;
        context.names.judge_at(&registry, tag, &NAME).map_err(Error::config)?;
        tags.push(tag);
    }
    let cgroup = match section.text("cgroupPath") {
        "" => connections::root()?,
        path => PathBuf::from(path),
    };
    let ports = |end: &str| {
        let bound = |which: &str| section.int::<u16>(&format!("{which}{end}"));
        bound("min")..=Some(bound("max")).filter(|max| *max != 0).unwrap_or(u16::MAX)
    };
    let ports = Ports { local: ports("SourcePort"), remote: ports("DestinationPort") };
    let wanted = Wanted { ports: vec![ports.clone()], ..Wanted::default() };
    let connections = Connections::watch(&cgroup, &wanted)?;
    log::info!("{NAME}: watching the connections of {cgroup:?}");
    let choice = if section.bool("randomIDs") {
        Choice::Random(RandomState::new())
    } else {
        Choice::InTurn(0)
    };
    Ok(Box::new(Iperf3 {
        connections,
        ports,
        finder: Finder { tags, choice, open: HashMap::new(), retry: None },
    }))
}

struct Iperf3 {
    connections: Connections,
    ports: Ports,
    finder: Finder,
}

impl Plugin for Iperf3 {
    fn run(mut self: Box<Self>, out: Inlet, stop: Stop) -> Result<()> {
        let out = out.for_what_is_found();
        let (mut lost, mut is_owed) = (0, false);
        let (mut next_look, mut rested) = (Instant::now() + LOOK, Instant::now());
        loop {
            let mut fds = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.connections.as_fd(), PollFlags::POLLIN),
            ];
            let patience = if self.finder.open.is_empty() && !is_owed {
                PollTimeout::NONE
            } else {
                // Rounded up, or the last part of a millisecond is spent asking.
                let left = next_look.min(self.finder.retry.unwrap_or(next_look));
                let left = left.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            };
            match poll(&mut fds, patience) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(Error::os("cannot poll", error)),
            }
            let stopping = fds[0].any() == Some(true);
            let mut events = Vec::new();
            for _ in 0..BATCH {
                let Some(connection) = self.connections.read() else { break };
                events.extend(self.finder.judge(connection));
            }
            let now = self.connections.lost();
            if now != lost {
                warn_limited!("{NAME}: {} reports of connections were lost", now - lost);
                (lost, is_owed, next_look) = (now, true, next_look.min(rested));
            }
            // By the clock: where connections never cease to come, it is never quiet.
            let begin = Instant::now();
            if begin >= next_look {
                events.extend(self.look());
                let end = Instant::now();
                rested = end + (end - begin) * REST;
                (is_owed, next_look) = (false, rested.max(end + LOOK));
            }
            if self.finder.retry.is_some_and(|retry| Instant::now() >= retry) {
                self.finder.retry = None;
                events.extend(self.finder.starts_that_wait());
            }
            match self.finder.tell(&out, events) {
                Ok(()) => {}
                Err(Refused::Stopping) => return Ok(()),
                Err(refused) => {
                    self.finder.retry = Some(Instant::now() + RETRY);
                    warn_limited!("{NAME}: connections wait for their marks: {refused}");
                }
            }
            if stopping {
                return Ok(());
            }
        }
    }
}

impl Iperf3 {
    /// Looks after what is open, for starts and ends that were not reported.
    fn look(&mut self) -> Vec<Told> {
        let Iperf3 { connections, ports, finder } = self;
        let there = connections.open(ports).unwrap_or_else(|error| {
            warn_limited!("{NAME}: connections that were not reported are not found: {error}");
            Vec::new()
        });
        let is_over = |open: &Open, cookie| {
            let Open { id, interface, .. } = *open;
            connections.is_over(&id, cookie, interface)
        };
        finder.compare(&there, is_over)
    }
}

/// What a connection's tag is.
enum Choice {
    InTurn(usize),
    Random(RandomState),
}

/// Turns reports into flow events.
struct Finder {
    tags: Vec<Tag>,
    choice: Choice,
    /// By the sockets' cookies. As many as there are such sockets.
    open: HashMap<u64, Open>,
    /// When to try again what the flow table had no room for.
    retry: Option<Instant>,
}

/// A connection.
#[derive(Clone, Copy)]
struct Open {
    id: FlowId,
    tag: Tag,
    /// That the socket is bound to.
    interface: u32,
    /// The flow table had no room for it.
    waits: bool,
}

/// With the cookie of the socket that it is about.
type Told = (u64, FlowEvent);

impl Finder {
    fn judge(&mut self, connection: Connection) -> Option<Told> {
        let cookie = connection.cookie;
        let (state, Open { id, tag, .. }) = match connection.change {
            Change::Opened | Change::Established => {
                if self.open.contains_key(&cookie) {
                    return None;
                }
                let (id, tag) = (connection.flow().ok()?, self.choose(cookie));
                let open = Open { id, tag, interface: connection.interface, waits: false };
                self.open.insert(cookie, open);
                (FlowState::Start, open)
            }
            Change::Closed => {
                let closed = self.open.remove(&cookie).filter(|open| !open.waits);
                (FlowState::End, closed?)
            }
        };
        let application = connection.process.map(|process| process.command.into());
        let time = Some(connection.time);
        Some((cookie, FlowEvent { state, id, tag, time, application, usage: None }))
    }

    /// Tells the dispatcher. Starts for which there is no room wait.
    fn tell(&mut self, out: &Inlet, events: Vec<Told>) -> std::result::Result<(), Refused> {
        let all = events.iter().map(|(_, event)| event.clone()).collect();
        match out.send_all(all) {
            Err(Refused::Full { .. }) => {}
            outcome => return outcome,
        }
        // One after the other, since which of them it was is not said.
        let (mut refused, mut is_full) = (Ok(()), false);
        for (cookie, event) in events {
            let starts = event.state == FlowState::Start;
            is_full &= starts;
            if !is_full {
                match out.send_all(vec![event]) {
                    Err(full @ Refused::Full { .. }) => (refused, is_full) = (Err(full), true),
                    outcome => outcome?,
                }
            }
            if let Some(open) = self.open.get_mut(&cookie).filter(|_| starts) {
                open.waits = is_full;
            }
        }
        refused
    }

    /// Starts of those for which there was no room: their flows begin now.
    fn starts_that_wait(&mut self) -> Vec<Told> {
        let waiting = self.open.iter_mut().filter(|(_, open)| open.waits);
        let start = |(cookie, open): (&u64, &mut Open)| {
            open.waits = false;
            (*cookie, event(FlowState::Start, open, None))
        };
        waiting.map(start).collect()
    }

    fn choose(&mut self, cookie: u64) -> Tag {
        let count = self.tags.len();
        let index = match &mut self.choice {
            Choice::InTurn(next) => {
                let index = *next;
                *next = (index + 1) % count;
                index
            }
            #[allow(clippy::cast_possible_truncation)] // any part of a hash will do
            Choice::Random(state) => state.hash_one(cookie) as usize % count,
        };
        self.tags[index]
    }

    /// Ends what is over without a report of it, and starts what is `there` without one. A
    /// connection that is not `there` need not be over.
    fn compare(
        &mut self,
        there: &[connections::Open],
        mut is_over: impl FnMut(&Open, u64) -> bool,
    ) -> Vec<Told> {
        let mut events = Vec::new();
        let seen: HashSet<u64> = there.iter().map(|one| one.cookie).collect();
        self.open.retain(|cookie, open| {
            let over = !seen.contains(cookie) && is_over(open, *cookie);
            if over && !open.waits {
                events.push((*cookie, event(FlowState::End, open, Some(Timestamp::now()))));
            }
            !over
        });
        for connections::Open { flow, cookie, interface } in there {
            if !self.open.contains_key(cookie) {
                let (id, tag) = (*flow, self.choose(*cookie));
                let open = Open { id, tag, interface: *interface, waits: false };
                self.open.insert(*cookie, open);
                events.push((*cookie, event(FlowState::Start, &open, None)));
            }
        }
        events
    }
}

fn event(state: FlowState, open: &Open, time: Option<Timestamp>) -> FlowEvent {
    FlowEvent { state, id: open.id, tag: open.tag, time, application: None, usage: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatcher::Dispatcher;
    use crate::entropy::EntropyKey;

    fn report(change: Change, cookie: u16) -> Connection {
        let local = std::net::SocketAddr::new("2001:db8::1".parse().unwrap(), cookie);
        let (passive, cookie) = (false, cookie.into());
        let remote = "[2001:db8::2]:5201".parse().unwrap();
        let time = Timestamp(5);
        let (cgroup, uid, interface, process) = (None, None, 0, None);
        Connection { change, passive, local, remote, cookie, cgroup, uid, interface, process, time }
    }

    #[test]
    fn what_the_table_has_no_room_for_is_tried_again() {
        let (dispatcher, inlet) = Dispatcher::new(2, EntropyKey::of_this_boot());
        let hub = std::thread::spawn(|| dispatcher.run());
        let out = inlet.for_source(NAME).for_what_is_found();
        let tags = vec![Tag::new(2, 16).unwrap()];
        let (choice, open) = (Choice::InTurn(0), HashMap::new());
        let mut finder = Finder { tags, choice, open, retry: None };
        let ports = || {
            let flows = out.flows().unwrap().into_iter();
            let mut ports: Vec<_> = flows.map(|flow| flow.id.src().port()).collect();
            ports.sort_unstable();
            ports
        };
        let mut hear = |change, cookies: &[u16], again: bool| {
            let reports = cookies.iter().map(|cookie| report(change, *cookie));
            let mut events: Vec<_> = reports.filter_map(|one| finder.judge(one)).collect();
            if again {
                events.extend(finder.starts_that_wait());
            }
            finder.tell(&out, events).is_ok()
        };
        assert!(!hear(Change::Opened, &[1, 2, 3, 4], false));
        assert_eq!(ports(), [1, 2]);
        // One of those that wait goes, and there is no room yet.
        assert!(hear(Change::Closed, &[4], false));
        assert!(!hear(Change::Opened, &[], true));
        assert_eq!(ports(), [1, 2]);
        assert!(hear(Change::Closed, &[1], true));
        assert_eq!(ports(), [2, 3]);
        assert!(hear(Change::Closed, &[2, 3], true));
        assert_eq!(ports(), [0_u16; 0]);
        drop((out, inlet));
        hub.join().unwrap();
    }

    #[test]
    fn a_look_finds_the_starts_and_ends_that_were_not_reported() {
        let tags = vec![Tag::new(2, 16).unwrap()];
        let (choice, open) = (Choice::InTurn(0), HashMap::new());
        let mut finder = Finder { tags, choice, open, retry: None };
        for cookie in 1..=3 {
            finder.judge(report(Change::Opened, cookie));
        }
        let listed = |cookie| {
            let one = report(Change::Established, cookie);
            connections::Open { flow: one.flow().unwrap(), cookie: one.cookie, interface: 0 }
        };
        let mut look = |there: &[u16], over: &[u64]| {
            let there: Vec<_> = there.iter().map(|cookie| listed(*cookie)).collect();
            let mut asked = Vec::new();
            let told = finder.compare(&there, |_, cookie| {
                asked.push(cookie);
                over.contains(&cookie)
            });
            asked.sort_unstable();
            let told: Vec<_> = told.iter().map(|(cookie, event)| (*cookie, event.state)).collect();
            (told, asked)
        };
        // The list lacks the second, which is there all the same.
        let expected = vec![(3, FlowState::End), (4, FlowState::Start)];
        assert_eq!(look(&[1, 4], &[3]), (expected, vec![2, 3]));
        assert_eq!(look(&[1, 2, 4], &[]), (vec![], vec![]));
        assert_eq!(finder.judge(report(Change::Established, 4)), None, "it is known by now");
    }
}
