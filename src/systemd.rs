//! sd_notify(3): tells the service manager how the daemon is. Where there is none
//! it does nothing.

use std::env;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use log::warn;

/// Sends `state`, such as `READY=1`, if NOTIFY_SOCKET names a socket.
pub fn notify(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(path.as_bytes(), state) {
        warn!("cannot tell the service manager {state}: {error}");
    }
}

fn send(path: &[u8], state: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    let address = address(path)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// A path, or after `@` a name in the abstract namespace.
fn address(path: &[u8]) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let [b'@', name @ ..] = path {
        use std::os::linux::net::SocketAddrExt;
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrives(receiver: &UnixDatagram, path: &[u8]) {
        send(path, "READY=1").unwrap();
        let mut buffer = [0; 64];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }

    #[test]
    fn speaks_to_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        arrives(&receiver, path.as_os_str().as_bytes());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn speaks_to_an_abstract_name() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("glowd-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let receiver = UnixDatagram::bind_addr(&address).unwrap();
        arrives(&receiver, format!("@{name}").as_bytes());
    }
}
