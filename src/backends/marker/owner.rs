//! Who made a filter, and who holds an interface: what keeps two glowds apart, and
//! lets one clean up after another that was killed. Nothing is written to disk.
//!
//! A clsact filter outlives its maker, so its free text names it: process id and
//! start time, which together are never used again, and the process namespace that
//! they mean something in. A claim is an abstract unix socket (unix(7)) in the
//! network namespace; the kernel frees it with the process, and it works for tcx
//! too, which leaves no text.

use std::fmt;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    bind, connect, getsockopt, listen, shutdown, socket, AddressFamily, Backlog, Shutdown,
    SockFlag, SockType, UnixAddr,
};
use nix::unistd::{geteuid, Pid};

use crate::error::{Class, Error, Result};

/// Begins the text of every filter of glowd's.
const PREFIX: &str = "glowd:marker ";

/// The maker of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// Its process id.
    pub(super) pid: i32,
    /// When it started, in clock ticks since boot; 0 if it could not tell.
    start: u64,
    /// The process namespace (pid_namespaces(7)), by inode; 0 if it could not tell.
    namespace: u64,
    /// It had made the qdisc and meant to remove it.
    pub(super) made_qdisc: bool,
}

/// What is known of the maker of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It runs.
    Alive,
    /// It is gone for good.
    Dead,
    /// It is of another process namespace, into which glowd cannot see; the claim tells
    /// whether it runs.
    Unknown,
}

impl Owner {
    /// This process.
    pub(super) fn this_process(made_qdisc: bool) -> Self {
        let pid = Pid::this().as_raw();
        let start = start_time("self").unwrap_or(0);
        Owner { pid, start, namespace: pid_namespace(), made_qdisc }
    }

    /// The owner that a filter's text names, if it is one of glowd's.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.strip_prefix(PREFIX)?.split(' ');
        let mut field = |name| fields.next()?.strip_prefix(name)?.strip_prefix('=');
        Some(Owner {
            pid: field("pid")?.parse().ok().filter(|pid| *pid > 0)?,
            start: field("start")?.parse().ok()?,
            namespace: field("pidns")?.parse().ok()?,
            made_qdisc: field("qdisc")? == "own",
        })
    }

    /// Whether it still runs.
    pub(super) fn state(&self) -> State {
        if self.namespace != pid_namespace() {
            return State::Unknown;
        }
        // Says so also of a process that /proc hides from us.
        if kill(Pid::from_raw(self.pid), None) == Err(Errno::ESRCH) {
            return State::Dead;
        }
        match start_time(&self.pid.to_string()) {
            // The process id was given to another process since.
            Some(start) if start != self.start => State::Dead,
            _ => State::Alive,
        }
    }
}

impl fmt::Display for Owner {
    /// The text of its filters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner { pid, start, namespace, made_qdisc } = self;
        let qdisc = if *made_qdisc { "own" } else { "foreign" };
        write!(f, "{PREFIX}pid={pid} start={start} pidns={namespace} qdisc={qdisc}")
    }
}

/// Field 22 of /proc/PID/stat (proc_pid_stat(5)).
fn start_time(pid: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may contain anything.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    // A process that is dead and waits for its parent marks nothing any more.
    if matches!(fields.next()?, "Z" | "X") {
        return Some(u64::MAX);
    }
    fields.nth(18)?.parse().ok()
}

fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |metadata| metadata.ino())
}

/// This process's exclusive hold of an interface, until it is dropped or dies.
#[derive(Debug)]
pub(super) enum Claim {
    /// No other glowd is at work there, whichever process namespace it is of, unless
    /// it found the name squatted on when it started.
    Held(OwnedFd),
    /// Somebody who is no glowd has the name, as the text says. Anybody may take it,
    /// and must not keep glowd from starting.
    Squatted(String),
}

/// How long a holder that does not listen is waited for. A glowd that has just
/// begun to hold the name, or is about to give it up, needs far less; who squats on
/// it costs each interface this much at start.
const PATIENCE: Duration = Duration::from_millis(10);

impl Claim {
    /// Claims the interface for this glowd.
    ///
    /// # Errors
    /// Another glowd holds it; the message says which.
    pub(super) fn of(ifindex: u32) -> Result<Self> {
        let fail = |errno| Error::os("cannot claim the interface", errno);
        let name = format!("glowd/marker/{ifindex}");
        let address = UnixAddr::new_abstract(name.as_bytes()).map_err(fail)?;
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(fail)
        };
        let squatted = |who: String| {
            Ok(Claim::Squatted(format!(
                "{who}, so another glowd on this interface would not be noticed"
            )))
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let fd = open()?;
            match bind(fd.as_raw_fd(), &address) {
                Ok(()) => {
                    // Who asks is never answered, only queued and told our process id.
                    listen(&fd, Backlog::MAXCONN).map_err(fail)?;
                    return Ok(Claim::Held(fd));
                }
                Err(Errno::EADDRINUSE) => {}
                Err(errno) => return Err(fail(errno)),
            }
            let asker = open()?;
            let holder = connect(asker.as_raw_fd(), &address)
                .and_then(|()| getsockopt(&asker, PeerCredentials));
            match holder {
                Ok(holder) if holder.uid() != 0 && holder.uid() != geteuid().as_raw() => {
                    let (pid, uid) = (holder.pid(), holder.uid());
                    return squatted(format!(
                        "process {pid} of user {uid} holds {name:?}, which is for glowd"
                    ));
                }
                Ok(holder) if holder.pid() == 0 => {
                    return Err(in_use("of another process namespace"));
                }
                Ok(holder) => return Err(in_use(&format!("with process id {}", holder.pid()))),
                // The holder is about to go, or to listen.
                Err(Errno::ECONNREFUSED) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(1));
                }
                // Nobody listens, or too many have asked before: no glowd does that.
                Err(errno) => {
                    return squatted(format!(
                        "somebody holds {name:?}, which is for glowd, and does not answer ({errno})"
                    ));
                }
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Claim::Held(fd) = self {
            // A child that is between fork and exec may have a copy of the socket; this
            // tells whoever asks that there is nobody any more.
            let _ = shutdown(fd.as_raw_fd(), Shutdown::Both);
        }
    }
}

/// The error that another glowd is at work.
pub(super) fn in_use(which: &str) -> Error {
    Error::new(Class::Os, format!("another glowd, {which}, marks this interface"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_text_of_a_filter_names_its_owner() {
        for made_qdisc in [false, true] {
            let me = Owner::this_process(made_qdisc);
            let text = me.to_string();
            assert!(text.len() < 256 && me.start > 0 && me.namespace > 0, "{text}");
            assert_eq!(Owner::parse(&text), Some(me.clone()));
            assert_eq!(me.state(), State::Alive);
        }
        for foreign in [
            "",
            "count.o:[tc]",
            "glowd:marker",
            "glowd:marker pid=0 start=1 pidns=1 qdisc=own",
            "glowd:marker pid=-1 start=1 pidns=1 qdisc=own",
            "glowd:marker pid=1 pidns=1 qdisc=own",
            "my glowd:marker pid=1 start=1 pidns=1 qdisc=own",
        ] {
            assert_eq!(Owner::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn an_owner_is_dead_when_its_process_is() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start = start_time(&pid.to_string()).unwrap();
        let owner = Owner { pid, start, ..Owner::this_process(false) };
        assert_eq!(owner.state(), State::Alive);
        let reused = Owner { start: start - 1, ..owner.clone() };
        assert_eq!(reused.state(), State::Dead, "another process has its id");
        let other = Owner { namespace: 1, ..owner.clone() };
        assert_eq!(other.state(), State::Unknown);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(owner.state(), State::Dead);
    }

    #[test]
    fn an_interface_is_claimed_once() {
        // No interface has that number.
        let index = u32::MAX - std::process::id();
        let claim = Claim::of(index).unwrap();
        let refusal = Claim::of(index).unwrap_err().to_string();
        assert!(refusal.contains(&std::process::id().to_string()), "{refusal}");
        for _ in 0..10 {
            Claim::of(index).unwrap_err();
        }
        drop(claim);
        Claim::of(index).unwrap();
    }
}
