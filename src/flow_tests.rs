//! Tests of flow.rs.

use super::*;

fn end(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Spec section 1.2.
#[test]
fn labels_are_those_of_the_worked_examples() {
    let rows = [
        (1, 1, 131_076, 0xE0107),
        (2, 9, 65_572, 0xD0127),
        (2, 15, 65_596, 0xD013F),
        (2, 16, 65_600, 0xD0143),
        (2, 19, 65_612, 0xD014F),
        (3, 3, 196_620, 0xF010F),
        (3, 14, 196_664, 0xF013B),
        (3, 23, 196_700, 0xF015F),
        (4, 3, 32_780, 0xC810F),
        (5, 10, 163_880, 0xE812B),
        (14, 1, 114_692, 0xDC107),
        (511, 63, 261_884, 0xFFFFF),
    ];
    for (experiment, activity, bare, full) in rows {
        let tag = Tag::new(experiment, activity).unwrap();
        assert_eq!(tag.label(0), bare, "{tag}");
        assert_eq!(tag.label(u32::MAX), full, "{tag}");
        assert_eq!(Tag::from_label(full), Some(tag));
    }
}

#[test]
fn every_tag_survives_the_label() {
    for experiment in 1..=511 {
        for activity in 0..=63 {
            let tag = Tag::new(experiment, activity).unwrap();
            assert_eq!(Tag::from_label(tag.label(0xC_0103)), Some(tag));
            assert_eq!(tag.label(u32::MAX) & LABEL_TAG_MASK, tag.label(0));
        }
    }
    assert_eq!(Tag::from_label(0), None);
    assert_eq!(LABEL_TAG_MASK | LABEL_ENTROPY_MASK, 0xF_FFFF);
}

/// Defect 7 of the peers: 99999 was accepted and truncated.
#[test]
fn defect_07_ids_out_of_range_are_refused() {
    for (experiment, activity) in [(0, 1), (512, 1), (99_999, 1), (1, 64), (1, 99_999)] {
        Tag::new(experiment, activity).unwrap_err();
    }
}

#[test]
fn flow_ids_are_canonical() {
    let id = FlowId::new(Protocol::Tcp, end("[::ffff:10.0.0.1]:1"), end("10.0.0.2:2")).unwrap();
    assert_eq!(id.to_string(), "tcp 10.0.0.1:1 -> 10.0.0.2:2");
    let zone = FlowId::new(Protocol::Udp, end("[fe80::1%4]:1"), end("[fe80::2]:2")).unwrap();
    assert_eq!(zone.src(), end("[fe80::1]:1"));
    let refused = [("[::1]:0", "[::1]:2"), ("[::1]:1", "[::1]:0"), ("[::1]:1", "10.0.0.1:2")];
    for (src, dst) in refused {
        FlowId::new(Protocol::Tcp, end(src), end(dst)).unwrap_err();
    }
}

#[test]
fn times_are_written_and_read() {
    for (micros, text) in [
        (0, "1970-01-01T00:00:00.000000+00:00"),
        (1_632_309_147_808_092, "2021-09-22T11:12:27.808092+00:00"),
        (1_709_164_800_000_001, "2024-02-29T00:00:00.000001+00:00"),
        (4_107_542_399_999_999, "2100-02-28T23:59:59.999999+00:00"),
        (253_402_300_799_999_999, "9999-12-31T23:59:59.999999+00:00"),
    ] {
        assert_eq!(Timestamp(micros).to_string(), text);
        assert_eq!(Timestamp::parse(text), Some(Timestamp(micros)));
    }
    let same = Timestamp::parse("2021-09-22T11:12:27Z");
    for text in [
        "2021-09-22T11:12:27.000000000Z",
        "2021-09-22t13:12:27+02:00",
        "2021-09-22T05:42:27.0-05:30",
    ] {
        assert_eq!(Timestamp::parse(text), same, "{text}");
    }
    for text in [
        "",
        "2021-09-22",
        "2021-02-29T00:00:00Z",
        "2021-09-22T11:12:27",
        "null",
        "2021-09-22T11:12:27.Z",
        "2021-13-22T11:12:27Z",
        "2021-09-22T11:12:27+2:00",
        "0001-01-01T00:00:00Z",
        "2021-09-22T24:00:00Z",
        "2021-09-22T11:12:27.1234567890Z",
        "9999-12-31T23:59:59-23:59",
        "9999-12-31T23:59:60Z",
        "1970-01-01T00:00:00+00:01",
    ] {
        assert_eq!(Timestamp::parse(text), None, "{text}");
    }
}
