//! A datagram of the kernel's, as of a list of sockets: whatever it is, each socket of it
//! can be asked for all that it says, and fits in what arrived; and a firefly that says all of
//! it is one, and short.
#![no_main]

use std::sync::Arc;

use glowd::firefly::{decode, Encoder, Header, Mode, Stage, MAX_LEN};
use glowd::flow::{Flow, News, Protocol, Tag, Timestamp};
use glowd::flow_info::{FlowInfo, Kinds};
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
            tell(protocol, &socket);
            let Some(info) = socket.tcp_info() else { continue };
            assert!(protocol == Protocol::Tcp && info.0.len() <= bytes.len());
            let _ = (info.state(), info.window_scales(), info.rtt(), info.total_rto_time());
            assert_eq!(info.bytes_sent().is_some(), info.0.len() >= 208);
        }
        Ok(())
    });
    assert!(told <= bytes.len() / 36);
});

fn tell(protocol: Protocol, socket: &Socket<'_>) {
    let (message, attributes) = (socket.message(), socket.attributes());
    let now = Timestamp(1);
    let info = FlowInfo::new(now, socket.cookie, Kinds::new(255, true), message, attributes);
    // Of a socket that is none, it may still be said.
    let ends = ["[::1]:1", "[::2]:2"].map(|end| end.parse().unwrap());
    let id = socket.flow().or_else(|_| glowd::flow::FlowId::new(protocol, ends[0], ends[1]));
    let Ok(id) = id else { return };
    let flow = Flow {
        id,
        tag: Tag::new(1, 1).unwrap(),
        label: 0,
        start: now,
        is_undated: false,
        source: "fuzz",
        application: None,
        news: Some(Arc::new(News { heard: now, info: Some(Arc::new(info)), ..News::default() })),
        counted: None,
    };
    for mode in [Mode::Lean, Mode::Compatible, Mode::Full] {
        let mut encoder = Encoder::new(Some(b"host"));
        encoder.enrich(Some(mode));
        let mut written = Vec::new();
        encoder.encode(&flow, Stage::End(now), now, &mut written);
        assert!(written.len() <= MAX_LEN);
        assert_eq!(decode(&written, Header::Always).expect("our own").id, flow.id);
    }
}
