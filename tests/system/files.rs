//! The units as files: what systemd's own judges say of them, and that the filter of
//! system calls fits the list of those that glowd makes. No container is needed.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::machine::{source, tree};

/// Those of the daemon.
const UNITS: [&str; 2] = ["glowd.service", "glowd@.service"];
const REGISTRY: &str = "glowd-registry.service";

/// The values of a key in a unit, word by word.
fn words(unit: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(source(&format!("rpm/{unit}"))).unwrap();
    let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.flat_map(|value| value.split(' ').map(str::to_owned)).collect()
}

/// The names in rpm/syscalls.
fn called() -> BTreeSet<String> {
    let text = fs::read_to_string(source("rpm/syscalls")).unwrap();
    let names: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(names.is_sorted() && names.len() > 50, "{names:?}");
    names.into_iter().map(str::to_owned).collect()
}

/// What is in a group, and in the groups that are in it.
fn members(group: &str) -> BTreeSet<String> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", group]).output().unwrap();
    assert!(output.status.success(), "{group}");
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().skip(1).map(str::trim).filter(|name| !name.starts_with('#'));
    let mut found = BTreeSet::new();
    for name in names.filter(|name| !name.is_empty()) {
        if name.starts_with('@') {
            found.extend(members(name));
        } else {
            found.insert(name.to_owned());
        }
    }
    found
}

#[test]
fn their_exposure_is_at_most_one_and_a_half() {
    for unit in UNITS.into_iter().chain([REGISTRY]) {
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=yes", "--threshold=15"]);
        let output = command.arg(source(&format!("rpm/{unit}"))).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{unit}: {}", text.lines().last().unwrap_or_default());
        // It has judged this one.
        assert!(text.contains("Overall exposure level"), "{text}");
    }
}

#[test]
fn systemd_has_nothing_to_say_against_them() {
    let root = format!("--root={}", tree().display());
    for unit in ["glowd.service", "glowd@a.service", REGISTRY, "glowd-registry.timer"] {
        let mut command = Command::new("systemd-analyze");
        // The pages are not part of a test's tree.
        command.args(["verify", "--man=no", &root]);
        let output = command.arg(unit).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.is_empty(), "{unit}: {text}");
    }
}

#[test]
fn instances_are_confined_as_the_one_service() {
    let settings = |unit: &str| {
        let text = fs::read_to_string(source(&format!("rpm/{unit}"))).unwrap();
        let lines = text.lines().filter(|line| line.contains('=') && !line.starts_with('#'));
        // What an instance has of its own.
        let own = |line: &&str| {
            ["Description", "Exec", "RuntimeDirectory=", "CacheDirectory=", "Environment"]
                .iter()
                .any(|key| line.starts_with(key))
        };
        lines.filter(|line| !own(line)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(settings(UNITS[0]), settings(UNITS[1]));
}

/// The filter lets all through that glowd calls, and no group and no call stands in it
/// that glowd does not call.
#[test]
fn the_filter_is_what_glowd_calls() {
    let called = called();
    for unit in UNITS {
        let filter = words(unit, "SystemCallFilter");
        let mut allowed = BTreeSet::new();
        for word in &filter {
            let names = match word.strip_prefix('@') {
                Some(_) => members(word),
                None => BTreeSet::from([word.clone()]),
            };
            assert!(!names.is_disjoint(&called), "{unit}: nothing of {word} is called");
            allowed.extend(names);
        }
        let missing: Vec<_> = called.difference(&allowed).collect();
        assert!(missing.is_empty(), "{unit} lacks {missing:?}");
    }
}
