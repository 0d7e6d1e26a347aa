//! What finds and measures connections beside the marker, which does without: each is
//! loaded, attached and has to see a connection of this process's. Runs on the main thread;
//! nothing outlives a trial, since links and maps end with their descriptors.
//!
//! Programs are attached to the control group of this process, so the connections of
//! others are none of their business; plugins and enrichers take the one above all.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::report::Report;
use crate::enrichers::try_skops;
use crate::error::{Error, Result};
use crate::net::connections::{self, Connections, Wanted};
use crate::net::processes::Processes;

/// Tries each of them, unless `refusal` says why nothing can be.
pub(super) fn ask(report: &mut Report<'_>, refusal: Option<&str>) {
    let mut row = |what, without, trial: fn() -> Result<String>| {
        let outcome = refusal.map_or_else(
            || trial().map_err(|error| error.to_string()),
            |refusal| Err(format!("not tried: {refusal}")),
        );
        match outcome {
            Ok(text) => report.ok(what, &text),
            Err(cause) => report.none(what, &format!("{cause}; {without}")),
        }
    };
    row("reports of connections", "plugins look for them once in a while", || {
        let group = own_group()?;
        reports(&group)?;
        Ok(format!("come at once, by sock_ops on {group:?}"))
    });
    row("enricher skops", "enricher netlink does without", || {
        let group = own_group()?;
        try_skops(&group)?;
        Ok(format!("measures a connection, by sock_ops on {group:?}"))
    });
    row("command names", "no rule of plugin netlink can name a command", || {
        names()?;
        Ok("are told of sockets, by an iterator over open files".into())
    });
}

/// The folder of this process's control group; the one above all if that is not to be
/// seen from here, as in a container.
fn own_group() -> Result<PathBuf> {
    let root = connections::root()?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = path.map(|path| root.join(path)).filter(|path| path.join("cgroup.procs").exists());
    Ok(own.unwrap_or(root))
}

/// Whether the kernel tells of connections at once: of one that is made here.
fn reports(group: &Path) -> Result<()> {
    let mut connections = Connections::watch(group, &Wanted::default())?;
    let local = TcpListener::bind(("127.0.0.1", 0));
    let made = local.and_then(|listener| TcpStream::connect(listener.local_addr()?));
    let made = made.and_then(|stream| stream.local_addr());
    let from = made.map_err(|error| Error::os("cannot connect to 127.0.0.1", error))?;
    while let Some(connection) = connections.read() {
        if connection.local == from {
            return Ok(());
        }
    }
    Err(Error::os("a program is attached, but not run", Errno::ENOENT))
}

/// Whether the kernel tells who holds a socket: this process one of its own.
fn names() -> Result<()> {
    let socket = TcpListener::bind(("127.0.0.1", 0));
    let socket = socket.map_err(|error| Error::os("cannot listen on 127.0.0.1", error))?;
    let inode = fstat(socket.as_fd()).map_err(|error| Error::os("cannot ask for a file", error))?;
    let command = fs::read_to_string("/proc/self/comm").unwrap_or_default();
    let mut found = false;
    Processes::open()?.each(|holder| {
        found |= u64::from(holder.inode) == inode.st_ino
            && holder.command == command.trim_end().as_bytes();
    })?;
    if found {
        return Ok(());
    }
    Err(Error::os("the iterator does not tell of a socket that is open here", Errno::ENOENT))
}
