//! Answers of STUN servers: any datagram is judged without a panic, one without the
//! cookie and the id of the request says nothing, nor does one that is cut.
#![no_main]

use glowd::stun::message::{mapped_address, request, Fault};
use libfuzzer_sys::fuzz_target;

/// Of the vectors of RFC 5769.
const ID: [u8; 12] = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

fn judge(datagram: &[u8]) {
    let judged = mapped_address(datagram, &ID);
    let ours = datagram.get(4..20) == Some(&request(&ID)[4..]);
    assert!(ours || judged == Err(Fault::Stray));
    if judged.is_ok() {
        assert!(datagram.len() >= 32 && datagram[..2] == [1, 1]);
        let mut other = ID;
        other[0] ^= 1;
        assert_eq!(mapped_address(datagram, &other), Err(Fault::Stray));
        assert!(mapped_address(&datagram[..datagram.len() - 1], &ID).is_err());
    }
}

// A fuzzer does not find the id: the input is also the attributes of a message that
// answers, whose length is right.
fuzz_target!(|input: &[u8]| {
    judge(input);
    if let (Some((kind, attributes)), true) = (input.split_first(), input.len() < 1500) {
        let mut datagram = request(&ID).to_vec();
        datagram[..2].copy_from_slice(&[1, if kind & 1 == 0 { 1 } else { 0x11 }]);
        datagram.extend(attributes);
        datagram[2..4].copy_from_slice(&u16::try_from(attributes.len()).unwrap().to_be_bytes());
        judge(&datagram);
    }
});
