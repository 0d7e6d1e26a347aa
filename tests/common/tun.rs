//! A tun device: one without an Ethernet header, whose other end is a file.
//!
//! Here, as beside it in `ring`, the tests cannot do without `unsafe`: TUNSETIFF is
//! an ioctl, and no other device without a link layer is in every kernel.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::netns::Namespace;
use super::packet::{decode, Link, Packet};
use super::PATIENCE;

nix::ioctl_write_ptr_bad!(
    /// Makes the device that the file stands for (linux/if_tun.h).
    tunsetiff,
    libc::TUNSETIFF,
    libc::ifreq
);

/// The test's end of a tun device. The device lives as long as this.
pub(crate) struct Tun(File);

impl Tun {
    /// Makes a tun device in the namespace; it is not up yet.
    pub(crate) fn new(namespace: &Namespace, name: &str) -> Self {
        let file = namespace.enter(|| {
            OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun")
        });
        // SAFETY: ifreq is plain old data, for which all zeroes is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::try_from(from).expect("ASCII");
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("a short");
        let fd = file.as_raw_fd();
        // SAFETY: the file is open, and the kernel reads an ifreq and keeps no
        // reference to it.
        unsafe { tunsetiff(fd, &request) }.expect("TUNSETIFF");
        Tun(file)
    }

    /// The next packet that leaves through the device, as it is, if it does so within
    /// that time.
    pub(crate) fn take(&mut self, patience: PollTimeout) -> Option<Vec<u8>> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, patience).expect("poll") == 0 {
            return None;
        }
        let mut buffer = vec![0; 65_536];
        let length = self.0.read(&mut buffer).expect("a packet");
        buffer.truncate(length);
        Some(buffer)
    }

    /// Has a packet arrive through the device.
    pub(crate) fn put(&mut self, packet: &[u8]) {
        self.0.write_all(packet).expect("to hand a packet in");
    }

    /// The next packet that leaves through the device and that is `wanted`.
    pub(crate) fn next(&mut self, wanted: impl Fn(&Packet) -> bool) -> Packet {
        let mut buffer = vec![0; 65_536];
        loop {
            let timeout = PollTimeout::try_from(PATIENCE).expect("a timeout");
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            assert_ne!(poll(&mut fds, timeout).expect("poll"), 0, "no such packet in time");
            let length = self.0.read(&mut buffer).expect("a packet");
            match decode(Link::None, &buffer[..length], length, None) {
                Some(packet) if wanted(&packet) => return packet,
                _ => {}
            }
        }
    }
}
