//! Routes libbpf's own messages into the `log` facade, and keeps its warnings so
//! that an error can say what the verifier had against a program.
//!
//! libbpf calls back on the thread that called it; what is kept is that thread's.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_ulong, CStr};
use std::io;
use std::sync::Once;

use libbpf_sys as sys;
use log::debug;

use super::probe::is_free_of_memlock;
use crate::error::Error;
use crate::privileges::{memlock_limit, Capabilities, RAISE_MEMLOCK};

/// Longest message that is looked at; a verifier's log ends with what matters, and
/// libbpf hands out its end.
const MESSAGE_SIZE: usize = 64 * 1024;
/// How many warnings are kept: the first says what failed, later ones only what
/// failed in turn.
const KEPT: usize = 16;
/// How many lines of the verifier's log are worth a reader's time.
const VERIFIER_LINES: usize = 20;

thread_local! {
    static WARNINGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

unsafe extern "C" {
    // vsnprintf(3). The argument list is only passed through, in the form in which
    // libbpf-sys declares it: a pointer, on every architecture that Rust and libbpf
    // share.
    fn vsnprintf(
        buffer: *mut c_char,
        size: c_ulong,
        format: *const c_char,
        arguments: *mut sys::__va_list_tag,
    ) -> c_int;
}

/// Has libbpf report here from now on. Each thread's kept warnings start afresh.
pub(super) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `print` lives as long as the program and never unwinds.
        unsafe { sys::libbpf_set_print(Some(print)) };
    });
    WARNINGS.with(|kept| kept.borrow_mut().clear());
}

/// An error of libbpf: what could not be done, the system's cause, and what libbpf
/// or the kernel's verifier said about it first. `code` is libbpf's negative errno.
pub(super) fn failure(what: impl Into<String>, code: c_int) -> Error {
    let errno = code.saturating_abs();
    let cause = io::Error::from_raw_os_error(errno);
    // The verifier refuses programs of those who lack CAP_PERFMON with reasons that do
    // not name it, and libbpf guesses at others when bpf(2) is not allowed at all.
    let refused = errno == libc::EPERM || errno == libc::EACCES;
    let lacking = if refused { lacking_capabilities() } else { None };
    let reasons: Vec<String> = match lacking {
        Some(lacking) if errno == libc::EPERM => vec![lacking],
        // Before 5.11 that is what is said of memory that may not be locked.
        None if errno == libc::EPERM => {
            let complaint = complaint();
            let limit = memlock_limit().filter(|_| !is_free_of_memlock());
            limit.map(low_memlock).or(complaint).into_iter().collect()
        }
        lacking => complaint().into_iter().chain(lacking).collect(),
    };
    if reasons.is_empty() {
        return Error::os(what, cause);
    }
    Error::os(what, io::Error::other(format!("{cause}: {}", reasons.join(": "))))
}

/// Which capabilities (capabilities(7)) for eBPF on interfaces this process lacks, as a
/// sentence that names them.
pub fn lacking_capabilities() -> Option<String> {
    let names = Capabilities::of_this_process().map(Capabilities::lacking)?;
    (!names.is_empty()).then(|| format!("glowd lacks {}", names.join(", ")))
}

fn low_memlock(octets: u64) -> String {
    format!(
        "RLIMIT_MEMLOCK is {octets} octets, by which kernels before 5.11 limit eBPF \
         ({RAISE_MEMLOCK})"
    )
}

unsafe extern "C" fn print(
    level: sys::libbpf_print_level,
    format: *const c_char,
    arguments: *mut sys::__va_list_tag,
) -> c_int {
    // What it does at each step, hundreds of lines, is for who works on libbpf.
    if level != sys::LIBBPF_WARN {
        return 0;
    }
    let mut buffer = vec![0; MESSAGE_SIZE];
    // SAFETY: the buffer has the size that is passed; format and arguments belong
    // together and are libbpf's, valid until this returns and used only here.
    unsafe { vsnprintf(buffer.as_mut_ptr().cast(), buffer.len() as c_ulong, format, arguments) };
    let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default().to_string_lossy();
    let text = text.trim_end();
    // A logger or an allocator that panics must not unwind into C.
    let _ = std::panic::catch_unwind(|| {
        keep(text);
        // A verifier's log is thousands of lines, of which the last tell.
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(VERIFIER_LINES)..] {
            debug!("{line}");
        }
    });
    0
}

fn keep(text: &str) {
    WARNINGS.with(|kept| {
        if let Ok(mut kept) = kept.try_borrow_mut() {
            if kept.len() < KEPT {
                kept.push(text.to_owned());
            }
        }
    });
}

fn complaint() -> Option<String> {
    WARNINGS.with(|kept| complaint_of(&kept.borrow()))
}

/// One line out of libbpf's warnings: the first, and the verifier's reason, which
/// is the last line of its log that is not statistics.
fn complaint_of(warnings: &[String]) -> Option<String> {
    let clean = |line: &str| line.trim_start_matches("libbpf: ").trim().to_owned();
    let first = clean(warnings.first()?.lines().next()?);
    let log = warnings.iter().find(|warning| warning.contains("BEGIN PROG LOAD LOG"));
    let statistics = ["processed ", "verification time", "stack depth", "--", "libbpf:", "mark_"];
    let reason = log.and_then(|log| {
        let told = |line: &&str| {
            let line = line.trim();
            !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start))
        };
        log.lines().rfind(told).map(clean)
    });
    Some(match reason {
        Some(reason) => format!("{first}: {reason}"),
        None => first,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_the_cause_in_one_line() {
        let warnings = [
            "libbpf: prog 'marker_eth': BPF program load failed: -EACCES",
            "libbpf: prog 'marker_eth': -- BEGIN PROG LOAD LOG --\n0: R1=ctx() R10=fp0\n\
             ; int x = *data;\n3: (71) r1 = *(u8 *)(r1 +0)\n\
             invalid access to packet, off=0 size=1, R1(id=0,off=0,r=0)\n\
             R1 offset is outside of the packet\n\
             processed 4 insns (limit 1000000) max_states_per_insn 0\n\
             -- END PROG LOAD LOG --",
            "libbpf: failed to load object 'marker'",
        ];
        let warnings: Vec<String> = warnings.map(String::from).into();
        assert_eq!(
            complaint_of(&warnings).as_deref(),
            Some(
                "prog 'marker_eth': BPF program load failed: -EACCES: \
                 R1 offset is outside of the packet"
            )
        );
        assert_eq!(complaint_of(&[]), None);
    }
}
