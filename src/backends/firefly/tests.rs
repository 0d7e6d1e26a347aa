//! The backend with look-ups, limits and counters that its configuration does not
//! reach. What a receiver can see is in tests/firefly.rs.

use std::io;
use std::net::UdpSocket;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::config::Value;
use crate::dispatcher::Dispatcher;
use crate::entropy::EntropyKey;
use crate::flow::{FlowEvent, FlowId, FlowState, Protocol, Tag};
use crate::net::uninterrupted;

const LONG: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);

fn section(to_destination: bool, port: u16, collectors: &[&str]) -> Section {
    let collectors = collectors.iter().map(|collector| collector.to_string()).collect();
    let values = vec![
        ("sendToDestination", Value::Bool(to_destination)),
        ("collectors", Value::List(collectors)),
        ("destinationPort", Value::Int(port.into())),
        ("prependSyslog", Value::Bool(true)),
        ("sendToCollector", Value::Bool(false)),
        ("enrich", Value::Bool(false)),
        ("enrichmentMode", Value::Text("lean".into())),
        ("ongoingPeriod", Value::Int(0)),
        ("stun", Value::Section(None)),
    ];
    Section::new("backends.firefly", values)
}

fn no_lookup() -> Lookup {
    Arc::new(|host, _| panic!("{host} was looked up"))
}

fn pace() -> Pace {
    Pace { refresh: LONG, retry: LONG }
}

fn start(src_port: u16, dst: &str) -> FlowEvent {
    let dst: SocketAddr = dst.parse().unwrap();
    let src = if dst.is_ipv4() { "10.0.0.1" } else { "2001:db8::1" };
    let src = SocketAddr::new(src.parse().unwrap(), src_port);
    let id = FlowId::new(Protocol::Tcp, src, dst).unwrap();
    let tag = Tag::new(1, 1).unwrap();
    FlowEvent { state: FlowState::Start, id, tag, time: None, application: None, usage: None }
}

/// A queue that holds these batches and has hung up.
fn queue(batches: Vec<Vec<FlowEvent>>) -> Queue {
    let (mut dispatcher, inlet) = Dispatcher::new(10_000, EntropyKey::of_this_boot());
    let queue = dispatcher.attach("firefly");
    let thread = thread::spawn(|| dispatcher.run());
    batches.into_iter().for_each(|batch| inlet.send_all(batch).unwrap());
    inlet.report();
    drop(inlet);
    thread.join().unwrap();
    queue
}

fn sink() -> (UdpSocket, u16) {
    let sink = UdpSocket::bind("[::1]:0").unwrap();
    sink.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = sink.local_addr().unwrap().port();
    (sink, port)
}

/// What became of fireflies to one kind of recipient.
fn fate(sent: u64, failed: u64, dropped: u64) -> Fate {
    Fate { sent: sent.into(), failed: failed.into(), dropped: dropped.into() }
}

#[test]
fn what_is_too_far_behind_is_shed_and_the_rest_is_sent() {
    let (sink, port) = sink();
    let batch = |at: u16| (at * 10 + 1..=at * 10 + 10).map(|src| start(src, "[::1]:1")).collect();
    let events = queue((0..10).map(batch).collect());
    let mut backend = Firefly::new(&section(true, port, &[]), no_lookup(), pace(), 35).unwrap();
    backend.work(&events);
    // 10 batches of 10 and a report: 91, 81, ... wait behind each.
    assert_eq!(backend.counters.shed.get(), 60);
    assert_eq!(backend.counters.destinations, fate(40, 0, 0));
    for src_port in 61..=100 {
        let mut buffer = [0; 2048];
        let length = uninterrupted(|| sink.recv(&mut buffer)).unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]);
        assert!(text.contains(&format!("\"src-port\":{src_port},")), "{text}");
    }
}

#[test]
fn destinations_that_are_not_one_host_get_nothing() {
    let destinations =
        ["224.0.0.1:1", "255.255.255.255:1", "0.0.0.0:1", "[::]:1", "[ff02::1]:1", "[ff0e::1]:1"];
    let starts: Vec<_> = destinations.iter().map(|dst| start(1, dst)).collect();
    let mut backend =
        Firefly::new(&section(true, 10514, &[]), no_lookup(), pace(), BACKLOG).unwrap();
    backend.work(&queue(vec![starts]));
    assert_eq!(*backend.counters, Counters { unsuitable: 6.into(), ..Counters::default() });
}

#[test]
fn failures_are_counted_by_recipient() {
    // The kernel refuses broadcast, which 127.255.255.255 is.
    let starts = vec![start(1, "127.255.255.255:1"), start(1, "[::1]:1")];
    let section = section(true, 1, &["127.255.255.255:1", "[::1]:1", "127.0.0.1:1"]);
    let mut backend = Firefly::new(&section, no_lookup(), pace(), BACKLOG).unwrap();
    backend.work(&queue(vec![starts]));
    let destinations = fate(1, 1, 0);
    let collectors = fate(4, 2, 0);
    assert_eq!(*backend.counters, Counters { destinations, collectors, ..Counters::default() });
}

/// It gets the first address that fails; it moves to the next, then asks again.
#[test]
fn a_collector_that_fails_is_tried_elsewhere_and_looked_up_again() {
    let (sink, port) = sink();
    let (called, calls) = mpsc::channel();
    let lookup = move |_: &str, port| {
        // The test may be over.
        let _ = called.send(());
        let addresses = [("127.255.255.255", port), ("::1", port)];
        Ok(addresses.iter().map(|(ip, port)| SocketAddr::new(ip.parse().unwrap(), *port)).collect())
    };
    let pace = Pace { refresh: LONG, retry: Duration::ZERO };
    let section = section(false, port, &[&format!("collector.example:{port}")]);
    let mut backend = Firefly::new(&section, Arc::new(lookup), pace, BACKLOG).unwrap();
    calls.recv_timeout(PATIENCE).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while backend.plan.collectors[0].addresses.is_empty() {
        backend.hear_of_addresses();
        assert!(Instant::now() < deadline, "no address came");
        thread::yield_now();
    }
    backend.work(&queue(vec![vec![start(1, "[::1]:1")]]));
    assert_eq!(backend.counters.collectors, fate(0, 1, 0));
    calls.recv_timeout(PATIENCE).expect("it is looked up again");
    backend.work(&queue(vec![vec![start(1, "[::1]:1")]]));
    assert_eq!(backend.counters.collectors, fate(1, 1, 0));
    uninterrupted(|| sink.recv(&mut [0; 2048])).unwrap();
}

/// Neither sending nor stopping waits for the resolver, whom nobody answers until the end: the
/// test would hang.
#[test]
fn a_look_up_that_hangs_stalls_nothing() {
    let (sink, port) = sink();
    let (called, calls) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let lookup = move |_: &str, _| {
        let _ = called.send(());
        let _ = released.lock().unwrap().recv();
        Err(io::Error::other("the test is over"))
    };
    let section = section(true, port, &["collector.example"]);
    let mut backend = Firefly::new(&section, Arc::new(lookup), pace(), BACKLOG).unwrap();
    calls.recv_timeout(PATIENCE).unwrap();
    backend.work(&queue(vec![vec![start(1, "[::1]:1")]]));
    uninterrupted(|| sink.recv(&mut [0; 2048])).unwrap();
    assert_eq!(backend.counters.unresolved.get(), 1);
    drop(backend);
    drop(release);
}

/// Though its name is looked up anew, what is sent meanwhile reaches it.
#[test]
fn a_collector_that_stays_misses_nothing_over_a_reload() {
    let (sink, port) = sink();
    let (called, calls) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (first, released) = (std::sync::Mutex::new(true), std::sync::Mutex::new(released));
    let lookup = move |_: &str, port| {
        if !std::mem::replace(&mut *first.lock().unwrap(), false) {
            let _ = called.send(());
            let _ = released.lock().unwrap().recv();
        }
        Ok(vec![SocketAddr::new("::1".parse().unwrap(), port)])
    };
    let stays = format!("collector.example:{port}");
    let before = section(false, port, &[&stays]);
    let mut backend = Firefly::new(&before, Arc::new(lookup), pace(), BACKLOG).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while backend.plan.collectors[0].addresses.is_empty() {
        backend.hear_of_addresses();
        assert!(Instant::now() < deadline, "no address came");
        thread::yield_now();
    }
    // The same again is nothing to look up.
    backend.reload(&before);
    backend.reload(&section(false, port, &["new.example", &stays]));
    calls.recv_timeout(PATIENCE).expect("the names are looked up");
    backend.work(&queue(vec![vec![start(1, "[::1]:1")]]));
    uninterrupted(|| sink.recv(&mut [0; 2048])).unwrap();
    assert_eq!(backend.counters.collectors, fate(1, 0, 0));
    assert_eq!(backend.counters.unresolved.get(), 1, "the new one is not known yet");
    drop(release);
}
