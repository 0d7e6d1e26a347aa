//! Two instances beside each other, each with its own file and interface.

use serde_json::{json, Value};

use crate::common::{wait_for, DEVICE};
use crate::machine::{Machine, Probe};
use crate::rig::Strategy;

/// No paths: they follow the instance.
fn config(device: &str, port: u16) -> Value {
    json!({
        "plugins": { "namedPipe": {}, "api": { "bindPort": port } },
        "backends": { "marker": { "targetInterfaces": [device], "attach": "clsact" } },
    })
}

/// How many flows the glowd with its API on that port has open.
pub(crate) fn open(machine: &Machine, port: u16) -> usize {
    let answer = machine.get(port, "/flows");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let body: Value = serde_json::from_str(body).expect("JSON");
    body["flows"].as_array().or(body.as_array()).expect("flows").len()
}

#[test]
fn two_instances_do_not_touch_each_other() {
    let machine = Machine::boot();
    machine.configure("a", &config(DEVICE, 7001));
    machine.configure("b", &config("lo", 7002));
    machine.run(&["systemctl", "start", "glowd@a", "glowd@b"]);
    for name in ["a", "b"] {
        let mode = |path: &str| machine.run(&["stat", "--format=%U:%G %a", path]);
        assert_eq!(mode(&format!("/run/glowd-{name}/np")), "glowd:glowd 660");
        let pid = std::fs::read_to_string(machine.path(&format!("/run/glowd-{name}/glowd.pid")));
        let expected = machine.main_pid(&format!("glowd@{name}"));
        assert_eq!(pid.unwrap().trim(), expected.to_string());
    }
    let capture = machine.capture();
    let mut probe = Probe::new(&machine, &capture, Strategy::Label);
    probe.tell("/run/glowd-a/np", true, "");
    probe.await_marked(true);
    assert_eq!((open(&machine, 7001), open(&machine, 7002)), (1, 0));
    probe.tell("/run/glowd-b/np", true, "");
    wait_for("the other", || (open(&machine, 7002) == 1).then_some(()));

    // Whatever way one ends, the other goes on.
    let own = |lines: &[String]| lines.iter().filter(|line| line.starts_with("lo")).count();
    assert!(own(&machine.attached()) > 0);
    machine.run(&["systemctl", "kill", "--kill-who=main", "--signal=KILL", "glowd@b"]);
    machine.await_property("glowd@b", "NRestarts", "1");
    machine.await_property("glowd@b", "ActiveState", "active");
    probe.await_marked(true);
    machine.run(&["systemctl", "stop", "glowd@b"]);
    assert_eq!(own(&machine.attached()), 0);
    assert!(!machine.path("/run/glowd-b").exists());
    probe.await_marked(true);
    machine.run(&["systemctl", "stop", "glowd@a"]);
    machine.assert_nothing_is_left("/run/glowd-a");
}

/// Both name the same interface: the second says so and does no harm.
#[test]
fn two_instances_on_one_interface_are_refused() {
    let machine = Machine::boot();
    machine.configure("a", &config(DEVICE, 7001));
    machine.configure("b", &config(DEVICE, 7002));
    machine.run(&["systemctl", "start", "glowd@a"]);
    let capture = machine.capture();
    let mut probe = Probe::new(&machine, &capture, Strategy::Label);
    probe.tell("/run/glowd-a/np", true, "");
    probe.await_marked(true);
    assert!(!machine.output(&["systemctl", "start", "glowd@b"]).status.success());
    let journal = machine.journal("glowd@b");
    assert!(journal.contains("another glowd, with process id"), "{journal}");
    machine.run(&["systemctl", "stop", "glowd@b"]);
    probe.await_marked(true);
}
