//! Asking a responder of the test on loopback, which loses, delays, forges and cuts.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;

use super::message::{request, TransactionId};
use super::*;
use crate::config::Value;
use crate::flow::{Protocol, Tag, Timestamp};

const PATIENCE: Duration = Duration::from_secs(60);
/// Far more than a test takes, so that nothing is sent twice.
const SLOW: Duration = PATIENCE;
/// So short that the whole schedule takes a fraction of a second.
const FAST: Duration = Duration::from_millis(1);

/// A server under the test's control.
struct Server(UdpSocket);

/// Both families.
const FAMILIES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

impl Server {
    fn new(ip: IpAddr) -> Self {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Server(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// The next request: its id, and who sent it.
    fn request(&self) -> (TransactionId, SocketAddr) {
        let mut buffer = [0; 100];
        let (length, from) = self.0.recv_from(&mut buffer).unwrap();
        let id = buffer[8..20].try_into().unwrap();
        assert_eq!(buffer[..length], request(&id));
        (id, from)
    }

    fn has_nothing(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let nothing = self.0.recv(&mut [0; 100]).is_err();
        self.0.set_nonblocking(false).unwrap();
        nothing
    }

    fn send(&self, datagram: &[u8], to: SocketAddr) {
        self.0.send_to(datagram, to).unwrap();
    }
}

/// An answer with that public address, or an error response.
fn answer(id: &TransactionId, public: Option<IpAddr>) -> Vec<u8> {
    let (kind, attribute) = match public {
        Some(IpAddr::V4(ip)) => (1, [&[0, 1, 0, 8, 0, 1, 0, 9][..], &ip.octets()].concat()),
        Some(IpAddr::V6(ip)) => (1, [&[0, 1, 0, 20, 0, 2, 0, 9][..], &ip.octets()].concat()),
        None => (0x11, [&[0, 9, 0, 8, 0, 0, 4, 1][..], b"    "].concat()),
    };
    let length = u8::try_from(attribute.len()).unwrap();
    [&[1, kind, 0, length], &request(id)[4..], &attribute].concat()
}

fn inquiries(servers: &[&Server], rto: Duration) -> Inquiries {
    let servers: Vec<_> = servers.iter().map(|server| server.address()).collect();
    let local = servers[0].ip();
    let mut inquiries = Inquiries::default();
    inquiries.add(Inquiry::start(local, &servers, rto, Instant::now()).unwrap());
    inquiries
}

/// Waits for the end of the one inquiry.
fn outcome(inquiries: &mut Inquiries) -> inquiry::Outcome {
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, mut outcomes) = inquiries.step(&[], Some(end)).unwrap();
        if let Some((_, outcome)) = outcomes.pop() {
            assert!(inquiries.is_empty());
            return outcome;
        }
        assert!(Instant::now() < end, "no outcome");
    }
}

/// Sends what is due now, and reads what is there.
fn step(inquiries: &mut Inquiries) {
    let (_, outcomes) = inquiries.step(&[], Some(Instant::now())).unwrap();
    assert!(outcomes.is_empty(), "{outcomes:?}");
}

/// What is told to who asks from there, and a lie.
fn public(family: IpAddr) -> IpAddr {
    if family.is_ipv4() { "203.0.113.7" } else { "2001:db8:113::7" }.parse().unwrap()
}

fn lie(family: IpAddr) -> IpAddr {
    if family.is_ipv4() { "198.51.100.66" } else { "2001:db8:666::66" }.parse().unwrap()
}

#[test]
fn an_answer_ends_it_and_only_the_first_server_is_asked_at_first() {
    for family in FAMILIES {
        let (server, other) = (Server::new(family), Server::new(family));
        let mut inquiries = inquiries(&[&server, &other], SLOW);
        step(&mut inquiries);
        let (id, from) = server.request();
        server.send(&answer(&id, Some(public(family))), from);
        assert_eq!(outcome(&mut inquiries), Ok((public(family), server.address())));
        assert!(other.has_nothing());
    }
}

/// Requests that are lost are sent again with the same id, seven in all to the first
/// server, six to the second; an answer to any of them serves.
#[test]
fn it_is_given_up_after_seven_requests() {
    for family in FAMILIES {
        let (server, other) = (Server::new(family), Server::new(family));
        let mut inquiries = inquiries(&[&server, &other], FAST);
        assert_eq!(outcome(&mut inquiries), Err("no STUN server answers".into()));
        let ids: Vec<_> = (0..7).map(|_| server.request().0).collect();
        assert!(ids.iter().all(|id| *id == ids[0]));
        let others: Vec<_> = (0..6).map(|_| other.request().0).collect();
        assert!(others.iter().all(|id| *id == others[0] && *id != ids[0]));
        assert!(server.has_nothing() && other.has_nothing());
    }
}

#[test]
fn a_late_answer_serves_as_long_as_anybody_waits() {
    for family in FAMILIES {
        let server = Server::new(family);
        // All are sent, and the last one is waited for.
        let rto = Duration::from_millis(10);
        let mut inquiries = inquiries(&[&server], rto);
        let thread = thread::spawn(move || {
            let requests: Vec<_> = (0..5).map(|_| server.request()).collect();
            server.send(&answer(&requests[0].0, Some(public(family))), requests[0].1);
        });
        assert_eq!(outcome(&mut inquiries).map(|(ip, _)| ip), Ok(public(family)));
        thread.join().unwrap();
    }
}

#[test]
fn forged_and_damaged_answers_change_nothing() {
    for family in FAMILIES {
        let (server, forger) = (Server::new(family), Server::new(family));
        let mut inquiries = inquiries(&[&server], SLOW);
        step(&mut inquiries);
        let (id, from) = server.request();
        let good = answer(&id, Some(public(family)));
        let wrong = answer(&id, Some(lie(family)));
        // Another source, even with the right id; another id; no cookie; cut; too long.
        forger.send(&wrong, from);
        let mut other_id = id;
        other_id[0] ^= 1;
        server.send(&answer(&other_id, Some(lie(family))), from);
        let mut no_cookie = wrong.clone();
        no_cookie[4] = 0;
        server.send(&no_cookie, from);
        (0..good.len()).for_each(|length| server.send(&wrong[..length], from));
        server.send(&[&wrong[..], &[0; 4]].concat(), from);
        server.send(&[0; 1500], from);
        step(&mut inquiries);
        step(&mut inquiries);
        server.send(&good, from);
        assert_eq!(outcome(&mut inquiries), Ok((public(family), server.address())));
    }
}

#[test]
fn a_server_that_refuses_is_asked_no_more_and_the_next_one_serves() {
    for family in FAMILIES {
        let (server, other) = (Server::new(family), Server::new(family));
        let mut inquiries = inquiries(&[&server, &other], FAST * 100);
        step(&mut inquiries);
        let (id, from) = server.request();
        server.send(&answer(&id, None), from);
        let thread = thread::spawn(move || {
            let (id, from) = other.request();
            other.send(&answer(&id, Some(public(family))), from);
        });
        assert_eq!(outcome(&mut inquiries).map(|(ip, _)| ip), Ok(public(family)));
        assert!(server.has_nothing());
        thread.join().unwrap();
    }
}

#[test]
fn addresses_that_cannot_be_are_refused() {
    let of_v4 = ["0.0.0.0", "127.0.0.1", "224.0.0.1", "2001:db8::1"];
    // One that is mapped is of the other family.
    let of_v6 = ["::", "::1", "ff02::1", "192.0.2.1", "::ffff:192.0.2.1"];
    for (family, addresses) in FAMILIES.into_iter().zip([&of_v4[..], &of_v6]) {
        let all = addresses.iter().map(|ip| Some(ip.parse().unwrap()));
        for public in all.chain([None]) {
            let server = Server::new(family);
            let mut inquiries = inquiries(&[&server], SLOW);
            step(&mut inquiries);
            let (id, from) = server.request();
            server.send(&answer(&id, public), from);
            let cause = outcome(&mut inquiries).unwrap_err();
            let who = format!("the answer of {} is of no use", server.address());
            assert!(cause.starts_with(&who), "{cause}");
        }
    }
}

#[test]
fn what_cannot_be_asked_for_says_so() {
    let start = |local: &str, server: &str| {
        let servers = [server.parse().unwrap()];
        Inquiry::start(local.parse().unwrap(), &servers, SLOW, Instant::now()).unwrap_err()
    };
    let family = "no STUN server has an address of this family";
    assert_eq!(start("127.0.0.1", "[::1]:3478"), family);
    assert_eq!(start("::1", "127.0.0.1:3478"), family);
    assert_eq!(start("192.0.2.250", "127.0.0.1:3478"), inquiry::NOT_YET);
}

fn section(servers: &[&str], manual: &[(&str, &str)]) -> Section {
    let mut section = section_of(servers.iter().map(ToString::to_string).collect());
    let manual = manual.iter().map(|(from, to)| (from.to_string(), to.to_string()));
    section.set("manualMapping", Value::Map(manual.collect()));
    section
}

fn lookup() -> Lookup {
    Arc::new(|host, _| panic!("{host} was looked up"))
}

fn flow(src: &str, dst: &str) -> Flow {
    let tag = Tag::new(1, 1).unwrap();
    Flow {
        counted: None,
        id: FlowId::new(Protocol::Tcp, src.parse().unwrap(), dst.parse().unwrap()).unwrap(),
        tag,
        label: 0,
        start: Timestamp(0),
        is_undated: false,
        source: "test",
        application: None,
        news: None,
    }
}

#[test]
fn either_end_is_rewritten_and_its_port_stays() {
    let manual = [("10.0.0.5", "192.0.2.5"), ("fd00::5", "2001:db8::5"), ("10.0.0.1", "192.0.2.1")];
    let stun = Stun::start(&section(&[], &manual), &lookup()).unwrap();
    for (src, dst, new) in [
        ("10.0.0.5:1", "198.51.100.1:2", Some(("192.0.2.5:1", "198.51.100.1:2"))),
        ("198.51.100.1:1", "10.0.0.5:2", Some(("198.51.100.1:1", "192.0.2.5:2"))),
        ("10.0.0.5:1", "10.0.0.1:1", Some(("192.0.2.5:1", "192.0.2.1:1"))),
        ("[fd00::5]:1", "[fd00::6]:2", Some(("[2001:db8::5]:1", "[fd00::6]:2"))),
        ("[::ffff:10.0.0.5]:1", "198.51.100.1:2", Some(("192.0.2.5:1", "198.51.100.1:2"))),
        ("10.0.0.6:1", "192.0.2.5:2", None),
    ] {
        let outside = stun.outside(&flow(src, dst)).map(|flow| flow.id);
        assert_eq!(outside, new.map(|(src, dst)| flow(src, dst).id), "{src} {dst}");
    }
    assert_eq!(
        stun.report(),
        "10.0.0.5 is 192.0.2.5, fd00::5 is 2001:db8::5, 10.0.0.1 is 192.0.2.1"
    );
}

#[test]
fn servers_are_named_in_all_forms() {
    for (text, expected) in [
        ("stun.example.org", "stun.example.org:3478"),
        ("stun.example.org:19302", "stun.example.org:19302"),
        ("stun:stun.example.org:19302", "stun.example.org:19302"),
        ("STUN:Stun.example.org", "stun.example.org:3478"),
        ("stun:192.0.2.1", "192.0.2.1:3478"),
        ("stun:[2001:db8::1]:1", "[2001:db8::1]:1"),
        ("[2001:db8::1]", "[2001:db8::1]:3478"),
        ("stun:3478", "stun:3478"),
        ("stun", "stun:3478"),
    ] {
        assert_eq!(server(text).unwrap().to_string(), expected, "{text}");
    }
    for text in ["stuns:stun.example.org", "stun:", "stun:a?transport=udp", "a:b", ""] {
        server(text).unwrap_err();
    }
}

#[test]
fn problems_name_their_key() {
    let manual = [
        ("x", "192.0.2.1"),
        ("10.0.0.1", "2001:db8::1"),
        ("10.0.0.2", "0.0.0.0"),
        ("10.0.0.3", "192.0.2.1"),
        ("::ffff:10.0.0.3", "192.0.2.1"),
    ];
    assert_eq!(
        problems(&section(&["a b"], &manual)),
        [
            "stunServers: \"a b\": \"a b\" is not the name of a host",
            "manualMapping: \"x\" is not an IP address",
            "manualMapping: 10.0.0.1 and 2001:db8::1 are of two families",
            "manualMapping: 0.0.0.0 is not the address of one host",
            "manualMapping: 10.0.0.3 is given a second time",
        ]
    );
    assert!(problems(&default_section()).is_empty());
}

#[test]
fn private_addresses_are_told_from_others() {
    for (ip, private) in [
        ("10.0.0.1", true),
        ("172.31.255.255", true),
        ("172.32.0.0", false),
        ("192.168.0.1", true),
        ("100.64.0.1", true),
        ("100.127.255.255", true),
        ("100.128.0.0", false),
        ("169.254.0.1", false),
        ("127.0.0.1", false),
        ("192.0.2.1", false),
        ("fc00::1", true),
        ("fdff::1", true),
        ("fe80::1", false),
        ("::1", false),
        ("2001:db8::1", false),
    ] {
        assert_eq!(is_private(ip.parse().unwrap()), private, "{ip}");
    }
}

/// Whether this host has a private address or none: its thread stops while it waits.
#[test]
fn stopping_waits_for_nobody() {
    let server = Server::new(FAMILIES[0]);
    let section = section(&[&server.address().to_string(), "stun.example"], &[]);
    let (called, calls) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let lookup: Lookup = Arc::new(move |_: &str, _| {
        let _ = called.send(());
        let _ = released.lock().unwrap().recv();
        Err(std::io::Error::other("the test is over"))
    });
    let stun = Stun::start_at(&section, &lookup, SLOW).unwrap();
    calls.recv_timeout(PATIENCE).unwrap();
    drop(stun);
    drop(release);
}
