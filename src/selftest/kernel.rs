//! What this process may do and what the kernel has: asked, not guessed from the
//! version, since distributions bring later features to older kernels. Owns nothing.

use std::fs;
use std::path::Path;

use nix::sys::utsname::uname;

use super::capture::load;
use super::observers;
use super::report::Report;
use crate::net::tc::Hook;
use crate::privileges::{memlock_limit, Capabilities, RAISE_MEMLOCK};
use crate::sys::abi::Strategy;
use crate::sys::bpf;
use crate::sys::probe::{self, Feature};

/// The answers that decide what is tried.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    may_make_namespaces: bool,
    /// Why nothing can be tried.
    refusal: Option<String>,
    gso_size: bool,
    /// What the header strategies need and the kernel lacks.
    lacks_for_headers: Vec<&'static str>,
    tcx: bool,
}

impl Kernel {
    /// Why nothing can be tried, if so.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    pub(super) fn may_make_namespaces(&self) -> bool {
        self.may_make_namespaces
    }

    pub(super) fn has_gso_size(&self) -> bool {
        self.gso_size
    }

    pub(super) fn lacks_tcx(&self) -> Option<String> {
        (!self.tcx).then(|| "the kernel has no tcx".to_owned())
    }

    /// What the kernel lacks for the strategy, if anything.
    pub(super) fn lacks_for(&self, strategy: Strategy) -> Option<String> {
        let lacks = strategy.adds_header() && !self.lacks_for_headers.is_empty();
        lacks.then(|| format!("the kernel lacks {}", self.lacks_for_headers.join(", ")))
    }
}

/// Asks everything that needs no traffic.
pub(super) fn ask(report: &mut Report<'_>) -> Kernel {
    let mut kernel = Kernel::default();
    match uname() {
        Ok(name) => {
            let (release, machine) = (name.release().to_string_lossy(), name.machine());
            let text = format!("Linux {release} on {}", machine.to_string_lossy());
            report.ok("kernel", &text);
        }
        Err(error) => report.none("kernel", &error.to_string()),
    }
    privileges(report, &mut kernel);
    if kernel.refusal.is_none() {
        programs(report, &mut kernel);
    }
    if kernel.refusal.is_none() {
        features(report, &mut kernel);
    }
    surroundings(report);
    observers::ask(report, kernel.refusal());
    kernel
}

/// Capabilities, and the limit of locked memory where the kernel counts eBPF against it.
fn privileges(report: &mut Report<'_>, kernel: &mut Kernel) {
    let Some(capabilities) = Capabilities::of_this_process() else {
        report.fail("capabilities", "cannot read /proc/self/status");
        kernel.refusal = Some("there is no /proc".into());
        return;
    };
    let (names, lacking) = (capabilities.names(), capabilities.lacking());
    kernel.may_make_namespaces = capabilities.may_make_namespaces();
    if !lacking.is_empty() {
        let text = format!(
            "glowd lacks {}; marking takes {}: run it as root, or with what glowd.service has",
            lacking.join(", "),
            capabilities.needed().join(", ")
        );
        report.fail("capabilities", &text);
        kernel.refusal = Some(format!("glowd lacks {}", lacking.join(", ")));
        return;
    }
    report.ok("capabilities", &names.join(", "));
    let what = "locked memory";
    if probe::is_free_of_memlock() {
        return report.ok(what, "does not limit eBPF (5.11)");
    }
    match memlock_limit() {
        None => report.ok(what, "unlimited, as eBPF wants it before 5.11"),
        Some(_) if capabilities.may_raise_limits() => {
            report.ok(what, "limits eBPF before 5.11; glowd may raise the limit, and does");
        }
        Some(octets) => {
            let text =
                format!("{octets} octets, by which this kernel limits eBPF: {RAISE_MEMLOCK}");
            report.fail(what, &text);
            kernel.refusal = Some("the limit of locked memory (RLIMIT_MEMLOCK) is low".into());
        }
    }
}

/// Whether bpf(2) takes programs like glowd's at all.
fn programs(report: &mut Report<'_>, kernel: &mut Kernel) {
    let what = "bpf(2)";
    // The second differs in nothing but this field.
    kernel.gso_size = probe::open("try_gso_size").and_then(bpf::OpenObject::load).is_ok();
    match load(kernel.gso_size) {
        Ok(_) => report.ok(what, "loads programs of glowd's"),
        Err(error) => {
            report.fail(what, &format!("{error}{}", why_refused()));
            kernel.refusal = Some("the kernel does not load programs of glowd's".into());
        }
    }
}

/// What besides capabilities may forbid bpf(2).
fn why_refused() -> String {
    let mut reasons = Vec::new();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|n| n.trim() == "2")) {
        reasons.push("a filter of system calls (seccomp) is in force, which has to allow bpf");
    }
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        reasons.push("the kernel is locked down for confidentiality");
    }
    if Path::new("/sys/fs/selinux/enforce").exists() {
        reasons.push("SELinux may forbid it (ausearch -m avc)");
    }
    if reasons.is_empty() {
        return String::new();
    }
    format!(" ({})", reasons.join("; "))
}

/// What the packet path uses, each with the version of Linux that has brought it.
fn features(report: &mut Report<'_>, kernel: &mut Kernel) {
    for Feature { name, text, there } in probe::for_headers() {
        if there {
            report.ok(name, text);
        } else {
            report.none(name, &format!("{text}; only the strategy label works without"));
            kernel.lacks_for_headers.push(name);
        }
    }
    if probe::has_check_mtu() {
        report.ok("bpf_check_mtu", "5.12");
    } else {
        report.none(
            "bpf_check_mtu",
            "5.12; the header strategies keep to the MTU as of glowd's start instead",
        );
    }
    if probe::has_lru_maps() {
        report.ok("LRU maps", "4.10");
    } else {
        report.fail("LRU maps", "4.10; glowd's programs do not load without");
    }
    // The loopback interface has the number 1 in every namespace. Asking changes nothing.
    match bpf::tcx_programs(1, Hook::Egress) {
        Ok(_) => {
            kernel.tcx = true;
            report.ok("tcx", "6.6");
        }
        Err(error) => {
            report.none("tcx", &format!("6.6 ({error}); programs are attached by clsact instead"));
        }
    }
}

/// What the marker does without.
fn surroundings(report: &mut Report<'_>) {
    let btf = "/sys/kernel/btf/vmlinux";
    if Path::new(btf).exists() {
        report.ok("BTF", btf);
    } else {
        report.none("BTF", &format!("no {btf}; the marker needs none"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_for_headers_only() {
        let kernel = Kernel { lacks_for_headers: vec!["gso_size"], ..Kernel::default() };
        assert_eq!(kernel.lacks_for(Strategy::Label), None);
        let lacks = kernel.lacks_for(Strategy::HopByHop).unwrap();
        assert_eq!(lacks, "the kernel lacks gso_size");
    }
}
