//! A service that lacks a capability.

use serde_json::json;

use crate::machine::{config, Machine};

const ALL: [&str; 3] = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"];

/// One line that names it, status 71, and nothing stays.
#[test]
fn a_missing_capability_is_named_and_nothing_is_left() {
    let machine = Machine::boot();
    for missing in ALL {
        for (strategy, attach) in [("label", "auto"), ("hopByHop", "clsact")] {
            let has = ALL.into_iter().filter(|name| *name != missing);
            let has = has.collect::<Vec<_>>().join(" ");
            machine.drop_in(
                "glowd.service",
                &format!(
                    "AmbientCapabilities=\nAmbientCapabilities={has}\n\
                     CapabilityBoundingSet=\nCapabilityBoundingSet={has}\nRestart=no"
                ),
            );
            let marker = json!({ "markingStrategy": strategy, "attach": attach });
            machine.configure("conf", &config(&marker));
            machine.run(&["journalctl", "--rotate", "--vacuum-time=1s"]);
            let cursor = machine.run(&["journalctl", "-n0", "--show-cursor", "-q"]);
            let cursor = cursor.trim().trim_start_matches("-- cursor: ").to_owned();
            let started = machine.output(&["systemctl", "start", "glowd"]);
            assert!(!started.status.success(), "without {missing} it starts");
            assert_eq!(machine.property("glowd", "ExecMainStatus"), "71");
            machine.output(&["journalctl", "--sync"]);
            let journal = machine.run(&[
                "journalctl",
                "--no-pager",
                "--output=cat",
                "--identifier=glowd",
                &format!("--after-cursor={cursor}"),
            ]);
            let naming: Vec<_> = journal.lines().filter(|line| line.contains("CAP_")).collect();
            let expected =
                format!("backends.marker: cannot load the eBPF programs: glowd lacks {missing}");
            assert!(naming.len() == 1 && naming[0] == expected, "{journal}");
            machine.assert_nothing_is_left("/run/glowd");
        }
    }
}
