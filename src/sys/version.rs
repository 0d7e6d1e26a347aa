//! Which libbpf is linked in. Any thread; owns nothing.

// The only calls of libbpf that take and return plain numbers.
#![allow(unsafe_code)]

/// Major and minor version of libbpf; None if glowd was built without it.
pub fn libbpf() -> Option<(u32, u32)> {
    #[cfg(all(feature = "ebpf", target_os = "linux"))]
    {
        // SAFETY: takes nothing and returns a constant.
        let major = unsafe { libbpf_sys::libbpf_major_version() };
        // SAFETY: takes nothing and returns a constant.
        let minor = unsafe { libbpf_sys::libbpf_minor_version() };
        Some((major, minor))
    }
    #[cfg(not(all(feature = "ebpf", target_os = "linux")))]
    None
}
