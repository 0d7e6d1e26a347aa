//! What a scrape of 10,000 measured flows takes, from the request to the last octet, and
//! whether events wait for it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::control::{in_own_network, latencies};
use crate::load::starts;
use crate::process::{Binary, Daemon};
use crate::scan::Held;

pub(crate) const SECTIONS: &[crate::Section] = &[("scrape", || Binary::each(scrapes))];

/// Both ends of a connection on loopback are flows of this host.
const FLOWS: usize = 10_000;

/// Into `answer`, which a client that asks again and again has from the last time.
fn scrape(answer: &mut Vec<u8>) {
    let mut stream = TcpStream::connect("127.0.0.1:9817").unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    answer.clear();
    stream.read_to_end(answer).unwrap();
}

fn scrapes(binary: Binary) {
    in_own_network();
    let mut held = Held::default();
    held.add(FLOWS / 2);
    let lines = starts();
    let daemon = Daemon::start_binary(
        binary,
        json!({"plugins": {"namedPipe": {}}, "backends": {"prometheus": {}, "marker": {}},
               "enrichers": {"netlink": {}}}),
    );
    fs::write(daemon.pipe(), lines.concat()).unwrap();
    let series = |answer: &[u8]| answer.windows(13).filter(|w| w == b"flow_tcp_rtt{").count();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut answer = Vec::new();
    scrape(&mut answer);
    while series(&answer) < FLOWS {
        assert!(Instant::now() < deadline, "{} of {FLOWS} are measured", series(&answer));
        scrape(&mut answer);
    }
    let mut times: Vec<f64> = Vec::new();
    for _ in 0..15 {
        let before = Instant::now();
        scrape(&mut answer);
        times.push(before.elapsed().as_secs_f64() * 1e3);
    }
    let figure = format!("{:.0} ms", crate::percentile(&mut times, 0.5));
    let what = format!("scrape of 10,000 flows, {:.0} MB", answer.len() as f64 / 1e6);
    binary.row(&what, figure, "< 100 ms");
    binary.row("resident memory meanwhile", format!("{:.0} MB", daemon.resident()), "");
    let figures = |times: &mut Vec<f64>| {
        let [middle, most] = [0.5, 0.99].map(|share| crate::percentile(times, share));
        format!("{middle:.0} / {most:.0} us")
    };
    let mut alone = latencies(&daemon, 0..1000);
    binary.row("pipe line to map entry beside them, p50 / p99", figures(&mut alone), "");
    let mut beside = thread::scope(|scope| {
        let measure = scope.spawn(|| latencies(&daemon, 1000..3000));
        // No scraper of the world asks as often.
        while !measure.is_finished() {
            scrape(&mut answer);
        }
        measure.join().unwrap()
    });
    binary.row("the same during scrapes without a pause", figures(&mut beside), "");
}
