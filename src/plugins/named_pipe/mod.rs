//! The named pipe plugin: reads flow events as lines from a FIFO (spec section
//! 5.1, fifo(7)). Runs on a thread of its own, which sleeps in poll(2); owns the
//! FIFO and its folder.
//!
//! Ends. The FIFO is open for reading only, so that the close of its last writer
//! is seen (a read of 0 bytes) and the last line may lack its newline. A read end
//! that has seen this reports POLLHUP for ever after, so it is replaced by a fresh
//! one. What a writer can do between any two of our steps:
//!
//! - Between the read of 0 bytes and the close of the old end it opens and writes:
//!   the fresh end is opened before the old one is closed, so the FIFO always has
//!   a reader. No writer gets EPIPE, SIGPIPE or ENXIO, and the buffer, which lives
//!   as long as anybody has the FIFO open, keeps every byte.
//! - It opens, writes and closes before the fresh end is opened: the bytes are in
//!   the buffer, so poll reports POLLIN. It does not report POLLHUP afterwards,
//!   since for Linux an end never hung up if it was opened when no writer was
//!   there. Therefore, once something was read, reading goes on until it yields
//!   nothing (EAGAIN) or 0 bytes; poll is not asked in between.
//! - It opens after that: poll reports what it writes and, since this end has seen
//!   it, POLLHUP when it goes.
//! - It closes without a newline, and the next one opens and writes before we read:
//!   the kernel keeps no mark between the two, and the two lines run into one. Only
//!   writers can avoid that, by writing newlines.
//!
//! Directory entry. When the path no longer leads to our FIFO, what is in it is
//! read first. Then the path gets a new FIFO, or the one that is there now is
//! used. The old one stays open beside it until its last writer has gone, each
//! with a framing of its own. A writer that had found the old one by its name,
//! but opens it only after that, waits in vain, as for every removed FIFO.

pub mod framing;
pub mod line;

mod end;
mod fifo;
mod watch;

#[cfg(test)]
mod tests;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::Group;

use self::end::{End, Got, Stopping};
use self::fifo::{Access, Fifo, Origin, When};
use self::framing::Framing;
use self::watch::Watch;
use super::{Plugin, Spec};
use crate::config::live::Live;
use crate::config::{Key, Kind, Section};
use crate::dispatcher::Inlet;
use crate::error::{At, Class, Error, Result};
use crate::log::limit::Limit;
use crate::part::{Context, Trial};
use crate::registry::Names;
use crate::run_dir::RunDir;
use crate::shutdown::Stop;

/// Where messages come from.
const NAME: &str = "plugins.namedPipe";

/// How much is read at once, in bytes: about a thousand lines.
const CHUNK: usize = 64 * 1024;

/// How often is tried again what nothing reports.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many FIFOs that lost their path are kept for the sake of their writers.
const MOST_OLD: usize = 8;

/// The registration.
pub(super) static SPEC: Spec = Spec {
    name: "namedPipe",
    aliases: &[],
    summary: "reads flow events, a line each, from a named pipe",
    keys: &[
        Key {
            name: "pipePath",
            aliases: &[],
            kind: Kind::Path,
            default: "\"/run/glowd/np\"",
            live: false,
            doc:
                "The named pipe (FIFO). It is made when it is missing and removed at exit if glowd \
                  made it; so is its folder. One that is found is left there at exit, unless glowd \
                  owns it, nobody reads it, and its mode and group are exactly those that glowd \
                  would give it: then a killed glowd has left it, and it is removed. One of a user \
                  other than glowd's and root, or anything else at this path, a symbolic link \
                  included, is an error and is never touched.",
        },
        Key {
            name: "mode",
            aliases: &[],
            kind: Kind::Mode,
            default: "\"0660\"",
            live: true,
            doc: "Permissions of the named pipe, whatever the umask is. Writers need the write \
                  permission only; with 0620 the group can write and cannot read lines away from \
                  glowd. The owner's read permission (0400) is needed.",
        },
        Key {
            name: "group",
            aliases: &[],
            kind: Kind::Text,
            default: "\"\"",
            live: true,
            doc:
                "Group of the named pipe, by name or number. Empty leaves it to the system, which \
                  takes that of the process or of the folder. Unless glowd runs as root it has to \
                  be a member.",
        },
        Key {
            name: "maxReaders",
            aliases: &[],
            kind: Kind::Retired,
            default: "5",
            live: false,
            doc: "Has no effect: one reader keeps up with all writers.",
        },
        Key {
            name: "buffSize",
            aliases: &[],
            kind: Kind::Retired,
            default: "1000",
            live: false,
            doc: "Has no effect: writes of any size are read.",
        },
    ],
    check,
    build,
};

fn check(section: &Section) -> Vec<String> {
    let mut problems = Vec::new();
    let path = section.text("pipePath");
    if path.is_empty() {
        problems.push("pipePath: must not be empty".into());
    } else if Path::new(path).file_name().is_none() {
        problems.push(format!("pipePath: \"{path}\" does not name a file"));
    }
    let mode = section.mode("mode");
    if mode & 0o400 == 0 {
        problems.push(format!("mode: \"{mode:04o}\" does not let glowd itself read (0400)"));
    }
    problems
}

fn build(section: &Section, context: &Context) -> Result<Box<dyn Plugin>> {
    let path = Path::new(section.text("pipePath"));
    Ok(Box::new(NamedPipe::open(path, access(section)?, context.names.clone())?))
}

fn access(section: &Section) -> Result<Access> {
    Ok(Access { mode: section.mode("mode"), gid: gid(section.text("group")).at("group")? })
}

/// The number of a group that is given by name or number, if one is.
fn gid(group: &str) -> Result<Option<u32>> {
    if group.is_empty() {
        return Ok(None);
    }
    match group.parse() {
        // For chown(2) it says that the group shall stay as it is.
        Ok(u32::MAX) => return Err(Error::config(format!("\"{group}\" is not a group"))),
        Ok(number) => return Ok(Some(number)),
        Err(_) => {}
    }
    match Group::from_name(group) {
        Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
        // Name services may be late at boot.
        Ok(None) => Err(Error::new(Class::Os, format!("there is no group \"{group}\""))),
        Err(error) => Err(Error::os(format!("cannot look up group \"{group}\""), error)),
    }
}

/// The plugin. The order of the fields is the order of undoing: the FIFO before
/// the folder.
struct NamedPipe {
    /// The FIFO at the path; none while there cannot be one.
    current: Option<End>,
    /// FIFOs that were at the path, oldest first.
    old: Vec<End>,
    folder: Option<RunDir>,
    watch: Option<Watch>,
    path: PathBuf,
    access: Access,
    names: Arc<Names>,
    live: Live,
    /// Why there is no current one: said once, not at each try.
    trouble: Option<String>,
    /// When to look and try again, if nothing reports before.
    next_try: Instant,
    chunk: Box<[u8]>,
}

/// What poll woke us for.
#[derive(Clone, Copy, Debug, Default)]
struct Wake {
    stop: bool,
    live: bool,
    watch: bool,
}

impl NamedPipe {
    /// Acquires everything.
    fn open(path: &Path, access: Access, names: Arc<Names>) -> Result<Self> {
        let mut pipe = NamedPipe {
            current: None,
            old: Vec::new(),
            folder: None,
            watch: None,
            path: path.to_owned(),
            access,
            names,
            live: Live::new()?,
            trouble: None,
            next_try: Instant::now(),
            chunk: vec![0; CHUNK].into_boxed_slice(),
        };
        let end = pipe.acquire(When::Start)?;
        let how = match end.fifo.origin() {
            Origin::Made => "made",
            Origin::Adopted => "adopted: a killed glowd left it",
            Origin::Found => "found",
        };
        info!("{NAME}: listening on \"{}\", {how}", path.display());
        pipe.current = Some(end);
        Ok(pipe)
    }

    /// The FIFO that is at the path now, if need be a new one.
    fn acquire(&mut self, when: When) -> Result<End> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        if self.folder.is_none() || !folder.exists() {
            // The folder that this one would remove is gone already, so it must
            // not meet the new one.
            self.folder = None;
            self.folder = Some(RunDir::for_file(&self.path)?);
        }
        // Before looking, so that nothing can happen unseen in between.
        self.watch = Some(Watch::new(&self.path));
        if let Some(back) = self.old.iter().position(|end| end.fifo.is_at_path()) {
            return Ok(self.old.remove(back));
        }
        let fifo = Fifo::acquire(&self.path, self.access, when)?;
        Ok(End { fifo, framing: Framing::new(), due: true, deaf: false })
    }

    /// Sees to it that the path leads to our FIFO.
    fn look(&mut self, out: &Inlet) -> std::result::Result<(), Stopping> {
        self.next_try = Instant::now() + PATIENCE;
        if self.current.as_ref().is_some_and(|end| end.fifo.is_at_path()) {
            return Ok(());
        }
        if let Some(mut lost) = self.current.take() {
            lost.drain(&mut self.chunk, &self.names, out)?;
            // A writer may have come after its end; the next read tells.
            (lost.due, lost.deaf) = (true, false);
            self.old.push(lost);
            if self.old.len() > MOST_OLD {
                crate::warn_limited!("{NAME}: cut off the writers of a FIFO that was removed");
                self.old.remove(0);
            }
        }
        match self.acquire(When::Later) {
            Ok(end) => {
                static LIMIT: Limit = Limit::new();
                if LIMIT.pass().is_some() {
                    let how = match end.fifo.origin() {
                        Origin::Made => "made it again",
                        Origin::Adopted | Origin::Found => "using what is there",
                    };
                    info!("{NAME}: \"{}\" was removed or replaced: {how}", self.path.display());
                }
                self.trouble = None;
                self.current = Some(end);
            }
            Err(error) => {
                let trouble = error.to_string();
                if self.trouble.as_ref() != Some(&trouble) {
                    crate::warn_limited!("{NAME}: {trouble}; trying again until it works");
                }
                self.trouble = Some(trouble);
            }
        }
        Ok(())
    }

    /// Whether something is wrong that nothing reports the end of.
    fn has_to_try(&self) -> bool {
        self.watch.as_ref().and_then(Watch::fd).is_none()
            || self.current.as_ref().is_none_or(|end| end.deaf)
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self, stop: &Stop) -> Result<Wake> {
        let ends = || self.old.iter().chain(&self.current);
        let timeout = if ends().any(|end| end.due) {
            PollTimeout::ZERO
        } else if self.has_to_try() {
            let left = self.next_try.saturating_duration_since(Instant::now());
            // Rounded up: a little late is better than a little too often.
            let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
            PollTimeout::from(millis)
        } else {
            PollTimeout::NONE
        };
        let mut fds = vec![
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.live.as_fd(), PollFlags::POLLIN),
        ];
        let watch = self.watch.as_ref().and_then(Watch::fd);
        fds.extend(watch.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let heard = ends().filter(|end| !end.deaf);
        fds.extend(heard.map(|end| PollFd::new(end.fifo.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Wake::default()),
            Err(error) => return Err(Error::os("cannot poll", error)),
        }
        let has_watch = watch.is_some();
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let mut ready = ready.into_iter();
        let stop = ready.next().unwrap_or(false);
        let live = ready.next().unwrap_or(false);
        let watch = has_watch && ready.next().unwrap_or(false);
        let heard = self.old.iter_mut().chain(&mut self.current).filter(|end| !end.deaf);
        for (end, ready) in heard.zip(ready) {
            end.due |= ready;
        }
        Ok(Wake { stop, live, watch })
    }

    /// Reads each end that is due once: the old ones first, since what is in them
    /// was written first.
    fn read(&mut self, out: &Inlet) -> std::result::Result<(), Stopping> {
        let mut at = 0;
        while let Some(end) = self.old.get_mut(at) {
            if end.due
                && matches!(end.read(&mut self.chunk, &self.names, out)?, Got::End | Got::Failed)
            {
                self.old.remove(at);
            } else {
                at += 1;
            }
        }
        let Some(end) = self.current.as_mut().filter(|end| end.due) else { return Ok(()) };
        match end.read(&mut self.chunk, &self.names, out)? {
            Got::Bytes(_) | Got::Nothing => {}
            Got::End => match end.fifo.renew() {
                // Elsewhere poll reports an end without writers at once, always.
                Ok(true) => end.deaf = cfg!(not(target_os = "linux")),
                Ok(false) => self.look(out)?,
                Err(error) => {
                    crate::warn_limited!(
                        "{NAME}: cannot open \"{}\" for reading again: {error}",
                        self.path.display()
                    );
                    end.deaf = true;
                }
            },
            Got::Failed => end.deaf = true,
        }
        Ok(())
    }

    /// One turn; false: it was the last.
    fn turn(&mut self, out: &Inlet, stop: &Stop) -> Result<bool> {
        let wake = self.wait(stop)?;
        let done = if wake.stop { self.last(out) } else { self.work(wake, out) };
        Ok(done.is_ok() && !wake.stop)
    }

    fn work(&mut self, wake: Wake, out: &Inlet) -> std::result::Result<(), Stopping> {
        let seen = wake.watch && self.watch.as_mut().is_some_and(Watch::seen);
        let tries = self.has_to_try() && Instant::now() >= self.next_try;
        if tries {
            if let Some(end) = self.current.as_mut().filter(|end| end.deaf) {
                (end.due, end.deaf) = (true, false);
            }
        }
        if tries || seen {
            self.look(out)?;
        }
        if wake.live {
            self.reload();
        }
        self.read(out)
    }

    /// Gives the FIFO the access that its section says by now.
    fn reload(&mut self) {
        let Some(section) = self.live.take() else { return };
        let settled = access(&section).and_then(|access| {
            if let Some(end) = &self.current {
                end.fifo.change(self.access, access)?;
            }
            Ok(access)
        });
        match settled {
            Ok(access) => self.access = access,
            Err(error) => error!("{NAME}: {error}; mode and group stay as they were"),
        }
    }

    /// What was written before we were told to stop still counts.
    fn last(&mut self, out: &Inlet) -> std::result::Result<(), Stopping> {
        for end in self.old.iter_mut().chain(&mut self.current) {
            end.drain(&mut self.chunk, &self.names, out)?;
        }
        Ok(())
    }
}

impl Plugin for NamedPipe {
    fn live(&self) -> Option<Live> {
        Some(self.live.clone())
    }

    fn trial(&self) -> Option<Trial> {
        Some(Box::new(|section| access(section).map(drop)))
    }

    fn run(mut self: Box<Self>, out: Inlet, stop: Stop) -> Result<()> {
        while self.turn(&out, &stop)? {}
        Ok(())
    }
}
