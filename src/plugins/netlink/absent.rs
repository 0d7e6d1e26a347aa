//! The netlink plugin where there is none: it refuses, and says why.

use crate::config::Section;
use crate::error::{Error, Result};
use crate::part::Context;
use crate::plugins::Plugin;

pub(super) fn build(_: &Section, _: &Context) -> Result<Box<dyn Plugin>> {
    Err(Error::config("finding connections by themselves needs Linux"))
}
