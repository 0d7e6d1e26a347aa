//! That the kernel reports connections at once, and all of them: what short and first
//! packets depend on.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use glowd::net::connections::{self, Change, Connections, Ports, Wanted};
use glowd::sys::bpf::{cgroup_programs, Link, Object, OpenObject};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use serde_json::json;

use super::rig::{each, is_marked, is_plain, line, Strategy, ATLAS};
use crate::common::packet::{decode, Link as LinkType, Packet, TCP, UDP};
use crate::common::{
    skip_unless_root, udp, v6, wait_for, Capture, Connection, Daemon, Namespace, Tun, HERE, THERE,
};

/// Watches the connections of a namespace.
fn watch(namespace: &Namespace, wanted: &Wanted) -> Connections {
    let root = connections::root().expect("cgroup2");
    namespace.enter(|| Connections::watch(&root, wanted)).expect("to watch")
}

/// A control group of the test's own, removed when dropped.
pub(super) struct Group(pub(super) PathBuf);

impl Group {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("glowd-test-{}-{number}", std::process::id());
        let folder = connections::root().expect("cgroup2").join(name);
        fs::create_dir(&folder).expect("a control group");
        Group(folder)
    }

    /// The words of a shell's command that becomes `words`, in the group.
    pub(super) fn command(&self, words: &str) -> Command {
        let mut command = Command::new("bash");
        let procs = self.0.join("cgroup.procs");
        command.arg("-c").arg(format!("echo $$ >{} && {words}", procs.display()));
        command
    }

    /// The programs that are attached to it.
    pub(super) fn programs(&self) -> Vec<u32> {
        cgroup_programs(&self.0).expect("to ask for them")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What was in it may be going still.
        for _ in 0..1000 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// tests/bpf/foreign.bpf.c, attached to the group by somebody else.
pub(super) fn foreign(group: &Group) -> (Object, Link) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("object");
    let output = Command::new(std::env::var_os("CLANG").unwrap_or("clang".into()))
        .args(["-target", "bpf", "-mcpu=v2", "-O2", "-g", "-c", "-o"])
        .arg(&file)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bpf/foreign.bpf.c"))
        .arg(format!("-idirafter/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .output()
        .expect("clang");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let object = OpenObject::from_file(&file).expect("an object").load().expect("to load it");
    let folder = fs::File::open(&group.0).expect("its folder");
    let program = object.program("foreign").expect("its program");
    let link = program.attach_cgroup(folder.as_fd()).expect("to attach it");
    (object, link)
}

/// All reports so far, and how many were lost.
fn drain(connections: &mut Connections, seen: &mut [u64; 3]) -> u64 {
    while let Some(connection) = connections.read() {
        seen[connection.change as usize] += 1;
    }
    seen.iter().sum::<u64>() + connections.lost()
}

const BURST: u64 = 10_000;
/// How many reports the kernel keeps until somebody reads them.
const ROOM: u64 = 10_082;

/// As fast as one thread can.
fn burst(namespace: &Namespace) {
    namespace.enter(|| {
        let listener = TcpListener::bind("[::1]:0").expect("to listen");
        let to = listener.local_addr().expect("an address");
        for _ in 0..BURST {
            let client = TcpStream::connect(to).expect("to connect");
            let (server, _) = listener.accept().expect("to accept");
            // The client closes first; what is in TIME-WAIT is the client's.
            drop(client);
            drop(server);
        }
    });
}

#[test]
fn each_connection_of_a_burst_is_reported_or_counted_as_lost() {
    if skip_unless_root() {
        return;
    }
    let host = Namespace::new();
    // Both ends are here, of which one tells of its opening too.
    let all = 5 * BURST;
    for read in [false, true] {
        let mut connections = watch(&host, &Wanted::default());
        let mut seen = [0; 3];
        thread::scope(|scope| {
            let burst = scope.spawn(|| burst(&host));
            while read && !burst.is_finished() {
                let mut fds = [PollFd::new(connections.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(10_u8)).expect("poll");
                drain(&mut connections, &mut seen);
            }
        });
        wait_for("the last close", || (drain(&mut connections, &mut seen) >= all).then_some(()));
        assert_eq!(drain(&mut connections, &mut seen), all, "{seen:?}");
        let lost = connections.lost();
        println!("{all} reports, read meanwhile: {read}; lost: {lost}");
        if !read {
            assert_eq!(seen.iter().sum::<u64>(), ROOM, "all that there is room for");
        } else if lost == 0 {
            assert_eq!(seen, [BURST, 2 * BURST, 2 * BURST]);
        }
    }
}

#[test]
fn what_is_not_wanted_is_not_reported() {
    if skip_unless_root() {
        return;
    }
    let (host, other) = (Namespace::new(), Namespace::new());
    let here = |namespace: &Namespace| {
        namespace.enter(|| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("to listen");
            let stream = TcpStream::connect(listener.local_addr().expect("an address"));
            drop((stream.expect("to connect"), listener.accept().expect("to accept")));
            listener
        })
    };
    let none = Wanted { no_loopback: true, ..Wanted::default() };
    let mut connections = watch(&host, &none);
    here(&host);
    assert!(connections.read().is_none(), "of loopback");
    connections.want(&Wanted::default()).expect("to want others");
    here(&other);
    assert!(connections.read().is_none(), "of another network namespace");
    let port = here(&host).local_addr().expect("an address").port();
    let seen: Vec<_> = std::iter::from_fn(|| connections.read()).collect();
    assert!(seen.len() >= 3, "{seen:?}");
    assert!(seen.iter().all(|one| one.local.port() == port || one.remote.port() == port));
    // Sixteen ranges, of which the last fits: the passive end has no report.
    let never = Ports { local: 1..=1, remote: 1..=1 };
    let listener = host.enter(|| TcpListener::bind("127.0.0.1:0")).expect("to listen");
    let to = listener.local_addr().expect("an address");
    let mut ports = vec![never; 15];
    ports.push(Ports { local: 0..=65_535, remote: to.port()..=to.port() });
    connections.want(&Wanted { ports, ..Wanted::default() }).expect("to want these");
    drop(host.enter(|| TcpStream::connect(to)).expect("to connect"));
    let seen: Vec<_> = std::iter::from_fn(|| connections.read()).collect();
    assert!(seen.len() >= 2 && seen.iter().all(|one| !one.passive), "{seen:?}");
}

#[test]
fn mapped_connections_are_ipv4_and_a_failed_connect_is_closed() {
    if skip_unless_root() {
        return;
    }
    let host = Namespace::new();
    let mut connections = watch(&host, &Wanted::default());
    host.enter(|| {
        let listener = TcpListener::bind("[::]:0").expect("to listen");
        let port = listener.local_addr().expect("an address").port();
        for to in ["::ffff:127.0.0.1", "127.0.0.1", "::1"] {
            let to = SocketAddr::new(to.parse().expect("an address"), port);
            let client = TcpStream::connect(to).expect("to connect");
            let server = listener.accept().expect("to accept").0;
            let (near, far) = (client.local_addr(), client.peer_addr());
            let (near, far) = (near.expect("an address"), far.expect("an address"));
            let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
            let (near, far) = (canonical(near), canonical(far));
            drop((client, server));
            let mut seen = Vec::new();
            wait_for("both ends", || {
                seen.extend(std::iter::from_fn(|| connections.read()));
                (seen.len() == 5).then_some(())
            });
            for one in &seen {
                assert!([(near, far), (far, near)].contains(&(one.local, one.remote)), "{one:?}");
                assert_eq!(
                    one.flow().expect("a flow").is_ipv6(),
                    to.to_string().starts_with("[::1]")
                );
            }
        }
        drop(listener);
        TcpStream::connect(("::1", port)).expect_err("nobody listens");
        let changes: Vec<_> =
            std::iter::from_fn(|| connections.read()).map(|one| one.change).collect();
        assert_eq!(changes, [Change::Opened, Change::Closed]);
    });
}

#[test]
fn the_program_of_somebody_else_works_beside_it() {
    if skip_unless_root() {
        return;
    }
    let (host, group) = (Namespace::new(), Group::new());
    host.sysctl("ipv4/tcp_ecn", "0");
    let listener = host.enter(|| TcpListener::bind("[::1]:0")).expect("to listen");
    let port = listener.local_addr().expect("an address").port();
    let (object, link) = foreign(&group);
    let counts = object.per_cpu_array("calls").expect("its map");
    let capture = Capture::start(&host, "lo");
    let connect = |uses_ecn: bool, count: u64| {
        let before = capture.count();
        // A connection that is over in a moment.
        let mut command = group.command(&format!("exec 3<>/dev/tcp/::1/{port}"));
        let status = host.enter(|| command.status()).expect("bash");
        assert!(status.success());
        assert_eq!(counts.sums().expect("its counts"), [count, count]);
        let is_syn = |packet: &Packet| packet.dst_port == port && packet.tcp_flags & 0x3f == 2;
        let syn = capture.find(before, crate::common::PATIENCE, is_syn).expect("a SYN");
        assert_eq!(syn.tcp_flags & 0xc0 != 0, uses_ecn, "{syn}");
    };
    connect(true, 1);
    let before = group.programs();
    let watched = host.enter(|| Connections::watch(&group.0, &Wanted::default()));
    let mut watched = watched.expect("to watch");
    assert_eq!((before.len(), group.programs().len()), (1, 2));
    connect(true, 2);
    wait_for("its close", || (watched.read()?.change == Change::Closed).then_some(()));
    drop(watched);
    assert_eq!(group.programs(), before);
    connect(true, 3);
    drop(link);
    connect(false, 3);
}

/// The kernel has one mode per group: whoever wants to be alone where glowd is, is refused.
#[test]
fn others_can_be_beside_the_reports_as_one_of_many_only() {
    if skip_unless_root() {
        return;
    }
    let (elsewhere, group, below) = (Group::new(), Group::new(), Group::new());
    let (_object, _link) = foreign(&elsewhere);
    let id = elsewhere.programs()[0].to_string();
    let _watched = Connections::watch(&group.0, &Wanted::default()).expect("to watch");
    let attach = |group: &Group, mode: &[&str]| {
        let mut command = Command::new("bpftool");
        command.args(["cgroup", "attach"]).arg(&group.0).args(["sock_ops", "id", &id]);
        command.args(mode).output().expect("bpftool").status.success()
    };
    assert!(attach(&below, &[]), "nobody is there");
    assert!(!attach(&group, &[]) && !attach(&group, &["override"]));
    assert!(attach(&group, &["multi"]));
    assert_eq!(group.programs().len(), 2);
}

/// What an hour's period would miss is told by the kernel: with its whole life, its
/// program's name among the rules, also over IPv4.
#[test]
fn a_connection_of_some_milliseconds_is_found() {
    if skip_unless_root() {
        return;
    }
    let host = Namespace::new();
    let command = fs::read_to_string("/proc/self/comm").expect("this program's name");
    let rule = json!({ "command": command.trim_end(), "remotePort": 1094, "user": 0,
        "experiment": 2, "activity": 15 });
    let plugin = json!({ "period": 3_600_000, "immediate": true, "includePrivate": true,
        "rules": [rule] });
    let config = json!({ "plugins": {"netlink": plugin}, "backends": {} });
    let daemon = Daemon::start_in(&host, config);
    let listener = host.enter(|| TcpListener::bind("[::]:1094")).expect("to listen");
    for (to, text) in [("::1", "[::1]:1094"), ("::ffff:127.0.0.1", "127.0.0.1:1094")] {
        let to = SocketAddr::new(to.parse().expect("an address"), 1094);
        let before = std::time::Instant::now();
        let client = host.enter(|| TcpStream::connect(to)).expect("to connect");
        let server = listener.accept().expect("to accept");
        thread::sleep(std::time::Duration::from_millis(5));
        drop((client, server));
        println!("it was open for {:?}", before.elapsed());
        let ends = |what: &str| {
            daemon.lines().iter().any(|line| {
                line.contains(&format!("netlink: {what} tcp "))
                    && line.contains(&format!("-> {text}: "))
            })
        };
        wait_for("its start and its end", || (ends("start") && ends("end")).then_some(()));
    }
    daemon.stop(&[]);
}

/// The wire of two hosts, in the hand of the test.
struct Wire {
    ends: [Tun; 2],
    /// What has passed, and whether it was the first host's.
    passed: Vec<(bool, Packet)>,
}

impl Wire {
    fn new(hosts: [&Namespace; 2]) -> Self {
        let ends = [(hosts[0], HERE), (hosts[1], THERE)].map(|(host, address)| {
            host.sysctl("ipv6/auto_flowlabels", "0");
            let tun = Tun::new(host, "tun0");
            host.ip(&format!("-6 address add {address}/64 dev tun0 nodad"));
            host.ip("link set tun0 up");
            tun
        });
        Wire { ends, passed: Vec::new() }
    }

    /// Passes packets on until one comes that is to wait, or nothing more.
    fn pass(&mut self, patience: u8, holds: impl Fn(bool, &Packet) -> bool) -> Option<Vec<u8>> {
        loop {
            let mut quiet = true;
            for from in [0, 1] {
                let patience =
                    if from == 0 { PollTimeout::from(patience) } else { PollTimeout::ZERO };
                let Some(octets) = self.ends[from].take(patience) else { continue };
                quiet = false;
                let packet = decode(LinkType::None, &octets, octets.len(), None);
                let Some(packet) = packet.filter(|packet| [TCP, UDP].contains(&packet.protocol))
                else {
                    continue;
                };
                if holds(from == 0, &packet) {
                    return Some(octets);
                }
                self.passed.push((from == 0, packet));
                self.ends[1 - from].put(&octets);
            }
            if quiet {
                return None;
            }
        }
    }
}

const SYN: u8 = 0x02;

/// The wire holds back the SYN, or the answer to it, until glowd has done what it does
/// upon the report: which then took less than the path's round trip. So all that
/// follows is marked, the first octet included.
#[test]
fn the_first_data_packet_is_marked() {
    if skip_unless_root() {
        return;
    }
    for (active, plugin) in
        [(true, "iperf3"), (false, "iperf3"), (true, "netlink"), (false, "netlink")]
    {
        let (here, there) = (Namespace::new(), Namespace::new());
        let mut wire = Wire::new([&here, &there]);
        let (near, far) = if active { (40_000, 5201) } else { (5201, 40_000) };
        // By looking alone the netlink plugin would find it in an hour.
        let settings = match plugin {
            "iperf3" => json!({ "experimentIDs": [2], "activityIDs": [15],
                "minSourcePort": near, "maxSourcePort": near, "minDestinationPort": far }),
            _ => json!({ "period": 3_600_000, "immediate": true, "includePrivate": true,
                "rules": [{ "localPort": near, "remotePort": far,
                    "experiment": 2, "activity": 15 }] }),
        };
        let mut daemon = Daemon::start_in(
            &here,
            json!({
                "plugins": {"namedPipe": {}, plugin: settings},
                "backends": {"marker": {"targetInterfaces": ["tun0"]}}
            }),
        );
        let (from, to) = (v6(HERE, near), v6(THERE, far));
        let probe = udp(&here, v6(HERE, 9), v6(THERE, 1009));
        let ends = [(&here, from), (&there, to)];
        let [client, server] = if active { ends } else { [ends[1], ends[0]] };
        let (passed, first) = thread::scope(|scope| {
            let talk = scope.spawn(|| {
                let mut connection = Connection::open(client, server, 0);
                connection.ping_pong(3);
            });
            // Of a connection to here, glowd acts when it is established.
            let waits = |from_here: bool, packet: &Packet| {
                packet.protocol == TCP
                    && if active {
                        packet.tcp_flags & SYN != 0
                    } else {
                        // The client's first data.
                        !from_here && packet.data_length > 0
                    }
            };
            let held = wait_for("the first packet", || wire.pass(10, waits));
            daemon.wait_for_line(&format!("{plugin}: start tcp"));
            // Behind it in the queue of the marker.
            daemon.write(&line(true, "udp", v6(HERE, 9), v6(THERE, 1009), ATLAS));
            wait_for("the marker", || {
                probe.send(b"probe").expect("to send");
                // What is sent again meanwhile is lost, or it would be what was held back.
                wire.pass(1, |_, packet| packet.protocol == TCP);
                let last = wire.passed.iter().rev().find(|(_, packet)| packet.protocol == UDP)?;
                is_marked(&last.1, Strategy::Label, ATLAS).ok()
            });
            let first = wire.passed.len();
            let side = usize::from(active);
            wire.ends[side].put(&held);
            while !talk.is_finished() {
                wire.pass(1, |_, _| false);
            }
            talk.join().expect("the talk");
            // It takes both ends to end a connection.
            let end = format!("{plugin}: end tcp");
            wait_for(&end, || {
                wire.pass(1, |_, _| false);
                daemon.lines().iter().any(|line| line.contains(&end)).then_some(())
            });
            (std::mem::take(&mut wire.passed), first)
        });
        let data = |packet: &&(bool, Packet)| {
            packet.1.protocol == TCP && packet.0 && packet.1.data_length > 0
        };
        assert!(active || passed[..first].iter().filter(data).count() == 0);
        let count = each(passed[first..].iter().filter(data).map(|(_, packet)| packet), |packet| {
            is_marked(packet, Strategy::Label, ATLAS)
        });
        assert!(count >= 3, "{count}");
        // What the other host sends is the other host's to mark.
        each(passed.iter().filter(|(here, _)| !here).map(|(_, packet)| packet), is_plain);
        daemon.stop(&[]);
    }
}
