//! Keeps the addresses of collectors and other servers that are configured by name.
//!
//! A thread of its own, since the resolver of the C library blocks for as long as
//! it likes (getaddrinfo(3)) and start-up, sending and stopping must not wait for
//! it. It looks all names up at the start, again after [`Pace::refresh`], and
//! soon when somebody asks for it; the last good answer stays when a look-up
//! fails.
//!
//! The thread ends when its channel hangs up. [`Resolver`]'s Drop joins it, with
//! one exception: a thread that is inside a look-up cannot be woken, so it is
//! left behind. It owns nothing that would have to be undone, and it ends by
//! itself when the look-up returns, or with the process.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{debug, error, info};

use super::destinations::takes_fireflies;
use crate::error::{Error, Result};
use crate::warn_limited;

/// How a name and a port become addresses, the preferred one first.
pub type Lookup = Arc<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// How often names are looked up.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// When all is well.
    pub refresh: Duration,
    /// While a name has no answer; also the least time between two look-ups,
    /// however often somebody asks.
    pub retry: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { refresh: Duration::from_secs(300), retry: Duration::from_secs(10) }
    }
}

/// Who wants to know.
#[derive(Debug)]
pub struct Asker {
    /// The part, for the log.
    pub who: &'static str,
    /// What the names are the names of.
    pub what: &'static str,
    /// Gets an octet when there is news. Non-blocking.
    pub wake: Option<UnixStream>,
}

/// The thread that looks names up, as its owner sees it.
#[derive(Debug)]
pub struct Resolver {
    who: &'static str,
    shared: Arc<Shared>,
    asks: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Answers that the owner has not seen yet, by name.
    news: Mutex<Vec<Option<Vec<SocketAddr>>>>,
    /// Whether the thread is inside a look-up. Changed under the lock together
    /// with the thread's look at the channel, so that Drop is never wrong.
    looking: Mutex<bool>,
}

impl Resolver {
    /// Starts to look up `names`, which are known by their index from now on.
    ///
    /// `who` is the part that wants to know, for the log.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn start(
        who: &'static str,
        names: Vec<(String, u16)>,
        lookup: Lookup,
        pace: Pace,
    ) -> Result<Self> {
        Self::start_for(Asker { who, what: "collector", wake: None }, names, lookup, pace)
    }

    /// The same for somebody who may sleep while there is no news.
    ///
    /// # Errors
    /// The same.
    pub fn start_for(
        asker: Asker,
        names: Vec<(String, u16)>,
        lookup: Lookup,
        pace: Pace,
    ) -> Result<Self> {
        let who = asker.who;
        let news = Mutex::new(vec![None; names.len()]);
        let shared = Arc::new(Shared { news, looking: Mutex::new(false) });
        // Room for one: to ask twice is to ask once.
        let (sender, asks) = mpsc::sync_channel(1);
        let names = names.into_iter().map(Name::new).collect();
        let worker = Worker { asker, names, lookup, pace, asks, shared: shared.clone() };
        let thread = thread::Builder::new()
            .name("firefly.names".into())
            .spawn(move || worker.run())
            .map_err(|error| Error::os("cannot start the resolver thread", error))?;
        Ok(Resolver { who, shared, asks: Some(sender), thread: Some(thread) })
    }

    /// Asks for a look-up soon.
    pub fn ask(&self) {
        if let Some(asks) = &self.asks {
            // Full: somebody has asked already.
            let _ = asks.try_send(());
        }
    }

    /// Hands over each answer that came since the last call, which is never
    /// empty, with the index of its name.
    pub fn news(&self, mut take: impl FnMut(usize, Vec<SocketAddr>)) {
        for (index, answer) in lock(&self.shared.news).iter_mut().enumerate() {
            if let Some(addresses) = answer.take() {
                take(index, addresses);
            }
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let looking = {
            let looking = lock(&self.shared.looking);
            self.asks = None;
            *looking
        };
        let Some(thread) = self.thread.take() else { return };
        // A thread that panicked inside a look-up is finished.
        if (!looking || thread.is_finished()) && thread.join().is_err() {
            error!("{}: the resolver thread panicked", self.who);
        }
    }
}

/// What the thread owns.
struct Worker {
    asker: Asker,
    names: Vec<Name>,
    lookup: Lookup,
    pace: Pace,
    asks: Receiver<()>,
    shared: Arc<Shared>,
}

/// A name and what came of it.
struct Name {
    host: String,
    port: u16,
    /// Whether the last look-up gave an address; none: there was no look-up.
    good: Option<bool>,
}

impl Name {
    fn new((host, port): (String, u16)) -> Self {
        Name { host, port, good: None }
    }
}

impl Worker {
    fn run(mut self) {
        loop {
            let Some(all_good) = self.look_all_up() else { return };
            let looked_up = Instant::now();
            let due = if all_good { self.pace.refresh } else { self.pace.retry };
            match self.asks.recv_timeout(due) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                // Not before its time; more who ask until then change nothing.
                Ok(()) => loop {
                    let left = self.pace.retry.saturating_sub(looked_up.elapsed());
                    match self.asks.recv_timeout(left) {
                        Err(RecvTimeoutError::Disconnected) => return,
                        Ok(()) if !left.is_zero() => {}
                        Ok(()) | Err(RecvTimeoutError::Timeout) => break,
                    }
                },
            }
        }
    }

    /// Whether all names have an address; none: the owner is gone.
    fn look_all_up(&mut self) -> Option<bool> {
        let mut all_good = true;
        for (index, name) in self.names.iter_mut().enumerate() {
            {
                let mut looking = lock(&self.shared.looking);
                if self.asks.try_recv() == Err(TryRecvError::Disconnected) {
                    return None;
                }
                *looking = true;
            }
            let answer = (self.lookup)(&name.host, name.port);
            *lock(&self.shared.looking) = false;
            let Asker { who, what, wake } = &self.asker;
            all_good &= name.judge(who, what, answer, |addresses| {
                lock(&self.shared.news)[index] = Some(addresses);
                if let Some(mut wake) = wake.as_ref() {
                    // Full: then it is readable.
                    let _ = wake.write(&[0]);
                }
            });
        }
        Some(all_good)
    }
}

impl Name {
    /// Logs what has changed and hands over the addresses, if there are any.
    fn judge(
        &mut self,
        who: &str,
        what: &str,
        answer: io::Result<Vec<SocketAddr>>,
        take: impl FnOnce(Vec<SocketAddr>),
    ) -> bool {
        let host = &self.host;
        let answer = answer.map_err(|error| error.to_string()).and_then(|addresses| {
            let usable = addresses.into_iter().map(canonical);
            let usable: Vec<_> = usable.filter(|address| takes_fireflies(address.ip())).collect();
            Some(usable)
                .filter(|usable| !usable.is_empty())
                .ok_or("it has no usable address".into())
        });
        let good = answer.is_ok();
        match answer {
            Ok(addresses) => {
                if self.good == Some(true) {
                    debug!("{who}: {what} {host:?} is at {addresses:?}");
                } else {
                    info!("{who}: {what} {host:?} is at {}", addresses[0].ip());
                }
                take(addresses);
            }
            Err(error) if self.good == Some(false) => {
                debug!("{who}: cannot look up {what} {host:?}: {error}");
            }
            Err(error) => {
                warn_limited!("{who}: cannot look up {what} {host:?}: {error}");
            }
        }
        self.good = Some(good);
        good
    }
}

/// The address for the socket of its own family.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address, // with its scope id
        ip => SocketAddr::new(ip, address.port()),
    }
}

/// No invariant spans the locks here, so what a panic left behind is good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A look-up that tells of each call and gives what it is told to.
    struct Oracle {
        calls: Receiver<String>,
        answers: mpsc::Sender<io::Result<Vec<SocketAddr>>>,
    }

    impl Oracle {
        fn new() -> (Self, Lookup) {
            let (called, calls) = mpsc::channel();
            let (answers, answer) = mpsc::channel();
            let answer = Mutex::new(answer);
            let lookup = move |host: &str, port: u16| {
                // The test may be over.
                let _ = called.send(format!("{host}:{port}"));
                lock(&answer).recv().unwrap_or_else(|_| Err(io::Error::other("the test is over")))
            };
            (Oracle { calls, answers }, Arc::new(lookup))
        }

        /// Says since when it may have been known.
        fn answer(&self, call: &str, answer: io::Result<Vec<SocketAddr>>) -> Instant {
            assert_eq!(self.calls.recv_timeout(PATIENCE).as_deref(), Ok(call));
            let now = Instant::now();
            self.answers.send(answer).unwrap();
            now
        }
    }

    fn failure() -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other("temporary failure in name resolution"))
    }

    fn at(text: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![text.parse().unwrap()])
    }

    /// Waits until an answer is there.
    fn news(resolver: &Resolver) -> Vec<(usize, String)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut news = Vec::new();
            resolver.news(|index, addresses| news.push((index, addresses[0].to_string())));
            if !news.is_empty() {
                return news;
            }
            assert!(Instant::now() < deadline, "no answer came");
            thread::yield_now();
        }
    }

    fn names() -> Vec<(String, u16)> {
        vec![("a".into(), 1), ("b".into(), 2)]
    }

    #[test]
    fn a_failed_look_up_is_tried_again_and_takes_nothing_away() {
        let (oracle, lookup) = Oracle::new();
        let pace = Pace { refresh: LONG, retry: Duration::from_millis(1) };
        let resolver = Resolver::start("test", names(), lookup, pace).unwrap();
        oracle.answer("a:1", at("[::ffff:10.0.0.1]:1"));
        assert_eq!(news(&resolver), [(0, "10.0.0.1:1".to_string())]);
        oracle.answer("b:2", failure());
        oracle.answer("a:1", failure());
        oracle.answer("b:2", at("[2001:db8::1]:2"));
        assert_eq!(news(&resolver), [(1, "[2001:db8::1]:2".to_string())]);
        oracle.answer("a:1", at("0.0.0.0:1"));
        oracle.answer("b:2", Ok(vec![]));
        oracle.answer("a:1", failure());
        resolver.news(|index, addresses| panic!("{index} became {addresses:?}"));
    }

    #[test]
    fn names_are_looked_up_again_when_somebody_asks_but_not_at_once() {
        let (oracle, lookup) = Oracle::new();
        let pace = Pace { refresh: LONG, retry: Duration::from_millis(50) };
        let resolver = Resolver::start("test", vec![("a".into(), 1)], lookup, pace).unwrap();
        let first = oracle.answer("a:1", at("10.0.0.1:1"));
        news(&resolver);
        for _ in 0..1000 {
            resolver.ask();
        }
        oracle.answer("a:1", at("10.0.0.2:1"));
        assert_eq!(news(&resolver), [(0, "10.0.0.2:1".to_string())]);
        assert!(first.elapsed() >= Duration::from_millis(45), "{:?}", first.elapsed());
    }

    /// The docs of the keys and the manual promise the first.
    #[test]
    fn names_are_looked_up_every_5_minutes_and_at_most_every_10_seconds() {
        let Pace { refresh, retry } = Pace::default();
        assert_eq!((refresh, retry), (Duration::from_secs(300), Duration::from_secs(10)));
        let promises = |key: &crate::config::Key| key.doc.contains("every 5 minutes");
        let keys = |name| crate::backends::ALL.iter().find(|spec| spec.name == name).unwrap().keys;
        assert!(keys("firefly").iter().any(promises));
        let plugin = crate::plugins::ALL.iter().find(|spec| spec.name == "firefly").unwrap();
        assert!(plugin.keys.iter().any(promises));
    }

    #[test]
    fn a_failed_look_up_is_not_tried_again_before_its_time() {
        let (oracle, lookup) = Oracle::new();
        let pace = Pace { refresh: LONG, retry: Duration::from_millis(50) };
        let resolver = Resolver::start("test", vec![("a".into(), 1)], lookup, pace).unwrap();
        for asks in [0, 1000] {
            let failed = oracle.answer("a:1", failure());
            (0..asks).for_each(|_| resolver.ask());
            assert_eq!(oracle.calls.recv_timeout(PATIENCE).as_deref(), Ok("a:1"));
            assert!(failed.elapsed() >= Duration::from_millis(45), "{:?}", failed.elapsed());
            oracle.answers.send(failure()).unwrap();
        }
    }

    #[test]
    fn names_are_looked_up_again_after_a_while() {
        let (oracle, lookup) = Oracle::new();
        let pace = Pace { refresh: Duration::from_millis(1), retry: LONG };
        let resolver = Resolver::start("test", vec![("a".into(), 1)], lookup, pace).unwrap();
        for host in 1..4 {
            oracle.answer("a:1", at(&format!("10.0.0.{host}:1")));
            assert_eq!(news(&resolver), [(0, format!("10.0.0.{host}:1"))]);
        }
    }

    #[test]
    fn dropping_waits_for_an_idle_thread_and_leaves_a_hung_one() {
        let pace = Pace { refresh: LONG, retry: LONG };
        let (oracle, lookup) = Oracle::new();
        let resolver = Resolver::start("test", vec![("a".into(), 1)], lookup, pace).unwrap();
        oracle.answer("a:1", at("10.0.0.1:1"));
        news(&resolver);
        drop(resolver);
        assert!(oracle.calls.recv().is_err(), "the thread is gone");

        let (oracle, lookup) = Oracle::new();
        let resolver = Resolver::start("test", names(), lookup, pace).unwrap();
        assert_eq!(oracle.calls.recv().as_deref(), Ok("a:1"));
        // Nobody has answered: the test would hang if it waited.
        drop(resolver);
        oracle.answers.send(failure()).unwrap();
        assert!(oracle.calls.recv().is_err(), "it looks up nothing more");
    }
}
