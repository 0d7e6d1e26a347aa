//! The figures of open flows. Written by the backend's thread, read by that of HTTP,
//! behind a lock.

use std::collections::HashMap;
use std::sync::Arc;

use super::series::{self, Reading, Units};
use crate::config::Section;
use crate::flow::{Flow, FlowId, News, Tag, Timestamp};
use crate::meter::Traffic;
use crate::metrics::families::{FLOWS_WITHOUT_SERIES, TAG_BYTES, TAG_FLOWS_OPEN, TAG_PACKETS};
use crate::metrics::{label, Format, Metrics, Writer};
use crate::registry::{Names, Registry};

/// What the section says of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// The most flows with series of their own.
    most: usize,
    units: Units,
}

impl Rules {
    pub(super) fn read(section: &Section) -> Self {
        let most = if section.bool("perFlow") { section.int("maxFlowSeries") } else { 0 };
        let units = if section.text("units") == "flowd" { Units::Flowd } else { Units::FlowdGo };
        Rules { most, units }
    }
}

/// A flow that was measured.
struct Measured {
    news: Arc<News>,
    tag: Tag,
    /// As they are written, without the last brace; none: it has no series.
    labels: Option<Box<str>>,
}

impl Measured {
    fn labels_of(&self, id: &FlowId, units: Units, registry: &Registry) -> Box<str> {
        labels(id, self.tag, by_program(&self.news), units, registry)
    }
}

/// What is known of a tag.
#[derive(Default)]
struct Tagged {
    /// How many flows with it are open.
    open: u64,
    /// What of those was marked that are over.
    ended: Traffic,
    /// What was shown last: a counter must not go down.
    shown: Traffic,
    /// Whether a flow or rule with it was counted.
    counted: bool,
}

/// A flow whose packets are counted.
struct Slot {
    tag: Tag,
    /// What was marked there before.
    before: Traffic,
}

/// The open flows.
pub(super) struct Flows {
    names: Arc<Names>,
    /// What experiments and activities are called in the labels.
    registry: Arc<Registry>,
    rules: Rules,
    metrics: Arc<Metrics>,
    /// Tags that flows and rules have had: 32,704 at the most.
    tags: HashMap<Tag, Tagged>,
    /// By the meter's number.
    slots: HashMap<u32, Slot>,
    measured: HashMap<FlowId, Measured>,
    /// How many of those have series.
    shown: usize,
    /// How often the metrics were asked for.
    pub(super) scrapes: u64,
}

impl Flows {
    pub(super) fn new(names: Arc<Names>, metrics: Arc<Metrics>, rules: Rules) -> Self {
        let (tags, slots, measured) = (HashMap::new(), HashMap::new(), HashMap::new());
        let registry = names.get();
        Flows { names, registry, rules, metrics, tags, slots, measured, shown: 0, scrapes: 0 }
    }

    /// Works by other rules from now on. The series come back as flows are measured.
    pub(super) fn obey(&mut self, rules: Rules) {
        if self.rules != rules {
            self.rules = rules;
            self.measured.clear();
            self.shown = 0;
        }
    }

    /// Whether it is of any use here that flows are measured.
    pub(super) fn wants_samples(&self) -> bool {
        self.rules.most > 0
    }

    pub(super) fn open(&mut self, flow: &Flow) {
        let tagged = self.tags.entry(flow.tag).or_default();
        tagged.open += 1;
        if let Some(counted) = flow.counted {
            tagged.counted = true;
            // Not what is there by now: the marker may have heard of the flow first.
            let slot = Slot { tag: flow.tag, before: counted.before };
            self.slots.insert(counted.slot, slot);
        }
    }

    pub(super) fn close(&mut self, flow: &Flow) {
        if let Some(tagged) = self.tags.get_mut(&flow.tag) {
            tagged.open = tagged.open.saturating_sub(1);
            if let Some(counted) = flow.counted {
                self.slots.remove(&counted.slot);
                tagged.ended.add(counted.left.since(counted.unmarked));
            }
        }
        let measured = self.measured.remove(&flow.id);
        self.shown -= usize::from(measured.is_some_and(|measured| measured.labels.is_some()));
    }

    /// Takes note of what was measured of an open flow.
    pub(super) fn measure(&mut self, flow: &Flow) {
        let Some(news) = flow.news.clone().filter(|_| self.wants_samples()) else { return };
        let fresh = || Measured { news: news.clone(), tag: flow.tag, labels: None };
        let measured = self.measured.entry(flow.id).or_insert_with(fresh);
        let who = (flow.tag, by_program(&news));
        let is_same = (measured.tag, by_program(&measured.news)) == who;
        (measured.tag, measured.news) = (flow.tag, news);
        let is_new = measured.labels.is_none();
        if is_new && self.shown < self.rules.most || !is_new && !is_same {
            let labels = measured.labels_of(&flow.id, self.rules.units, &self.registry);
            measured.labels = Some(labels);
            self.shown += usize::from(is_new);
        }
    }

    /// Calls experiments and activities what they are called now.
    pub(super) fn follow_registry(&mut self) {
        let registry = self.names.get();
        if Arc::ptr_eq(&registry, &self.registry) {
            return;
        }
        self.registry = registry;
        for (id, measured) in &mut self.measured {
            if measured.labels.is_some() {
                let labels = measured.labels_of(id, self.rules.units, &self.registry);
                measured.labels = Some(labels);
            }
        }
    }

    /// Writes what there is of all flows together.
    pub(super) fn write(&mut self, writer: &mut Writer) {
        self.follow_registry();
        let mut traffic: HashMap<Tag, Traffic> = HashMap::new();
        if let Some(read) = self.metrics.packets() {
            for (number, Slot { tag, before }) in &self.slots {
                traffic.entry(*tag).or_default().add(read.slot(*number).since(*before));
            }
            let tags = &mut self.tags;
            read.by_rules(&mut |tag, marked| {
                tags.entry(tag).or_default().counted = true;
                traffic.entry(tag).or_default().add(marked);
            });
        }
        let mut tags: Vec<_> = self.tags.iter_mut().collect();
        tags.sort_unstable_by_key(|(tag, _)| (tag.experiment(), tag.activity()));
        for (tag, tagged) in tags {
            let (experiment, activity) = names(*tag, &self.registry);
            let ids = ids(*tag);
            let labels = [experiment, &ids.0, activity, &ids.1];
            if tagged.open > 0 {
                writer.number(&TAG_FLOWS_OPEN, &labels, tagged.open);
            }
            if !tagged.counted {
                continue;
            }
            let mut now = traffic.get(tag).copied().unwrap_or_default();
            now.add(tagged.ended);
            let shown = &mut tagged.shown;
            shown.packets = shown.packets.max(now.packets);
            shown.octets = shown.octets.max(now.octets);
            writer.number(&TAG_PACKETS, &labels, shown.packets);
            writer.number(&TAG_BYTES, &labels, shown.octets);
        }
        let without = self.measured.len() - self.shown;
        writer.number(&FLOWS_WITHOUT_SERIES, &[], without as u64);
    }

    /// Writes the series of each flow.
    pub(super) fn write_series(&self, format: Format, out: &mut Vec<u8>) {
        let now = Timestamp::now();
        let rows = self.measured.values().filter_map(|measured| {
            let info = measured.news.info.as_deref()?;
            Some((measured.labels.as_deref()?, Reading { tcp: info.tcp_info()?, info, now }))
        });
        let rows: Vec<_> = rows.collect();
        series::write(&rows, self.rules.units, format, out);
    }
}

/// Names of experiment and activity, empty for what is not registered.
fn names(tag: Tag, registry: &Registry) -> (&str, &str) {
    let (experiment, activity) = registry.names(tag);
    (experiment.unwrap_or(""), activity.unwrap_or(""))
}

/// Whether an eBPF program has measured it.
fn by_program(news: &News) -> bool {
    news.info.as_ref().is_some_and(|info| info.by_program)
}

fn ids(tag: Tag) -> (String, String) {
    (tag.experiment().to_string(), tag.activity().to_string())
}

/// The labels of a flow's series, as they are written, without the last brace. As flowd
/// writes them, and as flowd-go means to: its ports are the addresses of functions.
fn labels(id: &FlowId, tag: Tag, by_program: bool, units: Units, registry: &Registry) -> Box<str> {
    let (src, dst) = (id.src(), id.dst());
    let ports = match units {
        Units::Flowd => format!("{}:{}", src.port(), dst.port()),
        Units::FlowdGo => format!("<{}:{}>", src.port(), dst.port()),
    };
    let (src, dst) = (src.ip().to_string(), dst.ip().to_string());
    let (ids, names) = (ids(tag), registry.names(tag));
    let ids = (ids.0.as_str(), ids.1.as_str());
    let called = |unknown| (names.0.unwrap_or(unknown), names.1.unwrap_or(unknown));
    let (tag, other) = match units {
        Units::Flowd => (called("default"), ids),
        Units::FlowdGo => (ids, called("")),
    };
    let values = [&src, &dst, &ports, tag.0, tag.1, other.0, other.1];
    let mut out = Vec::with_capacity(160);
    for (index, (name, value)) in series::labels(units).iter().zip(values).enumerate() {
        out.push(if index == 0 { b'{' } else { b',' });
        label(name, value, &mut out);
    }
    if units == Units::FlowdGo {
        out.push(b',');
        label("flavour", if by_program { "Ebpf" } else { "Netlink" }, &mut out);
    }
    // It is made of text, and cut nowhere.
    String::from_utf8(out).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Protocol;
    use crate::meter::{Counted, Reader};
    use crate::part::Context;

    /// Every slot has had that many packets.
    struct Had(u64);

    impl Reader for Had {
        fn slot(&self, _: u32) -> Traffic {
            Traffic { packets: self.0, octets: 100 * self.0 }
        }

        fn by_rules(&self, _: &mut dyn FnMut(Tag, Traffic)) {}
    }

    /// The marker, which hears of the flow on its own thread, was first.
    #[test]
    fn packets_that_left_before_its_start_was_heard_of_are_the_flow_s() {
        let Context { names, metrics, .. } = Context::new(10);
        metrics.read_packets_by(Arc::new(Had(12)));
        let mut flows = Flows::new(names, metrics, Rules { most: 0, units: Units::FlowdGo });
        let end = |port| std::net::SocketAddr::from(([10, 0, 0, 1], port));
        let before = Traffic { packets: 5, octets: 500 };
        let tag = Tag::new(2, 16).unwrap();
        flows.open(&Flow {
            id: FlowId::new(Protocol::Udp, end(1), end(2)).unwrap(),
            tag,
            label: tag.label(0),
            start: Timestamp(1),
            is_undated: false,
            source: "test",
            application: None,
            news: None,
            counted: Some(Counted { before, ..Counted::default() }),
        });
        let (mut writer, mut out) = (Writer::default(), Vec::new());
        flows.write(&mut writer);
        writer.finish(Format::Text, &mut out);
        let text = String::from_utf8(out).unwrap();
        for (name, value) in [("packets", 7), ("bytes", 700)] {
            let line = |line: &&str| line.starts_with(&format!("glowd_tag_{name}_total{{"));
            let found: Vec<_> = text.lines().filter(line).collect();
            assert!(matches!(found[..], [one] if one.ends_with(&format!(" {value}"))), "{text}");
        }
    }
}
