//! Cuts what was read from the pipe into lines, however the reads cut it. Pure;
//! runs on the plugin's thread; owns the beginning of a line whose rest has not
//! been read yet, at most [`LIMIT`] bytes.

use std::io::BufRead;

/// The longest line, in bytes without its newline. A good one is far shorter.
pub const LIMIT: usize = 4096;

/// What the bytes are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A line, without its newline.
    Line(&'a [u8]),
    /// A line that is too long: its first [`LIMIT`] bytes. The rest is skipped.
    TooLong(&'a [u8]),
}

/// The state between two reads.
#[derive(Debug, Default)]
pub struct Framing {
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
    /// Whether the line was too long, and what comes until its newline is not
    /// looked at.
    skipping: bool,
}

impl Framing {
    /// At the beginning of a line.
    pub fn new() -> Self {
        Framing::default()
    }

    /// Takes the next bytes and hands on each piece that they complete, in order.
    pub fn feed(&mut self, mut bytes: &[u8], mut take: impl FnMut(Piece<'_>)) {
        while !bytes.is_empty() {
            let mut rest = bytes;
            // The standard library's own memchr. Reading from a slice cannot fail.
            let length = rest.skip_until(b'\n').unwrap_or(bytes.len());
            let (head, rest) = bytes.split_at(length);
            bytes = rest;
            let (part, ends) = match head.split_last() {
                Some((b'\n', line)) => (line, true),
                _ => (head, false),
            };
            self.add(part, ends, &mut take);
        }
    }

    /// Takes a part of one line, which may be the last of it.
    fn add(&mut self, part: &[u8], ends: bool, take: &mut impl FnMut(Piece<'_>)) {
        if self.skipping {
            self.skipping = !ends;
            return;
        }
        let room = LIMIT - self.begun.len();
        let fits = part.len() <= room;
        if self.begun.is_empty() && (ends || !fits) {
            // The common case: nothing has to be copied.
            take(if fits { Piece::Line(part) } else { Piece::TooLong(&part[..LIMIT]) });
        } else {
            self.begun.extend_from_slice(&part[..part.len().min(room)]);
            if ends || !fits {
                take(if fits { Piece::Line(&self.begun) } else { Piece::TooLong(&self.begun) });
                self.begun.clear();
            }
        }
        self.skipping = !fits && !ends;
    }

    /// Nothing follows: what was begun is a line too.
    pub fn finish(&mut self, mut take: impl FnMut(Piece<'_>)) {
        self.skipping = false;
        if !self.begun.is_empty() {
            take(Piece::Line(&self.begun));
            self.begun.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of `parts`, each written out.
    fn pieces<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let mut framing = Framing::new();
        let mut pieces = Vec::new();
        let mut take = |piece: Piece<'_>| {
            pieces.push(match piece {
                Piece::Line(line) => format!("line {}", line.escape_ascii()),
                Piece::TooLong(line) => format!("long {} {}", line.len(), line.escape_ascii()),
            });
        };
        for part in parts {
            framing.feed(part, &mut take);
            assert!(framing.begun.len() <= LIMIT);
        }
        framing.finish(&mut take);
        assert!(framing.begun.is_empty() && !framing.skipping);
        pieces
    }

    #[test]
    fn a_line_ends_with_its_newline_or_with_the_last_byte() {
        assert_eq!(
            pieces([&b"a b\n\nc\r\nlast"[..]]),
            ["line a b", "line ", r"line c\r", "line last"]
        );
        assert_eq!(pieces([&b"a\n"[..]]), ["line a"]);
        assert_eq!(pieces([]), [""; 0]);
    }

    /// Property: any cut, any two cuts and all cuts at once give the same pieces.
    #[test]
    fn defect_15_no_split_changes_anything() {
        let text = b"\nstart tcp ::1 1 ::2 2 3 4\n\0\xff\xc3\n\n# x\r\nend udp 10.0.0.1 1\nrest";
        let whole = pieces([&text[..]]);
        assert_eq!(whole.len(), 7);
        for first in 0..=text.len() {
            let (head, tail) = text.split_at(first);
            for second in 0..=tail.len() {
                let (middle, end) = tail.split_at(second);
                assert_eq!(pieces([head, middle, end]), whole, "{first} {second}");
            }
        }
        assert_eq!(pieces(text.chunks(1)), whole);
    }

    #[test]
    fn defect_15_a_long_line_costs_itself_only() {
        let mut text = b"before\n".to_vec();
        for length in [LIMIT - 1, LIMIT, LIMIT + 1, 100_000] {
            text.extend(std::iter::repeat_n(b'x', length));
            text.extend_from_slice(b"\nafter\n");
        }
        let whole = pieces([&text[..]]);
        let kinds: Vec<(&str, usize)> =
            whole.iter().map(|piece| (&piece[..4], piece.len())).collect();
        let long = ("long", "long 4096 ".len() + LIMIT);
        let (before, after) = (("line", 11), ("line", 10));
        let (short, full) = (("line", 4 + LIMIT), ("line", 5 + LIMIT));
        assert_eq!(kinds, [before, short, after, full, after, long, after, long, after]);
        for first in 0..=text.len() {
            // Around the ends of lines, and some in between.
            let near = |offset: usize| text[first.saturating_sub(offset)..].starts_with(b"\n");
            if near(0) || near(1) || near(2) || first % 997 == 0 {
                let (head, tail) = text.split_at(first);
                assert_eq!(pieces([head, tail]), whole, "{first}");
            }
        }
        for size in [1, 7, 4095, 4096, 4097, 65_536] {
            assert_eq!(pieces(text.chunks(size)), whole, "{size}");
        }
    }

    #[test]
    fn a_long_line_without_an_end_is_told_once() {
        let told = pieces([[b'x'; 65_536]; 4].iter().map(|part| &part[..]));
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("long 4096 x"));
    }
}
