//! eBPF iterators (bpf(2), BPF_TRACE_ITER): programs that the kernel calls for each of its
//! objects of a kind, and whose output is read like a file. Linux 5.8.
//!
//! Runs on the thread of whoever reads; the link is its owner's, and detaches with it.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libbpf_sys as sys;
use nix::errno::Errno;
use nix::unistd::read;

use super::abi::Plain;
use super::bpf::{Object, Program};
use super::libbpf_log::{failure, listen};
use crate::error::{Error, Result};

/// At a time. The kernel gathers no more for one call.
const BUFFER: usize = 32 * 1024;

/// A program that is attached, and writes records of that type.
#[derive(Debug)]
pub struct Iter<T> {
    link: OwnedFd,
    record: PhantomData<T>,
}

impl<T: Plain> Iter<T> {
    /// Attaches it; it runs when it is read.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(program: &Program) -> Result<Self> {
        listen();
        let (program, kind) = (program.as_fd().as_raw_fd(), sys::BPF_TRACE_ITER);
        // SAFETY: the descriptor is open, and no options are passed.
        let fd = unsafe { sys::bpf_link_create(program, 0, kind, ptr::null()) };
        Ok(Iter { link: owned(fd, "cannot attach an eBPF iterator")?, record: PhantomData })
    }

    /// Attaches it to the map called `map`; it goes through what that has.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach_to_map(program: &Program, object: &Object, map: &str) -> Result<Self> {
        let (map, ..) = object.find_map(map)?;
        let mut info = sys::bpf_iter_link_info::default();
        info.map.map_fd = u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX);
        let opts = sys::bpf_link_create_opts {
            sz: size_of::<sys::bpf_link_create_opts>() as sys::size_t,
            iter_info: &raw mut info,
            iter_info_len: u32::try_from(size_of::<sys::bpf_iter_link_info>()).unwrap_or(0),
            ..Default::default()
        };
        listen();
        let (program, kind) = (program.as_fd().as_raw_fd(), sys::BPF_TRACE_ITER);
        // SAFETY: the descriptors are open, and the options and what they point to live until
        // it returns.
        let fd = unsafe { sys::bpf_link_create(program, 0, kind, &raw const opts) };
        Ok(Iter { link: owned(fd, "cannot attach an eBPF iterator")?, record: PhantomData })
    }

    /// Has the kernel go through its objects once, for a program that writes elsewhere and
    /// stops (returns 1) where there is no room: `make_room` is called then, and at the end.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn run(&self, mut make_room: impl FnMut()) -> Result<()> {
        let output = self.open()?;
        loop {
            let outcome = read(&output, &mut [0; 8]);
            make_room();
            match outcome {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(Error::os("cannot read from an eBPF iterator", errno)),
            }
        }
    }

    fn open(&self) -> Result<OwnedFd> {
        listen();
        // SAFETY: the descriptor is open and a link's.
        let fd = unsafe { sys::bpf_iter_create(self.link.as_raw_fd()) };
        owned(fd, "cannot run an eBPF iterator")
    }

    /// Has the kernel go through its objects once, and tells of each record.
    ///
    /// # Errors
    /// The kernel refuses, or writes what is no such record.
    pub fn each(&self, mut take: impl FnMut(&T)) -> Result<()> {
        let output = self.open()?;
        let mut buffer = vec![0; BUFFER - BUFFER % size_of::<T>()];
        loop {
            let size = match read(&output, &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(size) => size,
                // After a million objects of which the program wrote nothing.
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(errno) => return Err(Error::os("cannot read from an eBPF iterator", errno)),
            };
            let records = buffer[..size].chunks_exact(size_of::<T>());
            if !records.remainder().is_empty() {
                return Err(Error::internal("an eBPF iterator has written half a record"));
            }
            for record in records {
                let start: *const T = record.as_ptr().cast();
                // SAFETY: it points to as many octets as the type has, which is Plain; their
                // alignment does not matter.
                take(&unsafe { start.read_unaligned() });
            }
        }
    }
}

/// A descriptor that libbpf has just made, or its negative errno.
fn owned(fd: RawFd, what: &str) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(failure(what, fd));
    }
    // SAFETY: it was just created and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
