//! What the process uses, where the system is not asked for it: nothing is said.

use super::Writer;

/// Writes nothing.
pub fn write(_: &mut Writer) {}
