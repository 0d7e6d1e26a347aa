//! Log lines on standard error: `level: message`, with the time in front if asked
//! for (RFC 3339). If standard error is systemd's journal, lines go to it by its
//! native protocol; where only its pipe can be reached, with the priority prefix of
//! sd-daemon(3), and without the time, since the journal has its own.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use log::{Level, Log, Metadata, Record};

use super::journald::{self, Journald};
use super::{priority, Escaped};
use crate::flow::Timestamp;

/// The logger.
#[derive(Debug)]
pub(super) struct Stderr {
    time: bool,
    journal: bool,
    native: Option<Journald>,
}

impl Stderr {
    /// One that says the time of each line if `time` says so.
    pub(super) fn new(time: bool) -> Self {
        let journal = is_journal();
        Stderr { time, journal, native: journal.then(native).flatten() }
    }

    fn line(&self, level: Level, message: &fmt::Arguments<'_>) -> String {
        let message = Escaped(message);
        if self.journal {
            format!("<{}>{message}\n", priority(level))
        } else if self.time {
            format!("{} {}: {message}\n", Timestamp::now(), word(level))
        } else {
            format!("{}: {message}\n", word(level))
        }
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if !self.native.as_ref().is_some_and(|journald| journald.log(record)) {
            write(&self.line(record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// Says that the program failed.
pub(super) fn report(line: &str) {
    let journal = is_journal();
    let args = format_args!("{line}");
    let record = Record::builder().level(Level::Error).args(args).build();
    if journal && native().is_some_and(|journald| journald.log(&record)) {
        return;
    }
    let line = Escaped(line);
    if journal {
        write(&format!("<{}>{line}\n", priority(Level::Error)));
    } else {
        write(&format!("glowd: {line}\n"));
    }
}

/// Writes the whole line at once: standard error has no buffer. Where nobody reads
/// it there is nobody to tell.
fn write(line: &str) {
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}

fn native() -> Option<Journald> {
    Journald::open(Path::new(journald::SOCKET))
}

/// Whether standard error is the journal: systemd.exec(5) says in JOURNAL_STREAM
/// which device and inode that would be.
fn is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(stat) = nix::sys::stat::fstat(io::stderr()) else { return false };
    stream.to_str() == Some(&format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_its_reader_lacks() {
        let plain = Stderr { time: false, journal: false, native: None };
        assert_eq!(plain.line(Level::Info, &format_args!("a\nb")), "info: a\\nb\n");
        let journal = Stderr { time: true, journal: true, native: None };
        assert_eq!(journal.line(Level::Warn, &format_args!("a")), "<4>a\n");
        let timed = Stderr { time: true, journal: false, native: None };
        let line = timed.line(Level::Error, &format_args!("a"));
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(Timestamp::parse(time).is_some(), "{line}");
        assert_eq!(rest, "error: a\n");
    }
}
