//! What this process may do with eBPF: capabilities(7), and RLIMIT_MEMLOCK of
//! getrlimit(2). Read from proc(5) by whoever asks; owns nothing.

use std::fs;

const CAP_NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const CAP_SYS_ADMIN: (u32, &str) = (21, "CAP_SYS_ADMIN");
const CAP_SYS_RESOURCE: (u32, &str) = (24, "CAP_SYS_RESOURCE");
const CAP_PERFMON: (u32, &str) = (38, "CAP_PERFMON");
const CAP_BPF: (u32, &str) = (39, "CAP_BPF");

/// What marking takes.
const NEEDED: &[(u32, &str)] = &[CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON];
/// The same on kernels before 5.8.
const NEEDED_ONCE: &[(u32, &str)] = &[CAP_SYS_ADMIN, CAP_NET_ADMIN];

/// The effective capabilities of a process, and those that its kernel has.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    effective: u64,
    needed: &'static [(u32, &'static str)],
}

impl Capabilities {
    /// This process's; None: /proc does not say.
    pub fn of_this_process() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
        Self::parse(&status, last.trim().parse().unwrap_or(CAP_BPF.0))
    }

    /// From a /proc/PID/status, and the highest capability that the kernel knows.
    fn parse(status: &str, last: u32) -> Option<Self> {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        let effective = u64::from_str_radix(line.trim(), 16).ok()?;
        Some(Capabilities {
            effective,
            needed: if last < CAP_BPF.0 { NEEDED_ONCE } else { NEEDED },
        })
    }

    /// Those of them that concern glowd, by name.
    pub fn names(self) -> Vec<&'static str> {
        let all = NEEDED.iter().chain([&CAP_SYS_ADMIN]);
        all.filter(|(bit, _)| self.has(*bit)).map(|(_, name)| *name).collect()
    }

    /// What marking packets takes on this kernel.
    pub fn needed(self) -> Vec<&'static str> {
        self.needed.iter().map(|(_, name)| *name).collect()
    }

    /// What marking packets takes and the process lacks. CAP_SYS_ADMIN stands for those
    /// that were part of it before 5.8.
    pub fn lacking(self) -> Vec<&'static str> {
        let stands_for = |bit| bit != CAP_NET_ADMIN.0 && self.may_make_namespaces();
        let lacks = |(bit, _): &&(u32, &str)| !self.has(*bit) && !stands_for(*bit);
        self.needed.iter().filter(lacks).map(|(_, name)| *name).collect()
    }

    /// CAP_SYS_ADMIN, as unshare(2) wants it.
    pub fn may_make_namespaces(self) -> bool {
        self.has(CAP_SYS_ADMIN.0)
    }

    /// CAP_SYS_RESOURCE, as setrlimit(2) wants it.
    pub fn may_raise_limits(self) -> bool {
        self.has(CAP_SYS_RESOURCE.0)
    }

    fn has(self, bit: u32) -> bool {
        self.effective & 1 << bit != 0
    }
}

/// RLIMIT_MEMLOCK in octets, by which kernels before 5.11 limit eBPF; None: unlimited, or
/// unknown.
pub fn memlock_limit() -> Option<u64> {
    parse_memlock(&fs::read_to_string("/proc/self/limits").ok()?)
}

fn parse_memlock(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What to do about too low a limit, for messages.
pub const RAISE_MEMLOCK: &str = "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited";

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(bits: &str, last: u32) -> Vec<&'static str> {
        let status = format!("CapPrm:\t0\nCapEff:\t{bits}\nCapBnd:\t0\n");
        Capabilities::parse(&status, last).unwrap().lacking()
    }

    #[test]
    fn lacking_capabilities_are_named() {
        let none: [&str; 0] = [];
        assert_eq!(lacking("000001ffffffffff", 40), none, "root");
        assert_eq!(lacking("000000c000001000", 40), none, "the three");
        assert_eq!(lacking("0000000000201000", 40), none, "CAP_SYS_ADMIN stands for two");
        assert_eq!(lacking("0000000000200000", 40), ["CAP_NET_ADMIN"], "but not for this");
        assert_eq!(lacking("0000008000001000", 40), ["CAP_PERFMON"]);
        assert_eq!(lacking("0", 40), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        // EL8: 4.18 knows neither CAP_BPF nor CAP_PERFMON.
        assert_eq!(lacking("0000000000201000", 37), none);
        assert_eq!(lacking("0", 37), ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"]);
        assert!(Capabilities::parse("CapEff:\tx\n", 40).is_none());
        let names = Capabilities::parse("CapEff:\t0000000000201000\n", 40).unwrap().names();
        assert_eq!(names, ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    }

    #[test]
    fn the_limit_of_locked_memory_is_read() {
        let limits =
            |value| format!("Max processes 1 1 processes\nMax locked memory  {value}  bytes\n");
        assert_eq!(parse_memlock(&limits("65536 65536")), Some(65_536));
        assert_eq!(parse_memlock(&limits("unlimited unlimited")), None);
        assert_eq!(parse_memlock(""), None);
    }
}
