//! How a connection ended, by what the kernel tells of its socket when that has gone. Pure.
//!
//! What has arrived is counted with the other side's FIN, if there was one, and the kernel says
//! no more how the socket was closed. Each way to close one leaves traces (RFC 9293 section
//! 3.3.2): what this side has had acknowledged besides data, what nobody has read, and what
//! there is in the socket's place. Not all can be told apart by them; what samples have seen
//! before corrects that ([`FlowInfo::complete`](crate::flow_info::FlowInfo::complete)).

use crate::net::sock_diag::{Socket, State};

/// The state in which that socket was closed; `place` has what there is in its place.
pub(super) fn closed_in(socket: &Socket<'_>, place: Option<State>) -> State {
    match place {
        // Who closes first leaves something behind, and that waits for the other side's FIN.
        Some(State::FIN_WAIT_2) => State::FIN_WAIT_2,
        // It came to that, or to the socket, and then nobody has read it. (Or somebody did, who
        // had closed half of it before: that is not known, and as rare as programs are that do.)
        Some(State::TIME_WAIT) if socket.unread == 0 => State::FIN_WAIT_1,
        Some(State::TIME_WAIT) => State::TIME_WAIT,
        _ if fin_is_acknowledged(socket, place == Some(State::LISTEN)) => State::LAST_ACK,
        // Broken off. The other side had closed, if it refuses what was sent then.
        _ if socket.unread == 1 && socket.unacknowledged > 0 => State::CLOSE_WAIT,
        _ => State::ESTABLISHED,
    }
}

/// Whether this side has closed the connection, and the other side knows. `came_in`: the
/// other side has opened it, for sure.
fn fin_is_acknowledged(socket: &Socket<'_>, came_in: bool) -> bool {
    let Some(info) = socket.tcp_info().filter(|_| socket.unacknowledged == 0) else {
        return false;
    };
    // Packets with data, the SYN of whoever opened it, and a FIN that did not go with data. What
    // was sent again is not taken off: it may have been cut in two, and then it counts twice.
    let packets = info.data_segs_out().unwrap_or(0).saturating_add(1);
    let fin_alone = info.delivered().unwrap_or(0) > packets;
    match info.acknowledged_control() {
        Some(0) => false,
        Some(1) => came_in || fin_alone,
        // Both, or it is not known, and what is in order is what happens.
        _ => true,
    }
}
