//! Log lines about a flow. They carry what they are about as fields too, which the
//! journal keeps: `journalctl FLOW_EXPERIMENT=2`.

use std::fmt::{self, Arguments};
use std::net::IpAddr;

use log::kv::{Error, Key, Source, Value, VisitSource};
use log::{Level, Record};

use crate::flow::{FlowId, FlowState, Tag};
use crate::registry::Registry;

/// What a line is about.
#[derive(Debug)]
pub struct About<'a> {
    plugin: &'a str,
    state: FlowState,
    id: FlowId,
    tag: Option<Tag>,
    names: (Option<&'a str>, Option<&'a str>),
    // Fields are lent to loggers from here.
    src: IpAddr,
    dst: IpAddr,
}

impl<'a> About<'a> {
    /// About what `plugin` told of the flow `id`, with its tag where it is known, and
    /// what the registry calls that.
    pub fn new(
        plugin: &'a str,
        state: FlowState,
        id: FlowId,
        tag: Option<Tag>,
        registry: Option<&'a Registry>,
    ) -> Self {
        let names = tag.zip(registry).map_or((None, None), |(tag, registry)| registry.names(tag));
        About { plugin, state, id, tag, names, src: id.src().ip(), dst: id.dst().ip() }
    }

    /// Logs a line about it at level debug, where the events of flows belong:
    /// `plugin: state flow: tag: text`.
    pub fn debug(&self, text: Arguments<'_>) {
        if !log::log_enabled!(Level::Debug) {
            return;
        }
        let (plugin, state, id) = (self.plugin, self.state.name(), self.id);
        let tag = Shown { tag: self.tag, names: self.names };
        log::logger().log(
            &Record::builder()
                .level(Level::Debug)
                .target(module_path!())
                .args(format_args!("{plugin}: {state} {id}: {tag}{text}"))
                .key_values(self)
                .build(),
        );
    }
}

/// A tag with its names, and what separates it from the rest of the line.
struct Shown<'a> {
    tag: Option<Tag>,
    names: (Option<&'a str>, Option<&'a str>),
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(tag) = self.tag else { return Ok(()) };
        match self.names {
            (Some(experiment), Some(activity)) => {
                write!(f, "{tag} ({experiment}, {activity}): ")
            }
            (Some(experiment), None) => write!(f, "{tag} ({experiment}): "),
            (None, _) => write!(f, "{tag}: "),
        }
    }
}

impl Source for About<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), Error> {
        let mut field = |name, value| visitor.visit_pair(Key::from_str(name), value);
        field("FLOW_PLUGIN", self.plugin.into())?;
        field("FLOW_STATE", self.state.name().into())?;
        field("FLOW_PROTOCOL", self.id.protocol().name().into())?;
        field("FLOW_SRC", Value::from_display(&self.src))?;
        field("FLOW_SRC_PORT", self.id.src().port().into())?;
        field("FLOW_DST", Value::from_display(&self.dst))?;
        field("FLOW_DST_PORT", self.id.dst().port().into())?;
        if let Some(tag) = self.tag {
            field("FLOW_EXPERIMENT", tag.experiment().into())?;
            field("FLOW_ACTIVITY", tag.activity().into())?;
        }
        let (experiment, activity) = self.names;
        if let Some(name) = experiment {
            field("FLOW_EXPERIMENT_NAME", name.into())?;
        }
        if let Some(name) = activity {
            field("FLOW_ACTIVITY_NAME", name.into())?;
        }
        Ok(())
    }
}
