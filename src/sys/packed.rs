//! The objects of bpf/ as build.rs packs them into the program, and its texts: with
//! zlib, which is linked for libelf anyway. They are three quarters smaller by that, and
//! unpacked only to be loaded or read, by the thread that does so.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_ulong};
use std::ops::Deref;
use std::slice;

// So that what brings zlib is linked.
use libbpf_sys as _;

use crate::error::{Error, Result};

unsafe extern "C" {
    // zlib.h: 0 if all of the stream was unpacked and there was room for it.
    fn uncompress(
        to: *mut u8,
        to_size: *mut c_ulong,
        stream: *const u8,
        stream_size: c_ulong,
    ) -> c_int;
}

/// bpf/connections.bpf.c, compiled.
pub static CONNECTIONS: Packed =
    Packed(include_bytes!(concat!(env!("OUT_DIR"), "/connections.bpf.z")));
/// bpf/marker.bpf.c, compiled.
pub static MARKER: Packed = Packed(include_bytes!(concat!(env!("OUT_DIR"), "/marker.bpf.z")));
/// bpf/processes.bpf.c, compiled.
pub static PROCESSES: Packed = Packed(include_bytes!(concat!(env!("OUT_DIR"), "/processes.bpf.z")));
/// bpf/skops.bpf.c, compiled.
pub static SKOPS: Packed = Packed(include_bytes!(concat!(env!("OUT_DIR"), "/skops.bpf.z")));
/// bpf/selftest.bpf.c, compiled.
pub static SELFTEST: Packed = Packed(include_bytes!(concat!(env!("OUT_DIR"), "/selftest.bpf.z")));

/// A file that is packed: its size, 4 octets with the lowest first, and what zlib
/// made of it (RFC 1950).
#[derive(Debug)]
pub struct Packed(pub(crate) &'static [u8]);

impl Packed {
    /// Unpacks it.
    ///
    /// # Errors
    /// The program is damaged.
    pub fn unpack(&self) -> Result<Unpacked> {
        let damaged = || Error::internal("what is packed in this program is damaged");
        let (size, stream) = self.0.split_first_chunk().ok_or_else(damaged)?;
        let size = u32::from_le_bytes(*size);
        let mut unpacked =
            Unpacked { words: vec![0; size.div_ceil(8) as usize], size: size as usize };
        let mut written = c_ulong::from(size);
        let to = unpacked.words.as_mut_ptr().cast();
        let stream_size = stream.len() as c_ulong;
        // SAFETY: it writes no more than `written` octets, for which there is room.
        let code = unsafe { uncompress(to, &raw mut written, stream.as_ptr(), stream_size) };
        if code != 0 || written != c_ulong::from(size) {
            return Err(damaged());
        }
        Ok(unpacked)
    }
}

/// An ELF file at an address that libelf can read numbers from.
#[derive(Debug)]
pub struct Unpacked {
    words: Vec<u64>,
    size: usize,
}

impl Deref for Unpacked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the words are of that many octets at least, and any octet is a u8.
        unsafe { slice::from_raw_parts(self.words.as_ptr().cast(), self.size) }
    }
}
