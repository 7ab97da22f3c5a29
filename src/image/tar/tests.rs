use super::{
    header::parse_number,
    pax::Records,
    sparse::{Extent, check},
    *,
};

#[test]
fn numbers_are_octal_or_of_base_256_with_a_sign() {
    let cases: [(&[u8], Option<i64>); 13] = [
        (b"0000644\0", Some(0o644)),
        (b"  644 \0\0", Some(0o644)),
        (b"\0\0\0\0", Some(0)),
        (b"77777777777\0", Some(0o77777777777)),
        (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(2 << 32)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
        (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        (b"1 2", None),
        (b"8", None),
        (b"-1", None),
        (b"7777777777777777777777777", None),
        (b"", None),
    ];
    for (bytes, number) in cases {
        assert_eq!(parse_number(bytes), number, "{bytes:?}");
    }
}

#[test]
fn records_hold_any_bytes_and_the_last_of_a_key_counts() {
    let bytes = b"30 SCHILY.xattr.user.a=\n\n=\0\n \n13 path=first\n12 path=last\n";
    assert!(Records::parse(bytes).is_err(), "the second length is wrong");
    let bytes = b"30 SCHILY.xattr.user.a=\n\n=\0\n \n14 path=first\n13 path=last\n";
    let records = Records::parse(bytes).unwrap();
    assert_eq!(records.text("path").unwrap(), b"last");
    assert_eq!(records.xattrs(), [(b"user.a".to_vec(), b"\n\n=\0\n ".to_vec())]);
}

#[test]
fn records_that_lie_about_their_length_are_refused() {
    for bytes in ["", " ", "5", "5 a=", "99 a=b\n", "6 a=bc", "4 ab\n", "0 a=b\n", "2 a=b\n", "-6 a=b\n"] {
        assert_eq!(Records::parse(bytes.as_bytes()).is_ok(), bytes.is_empty(), "{bytes:?}");
    }
    let huge = format!("{} a=b\n", "9".repeat(30));
    assert!(Records::parse(huge.as_bytes()).is_err());
}

#[test]
fn times_may_be_before_1970_and_finer_than_seconds() {
    let cases = [
        ("12", Some((12, 0))),
        ("12.5", Some((12, 500_000_000))),
        ("12.0000000019", Some((12, 1))),
        ("-12.25", Some((-13, 750_000_000))),
        ("-0.5", Some((-1, 500_000_000))),
        ("12.x", None),
        ("x", None),
        ("99999999999999999999", None),
    ];
    for (text, time) in cases {
        let record = format!("{} mtime={text}\n", text.len() + 10);
        let records = Records::parse(record.as_bytes()).unwrap();
        let time = time.map(|(seconds, nanos)| Time { seconds, nanos });
        assert_eq!(records.time("mtime").ok().flatten(), time, "{text}");
    }
}

#[test]
fn maps_of_sparse_files_must_be_in_order_within_the_file_and_as_long_as_the_data() {
    let map = |pairs: &[(u64, u64)]| -> Vec<Extent> {
        pairs.iter().map(|(offset, bytes)| Extent { offset: *offset, bytes: *bytes }).collect()
    };
    assert!(check(&map(&[(0, 4), (8, 2), (100, 0)]), 100, 6).is_ok());
    assert!(check(&map(&[(0, 4), (3, 2)]), 100, 6).is_err(), "overlap");
    assert!(check(&map(&[(0, 4), (99, 2)]), 100, 6).is_err(), "behind the end");
    assert!(check(&map(&[(0, 4)]), 100, 5).is_err(), "other data");
    assert!(check(&map(&[(u64::MAX, 4)]), 100, 4).is_err(), "overflow");
}
