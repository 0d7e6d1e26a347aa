//! HTTP/1.1 for a small server. This file is the pure part: bytes to requests, and
//! `reply` to bytes (RFC 9110, RFC 9112). It reads no socket and knows no route;
//! `connection` owns a [`Decoder`] each, and `server` owns the connections.
//!
//! The grammar of a request's head is httparse's business. What a head means,
//! where the body ends, and how long anything may be is decided here.

mod connection;
mod reply;
mod server;

use std::borrow::Cow;

pub use reply::{date, Reply, JSON};
pub use server::{Answer, Server, Service, Settings};

use super::host::{needs_no_dns, split_target};

/// The longest head of a request, in bytes.
pub const MAX_HEAD: usize = 8 * 1024;
/// The most header lines of a request.
pub const MAX_HEADERS: usize = 64;
/// The most empty lines' bytes before a request: a client may send one too many.
const MAX_EMPTY: usize = 64;
/// The longest line that announces a chunk, in bytes: its size and extensions.
const MAX_CHUNK_LINE: usize = 256;

/// What the server answers `Expect: 100-continue` with (RFC 9110 section 10.1.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The method of a request, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Answered with a body.
    Get,
    /// As GET, but the body stays away.
    Head,
    /// Carries a body.
    Post,
    /// Any other.
    Other,
}

/// What the head of a request says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// The path, without scheme, authority and query.
    pub path: String,
    /// The x of HTTP/1.x: 0 or 1.
    pub minor: u8,
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
    /// Whether a web page in a browser made it: it has an `Origin`, or a
    /// `Sec-Fetch-Site` other than `none` (which is a typed-in address).
    pub from_page: bool,
    /// Whether it was meant for a host that only DNS knows, see [`needs_no_dns`].
    pub foreign_host: bool,
    /// The version of OpenMetrics that the client likes best, and at least as much as plain
    /// text; None: there is none.
    pub open_metrics: Option<&'static str>,
}

/// A whole request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its head.
    pub head: Head,
    /// Its body, decoded; empty if it has none.
    pub body: Cow<'a, [u8]>,
}

/// Why the bytes are not a request. The connection cannot be used any further,
/// since nobody knows where the next request starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// What to answer.
    pub status: u16,
    /// Why, for the body of the answer.
    pub message: String,
}

fn bad<T>(status: u16, message: impl Into<String>) -> Result<T, Bad> {
    Err(Bad { status, message: message.into() })
}

/// Cuts the bytes of a connection into requests.
#[derive(Debug)]
pub struct Decoder {
    max_body: usize,
    state: State,
    /// How many bytes of empty lines have come since the last request.
    empty: usize,
    continues: bool,
}

#[derive(Debug)]
enum State {
    /// Before the end of a head.
    Head,
    /// Before the end of a body of that length.
    Sized(Head, usize),
    /// Before the end of a body in chunks.
    Chunked(Head, Chunks),
}

/// How the end of a body is found (RFC 9112 section 6.3).
enum Framing {
    Sized(usize),
    Chunked,
}

impl Decoder {
    /// A decoder for a new connection. A body may have up to `max_body` bytes.
    pub fn new(max_body: usize) -> Self {
        Decoder { max_body, state: State::Head, empty: 0, continues: false }
    }

    /// Takes the next request off `input`; None: it is not complete yet. `input`
    /// is then what is to come again in front of the bytes that follow.
    ///
    /// # Errors
    /// The bytes are no request that can be served.
    pub fn decode<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Request<'a>>, Bad> {
        if matches!(self.state, State::Head) {
            self.skip_empty_lines(input)?;
            let Some((length, head, framing, continues)) = read_head(input)? else {
                return Ok(None);
            };
            *input = &input[length..];
            self.empty = 0;
            self.continues = continues;
            self.state = match framing {
                Framing::Sized(length) if length > self.max_body => return self.too_large(),
                Framing::Sized(length) => State::Sized(head, length),
                Framing::Chunked => State::Chunked(head, Chunks::default()),
            };
        }
        let complete = match &mut self.state {
            State::Head => false,
            State::Sized(_, length) => input.len() >= *length,
            State::Chunked(_, chunks) => match chunks.decode(input, self.max_body)? {
                Progress::Complete => true,
                Progress::Partial => false,
                Progress::TooLarge => return self.too_large(),
            },
        };
        if !complete {
            return Ok(None);
        }
        self.continues = false;
        Ok(match std::mem::replace(&mut self.state, State::Head) {
            State::Head => None,
            State::Sized(head, length) => {
                let (body, rest) = input.split_at(length);
                *input = rest;
                Some(Request { head, body: Cow::Borrowed(body) })
            }
            State::Chunked(head, chunks) => Some(Request { head, body: Cow::Owned(chunks.body) }),
        })
    }

    /// Empty lines before a request mean nothing (RFC 9112 section 2.2).
    fn skip_empty_lines(&mut self, input: &mut &[u8]) -> Result<(), Bad> {
        while let Some(rest) = input.strip_prefix(b"\r\n").or(input.strip_prefix(b"\n")) {
            self.empty += input.len() - rest.len();
            if self.empty > MAX_EMPTY {
                return bad(400, "there are too many empty lines before the request");
            }
            *input = rest;
        }
        Ok(())
    }

    fn too_large<T>(&self) -> Result<T, Bad> {
        bad(413, format!("the body is longer than {} bytes", self.max_body))
    }

    /// Whether a head has been taken whose body is not complete yet.
    pub fn in_body(&self) -> bool {
        !matches!(self.state, State::Head)
    }

    /// Whether the client waits for [`CONTINUE`] before it sends the body. True
    /// once per request.
    pub fn take_continue(&mut self) -> bool {
        std::mem::take(&mut self.continues)
    }

    /// How many bytes are held here.
    pub fn memory(&self) -> usize {
        match &self.state {
            State::Chunked(_, chunks) => chunks.body.capacity(),
            _ => 0,
        }
    }
}

/// The head at the start of `input`: its length, what it says, how the body is
/// framed, and whether the client waits for [`CONTINUE`].
fn read_head(input: &[u8]) -> Result<Option<(usize, Head, Framing, bool)>, Bad> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let window = &input[..input.len().min(MAX_HEAD)];
    let length = match request.parse(window) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if window.len() == MAX_HEAD => {
            return bad(431, format!("the head is longer than {MAX_HEAD} bytes"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return bad(431, format!("there are more than {MAX_HEADERS} headers"));
        }
        Err(httparse::Error::Version) => return bad(505, "only HTTP/1.0 and HTTP/1.1 are spoken"),
        Err(error) => return bad(400, format!("this is not HTTP: {error}")),
    };
    let minor = request.version.unwrap_or(0);
    let method = match request.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        Some("POST") => Method::Post,
        _ => Method::Other,
    };
    let (authority, path) = split_target(request.path.unwrap_or_default());
    let path = path.to_owned();

    let mut fields = Fields::default();
    for header in request.headers.iter() {
        fields.read(header)?;
    }
    if fields.hosts > 1 || (minor == 1 && fields.hosts == 0) {
        return bad(400, "HTTP/1.1 demands exactly one Host header");
    }
    // The authority counts instead of the Host (RFC 9112 section 3.2.2).
    let foreign_host = authority.map_or(fields.foreign_host, |name| !needs_no_dns(name.as_bytes()));
    let framing = match (fields.chunked, fields.length) {
        (true, Some(_)) => {
            return bad(400, "Transfer-Encoding and Content-Length exclude each other");
        }
        (true, None) if minor == 0 => return bad(400, "HTTP/1.0 knows no Transfer-Encoding"),
        (true, None) => Framing::Chunked,
        (false, length) => Framing::Sized(length.unwrap_or(0)),
    };
    let keep_alive = !fields.close && (minor == 1 || fields.keep_alive);
    let from_page = fields.from_page;
    let open_metrics = fields.liking.open_metrics();
    let head = Head { method, path, minor, keep_alive, from_page, foreign_host, open_metrics };
    Ok(Some((length, head, framing, minor == 1 && fields.expects)))
}

/// The headers that mean something here.
#[derive(Default)]
struct Fields {
    hosts: usize,
    foreign_host: bool,
    length: Option<usize>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects: bool,
    from_page: bool,
    liking: Liking,
}

impl Fields {
    fn read(&mut self, header: &httparse::Header<'_>) -> Result<(), Bad> {
        let (name, value) = (header.name, header.value.trim_ascii());
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("host") {
            self.hosts += 1;
            self.foreign_host = !needs_no_dns(value);
        } else if is("content-length") {
            if self.length.is_some() {
                return bad(400, "there is more than one Content-Length");
            }
            self.length = Some(read_length(value)?);
        } else if is("transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return bad(501, "the only Transfer-Encoding known is chunked");
            }
            self.chunked = true;
        } else if is("connection") {
            for option in value.split(|byte| *byte == b',') {
                let option = option.trim_ascii();
                self.close |= option.eq_ignore_ascii_case(b"close");
                self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if is("expect") {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return bad(417, "the only expectation known is 100-continue");
            }
            self.expects = true;
        } else if is("origin") {
            self.from_page = true;
        } else if is("sec-fetch-site") {
            self.from_page |= !value.eq_ignore_ascii_case(b"none");
        } else if is("accept") {
            self.liking.read(&String::from_utf8_lossy(value));
        }
        Ok(())
    }
}

/// How much a client likes the forms of metrics, in thousandths (Accept, RFC 9110 section
/// 12.5.1).
#[derive(Debug, Default)]
struct Liking {
    /// OpenMetrics 1.0.0 and 0.0.1, which differ in name.
    open_metrics: [u16; 2],
    text: u16,
}

/// The versions of OpenMetrics.
const OPEN_METRICS: [&str; 2] = ["1.0.0", "0.0.1"];

impl Liking {
    /// Reads one of the fields.
    fn read(&mut self, accept: &str) {
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let (name, mut weight, mut version) = (parts.next().unwrap_or_default(), 1000, None);
            for (key, value) in parts.filter_map(|part| part.split_once('=')) {
                let value = value.trim_matches('"');
                if key.eq_ignore_ascii_case("q") {
                    weight = thousandths(value);
                } else if key.eq_ignore_ascii_case("version") {
                    version = Some(value);
                }
            }
            if name.eq_ignore_ascii_case("text/plain") {
                self.text = self.text.max(weight);
            } else if name.eq_ignore_ascii_case("application/openmetrics-text") {
                // Without a version any is meant.
                for (known, liking) in OPEN_METRICS.iter().zip(&mut self.open_metrics) {
                    if version.is_none_or(|version| version == *known) {
                        *liking = weight.max(*liking);
                    }
                }
            }
        }
    }

    /// The version that is liked at least as much as plain text.
    fn open_metrics(&self) -> Option<&'static str> {
        let [new, old] = self.open_metrics;
        let best = new.max(old);
        let version = OPEN_METRICS[usize::from(old > new)];
        (best > 0 && best >= self.text).then_some(version)
    }
}

/// A weight: 0 or 1 with up to three decimals. What is none weighs nothing.
fn thousandths(text: &str) -> u16 {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    match format!("{whole}{decimals:0<3}").parse() {
        Ok(weight) if weight <= 1000 && whole.len() == 1 && decimals.len() <= 3 => weight,
        _ => 0,
    }
}

/// Digits and nothing else (RFC 9110 section 8.6): no sign, no list.
fn read_length(value: &[u8]) -> Result<usize, Bad> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return bad(400, "Content-Length is not a number");
    }
    // What does not fit is too large, whatever the limit.
    let digits = value.iter().map(|digit| usize::from(digit - b'0'));
    Ok(digits.fold(0, |sum: usize, digit| sum.saturating_mul(10).saturating_add(digit)))
}

/// A body in chunks (RFC 9112 section 7.1) while it arrives.
#[derive(Debug, Default)]
struct Chunks {
    body: Vec<u8>,
    at: ChunkPart,
    trailers: usize,
}

#[derive(Debug, Default)]
enum ChunkPart {
    #[default]
    Size,
    Data(usize),
    DataEnd,
    Trailers,
}

enum Progress {
    Partial,
    Complete,
    TooLarge,
}

impl Chunks {
    fn decode(&mut self, input: &mut &[u8], max: usize) -> Result<Progress, Bad> {
        loop {
            match self.at {
                ChunkPart::Size => {
                    let Some(size) = read_chunk_size(input)? else { return Ok(Progress::Partial) };
                    if size > max.saturating_sub(self.body.len()) {
                        return Ok(Progress::TooLarge);
                    }
                    self.at = if size == 0 { ChunkPart::Trailers } else { ChunkPart::Data(size) };
                }
                ChunkPart::Data(left) => {
                    let (data, rest) = input.split_at(left.min(input.len()));
                    self.body.extend_from_slice(data);
                    *input = rest;
                    if data.len() < left {
                        self.at = ChunkPart::Data(left - data.len());
                        return Ok(Progress::Partial);
                    }
                    self.at = ChunkPart::DataEnd;
                }
                ChunkPart::DataEnd => {
                    let Some(line) = take_line(input) else {
                        return if b"\r\n".starts_with(input) {
                            Ok(Progress::Partial)
                        } else {
                            bad(400, "a chunk is longer than it says")
                        };
                    };
                    if line != b"\r\n" {
                        return bad(400, "a chunk is longer than it says");
                    }
                    self.at = ChunkPart::Size;
                }
                ChunkPart::Trailers => {
                    let line = take_line(input);
                    let pending = if line.is_none() { input.len() } else { 0 };
                    self.trailers += line.map_or(0, <[u8]>::len);
                    if self.trailers + pending > MAX_HEAD {
                        return bad(431, format!("trailers are longer than {MAX_HEAD} bytes"));
                    }
                    match line {
                        None => return Ok(Progress::Partial),
                        Some(b"\r\n" | b"\n") => return Ok(Progress::Complete),
                        // Nobody asked for it (RFC 9110 section 6.5.1).
                        Some(_) => {}
                    }
                }
            }
        }
    }
}

/// Takes the line that announces a chunk. None: it is not complete yet.
fn read_chunk_size(input: &mut &[u8]) -> Result<Option<usize>, Bad> {
    let window = &input[..input.len().min(MAX_CHUNK_LINE)];
    // httparse takes a line without a digit for a size of 0.
    if window.first().is_some_and(|first| !first.is_ascii_hexdigit()) {
        return bad(400, "the size of a chunk is not a number");
    }
    match httparse::parse_chunk_size(window) {
        Ok(httparse::Status::Complete((length, size))) => {
            *input = &input[length..];
            Ok(Some(usize::try_from(size).unwrap_or(usize::MAX)))
        }
        Ok(httparse::Status::Partial) if window.len() == MAX_CHUNK_LINE => {
            bad(400, "the line that announces a chunk is too long")
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => bad(400, "the size of a chunk is not a number"),
    }
}

/// Takes a line with its end. None: it is not complete yet.
fn take_line<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = input.split_at(end + 1);
    *input = rest;
    Some(line)
}

#[cfg(test)]
mod tests;
