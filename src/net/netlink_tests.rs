//! Tests of netlink.rs.

use super::*;

#[test]
fn what_is_built_is_read_back() {
    let request = Request::new(20, 0)
        .fixed(&[9; 5])
        .text(3, "ab")
        .nest(2, |inner| inner.number(1, 0x0102_0304).attribute(7, &[]));
    let bytes = request.finish(F_ACK, 5);
    assert_eq!(u32_at(&bytes, 0), u32::try_from(bytes.len()).ok());
    assert_eq!((u16_at(&bytes, 4), u16_at(&bytes, 6)), (Some(20), Some(F_REQUEST | F_ACK)));
    assert_eq!(u32_at(&bytes, 8), Some(5));
    let message = Message { kind: 20, payload: bytes[HEADER..].to_vec() };
    let attributes = message.attributes(8);
    assert_eq!(attributes.clone().find_text(3).as_deref(), Some("ab"));
    let inner = Attributes(attributes.find(2).unwrap());
    assert_eq!(inner.clone().find(1).and_then(|value| u32_at(value, 0)), Some(0x0102_0304));
    assert_eq!(inner.find(7), Some(&[][..]));
}

#[test]
fn no_length_is_trusted() {
    for bytes in [
        &[][..],
        &[4, 0, 1],
        &[0, 0, 1, 0],
        &[3, 0, 1, 0],
        &[5, 0, 1, 0],
        &[255, 255, 1, 0, 1, 2, 3, 4],
    ] {
        assert_eq!(Attributes(bytes).next(), None, "{bytes:?}");
    }
    for length in 0..HEADER + 4 {
        acknowledgement(&vec![255; length], false).unwrap_err();
    }
    // An error whose request is said to be longer than everything.
    let mut error = vec![0; HEADER + 8];
    error[6..8].copy_from_slice(&F_ACK_ATTRIBUTES.to_ne_bytes());
    error[HEADER..HEADER + 4].copy_from_slice(&(-17_i32).to_ne_bytes());
    error[HEADER + 4..].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert_eq!(acknowledgement(&error, false), Err(Errno::EEXIST.into()));
}

#[test]
fn the_kernel_says_why() {
    // RTM_DELLINK of no interface in particular.
    let request = Request::new(libc::RTM_DELLINK, 0).fixed(&[0; 16]);
    let failure = Socket::route().unwrap().change(&request).unwrap_err();
    assert!(failure.errno == Errno::EINVAL || failure.errno == Errno::EPERM, "{failure}");
    let dump = Request::new(libc::RTM_GETLINK, 0).fixed(&[0; 16]);
    assert!(!Socket::route().unwrap().dump(&dump).unwrap().is_empty());
}
