//! A datagram of the kernel's, as of a list of sockets: whatever it is, each socket of it
//! can be asked for all that it says, and fits in what arrived.
#![no_main]

use glowd::flow::Protocol;
use glowd::net::netlink::{each_message, u32_at};
use glowd::net::sock_diag::Socket;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The number that the reader expects.
    let Some(sequence) = u32_at(bytes, 8) else { return };
    let mut told = 0;
    let _ = each_message(bytes, sequence, |_, _, message| {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let Some(socket) = Socket::decode(protocol, &message[16..]) else { continue };
            told += 1;
            let _ = (socket.state.to_string(), socket.flow(), socket.only_ipv6(), socket.cgroup());
            let name = socket.congestion().unwrap_or_default();
            assert!(name.len() <= bytes.len() && !name.contains('\0'));
            let Some(info) = socket.tcp_info() else { continue };
            assert!(protocol == Protocol::Tcp && info.0.len() <= bytes.len());
            let _ = (info.state(), info.window_scales(), info.rtt(), info.total_rto_time());
            assert_eq!(info.bytes_sent().is_some(), info.0.len() >= 208);
        }
        Ok(())
    });
    assert!(told <= bytes.len() / 36);
});
