//! What the kernel's eBPF has, asked of the kernel itself and not guessed from its
//! version, since distributions bring later features to older kernels. Runs on the
//! thread of whoever asks, and owns nothing.
#![allow(unsafe_code)]

use std::ptr;

use libbpf_sys as sys;

use super::libbpf_log::listen;

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

/// Whether the kernel makes maps that forget their oldest entries (4.10). Also yes if
/// glowd may not ask.
pub fn has_lru_maps() -> bool {
    listen();
    // SAFETY: no options are passed.
    let answer = unsafe { sys::libbpf_probe_bpf_map_type(sys::BPF_MAP_TYPE_LRU_HASH, ptr::null()) };
    answer != 0
}
