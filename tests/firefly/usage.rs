//! Usage, octet by octet, where it is easily lost: sockets that go before their flow ends, many
//! streams between two hosts, and ends that come together or twice.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;

use glowd::flow::{FlowId, Protocol};
use glowd::net::sock_diag::{Diag, NO_COOKIE};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{json, Value as Json};

use super::valid;
use crate::common::{free_port, receive, skip_unless_root, wait_for, Daemon};

/// A daemon that measures once in `period` ms, and where its fireflies go.
fn daemon(period: u64, firefly: Json) -> (Daemon, UdpSocket) {
    daemon_with(json!({}), json!({ "period": period, "netlink": {} }), firefly)
}

/// The same with more plugins and other enrichers.
pub(super) fn daemon_with(more: Json, enrichers: Json, firefly: Json) -> (Daemon, UdpSocket) {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut firefly = firefly;
    firefly["sendToDestination"] = json!(false);
    firefly["collectors"] = json!([sink.local_addr().unwrap().to_string()]);
    let mut plugins = json!({ "namedPipe": {}, "api": { "bindPort": free_port() } });
    for (name, section) in more.as_object().unwrap() {
        plugins[name] = section.clone();
    }
    let daemon = Daemon::start(json!({
        "plugins": plugins,
        "enrichers": enrichers,
        "backends": { "firefly": firefly },
    }));
    (daemon, sink)
}

pub(super) fn next(sink: &UdpSocket) -> Json {
    let mut buffer = [0; 4000];
    let size = receive(sink, &mut buffer).unwrap();
    valid(std::str::from_utf8(&buffer[..size]).unwrap())
}

/// Both ends of a connection, and what is said of the near one.
pub(super) struct Stream {
    pub(super) near: TcpStream,
    far: TcpStream,
    pub(super) flow: String,
}

impl Stream {
    pub(super) fn new(listener: &TcpListener) -> Self {
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        Stream::of(near, listener.accept().unwrap().0)
    }

    /// The near end has been connected to.
    fn turned(listener: &TcpListener) -> Self {
        let Stream { near, far, .. } = Stream::new(listener);
        Stream::of(far, near)
    }

    fn of(near: TcpStream, far: TcpStream) -> Self {
        let said = |end: SocketAddr| format!("{} {}", end.ip(), end.port());
        let ends = (near.local_addr().unwrap(), near.peer_addr().unwrap());
        let flow = format!("tcp {} {} 2 16", said(ends.0), said(ends.1));
        Stream { near, far, flow }
    }

    pub(super) fn port(&self) -> u16 {
        self.near.local_addr().unwrap().port()
    }

    pub(super) fn carry(&mut self, there: usize, back: usize) {
        carry(&mut self.near, &mut self.far, there);
        carry(&mut self.far, &mut self.near, back);
    }
}

/// All arrives, so all is acknowledged.
fn carry(from: &mut TcpStream, to: &mut TcpStream, octets: usize) {
    std::thread::scope(|scope| {
        scope.spawn(|| from.write_all(&vec![7; octets]).unwrap());
        to.read_exact(&mut vec![0; octets]).unwrap();
    });
}

/// How a connection may be closed, the flow's own end being the first.
const WAYS: [Break; 4] = [
    |near, far| {
        drop((near, far));
        (0, 0)
    },
    |near, mut far| {
        drop(near);
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
        (0, 0)
    },
    |mut near, far| {
        drop(far);
        assert_eq!(near.read(&mut [0; 1]).unwrap(), 0);
        (0, 0)
    },
    |mut near, mut far| {
        far.shutdown(Shutdown::Write).unwrap();
        assert_eq!(near.read(&mut [0; 1]).unwrap(), 0);
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
        (0, 0)
    },
];

/// Breaks a connection off.
fn reset(end: TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&end, sockopt::Linger, &linger).unwrap();
}

/// Sends what is not read.
fn leave(from: &mut TcpStream, to: &TcpStream, octets: usize) {
    from.write_all(&vec![7; octets]).unwrap();
    let mut buffer = vec![0; octets];
    wait_for("it to arrive", || (to.peek(&mut buffer).unwrap() == octets).then_some(()));
}

type Break = fn(TcpStream, TcpStream) -> (usize, usize);

/// How it may be broken off, and what is sent and received on the way.
const BREAKS: [Break; 5] = [
    |mut near, far| {
        reset(far);
        near.read(&mut [0; 1]).unwrap_err();
        (0, 0)
    },
    // What nobody has read makes it a reset.
    |near, mut far| {
        leave(&mut far, &near, 77);
        drop(near);
        far.read(&mut [0; 1]).unwrap_err();
        (0, 77)
    },
    |mut near, far| {
        leave(&mut near, &far, 10);
        drop(far);
        near.read(&mut [0; 1]).unwrap_err();
        (10, 0)
    },
    |near, mut far| {
        leave(&mut far, &near, 77);
        reset(far);
        drop(near);
        (0, 77)
    },
    // The other side is over, and refuses what is sent then.
    |mut near, far| {
        drop(far);
        assert_eq!(near.peek(&mut [0; 1]).unwrap(), 0);
        near.write_all(&[7; 5]).unwrap();
        wait_for("the refusal", || near.take_error().unwrap());
        (5, 0)
    },
];

/// What cannot be told afterwards by what the kernel then tells.
const UNTOLD: [Break; 4] = [
    // By this side.
    |near, mut far| {
        reset(near);
        far.read(&mut [0; 1]).unwrap_err();
        (0, 0)
    },
    // Halfway, by the other side.
    |near, mut far| {
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
        reset(far);
        (0, 0)
    },
    // Closed, one half after the other.
    |mut near, mut far| {
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
        drop(far);
        assert_eq!(near.read(&mut [0; 1]).unwrap(), 0);
        (0, 0)
    },
    // The other side is over, and nobody reads what it said last.
    |near, mut far| {
        leave(&mut far, &near, 20);
        far.shutdown(Shutdown::Write).unwrap();
        wait_for("the FIN", || (unread(&near) == 21).then_some(()));
        drop(near);
        far.read(&mut [0; 1]).unwrap_err();
        (0, 20)
    },
];

/// A FIN counted as one.
fn unread(end: &TcpStream) -> u32 {
    let flow = FlowId::new(Protocol::Tcp, end.local_addr().unwrap(), end.peer_addr().unwrap());
    let mut found = 0;
    let mut diag = Diag::open().unwrap();
    diag.look_up(&flow.unwrap(), NO_COOKIE, 0, 0, |socket| found = socket.unread).unwrap();
    found
}

/// When something is known of what a flow carries: at its start, since it is measured, or when
/// its connection has gone, which the kernel tells when it has time.
#[derive(PartialEq, Eq)]
enum Known {
    First,
    Last,
}

/// How often the kernel has had no room to tell that process something by netlink(7): other
/// tests may close more sockets at once than it can tell of.
fn untold(pid: u32) -> u64 {
    let own: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().collect();
    // Some are closed meanwhile.
    let own: Vec<_> = own.iter().filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/netlink")).unwrap();
    let drops = sockets.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [.., drops, inode] = words[..] else { panic!("{line}") };
        let link = PathBuf::from(format!("socket:[{inode}]"));
        own.contains(&link).then(|| drops.parse::<u64>().unwrap())
    });
    drops.sum()
}

/// False: the kernel could not tell of it, which it had not been able to that often `before`.
fn becomes_known(daemon: &Daemon, before: u64) -> bool {
    let usage = || daemon.get("/flows").1["flows"][0]["usage"].clone();
    wait_for("the usage", || match usage().is_object() {
        true => Some(true),
        false => (untold(daemon.pid()) > before).then_some(false),
    })
}

/// What is carried there and back, and left on the way by who closes it so.
type Way = ((usize, usize), Break);

/// Ends a connection in that way while its flow is open, then the flow, and compares. False: the
/// kernel could not tell of it.
fn ends_exactly_once(
    (daemon, sink): (&mut Daemon, &UdpSocket),
    mut stream: Stream,
    ((there, back), close): Way,
    known: &Known,
) -> bool {
    let before = untold(daemon.pid());
    daemon.write(&format!("start {}\n", stream.flow));
    assert_eq!(next(sink)["flow-lifecycle"]["state"], "start");
    let mut is_told = *known == Known::Last || becomes_known(daemon, before);
    stream.carry(there, back);
    let Stream { near, far, flow } = stream;
    let more = close(near, far);
    if *known == Known::Last {
        is_told = becomes_known(daemon, before);
    }
    daemon.write(&format!("end {flow}\n"));
    let end = next(sink);
    assert_eq!(end["flow-lifecycle"]["state"], "end");
    let usage = json!({ "received": back + more.1, "sent": there + more.0 });
    assert!(!is_told || end["usage"] == usage, "{flow}: {} and not {usage}", end["usage"]);
    is_told
}

/// The same of many connections, and in these ways.
fn ends_exactly((mut daemon, sink): (Daemon, UdpSocket), ways: &[Break], known: &Known) {
    for address in ["[::1]:0", "127.0.0.1:0"] {
        let listener = TcpListener::bind(address).unwrap();
        for (number, close) in ways.iter().enumerate() {
            for octets in [(3_000_001, 70_003), (400_000, 0), (0, 5_000), (0, 0)] {
                for make in [Stream::new, Stream::turned] {
                    wait_for(&format!("a connection that ends in way {number}"), || {
                        let stream = make(&listener);
                        let way = (octets, *close);
                        ends_exactly_once((&mut daemon, &sink), stream, way, known).then_some(())
                    });
                }
            }
        }
    }
    daemon.stop(&[]);
}

/// No sample is taken in an hour: what is known comes from the socket's end.
#[test]
fn usage_is_exact_where_the_socket_goes_before_the_flow_and_between_two_samples() {
    ends_exactly(daemon(3_600_000, json!({})), &WAYS, &Known::Last);
}

/// The other side's FIN, which would be an octet, has not come.
#[test]
fn usage_is_exact_where_the_connection_is_broken_off() {
    ends_exactly(daemon(3_600_000, json!({})), &BREAKS, &Known::Last);
}

/// Enricher skops sees each change of state.
#[test]
fn skops_knows_how_any_connection_ends() {
    if skip_unless_root() {
        return;
    }
    let enrichers = json!({ "period": 100, "skops": {} });
    let ways = [&WAYS[..], &BREAKS, &UNTOLD].concat();
    ends_exactly(daemon_with(json!({}), enrichers, json!({})), &ways, &Known::First);
}

/// The kernel is some microseconds behind, or more where it is busy.
#[test]
fn the_end_of_a_flow_waits_a_moment_for_that_of_its_socket() {
    let (mut daemon, sink) = daemon(3_600_000, json!({}));
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let mut round = || {
        let mut stream = Stream::new(&listener);
        daemon.write(&format!("start {}\n", stream.flow));
        next(&sink);
        stream.carry(3_000, 20);
        let Stream { near, far, flow } = stream;
        drop((near, far));
        daemon.write(&format!("end {flow}\n"));
        let usage = next(&sink)["usage"].clone();
        assert!(usage.is_null() || usage == json!({ "received": 20, "sent": 3_000 }), "{usage}");
        usage.is_object().then_some(())
    };
    wait_for("one that is not late", &mut round);
    daemon.stop(&[]);
}

/// Also what samples told before is still there: the kernel says less of a socket that goes.
#[test]
fn a_socket_that_goes_leaves_what_was_known_of_it() {
    let firefly = json!({ "enrich": true, "enrichmentMode": "lean" });
    let (mut daemon, sink) = daemon(1000, firefly);
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let mut stream = Stream::new(&listener);
    daemon.write(&format!("start {}\n", stream.flow));
    next(&sink);
    stream.carry(1000, 10);
    let sent = |daemon: &Daemon| daemon.get("/flows").1["flows"][0]["usage"]["sent"].clone();
    wait_for("a sample", || (sent(&daemon) == 1000).then_some(()));
    stream.carry(500, 0);
    let Stream { near, far, flow } = stream;
    drop((near, far));
    // The flow is open, and the socket's last figures are told.
    wait_for("the socket's end", || (sent(&daemon) == 1500).then_some(()));
    daemon.write(&format!("end {flow}\n"));
    let end = next(&sink);
    assert_eq!(end["usage"], json!({ "received": 10, "sent": 1500 }));
    assert!(end["netlink"]["cong"]["algorithm"].is_string(), "{end}");
    assert!(end["netlink"]["rtt"].as_f64() > Some(0.0), "{end}");
    daemon.stop(&[]);
}

/// Each has its own usage and samples, whatever the others do. Defect 21 with them.
#[test]
fn parallel_streams_between_two_hosts_are_kept_apart() {
    const STREAMS: usize = 40;
    let (mut daemon, sink) = daemon(100, json!({ "enrich": true }));
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let mut streams: Vec<_> = (0..STREAMS).map(|_| Stream::new(&listener)).collect();
    let starts: String = streams.iter().map(|one| format!("start {}\n", one.flow)).collect();
    daemon.write(&starts);
    for _ in 0..STREAMS {
        assert_eq!(next(&sink)["flow-lifecycle"]["state"], "start");
    }
    let usage = |index: usize| json!({ "received": 100 + index, "sent": 10_000 * (index + 1) });
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.carry(10_000 * (index + 1), 100 + index);
    }
    let ports: Vec<_> = streams.iter().map(Stream::port).collect();
    let place = |port: u64| ports.iter().position(|one| u64::from(*one) == port).unwrap();
    wait_for("a sample of each", || {
        let flows = daemon.get("/flows").1;
        let flows = flows["flows"].as_array().unwrap();
        assert_eq!(flows.len(), STREAMS);
        let is_exact = |flow: &Json| {
            let port = flow["src"].as_str().unwrap().rsplit(':').next().unwrap();
            flow["usage"] == usage(place(port.parse().unwrap()))
        };
        flows.iter().all(is_exact).then_some(())
    });
    let ends: String = streams.iter().map(|one| format!("end {}\n", one.flow)).collect();
    daemon.write(&ends);
    let mut met = vec![0; STREAMS];
    for _ in 0..STREAMS {
        let end = next(&sink);
        let index = place(end["flow-id"]["src-port"].as_u64().unwrap());
        met[index] += 1;
        assert_eq!(end["usage"], usage(index), "{end}");
        // The sample is of that socket.
        let sent = end["netlink"]["tcpInfo"]["bytesSent"].as_u64();
        assert!(sent >= usage(index)["sent"].as_u64(), "{end}");
    }
    assert_eq!(met, vec![1; STREAMS]);
    daemon.stop(&[]);
}

/// Defect 21: two flows between one pair of hosts that end together, and an end that comes
/// again, were the end of the daemon.
#[test]
fn defect_21_flows_end_together_and_ends_come_again_a_thousand_times() {
    let (mut daemon, sink) = daemon(100, json!({ "enrich": true }));
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let mut streams = [Stream::new(&listener), Stream::new(&listener)];
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.carry(5_000, 7 + index);
    }
    let [first, second] = streams.each_ref().map(|one| one.flow.clone());
    for round in 0..1000 {
        daemon.write(&format!(
            "start {first}\nstart {second}\nend {first}\nend {second}\nend {first}\nend {second}\n"
        ));
        let mut states = Vec::new();
        for _ in 0..4 {
            let firefly = next(&sink);
            let state = firefly["flow-lifecycle"]["state"].as_str().unwrap().to_owned();
            let index = u16::try_from(firefly["flow-id"]["src-port"].as_u64().unwrap()).unwrap();
            let index = usize::from(index == streams[1].port());
            if state == "end" {
                // What was carried is of the first flow; the others carry nothing.
                let first = usize::from(round == 0);
                let usage = json!({ "received": first * (7 + index), "sent": first * 5_000 });
                assert_eq!(firefly["usage"], usage, "round {round}");
            }
            states.push((state, index));
        }
        states.sort();
        let expected = [("end", 0), ("end", 1), ("start", 0), ("start", 1)];
        assert_eq!(states, expected.map(|(state, index)| (state.to_owned(), index)));
    }
    let flows = daemon.get("/flows").1;
    assert_eq!(flows["flows"], json!([]));
    daemon.stop(&[]);
}
