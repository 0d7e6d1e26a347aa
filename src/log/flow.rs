//! Log lines about a flow. They carry what they are about as fields too, which the
//! journal keeps: `journalctl FLOW_EXPERIMENT=2`.

use std::fmt::Arguments;
use std::net::IpAddr;

use log::kv::{Error, Key, Source, Value, VisitSource};
use log::{Level, Record};

use crate::flow::{FlowId, FlowState, Tag};

/// What a line is about.
#[derive(Debug)]
pub struct About<'a> {
    plugin: &'a str,
    state: FlowState,
    id: FlowId,
    tag: Option<Tag>,
    // Fields are lent to loggers from here.
    src: IpAddr,
    dst: IpAddr,
}

impl<'a> About<'a> {
    /// About what `plugin` told of the flow `id`. Its tag is a field where it is
    /// known.
    pub fn new(plugin: &'a str, state: FlowState, id: FlowId, tag: Option<Tag>) -> Self {
        About { plugin, state, id, tag, src: id.src().ip(), dst: id.dst().ip() }
    }

    /// Logs a line about it at level debug, where the events of flows belong:
    /// `plugin: state flow: text`.
    pub fn debug(&self, text: Arguments<'_>) {
        if !log::log_enabled!(Level::Debug) {
            return;
        }
        let (plugin, state, id) = (self.plugin, self.state.name(), self.id);
        log::logger().log(
            &Record::builder()
                .level(Level::Debug)
                .target(module_path!())
                .args(format_args!("{plugin}: {state} {id}: {text}"))
                .key_values(self)
                .build(),
        );
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
        Ok(())
    }
}
