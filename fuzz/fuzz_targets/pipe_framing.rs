//! The framing of the named pipe: any split of the same bytes gives the same
//! pieces, and so the same events.
#![no_main]

use glowd::plugins::named_pipe::framing::{Framing, Piece, LIMIT};
use libfuzzer_sys::fuzz_target;

/// The pieces of `parts`: whether each was too long, and its bytes.
fn pieces<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<(bool, Vec<u8>)> {
    let mut pieces = Vec::new();
    let mut take = |piece: Piece<'_>| {
        let (long, bytes) = match piece {
            Piece::Line(bytes) => (false, bytes),
            Piece::TooLong(bytes) => (true, bytes),
        };
        assert!(bytes.len() <= LIMIT && !bytes.contains(&b'\n'));
        pieces.push((long, bytes.to_vec()));
    };
    let mut framing = Framing::new();
    for part in parts {
        framing.feed(part, &mut take);
    }
    framing.finish(&mut take);
    pieces
}

// The first bytes are the sizes of the parts, in turn; 255 stands for one that is
// longer than a line may be.
fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (sizes, text) = input;
    // A fuzzer finds long lines too slowly: let a byte stand for many of it.
    let text: Vec<u8> = text
        .iter()
        .flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b'L' { LIMIT / 2 } else { 1 }))
        .collect();
    let whole = pieces([&text[..]]);
    let mut parts = Vec::new();
    let mut rest = &text[..];
    for size in sizes {
        let size = if size == u8::MAX { LIMIT + 1 } else { usize::from(size) };
        let (part, after) = rest.split_at(size.min(rest.len()));
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    assert_eq!(pieces(parts), whole);
});
