//! Log lines on standard error: `level: message`, with the time in front if asked
//! for (RFC 3339). If standard error is systemd's journal, the priority prefix of
//! sd-daemon(3) stands instead, and no time, since the journal has its own.

use std::fmt;
use std::io::{self, Write};

use log::{Level, Log, Metadata, Record};

use super::Escaped;
use crate::flow::Timestamp;

/// The logger.
#[derive(Debug)]
pub(super) struct Stderr {
    time: bool,
    journal: bool,
}

impl Stderr {
    /// One that says the time of each line if `time` says so.
    pub(super) fn new(time: bool) -> Self {
        Stderr { time, journal: is_journal() }
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
        if self.enabled(record.metadata()) {
            write(&self.line(record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// Says that the program failed.
pub(super) fn report(line: &str) {
    let line = Escaped(line);
    if is_journal() {
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

/// syslog(3)'s number.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
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
        let plain = Stderr { time: false, journal: false };
        assert_eq!(plain.line(Level::Info, &format_args!("a\nb")), "info: a\\nb\n");
        let journal = Stderr { time: true, journal: true };
        assert_eq!(journal.line(Level::Warn, &format_args!("a")), "<4>a\n");
        let timed = Stderr { time: true, journal: false };
        let line = timed.line(Level::Error, &format_args!("a"));
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(Timestamp::parse(time).is_some(), "{line}");
        assert_eq!(rest, "error: a\n");
    }
}
