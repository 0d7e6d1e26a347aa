//! `glowd tag`: a tag in all its forms, for people who look at packets or configure
//! programs. Runs on the main thread and touches nothing.

use log::warn;

use super::commands::{print, registry};
use super::flags::Args;
use crate::error::{Error, Result};
use crate::flow::Tag;
use crate::registry::Registry;
use crate::scitag::{self, Form};

pub(super) fn encode(args: &Args) -> Result<()> {
    let registry = registry(args)?;
    let (experiment, activity) = match args.operands.split_first() {
        Some((experiment, activity)) if !activity.is_empty() => (experiment, activity),
        _ => {
            let text = "\"tag encode\" takes an experiment and one of its activities";
            return Err(Error::usage(text));
        }
    };
    // A name of several words, as in a line of the pipe.
    let tag = registry.tag(experiment, &activity.join(" ")).map_err(Error::usage)?;
    print(&forms(tag, &registry))
}

pub(super) fn decode(args: &Args) -> Result<()> {
    let registry = registry(args)?;
    if args.operands.is_empty() {
        return Err(Error::usage("\"tag decode\" takes a number, or bytes in hexadecimal"));
    }
    let typed = args.operands.join(" ");
    let mut readings = scitag::decode(&typed).map_err(Error::usage)?;
    // What has a name is likelier than what has none. The sort is stable.
    readings.sort_by_key(|(_, tag)| registry.names(*tag).1.is_none());
    let (form, tag) = readings[0];
    for (other, also) in readings[1..].iter().filter(|(other, also)| (*other, *also) != (form, tag))
    {
        let described = describe(*also, &registry);
        warn!("{typed}, taken as a {}; as a {} it is {described}", form.name(), other.name());
    }
    if form == Form::Label && readings.len() == 1 && !typed.contains(' ') && typed.len() < 9 {
        warn!(
            "{typed} is a flow label; where a scitag is due (scitag.flow=, SciTag:), it is {}",
            scitag::integer(tag)
        );
    }
    print(&format!("{}: {}\n\n{}", form.name(), describe(tag, &registry), forms(tag, &registry)))
}

pub(super) fn describe(tag: Tag, registry: &Registry) -> String {
    let (experiment, activity) = registry.names(tag);
    format!(
        "experiment {} ({}), activity {} ({})",
        tag.experiment(),
        experiment.unwrap_or("not registered"),
        tag.activity(),
        activity.unwrap_or("not registered")
    )
}

/// A line for each form.
fn forms(tag: Tag, registry: &Registry) -> String {
    const UNKNOWN: &str = "(not registered)";
    const TCP: u8 = 6;
    let (experiment, activity) = registry.names(tag);
    let label = tag.label(0);
    let header = scitag::header(tag, TCP).map(|byte| format!("{byte:02x}"));
    let lines = [
        ("experiment", format!("{} {}", tag.experiment(), experiment.unwrap_or(UNKNOWN))),
        ("activity", format!("{} {}", tag.activity(), activity.unwrap_or(UNKNOWN))),
        ("scitag", scitag::integer(tag).to_string()),
        (
            "flow label",
            format!("{label:#07x} ({label}), with entropy up to {:#07x}", tag.label(!0)),
        ),
        ("option", header[2..7].join(" ")),
        ("header", format!("{} (before TCP)", header.join(" "))),
        ("tcpdump", format!("'{}'", scitag::filter(tag))),
    ];
    lines.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
}
