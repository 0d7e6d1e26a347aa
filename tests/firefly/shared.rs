//! Usage of flows that share a connection, one after the other: it is of the flow.

use std::net::{TcpListener, UdpSocket};

use serde_json::{json, Value as Json};

use super::usage::{daemon_with, next, Stream};
use crate::common::{skip_unless_root, wait_for, Daemon};

/// Does it with each enricher that can run here, which measures often or never between the
/// start and the end of a flow.
fn with_each(mut check: impl FnMut(&mut Daemon, &UdpSocket, u64)) {
    for (enricher, period) in
        [("netlink", 3_600_000), ("netlink", 100), ("skops", 3_600_000), ("skops", 100)]
    {
        if enricher == "skops" && skip_unless_root() {
            continue;
        }
        let enrichers = json!({ "period": period, enricher: {} });
        let (mut daemon, sink) = daemon_with(json!({}), enrichers, json!({}));
        check(&mut daemon, &sink, period);
        daemon.stop(&[]);
    }
}

fn said(sink: &UdpSocket) -> (String, u64, Json) {
    let firefly = next(sink);
    let state = firefly["flow-lifecycle"]["state"].as_str().unwrap().to_owned();
    (state, firefly["context"]["activity-id"].as_u64().unwrap(), firefly["usage"].clone())
}

fn usage(there: usize, back: usize) -> Json {
    json!({ "sent": there, "received": back })
}

/// As of persistent connections, on which request follows request.
#[test]
fn each_flow_of_a_connection_has_what_it_carried_itself() {
    with_each(|daemon, sink, period| {
        for address in ["[::1]:0", "127.0.0.1:0"] {
            let mut stream = Stream::new(&TcpListener::bind(address).unwrap());
            let flow = stream.flow.clone();
            // The first was told of late, and loses nothing.
            stream.carry(50_000, 300);
            for (there, back) in [(50_000, 400), (10, 0), (0, 0), (0, 90_000), (70_000, 1)] {
                daemon.write(&format!("start {flow}\n"));
                assert_eq!(said(sink).0, "start");
                stream.carry(there, back);
                let is_first = back == 400;
                let expected = usage(
                    there + usize::from(is_first) * 50_000,
                    back + usize::from(is_first) * 300,
                );
                if period < 1000 {
                    let flows = || daemon.get("/flows").1["flows"][0]["usage"].clone();
                    wait_for("a sample", || (flows() == expected).then_some(()));
                }
                daemon.write(&format!("end {flow}\n"));
                assert_eq!(said(sink), ("end".into(), 16, expected), "{flow}");
            }
        }
    });
}

/// And the end that it causes is no less exact than any other.
#[test]
fn another_tag_begins_with_nothing_after_an_end_to_the_last_octet() {
    with_each(|daemon, sink, _| {
        let mut stream = Stream::new(&TcpListener::bind("[::1]:0").unwrap());
        let flow = stream.flow.strip_suffix("16").unwrap().to_owned();
        daemon.write(&format!("start {flow}16\n"));
        assert_eq!(said(sink).0, "start");
        for (activity, there, back) in [(15, 100_000, 5), (14, 0, 7), (16, 3, 0)] {
            stream.carry(there, back);
            daemon.write(&format!("start {flow}{activity}\n"));
            let (state, _, told) = said(sink);
            assert_eq!((&*state, told), ("end", usage(there, back)), "{activity}");
            assert_eq!(said(sink), ("start".into(), activity, Json::Null));
        }
        stream.carry(1, 2);
        daemon.write(&format!("end {flow}16\n"));
        assert_eq!(said(sink), ("end".into(), 16, usage(1, 2)));
    });
}

/// The octets of a socket that is gone are not told twice.
#[test]
fn another_tag_after_the_connection_has_carried_nothing() {
    with_each(|daemon, sink, period| {
        if period > 1000 {
            return;
        }
        let mut stream = Stream::new(&TcpListener::bind("[::1]:0").unwrap());
        let flow = stream.flow.strip_suffix("16").unwrap().to_owned();
        daemon.write(&format!("start {flow}16\n"));
        said(sink);
        stream.carry(6_000, 5);
        wait_for("a sample", || {
            let flows = daemon.get("/flows").1;
            (flows["flows"][0]["usage"] == usage(6_000, 5)).then_some(())
        });
        drop(stream);
        daemon.write(&format!("start {flow}15\nend {flow}15\n"));
        assert_eq!(said(sink), ("end".into(), 16, usage(6_000, 5)));
        assert_eq!(said(sink).0, "start");
        let (_, _, told) = said(sink);
        assert!(told.is_null() || told == usage(0, 0), "{told}");
    });
}
