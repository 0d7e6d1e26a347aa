//! Public addresses of a host behind NAT: which private address of this host is seen as
//! which public one outside. STUN servers tell (RFC 8489, Binding method), or the
//! configuration does.
//!
//! [`Stun`] is held by who rewrites flows, on its thread; the asking is done by a thread
//! of its own (`worker`). All that they share is the mapping, so nobody ever waits for an
//! answer: while none is known the private address stays.

pub mod message;

mod inquiry;
mod worker;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{error, info};

use crate::config::{Key, Kind, Section, Value};
use crate::error::{Class, Error, Result};
use crate::flow::{Flow, FlowId};
use crate::net::addresses;
use crate::net::collectors::destinations::{takes_fireflies, Collector};
use crate::net::collectors::resolver::Lookup;
use crate::shutdown::{stop_token, Stopper};
use inquiry::{Inquiries, Inquiry, RTO};

/// Where messages come from, and where its section is.
const NAME: &str = "backends.firefly.stun";

/// Where servers listen if nobody says otherwise (RFC 8489 section 18.6).
const PORT: u16 = 3478;

/// What is said where nobody is to be asked.
const NOBODY: &str = "this host has no private address to ask for";

/// So many addresses are asked for, and no more.
const MOST: usize = 128;

/// The keys of the section.
pub static KEYS: &[Key] = &[
    Key {
        name: "stunServers",
        aliases: &[],
        kind: Kind::List,
        default: r#"["stun.l.google.com:3478", "stun1.l.google.com:3478", "stun2.l.google.com:3478", "stun3.l.google.com:3478", "stun4.l.google.com:3478"]"#,
        live: true,
        doc: "Who is asked, the preferred one first: host, host:port, [IPv6 address] or \
              [IPv6 address]:port, each also behind stun:; the default port is 3478. The default \
              is flowd-go's. With [] nobody is asked, and only manualMapping holds.",
    },
    Key {
        name: "manualMapping",
        aliases: &[],
        kind: Kind::Map,
        default: "{}",
        live: true,
        doc: "Public addresses that are known: an object such as \
              {\"10.0.0.5\": \"192.0.2.7\"}. The addresses in front are not asked for, and \
              need not be private.",
    },
    Key {
        name: "refresh",
        aliases: &[],
        kind: Kind::Int { min: 1, max: 604_800 },
        default: "3600",
        live: true,
        doc: "After how many seconds an address is asked for again. An answer that does not come \
              takes nothing away, and is asked for again after 5 minutes if that is sooner.",
    },
];

/// The section with all defaults.
pub fn default_section() -> Section {
    let values = KEYS.iter().filter_map(|key| Some((key.name, key.default_value()?)));
    Section::new(NAME, values.collect())
}

/// The same with these servers.
pub fn section_of(servers: Vec<String>) -> Section {
    let mut section = default_section();
    section.set("stunServers", Value::List(servers));
    section
}

/// A private address and its public one.
type Pair = (IpAddr, IpAddr);

/// What a section says.
#[derive(Debug)]
struct Settings {
    servers: Vec<Collector>,
    manual: Vec<Pair>,
    refresh: Duration,
}

impl Settings {
    /// # Errors
    /// All problems, each behind the name of its key.
    fn new(section: &Section) -> std::result::Result<Self, Vec<String>> {
        let mut problems = server_problems(section.list("stunServers"));
        let mut manual: Vec<Pair> = Vec::new();
        for (from, to) in section.map("manualMapping") {
            match pair(from, to) {
                Err(problem) => problems.push(format!("manualMapping: {problem}")),
                Ok((ip, _)) if manual.iter().any(|(known, _)| *known == ip) => {
                    problems.push(format!("manualMapping: {ip} is given a second time"));
                }
                Ok(pair) => manual.push(pair),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let servers = section.list("stunServers").iter().filter_map(|text| server(text).ok());
        let refresh = Duration::from_secs(section.int("refresh"));
        Ok(Settings { servers: servers.collect(), manual, refresh })
    }
}

/// What is wrong with a section, each problem behind the name of its key.
pub fn problems(section: &Section) -> Vec<String> {
    Settings::new(section).err().unwrap_or_default()
}

/// What is wrong with a list of servers, each problem behind the name of its key.
pub fn server_problems(texts: &[String]) -> Vec<String> {
    let problem = |text: &String| {
        server(text).err().map(|problem| format!("stunServers: {text:?}: {problem}"))
    };
    texts.iter().filter_map(problem).collect()
}

/// A server, named as collectors are, or by a URI (RFC 7064).
fn server(text: &str) -> std::result::Result<Collector, String> {
    let uri = text.split_at_checked(5).filter(|(scheme, rest)| {
        // A host may be called stun.
        let port = rest.bytes().all(|byte| byte.is_ascii_digit());
        scheme.eq_ignore_ascii_case("stun:") && !port
    });
    Collector::parse_or(uri.map_or(text, |(_, rest)| rest), PORT)
}

fn pair(from: &str, to: &str) -> std::result::Result<Pair, String> {
    let parse = |text: &str| match text.parse::<IpAddr>() {
        Ok(ip) if takes_fireflies(ip.to_canonical()) => Ok(ip.to_canonical()),
        Ok(_) => Err(format!("{text} is not the address of one host")),
        Err(_) => Err(format!("{text:?} is not an IP address")),
    };
    let (from, to) = (parse(from)?, parse(to)?);
    if from.is_ipv4() != to.is_ipv4() {
        return Err(format!("{from} and {to} are of two families"));
    }
    Ok((from, to))
}

/// Whether the address means something else outside of its network: RFC 1918, RFC 6598
/// (between a provider and its customers), RFC 4193.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            ip.is_private() || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(ip) => ip.octets()[0] & 0xfe == 0xfc,
    }
}

/// The private addresses of this host that `manual` does not know, in order.
fn private_addresses(manual: &[Pair]) -> nix::Result<Vec<IpAddr>> {
    let known = |ip: &IpAddr| manual.iter().any(|(from, _)| from == ip);
    let mut private: Vec<IpAddr> = Vec::new();
    for ip in addresses::list()? {
        if private.len() < MOST && is_private(ip) && !known(&ip) {
            let after = private.iter().position(|other| *other > ip);
            private.insert(after.unwrap_or(private.len()), ip);
        }
    }
    Ok(private)
}

/// What is known. It is short, and never held for longer than a look.
#[derive(Debug, Default)]
struct Mapping(Mutex<Vec<Pair>>);

impl Mapping {
    fn lock(&self) -> MutexGuard<'_, Vec<Pair>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mapping, and the thread that keeps it. Dropping it stops the thread at once.
#[derive(Debug)]
pub struct Stun {
    mapping: Arc<Mapping>,
    /// None: there is nobody to ask.
    thread: Option<(Stopper, JoinHandle<()>)>,
}

impl Stun {
    /// Knows what the configuration says, and starts to ask for the rest.
    ///
    /// # Errors
    /// The system has no thread or no descriptors for it.
    pub fn start(section: &Section, lookup: &Lookup) -> Result<Self> {
        Self::start_at(section, lookup, RTO)
    }

    fn start_at(section: &Section, lookup: &Lookup, rto: Duration) -> Result<Self> {
        let settings = Settings::new(section).map_err(|all| Error::config(all.join("\n")))?;
        let mapping = Arc::new(Mapping(Mutex::new(settings.manual.clone())));
        if settings.servers.is_empty() {
            return Ok(Stun { mapping, thread: None });
        }
        let (stopper, stop) = stop_token()?;
        let worker = worker::Worker::new(settings, lookup, rto, mapping.clone())?;
        let thread = thread::Builder::new()
            .name("stun".into())
            .spawn(move || worker.run(&stop))
            .map_err(|error| Error::os("cannot start the STUN thread", error))?;
        Ok(Stun { mapping, thread: Some((stopper, thread)) })
    }

    /// The flow as it is seen outside; none: it is the same there.
    pub fn outside(&self, flow: &Flow) -> Option<Flow> {
        let mapping = self.mapping.lock();
        let public = |end: SocketAddr| {
            let (_, public) = mapping.iter().find(|(private, _)| *private == end.ip())?;
            Some(SocketAddr::new(*public, end.port()))
        };
        let (src, dst) = (flow.id.src(), flow.id.dst());
        let (new_src, new_dst) = (public(src), public(dst));
        if new_src.is_none() && new_dst.is_none() {
            return None;
        }
        let ends = (new_src.unwrap_or(src), new_dst.unwrap_or(dst));
        // The families are as they were.
        let id = FlowId::new(flow.id.protocol(), ends.0, ends.1).ok()?;
        Some(Flow { id, ..flow.clone() })
    }

    /// The mapping, for the log.
    pub fn report(&self) -> String {
        let mut text = String::new();
        for (private, public) in self.mapping.lock().iter() {
            let comma = if text.is_empty() { "" } else { ", " };
            text += &format!("{comma}{private} is {public}");
        }
        if text.is_empty() {
            text += "none";
        }
        text
    }
}

impl Drop for Stun {
    fn drop(&mut self) {
        let Some((stopper, thread)) = self.thread.take() else { return };
        drop(stopper);
        if thread.join().is_err() {
            error!("{NAME}: the thread panicked");
        }
    }
}

/// Asks for all private addresses of this host once, and returns a line for each: the
/// address, its public one or `-`, and who says so or what went wrong. Waits until all
/// are known or given up, 40 seconds at the most, and as long as names are looked up.
///
/// # Errors
/// The section is wrong, the system refuses, or nobody answers.
pub fn sample(section: &Section) -> Result<String> {
    let settings = Settings::new(section).map_err(|all| Error::config(all.join("\n")))?;
    let mut servers: Vec<SocketAddr> = Vec::new();
    for server in &settings.servers {
        match server {
            Collector::Literal(address) => servers.push(*address),
            Collector::Named { host, port } => match (host.as_str(), *port).to_socket_addrs() {
                Ok(found) => servers.extend(found),
                Err(error) => log::warn!("cannot look up STUN server {host:?}: {error}"),
            },
        }
    }
    let private = private_addresses(&settings.manual)
        .map_err(|error| Error::os("cannot list the addresses of this host", error))?;
    if private.is_empty() {
        info!("{NOBODY}");
    }
    let (mut inquiries, mut outcomes) = (Inquiries::default(), Vec::new());
    for local in &private {
        match Inquiry::start(*local, &servers, RTO, Instant::now()) {
            Ok(inquiry) => inquiries.add(inquiry),
            Err(cause) => outcomes.push((*local, Err(cause))),
        }
    }
    while !inquiries.is_empty() {
        let step = inquiries.step(&[], None);
        outcomes.extend(step.map_err(|error| Error::os("cannot poll", error))?.1);
    }
    let mut text = String::new();
    for (local, public) in &settings.manual {
        text += &format!("{local} {public} manualMapping\n");
    }
    let (mut answered, mut causes) = (private.is_empty(), String::new());
    for local in private {
        for (_, outcome) in outcomes.iter().filter(|(ip, _)| *ip == local) {
            match outcome {
                Ok((public, server)) => {
                    answered = true;
                    text += &format!("{local} {public} {server}\n");
                }
                Err(cause) => {
                    text += &format!("{local} - {cause}\n");
                    causes += &format!("{local}: {cause}\n");
                }
            }
        }
    }
    if answered {
        Ok(text)
    } else {
        Err(Error::new(Class::Os, causes.trim_end()))
    }
}

#[cfg(test)]
mod tests;
