//! What the kernel's eBPF has, asked of the kernel itself and not guessed from its
//! version, since distributions bring later features to older kernels. Runs on the
//! thread of whoever asks, and owns nothing.
#![allow(unsafe_code)]

use std::ptr;

use libbpf_sys as sys;

use super::bpf::{OpenObject, SELFTEST};
use super::libbpf_log::listen;
use crate::error::Result;

/// Whether the kernel has that helper for tc programs. Also yes if glowd may not
/// ask, which loading will say better.
fn has_helper(helper: sys::bpf_func_id) -> bool {
    listen();
    // SAFETY: no options are passed.
    let answer =
        unsafe { sys::libbpf_probe_bpf_helper(sys::BPF_PROG_TYPE_SCHED_CLS, helper, ptr::null()) };
    answer != 0
}

/// Whether the kernel has the helper bpf_check_mtu (5.12) for tc programs. Also
/// yes if glowd may not ask.
pub fn has_check_mtu() -> bool {
    has_helper(sys::BPF_FUNC_check_mtu)
}

/// Whether eBPF maps and programs are accounted to the control group and no longer
/// limited by RLIMIT_MEMLOCK (5.11). It cannot be asked for; a helper that came with
/// the same version can, which is how libbpf decides too. Also yes if glowd may not
/// ask.
pub fn is_free_of_memlock() -> bool {
    has_helper(sys::BPF_FUNC_ktime_get_coarse_ns)
}

/// Whether programs can ask for the jiffies (5.6) and user space can map arrays (5.5).
/// Also yes if glowd may not ask.
pub fn can_count() -> bool {
    has_helper(sys::BPF_FUNC_jiffies64)
}

/// Whether the kernel makes maps that forget their oldest entries (4.10). Also no if
/// glowd may not ask.
pub fn has_lru_maps() -> bool {
    listen();
    // SAFETY: no options are passed.
    let answer = unsafe { sys::libbpf_probe_bpf_map_type(sys::BPF_MAP_TYPE_LRU_HASH, ptr::null()) };
    answer != 0
}

/// Whether the kernel has ring buffers (5.8). Also no if glowd may not ask.
pub fn has_ring_buffers() -> bool {
    listen();
    // SAFETY: no options are passed.
    let answer = unsafe { sys::libbpf_probe_bpf_map_type(sys::BPF_MAP_TYPE_RINGBUF, ptr::null()) };
    answer != 0
}

/// Opens bpf/selftest.bpf.c, of whose programs only `program` will be loaded.
///
/// # Errors
/// None that are known, but libbpf may refuse.
pub fn open(program: &str) -> Result<OpenObject> {
    let mut object = OpenObject::from_memory("selftest", &SELFTEST.unpack()?)?;
    object.retain_programs(|name| name == program)?;
    Ok(object)
}

/// What the header strategies use and label does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// What it is, with the version of Linux that brought it.
    pub text: &'static str,
    /// Whether the kernel has it. Also no if glowd may not load programs.
    pub there: bool,
}

/// Asks for each of them.
pub fn for_headers() -> [Feature; 3] {
    let loads = |program| open(program).and_then(OpenObject::load).is_ok();
    [
        Feature { name: "gso_size", text: "in __sk_buff, 5.7", there: loads("try_gso_size") },
        Feature { name: "global functions", text: "in eBPF, 5.6", there: loads("try_function") },
        Feature {
            name: "BPF_F_ADJ_ROOM_FIXED_GSO",
            text: "of bpf_skb_adjust_room, 4.20",
            there: adjusts_room().unwrap_or(false),
        },
    ]
}

/// The names of those that the kernel lacks; none if it loads no programs at all, for
/// which there is another reason.
pub fn lacks_for_headers() -> Vec<&'static str> {
    if open("capture").and_then(OpenObject::load).is_err() {
        return Vec::new();
    }
    for_headers().iter().filter(|feature| !feature.there).map(|feature| feature.name).collect()
}

/// Whether bpf_skb_adjust_room knows the flag, which it says when it runs.
fn adjusts_room() -> Result<bool> {
    let object = open("try_adjust_room")?.load()?;
    // An Ethernet header with the type of IPv6, then IPv6 and UDP.
    let mut packet = vec![0; 14 + 40 + 8];
    packet[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    (packet[19], packet[20]) = (8, 17);
    Ok(object.program("try_adjust_room")?.test_run(&packet, None, 1)?.verdict == 0)
}
