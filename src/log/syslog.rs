//! Log lines to the local syslog daemon (RFC 3164's form, as syslog(3) writes it),
//! facility daemon.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use log::{Level, Log, Metadata, Record};
use syslog::{Facility, LogFormat, Logger, LoggerBackend, Severity};

use super::Escaped;
use crate::error::{Class, Error, Result};

/// The logger. The connection is made anew when the daemon has been restarted.
pub(super) struct Syslog(Mutex<State>);

struct State {
    logger: Logger<LoggerBackend, Format>,
    /// Lines that could not be sent since the last one that could.
    lost: u64,
}

impl Syslog {
    /// Connects to the daemon.
    ///
    /// # Errors
    /// None answers.
    pub(super) fn connect() -> Result<Self> {
        let logger = connect().map_err(|error| {
            Error::new(Class::Os, format!("log: cannot reach the syslog daemon: {error}"))
        })?;
        Ok(Syslog(Mutex::new(State { logger, lost: 0 })))
    }
}

impl Log for Syslog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = Escaped(record.args()).to_string();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.lost > 0 {
            let lost = format!("{} lines could not be logged", state.lost);
            if state.send(Level::Warn, &lost).is_ok() {
                state.lost = 0;
            }
        }
        if state.send(record.level(), &line).is_err() {
            state.lost += 1;
        }
    }

    fn flush(&self) {}
}

impl State {
    fn send(&mut self, level: Level, line: &str) -> syslog::Result<()> {
        match send(&mut self.logger, level, line) {
            // The daemon is busy: a line is not worth to wait for it.
            Err(syslog::Error::Write(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(syslog::Error::Write(error))
            }
            Err(_) => {
                self.logger = connect()?;
                send(&mut self.logger, level, line)
            }
            Ok(()) => Ok(()),
        }
    }
}

fn send(
    logger: &mut Logger<LoggerBackend, Format>,
    level: Level,
    line: &str,
) -> syslog::Result<()> {
    match level {
        Level::Error => logger.err(line),
        Level::Warn => logger.warning(line),
        Level::Info => logger.info(line),
        Level::Debug | Level::Trace => logger.debug(line),
    }
}

fn connect() -> syslog::Result<Logger<LoggerBackend, Format>> {
    let logger = syslog::unix(Format { pid: std::process::id() })?;
    match &logger.backend {
        LoggerBackend::Unix(socket) => socket.set_nonblocking(true)?,
        LoggerBackend::UnixStream(stream) => stream.get_ref().set_nonblocking(true)?,
        LoggerBackend::Udp(..) | LoggerBackend::Tcp(_) => {}
    }
    Ok(logger)
}

/// `<priority>glowd[pid]: message`, without the time: the crate's own formatter
/// writes UTC where local time is expected, and every syslog daemon puts the time
/// of arrival where there is none.
#[derive(Clone)]
struct Format {
    pid: u32,
}

impl LogFormat<&str> for Format {
    fn format<W: Write>(&self, w: &mut W, severity: Severity, line: &str) -> syslog::Result<()> {
        let priority = Facility::LOG_DAEMON as u8 | severity as u8;
        write!(w, "<{priority}>glowd[{}]: {line}", self.pid).map_err(syslog::Error::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn lines_reach_a_syslog_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut logger = syslog::unix_custom(Format { pid: 7 }, &path).unwrap();
        send(&mut logger, Level::Warn, "careful").unwrap();
        let mut buffer = [0; 64];
        let length = daemon.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"<28>glowd[7]: careful");
    }
}
