//! Child processes that do not outlive their parent (prctl(2), PR_SET_PDEATHSIG). Runs
//! in the child, between fork(2) and execve(2); owns nothing.
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// Has the process that `command` starts be told to stop (SIGTERM) when the thread
/// that starts it ends, in whatever way.
pub fn stop_with_parent(command: &mut Command) {
    let prepare = || set_pdeathsig(Signal::SIGTERM).map_err(std::io::Error::from);
    // SAFETY: it makes one system call, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) };
}
