//! A tag in all the forms in which it travels: the scitag integer of HTTP and
//! XRootD, the IPv6 flow label, the option of the extension headers, the bytes of a
//! captured packet. Pure; `glowd tag` shows it.

use crate::flow::{Tag, LABEL_TAG_MASK};

/// The option type and length that carry a tag (RFC 4727 section 3.3).
const OPTION: [u8; 2] = [0x1e, 3];
/// The type and length of programs before 2025, whose value is a flow label.
const OLD_OPTION: [u8; 2] = [0x1f, 4];

/// IPv6 next headers (RFC 8200 section 4).
const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;

/// Where a tag was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `experiment * 64 + activity`.
    Scitag,
    /// An IPv6 flow label.
    Label,
    /// The option of a hop-by-hop or destination options header.
    Option,
    /// That of older programs, which holds a label.
    OldOption,
}

impl Form {
    /// The name that people know.
    pub fn name(self) -> &'static str {
        match self {
            Form::Scitag => "scitag",
            Form::Label => "flow label",
            Form::Option => "option",
            Form::OldOption => "option of an older version",
        }
    }
}

/// The scitag integer, 64 to 32767.
pub fn integer(tag: Tag) -> u32 {
    u32::from(tag.experiment()) << 6 | u32::from(tag.activity())
}

/// The eight bytes of a hop-by-hop or destination options header that carries the
/// tag, before a header of type `next`.
pub fn header(tag: Tag, next: u8) -> [u8; 8] {
    let [high, low] = tag.experiment().to_be_bytes();
    [next, 0, OPTION[0], OPTION[1], high, low, tag.activity(), 0]
}

/// What `text` may say, the likeliest reading first.
///
/// # Errors
/// It can be read as nothing that carries a tag.
pub fn decode(text: &str) -> Result<Vec<(Form, Tag)>, String> {
    let readings = match parse(text)? {
        Input::Number(number) => from_number(number)?,
        Input::Bytes(bytes) => from_bytes(&bytes)?,
    };
    if readings.is_empty() {
        return Err(format!("{text:?} carries no tag, in whichever form"));
    }
    Ok(readings)
}

enum Input {
    Number(u64),
    Bytes(Vec<u8>),
}

/// A number in decimal or, behind 0x, in hexadecimal with up to six digits; or bytes
/// in hexadecimal, in pairs that blanks, colons or dashes may separate.
fn parse(text: &str) -> Result<Input, String> {
    let text = text.trim();
    let wrong = || {
        format!(
            "{text:?} is neither a number (144, 0x10040) nor bytes in hexadecimal (06001e0300021000)"
        )
    };
    if text.len() > 4096 {
        return Err("longer than 4096 characters".into());
    }
    let (digits, is_hex) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let all_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex && all_hex && digits.len() <= 6 {
        return u64::from_str_radix(digits, 16).map(Input::Number).map_err(|_| wrong());
    }
    if !is_hex && digits.len() <= 9 && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return digits.parse().map(Input::Number).map_err(|_| wrong());
    }
    let mut bytes = Vec::new();
    for word in digits.split([' ', '\t', '\n', ':', '-']).filter(|word| !word.is_empty()) {
        if word.len() % 2 != 0 || !word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        for pair in word.as_bytes().chunks(2) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            bytes.push(u8::from_str_radix(pair, 16).map_err(|_| wrong())?);
        }
    }
    if bytes.is_empty() {
        return Err(wrong());
    }
    Ok(Input::Bytes(bytes))
}

fn from_number(number: u64) -> Result<Vec<(Form, Tag)>, String> {
    let number = u32::try_from(number)
        .ok()
        .filter(|number| *number <= 0xf_ffff)
        .ok_or_else(|| format!("{number} is longer than the 20 bits of a flow label"))?;
    let scitag = (number <= 0xffff).then(|| {
        let tag = Tag::new(u64::from(number >> 6), u64::from(number & 0x3f));
        tag.ok().map(|tag| (Form::Scitag, tag))
    });
    let label = Tag::from_label(number).map(|tag| (Form::Label, tag));
    Ok([scitag.flatten(), label].into_iter().flatten().collect())
}

/// An option, a header with it, or an IPv6 packet from its first byte on.
fn from_bytes(bytes: &[u8]) -> Result<Vec<(Form, Tag)>, String> {
    if bytes.len() >= 40 && bytes[0] >> 4 == 6 {
        return Ok(of_packet(bytes));
    }
    if bytes.len() <= 5 || bytes.starts_with(&OPTION) || bytes.starts_with(&OLD_OPTION) {
        return Ok(from_option(bytes).into_iter().collect());
    }
    if bytes.len() < 8 {
        return Err("too short: an option has 5 bytes, its header 8, an IPv6 header 40".into());
    }
    Ok(options(bytes).collect())
}

/// What an IPv6 packet may say, from its first byte on: its options, then its label.
/// Packets without a tag have labels too, so that one counts only if it is known.
pub fn of_packet(packet: &[u8]) -> Vec<(Form, Tag)> {
    let mut found = Vec::new();
    if packet.len() < 40 {
        return found;
    }
    let (mut next, mut rest) = (packet[6], &packet[40..]);
    // Both headers at the most: only the first may be a hop-by-hop one.
    while (next == HOP_BY_HOP || next == DESTINATION) && rest.len() >= 8 && found.len() < 8 {
        found.extend(options(rest));
        let length = 8 * (usize::from(rest[1]) + 1);
        next = rest[0];
        rest = rest.get(length..).unwrap_or_default();
    }
    let label = u32::from_be_bytes([0, packet[1] & 0x0f, packet[2], packet[3]]);
    found.extend(Tag::from_label(label).map(|tag| (Form::Label, tag)));
    found
}

/// The tags in the options of a header (RFC 8200 section 4.2).
fn options(header: &[u8]) -> impl Iterator<Item = (Form, Tag)> + '_ {
    let end = (8 * (usize::from(header[1]) + 1)).min(header.len());
    let mut rest = &header[2..end];
    std::iter::from_fn(move || loop {
        let found = match rest {
            [] => return None,
            // Pad1 has no length.
            [0, more @ ..] => {
                rest = more;
                continue;
            }
            option => from_option(option),
        };
        rest = rest.get(1).and_then(|length| rest.get(2 + usize::from(*length)..)).unwrap_or(&[]);
        if found.is_some() {
            return found;
        }
    })
}

fn from_option(option: &[u8]) -> Option<(Form, Tag)> {
    match *option {
        [0x1e, 3, high, low, activity, ..] => {
            let experiment = u64::from(u16::from_be_bytes([high, low]));
            Tag::new(experiment, activity.into()).ok().map(|tag| (Form::Option, tag))
        }
        [0x1f, 4, high, middle, low, _, ..] => {
            let label = u32::from_be_bytes([0, high, middle, low]);
            Tag::from_label(label).map(|tag| (Form::OldOption, tag))
        }
        _ => None,
    }
}

/// A filter for tcpdump(8) that matches packets with the tag in their label.
pub fn filter(tag: Tag) -> String {
    format!("ip6[0:4] & {LABEL_TAG_MASK:#x} == {:#x}", tag.label(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(experiment: u64, activity: u64) -> Tag {
        Tag::new(experiment, activity).unwrap()
    }

    /// Section 1.2 of the collected specification.
    #[test]
    fn the_worked_examples_hold() {
        for (experiment, activity, scitag, low, high, value) in [
            (1, 1, 65, 131_076, 0xe_0107, 0x0101),
            (2, 9, 137, 65_572, 0xd_0127, 0x0209),
            (2, 16, 144, 65_600, 0xd_0143, 0x0210),
            (3, 14, 206, 196_664, 0xf_013b, 0x030e),
            (4, 3, 259, 32_780, 0xc_810f, 0x0403),
            (14, 1, 897, 114_692, 0xd_c107, 0x0e01),
            (511, 63, 32_767, 261_884, 0xf_ffff, 0x01_ff3f),
        ] {
            let tag = tag(experiment, activity);
            assert_eq!(integer(tag), scitag);
            assert_eq!((tag.label(0), tag.label(u32::MAX)), (low, high));
            let bytes = u32::to_be_bytes(value);
            assert_eq!(header(tag, 6), [6, 0, 0x1e, 3, bytes[1], bytes[2], bytes[3], 0]);
            assert!(decode(&scitag.to_string()).unwrap().contains(&(Form::Scitag, tag)));
            assert!(decode(&format!("{low:#x}")).unwrap().contains(&(Form::Label, tag)));
            assert!(decode(&high.to_string()).unwrap().contains(&(Form::Label, tag)));
        }
        assert_eq!(filter(tag(2, 16)), "ip6[0:4] & 0x3fefc == 0x10040");
    }

    #[test]
    fn bytes_are_options_headers_or_packets() {
        let output = tag(2, 16);
        for text in [
            "1e03000210",
            "1E:03:00:02:10",
            "06 00 1e 03 00 02 10 00",
            "0x06001e0300021000",
            // Behind padding.
            "0601 00 0100 00 1e03000210 0103000000",
            "0601 0104 00000000 1e03000210 0104 00000000",
        ] {
            assert_eq!(decode(text), Ok(vec![(Form::Option, output)]), "{text}");
        }
        assert!(decode("1f040100400 0").is_err());
        assert_eq!(decode("1f0401004000"), Ok(vec![(Form::OldOption, output)]));
        let addresses = "20".repeat(32);
        let plain = format!("6ed10143 0014 06 40 {addresses}");
        assert_eq!(decode(&plain), Ok(vec![(Form::Label, output)]));
        let both = format!(
            "60000000 0024 00 40 {addresses} 3c001e0300021000 06001e0300021000 0102030405060708"
        );
        assert_eq!(decode(&both), Ok(vec![(Form::Option, output), (Form::Option, output)]));
    }

    #[test]
    fn what_carries_no_tag_is_refused() {
        for text in [
            "",
            " ",
            "0",
            "63",
            "0x",
            "x",
            "1e030002",
            "1e03000010",
            "1e03020010",
            "abc",
            "1048576",
            "06 00",
            "0600ff",
            "60000000",
            "0xfffffff",
            "99999999999",
            "06001e03000200",
            "6g",
        ] {
            assert!(decode(text).is_err(), "{text:?}: {:?}", decode(text));
        }
        assert!(decode(&"00".repeat(3000)).is_err());
        // Lengths that lie.
        assert!(decode("06ff1eff00021000").is_err());
        let packet = format!("60000000 0008 00 40 {} 00ff01ff00000000", "20".repeat(32));
        assert!(decode(&packet).is_err());
    }
}
