//! An HTTP server: one thread, sockets that do not block, and a limit
//! to everything. It owns the listening socket and the connections.
//!
//! It sleeps in one wait for all sockets and the stop token, until the nearest
//! deadline; right after work it looks a little while longer before it falls
//! asleep. Memory: all connections together hold up to [`Settings::memory`] bytes
//! of requests and answers, then long requests and listings get 503; over it go at
//! most 64 KiB per connection, which a short request may always have, and the one
//! answer that is being made.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::libc;

use serde::Serialize;

use super::connection::{Connection, Fate, Shared};
use super::{Request, JSON};
use crate::error::{Error, Result};
use crate::net::poller::{Interest, Poller};
use crate::shutdown::Stop;
use crate::warn_limited;

/// The limits of the server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The most connections at a time. The default leaves the rest of the daemon
    /// half of the 1024 descriptors that a process usually may have.
    pub connections: usize,
    /// The longest body of a request, in bytes.
    pub body: usize,
    /// The bytes that all connections may hold; see above.
    pub memory: usize,
    /// For a request from its first byte to its last.
    pub request: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// For a client to take the answer, or the next 256 KiB of a long one.
    pub write: Duration,
    /// For a client to close its end after the last answer.
    pub linger: Duration,
    /// Whose server it is, for the log.
    pub who: &'static str,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            connections: 512,
            body: 4 * 1024 * 1024,
            memory: 64 * 1024 * 1024,
            request: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            write: Duration::from_secs(10),
            linger: Duration::from_secs(2),
            who: "http",
        }
    }
}

/// For how long nothing is accepted after accept(2) has failed, unless a
/// connection closes before: the descriptors may be missing elsewhere.
const PAUSE: Duration = Duration::from_secs(1);

/// For how long the thread looks for more work before it sleeps. To be woken on an
/// idle processor takes tens of microseconds, on a virtual machine above all: a
/// client that sends one request after the other gets twice as many answered so.
const SPIN: Duration = Duration::from_micros(50);

/// Clients are granted as much time as it takes to answer others, if that is as long.
const STALL: Duration = Duration::from_millis(100);

/// How many connections are accepted before the others get their turn.
const ACCEPT: usize = 64;

/// What is served. It sees no request that a web page has made, and on a loopback
/// address none under a name that is not this host's.
pub trait Service {
    /// Answers a request; the body goes to the end of `out`. With `crowded` there is no
    /// memory left for a long answer.
    fn answer(&mut self, request: &Request<'_>, crowded: bool, out: &mut Vec<u8>) -> Answer;
}

/// An answer but for its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The methods to tell with status 405.
    pub allow: &'static str,
}

impl Answer {
    /// Of a JSON document.
    pub fn json(status: u16) -> Self {
        Answer { status, content_type: JSON, allow: "" }
    }

    /// Writes an error as JSON.
    pub fn error(status: u16, message: &str, out: &mut Vec<u8>) -> Self {
        #[derive(Serialize)]
        struct Failure<'a> {
            error: &'a str,
        }
        // Neither text nor a Vec can make it fail.
        let _ = serde_json::to_writer(out, &Failure { error: message });
        Answer::json(status)
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
}

impl Server {
    /// Listens on `address`; port 0 is any free one.
    ///
    /// # Errors
    /// The port is taken, or the address is not one of this host.
    pub fn bind(address: SocketAddr, settings: Settings) -> Result<Self> {
        let failed = |error| Error::os(format!("cannot listen on {address}"), error);
        // It sets SO_REUSEADDR, so that a restart need not wait for TIME_WAIT.
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Server { listener, address, settings })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether only this host can reach it.
    pub fn is_loopback(&self) -> bool {
        self.address.ip().to_canonical().is_loopback()
    }

    /// Serves until `stop` says so.
    ///
    /// # Errors
    /// The system does not let it wait for sockets.
    pub fn serve(self, service: &mut dyn Service, stop: &Stop) -> Result<()> {
        let failed = |error| Error::os("cannot wait for sockets", error);
        let mut poller = Poller::new().map_err(failed)?;
        poller.add(stop, STOP, Interest::Read).map_err(failed)?;
        poller.add(&self.listener, LISTENER, Interest::Read).map_err(failed)?;
        let loopback = self.is_loopback();
        let shared = Shared::new(service, self.settings, loopback);
        let mut hall = Hall {
            listener: self.listener,
            connections: Vec::new(),
            open: 0,
            shared,
            wake: None,
            paused: None,
        };
        let mut ready = Vec::new();
        loop {
            // Whoever has sent a request is likely to send another.
            if !ready.is_empty() {
                let begin = Instant::now();
                ready.clear();
                while ready.is_empty() && begin.elapsed() < SPIN {
                    std::thread::yield_now();
                    let timeout = Some(Duration::ZERO);
                    poller.wait(hall.sockets(stop), timeout, &mut ready).map_err(failed)?;
                }
            }
            if ready.is_empty() {
                let timeout = hall.wake.map(|wake| wake.saturating_duration_since(Instant::now()));
                poller.wait(hall.sockets(stop), timeout, &mut ready).map_err(failed)?;
            }
            let now = Instant::now();
            for token in &ready {
                match *token {
                    STOP => return Ok(()),
                    LISTENER => hall.accept(&poller, now),
                    token => hall.ready(&poller, token, now),
                }
            }
            hall.put_off(now.elapsed());
            if hall.wake.is_some_and(|wake| wake <= now) {
                hall.expire(&poller, now);
            }
        }
    }
}

const STOP: u64 = 0;
const LISTENER: u64 = 1;
/// Slot n of the connections has this plus n.
const FIRST: u64 = 2;

/// The connections and who lets them in.
struct Hall<'a> {
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    open: usize,
    shared: Shared<'a>,
    /// No deadline is earlier than this. It may be too early itself, since most
    /// deadlines are put off long before they are due; then nothing is due when
    /// it comes, and it is computed anew.
    wake: Option<Instant>,
    /// Nothing is accepted until then.
    paused: Option<Instant>,
}

impl Hall<'_> {
    /// All sockets with what they wait for, for a poller that does not remember.
    fn sockets<'s>(
        &'s self,
        stop: &'s Stop,
    ) -> impl Iterator<Item = (u64, BorrowedFd<'s>, Interest)> {
        let accepting = if self.paused.is_some() { Interest::None } else { Interest::Read };
        let others =
            [(STOP, stop.as_fd(), Interest::Read), (LISTENER, self.listener.as_fd(), accepting)];
        let connections = (FIRST..).zip(&self.connections).filter_map(|(token, connection)| {
            let connection = connection.as_ref()?;
            Some((token, connection.stream.as_fd(), connection.interest()))
        });
        others.into_iter().chain(connections)
    }

    fn accept(&mut self, poller: &Poller, now: Instant) {
        let mut descriptors = Descriptors::Untried;
        for _ in 0..ACCEPT {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    descriptors = Descriptors::Sufficed;
                    self.admit(poller, stream, now);
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    // The system wants a descriptor before it looks whether anybody
                    // is left to accept. If so, the listener is ready again.
                    _ if descriptors == Descriptors::Sufficed && lacking(&error) => return,
                    // Idle clients must not keep out the others.
                    _ if descriptors == Descriptors::Untried
                        && lacking(&error)
                        && self.make_room(poller, "no descriptor is left") =>
                    {
                        descriptors = Descriptors::Freed;
                    }
                    _ => {
                        let who = self.shared.settings.who;
                        warn_limited!("{who}: cannot accept a connection: {error}");
                        self.pause(poller, now);
                        return;
                    }
                },
            }
        }
    }

    fn pause(&mut self, poller: &Poller, now: Instant) {
        // If even that fails, the next wait tells at once.
        let _ = poller.set(&self.listener, LISTENER, Interest::None);
        self.paused = Some(now + PAUSE);
        self.wake_by(now + PAUSE);
    }

    fn resume(&mut self, poller: &Poller) {
        if self.paused.take().is_some() {
            // As above.
            let _ = poller.set(&self.listener, LISTENER, Interest::Read);
        }
    }

    fn admit(&mut self, poller: &Poller, stream: TcpStream, now: Instant) {
        if self.open >= self.shared.settings.connections {
            let limit = self.shared.settings.connections;
            self.make_room(poller, format_args!("more than {limit} connections"));
        }
        let free = self.connections.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.connections.len());
        let connection = match Connection::new(stream, now, &self.shared.settings) {
            Ok(connection) => connection,
            // The client has gone already.
            Err(error) => {
                return log::debug!(
                    "{}: cannot use a connection: {error}",
                    self.shared.settings.who
                )
            }
        };
        if let Err(error) = poller.add(&connection.stream, token_of(slot), Interest::Read) {
            warn_limited!("{}: cannot wait for a connection: {error}", self.shared.settings.who);
            return;
        }
        self.wake_by(connection.deadline);
        self.open += 1;
        if slot == self.connections.len() {
            self.connections.push(Some(connection));
        } else {
            self.connections[slot] = Some(connection);
        }
    }

    /// Closes the connection that was idle for the longest time, if there is any.
    fn make_room(&mut self, poller: &Poller, why: impl std::fmt::Display) -> bool {
        let open = self.connections.iter().enumerate();
        let ages = open.filter_map(|(slot, connection)| {
            let connection = connection.as_ref()?;
            Some(((!connection.idle(), connection.active), slot))
        });
        let Some((_, slot)) = ages.min() else { return false };
        let who = self.shared.settings.who;
        warn_limited!("{who}: {why}: the longest idle connection is closed");
        self.close(poller, slot);
        true
    }

    fn close(&mut self, poller: &Poller, slot: usize) {
        if let Some(connection) = self.connections[slot].take() {
            self.shared.memory -= connection.memory();
            self.open -= 1;
            drop(connection);
            self.resume(poller);
        }
    }

    fn wake_by(&mut self, deadline: Instant) {
        self.wake = Some(self.wake.map_or(deadline, |wake| wake.min(deadline)));
    }

    fn ready(&mut self, poller: &Poller, token: u64, now: Instant) {
        let slot = usize::try_from(token - FIRST).unwrap_or(usize::MAX);
        self.with(poller, slot, |connection, shared| connection.ready(shared, now));
    }

    /// Lets a connection do something and sees to what has changed by it. It may
    /// be gone: another event of the same wait has closed it.
    fn with(
        &mut self,
        poller: &Poller,
        slot: usize,
        act: impl FnOnce(&mut Connection, &mut Shared<'_>) -> Fate,
    ) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let (memory, interest) = (connection.memory(), connection.interest());
        let mut fate = act(connection, &mut self.shared);
        self.shared.memory = self.shared.memory + connection.memory() - memory;
        let (deadline, now_interest) = (connection.deadline, connection.interest());
        if fate == Fate::Open && now_interest != interest {
            let set = poller.set(&connection.stream, token_of(slot), now_interest);
            if set.is_err() {
                fate = Fate::Closed;
            }
        }
        match fate {
            Fate::Open => self.wake_by(deadline),
            Fate::Closed => self.close(poller, slot),
        }
    }

    /// Gives everybody as much more time as the thread has just spent without reading or writing
    /// for them: an answer may have had to wait for the dispatcher.
    fn put_off(&mut self, by: Duration) {
        if by >= STALL {
            self.connections.iter_mut().flatten().for_each(|connection| connection.deadline += by);
        }
    }

    /// Ends what is due, and finds the next deadline.
    fn expire(&mut self, poller: &Poller, now: Instant) {
        if self.paused.is_some_and(|until| until <= now) {
            self.resume(poller);
        }
        for slot in 0..self.connections.len() {
            let due = |connection: &Connection| connection.deadline <= now;
            if self.connections[slot].as_ref().is_some_and(due) {
                self.with(poller, slot, |connection, shared| connection.expire(shared));
            }
        }
        let deadlines = self.connections.iter().flatten().map(|connection| connection.deadline);
        self.wake = deadlines.chain(self.paused).min();
    }
}

/// What is known of the descriptors while connections are accepted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Descriptors {
    Untried,
    /// One was freed, and has to suffice.
    Freed,
    Sufficed,
}

/// Whether the process or the system has no descriptor left.
fn lacking(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

fn token_of(slot: usize) -> u64 {
    FIRST + slot as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Service for Nothing {
        fn answer(&mut self, _: &Request<'_>, _: bool, _: &mut Vec<u8>) -> Answer {
            Answer::json(200)
        }
    }

    #[test]
    fn nobody_pays_for_the_time_that_answers_to_others_take() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (settings, now) = (Settings::default(), Instant::now());
        let connection = Connection::new(stream, now, &settings).unwrap();
        let due = connection.deadline;
        let mut service = Nothing;
        let mut hall = Hall {
            listener,
            connections: vec![None, Some(connection)],
            open: 1,
            shared: Shared::new(&mut service, settings, true),
            wake: Some(due),
            paused: None,
        };
        for (by, later) in [(Duration::from_millis(99), 0), (Duration::from_secs(26), 26)] {
            hall.put_off(by);
            let deadline = hall.connections[1].as_ref().unwrap().deadline;
            assert_eq!(deadline, due + Duration::from_secs(later));
        }
    }

    #[test]
    fn the_defaults_are_those_that_are_documented() {
        let settings = Settings::default();
        assert_eq!(settings.connections, 512);
        assert_eq!(settings.body, 4 << 20, "openapi.json and glowd(8) name it");
        assert_eq!(settings.memory, 64 << 20);
        assert_eq!(settings.request, Duration::from_secs(10));
        assert_eq!(settings.idle, Duration::from_secs(60));
        assert_eq!(settings.write, Duration::from_secs(10));
        assert_eq!(settings.linger, Duration::from_secs(2));
    }
}
