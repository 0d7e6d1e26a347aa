//! The FIFO in the file system (fifo(7)): made or taken over, opened for reading,
//! removed when it is dropped if it was made here. Used on the plugin's thread,
//! at start on the main thread; owns the read end and the directory entry.
//!
//! A glowd that was killed leaves its FIFO behind, and a writer would wait for ever
//! in open(2) once the next one had gone, too. So at start one that is exactly as
//! glowd would have made it, and that nobody reads, is adopted: it is removed at
//! the end like one that was made.
//!
//! A file is known by its device and inode number. The number cannot be given to
//! another file while a read end holds the inode, so a comparison is never fooled.

use std::fs::{self, File, FileType, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{fchown, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use log::warn;
use nix::errno::Errno;
use nix::libc::{ENXIO, O_NOFOLLOW, O_NONBLOCK};
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid, mkfifo};

use super::NAME;
use crate::error::{Class, Error, Result};

/// Size of the pipe's buffer in bytes, where the system lets us choose: what it
/// lets anybody have by default (pipe(7)), so that a burst does not wait.
pub(super) const BUFFER: usize = 1 << 20;

/// Who may do what with the FIFO.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    /// Permission bits.
    pub(super) mode: u32,
    /// Group; none: as it comes.
    pub(super) gid: Option<u32>,
}

/// Where a FIFO is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It was made here.
    Made,
    /// A glowd that was killed has left it: as good as made here.
    Adopted,
    /// Somebody else has made it.
    Found,
}

/// When the path is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// At start: what is there may be from a glowd before us.
    Start,
    /// Later: what is there was put in our FIFO's place.
    Later,
}

/// Who reads a FIFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Somebody,
    Nobody,
    /// We may not ask.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(meta: &Metadata) -> Self {
        Identity { device: meta.dev(), inode: meta.ino() }
    }
}

/// A FIFO, open for reading without blocking.
#[derive(Debug)]
pub(super) struct Fifo {
    file: File,
    path: PathBuf,
    identity: Identity,
    origin: Origin,
}

impl Fifo {
    /// Makes the FIFO at `path`, or takes the one that is there.
    ///
    /// # Errors
    /// Something else is there, which is left alone; or the FIFO is another user's;
    /// or another process reads it; or it cannot be made, opened or given the access
    /// that it has to have.
    pub(super) fn acquire(path: &Path, access: Access, when: When) -> Result<Self> {
        let cannot = |what: &str, error: io::Error| {
            Error::os(format!("cannot {what} \"{}\"", path.display()), error)
        };
        // Nobody else gets in before the access is settled.
        let made = match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(cannot("create the FIFO", error.into())),
        };
        let meta = fs::symlink_metadata(path).map_err(|error| cannot("look at", error))?;
        if !meta.file_type().is_fifo() {
            let found = kind(meta.file_type());
            let message = format!(
                "\"{}\" is {found}, not a FIFO: move it away or choose another pipePath",
                path.display()
            );
            return Err(Error::new(Class::Os, message));
        }
        let origin = if made { Origin::Made } else { examine(path, &meta, access, when)? };
        let identity = Identity::of(&meta);
        let file = match open(path, identity) {
            Ok(file) => file,
            Err(error) => {
                if made {
                    remove(path, identity);
                }
                return Err(cannot("open for reading", error));
            }
        };
        // From here on, its Drop cleans up.
        let fifo = Fifo { file, path: path.to_owned(), identity, origin };
        fifo.settle(access)?;
        fifo.enlarge();
        Ok(fifo)
    }

    /// Gives the FIFO its group and mode, whatever the umask is. One that belongs
    /// to root stays as it is if we are not.
    fn settle(&self, access: Access) -> Result<()> {
        let cannot = |what: String, error: io::Error| {
            Error::os(format!("cannot {what} of \"{}\"", self.path.display()), error)
        };
        let meta = self.file.metadata().map_err(|error| cannot("read the status".into(), error))?;
        let (mode, gid) = (meta.mode() & 0o7777, meta.gid());
        let wanted_gid = access.gid.unwrap_or(gid);
        if (mode, gid) == (access.mode, wanted_gid) {
            return Ok(());
        }
        if meta.uid() != geteuid().as_raw() {
            crate::warn_limited!(
                "{NAME}: \"{}\" belongs to root and keeps mode {mode:04o} and group {gid} \
                 instead of {:04o} and {wanted_gid}",
                self.path.display(),
                access.mode
            );
            return Ok(());
        }
        if gid != wanted_gid {
            fchown(&self.file, None, Some(wanted_gid))
                .map_err(|error| cannot(format!("make {wanted_gid} the group"), error))?;
        }
        // Last, since a change of the group may take bits away.
        self.file
            .set_permissions(Permissions::from_mode(access.mode))
            .map_err(|error| cannot(format!("set the mode {:04o}", access.mode), error))
    }

    /// Gives the FIFO another access than that which it was acquired with.
    ///
    /// # Errors
    /// The system does not allow it; then it keeps the one that it has.
    pub(super) fn change(&self, from: Access, to: Access) -> Result<()> {
        // Without a group it gets the one that it would have been made with.
        let usual = || from.gid.and_then(|_| usual_group(&self.path));
        self.settle(Access { gid: to.gid.or_else(usual), ..to })
    }

    #[cfg(target_os = "linux")]
    fn enlarge(&self) {
        use nix::fcntl::{fcntl, FcntlArg};
        let size = i32::try_from(BUFFER).unwrap_or(i32::MAX);
        if let Err(error) = fcntl(&self.file, FcntlArg::F_SETPIPE_SZ(size)) {
            // Writers wait a little more often, that is all.
            log::debug!("{NAME}: cannot enlarge the pipe's buffer: {error}");
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn enlarge(&self) {}

    /// Whether the path still leads here.
    pub(super) fn is_at_path(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|meta| Identity::of(&meta) == self.identity)
    }

    /// Replaces the read end by a fresh one; the FIFO is never without a reader.
    /// False: the path leads elsewhere, and nothing was changed.
    ///
    /// # Errors
    /// There is no fresh one to be had; the old one stays.
    pub(super) fn renew(&mut self) -> io::Result<bool> {
        match open(&self.path, self.identity) {
            Ok(file) => {
                self.file = file;
                Ok(true)
            }
            Err(_) if !self.is_at_path() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads what is there, without waiting; 0 is the end of the last writer.
    pub(super) fn read(&self, chunk: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut &self.file, chunk)
    }

    /// Where it is from, and so whether it is removed when it is dropped.
    pub(super) fn origin(&self) -> Origin {
        self.origin
    }
}

impl AsFd for Fifo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        if self.origin != Origin::Found {
            remove(&self.path, self.identity);
        }
    }
}

/// Opens a read end of that very FIFO.
fn open(path: &Path, identity: Identity) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_NOFOLLOW).open(path)?;
    if Identity::of(&file.metadata()?) == identity {
        Ok(file)
    } else {
        Err(io::Error::new(ErrorKind::NotFound, "it was replaced meanwhile"))
    }
}

/// Whether a FIFO that is there already can be used, and whose it is.
fn examine(path: &Path, meta: &Metadata, access: Access, when: When) -> Result<Origin> {
    let shown = path.display();
    let refused = |message: String| Err(Error::new(Class::Os, message));
    let (us, owner) = (geteuid().as_raw(), meta.uid());
    // They could read lines away from us and let anybody write.
    if owner != us && owner != 0 {
        return refused(format!(
            "\"{shown}\" belongs to user {owner}, who is neither glowd's user nor root: move it \
             away or choose another pipePath"
        ));
    }
    let reader = reader(path);
    if reader == Reader::Somebody {
        return refused(format!(
            "another process reads \"{shown}\": stop it or choose another pipePath"
        ));
    }
    let is_as_made = owner == us
        && meta.mode() & 0o7777 == access.mode
        && access.gid.or_else(|| usual_group(path)) == Some(meta.gid());
    if when == When::Start && reader == Reader::Nobody && is_as_made {
        Ok(Origin::Adopted)
    } else {
        Ok(Origin::Found)
    }
}

/// The group that a file made at the path gets if nobody says another: that of the
/// folder if this has the set-group-ID bit (inode(7)) or the system always does
/// so, else the process's.
fn usual_group(path: &Path) -> Option<u32> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let folder = fs::metadata(folder.unwrap_or(Path::new("."))).ok()?;
    let inherited = cfg!(not(target_os = "linux")) || folder.mode() & 0o2000 != 0;
    Some(if inherited { folder.gid() } else { getegid().as_raw() })
}

/// Whether some process has the FIFO open for reading: only then can it be opened
/// for writing without blocking.
fn reader(path: &Path) -> Reader {
    match OpenOptions::new().write(true).custom_flags(O_NONBLOCK | O_NOFOLLOW).open(path) {
        Ok(_) => Reader::Somebody,
        Err(error) if error.raw_os_error() == Some(ENXIO) => Reader::Nobody,
        Err(_) => Reader::Unknown,
    }
}

/// Removes the directory entry if it still leads to that file.
fn remove(path: &Path, identity: Identity) {
    match fs::symlink_metadata(path) {
        Ok(meta) if Identity::of(&meta) == identity => {
            if let Err(error) = fs::remove_file(path) {
                warn!("{NAME}: cannot remove \"{}\": {error}", path.display());
            }
        }
        // Somebody removed or replaced it: not ours any more.
        _ => {}
    }
}

/// What a file is, in words.
fn kind(file: FileType) -> &'static str {
    if file.is_dir() {
        "a directory"
    } else if file.is_symlink() {
        "a symbolic link"
    } else if file.is_socket() {
        "a socket"
    } else if file.is_block_device() || file.is_char_device() {
        "a device"
    } else {
        "a regular file"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::umask;

    const PLAIN: Access = Access { mode: 0o660, gid: None };

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn is_removed_by_its_maker_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("np");
        drop(Fifo::acquire(&path, PLAIN, When::Start).unwrap());
        assert!(!path.exists(), "made here");
        mkfifo(&path, Mode::S_IRUSR).unwrap();
        drop(Fifo::acquire(&path, PLAIN, When::Start).unwrap());
        assert!(path.exists(), "found here");
        fs::remove_file(&path).unwrap();
        let fifo = Fifo::acquire(&path, PLAIN, When::Start).unwrap();
        fs::remove_file(&path).unwrap();
        mkfifo(&path, Mode::S_IRUSR).unwrap();
        assert!(!fifo.is_at_path());
        drop(fifo);
        assert!(path.exists(), "another one by now");
    }

    #[test]
    fn has_exactly_the_mode_and_group_that_are_configured() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("np");
        // The mask is the whole process's; this one hurts no other test.
        let before = umask(Mode::S_IWGRP | Mode::S_IWOTH);
        let fifo = Fifo::acquire(&path, Access { mode: 0o666, gid: None }, When::Start);
        umask(before);
        assert_eq!(mode(&path), 0o666);
        drop(fifo.unwrap());

        mkfifo(&path, Mode::S_IRUSR).unwrap();
        let gid = fs::metadata(dir.path()).unwrap().gid();
        // Root can give it to any group, others to their own.
        let gid = if geteuid().is_root() { 12_345 } else { gid };
        let fifo =
            Fifo::acquire(&path, Access { mode: 0o2640, gid: Some(gid) }, When::Start).unwrap();
        assert_eq!((mode(&path), fs::metadata(&path).unwrap().gid()), (0o2640, gid));
        drop(fifo);

        if geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
            let error = Fifo::acquire(&path, PLAIN, When::Start).unwrap_err().to_string();
            let expected = format!(
                "\"{}\" belongs to user 12345, who is neither glowd's user nor root: move it \
                 away or choose another pipePath",
                path.display()
            );
            assert_eq!(error, expected);
            assert_eq!(mode(&path), 0o2640, "it was not touched");
        }
    }

    #[test]
    fn defect_16_what_is_not_a_fifo_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "precious").unwrap();
        fs::create_dir(at("dir")).unwrap();
        mkfifo(&at("real"), Mode::S_IRUSR).unwrap();
        std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, kind) in [
            ("file", "a regular file"),
            ("dir", "a directory"),
            ("link", "a symbolic link"),
            ("dangling", "a symbolic link"),
            ("socket", "a socket"),
        ] {
            let error = Fifo::acquire(&at(name), PLAIN, When::Start).unwrap_err().to_string();
            let shown = at(name).display().to_string();
            let expected = format!(
                "\"{shown}\" is {kind}, not a FIFO: move it away or choose another pipePath"
            );
            assert_eq!(error, expected);
            assert!(fs::symlink_metadata(at(name)).is_ok(), "{name} is still there");
        }
        assert_eq!(fs::read_to_string(at("file")).unwrap(), "precious");
        let error = Fifo::acquire(&at("missing/np"), PLAIN, When::Start).unwrap_err().to_string();
        assert!(error.starts_with("cannot create the FIFO \""), "{error}");
    }

    #[test]
    fn two_readers_would_steal_lines_from_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("np");
        let first = Fifo::acquire(&path, PLAIN, When::Start).unwrap();
        let error = Fifo::acquire(&path, PLAIN, When::Start).unwrap_err().to_string();
        assert!(error.starts_with("another process reads \""), "{error}");
        assert!(first.is_at_path());
    }

    /// What a glowd with that access leaves when it is killed.
    fn leave(path: &Path, access: Access) {
        let mut fifo = Fifo::acquire(path, access, When::Start).unwrap();
        assert_eq!(fifo.origin(), Origin::Made);
        fifo.origin = Origin::Found;
    }

    #[test]
    fn what_a_killed_glowd_left_is_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("np");
        let other = Access { mode: 0o620, gid: None };
        let gid = Some(getegid().as_raw());
        let explicit = Access { gid, ..PLAIN };
        for (left, wanted) in [(PLAIN, PLAIN), (other, other), (PLAIN, explicit)] {
            leave(&path, left);
            let fifo = Fifo::acquire(&path, wanted, When::Start).unwrap();
            assert_eq!(fifo.origin(), Origin::Adopted);
            drop(fifo);
            assert!(!path.exists());
        }
        // A folder that hands its group down.
        let group = if geteuid().is_root() { 12_345 } else { getegid().as_raw() };
        std::os::unix::fs::chown(dir.path(), None, Some(group)).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o2700)).unwrap();
        leave(&path, PLAIN);
        assert_eq!(fs::metadata(&path).unwrap().gid(), group);
        drop(Fifo::acquire(&path, PLAIN, When::Start).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_exactly_a_leftover_is_used_and_left_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("np");
        let check = |wanted: Access, when: When| {
            let fifo = Fifo::acquire(&path, wanted, when).unwrap();
            assert_eq!(fifo.origin(), Origin::Found);
            drop(fifo);
            assert!(path.exists());
            fs::remove_file(&path).unwrap();
        };
        leave(&path, PLAIN);
        check(PLAIN, When::Later);
        leave(&path, PLAIN);
        check(Access { mode: 0o620, gid: None }, When::Start);
        if geteuid().is_root() {
            leave(&path, PLAIN);
            check(Access { gid: Some(12_345), ..PLAIN }, When::Start);
            leave(&path, Access { gid: Some(12_345), ..PLAIN });
            check(PLAIN, When::Start);
        }
        // Its reader has it.
        leave(&path, PLAIN);
        let reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path).unwrap();
        let error = Fifo::acquire(&path, PLAIN, When::Start).unwrap_err().to_string();
        assert!(error.starts_with("another process reads \""), "{error}");
        assert!(path.exists());
        drop(reader);
    }
}
