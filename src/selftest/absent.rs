//! The self-test where there is no marker to test: it refuses, and says why.

use std::io::Write;

use crate::error::Result;

/// `glowd selftest`.
///
/// # Errors
/// Always: there is no marker in this program.
pub fn run(_: &mut dyn Write) -> Result<()> {
    crate::backends::clean_marker(&[])
}
