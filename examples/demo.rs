//! The main job, shown: two network namespaces, glowd in one of them, a TCP transfer
//! to the other, a flow that is started and ended by lines in the named pipe, and
//! what the packets and the fireflies say of it. `make demo` runs it, as root.
//!
//! The namespaces have no names and nothing outside them is touched: whatever way
//! this ends, the kernel removes them.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use glowd::net::uninterrupted;
use nix::sys::signal::{kill, SigSet, Signal};
use nix::unistd::{geteuid, Pid};

// The tests' own, of which this uses a part.
#[allow(dead_code)]
#[path = "../tests/common/capture.rs"]
mod capture;
#[allow(dead_code)]
#[path = "../tests/common/netns.rs"]
mod netns;
#[allow(dead_code)]
#[path = "../tests/common/packet.rs"]
mod packet;
#[allow(dead_code)]
#[path = "../tests/common/traffic.rs"]
mod traffic;

use capture::Capture;
use netns::{Pair, DEVICE, HERE, THERE};
use packet::{Packet, TCP};
use traffic::{udp, v6, Connection};

const PATIENCE: Duration = Duration::from_secs(20);
/// The ports of the transfer, and of the datagrams that cut the capture into phases.
const PORTS: (u16, u16) = (40_000, 1094);
const CUTS: (u16, u16) = (9, 1009);
/// Assured Forwarding 11, to show that glowd leaves it alone.
const TRAFFIC_CLASS: u8 = 0x28;

/// Waits until `condition` gives a value.
fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
    }
}

fn main() -> ExitCode {
    if !geteuid().is_root() {
        println!("The demo makes network namespaces and so needs root: sudo make demo");
        return ExitCode::FAILURE;
    }
    // Every thread inherits this, and so a signal ends the wait below.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().expect("to block signals");
    let (end, ended) = mpsc::channel();
    let signalled = end.clone();
    thread::spawn(move || {
        let _ = signals.wait();
        let _ = signalled.send(false);
    });

    let dir = tempfile::tempdir().expect("a folder");
    let pair = Pair::new();
    let (daemon, notified) = Daemon::start(&pair, dir.path());
    let pipe = dir.path().join("np");
    // glowd says its end there, too.
    let ready = notified.try_clone().expect("a copy");
    let show = thread::spawn(move || show(&pair, &ready, &pipe));
    thread::spawn(move || {
        // A panic has said itself why. Nobody hears this if a signal came first.
        let _ = end.send(show.join().is_ok());
    });
    let finished = ended.recv().expect("one of the two");
    // What still runs loses its pipe now, which is not worth a word.
    std::panic::set_hook(Box::new(|_| {}));
    drop(daemon);
    match finished {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The daemon; told to stop, and waited for, when dropped.
struct Daemon(Child);

impl Daemon {
    /// Starts it on the sending host. Its READY comes through the socket.
    fn start(pair: &Pair, dir: &Path) -> (Self, UnixDatagram) {
        let path = |name: &str| dir.join(name).display().to_string();
        let config = format!(
            r#"{{ "pidPath": "{}",
  "plugins": {{ "namedPipe": {{ "pipePath": "{}" }} }},
  "backends": {{
    "marker": {{ "targetInterfaces": ["{DEVICE}"], "markingStrategy": "label" }},
    "firefly": {{}}
  }} }}"#,
            path("glowd.pid"),
            path("np"),
        );
        println!("glowd runs in a network namespace of its own, with this configuration:\n");
        println!("{config}\n");
        fs::write(path("conf.json"), config).expect("to write the configuration");
        let notified = UnixDatagram::bind(path("notify")).expect("a socket");
        let mut command = Command::new(binary());
        command.args(["--conf", &path("conf.json"), "--log-level", "warn", "run"]);
        command.env("NOTIFY_SOCKET", path("notify")).stdin(Stdio::null());
        let child = pair.here.enter(|| command.spawn()).expect("to start glowd");
        (Daemon(child), notified)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"));
        // It may have ended by itself.
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// The daemon beside this program: target/debug/examples/demo, target/debug/glowd.
fn binary() -> PathBuf {
    let demo = std::env::current_exe().expect("this program's path");
    let folder = demo.parent().and_then(Path::parent).expect("its build folder");
    folder.join("glowd")
}

/// Sends datagrams that cut what was captured into phases.
struct Cutter {
    socket: UdpSocket,
    _sink: UdpSocket,
    cuts: u8,
}

impl Cutter {
    /// How many packets had arrived when everything sent so far had.
    fn cut(&mut self, capture: &Capture) -> usize {
        let from = capture.count();
        self.cuts += 1;
        self.socket.send(&[self.cuts]).expect("to send");
        let this = |packet: &Packet| packet.dst_port == CUTS.1 && packet.rest[8] == self.cuts;
        capture.find(from, PATIENCE, this).expect("the datagram arrives");
        capture.count()
    }
}

/// The flow's life, told as it happens.
fn show(pair: &Pair, notified: &UnixDatagram, pipe: &Path) {
    notified.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    uninterrupted(|| notified.recv(&mut [0; 256])).expect("glowd to be ready");

    let fireflies = pair.there.enter(|| UdpSocket::bind("[::]:10514")).expect("a socket");
    let capture = Capture::start(&pair.there, DEVICE);
    let (cut_here, cut_there) = (v6(HERE, CUTS.0), v6(THERE, CUTS.1));
    let mut cutter = Cutter {
        socket: udp(&pair.here, cut_here, cut_there),
        _sink: udp(&pair.there, cut_there, cut_here),
        cuts: 0,
    };
    let (from, to) = (v6(HERE, PORTS.0), v6(THERE, PORTS.1));
    println!("A TCP connection {from} -> {to} carries a megabyte, three times.");
    println!("What arrives on the other host, by its capture:\n");
    println!("{:14}{:>8}  traffic class  flow label  experiment  activity", "", "packets");
    let mut connection = Connection::open((&pair.here, from), (&pair.there, to), TRAFFIC_CLASS);
    let tell = |state: &str| {
        let line = format!("{state} tcp {HERE} {} {THERE} {} 2 15", PORTS.0, PORTS.1);
        println!("    $ echo {line} >{}", pipe.display());
        let mut pipe = OpenOptions::new().write(true).open(pipe).expect("the pipe");
        writeln!(pipe, "{line}").expect("to write to the pipe");
    };

    for (phase, state) in [("before", "start"), ("during", "end"), ("after", "")] {
        let first = cutter.cut(&capture);
        connection.send_bulk(1 << 20);
        let last = cutter.cut(&capture);
        let mut rows = BTreeMap::new();
        for packet in capture.packets(first..last).iter().filter(|packet| of_flow(packet)) {
            *rows.entry((packet.label, packet.traffic_class)).or_insert(0) += 1;
        }
        for ((label, class), count) in rows {
            let (experiment, activity) = decode(label);
            println!(
                "{phase:14}{count:>8}             {class:02x}       {label:05x}  \
                 {experiment:>10}  {activity:>8}"
            );
        }
        if !state.is_empty() {
            tell(state);
            let marked = state == "start";
            wait_for("the packets to change", || {
                let from = cutter.cut(&capture);
                connection.ping_pong(1);
                let wanted = |packet: &Packet| of_flow(packet) && (packet.label != 0) == marked;
                capture.find(from, Duration::from_millis(100), wanted).map(drop)
            });
        }
    }
    println!("\nExperiment 2 is ATLAS, its activity 15 production input (scitags.org).");
    println!("The lowest bits of the traffic class are TCP's own: ECN.");

    println!("\nThe fireflies that arrived on the other host, port 10514:\n");
    fireflies.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    for _ in ["start", "end"] {
        let mut buffer = [0; 2048];
        let length = uninterrupted(|| fireflies.recv(&mut buffer)).expect("a firefly");
        println!("{}\n", String::from_utf8_lossy(&buffer[..length]));
    }
}

fn of_flow(packet: &Packet) -> bool {
    (packet.protocol, packet.src_port, packet.dst_port) == (TCP, PORTS.0, PORTS.1)
}

/// Experiment and activity of a flow label: nine bits in reverse at bit 9, six bits
/// at bit 2; the other five are entropy.
fn decode(label: u32) -> (String, String) {
    if label == 0 {
        return ("-".into(), "-".into());
    }
    let experiment = (label >> 9 & 0x1ff).reverse_bits() >> 23;
    (experiment.to_string(), (label >> 2 & 0x3f).to_string())
}
