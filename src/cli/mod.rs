//! The command line: parses it, does what it says, and says what went wrong. Runs
//! on the main thread.

mod commands;
mod completions;
mod flags;
mod help;
pub mod man;
mod parse;
mod tag;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::error::{Class, Result};

pub use flags::{Args, Command, Flag, COMMANDS, FLAGS};

/// Runs the command and returns the exit status.
pub fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    match run(words) {
        Ok(status) => status,
        Err(error) => {
            crate::log::report(&error);
            ExitCode::from(status(error.class()))
        }
    }
}

fn run(words: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    let args = parse::parse(words)?;
    match args.command {
        Some(command) if args.help => commands::print(&help::of(command))?,
        _ if args.help => commands::print(&help::all())?,
        _ if args.version => commands::version(&args)?,
        Some(command) => (command.run)(&args)?,
        None => {
            // Nobody may be there to read it.
            let _ = io::stderr().lock().write_all(help::all().as_bytes());
            return Ok(ExitCode::from(status(Class::Usage)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn status(class: Class) -> u8 {
    match class {
        Class::Usage => 64,
        Class::Internal => 70,
        Class::Os => 71,
        Class::Config => 78,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_those_of_the_classes() {
        for class in [Class::Usage, Class::Internal, Class::Os, Class::Config] {
            assert_eq!(i32::from(status(class)), class as i32);
        }
    }
}
