//! Signals, the service manager and starts that fail, with the real binary.

use nix::sys::signal::Signal;
use serde_json::{json, Value};

use crate::common::{free_port, wait_for, Daemon};

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
