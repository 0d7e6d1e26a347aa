//! Completions in the real shells: what is typed, with a tab, becomes what the
//! program is called with. bash and zsh get a terminal of script(1) for it.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::common::installed;

/// A folder with the completions and a file to be found.
fn folder(shell: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let glowd = Command::new(env!("CARGO_BIN_EXE_glowd"));
    let output = { glowd }.args(["completions", shell]).output().unwrap();
    assert!(output.status.success());
    fs::write(dir.path().join("completions"), output.stdout).unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    fs::write(dir.path().join("folder/other.json"), "{}").unwrap();
    let check = Command::new(shell).arg("-n").arg(dir.path().join("completions")).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    dir
}

/// Types into the shell, and returns what came back.
fn typed(dir: &Path, shell: &str, keys: &str) -> String {
    let mut script = Command::new("script")
        .args(["-q", "-e", "-c", shell, "/dev/null"])
        .current_dir(dir)
        .env("HOME", dir)
        .env("TERM", "dumb")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    script.stdin.take().unwrap().write_all(keys.as_bytes()).unwrap();
    let output = script.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// Defines a program that shows its words, in bash and in zsh.
const SHOW: &str = "function glowd { printf '<%s>' \"$@\"; printf '\\n'; }\n";

/// What is typed, where `\t` is the key, and the words that it becomes.
const LINES: &[(&str, &str)] = &[
    ("mar\tcl\t--targ\tl\t", "<marker><clean><--target-interface><lo>"),
    ("--conf=folder/o\t con\t--che\t", "<--conf=folder/other.json><conf><--check>"),
    ("--conf folder/o\t ru\t", "<--conf><folder/other.json><run>"),
    ("run --log-level w\t--log-t\t", "<run><--log-level><warn><--log-time>"),
    ("--log-level=d\tver\t", "<--log-level=debug><version>"),
    ("help mar\t\t", "<help><marker><clean>"),
    ("completions f\t", "<completions><fish>"),
    ("man glowd.\t", "<man><glowd.conf>"),
    // Not a flag of it.
    ("run --che\t", "<run><--che>"),
];

/// Types all lines, and wants what they become.
fn obeys(dir: &Path, shell: &str, prepare: &str) {
    // An interface that is there on every machine, and alone with its letter.
    let lo =
        |line: &&(&str, &str)| Path::new("/sys/class/net/lo").exists() || !line.1.contains("<lo>");
    let lines: Vec<_> = LINES.iter().filter(lo).collect();
    let keys: String = lines.iter().map(|(keys, _)| format!("glowd {keys}\n")).collect();
    let output = typed(dir, shell, &format!("{prepare}{SHOW}{keys}exit\n"));
    for (keys, words) in lines {
        assert!(output.contains(&format!("{words}\r\n")), "{keys:?}: {output}");
    }
}

#[test]
fn bash_completes_commands_flags_and_values() {
    if !installed(&["bash", "script"]) {
        return;
    }
    let dir = folder("bash");
    let bash = "bash --norc --noprofile -i";
    obeys(dir.path(), bash, "source ./completions\n");
    // The key that inserts all that are possible.
    let keys = format!("source ./completions\n{SHOW}glowd conf --\x1b*\nexit\n");
    let output = typed(dir.path(), bash, &keys);
    let all = "<conf><--check><--conf><--help><--log-level><--log-time><--version>\r\n";
    assert!(output.contains(all), "{output}");
}

#[test]
fn zsh_completes_commands_flags_and_values() {
    if !installed(&["zsh", "script"]) {
        return;
    }
    let dir = folder("zsh");
    obeys(dir.path(), "zsh -f -i", "autoload -U compinit; compinit -u -D; source ./completions\n");
    // As packages install it.
    fs::create_dir(dir.path().join("site")).unwrap();
    fs::copy(dir.path().join("completions"), dir.path().join("site/_glowd")).unwrap();
    let found = "fpath=($PWD/site $fpath); autoload -U compinit; compinit -u -D\n";
    obeys(dir.path(), "zsh -f -i", found);
}

#[test]
fn fish_completes_commands_flags_and_values() {
    if !installed(&["fish"]) {
        return;
    }
    let dir = folder("fish");
    let offered = |line: &str| -> Vec<String> {
        let output = Command::new("fish")
            .args(["--no-config", "-c", &format!("source ./completions; complete -C '{line}'")])
            .current_dir(dir.path())
            .env("HOME", dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        // Behind the tab is the description.
        text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    };
    for (line, words) in [
        ("glowd marker ", &["clean"][..]),
        ("glowd --log-level debug marker cl", &["clean"]),
        ("glowd help marker ", &["clean"]),
        ("glowd --log-level ", &["debug", "error", "info", "warn"]),
        ("glowd --log-level=w", &["--log-level=warn"]),
        ("glowd run --conf folder/", &["folder/other.json"]),
        ("glowd man ", &["glowd", "glowd.conf"]),
        ("glowd --conf x completions ", &["bash", "fish", "zsh"]),
        ("glowd run --che", &[]),
        ("glowd conf --che", &["--check"]),
    ] {
        assert_eq!(offered(line), words, "{line}");
    }
    assert!(offered("glowd ").iter().any(|word| word == "run"));
    if Path::new("/sys/class/net/lo").exists() {
        let interfaces = offered("glowd marker clean --target-interface ");
        assert!(interfaces.iter().any(|name| name == "lo"), "{interfaces:?}");
    }
}
