//! Which process holds which socket: its command and its control group. Used by the
//! thread that owns the [`Processes`], which holds an eBPF iterator (bpf/processes.bpf.c).
//!
//! The alternative was /proc/PID/fd, which of other users' processes only root or
//! CAP_SYS_PTRACE may read, and which takes a system call for each open file. The iterator
//! needs CAP_BPF and CAP_PERFMON, as marking does, and Linux 5.8 with BTF. It goes
//! through all open files of all processes, so it is for when a socket is new, and for nobody
//! who does not ask for commands.

use crate::error::{At, Result};
use crate::sys::abi::SocketHolder;
use crate::sys::bpf::{OpenObject, PROCESSES};
use crate::sys::iter::Iter;

/// A process that has a socket open.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// Of the socket, as sock_diag tells it.
    pub inode: u32,
    /// Its number in the first of all namespaces.
    pub pid: u32,
    /// Its name as `ps -o comm` has it: up to 15 octets.
    pub command: &'a [u8],
    /// The id of its control group (of version 2): where sock_diag does not tell the socket's
    /// (before 5.8, and
    /// maybe on EL8), this is the nearest to it.
    pub cgroup: u64,
}

/// The iterator over the processes of the PID namespace in which it runs.
#[derive(Debug)]
pub struct Processes(Iter<SocketHolder>);

impl Processes {
    /// Loads the iterator.
    ///
    /// # Errors
    /// The kernel has none, or does not let this process load one: what it lacks is named.
    pub fn open() -> Result<Self> {
        let load = || -> Result<Self> {
            let object = OpenObject::from_memory("processes", &PROCESSES.unpack()?)?.load()?;
            Ok(Processes(Iter::attach(object.program("holders")?)?))
        };
        load().at("which process has a socket takes an eBPF iterator (Linux 5.8 with BTF)")
    }

    /// Tells of each socket that a process has open, once for each process and descriptor:
    /// a socket may be told more than once, and those of other families are told too.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn each(&self, mut take: impl FnMut(Holder<'_>)) -> Result<()> {
        self.0.each(|holder| {
            let command = &holder.command;
            let end = command.iter().position(|byte| *byte == 0).unwrap_or(command.len());
            take(Holder {
                inode: holder.inode,
                pid: holder.pid,
                command: &command[..end],
                cgroup: holder.cgroup,
            });
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bpf::lacking_capabilities;
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    fn inode(socket: &impl AsFd) -> u32 {
        u32::try_from(nix::sys::stat::fstat(socket).unwrap().st_ino).unwrap()
    }

    #[test]
    fn every_process_that_has_a_socket_is_told() {
        if let Some(lacking) = lacking_capabilities() {
            let outcome = Processes::open().map(|_| "without it").unwrap_or_else(|error| {
                println!("{error}");
                "so it was refused"
            });
            println!("SKIP: needs root for bpf(2): {lacking}; {outcome}");
            return;
        }
        let socket = TcpListener::bind("[::1]:0").unwrap();
        let inode = inode(&socket);
        // Another one that has it, as its standard input.
        let mut child = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(socket.try_clone().unwrap())))
            .spawn()
            .unwrap();
        let processes = Processes::open().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let told = loop {
            let mut told = Vec::new();
            processes
                .each(|holder| {
                    if holder.inode == inode {
                        told.push((holder.pid, holder.command.to_vec(), holder.cgroup));
                    }
                })
                .unwrap();
            // Until it has become sleep.
            let is_sleep = told.iter().any(|(_, command, _)| command == b"sleep");
            if is_sleep || std::time::Instant::now() > deadline {
                break told;
            }
        };
        let _ = child.kill();
        child.wait().unwrap();
        let own = std::fs::read_to_string("/proc/self/comm").unwrap();
        for (pid, command) in [(std::process::id(), own.trim_end()), (child.id(), "sleep")] {
            let found = told.iter().find(|(told, ..)| *told == pid);
            let (_, name, cgroup) = found.unwrap_or_else(|| panic!("{pid}: {told:?}"));
            assert_eq!(String::from_utf8_lossy(name), command);
            assert_ne!(*cgroup, 0);
        }
    }
}
