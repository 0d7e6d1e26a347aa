//! Calls the command line, prints what went wrong, returns the exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    glowd::cli::main(std::env::args_os().skip(1))
}
