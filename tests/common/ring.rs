//! Frames sent from memory that is shared with the kernel (packet(7),
//! PACKET_TX_RING). Of such a packet only the Ethernet header is in its linear
//! part, all the rest is in pages.
//!
//! `unsafe`, because the ring is mapped memory.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;
use nix::sys::socket::{sendto, setsockopt, LinkAddr, MsgFlags};
// The first expands to the others.
use nix::{setsockopt_impl, sockopt_impl};

use super::netns::Namespace;
use super::raw::sending_socket;

sockopt_impl!(
    /// The layout of a frame's header in the ring.
    Version,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VERSION,
    libc::c_int
);
sockopt_impl!(
    /// Makes the ring.
    Ring,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_TX_RING,
    libc::tpacket_req
);

/// A frame's place, its header included; a page holds two.
const PLACE: usize = 2048;
const PLACES: usize = 64;
const SIZE: usize = PLACE * PLACES;
/// Where the octets are in it, behind the aligned `tpacket2_hdr`.
const DATA: usize = 32;

/// A ring that takes a few frames, each in a place of its own.
pub(crate) struct TxRing {
    socket: OwnedFd,
    device: LinkAddr,
    memory: NonNull<u8>,
    used: usize,
}

impl TxRing {
    pub(crate) fn new(namespace: &Namespace, device: &str) -> Self {
        let (socket, device) = sending_socket(namespace, device);
        let version = libc::tpacket_versions::TPACKET_V2 as libc::c_int;
        setsockopt(&socket, Version, &version).expect("PACKET_VERSION");
        let number = |value: usize| libc::c_uint::try_from(value).expect("small");
        let request = libc::tpacket_req {
            tp_block_size: number(2 * PLACE),
            tp_block_nr: number(PLACES / 2),
            tp_frame_size: number(PLACE),
            tp_frame_nr: number(PLACES),
        };
        setsockopt(&socket, Ring, &request).expect("PACKET_TX_RING");
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = socket.as_raw_fd();
        // SAFETY: a new mapping, where the kernel chooses, of the ring's whole size.
        let memory =
            unsafe { libc::mmap(ptr::null_mut(), SIZE, protection, libc::MAP_SHARED, fd, 0) };
        assert_ne!(memory, libc::MAP_FAILED, "mmap");
        let memory = NonNull::new(memory.cast()).expect("mapped");
        TxRing { socket, device, memory, used: 0 }
    }

    /// Sends a frame and waits until the device has taken it.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        assert!(self.used < PLACES && frame.len() <= PLACE - DATA, "no place for it");
        // SAFETY: below PLACES, so it is inside the mapping.
        let place = unsafe { self.memory.add(self.used * PLACE) };
        self.used += 1;
        // SAFETY: a place is longer than this offset.
        let data = unsafe { place.add(DATA) };
        // SAFETY: the frame fits, as asserted, and the kernel does not touch a place
        // that was not handed over yet.
        unsafe { ptr::copy_nonoverlapping(frame.as_ptr(), data.as_ptr(), frame.len()) };
        // SAFETY: inside the place.
        let length = unsafe { place.add(4) };
        // SAFETY: tp_len of tpacket2_hdr: aligned, and in the mapping while self lives.
        let length = unsafe { AtomicU32::from_ptr(length.as_ptr().cast()) };
        // SAFETY: the same for tp_status, which the kernel changes as an atomic value.
        let status = unsafe { AtomicU32::from_ptr(place.as_ptr().cast()) };
        length.store(u32::try_from(frame.len()).expect("small"), Ordering::Relaxed);
        status.store(libc::TP_STATUS_SEND_REQUEST, Ordering::Release);
        let sent = sendto(self.socket.as_raw_fd(), &[], &self.device, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
        assert_eq!(status.load(Ordering::Acquire), libc::TP_STATUS_AVAILABLE);
    }
}

impl Drop for TxRing {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), SIZE) };
    }
}
