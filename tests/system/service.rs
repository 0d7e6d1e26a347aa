//! A healthy service: what it is, what it does, what its stop leaves.

use serde_json::json;

use crate::common::packet::{TCP, UDP};
use crate::common::{udp, v6, wait_for, Connection, DEVICE, HERE, THERE};
use crate::instances::open;
use crate::machine::{config, source, Machine, Probe};
use crate::rig::{each, is_marked, is_plain, line, of, Strategy, CMS, STRATEGIES};

const COUNT: usize = 20;

/// CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF (capabilities(7)).
const CAPABILITIES: u64 = 1 << 12 | 1 << 38 | 1 << 39;

#[test]
fn it_is_ready_as_its_own_user_with_three_capabilities() {
    let machine = Machine::with_service(&json!({}));
    assert_eq!(machine.property("glowd", "ActiveState"), "active");
    let pid = machine.main_pid("glowd");
    let status = std::fs::read_to_string(machine.path(&format!("/proc/{pid}/status"))).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let id = |option| machine.run(&["id", option, "glowd"]);
    assert_ne!(id("-u"), "0");
    assert_eq!(field("Uid:"), vec![id("-u"); 4]);
    assert_eq!(field("Gid:"), vec![id("-g"); 4]);
    assert_eq!(field("Groups:"), [id("-g")]);
    for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:", "CapBnd:"] {
        let has = u64::from_str_radix(&field(set)[0], 16).unwrap();
        assert_eq!(has, CAPABILITIES, "{set}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (vec!["1".into()], vec!["2".into()]));
    let limits = std::fs::read_to_string(machine.path(&format!("/proc/{pid}/limits"))).unwrap();
    let limit = |name| limits.lines().find(|line| line.starts_with(name)).unwrap();
    // As far as whoever runs the container may raise it.
    assert_eq!(machine.property("glowd", "LimitMEMLOCK"), "infinity");
    assert!(limit("Max core file size").contains(" 0 "), "{limits}");
    // It sees programs and configurations, none of which it can change, and no data.
    machine.write("/srv/data/file", "precious");
    let seen = |place: &str| machine.path(&format!("/proc/{pid}/root{place}")).exists();
    assert!(seen("/usr/bin/glowd") && seen("/etc/glowd/conf.json"));
    assert!(!seen("/srv/data"), "a storage host has much there");
    let mounts = std::fs::read_to_string(machine.path(&format!("/proc/{pid}/mounts"))).unwrap();
    let options = |place: &str| {
        let line = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some(place));
        line.and_then(|line| line.split(' ').nth(3)).unwrap_or_default().to_owned()
    };
    assert!(options("/").starts_with("ro,"), "{mounts}");
    assert!(options("/run/glowd").starts_with("rw,"), "{mounts}");
}

/// With no more capabilities than the unit has.
#[test]
fn the_shipped_configuration_knows_what_tcp_has_carried() {
    const SENT: usize = 1_000_001;
    let machine = Machine::boot();
    machine.run(&["systemctl", "start", "glowd"]);
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 1094));
    let hosts = (&machine.pair.here, &machine.pair.there);
    let mut connection = Connection::open((hosts.0, from), (hosts.1, to), 0);
    assert!(machine.write_as("root", "/run/glowd/np", &line(true, "tcp", from, to, CMS)));
    connection.send_bulk(SENT);
    let usage = format!("\"usage\":{{\"received\":0,\"sent\":{SENT}}}");
    wait_for("the usage", || machine.get(7777, "/flows").contains(&usage).then_some(()));
    assert!(machine.write_as("root", "/run/glowd/np", &line(false, "tcp", from, to, CMS)));
    wait_for("the end", || (!machine.get(7777, "/flows").contains("usage")).then_some(()));
    let journal = machine.journal("glowd");
    let said = journal.lines().filter(|line| line.contains("enrichers.netlink"));
    assert_eq!(said.count(), 1, "that it is ready, and no complaint: {journal}");
}

/// Its root is a folder of its own: no start puts anything into the configuration's.
#[test]
fn its_root_is_not_the_folder_of_the_configuration() {
    let machine = Machine::boot();
    machine.configure("conf", &config(&json!({})));
    machine.configure("a", &json!({ "plugins": { "namedPipe": {} }, "backends": {} }));
    let listing = || machine.run(&["ls", "-lAR", "--time-style=full-iso", "/etc/glowd"]);
    let before = listing();
    machine.run(&["systemctl", "start", "glowd", "glowd@a"]);
    for unit in ["glowd", "glowd@a"] {
        let pid = machine.main_pid(unit);
        let mounts = machine.path(&format!("/proc/{pid}/mountinfo"));
        let mounts = std::fs::read_to_string(mounts).unwrap();
        // What is mounted where (proc(5)).
        let line = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        assert_eq!(line.split(' ').nth(3), Some("/glowd.root"), "{mounts}");
        let root = machine.path(&format!("/proc/{pid}/root"));
        assert!(root.join("etc/glowd/conf.json").exists() && !root.join("conf.json").exists());
    }
    // The one goes on when the other has gone, and comes back.
    machine.run(&["systemctl", "stop", "glowd"]);
    assert_eq!(machine.property("glowd@a", "ActiveState"), "active");
    machine.run(&["systemctl", "start", "glowd"]);
    machine.run(&["systemctl", "stop", "glowd", "glowd@a"]);
    assert_eq!(listing(), before);
}

/// As the configurations of older daemons have them.
#[test]
fn paths_in_var_run_are_those_in_run() {
    let machine = Machine::boot();
    let mut config = config(&json!({}));
    config["pidPath"] = json!("/var/run/glowd/glowd.pid");
    config["plugins"]["namedPipe"]["pipePath"] = json!("/var/run/glowd/np");
    machine.configure("conf", &config);
    machine.run(&["systemctl", "start", "glowd"]);
    let pid = std::fs::read_to_string(machine.path("/run/glowd/glowd.pid")).unwrap();
    assert_eq!(pid.trim(), machine.main_pid("glowd").to_string());
    let capture = machine.capture();
    let mut probe = Probe::new(&machine, &capture, Strategy::Label);
    probe.obey(true, "");
    machine.run(&["systemctl", "stop", "glowd"]);
    machine.assert_nothing_is_left("/run/glowd");
}

/// Without it the service does not start, and tmpfiles.d(5) helps.
#[test]
fn a_missing_root_is_made_by_tmpfiles() {
    let machine = Machine::boot();
    machine.configure("conf", &config(&json!({})));
    machine.drop_in("glowd.service", "Restart=no");
    machine.run(&["rm", "-r", "/run/glowd.root"]);
    assert!(!machine.output(&["systemctl", "start", "glowd"]).status.success());
    assert_eq!(machine.property("glowd", "ExecMainStatus"), "226");
    machine.run(&["systemd-tmpfiles", "--create", "glowd.conf"]);
    machine.run(&["systemctl", "start", "glowd"]);
}

/// As the manual says of a file elsewhere.
#[test]
fn a_registry_elsewhere_needs_its_folder() {
    let machine = Machine::boot();
    let mut config = config(&json!({}));
    config["registryPath"] = json!("/opt/scitags/registry.json");
    machine.configure("conf", &config);
    let registry = std::fs::read_to_string(source("data/registry.json")).unwrap();
    machine.write("/opt/scitags/registry.json", &registry);
    assert!(!machine.output(&["systemctl", "start", "glowd"]).status.success());
    assert_eq!(machine.property("glowd", "ExecMainStatus"), "78");
    machine.drop_in("glowd.service", "BindReadOnlyPaths=/opt/scitags");
    machine.run(&["systemctl", "start", "glowd"]);
}

/// UDP and TCP, and every octet of a packet as the strategy demands.
#[test]
fn it_marks_real_traffic_from_start_to_end() {
    let machine = Machine::boot();
    for (strategy, attach) in STRATEGIES
        .map(|strategy| (strategy, "auto"))
        .into_iter()
        .chain([(Strategy::Label, "clsact"), (Strategy::HopByHopDestination, "clsact")])
    {
        let marker = json!({ "markingStrategy": strategy.name(), "attach": attach });
        machine.configure("conf", &config(&marker));
        machine.run(&["systemctl", "restart", "glowd"]);
        let capture = machine.capture();
        let mut probe = Probe::new(&machine, &capture, strategy);
        let (from, to) = (v6(HERE, 40_000), v6(THERE, 5001));
        let sockets = (udp(&machine.pair.here, from, to), udp(&machine.pair.there, to, from));
        let mut cuts = Vec::new();
        let mut traffic = |probe: &mut Probe| {
            let server = v6(THERE, 1094);
            let ends = ((&machine.pair.here, from), (&machine.pair.there, server));
            Connection::open(ends.0, ends.1, 0xb8).ping_pong(COUNT);
            for _ in 0..COUNT {
                sockets.0.send(b"datagram").unwrap();
                crate::common::receive(&sockets.1, &mut [0; 16]).unwrap();
            }
            probe.send();
            cuts.push(capture.count());
        };
        let lines = |start| {
            line(start, "udp", from, to, CMS) + &line(start, "tcp", from, v6(THERE, 1094), CMS)
        };
        traffic(&mut probe);
        probe.obey(true, &lines(true));
        traffic(&mut probe);
        probe.obey(false, &lines(false));
        traffic(&mut probe);
        let packets = capture.packets(0..cuts[2]);
        let parts = [&packets[..cuts[0]], &packets[cuts[0]..cuts[1]], &packets[cuts[1]..]];
        for (part, marked) in parts.into_iter().zip([false, true, false]) {
            for (protocol, port) in [(UDP, 5001), (TCP, 1094)] {
                let flow = part.iter().filter(of(protocol, 40_000, port));
                let count = each(flow, |packet| match marked {
                    // The end of a connection may come behind that of its flow.
                    _ if packet.tcp_flags & 0x15 != 0x10 && protocol == TCP => Ok(()),
                    true => is_marked(packet, strategy, CMS),
                    false => is_plain(packet),
                });
                assert!(count >= COUNT, "{strategy:?} {attach}: {count} of {protocol}");
            }
        }
    }
}

/// By the kernel, on the control group that contains all others, which the service sees
/// and cannot change.
#[test]
fn it_learns_of_connections_at_once() {
    let machine = Machine::boot();
    let plugin = json!({ "minDestinationPort": 1094, "maxDestinationPort": 1094,
        "experimentIDs": [CMS.experiment], "activityIDs": [CMS.activity] });
    let mut all = config(&json!({}));
    all["plugins"]["iperf3"] = plugin;
    all["logLevel"] = json!("debug");
    machine.configure("conf", &all);
    machine.run(&["systemctl", "start", "glowd"]);
    let pid = machine.main_pid("glowd");
    let mounts = std::fs::read_to_string(machine.path(&format!("/proc/{pid}/mounts"))).unwrap();
    let group = mounts.lines().find(|line| line.contains(" cgroup2 ")).expect(&mounts);
    assert!(group.contains(" /sys/fs/cgroup cgroup2 ro,"), "{group}");
    let to = v6(THERE, 1094);
    let _listener = machine.pair.there.enter(|| std::net::TcpListener::bind(to)).unwrap();
    // In a control group of the container's, unlike what enters it from outside.
    let connect = format!("exec 3<>/dev/tcp/{THERE}/1094");
    machine.run(&["systemd-run", "--quiet", "--wait", "bash", "-c", &connect]);
    wait_for("the connection to be found, and to end", || {
        let journal = machine.journal("glowd");
        let has = |what: &str| journal.contains(&format!("iperf3: {what} tcp [{HERE}"));
        (has("start") && has("end")).then_some(())
    });
}

#[test]
fn its_stop_leaves_nothing() {
    for attach in ["tcx", "clsact"] {
        let machine = Machine::with_service(&json!({ "attach": attach }));
        let capture = machine.capture();
        let mut probe = Probe::new(&machine, &capture, Strategy::Label);
        probe.obey(true, "");
        assert_ne!(machine.attached(), [""; 0]);
        for file in ["np", "glowd.pid"] {
            assert!(machine.path(&format!("/run/glowd/{file}")).exists(), "{file}");
        }
        machine.run(&["systemctl", "stop", "glowd"]);
        machine.assert_nothing_is_left("/run/glowd");
        assert_eq!(machine.property("glowd", "Result"), "success");
        probe.await_marked(false);
        // Nor did any part of it complain.
        let journal = machine.journal("glowd");
        assert!(!journal.contains("error: ") && !journal.contains("warn: "), "{journal}");
    }
}

/// Members of the group write to the pipe, others neither write nor read.
#[test]
fn members_of_the_group_may_write_to_the_pipe() {
    let machine = Machine::with_service(&json!({}));
    machine.run(&["useradd", "--groups", "glowd", "member"]);
    machine.run(&["useradd", "stranger"]);
    let mode = |path| machine.run(&["stat", "--format=%U:%G %a %F", path]);
    assert_eq!(mode("/run/glowd"), "glowd:glowd 755 directory");
    assert_eq!(mode("/run/glowd/np"), "glowd:glowd 660 fifo");
    let capture = machine.capture();
    let mut probe = Probe::new(&machine, &capture, Strategy::Label);
    assert!(!machine.write_as("stranger", "/run/glowd/np", &Probe::line(true)));
    assert!(machine.write_as("member", "/run/glowd/np", &Probe::line(true)));
    probe.await_marked(true);
    assert!(!machine.write_as("stranger", "/run/glowd/np", &Probe::line(false)));
    assert!(machine.write_as("member", "/run/glowd/np", &Probe::line(false)));
    probe.await_marked(false);
}

/// The new configuration holds, and what is open stays open.
#[test]
fn a_reload_applies_what_can_change() {
    let machine = Machine::with_service(&json!({}));
    let pid = machine.main_pid("glowd");
    let capture = machine.capture();
    let mut probe = Probe::new(&machine, &capture, Strategy::Label);
    let other = |start| line(start, "udp", v6(HERE, 40_000), v6(THERE, 5001), CMS);
    let has_open = |count: usize| {
        wait_for("the flows", || (open(&machine, 7777) == count).then_some(()));
    };
    // There is room for another one, now and after the reload no more.
    probe.obey(true, &other(true));
    has_open(2);
    probe.obey(true, &other(false));
    has_open(1);
    let mut new = config(&json!({}));
    new["maxFlows"] = json!(1);
    machine.configure("conf", &new);
    machine.run(&["systemctl", "reload", "glowd"]);
    let has = |text: &str| machine.journal("glowd").contains(text).then_some(());
    wait_for("the reload", || has("changed maxFlows"));
    machine.await_property("glowd", "ActiveState", "active");
    assert_eq!(machine.main_pid("glowd"), pid);
    probe.await_marked(true);
    probe.obey(true, &other(true));
    wait_for("the refusal", || has("the flow table is full (maxFlows is 1)"));
    has_open(1);
    // Its end makes room for the other one.
    probe.obey(false, "");
    has_open(0);
    probe.tell("/run/glowd/np", false, &other(true));
    has_open(1);
}

/// A broken one is refused whole, its errors are in the journal, the old one holds.
#[test]
fn a_reload_of_a_broken_configuration_changes_nothing() {
    let machine = Machine::with_service(&json!({}));
    let pid = machine.main_pid("glowd");
    let capture = machine.capture();
    let mut probe = Probe::new(&machine, &capture, Strategy::Label);
    machine.write("/etc/glowd/conf.json", "{\n  \"maxFlow\": 5\n}\n");
    machine.run(&["systemctl", "reload", "glowd"]);
    let told = "/etc/glowd/conf.json:2:3: ";
    wait_for("the errors", || machine.journal("glowd").contains(told).then_some(()));
    machine.await_property("glowd", "ActiveState", "active");
    assert_eq!(machine.main_pid("glowd"), pid);
    probe.obey(true, "");
    probe.obey(false, "");
    machine.run(&["systemctl", "stop", "glowd"]);
    machine.assert_nothing_is_left("/run/glowd");
}

/// What `systemctl status` shows.
#[test]
fn its_status_counts_flows() {
    let machine = Machine::with_service(&json!({}));
    let capture = machine.capture();
    let mut probe = Probe::new(&machine, &capture, Strategy::Label);
    let shows = |open: &str| {
        wait_for("the status", || {
            machine.property("glowd", "StatusText").contains(open).then_some(())
        });
    };
    shows("0 flows open");
    probe.obey(true, "");
    shows("1 flows open");
    probe.obey(false, "");
    shows("0 flows open");
}

/// In the journal a line about a flow carries what it is about.
#[test]
fn the_journal_finds_flows_by_their_fields() {
    let machine = Machine::boot();
    let mut config = config(&json!({}));
    config["logLevel"] = json!("debug");
    machine.configure("conf", &config);
    machine.run(&["systemctl", "start", "glowd"]);
    let capture = machine.capture();
    let mut probe = Probe::new(&machine, &capture, Strategy::Label);
    probe.obey(true, "");
    let find = |field: &str| {
        machine.output(&["journalctl", "--sync"]);
        machine.output(&["journalctl", "-q", "-o", "json", field]).stdout
    };
    for field in ["FLOW_EXPERIMENT=2", "FLOW_ACTIVITY=15", "FLOW_STATE=start", "FLOW_DST_PORT=1009"]
    {
        let found = String::from_utf8(find(field)).unwrap();
        let lines = found.lines().map(|line| serde_json::from_str(line).unwrap());
        let about: Vec<serde_json::Value> =
            lines.filter(|line: &serde_json::Value| line.get("FLOW_STATE").is_some()).collect();
        assert!(!about.is_empty(), "{field}: {found}");
        assert!(about.iter().all(|line| line["_SYSTEMD_UNIT"] == "glowd.service"), "{found}");
    }
}

/// Whatever was open: the new one begins with nothing attached but its own.
#[test]
fn it_survives_a_restart_under_traffic() {
    let machine = Machine::with_service(&json!({ "attach": "clsact" }));
    let capture = machine.capture();
    let mut probe = Probe::new(&machine, &capture, Strategy::Label);
    for _ in 0..3 {
        probe.obey(true, "");
        machine.run(&["systemctl", "restart", "glowd"]);
        probe.await_marked(false);
    }
    let filters = machine.attached();
    let own = filters.iter().filter(|line| line.starts_with(DEVICE)).count();
    assert_eq!(own, 3, "two filters and their qdisc: {filters:?}");
}
