//! Talking to the network and the kernel, in safe code.

pub mod udp;
pub mod http;
pub mod poller;
#[cfg(target_os = "linux")]
pub mod interfaces;
#[cfg(target_os = "linux")]
pub mod netlink;
#[cfg(target_os = "linux")]
pub mod tc;
