//! eBPF arrays that user space reads in place (mmap(2) of a map, Linux 5.5): a look costs no
//! system call. Whoever has one may read on any thread, while programs write.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};

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

// SAFETY: the memory is only read, by volatile loads, and belongs to the kernel.
unsafe impl<V> Send for Mapped<V> {}
// SAFETY: as above; each look is for itself.
unsafe impl<V> Sync for Mapped<V> {}

impl<V: Plain> Mapped<V> {
    pub(super) fn new(name: &str, fd: &OwnedFd, shape: Shape) -> Result<Self> {
        shape.expect(name, size_of::<u32>(), size_of::<V>())?;
        if size_of::<V>() % 8 != 0 {
            return Err(Error::internal(format!("map {name:?} has gaps between its values")));
        }
        let (entries, fd) = (shape.entries as usize, fd.as_raw_fd());
        let length = entries * size_of::<V>();
        let (access, kind) = (libc::PROT_READ, libc::MAP_SHARED);
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
        // SAFETY: within the mapping, as was just checked.
        let place = unsafe { self.start.cast::<V>().add(index) };
        // SAFETY: values are aligned to 8 octets from the start of a page on, live as long
        // as the mapping, and any bytes are a value of a Plain type.
        unsafe { place.as_ptr().read_volatile() }
    }
}

impl<V> Drop for Mapped<V> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr(), self.length) };
    }
}
