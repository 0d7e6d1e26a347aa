//! Ring buffers of eBPF programs (BPF_MAP_TYPE_RINGBUF, Linux 5.8;
//! Documentation/bpf/ringbuf.rst): many CPUs write records, one thread reads them in the
//! order in which they were reserved.
//!
//! A value owns the map's descriptor and its mappings. Its thread waits for the
//! descriptor in poll(2), which is readable while there are records.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use nix::unistd::{sysconf, SysconfVar};

use super::abi::Plain;
use super::map::Shape;
use crate::error::{Error, Result};

/// Bits of the first word of a record's header; the others are its length.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// Octets of a header. Records begin at multiples of it.
const HEADER: usize = 8;

/// Records that are all of one type.
#[derive(Debug)]
pub struct RingBuffer<V> {
    fd: OwnedFd,
    /// A page that begins with how far this has read, in octets since ever.
    consumer: Mapping,
    /// A page that begins with how far programs have written, and behind it the records'
    /// space, whose beginning comes once more at its end, so that none has a gap.
    producer: Mapping,
    page: usize,
    size: usize,
    types: PhantomData<fn() -> V>,
}

impl<V: Plain> RingBuffer<V> {
    pub(super) fn new(fd: OwnedFd, shape: Shape) -> Result<Self> {
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
        let page = page.and_then(|page| usize::try_from(page).ok()).unwrap_or(4096);
        let size = shape.entries as usize;
        // The kernel demands a power of two, and so does what follows.
        if shape.key_size != 0 || !size.is_power_of_two() {
            return Err(Error::config("the map is not a ring buffer"));
        }
        let map = |length, protection, from: usize| {
            Mapping::new(fd.as_fd(), length, protection, from)
                .map_err(|error| Error::os("cannot map a ring buffer", error))
        };
        let consumer = map(page, libc::PROT_READ | libc::PROT_WRITE, 0)?;
        // The kernel has all of it twice; what is mapped counts as this process' memory.
        let again = size.min((HEADER + size_of::<V>()).next_multiple_of(page));
        let producer = map(page + size + again, libc::PROT_READ, page)?;
        Ok(RingBuffer { fd, consumer, producer, page, size, types: PhantomData })
    }

    /// Takes the oldest record; None: there is none that is complete. Those of another
    /// length than `V` are passed over.
    pub fn pop(&mut self) -> Option<V> {
        // SAFETY: the page begins with that number, is aligned, and lives as long as this.
        let read = unsafe { AtomicUsize::from_ptr(self.consumer.start.as_ptr().cast()) };
        // SAFETY: as above; nobody here writes to it, and only atomics read it.
        let written = unsafe { AtomicUsize::from_ptr(self.producer.start.as_ptr().cast()) };
        loop {
            let from = read.load(Ordering::Relaxed);
            if from == written.load(Ordering::Acquire) {
                return None;
            }
            let offset = self.page + (from & (self.size - 1));
            // SAFETY: a record begins there, at a multiple of 8 within the space.
            let record = unsafe { self.producer.start.add(offset) };
            // SAFETY: its header does, with that word; the kernel sets it last.
            let word = unsafe { AtomicU32::from_ptr(record.as_ptr().cast()) };
            let word = word.load(Ordering::Acquire);
            if word & BUSY != 0 {
                return None;
            }
            let length = (word & !DISCARDED) as usize;
            let mut value = None;
            if word & DISCARDED == 0 && length == size_of::<V>() {
                // SAFETY: within the space, which goes on for a record behind its end.
                let data = unsafe { record.add(HEADER) };
                // SAFETY: it is of V's size, and any octets are a value of a Plain type;
                // nobody writes there before `read` has passed.
                value = Some(unsafe { ptr::read_unaligned(data.as_ptr().cast::<V>()) });
            }
            let whole = (length + HEADER).next_multiple_of(HEADER);
            read.store(from.wrapping_add(whole), Ordering::Release);
            if value.is_some() {
                return value;
            }
        }
    }
}

impl<V> AsFd for RingBuffer<V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Pages of a map, shared with the kernel.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, length: usize, protection: i32, from: usize) -> io::Result<Self> {
        let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
        let (nowhere, raw) = (ptr::null_mut(), fd.as_raw_fd());
        // SAFETY: the kernel chooses the place; the descriptor is open.
        let start = unsafe { libc::mmap(nowhere, length, protection, libc::MAP_SHARED, raw, from) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Mapping { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with that length, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

// SAFETY: the pages belong to the process and not to a thread.
unsafe impl Send for Mapping {}
