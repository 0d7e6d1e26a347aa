//! The standing plugin: one flow that is open as long as the daemon runs. Runs on a
//! thread of its own, which sleeps in poll(2).

use std::net::SocketAddr;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::{Plugin, Spec};
use crate::config::{Key, Kind, Section};
use crate::dispatcher::Inlet;
use crate::error::{Error, Result};
use crate::flow::{FlowEvent, FlowId, FlowState, Protocol, Tag};
use crate::part::{no_rules, Context};
use crate::shutdown::Stop;

/// The registration.
pub(super) static SPEC: Spec = Spec {
    name: "standing",
    aliases: &[],
    summary: "opens one TCP flow at the start and closes it at the end",
    keys: &[
        Key {
            name: "source",
            aliases: &[],
            kind: Kind::Text,
            default: "\"[::1]:40000\"",
            live: false,
            doc: "Source address and port of the flow.",
        },
        Key {
            name: "destination",
            aliases: &[],
            kind: Kind::Text,
            default: "\"[::1]:1094\"",
            live: false,
            doc: "Destination address and port of the flow.",
        },
        Key {
            name: "experiment",
            aliases: &[],
            kind: Kind::Int { min: 1, max: 511 },
            default: "1",
            live: false,
            doc: "Id of the experiment.",
        },
        Key {
            name: "activity",
            aliases: &[],
            kind: Kind::Int { min: 0, max: 63 },
            default: "1",
            live: false,
            doc: "Id of the activity.",
        },
    ],
    check: no_rules,
    build,
};

struct Standing {
    id: FlowId,
    tag: Tag,
}

fn build(section: &Section, _: &Context) -> Result<Box<dyn Plugin>> {
    let end = |key: &str| -> Result<SocketAddr> {
        let text = section.text(key);
        let wrong = || Error::config(format!("{key}: \"{text}\" is not an address and a port"));
        text.parse().map_err(|_| wrong())
    };
    let id = FlowId::new(Protocol::Tcp, end("source")?, end("destination")?);
    let tag = Tag::new(section.int("experiment"), section.int("activity"));
    Ok(Box::new(Standing { id: id.map_err(Error::config)?, tag: tag.map_err(Error::config)? }))
}

impl Plugin for Standing {
    fn run(self: Box<Self>, out: Inlet, stop: Stop) -> Result<()> {
        let Standing { id, tag } = *self;
        let event =
            |state| FlowEvent { state, id, tag, time: None, application: None, usage: None };
        if let Err(refused) = out.send_each(vec![event(FlowState::Start)]) {
            log::error!("plugins.standing: {id} was not opened: {refused}");
        }
        let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(Error::os("cannot poll", error)),
            }
        }
        // It is refused only if the dispatcher is gone, and then so is the flow.
        let _ = out.send_each(vec![event(FlowState::End)]);
        Ok(())
    }
}
