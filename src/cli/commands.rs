//! What the commands do.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use log::{warn, LevelFilter};

use super::flags::Args;
use super::{completions, help, man, parse};
use crate::config::nearest::nearest;
use crate::config::{Config, DEFAULT_PATH};
use crate::error::{Error, Result};
use crate::log::Destination;
use crate::registry::Registry;
use crate::reload::Origin;
use crate::{backends, daemon, shutdown, stun};

pub(super) fn run(args: &Args) -> Result<()> {
    // A reload that is asked for already is not what ends it.
    shutdown::block_signals()?;
    let config = Config::load(&args.conf)?;
    let level = args.log_level.unwrap_or(config.log_level());
    crate::log::init(level, args.log_time, config.log_destination())?;
    config.log_notes();
    // Nobody changes the folder, but a reload shall not depend on it.
    let path = std::path::absolute(&args.conf)
        .map_err(|error| Error::os(format!("cannot find the folder of {:?}", args.conf), error))?;
    daemon::run(config, Origin { path, log_level: args.log_level })
}

pub(super) fn conf(args: &Args) -> Result<()> {
    let config = Config::load(&args.conf)?;
    log_to_stderr(args)?;
    config.log_notes();
    if args.check {
        config.check_names(&config.names()?, true)?;
        print(&format!("{}: ok\n", args.conf.display()))
    } else {
        print(&(config.to_json() + "\n"))
    }
}

pub(super) fn marker_clean(args: &Args) -> Result<()> {
    log_to_stderr(args)?;
    backends::clean_marker(&args.interfaces)
}

pub(super) fn registry_check(args: &Args) -> Result<()> {
    let [file] = args.operands.as_slice() else {
        return Err(Error::usage("\"registry check\" takes one word: a file"));
    };
    Registry::load(Path::new(file))?;
    print(&format!("{file}: ok\n"))
}

/// The names that the daemon knows: those of the configuration, or where there is none at
/// its usual place, those installed. For commands that explain what the daemon does.
///
/// # Errors
/// The configuration was named and cannot be read, or there is no registry where it says.
pub(super) fn registry(args: &Args) -> Result<Arc<Registry>> {
    log_to_stderr(args)?;
    let is_usual = args.conf == Path::new(DEFAULT_PATH);
    if is_usual && !args.conf.exists() {
        return Registry::installed().map(Arc::new);
    }
    match Config::load(&args.conf).and_then(|config| config.names()) {
        Ok(names) => Ok(names.get()),
        // It matters to nobody who only reads a number.
        Err(error) if is_usual => {
            warn!("{error}; the installed registry is used");
            Registry::installed().map(Arc::new)
        }
        Err(error) => Err(error),
    }
}

/// For the commands that talk to whoever has typed them.
pub(super) fn log_to_stderr(args: &Args) -> Result<()> {
    let level = args.log_level.unwrap_or(LevelFilter::Info);
    crate::log::init(level, args.log_time, Destination::Stderr)
}

pub(super) fn selftest(args: &Args) -> Result<()> {
    log_to_stderr(args)?;
    crate::selftest::run(&mut io::stdout().lock())
}

pub(super) fn stun_sample(args: &Args) -> Result<()> {
    let section = if args.stun_servers.is_empty() {
        let config = Config::load(&args.conf)?;
        log_to_stderr(args)?;
        let firefly = config.backends.iter().find(|(spec, _)| spec.name == "firefly");
        firefly.and_then(|(_, section)| section.section("stun").cloned())
    } else {
        log_to_stderr(args)?;
        let problems = stun::server_problems(&args.stun_servers);
        if let Some(problem) = problems.first() {
            return Err(Error::usage(problem.replacen("stunServers", "--stun-server", 1)));
        }
        Some(stun::section_of(args.stun_servers.clone()))
    };
    print(&stun::sample(&section.unwrap_or_else(stun::default_section))?)
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
    let pages: Vec<_> = man::PAGES.iter().map(|page| page.name).collect();
    let name = at_most_one(args, "page")?.unwrap_or("glowd");
    match man::PAGES.iter().find(|page| page.name == name || page.file == name) {
        Some(page) => print(&page.text()),
        None => Err(is_none_of("page", name, &pages)),
    }
}

pub(super) fn completions(args: &Args) -> Result<()> {
    let shells: Vec<_> = completions::SHELLS.iter().map(|shell| shell.name).collect();
    let name = at_most_one(args, "shell")?.unwrap_or("bash");
    match completions::SHELLS.iter().find(|shell| shell.name == name) {
        Some(shell) => print(&shell.text()),
        None => Err(is_none_of("shell", name, &shells)),
    }
}

/// The word behind the command, if there is one.
fn at_most_one<'a>(args: &'a Args, what: &str) -> Result<Option<&'a str>> {
    match args.operands.as_slice() {
        [] => Ok(None),
        [word] => Ok(Some(word)),
        [_, more, ..] => {
            let command = args.command.map_or("", |command| command.name);
            Err(Error::usage(format!("{more:?} is too much: \"{command}\" takes one {what}")))
        }
    }
}

fn is_none_of(what: &str, word: &str, names: &[&str]) -> Error {
    let hint = match nearest(word, names.iter().copied()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("there are {}", names.join(" and ")),
    };
    Error::usage(format!("{word:?} is not a {what}: {hint}"))
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
