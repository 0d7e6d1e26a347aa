//! The real binary as a child process, with a folder of its own for its files.

use std::env;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::{json, Value};
use tempfile::TempDir;

use super::manager::Manager;
use super::netns::Namespace;
use super::{wait_for, PATIENCE};

/// The program that GLOWD_WRAPPER names, if it does: each glowd of the tests is started
/// through it. It gets glowd and its arguments as its own and has to become it by
/// exec(3), so that process id, descriptors and signals are those of glowd
/// (tools/syscalls).
fn wrapper() -> Option<OsString> {
    env::var_os("GLOWD_WRAPPER")
}

/// The words of a command that becomes glowd.
pub(crate) fn glowd_words() -> impl Iterator<Item = OsString> {
    wrapper().into_iter().chain([binary().into()])
}

/// The command that becomes glowd.
pub(crate) fn glowd() -> Command {
    let mut words = glowd_words();
    let mut command = Command::new(words.next().expect("at least glowd"));
    command.args(words);
    command
}

/// What the daemon has printed on standard error.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

/// The glowd that is tested: cargo's, or the one that GLOWD_BINARY names, such as the
/// static one.
pub(crate) fn binary() -> PathBuf {
    env::var_os("GLOWD_BINARY").map_or(env!("CARGO_BIN_EXE_glowd").into(), PathBuf::from)
}

/// A glowd process. Killed when dropped; a test that fails shows its log.
pub(crate) struct Daemon {
    child: Child,
    dir: Arc<TempDir>,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    pipe: Option<File>,
    api: u16,
    /// It tells its end there, too.
    manager: Manager,
}

/// An unprivileged user who has these capabilities and cannot get others, as
/// setpriv(1) names them: what a systemd unit with AmbientCapabilities gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nobody(pub(crate) &'static str);

/// The user of glowd.service.
pub(crate) const UNIT: Nobody = Nobody("-all,+bpf,+net_admin,+perfmon");

impl Nobody {
    const ID: u32 = 65_534;

    /// The command that becomes glowd; the user gets the folder and its own copy of
    /// the binary, which may be in somebody's home.
    pub(crate) fn command(self, dir: &TempDir) -> Command {
        let copy = copy_of_binary(dir);
        chown(dir.path(), Some(Self::ID), Some(Self::ID)).expect("to give it away");
        let id = Self::ID.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--no-new-privs"]);
        command.args(["--inh-caps", self.0, "--ambient-caps", self.0]);
        command.args(["--bounding-set", self.0]).args(wrapper()).arg(copy);
        command
    }
}

/// A process of its own writes it: a child that another test forks off meanwhile would
/// hold this one's descriptor, and what is open for writing cannot be run (ETXTBSY).
fn copy_of_binary(dir: &TempDir) -> PathBuf {
    let copy = dir.path().join("glowd");
    let status = Command::new("cp").arg(binary()).arg(&copy).status().expect("cp");
    assert!(status.success(), "cannot copy {:?}", binary());
    copy
}

/// How a daemon ended that never became ready.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: ExitStatus,
    pub(crate) log: String,
}

impl Daemon {
    /// Starts a daemon on the host and waits until it is ready. `config` need not
    /// name the files: those that it leaves out are in the daemon's own folder.
    pub(crate) fn start(config: Value) -> Self {
        Self::try_start(config, None).unwrap_or_else(|failure| panic!("{failure:#?}"))
    }

    /// The same in a network namespace.
    pub(crate) fn start_in(namespace: &Namespace, config: Value) -> Self {
        Self::try_start(config, Some(namespace)).unwrap_or_else(|failure| panic!("{failure:#?}"))
    }

    /// The same, where it may fail.
    pub(crate) fn try_start(config: Value, namespace: Option<&Namespace>) -> Result<Self, Failure> {
        Self::try_start_as(config, namespace, None)
    }

    /// The same as an unprivileged user with a few capabilities. Root.
    pub(crate) fn try_start_as(
        mut config: Value,
        namespace: Option<&Namespace>,
        user: Option<Nobody>,
    ) -> Result<Self, Failure> {
        let dir = tempfile::tempdir().expect("a folder");
        complete(&mut config, dir.path());
        let api = config["plugins"]["api"]["bindPort"].as_u64().unwrap_or(7777);
        std::fs::write(dir.path().join("conf.json"), config.to_string())
            .expect("to write the configuration");
        let mut command = match user {
            Some(user) => user.command(&dir),
            None => glowd(),
        };
        command.args(["--log-level", "debug"]);
        Self::launch(command, Arc::new(dir), u16::try_from(api).expect("a port"), namespace)
    }

    /// The same on the host by `command`, to which the words for glowd are added, and
    /// at the log level of the configuration.
    pub(crate) fn start_by(command: Command, mut config: Value) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        complete(&mut config, dir.path());
        let api = config["plugins"]["api"]["bindPort"].as_u64().unwrap_or(7777);
        std::fs::write(dir.path().join("conf.json"), config.to_string())
            .expect("to write the configuration");
        Self::launch(command, Arc::new(dir), u16::try_from(api).expect("a port"), None)
            .unwrap_or_else(|failure| panic!("{failure:#?}"))
    }

    /// Writes another configuration in the place of its own.
    pub(crate) fn rewrite(&self, mut config: Value) {
        complete(&mut config, self.dir());
        self.rewrite_text(&config.to_string());
    }

    /// The same with a text that may be none. At once, as editors do it.
    pub(crate) fn rewrite_text(&self, text: &str) {
        let new = self.dir().join("conf.json.new");
        std::fs::write(&new, text).expect("to write the configuration");
        std::fs::rename(&new, self.dir().join("conf.json")).expect("to put it in its place");
    }

    /// The same on the host, as that user, who may have `threads` threads. The user
    /// has no name and no right but to the daemon's own folder.
    pub(crate) fn try_start_limited(
        user: u32,
        threads: u32,
        mut config: Value,
    ) -> Result<Self, Failure> {
        let dir = tempfile::tempdir().expect("a folder");
        chown(dir.path(), Some(user), Some(user)).expect("to give it away");
        complete(&mut config, dir.path());
        std::fs::write(dir.path().join("conf.json"), config.to_string())
            .expect("to write the configuration");
        // Where the user can reach it, wherever the tree is.
        let copy = copy_of_binary(&dir);
        let mut command = Command::new("setpriv");
        let id = user.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]);
        command.arg("prlimit").arg(format!("--nproc={threads}"));
        command.args(wrapper()).arg(copy).args(["--log-level", "debug"]);
        Self::launch(command, Arc::new(dir), 7777, None)
    }

    /// Kills it without a chance to tidy up and starts it again in the same place.
    pub(crate) fn kill_and_restart(&mut self, namespace: Option<&Namespace>) {
        self.end_by(Signal::SIGKILL);
        self.restart(namespace);
    }

    /// Starts it again in the same place after its end.
    pub(crate) fn restart(&mut self, namespace: Option<&Namespace>) {
        let mut command = glowd();
        command.args(["--log-level", "debug"]);
        let next = Self::launch(command, self.dir.clone(), self.api, namespace);
        *self = next.unwrap_or_else(|failure| panic!("{failure:#?}"));
    }

    /// Starts it by `command` with the conf.json of `dir`.
    fn launch(
        mut command: Command,
        dir: Arc<TempDir>,
        api: u16,
        namespace: Option<&Namespace>,
    ) -> Result<Self, Failure> {
        let conf = dir.path().join("conf.json");
        let socket = dir.path().join("notify");
        // Left by the one before.
        let _ = std::fs::remove_file(&socket);
        // The folder decides who gets there.
        let manager = Manager::at(&socket);
        command.arg("--conf").arg(&conf).arg("run");
        command.env("NOTIFY_SOCKET", &socket).env_remove("INVOCATION_ID");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut spawn = || command.spawn().expect("to start glowd");
        let mut child = match namespace {
            Some(namespace) => namespace.enter(spawn),
            None => spawn(),
        };
        let stderr = child.stderr.take().expect("piped");
        let log = Arc::<Log>::default();
        let reader = {
            let log = log.clone();
            thread::spawn(move || collect(stderr, &log))
        };
        let (reader, pipe) = (Some(reader), None);
        let mut daemon = Daemon { child, dir, log, reader, pipe, api, manager };
        match daemon.wait_until_ready() {
            Ok(()) => Ok(daemon),
            Err(status) => {
                daemon.reader.take().map(JoinHandle::join);
                Err(Failure { status, log: daemon.lines().join("\n") })
            }
        }
    }

    fn wait_until_ready(&mut self) -> Result<(), ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if self.notice().is_some_and(|notice| notice.starts_with("READY=1\n")) {
                return Ok(());
            }
            if let Some(status) = self.ended() {
                return Err(status);
            }
        }
        panic!("glowd was not ready in time:\n{}", self.lines().join("\n"));
    }

    /// What it tells the service manager next, if it does soon: it may end instead.
    fn notice(&mut self) -> Option<String> {
        self.manager.next(Duration::from_millis(20))
    }

    /// All that it has told the service manager.
    pub(crate) fn notices(&mut self) -> Vec<String> {
        self.manager.notices()
    }

    /// What it tells the service manager next that `wanted` accepts, within
    /// [`PATIENCE`].
    pub(crate) fn wait_for_notice(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        wait_for("a notice", || self.notice().filter(|notice| wanted(notice)))
    }

    /// Whether it tells the service manager anything before that much time has gone by.
    pub(crate) fn is_silent_for(&mut self, time: Duration) -> bool {
        let since = Instant::now();
        while since.elapsed() < time {
            if self.notice().is_some() {
                return false;
            }
        }
        true
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("to ask for its end")
    }

    /// The folder with its files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn pipe_path(&self) -> PathBuf {
        self.dir().join("np")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to the named pipe.
    pub(crate) fn write(&mut self, lines: &str) {
        let path = self.pipe_path();
        let pipe = self.pipe.get_or_insert_with(|| {
            OpenOptions::new().write(true).open(&path).expect("to open the pipe")
        });
        pipe.write_all(lines.as_bytes()).expect("to write to the pipe");
    }

    /// Asks the API of a daemon on the host: status and body.
    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.api)).expect("to reach the API");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .expect("to send a request");
        let mut response = Vec::new();
        stream.read_to_end(&mut response).expect("a response");
        let end = response.windows(4).position(|window| window == b"\r\n\r\n").expect("headers");
        let head = String::from_utf8_lossy(&response[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = serde_json::from_slice(&response[end + 4..]).expect("a JSON body");
        (status.expect("a status line"), body)
    }

    /// What it has logged so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.log.lines.lock().expect("no panic").clone()
    }

    /// Waits for a line with `text` in it and returns the line.
    pub(crate) fn wait_for_line(&self, text: &str) -> String {
        let lines = self.log.lines.lock().expect("no panic");
        let find = |lines: &[String]| lines.iter().find(|line| line.contains(text)).cloned();
        let (lines, _) = self
            .log
            .more
            .wait_timeout_while(lines, PATIENCE, |lines| find(lines).is_none())
            .expect("no panic");
        let (found, all) = (find(&lines), lines.join("\n"));
        // Who shows the log after a panic needs the lock.
        drop(lines);
        found.unwrap_or_else(|| panic!("no line with {text:?} in:\n{all}"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        kill(pid, signal).expect("to send a signal");
    }

    /// Waits until the marker, which hears of a flow behind the dispatcher, has done what the
    /// dispatcher knows of: it reports behind that.
    pub(crate) fn wait_for_marker(&self) {
        let reports =
            || self.lines().iter().filter(|line| line.contains("flows are in the map")).count();
        let before = reports();
        self.signal(Signal::SIGUSR1);
        wait_for("the marker's report", || (reports() > before).then_some(()));
    }

    /// Sends `signal` and waits for the end.
    pub(crate) fn end_by(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        wait_for("glowd to end", || self.ended())
    }

    /// Stops it in order: exit status 0, and no warning or error in its log but
    /// those that contain one of `expected`.
    pub(crate) fn stop(mut self, expected: &[&str]) {
        let status = self.end_by(Signal::SIGTERM);
        self.reader.take().map(JoinHandle::join);
        let log = self.lines();
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{log:#?}");
        let loud = |line: &&String| line.contains("error: ") || line.contains("warn: ");
        let known = |line: &&String| expected.iter().any(|text| line.contains(text));
        let surprises: Vec<_> = log.iter().filter(loud).filter(|line| !known(line)).collect();
        assert!(surprises.is_empty(), "{surprises:#?}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.reader.take().map(JoinHandle::join);
        if thread::panicking() {
            println!("glowd's log:");
            self.lines().iter().for_each(|line| println!("    {line}"));
        }
    }
}

fn collect(stderr: ChildStderr, log: &Log) {
    for line in BufReader::new(stderr).split(b'\n') {
        let Ok(line) = line else { return };
        log.lines.lock().expect("no panic").push(String::from_utf8_lossy(&line).into_owned());
        log.more.notify_all();
    }
}

/// Fills in the paths that a test does not care about, so that no daemon touches
/// another's files.
fn complete(config: &mut Value, dir: &Path) {
    let path = |name: &str| json!(dir.join(name).to_str().expect("UTF-8"));
    let default = |object: &mut Value, key: &str, name: &str| {
        let map = object.as_object_mut().expect("an object");
        map.entry(key).or_insert_with(|| path(name));
    };
    default(config, "pidPath", "glowd.pid");
    default(config, "workDir", "work");
    if let Some(pipe) = config.pointer_mut("/plugins/namedPipe") {
        default(pipe, "pipePath", "np");
    }
}
