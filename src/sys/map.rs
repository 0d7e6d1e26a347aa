//! eBPF maps by descriptor: typed look-up, update, deletion and removal (bpf(2)).
//!
//! A map value owns its descriptor. Calls are plain system calls on the thread of
//! whoever makes them.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libbpf_sys as sys;

use super::abi::Plain;
use crate::error::{Error, Result};

/// Sizes of keys and values in octets, and the number of entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) entries: u32,
}

impl Shape {
    pub(super) fn expect(self, name: &str, key: usize, value: usize) -> Result<()> {
        if self.key_size as usize != key || self.value_size as usize != value {
            return Err(Error::config(format!(
                "map {name:?} of the eBPF object has keys of {} and values of {} octets instead \
                 of {key} and {value}",
                self.key_size, self.value_size
            )));
        }
        Ok(())
    }
}

/// A hash or array.
#[derive(Debug)]
pub struct Map<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

/// The system's error of a map call. ENOENT: no such key. E2BIG or ENOSPC: full.
type Outcome<T> = io::Result<T>;

impl<K: Plain, V: Plain> Map<K, V> {
    /// The youngest map of that name in the kernel, whoever made it: how a benchmark
    /// or an administrator's tool looks into a running daemon. Needs CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// There is none, or it has keys or values of other sizes.
    pub fn newest(name: &str) -> Result<Self> {
        let (mut id, mut found) = (0, None);
        // SAFETY: `id` outlives the call, which writes to nothing else.
        while unsafe { sys::bpf_map_get_next_id(id, &raw mut id) } == 0 {
            // SAFETY: takes a number; it returns a new descriptor or an error.
            let fd = unsafe { sys::bpf_map_get_fd_by_id(id) };
            if fd < 0 {
                // It has gone since, or is not for us to see.
                continue;
            }
            // SAFETY: the kernel has just opened it for us, and nobody else has it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let mut info = sys::bpf_map_info::default();
            let mut size = u32::try_from(size_of::<sys::bpf_map_info>()).unwrap_or(u32::MAX);
            let (raw, info_out) = (fd.as_raw_fd(), &raw mut info);
            // SAFETY: both places outlive the call, and `size` is that of `info`.
            let code = unsafe { sys::bpf_map_get_info_by_fd(raw, info_out, &raw mut size) };
            let known =
                info.name.iter().take_while(|byte| **byte != 0).map(|byte| byte.to_ne_bytes()[0]);
            if code == 0 && known.eq(name.bytes()) {
                let (key_size, value_size) = (info.key_size, info.value_size);
                found = Some((fd, Shape { key_size, value_size, entries: info.max_entries }));
            }
        }
        let (fd, shape) =
            found.ok_or_else(|| Error::config(format!("the kernel has no map {name:?}")))?;
        Map::new(name, fd, shape)
    }

    pub(super) fn new(name: &str, fd: OwnedFd, shape: Shape) -> Result<Self> {
        shape.expect(name, size_of::<K>(), size_of::<V>())?;
        Ok(Map { fd, types: PhantomData })
    }

    /// Sets the value of `key`, whether or not there is one.
    ///
    /// # Errors
    /// The map is full, or the kernel has no memory.
    pub fn update(&self, key: &K, value: &V) -> Outcome<()> {
        let (key, value): (*const K, *const V) = (key, value);
        // SAFETY: key and value have the sizes of the map, checked when it was
        // made, and live until it returns.
        outcome(unsafe {
            sys::bpf_map_update_elem(self.fd.as_raw_fd(), key.cast(), value.cast(), 0)
        })
    }

    /// Removes `key`.
    ///
    /// # Errors
    /// ENOENT if it is not there.
    pub fn delete(&self, key: &K) -> Outcome<()> {
        let key: *const K = key;
        // SAFETY: the key has the size of the map's, checked when it was made.
        outcome(unsafe { sys::bpf_map_delete_elem(self.fd.as_raw_fd(), key.cast()) })
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// ENOENT if it is not there.
    pub fn lookup(&self, key: &K) -> Outcome<V> {
        let (key, mut value): (*const K, V) = (key, V::default());
        let out = &raw mut value;
        // SAFETY: key and value have the sizes of the map, checked when it was
        // made; any bytes are a value of a Plain type.
        outcome(unsafe { sys::bpf_map_lookup_elem(self.fd.as_raw_fd(), key.cast(), out.cast()) })?;
        Ok(value)
    }

    /// How many entries there are, counted one by one: for tests and reports.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn count(&self) -> Outcome<usize> {
        let mut key: Option<K> = None;
        let mut count = 0;
        loop {
            let mut next = K::default();
            let before = key.as_ref().map_or(std::ptr::null(), |key| key as *const K);
            let out = &raw mut next;
            // SAFETY: both keys have the size of the map's; null asks for the first.
            let code = unsafe {
                sys::bpf_map_get_next_key(self.fd.as_raw_fd(), before.cast(), out.cast())
            };
            match outcome(code) {
                Ok(()) => (key, count) = (Some(next), count + 1),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(count),
                Err(error) => return Err(error),
            }
        }
    }
}

/// A queue (BPF_MAP_TYPE_QUEUE), which programs fill.
#[derive(Debug)]
pub struct Queue<V> {
    fd: OwnedFd,
    types: PhantomData<fn() -> V>,
}

impl<V: Plain> Queue<V> {
    pub(super) fn new(name: &str, fd: OwnedFd, shape: Shape) -> Result<Self> {
        shape.expect(name, 0, size_of::<V>())?;
        Ok(Queue { fd, types: PhantomData })
    }

    /// Takes the oldest value out of it; None: it is empty.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn pop(&self) -> Outcome<Option<V>> {
        let mut value = V::default();
        let (fd, out) = (self.fd.as_raw_fd(), &raw mut value);
        // SAFETY: a queue has no key; the value has the size of the map's, checked
        // when it was made, and any bytes are a value of a Plain type.
        let code = unsafe { sys::bpf_map_lookup_and_delete_elem(fd, std::ptr::null(), out.cast()) };
        match outcome(code) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// How many CPUs this system may have: their numbers are below.
///
/// # Errors
/// The system does not say.
pub fn possible_cpus() -> Result<usize> {
    // SAFETY: takes nothing.
    let cpus = unsafe { sys::libbpf_num_possible_cpus() };
    usize::try_from(cpus).map_err(|_| {
        let cause = io::Error::from_raw_os_error(cpus.saturating_neg());
        Error::os("cannot count the CPUs", cause)
    })
}

/// A per-CPU array of 64-bit counters.
#[derive(Debug)]
pub struct PerCpuArray {
    fd: OwnedFd,
    entries: u32,
    cpus: usize,
}

impl PerCpuArray {
    pub(super) fn new(name: &str, fd: OwnedFd, shape: Shape) -> Result<Self> {
        shape.expect(name, size_of::<u32>(), size_of::<u64>())?;
        Ok(PerCpuArray { fd, entries: shape.entries, cpus: possible_cpus()? })
    }

    /// Each entry, summed over the CPUs.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn sums(&self) -> Outcome<Vec<u64>> {
        // The kernel writes one value per possible CPU, each rounded up to 8 octets.
        let mut values = vec![0_u64; self.cpus];
        let mut sums = Vec::new();
        for index in 0..self.entries {
            let key = &raw const index;
            let out = values.as_mut_ptr();
            // SAFETY: the key is 4 octets, checked when the map was made; the values
            // have room for every possible CPU.
            let code =
                unsafe { sys::bpf_map_lookup_elem(self.fd.as_raw_fd(), key.cast(), out.cast()) };
            outcome(code)?;
            sums.push(values.iter().fold(0, |sum, value| value.wrapping_add(sum)));
        }
        Ok(sums)
    }
}

fn outcome(code: c_int) -> Outcome<()> {
    if code < 0 {
        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
    }
    Ok(())
}
