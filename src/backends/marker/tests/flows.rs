//! The map of flows, as the dispatcher says.

use super::*;
use crate::backends::Backend;

/// Equal ports, and only the source address differs.
#[test]
fn defect_05_two_source_addresses_have_two_entries() {
    in_namespace(|| {
        let mut marker = marker(&[]).unwrap();
        let (one, two) = (flow("[2001:db8::1]:4000", 1), flow("[2001:db8::2]:4000", 2));
        let key = |flow: &Flow| tag::key(&flow.id).unwrap();
        marker.apply(&[start(&one), start(&two)]);
        assert_eq!(marker.flows.lookup(&key(&one)).unwrap(), tag::value(&one));
        assert_eq!(marker.flows.lookup(&key(&two)).unwrap(), tag::value(&two));
        marker.apply(&[end(&one)]);
        marker.flows.lookup(&key(&one)).unwrap_err();
        assert_eq!(marker.flows.lookup(&key(&two)).unwrap(), tag::value(&two));
    });
}

#[test]
fn defect_06_as_many_flows_as_are_allowed_are_all_there() {
    in_namespace(|| {
        const MAX: u16 = 60_000;
        let mut marker = Marker::new(&section(&[]), &Context::new(MAX.into())).unwrap();
        let flows: Vec<Flow> =
            (1..=MAX).map(|port| flow(&format!("[2001:db8::1]:{port}"), 1)).collect();
        let batch: Vec<Event> = flows.iter().map(start).collect();
        marker.apply(&batch);
        assert_eq!(marker.flows.count().unwrap(), usize::from(MAX));
        let batch: Vec<Event> = flows.iter().map(end).collect();
        marker.apply(&batch);
        assert_eq!((marker.flows.count().unwrap(), marker.entries.get()), (0, 0));
    });
}

#[test]
fn the_map_follows_the_events() {
    in_namespace(|| {
        let mut marker = marker(&[("matchAll", Value::Bool(true))]).unwrap();
        let last = |marker: &Marker| marker.rules.last();
        let (one, two) = (flow("[2001:db8::1]:1", 1), flow("[2001:db8::1]:2", 2));
        assert_eq!(last(&marker), None);
        marker.apply(&[start(&one), start(&two), Event::Report]);
        assert_eq!(last(&marker), Some(two.tag));
        // A new tag of an open flow.
        let anew = flow("[2001:db8::1]:1", 3);
        marker.apply(&[end(&one), start(&anew)]);
        assert_eq!((marker.flows.count().unwrap(), marker.entries.get()), (2, 2));
        assert_eq!(marker.flows.lookup(&tag::key(&one.id).unwrap()).unwrap(), tag::value(&anew));
        assert_eq!(last(&marker), Some(anew.tag));
        marker.apply(&[end(&anew)]);
        assert_eq!(last(&marker), Some(two.tag));
        // An entry that somebody else has removed costs a warning.
        marker.flows.delete(&tag::key(&two.id).unwrap()).unwrap();
        marker.apply(&[end(&two)]);
        assert_eq!(last(&marker), None);
        // IPv4 has nothing to carry a label.
        let id = (Protocol::Udp, "10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let ipv4 = Flow { id: FlowId::new(id.0, id.1, id.2).unwrap(), ..one };
        marker.apply(&[start(&ipv4)]);
        assert_eq!(marker.flows.count().unwrap(), 0);
        marker.apply(&[end(&ipv4)]);
    });
}

/// Ethernet, IPv6 and TCP of nobody's.
fn frame() -> Vec<u8> {
    let mut frame = vec![0; 14 + 40 + 20];
    frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    (frame[19], frame[20]) = (20, 6);
    frame
}

/// Three sets of rules that follow each other in two tables; whoever sees parts of two of
/// them meets a tag that none of them gives.
#[test]
fn a_packet_sees_the_rules_before_a_change_or_after_it() {
    use crate::sys::abi::{Rule, MAX_RULES, RULE_OTHER, RULE_TCP};
    in_namespace(|| {
        let rule = |activity, classes| {
            let tag = Tag::new(2, activity).unwrap();
            let (label, activity) = (tag.label(0), tag.activity());
            let (local_last, remote_last) = (u16::MAX, u16::MAX);
            Rule {
                label,
                activity,
                classes,
                experiment: 2,
                local_last,
                remote_last,
                ..Rule::default()
            }
        };
        let set = |place: usize, activity| {
            let mut rules = vec![rule(63, RULE_OTHER); place];
            rules.push(rule(activity, RULE_TCP));
            rules.resize(MAX_RULES, rule(63, RULE_TCP));
            rules
        };
        let sets = [set(0, 1), set(MAX_RULES - 1, 2), set(MAX_RULES / 2, 3)];
        let frame = frame();
        let mut marker = marker(&[]).unwrap();
        let Marker { follower, rules, .. } = &mut marker;
        let program = follower.as_ref().unwrap().programs().object().program("marker_eth").unwrap();
        rules.set(&sets[0]).unwrap();
        // No packet meets it: each set has a rule for all of TCP.
        rules.set_last(Tag::new(2, 62).ok()).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut seen = [0; 64];
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let out = program.test_run(&frame, None, 1).unwrap().packet;
                    let label = u32::from_be_bytes(out[14..18].try_into().unwrap()) & 0xf_ffff;
                    seen[Tag::from_label(label).map_or(0, |tag| usize::from(tag.activity()))] += 1;
                }
                seen
            });
            for round in 1..2000 {
                rules.set(&sets[round % 3]).unwrap();
            }
            // Such that halves of two have none.
            let short = [vec![rule(1, RULE_TCP)], set(MAX_RULES - 1, 2), set(2, 3)[..3].to_vec()];
            for round in 1..10_000 {
                rules.set(&short[round % 3]).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            watcher.join().unwrap()
        });
        assert!(seen[1] > 0 && seen[2] > 0 && seen[3] > 0, "{seen:?}");
        assert_eq!(seen.iter().sum::<u32>() - seen[0], seen[1] + seen[2] + seen[3], "{seen:?}");
    });
}

/// Without a reload.
#[test]
fn rules_mean_what_the_registry_says_now() {
    use crate::registry::{Names, Unknown};
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registry.json");
        let publish = |name: &str, id: u64| {
            let one = format!(r#"{{"expName": "{name}", "expId": {id}, "activities": []}}"#);
            std::fs::write(&file, format!(r#"{{"experiments": [{one}]}}"#)).unwrap();
        };
        publish("some", 7);
        let names = Names::open(file.to_str().unwrap(), "", Unknown::Accept).unwrap();
        let context = Context { names: names.into(), ..Context::new(1000) };
        let config =
            r#"{"backends": {"marker": {"rules": [{"experiment": "some", "activity": 1}]}}}"#;
        let config = crate::config::Config::parse(config, "test").unwrap();
        let mut marker = Marker::new(&config.backends[0].1, &context).unwrap();
        let mut carried = || {
            marker.look_up_names();
            let programs = marker.follower.as_ref().unwrap().programs();
            let program = programs.object().program("marker_eth").unwrap();
            let out = program.test_run(&frame(), None, 1).unwrap().packet;
            let label = u32::from_be_bytes(out[14..18].try_into().unwrap()) & 0xf_ffff;
            Tag::from_label(label).map(|tag| tag.experiment())
        };
        assert_eq!(carried(), Some(7));
        publish("some", 77);
        let deadline = Instant::now() + Duration::from_secs(60);
        while carried() != Some(77) {
            assert!(Instant::now() < deadline, "it stays {:?}", carried());
            std::thread::sleep(Duration::from_millis(20));
        }
        // A name that is gone changes nothing.
        publish("another", 377);
        while context.names.get().experiment_name(377).is_none() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(carried(), Some(77));
    });
}

#[test]
fn the_tag_of_everything_comes_before_that_of_the_newest_flow() {
    in_namespace(|| {
        let mut marker = marker(&[("matchAll", Value::Bool(true))]).unwrap();
        let one = flow("[2001:db8::1]:1", 1);
        let tag = Tag::new(1, 2).unwrap();
        marker.apply(&[start(&one), Event::Everything(Some(tag))]);
        assert_eq!(marker.rules.last(), Some(tag));
        marker.apply(&[end(&one), start(&one)]);
        assert_eq!(marker.rules.last(), Some(tag));
        marker.apply(&[Event::Everything(None)]);
        assert_eq!(marker.rules.last(), Some(one.tag));
        marker.apply(&[end(&one)]);
        assert_eq!(marker.rules.last(), None);
    });
}

#[test]
fn flows_for_which_there_is_no_counter_are_counted() {
    in_namespace(|| {
        let mut marker = Marker::new(&section(&[]), &Context::new(2)).unwrap();
        let lacking = marker.meter.as_ref().unwrap().lacking();
        let mut meter = Backend::meter(&mut marker).unwrap();
        let slots = [meter.open(), meter.open(), meter.open()];
        assert!(slots[0].is_some() && slots[1].is_some() && slots[0] != slots[1]);
        assert_eq!((slots[2], lacking.get()), (None, 1));
        meter.close(slots[0].unwrap());
        assert_eq!((meter.open(), meter.open(), lacking.get()), (slots[0], None, 2));
    });
}
