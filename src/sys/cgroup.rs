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
