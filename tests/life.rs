//! Signals, the service manager and starts that fail, with the real binary.

use std::fs;
use std::os::unix::fs::chown;

use nix::sys::signal::Signal;
use serde_json::{json, Value};

use crate::common::{free_port, skip_unless_root, wait_for, Daemon};

/// Pipe and API.
fn config() -> Value {
    json!({ "plugins": { "namedPipe": {}, "api": { "bindPort": free_port() } } })
}

/// The signal that glowd uses within, sent from outside.
#[test]
fn sigusr2_does_not_make_it_deaf() {
    let daemon = Daemon::start(config());
    for _ in 0..10 {
        daemon.signal(Signal::SIGUSR2);
        daemon.signal(Signal::SIGUSR1);
    }
    daemon.wait_for_line("flows: ");
    daemon.signal(Signal::SIGUSR2);
    daemon.stop(&[]);
}

#[test]
fn sighup_is_survived_with_a_warning() {
    let daemon = Daemon::start(config());
    daemon.signal(Signal::SIGHUP);
    let warning = "warn: SIGHUP: the configuration cannot be read again yet";
    daemon.wait_for_line(warning);
    assert_eq!(daemon.get("/flows").0, 200);
    daemon.stop(&[warning]);
}

#[test]
fn more_signals_during_the_stop_do_no_harm() {
    let mut daemon = Daemon::start(config());
    let pid_file = daemon.dir().join("glowd.pid");
    let status = wait_for("glowd to end", || {
        for signal in [Signal::SIGTERM, Signal::SIGUSR2, Signal::SIGHUP, Signal::SIGINT] {
            daemon.signal(signal);
        }
        daemon.ended()
    });
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(!pid_file.exists() && !daemon.pipe_path().exists(), "files are left");
}

#[test]
fn the_service_manager_hears_of_the_start_and_of_the_stop() {
    let mut daemon = Daemon::start(config());
    daemon.end_by(Signal::SIGTERM);
    assert_eq!(daemon.notices(), ["READY=1", "STOPPING=1"]);
}

/// Nobody would read it, and a writer would wait for ever in open(2).
#[test]
fn a_kill_a_restart_and_a_stop_leave_no_pipe() {
    let mut daemon = Daemon::start(config());
    daemon.kill_and_restart(None);
    daemon.wait_for_line("adopted: a killed glowd left it");
    daemon.write("start tcp 2001:db8::1 1 2001:db8::2 2 3 4\n");
    daemon.end_by(Signal::SIGTERM);
    daemon.wait_for_line("stopped");
    assert!(!daemon.pipe_path().exists() && !daemon.dir().join("glowd.pid").exists());
}

/// Whichever thread it is: those that run are ended in order, and undo what they
/// have made.
#[test]
fn a_thread_that_cannot_be_started_leaves_nothing_behind() {
    if skip_unless_root() {
        return;
    }
    // Nobody else's, so that the limit counts this daemon only.
    let user = 1_000_000_000 + std::process::id();
    let dir = tempfile::tempdir().expect("a folder");
    chown(dir.path(), Some(user), Some(user)).expect("to give it away");
    let mut failures = Vec::new();
    for threads in 1..20 {
        let mut config = config();
        config["pidPath"] = json!(dir.path().join("run/pid"));
        config["plugins"]["namedPipe"] = json!({ "pipePath": dir.path().join("np") });
        config["backends"] = json!({ "firefly": { "collectors": ["127.0.0.1:9"] } });
        match Daemon::try_start_limited(user, threads, config) {
            Ok(daemon) => {
                daemon.stop(&[]);
                break;
            }
            Err(failure) => {
                assert_eq!(failure.status.code(), Some(71), "{threads}: {}", failure.log);
                assert!(failure.log.contains("thread: "), "{threads}: {}", failure.log);
                failures.push(failure.log);
            }
        }
        let left: Vec<_> = fs::read_dir(dir.path()).expect("the folder").collect();
        assert!(left.is_empty(), "{threads}: {left:?}");
    }
    for place in ["signal thread", "backends.firefly", "dispatcher", "namedPipe", "plugins.api"] {
        let said = |log: &String| log.lines().last().is_some_and(|line| line.contains(place));
        assert!(failures.iter().any(said), "{place}: {failures:#?}");
    }
}
