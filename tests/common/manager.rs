//! The service manager of a daemon under test: it hears what is told it at any time, as
//! systemd does. What nobody takes would soon be refused (net.unix.max_dgram_qlen).

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

/// How long it listens before it looks whether anybody still wants to know.
const LISTEN: u16 = 100;

/// Hears what one process tells it, until dropped.
pub(crate) struct Manager {
    shared: Arc<Shared>,
    /// How many notices the test has taken one by one.
    taken: usize,
}

struct Shared {
    socket: UnixDatagram,
    notices: Mutex<Vec<String>>,
    more: Condvar,
}

impl Manager {
    /// Listens at `path`, for anybody who gets there.
    pub(crate) fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a notify socket");
        socket.set_nonblocking(true).expect("not to wait");
        std::fs::set_permissions(path, Permissions::from_mode(0o777)).expect("to set its mode");
        let second = socket.try_clone().expect("a descriptor");
        let shared =
            Arc::new(Shared { socket, notices: Mutex::default(), more: Condvar::default() });
        let weak = Arc::downgrade(&shared);
        thread::spawn(move || listen(&second, &weak));
        Manager { shared, taken: 0 }
    }

    /// All that it was told so far.
    pub(crate) fn notices(&mut self) -> Vec<String> {
        let notices = self.shared.take().clone();
        self.taken = notices.len();
        notices
    }

    /// What it is told next, if that is within `patience`.
    pub(crate) fn next(&mut self, patience: Duration) -> Option<String> {
        let notices = self.shared.take();
        let (notices, _) = self
            .shared
            .more
            .wait_timeout_while(notices, patience, |notices| notices.len() == self.taken)
            .expect("no panic");
        let next = notices.get(self.taken).cloned();
        self.taken += usize::from(next.is_some());
        next
    }
}

impl Shared {
    /// Takes what has arrived; whoever asks need not wait for the thread.
    fn take(&self) -> MutexGuard<'_, Vec<String>> {
        let mut notices = self.notices.lock().expect("no panic");
        let mut buffer = [0; 256];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    notices.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return notices,
                Err(error) => panic!("the notify socket: {error}"),
            }
        }
    }
}

fn listen(socket: &UnixDatagram, shared: &Weak<Shared>) {
    loop {
        let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut sockets, PollTimeout::from(LISTEN)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => panic!("the notify socket: {error}"),
        }
        let Some(shared) = shared.upgrade() else { return };
        drop(shared.take());
        shared.more.notify_all();
    }
}
