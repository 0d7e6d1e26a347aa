//! Network namespaces for tests, and the one topology that most of them need.
//!
//! A namespace here has no name: it lives by a file descriptor and by what runs in
//! it. So tests cannot meet each other's, and the kernel removes everything in it,
//! whatever way the test ends.

use std::fs::{self, File};
use std::net::{SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{setns, unshare, CloneFlags};

use super::{udp, v6, wait_for};

/// A network namespace with `lo` up.
pub(crate) struct Namespace(File);

impl Namespace {
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
            File::open("/proc/thread-self/ns/net").expect("its file")
        };
        let namespace = Namespace(thread::spawn(make).join().expect("a thread"));
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `work` on a thread inside. What it makes (sockets, processes) stays in
    /// the namespace.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("to enter the namespace");
                work()
            };
            match scope.spawn(inside).join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A path by which other processes can name it while this one lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs a command inside and returns what it printed.
    pub(crate) fn run(&self, command: &str) -> String {
        let mut words = command.split_whitespace();
        let program = words.next().expect("a program");
        let output = self
            .enter(|| Command::new(program).args(words).output())
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {}: {errors}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `ip` with these arguments.
    pub(crate) fn ip(&self, arguments: &str) {
        self.run(&format!("ip {arguments}"));
    }

    /// Sets `/proc/sys/net/KEY`.
    pub(crate) fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/net/{key}");
        self.enter(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

impl Namespace {
    /// Sets who cuts what leaves through the device.
    pub(crate) fn set_offload(&self, device: &str, offload: Offload) {
        let (features, segments) = match offload {
            Offload::Tso => ("tx on tso on gso on gro off", 65_535),
            Offload::Gso => ("tx on tso off gso on gro off", 65_535),
            // TCP makes GSO packets whatever the device says (since 4.17), unless
            // the device takes one segment at a time.
            Offload::None => ("tx off tso off gso off gro off", 1),
        };
        self.ip(&format!("link set {device} gso_max_segs {segments}"));
        self.run(&format!("ethtool -K {device} {features}"));
    }

    /// How many packets the device has dropped, in either direction.
    pub(crate) fn drops(&self, device: &str) -> u64 {
        let text = self.run(&format!("ip -s -j link show {device}"));
        let links: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let count = |side| links[0]["stats64"][side]["dropped"].as_u64().expect("a count");
        count("rx") + count("tx")
    }
}

/// The device at both ends of a [`Pair`].
pub(crate) const DEVICE: &str = "veth0";
/// The marking host's address, its second one, and the other host's.
pub(crate) const HERE: &str = "fd00::1";
pub(crate) const HERE_TOO: &str = "fd00::11";
pub(crate) const THERE: &str = "fd00::2";

/// Who cuts a bulk transfer into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offload {
    /// The device: super-packets reach the other host as they are.
    Tso,
    /// The kernel, behind the egress hook, which so sees super-packets.
    Gso,
    /// TCP: the egress hook sees every packet of the wire, checksum included.
    None,
}

/// The router's address on both links of [`Pair::routed`].
const ROUTER: &str = "fd00::ff";

fn prepare(host: &Namespace) {
    host.sysctl("ipv6/auto_flowlabels", "0");
    host.sysctl("ipv4/tcp_ecn", "1");
}

/// Two hosts and a cable: `here`, where the daemon runs, and `there`. Labels are 0
/// unless somebody sets them, and ECN is negotiated.
pub(crate) struct Pair {
    pub(crate) here: Namespace,
    pub(crate) there: Namespace,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let (here, there) = (Namespace::new(), Namespace::new());
        let peer = there.path();
        here.ip(&format!("link add {DEVICE} type veth peer name {DEVICE} netns {peer}"));
        for (host, addresses, v4) in
            [(&here, &[HERE, HERE_TOO][..], "10.0.0.1"), (&there, &[THERE], "10.0.0.2")]
        {
            prepare(host);
            for address in addresses {
                host.ip(&format!("-6 address add {address}/64 dev {DEVICE} nodad"));
            }
            host.ip(&format!("address add {v4}/24 dev {DEVICE}"));
            host.ip(&format!("link set {DEVICE} up"));
        }
        let pair = Pair { here, there };
        pair.await_cable();
        pair
    }

    /// A socket here that sends to one there, and that one.
    pub(crate) fn udp(&self, from: SocketAddrV6, to: SocketAddrV6) -> (UdpSocket, UdpSocket) {
        // It is there before what it is sent.
        let sink = udp(&self.there, to, from);
        (udp(&self.here, from, to), sink)
    }

    /// The same hosts with a router between them, which is returned as well. The link
    /// from the router to `there` carries packets of up to `mtu` octets; the devices
    /// of the hosts know of no such limit.
    pub(crate) fn routed(mtu: u32) -> (Self, Namespace) {
        let (here, there, router) = (Namespace::new(), Namespace::new(), Namespace::new());
        router.sysctl("ipv6/conf/all/forwarding", "1");
        for (host, address, other, side) in
            [(&here, HERE, THERE, "here"), (&there, THERE, HERE, "there")]
        {
            prepare(host);
            let peer = router.path();
            host.ip(&format!("link add {DEVICE} type veth peer name {side} netns {peer}"));
            host.ip(&format!("-6 address add {address}/128 dev {DEVICE} nodad"));
            host.ip(&format!("link set {DEVICE} up"));
            router.ip(&format!("-6 address add {ROUTER}/128 dev {side} nodad"));
            router.ip(&format!("link set {side} up"));
            router.ip(&format!("-6 route add {address}/128 dev {side}"));
            host.ip(&format!("-6 route add {ROUTER}/128 dev {DEVICE}"));
            host.ip(&format!("-6 route add {other}/128 via {ROUTER} dev {DEVICE}"));
        }
        router.ip(&format!("link set there mtu {mtu}"));
        let pair = Pair { here, there };
        pair.await_cable();
        (pair, router)
    }

    /// Returns when packets pass both ways: the kernel connects a device's queue some
    /// time after it came up, and drops what is sent before.
    fn await_cable(&self) {
        let (one, two) = (v6(HERE, 7), v6(THERE, 7));
        let sockets = (udp(&self.here, one, two), udp(&self.there, two, one));
        for (from, to) in [(&sockets.0, &sockets.1), (&sockets.1, &sockets.0)] {
            to.set_read_timeout(Some(Duration::from_millis(5))).expect("a timeout");
            wait_for("the cable", || {
                from.send(b"hello").expect("to send");
                to.recv(&mut [0; 16]).ok()
            });
        }
    }

    /// Sets both ends. Before the daemon starts, as on a real host.
    pub(crate) fn set_device(&self, mtu: u32, offload: Offload) {
        for host in [&self.here, &self.there] {
            host.ip(&format!("link set {DEVICE} mtu {mtu}"));
            host.set_offload(DEVICE, offload);
        }
    }
}
