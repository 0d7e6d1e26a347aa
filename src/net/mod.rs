//! Talking to the network and the kernel, in safe code.

pub mod addresses;
#[cfg(target_os = "linux")]
pub mod changes;
pub mod collectors;
pub mod connections;
pub mod host;
pub mod http;
pub mod inbox;
#[cfg(target_os = "linux")]
pub mod interfaces;
pub mod ipv6;
#[cfg(target_os = "linux")]
pub mod netlink;
pub mod poller;
pub mod ports;
pub mod prefix;
#[cfg(target_os = "linux")]
pub mod sock_diag;
#[cfg(target_os = "linux")]
pub mod tap;
#[cfg(target_os = "linux")]
pub mod tc;
pub mod udp;
#[cfg(target_os = "linux")]
pub mod veth;
