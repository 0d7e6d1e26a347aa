//! Connections where there is no eBPF: they cannot be watched, and this says why.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::{Connection, Open, Ports, Wanted};
use crate::error::{Error, Result};
use crate::flow::FlowId;
#[cfg(target_os = "linux")]
use crate::net::cgroups::Places;

/// There is none: `watch` refuses.
#[derive(Debug)]
pub enum Connections {}

impl Connections {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn watch(_: &Path, _: &Wanted) -> Result<Self> {
        Err(Error::config(if cfg!(target_os = "linux") {
            "this glowd was built without the ebpf feature, which it takes"
        } else {
            "it takes Linux"
        }))
    }

    /// There is none.
    ///
    /// # Errors
    /// None.
    pub fn want(&self, _: &Wanted) -> Result<()> {
        match *self {}
    }

    /// There is none.
    pub fn read(&mut self) -> Option<Connection> {
        match *self {}
    }

    /// There is none.
    pub fn is_over(&mut self, _: &FlowId, _: u64, _: u32) -> bool {
        match *self {}
    }

    /// There is none.
    #[cfg(target_os = "linux")]
    pub fn places(&self) -> Places {
        match *self {}
    }

    /// There is none.
    ///
    /// # Errors
    /// None.
    pub fn open(&mut self, _: &Ports) -> Result<Vec<Open>> {
        match *self {}
    }

    /// There is none.
    pub fn lost(&self) -> u64 {
        match *self {}
    }
}

impl AsFd for Connections {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match *self {}
    }
}
