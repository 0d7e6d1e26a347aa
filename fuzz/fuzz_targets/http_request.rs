//! HTTP requests: whatever the bytes are and wherever they are split, they are cut
//! into the same requests, and no limit is exceeded.

#![no_main]

use glowd::net::http::{Decoder, Head, MAX_HEAD};
use libfuzzer_sys::fuzz_target;

const MAX_BODY: usize = 1000;

/// The requests, and the status with which the rest was refused.
fn decode(pieces: &[&[u8]]) -> (Vec<(Head, Vec<u8>)>, Option<u16>) {
    let mut decoder = Decoder::new(MAX_BODY);
    let (mut pending, mut requests) = (Vec::new(), Vec::new());
    for piece in pieces {
        pending.extend_from_slice(piece);
        let mut rest = &pending[..];
        loop {
            match decoder.decode(&mut rest) {
                Ok(Some(request)) => {
                    assert!(request.body.len() <= MAX_BODY);
                    requests.push((request.head, request.body.into_owned()));
                }
                Ok(None) => break,
                Err(bad) => return (requests, Some(bad.status)),
            }
        }
        assert!(rest.len() < MAX_HEAD.max(MAX_BODY));
        assert!(decoder.memory() <= 2 * MAX_BODY);
        let used = pending.len() - rest.len();
        pending.drain(..used);
    }
    (requests, None)
}

fuzz_target!(|input: (u16, &[u8])| {
    let (at, bytes) = input;
    let at = usize::from(at) % (bytes.len() + 1);
    let whole = decode(&[bytes]);
    assert_eq!(decode(&[&bytes[..at], &bytes[at..]]), whole);
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(decode(&single), whole);
});
