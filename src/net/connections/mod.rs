//! TCP connections as they open, are established and close, told by the kernel at once:
//! for plugins that find flows by themselves. Runs on the thread of the plugin, which has
//! this in its poll set; owns an eBPF program on a control group (bpf/connections.bpf.c).
//!
//! ```text
//! let mut connections = Connections::watch(&root()?, &Wanted::default())?;
//! // poll(2): POLLIN on `connections`, then until None, or until enough:
//! while let Some(connection) = connections.read() { ... }
//! if connections.lost() > before { /* list the sockets now */ }
//! ```
//!
//! What is reported are sockets of the network namespace of the thread that calls
//! `watch`, and not the connections that exist by then, but for their end if they are
//! established later. The same connection on loopback has two sockets, and so two
//! reports of each change.

#[cfg(not(all(target_os = "linux", feature = "ebpf")))]
mod absent;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod kernel;

use std::fs;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

#[cfg(not(all(target_os = "linux", feature = "ebpf")))]
pub use absent::Connections;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
pub use kernel::Connections;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
pub(crate) use kernel::{attach, here};

use crate::error::{Error, Result};
use crate::flow::{FlowId, Protocol, Timestamp};

/// What has become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This host begins it: it is in connect(2), and the SYN is not sent yet. A close
    /// follows, whether or not it is ever established.
    Opened,
    /// The handshake is complete. The first report of a connection that the other end has
    /// begun (anybody can send a SYN, from any address), and of one that was opening when
    /// the watch began.
    Established,
    /// It is over, or has failed: the socket's state is CLOSE. One in TIME-WAIT has got
    /// there.
    Closed,
}

/// A report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// What has happened.
    pub change: Change,
    /// The other end has opened it. Not known of a close.
    pub passive: bool,
    /// This host's end. IPv4-mapped addresses are IPv4.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// SO_COOKIE of the socket, as sock_diag(7) has it too: the same in all reports of a
    /// connection.
    pub cookie: u64,
    /// Number of the socket's control group: the inode of its folder. None: unknown.
    pub cgroup: Option<u64>,
    /// The socket's user. None: unknown.
    pub uid: Option<u32>,
    /// The interface that the socket is bound to, as one of link-local addresses always is; 0:
    /// none.
    pub interface: u32,
    /// Who connects: known when a connection is opened, and of nothing else.
    pub process: Option<Process>,
    /// When it happened.
    pub time: Timestamp,
}

impl Connection {
    /// The flow from here to there.
    ///
    /// # Errors
    /// None that are known: a connection has ports, and ends of one family.
    pub fn flow(&self) -> std::result::Result<FlowId, String> {
        FlowId::new(Protocol::Tcp, self.local, self.remote)
    }
}

/// A connection that is open, by the list of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// The flow from here to there.
    pub flow: FlowId,
    /// As [`Connection::cookie`].
    pub cookie: u64,
    /// As [`Connection::interface`].
    pub interface: u32,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number in the host's process namespace.
    pub pid: u32,
    /// Its command (/proc/PID/comm): 15 octets at the most.
    pub command: String,
}

/// Ports of both ends of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Of this host's.
    pub local: RangeInclusive<u16>,
    /// Of the other.
    pub remote: RangeInclusive<u16>,
}

/// Which connections are worth a report. The others cost no more than the filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those whose ports are in one of these. None: all, and so if there are more than
    /// the kernel's filter has room for (16).
    pub ports: Vec<Ports>,
    /// None from or to loopback addresses.
    pub no_loopback: bool,
    /// Whether the kernel is to say where their control groups are ([`Connections::places`]).
    pub groups: bool,
}

/// The folder of the control group (cgroup v2) that contains all others.
///
/// # Errors
/// It is not mounted where this process sees it.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    find_root(&mounts).ok_or_else(|| {
        Error::new(crate::error::Class::Os, "cannot find cgroup2 among what is mounted")
    })
}

/// In the text of a /proc/PID/mountinfo (proc(5)).
fn find_root(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (part, folder) = (fields.next()?, fields.next()?);
        // A folder with blanks would be escaped, and is nobody's choice here.
        (part == "/" && after.starts_with("cgroup2 ")).then(|| folder.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_control_groups_is_found() {
        let tmpfs = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n";
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw shared:3 - cgroup cgroup rw,cpu\n";
        let v2 = "41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        let part = "41 31 0:38 /system.slice /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = find_root(&[tmpfs, v1, part, v2].concat());
        assert_eq!(found, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_root(&[tmpfs, v1, part].concat()), None);
    }
}
