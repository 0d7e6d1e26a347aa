//! Talking to the network and the kernel, in safe code.

#[cfg(target_os = "linux")]
pub mod changes;
pub mod host;
pub mod http;
#[cfg(target_os = "linux")]
pub mod interfaces;
#[cfg(target_os = "linux")]
pub mod netlink;
pub mod poller;
#[cfg(target_os = "linux")]
pub mod tc;
pub mod udp;
