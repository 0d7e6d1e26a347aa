//! The map of flows, as the dispatcher says.

use super::*;

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
        assert_eq!((marker.flows.count().unwrap(), marker.entries), (0, 0));
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
        assert_eq!((marker.flows.count().unwrap(), marker.entries), (2, 2));
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
