//! The pid file: says which process runs, and by its lock that it runs. Created
//! at start, removed when dropped.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use log::warn;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};
use crate::run_dir::RunDir;

/// A pid file with this process's id, locked while it lives.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    _lock: Flock<File>,
    _dir: RunDir,
}

impl PidFile {
    /// Writes the pid file at `path`; none if the path is empty. Its folder is
    /// made if only that is missing.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be written.
    pub fn create(path: &str) -> Result<Option<Self>> {
        if path.is_empty() {
            return Ok(None);
        }
        let path = Path::new(path);
        let dir = RunDir::for_file(path)?;
        let cannot = |what: &str, cause: std::io::Error| {
            Error::os(format!("cannot {what} {:?}", path.display().to_string()), cause)
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .mode(0o644)
            .open(path)
            .map_err(|error| cannot("open", error))?;
        let mut holder = String::new();
        // Only for the message.
        let _ = file.read_to_string(&mut holder);
        let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
            let holder = holder.trim();
            let shown = path.display();
            Error::new(
                crate::error::Class::Os,
                format!("another glowd (pid {holder}) is running and holds \"{shown}\""),
            )
        })?;
        lock.set_len(0).map_err(|error| cannot("truncate", error))?;
        std::io::Seek::rewind(&mut *lock).map_err(|error| cannot("rewind", error))?;
        writeln!(lock, "{}", std::process::id()).map_err(|error| cannot("write", error))?;
        Ok(Some(PidFile { path: path.to_owned(), _lock: lock, _dir: dir }))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            warn!("cannot remove the pid file {:?}: {error}", self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_as_long_as_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/glowd.pid");
        let text = path.to_str().unwrap();
        let pid_file = PidFile::create(text).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        let second = PidFile::create(text).unwrap_err().to_string();
        assert!(second.contains("another glowd (pid"), "{second}");
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
}
