//! Those who measure flows, and what the dispatcher tells them. They know a flow by its socket on
//! this host, which is the end that the flow has here, whether that is its source or not.
//!
//! Owned by the dispatcher; only its thread touches it.

use std::sync::Arc;

use crate::flow::{FlowEvent, FlowId, Timestamp};
use crate::flow_info::LastLook;
use crate::flow_table::FlowTable;
use crate::inlet::Source;
use crate::queue::{Batch, Event, Outlet};

#[derive(Default)]
pub(crate) struct Watchers {
    /// Their queues: they get no samples.
    outlets: Vec<Outlet>,
    looks: Vec<LastLook>,
    /// What differs for them in the batch at hand, by place: the flow as its socket has it; none:
    /// they are not told, since another open flow has the socket too.
    differences: Vec<(usize, Option<FlowId>)>,
}

impl Watchers {
    pub(crate) fn add(&mut self, outlet: Outlet, last_look: Option<LastLook>) {
        self.outlets.push(outlet);
        self.looks.extend(last_look);
    }

    /// Has them look at a flow that the event is about to end, if it does.
    pub(crate) fn look_last(
        &mut self,
        table: &mut FlowTable,
        event: &FlowEvent,
        by: Source,
        now: Timestamp,
    ) {
        if self.looks.is_empty() || !table.would_end(event, by, now) {
            return;
        }
        let socket = table.socket_of(&event.id);
        for look in &mut self.looks {
            if let Some(info) = look(&socket) {
                table.measure_socket(&socket, info, false, |_| {});
            }
        }
    }

    /// Takes note of the start or end of a flow at `place` of the batch at hand, for which they
    /// are to look at `socket`, or not any more; none: nothing changes for them.
    pub(crate) fn note(&mut self, place: usize, id: &FlowId, socket: Option<FlowId>) {
        if socket != Some(*id) && !self.outlets.is_empty() {
            self.differences.push((place, socket));
        }
    }

    /// Takes note of the end of a flow at `place`: it changes nothing for them if another one
    /// in the other direction is open, which has the same socket.
    pub(crate) fn note_end(
        &mut self,
        place: usize,
        id: &FlowId,
        socket: FlowId,
        table: &FlowTable,
    ) {
        let other = id.turned();
        let is_shared = table.is_turned(&other) || (socket == other && table.contains(&other));
        self.note(place, id, (!is_shared).then_some(socket));
    }

    /// Hands out the batch at hand, with what was noted of it.
    pub(crate) fn hand_out(&mut self, batch: &Batch) {
        let mut differences = std::mem::take(&mut self.differences).into_iter().peekable();
        let batch = if differences.peek().is_none() {
            batch.clone()
        } else {
            let told = batch.iter().enumerate().filter_map(|(place, event)| {
                let mut event = event.clone();
                if let Some((_, socket)) = differences.next_if(|(other, _)| *other == place) {
                    let socket = socket?;
                    if let Event::Start(flow) | Event::End(flow, _) = &mut event {
                        flow.id = socket;
                    }
                }
                Some(event)
            });
            Arc::new(told.collect())
        };
        self.outlets.iter_mut().for_each(|outlet| outlet.send(batch.clone()));
    }
}
