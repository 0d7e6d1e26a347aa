//! The command line.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the command and returns the exit status.
pub fn main(_args: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::SUCCESS
}
