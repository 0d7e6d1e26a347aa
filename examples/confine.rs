//! Becomes a program that may make the listed system calls only: any other kills it
//! with SIGSYS (seccomp(2)). For tools/syscalls, which so proves that its list is
//! complete.
//!
//!     confine FILE PROGRAM [ARGUMENT...]
//!
//! FILE has the calls' numbers on this architecture, a line each; execve(2) has to be
//! among them. Linux only.
//!
//! `unsafe`, because there is no other way to install a filter.
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    let mut words = std::env::args_os().skip(1);
    let (Some(file), Some(program)) = (words.next(), words.next()) else {
        return Err("usage: confine FILE PROGRAM [ARGUMENT...]".into());
    };
    let numbers: Vec<u32> =
        std::fs::read_to_string(file)?.lines().map(str::parse).collect::<Result<_, _>>()?;
    linux::install(&linux::filter(&numbers)?)?;
    // Returns only if it fails.
    Err(Command::new(program).args(words).exec().into())
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;

    use libc::{
        sock_filter, sock_fprog, BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
        SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS,
    };

    /// What a 64-bit system calls itself (linux/audit.h): the ELF machine, 64 bits,
    /// little-endian. Calls of another architecture have other numbers.
    #[cfg(target_arch = "x86_64")]
    const ARCHITECTURE: u32 = libc::EM_X86_64 as u32 | 0xc000_0000;
    #[cfg(target_arch = "aarch64")]
    const ARCHITECTURE: u32 = libc::EM_AARCH64 as u32 | 0xc000_0000;

    /// Where they are in `struct seccomp_data`.
    const NUMBER_AT: u32 = 0;
    const ARCHITECTURE_AT: u32 = 4;

    /// A classic BPF program: the architecture, then each number in turn.
    pub(crate) fn filter(numbers: &[u32]) -> Result<Vec<sock_filter>, std::num::TryFromIntError> {
        let step =
            |code: u32, k, jt, jf| u16::try_from(code).map(|code| sock_filter { code, jt, jf, k });
        let load = |at| step(BPF_LD | BPF_W | BPF_ABS, at, 0, 0);
        let verdict = |verdict| step(BPF_RET | BPF_K, verdict, 0, 0);
        let unless = |value| step(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
        let mut program = vec![
            load(ARCHITECTURE_AT)?,
            step(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0)?,
            verdict(SECCOMP_RET_KILL_PROCESS)?,
            load(NUMBER_AT)?,
        ];
        for number in numbers {
            program.push(unless(*number)?);
            program.push(verdict(SECCOMP_RET_ALLOW)?);
        }
        program.push(verdict(SECCOMP_RET_KILL_PROCESS)?);
        Ok(program)
    }

    /// Confines this process, and what it becomes and starts, to the filter.
    pub(crate) fn install(filter: &[sock_filter]) -> io::Result<()> {
        // SAFETY: it takes no pointers.
        let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let program = sock_fprog {
            len: filter.len().try_into().map_err(io::Error::other)?,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: the program has that many steps, and the kernel copies them.
        let result = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("there is no seccomp(2) on this system");
}
