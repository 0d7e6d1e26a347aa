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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_child_stops_when_the_thread_that_started_it_ends() {
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("1000");
            stop_with_parent(&mut command);
            command.spawn().unwrap()
        };
        let mut child = std::thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
    }
}
