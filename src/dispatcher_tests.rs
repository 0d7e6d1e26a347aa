//! The dispatcher on its thread, with a plugin's and a backend's end.

use super::*;
use crate::config::Section;
use crate::flow::{Protocol, Tag};
use crate::systemd::Notifier;
use std::os::unix::net::UnixDatagram;
use std::thread;

fn event(state: FlowState, port: u16) -> FlowEvent {
    let src = std::net::SocketAddr::new("2001:db8::1".parse().unwrap(), port);
    let id = FlowId::new(Protocol::Tcp, src, "[2001:db8::2]:1094".parse().unwrap()).unwrap();
    let tag = Tag::new(2, 16).unwrap();
    FlowEvent { state, id, tag, time: None, application: None, usage: None }
}
use FlowState::{End, Start};

/// Runs a dispatcher with room for `room` flows while `talk` talks to it, and
/// returns what a backend was told, as state and source port.
fn with_dispatcher(room: u32, talk: impl FnOnce(&Inlet)) -> Vec<(FlowState, u16)> {
    let (mut dispatcher, inlet) = Dispatcher::new(room, EntropyKey::of_this_boot());
    let queue = dispatcher.attach("test");
    let thread = thread::spawn(|| dispatcher.run());
    talk(&inlet);
    drop(inlet);
    thread.join().unwrap();
    let mut told = Vec::new();
    while let Some(batch) = queue.recv() {
        told.extend(batch.iter().filter_map(|event| match event {
            Event::Start(flow) => Some((Start, flow.id.src().port())),
            Event::End(flow, _) => Some((End, flow.id.src().port())),
            Event::Everything(_) | Event::Sample(_) | Event::Ongoing(..) => None,
            Event::Report | Event::Reload(_) => None,
        }));
    }
    assert_eq!(queue.depth(), 0);
    told
}

#[test]
fn a_full_table_refuses_exactly_what_does_not_fit() {
    let told = with_dispatcher(2, |inlet| {
        inlet.send_all(vec![event(Start, 1)]).unwrap();
        let all = inlet.send_all(vec![event(Start, 2), event(Start, 3)]);
        assert_eq!(all, Err(Refused::Full { events: 2, limit: 2 }), "all or nothing");
        let each = inlet.send_each(vec![event(Start, 2), event(Start, 3)]);
        assert_eq!(each, Err(Refused::Full { events: 1, limit: 2 }), "each for itself");
        inlet.send_all(vec![event(Start, 1)]).expect("a repeated start needs no room");
        inlet.send_all(vec![event(End, 1), event(Start, 4)]).expect("room was made");
        inlet.send_each(vec![event(End, 2), event(Start, 5)]).expect("room was made");
        assert_eq!((inlet.flows().unwrap().len(), inlet.count()), (2, Ok(2)));
    });
    assert_eq!(told, [(Start, 1), (Start, 2), (End, 1), (Start, 4), (End, 2), (Start, 5)]);
}

#[test]
fn room_is_given_back() {
    with_dispatcher(3, |inlet| {
        for _ in 0..1000 {
            let pair = vec![event(Start, 1), event(Start, 1), event(End, 1), event(End, 1)];
            inlet.send_each(pair).unwrap();
        }
        inlet.send_all((1..=3).map(|port| event(Start, port)).collect()).unwrap();
        assert_eq!(inlet.flows().unwrap().len(), 3);
        inlet.send_all(vec![event(Start, 4)]).unwrap_err();
    });
}

/// A start and its end in any number of batches leave nothing, in order.
#[test]
fn order_is_kept() {
    let told = with_dispatcher(10, |inlet| {
        for port in 1..=5000 {
            inlet.send_each(vec![event(Start, port)]).unwrap();
            inlet.send_each(vec![event(End, port)]).unwrap();
        }
        assert_eq!(inlet.flows().unwrap(), []);
    });
    let expected = (1..=5000).flat_map(|port| [(Start, port), (End, port)]);
    assert!(told.into_iter().eq(expected));
}

/// A limit that is lowered leaves the open flows alone, and lets none in until
/// there is room; whoever asks, in whatever way.
#[test]
fn a_limit_that_is_lowered_refuses_new_flows_only() {
    let limit = |inlet: &Inlet, max_flows| {
        inlet.reload(Reload { max_flows, ..Reload::default() }).unwrap();
    };
    let told = with_dispatcher(5, |inlet| {
        inlet.send_all((1..=5).map(|port| event(Start, port)).collect()).unwrap();
        limit(inlet, 2);
        let full = |events| Err(Refused::Full { events, limit: 2 });
        assert_eq!(inlet.send_all(vec![event(Start, 6)]), full(1));
        assert_eq!(inlet.send_each(vec![event(Start, 6), event(Start, 7)]), full(2));
        inlet.send_all(vec![event(Start, 1)]).expect("a repeated start needs no room");
        assert_eq!(inlet.send_all(vec![event(End, 5), event(Start, 6)]), full(2));
        assert_eq!(inlet.send_each(vec![event(End, 5), event(Start, 6)]), full(1));
        inlet.send_all(vec![event(End, 4)]).expect("an end needs no room");
        let swap = vec![event(End, 3), event(End, 2), event(Start, 8)];
        inlet.send_all(swap).expect("there is room for one again");
        assert_eq!(inlet.count(), Ok(2));
        limit(inlet, 3);
        inlet.send_each(vec![event(Start, 9)]).expect("there is more room");
        assert_eq!(
            inlet.send_each(vec![event(Start, 10)]),
            Err(Refused::Full { events: 1, limit: 3 })
        );
    });
    let started = (1..=5).map(|port| (Start, port));
    let rest = [(End, 5), (End, 4), (End, 3), (End, 2), (Start, 8), (Start, 9)];
    assert!(told.iter().copied().eq(started.chain(rest)), "{told:?}");
}

#[test]
fn a_section_reaches_its_backend_only_and_in_order() {
    let (mut dispatcher, inlet) = Dispatcher::new(10, EntropyKey::of_this_boot());
    let queues = ["one", "other"].map(|name| dispatcher.attach(name));
    let thread = thread::spawn(|| dispatcher.run());
    inlet.send_all(vec![event(Start, 1)]).unwrap();
    let section = Arc::new(Section::new("backends.one", vec![]));
    let sections = vec![("one", section.clone()), ("nobody", section)];
    inlet.reload(Reload { max_flows: 10, sections, ..Reload::default() }).unwrap();
    inlet.send_all(vec![event(End, 1)]).unwrap();
    drop(inlet);
    thread.join().unwrap();
    let told = queues.map(|queue| {
        let batches: Vec<_> = std::iter::from_fn(|| queue.recv()).collect();
        assert_eq!(queue.depth(), 0);
        let word = |event: &Event| match event {
            Event::Start(_) => "start",
            Event::End(..) => "end",
            Event::Everything(_) => "everything",
            Event::Report => "report",
            Event::Reload(_) => "reload",
            Event::Sample(_) => "sample",
            Event::Ongoing(..) => "ongoing",
        };
        batches.iter().flat_map(|batch| batch.iter()).map(word).collect::<Vec<_>>()
    });
    assert_eq!(told, [vec!["start", "reload", "end"], vec!["start", "end"]]);
}

/// The sign of life comes from the thread that does the work: a dispatcher that
/// does not run, or is stuck, gives none.
#[test]
fn a_dispatcher_that_is_stuck_gives_no_sign_of_life() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let told = || {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let wait_for_beat = || {
        let deadline = Instant::now() + Duration::from_secs(60);
        while told().is_none_or(|told| told != "WATCHDOG=1") {
            assert!(Instant::now() < deadline, "no sign of life");
            thread::yield_now();
        }
    };
    // Many periods, in which a sign would have come from anybody else.
    let period = Duration::from_millis(2);
    let many = period * 100;

    let (mut dispatcher, inlet) = Dispatcher::new(10, EntropyKey::of_this_boot());
    let notifier = Notifier::to(path.as_os_str(), Some(period)).unwrap();
    dispatcher.set_pulse(Pulse::new(notifier));
    thread::sleep(many);
    assert_eq!(told(), None, "it does not run");
    let thread = thread::spawn(|| dispatcher.run());
    (0..3).for_each(|_| wait_for_beat());

    // Taken only when the dispatcher has got there.
    let release = inlet.wedge();
    release.send(()).unwrap();
    while told().is_some() {}
    inlet.malformed(1);
    thread::sleep(many);
    assert_eq!(told(), None, "it is stuck");

    drop(release);
    (0..3).for_each(|_| wait_for_beat());
    inlet.ready().unwrap();
    // Beats may have filled the socket by now: it is told again when there is room.
    let deadline = Instant::now() + Duration::from_secs(60);
    let ready = loop {
        assert!(Instant::now() < deadline, "not ready");
        match told() {
            Some(told) if told != "WATCHDOG=1" => break told,
            _ => thread::yield_now(),
        }
    };
    assert_eq!(ready, "READY=1\nSTATUS=0 flows open, 0 events, 1 errors");
    drop(inlet);
    thread.join().unwrap();
}

/// A datagram is lost easily, also that of an end.
#[test]
fn a_flow_of_which_nothing_is_heard_ends() {
    let (mut dispatcher, inlet) = Dispatcher::new(10, EntropyKey::of_this_boot());
    dispatcher.set_idle_timeout(Some(Duration::from_millis(20)));
    let queue = dispatcher.attach("test");
    let thread = thread::spawn(|| dispatcher.run());
    inlet.send_all(vec![event(Start, 1)]).unwrap();
    let heard = inlet.for_what_is_heard();
    heard.send_all(vec![event(Start, 2)]).unwrap();
    let mut told = Vec::new();
    while told.len() < 3 {
        told.extend(queue.recv().unwrap().iter().map(|event| match event {
            Event::Start(flow) => (Start, flow.id.src().port()),
            Event::End(flow, _) => (End, flow.id.src().port()),
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(told, [(Start, 1), (Start, 2), (End, 2)], "what was told stays");
    // Its place in the flow table is free again.
    inlet.send_all((3..12).map(|port| event(Start, port)).collect()).unwrap();
    assert!(inlet.send_all(vec![event(Start, 12)]).is_err());
    drop((inlet, heard));
    thread.join().unwrap();
}

/// However busy the dispatcher is.
#[test]
fn a_scrape_does_not_wait_for_the_dispatcher() {
    let (mut dispatcher, inlet) = Dispatcher::new(10, EntropyKey::of_this_boot());
    let metrics = Arc::<Metrics>::default();
    dispatcher.measure_by(metrics.clone(), vec!["api"]);
    let queue = dispatcher.attach("marker");
    let hub = std::thread::spawn(|| dispatcher.run());
    inlet.for_source("api").malformed(3);
    inlet.count().unwrap();
    let release = inlet.wedge();
    let (mut writer, mut out) = (crate::metrics::Writer::default(), Vec::new());
    metrics.write(&mut writer);
    writer.finish(crate::metrics::Format::Text, &mut out);
    let text = String::from_utf8(out).unwrap();
    for line in [
        "glowd_flows_open 0",
        "glowd_flows_limit 10",
        "glowd_events_total{plugin=\"api\",result=\"malformed\"} 3",
        "glowd_queue_events{backend=\"marker\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    drop((release, inlet, queue));
    hub.join().unwrap();
}

/// A sample as sock_diag would give it, of a connection that has sent so many octets.
fn sample(cookie: u64, sent: u64) -> crate::flow_info::FlowInfo {
    let mut info = vec![0; 248];
    info[0] = 1;
    info[200..208].copy_from_slice(&sent.to_ne_bytes());
    let head = [252_u16.to_ne_bytes(), 2_u16.to_ne_bytes()].concat();
    let attribute = [head, info].concat();
    let attributes = crate::net::attributes::Attributes(&attribute);
    let kinds = crate::flow_info::Kinds::new(u8::MAX, false);
    crate::flow_info::FlowInfo::new(Timestamp(sent), cookie, kinds, &[], attributes)
}

#[test]
fn samples_belong_to_open_flows_and_the_last_one_goes_with_the_end() {
    let (mut dispatcher, inlet) = Dispatcher::new(5, EntropyKey::of_this_boot());
    let backend = dispatcher.attach("test");
    // Nobody but the first has a socket when it ends.
    let look: LastLook = Box::new(|id| (id.src().port() == 1).then(|| sample(7, 30)));
    let watch = dispatcher.watch("test", Some(look));
    let thread = thread::spawn(|| dispatcher.run());
    let id = |port| event(Start, port).id;
    inlet.send_all((1..=3).map(|port| event(Start, port)).collect()).unwrap();
    assert!(inlet.samples(vec![
        (id(1), sample(7, 10)),
        (id(2), sample(8, 20)),
        (id(9), sample(9, 1))
    ]));
    // Another socket with the same ports is not the flow's.
    assert!(inlet.samples(vec![(id(2), sample(88, 5)), (id(2), sample(8, 25))]));
    inlet.send_all((1..=3).map(|port| event(End, port)).collect()).unwrap();
    drop(inlet);
    thread.join().unwrap();

    let told = std::iter::from_fn(|| backend.recv()).flat_map(|batch| batch.to_vec());
    let sent = |flow: &Flow| flow.usage().map(|usage| usage.sent);
    let told: Vec<_> = told
        .filter_map(|event| match event {
            Event::Sample(flow) => Some(("sample", flow.id.src().port(), sent(&flow))),
            Event::End(flow, _) => Some(("end", flow.id.src().port(), sent(&flow))),
            _ => None,
        })
        .collect();
    assert_eq!(
        told,
        [
            ("sample", 1, Some(10)),
            ("sample", 2, Some(20)),
            ("sample", 2, Some(25)),
            ("end", 1, Some(30)),
            ("end", 2, Some(25)),
            ("end", 3, None),
        ]
    );
    let watched = std::iter::from_fn(|| watch.recv()).flat_map(|batch| batch.to_vec());
    assert!(watched.into_iter().all(|event| !matches!(event, Event::Sample(_))));
}

#[test]
fn what_a_sender_counts_comes_before_what_is_measured() {
    let (mut dispatcher, inlet) = Dispatcher::new(5, EntropyKey::of_this_boot());
    let backend = dispatcher.attach("test");
    let thread = thread::spawn(|| dispatcher.run());
    inlet.send_all(vec![event(Start, 1)]).unwrap();
    assert!(inlet.samples(vec![(event(Start, 1).id, sample(7, 10))]));
    let usage = Some(Box::new(Usage { received: 1, sent: 2 }));
    inlet.send_all(vec![FlowEvent { usage, ..event(End, 1) }]).unwrap();
    drop(inlet);
    thread.join().unwrap();
    let told = std::iter::from_fn(|| backend.recv()).flat_map(|batch| batch.to_vec());
    let Some(Event::End(flow, _)) = told.last() else { panic!("no end") };
    assert_eq!(flow.usage(), Some(Usage { received: 1, sent: 2 }));
    assert!(flow.info().is_some());
}

#[test]
fn samples_are_the_first_to_go_when_a_backend_is_behind() {
    let (mut dispatcher, inlet) = Dispatcher::new(5, EntropyKey::of_this_boot());
    let backend = dispatcher.attach("test");
    let thread = thread::spawn(|| dispatcher.run());
    inlet.send_all(vec![event(Start, 1)]).unwrap();
    let id = event(Start, 1).id;
    for sent in 0..1000 {
        let samples = (0..200).map(|_| (id, sample(7, sent))).collect::<Vec<_>>();
        // Which waits for nobody, so this does.
        while !inlet.samples(samples.clone()) {
            inlet.count().unwrap();
        }
    }
    inlet.send_all(vec![event(End, 1)]).unwrap();
    drop(inlet);
    thread.join().unwrap();
    let told: Vec<_> = std::iter::from_fn(|| backend.recv()).collect();
    let samples: usize = told.iter().map(|batch| batch.len()).sum::<usize>() - 2;
    assert!((100_000..=100_200).contains(&samples), "{samples}");
    let Some(Event::End(flow, _)) = told.last().and_then(|batch| batch.last()) else {
        panic!("no end");
    };
    assert_eq!(flow.usage().map(|usage| usage.sent), Some(999), "the table has them all");
}

/// Who measures is told of sockets, and so knows nothing of the flow's direction.
#[test]
fn a_flow_from_elsewhere_is_measured_by_its_socket_here() {
    let flow = |state, src: &str, dst: &str| {
        let [src, dst] = [src, dst].map(|end| end.parse().unwrap());
        FlowEvent { id: FlowId::new(Protocol::Tcp, src, dst).unwrap(), ..event(state, 1) }
    };
    let (here, there) = ("[::1]:1094", "[2001:db8:77::1]:7");
    let socket = flow(Start, here, there).id;
    let (mut dispatcher, inlet) = Dispatcher::new(5, EntropyKey::of_this_boot());
    let backend = dispatcher.attach("test");
    let look: LastLook = Box::new(move |id| (*id == socket).then(|| sample(7, 30)));
    let watch = dispatcher.watch("test", Some(look));
    let thread = thread::spawn(|| dispatcher.run());
    let inward = |state| flow(state, there, here);
    let outward = |state| flow(state, here, there);
    inlet.send_all(vec![event(Start, 2), inward(Start), event(End, 2)]).unwrap();
    assert!(inlet.samples(vec![(socket, sample(7, 10)), (inward(Start).id, sample(7, 99))]));
    // One socket, two flows.
    inlet.send_all(vec![outward(Start)]).unwrap();
    assert!(inlet.samples(vec![(socket, sample(7, 20))]));
    let tag = Tag::new(2, 15).unwrap();
    inlet.send_all(vec![FlowEvent { tag, ..inward(Start) }]).unwrap();
    inlet.send_all(vec![inward(End)]).unwrap();
    inlet.send_all(vec![inward(Start), outward(End), inward(End)]).unwrap();
    drop(inlet);
    thread.join().unwrap();

    let told = |queue: Queue| {
        let told = std::iter::from_fn(move || queue.recv()).flat_map(|batch| batch.to_vec());
        told.filter_map(|event| match event {
            Event::Start(flow) => Some(("start", flow.id, None)),
            Event::Sample(flow) => Some(("sample", flow.id, flow.usage())),
            Event::End(flow, _) => Some(("end", flow.id, flow.usage())),
            _ => None,
        })
        .filter(|(_, id, _)| *id != event(Start, 2).id)
        .collect::<Vec<_>>()
    };
    let usage = |sent| Some(sample(7, sent).usage().unwrap());
    let turned = |sent| usage(sent).map(Usage::turned);
    let (inward, outward) = (inward(Start).id, outward(Start).id);
    assert_eq!(
        told(backend),
        [
            ("start", inward, None),
            ("sample", inward, turned(10)),
            ("start", outward, None),
            ("sample", inward, turned(20)),
            ("sample", outward, usage(20)),
            ("end", inward, turned(30)),
            ("start", inward, None),
            ("end", inward, turned(0)),
            ("start", inward, None),
            ("end", outward, usage(30)),
            ("end", inward, turned(0)),
        ]
    );
    let watched: Vec<_> = told(watch).into_iter().map(|(what, id, _)| (what, id)).collect();
    assert!(watched.iter().all(|(_, id)| *id == socket));
    // Until the last flow that has it is over.
    let words: Vec<_> = watched.iter().map(|(what, _)| *what).collect();
    assert_eq!(words, ["start", "start", "end", "start", "start", "end"]);
}

/// Without any sample of them, and only where it is asked for.
#[test]
fn open_flows_are_told_of_as_going_on_until_they_end() {
    let (mut dispatcher, inlet) = Dispatcher::new(10, EntropyKey::of_this_boot());
    dispatcher.set_ongoing_period(Some(Duration::from_millis(20)));
    let (wanted, unwanted) = (dispatcher.attach("wanted"), dispatcher.attach("unwanted"));
    wanted.want_ongoing();
    let thread = thread::spawn(|| dispatcher.run());
    inlet.send_all(vec![event(Start, 1), event(Start, 2)]).unwrap();
    let mut told = [Vec::new(), Vec::new()];
    while told.iter().any(|times| times.len() < 3) {
        for event in wanted.recv().unwrap().iter() {
            let Event::Ongoing(flow, at) = event else { continue };
            let port = flow.id.src().port();
            told[usize::from(port) - 1].push((at.0 - flow.start.0) / 20_000);
        }
    }
    for periods in &told {
        assert!(periods[0] >= 1 && periods.windows(2).all(|two| two[0] < two[1]), "{told:?}");
    }
    // One that is over is not told of any more, and nobody is after a reload that says so.
    inlet.send_all(vec![event(End, 1)]).unwrap();
    inlet.reload(Reload { max_flows: 10, ..Reload::default() }).unwrap();
    inlet.send_all(vec![event(End, 2)]).unwrap();
    drop(inlet);
    thread.join().unwrap();
    let mut over = Vec::new();
    for event in std::iter::from_fn(|| wanted.recv()).flat_map(|batch| batch.to_vec()) {
        match event {
            Event::End(flow, _) => over.push(flow.id),
            Event::Ongoing(flow, _) => assert!(!over.contains(&flow.id)),
            _ => {}
        }
    }
    assert_eq!(over, [1, 2].map(|port| event(End, port).id));
    let unwanted: Vec<_> = std::iter::from_fn(|| unwanted.recv()).collect();
    assert_eq!(unwanted.iter().map(|batch| batch.len()).sum::<usize>(), 4);
}

/// As a scrape has it while the dispatcher is stuck.
#[test]
fn what_waits_for_dispatcher_and_enrichers_is_measured() {
    let metrics = Arc::new(Metrics::default());
    let (mut dispatcher, inlet) = Dispatcher::new(10, EntropyKey::of_this_boot());
    dispatcher.measure_by(metrics.clone(), Vec::new());
    let watch = dispatcher.watch("netlink", None);
    let text = || {
        let (mut writer, mut out) = (crate::metrics::Writer::default(), Vec::new());
        metrics.write(&mut writer);
        writer.finish(crate::metrics::Format::Text, &mut out);
        String::from_utf8(out).unwrap()
    };
    let shows = |line: &str| text().lines().any(|found| found == line);
    assert!(shows("glowd_inbox_batches 0") && shows("glowd_inbox_batches_limit 64"));
    let thread = thread::spawn(|| dispatcher.run());
    let release = inlet.wedge();
    inlet.send_all(vec![event(Start, 1), event(Start, 2)]).unwrap();
    assert!(inlet.samples(Vec::new()));
    let deadline = Instant::now() + Duration::from_secs(60);
    while !shows("glowd_inbox_batches 2") {
        assert!(Instant::now() < deadline, "{}", text());
        thread::yield_now();
    }
    // What finds no room does not wait.
    while inlet.samples(Vec::new()) {}
    assert!(shows("glowd_inbox_batches 64"), "{}", text());
    drop(release);
    drop(inlet);
    thread.join().unwrap();
    assert!(shows("glowd_inbox_batches 0"), "{}", text());
    assert!(shows("glowd_enricher_queue_events{enricher=\"netlink\"} 2"), "{}", text());
    watch.recv().unwrap();
    assert!(shows("glowd_enricher_queue_events{enricher=\"netlink\"} 0"), "{}", text());
}
