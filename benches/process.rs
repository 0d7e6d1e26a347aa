//! A glowd process in a network namespace of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use glowd::net::uninterrupted;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use crate::row;

/// A daemon with pipe, API and whatever else the configuration says.
pub(crate) struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
    /// From its start until it said READY.
    pub(crate) start_up: Duration,
}

pub(crate) const API: &str = "127.0.0.1:7777";

/// Which glowd is measured.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Binary {
    /// The one that cargo built for this bench.
    Dynamic,
    /// What `make static` built.
    Static,
}

impl Binary {
    /// Where it is, if it is there.
    pub(crate) fn path(self) -> Option<PathBuf> {
        let path = match self {
            Binary::Dynamic => env!("CARGO_BIN_EXE_glowd").into(),
            Binary::Static => Path::new(env!("CARGO_MANIFEST_DIR")).join(format!(
                "target/{}-unknown-linux-musl/release/glowd",
                std::env::consts::ARCH
            )),
        };
        Some(path).filter(|path| path.exists())
    }

    /// Calls the function with each binary that is there; says how to get the other.
    pub(crate) fn each(measure: fn(Self)) {
        for binary in [Binary::Dynamic, Binary::Static] {
            if binary.path().is_some() {
                measure(binary);
            } else {
                row("the same of the static binary", "not built".into(), "make static");
            }
        }
    }

    /// Prints a row that says which binary it is about.
    pub(crate) fn row(self, what: &str, measured: String, reach: &str) {
        match self {
            Binary::Dynamic => row(what, measured, reach),
            Binary::Static => row(&format!("{what}, static"), measured, reach),
        }
    }
}

impl Daemon {
    pub(crate) fn start(config: Value) -> Self {
        Self::start_binary(Binary::Dynamic, config)
    }

    pub(crate) fn start_binary(binary: Binary, mut config: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| Value::from(dir.path().join(name).to_str().unwrap());
        config["pidPath"] = path("pid");
        config["plugins"]["namedPipe"]["pipePath"] = path("np");
        config["plugins"]["api"] = serde_json::json!({});
        let conf = dir.path().join("conf.json");
        fs::write(&conf, config.to_string()).unwrap();
        let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut command = Command::new(binary.path().unwrap());
        command.arg("--conf").arg(&conf).arg("--log-level").arg("warn").arg("run");
        command.env("NOTIFY_SOCKET", dir.path().join("notify")).stdin(Stdio::null());
        let before = Instant::now();
        let child = command.spawn().unwrap();
        uninterrupted(|| notify.recv(&mut [0; 64])).expect("glowd gets ready");
        Daemon { child, dir, start_up: before.elapsed() }
    }

    pub(crate) fn pipe(&self) -> PathBuf {
        self.dir.path().join("np")
    }

    /// How many flows are open.
    pub(crate) fn open_flows(&self) -> u64 {
        let mut stream = TcpStream::connect(API.parse::<SocketAddr>().unwrap()).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        body["flows"].as_u64().unwrap()
    }

    /// Resident memory in MB.
    pub(crate) fn resident(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib / 1024.0
    }

    /// CPU time of all its threads so far.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let nanos = tasks.map(|task| {
            let text = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            text.split(' ').next().unwrap().parse::<u64>().unwrap()
        });
        Duration::from_nanos(nanos.sum())
    }

    /// Stops it and says how long that took.
    pub(crate) fn stop(mut self) -> Duration {
        let before = Instant::now();
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        before.elapsed()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already gone after stop().
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
