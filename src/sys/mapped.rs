//! eBPF arrays that user space has in its memory (mmap(2) of a map, Linux 5.5): a look costs
//! no system call, and a word can be changed at once. Whoever has one may use it on any
//! thread, while programs read and write it: by atomic words only.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::abi::Plain;
use super::map::Shape;
use crate::error::{Error, Result};

/// An array, mapped for reading.
#[derive(Debug)]
pub struct Mapped<V> {
    start: NonNull<libc::c_void>,
    length: usize,
    entries: usize,
    types: PhantomData<fn() -> V>,
}

// SAFETY: the memory is used by atomic loads and stores only, and belongs to the kernel.
unsafe impl<V> Send for Mapped<V> {}
// SAFETY: as above; each look is for itself.
unsafe impl<V> Sync for Mapped<V> {}

impl<V: Plain> Mapped<V> {
    pub(super) fn new(name: &str, fd: &OwnedFd, shape: Shape) -> Result<Self> {
        Mapped::with_access(name, fd, shape, libc::PROT_READ)
    }

    fn with_access(name: &str, fd: &OwnedFd, shape: Shape, access: c_int) -> Result<Self> {
        shape.expect(name, size_of::<u32>(), size_of::<V>())?;
        if size_of::<V>() % 8 != 0 {
            return Err(Error::internal(format!("map {name:?} has gaps between its values")));
        }
        let (entries, fd) = (shape.entries as usize, fd.as_raw_fd());
        let length = entries * size_of::<V>();
        let kind = libc::MAP_SHARED;
        // SAFETY: a new mapping, wherever the kernel finds room; it rounds the length up.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, access, kind, fd, 0) };
        if start == libc::MAP_FAILED {
            let cause = std::io::Error::last_os_error();
            return Err(Error::os(format!("cannot map {name:?} of the eBPF object"), cause));
        }
        let start = NonNull::new(start).ok_or_else(|| Error::internal("mmap gave no address"))?;
        Ok(Mapped { start, length, entries, types: PhantomData })
    }

    /// The value at that place, each word of it as it was at some moment of the look. The
    /// default where there is no such place.
    pub fn read(&self, index: usize) -> V {
        if index >= self.entries {
            return V::default();
        }
        let words = size_of::<V>() / size_of::<usize>();
        let mut value = V::default();
        let out = (&raw mut value).cast::<usize>();
        for word in 0..words {
            // SAFETY: within the mapping, since the index is, and a value has so many words.
            let place = unsafe { self.start.cast::<AtomicUsize>().add(index * words + word) };
            // SAFETY: aligned from the start of a page on, and alive as long as the mapping.
            // A relaxed load of a machine word is allowed where nothing may be written.
            let octets = unsafe { place.as_ref() }.load(Ordering::Relaxed);
            // SAFETY: within the value.
            let to = unsafe { out.add(word) };
            // SAFETY: the value may be so aligned or not; any bytes are one of a Plain type.
            unsafe { to.write_unaligned(octets) };
        }
        value
    }
}

/// An array of one value of eight octets, mapped for writing.
#[derive(Debug)]
pub struct Word(Mapped<u64>);

impl Word {
    pub(super) fn new(name: &str, fd: &OwnedFd, shape: Shape) -> Result<Self> {
        if shape.entries != 1 {
            return Err(Error::config(format!("map {name:?} of the eBPF object is no one word")));
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        Mapped::with_access(name, fd, shape, access).map(Word)
    }

    /// Sets it, so that no program sees half of the change, and none sees it before what
    /// was written to other maps until now.
    pub fn store(&self, value: u64) {
        let place = self.0.start.cast::<AtomicU64>();
        // SAFETY: the start of a page, which holds eight octets at least, is aligned, and
        // lives as long as the mapping, which may be written.
        unsafe { place.as_ref() }.store(value, Ordering::Release);
    }
}

impl<V> Drop for Mapped<V> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr(), self.length) };
    }
}
