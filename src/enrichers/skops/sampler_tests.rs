//! Tests of sampler.rs.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    connect, setsockopt, socket, sockopt, AddressFamily, SockFlag, SockType, SockaddrStorage,
};
use nix::unistd::geteuid;

use super::*;
use crate::config::Value;
use crate::dispatcher::Dispatcher;
use crate::enrichers::rig::{back, connected, context, event, flow, measured, wait_for};
use crate::entropy::EntropyKey;
use crate::flow::{FlowState, Usage};

fn section(strategy: &str, cgroup: &str) -> Section {
    let keys = super::super::SPEC.keys.iter();
    let values = keys.filter_map(|key| Some((key.name, key.default_value()?)));
    let mut values: Vec<_> = values.collect();
    for (name, value) in &mut values {
        match *name {
            "strategy" => *value = Value::Text(strategy.into()),
            "cgroupPath" => *value = Value::Text(cgroup.into()),
            _ => {}
        }
    }
    Section::new(NAME, values)
}

fn sampler(strategy: &str) -> Option<Sampler> {
    if !geteuid().is_root() {
        println!("SKIP: needs root for bpf(2)");
        return None;
    }
    Some(open(&section(strategy, ""), &context()).unwrap())
}

/// The samples that are there, the last of each flow.
fn taken(sampler: &mut Sampler) -> HashMap<FlowId, FlowInfo> {
    let mut found = HashMap::new();
    let mut changes = lock(&sampler.changes);
    changes.read();
    found.extend(changes.found.drain().map(|(id, (info, _))| (id, info)));
    let samples = &mut sampler.samples;
    if let Some(look) = &sampler.look {
        look.run(|| {
            while let Some(sample) = samples.pop() {
                found.extend(decode(&sample, Timestamp::now()));
            }
        })
        .unwrap();
    }
    found
}

fn send(from: &mut TcpStream, to: &mut TcpStream, size: usize) {
    from.write_all(&vec![1; size]).unwrap();
    to.read_exact(&mut vec![0; size]).unwrap();
}

#[test]
fn usage_is_what_was_sent() {
    for (address, target) in
        [("[::1]:0", "::1"), ("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1")]
    {
        let Some(sampler) = sampler("poll") else { return };
        let (mut near, mut far, id) = connected(address, target);
        let back = back(id);
        measured(Box::new(sampler), |inlet, queue| {
            // One batch each, since `wait_for` takes whole ones.
            let both = |state| {
                inlet.send_all(vec![event(state, id)]).unwrap();
                inlet.send_all(vec![event(state, back)]).unwrap();
            };
            both(FlowState::Start);
            send(&mut near, &mut far, 30_000);
            send(&mut far, &mut near, 700);
            let usage = Usage { sent: 30_000, received: 700 };
            let flow = wait_for(queue, id, "sample", |flow| flow.usage() == Some(usage));
            assert!(!flow.info().unwrap().congestion().unwrap().is_empty());
            wait_for(queue, back, "sample", |flow| flow.usage() == Some(usage.turned()));
            // More, the connection's end and the flow's at once: there is no time for a look.
            send(&mut near, &mut far, 4_000);
            near.shutdown(Shutdown::Write).unwrap();
            assert_eq!(far.read(&mut [0; 10]).unwrap(), 0);
            send(&mut far, &mut near, 70);
            drop(far);
            assert_eq!(near.read(&mut [0; 10]).unwrap(), 0);
            drop(near);
            both(FlowState::End);
            let usage = Usage { sent: 34_000, received: 770 };
            let flow = wait_for(queue, id, "end", |_| true);
            assert_eq!(flow.usage(), Some(usage));
            let flow = wait_for(queue, back, "end", |_| true);
            assert_eq!(flow.usage(), Some(usage.turned()));
        });
    }
}

/// Streams between one pair of addresses and to one port.
#[test]
fn parallel_streams_are_kept_apart() {
    let Some(mut sampler) = sampler("poll") else { return };
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let address = listener.local_addr().unwrap();
    let streams: Vec<_> = (1..=8)
        .map(|number| {
            let mut near = TcpStream::connect(address).unwrap();
            let mut far = listener.accept().unwrap().0;
            send(&mut near, &mut far, 1_000 * number);
            // The last one is not watched.
            if number < 8 {
                sampler.watched.update(&key(&flow(&near)).unwrap(), &0).unwrap();
            }
            (near, far, number as u64)
        })
        .collect();
    let taken = taken(&mut sampler);
    assert_eq!(taken.len(), 7);
    for (near, _, number) in &streams[..7] {
        let info = &taken[&flow(near)];
        assert_eq!(info.usage(), Some(Usage { sent: 1_000 * number, received: 0 }));
    }
}

/// Octet by octet, but for what passes meanwhile and what is not taken.
#[test]
fn samples_are_what_sock_diag_tells() {
    let Some(mut sampler) = sampler("poll") else { return };
    let mut diag = Diag::open().unwrap();
    let mut look = |id: &FlowId| look(&mut diag, id, 0, true);
    for (address, target) in [("[::1]:0", "::1"), ("127.0.0.1:0", "127.0.0.1")] {
        let (mut near, mut far, id) = connected(address, target);
        for id in [id, back(id)] {
            sampler.watched.update(&key(&id).unwrap(), &0).unwrap();
        }
        for _ in 0..20 {
            send(&mut near, &mut far, 300_000);
            send(&mut far, &mut near, 1_000);
        }
        // Until all is acknowledged.
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let quiet = |id| look(&id).unwrap().tcp_info().unwrap().unacked() == Some(0);
            if [id, back(id)].map(quiet) == [true; 2] {
                break;
            }
            assert!(Instant::now() < deadline);
        }
        let taken = taken(&mut sampler);
        for id in [id, back(id)] {
            let (ours, theirs) = (&taken[&id], look(&id).unwrap());
            assert_eq!((ours.cookie, ours.congestion()), (theirs.cookie, theirs.congestion()));
            let [ours, theirs] =
                [ours, &theirs].map(|info| info.tcp_info().unwrap().0[..232].to_vec());
            for (at, word) in ours.chunks(4).enumerate() {
                // Not asked: flags of ECN (5), and whether the rate was limited by the
                // application (7). Times since, in ms.
                let (at, mut other) = (4 * at, theirs[4 * at..][..4].to_vec());
                if at == 4 {
                    (other[1], other[3]) = (other[1] & 7, 0);
                }
                if [44, 52, 56].contains(&at) {
                    let [ours, theirs] =
                        [word, &other].map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
                    assert!(theirs.abs_diff(ours) < 60_000, "{at}: {ours} {theirs}");
                    continue;
                }
                assert_eq!(word, other, "at {at} of {id}");
            }
        }
    }
}

#[test]
fn changes_are_all_that_transition_tells() {
    let Some(mut sampler) = sampler("transition") else { return };
    let (mut near, mut far, id) = connected("127.0.0.1:0", "127.0.0.1");
    sampler.watched.update(&key(&id).unwrap(), &0).unwrap();
    send(&mut near, &mut far, 5_000);
    assert!(taken(&mut sampler).is_empty());
    near.shutdown(Shutdown::Write).unwrap();
    let half = taken(&mut sampler);
    assert_eq!(half[&id].usage(), Some(Usage { sent: 5_000, received: 0 }));
    send(&mut far, &mut near, 70);
    drop((far, near));
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < deadline);
        if let Some(over) = taken(&mut sampler).get(&id) {
            if over.usage() == Some(Usage { sent: 5_000, received: 70 }) {
                break;
            }
        }
    }
}

/// A connection that the other side breaks off has had no FIN, which would be an octet.
#[test]
fn a_reset_takes_nothing_away() {
    let Some(mut sampler) = sampler("transition") else { return };
    let (mut near, mut far, id) = connected("[::1]:0", "::1");
    sampler.watched.update(&key(&id).unwrap(), &0).unwrap();
    send(&mut far, &mut near, 300);
    near.write_all(b"never read").unwrap();
    // What was not read makes it a reset.
    far.peek(&mut [0; 1]).unwrap();
    drop(far);
    near.read(&mut [0; 1]).unwrap_err();
    let info = &taken(&mut sampler)[&id];
    assert_eq!(info.usage().unwrap().received, 300);
}

#[test]
fn what_finds_no_room_is_counted() {
    let Some(mut sampler) = sampler("transition") else { return };
    let lost = |sampler: &Sampler| sampler.lost.sums().unwrap()[0];
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let address = listener.local_addr().unwrap();
    let pass = |sampler: &Sampler| {
        let near = TcpStream::connect(address).unwrap();
        let far = listener.accept().unwrap().0;
        for id in [flow(&near), flow(&far)] {
            sampler.watched.update(&key(&id).unwrap(), &0).unwrap();
        }
        drop(near);
        drop(far);
    };
    // Three changes on one side, two or more on the other; there is room for 3,449.
    let mut rounds = 0;
    while lost(&sampler) == 0 {
        pass(&sampler);
        rounds += 1;
        assert!(rounds < 2_000, "nothing is lost");
    }
    assert!(rounds > 400, "{rounds}");
    // Room again.
    assert!(taken(&mut sampler).len() > 600);
    let before = lost(&sampler);
    pass(&sampler);
    assert!(!taken(&mut sampler).is_empty());
    assert_eq!(lost(&sampler), before);
}

/// Without the interface the kernel does not find such a socket, and nobody has looked at
/// it before the end.
#[test]
fn a_socket_that_is_bound_to_an_interface_is_found_at_the_end() {
    for (address, strategy) in [("[::1]:0", "transition"), ("127.0.0.1:0", "poll")] {
        let Some(sampler) = sampler(strategy) else { return };
        let listener = TcpListener::bind(address).unwrap();
        let target = listener.local_addr().unwrap();
        let family = if target.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let near = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&near, sockopt::BindToDevice, &"lo".into()).unwrap();
        connect(near.as_raw_fd(), &SockaddrStorage::from(target)).unwrap();
        let (mut near, mut far) = (TcpStream::from(near), listener.accept().unwrap().0);
        let id = flow(&near);
        assert!(look(&mut Diag::open().unwrap(), &id, 0, true).is_none());
        measured(Box::new(sampler), |inlet, queue| {
            send(&mut near, &mut far, 3_000);
            inlet.send_all(vec![event(FlowState::Start, id), event(FlowState::End, id)]).unwrap();
            let usage = Usage { sent: 3_000, received: 0 };
            assert_eq!(wait_for(queue, id, "end", |_| true).usage(), Some(usage));
        });
    }
}

/// As many flows as there is room for, and one more.
#[test]
fn what_cannot_be_watched_is_counted() {
    if sampler("poll").is_none() {
        return;
    }
    let few = Context { max_flows: 1, ..context() };
    let mut sampler = open(&section("transition", ""), &few).unwrap();
    let (mut dispatcher, inlet) = Dispatcher::new(10, EntropyKey::of_this_boot());
    let watch = dispatcher.watch("test", None);
    let hub = thread::spawn(|| dispatcher.run());
    let id = |port| {
        let [src, dst] = [port, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        FlowId::new(Protocol::Tcp, src, dst).unwrap()
    };
    inlet.send_all(vec![event(FlowState::Start, id(1)), event(FlowState::Start, id(3))]).unwrap();
    drop(inlet);
    hub.join().unwrap();
    sampler.follow(&watch);
    assert_eq!(sampler.counters.failed.get(), 1);
}

#[test]
fn what_is_missing_is_said() {
    if !geteuid().is_root() {
        println!("SKIP: needs root for bpf(2)");
        return;
    }
    let Err(error) = build(&section("poll", "/proc"), &context()) else { panic!("attached") };
    let text = error.to_string();
    assert!(text.contains("takes Linux 5.9 with BTF, and cgroup2: "), "{text}");
    assert!(text.contains("control group \"/proc\": "), "{text}");
}
