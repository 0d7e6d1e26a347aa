//! The flow table, event by event.

use std::sync::Arc;

use super::*;
use crate::flow::{News, Protocol, Usage};
use crate::meter::{Counted, Traffic};

const API: (&str, Authority) = ("api", Authority::Told);
const PIPE: (&str, Authority) = ("namedPipe", Authority::Told);
const FIREFLY: (&str, Authority) = ("firefly", Authority::Heard);
const FINDER: (&str, Authority) = ("netlink", Authority::Found);

fn event(state: FlowState, port: u16, activity: u64) -> FlowEvent {
    let src = std::net::SocketAddr::new("2001:db8::1".parse().unwrap(), port);
    let dst = "[2001:db8::2]:1094".parse().unwrap();
    FlowEvent {
        state,
        id: FlowId::new(Protocol::Tcp, src, dst).unwrap(),
        tag: Tag::new(2, activity).unwrap(),
        time: None,
        application: None,
        usage: None,
    }
}

fn table() -> FlowTable {
    FlowTable::new(EntropyKey::of_this_boot())
}

#[test]
fn a_flow_opens_once_and_closes_once() {
    let mut table = table();
    let opened = table.apply(event(FlowState::Start, 7, 16), API, Timestamp(5));
    let Change::Opened(flow) = opened else { panic!("{opened:?}") };
    assert_eq!((flow.start, flow.source), (Timestamp(5), "api"));
    assert_eq!(Tag::from_label(flow.label), Some(flow.tag));
    let again = table.apply(event(FlowState::Start, 7, 16), PIPE, Timestamp(6));
    assert_eq!(again, Change::Repeated);
    let news = News { heard: Timestamp(6), ..News::default() };
    let flow = Flow { news: Some(Arc::new(news)), ..flow };
    assert_eq!(table.flows(), vec![flow.clone()], "a repeated start changes nothing");
    let closed = table.apply(event(FlowState::End, 7, 1), API, Timestamp(7));
    assert_eq!(closed, Change::Closed(flow), "with the flow's own tag");
    let unknown = table.apply(event(FlowState::End, 7, 16), API, Timestamp(8));
    assert_eq!((unknown, table.count()), (Change::Unknown, 0));
}

/// Defect 7 of the peers: a repeated start drew the entropy anew.
#[test]
fn defect_07_entropy_lasts_for_the_life_of_the_flow() {
    let mut labels = Vec::new();
    for _ in 0..2 {
        // A new table is what a restart makes.
        let mut table = table();
        table.apply(event(FlowState::Start, 7, 16), API, Timestamp(5));
        table.apply(event(FlowState::Start, 7, 16), API, Timestamp(6));
        labels.extend(table.flows().iter().map(|flow| flow.label));
    }
    assert_eq!(labels.len(), 2);
    assert_eq!(labels[0], labels[1]);
}

#[test]
fn an_ongoing_event_updates_totals_and_opens_what_is_not_open() {
    let usage = |sent| Some(Usage { received: 1, sent });
    let told = |state, time, usage: Option<Usage>| FlowEvent {
        time: Some(Timestamp(time)),
        usage: usage.map(Box::new),
        ..event(state, 7, 16)
    };
    let mut table = table();
    let opened = table.apply(told(FlowState::Ongoing, 3, usage(10)), FIREFLY, Timestamp(5));
    let Change::Opened(flow) = opened else { panic!("{opened:?}") };
    assert_eq!((flow.start, flow.heard(), flow.usage()), (Timestamp(3), Timestamp(5), usage(10)));
    // It says nothing of the tag and the start of a flow that is known.
    for (sent, at) in [(20, 6), (30, 7)] {
        let other =
            FlowEvent { tag: Tag::new(3, 1).unwrap(), ..told(FlowState::Ongoing, 4, usage(sent)) };
        assert_eq!(table.apply(other, API, Timestamp(at)), Change::Goes);
        let (heard, told) = (Timestamp(at), Timestamp(at));
        let news = News { heard, told, usage: usage(sent), ..News::default() };
        let now = Flow { news: Some(Arc::new(news)), ..flow.clone() };
        assert_eq!(table.flows(), [now]);
    }
    let closed = table.apply(told(FlowState::End, 9, None), FIREFLY, Timestamp(9));
    let Change::Closed(closed) = closed else { panic!("{closed:?}") };
    assert_eq!(closed.usage(), usage(30), "the last totals that were told");
}

/// As when the network changes the order of datagrams, or a firefly comes back.
#[test]
fn late_news_open_no_flow_again() {
    let at = |state, time| FlowEvent { time: Some(Timestamp(time)), ..event(state, 7, 16) };
    let mut table = table();
    table.apply(at(FlowState::Start, 10), FIREFLY, Timestamp(11));
    table.apply(at(FlowState::End, 20), FIREFLY, Timestamp(21));
    for (state, time) in [(FlowState::Start, 10), (FlowState::Ongoing, 19)] {
        assert_eq!(table.apply(at(state, time), FIREFLY, Timestamp(22)), Change::Stale);
    }
    let next = table.apply(at(FlowState::Start, 20), FIREFLY, Timestamp(23));
    assert!(matches!(next, Change::Opened(_)), "the same 5-tuple, used again: {next:?}");
    table.apply(at(FlowState::End, 30), FIREFLY, Timestamp(31));
    // Who does not say when means now.
    let now = table.apply(event(FlowState::Start, 7, 16), PIPE, Timestamp(32));
    assert!(matches!(now, Change::Opened(_)), "{now:?}");
    // The end overtook the start.
    let early = FlowEvent { time: Some(Timestamp(50)), ..event(FlowState::End, 8, 16) };
    assert_eq!(table.apply(early, FIREFLY, Timestamp(51)), Change::Unknown);
    let late = FlowEvent { time: Some(Timestamp(40)), ..event(FlowState::Start, 8, 16) };
    assert_eq!(table.apply(late, FIREFLY, Timestamp(52)), Change::Stale);
}

/// Two daemons that report to each other: each hears what it has said.
#[test]
fn the_echo_of_a_new_tag_changes_nothing() {
    use FlowState::{End, Start};
    let at = |state, activity, time| FlowEvent {
        time: Some(Timestamp(time)),
        ..event(state, 7, activity)
    };
    let mut table = table();
    table.apply(event(Start, 7, 16), PIPE, Timestamp(5));
    table.apply(event(Start, 7, 15), PIPE, Timestamp(9));
    for echo in [at(Start, 16, 5), at(End, 16, 9)] {
        assert_eq!(table.apply(echo, FIREFLY, Timestamp(10)), Change::Stale);
    }
    assert_eq!(table.apply(at(Start, 15, 9), FIREFLY, Timestamp(10)), Change::Repeated);
    assert_eq!(table.flows()[0].tag.activity(), 15);
    // Its own end counts, also by a clock of whole seconds.
    let second = 1_000_000;
    table.apply(at(End, 15, 20), FIREFLY, Timestamp(20));
    table.apply(at(Start, 16, 5 * second + 7), FIREFLY, Timestamp(6 * second));
    let before = table.apply(at(End, 16, 4 * second), FIREFLY, Timestamp(6 * second));
    assert_eq!(before, Change::Stale, "of the flow before");
    let own = table.apply(at(End, 16, 5 * second), FIREFLY, Timestamp(6 * second));
    assert!(matches!(own, Change::Closed(_)), "{own:?}");
}

#[test]
fn silent_is_who_was_only_heard_and_long_ago() {
    let mut table = table();
    let silent = |table: &FlowTable, then| {
        let mut ports: Vec<_> =
            table.silent_since(Timestamp(then)).iter().map(|(id, _)| id.src().port()).collect();
        ports.sort_unstable();
        ports
    };
    for (port, who) in [(1, API), (2, FIREFLY), (3, FIREFLY), (4, FINDER), (5, FIREFLY)] {
        table.apply(event(FlowState::Start, port, 16), who, Timestamp(10));
    }
    assert_eq!(silent(&table, 9), [0; 0]);
    assert_eq!(silent(&table, 10), [2, 3, 5]);
    // Each kind of news counts, and who is told of a flow ends it.
    table.apply(event(FlowState::Ongoing, 2, 16), FIREFLY, Timestamp(20));
    table.apply(event(FlowState::Start, 3, 16), FIREFLY, Timestamp(20));
    table.apply(event(FlowState::Start, 5, 16), API, Timestamp(11));
    assert_eq!(silent(&table, 19), [0; 0]);
    assert_eq!(silent(&table, 20), [2, 3]);
}

#[test]
fn who_tells_in_order_may_open_a_flow_again_as_it_was() {
    let start = || FlowEvent { time: Some(Timestamp(5)), ..event(FlowState::Start, 7, 16) };
    let mut table = table();
    for _ in 0..2 {
        let opened = table.apply(start(), API, Timestamp(8));
        assert!(matches!(opened, Change::Opened(_)), "{opened:?}");
        table.apply(event(FlowState::End, 7, 16), API, Timestamp(9));
    }
    assert_eq!(table.apply(start(), FIREFLY, Timestamp(10)), Change::Stale);
    // A clock that is ahead bars nothing.
    let end = FlowEvent { time: Some(Timestamp(1 << 60)), ..event(FlowState::End, 7, 16) };
    table.apply(end, FIREFLY, Timestamp(11));
    let next = FlowEvent { time: Some(Timestamp(12)), ..event(FlowState::Start, 7, 16) };
    let opened = table.apply(next, FIREFLY, Timestamp(13));
    assert!(matches!(opened, Change::Opened(_)), "{opened:?}");
}

#[test]
fn another_tag_ends_the_old_flow_and_starts_the_new() {
    let mut table = table();
    table.apply(event(FlowState::Start, 7, 16), API, Timestamp(5));
    let change = table.apply(event(FlowState::Start, 7, 15), API, Timestamp(9));
    let Change::Retagged { old, new } = change else { panic!("{change:?}") };
    assert_eq!((old.tag.activity(), old.start), (16, Timestamp(5)));
    assert_eq!((new.tag.activity(), new.start), (15, Timestamp(9)));
    assert_eq!(old.label & 0xC_0103, new.label & 0xC_0103);
    assert_eq!(table.flows(), vec![new]);
}

#[test]
fn who_was_told_knows_better_than_who_found() {
    use FlowState::{End, Start};
    let mut table = table();
    let mut apply =
        |state, activity, who| match table.apply(event(state, 7, activity), who, Timestamp(5)) {
            Change::Opened(flow) => format!("opened {}", flow.tag.activity()),
            Change::Closed(flow) => format!("closed {}", flow.tag.activity()),
            Change::Retagged { new, .. } => format!("retagged {}", new.tag.activity()),
            other => format!("{other:?}"),
        };
    // What was found may be corrected and ended by who was told.
    assert_eq!(apply(Start, 1, FINDER), "opened 1");
    assert_eq!(apply(Start, 2, FINDER), "retagged 2");
    assert_eq!(apply(Start, 3, API), "retagged 3");
    // Not the other way round, but among equals the last one counts.
    assert_eq!(apply(Start, 1, FINDER), "Outranked");
    assert_eq!(apply(End, 1, FINDER), "Outranked");
    assert_eq!(apply(Start, 4, PIPE), "retagged 4");
    assert_eq!(apply(End, 4, API), "closed 4");
    assert_eq!(apply(End, 1, FINDER), "Unknown");
    // Who is told of what was found takes it over.
    assert_eq!(apply(Start, 1, FINDER), "opened 1");
    assert_eq!(apply(Start, 1, API), "Repeated");
    assert_eq!(apply(End, 1, FINDER), "Outranked");
    assert_eq!(apply(End, 1, PIPE), "closed 1");
}

/// Two daemons that find connections and report to each other, or one that hears itself.
#[test]
fn what_was_found_ends_though_others_have_told_of_it() {
    use FlowState::{End, Start};
    let at = |state, time| FlowEvent { time: Some(Timestamp(time)), ..event(state, 7, 16) };
    let mut table = table();
    // The echo of its own start changes nothing.
    table.apply(at(Start, 5), FINDER, Timestamp(5));
    assert_eq!(table.apply(at(Start, 5), FIREFLY, Timestamp(6)), Change::Repeated);
    let closed = table.apply(at(End, 9), FINDER, Timestamp(9));
    assert!(matches!(closed, Change::Closed(_)), "{closed:?}");
    // The other end says the same of it by its own clock. It may say more at the end.
    table.apply(at(Start, 20), FINDER, Timestamp(20));
    table.apply(at(Start, 21), FIREFLY, Timestamp(21));
    assert_eq!(table.apply(at(End, 30), FINDER, Timestamp(30)), Change::Awaited);
    assert!(table.awaits() && table.given_up(Timestamp(29 + GRACE)).is_empty());
    assert_eq!(
        table.given_up(Timestamp(30 + GRACE)),
        [(event(End, 7, 16).id, event(End, 7, 16).tag)]
    );
    assert!(!table.awaits(), "once");
    assert!(matches!(table.apply(at(End, 31), FIREFLY, Timestamp(31)), Change::Closed(_)));
    // Its end came in time; and a connection that is there again is not over.
    for (time, state, who) in [(40, End, FIREFLY), (60, Start, FINDER)] {
        table.apply(at(Start, time), FIREFLY, Timestamp(time));
        assert_eq!(table.apply(at(End, time + 5), FINDER, Timestamp(time + 5)), Change::Awaited);
        table.apply(at(state, time + 6), who, Timestamp(time + 6));
        assert_eq!(table.given_up(Timestamp(time + 9 + GRACE)), []);
        table.apply(at(End, time + 9), API, Timestamp(time + 9));
    }
}

/// Who was told in order says when a flow ends, whatever else is heard of it.
#[test]
fn news_of_a_flow_that_somebody_told_of_do_not_make_it_silent() {
    let mut table = table();
    table.apply(event(FlowState::Start, 7, 16), PIPE, Timestamp(5));
    for activity in [16, 15] {
        table.apply(event(FlowState::Start, 7, activity), FIREFLY, Timestamp(6));
        table.apply(event(FlowState::Ongoing, 7, activity), FIREFLY, Timestamp(6));
        assert_eq!(table.silent_since(Timestamp(99)), []);
    }
    assert_eq!(table.apply(event(FlowState::End, 7, 16), FINDER, Timestamp(9)), Change::Outranked);
}

#[test]
fn of_two_who_find_a_flow_the_first_keeps_it() {
    use FlowState::{End, Start};
    const OTHER: (&str, Authority) = ("iperf3", Authority::Found);
    let mut table = table();
    for (first, second) in [(FINDER, OTHER), (OTHER, FINDER)] {
        let opened = table.apply(event(Start, 7, 16), first, Timestamp(5));
        assert!(matches!(opened, Change::Opened(_)), "{opened:?}");
        for state in [Start, End] {
            assert_eq!(table.apply(event(state, 7, 15), second, Timestamp(6)), Change::Outranked);
        }
        // Its own rules may change.
        let change = table.apply(event(Start, 7, 14), first, Timestamp(7));
        assert!(matches!(change, Change::Retagged { .. }), "{change:?}");
        let closed = table.apply(event(End, 7, 14), first, Timestamp(8));
        assert!(matches!(closed, Change::Closed(_)), "{closed:?}");
    }
}

/// In what state, and what it has sent.
fn tcp_info(state: u8, sent: u64) -> Vec<u8> {
    let mut info = vec![0; 232];
    info[0] = state;
    info[200..208].copy_from_slice(&sent.to_ne_bytes());
    info
}

#[test]
fn of_two_enrichers_netlink_counts_until_the_socket_is_closed() {
    let by_program =
        |state, sent| FlowInfo::by_program(Timestamp(9), 1, &tcp_info(state, sent), b"cubic");
    let by_netlink = |sent| {
        let mut info = by_program(1, sent);
        info.by_program = false;
        info
    };
    let mut table = table();
    let id = event(FlowState::Start, 7, 16).id;
    table.apply(event(FlowState::Start, 7, 16), API, Timestamp(5));
    let mut measured = |info: FlowInfo| {
        let flow = table.measure(&id, info, true)?;
        Some((flow.info()?.by_program, flow.usage()?.sent))
    };
    // Alone it counts; who comes second takes the flow, or is passed over.
    assert_eq!(measured(by_program(1, 10)), Some((true, 10)));
    assert_eq!(measured(by_netlink(20)), Some((false, 20)));
    assert_eq!(measured(by_program(1, 30)), None);
    assert_eq!(measured(by_netlink(40)), Some((false, 40)));
    // The last numbers of the socket, in the same form.
    assert_eq!(measured(by_program(7, 50)), Some((false, 50)));
}

/// Who ends it, or would, is looked at once more.
#[test]
fn it_is_known_which_events_end_a_flow() {
    use FlowState::{End, Ongoing, Start};
    const OTHER: (&str, Authority) = ("iperf3", Authority::Found);
    let parts = [API, FIREFLY, FINDER, OTHER];
    let mut ends = 0;
    for (first, second) in parts.iter().flat_map(|one| parts.map(|other| (*one, other))) {
        for (state, activity) in
            [Start, Ongoing, End].into_iter().flat_map(|state| [(state, 16), (state, 15)])
        {
            for time in [None, Some(Timestamp(2)), Some(Timestamp(7))] {
                let mut table = table();
                let next = FlowEvent { time, ..event(state, 7, activity) };
                assert!(!table.would_end(&next, second, Timestamp(9)), "there is none");
                table.apply(event(Start, 7, 16), first, Timestamp(5));
                let would = table.would_end(&next, second, Timestamp(9));
                let change = table.apply(next, second, Timestamp(9));
                let did = matches!(change, Change::Closed(_) | Change::Retagged { .. });
                assert_eq!(would, did, "{first:?} {second:?} {state:?} {time:?}: {change:?}");
                ends += usize::from(did);
            }
        }
    }
    assert!(ends > 50, "{ends}");
}

/// A sample of a connection that has carried that much.
fn sample(cookie: u64, time: u64, Usage { received, sent }: Usage) -> FlowInfo {
    let mut info = [0; 232];
    info[0] = 1;
    info[128..136].copy_from_slice(&received.to_ne_bytes());
    info[200..208].copy_from_slice(&sent.to_ne_bytes());
    FlowInfo::by_program(Timestamp(time), cookie, &info, b"cubic")
}

fn open_usage(table: &FlowTable) -> Option<Usage> {
    table.flows()[0].usage()
}

fn closed_usage(change: Change) -> Option<Usage> {
    let Change::Closed(flow) = change else { panic!("{change:?}") };
    flow.usage()
}

/// As with XRootD, which tells 0 and 0 with the start.
#[test]
fn what_was_told_counts_until_something_newer_is_known_or_with_the_end() {
    use FlowState::{End, Ongoing, Start};
    let usage = |sent| Usage { received: 3, sent };
    let told =
        |state, sent| FlowEvent { usage: Some(Box::new(usage(sent))), ..event(state, 7, 16) };
    let id = event(Start, 7, 16).id;
    let mut table = table();
    for end in [event(End, 7, 16), told(End, 99)] {
        table.apply(told(Start, 0), FIREFLY, Timestamp(5));
        assert_eq!(open_usage(&table), Some(usage(0)));
        table.measure(&id, sample(end.usage.is_some().into(), 6, usage(500)), false);
        assert_eq!(open_usage(&table), Some(usage(500)));
        // Nothing of that is said.
        table.apply(event(Start, 7, 16), FIREFLY, Timestamp(7));
        assert_eq!(open_usage(&table), Some(usage(500)));
        table.apply(told(Ongoing, 600), FIREFLY, Timestamp(8));
        assert_eq!(open_usage(&table), Some(usage(600)));
        // A sample of another socket says nothing.
        table.measure(&id, sample(9, 8, usage(1)), false);
        assert_eq!(open_usage(&table), Some(usage(600)));
        table.measure(&id, sample(end.usage.is_some().into(), 9, usage(700)), false);
        let expected = end.usage.as_deref().copied().unwrap_or(usage(700));
        assert_eq!(closed_usage(table.apply(end, API, Timestamp(10))), Some(expected));
    }
}

/// Whose clock is ahead when it tells of the start may have it set right before the end.
#[test]
fn a_start_in_the_future_bars_no_end() {
    let at = |seconds: u64| Timestamp(seconds * SECOND);
    let mut table = table();
    let told = |state, port, seconds| {
        let time = Some(at(seconds));
        FlowEvent { time, ..event(state, port, 16) }
    };
    for (port, now, change) in [(7, 20, "closed"), (8, 95, "stale")] {
        let opened = table.apply(told(FlowState::Start, port, 90), FIREFLY, at(10));
        assert!(matches!(opened, Change::Opened(_)), "{opened:?}");
        let end = table.apply(told(FlowState::End, port, 19), FIREFLY, at(now));
        let is_closed = matches!(end, Change::Closed(_));
        assert!(is_closed == (change == "closed"), "{now}: {end:?}");
    }
    // What was told of the end before is still known by the time that was told of the start.
    let other = FlowEvent { tag: Tag::new(2, 15).unwrap(), ..told(FlowState::End, 8, 90) };
    assert_eq!(table.apply(other, FIREFLY, at(20)), Change::Stale);
}

/// Packets that were counted since are newer, too.
#[test]
fn what_was_told_gives_way_to_packets_that_were_counted_since() {
    let usage = |sent| Usage { received: 0, sent };
    let flow = |told, last: Option<u64>| {
        let mut table = table();
        let Change::Opened(flow) = table.apply(event(FlowState::Start, 7, 16), API, Timestamp(5))
        else {
            panic!("not opened");
        };
        let news = News { usage: Some(usage(0)), told: Timestamp(told), ..News::default() };
        let counted = Counted {
            left: Traffic { packets: 1, octets: 500 },
            received: Some(Traffic::default()),
            last: last.map(Timestamp),
            ..Counted::default()
        };
        Flow { news: Some(Arc::new(news)), counted: Some(counted), ..flow }
    };
    assert_eq!(flow(5, None).usage(), Some(usage(0)));
    assert_eq!(flow(5, Some(4)).usage(), Some(usage(0)));
    assert_eq!(flow(5, Some(6)).usage(), Some(usage(500)));
    assert_eq!(flow(u64::MAX, Some(6)).usage(), Some(usage(0)), "told with the end");
}

/// One after the other on one connection; on the next one of the same ends all begins anew.
#[test]
fn a_sample_is_of_the_connection_and_usage_of_the_flow() {
    use FlowState::{End, Start};
    let usage = |octets| Usage { received: octets, sent: 2 * octets };
    let id = event(Start, 7, 16).id;
    let mut table = table();
    for (cookie, total, own) in [(1, 500, 500), (1, 501, 1), (2, 40, 40), (1, 600, 99), (2, 40, 0)]
    {
        table.apply(event(Start, 7, 16), API, Timestamp(5));
        table.measure(&id, sample(cookie, 6, usage(total - own)), false);
        assert_eq!(open_usage(&table), Some(usage(0)), "{cookie}");
        table.measure(&id, sample(cookie, 7, usage(total)), false);
        let closed = table.apply(event(End, 7, 16), API, Timestamp(8));
        assert_eq!(closed_usage(closed), Some(usage(own)), "{cookie}");
    }
    table.apply(event(Start, 7, 16), API, Timestamp(5));
    table.measure(&id, sample(2, 7, usage(50)), false);
    let change = table.apply(event(Start, 7, 15), API, Timestamp(8));
    let Change::Retagged { old, new } = change else { panic!("{change:?}") };
    assert_eq!((old.usage(), new.usage()), (Some(usage(10)), None));
    table.measure(&id, sample(2, 9, usage(53)), false);
    assert_eq!(open_usage(&table), Some(usage(3)));
}

/// As when this host receives, and the source is who supplies the data.
#[test]
fn usage_is_as_the_source_counts_also_where_that_is_the_other_host() {
    let flow = |src: &str, dst: &str| {
        let [src, dst] = [src, dst].map(|end| end.parse().unwrap());
        let id = FlowId::new(Protocol::Tcp, src, dst).unwrap();
        FlowEvent { id, ..event(FlowState::Start, 7, 16) }
    };
    let mut table = table();
    let inward = flow("[2001:db8:77::1]:7", "[::1]:1094");
    // Until somebody measures nobody asks.
    table.apply(inward.clone(), API, Timestamp(5));
    assert!(!table.is_turned(&inward.id));
    table.apply(FlowEvent { state: FlowState::End, ..inward.clone() }, API, Timestamp(5));
    table.know_addresses();
    let outward = flow("[::1]:7", "[2001:db8:77::1]:1094");
    let within = flow("[::1]:7", "[::1]:1094");
    let elsewhere = flow("[2001:db8:77::1]:7", "[2001:db8:77::2]:1094");
    for (start, turned) in
        [(&inward, true), (&outward, false), (&within, false), (&elsewhere, false)]
    {
        table.apply(start.clone(), API, Timestamp(5));
        let socket = if turned { start.id.turned() } else { start.id };
        assert_eq!((table.is_turned(&start.id), table.socket_of(&start.id)), (turned, socket));
    }
    let id = inward.id;
    table.measure(&id, sample(1, 6, Usage { received: 900, sent: 7 }), false);
    let retag = FlowEvent { tag: Tag::new(2, 15).unwrap(), ..inward.clone() };
    let change = table.apply(retag, API, Timestamp(7));
    let Change::Retagged { old, .. } = change else { panic!("{change:?}") };
    assert_eq!(old.usage(), Some(Usage { sent: 900, received: 7 }));
    assert!(table.is_turned(&id));
    // What was carried before is known by the socket, whichever way the next flow runs.
    table.measure(&id, sample(1, 8, Usage { received: 950, sent: 8 }), false);
    let closed = table.apply(FlowEvent { state: FlowState::End, ..inward }, API, Timestamp(9));
    assert_eq!(closed_usage(closed), Some(Usage { sent: 50, received: 1 }));
    assert!(!table.is_turned(&id));
}
