//! Rounds of connections, and what the dispatcher is told of them.

use std::collections::BTreeMap;
use std::thread::JoinHandle;

use super::super::reports::obey;
use super::*;
use crate::dispatcher::Dispatcher;
use crate::entropy::EntropyKey;
use crate::flow::{Protocol, Timestamp};
use crate::net::connections::{self, Change};

fn connection(port: u16, cookie: u64) -> Connection {
    let src = std::net::SocketAddr::new("2001:db8::1".parse().unwrap(), port);
    let dst = "[2001:db8::2]:1094".parse().unwrap();
    let id = FlowId::new(Protocol::Tcp, src, dst).unwrap();
    Connection { id, cookie, inode: 7, interface: 0, uid: Some(0), cgroup: None }
}

fn tag(activity: u64) -> Tag {
    Tag::new(2, activity).unwrap()
}

/// A dispatcher, and what is known of connections.
struct Rig {
    connections: Connections,
    out: Inlet,
    other: Inlet,
    hub: Option<JoinHandle<()>>,
}

impl Rig {
    fn new(room: u32) -> Self {
        let (dispatcher, inlet) = Dispatcher::new(room, EntropyKey::of_this_boot());
        let hub = std::thread::spawn(|| dispatcher.run());
        let out = inlet.for_source("netlink").for_what_is_found();
        let other = inlet.for_source("api");
        Rig { connections: Connections::new(100), out, other, hub: Some(hub) }
    }

    /// A round in which these are there, of which news are judged by port; what is
    /// looked up by name is there only if it is in `hidden`. Returns how many were judged.
    fn round(
        &mut self,
        there: &[Connection],
        hidden: &[Connection],
        judge: impl Fn(u16) -> Finding,
    ) -> usize {
        let connections = &mut self.connections;
        connections.begin_round();
        connections.see(there);
        let mut judged = 0;
        let mut judge_all = |connections: &mut Connections| {
            for new in connections.news() {
                judged += 1;
                connections.judged(&new, judge(new.id.src().port()));
            }
        };
        judge_all(connections);
        for (id, cookie, _) in connections.unseen() {
            match hidden.iter().find(|hidden| (hidden.id, hidden.cookie) == (id, cookie)) {
                Some(connection) => connections.see(&[*connection]),
                None => connections.gone(&id, cookie, None),
            }
        }
        judge_all(connections);
        let untold = connections.untold();
        let _ = connections.tell(&self.out, &untold);
        let count = |is_it: fn(&&Known) -> bool| connections.all.values().filter(is_it).count();
        let round = connections.round;
        let counts = Counts {
            seen: connections.all.values().filter(|known| known.round == round).count(),
            told: count(|known| known.told.is_some()),
            untold: count(|known| known.told != known.tag),
        };
        assert_eq!(connections.counts, counts);
        judged
    }

    /// The open flows: activities and starts by port.
    fn flows(&self) -> BTreeMap<u16, (u8, u64)> {
        let flows = self.out.flows().unwrap().into_iter();
        flows.map(|flow| (flow.id.src().port(), (flow.tag.activity(), flow.start.0))).collect()
    }

    fn activities(&self) -> Vec<(u16, u8)> {
        self.flows().into_iter().map(|(port, (activity, _))| (port, activity)).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let (_, nowhere) = Dispatcher::new(1, EntropyKey::of_this_boot());
        (self.out, self.other) = (nowhere.clone(), nowhere);
        self.hub.take().unwrap().join().unwrap();
    }
}

fn by_parity(port: u16) -> Finding {
    if port % 2 == 0 {
        Finding::Tag(tag(16))
    } else {
        Finding::Nothing
    }
}

#[test]
fn what_is_there_is_told_once_and_what_is_gone_is_ended() {
    let mut rig = Rig::new(100);
    let all: Vec<_> = (1..=6).map(|port| connection(port, port.into())).collect();
    assert_eq!(rig.round(&all, &[], by_parity), 6);
    assert_eq!(rig.activities(), [(2, 16), (4, 16), (6, 16)]);
    let before = rig.flows();
    // Those that cost nothing to judge are judged again, the others are known.
    assert_eq!(rig.round(&all, &[], by_parity), 3);
    // One that a dump lacks is asked for by name.
    assert_eq!(rig.round(&all[..4], &all[5..], by_parity), 2);
    assert_eq!(rig.flows(), before, "nothing was told twice");
    assert_eq!(rig.round(&all[..2], &[], by_parity), 1);
    assert_eq!(rig.activities(), [(2, 16)]);
    assert_eq!(rig.connections.count(), (1, 1));
}

#[test]
fn a_socket_with_the_ends_of_another_is_a_new_flow() {
    let mut rig = Rig::new(100);
    rig.round(&[connection(2, 1)], &[], by_parity);
    let before = rig.flows()[&2];
    while Timestamp::now().0 == before.1 {}
    assert_eq!(rig.round(&[connection(2, 9)], &[], by_parity), 1);
    assert!(rig.flows()[&2].1 > before.1, "it began anew");
    // Two at a time, as UDP may have: the known one counts, in whatever order.
    let now = rig.flows();
    for there in [[connection(2, 9), connection(2, 10)], [connection(2, 10), connection(2, 9)]] {
        assert_eq!(rig.round(&there, &[], by_parity), 0);
        assert_eq!(rig.flows(), now);
    }
}

#[test]
fn what_was_costly_is_remembered_and_what_is_open_is_asked_again() {
    let mut rig = Rig::new(100);
    let one = [connection(2, 1)];
    assert_eq!(rig.round(&one, &[], |_| Finding::RememberNothing), 1);
    assert_eq!(rig.round(&one, &[], by_parity), 0, "it is remembered");
    rig.connections.forget_judgements();
    for _ in 0..5 {
        assert_eq!(rig.round(&one, &[], |_| Finding::Undecided), 1);
    }
    rig.connections.forget_judgements();
    let judged: Vec<_> = (0..6).map(|_| rig.round(&one, &[], |_| Finding::NothingYet)).collect();
    assert_eq!(judged, [1, 1, 1, 1, 0, 0]);
    assert_eq!(rig.flows().len(), 0);
    // Gone: it is not remembered for ever.
    rig.round(&[], &[], by_parity);
    assert_eq!(rig.connections.count(), (0, 0));
}

#[test]
fn what_is_reported_is_told_at_once_and_confirmed_by_the_next_round() {
    let mut rig = Rig::new(100);
    let (one, two) = (connection(2, 1), connection(4, 2));
    let began = Timestamp(5);
    for new in [&one, &two] {
        assert!(rig.connections.is_new(new));
        rig.connections.reported(new, Finding::Tag(tag(16)), None);
        assert!(!rig.connections.is_new(new) && rig.connections.is_untold(&new.id, new.cookie));
    }
    let untold = [(one.id, Some(began)), (two.id, Some(began))];
    rig.connections.tell(&rig.out, &untold).unwrap();
    assert!(!rig.connections.is_untold(&one.id, 1));
    assert_eq!(rig.flows(), BTreeMap::from([(2, (16, 5)), (4, (16, 5))]));
    // The end of another socket with these ends is not that of this one.
    rig.connections.gone(&one.id, 9, Some(Timestamp(9)));
    rig.connections.gone(&two.id, 2, Some(Timestamp(9)));
    rig.connections.tell(&rig.out, &[]).unwrap();
    assert_eq!(rig.flows(), BTreeMap::from([(2, (16, 5))]));
    // It is judged again once, when it may have another owner.
    assert_eq!(rig.round(&[one], &[], |_| Finding::Tag(tag(16))), 1);
    assert_eq!(rig.round(&[one], &[], by_parity), 0);
    assert_eq!(rig.flows(), BTreeMap::from([(2, (16, 5))]));
}

#[test]
fn other_rules_retag_and_end() {
    let mut rig = Rig::new(100);
    let all = [connection(2, 1), connection(4, 2), connection(5, 3), connection(8, 4)];
    rig.round(&all, &[], by_parity);
    rig.connections.forget_judgements();
    let other = |port| match port {
        2 => Finding::Tag(tag(15)),
        5 => Finding::Tag(tag(1)),
        8 => Finding::Tag(tag(16)),
        _ => Finding::Nothing,
    };
    let before = rig.flows()[&8];
    // The last one is not listed, since the kernel filters by the new rules.
    assert_eq!(rig.round(&all[..3], &all[3..], other), 4);
    assert_eq!(rig.activities(), [(2, 15), (5, 1), (8, 16)]);
    assert_eq!(rig.flows()[&8], before);
}

#[test]
fn what_the_table_has_no_room_for_waits_and_is_tried_again() {
    let mut rig = Rig::new(10);
    let all: Vec<_> = (1..=40).map(|port| connection(port * 2, port.into())).collect();
    rig.round(&all, &[], by_parity);
    assert_eq!((rig.flows().len(), rig.connections.waiting), (10, 30));
    // Room for some more.
    let open: Vec<u16> = rig.flows().into_keys().collect();
    let left: Vec<_> =
        all.iter().filter(|one| !open[..4].contains(&one.id.src().port())).copied().collect();
    rig.round(&left, &[], by_parity);
    assert_eq!((rig.flows().len(), rig.connections.waiting), (10, 26));
    rig.round(&left[..8], &[], by_parity);
    rig.round(&left[..8], &[], by_parity);
    assert_eq!((rig.flows().len(), rig.connections.waiting), (8, 0));
}

#[test]
fn what_was_told_counts_more_than_what_was_found() {
    let mut rig = Rig::new(10);
    let told = |state, activity| vec![event(state, connection(2, 1).id, tag(activity), None)];
    // Told first, or found first.
    for found_first in [false, true] {
        if found_first {
            rig.round(&[connection(2, 1)], &[], by_parity);
        }
        rig.other.send_all(told(FlowState::Start, 1)).unwrap();
        rig.round(&[connection(2, 1)], &[], by_parity);
        assert_eq!(rig.activities(), [(2, 1)]);
        // The socket goes, but who told of the flow has not ended it.
        rig.round(&[], &[], by_parity);
        assert_eq!(rig.activities(), [(2, 1)]);
        rig.other.send_all(told(FlowState::End, 1)).unwrap();
        assert_eq!(rig.activities(), []);
    }
}

#[test]
fn what_was_found_lasts_while_nobody_is_seen_to_have_the_socket() {
    let mut rig = Rig::new(10);
    let one = connection(2, 1);
    rig.connections.reported(&one, Finding::Tag(tag(16)), None);
    rig.connections.tell(&rig.out, &[(one.id, None)]).unwrap();
    let before = rig.flows();
    let judged: Vec<_> = (0..3).map(|_| rig.round(&[one], &[], |_| Finding::NothingYet)).collect();
    assert_eq!((judged, rig.flows()), (vec![1, 0, 0], before));
    // By other rules, and of another socket, it is nothing.
    rig.connections.forget_judgements();
    rig.round(&[one], &[], |_| Finding::NothingYet);
    assert_eq!(rig.flows().len(), 0);
    rig.round(&[connection(4, 1)], &[], by_parity);
    rig.round(&[connection(4, 2)], &[], |_| Finding::NothingYet);
    assert_eq!(rig.flows().len(), 0);
}

fn report(port: u16, change: Change, time: u64) -> connections::Connection {
    let Connection { id, cookie, interface, uid, cgroup, .. } = connection(port, port.into());
    let (local, remote, time) = (id.src(), id.dst(), Timestamp(time));
    let (passive, process) = (false, None);
    connections::Connection {
        change,
        passive,
        local,
        remote,
        cookie,
        cgroup,
        uid,
        interface,
        process,
        time,
    }
}

#[test]
fn no_report_is_lost_where_the_table_is_full() {
    let mut rig = Rig::new(1);
    let reports = [
        report(2, Change::Opened, 5),
        report(4, Change::Opened, 6),
        report(4, Change::Closed, 7),
        report(6, Change::Opened, 8),
        report(2, Change::Closed, 9),
    ];
    let judge = |new: &Connection, _: &str| by_parity(new.id.src().port());
    let outcome = obey(reports.into_iter(), judge, &mut rig.connections, &rig.out);
    assert!(outcome.is_ok(), "the last one has room at last: {outcome:?}");
    assert_eq!(rig.flows(), BTreeMap::from([(6, (16, 8))]));
    assert_eq!(rig.connections.count(), (1, 1), "those that closed are not known any more");
}

#[test]
fn a_connection_that_is_replaced_ends_when_the_other_begins() {
    let mut rig = Rig::new(10);
    let tagged = Finding::Tag(tag(16));
    rig.connections.reported(&connection(2, 1), tagged, Some(Timestamp(5)));
    rig.connections.tell(&rig.out, &[(connection(2, 1).id, Some(Timestamp(5)))]).unwrap();
    rig.connections.reported(&connection(2, 9), tagged, Some(Timestamp(8)));
    let ends: Vec<_> =
        rig.connections.over.iter().map(|(id, _, end)| (id.src().port(), *end)).collect();
    assert_eq!(ends, [(2, Some(Timestamp(8)))]);
}
