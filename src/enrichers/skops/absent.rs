//! The skops enricher where there is no eBPF: it refuses, and says why.

use crate::config::Section;
use crate::enrichers::Enricher;
use crate::error::{Error, Result};
use crate::part::Context;

pub(super) fn build(_: &Section, _: &Context) -> Result<Box<dyn Enricher>> {
    Err(Error::config(if cfg!(target_os = "linux") {
        "this glowd was built without the ebpf feature, which it takes"
    } else {
        "it takes Linux"
    }))
}
