//! Loads bpf/connections.bpf.c, attaches it and reads what it reports. Runs on the
//! plugin's thread; owns the program's link, which ends with it.

use std::fs::{self, File};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::time::{clock_gettime, ClockId};

use super::{Change, Connection, Open, Ports, Process, Wanted};
use crate::error::{Class, Error, Result};
use crate::flow::{FlowId, Protocol, Timestamp};
use crate::net::cgroups::{is_within, Cgroups, Places, DEEPEST};
use crate::net::sock_diag::{Condition, Diag, Filter, Query, Socket, State, States};
use crate::rules::Fact;
use crate::sys::abi::{
    ConnectionFilter, ConnectionReport, Group, PortRanges, CONNECTION_CLOSED,
    CONNECTION_ESTABLISHED, CONNECTION_OPENED,
};
use crate::sys::bpf::{
    lacking_capabilities, possible_cpus, Link, Map, Object, OpenObject, PerCpuArray, RingBuffer,
    CONNECTIONS,
};
use crate::sys::probe;

/// The watch over the connections of a control group.
#[derive(Debug)]
pub struct Connections {
    // First, so that nothing is reported any more when the rest goes.
    _link: Link,
    reports: RingBuffer<ConnectionReport>,
    lost: PerCpuArray,
    filter: Map<u32, ConnectionFilter>,
    groups: Arc<Map<u64, Group>>,
    diag: Diag,
    /// The folder of the control group.
    cgroup: PathBuf,
}

impl Connections {
    /// Watches the connections of that control group and of all below it, beside whoever
    /// else does. From now on each is reported or, if reports are not read in time,
    /// counted as lost; there is room for 10,082 reports.
    ///
    /// # Errors
    /// The kernel cannot (5.10 brought what it takes: bpf_skc_to_tcp_sock in
    /// programs for sockets), the process may not, the folder is
    /// not that of a control group (v2), or somebody has attached a program to it that
    /// tolerates no other.
    pub fn watch(cgroup: &Path, wanted: &Wanted) -> Result<Self> {
        // First, since what the kernel says to who may not ask is another reason.
        let cause = lacking_capabilities().or_else(|| {
            let lacks = !probe::has_ring_buffers();
            lacks.then(|| "the kernel has no ring buffers for eBPF (5.8)".into())
        });
        if let Some(cause) = cause {
            let text = format!("connections cannot be told at once: {cause}");
            return Err(Error::new(Class::Os, text));
        }
        let mut object = OpenObject::from_memory("connections", &CONNECTIONS.unpack()?)?;
        object.set_rodata(".rodata.here", &here()?)?;
        if wanted.groups {
            // Each CPU sets 128 of them aside for itself.
            let cpus = u32::try_from(possible_cpus()?).unwrap_or(u32::MAX);
            object.set_max_entries("groups", cpus.saturating_mul(256).clamp(1024, 1 << 16))?;
        }
        let object = object.load()?;
        let (reports, filter) = (object.ring_buffer("reports")?, object.map("filter")?);
        let lost = object.per_cpu_array("lost")?;
        set(&filter, wanted)?;
        let diag = Diag::open()?;
        let link = attach(&object, "connections", cgroup)?;
        let (groups, cgroup) = (Arc::new(object.map("groups")?), cgroup.to_owned());
        Ok(Connections { _link: link, reports, lost, filter, groups, diag, cgroup })
    }

    /// Has others be reported from now on. The end of a connection that is no longer
    /// wanted is not.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn want(&self, wanted: &Wanted) -> Result<()> {
        set(&self.filter, wanted)
    }

    /// The oldest report that has not been taken yet, in the order in which they came.
    /// Does not wait.
    pub fn read(&mut self) -> Option<Connection> {
        loop {
            if let Some(connection) = decode(&self.reports.pop()?) {
                return Some(connection);
            }
        }
    }

    /// How many reports were lost so far, since nobody took the others.
    pub fn lost(&self) -> u64 {
        // The map is there as long as this, and was read when it was made.
        self.lost.sums().ok().and_then(|sums| sums.first().copied()).unwrap_or(0)
    }

    /// Whether the connection, whose socket has that cookie, is certainly over: for those
    /// whose end may be among the reports that were lost. `interface` is the one that it is
    /// bound to, as in its reports.
    pub fn is_over(&mut self, flow: &FlowId, cookie: u64, interface: u32) -> bool {
        matches!(self.diag.look_up(flow, cookie, interface, 0, |_| ()), Ok(false))
    }
}

/// In which a connection may have more to send.
const OPEN: &[State] = &[State::SYN_SENT, State::ESTABLISHED, State::CLOSE_WAIT];

impl Connections {
    /// The connections of the group and of all below it that are open and have such ports: for
    /// those whose begin may be among the reports that were lost. One dump, which may lack
    /// some; and the folders of all groups are read.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(&mut self, ports: &Ports) -> Result<Vec<Open>> {
        let cannot = |what: &str, text: String| Error::new(Class::Os, format!("{what}: {text}"));
        let watched = fs::metadata(&self.cgroup).map(|folder| folder.ino());
        let what = || format!("cannot look at the control group {:?}", self.cgroup);
        let watched = watched.map_err(|error| Error::os(what(), error))?;
        let mut groups = Cgroups::find()?;
        let Fact::Known(outer) = groups.path(watched) else {
            return Err(cannot(&what(), "it is not there".into()));
        };
        let outer = outer.to_owned();
        let conditions = [
            Condition::LocalPort(*ports.local.start(), *ports.local.end()),
            Condition::RemotePort(*ports.remote.start(), *ports.remote.end()),
        ];
        let filter = Filter::any_of([&conditions[..]]);
        let mut open = Vec::new();
        let (protocol, states, filter) = (Protocol::Tcp, States::of(OPEN), filter.as_ref());
        let query = Query { protocol, family: None, states, extensions: 0, filter };
        let told = self.diag.dump(&query, |socket| {
            let path = socket.cgroup().map(|id| groups.path(id));
            if !matches!(path, Some(Fact::Known(path)) if is_within(path, &outer)) {
                return;
            }
            let Socket { cookie, interface, .. } = *socket;
            open.extend(socket.flow().ok().map(|flow| Open { flow, cookie, interface }));
        });
        // What is not told now is the next time.
        let _ = told.map_err(|failure| cannot("cannot list connections", failure.text))?;
        Ok(open)
    }
}

impl Connections {
    /// Where the control groups are of the connections that were reported lately, also of those
    /// that are gone. 1,024 are remembered, those around them included.
    pub fn places(&self) -> Places {
        let groups = self.groups.clone();
        Box::new(move |id, root| {
            let (mut names, mut at) = (Vec::new(), id);
            while at != root {
                let group = groups.lookup(&at).ok()?;
                if group.parent == 0 || names.len() >= DEEPEST {
                    return Some(None);
                }
                let name = group.name.as_flattened();
                let name = name.split(|octet| *octet == 0).next().unwrap_or_default();
                names.push(String::from_utf8_lossy(name).into_owned());
                at = group.parent;
            }
            let path: String = names.iter().rev().map(|name| format!("/{name}")).collect();
            Some(Some(if path.is_empty() { "/".into() } else { path }))
        })
    }
}

impl AsFd for Connections {
    /// Readable while there are reports.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reports.as_fd()
    }
}

fn set(filter: &Map<u32, ConnectionFilter>, wanted: &Wanted) -> Result<()> {
    let (no_loopback, groups) = (wanted.no_loopback.into(), wanted.groups.into());
    let mut value = ConnectionFilter { no_loopback, groups, ..Default::default() };
    if wanted.ports.len() <= value.ranges.len() {
        for (to, Ports { local, remote }) in value.ranges.iter_mut().zip(&wanted.ports) {
            *to = PortRanges {
                local_first: *local.start(),
                local_last: *local.end(),
                remote_first: *remote.start(),
                remote_last: *remote.end(),
            };
            value.count += 1;
        }
    }
    filter.update(&0, &value).map_err(|error| Error::os("cannot set the filter", error))
}

/// Attaches the sock_ops program called `name` to that control group, beside others.
pub(crate) fn attach(object: &Object, name: &str, cgroup: &Path) -> Result<Link> {
    let program = object.program(name)?;
    let link = File::open(cgroup).and_then(|folder| program.attach_cgroup(folder.as_fd()));
    link.map_err(|error| {
        let exclusive = error.raw_os_error() == Some(libc::EPERM);
        let hint = if exclusive { "; another program may be there alone" } else { "" };
        let what = format!("cannot attach a program to the control group {cgroup:?}");
        Error::os(what, std::io::Error::other(format!("{error}{hint}")))
    })
}

/// The inode of the network namespace of this thread.
pub(crate) fn here() -> Result<u64> {
    let file = "/proc/thread-self/ns/net";
    let inode = fs::metadata(file).map(|metadata| metadata.ino());
    inode.map_err(|error| Error::os(format!("cannot read {file}"), error))
}

/// None: the program does not write such.
fn decode(report: &ConnectionReport) -> Option<Connection> {
    let change = match report.change {
        CONNECTION_OPENED => Change::Opened,
        CONNECTION_ESTABLISHED => Change::Established,
        CONNECTION_CLOSED => Change::Closed,
        _ => return None,
    };
    let end = |ip: [u8; 16], port| {
        SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes(port))
    };
    let command = report.command.split(|octet| *octet == 0).next().unwrap_or_default();
    let command = String::from_utf8_lossy(command).into_owned();
    Some(Connection {
        change,
        passive: report.passive != 0,
        local: end(report.local, report.local_port),
        remote: end(report.remote, report.remote_port),
        cookie: report.cookie,
        cgroup: (report.cgroup != 0).then_some(report.cgroup),
        uid: Some(report.uid),
        interface: report.interface,
        process: (report.pid != 0).then_some(Process { pid: report.pid, command }),
        time: wall_clock(report.time),
    })
}

/// That reading of CLOCK_MONOTONIC, in nanoseconds, as the wall clock's time.
fn wall_clock(then: u64) -> Timestamp {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    let now = now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    Timestamp(Timestamp::now().0.saturating_sub(now.saturating_sub(then) / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
    use nix::sched::{unshare, CloneFlags};
    use nix::sys::socket::{setsockopt, sockopt};
    use nix::unistd::geteuid;

    /// In a network namespace of its own, where no other test floods the reports.
    fn alone(test: impl FnOnce() + Send + 'static) {
        if !geteuid().is_root() {
            println!("SKIP: needs root for bpf(2)");
            return;
        }
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let status = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(status.unwrap().success());
            test();
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    /// Reports of connections with that port, until there are so many.
    fn reports(connections: &mut Connections, port: u16, count: usize) -> Vec<Connection> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut found = Vec::new();
        while found.len() < count {
            assert!(Instant::now() < deadline, "{found:#?}");
            let mut fds = [PollFd::new(connections.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(100_u8)).unwrap();
            while let Some(one) = connections.read() {
                if one.local.port() == port || one.remote.port() == port {
                    found.push(one);
                }
            }
        }
        found
    }

    fn talk(address: &str) -> (TcpListener, TcpStream) {
        let listener = TcpListener::bind(address).unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut other = listener.accept().unwrap().0;
        stream.write_all(b"hello").unwrap();
        other.read_exact(&mut [0; 5]).unwrap();
        (listener, stream)
    }

    /// The inode of the folder of this process's control group.
    fn own_group() -> u64 {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        fs::metadata(super::super::root().unwrap().join(path)).unwrap().ino()
    }

    #[test]
    fn a_connection_is_told_of_on_both_ends() {
        alone(told_of_on_both_ends);
    }

    fn told_of_on_both_ends() {
        let mut connections =
            Connections::watch(&super::super::root().unwrap(), &Wanted::default());
        let connections = connections.as_mut().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let began = Timestamp::now();
            let (listener, stream) = talk(address);
            let (server, client) = (listener.local_addr().unwrap(), stream.local_addr().unwrap());
            drop(stream);
            let all = reports(connections, server.port(), 5);
            let of = |local| all.iter().filter(move |one| one.local == local).collect::<Vec<_>>();
            let changes = |of: &[&Connection]| of.iter().map(|one| one.change).collect::<Vec<_>>();
            let (active, passive) = (of(client), of(server));
            assert_eq!(changes(&active), [Change::Opened, Change::Established, Change::Closed]);
            assert_eq!(changes(&passive), [Change::Established, Change::Closed]);
            assert!(active.iter().all(|one| one.cookie == active[0].cookie && !one.passive));
            assert!(passive[0].passive && passive[0].cookie == passive[1].cookie);
            assert_ne!(active[0].cookie, passive[0].cookie);
            let process = active[0].process.as_ref().unwrap();
            assert_eq!(process.pid, std::process::id());
            let command = fs::read_to_string("/proc/self/comm").unwrap();
            assert_eq!(process.command, command.trim_end());
            assert!(all.iter().all(|one| one.uid == Some(0)));
            assert!(all.iter().all(|one| one.cgroup == Some(own_group())));
            assert!(all.iter().all(|one| one.time >= began && one.time <= Timestamp::now()));
        }
        assert_eq!(connections.lost(), 0);
    }

    #[test]
    fn what_is_open_is_listed_by_group_and_ports() {
        alone(listed_by_group_and_ports);
    }

    fn listed_by_group_and_ports() {
        let root = super::super::root().unwrap();
        let empty = root.join(format!("glowd-test-open-{}", std::process::id()));
        fs::create_dir(&empty).unwrap();
        let watched = [&root, &empty].map(|group| Connections::watch(group, &Wanted::default()));
        let [mut all, mut none] = watched.map(Result::unwrap);
        let (listener, stream) = talk("127.0.0.1:0");
        let (server, client) = (listener.local_addr().unwrap(), stream.local_addr().unwrap());
        let ports = Ports { local: 0..=u16::MAX, remote: server.port()..=server.port() };
        let listed = [all.open(&ports), none.open(&ports)];
        drop(none);
        fs::remove_dir(&empty).unwrap();
        let [listed, of_the_empty] = listed.map(Result::unwrap);
        assert_eq!(of_the_empty, []);
        let [one] = listed[..] else { panic!("{listed:?}") };
        assert_eq!((one.flow.src(), one.flow.dst()), (client, server));
        assert!(!all.is_over(&one.flow, one.cookie, one.interface));
        let reported = reports(&mut all, server.port(), 2);
        assert!(reported.iter().any(|report| report.cookie == one.cookie));
    }

    /// The kernel finds one that is bound to an interface only by that.
    #[test]
    fn a_connection_that_is_bound_to_an_interface_is_not_taken_for_over() {
        alone(bound_to_an_interface);
    }

    fn bound_to_an_interface() {
        let root = super::super::root().unwrap();
        let mut connections = Connections::watch(&root, &Wanted::default()).unwrap();
        let listener = TcpListener::bind("[::1]:0").unwrap();
        setsockopt(&listener, sockopt::BindToDevice, &"lo".into()).unwrap();
        let server = listener.local_addr().unwrap();
        let _near = TcpStream::connect(server).unwrap();
        let _far = listener.accept().unwrap().0;
        let all = reports(&mut connections, server.port(), 3);
        let one = all.iter().find(|one| one.local == server).unwrap();
        let flow = one.flow().unwrap();
        assert_ne!(one.interface, 0);
        assert!(!connections.is_over(&flow, one.cookie, one.interface));
        assert!(connections.is_over(&flow, one.cookie + (1 << 40), one.interface));
    }
}
