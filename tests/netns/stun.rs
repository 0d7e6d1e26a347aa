//! Public addresses of a host behind NAT: a real STUN server (coturn) outside of a real
//! NAT, and a responder of the test that loses, delays, forges and cuts.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{json, Value};
use tempfile::TempDir;

use crate::common::{
    glowd_words, receive, skip_unless_root, wait_for, Daemon, Namespace, PATIENCE,
};

/// A receiver of fireflies.
struct Sink(UdpSocket);

impl Sink {
    fn new(host: &Namespace, address: &str) -> Self {
        let socket = host.enter(|| UdpSocket::bind(address).expect("a sink"));
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Sink(socket)
    }

    /// The addresses that the next firefly says: source and destination.
    fn next(&self) -> (String, String) {
        let mut buffer = [0; 2048];
        let length = receive(&self.0, &mut buffer).expect("a firefly");
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let at = text.find('{').expect("a document");
        let firefly: Value = serde_json::from_str(&text[at..]).expect("JSON");
        let end = |key: &str| firefly["flow-id"][key].as_str().expect("an address").to_owned();
        (end("src-ip"), end("dst-ip"))
    }
}

fn pair(src: &str, dst: &str) -> (String, String) {
    (src.to_owned(), dst.to_owned())
}

/// coturn, with a folder for its files. Killed when dropped.
struct Coturn(Child, #[allow(dead_code)] TempDir); // the folder is held for its Drop

impl Coturn {
    fn start(host: &Namespace, addresses: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("turnserver");
        // No configuration file; no accounts, no TCP, no relaying.
        command.args(["-n", "--no-cli", "--stun-only", "--no-tcp", "--no-tls", "--no-dtls"]);
        command.args(["--log-file", "stdout", "-p", "3478"]);
        command.arg("--pidfile").arg(dir.path().join("pid"));
        command.arg("--userdb").arg(dir.path().join("db"));
        addresses.iter().for_each(|address| {
            command.args(["-L", address]);
        });
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Coturn(host.enter(|| command.spawn().expect("turnserver")), dir)
    }
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `glowd stun sample` prints in there, and whether it succeeds.
fn sample(host: &Namespace, arguments: &[&str]) -> (String, bool) {
    let mut words = glowd_words();
    let mut command = Command::new(words.next().expect("glowd"));
    command.args(words).args(["stun", "sample"]).args(arguments);
    let output = host.enter(|| command.output().expect("to run glowd"));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout) + &text(&output.stderr), output.status.success())
}

/// A host with private addresses, a router that translates them, and the world outside
/// with a server.
fn behind_nat() -> [Namespace; 3] {
    let (host, router, outside) = (Namespace::new(), Namespace::new(), Namespace::new());
    for (end, device, near, far) in [
        (&host, "in", ["10.0.0.2/24", "fd00::2/64"], ["10.0.0.1/24", "fd00::1/64"]),
        (&outside, "out", ["192.0.2.2/24", "2001:db8::2/64"], ["192.0.2.1/24", "2001:db8::1/64"]),
    ] {
        let peer = router.path();
        end.ip(&format!("link add near type veth peer name {device} netns {peer}"));
        for (namespace, device, [v4, v6]) in [(end, "near", near), (&router, device, far)] {
            namespace.ip(&format!("address add {v4} dev {device}"));
            namespace.ip(&format!("-6 address add {v6} dev {device} nodad"));
            namespace.ip(&format!("link set {device} up"));
        }
    }
    host.ip("route add default via 10.0.0.1");
    host.ip("-6 route add default via fd00::1");
    router.sysctl("ipv4/ip_forward", "1");
    router.sysctl("ipv6/conf/all/forwarding", "1");
    for family in ["ip", "ip6"] {
        router.run(&format!("nft add table {family} nat"));
        let hook = "{ type nat hook postrouting priority 100 ; }";
        router.run(&format!("nft add chain {family} nat after {hook}"));
        router.run(&format!("nft add rule {family} nat after oifname out masquerade"));
    }
    [host, router, outside]
}

#[test]
fn fireflies_of_a_host_behind_nat_have_its_public_addresses() {
    if skip_unless_root() {
        return;
    }
    let [host, _router, outside] = behind_nat();
    let _coturn = Coturn::start(&outside, &["192.0.2.2", "2001:db8::2"]);
    let sink = Sink::new(&outside, "[::]:9999");
    let relayed = Sink::new(&host, "127.0.0.1:9998");
    let mut daemon = Daemon::start_in(
        &host,
        json!({
            "plugins": {
                "namedPipe": {},
                "api": {},
                "firefly": { "bindPort": 9997, "relay": ["127.0.0.1:9998"] },
            },
            "backends": { "firefly": {
                "sendToDestination": false,
                "collectors": ["192.0.2.2:9999"],
                "stun": {
                    // The first one of each family is not there.
                    "stunServers": ["192.0.2.99", "192.0.2.2", "stun:[2001:db8::2]:3478"],
                    "manualMapping": { "10.0.0.77": "192.0.2.77" },
                },
            }},
        }),
    );
    daemon.wait_for_line("10.0.0.2 is 192.0.2.1 outside, says 192.0.2.2:3478");
    daemon.wait_for_line("fd00::2 is 2001:db8::1 outside, says [2001:db8::2]:3478");
    for (line, told) in [
        ("10.0.0.2 1 198.51.100.1 2", pair("192.0.2.1", "198.51.100.1")),
        // Where the host received.
        ("198.51.100.1 2 10.0.0.2 1", pair("198.51.100.1", "192.0.2.1")),
        ("fd00::2 1 2001:db8:1::1 2", pair("2001:db8::1", "2001:db8:1::1")),
        ("10.0.0.77 1 10.0.0.2 2", pair("192.0.2.77", "192.0.2.1")),
        // Others' private addresses are not ours to translate.
        ("10.0.0.3 1 10.0.0.4 2", pair("10.0.0.3", "10.0.0.4")),
    ] {
        for state in ["start", "end"] {
            daemon.write(&format!("{state} tcp {line} 2 16\n"));
            assert_eq!(sink.next(), told, "{state} {line}");
        }
    }

    // What comes in stays as it is where it is passed on, and in the API.
    let firefly = json!({
        "version": 1,
        "flow-lifecycle": { "state": "start", "start-time": "2026-01-02T03:04:05Z" },
        "flow-id": { "afi": "ipv4", "src-ip": "10.0.0.2", "dst-ip": "198.51.100.9",
                     "protocol": "tcp", "src-port": 5, "dst-port": 6 },
        "context": { "experiment-id": 2, "activity-id": 16 },
    });
    let sender = host.enter(|| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
    sender.send_to(firefly.to_string().as_bytes(), "127.0.0.1:9997").expect("to send");
    assert_eq!(relayed.next(), pair("10.0.0.2", "198.51.100.9"));
    assert_eq!(sink.next(), pair("192.0.2.1", "198.51.100.9"));
    let (_, flows) = host.enter(|| daemon.get("/flows"));
    assert_eq!(flows["flows"][0]["src"], "10.0.0.2:5");

    daemon.signal(Signal::SIGUSR1);
    let all = "public addresses: 10.0.0.77 is 192.0.2.77, 10.0.0.2 is 192.0.2.1, \
               fd00::2 is 2001:db8::1";
    daemon.wait_for_line(all);
    let conf = daemon.dir().join("conf.json");
    let (printed, good) = sample(&host, &["--conf", conf.to_str().expect("UTF-8")]);
    assert!(good, "{printed}");
    let lines = [
        "10.0.0.77 192.0.2.77 manualMapping\n",
        "10.0.0.2 192.0.2.1 192.0.2.2:3478\n",
        "fd00::2 2001:db8::1 [2001:db8::2]:3478\n",
    ];
    assert_eq!(printed, lines.concat());
    daemon.stop(&[]);
}

/// No configuration, one server by flag, and an address that it cannot be asked for.
#[test]
fn a_sample_tells_what_is_known_and_what_is_not() {
    if skip_unless_root() {
        return;
    }
    let [host, _router, outside] = behind_nat();
    let _coturn = Coturn::start(&outside, &["192.0.2.2"]);
    let (printed, good) = sample(&host, &["--stun-server", "stun:192.0.2.2"]);
    let lines = [
        "10.0.0.2 192.0.2.1 192.0.2.2:3478\n",
        "fd00::2 - no STUN server has an address of this family\n",
    ];
    assert!(good && printed == lines.concat(), "{printed}");
    host.ip("address flush dev near");
    host.ip("-6 address add fd00::2/64 dev near nodad");
    let (printed, good) = sample(&host, &["--stun-server", "192.0.2.2"]);
    assert!(!good && printed.contains("fd00::2: no STUN server has"), "{printed}");
    // Nor is it an error that there is nothing to ask for.
    host.ip("-6 address flush dev near");
    assert_eq!(sample(&host, &["--stun-server", "192.0.2.2"]), (String::new(), true));
}

/// How a responder answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Not at all.
    Silent,
    /// With what must not be believed.
    Forging,
    /// With an error response.
    Refusing,
    /// With 203.0.113.N, N being the last octet of who asks.
    Honest,
}

/// A STUN server of the test's.
struct Responder {
    manner: Arc<Mutex<Manner>>,
    asked: Arc<Mutex<Vec<SocketAddr>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    fn start(host: &Namespace, address: &str, manner: Manner) -> Self {
        let [socket, other] = host
            .enter(|| [address, "127.0.0.1:0"].map(|at| UdpSocket::bind(at).expect("a socket")));
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        let (manner, asked) = (Arc::new(Mutex::new(manner)), Arc::<Mutex<Vec<_>>>::default());
        let over = Arc::new(AtomicBool::new(false));
        let shared = (manner.clone(), asked.clone(), over.clone());
        let answer = move || {
            let (manner, asked, over) = shared;
            let mut buffer = [0; 100];
            while !over.load(Ordering::Relaxed) {
                let Ok((20, from)) = socket.recv_from(&mut buffer) else { continue };
                let manner = *manner.lock().expect("no panic");
                respond(&socket, &other, &buffer[..20], from, manner);
                asked.lock().expect("no panic").push(from);
            }
        };
        Responder { manner, asked, over, thread: Some(thread::spawn(answer)) }
    }

    fn set(&self, manner: Manner) {
        *self.manner.lock().expect("no panic") = manner;
    }

    /// How often it was asked by that address.
    fn asked_by(&self, address: &str) -> usize {
        let address: IpAddr = address.parse().expect("an address");
        let asked = self.asked.lock().expect("no panic");
        asked.iter().filter(|from| from.ip() == address).count()
    }

    fn wait_until_asked(&self, address: &str) {
        let before = self.asked_by(address);
        wait_for("a request", || (self.asked_by(address) > before).then_some(()));
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// By RFC 8489, independently of glowd's own code.
fn respond(
    socket: &UdpSocket,
    other: &UdpSocket,
    request: &[u8],
    from: SocketAddr,
    manner: Manner,
) {
    assert_eq!(request[..8], [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
    let IpAddr::V4(ip) = from.ip() else { panic!("of IPv4") };
    let last = ip.octets()[3];
    let success = |public: [u8; 4]| {
        let mut message = vec![1, 1, 0, 12];
        message.extend(&request[4..]);
        message.extend([0, 0x20, 0, 8, 0, 1, 0, 0]);
        message.extend(public.iter().zip(&request[4..8]).map(|(octet, mask)| octet ^ mask));
        message
    };
    let send = |message: &[u8]| {
        socket.send_to(message, from).expect("to answer");
    };
    match manner {
        Manner::Silent => {}
        Manner::Honest => send(&success([203, 0, 113, last])),
        Manner::Refusing => {
            send(&[&[1, 0x11, 0, 8], &request[4..], &[0, 9, 0, 4, 0, 0, 4, 1]].concat());
        }
        Manner::Forging => {
            let lie = success([198, 51, 100, 66]);
            other.send_to(&lie, from).expect("to answer");
            let mut other_id = lie.clone();
            other_id[19] ^= 1;
            send(&other_id);
            (0..lie.len()).for_each(|length| send(&lie[..length]));
            send(&[&lie[..], b"more"].concat());
        }
    }
}

#[test]
fn nothing_waits_for_an_answer_and_only_a_true_one_counts() {
    if skip_unless_root() {
        return;
    }
    let host = Namespace::new();
    host.ip("address add 10.0.0.5/32 dev lo");
    host.ip("address add 192.0.2.53/32 dev lo");
    let responder = Responder::start(&host, "192.0.2.53:3478", Manner::Silent);
    let sink = Sink::new(&host, "127.0.0.1:9999");
    let mut daemon = Daemon::start_in(
        &host,
        // As the glowd of 2024 would have been told.
        json!({
            "stunServers": ["stun:192.0.2.53:3478"],
            "plugins": { "namedPipe": {} },
            "backends": { "firefly": {
                "sendToDestination": false, "collectors": ["127.0.0.1:9999"],
            }},
        }),
    );
    let mut tell = |address: &str| {
        let flow = format!("tcp {address} 1 198.51.100.1 2 2 16\n");
        daemon.write(&format!("start {flow}end {flow}"));
        // The answer may come between the two.
        let (_, end) = (sink.next(), sink.next());
        end.0
    };
    // It is asked, and has not answered.
    wait_for("a request", || (responder.asked_by("10.0.0.5") > 0).then_some(()));
    assert_eq!(tell("10.0.0.5"), "10.0.0.5");
    responder.set(Manner::Forging);
    responder.wait_until_asked("10.0.0.5");
    responder.wait_until_asked("10.0.0.5");
    assert_eq!(tell("10.0.0.5"), "10.0.0.5");
    // Three or more requests late.
    responder.set(Manner::Honest);
    wait_for("the answer", || (tell("10.0.0.5") == "203.0.113.5").then_some(()));

    // Addresses that come and go.
    host.ip("address add 10.0.0.6/32 dev lo");
    wait_for("the answer", || (tell("10.0.0.6") == "203.0.113.6").then_some(()));
    host.ip("address del 10.0.0.5/32 dev lo");
    wait_for("the address to go", || (tell("10.0.0.5") == "10.0.0.5").then_some(()));
    assert_eq!(tell("10.0.0.6"), "203.0.113.6");
    // It is stopped while it asks.
    responder.set(Manner::Silent);
    host.ip("address add 10.0.0.7/32 dev lo");
    responder.wait_until_asked("10.0.0.7");
    assert_eq!(tell("10.0.0.7"), "10.0.0.7");
    daemon.stop(&[]);
}

#[test]
fn an_address_is_asked_for_again_and_a_refusal_takes_nothing_away() {
    if skip_unless_root() {
        return;
    }
    let host = Namespace::new();
    host.ip("address add 10.0.0.5/32 dev lo");
    host.ip("address add 192.0.2.53/32 dev lo");
    let responder = Responder::start(&host, "192.0.2.53:3478", Manner::Refusing);
    let daemon = Daemon::start_in(
        &host,
        json!({
            "plugins": { "namedPipe": {} },
            "backends": { "firefly": {
                "stun": { "stunServers": ["192.0.2.53"], "refresh": 1 },
            }},
        }),
    );
    let refused = "10.0.0.5: the answer of 192.0.2.53:3478 is of no use: the server refuses with \
                   error 401; fireflies have 10.0.0.5";
    daemon.wait_for_line(refused);
    responder.set(Manner::Honest);
    daemon.wait_for_line("10.0.0.5 is 203.0.113.5 outside");
    responder.wait_until_asked("10.0.0.5");
    daemon.wait_for_line("debug: backends.firefly.stun: 10.0.0.5 is 203.0.113.5 outside");
    responder.set(Manner::Refusing);
    let kept = "fireflies have 203.0.113.5";
    daemon.wait_for_line(kept);
    daemon.signal(Signal::SIGUSR1);
    daemon.wait_for_line("public addresses: 10.0.0.5 is 203.0.113.5");
    daemon.stop(&[refused, kept]);
}

/// The whole schedule of RFC 8489, which takes 39.5 seconds.
#[test]
fn a_sample_that_nobody_answers_fails_after_seven_requests() {
    if skip_unless_root() {
        return;
    }
    let host = Namespace::new();
    host.ip("address add 10.0.0.5/32 dev lo");
    let responder = Responder::start(&host, "127.0.0.1:3478", Manner::Silent);
    let (printed, good) = sample(&host, &["--stun-server", "127.0.0.1"]);
    assert!(!good && printed.contains("10.0.0.5: no STUN server answers"), "{printed}");
    assert_eq!(responder.asked_by("10.0.0.5"), 7);
}
