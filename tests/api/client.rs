//! An API under test, and a client that speaks HTTP byte by byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use glowd::dispatcher::{Dispatcher, Inlet};
use glowd::entropy::EntropyKey;
use glowd::part::Context;
use glowd::plugins::api::{Server, Settings};
use glowd::registry::Names;
use glowd::shutdown::{stop_token, Stopper};
use serde_json::Value;

use crate::common::PATIENCE;

pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    pub(crate) inlet: Inlet,
    stopper: Option<Stopper>,
    threads: Vec<JoinHandle<()>>,
}

impl Api {
    pub(crate) fn start(ip: impl Into<IpAddr>, settings: Settings, max_flows: u32) -> Self {
        Api::start_with(ip, settings, max_flows, Context::new(0).names)
    }

    pub(crate) fn start_with(
        ip: impl Into<IpAddr>,
        settings: Settings,
        max_flows: u32,
        names: Arc<Names>,
    ) -> Self {
        let server = Server::bind(SocketAddr::new(ip.into(), 0), settings, names).unwrap();
        let address = server.address();
        let (stopper, stop) = stop_token().unwrap();
        let (dispatcher, inlet) = Dispatcher::new(max_flows, EntropyKey::of_this_boot());
        let out = inlet.for_source("api");
        let threads = vec![
            thread::spawn(|| dispatcher.run()),
            thread::spawn(move || server.serve(&out, &stop).unwrap()),
        ];
        Api { address, inlet, stopper: Some(stopper), threads }
    }

    pub(crate) fn new() -> Self {
        Api::start(Ipv4Addr::LOCALHOST, Settings::default(), 100_000)
    }

    pub(crate) fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, pending: Vec::new() }
    }

    /// Sends a request on a connection of its own.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.connect().ask(method, path, body)
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, "");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    pub(crate) fn post(&self, body: &str) -> Answer {
        self.ask("POST", "/flow", body)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        drop(self.stopper.take());
        // The dispatcher ends when the last inlet is gone.
        let (_, unused) = Dispatcher::new(0, EntropyKey::of_this_boot());
        self.inlet = unused;
        for thread in self.threads.drain(..) {
            let result = thread.join();
            if !thread::panicking() {
                result.expect("a thread of the API panicked");
            }
        }
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) pending: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Client {
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &str) -> Answer {
        let length = body.len();
        self.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        self.answer_to(method)
    }

    pub(crate) fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    fn answer_to(&mut self, method: &str) -> Answer {
        let end = loop {
            if let Some(at) = self.pending.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.more(), "closed in a head: {:?}", self.pending);
        };
        let body = self.pending.split_off(end);
        let head = String::from_utf8(std::mem::replace(&mut self.pending, body)).unwrap();
        let status = head[9..12].parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new() };
        if status == 100 {
            return answer;
        }
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        let length = answer.header("Content-Length").unwrap().parse().unwrap();
        if method != "HEAD" {
            while self.pending.len() < length {
                assert!(self.more(), "closed in a body");
            }
            let rest = self.pending.split_off(length);
            answer.body = std::mem::replace(&mut self.pending, rest);
        }
        answer
    }

    /// A wait with a timeout may be interrupted although nobody handles signals.
    pub(crate) fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.stream.read(bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn more(&mut self) -> bool {
        let mut bytes = [0; 65536];
        let count = self.read(&mut bytes).unwrap();
        self.pending.extend_from_slice(&bytes[..count]);
        count > 0
    }

    /// Waits until the server has closed the connection, after no further answer.
    pub(crate) fn closed(&mut self) {
        assert_eq!(self.pending, [0; 0]);
        match self.read(&mut [0; 100]) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
}
