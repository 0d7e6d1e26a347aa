//! What the other modules share: a daemon under test, namespaces, traffic, packets.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use glowd::net::uninterrupted;

mod capture;
mod daemon;
mod manager;
mod netns;
pub(crate) mod packet;
mod raw;
mod ring;
mod traffic;
mod tun;

pub(crate) use {capture::*, daemon::*, netns::*, raw::*, ring::*, traffic::*, tun::*};

/// How long a test waits for what has to happen. Only a failing test waits that
/// long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A port of loopback that is free, for TCP and UDP, until the test or its daemon takes it: it is
/// given once, and not from those that the kernel gives whoever wants any port.
pub(crate) fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    wait_for("a free port", || {
        // Each process of tests begins elsewhere.
        let number = std::process::id().wrapping_mul(97);
        let number = number.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = 20_000 + u16::try_from(number % 10_000).expect("small");
        let at = ("127.0.0.1", port);
        (TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok()).then_some(port)
    })
}

/// Whether the test may not run, with the reason said. `make test` as root counts
/// it as a failure.
pub(crate) fn skip_unless_root() -> bool {
    let skip = !nix::unistd::geteuid().is_root();
    if skip {
        println!("SKIP: needs root");
    }
    skip
}

/// Whether these programs are here; says which is not. Where tools/deps cannot install one
/// (those are `optional`, and EL does not package them) that is nobody's mistake, and `make
/// test` as root counts it as none.
pub(crate) fn installed(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_here = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let Some(missing) = programs.iter().find(|name| !is_here(name)) else { return true };
    if ["fish", "prometheus", "promtool"].contains(missing) && !is_here("apt-get") {
        println!("{missing} is not installed, and not packaged here");
    } else {
        println!("SKIP: {missing} is not installed");
    }
    false
}

/// Receives a datagram.
pub(crate) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<usize> {
    uninterrupted(|| socket.recv(buffer))
}
