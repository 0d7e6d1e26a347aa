//! sd_notify(3) and sd_watchdog_enabled(3): how the daemon tells the service manager
//! that it is ready, reloading, stopping and alive. Where there is no manager it does
//! nothing.
//!
//! Any thread may tell. One socket is opened before any part can use up the
//! descriptors; it never waits, so a manager that does not listen stalls nobody.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use nix::time::{clock_gettime, ClockId};

use crate::warn_limited;

/// The way to the service manager, if there is one.
#[derive(Clone, Debug, Default)]
pub struct Notifier(Option<Arc<Link>>);

#[derive(Debug)]
struct Link {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// To the manager that the environment names: NOTIFY_SOCKET, WATCHDOG_USEC and
    /// WATCHDOG_PID. What is wrong with them is logged; the daemon runs all the same.
    pub fn from_env() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Notifier(None);
        };
        let (period, pid) = (env::var_os("WATCHDOG_USEC"), env::var_os("WATCHDOG_PID"));
        let watchdog = watchdog(period, pid, std::process::id()).unwrap_or_else(|problem| {
            warn!("there will be no watchdog: {problem}");
            None
        });
        Notifier::to(&name, watchdog).unwrap_or_else(|error| {
            warn!("cannot reach the service manager at NOTIFY_SOCKET={name:?}: {error}");
            Notifier(None)
        })
    }

    /// To the manager at `name`, a path or, after `@`, a name in the abstract
    /// namespace. It expects a sign of life within each `watchdog`.
    ///
    /// # Errors
    /// The name is neither, or there is no socket to be had.
    pub fn to(name: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = address(name.as_bytes())?;
        // It is not inherited by anybody: the standard library sets close-on-exec.
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Notifier(Some(Arc::new(Link { socket, address, watchdog }))))
    }

    /// Whether there is a manager.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Within which time the manager expects a sign of life, if it does.
    pub fn watchdog(&self) -> Option<Duration> {
        self.0.as_ref()?.watchdog
    }

    /// Tells `state`, such as `READY=1`; several assignments are lines. Returns whether
    /// it was in vain for now, since the manager has not taken what was told before.
    pub fn tell(&self, state: &str) -> bool {
        let Some(link) = &self.0 else { return false };
        let Err(error) = link.socket.send_to_addr(state.as_bytes(), &link.address) else {
            return false;
        };
        let what = state.lines().next().unwrap_or_default();
        warn_limited!("cannot tell the service manager {what}: {error}");
        error.kind() == io::ErrorKind::WouldBlock
    }

    /// Tells that the configuration is being read again, until READY=1 is told.
    pub fn tell_reloading(&self) {
        // The manager compares the time with that of its own order to reload.
        match clock_gettime(ClockId::CLOCK_MONOTONIC) {
            Ok(now) => {
                let micros =
                    i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1000;
                self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
            }
            Err(error) => warn!("cannot read the monotonic clock: {error}"),
        }
    }
}

/// The period of WATCHDOG_USEC, if WATCHDOG_PID does not say that it is for another
/// process than `own`.
fn watchdog(
    period: Option<OsString>,
    pid: Option<OsString>,
    own: u32,
) -> Result<Option<Duration>, String> {
    let Some(period) = period else { return Ok(None) };
    let number = |name: &str, text: &OsStr, what: &str| {
        let digits = text.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = digits.and_then(|digits| digits.parse::<u64>().ok()).filter(|n| *n > 0);
        number.ok_or_else(|| format!("{name}={text:?} is not {what}"))
    };
    if let Some(pid) = pid {
        if number("WATCHDOG_PID", &pid, "a process id")? != u64::from(own) {
            return Ok(None);
        }
    }
    let micros = number("WATCHDOG_USEC", &period, "a number of microseconds")?;
    Ok(Some(Duration::from_micros(micros)))
}

/// A path, or after `@` a name in the abstract namespace.
fn address(name: &[u8]) -> io::Result<SocketAddr> {
    match name {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)
        }
        [b'/', ..] => SocketAddr::from_pathname(OsStr::from_bytes(name)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor @name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(receiver: &UnixDatagram) -> String {
        let mut buffer = [0; 128];
        let length = receiver.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn speaks_to_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str(), None).unwrap();
        notifier.tell("READY=1");
        notifier.tell_reloading();
        assert_eq!(heard(&receiver), "READY=1");
        let reloading = heard(&receiver);
        let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0, "{reloading}");
        // A manager that was started again is at the same path.
        std::fs::remove_file(&path).unwrap();
        notifier.tell("nobody hears it");
        let receiver = UnixDatagram::bind(&path).unwrap();
        notifier.tell("STOPPING=1");
        assert_eq!(heard(&receiver), "STOPPING=1");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn speaks_to_an_abstract_name() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("glowd-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let receiver = UnixDatagram::bind_addr(&address).unwrap();
        let name = OsString::from(format!("@{name}"));
        Notifier::to(&name, None).unwrap().tell("READY=1");
        assert_eq!(heard(&receiver), "READY=1");
    }

    #[test]
    fn what_is_no_address_is_refused_and_no_manager_is_no_trouble() {
        for name in ["", "notify", "vsock:2:1", "./notify"] {
            Notifier::to(OsStr::new(name), None).unwrap_err();
        }
        let nobody = Notifier::default();
        nobody.tell("READY=1");
        nobody.tell_reloading();
        assert!(!nobody.is_there() && nobody.watchdog().is_none());
    }

    /// Nobody reads: the test would hang if it waited.
    #[test]
    fn a_manager_that_does_not_listen_stalls_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str(), None).unwrap();
        let in_vain = (0..10_000).filter(|_| notifier.tell("WATCHDOG=1")).count();
        assert!(in_vain > 0 && in_vain < 10_000, "{in_vain}");
        assert_eq!(heard(&receiver), "WATCHDOG=1");
        assert!(!notifier.tell("WATCHDOG=1"), "there is room again");
    }

    #[test]
    fn the_watchdog_is_for_this_process_and_garbage_is_named() {
        let judged = |period: Option<&str>, pid: Option<&str>| {
            watchdog(period.map(OsString::from), pid.map(OsString::from), 7)
        };
        let second = Ok(Some(Duration::from_secs(1)));
        assert_eq!(judged(Some("1000000"), None), second);
        assert_eq!(judged(Some("1000000"), Some("7")), second);
        assert_eq!(judged(Some("1000000"), Some("8")), Ok(None));
        assert_eq!(judged(None, Some("7")), Ok(None));
        for garbage in ["", "0", "-1", "+1", "1s", "1.5", "99999999999999999999", " 1"] {
            let problem = judged(Some(garbage), None).unwrap_err();
            let expected = format!("WATCHDOG_USEC={garbage:?} is not a number of microseconds");
            assert_eq!(problem, expected);
            let problem = judged(Some("1000000"), Some(garbage)).unwrap_err();
            assert_eq!(problem, format!("WATCHDOG_PID={garbage:?} is not a process id"));
        }
    }
}
