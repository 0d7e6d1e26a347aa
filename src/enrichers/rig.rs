//! What tests of enrichers share: real connections, and a dispatcher between an enricher
//! and who reads its samples.

use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::Enricher;
use crate::dispatcher::{Dispatcher, Event, Inlet, Queue};
use crate::entropy::EntropyKey;
use crate::flow::{Flow, FlowEvent, FlowId, FlowState, Protocol, Tag};
use crate::part::Context;
use crate::shutdown::stop_token;

/// A short period.
pub(super) fn context() -> Context {
    Context { period: Duration::from_millis(100), ..Context::new(10_000) }
}

pub(super) fn event(state: FlowState, id: FlowId) -> FlowEvent {
    let tag = Tag::new(2, 16).unwrap();
    FlowEvent { state, id, tag, time: None, application: None, usage: None }
}

/// Both ends of a connection to `address`, and the flow of the first.
pub(super) fn connected(address: &str, target: &str) -> (TcpStream, TcpStream, FlowId) {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    let near = TcpStream::connect((target, port)).unwrap();
    let far = listener.accept().unwrap().0;
    let id = flow(&near);
    (near, far, id)
}

pub(super) fn flow(stream: &TcpStream) -> FlowId {
    let ends = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    FlowId::new(Protocol::Tcp, ends.0, ends.1).unwrap()
}

/// The flow of the other end.
pub(super) fn back(id: FlowId) -> FlowId {
    FlowId::new(Protocol::Tcp, id.dst(), id.src()).unwrap()
}

/// The enricher at work, and a backend's queue, while `talk` talks.
pub(super) fn measured(mut enricher: Box<dyn Enricher>, talk: impl FnOnce(&Inlet, &Queue)) {
    let (mut dispatcher, inlet) = Dispatcher::new(10_000, EntropyKey::of_this_boot());
    let queue = dispatcher.attach("test");
    let watch = dispatcher.watch("test", enricher.last_look().unwrap());
    let (stopper, stop) = stop_token().unwrap();
    let out = inlet.clone();
    let hub = thread::spawn(|| dispatcher.run());
    let worker = thread::spawn(|| enricher.run(watch, out, stop));
    talk(&inlet, &queue);
    drop(stopper);
    worker.join().unwrap().unwrap();
    drop(inlet);
    hub.join().unwrap();
}

/// Waits for a sample or end of the flow that the test likes. It takes whole batches, so
/// what is waited for next should not be in the same one.
pub(super) fn wait_for(
    queue: &Queue,
    id: FlowId,
    what: &str,
    is_it: impl FnMut(&Flow) -> bool,
) -> Flow {
    let [flow] = wait_for_each(queue, [id], what, is_it);
    flow
}

/// The same of several flows, in any order.
pub(super) fn wait_for_each<const N: usize>(
    queue: &Queue,
    ids: [FlowId; N],
    what: &str,
    mut is_it: impl FnMut(&Flow) -> bool,
) -> [Flow; N] {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut found = ids.map(|_| None);
    while found.iter().any(Option::is_none) {
        assert!(Instant::now() < deadline, "no {what}");
        for event in queue.recv().unwrap().iter() {
            let (kind, flow) = match event {
                Event::Sample(flow) => ("sample", flow),
                Event::End(flow, _) => ("end", flow),
                _ => continue,
            };
            let place = ids.iter().position(|id| kind == what && flow.id == *id && is_it(flow));
            if let Some(place) = place {
                found[place].get_or_insert_with(|| flow.clone());
            }
        }
    }
    found.map(Option::unwrap)
}
