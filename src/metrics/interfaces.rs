//! What interfaces have sent, marked or not, from /proc/net/dev (proc(5)), which is of the
//! network namespace that glowd is in. Pure but for the file.

use std::fs;

use super::families::{INTERFACE_BYTES, INTERFACE_PACKETS};
use super::Writer;

/// Writes what these interfaces have sent.
pub fn write<'a>(names: impl Iterator<Item = &'a str>, writer: &mut Writer) {
    let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    for name in names {
        // What is gone has no sample.
        if let Some((bytes, packets)) = sent(&text, name) {
            writer.number(&INTERFACE_BYTES, &[name], bytes);
            writer.number(&INTERFACE_PACKETS, &[name], packets);
        }
    }
}

/// Octets and packets that an interface has sent.
fn sent(text: &str, name: &str) -> Option<(u64, u64)> {
    let figures =
        text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
    // Eight of what was received come first.
    let mut sent = figures?.split_whitespace().skip(8).map_while(|figure| figure.parse().ok());
    Some((sent.next()?, sent.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_found_by_its_whole_name() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets ...\n    lo: 1 2 0 0 0 0 0 0 3 4 \
                    0 0 0 0 0 0\n  eth0.1:10 20 0 0 0 0 0 0 30 40 0 0 0 0 0 0\n  eth0: 5 6 0 0 0 0 0 0 \
                    7 8 0 0 0 0 0 0\n  odd: 1 2\n";
        assert_eq!(sent(text, "lo"), Some((3, 4)));
        assert_eq!(sent(text, "eth0"), Some((7, 8)));
        assert_eq!(sent(text, "eth0.1"), Some((30, 40)));
        assert_eq!(sent(text, "eth"), None);
        assert_eq!(sent(text, "odd"), None);
    }
}
