//! `glowd selftest` on the kernel at hand: as root, as the unit's user, without what it
//! needs, and interrupted. It has to leave nothing behind in any case.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::{skip_unless_root, Namespace, Nobody, UNIT};

const STRATEGIES: [&str; 4] = ["label", "hopByHop", "destination", "hopByHopDestination"];

/// A self-test that runs. It is killed when dropped.
struct Selftest {
    child: Child,
    /// The user's, with the binary, if it is not root.
    _home: Option<TempDir>,
    /// Where it keeps its files.
    dir: TempDir,
}

impl Drop for Selftest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Selftest {
    fn start(namespace: &Namespace, user: Option<Nobody>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
        let home = user.map(|_| tempfile::tempdir().unwrap());
        let mut command = match (user, &home) {
            (Some(user), Some(home)) => user.command(home),
            _ => Command::new(env!("CARGO_BIN_EXE_glowd")),
        };
        command.arg("selftest").env("TMPDIR", dir.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = namespace.enter(|| command.spawn()).unwrap();
        Selftest { child, _home: home, dir }
    }

    /// Waits for its end: status, what it printed, and what it said on standard error.
    /// Nothing of it may be left.
    fn finish(mut self, namespace: &Namespace) -> (Option<i32>, Vec<String>, String) {
        let (mut out, mut err) = (String::new(), String::new());
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut out).unwrap();
        }
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        let status = self.child.wait().unwrap();
        nothing_is_left(namespace, self.dir.path());
        (status.code(), out.lines().map(str::to_owned).collect(), err)
    }
}

fn nothing_is_left(namespace: &Namespace, dir: &Path) {
    let links = namespace.run("ip -o link show");
    assert!(links.lines().all(|link| link.contains(": lo:")), "{links}");
    let files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.is_empty(), "{files:?}");
}

/// The text of the line that begins so.
fn line<'a>(lines: &'a [String], start: &str) -> &'a str {
    let found = lines.iter().find_map(|line| line.strip_prefix(start));
    found.unwrap_or_else(|| panic!("no {start:?} in {lines:#?}"))
}

/// Whatever the kernel has, nothing fails, and all that it has is used.
fn passes(user: Option<Nobody>) {
    if skip_unless_root() {
        return;
    }
    let namespace = Namespace::new();
    let (status, lines, err) = Selftest::start(&namespace, user).finish(&namespace);
    assert_eq!((status, err.as_str()), (Some(0), ""), "{lines:#?}");
    assert!(lines.iter().all(|line| line.starts_with("ok   ") || line.starts_with("none ")));
    let tcx = lines.iter().any(|line| line.starts_with("ok   tcx: "));
    let default = if tcx { "tcx" } else { "clsact" };
    let default = format!("attached by {default}, and off again");
    assert!(line(&lines, "ok   auto label: ").ends_with(&default), "{lines:#?}");
    for attach in if tcx { &["tcx", "clsact"][..] } else { &["clsact"] } {
        for strategy in STRATEGIES {
            let text = line(&lines, &format!("ok   {attach} {strategy}: "));
            assert!(text.contains(" packets of TCP ") && text.contains(" 20 of UDP marked"));
        }
    }
    let cgroups = fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" - cgroup2 ");
    let word = if cgroups { "ok   " } else { "none " };
    for what in ["reports of connections", "enricher skops"] {
        line(&lines, &format!("{word}{what}: "));
    }
    line(&lines, "ok   command names: ");
    let pair = line(&lines, "ok   veth: ");
    assert_eq!(pair.contains("a network namespace for each end"), user.is_none(), "{pair}");
    assert!(line(&lines, "ok   result: ").starts_with("marking works here, in all "));
}

#[test]
fn it_passes_as_root() {
    passes(None);
}

#[test]
fn it_passes_as_the_user_of_the_unit() {
    passes(Some(UNIT));
}

#[test]
fn what_it_may_not_do_is_named() {
    if skip_unless_root() {
        return;
    }
    let namespace = Namespace::new();
    let all = "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON";
    for (capabilities, lacking) in [
        ("-all", all),
        ("-all,+bpf,+perfmon", "CAP_NET_ADMIN"),
        ("-all,+bpf,+net_admin", "CAP_PERFMON"),
    ] {
        let user = Some(Nobody(capabilities));
        let (status, lines, err) = Selftest::start(&namespace, user).finish(&namespace);
        assert_eq!(status, Some(71), "{lines:#?}");
        let text = line(&lines, "FAIL capabilities: ");
        assert!(text.starts_with(&format!("glowd lacks {lacking}; marking takes {all}: ")));
        assert!(line(&lines, "FAIL result: ").contains(&format!("glowd lacks {lacking}")));
        assert_eq!(err, format!("glowd: selftest: glowd lacks {lacking}\n"));
    }
}

#[test]
fn a_host_without_ipv6_is_told_so() {
    if skip_unless_root() {
        return;
    }
    let namespace = Namespace::new();
    namespace.sysctl("ipv6/conf/default/disable_ipv6", "1");
    let (status, lines, _) = Selftest::start(&namespace, Some(UNIT)).finish(&namespace);
    assert_eq!(status, Some(71), "{lines:#?}");
    assert!(line(&lines, "FAIL result: ").contains("IPv6 is disabled"), "{lines:#?}");
}

#[test]
fn a_signal_ends_it_and_nothing_is_left() {
    if skip_unless_root() {
        return;
    }
    for (user, signal, name) in
        [(None, Signal::SIGINT, "SIGINT"), (Some(UNIT), Signal::SIGTERM, "SIGTERM")]
    {
        let namespace = Namespace::new();
        let mut selftest = Selftest::start(&namespace, user);
        // A daemon runs, or is about to.
        let stdout = BufReader::new(selftest.child.stdout.take().unwrap());
        let mut lines = stdout.lines().map(Result::unwrap);
        lines.find(|line| line.starts_with("ok   auto label: ")).expect("the first way");
        let pid = Pid::from_raw(selftest.child.id().try_into().unwrap());
        kill(pid, signal).unwrap();
        let rest: Vec<String> = lines.collect();
        let (status, _, err) = selftest.finish(&namespace);
        assert_eq!(status, Some(71), "{rest:#?}");
        assert!(err.starts_with("glowd: selftest: ") && err.contains(name), "{err}");
        line(&rest, "none result: ");
    }
}
