//! `glowd watch`: shows the tags that packets on the wire carry, a line for each flow.
//! Runs on the main thread until it is interrupted.

#[cfg(target_os = "linux")]
pub(super) use linux::watch;

#[cfg(not(target_os = "linux"))]
pub(super) fn watch(_: &super::flags::Args) -> crate::error::Result<()> {
    Err(crate::error::Error::new(crate::error::Class::Os, "watching packets needs Linux"))
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashSet;
    use std::io::{self, Write};

    use crate::cli::commands::registry;
    use crate::cli::flags::Args;
    use crate::error::{Error, Result};
    use crate::flow::{FlowId, Tag};
    use crate::net::ipv6::flow_of;
    use crate::net::tap::Tap;
    use crate::registry::Registry;
    use crate::scitag::{self, Form};

    /// How many flows are remembered; after that all are shown again.
    const MOST: usize = 100_000;

    pub(in crate::cli) fn watch(args: &Args) -> Result<()> {
        let registry = registry(args)?;
        let mut tap = Tap::open(&args.interfaces)?;
        let which = if args.all { "all flows" } else { "flows with a tag" };
        log::info!("watching {which} of IPv6; to stop: Ctrl-C");
        let mut seen: HashSet<(FlowId, Option<(Form, Tag)>)> = HashSet::new();
        loop {
            let packet = tap.wait()?;
            let Some(id) = flow_of(packet.bytes) else { continue };
            let mark = mark_of(packet.bytes, &registry);
            if mark.is_none() && !args.all {
                continue;
            }
            if seen.len() == MOST {
                seen.clear();
            }
            if !seen.insert((id, mark)) {
                continue;
            }
            let way = if packet.outgoing { "out" } else { "in" };
            let line = format!("{} {way}: {id}: {}\n", packet.interface, shown(mark, &registry));
            let mut out = io::stdout().lock();
            match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
                Ok(()) => {}
                // Its reader has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(Error::os("cannot write to standard output", error)),
            }
        }
    }

    /// The tag of a packet. Any number may be a label, so only those count whose tag is
    /// registered.
    fn mark_of(packet: &[u8], registry: &Registry) -> Option<(Form, Tag)> {
        let mut tags = scitag::of_packet(packet).into_iter();
        tags.find(|(form, tag)| *form != Form::Label || registry.contains(*tag))
    }

    fn shown(mark: Option<(Form, Tag)>, registry: &Registry) -> String {
        match mark {
            Some((form, tag)) => {
                format!("{} says {}", form.name(), crate::cli::tag::describe(tag, registry))
            }
            None => "no tag".to_owned(),
        }
    }
}
