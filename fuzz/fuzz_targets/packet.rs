//! A packet from the wire and a value that somebody typed: whatever they are, they say
//! tags that fit a label, and no more of them than there are headers.
#![no_main]

use glowd::net::ipv6::flow_of;
use glowd::scitag::{decode, integer, of_packet};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = flow_of(bytes);
    assert!(of_packet(bytes).len() <= bytes.len());
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for (_, tag) in decode(text).unwrap_or_default() {
        let again = decode(&integer(tag).to_string()).expect("its own integer");
        assert!(again.iter().any(|(_, same)| *same == tag), "{tag}");
    }
});
