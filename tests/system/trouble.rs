//! A service that is killed, stuck, or wrongly configured.

use serde_json::json;

use crate::common::wait_for;
use crate::machine::{config, Machine, Probe};
use crate::rig::Strategy;

/// Starts it again after something has ended its process, and is as good as new.
fn comes_back(machine: &Machine, probe: &mut Probe, before: u32) {
    wait_for("another process", || {
        let now = machine.main_pid("glowd");
        let active = machine.property("glowd", "ActiveState") == "active";
        (now != before && now != 0 && active).then_some(())
    });
    // The marks of the old one are gone, and the flow can be told again: each packet
    // carries its tag once.
    probe.await_marked(false);
    probe.obey(true, "");
    probe.obey(false, "");
}

#[test]
fn it_survives_a_kill() {
    for (attach, strategy) in
        [("tcx", Strategy::HopByHop), ("clsact", Strategy::HopByHop), ("clsact", Strategy::Label)]
    {
        let marker = json!({ "attach": attach, "markingStrategy": strategy.name() });
        let machine = Machine::with_service(&marker);
        let fresh = machine.attached().len();
        let capture = machine.capture();
        let mut probe = Probe::new(&machine, &capture, strategy);
        for restarts in 1..=2 {
            let pid = machine.main_pid("glowd");
            probe.obey(true, "");
            machine.run(&["systemctl", "kill", "--kill-who=main", "--signal=KILL", "glowd"]);
            comes_back(&machine, &mut probe, pid);
            assert_eq!(machine.property("glowd", "NRestarts"), restarts.to_string());
            let attached = machine.attached();
            assert_eq!(attached.len(), fresh, "{attached:?}");
        }
        machine.run(&["systemctl", "stop", "glowd"]);
        machine.assert_nothing_is_left("/run/glowd");
    }
}

/// Killed for good: what it had attached goes although no glowd starts again.
#[test]
fn what_is_killed_and_not_restarted_leaves_nothing() {
    let machine = Machine::boot();
    machine.drop_in("glowd.service", "Restart=no");
    machine.configure("conf", &config(&json!({ "attach": "clsact" })));
    machine.run(&["systemctl", "start", "glowd"]);
    assert_ne!(machine.attached(), [""; 0]);
    machine.run(&["systemctl", "kill", "--kill-who=main", "--signal=KILL", "glowd"]);
    machine.await_property("glowd", "ActiveState", "failed");
    machine.assert_nothing_is_left("/run/glowd");
}

#[test]
fn the_watchdog_restarts_it_when_it_is_stuck() {
    let machine = Machine::boot();
    machine.drop_in("glowd.service", "WatchdogSec=5");
    machine.configure("conf", &config(&json!({ "attach": "clsact" })));
    machine.run(&["systemctl", "start", "glowd"]);
    let pid = machine.main_pid("glowd");
    let capture = machine.capture();
    let mut probe = Probe::new(&machine, &capture, Strategy::Label);
    probe.obey(true, "");
    machine.run(&["systemctl", "kill", "--kill-who=main", "--signal=STOP", "glowd"]);
    comes_back(&machine, &mut probe, pid);
    let journal = machine.journal("glowd");
    assert!(journal.contains("Watchdog timeout (limit 5s)!"), "{journal}");
    assert!(!machine.path(&format!("/proc/{pid}")).exists());
}

/// An error that trying again does not mend: it is in the journal once for the check
/// and once for the run, with line and column, and that is all.
#[test]
fn a_broken_configuration_is_told_and_not_tried_again() {
    let machine = Machine::boot();
    machine.write("/etc/glowd/conf.json", "{\n  \"plugins\": { \"namedPip\": {} }\n}\n");
    let started = machine.output(&["systemctl", "start", "glowd"]);
    assert!(!started.status.success());
    assert_eq!(machine.property("glowd", "ActiveState"), "failed");
    assert_eq!(machine.property("glowd", "SubState"), "failed");
    assert_eq!(machine.property("glowd", "NRestarts"), "0");
    assert_eq!(machine.property("glowd", "ExecMainStatus"), "78");
    let journal = machine.journal("glowd");
    let told = "/etc/glowd/conf.json:2:16: plugins.namedPip: this version of glowd does not know";
    assert!(journal.contains(told), "{journal}");
    assert!(!journal.contains("Scheduled restart job"), "{journal}");
    machine.assert_nothing_is_left("/run/glowd");
    // Mended, it starts at once.
    machine.configure("conf", &config(&json!({})));
    machine.run(&["systemctl", "start", "glowd"]);
}

/// What may mend itself, such as a port that is taken, is tried again.
#[test]
fn a_failure_of_the_system_is_tried_again() {
    let machine = Machine::boot();
    machine.configure("conf", &config(&json!({})));
    let taken = machine.pair.here.enter(|| std::net::TcpListener::bind("127.0.0.1:7777"));
    let taken = taken.expect("the port of the API");
    let started = machine.output(&["systemctl", "start", "glowd"]);
    assert!(!started.status.success());
    assert_eq!(machine.property("glowd", "ExecMainStatus"), "71");
    wait_for("another try", || (machine.property("glowd", "NRestarts") != "0").then_some(()));
    drop(taken);
    machine.await_property("glowd", "ActiveState", "active");
}
