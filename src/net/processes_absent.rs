//! Stands in for processes.rs in builds without eBPF.

use std::convert::Infallible;

use crate::error::{Error, Result};

/// A process that has a socket open.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// Of the socket.
    pub inode: u32,
    /// Of the process.
    pub pid: u32,
    /// Its name.
    pub command: &'a [u8],
    /// The id of its control group.
    pub cgroup: u64,
}

/// There is none.
#[derive(Debug)]
pub struct Processes(Infallible);

impl Processes {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn open() -> Result<Self> {
        Err(Error::config("which process has a socket takes eBPF, which this build is without"))
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn each(&self, _: impl FnMut(Holder<'_>)) -> Result<()> {
        match self.0 {}
    }
}
