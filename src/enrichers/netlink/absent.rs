//! The netlink enricher where there is none: it refuses, and says why.

use crate::config::Section;
use crate::enrichers::Enricher;
use crate::error::{Error, Result};
use crate::part::Context;

pub(super) fn build(_: &Section, _: &Context) -> Result<Box<dyn Enricher>> {
    Err(Error::config("what TCP knows of a connection takes Linux"))
}
