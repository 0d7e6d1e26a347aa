//! The cable: a veth pair with link-local addresses, the far end in a network namespace
//! of its own if that may be made. Owns both ends; dropping it removes them.
//!
//! Between link-local addresses of two interfaces packets take the cable even if both
//! are of one host, since such an address is local to its interface only (RFC 4291).

use std::fmt;
use std::fs::File;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsFd;
use std::thread;

use log::error;
use nix::errno::Errno;
use nix::sched::{setns, unshare, CloneFlags};

use crate::error::{At, Error, Result};
use crate::net::interfaces::{self, Interface};
use crate::net::netlink::Socket;
use crate::net::veth;

/// One end.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) interface: Interface,
    pub(super) address: Ipv6Addr,
}

impl End {
    /// Its address with that port.
    pub(super) fn port(&self, port: u16) -> SocketAddrV6 {
        SocketAddrV6::new(self.address, port, 0, self.interface.index)
    }
}

/// Two ends. The thread that made it is in the namespace of the near one.
pub(super) struct Cable {
    pub(super) near: End,
    pub(super) far: End,
    /// Of the near end's namespace.
    pub(super) socket: Socket,
    /// The far end's namespace, if it has its own.
    elsewhere: Option<File>,
}

impl Cable {
    /// Makes it, in two new namespaces if `apart` and the system lets us, else between
    /// two interfaces of this one. The calling thread stays in the near end's.
    pub(super) fn new(apart: bool) -> Result<Self> {
        let elsewhere = if apart { namespaces().ok() } else { None };
        let mut socket = Socket::route()?;
        let names = ["a", "b"].map(|end| format!("glowd{}{end}", std::process::id()));
        let fd = elsewhere.as_ref().map(AsFd::as_fd);
        veth::add(&mut socket, [&names[0], &names[1]], fd).map_err(|failure| {
            let hint = match failure.errno {
                Errno::EOPNOTSUPP => " (is the module veth there?)",
                Errno::EPERM => " (CAP_NET_ADMIN is needed)",
                _ => "",
            };
            failure.because(format!("cannot make a veth pair{hint}"))
        })?;
        // From here on Drop removes it.
        let end = |interface, last| End {
            interface,
            address: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x676c, last),
        };
        let near = find(&mut socket, &names[0])?;
        let near = end(near, 1);
        let far = near.clone();
        let mut cable = Cable { near, far, socket, elsewhere };
        let far = cable.at_far(|| find(&mut Socket::route()?, &names[1]))??;
        cable.far = end(far, 2);
        let far = cable.far.clone();
        cable.at_far(|| prepare(&mut Socket::route()?, &far))?.at("far end")?;
        prepare(&mut cable.socket, &cable.near).at("near end")?;
        Ok(cable)
    }

    /// The far end with that port, as the near one names it: by its own interface.
    pub(super) fn near_to_far(&self, port: u16) -> SocketAddrV6 {
        SocketAddrV6::new(self.far.address, port, 0, self.near.interface.index)
    }

    /// Does `work` on a thread in the far end's namespace. What it opens stays there.
    pub(super) fn at_far<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(work()) };
        thread::scope(|scope| {
            let inside = || {
                setns(elsewhere, CloneFlags::CLONE_NEWNET)
                    .map_err(|error| Error::os("cannot enter a network namespace", error))?;
                Ok(work())
            };
            let joined = scope.spawn(inside).join();
            joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl fmt::Display for Cable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (near, far) = (&self.near.interface.name, &self.far.interface.name);
        match self.elsewhere {
            Some(_) => f.write_str("a pair, with a network namespace for each end"),
            None => write!(f, "a pair in this network namespace, {near} and {far}"),
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        match veth::delete(&mut self.socket, self.near.interface.index) {
            Ok(()) => {}
            Err(failure) if failure.errno == Errno::ENODEV => {}
            Err(failure) => {
                error!("cannot remove the interface {}: {failure}", self.near.interface.name);
            }
        }
    }
}

/// Moves this thread to a new namespace, and makes another, which is returned.
fn namespaces() -> nix::Result<File> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net").map_err(|_| Errno::ENOENT)
    };
    let far = thread::scope(|scope| scope.spawn(make).join());
    let far = far.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    Ok(far)
}

fn find(socket: &mut Socket, name: &str) -> Result<Interface> {
    let all = interfaces::list(socket)?;
    let found = all.into_iter().find(|interface| interface.name == name);
    found.ok_or_else(|| Error::internal(format!("the interface {name:?} is not there")))
}

/// An address, and up.
fn prepare(socket: &mut Socket, end: &End) -> Result<()> {
    let index = end.interface.index;
    veth::set_up(socket, index).map_err(|failure| failure.because("cannot set it up"))?;
    veth::add_address(socket, index, end.address).map_err(|failure| {
        let hint = match failure.errno {
            Errno::EACCES | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP => {
                " (IPv6 is disabled on this host: see net.ipv6.conf.default.disable_ipv6)"
            }
            _ => "",
        };
        failure.because(format!("cannot give it an IPv6 address{hint}"))
    })
}
