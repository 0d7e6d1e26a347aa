//! Many datagrams in one system call (sendmmsg(2)). nix has it too, but cannot
//! say how many went without looking at addresses that were never filled in.
//!
//! Runs on the thread of whoever asks, and owns nothing.

#![allow(unsafe_code)]

use std::io::IoSlice;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

/// How many datagrams one call sends at the most.
pub const BATCH: usize = 64;

/// A datagram: what, and to whom.
pub type Datagram<'a> = (IoSlice<'a>, SockaddrStorage);

/// Sends the first ones of `datagrams` in order, up to [`BATCH`], and returns how
/// many the kernel took.
///
/// # Errors
/// Why it did not even take the first. If it refuses a later one, the next call
/// that begins with that one tells why.
pub fn send(socket: BorrowedFd<'_>, datagrams: &[Datagram<'_>]) -> nix::Result<usize> {
    // SAFETY: an mmsghdr of zero bytes is one of null pointers and zero lengths.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    let mut count = 0;
    for (header, (payload, to)) in headers.iter_mut().zip(datagrams) {
        header.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
        header.msg_hdr.msg_namelen = to.len();
        // An IoSlice is an iovec.
        header.msg_hdr.msg_iov = ptr::from_ref(payload).cast_mut().cast();
        header.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: the first `count` headers are filled in. Their pointers are to what
    // `datagrams` borrows, which outlives the call, and the kernel writes only to
    // the headers.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
    Errno::result(sent).map(i32::unsigned_abs).map(|sent| sent as usize)
}
