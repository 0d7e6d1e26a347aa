//! Public addresses of a host behind NAT: a real STUN server (coturn) outside of a real
//! NAT, and a responder of the test that loses, delays, forges and cuts.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{json, Value};
use tempfile::TempDir;

use super::responder::{Manner, Responder};
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
    // Nor is it an error that there is nothing to ask for; but that is said.
    host.ip("-6 address flush dev near");
    let (printed, good) = sample(&host, &["--stun-server", "192.0.2.2"]);
    let line = "info: this host has no private address to ask for\n";
    assert!(good && printed == line, "{printed}");
}

/// The addresses of a test in one family: those of the host by their last octets.
struct Family {
    /// In front of the last octet: of the host, and of what the responder says.
    private: &'static str,
    public: &'static str,
    length: u8,
    server: &'static str,
    /// Who the flows go to.
    remote: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        private: "10.0.0.",
        public: "203.0.113.",
        length: 32,
        server: "192.0.2.53",
        remote: "198.51.100.1",
    },
    Family {
        private: "fd00::",
        public: "2001:db8:113::",
        length: 128,
        server: "2001:db8::53",
        remote: "2001:db8:1::1",
    },
];

impl Family {
    fn private(&self, last: u8) -> String {
        format!("{}{last}", self.private)
    }

    fn public(&self, last: u8) -> String {
        format!("{}{last}", self.public)
    }

    /// Of the server.
    fn end(&self) -> String {
        SocketAddr::new(self.server.parse().expect("an address"), 3478).to_string()
    }

    /// The arguments of ip(8) that give the host an address.
    fn adds(&self, address: &str) -> String {
        let nodad = if self.length == 32 { "" } else { " nodad" };
        format!("address add {address}/{} dev lo{nodad}", self.length)
    }

    /// A host with that private address, and a responder there.
    fn host(&self, last: u8, manner: Manner) -> (Namespace, Responder) {
        let host = Namespace::new();
        host.ip(&self.adds(&self.private(last)));
        host.ip(&self.adds(self.server));
        let responder = Responder::start(&host, &self.end(), manner);
        (host, responder)
    }
}

#[test]
fn nothing_waits_for_an_answer_and_only_a_true_one_counts() {
    if skip_unless_root() {
        return;
    }
    for family in FAMILIES {
        let (host, responder) = family.host(5, Manner::Silent);
        let sink = Sink::new(&host, "127.0.0.1:9999");
        let mut daemon = Daemon::start_in(
            &host,
            // As the glowd of 2024 would have been told.
            json!({
                "stunServers": [format!("stun:{}", family.end())],
                "plugins": { "namedPipe": {} },
                "backends": { "firefly": {
                    "sendToDestination": false, "collectors": ["127.0.0.1:9999"],
                }},
            }),
        );
        let mut tell = |last| {
            let flow = format!("tcp {} 1 {} 2 2 16\n", family.private(last), family.remote);
            daemon.write(&format!("start {flow}end {flow}"));
            // The answer may come between the two.
            let (_, end) = (sink.next(), sink.next());
            end.0
        };
        // It is asked, and has not answered.
        wait_for("a request", || (responder.asked_by(&family.private(5)) > 0).then_some(()));
        assert_eq!(tell(5), family.private(5));
        responder.set(Manner::Forging);
        responder.wait_until_asked(&family.private(5));
        responder.wait_until_asked(&family.private(5));
        assert_eq!(tell(5), family.private(5));
        // Three or more requests late.
        responder.set(Manner::Honest);
        wait_for("the answer", || (tell(5) == family.public(5)).then_some(()));

        // Addresses that come and go.
        host.ip(&family.adds(&family.private(6)));
        wait_for("the answer", || (tell(6) == family.public(6)).then_some(()));
        host.ip(&format!("address del {}/{} dev lo", family.private(5), family.length));
        wait_for("the address to go", || (tell(5) == family.private(5)).then_some(()));
        assert_eq!(tell(6), family.public(6));
        // It is stopped while it asks.
        responder.set(Manner::Silent);
        host.ip(&family.adds(&family.private(7)));
        responder.wait_until_asked(&family.private(7));
        assert_eq!(tell(7), family.private(7));
        daemon.stop(&[]);
    }
}

/// It is then perhaps in another network, although the list of addresses is the same.
#[test]
fn an_address_that_goes_and_comes_back_at_once_is_asked_for_again() {
    if skip_unless_root() {
        return;
    }
    for family in FAMILIES {
        let (host, responder) = family.host(5, Manner::Honest);
        let daemon = Daemon::start_in(
            &host,
            json!({
                "plugins": { "namedPipe": {} },
                "backends": { "firefly": { "stun": { "stunServers": [family.end()] } } },
            }),
        );
        let is = |last| format!("{} is {} outside", family.private(last), family.public(last));
        daemon.wait_for_line(&is(5));
        // From here on changes are not looked at for a second.
        host.ip(&family.adds(&family.private(6)));
        daemon.wait_for_line(&is(6));
        daemon.wait_for_line(&format!("debug: backends.firefly.stun: {}", is(5)));
        let before = [5, 6].map(|last| responder.asked_by(&family.private(last)));
        host.ip(&format!("address del {}/{} dev lo", family.private(5), family.length));
        host.ip(&family.adds(&family.private(5)));
        // All of them, since the host may be elsewhere.
        for (last, before) in [5, 6].into_iter().zip(before) {
            let asked = || (responder.asked_by(&family.private(last)) > before).then_some(());
            wait_for("a request", asked);
        }
        daemon.stop(&[]);
    }
}

#[test]
fn an_address_is_asked_for_again_and_a_refusal_takes_nothing_away() {
    if skip_unless_root() {
        return;
    }
    for family in FAMILIES {
        let (host, responder) = family.host(5, Manner::Refusing);
        let daemon = Daemon::start_in(
            &host,
            json!({
                "plugins": { "namedPipe": {} },
                "backends": { "firefly": {
                    "stun": { "stunServers": [family.end()], "refresh": 1 },
                }},
            }),
        );
        let (private, public) = (family.private(5), family.public(5));
        let refused = format!(
            "{private}: the answer of {} is of no use: the server refuses with error 401; \
             fireflies have {private}",
            family.end(),
        );
        daemon.wait_for_line(&refused);
        responder.set(Manner::Honest);
        let is = format!("{private} is {public} outside");
        daemon.wait_for_line(&is);
        responder.wait_until_asked(&private);
        daemon.wait_for_line(&format!("debug: backends.firefly.stun: {is}"));
        responder.set(Manner::Refusing);
        let kept = format!("fireflies have {public}");
        daemon.wait_for_line(&kept);
        daemon.signal(Signal::SIGUSR1);
        daemon.wait_for_line(&format!("public addresses: {private} is {public}"));
        daemon.stop(&[&refused, &kept]);
    }
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
