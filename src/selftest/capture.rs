//! The capture at the far end: an eBPF program on ingress that copies how each IPv6
//! packet begins (bpf/selftest.bpf.c). Owns program and queue; the qdisc goes with the
//! cable.

use std::os::fd::AsFd;

use super::cable::Cable;
use super::packet::{decode, Packet};
use crate::error::{Error, Result};
use crate::net::netlink::Socket;
use crate::net::tc::{self, Hook};
use crate::sys::abi::Captured;
use crate::sys::bpf::{Link, Map, Object, Queue};
use crate::sys::probe;

/// A running capture.
pub(super) struct Capture {
    queue: Queue<Captured>,
    lost: Map<u32, u64>,
    /// Why there is no clsact, if there is none.
    clsact: std::result::Result<(), String>,
    /// By tcx if not by clsact.
    _link: Option<Link>,
}

impl Capture {
    /// Starts it.
    pub(super) fn new(cable: &Cable, has_gso_size: bool) -> Result<Self> {
        let object = load(has_gso_size)?;
        let program = object.program("capture")?;
        let index = cable.far.interface.index;
        let (clsact, link) = cable.at_far(|| {
            let mut socket = Socket::route()?;
            let clsact = tc::add_clsact(&mut socket, index)
                .and_then(|()| {
                    let fd = program.as_fd();
                    tc::add_filter(&mut socket, index, Hook::Ingress, 1, fd, "glowd selftest")
                })
                .map_err(|failure| failure.to_string());
            let link = match &clsact {
                Ok(()) => None,
                Err(cause) => Some(program.attach_tcx(index, Hook::Ingress).map_err(|error| {
                    let what = "cannot attach a program, neither by clsact (are the modules \
                                sch_ingress and cls_bpf there?)";
                    Error::os(format!("{what}: {cause}; nor by tcx"), error)
                })?),
            };
            Ok::<_, Error>((clsact, link))
        })??;
        let (queue, lost) = (object.queue("captured")?, object.map("lost")?);
        Ok(Capture { queue, lost, clsact, _link: link })
    }

    /// Whether the kernel has clsact.
    pub(super) fn clsact(&self) -> std::result::Result<(), String> {
        self.clsact.clone()
    }

    /// How it is attached.
    pub(super) fn way(&self) -> &'static str {
        if self.clsact.is_ok() {
            "clsact"
        } else {
            "tcx"
        }
    }

    /// What has arrived since the last call: all of it, in order.
    ///
    /// # Errors
    /// It lost packets, or one cannot be decoded.
    pub(super) fn drain(&mut self) -> Result<Vec<Packet>> {
        let fail = |error| Error::os("cannot read the capture", error);
        let mut packets = Vec::new();
        while let Some(captured) = self.queue.pop().map_err(fail)? {
            packets.extend(decode(&captured));
        }
        match self.lost.lookup(&0).map_err(fail)? {
            0 => Ok(packets),
            lost => Err(Error::internal(format!("the capture itself lost {lost} packets"))),
        }
    }
}

/// Loads the capture.
pub(super) fn load(has_gso_size: bool) -> Result<Object> {
    let mut object = probe::open("capture")?;
    object.set_rodata(".rodata.selftest", &u32::from(has_gso_size))?;
    object.load()
}
