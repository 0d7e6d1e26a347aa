//! Talking to the network and the kernel, in safe code.

pub mod addresses;
pub mod attributes;
#[cfg(target_os = "linux")]
pub mod cgroups;
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
#[cfg_attr(not(feature = "ebpf"), path = "processes_absent.rs")]
pub mod processes;
#[cfg(target_os = "linux")]
pub mod sock_diag;
#[cfg(target_os = "linux")]
pub mod tap;
#[cfg(target_os = "linux")]
pub mod tc;
pub mod tcp_info;
pub mod udp;
#[cfg(target_os = "linux")]
pub mod veth;

/// What `call` returns, again and again while a signal interrupts it: on a socket with a
/// timeout it may, although nobody handles signals (signal(7)).
///
/// # Errors
/// Those of the call but for that.
pub fn uninterrupted<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
