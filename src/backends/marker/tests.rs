//! The marker on real interfaces, in network namespaces that the threads of the
//! tests have to themselves. Root.

mod attaching;
mod changes;
mod flows;
mod others;
mod restarts;
mod sharing;

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{unshare, CloneFlags};

use super::attach::{clean, find};
use super::backend::Marker;
use super::programs::{header_limitations, ARPHRD_IP6GRE};
use super::{tag, KEYS};
use crate::config::{Kind, Section, Value};
use crate::dispatcher::Event;
use crate::error::{Class, Result};
use crate::flow::{Flow, FlowId, Protocol, Tag, Timestamp};
use crate::net::interfaces::{self as net, Interface};
use crate::net::netlink::Socket;
use crate::net::tc::{self, Hook};
use crate::part::Context;
use crate::sys::bpf::{Map, OpenObject};

/// Runs `test` on a thread with a network namespace of its own, in which the
/// loopback is up. Whatever it leaves goes with the namespace.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP: needs root for a network namespace");
        return;
    }
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        test();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Runs a command in this thread's namespace; returns what it printed.
fn run(line: &str) -> String {
    // "~" is a blank inside a word.
    let mut words = line.split_whitespace().map(|word| word.replace('~', " "));
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}: {out}{err}");
    out.into_owned()
}

/// A configuration of defaults, but for these.
fn section(changes: &[(&'static str, Value)]) -> Section {
    let value = |key: &crate::config::Key| {
        let change = changes.iter().find(|(name, _)| *name == key.name);
        change.map(|(_, value)| value.clone()).unwrap_or_else(|| match key.kind {
            Kind::Bool => Value::Bool(key.default == "true"),
            Kind::Rules(_) => Value::Rules(Vec::new()),
            Kind::List => Value::List(serde_json::from_str(key.default).unwrap()),
            _ => Value::Text(serde_json::from_str(key.default).unwrap()),
        })
    };
    Section::new("backends.marker", KEYS.iter().map(|key| (key.name, value(key))).collect())
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn interfaces(names: &[&str]) -> (&'static str, Value) {
    ("targetInterfaces", Value::List(names.iter().map(ToString::to_string).collect()))
}

fn marker(changes: &[(&'static str, Value)]) -> Result<Marker> {
    Marker::new(&section(changes), &Context::new(1000))
}

fn clsact() -> Result<Marker> {
    marker(&[("attach", text("clsact"))])
}

/// What tc(8) says of the loopback: its qdiscs and the filters on both hooks.
fn state() -> String {
    let qdiscs = run("tc qdisc show dev lo");
    if !qdiscs.contains("clsact") {
        return qdiscs;
    }
    qdiscs + &run("tc filter show dev lo egress") + &run("tc filter show dev lo ingress")
}

/// The names of the programs that tcx runs there, by bpftool(8).
fn tcx(interface: &str, hook: Hook) -> Vec<String> {
    let index = nix::net::if_::if_nametoindex(interface).unwrap();
    let ids = crate::sys::bpf::tcx_programs(index, hook).unwrap();
    let name = |id: &u32| {
        let shown: serde_json::Value =
            serde_json::from_str(&run(&format!("bpftool -j prog show id {id}"))).unwrap();
        shown["name"].as_str().unwrap().to_owned()
    };
    ids.iter().map(name).collect()
}

/// Somebody else's filter on the loopback, which counts packets.
struct Foreign {
    packets: Map<u32, u64>,
    filter: tc::Filter,
}

impl Foreign {
    const NAME: &'static str = "count.bpf.o:[tc]";

    fn new(hook: Hook, priority: u16) -> Self {
        Self::named(hook, priority, Self::NAME)
    }

    /// One with that free text.
    fn named(hook: Hook, priority: u16, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let object = dir.path().join("count.bpf.o");
        let here = env!("CARGO_MANIFEST_DIR");
        let output = Command::new(std::env::var_os("CLANG").unwrap_or("clang".into()))
            .args(["-target", "bpf", "-mcpu=v2", "-O2", "-g", "-c", "-o"])
            .arg(&object)
            .arg(format!("{here}/tests/bpf/count.bpf.c"))
            // Where Debian has asm/types.h.
            .arg(format!("-idirafter/usr/include/{}-linux-gnu", std::env::consts::ARCH))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let object = OpenObject::from_file(&object).unwrap().load().unwrap();
        let program = object.program("count").unwrap().as_fd();
        let mut socket = Socket::route().unwrap();
        tc::add_filter(&mut socket, 1, hook, priority, program, name).unwrap();
        let all = tc::filters(&mut socket, 1, hook).unwrap();
        let filter = all.into_iter().find(|f| f.name == name && f.priority == priority);
        Foreign { packets: object.map("packets").unwrap(), filter: filter.unwrap() }
    }

    /// Asserts that it is still there and sees each packet.
    fn check(&self, when: &str) {
        let there = tc::filters(&mut Socket::route().unwrap(), 1, self.filter.hook).unwrap();
        assert!(there.contains(&self.filter), "{when}: {there:?}");
        let before = self.packets.lookup(&0).unwrap();
        send(10);
        assert_eq!(self.packets.lookup(&0).unwrap(), before + 10, "{when}");
    }
}

/// Sends datagrams over the loopback, which egress sees before this returns.
fn send(count: usize) {
    let sink = UdpSocket::bind("[::1]:0").unwrap();
    let socket = UdpSocket::bind("[::1]:0").unwrap();
    for _ in 0..count {
        socket.send_to(b"x", sink.local_addr().unwrap()).unwrap();
        sink.recv(&mut [0; 8]).unwrap();
    }
}

/// This test again in a child process, in which `role()` is true, with a marker on
/// the loopback of this namespace.
struct Other(Child);

impl Other {
    fn attached(test: &str, way: &str) -> Self {
        Self::ready(Command::new(std::env::current_exe().unwrap()), test, way)
    }

    /// The same with a command that runs this program with the arguments it is given;
    /// returns when the child has done what `role` says.
    fn ready(mut command: Command, test: &str, role: &str) -> Self {
        let mut child = command
            .args(["--exact", "--nocapture", &format!("backends::marker::tests::{test}")])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let other = Other(child);
        let attached = lines.map_while(|line| line.ok()).any(|line| line.contains(ATTACHED));
        assert!(attached, "the child has attached");
        other
    }

    /// SIGKILL: it cannot clean up.
    fn kill(mut self) {
        // Waiting closes it, which would tell a grandchild to end by itself.
        let _stdin = self.0.stdin.take();
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may be dead already, as it is meant to be.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const ROLE: &str = "GLOWD_TEST_MARKER_CHILD";
const ATTACHED: &str = "the marker is attached";

/// Whether this is the child process; if so, it has done its part.
fn was_child() -> bool {
    let Ok(way) = std::env::var(ROLE) else {
        return false;
    };
    let _marker = marker(&[("attach", text(&way))]).unwrap();
    println!("{ATTACHED}");
    // Until it is killed, or its parent is gone.
    let _ = std::io::stdin().read(&mut [0]);
    true
}

/// Waits for `condition`, for a minute at most.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn flow(src: &str, activity: u64) -> Flow {
    let (src, dst): (SocketAddr, _) = (src.parse().unwrap(), "[2001:db8::ffff]:1094");
    let id = FlowId::new(Protocol::Tcp, src, dst.parse().unwrap()).unwrap();
    let tag = Tag::new(2, activity).unwrap();
    let start = Timestamp(0);
    Flow {
        id,
        tag,
        label: tag.label(0),
        start,
        is_undated: false,
        source: "test",
        application: None,
        news: None,
        counted: None,
    }
}

fn start(flow: &Flow) -> Event {
    Event::Start(flow.clone())
}

fn end(flow: &Flow) -> Event {
    Event::End(flow.clone(), Timestamp(1))
}
