//! One connection of a server: its buffers, what it is doing, and until when it
//! has to be done with it. Used by the thread of `server`, which owns it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::server::{Answer, Service, Settings};
use super::{Bad, Decoder, Method, Reply, Request, CONTINUE};
use crate::net::poller::Interest;

/// How much is read at a time.
pub(super) const READ: usize = 64 * 1024;
/// How much of answers is gathered before it is written: a client that sends
/// requests and reads no answers gets no further.
const GATHER: usize = 64 * 1024;
/// How much a slow reader has to take to get another period for the rest.
const PROGRESS: usize = 256 * 1024;
/// A buffer up to this size is kept for the next request.
const KEEP: usize = 4 * 1024;

/// Why a request is refused that may come from a web page under a name of its own, see
/// [`crate::net::host`].
const FOREIGN_HOST: &str =
    "the Host is neither an IP address nor localhost: on a loopback address requests under other \
     names are refused, since a web page may have made one up (DNS rebinding)";

/// Why one is refused that a web page in a browser has made.
const FROM_PAGE: &str = "requests of web pages are refused, since nobody has to authenticate here";

/// What all connections share.
pub(super) struct Shared<'a> {
    service: &'a mut dyn Service,
    pub(super) settings: Settings,
    /// Whether only this host can reach the server.
    loopback: bool,
    /// Where bytes arrive.
    pub(super) scratch: Box<[u8]>,
    /// Where answers are gathered.
    pub(super) out: Vec<u8>,
    /// The bytes that all connections hold.
    pub(super) memory: usize,
    /// The value of Date, and the second that it says.
    date: (u64, String),
}

impl<'a> Shared<'a> {
    pub(super) fn new(service: &'a mut dyn Service, settings: Settings, loopback: bool) -> Self {
        let scratch = vec![0; READ].into_boxed_slice();
        let (out, date) = (Vec::new(), (0, super::date(0)));
        Shared { service, settings, loopback, scratch, out, memory: 0, date }
    }

    fn crowded(&self) -> bool {
        self.memory > self.settings.memory
    }

    fn refresh_date(&mut self) {
        let seconds = crate::flow::Timestamp::now().0 / 1_000_000;
        if self.date.0 != seconds {
            self.date = (seconds, super::date(seconds));
        }
    }

    /// Appends the answer to a request.
    fn answer(&mut self, request: &Request<'_>) {
        let (start, crowded, head) = (self.out.len(), self.crowded(), &request.head);
        let answer = if self.loopback && head.foreign_host {
            Answer::error(403, FOREIGN_HOST, &mut self.out)
        } else if head.from_page {
            Answer::error(403, FROM_PAGE, &mut self.out)
        } else {
            self.service.answer(request, crowded, &mut self.out)
        };
        let (minor, keep_alive) = (head.minor, head.keep_alive);
        self.wrap(&answer, start, minor, keep_alive, head.method == Method::Head);
    }

    /// Appends the last answer of a connection, to what is no request.
    fn refuse(&mut self, bad: &Bad) {
        let start = self.out.len();
        let answer = Answer::error(bad.status, &bad.message, &mut self.out);
        self.wrap(&answer, start, 1, false, false);
    }

    fn wrap(&mut self, answer: &Answer, start: usize, minor: u8, keep_alive: bool, head: bool) {
        let Answer { status, content_type, allow } = *answer;
        let date = &self.date.1;
        let reply = Reply { status, content_type, allow, date, minor, keep_alive, head_only: head };
        reply.wrap(&mut self.out, start);
    }
}

/// What a connection is doing, which says what its deadline means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between requests.
    Idle,
    /// A request has begun to arrive.
    Request,
    /// The client has to take its answers first.
    Writing,
    /// All is said. What still arrives is thrown away, for if it were not read
    /// the system would reset the connection, and the client might lose the answer
    /// (RFC 9112 section 9.6).
    Draining,
}

pub(super) struct Connection {
    pub(super) stream: TcpStream,
    decoder: Decoder,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    /// Where `written` has to be for a new deadline.
    goal: usize,
    phase: Phase,
    /// No more requests are taken.
    last: bool,
    pub(super) deadline: Instant,
    pub(super) active: Instant,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    Closed,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, now: Instant, settings: &Settings) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        // An answer is one write, so there is nothing to wait for.
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            decoder: Decoder::new(settings.body),
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            goal: 0,
            phase: Phase::Idle,
            last: false,
            deadline: now + settings.idle,
            active: now,
        })
    }

    pub(super) fn idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    pub(super) fn interest(&self) -> Interest {
        if self.phase == Phase::Writing {
            Interest::Write
        } else {
            Interest::Read
        }
    }

    /// How many bytes its buffers hold.
    pub(super) fn memory(&self) -> usize {
        self.input.capacity() + self.output.capacity() + self.decoder.memory()
    }

    /// The socket is ready for what [`Connection::interest`] said, or broken.
    pub(super) fn ready(&mut self, shared: &mut Shared<'_>, now: Instant) -> Fate {
        self.active = now;
        // Whatever broke, there is nobody left to tell.
        self.advance(shared).unwrap_or(Fate::Closed)
    }

    fn advance(&mut self, shared: &mut Shared<'_>) -> io::Result<Fate> {
        if self.phase == Phase::Writing {
            self.write_rest(shared)?;
            if self.phase == Phase::Writing {
                return Ok(Fate::Open);
            }
        } else {
            match self.stream.read(&mut shared.scratch) {
                Ok(0) => return Ok(Fate::Closed),
                Ok(_) if self.phase == Phase::Draining => return Ok(Fate::Open),
                Ok(count) => self.input.extend_from_slice(&shared.scratch[..count]),
                Err(error) if transient(&error) => return Ok(Fate::Open),
                Err(error) => return Err(error),
            }
        }
        self.serve(shared)
    }

    /// Answers the requests that are complete, and waits for the next.
    fn serve(&mut self, shared: &mut Shared<'_>) -> io::Result<Fate> {
        let mut answered = 0;
        loop {
            shared.out.clear();
            answered += self.take_requests(shared);
            let full = shared.out.len() >= GATHER;
            if !shared.out.is_empty() {
                self.send(shared)?;
                if self.phase == Phase::Writing {
                    return Ok(Fate::Open);
                }
            }
            if self.last {
                return self.finish(shared);
            }
            if !full {
                break;
            }
        }
        if self.input.is_empty() && self.input.capacity() > KEEP {
            self.input = Vec::new();
        }
        if self.input.is_empty() && !self.decoder.in_body() {
            // Empty lines between requests, which the decoder drops, change nothing.
            if self.phase != Phase::Idle || answered > 0 {
                self.enter(Phase::Idle, shared.settings.idle);
            }
        } else if self.phase != Phase::Request || answered > 0 {
            self.enter(Phase::Request, shared.settings.request);
        }
        Ok(Fate::Open)
    }

    /// The time for it begins now, and not when the socket became ready: an answer that
    /// has to wait for the dispatcher may itself have taken longer.
    fn enter(&mut self, phase: Phase, limit: Duration) {
        self.phase = phase;
        self.deadline = Instant::now() + limit;
    }

    /// Answers what `input` has of whole requests into `shared.out`, until that is
    /// long enough to be written. Returns how many they were.
    fn take_requests(&mut self, shared: &mut Shared<'_>) -> usize {
        shared.refresh_date();
        let mut answered = 0;
        let mut rest = &self.input[..];
        while !self.last && shared.out.len() < GATHER {
            match self.decoder.decode(&mut rest) {
                Ok(Some(request)) => {
                    shared.answer(&request);
                    self.last = !request.head.keep_alive;
                    answered += 1;
                }
                Ok(None) => {
                    if self.decoder.take_continue() {
                        shared.out.extend_from_slice(CONTINUE);
                    }
                    break;
                }
                Err(bad) => {
                    shared.refuse(&bad);
                    self.last = true;
                }
            }
        }
        // What is rejected here is a long body that is still arriving. Short requests
        // are served on, however many long ones somebody keeps open.
        let held = self.memory();
        if !self.last && answered == 0 && held > READ && shared.crowded() {
            let message = "too many long requests are on their way already".into();
            shared.refuse(&Bad { status: 503, message });
            self.last = true;
        }
        if self.last {
            self.input = Vec::new();
            self.decoder = Decoder::new(shared.settings.body);
        } else {
            let used = self.input.len() - rest.len();
            self.input.drain(..used);
        }
        answered
    }

    /// Writes `shared.out`, and keeps what the socket does not take.
    fn send(&mut self, shared: &mut Shared<'_>) -> io::Result<()> {
        let written = self.write(&shared.out, 0)?;
        if written < shared.out.len() {
            self.output = std::mem::take(&mut shared.out);
            self.written = written;
            self.goal = written + PROGRESS;
            self.enter(Phase::Writing, shared.settings.write);
        } else if shared.out.capacity() > 2 * GATHER {
            shared.out = Vec::new();
        }
        Ok(())
    }

    /// Goes on writing what the socket did not take. The phase tells whether all
    /// is written.
    fn write_rest(&mut self, shared: &Shared<'_>) -> io::Result<()> {
        self.written = self.write(&self.output, self.written)?;
        if self.written == self.output.len() {
            self.output = Vec::new();
            self.enter(Phase::Idle, shared.settings.idle);
        } else if self.written >= self.goal {
            self.goal = self.written + PROGRESS;
            self.enter(Phase::Writing, shared.settings.write);
        }
        Ok(())
    }

    /// Writes `bytes` from `written` on as far as the socket takes them.
    fn write(&self, bytes: &[u8], mut written: usize) -> io::Result<usize> {
        while written < bytes.len() {
            match (&self.stream).write(&bytes[written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if transient(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// Says that nothing more will come, and waits for the client's end.
    fn finish(&mut self, shared: &Shared<'_>) -> io::Result<Fate> {
        self.stream.shutdown(Shutdown::Write)?;
        self.enter(Phase::Draining, shared.settings.linger);
        Ok(Fate::Open)
    }

    /// The deadline has passed.
    pub(super) fn expire(&mut self, shared: &mut Shared<'_>) -> Fate {
        if self.phase != Phase::Request {
            return Fate::Closed;
        }
        self.last = true;
        self.input = Vec::new();
        self.decoder = Decoder::new(shared.settings.body);
        shared.out.clear();
        shared.refresh_date();
        let message = format!("the request took longer than {:?}", shared.settings.request);
        shared.refuse(&Bad { status: 408, message });
        let sent = self.send(shared);
        if self.phase == Phase::Writing && sent.is_ok() {
            return Fate::Open;
        }
        sent.and_then(|()| self.finish(shared)).unwrap_or(Fate::Closed)
    }
}

fn transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Its answers are as long as it says.
    struct Long(usize);

    impl Service for Long {
        fn answer(&mut self, _: &Request<'_>, _: bool, out: &mut Vec<u8>) -> Answer {
            out.resize(out.len() + self.0, b' ');
            Answer::json(200)
        }
    }

    #[test]
    fn a_client_has_its_time_from_the_end_of_an_answer_on_however_long_that_took() {
        let limit = |seconds| Duration::from_secs(seconds);
        let settings = Settings {
            request: limit(1000),
            idle: limit(2000),
            write: limit(3000),
            linger: limit(4000),
            ..Settings::default()
        };
        // More than the buffers of two sockets hold.
        let long = 64 << 20;
        for (request, length, phase, limit) in [
            ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 1, Phase::Idle, settings.idle),
            ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\nG", 1, Phase::Request, settings.request),
            ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", long, Phase::Writing, settings.write),
            ("GET / HTTP/1.0\r\n\r\n", 1, Phase::Draining, settings.linger),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            stream.peek(&mut [0]).unwrap();
            // The socket became ready a second ago.
            let before = Instant::now();
            let then = before.checked_sub(Duration::from_secs(1)).unwrap();
            let mut service = Long(length);
            let mut shared = Shared::new(&mut service, settings.clone(), true);
            let mut connection = Connection::new(stream, then, &settings).unwrap();
            assert_eq!(connection.ready(&mut shared, then), Fate::Open);
            assert_eq!(connection.phase, phase);
            assert!(connection.deadline >= before + limit, "{phase:?}");
        }
    }
}
