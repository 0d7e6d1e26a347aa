//! A host with systemd: a container whose network is one end of a cable, the other end
//! being a capture's. glowd is installed there as the package does it.

use std::fs::{self, Permissions};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use glowd::net::tc::Hook;
use glowd::sys::bpf::tcx_programs;
use nix::net::if_::if_nametoindex;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::{json, Value};

use crate::common::packet::Packet;
use crate::common::{udp, v6, wait_for, Capture, Pair, DEVICE, HERE, PATIENCE, THERE};
use crate::rig::{is_marked, is_plain, line, Strategy, ATLAS};

/// systemd-nspawn(1) locks its tree.
static ONE: Mutex<()> = Mutex::new(());

/// The flow that shows whether the marker works: its ports.
const PROBE: (u16, u16) = (9, 1009);

/// What the package installs: file of the tree, place, mode.
const FILES: &[(&str, &str, u32)] = &[
    ("rpm/glowd.service", "usr/lib/systemd/system/glowd.service", 0o644),
    ("rpm/glowd@.service", "usr/lib/systemd/system/glowd@.service", 0o644),
    ("rpm/glowd-registry.service", "usr/lib/systemd/system/glowd-registry.service", 0o644),
    ("rpm/glowd-registry.timer", "usr/lib/systemd/system/glowd-registry.timer", 0o644),
    ("rpm/glowd.preset", "usr/lib/systemd/system-preset/90-glowd.preset", 0o644),
    ("rpm/refresh-registry", "usr/libexec/glowd/refresh-registry", 0o755),
    ("rpm/glowd.sysusers", "usr/lib/sysusers.d/glowd.conf", 0o644),
    ("rpm/glowd.tmpfiles", "usr/lib/tmpfiles.d/glowd.conf", 0o644),
    ("conf.json", "etc/glowd/conf.json", 0o644),
];

/// A running container, and the hosts on both ends of its cable: it is `here`. It goes,
/// with all that it changed, when this is dropped.
pub(crate) struct Machine {
    pub(crate) pair: Pair,
    nspawn: Child,
    init: Pid,
    _one: MutexGuard<'static, ()>,
}

/// A file of the source tree.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The tree of the containers; they change a copy in memory.
pub(crate) fn tree() -> PathBuf {
    static INSTALLED: Once = Once::new();
    let tree = source("target/system-tree");
    INSTALLED.call_once(|| {
        assert!(tree.join("usr").exists(), "{} is missing: make system-test", tree.display());
        let binary = std::env::var_os("GLOWD_SYSTEM_BINARY");
        let binary = binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_glowd").into());
        install(Path::new(&binary), &tree.join("usr/bin/glowd"), 0o755);
        for (file, place, mode) in FILES {
            install(&source(file), &tree.join(place), *mode);
        }
    });
    tree
}

fn install(from: &Path, to: &Path, mode: u32) {
    fs::create_dir_all(to.parent().expect("a folder")).expect("the folder");
    // It may be in use by a container that was left behind.
    let _ = fs::remove_file(to);
    fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    fs::set_permissions(to, Permissions::from_mode(mode)).expect("its mode");
}

impl Machine {
    /// Boots it; glowd is installed and not started.
    pub(crate) fn boot() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let tree = tree();
        let pair = Pair::new();
        // Should the tests be killed, it goes too.
        let mut nspawn = Command::new("setpriv");
        nspawn.args(["--pdeathsig", "KILL", "systemd-nspawn", "--quiet", "--boot"]);
        // Neither a systemd nor a D-Bus is needed on the host.
        nspawn.args(["--register=no", "--keep-unit", "--volatile=overlay"]);
        nspawn.arg("--directory").arg(tree);
        nspawn.arg(format!("--machine=glowd-test-{}", std::process::id()));
        nspawn.arg(format!("--network-namespace-path={}", pair.here.path()));
        // What a host's systemd has, and glowd needs of it.
        nspawn.arg("--capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON,CAP_SYS_ADMIN");
        nspawn.arg("--system-call-filter=bpf perf_event_open");
        nspawn.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        nspawn.env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1");
        nspawn.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut nspawn = nspawn.spawn().expect("systemd-nspawn");
        let init = wait_for("the container's systemd", || {
            let ended = nspawn.try_wait().expect("to ask for its end");
            assert_eq!(ended, None, "the container does not start");
            let id = nspawn.id();
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
            let child = children.split_whitespace().next()?.to_owned();
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name == "systemd\n").then(|| Pid::from_raw(child.parse().expect("a number")))
        });
        let machine = Machine { pair, nspawn, init, _one: one };
        wait_for("the container to boot", || {
            let state = machine.output(&["systemctl", "is-system-running"]);
            let state = String::from_utf8_lossy(&state.stdout);
            matches!(state.trim(), "running" | "degraded").then_some(())
        });
        machine
    }

    /// Boots it, configures the marker so, and starts the service.
    pub(crate) fn with_service(marker: &Value) -> Self {
        let machine = Machine::boot();
        machine.configure("conf", &config(marker));
        machine.run(&["systemctl", "start", "glowd"]);
        machine
    }

    /// A path inside, as seen from here.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// Writes a file inside, its folder if need be.
    pub(crate) fn write(&self, inside: &str, text: &str) {
        let path = self.path(inside);
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder");
        fs::write(path, text).unwrap_or_else(|error| panic!("{inside}: {error}"));
    }

    /// Writes /etc/glowd/NAME.json.
    pub(crate) fn configure(&self, name: &str, config: &Value) {
        self.write(&format!("/etc/glowd/{name}.json"), &config.to_string());
    }

    /// Adds to the unit's section [Service], as `systemctl edit` does.
    pub(crate) fn drop_in(&self, unit: &str, lines: &str) {
        let path = format!("/etc/systemd/system/{unit}.d/test.conf");
        self.write(&path, &format!("[Service]\n{lines}\n"));
        self.run(&["systemctl", "daemon-reload"]);
    }

    /// Runs a command inside, as root.
    pub(crate) fn output(&self, words: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init.to_string(), "-a", "--"]).args(words);
        command.stdin(Stdio::null()).output().expect("nsenter")
    }

    /// The same; it has to succeed. What it printed.
    pub(crate) fn run(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            panic!("{words:?}: {}: {text}{errors}\n{}", output.status, self.journal("*"));
        }
        text
    }

    /// Writes a line to a pipe as that user: whether it could.
    pub(crate) fn write_as(&self, user: &str, pipe: &str, line: &str) -> bool {
        let script = format!("printf '%s\\n' '{}' >{pipe}", line.trim_end());
        self.output(&["runuser", "-u", user, "--", "sh", "-c", &script]).status.success()
    }

    /// A property of a unit.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.run(&["systemctl", "show", "--property", name, "--value", unit])
    }

    /// The service's main process; 0 if there is none.
    pub(crate) fn main_pid(&self, unit: &str) -> u32 {
        self.property(unit, "MainPID").parse().expect("a process id")
    }

    /// Waits until the unit's property has that value.
    pub(crate) fn await_property(&self, unit: &str, name: &str, value: &str) {
        let what = format!("{unit} to have {name}={value}");
        wait_for(&what, || (self.property(unit, name) == value).then_some(()));
    }

    /// All that the journal has of the unit, messages only.
    pub(crate) fn journal(&self, unit: &str) -> String {
        self.output(&["journalctl", "--sync"]);
        let words = ["journalctl", "--no-pager", "--output=cat", "--unit", unit];
        String::from_utf8_lossy(&self.output(&words).stdout).into_owned()
    }

    /// Starts a capture on the far side.
    pub(crate) fn capture(&self) -> Capture {
        Capture::start(&self.pair.there, DEVICE)
    }

    /// The programs of tcx, the filters and the clsact qdisc on both devices.
    pub(crate) fn attached(&self) -> Vec<String> {
        let mut found = Vec::new();
        for device in [DEVICE, "lo"] {
            let tcx = self.pair.here.enter(|| {
                let index = if_nametoindex(device).expect("the device");
                [Hook::Egress, Hook::Ingress].map(|hook| tcx_programs(index, hook))
            });
            // Kernels before 6.6 have none.
            let ids = tcx.into_iter().flatten().flatten();
            found.extend(ids.map(|id| format!("{device}: tcx program {id}")));
            for side in ["egress", "ingress"] {
                let text = self.pair.here.run(&format!("tc filter show dev {device} {side}"));
                let filters = text.lines().filter(|line| line.contains("handle"));
                found.extend(filters.map(|line| format!("{device} {side}: {line}")));
            }
            let qdiscs = self.pair.here.run(&format!("tc qdisc show dev {device}"));
            let clsact = qdiscs.lines().filter(|line| line.contains("clsact"));
            found.extend(clsact.map(|line| format!("{device}: {line}")));
        }
        found
    }

    /// Nothing is left of the service: no process, no program, no file.
    pub(crate) fn assert_nothing_is_left(&self, runtime: &str) {
        assert_eq!(self.attached(), [""; 0]);
        assert!(!self.path(runtime).exists(), "{runtime} is left");
        let processes = self.run(&["ps", "-eo", "comm,args"]);
        assert!(!processes.lines().any(|line| line.starts_with("glowd ")), "{processes}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the journal of the container:");
            let words = ["journalctl", "--no-pager", "--output=short-precise", "-n", "60"];
            println!("{}", String::from_utf8_lossy(&self.output(&words).stdout));
        }
        // With it go all processes and mounts; systemd-nspawn tidies up behind it.
        let _ = kill(self.init, Signal::SIGKILL);
        let _ = self.nspawn.wait();
    }
}

/// A configuration of the marker on the cable, with these settings of it, the pipe and
/// the API.
pub(crate) fn config(marker: &Value) -> Value {
    let mut marker = marker.clone();
    marker["targetInterfaces"] = json!([DEVICE]);
    json!({ "plugins": { "namedPipe": {}, "api": {} }, "backends": { "marker": marker } })
}

/// A UDP flow through the cable that tells whether the marker works.
pub(crate) struct Probe<'m> {
    machine: &'m Machine,
    capture: &'m Capture,
    strategy: Strategy,
    socket: UdpSocket,
    _sink: UdpSocket,
    sent: u64,
}

impl<'m> Probe<'m> {
    pub(crate) fn new(machine: &'m Machine, capture: &'m Capture, strategy: Strategy) -> Self {
        let (from, to) = (v6(HERE, PROBE.0), v6(THERE, PROBE.1));
        let sink = udp(&machine.pair.there, to, from);
        let socket = udp(&machine.pair.here, from, to);
        Probe { machine, capture, strategy, socket, _sink: sink, sent: 0 }
    }

    /// The line that starts or ends it.
    pub(crate) fn line(start: bool) -> String {
        line(start, "udp", v6(HERE, PROBE.0), v6(THERE, PROBE.1), ATLAS)
    }

    /// Writes these lines and the probe's own into the pipe, as root.
    pub(crate) fn tell(&self, pipe: &str, start: bool, lines: &str) {
        let text = format!("{lines}{}", Probe::line(start));
        // Root of the container, who opens a FIFO that there is and makes no file.
        let script = format!("test -p {pipe} && printf %s '{text}' >{pipe}");
        self.machine.run(&["sh", "-c", &script]);
    }

    /// The same, and waits until packets of it are marked, or are not any more.
    pub(crate) fn obey(&mut self, start: bool, lines: &str) {
        self.tell("/run/glowd/np", start, lines);
        self.await_marked(start);
    }

    /// Waits until packets of it are marked, or are as they were sent. Nothing else is
    /// accepted, such as two headers.
    pub(crate) fn await_marked(&mut self, marked: bool) {
        let strategy = self.strategy;
        wait_for("the marker", || {
            let packet = self.send();
            let (is, is_not) = (is_marked(&packet, strategy, ATLAS), is_plain(&packet));
            match (is, is_not) {
                (Ok(()), Err(_)) => marked.then_some(()),
                (Err(_), Ok(())) => (!marked).then_some(()),
                (is, is_not) => panic!("{is:?}, {is_not:?}"),
            }
        });
    }

    /// Sends a datagram of it, and returns it as it was captured.
    pub(crate) fn send(&mut self) -> Packet {
        let from = self.capture.count();
        self.sent += 1;
        let number = self.sent.to_be_bytes();
        self.socket.send(&number).expect("to send a probe");
        let this = |packet: &Packet| packet.src_port == PROBE.0 && packet.rest[8..] == number;
        self.capture.find(from, PATIENCE, this).expect("the probe arrives")
    }
}
