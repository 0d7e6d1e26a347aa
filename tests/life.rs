//! Signals, the service manager and starts that fail, with the real binary.

use std::fs;
use std::io::Write;
use std::os::unix::fs::chown;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{json, Value};

use crate::common::{free_port, glowd, glowd_words, skip_unless_root, wait_for, Daemon};

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
    let ready = "READY=1\nSTATUS=0 flows open, 0 events, 0 errors";
    assert_eq!(daemon.notices(), [ready, "STOPPING=1"]);
}

#[test]
fn the_service_manager_hears_of_reloads_and_of_what_was_counted() {
    let mut config = config();
    config["maxFlows"] = json!(2);
    let mut daemon = Daemon::start(config);
    let line = |state: &str, port: u16| format!("{state} tcp ::1 {port} ::1 2 3 4\n");
    let refused = line("start", 3);
    let lines = line("start", 1) + &line("start", 2) + &refused + "nonsense\n" + &line("end", 1);
    daemon.write(&(lines + &line("end", 7)));
    let expected = "STATUS=1 flows open, 3 events, 3 errors";
    daemon.wait_for_notice(|notice| notice == expected);
    daemon.signal(Signal::SIGHUP);
    let reloading = daemon.wait_for_notice(|notice| notice.starts_with("RELOADING=1\n"));
    let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("the time");
    micros.parse::<u64>().expect("a number");
    assert_eq!(daemon.wait_for_notice(|_| true), format!("READY=1\n{expected}"));
    daemon.stop(&["the flow table is full", "ignored \"nonsense\""]);
}

/// glowd with a watchdog of that many seconds.
fn watched(seconds: u64) -> Daemon {
    let mut command = Command::new("sh");
    // The process id is known to who starts it; so is the shell's, which becomes glowd.
    let script = "export WATCHDOG_PID=$$; exec \"$0\" \"$@\"";
    command.args(["-c", script]).args(glowd_words());
    command.env("WATCHDOG_USEC", (seconds * 1_000_000).to_string());
    Daemon::start_by(command, config())
}

const BEAT: &str = "WATCHDOG=1";

/// As the manager does it: a period without a sign of life is the end.
fn assert_beats(daemon: &mut Daemon, seconds: u64, beats: usize) {
    for _ in 0..beats {
        let since = Instant::now();
        daemon.wait_for_notice(|notice| notice == BEAT);
        assert!(since.elapsed() < Duration::from_secs(seconds), "{:?}", since.elapsed());
    }
}

#[test]
fn the_watchdog_is_fed_when_idle_and_under_load() {
    let mut daemon = watched(4);
    assert_beats(&mut daemon, 4, 2);
    let over = Arc::new(AtomicBool::new(false));
    let (pipe, end) = (daemon.pipe_path(), over.clone());
    let writer = thread::spawn(move || {
        let mut pipe = fs::OpenOptions::new().write(true).open(pipe).expect("the pipe");
        let line = |state, port| format!("{state} tcp ::1 {port} ::1 2 3 4\n");
        let lines: String =
            (1..=1000).map(|port| line("start", port) + &line("end", port)).collect();
        while !end.load(Ordering::Relaxed) {
            pipe.write_all(lines.as_bytes()).expect("to write");
        }
    });
    assert_beats(&mut daemon, 4, 2);
    over.store(true, Ordering::Relaxed);
    writer.join().expect("no panic");
    daemon.stop(&[]);
}

#[test]
fn a_process_that_is_stopped_gives_no_sign_of_life() {
    let mut daemon = watched(1);
    assert_beats(&mut daemon, 60, 1);
    daemon.signal(Signal::SIGSTOP);
    let stat = format!("/proc/{}/stat", daemon.pid());
    wait_for("it to stop", || {
        let stat = fs::read_to_string(&stat).expect("its state");
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')).then_some(())
    });
    daemon.notices();
    assert!(daemon.is_silent_for(Duration::from_secs(2)));
    daemon.signal(Signal::SIGCONT);
    assert_beats(&mut daemon, 60, 2);
    daemon.stop(&[]);
}

/// What the manager's watchdog sends. Nothing of glowd's catches it, and the next
/// start finds its way.
#[test]
fn sigabrt_ends_it_at_once_and_a_restart_works() {
    let mut daemon = Daemon::start(config());
    let status = daemon.end_by(Signal::SIGABRT);
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{status}");
    daemon.restart(None);
    daemon.wait_for_line("adopted: a killed glowd left it");
    daemon.end_by(Signal::SIGTERM);
    assert!(!daemon.pipe_path().exists() && !daemon.dir().join("glowd.pid").exists());
}

#[test]
fn a_watchdog_that_makes_no_sense_is_named_and_ignored() {
    let mut command = glowd();
    command.env("WATCHDOG_USEC", "soon");
    let daemon = Daemon::start_by(command, config());
    let problem = "WATCHDOG_USEC=\"soon\" is not a number of microseconds";
    assert!(daemon.wait_for_line(problem).starts_with("warn: there will be no watchdog: "));
    daemon.stop(&[problem, "backends: "]);
    // Another process's.
    let mut command = glowd();
    command.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    let mut daemon = Daemon::start_by(command, config());
    daemon.end_by(Signal::SIGTERM);
    assert!(!daemon.notices().iter().any(|notice| notice == BEAT), "{:?}", daemon.notices());
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

/// It may come later, but more often its path is wrong.
#[test]
fn a_control_group_that_is_not_there_is_warned_of() {
    if skip_unless_root() {
        return;
    }
    let rule = json!({"cgroup": "/no such group/", "experiment": 2, "activity": 1});
    let netlink = json!({"rules": [rule], "immediate": "false"});
    let daemon = Daemon::start(json!({ "plugins": { "netlink": netlink } }));
    let missing = "plugins.netlink.rules[0].cgroup: there is no control group \"/no such group\"";
    daemon.wait_for_line(missing);
    daemon.stop(&[missing]);
}
