//! What it costs to list all sockets once a period: 50,000 real ones on loopback, the
//! ends of 25,000 connections. CPU time of the thread that lists, kernel included, as the
//! share of one core at a period of a second; and of the whole daemon whose plugin netlink
//! gives each of them a tag.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use glowd::flow::Protocol;
use glowd::net::processes::Processes;
use glowd::net::sock_diag::{extension, Condition, Coverage, Diag, Filter, Query, States};
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::time::{clock_gettime, ClockId};

use crate::control::in_own_network;
use crate::load;
use crate::process::Daemon;
use crate::row;

pub(crate) const SECTIONS: &[crate::Section] = &[("scan", scan), ("find", find)];

/// Fewer than there are ephemeral ports.
const PER_LISTENER: usize = 5000;
/// A process must not have more files than root without CAP_SYS_RESOURCE may.
const PER_PROCESS: usize = 8500;
/// Tells this program to hold that many connections.
const HOLD: &str = "GLOWD_BENCH_HOLD";

/// If this process was started for that: keeps both ends of connections until its input
/// ends.
pub(crate) fn hold() -> bool {
    let Some(count) = std::env::var(HOLD).ok() else { return false };
    let count: usize = count.parse().unwrap();
    let limits = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, limits.1, limits.1).unwrap();
    let mut ends = Vec::new();
    while ends.len() < 2 * count {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        for _ in 0..PER_LISTENER.min(count - ends.len() / 2) {
            ends.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            ends.push(listener.accept().unwrap().0);
        }
    }
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    true
}

/// Processes that hold connections; they end with it.
#[derive(Default)]
pub(crate) struct Held(Vec<Child>);

impl Held {
    pub(crate) fn add(&mut self, connections: usize) {
        let mut left = connections;
        while left > 0 {
            let count = left.min(PER_PROCESS);
            left -= count;
            let mut child = Command::new("/proc/self/exe")
                .env(HOLD, count.to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
            self.0.push(child);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

/// The share of a core, in percent, if the work is done once a second; the cheapest of
/// some times, since others use the machine too.
fn share(mut work: impl FnMut()) -> f64 {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let once = |_| {
        let before = now();
        work();
        (now() - before).as_secs_f64() * 100.0
    };
    (0..7).map(once).fold(f64::INFINITY, f64::min)
}

/// All that a period takes: TCP and UDP of both families. Returns how many were told.
fn period(diag: &mut Diag, extensions: u8, filter: Option<&Filter>) -> usize {
    let mut told = 0;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let query = Query { protocol, family: None, states: States::OPEN, extensions, filter };
        let coverage = diag.dump(&query, |socket| {
            told += usize::from(socket.flow().is_ok() && socket.inode != 0);
        });
        assert_eq!(coverage, Ok(Coverage::Whole));
    }
    told
}

fn scan() {
    in_own_network();
    let mut diag = Diag::open().unwrap();
    let none = share(|| assert_eq!(period(&mut diag, 0, None), 0));
    row("sockets: all listed once a second, 0", format!("{none:.2} %"), "");
    let mut held = Held::default();
    held.add(2_500);
    let few = share(|| assert_eq!(period(&mut diag, 0, None), 5_000));
    row("the same, 5,000", format!("{few:.2} %"), "");
    held.add(22_500);
    let all = share(|| assert_eq!(period(&mut diag, 0, None), 50_000));
    row("the same, 50,000", format!("{all:.2} %"), "< 5 % of a core");
    let info = share(|| assert_eq!(period(&mut diag, extension::INFO, None), 50_000));
    row("the same with tcp_info", format!("{info:.2} %"), "< 10 % of a core");
    let nobody = Filter::any_of([&[Condition::RemotePort(1, 1)][..]]).unwrap();
    let refused = share(|| assert_eq!(period(&mut diag, 0, Some(&nobody)), 0));
    row("the same, the kernel leaves out all", format!("{refused:.2} %"), "");
    let processes = Processes::open().unwrap();
    let who = share(|| {
        let mut told = 0;
        processes.each(|_| told += 1).unwrap();
        assert!(told >= 50_000);
    });
    row("which process holds which of them", format!("{who:.2} %"), "");
    drop(held);
}

/// The whole daemon, all of whose threads count.
fn find() {
    in_own_network();
    let mut held = Held::default();
    held.add(25_000);
    let rules = serde_json::json!([
        { "localPort": 1, "experiment": 2, "activity": 16 },
        { "remotePrefix": "::1", "experiment": 2, "activity": 15 }
    ]);
    for immediate in ["false", "true"] {
        let daemon = Daemon::start(serde_json::json!({
            "maxFlows": 60_000,
            "plugins": {
                "namedPipe": {},
                "netlink": { "rules": rules, "includePrivate": true, "immediate": immediate }
            },
            "backends": { "firefly": { "sendToDestination": false, "collectors": ["127.0.0.1:9"] } },
        }));
        while daemon.open_flows() < 50_000 {}
        let measured = format!("{:.2} %", load::share(&daemon));
        let what = format!("plugin netlink, 50,000 connections, immediate {immediate}");
        row(&what, measured, "< 5 % of a core");
        row("the same, resident memory", format!("{:.1} MB", daemon.resident()), "");
        daemon.stop();
    }
}
