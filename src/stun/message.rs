//! The binding request and what answers it (RFC 8489 sections 5, 6.3 and 14). Pure.
//!
//! Nothing is trusted: an answer counts if it is whole, has the magic cookie and the
//! transaction id of the request, and contains nothing that has to be understood and is
//! not. Integrity and fingerprint are not looked at: there is no secret that the two
//! sides share, and nothing else arrives at the socket.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A message without attributes.
const HEADER: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

const REQUEST: u16 = 0x0001;
const SUCCESS: u16 = 0x0101;
const ERROR: u16 = 0x0111;

const MAPPED_ADDRESS: u16 = 0x0001;
const ERROR_CODE: u16 = 0x0009;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Others that a server may send, and that do not matter here: those of RFC 8489, and
/// of RFC 3489, by which servers with MAPPED-ADDRESS only may work.
const HARMLESS: [u16; 13] = [2, 3, 4, 5, 6, 7, 8, 0x000a, 0x000b, 0x0014, 0x0015, 0x001c, 0x001e];

/// What a request and its answer have in common and nobody else can know.
pub type TransactionId = [u8; 12];

/// Why a datagram is not the answer that was hoped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not an answer to this request: it may come yet.
    Stray,
    /// It answers, yet it is cut, or its attributes make no sense.
    Malformed,
    /// The server refuses: the code, 300 to 699; 0 if it says none.
    Refused(u16),
    /// An attribute has to be understood, and is not.
    Unknown(u16),
    /// There is no address in it.
    NoAddress,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Stray => f.write_str("it answers something else"),
            Fault::Malformed => f.write_str("it is malformed"),
            Fault::Refused(code) => write!(f, "the server refuses with error {code}"),
            Fault::Unknown(kind) => write!(f, "it has the unknown attribute {kind:#06x}"),
            Fault::NoAddress => f.write_str("there is no address in it"),
        }
    }
}

/// A binding request, without attributes.
pub fn request(id: &TransactionId) -> [u8; HEADER] {
    let mut message = [0; HEADER];
    message[..2].copy_from_slice(&REQUEST.to_be_bytes());
    message[4..8].copy_from_slice(&COOKIE);
    message[8..].copy_from_slice(id);
    message
}

/// The address that `datagram`, which answers the request with that id, says the
/// request came from.
///
/// # Errors
/// It says none.
pub fn mapped_address(datagram: &[u8], id: &TransactionId) -> Result<IpAddr, Fault> {
    let kind = u16_at(datagram, 0).ok_or(Fault::Stray)?;
    if datagram.get(4..8) != Some(&COOKIE) || datagram.get(8..HEADER) != Some(id) {
        return Err(Fault::Stray);
    }
    if kind != SUCCESS && kind != ERROR {
        return Err(Fault::Stray);
    }
    let length = u16_at(datagram, 2).map(usize::from).filter(|length| length % 4 == 0);
    let mut rest = &datagram[HEADER..];
    if length != Some(rest.len()) {
        return Err(Fault::Malformed);
    }
    let (mut plain, mut xored, mut code, mut unknown) = (None, None, 0, None);
    while !rest.is_empty() {
        let kind = u16_at(rest, 0).ok_or(Fault::Malformed)?;
        let length = usize::from(u16_at(rest, 2).ok_or(Fault::Malformed)?);
        let value = rest.get(4..4 + length).ok_or(Fault::Malformed)?;
        match kind {
            // Of several the first one counts.
            MAPPED_ADDRESS if plain.is_none() => {
                plain = Some(address(value, &[0; 16]).ok_or(Fault::Malformed)?);
            }
            XOR_MAPPED_ADDRESS if xored.is_none() => {
                let mut mask = [0; 16];
                mask.copy_from_slice(&datagram[4..HEADER]);
                xored = Some(address(value, &mask).ok_or(Fault::Malformed)?);
            }
            ERROR_CODE => {
                let [_, _, class, number, ..] = value else { return Err(Fault::Malformed) };
                code = u16::from(class & 7) * 100 + u16::from(*number);
            }
            MAPPED_ADDRESS | XOR_MAPPED_ADDRESS | 0x8000.. => {}
            kind if HARMLESS.contains(&kind) => {}
            kind => unknown = unknown.or(Some(kind)),
        }
        rest = rest.get(4 + length.next_multiple_of(4)..).ok_or(Fault::Malformed)?;
    }
    match unknown {
        _ if kind == ERROR => Err(Fault::Refused(code)),
        Some(kind) => Err(Fault::Unknown(kind)),
        // Some routers rewrite the address wherever they find it plain.
        None => xored.or(plain).ok_or(Fault::NoAddress),
    }
}

/// The address in the value of an attribute, without its port. The mask is applied to
/// the address.
fn address(value: &[u8], mask: &[u8; 16]) -> Option<IpAddr> {
    match value {
        [_, 1, _, _, ip @ ..] => {
            let ip: [u8; 4] = ip.try_into().ok()?;
            let ip = u32::from_be_bytes(ip) ^ u32::from_be_bytes(mask[..4].try_into().ok()?);
            Some(Ipv4Addr::from(ip).into())
        }
        [_, 2, _, _, ip @ ..] => {
            let ip: [u8; 16] = ip.try_into().ok()?;
            let ip = u128::from_be_bytes(ip) ^ u128::from_be_bytes(*mask);
            Some(Ipv6Addr::from(ip).into())
        }
        _ => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The responses of RFC 5769 sections 2.2 and 2.3.
    const V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae\
        8022000b7465737420766563746f7220\
        002000080001a147e112a643\
        000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7\
        80280004c07d4c96";
    const V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae\
        8022000b7465737420766563746f7220\
        002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9\
        00080014a382954e4be67bf11784c97c8292c275bfe3ed41\
        80280004c8fb0b4c";
    const ID: TransactionId =
        [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

    fn octets(hex: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    /// An answer with these attributes, the length as it should be.
    fn answer(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = request(&ID).to_vec();
        message[..2].copy_from_slice(&kind.to_be_bytes());
        for (kind, value) in attributes {
            message.extend(kind.to_be_bytes());
            message.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
            message.extend(*value);
            message.resize(message.len().next_multiple_of(4), b' ');
        }
        let length = u16::try_from(message.len() - HEADER).unwrap();
        message[2..4].copy_from_slice(&length.to_be_bytes());
        message
    }

    const PLAIN: &[u8] = &[0, 1, 0x12, 0x34, 198, 51, 100, 7];
    /// 192.0.2.1, port 32853.
    const XORED: &[u8] = &[0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];

    #[test]
    fn the_test_vectors_of_rfc_5769_are_read() {
        for (vector, ip) in [(V4, "192.0.2.1"), (V6, "2001:db8:1234:5678:11:2233:4455:6677")] {
            assert_eq!(mapped_address(&octets(vector), &ID), Ok(ip.parse().unwrap()));
        }
    }

    #[test]
    fn a_request_is_a_header_and_no_more() {
        assert_eq!(request(&ID), *octets("000100002112a442b7e7a701bc34d686fa87dfae"));
        assert_eq!(mapped_address(&request(&ID), &ID), Err(Fault::Stray), "nor its own answer");
    }

    #[test]
    fn a_plain_address_serves_where_there_is_no_other() {
        let read = |attributes: &[(u16, &[u8])]| {
            mapped_address(&answer(SUCCESS, attributes), &ID).map(|ip| ip.to_string())
        };
        let v6: Vec<u8> = [&[0, 2, 0, 1][..], &Ipv6Addr::LOCALHOST.octets()].concat();
        assert_eq!(read(&[(1, PLAIN)]).unwrap(), "198.51.100.7");
        assert_eq!(read(&[(1, &v6)]).unwrap(), "::1");
        // Of the time of RFC 3489.
        let old = [(1, PLAIN), (4, PLAIN), (5, PLAIN)];
        assert_eq!(read(&old).unwrap(), "198.51.100.7");
        assert_eq!(read(&[(1, PLAIN), (0x20, XORED)]).unwrap(), "192.0.2.1");
        assert_eq!(read(&[(0x20, XORED), (0x20, PLAIN), (1, PLAIN)]).unwrap(), "192.0.2.1");
    }

    #[test]
    fn what_answers_something_else_is_passed_over() {
        let good = octets(V4);
        let mut other_id = ID;
        other_id[11] ^= 1;
        assert_eq!(mapped_address(&good, &other_id), Err(Fault::Stray));
        // The cookie, the id, the class and the method.
        for at in [0, 1, 4, 7, 8, 19] {
            let mut bad = good.clone();
            bad[at] ^= 0x02;
            assert_eq!(mapped_address(&bad, &ID), Err(Fault::Stray), "{at}");
        }
    }

    #[test]
    fn no_length_is_trusted() {
        for vector in [V4, V6] {
            let good = octets(vector);
            for length in 0..good.len() {
                let cut = &good[..length];
                let fault = if length < HEADER { Fault::Stray } else { Fault::Malformed };
                assert_eq!(mapped_address(cut, &ID), Err(fault), "{length}");
                // As long as the header says, but with the last attribute cut.
                if length >= HEADER {
                    let mut cut = cut.to_vec();
                    let rest = u16::try_from(length - HEADER).unwrap();
                    cut[2..4].copy_from_slice(&rest.to_be_bytes());
                    let _ = mapped_address(&cut, &ID);
                }
            }
            assert_eq!(mapped_address(&[&good[..], &[0]].concat(), &ID), Err(Fault::Malformed));
        }
        for value in [&[][..], &[0, 1, 0, 0], &[0, 1, 0, 0, 1, 2, 3], &[0, 3, 0, 0, 1, 2, 3, 4]] {
            for kind in [MAPPED_ADDRESS, XOR_MAPPED_ADDRESS] {
                let wrong = answer(SUCCESS, &[(kind, value)]);
                assert_eq!(mapped_address(&wrong, &ID), Err(Fault::Malformed), "{value:?}");
            }
        }
        let mut long = answer(SUCCESS, &[(0x20, XORED)]);
        long[22..24].copy_from_slice(&u16::MAX.to_be_bytes());
        assert_eq!(mapped_address(&long, &ID), Err(Fault::Malformed));
    }

    #[test]
    fn refusals_and_riddles_are_no_address() {
        let refusal = answer(ERROR, &[(ERROR_CODE, &[0, 0, 4, 1, b'n', b'o']), (0x20, XORED)]);
        assert_eq!(mapped_address(&refusal, &ID), Err(Fault::Refused(401)));
        assert_eq!(mapped_address(&answer(ERROR, &[]), &ID), Err(Fault::Refused(0)));
        assert_eq!(mapped_address(&answer(SUCCESS, &[]), &ID), Err(Fault::NoAddress));
        // One that may be ignored, and one that may not.
        let optional = answer(SUCCESS, &[(0x20, XORED), (0x802b, PLAIN), (0xffff, &[])]);
        assert_eq!(mapped_address(&optional, &ID), Ok("192.0.2.1".parse().unwrap()));
        let required = answer(SUCCESS, &[(0x20, XORED), (0x7fff, &[1])]);
        assert_eq!(mapped_address(&required, &ID), Err(Fault::Unknown(0x7fff)));
    }
}
