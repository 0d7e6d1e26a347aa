//! The marker where there is none: it refuses, and says why.

use crate::backends::Backend;
use crate::config::Section;
use crate::error::{Error, Result};
use crate::part::Context;

pub(super) fn build(_: &Section, _: &Context) -> Result<Box<dyn Backend>> {
    Err(refusal())
}

/// `glowd marker clean`.
///
/// # Errors
/// Always: there is no marker in this program.
pub fn clean(_: &[String]) -> Result<()> {
    Err(refusal())
}

fn refusal() -> Error {
    Error::config(if cfg!(target_os = "linux") {
        "this glowd was built without the ebpf feature, which the marker needs"
    } else {
        "the marker needs Linux"
    })
}
