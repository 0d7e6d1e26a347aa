//! The perfsonar plugin: this host is for measurements, so everything that it sends
//! carries one tag (spec section 5.4). Runs on a thread of its own, which sleeps in poll(2);
//! with fireflies that thread looks for connections, as plugin netlink does.
//!
//! The tag is the marker's last rule: no flow stands for it, so none is reported. The
//! flows that are, are the connections that are found.

use std::os::fd::AsFd;

use log::info;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::{netlink, Plugin, Spec};
use crate::config::{Key, Kind, Section, Value};
use crate::dispatcher::Inlet;
use crate::error::{Error, Result};
use crate::flow::Tag;
use crate::part::Context;
use crate::rules;
use crate::shutdown::Stop;

/// The registration.
pub(super) static SPEC: Spec = Spec {
    name: "perfsonar",
    aliases: &[],
    summary:
        "has the marker give everything one tag that leaves by its interfaces, for hosts that \
              do nothing but measure",
    keys: &[
        Key {
            name: "experiment",
            aliases: &["experimentId"],
            kind: Kind::Word,
            default: "\"default\"",
            live: false,
            doc: "The experiment of the tag, by name or id. Packets of open flows carry their own \
                  tag, and those that a rule of the marker is for carry that one's. All others \
                  carry this one, whatever their protocol; with a header strategy those of TCP \
                  and UDP. Fragments of a packet after its first carry no tag, since nothing in \
                  them says which flow they are of: iperf3 -u -l 8000 sends such.",
        },
        Key {
            name: "activity",
            aliases: &["activityId"],
            kind: Kind::Word,
            default: "\"perfSONAR\"",
            live: false,
            doc: "The activity of the tag, by name or id.",
        },
        Key {
            name: "fireflies",
            aliases: &[],
            kind: Kind::Bool,
            default: "false",
            live: false,
            doc: "Whether each connection of this host is a flow with that tag, so that its start \
                  and its end are reported; as a flow it comes before the rules of the marker. \
                  They are found as plugin netlink finds them, in whose \
                  name the log speaks of it. Where that plugin is in use too, give it an \
                  experiment and an activity instead.",
        },
        Key {
            name: "exclude",
            aliases: &[],
            kind: Kind::Prefixes,
            default: "[]",
            live: false,
            doc: "With fireflies: networks whose connections are not reported, by prefixes or \
                  addresses of the other end.",
        },
        Key {
            name: "includePrivate",
            aliases: &[],
            kind: Kind::Bool,
            default: "false",
            live: false,
            doc: "With fireflies: whether connections are reported whose other end has no address \
                  of the internet.",
        },
    ],
    check,
    build,
};

fn check(section: &Section) -> Vec<String> {
    let empty = |key: &&str| section.text(key).is_empty();
    let missing = ["experiment", "activity"].into_iter().filter(empty);
    missing.map(|key| format!("{key}: must not be empty")).collect()
}

struct Perfsonar {
    tag: Tag,
    /// What looks for connections.
    finder: Option<Box<dyn Plugin>>,
}

fn build(section: &Section, context: &Context) -> Result<Box<dyn Plugin>> {
    let registry = context.names.get();
    let tag = rules::tag(section, &registry).and_then(|tag| {
        let judged = context.names.judge_at(&registry, tag, &section.path());
        judged.map(|()| tag).map_err(|problem| ("experiment", problem))
    });
    let tag = tag.map_err(|(key, problem)| Error::config(format!("{key}: {problem}")))?;
    let finder = section.bool("fireflies").then(|| finder(section, tag, context)).transpose()?;
    Ok(Box::new(Perfsonar { tag, finder }))
}

/// Plugin netlink with the keys that it has in common with this one, and its defaults. It
/// gets the ids of the tag, so that its flows keep the one that the packets carry.
fn finder(section: &Section, tag: Tag, context: &Context) -> Result<Box<dyn Plugin>> {
    let values = netlink::SPEC.keys.iter().filter_map(|key| {
        match key.name {
            "experiment" => return Some((key.name, Value::Text(tag.experiment().to_string()))),
            "activity" => return Some((key.name, Value::Text(tag.activity().to_string()))),
            _ => {}
        }
        let given = section.values().iter().find(|(name, _)| *name == key.name);
        Some((key.name, given.map(|(_, value)| value.clone()).or_else(|| key.default_value())?))
    });
    (netlink::SPEC.build)(&Section::new(section.path(), values.collect()), context)
}

impl Plugin for Perfsonar {
    fn run(self: Box<Self>, out: Inlet, stop: Stop) -> Result<()> {
        out.everything(Some(self.tag));
        info!("plugins.perfsonar: what nothing else gives a tag carries {}", self.tag);
        if let Some(finder) = self.finder {
            return finder.run(out, stop);
        }
        let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(Error::os("cannot poll", error)),
            }
        }
    }
}
