//! Connections that the daemon finds by itself, of real processes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{listen, Backlog};
use serde_json::{json, Value};

use super::connections::Group;
use super::rig::{is_marked, is_plain, line, Strategy, ATLAS, ATLAS_OUTPUT};
use crate::common::packet::TCP;
use crate::common::{
    skip_unless_root, udp, v6, wait_for, Capture, Connection, Daemon, Pair, DEVICE, HERE, HERE_TOO,
    PATIENCE, THERE, UNIT,
};

/// Of an open flow: source, destination, experiment, activity.
type Open = (String, String, u64, u64);

fn open(src: &str, dst: &str, tag: (u64, u64)) -> Open {
    (src.to_owned(), dst.to_owned(), tag.0, tag.1)
}

/// A daemon with these settings of the plugin; everything here has private addresses.
fn config(netlink: Value) -> Value {
    let mut all = json!({ "includePrivate": true, "period": 100 });
    for (key, value) in netlink.as_object().expect("settings") {
        all[key] = value.clone();
    }
    json!({ "plugins": { "netlink": all, "api": {} }, "backends": {} })
}

fn flows(pair: &Pair, daemon: &Daemon) -> BTreeSet<Open> {
    let flows = pair.here.enter(|| daemon.get("/flows").1);
    let text = |flow: &Value, key: &str| flow[key].as_str().expect("text").to_owned();
    let number = |flow: &Value, key: &str| flow[key].as_u64().expect("a number");
    let flows = flows["flows"].as_array().expect("flows");
    flows
        .iter()
        .map(|flow| {
            let tag = (number(flow, "experiment"), number(flow, "activity"));
            (text(flow, "src"), text(flow, "dst"), tag.0, tag.1)
        })
        .collect()
}

fn wait_for_flows(pair: &Pair, daemon: &Daemon, expected: &[Open]) {
    let expected: BTreeSet<_> = expected.iter().cloned().collect();
    let mut last = BTreeSet::new();
    for _ in 0..6000 {
        last = flows(pair, daemon);
        if last == expected {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("expected {expected:#?}, found {last:#?}");
}

/// How many flows are open, without a list of them.
fn count(pair: &Pair, daemon: &Daemon) -> u64 {
    pair.here.enter(|| daemon.get("/healthz").1["flows"].as_u64()).expect("a number")
}

/// Returns when the daemon has looked at all connections after this call.
fn let_it_look(daemon: &Daemon) {
    let looks = || {
        daemon.signal(Signal::SIGUSR1);
        std::thread::sleep(Duration::from_millis(10));
        let lines = daemon.lines();
        let line = lines.iter().rev().find(|line| line.contains(" looks, the last took "))?;
        line.split("plugins.netlink: ").nth(1)?.split(' ').next()?.parse::<u64>().ok()
    };
    let before = wait_for("the number of looks", looks);
    wait_for("two more looks", || looks().filter(|now| *now >= before + 2));
}

fn link(pair: &Pair, from: (&str, u16), to: (&str, u16)) -> Connection {
    let (from, to) = (v6(from.0, from.1), v6(to.0, to.1));
    Connection::open((&pair.here, from), (&pair.there, to), 0)
}

/// A connection that the other host opens.
fn link_back(pair: &Pair, from: (&str, u16), to: (&str, u16)) -> Connection {
    let (from, to) = (v6(from.0, from.1), v6(to.0, to.1));
    Connection::open((&pair.there, from), (&pair.here, to), 0)
}

#[test]
fn connections_are_found_by_ports_prefixes_and_protocol_also_older_ones() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    for address in ["fd00::3", "fd00::4"] {
        pair.there.ip(&format!("-6 address add {address}/64 dev {DEVICE} nodad"));
    }
    // Before the daemon.
    let older = link_back(&pair, (THERE, 40_001), (HERE, 1094));
    let excluded = link(&pair, (HERE, 40_002), ("fd00::3", 1094));
    let mut config = config(json!({
        "rules": [
            {"localPort": "1094-1095", "experiment": "atlas", "activity": "Production Input"},
            {"remotePort": [1094, 7], "remotePrefix": "fd00::/64", "experiment": 2, "activity": 16},
            {"protocol": "udp", "localPort": 5003, "experiment": 3, "activity": 14},
            {"localPrefix": HERE_TOO, "experiment": "cms", "activity": 1},
            {"remotePrefix": "10.0.0.0/8", "protocol": "tcp", "experiment": 5, "activity": 2}
        ],
        "exclude": ["fd00::3", "fd00::4/127"],
        "immediate": "false"
    }));
    config["backends"] = json!({ "marker": { "targetInterfaces": [DEVICE] } });
    let daemon = Daemon::start_in(&pair.here, config);
    let capture = Capture::start(&pair.there, DEVICE);
    let first = open("[fd00::1]:1094", "[fd00::2]:40001", (2, 15));
    wait_for_flows(&pair, &daemon, std::slice::from_ref(&first));
    daemon.wait_for_line("found 1 connections of unknown age; their flows begin now");

    // What leaves this host of it is marked from now on.
    let (mut here, mut there) = (older.server, older.client);
    let mut answer = |marked: bool| {
        let from = capture.count();
        here.write_all(b"data").expect("to send");
        there.read_exact(&mut [0; 4]).expect("to receive");
        let of = |packet: &crate::common::packet::Packet| {
            (packet.protocol, packet.src_port, packet.payload_length > 32) == (TCP, 1094, true)
        };
        let packet = capture.find(from, PATIENCE, of).expect("the segment");
        let verdict = is_marked(&packet, Strategy::Label, ATLAS);
        if marked { verdict } else { is_plain(&packet) }.is_ok()
    };
    wait_for("the mark", || answer(true).then_some(()));

    let remote = link(&pair, (HERE, 40_003), (THERE, 1094));
    let local = link(&pair, (HERE_TOO, 40_004), (THERE, 9));
    let none = link(&pair, (HERE, 40_005), (THERE, 9));
    let datagrams = udp(&pair.here, v6(HERE, 5003), v6(THERE, 40_006));
    let excluded_udp = udp(&pair.here, v6(HERE, 5004), v6("fd00::4", 7));
    // IPv4 on a socket of IPv6.
    let listener = pair.here.enter(|| TcpListener::bind("[::]:6000")).expect("to listen");
    let client = pair.there.enter(|| TcpStream::connect("10.0.0.1:6000")).expect("to connect");
    let server = listener.accept().expect("to accept").0;
    let port = client.local_addr().expect("its address").port();
    let mapped = open("10.0.0.1:6000", &format!("10.0.0.2:{port}"), (5, 2));
    let second = open("[fd00::1]:40003", "[fd00::2]:1094", (2, 16));
    let third = open("[fd00::11]:40004", "[fd00::2]:9", (3, 1));
    let fourth = open("[fd00::1]:5003", "[fd00::2]:40006", (3, 14));
    let all = [first.clone(), second.clone(), third.clone(), fourth.clone(), mapped];
    wait_for_flows(&pair, &daemon, &all);
    let_it_look(&daemon);
    wait_for_flows(&pair, &daemon, &all);

    // Ends, of either side; what is closed on one side only is not over.
    drop((local, none, server, client, excluded, excluded_udp));
    remote.client.shutdown(std::net::Shutdown::Write).expect("to close one side");
    wait_for_flows(&pair, &daemon, &[first.clone(), second.clone(), fourth]);
    let_it_look(&daemon);
    assert!(flows(&pair, &daemon).contains(&second));
    drop((remote, datagrams));
    wait_for_flows(&pair, &daemon, &[first]);
    drop((here, there));
    wait_for_flows(&pair, &daemon, &[]);
    daemon.stop(&[]);
}

/// A process that is connected; killed when dropped.
struct Process(Child);

impl Process {
    /// Runs `script` of bash on this host, under the name of `program`. It ends when its
    /// standard input does.
    fn start(pair: &Pair, program: &Path, user: u32, script: &str) -> Self {
        let mut command = Command::new(program);
        command.arg("-c").arg(format!("{script}; read -r line"));
        command.stdin(Stdio::piped()).gid(user).uid(user);
        Process(pair.here.enter(|| command.spawn()).expect("bash"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As the user of the unit, who has three capabilities.
#[test]
fn connections_are_found_by_user_group_and_command() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let listener = pair.there.enter(|| TcpListener::bind("[::]:7000")).expect("to listen");
    let dir = tempfile::tempdir().expect("a folder");
    let mover = dir.path().join("mover");
    std::os::unix::fs::symlink("/bin/bash", &mover).expect("a link");
    let bash = Path::new("/bin/bash");
    let outer = Group::new();
    let inner = Group(outer.0.join("inner"));
    fs::create_dir(&inner.0).expect("a group in it");
    let name = outer.0.file_name().and_then(|name| name.to_str()).expect("its name");
    for immediate in ["false", "true"] {
        let rule = |key: &str, value: Value, activity: u64| {
            let mut rule = json!({"remotePort": 7000, "experiment": 2, "activity": activity});
            rule[key] = value;
            rule
        };
        let config = config(json!({
            "rules": [
                rule("command", json!("mover"), 1),
                rule("cgroup", json!(format!("/{name}")), 9),
                rule("user", json!(4711), 15)
            ],
            "immediate": immediate
        }));
        let daemon = Daemon::try_start_as(config, Some(&pair.here), Some(UNIT));
        let daemon = daemon.unwrap_or_else(|failure| panic!("{failure:#?}"));
        let mut processes = Vec::new();
        let mut run = |program: &Path, user: u32, group: Option<&Group>| -> String {
            let join = group.map_or(String::new(), |group| {
                format!("echo $$ >{}/cgroup.procs && ", group.0.display())
            });
            let script = format!("{join}exec 3<>/dev/tcp/{THERE}/7000");
            let process = Process::start(&pair, program, user, &script);
            let (stream, peer) = listener.accept().expect("to accept");
            processes.push((process, stream));
            peer.to_string()
        };
        let to = "[fd00::2]:7000";
        let expected = [
            open(&run(&mover, 0, None), to, (2, 1)),
            open(&run(bash, 0, Some(&outer)), to, (2, 9)),
            open(&run(bash, 0, Some(&inner)), to, (2, 9)),
            open(&run(bash, 4711, None), to, (2, 15)),
        ];
        // Of nobody whom a rule names.
        run(bash, 4712, None);
        wait_for_flows(&pair, &daemon, &expected);
        let_it_look(&daemon);
        wait_for_flows(&pair, &daemon, &expected);
        drop(processes);
        wait_for_flows(&pair, &daemon, &[]);
        daemon.stop(&[]);
    }
    drop((inner, outer));
}

#[test]
fn private_addresses_and_loopback_are_left_out_unless_they_are_wanted() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    for (host, address) in [(&pair.here, "2001:db8::1"), (&pair.there, "2001:db8::2")] {
        host.ip(&format!("-6 address add {address}/64 dev {DEVICE} nodad"));
    }
    let listener = pair.there.enter(|| TcpListener::bind("[::]:7000")).expect("to listen");
    let own = pair.here.enter(|| TcpListener::bind("[::]:7000")).expect("to listen");
    let connect = |to: &str| {
        let to: SocketAddr = to.parse().expect("an address");
        let stream = pair.here.enter(|| TcpStream::connect(to)).expect("to connect");
        let from = stream.local_addr().expect("its address");
        (open(&from.to_string(), &to.to_string(), (2, 16)), stream)
    };
    let public = connect("[2001:db8::2]:7000");
    let others: Vec<_> = [
        "[fd00::2]:7000",
        "10.0.0.2:7000",
        "[::1]:7000",
        "127.0.0.1:7000",
        // Itself, by an address of the internet.
        "[2001:db8::1]:7000",
    ]
    .map(connect)
    .into();
    for immediate in ["false", "auto"] {
        let mut config = config(json!({
            "rules": [{"remotePort": 7000, "experiment": 2, "activity": 16}],
            "includePrivate": false, "immediate": immediate
        }));
        let mut daemon = Daemon::start_in(&pair.here, config.clone());
        wait_for_flows(&pair, &daemon, std::slice::from_ref(&public.0));
        // New ones too.
        let more = connect("[2001:db8::1]:7000");
        let_it_look(&daemon);
        wait_for_flows(&pair, &daemon, std::slice::from_ref(&public.0));
        config["plugins"]["netlink"]["includePrivate"] = json!(true);
        daemon.rewrite(config);
        daemon.signal(Signal::SIGHUP);
        let all = others.iter().chain([&public, &more]).map(|(open, _)| open.clone());
        wait_for_flows(&pair, &daemon, &all.collect::<Vec<_>>());
        assert!(daemon.end_by(Signal::SIGTERM).success());
    }
    drop((listener, own));
}

#[test]
fn other_rules_retag_and_end_what_is_open() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let _links: Vec<_> =
        (1..=3).map(|port| link(&pair, (HERE, 40_000 + port), (THERE, 1000 + port))).collect();
    let flow = |port: u16, activity| {
        let (src, dst) = (v6(HERE, 40_000 + port), v6(THERE, 1000 + port));
        open(&src.to_string(), &dst.to_string(), (2, activity))
    };
    let rule =
        |port: u16, activity| json!({"remotePort": port, "experiment": 2, "activity": activity});
    let rules = |rules: &[Value]| config(json!({ "rules": rules }));
    let daemon = Daemon::start_in(&pair.here, rules(&[rule(1001, 1), rule(1002, 9)]));
    wait_for_flows(&pair, &daemon, &[flow(1, 1), flow(2, 9)]);
    daemon.rewrite(rules(&[rule(1001, 15), rule(1003, 16)]));
    daemon.signal(Signal::SIGHUP);
    wait_for_flows(&pair, &daemon, &[flow(1, 15), flow(3, 16)]);
    // Rules that cannot be obeyed change nothing.
    let mut odd = rule(1002, 1);
    odd["user"] = json!("no such user");
    daemon.rewrite(rules(&[odd]));
    daemon.signal(Signal::SIGHUP);
    let problem = "rules[0].user: there is no user \"no such user\"";
    daemon.wait_for_line("configuration not reloaded");
    let_it_look(&daemon);
    wait_for_flows(&pair, &daemon, &[flow(1, 15), flow(3, 16)]);
    daemon.stop(&[problem, "configuration not reloaded", "backends: "]);
}

#[test]
fn what_is_told_of_a_connection_counts_more_than_what_is_found() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let mut config = config(json!({
        "rules": [{"remotePort": 1094, "experiment": 2, "activity": 16}]
    }));
    config["plugins"]["namedPipe"] = json!({});
    let mut daemon = Daemon::start_in(&pair.here, config);
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 1094));
    let with = |activity| vec![open("[fd00::1]:40000", "[fd00::2]:1094", (2, activity))];
    for found_first in [true, false] {
        let tell = |daemon: &mut Daemon, start| daemon.write(&line(start, "tcp", from, to, ATLAS));
        if !found_first {
            tell(&mut daemon, true);
            wait_for_flows(&pair, &daemon, &with(15));
        }
        let connection = link(&pair, (HERE, 40_000), (THERE, 1094));
        if found_first {
            wait_for_flows(&pair, &daemon, &with(16));
            tell(&mut daemon, true);
        }
        wait_for_flows(&pair, &daemon, &with(15));
        let_it_look(&daemon);
        wait_for_flows(&pair, &daemon, &with(15));
        // The end of the socket is not the end that was told.
        drop(connection);
        let_it_look(&daemon);
        wait_for_flows(&pair, &daemon, &with(15));
        tell(&mut daemon, false);
        wait_for_flows(&pair, &daemon, &[]);
    }
    daemon.stop(&["backends: "]);
}

/// No look sees it: they are an hour apart.
#[test]
fn a_short_connection_is_seen_and_a_long_one_marked_at_once() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let mut config = config(json!({
        "rules": [
            {"remotePort": 1094, "experiment": 2, "activity": 16},
            {"localPort": 1094, "experiment": 2, "activity": 15}
        ],
        "period": 3_600_000, "immediate": "true"
    }));
    config["backends"] = json!({ "marker": { "targetInterfaces": [DEVICE] } });
    let daemon = Daemon::start_in(&pair.here, config);
    daemon.wait_for_line("ready: ");
    let_it_report(&daemon);
    let capture = Capture::start(&pair.there, DEVICE);
    drop(link(&pair, (HERE, 40_000), (THERE, 1094)));
    daemon.wait_for_line("start tcp [fd00::1]:40000 -> [fd00::2]:1094");
    daemon.wait_for_line("end tcp [fd00::1]:40000 -> [fd00::2]:1094");

    for back in [false, true] {
        let (src, tag) = if back { (1094, ATLAS) } else { (40_001, ATLAS_OUTPUT) };
        let mut connection = match back {
            false => link(&pair, (HERE, 40_001), (THERE, 1094)),
            true => link_back(&pair, (THERE, 40_002), (HERE, 1094)),
        };
        wait_for("the mark", || {
            let from = capture.count();
            connection.ping_pong(1);
            let of = |packet: &crate::common::packet::Packet| {
                (packet.protocol, packet.src_port) == (TCP, src)
            };
            let packet = capture.find(from, PATIENCE, of).expect("a segment");
            is_marked(&packet, Strategy::Label, tag).ok()
        });
    }
    daemon.stop(&[]);
}

/// Returns when the first look is over.
fn let_it_report(daemon: &Daemon) {
    wait_for("the first look", || {
        daemon.signal(Signal::SIGUSR1);
        std::thread::sleep(Duration::from_millis(10));
        let lines = daemon.lines();
        lines.iter().any(|line| line.contains("plugins.netlink: 1 looks")).then_some(())
    });
}

#[test]
fn twenty_thousand_connections_are_found_and_gone_when_they_are_closed() {
    const COUNT: usize = 20_000;
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    pair.here.sysctl("ipv4/ip_local_port_range", "10000 65000");
    for key in ["core/somaxconn", "ipv4/tcp_max_syn_backlog"] {
        pair.there.sysctl(key, "65535");
    }
    for immediate in ["false", "true"] {
        let daemon = Daemon::start_in(
            &pair.here,
            config(json!({
                "rules": [{"remotePort": 7000, "user": "root", "experiment": 2, "activity": 16}],
                "period": 1000, "immediate": immediate
            })),
        );
        // Nobody accepts them: the process that does could not have so many.
        let listener = pair.there.enter(|| TcpListener::bind("[::]:7000")).expect("to listen");
        listen(&listener, Backlog::MAXALLOWABLE).expect("a longer queue");
        let each = COUNT / 10;
        let script =
            format!("for ((n = 0; n < {each}; n++)); do exec {{fd}}<>/dev/tcp/{THERE}/7000; done");
        let start = |_| Process::start(&pair, Path::new("/bin/bash"), 0, &script);
        let mut processes: Vec<_> = (0..10).map(start).collect();
        wait_for("all of them", || (count(&pair, &daemon) == COUNT as u64).then_some(()));
        let_it_look(&daemon);
        assert_eq!(count(&pair, &daemon), COUNT as u64);
        // A tenth of them, and the rest.
        processes.pop();
        wait_for("some ends", || (count(&pair, &daemon) == (COUNT - each) as u64).then_some(()));
        let_it_look(&daemon);
        drop(processes);
        wait_for("their ends", || (count(&pair, &daemon) == 0).then_some(()));
        daemon.stop(&["reports of connections were lost", "backends: "]);
    }
}

#[test]
fn what_the_flow_table_has_no_room_for_is_found_when_there_is() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let mut config =
        config(json!({ "rules": [{"remotePort": "7000-7010", "experiment": 2, "activity": 16}] }));
    config["maxFlows"] = json!(3);
    let mut links: Vec<_> =
        (0..8).map(|n| link(&pair, (HERE, 40_000 + n), (THERE, 7000 + n))).collect();
    let daemon = Daemon::start_in(&pair.here, config);
    daemon.wait_for_line("cannot open 5 flows: the flow table is full (maxFlows is 3)");
    let_it_look(&daemon);
    assert_eq!(count(&pair, &daemon), 3);
    // Whichever three they are: in the end there is room for the rest.
    while links.len() > 3 {
        links.remove(0);
        let_it_look(&daemon);
        // What a look finds is in the table a moment later.
        wait_for("three", || (count(&pair, &daemon) == 3).then_some(()));
    }
    drop(links);
    wait_for_flows(&pair, &daemon, &[]);
    daemon.stop(&["the flow table is full", "backends: "]);
}
