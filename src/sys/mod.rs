//! The only folder in which `unsafe` compiles: one file per kernel object, each
//! of which turns raw calls into owned, safe types.

#[cfg(all(target_os = "linux", feature = "ebpf"))]
pub mod abi;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
pub mod bpf;
#[cfg(test)]
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod bpf_tests;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod cgroup;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
pub mod iter;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod libbpf_log;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod map;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod mapped;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
pub(crate) mod packed;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
pub mod probe;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
pub mod process;
#[cfg(all(target_os = "linux", feature = "ebpf"))]
mod ringbuf;
#[cfg(target_os = "linux")]
pub mod socket;
#[cfg(target_os = "linux")]
pub mod udp;
pub mod version;
