//! Notices that somebody did something to the pipe's directory entry: inotify(7)
//! on its folder. Where there is none, the plugin looks every second instead.
//! Runs on the plugin's thread; owns the inotify descriptor.

#[cfg(target_os = "linux")]
pub(super) use linux::Watch;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::path::{Path, PathBuf};

    use nix::errno::Errno;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

    use super::super::NAME;

    /// A watch on the folder of a file.
    #[derive(Debug)]
    pub(in super::super) struct Watch {
        inotify: Option<Inotify>,
        file: PathBuf,
    }

    impl Watch {
        /// Starts to watch. If that cannot be, it is said, and there is no watch.
        pub(in super::super) fn new(file: &Path) -> Self {
            Watch { inotify: start(file), file: file.to_owned() }
        }

        /// What to poll, if there is a watch.
        pub(in super::super) fn fd(&self) -> Option<BorrowedFd<'_>> {
            self.inotify.as_ref().map(AsFd::as_fd)
        }

        /// Whether something may have happened to the file since the last question.
        pub(in super::super) fn seen(&mut self) -> bool {
            let Some(inotify) = &self.inotify else { return false };
            let events = match inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN | Errno::EINTR) => return false,
                // Whatever it is, a new watch is the answer to it.
                Err(_) => {
                    self.inotify = start(&self.file);
                    return true;
                }
            };
            let folder = AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_UNMOUNT
                | AddWatchFlags::IN_IGNORED
                | AddWatchFlags::IN_Q_OVERFLOW;
            if events.iter().any(|event| event.mask.intersects(folder)) {
                // The path may lead to another folder by now.
                self.inotify = start(&self.file);
                return true;
            }
            let name = self.file.file_name();
            events.iter().any(|event| event.name.as_deref() == name)
        }
    }

    fn start(file: &Path) -> Option<Inotify> {
        let folder = file.parent().filter(|folder| *folder != Path::new(""));
        let folder = folder.unwrap_or(Path::new("."));
        let start = || {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            let changes = AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVE
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_ONLYDIR;
            inotify.add_watch(folder, changes)?;
            Ok(inotify)
        };
        match start() {
            Ok(inotify) => Some(inotify),
            // The plugin makes the folder again, and then a new watch.
            Err(Errno::ENOENT) => None,
            Err(error) => {
                crate::warn_limited!(
                    "{NAME}: cannot watch the folder {folder:?}: {error}; looking every second"
                );
                None
            }
        }
    }
}

/// No watch.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(super) struct Watch;

#[cfg(not(target_os = "linux"))]
impl Watch {
    pub(super) fn new(_: &std::path::Path) -> Self {
        Watch
    }

    pub(super) fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }

    pub(super) fn seen(&mut self) -> bool {
        false
    }
}
