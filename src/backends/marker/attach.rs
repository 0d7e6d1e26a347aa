//! Puts the programs on an interface, by tcx or by filters on a clsact qdisc, and
//! takes them off again; nothing of anyone else's is touched.
//!
//! Used by the thread that follows interfaces, and before that by the main thread. An
//! [`Attachment`] owns the links, or the filters and the qdisc if it made that; its Drop
//! removes them.

use log::{debug, error, info, warn};
use nix::errno::Errno;

use super::owner::{in_use, Claim, Owner, State};
use crate::error::{At, Class, Error, Result};
use crate::net::interfaces::{self, Interface};
use crate::net::netlink::{Failure, Socket};
use crate::net::tc::{self, Filter, Hook};
use crate::sys::bpf::{Link, Program};

/// How programs are attached (key `attach`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// tcx where the kernel has it, clsact elsewhere.
    Auto,
    /// tcx.
    Tcx,
    /// Filters on a clsact qdisc.
    Clsact,
}

/// An interface with glowd's programs on it.
#[derive(Debug)]
pub(super) struct Attachment {
    by: By,
    // Given up last, when nothing is on the interface any more.
    _claim: Claim,
}

#[derive(Debug)]
enum By {
    Tcx { _links: Vec<Link> },
    Clsact { filters: Clsact },
}

impl Attachment {
    /// Attaches each program to its hook. What a killed glowd has left there is
    /// removed first.
    ///
    /// # Errors
    /// Another glowd is at work there, or the kernel refuses; then nothing stays
    /// attached.
    pub(super) fn new(
        interface: &Interface,
        programs: &[(Hook, &Program)],
        way: Way,
        remove_qdisc: bool,
    ) -> Result<Self> {
        let mut socket = Socket::route()?;
        let claim = claim(interface)?;
        let leftovers = remove_leftovers(&mut socket, interface, &claim)?;
        let by = match way {
            Way::Clsact => None,
            _ => tcx(interface, programs, way)?,
        };
        let by = match by {
            Some(links) => By::Tcx { _links: links },
            None => {
                let mut clsact = Clsact::new(socket, interface, remove_qdisc, &leftovers)?;
                for (hook, program) in programs {
                    clsact.add(*hook, program)?;
                }
                By::Clsact { filters: clsact }
            }
        };
        Ok(Attachment { by, _claim: claim })
    }

    /// How it is attached, for the log.
    pub(super) fn way(&self) -> &'static str {
        match self.by {
            By::Tcx { .. } => "tcx",
            By::Clsact { .. } => "clsact",
        }
    }

    /// The interface has another name from now on.
    pub(super) fn rename(&mut self, name: &str) {
        if let By::Clsact { filters } = &mut self.by {
            name.clone_into(&mut filters.interface.name);
        }
    }
}

/// None: the kernel has no tcx, and something else may be tried.
fn tcx(
    interface: &Interface,
    programs: &[(Hook, &Program)],
    way: Way,
) -> Result<Option<Vec<Link>>> {
    let mut links = Vec::new();
    for (hook, program) in programs {
        match program.attach_tcx(interface.index, *hook) {
            Ok(link) => links.push(link),
            Err(error) => {
                let unknown = [libc::EINVAL, libc::EOPNOTSUPP, libc::ENOSYS];
                let unknown = error.raw_os_error().is_some_and(|code| unknown.contains(&code));
                let what = format!("cannot attach to {} by tcx", hook.name());
                if !unknown {
                    return Err(Error::os(what, error));
                }
                if way == Way::Tcx {
                    let cause = format!("{error}: tcx needs Linux 6.6");
                    return Err(Error::os(what, std::io::Error::other(cause)));
                }
                debug!("{}: {what}: {error}; trying clsact", interface.name);
                return Ok(None);
            }
        }
    }
    Ok(Some(links))
}

/// glowd's filters on a clsact qdisc.
#[derive(Debug)]
struct Clsact {
    socket: Socket,
    interface: Interface,
    /// Whether the qdisc is glowd's.
    made: bool,
    remove_qdisc: bool,
    text: String,
    filters: Vec<Filter>,
}

impl Clsact {
    fn new(
        mut socket: Socket,
        interface: &Interface,
        remove_qdisc: bool,
        leftovers: &Leftovers,
    ) -> Result<Self> {
        let index = interface.index;
        // What an earlier glowd made for itself is inherited.
        let mut made = leftovers.qdisc_is_ours;
        let kind = tc::qdisc(&mut socket, index)
            .map_err(|failure| failure.because("cannot look for a clsact qdisc"))?;
        match kind.as_deref() {
            Some("clsact") => {}
            Some(kind) => return Err(no_egress(interface, kind)),
            None => match tc::add_clsact(&mut socket, index) {
                Ok(()) => made = true,
                // Somebody else has made one since; adding a filter will tell
                // whether it is the right one.
                Err(failure) if failure.errno == Errno::EEXIST => {}
                Err(failure) => {
                    let hint = hint_of_module(&failure, "sch_ingress");
                    return Err(failure.because(format!("cannot create clsact qdisc{hint}")));
                }
            },
        }
        let text = Owner::this_process(made && remove_qdisc).to_string();
        let interface = interface.clone();
        Ok(Clsact { socket, interface, made, remove_qdisc, text, filters: Vec::new() })
    }

    fn add(&mut self, hook: Hook, program: &Program) -> Result<()> {
        let what = || format!("cannot add a filter to {}", hook.name());
        let index = self.interface.index;
        let others = tc::filters(&mut self.socket, index, hook)
            .map_err(|failure| failure.because(what()))?;
        // A priority is of one kind and one protocol, and those of others may be in
        // the way; there are at most as many as there are filters.
        let mut priority = 1;
        loop {
            let fd = std::os::fd::AsFd::as_fd(program);
            match tc::add_filter(&mut self.socket, index, hook, priority, fd, &self.text) {
                Ok(()) => break,
                Err(Failure { errno: Errno::EINVAL | Errno::EEXIST, .. })
                    if usize::from(priority) <= others.len() =>
                {
                    priority += 1;
                }
                Err(failure) => {
                    let hint = hint_of_module(&failure, "cls_bpf");
                    return Err(failure.because(format!("{}{hint}", what())));
                }
            }
        }
        let all = tc::filters(&mut self.socket, index, hook)
            .map_err(|failure| failure.because(what()))?;
        let place = all.iter().position(|filter| filter.handle != 0 && filter.name == self.text);
        let place = place.ok_or_else(|| {
            Error::os(what(), std::io::Error::other("it is not there after it was added"))
        })?;
        self.filters.push(all[place].clone());
        let before = all[..place].iter().filter(|filter| filter.handle != 0).count();
        if before > 0 {
            warn!(
                "{}: {before} filters of others on {} run before glowd's; packets that they \
                 accept or drop do not get to it",
                self.interface.name,
                hook.name()
            );
        }
        Ok(())
    }

    fn remove(&mut self) -> std::result::Result<(), Failure> {
        let index = self.interface.index;
        // A qdisc that never had a filter of ours on it was made a moment ago.
        let mut same_qdisc = self.filters.is_empty();
        for ours in std::mem::take(&mut self.filters) {
            let here = tc::filters(&mut self.socket, index, ours.hook)?;
            if here.contains(&ours) {
                same_qdisc = true;
                tc::delete_filter(&mut self.socket, index, &ours)?;
            } else {
                debug!("{}: glowd's filter was removed by somebody else", self.interface.name);
            }
        }
        if !self.made {
            return Ok(());
        }
        let name = &self.interface.name;
        if !self.remove_qdisc {
            info!("{name}: the clsact qdisc stays (removeQdisc is false)");
        } else if !same_qdisc {
            // Filters go with their qdisc. Somebody may have made another since, also
            // on another interface that got the number of one that is gone.
            info!(
                "{name}: glowd's filters are gone; if there is a clsact qdisc, it may be of \
                 others and stays"
            );
        } else if !remove_unused_qdisc(&mut self.socket, index)? {
            info!("{name}: the clsact qdisc stays, since there are filters of others on it");
        }
        Ok(())
    }
}

impl Drop for Clsact {
    fn drop(&mut self) {
        match self.remove() {
            Ok(()) => {}
            // With the interface everything on it is gone.
            Err(Failure { errno: Errno::ENODEV, .. }) => {
                debug!("{}: the interface is gone", self.interface.name);
            }
            Err(failure) => {
                error!("{}: cannot detach the marker: {failure}", self.interface.name);
            }
        }
    }
}

/// The kernel says ENOENT of a qdisc or a kind of filter whose module is not there.
fn hint_of_module(failure: &Failure, module: &str) -> String {
    if failure.errno == Errno::ENOENT {
        format!(" (is the kernel's module {module} there?)")
    } else {
        String::new()
    }
}

fn no_egress(interface: &Interface, kind: &str) -> Error {
    Error::config(format!(
        "there is a qdisc of kind {kind:?}, which has no egress hook and leaves no place for \
         clsact; replace it by clsact, which has its hook too, or use tcx (Linux 6.6): glowd does \
         not touch what is not its own (tc qdisc show dev {})",
        interface.name
    ))
}

/// Removes the clsact qdisc if there is no filter on it. Another program may add
/// one between the look and the removal; rtnetlink has no way to do both at once.
fn remove_unused_qdisc(socket: &mut Socket, index: u32) -> std::result::Result<bool, Failure> {
    for hook in Hook::BOTH {
        if !tc::filters(socket, index, hook)?.is_empty() {
            return Ok(false);
        }
    }
    if tc::qdisc(socket, index)?.as_deref() == Some("clsact") {
        tc::delete_clsact(socket, index)?;
    }
    Ok(true)
}

/// What was found of glowds that were killed.
#[derive(Debug, Default)]
struct Leftovers {
    filters: usize,
    /// There is a clsact qdisc still that one of them had made for itself.
    qdisc_is_ours: bool,
}

/// Claims the interface, with a warning if it cannot be had for certain.
fn claim(interface: &Interface) -> Result<Claim> {
    let claim = Claim::of(interface.index)?;
    if let Claim::Squatted(how) = &claim {
        warn!("{}: {how}", interface.name);
    }
    Ok(claim)
}

/// The filters of all glowds there.
fn owned(socket: &mut Socket, interface: &Interface) -> Result<Vec<(Filter, Owner)>> {
    let mut owned = Vec::new();
    for hook in Hook::BOTH {
        for filter in tc::filters(socket, interface.index, hook).map_err(cannot_clean)? {
            let owner = Owner::parse(&filter.name).filter(|_| filter.kind == "bpf");
            owned.extend(owner.map(|owner| (filter, owner)));
        }
    }
    Ok(owned)
}

fn cannot_clean(failure: Failure) -> Error {
    failure.because("cannot remove what a killed glowd has left")
}

fn remove_leftovers(
    socket: &mut Socket,
    interface: &Interface,
    claim: &Claim,
) -> Result<Leftovers> {
    let dead = owned(socket, interface)?;
    for (filter, owner) in &dead {
        match (owner.state(), claim) {
            // One of another process namespace would hold the claim if it were alive.
            (State::Dead, _) | (State::Unknown, Claim::Held(_)) => {}
            (State::Alive, _) => return Err(in_use(&format!("with process id {}", owner.pid))),
            (State::Unknown, Claim::Squatted(_)) => {
                let name = &interface.name;
                let (hook, priority) = (filter.hook.name(), filter.priority);
                return Err(in_use(&format!(
                    "with process id {} of another process namespace (if it is gone, remove \
                     its filter: tc filter del dev {name} {hook} prio {priority} handle {} bpf)",
                    owner.pid, filter.handle
                )));
            }
        }
    }
    let mut made_qdisc = false;
    for (filter, owner) in &dead {
        match tc::delete_filter(socket, interface.index, filter) {
            Err(failure) if failure.errno != Errno::ENOENT => return Err(cannot_clean(failure)),
            _ => {}
        }
        info!(
            "{}: removed a filter on {} that a killed glowd (process id {}) had left",
            interface.name,
            filter.hook.name(),
            owner.pid
        );
        made_qdisc |= owner.made_qdisc;
    }
    let mut leftovers = Leftovers { filters: dead.len(), qdisc_is_ours: false };
    if made_qdisc {
        let removed = remove_unused_qdisc(socket, interface.index).map_err(cannot_clean)?;
        leftovers.qdisc_is_ours = !removed;
        if removed {
            info!("{}: removed the clsact qdisc that it had made", interface.name);
        }
    }
    Ok(leftovers)
}

/// The interface of that name.
///
/// # Errors
/// It does not exist; the message names those that do.
pub(super) fn find<'a>(all: &[&'a Interface], name: &str) -> Result<&'a Interface> {
    all.iter().find(|interface| interface.name == name).copied().ok_or_else(|| {
        let known: Vec<&str> = all.iter().map(|interface| interface.name.as_str()).collect();
        // It may be late at boot: not a matter of the configuration alone.
        let problem = format!("there is no interface {name:?} (there are: {})", known.join(", "));
        Error::new(Class::Os, problem)
    })
}

/// Whether all filters of glowds there, of which there are some, have an owner that
/// lives.
fn is_at_work(socket: &mut Socket, interface: &Interface) -> Result<bool> {
    let owned = owned(socket, interface)?;
    let alive = |(_, owner): &(Filter, Owner)| matches!(owner.state(), State::Alive);
    Ok(!owned.is_empty() && owned.iter().all(alive))
}

/// Removes what killed glowds have left on an interface; returns how many filters.
/// No glowd starts there meanwhile. An interface without anything is not claimed, so
/// as not to be in the way of one that is starting.
fn clean_one(socket: &mut Socket, interface: &Interface) -> Result<usize> {
    if owned(socket, interface)?.is_empty() {
        return Ok(0);
    }
    let claim = claim(interface)?;
    Ok(remove_leftovers(socket, interface, &claim)?.filters)
}

/// `glowd marker clean`: removes what a killed glowd has left on these interfaces,
/// or on all of them if none is named, and nothing else.
///
/// # Errors
/// An interface does not exist, or was named and a glowd is at work there: the others
/// have been cleaned.
pub fn clean(names: &[String]) -> Result<()> {
    let mut socket = Socket::route()?;
    let all = interfaces::list(&mut socket)?;
    let mut targets: Vec<&Interface> = all.iter().collect();
    if !names.is_empty() {
        targets = names.iter().map(|name| find(&targets, name)).collect::<Result<_>>()?;
    }
    let (mut filters, mut result) = (0, Ok(()));
    for interface in targets {
        // A glowd at work is in the way only of who means that very interface.
        if names.is_empty() && is_at_work(&mut socket, interface)? {
            continue;
        }
        match clean_one(&mut socket, interface).at(interface.name.clone()) {
            Ok(removed) => filters += removed,
            Err(failure) => result = result.and(Err(failure)),
        }
    }
    if filters == 0 && result.is_ok() {
        info!("nothing to clean: no killed glowd has left anything");
    }
    result
}
