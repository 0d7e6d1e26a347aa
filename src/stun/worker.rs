//! The thread that asks for public addresses: at the start, after `refresh`, and when
//! addresses of this host change. It sleeps in poll(2), and ends when its stop token is
//! readable. Owns the sockets, and the resolver of servers that are configured by name.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, log, Level};

use super::inquiry::{Inquiries, Inquiry, Outcome, NOT_YET};
use super::{private_addresses, Mapping, Pair, Settings, NAME, NOBODY};
use crate::error::{Error, Result};
use crate::net::collectors::destinations::Collector;
use crate::net::collectors::resolver::{Asker, Lookup, Pace, Resolver};
use crate::shutdown::Stop;
use crate::warn_limited;

/// After how long an address without an answer is asked for again.
const RETRY: Duration = Duration::from_secs(300);
/// The least time between two looks at the addresses, however often they change.
#[cfg(target_os = "linux")]
const CALM: Duration = Duration::from_secs(1);

/// A private address of this host.
#[derive(Debug)]
struct Local {
    ip: IpAddr,
    public: Option<IpAddr>,
    /// When it is to be asked for, unless it is being asked for.
    due: Instant,
    /// Why the last time gave nothing.
    failed: Option<String>,
    /// It has gone since the last look.
    has_gone: bool,
}

/// What the thread owns.
pub(super) struct Worker {
    manual: Vec<Pair>,
    refresh: Duration,
    rto: Duration,
    /// The addresses of each server; none: its name is not looked up yet.
    servers: Vec<Vec<SocketAddr>>,
    /// Which server each of the resolver's names is.
    named: Vec<usize>,
    resolver: Option<Resolver>,
    /// Readable if the resolver has news.
    news: UnixStream,
    #[cfg(target_os = "linux")]
    changes: Option<crate::net::changes::Changes>,
    /// Until then changes are not looked at.
    #[cfg(target_os = "linux")]
    calm: Instant,
    locals: Vec<Local>,
    inquiries: Inquiries,
    mapping: Arc<Mapping>,
}

impl Worker {
    /// # Errors
    /// There is no thread or no descriptor left.
    pub(super) fn new(
        settings: Settings,
        lookup: &Lookup,
        rto: Duration,
        mapping: Arc<Mapping>,
    ) -> Result<Self> {
        let (mut servers, mut named, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for server in settings.servers {
            match server {
                Collector::Literal(address) => servers.push(vec![address]),
                Collector::Named { host, port } => {
                    named.push(servers.len());
                    names.push((host, port));
                    servers.push(Vec::new());
                }
            }
        }
        let pair = || {
            let (news, wake) = UnixStream::pair()?;
            news.set_nonblocking(true)?;
            wake.set_nonblocking(true)?;
            Ok((news, wake))
        };
        let (news, wake) = pair()
            .map_err(|error: std::io::Error| Error::os("cannot create a socket pair", error))?;
        let asker = Asker { who: NAME, what: "STUN server", wake: Some(wake) };
        let pace = Pace { refresh: settings.refresh, ..Pace::default() };
        let resolver = (!names.is_empty())
            .then(|| Resolver::start_for(asker, names, lookup.clone(), pace))
            .transpose()?;
        Ok(Worker {
            manual: settings.manual,
            refresh: settings.refresh,
            rto,
            servers,
            named,
            resolver,
            news,
            // Before the first look, so that no change is missed.
            #[cfg(target_os = "linux")]
            changes: hear_of_changes(),
            #[cfg(target_os = "linux")]
            calm: Instant::now(),
            locals: Vec::new(),
            inquiries: Inquiries::default(),
            mapping,
        })
    }

    /// Works until `stop` is readable.
    pub(super) fn run(mut self, stop: &Stop) {
        self.look();
        if self.locals.is_empty() {
            info!("{NAME}: {NOBODY}");
        }
        loop {
            match self.step(stop) {
                Ok(true) => {}
                Ok(false) => return,
                Err(errno) => {
                    error!("{NAME}: cannot poll: {errno}; the addresses stay as they are");
                    return;
                }
            }
        }
    }

    /// One sleep and what follows. False: it is to stop.
    fn step(&mut self, stop: &Stop) -> nix::Result<bool> {
        self.ask_what_is_due();
        let asking = &self.inquiries;
        let waiting = self.locals.iter().filter(|local| !asking.has(local.ip));
        let until = waiting.map(|local| local.due).min();
        let mut fds = vec![stop.as_fd()];
        if self.resolver.is_some() {
            fds.push(self.news.as_fd());
        }
        #[cfg(target_os = "linux")]
        let own = fds.len();
        #[cfg(target_os = "linux")]
        let until = match &self.changes {
            Some(changes) if self.calm <= Instant::now() => {
                fds.push(changes.as_fd());
                until
            }
            Some(_) => until.into_iter().chain([self.calm]).min(),
            None => until,
        };
        let (readable, outcomes) = self.inquiries.step(&fds, until)?;
        if readable[0] {
            return Ok(false);
        }
        for (ip, outcome) in outcomes {
            self.learn(ip, outcome);
        }
        if self.resolver.is_some() && readable[1] {
            self.hear_of_servers();
        }
        #[cfg(target_os = "linux")]
        if readable.get(own) == Some(&true) {
            self.calm = Instant::now() + CALM;
            match self.changes.as_mut().map(|changes| changes.take()) {
                // It may be there again already, and the list be the same as it was.
                Some(Ok(gone)) => self.locals.iter_mut().for_each(|local| {
                    local.has_gone |= gone.more || gone.addresses.contains(&local.ip);
                }),
                Some(Err(errno)) => {
                    error!("{NAME}: cannot hear of changes any more: {errno}");
                    self.changes = None;
                }
                None => {}
            }
            self.look();
        }
        Ok(true)
    }

    /// Starts to ask for each address whose time has come.
    fn ask_what_is_due(&mut self) {
        let servers: Vec<SocketAddr> = self.servers.iter().flatten().copied().collect();
        if servers.is_empty() {
            // The resolver warns; its news make all of them due.
            let later = Instant::now() + self.refresh.min(RETRY);
            self.locals.iter_mut().for_each(|local| local.due = local.due.max(later));
            return;
        }
        let now = Instant::now();
        for at in 0..self.locals.len() {
            let Local { ip, due, .. } = self.locals[at];
            if due > now || self.inquiries.has(ip) {
                continue;
            }
            match Inquiry::start(ip, &servers, self.rto, now) {
                Ok(inquiry) => self.inquiries.add(inquiry),
                Err(cause) => self.learn(ip, Err(cause)),
            }
        }
    }

    /// Notes what asking for an address has come to.
    fn learn(&mut self, ip: IpAddr, outcome: Outcome) {
        let Some(local) = self.locals.iter_mut().find(|local| local.ip == ip) else { return };
        let now = Instant::now();
        let (level, text);
        match outcome {
            Ok((public, server)) => {
                local.due = now + self.refresh;
                local.failed = None;
                let new = local.public.replace(public) != Some(public);
                level = if new { Level::Info } else { Level::Debug };
                text = format!("{ip} is {public} outside, says {server}");
            }
            Err(cause) => {
                local.due = now + self.refresh.min(RETRY);
                let stays = local.public.unwrap_or(ip);
                let new = cause != NOT_YET && local.failed.as_ref() != Some(&cause);
                level = if new { Level::Warn } else { Level::Debug };
                text = format!("{ip}: {cause}; fireflies have {stays}");
                local.failed = Some(cause);
                if let Some(resolver) = &self.resolver {
                    resolver.ask();
                }
            }
        }
        self.publish();
        log!(level, "{NAME}: {text}");
    }

    /// Takes what the resolver has found.
    fn hear_of_servers(&mut self) {
        let mut buffer = [0; 64];
        let last = loop {
            match (&self.news).read(&mut buffer) {
                Ok(1..) => {}
                last => break last,
            }
        };
        let Worker { resolver, named, servers, locals, .. } = self;
        let Some(known) = resolver else { return };
        let mut changed = false;
        known.news(|index, addresses| {
            let server = &mut servers[named[index]];
            changed |= *server != addresses;
            *server = addresses;
        });
        if changed {
            let unknown = locals.iter_mut().filter(|local| local.public.is_none());
            unknown.for_each(|local| local.due = Instant::now());
        }
        // Its thread is gone, and has said why.
        if matches!(last, Ok(0)) {
            *resolver = None;
        }
    }

    /// Looks which private addresses this host has. If they are not the same any more, or
    /// were not meanwhile, all are asked for: the host may be in another network.
    fn look(&mut self) {
        let found = match private_addresses(&self.manual) {
            Ok(found) => found,
            Err(errno) => {
                warn_limited!("{NAME}: cannot list the addresses of this host: {errno}");
                return;
            }
        };
        let same = found.iter().eq(self.locals.iter().map(|local| &local.ip));
        if same && !self.locals.iter().any(|local| local.has_gone) {
            let not_yet = |local: &&mut Local| local.failed.as_deref() == Some(NOT_YET);
            self.locals.iter_mut().filter(not_yet).for_each(|local| local.due = Instant::now());
            return;
        }
        if found.len() == super::MOST {
            warn_limited!("{NAME}: only {} private addresses are asked for", super::MOST);
        }
        let now = Instant::now();
        let old = std::mem::take(&mut self.locals);
        // An answer on its way may be of the network that was.
        let stays = |local: &&Local| !local.has_gone && found.contains(&local.ip);
        self.inquiries.retain(|ip| old.iter().filter(stays).any(|local| local.ip == ip));
        for ip in found {
            let known = old.iter().find(|local| local.ip == ip);
            let public = known.and_then(|local| local.public);
            let failed = known.and_then(|local| local.failed.clone());
            self.locals.push(Local { ip, public, due: now, failed, has_gone: false });
        }
        self.publish();
    }

    /// Makes what is known the mapping.
    fn publish(&self) {
        let mut pairs = self.manual.clone();
        let learned = self.locals.iter().filter_map(|local| Some((local.ip, local.public?)));
        pairs.extend(learned.filter(|(private, public)| private != public));
        *self.mapping.lock() = pairs;
    }
}

#[cfg(target_os = "linux")]
fn hear_of_changes() -> Option<crate::net::changes::Changes> {
    use crate::net::changes::{Changes, ADDRESSES};
    Changes::open(ADDRESSES)
        .map_err(|error| log::warn!("{NAME}: {error}; changes of addresses will be seen late"))
        .ok()
}
