//! Keeps the programs on the interfaces that are to be marked while interfaces come,
//! go and change.
//!
//! Built on the main thread, run on a thread of its own, which sleeps in poll(2) until
//! the kernel says that something has changed, or the marker ends. Then it lists the
//! interfaces and makes what is attached what should be. Owns the programs and what is
//! attached; its end detaches.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{debug, error, info, warn};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::attach::Attachment;
use super::choice::{Link, Wanted, Why};
use super::programs::{Framing, Programs};
use crate::error::{Error, Result};
use crate::net::changes::{Changes, LINKS};
use crate::net::netlink::Socket;
use crate::shutdown::{stop_token, Stop, Stopper};
use crate::warn_limited;

/// What the network namespace has, and how one hears of changes.
#[derive(Debug)]
pub(super) struct View {
    changes: Changes,
    socket: Socket,
}

impl View {
    pub(super) fn open() -> Result<Self> {
        // Before anybody looks, so that no change is missed.
        Ok(View { changes: Changes::open(LINKS)?, socket: Socket::route()? })
    }

    /// All interfaces as they are now.
    pub(super) fn links(&mut self) -> Result<Vec<Link>> {
        Link::list(&mut self.socket)
    }
}

/// The names of the interfaces that are to be marked, and whether they are.
pub(super) type Names = Arc<Mutex<Vec<(String, bool)>>>;

/// What is attached, and what should be.
#[derive(Debug)]
pub(super) struct Follower {
    wanted: Wanted,
    view: View,
    /// By the interface's index.
    attached: BTreeMap<u32, Attached>,
    /// Interfaces that could not be attached to, as they were then, and why.
    failed: Vec<(Link, String)>,
    names: Names,
    // Dropped behind what is attached.
    programs: Programs,
}

#[derive(Debug)]
struct Attached {
    link: Link,
    attachment: Attachment,
}

impl Follower {
    /// Attaches to all that is there.
    ///
    /// # Errors
    /// It failed for an interface that the configuration names.
    pub(super) fn new(
        wanted: Wanted,
        view: View,
        programs: Programs,
        links: &[Link],
    ) -> Result<Self> {
        let (attached, failed, names) = (BTreeMap::new(), Vec::new(), Names::default());
        let mut follower = Follower { wanted, view, attached, failed, names, programs };
        for text in follower.wanted.idle(links) {
            warn!("backends.marker: {text}; one that comes will be marked");
        }
        for link in links {
            match follower.wanted.why(link) {
                Some(Why::Named) => follower.attach(link)?,
                Some(Why::Found) => follower.try_to_attach(link),
                None => {}
            }
        }
        follower.show_names();
        Ok(follower)
    }

    /// The names of the interfaces that are to be marked, as they are at any time.
    pub(super) fn names(&self) -> Names {
        self.names.clone()
    }

    /// The programs, for their maps.
    pub(super) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The same, for a test.
    #[cfg(test)]
    pub(super) fn programs_mut(&mut self) -> &mut Programs {
        &mut self.programs
    }

    fn attach(&mut self, link: &Link) -> Result<()> {
        let attachment = self.programs.attach(&link.interface)?;
        self.attached.insert(link.interface.index, Attached { link: link.clone(), attachment });
        Ok(())
    }

    /// The same where a failure is not the end; it is remembered.
    pub(super) fn try_to_attach(&mut self, link: &Link) {
        let index = link.interface.index;
        let outcome = self.attach(link);
        let before = self.failed.iter().position(|(failed, _)| failed.interface.index == index);
        let before = before.map(|place| self.failed.remove(place));
        let Err(cause) = outcome else { return };
        self.programs.forget_mtu(index);
        let cause = cause.to_string();
        self.failed.push((link.clone(), cause.clone()));
        if before.is_some_and(|(_, said)| said == cause) {
            debug!("{cause}; still not marked");
            return;
        }
        if Framing::of(&link.interface).is_err() {
            info!("{cause}; not marked");
            return;
        }
        let there = self.view.links();
        if there.is_ok_and(|links| links.iter().all(|link| link.interface.index != index)) {
            debug!("{cause}: it is gone already");
        } else {
            warn!("{cause}; not marked before the interface changes");
        }
    }

    /// Makes what is attached what should be. `gone` are the indices of interfaces that
    /// went since the last time; those that have such an index now are others.
    ///
    /// # Errors
    /// The interfaces cannot be listed: nothing was done.
    pub(super) fn update(&mut self, gone: &[u32]) -> Result<()> {
        let links = self.view.links()?;
        let find = |index: &u32| {
            let link = links.iter().find(|link| link.interface.index == *index);
            link.filter(|_| !gone.contains(index))
        };
        let Follower { wanted, attached, failed, programs, .. } = self;
        attached.retain(|index, Attached { link: before, .. }| {
            let name = &before.interface.name;
            let keep = match find(index) {
                None => {
                    info!("{name}: the interface is gone");
                    false
                }
                Some(now) if wanted.why(now).is_none() => {
                    info!("{name}: marking no more: {}", why_not(now, name));
                    false
                }
                // It begins packets with another header from now on.
                Some(now) => now.interface.arphrd == before.interface.arphrd,
            };
            if !keep {
                programs.forget_mtu(*index);
            }
            keep
        });
        failed.retain(|(link, _)| {
            find(&link.interface.index).is_some_and(|now| wanted.why(now).is_some())
        });
        for link in &links {
            let index = link.interface.index;
            if let Some(attached) = self.attached.get_mut(&index) {
                attached.renew(link, &self.programs);
                continue;
            }
            // What failed is tried again if anything is different.
            let hopeless = self.failed.iter().any(|(before, _)| before == link);
            if !hopeless && self.wanted.why(link).is_some() {
                self.try_to_attach(link);
            }
        }
        self.show_names();
        Ok(())
    }

    fn show_names(&self) {
        let marked = self.attached.values().map(|one| (&one.link, true));
        // Others, such as the loopback of a pattern, have no packets that could be.
        let failed = self.failed.iter().map(|(link, _)| (link, false));
        let failed = failed.filter(|(link, _)| Framing::of(&link.interface).is_ok());
        let all = marked.chain(failed);
        let names = all.map(|(link, marked)| (link.interface.name.clone(), marked)).collect();
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Follows until `stop` is readable.
    fn run(&mut self, stop: &Stop) -> nix::Result<()> {
        let mut gone = Vec::new();
        loop {
            let mut fds = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.view.changes.as_fd(), PollFlags::POLLIN),
            ];
            // What could not be looked at is tried again.
            let timeout = if gone.is_empty() { PollTimeout::NONE } else { PollTimeout::ZERO };
            match poll(&mut fds, timeout) {
                Ok(_) if fds[0].any() != Some(false) => return Ok(()),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            }
            let went = self.view.changes.take()?.links;
            gone.retain(|index| !went.contains(index));
            gone.extend(went);
            let begun = Instant::now();
            // Whoever changes interfaces all the time costs a tenth of a core. What
            // changes meanwhile is seen behind the pause.
            let pause = match self.update(&gone) {
                Ok(()) => {
                    gone.clear();
                    (9 * begun.elapsed()).min(LONGEST_PAUSE)
                }
                Err(cause) => {
                    warn_limited!("backends.marker: cannot see what has changed: {cause}");
                    // No interface has this number; it stands for the look that is due.
                    gone.retain(|index| *index != 0);
                    gone.push(0);
                    LONGEST_PAUSE
                }
            };
            if is_over(stop, pause)? {
                return Ok(());
            }
        }
    }

    /// Follows on a thread of its own, until what it returns is dropped.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub(super) fn start(mut self) -> Result<Following> {
        let (stopper, stop) = stop_token()?;
        let work = move || {
            // A half-made change is completed by no one, and what is attached is whole.
            let end = catch_unwind(AssertUnwindSafe(|| self.run(&stop)));
            let cause = match end {
                Ok(Ok(())) => return,
                Ok(Err(errno)) => errno.to_string(),
                Err(_) => "a bug in glowd".into(),
            };
            error!(
                "backends.marker: interfaces that come or change are no longer followed, those \
                 that are marked stay so: {cause}"
            );
            // Nothing can be done about a failure to wait, but to detach.
            while is_over(&stop, Duration::from_secs(3600)) == Ok(false) {}
        };
        let thread = thread::Builder::new()
            .name("marker.links".into())
            .spawn(work)
            .map_err(|error| Error::os("cannot start the thread for interfaces", error))?;
        Ok(Following { stopper: Some(stopper), thread: Some(thread) })
    }
}

/// For the log: why an interface that was marked under that name is not wanted now.
fn why_not(now: &Link, name: &str) -> String {
    if now.interface.name != name {
        format!("its name is {} now", now.interface.name)
    } else if now.public {
        format!("it is a port of a {} now", now.interface.port_of)
    } else {
        "it has no public IPv6 address any more".into()
    }
}

/// Between two looks at the interfaces. Far less than a second, in which a new one is
/// to be marked.
const LONGEST_PAUSE: Duration = Duration::from_millis(300);

/// Waits for the end, so long at the most.
fn is_over(stop: &Stop, patience: Duration) -> nix::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

impl Attached {
    /// Takes over what is different of the interface.
    fn renew(&mut self, link: &Link, programs: &Programs) {
        let (before, now) = (&self.link.interface, &link.interface);
        if before.name != now.name {
            info!("{}: has become {}, and is marked as before", before.name, now.name);
            self.attachment.rename(&now.name);
        }
        if before.mtu != now.mtu {
            if let Err(cause) = programs.tell_mtu(now) {
                warn!("{cause}");
            }
        }
        self.link = link.clone();
    }
}

/// A follower at work. Dropping it detaches everything, and waits for that.
#[derive(Debug)]
pub(super) struct Following {
    stopper: Option<Stopper>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.stopper.take());
        if let Some(thread) = self.thread.take() {
            // It has no panic of its own, see start().
            let _ = thread.join();
        }
    }
}
