//! Attaching eBPF programs to control groups (cgroups(7), bpf(2)) by links, which end
//! with their last descriptor: nothing is left of a process that was killed.
//!
//! Runs on the thread of whoever attaches; the link is its owner's.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use libbpf_sys as sys;

/// Attaches a sock_ops program to the group whose folder that is, and to all groups
/// below it. A link is always one of many (BPF_F_ALLOW_MULTI): programs that others have
/// attached run as before.
///
/// # Errors
/// The system's error.
pub(super) fn attach_sock_ops(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let (program, cgroup) = (program.as_raw_fd(), cgroup.as_raw_fd());
    // SAFETY: both descriptors are open, and no options are passed.
    let fd =
        unsafe { sys::bpf_link_create(program, cgroup, sys::BPF_CGROUP_SOCK_OPS, ptr::null()) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(fd.saturating_neg()));
    }
    // SAFETY: it was just created and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The ids of the sock_ops programs that are attached to that very group.
///
/// # Errors
/// It is not the folder of a control group, or the kernel refuses.
pub(super) fn sock_ops_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // The kernel's limit (BPF_CGROUP_MAX_PROGS).
    let mut ids = vec![0_u32; 64];
    let mut count = 64;
    let (fd, kind, start) = (cgroup.as_raw_fd(), sys::BPF_CGROUP_SOCK_OPS, ids.as_mut_ptr());
    // SAFETY: there is room for as many ids as `count` says, and both live until it
    // returns.
    let code = unsafe { sys::bpf_prog_query(fd, kind, 0, ptr::null_mut(), start, &raw mut count) };
    if code < 0 {
        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
    }
    ids.truncate(count as usize);
    Ok(ids)
}
