//! Tests of sampler.rs.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;

use nix::sys::socket::{setsockopt, sockopt};

use super::*;
use crate::dispatcher::{Dispatcher, Event};
use crate::enrichers::rig::{back, connected, context, event, measured, wait_for, wait_for_each};
use crate::entropy::EntropyKey;
use crate::flow::{Flow, FlowState, Usage};
use crate::flow_table::{Authority, Change, FlowTable};
use crate::net::sock_diag::NO_COOKIE;
use crate::queue::queue;

fn section(path: &str) -> Section {
    let keys = super::super::SPEC.keys.iter();
    let values = keys.map(|key| (key.name, key.default_value().unwrap()));
    Section::new(path, values.collect())
}

fn build_it() -> Box<dyn Enricher> {
    build(&section("enrichers.netlink"), &context()).unwrap()
}

#[test]
fn usage_is_what_was_sent() {
    for (address, target) in
        [("[::1]:0", "::1"), ("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1")]
    {
        let (mut near, mut far, id) = connected(address, target);
        let back = back(id);
        measured(build_it(), |inlet, queue| {
            inlet
                .send_all(vec![event(FlowState::Start, id), event(FlowState::Start, back)])
                .unwrap();
            near.write_all(&[1; 30_000]).unwrap();
            far.read_exact(&mut [0; 30_000]).unwrap();
            far.write_all(&[1; 700]).unwrap();
            near.read_exact(&mut [0; 700]).unwrap();
            let usage = Usage { sent: 30_000, received: 700 };
            let [flow, _] = wait_for_each(queue, [id, back], "sample", |flow| {
                flow.usage() == Some(if flow.id == id { usage } else { usage.turned() })
            });
            assert!(!flow.info().unwrap().congestion().unwrap().is_empty());
            assert!(flow.info().unwrap().socket_memory(3).unwrap() > 0);
            // More, and the end at once: there is no time for a sample.
            near.write_all(&[1; 4_000]).unwrap();
            far.read_exact(&mut [0; 4_000]).unwrap();
            inlet.send_all(vec![event(FlowState::End, id), event(FlowState::End, back)]).unwrap();
            let usage = Usage { sent: 34_000, received: 700 };
            let flow = wait_for(queue, id, "end", |_| true);
            assert_eq!(flow.usage(), Some(usage));
        });
    }
}

/// Else it would be woken for good, as soon as a socket of anybody's has gone.
#[test]
fn the_socket_is_closed_by_which_no_ends_are_heard_of_any_more() {
    let sampler = sampler(&section("enrichers.netlink"), &context()).unwrap();
    let watched = sampler.watched.clone();
    let number = watched.lock().ends.as_ref().unwrap().as_fd().as_raw_fd();
    let socket = fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
    let wait_until_open = |count: usize| {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let open = fs::read_dir("/proc/self/fd").unwrap();
            // Some are closed meanwhile.
            let open = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
            if open.filter(|found| *found == socket).count() == count {
                return;
            }
            assert!(Instant::now() < deadline, "not open {count} times");
            std::thread::yield_now();
        }
    };
    measured(Box::new(sampler), |_, _| {
        wait_until_open(2);
        // As when the kernel refuses.
        watched.lock().ends = None;
        wait_until_open(0);
    });
}

/// What is asked for, and kept, follows who reads it, and the bits of `ext`.
#[test]
fn what_is_said_only_in_full_is_asked_for_only_then() {
    let (mut near, mut far, id) = connected("[::1]:0", "::1");
    near.write_all(&[1; 30_000]).unwrap();
    far.read_exact(&mut [0; 30_000]).unwrap();
    let mut diag = Diag::open().unwrap();
    let mut taken = |kinds: Kinds| {
        let (mut info, mut told) = (None, Vec::new());
        let there = diag.look_up(&id, NO_COOKIE, 0, kinds.extensions(), |socket| {
            info = sample(socket, kinds, Timestamp::now());
            told = socket.attributes().map(|(kind, _)| kind).collect();
        });
        assert_eq!(there, Ok(true));
        (info.unwrap(), told)
    };
    for ext in 0..=u8::MAX {
        let has = |bit: u8| ext & bit != 0;
        for in_full in [false, true] {
            let (info, told) = taken(Kinds::new(ext, in_full));
            // The memory is said with that of the socket.
            for (number, due) in [(1, has(1) && !has(64)), (5, has(16)), (6, has(32))] {
                assert_eq!(told.contains(&number), in_full && due, "{ext}: {told:?}");
            }
            let found = [
                info.memory(0).is_some(),
                info.tcp_info().is_some(),
                info.congestion().is_some(),
                info.tos().is_some(),
                info.traffic_class().is_some(),
                info.socket_memory(0).is_some(),
                info.shutdown().is_some(),
                info.message().is_some(),
            ];
            let due = [
                // What is kept of the socket's memory says it too.
                in_full && has(1) || has(64),
                has(2),
                has(8),
                in_full && has(16),
                in_full && has(32),
                has(64),
                in_full && has(128),
                in_full,
            ];
            assert_eq!(found, due, "{ext} {in_full}");
        }
    }
    if setsockopt(&near, sockopt::TcpCongestion, &"bbr".into()).is_ok() {
        for (ext, in_full) in [(255, true), (4, true), (251, true), (255, false)] {
            let (info, told) = taken(Kinds::new(ext, in_full));
            let due = in_full && ext & 4 != 0;
            assert_eq!((info.bbr().is_some(), told.contains(&16)), (due, due), "{ext} {in_full}");
        }
    }
}

/// Who reads it may come and go while the flow lasts.
#[test]
fn samples_follow_who_reads_them() {
    let (_near, _far, id) = connected("[::1]:0", "::1");
    let context = context();
    let enricher = build(&section("enrichers.netlink"), &context).unwrap();
    measured(enricher, |inlet, queue| {
        inlet.send_all(vec![event(FlowState::Start, id)]).unwrap();
        for in_full in [false, true, false] {
            context.in_full.store(in_full, Relaxed);
            wait_for(queue, id, "sample", |flow| {
                flow.info().unwrap().message().is_some() == in_full
            });
        }
    });
}

/// The FIN of either side is no octet of payload.
#[test]
fn usage_lasts_after_the_connection() {
    let (mut near, mut far, id) = connected("[::1]:0", "::1");
    let back = back(id);
    measured(build_it(), |inlet, queue| {
        inlet.send_all(vec![event(FlowState::Start, id), event(FlowState::Start, back)]).unwrap();
        near.write_all(&[1; 5_000]).unwrap();
        far.read_exact(&mut [0; 5_000]).unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(far.read(&mut [0; 10]).unwrap(), 0);
        far.write_all(&[1; 70]).unwrap();
        near.read_exact(&mut [0; 70]).unwrap();
        let usage = Usage { sent: 5_000, received: 70 };
        let half = |flow: &Flow| {
            // Both say of the half-closed connection what was sent.
            flow.usage().map(|usage| usage.received.max(usage.sent)) == Some(5_000)
                && flow.info().unwrap().tcp_info().unwrap().state() != Some(1)
                && flow.usage().map(|usage| usage.received.min(usage.sent)) == Some(70)
        };
        let [flow, _] = wait_for_each(queue, [id, back], "sample", half);
        assert_eq!(flow.usage(), Some(usage));
        drop((near, far));
        // The socket is gone, or waits without knowing anything.
        inlet.send_all(vec![event(FlowState::End, id), event(FlowState::End, back)]).unwrap();
        assert_eq!(wait_for(queue, id, "end", |_| true).usage(), Some(usage));
    });
}

/// What has been seen before tells what the end itself does not.
#[test]
fn how_a_connection_ends_follows_from_what_was_seen_of_it() {
    type End = fn(TcpStream, TcpStream);
    // Each by the state in which it is seen, what brings it there, and how it ends then.
    let ways: [(u8, End, End); 5] = [
        // Reset when this side had closed its half.
        (5, |near, far| drop((shut(near), far)), |near, far| drop((break_off(far), near))),
        // Closed when both halves were, which the program has read.
        (
            5,
            |near, far| drop((shut(near), far)),
            |mut near, far| {
                drop(far);
                assert_eq!(near.read(&mut [0; 1]).unwrap(), 0);
            },
        ),
        // Closed before the other half is.
        (
            5,
            |near, far| drop((shut(near), far)),
            |near, far| {
                drop(near);
                drop(far);
            },
        ),
        // Reset when the other side had closed its half, by what is never read.
        (
            8,
            |near, far| drop((near, shut(far))),
            |near, mut far| {
                drop(near);
                far.read(&mut [0; 1]).unwrap_err();
            },
        ),
        // By this side, which leaves nothing.
        (1, |near, far| drop((near, far)), |near, _far| break_off(near)),
    ];
    for (at, (state, begin, end)) in ways.into_iter().enumerate() {
        let (mut near, mut far, id) = connected("[::1]:0", "::1");
        measured(build_it(), |inlet, queue| {
            near.write_all(&[1; 5_000]).unwrap();
            far.read_exact(&mut [0; 5_000]).unwrap();
            far.write_all(&[1; 70]).unwrap();
            // One octet of them is not read.
            near.read_exact(&mut [0; 69]).unwrap();
            if state != 8 {
                near.read_exact(&mut [0; 1]).unwrap();
            }
            begin(near.try_clone().unwrap(), far.try_clone().unwrap());
            inlet.send_all(vec![event(FlowState::Start, id)]).unwrap();
            wait_for(queue, id, "sample", |flow| {
                flow.info().unwrap().tcp_info().unwrap().state() == Some(state)
            });
            end(near, far);
            inlet.send_all(vec![event(FlowState::End, id)]).unwrap();
            let usage = Usage { sent: 5_000, received: 70 };
            assert_eq!(wait_for(queue, id, "end", |_| true).usage(), Some(usage), "way {at}");
        });
    }
}

fn shut(end: TcpStream) -> TcpStream {
    end.shutdown(Shutdown::Write).unwrap();
    end
}

fn break_off(end: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&end, sockopt::Linger, &linger).unwrap();
}

/// The kernel gives up telling of sockets where too many go at a time. That is a loss only
/// where one of them was a flow's.
#[test]
fn sockets_of_flows_that_go_unheard_of_are_counted() {
    let (_dispatcher, inlet) = Dispatcher::new(10_000, EntropyKey::of_this_boot());
    let (protocol, in_full) = (Protocol::Tcp, Arc::default());
    let wanted = Wanted { ext: 255, in_full };
    let shared = Shared::new(protocol, wanted.clone()).unwrap();
    let (diag, states, period) = (Diag::open().unwrap(), States(u32::MAX), Duration::MAX);
    let mut sampler = Sampler {
        diag,
        protocol,
        wanted,
        states,
        period,
        watched: shared.clone(),
        filter: None,
        only_v6: false,
        counters: Arc::default(),
    };
    let (ends, _) = shared.lock().ends().unwrap();
    // The least that the kernel gives.
    setsockopt(&ends, sockopt::RcvBuf, &0).unwrap();
    let flood = || loop {
        drop(connected("[::1]:0", "::1"));
        let mut fds = [PollFd::new(ends.as_fd(), PollFlags::empty())];
        if poll(&mut fds, PollTimeout::ZERO).unwrap() > 0 {
            break;
        }
    };
    let unheard = || shared.lock().take_unheard();
    let (_near, _far, id) = connected("[::1]:0", "::1");
    shared.lock().flows.insert(id, Default::default());
    sampler.measure(&inlet);
    flood();
    for _ in 0..3 {
        shared.lock().follow();
        sampler.measure(&inlet);
    }
    assert!(shared.lock().last_look(&id).is_some());
    assert_eq!(unheard(), 0);

    // The kernel may be late, and then it is heard.
    for has_ended in [true, false] {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            assert!(Instant::now() < deadline, "nothing is missed");
            let (near, far, id) = connected("[::1]:0", "::1");
            shared.lock().flows.insert(id, Default::default());
            sampler.measure(&inlet);
            flood();
            drop((near, far));
            shared.lock().follow();
            if has_ended {
                // Whatever it waits for.
                let _ = shared.lock().last_look(&id);
            } else {
                (0..3).for_each(|_| sampler.measure(&inlet));
            }
            shared.lock().flows.remove(&id);
            match unheard() {
                0 => {}
                count => {
                    assert_eq!(count, 1);
                    break;
                }
            }
        }
    }
}

/// While many are told of, a flow may begin and lose its socket.
#[test]
fn the_end_of_a_socket_is_known_whose_flow_has_just_begun() {
    let wanted = Wanted { ext: 255, in_full: Arc::default() };
    let shared = Shared::new(Protocol::Tcp, wanted).unwrap();
    let (mut outlet, queue) = queue("test".into());
    let mut watched = shared.lock();
    watched.queue = Some(queue);
    let (near, far, id) = connected("[::1]:0", "::1");
    let mut table = FlowTable::new(EntropyKey::of_this_boot());
    let start = event(FlowState::Start, id);
    let Change::Opened(flow) = table.apply(start, ("test", Authority::Told), Timestamp(1)) else {
        panic!("not opened");
    };
    outlet.send(Arc::new(vec![Event::Start(flow)]));
    drop((near, far));
    let deadline = Instant::now() + Duration::from_secs(60);
    while watched.fresh.is_empty() {
        assert!(Instant::now() < deadline, "its end is missed");
        watched.take_ends();
    }
    assert_eq!(watched.fresh[0].0, id);
}

/// For how long nothing was handed on, in ms, all being acknowledged.
fn age_of_silence(since: &mut u32, (is_handed_on, age, unacked): (bool, u32, u32)) -> u32 {
    if is_handed_on || unacked > 0 {
        *since = age;
    }
    age - *since
}

/// That time goes by is no news of a connection.
#[test]
fn what_says_the_same_as_before_is_handed_on_in_turns() {
    let (mut near, mut far, id) = connected("[::1]:0", "::1");
    let wanted = Wanted { ext: 255, in_full: Arc::default() };
    let kinds = wanted.kinds();
    let shared = Shared::new(Protocol::Tcp, wanted).unwrap();
    shared.lock().flows.insert(id, Default::default());
    let mut diag = Diag::open().unwrap();
    let (mut age, mut unacked) = (0, 0);
    // Whether it is handed on, for how long nothing has come, and what is on its way.
    let mut look = |turns: u32| {
        let (mut watched, mut count) = (shared.lock(), 0);
        watched.begin_list();
        let there = diag.look_up(&id, NO_COOKIE, 0, kinds.extensions(), |socket| {
            let tcp = socket.tcp_info().unwrap();
            (age, unacked) = (tcp.last_data_recv().unwrap(), tcp.unacked().unwrap());
            let mut there = vec![(id, socket)];
            watched.keep_watched(&mut there);
            watched.keep_changed(&mut there, kinds, turns);
            count = there.len();
        });
        assert_eq!(there, Ok(true));
        (count == 1, age, unacked)
    };
    // Longer than the test.
    const NEVER: u32 = u32::MAX;
    assert!(look(NEVER).0);
    for octets in [10, 20_000] {
        near.write_all(&vec![1; octets]).unwrap();
        far.read_exact(&mut vec![0; octets]).unwrap();
        assert!(look(NEVER).0);
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut since = look(NEVER).1;
        // Acknowledgements may be late.
        while age_of_silence(&mut since, look(NEVER)) < 300 {
            assert!(Instant::now() < deadline, "it is never the same for 300 ms");
        }
    }
    let mut count = |lists: usize, turns| (0..lists).filter(|_| look(turns).0).count();
    let deadline = Instant::now() + Duration::from_secs(60);
    // A timer of the kernel's may still change a number.
    while [count(70, 7), count(5, 1), count(5, NEVER)] != [10, 5, 0] {
        assert!(Instant::now() < deadline, "not in turns");
    }
    shared.lock().say_all_again();
    while count(5, NEVER) != 1 {
        assert!(Instant::now() < deadline, "not once again");
        shared.lock().say_all_again();
    }
}

#[test]
fn few_ports_are_said_to_the_kernel() {
    let id = |src: u16, dst: u16| {
        let [src, dst] = [src, dst].map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port)));
        FlowId::new(Protocol::Tcp, src, dst).unwrap()
    };
    let any_of = |lists: &[[Condition; 1]]| Filter::any_of(lists.iter().map(|list| &list[..]));
    let flows: HashSet<FlowId> = (1..100).map(|port| id(1094, port)).collect();
    assert_eq!(filter(flows.iter()), any_of(&[[Condition::LocalPort(1094, 1094)]]));
    let flows: Vec<FlowId> = (1..100).flat_map(|port| [id(port, 7), id(port, 9)]).collect();
    let both = any_of(&[[Condition::RemotePort(7, 7)], [Condition::RemotePort(9, 9)]]);
    assert_eq!(filter(flows.iter()), both);
    let flows: HashSet<FlowId> = (1..100).map(|port| id(port, port + 1)).collect();
    assert_eq!(filter(flows.iter()), None);
}
