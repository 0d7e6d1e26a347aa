//! Where log lines go: the `log` facade's loggers, and the last words of a
//! program that failed. All threads log; a line is one write.

mod flow;
mod journald;
pub mod limit;
mod stderr;
mod syslog;

use std::fmt;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log};

use crate::error::{Error, Result};

pub use self::flow::About;

use self::stderr::Stderr;
use self::syslog::Syslog;

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard error; the journal's native protocol if the journal is what reads it.
    Stderr,
    /// The local syslog daemon.
    Syslog,
}

/// Set if [`init`] chose syslog: what is reported goes there too.
static SYSLOG: OnceLock<Syslog> = OnceLock::new();

/// Starts logging what is at least as urgent as `level`, with the time in front
/// if `time` says so and the destination does not know it anyway. Called once.
///
/// # Errors
/// The syslog daemon does not answer.
pub fn init(level: LevelFilter, time: bool, destination: Destination) -> Result<()> {
    let logger: &'static dyn Log = match destination {
        Destination::Stderr => {
            static STDERR: OnceLock<Stderr> = OnceLock::new();
            STDERR.get_or_init(|| Stderr::new(time))
        }
        Destination::Syslog => {
            let syslog = Syslog::connect()?;
            SYSLOG.get_or_init(|| syslog)
        }
    };
    log::set_logger(logger)
        .map_err(|error| Error::internal(format!("cannot start to log: {error}")))?;
    log::set_max_level(level);
    Ok(())
}

/// Says why the program failed, a line for each problem: on standard error,
/// whatever the configuration says, and in the syslog if that is where log lines
/// go.
pub fn report(error: &Error) {
    let text = error.to_string();
    for line in text.lines() {
        stderr::report(line);
        if let Some(syslog) = SYSLOG.get() {
            let args = format_args!("{line}");
            let record = log::Record::builder().level(Level::Error).args(args).build();
            syslog.log(&record);
        }
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

/// Text with its control characters escaped: what somebody outside has sent must
/// not be able to end a line or to steer a terminal.
struct Escaped<T>(T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        struct Escaper<'a, 'f>(&'a mut fmt::Formatter<'f>);
        impl Write for Escaper<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                let mut rest = text;
                while let Some((start, c)) = rest.char_indices().find(|(_, c)| is_unsafe(*c)) {
                    write!(self.0, "{}{}", &rest[..start], c.escape_default())?;
                    rest = &rest[start + c.len_utf8()..];
                }
                self.0.write_str(rest)
            }
        }
        write!(Escaper(f), "{}", self.0)
    }
}

/// Control characters, and the characters that break or reorder lines.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_outside_can_end_a_line_or_steer_a_terminal() {
        let evil = "a\nerror: b\r\t\u{1b}[2J\u{9b}\u{202e}\u{2028}ä\0";
        let shown = Escaped(evil).to_string();
        assert_eq!(shown, r"a\nerror: b\r\t\u{1b}[2J\u{9b}\u{202e}\u{2028}ä\u{0}");
    }
}
