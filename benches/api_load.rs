//! Load on the API: POST /flow over keep-alive connections, one request at a time
//! on each, against a server and a dispatcher in this process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use glowd::dispatcher::Dispatcher;
use glowd::entropy::EntropyKey;
use glowd::plugins::api::{Server, Settings};
use glowd::shutdown::stop_token;

/// POST /flow per second on that many connections, while `idle` others are open.
/// Half of the requests start a flow and half end one.
pub(crate) fn posts_per_second(connections: u16, idle: usize, period: Duration) -> f64 {
    let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0)), Settings::default())
        .expect("a free port");
    let address = server.address();
    let (stopper, stop) = stop_token().expect("a stop token");
    let (dispatcher, inlet) = Dispatcher::new(100_000, EntropyKey::of_this_boot());
    let hub = thread::spawn(|| dispatcher.run());
    let api = thread::spawn(move || server.serve(&inlet, &stop));
    let idlers: Vec<_> =
        (0..idle).map(|_| TcpStream::connect(address).expect("a connection")).collect();
    let begin = Instant::now();
    let clients: Vec<_> =
        (1..=connections).map(|src| thread::spawn(move || client(address, src, period))).collect();
    let posts: u32 = clients.into_iter().map(|client| client.join().expect("a client")).sum();
    let rate = f64::from(posts) / begin.elapsed().as_secs_f64();
    drop((idlers, stopper));
    api.join().expect("the API").expect("no error");
    hub.join().expect("the dispatcher");
    rate
}

/// Posts until `period` is over; returns how many were answered with 200.
fn client(address: SocketAddr, src: u16, period: Duration) -> u32 {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("a socket option");
    let requests = ["start", "end"].map(|state| request(state, src));
    let mut answer = [0; 4096];
    let (mut posts, begin) = (0, Instant::now());
    while begin.elapsed() < period {
        for request in &requests {
            stream.write_all(request.as_bytes()).expect("a sent request");
            // An answer of a few hundred bytes is one segment.
            let length = stream.read(&mut answer).expect("an answer");
            assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer[..length].ends_with(b"}"));
            posts += 1;
        }
    }
    posts
}

fn request(state: &str, src: u16) -> String {
    let body = format!(
        r#"{{"state":"{state}","protocol":"tcp","src":"[2001:db8::1]:{src}","dst":"[2001:db8::2]:1094","experiment":2,"activity":16}}"#
    );
    format!(
        "POST /flow HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
