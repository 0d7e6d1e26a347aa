//! The figures of open flows. Written by the backend's thread, read by that of HTTP,
//! behind a lock.

use std::collections::HashMap;
use std::sync::Arc;

use crate::flow::{Flow, Tag};
use crate::metrics::families::TAG_FLOWS_OPEN;
use crate::metrics::Writer;
use crate::registry::{Names, Registry};

/// The open flows.
pub(super) struct Flows {
    names: Arc<Names>,
    /// How many there are of each tag.
    tags: HashMap<Tag, u64>,
    /// How often the metrics were asked for.
    pub(super) scrapes: u64,
}

impl Flows {
    pub(super) fn new(names: Arc<Names>) -> Self {
        Flows { names, tags: HashMap::new(), scrapes: 0 }
    }

    pub(super) fn open(&mut self, flow: &Flow) {
        *self.tags.entry(flow.tag).or_default() += 1;
    }

    pub(super) fn close(&mut self, flow: &Flow) {
        // Gone with its last flow, so that their number is bounded by that of flows.
        if let Some(count) = self.tags.get_mut(&flow.tag) {
            *count -= 1;
            if *count == 0 {
                self.tags.remove(&flow.tag);
            }
        }
    }

    /// Writes what there is.
    pub(super) fn write(&self, writer: &mut Writer) {
        let registry = self.names.get();
        let mut tags: Vec<_> = self.tags.iter().collect();
        tags.sort_unstable_by_key(|(tag, _)| (tag.experiment(), tag.activity()));
        for (tag, count) in tags {
            tagged(*tag, &registry, |labels| writer.number(&TAG_FLOWS_OPEN, labels, *count));
        }
    }
}

/// The labels that say a tag: names, which are empty for what is not registered, and ids.
fn tagged(tag: Tag, registry: &Registry, write: impl FnOnce(&[&str])) {
    let (experiment, activity) = registry.names(tag);
    let ids = (tag.experiment().to_string(), tag.activity().to_string());
    write(&[experiment.unwrap_or(""), &ids.0, activity.unwrap_or(""), &ids.1]);
}
