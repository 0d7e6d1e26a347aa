//! What the commands do.

use std::io::{self, Write};

use super::flags::Args;
use super::{help, man, parse};
use crate::config::nearest::nearest;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::log::Destination;
use crate::{backends, daemon};

pub(super) fn run(args: &Args) -> Result<()> {
    let config = Config::load(&args.conf)?;
    crate::log::init(args.log_level, args.log_time, config.log_destination())?;
    log_notes(&config);
    daemon::run(&config)
}

pub(super) fn conf(args: &Args) -> Result<()> {
    let config = Config::load(&args.conf)?;
    crate::log::init(args.log_level, args.log_time, Destination::Stderr)?;
    log_notes(&config);
    if args.check {
        print(&format!("{}: ok\n", args.conf.display()))
    } else {
        print(&(config.to_json() + "\n"))
    }
}

fn log_notes(config: &Config) {
    for note in &config.notes {
        log::log!(note.level, "{}", note.text);
    }
}

pub(super) fn marker_clean(args: &Args) -> Result<()> {
    crate::log::init(args.log_level, args.log_time, Destination::Stderr)?;
    backends::clean_marker(&args.interfaces)
}

pub(super) fn selftest(args: &Args) -> Result<()> {
    crate::log::init(args.log_level, args.log_time, Destination::Stderr)?;
    crate::selftest::run(&mut io::stdout().lock())
}

pub(super) fn version(_: &Args) -> Result<()> {
    let mut text = format!("glowd {}\n", env!("CARGO_PKG_VERSION"));
    // A source archive has no commit to name.
    if let Some(commit) = option_env!("GLOWD_COMMIT").filter(|commit| !commit.is_empty()) {
        text.push_str(&format!("commit {commit}\n"));
    }
    match crate::sys::version::libbpf() {
        Some((major, minor)) => text.push_str(&format!("libbpf {major}.{minor}\n")),
        None => text.push_str("libbpf none (built without the marker)\n"),
    }
    print(&text)
}

pub(super) fn help(args: &Args) -> Result<()> {
    if args.operands.is_empty() {
        return print(&help::all());
    }
    let command = parse::find_command(&args.operands)?;
    print(&help::of(command))
}

pub(super) fn man(args: &Args) -> Result<()> {
    let pages = || man::PAGES.iter().map(|page| page.name);
    let name = match args.operands.as_slice() {
        [] => "glowd",
        [name] => name,
        [_, more, ..] => {
            return Err(Error::usage(format!("{more:?} is too much: \"man\" takes one page")));
        }
    };
    match man::PAGES.iter().find(|page| page.name == name || page.file == name) {
        Some(page) => print(&page.text()),
        None => {
            let hint = match nearest(name, pages()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("there are {}", pages().collect::<Vec<_>>().join(" and ")),
            };
            Err(Error::usage(format!("{name:?} is not a page: {hint}")))
        }
    }
}

/// Writes to standard output. That its reader has seen enough is no failure.
pub(super) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::os("cannot write to standard output", error))
        }
        _ => Ok(()),
    }
}
