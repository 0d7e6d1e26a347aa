//! The pid file: says which process runs, and by its lock that it runs. Created
//! at start, removed when dropped.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use log::warn;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::{O_NOCTTY, O_NOFOLLOW, O_NONBLOCK};

use crate::error::{Class, Error, Result};
use crate::run_dir::RunDir;

/// Longest content that can be a pid file's, in bytes.
const LONGEST: u64 = 64;

/// How often others may remove the file between its opening and its locking: each
/// time another glowd has ended just then.
const TRIES: usize = 100;

/// A pid file with this process's id, locked while it lives.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    lock: Flock<File>,
    _dir: RunDir,
}

impl PidFile {
    /// Writes the pid file at `path`; none if the path is empty. Its folder is
    /// made if only that is missing.
    ///
    /// # Errors
    /// Another process holds it, or something else is there, which is left alone,
    /// or it cannot be written.
    pub fn create(path: &str) -> Result<Option<Self>> {
        if path.is_empty() {
            return Ok(None);
        }
        let path = Path::new(path);
        for _ in 0..TRIES {
            let dir = RunDir::for_file(path)?;
            let Some(file) = open(path)? else { continue };
            let Some(mut pid_file) = Self::claim(path, file, dir)? else { continue };
            // From here on, its Drop cleans up.
            pid_file.write().map_err(|error| cannot("write", path, error))?;
            return Ok(Some(pid_file));
        }
        Err(Error::new(Class::Os, format!("\"{}\" is removed again and again", path.display())))
    }

    /// Locks the file. None: it is not at the path any more, so that a lock on it
    /// would keep nobody away.
    fn claim(path: &Path, file: File, dir: RunDir) -> Result<Option<Self>> {
        let holder = holder(path, &file)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| refusal(path, &holder, error))?;
        let ours = is_at(path, &lock).map_err(|error| cannot("look at", path, error))?;
        Ok(ours.then(|| PidFile { path: path.to_owned(), lock, _dir: dir }))
    }

    fn write(&mut self) -> io::Result<()> {
        self.lock.set_len(0)?;
        self.lock.rewind()?;
        // At once, so that nobody reads half of it.
        self.lock.write_all(format!("{}\n", std::process::id()).as_bytes())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let removed = match is_at(&self.path, &self.lock) {
            Ok(true) => fs::remove_file(&self.path),
            // Somebody removed or replaced it: not ours any more.
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            warn!("cannot remove the pid file {:?}: {error}", self.path);
        }
    }
}

/// Opens the file at the path, if need be a new one. None: its folder has gone.
fn open(path: &Path) -> Result<Option<File>> {
    // Before opening, which is not without effect for every device.
    if fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Err(not_a_pid_file(path));
    }
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        // What has taken its place since shall not hold us up; O_CLOEXEC is set
        // without being asked for.
        .custom_flags(O_NOFOLLOW | O_NONBLOCK | O_NOCTTY)
        .mode(0o644)
        .open(path);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cannot("open", path, error)),
    }
}

/// What the file says of the process that holds it, for the message. Anything but
/// a pid file is refused.
fn holder(path: &Path, file: &File) -> Result<String> {
    let meta = file.metadata().map_err(|error| cannot("look at", path, error))?;
    if !meta.is_file() || meta.len() > LONGEST {
        return Err(not_a_pid_file(path));
    }
    if !is_trusted(path, &meta).map_err(|error| cannot("look at the folder of", path, error))? {
        let shown = path.display();
        let message = format!(
            "\"{shown}\" belongs to user {}, who could change it: move it away or choose \
             another pidPath",
            meta.uid()
        );
        return Err(Error::new(Class::Os, message));
    }
    let mut content = Vec::new();
    file.take(LONGEST).read_to_end(&mut content).map_err(|error| cannot("read", path, error))?;
    match content.split_last() {
        // A glowd that is just starting, or was killed while it was.
        None => Ok("unknown".into()),
        Some((b'\n', pid)) if !pid.is_empty() && pid.iter().all(u8::is_ascii_digit) => {
            Ok(String::from_utf8_lossy(pid).into_owned())
        }
        Some(_) => Err(not_a_pid_file(path)),
    }
}

/// Whether the file is of somebody who may do as he likes there: root, this user, or whose
/// folder it is. Another one, in a folder for everybody, could keep glowd from starting, and
/// have those signalled whose pid he writes.
fn is_trusted(path: &Path, meta: &Metadata) -> io::Result<bool> {
    let own = nix::unistd::geteuid().as_raw();
    if [0, own].contains(&meta.uid()) {
        return Ok(true);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    Ok(fs::metadata(folder.unwrap_or(Path::new(".")))?.uid() == meta.uid())
}

/// Whether the path leads to that file.
fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    let identity = |meta: &Metadata| (meta.dev(), meta.ino());
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(identity(&meta) == identity(&file.metadata()?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn cannot(what: &str, path: &Path, cause: io::Error) -> Error {
    Error::os(format!("cannot {what} \"{}\"", path.display()), cause)
}

fn not_a_pid_file(path: &Path) -> Error {
    let shown = path.display();
    let message = format!("\"{shown}\" is not a pid file: move it away or choose another pidPath");
    Error::new(Class::Os, message)
}

/// Why there was no lock.
fn refusal(path: &Path, holder: &str, error: Errno) -> Error {
    if error != Errno::EWOULDBLOCK {
        return cannot("lock", path, error.into());
    }
    let shown = path.display();
    let message = format!("another glowd (pid {holder}) is running and holds \"{shown}\"");
    Error::new(Class::Os, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn lives_as_long_as_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/glowd.pid");
        let text = path.to_str().unwrap();
        let pid_file = PidFile::create(text).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        let second = PidFile::create(text).unwrap_err().to_string();
        let holder = format!("another glowd (pid {}) is running", std::process::id());
        assert!(second.starts_with(&holder), "{second}");
        drop(pid_file);
        assert!(!path.exists());
        assert!(!path.parent().unwrap().exists(), "the folder was ours");
        // One that a killed daemon left does not matter.
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(PidFile::create(text).unwrap());
        assert!(path.parent().unwrap().exists(), "the folder was not ours");
        assert!(PidFile::create("").unwrap().is_none());
    }

    /// What it had been refused for is still there, as it was.
    fn assert_refused(path: &Path) {
        let error = PidFile::create(path.to_str().unwrap()).unwrap_err();
        let expected = format!(
            "\"{}\" is not a pid file: move it away or choose another pidPath",
            path.display()
        );
        assert_eq!((error.to_string(), error.class()), (expected, Class::Os));
    }

    #[test]
    fn other_files_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let long = "1".repeat(100) + "\n";
        for text in ["precious", "\n", "1", "1\n2\n", " 1\n", "-1\n", "1x\n", long.as_str()] {
            fs::write(&path, text).unwrap();
            assert_refused(&path);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        for text in ["", "1\n", "12345678\n"] {
            fs::write(&path, text).unwrap();
            drop(PidFile::create(path.to_str().unwrap()).unwrap());
            assert!(!path.exists(), "{text:?}");
        }
    }

    /// The start does not wait for the other end of a FIFO, nor for a terminal.
    #[test]
    fn what_is_no_regular_file_is_refused_at_once_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("real"), "1\n").unwrap();
        std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for name in ["fifo", "dir", "link", "dangling", "socket"] {
            assert_refused(&at(name));
            assert!(fs::symlink_metadata(at(name)).is_ok(), "{name} is still there");
        }
        assert!(!at("nowhere").exists());
        assert_eq!(fs::read_to_string(at("real")).unwrap(), "1\n");
        assert_refused(Path::new("/dev/null"));
        // One that takes the file's place after the first look.
        let fifo = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(at("fifo")).unwrap();
        let error = holder(&at("fifo"), &fifo).unwrap_err();
        assert!(error.to_string().contains("is not a pid file"), "{error}");
    }

    #[test]
    fn one_of_another_user_is_refused_but_in_his_own_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "1\n").unwrap();
        let chown = std::os::unix::fs::chown::<&Path>;
        if let Err(error) = chown(&path, Some(65533), None) {
            println!("SKIP: needs root: {error}");
            return;
        }
        let file = || OpenOptions::new().read(true).open(&path).unwrap();
        let error = holder(&path, &file()).unwrap_err().to_string();
        assert!(error.contains("belongs to user 65533, who could change it: move it"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        chown(dir.path(), Some(65533), None).unwrap();
        assert_eq!(holder(&path, &file()).unwrap(), "1");
    }

    #[test]
    fn what_has_taken_its_place_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let text = path.to_str().unwrap();
        let pid_file = PidFile::create(text).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(pid_file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        let pid_file = PidFile::create(text).unwrap();
        fs::remove_file(&path).unwrap();
        drop(pid_file);
        assert!(!path.exists());
    }

    #[test]
    fn a_lock_on_a_removed_file_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let claim = |file| PidFile::claim(&path, file, RunDir::for_file(&path).unwrap()).unwrap();
        let file = open(&path).unwrap().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(claim(file).is_none(), "nothing is there any more");
        let file = open(&path).unwrap().unwrap();
        let other = open(&path).unwrap().unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        assert!(claim(file).is_none(), "another file is there");
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        drop(other);
        assert!(claim(open(&path).unwrap().unwrap()).is_some());
        assert!(open(&dir.path().join("missing/pid")).unwrap().is_none());
    }

    #[test]
    fn never_two_hold_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/pid");
        let (holders, successes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        match PidFile::create(path.to_str().unwrap()) {
                            Ok(pid_file) => {
                                assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                                assert!(path.exists());
                                successes.fetch_add(1, Ordering::SeqCst);
                                holders.fetch_sub(1, Ordering::SeqCst);
                                drop(pid_file);
                            }
                            Err(error) => {
                                let error = error.to_string();
                                assert!(error.starts_with("another glowd (pid "), "{error}");
                            }
                        }
                    }
                });
            }
        });
        assert!(successes.into_inner() > 0);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_held_lock_means_another_glowd() {
        let path = Path::new("pid");
        let held = refusal(path, "7", Errno::EWOULDBLOCK).to_string();
        assert_eq!(held, "another glowd (pid 7) is running and holds \"pid\"");
        let other = refusal(path, "7", Errno::ENOLCK).to_string();
        assert!(other.starts_with("cannot lock \"pid\": No locks available"), "{other}");
    }
}
