//! Log lines to systemd's journal by its native protocol: a datagram a line, with
//! the fields of the flow that it is about (systemd.journal-fields(7), and the
//! journal's native protocol as systemd documents it). All threads log.

use std::fmt::Write;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::kv::{Error, Key, Source, Value, VisitSource};
use log::{Level, Record};
use nix::sys::socket::{sendto, MsgFlags, UnixAddr};

use super::{priority, Escaped};
use crate::net::uninterrupted;

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// How long lines may wait together, per [`PERIOD`], for a journal that is behind.
/// Bursts fit in its queue then, and one that hangs or is slow holds nobody up.
const PATIENCE: Duration = Duration::from_millis(100);

const PERIOD: Duration = Duration::from_secs(1);

/// The way to the journal. Not connected: journald may be restarted.
#[derive(Debug)]
pub(super) struct Journald {
    socket: UnixDatagram,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Lines that could not be sent since the last one that could.
    lost: u64,
    /// How long lines may still wait, and since when that counts.
    patience: Duration,
    since: Instant,
}

impl Journald {
    /// The journal behind the socket at `path`, if there is one.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_write_timeout(Some(PATIENCE)).ok()?;
        let state = State { lost: 0, patience: PATIENCE, since: Instant::now() };
        let journald = Journald { socket, path: path.to_owned(), state: Mutex::new(state) };
        // An empty datagram is what the protocol's own libraries probe with: the
        // journal ignores it.
        journald.send(b"", true).ok()?;
        Some(journald)
    }

    /// Writes the line with its fields. False: no journal is there, so that the
    /// caller has to find another way. One that is behind loses it, counted.
    pub(super) fn log(&self, record: &Record<'_>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.lost > 0 {
            let text = format!("{} lines could not be logged", state.lost);
            let notice = datagram(Level::Warn, &text, &None::<(&str, &str)>);
            if self.send(&notice, false).is_ok() {
                state.lost = 0;
            }
        }
        let fields = record.key_values();
        let datagram = datagram(record.level(), &Escaped(record.args()).to_string(), fields);
        match self.send_patiently(&datagram, &mut state) {
            Ok(()) => true,
            Err(error) if is_behind(&error) => {
                state.lost += 1;
                true
            }
            Err(_) => false,
        }
    }

    /// Waits only if it has to, and only as long as there is patience left.
    fn send_patiently(&self, datagram: &[u8], state: &mut State) -> io::Result<()> {
        match self.send(datagram, false) {
            Err(error) if is_behind(&error) => {}
            result => return result,
        }
        let now = Instant::now();
        if now.duration_since(state.since) >= PERIOD {
            (state.patience, state.since) = (PATIENCE, now);
        }
        // What is left when lines are lost already is not worth to wait for.
        if state.lost > 0 || state.patience.is_zero() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let result = self.send(datagram, true);
        state.patience = state.patience.saturating_sub(now.elapsed());
        result
    }

    fn send(&self, datagram: &[u8], wait: bool) -> io::Result<()> {
        let address = UnixAddr::new(&self.path)?;
        let flags = if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        uninterrupted(|| Ok(sendto(self.socket.as_raw_fd(), datagram, &address, flags)?))?;
        Ok(())
    }
}

fn is_behind(error: &io::Error) -> bool {
    // ENOBUFS: the kernel has no memory for the datagram.
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// The datagram of a line: `NAME=value` lines. No value needs the protocol's form
/// for values of several lines, since they are all escaped.
fn datagram(level: Level, message: &str, fields: &dyn Source) -> Vec<u8> {
    let mut text = format!(
        "MESSAGE={message}\nPRIORITY={}\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=glowd\nSYSLOG_PID={}\n",
        priority(level),
        std::process::id()
    );
    // Neither the visitor nor a String fails.
    let _ = fields.visit(&mut Fields(&mut text));
    text.into_bytes()
}

/// Writes fields behind one another.
struct Fields<'t>(&'t mut String);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        writeln!(self.0, "{key}={}", Escaped(value)).map_err(Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(journald: &Journald, text: &str) -> bool {
        let fields = [("FLOW_STATE", "start"), ("FLOW_APPLICATION", "a\nMESSAGE=b")];
        let args = format_args!("{text}");
        let record = Record::builder().level(Level::Info).args(args).key_values(&fields).build();
        journald.log(&record)
    }

    #[test]
    fn a_line_is_a_datagram_with_its_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(Journald::open(&path).is_none(), "nobody is there");
        let journal = UnixDatagram::bind(&path).unwrap();
        let journald = Journald::open(&path).unwrap();
        let mut buffer = [0; 512];
        assert_eq!(journal.recv(&mut buffer).unwrap(), 0);
        assert!(line(&journald, "open\nflow"));
        let length = journal.recv(&mut buffer).unwrap();
        let pid = std::process::id();
        let expected = format!(
            "MESSAGE=open\\nflow\nPRIORITY=6\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=glowd\n\
             SYSLOG_PID={pid}\nFLOW_STATE=start\nFLOW_APPLICATION=a\\nMESSAGE=b\n"
        );
        assert_eq!(std::str::from_utf8(&buffer[..length]).unwrap(), expected);

        // Restarted, and gone.
        drop(journal);
        assert!(!line(&journald, "unheard"));
        std::fs::remove_file(&path).unwrap();
        assert!(!line(&journald, "unheard"));
        let journal = UnixDatagram::bind(&path).unwrap();
        assert!(line(&journald, "heard"));
        journal.recv(&mut buffer).unwrap();
        assert!(buffer.starts_with(b"MESSAGE=heard\n"));
    }

    #[test]
    fn a_journal_that_hangs_holds_nobody_up_and_hears_of_it_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        journal.set_nonblocking(true).unwrap();
        let journald = Journald::open(&path).unwrap();
        // More than any queue holds.
        let lines = 5000;
        for _ in 0..lines {
            assert!(line(&journald, "into the queue"));
        }
        let lost = journald.state.lock().unwrap().lost;
        assert!(lost > 0);
        let mut buffer = [0; 512];
        let mut queued = 0;
        while journal.recv(&mut buffer).is_ok() {
            queued += 1;
        }
        assert_eq!(queued + lost, lines + 1, "the first is the probe");
        assert!(line(&journald, "again"));
        let length = journal.recv(&mut buffer).unwrap();
        let notice = String::from_utf8_lossy(&buffer[..length]);
        assert!(
            notice.starts_with(&format!("MESSAGE={lost} lines could not be logged\nPRIORITY=4"))
        );
        journal.recv(&mut buffer).unwrap();
        assert!(buffer.starts_with(b"MESSAGE=again\n"));
    }
}
