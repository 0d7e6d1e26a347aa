//! The daemon that is tried: this very program as a child, with a configuration and a
//! folder of its own. Owns both; dropping it ends the child and removes the folder.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::watch::Watch;
use crate::error::{Class, Error, Result};
use crate::sys::process::stop_with_parent;
use log::error;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// How long Drop waits for the child before it kills it.
const MERCY: Duration = Duration::from_secs(5);

/// A folder that goes with what is in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("glowd-selftest-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| {
            Error::os(format!("cannot create folder \"{}\"", path.display()), error)
        })?;
        Ok(Folder(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(cause) = fs::remove_dir_all(&self.0) {
            error!("cannot remove folder \"{}\": {cause}", self.0.display());
        }
    }
}

/// A daemon that runs.
pub(super) struct Daemon {
    child: Child,
    folder: Folder,
    pipe: File,
}

impl Daemon {
    /// Starts it in the network namespace of this thread, and waits until it is ready.
    ///
    /// # Errors
    /// It ends instead; the reason is the daemon's own.
    pub(super) fn start(
        interface: &str,
        attach: &str,
        strategy: &str,
        watch: &Watch,
    ) -> Result<Self> {
        let folder = Folder::new()?;
        let what = |what: &str| {
            let what = format!("cannot start a daemon: cannot {what}");
            move |error| Error::os(what.clone(), error)
        };
        // Text in quotes is text of JSON as long as there is nothing odd in it, as in names
        // of temporary folders and interfaces of our own.
        let path = |name: &str| format!("{:?}", folder.file(name).to_string_lossy());
        let config = format!(
            r#"{{"pidPath": {}, "workDir": {}, "maxFlows": 16, "registryPath": "",
                 "plugins": {{"namedPipe": {{"pipePath": {}}}}},
                 "backends": {{"marker": {{"targetInterfaces": [{interface:?}],
                                           "attach": {attach:?},
                                           "markingStrategy": {strategy:?}}}}}}}"#,
            path("pid"),
            path("work"),
            path("np")
        );
        fs::write(folder.file("conf.json"), config).map_err(what("write its configuration"))?;
        let log = File::create(folder.file("log")).map_err(what("create its log"))?;
        let notified = UnixDatagram::bind(folder.file("notify")).map_err(what("bind a socket"))?;
        notified.set_nonblocking(true).map_err(what("bind a socket"))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("--conf").arg(folder.file("conf.json")).arg("run");
        // Whatever started this command is not to hear of the child.
        for name in ["JOURNAL_STREAM", "WATCHDOG_USEC", "WATCHDOG_PID", "INVOCATION_ID"] {
            command.env_remove(name);
        }
        command.env("NOTIFY_SOCKET", folder.file("notify"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        stop_with_parent(&mut command);
        let mut child = Reaped(Some(command.spawn().map_err(what("run /proc/self/exe"))?));
        watch.until("the daemon to be ready", || {
            let mut buffer = [0; 1024];
            while let Ok(length) = notified.recv(&mut buffer) {
                if buffer[..length].split(|octet| *octet == b'\n').any(|line| line == b"READY=1") {
                    return Ok(Some(()));
                }
            }
            match child.ended()? {
                None => Ok(None),
                Some(status) => Err(Error::new(Class::Os, last_words(&folder.0, status))),
            }
        })?;
        // The daemon reads there; without the flag it would be waited for if it did not.
        let pipe = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(folder.file("np"))
            .map_err(what("open its pipe"))?;
        let child = child.0.take().ok_or_else(|| Error::internal("there is no child"))?;
        Ok(Daemon { child, folder, pipe })
    }

    /// Writes lines to its pipe.
    pub(super) fn write(&mut self, lines: &str) -> Result<()> {
        let written = self.pipe.write_all(lines.as_bytes());
        written.map_err(|error| Error::os("cannot write to the daemon's pipe", error))
    }

    /// By what it says the marker is attached.
    pub(super) fn attached_by(&self) -> Option<String> {
        let log = fs::read_to_string(self.folder.file("log")).ok()?;
        let (_, way) = log.lines().find_map(|line| line.split_once("attached by "))?;
        Some(way.to_owned())
    }

    /// Tells it to stop, and waits for that. What it had made has to be gone then.
    pub(super) fn stop(mut self, watch: &Watch) -> Result<()> {
        signal(&self.child, Signal::SIGTERM);
        let status = watch.until("the daemon to stop", || ended(&mut self.child))?;
        if !status.success() {
            return Err(Error::new(Class::Internal, last_words(&self.folder.0, status)));
        }
        for name in ["np", "pid"] {
            if self.folder.file(name).exists() {
                return Err(Error::internal(format!("the daemon has left its file {name:?}")));
            }
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A child that is ended when nobody takes it out.
struct Reaped(Option<Child>);

impl Reaped {
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.0.as_mut().map_or(Ok(None), ended)
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

fn ended(child: &mut Child) -> Result<Option<ExitStatus>> {
    child.try_wait().map_err(|error| Error::os("cannot wait for the daemon", error))
}

fn signal(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // It may have ended.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Ends it in order, or by force if that takes too long. Not for a signal to interrupt.
fn end(child: &mut Child) {
    let start = Instant::now();
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    signal(child, Signal::SIGTERM);
    while matches!(child.try_wait(), Ok(None)) {
        if start.elapsed() > MERCY {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Why it ended: the last line of its log, which is the error that it ended with.
fn last_words(folder: &Path, status: ExitStatus) -> String {
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    match log.lines().last() {
        Some(line) => line.strip_prefix("glowd: ").unwrap_or(line).to_owned(),
        None => format!("the daemon has ended without a word ({status})"),
    }
}
