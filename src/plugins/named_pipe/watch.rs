//! Notices that somebody did something to the pipe's directory entry: inotify(7)
//! on its folder. Where there is none, the plugin looks every second instead.
//! Runs on the plugin's thread; owns the inotify descriptor.

#[cfg(not(target_os = "linux"))]
use std::os::fd::BorrowedFd;
use std::path::Path;

/// What has happened since the last question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing that matters.
    Nothing,
    /// Something to the file.
    File,
    /// Something to the folder itself: the watch may be on the wrong one.
    Folder,
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::OsString;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::path::Path;

    use nix::errno::Errno;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

    use super::super::NAME;
    use super::Seen;

    /// A watch on the folder of a file.
    #[derive(Debug)]
    pub(in super::super) struct Watch {
        inotify: Option<Inotify>,
        name: OsString,
    }

    impl Watch {
        /// Starts to watch. If that cannot be, it is said, and there is no watch.
        pub(in super::super) fn new(file: &Path) -> Self {
            let name = file.file_name().unwrap_or_default().to_owned();
            let folder = super::folder(file);
            let inotify = match start(folder) {
                Ok(inotify) => Some(inotify),
                Err(error) => {
                    crate::warn_limited!(
                        "{NAME}: cannot watch the folder {folder:?}: {error}; looking every second"
                    );
                    None
                }
            };
            Watch { inotify, name }
        }

        /// What to poll, if there is a watch.
        pub(in super::super) fn fd(&self) -> Option<BorrowedFd<'_>> {
            self.inotify.as_ref().map(AsFd::as_fd)
        }

        /// What has happened.
        pub(in super::super) fn seen(&self) -> Seen {
            let Some(inotify) = &self.inotify else { return Seen::Nothing };
            let events = match inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN | Errno::EINTR) => return Seen::Nothing,
                // Whatever it is, a new watch is the answer to it.
                Err(_) => return Seen::Folder,
            };
            let folder = AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_UNMOUNT
                | AddWatchFlags::IN_IGNORED
                | AddWatchFlags::IN_Q_OVERFLOW;
            if events.iter().any(|event| event.mask.intersects(folder)) {
                Seen::Folder
            } else if events.iter().any(|event| event.name.as_ref() == Some(&self.name)) {
                Seen::File
            } else {
                Seen::Nothing
            }
        }
    }

    fn start(folder: &Path) -> nix::Result<Inotify> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(folder, changes)?;
        Ok(inotify)
    }
}

#[cfg(target_os = "linux")]
pub(super) use linux::Watch;

/// No watch.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(super) struct Watch;

#[cfg(not(target_os = "linux"))]
impl Watch {
    pub(super) fn new(_: &Path) -> Self {
        Watch
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    pub(super) fn seen(&self) -> Seen {
        Seen::Nothing
    }
}

/// The folder that a file is in.
#[cfg(target_os = "linux")]
fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}
