//! The marker on real interfaces, in network namespaces that the threads of the
//! tests have to themselves. Root.

mod sharing;

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{unshare, CloneFlags};

use super::attach::{clean, find_interfaces};
use super::backend::{header_limitations, Marker, ARPHRD_IP6GRE};
use super::{tag, KEYS};
use crate::config::{Kind, Section, Value};
use crate::dispatcher::Event;
use crate::error::{Class, Result};
use crate::flow::{Flow, FlowId, Protocol, Tag, Timestamp};
use crate::net::interfaces::Interface;
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

/// Waits for `condition`, for a few seconds at most.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
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
    Flow { id, tag, label: tag.label(0), start, source: "test", application: None, news: None }
}

fn start(flow: &Flow) -> Event {
    Event::Start(flow.clone())
}

fn end(flow: &Flow) -> Event {
    Event::End(flow.clone(), Timestamp(1))
}

#[test]
fn clsact_comes_and_goes() {
    in_namespace(|| {
        let before = state();
        let marker = clsact().unwrap();
        let there = state();
        assert!(there.contains("clsact") && there.contains("glowd:marker pid="), "{there}");
        assert!(there.contains("pref 1 ") && there.contains("direct-action"), "{there}");
        send(1);
        drop(marker);
        assert_eq!(state(), before);
    });
}

#[test]
fn tcx_comes_and_goes_and_is_the_choice_of_auto() {
    in_namespace(|| {
        let before = state();
        for way in ["tcx", "auto"] {
            let marker = marker(&[("attach", text(way))]).unwrap();
            assert_eq!(state(), before, "no qdisc is needed");
            assert_eq!(tcx("lo", Hook::Egress), ["marker_eth"]);
            assert_eq!(tcx("lo", Hook::Ingress).len(), 0);
            send(1);
            drop(marker);
            assert_eq!(tcx("lo", Hook::Egress).len(), 0);
        }
    });
}

#[test]
fn header_strategies_also_look_at_what_arrives() {
    in_namespace(|| {
        for strategy in ["hopByHop", "destination", "hopByHopDestination"] {
            let before = state();
            let changes = [("attach", text("clsact")), ("markingStrategy", text(strategy))];
            let clsact = marker(&changes).unwrap();
            let ingress = run("tc filter show dev lo ingress");
            assert!(ingress.contains("glowd:marker"), "{ingress}");
            drop(clsact);
            assert_eq!(state(), before);
            let _tcx = marker(&[("attach", text("tcx")), changes[1].clone()]).unwrap();
            assert_eq!(tcx("lo", Hook::Egress), ["marker_eth"]);
            assert_eq!(tcx("lo", Hook::Ingress), ["room_eth"]);
        }
    });
}

#[test]
fn interfaces_without_ethernet_get_the_other_program() {
    in_namespace(|| {
        run("ip tuntap add t0 mode tun");
        let _marker = marker(&[interfaces(&["t0", "lo"])]).unwrap();
        assert_eq!(tcx("t0", Hook::Egress), ["marker_ip"]);
        assert_eq!(tcx("lo", Hook::Egress), ["marker_eth"]);
    });
}

#[test]
fn defect_08_a_restart_after_kill_9_needs_no_help() {
    const TEST: &str = "defect_08_a_restart_after_kill_9_needs_no_help";
    if was_child() {
        return;
    }
    in_namespace(|| {
        let before = state();
        Other::attached(TEST, "clsact").kill();
        assert!(state().contains("glowd:marker"), "the filter outlives its maker");
        let successor = clsact().unwrap();
        assert_eq!(state().matches("glowd:marker").count(), 1);
        drop(successor);
        assert_eq!(state(), before);

        // The next one may use tcx.
        Other::attached(TEST, "clsact").kill();
        let successor = marker(&[("attach", text("tcx"))]).unwrap();
        assert_eq!(state(), before);
        drop(successor);

        // Somebody else has come to use the qdisc: the successor inherits it.
        Other::attached(TEST, "clsact").kill();
        let foreign = Foreign::new(Hook::Egress, 7);
        let successor = clsact().unwrap();
        foreign.check("after the successor's start");
        assert_eq!(state().matches("glowd:marker").count(), 1);
        tc::delete_filter(&mut Socket::route().unwrap(), 1, &foreign.filter).unwrap();
        drop(successor);
        assert_eq!(state(), before);

        // With tcx the kernel cleans up.
        Other::attached(TEST, "tcx").kill();
        eventually("tcx links die with the process", || tcx("lo", Hook::Egress).is_empty());
        assert_eq!(state(), before);
    });
}

#[test]
fn clean_removes_what_a_killed_glowd_has_left_and_nothing_else() {
    const TEST: &str = "clean_removes_what_a_killed_glowd_has_left_and_nothing_else";
    if was_child() {
        return;
    }
    in_namespace(|| {
        let before = state();
        clean(&[]).unwrap();
        assert_eq!(state(), before, "nothing was there");
        for names in [vec![], vec!["lo".to_owned()]] {
            Other::attached(TEST, "clsact").kill();
            clean(&names).unwrap();
            assert_eq!(state(), before);
        }
        clean(&["lo".into(), "nope0".into()]).unwrap_err();

        // The defect in flowd-go: a qdisc of others was removed (10).
        run("tc qdisc add dev lo clsact");
        let empty = state();
        clean(&[]).unwrap();
        assert_eq!(state(), empty);
        let foreign = Foreign::new(Hook::Egress, 1);
        clean(&[]).unwrap();
        foreign.check("after a clean-up with nothing to clean");
        Other::attached(TEST, "clsact").kill();
        clean(&[]).unwrap();
        foreign.check("after a clean-up");
        assert!(!state().contains("glowd"), "{}", state());
    });
}

#[test]
fn a_live_glowd_is_not_disturbed() {
    const TEST: &str = "a_live_glowd_is_not_disturbed";
    if was_child() {
        return;
    }
    in_namespace(|| {
        for way in ["clsact", "tcx"] {
            let other = Other::attached(TEST, way);
            let before = (state(), tcx("lo", Hook::Egress));
            let pid = other.0.id().to_string();
            for second in ["clsact", "tcx", "auto"] {
                let refusal = marker(&[("attach", text(second))]).err().unwrap();
                assert_eq!(refusal.class(), Class::Os);
                let refusal = refusal.to_string();
                assert!(refusal.starts_with("lo: another glowd"), "{refusal}");
                assert!(refusal.contains(&pid), "{refusal}");
            }
            if way == "clsact" {
                let refusal = clean(&[]).unwrap_err().to_string();
                assert!(refusal.contains(&pid), "{refusal}");
            }
            assert_eq!((state(), tcx("lo", Hook::Egress)), before);
        }
    });
}

#[test]
fn defect_09_an_existing_clsact_is_used_and_stays() {
    in_namespace(|| {
        run("tc qdisc add dev lo clsact");
        let before = state();
        let marker = clsact().unwrap();
        assert!(state().contains("glowd:marker"));
        drop(marker);
        assert_eq!(state(), before);
    });
}

#[test]
fn defect_10_filters_of_others_survive() {
    in_namespace(|| {
        run("tc qdisc add dev lo clsact");
        // One with a program, one that shares a priority with ours, and one of a
        // protocol that keeps priority 1 from ours on the other hook.
        let foreign = [Foreign::new(Hook::Egress, 1), Foreign::new(Hook::Egress, 9)];
        let foreign_in = Foreign::new(Hook::Ingress, 5);
        run("tc filter add dev lo ingress prio 1 protocol ipv6 bpf bytecode 1,6~0~0~0");
        let before = state();
        let marker = marker(&[("attach", text("clsact")), ("markingStrategy", text("hopByHop"))]);
        let marker = marker.unwrap();
        assert_eq!(state().matches("glowd:marker").count(), 2, "{}", state());
        assert!(run("tc filter show dev lo ingress prio 2").contains("glowd:marker"));
        foreign[0].check("while the marker is attached");
        foreign_in.check("while the marker is attached");
        drop(marker);
        foreign[0].check("after the marker has gone");
        foreign_in.check("after the marker has gone");
        assert_eq!(state(), before);
    });
}

/// A filter that came while the marker was attached keeps the qdisc that the
/// marker made.
#[test]
fn defect_10_a_qdisc_that_others_have_come_to_use_stays() {
    in_namespace(|| {
        for hook in Hook::BOTH {
            let marker = clsact().unwrap();
            let foreign = Foreign::new(hook, 3);
            foreign.check("while the marker is attached");
            drop(marker);
            foreign.check("after the marker has gone");
            assert!(!state().contains("glowd"), "{}", state());
            run("tc qdisc del dev lo clsact");
        }
    });
}

#[test]
fn a_qdisc_stays_if_it_is_to_stay() {
    in_namespace(|| {
        let changes = [("attach", text("clsact")), ("removeQdisc", Value::Bool(false))];
        drop(marker(&changes).unwrap());
        assert!(state().contains("clsact") && !state().contains("glowd"), "{}", state());
    });
}

/// The counting filter accepts packets, so it sees them only if the marker, which
/// runs first, has let them go on.
#[test]
fn defect_11_a_filter_behind_the_marker_runs() {
    in_namespace(|| {
        run("tc qdisc add dev lo clsact");
        for (way, priority) in [("clsact", 1), ("clsact", 2), ("tcx", 1)] {
            let foreign = Foreign::new(Hook::Egress, priority);
            let _marker = marker(&[("attach", text(way))]).unwrap();
            if way == "clsact" {
                let order = run("tc filter show dev lo egress");
                let place = |name| order.find(name).unwrap();
                assert!(place("glowd:marker") < place(Foreign::NAME), "{order}");
            }
            foreign.check(way);
            tc::delete_filter(&mut Socket::route().unwrap(), 1, &foreign.filter).unwrap();
        }
    });
}

#[test]
fn an_ingress_qdisc_is_not_replaced() {
    in_namespace(|| {
        run("tc qdisc add dev lo ingress");
        let before = state();
        let refusal = clsact().err().unwrap().to_string();
        assert!(refusal.contains("\"ingress\"") && refusal.contains("tcx"), "{refusal}");
        assert_eq!(state(), before);
        marker(&[("attach", text("auto"))]).expect("tcx does not mind");
    });
}

#[test]
fn a_missing_interface_is_an_error_that_names_those_that_exist() {
    in_namespace(|| {
        run("ip link add veth-a type veth peer name veth-b");
        let refusal = marker(&[interfaces(&["lo", "veth-c"])]).err().unwrap();
        assert_eq!(refusal.class(), Class::Config);
        let refusal = refusal.to_string();
        for name in ["\"veth-c\"", "lo", "veth-a", "veth-b"] {
            assert!(refusal.contains(name), "{refusal}");
        }
    });
}

#[test]
fn a_failure_at_one_interface_undoes_the_others() {
    in_namespace(|| {
        run("ip link add veth-a type veth peer name veth-b");
        run("tc qdisc add dev veth-b ingress");
        let before = run("tc qdisc show");
        let changes = [interfaces(&["veth-a", "veth-b"]), ("attach", text("clsact"))];
        let refusal = marker(&changes).err().unwrap().to_string();
        assert!(refusal.starts_with("veth-b: "), "{refusal}");
        assert_eq!(run("tc qdisc show"), before);
        run("tc qdisc del dev veth-b ingress");
        marker(&changes).expect("nothing holds veth-a");
    });
}

#[test]
fn an_interface_may_vanish() {
    in_namespace(|| {
        for way in ["clsact", "tcx"] {
            run("ip link add veth-a type veth peer name veth-b");
            let marker = marker(&[interfaces(&["veth-a"]), ("attach", text(way))]).unwrap();
            run("ip link del veth-a");
            drop(marker);
        }
    });
}

#[test]
fn what_keeps_packets_from_growing_a_header_is_told() {
    in_namespace(|| {
        run("ip link add veth-a type veth peer name veth-b");
        let find = || {
            let names = ["veth-a".to_owned()];
            find_interfaces(&mut Socket::route().unwrap(), &names).unwrap().remove(0)
        };
        assert_eq!(find().gso_max_size, 65_536);
        assert_eq!(header_limitations(&find()).len(), 0);
        run("ip link set veth-a gso_max_size 185000");
        let told = header_limitations(&find()).concat();
        assert!(told.contains("185000"), "{told}");
        let advice = "ip link set dev veth-a gso_max_size 65536";
        assert!(told.ends_with(advice), "{told}");
        marker(&[interfaces(&["veth-a"]), ("markingStrategy", text("hopByHop"))]).unwrap();
        run(advice);
        let veth = find();
        assert_eq!(header_limitations(&veth).len(), 0);

        // Not every kernel has these tunnels.
        for arphrd in [libc::ARPHRD_IPGRE, ARPHRD_IP6GRE] {
            let told = header_limitations(&Interface { arphrd, ..veth.clone() }).concat();
            assert!(told.contains("GRE"), "{told}");
        }
    });
}

/// Equal ports, and only the source address differs.
#[test]
fn defect_05_two_source_addresses_have_two_entries() {
    in_namespace(|| {
        let mut marker = marker(&[]).unwrap();
        let (one, two) = (flow("[2001:db8::1]:4000", 1), flow("[2001:db8::2]:4000", 2));
        let key = |flow: &Flow| tag::key(&flow.id).unwrap();
        marker.apply(&[start(&one), start(&two)]);
        assert_eq!(marker.flows.lookup(&key(&one)).unwrap(), tag::value(&one));
        assert_eq!(marker.flows.lookup(&key(&two)).unwrap(), tag::value(&two));
        marker.apply(&[end(&one)]);
        marker.flows.lookup(&key(&one)).unwrap_err();
        assert_eq!(marker.flows.lookup(&key(&two)).unwrap(), tag::value(&two));
    });
}

#[test]
fn defect_06_as_many_flows_as_are_allowed_are_all_there() {
    in_namespace(|| {
        const MAX: u16 = 60_000;
        let mut marker = Marker::new(&section(&[]), &Context::new(MAX.into())).unwrap();
        let flows: Vec<Flow> =
            (1..=MAX).map(|port| flow(&format!("[2001:db8::1]:{port}"), 1)).collect();
        let batch: Vec<Event> = flows.iter().map(start).collect();
        marker.apply(&batch);
        assert_eq!(marker.flows.count().unwrap(), usize::from(MAX));
        let batch: Vec<Event> = flows.iter().map(end).collect();
        marker.apply(&batch);
        assert_eq!((marker.flows.count().unwrap(), marker.entries), (0, 0));
    });
}

#[test]
fn the_map_follows_the_events() {
    in_namespace(|| {
        let mut marker = marker(&[("matchAll", Value::Bool(true))]).unwrap();
        let default = |marker: &Marker| marker.default.as_ref().unwrap().map.lookup(&0).unwrap();
        let (one, two) = (flow("[2001:db8::1]:1", 1), flow("[2001:db8::1]:2", 2));
        assert_eq!(default(&marker).label, 0);
        marker.apply(&[start(&one), start(&two), Event::Report]);
        assert_eq!(default(&marker), tag::value(&two));
        // A new tag of an open flow.
        let anew = flow("[2001:db8::1]:1", 3);
        marker.apply(&[end(&one), start(&anew)]);
        assert_eq!((marker.flows.count().unwrap(), marker.entries), (2, 2));
        assert_eq!(marker.flows.lookup(&tag::key(&one.id).unwrap()).unwrap(), tag::value(&anew));
        assert_eq!(default(&marker), tag::value(&anew));
        marker.apply(&[end(&anew)]);
        assert_eq!(default(&marker), tag::value(&two));
        // An entry that somebody else has removed costs a warning.
        marker.flows.delete(&tag::key(&two.id).unwrap()).unwrap();
        marker.apply(&[end(&two)]);
        assert_eq!(default(&marker).label, 0);
        // IPv4 has nothing to carry a label.
        let id = (Protocol::Udp, "10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let ipv4 = Flow { id: FlowId::new(id.0, id.1, id.2).unwrap(), ..one };
        marker.apply(&[start(&ipv4)]);
        assert_eq!(marker.flows.count().unwrap(), 0);
        marker.apply(&[end(&ipv4)]);
    });
}

#[test]
fn another_program_may_be_loaded() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marker.o");
        std::fs::write(&path, crate::sys::bpf::MARKER).unwrap();
        let path_text = text(path.to_str().unwrap());
        marker(&[("programPath", path_text.clone())]).unwrap();
        std::fs::write(&path, b"not an object").unwrap();
        let refusal = marker(&[("programPath", path_text)]).err().unwrap().to_string();
        assert!(refusal.starts_with("programPath: cannot read"), "{refusal}");
        let refusal = marker(&[("programPath", text("/nowhere.o"))]).err().unwrap().to_string();
        assert!(refusal.contains("No such file"), "{refusal}");
    });
}
