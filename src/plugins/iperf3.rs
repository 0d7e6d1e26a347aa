//! The iperf3 plugin: gives the connections of a performance test, which are known by
//! their ports, tags from a list. Linux only.
//!
//! Its thread sleeps in poll(2) until the kernel reports connections
//! ([`crate::net::connections`]), and owns what it takes to know when they are over.

use std::collections::HashMap;
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
    let wanted = Wanted { ports: vec![ports], no_loopback: false };
    let connections = Connections::watch(&cgroup, &wanted)?;
    log::info!("{NAME}: watching the connections of {cgroup:?}");
    let choice = if section.bool("randomIDs") {
        Choice::Random(RandomState::new())
    } else {
        Choice::InTurn(0)
    };
    Ok(Box::new(Iperf3 { connections, finder: Finder { tags, choice, open: HashMap::new() } }))
}

struct Iperf3 {
    connections: Connections,
    finder: Finder,
}

impl Plugin for Iperf3 {
    fn run(mut self: Box<Self>, out: Inlet, stop: Stop) -> Result<()> {
        let out = out.for_what_is_found();
        let mut lost = 0;
        let mut next_look = Instant::now() + LOOK;
        loop {
            let mut fds = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.connections.as_fd(), PollFlags::POLLIN),
            ];
            let patience = if self.finder.open.is_empty() {
                PollTimeout::NONE
            } else {
                // Rounded up, or the last part of a millisecond is spent asking.
                let left = next_look.saturating_duration_since(Instant::now());
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
            }
            // By the clock: where connections never cease to come, it is never quiet.
            if now != lost || Instant::now() >= next_look {
                events.extend(self.finder.ends_that_were_lost(&mut self.connections));
                lost = now;
                next_look = Instant::now() + LOOK;
            }
            match out.send_each(events) {
                Ok(()) => {}
                Err(Refused::Stopping) => return Ok(()),
                Err(refused) => warn_limited!("{NAME}: connections are not marked: {refused}"),
            }
            if stopping {
                return Ok(());
            }
        }
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
    /// By the sockets' cookies, each with its interface. As many as there are such sockets.
    open: HashMap<u64, (FlowId, Tag, u32)>,
}

impl Finder {
    fn judge(&mut self, connection: Connection) -> Option<FlowEvent> {
        let cookie = connection.cookie;
        let (state, (id, tag, _)) = match connection.change {
            Change::Opened | Change::Established => {
                if self.open.contains_key(&cookie) {
                    return None;
                }
                let flow = (connection.flow().ok()?, self.choose(cookie), connection.interface);
                self.open.insert(cookie, flow);
                (FlowState::Start, flow)
            }
            Change::Closed => (FlowState::End, self.open.remove(&cookie)?),
        };
        let application = connection.process.map(|process| process.command.into());
        let time = Some(connection.time);
        Some(FlowEvent { state, id, tag, time, application, usage: None })
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

    /// Ends what is over without a report of it.
    fn ends_that_were_lost(&mut self, connections: &mut Connections) -> Vec<FlowEvent> {
        let mut events = Vec::new();
        self.open.retain(|cookie, (id, tag, interface)| {
            let over = connections.is_over(id, *cookie, *interface);
            if over {
                let (state, id, tag, time) = (FlowState::End, *id, *tag, Some(Timestamp::now()));
                events.push(FlowEvent { state, id, tag, time, application: None, usage: None });
            }
            !over
        });
        events
    }
}
