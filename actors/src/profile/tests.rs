use super::*;
use proptest::prelude::*;

fn path(text: &str) -> FilePath {
    text.parse().expect("valid")
}

fn recorded(parts: &[(&str, Range<u64>)]) -> Profile {
    Profile::recorded(parts.iter().map(|(text, range)| (path(text), range.clone())))
}

/// Path, start, end, seen, missed.
fn shown(profile: &Profile) -> Vec<(String, u64, u64, u32, u32)> {
    let show = |part: &Part| (part.path.to_string(), part.start, part.end, part.seen, part.missed);
    profile.parts().iter().map(show).collect()
}

fn decode(recordings: u32, parts: Vec<Part>) -> Result<Profile, ProfileError> {
    Profile::try_from(Unchecked { recordings, parts })
}

#[test]
fn what_is_read_again_counts_once_and_neighbours_become_one() {
    let profile = recorded(&[("/a", 0..8), ("/b", 0..4), ("/a", 4..12), ("/b", 4..6), ("/b", 6..9)]);
    let expected = [("/a", 0, 8), ("/b", 0, 4), ("/a", 8, 12), ("/b", 4, 9)];
    assert_eq!(shown(&profile), expected.map(|(path, start, end)| (path.to_owned(), start, end, 1, 0)));
    assert_eq!((profile.bytes(), profile.recordings()), (21, 1));
}

#[test]
fn a_later_recording_counts_what_both_have_and_adds_the_rest_where_it_was_read() {
    let mut profile = recorded(&[("/a", 0..8), ("/b", 0..4)]);
    profile.merge(&recorded(&[("/new", 0..1), ("/a", 4..12), ("/c", 0..2), ("/b", 0..4)]), 3);
    let expected = [
        ("/new", 0, 1, 1, 0),
        ("/a", 0, 4, 1, 1),
        ("/a", 4, 8, 2, 0),
        ("/a", 8, 12, 1, 0),
        ("/c", 0, 2, 1, 0),
        ("/b", 0, 4, 2, 0),
    ];
    let expected =
        expected.map(|(path, start, end, seen, missed)| (path.to_owned(), start, end, seen, missed));
    assert_eq!(shown(&profile), expected);
    assert_eq!(profile.recordings(), 2);
}

#[test]
fn a_part_goes_only_after_several_recordings_without_it() {
    let mut profile = recorded(&[("/often", 0..1), ("/once", 0..1)]);
    for _ in 0..2 {
        profile.merge(&recorded(&[("/often", 0..1)]), 3);
        assert_eq!(profile.parts().len(), 2);
    }
    let mut seen_again = profile.clone();
    profile.merge(&recorded(&[("/often", 0..1)]), 3);
    assert_eq!(shown(&profile), [("/often".to_owned(), 0, 1, 4, 0)]);
    seen_again.merge(&recorded(&[("/once", 0..1)]), 3);
    assert_eq!(shown(&seen_again)[1], ("/once".to_owned(), 0, 1, 2, 0));
}

#[test]
fn an_empty_profile_takes_over_the_first_recording() {
    let recording = recorded(&[("/a", 0..8), ("/b", 3..4)]);
    let mut profile = Profile::default();
    profile.merge(&recording, 3);
    assert_eq!(profile, recording);
}

#[test]
fn paths_of_any_bytes_survive_as_text() {
    for bytes in [b"/a b".as_slice(), b"/100%", b"/\xff\xfe/x", "/käse".as_bytes(), b"/line\nbreak", b"/%41"]
    {
        let path = FilePath::new(bytes).expect("a path");
        assert_eq!(path.to_string().parse::<FilePath>().expect("its own text").as_bytes(), bytes);
    }
    assert_eq!(path("/%41/%c3%a4").as_bytes(), "/A/ä".as_bytes());
    assert_eq!(path("/usr/bin").names().collect::<Vec<_>>(), [b"usr".as_slice(), b"bin"]);
}

#[test]
fn what_is_no_path_is_refused() {
    let long = format!("/{}", "n".repeat(256));
    let deep = "/n".repeat(2048);
    for text in
        ["", "/", "a", "/a/", "//a", "/./a", "/a/..", "/a%00", "/a%", "/a%2", "/a%zz", "/a%é", &long, &deep]
    {
        assert!(text.parse::<FilePath>().is_err(), "{text:?}");
    }
}

#[test]
fn ranges_and_counts_out_of_bounds_are_refused() {
    let part = |start, end, seen, missed| Part { path: path("/a"), start, end, seen, missed };
    for (recordings, bad) in [
        (1, part(5, 5, 1, 0)),
        (1, part(6, 5, 1, 0)),
        (1, part(0, u64::MAX, 1, 0)),
        (1, part(0, FILE_BYTES_MAX + 1, 1, 0)),
        (1, part(0, 1, 0, 0)),
        (1, part(0, 1, 2, 0)),
        (3, part(0, 1, 2, 2)),
        (u32::MAX, part(0, 1, u32::MAX, 1)),
    ] {
        assert!(decode(recordings, vec![bad.clone()]).is_err(), "{bad:?}");
    }
    assert!(decode(3, vec![part(0, FILE_BYTES_MAX, 2, 1)]).is_ok());
}

#[test]
fn overlaps_from_outside_are_cut_away() {
    let part = |start, end| Part::new(path("/a"), start..end);
    let profile = decode(1, vec![part(4, 8), part(0, 20), part(5, 6), part(4, 8)]).expect("valid");
    let ranges: Vec<_> = profile.parts().iter().map(|part| (part.start, part.end)).collect();
    assert_eq!(ranges, [(4, 8), (0, 4), (8, 20)]);
}

#[test]
fn a_profile_never_grows_beyond_its_limits() {
    let many = |from: u64, count: u64| {
        (from..from + count).map(|number| (path("/a"), number * 2..number * 2 + 1)).collect::<Vec<_>>()
    };
    let limit = PARTS_MAX as u64;
    let mut profile = Profile::recorded(many(0, limit + 5));
    assert_eq!(profile.parts().len(), PARTS_MAX);
    profile.merge(&Profile::recorded(many(limit * 2, limit)), 3);
    assert_eq!(profile.parts().len(), PARTS_MAX);
    let parts = many(0, limit + 1).into_iter().map(|(path, range)| Part::new(path, range)).collect();
    assert_eq!(decode(1, parts), Err(ProfileError::TooLarge));
    let long: FilePath = path(&format!("/{}", "n/".repeat(2000) + "n"));
    let long = Profile::recorded((0..1000).map(|number| (long.clone(), number * 2..number * 2 + 1)));
    assert!(long.parts().len() * 4002 <= PATH_BYTES_MAX && long.parts().len() > 200);
}

#[test]
fn both_encodings_give_back_the_same_and_check_what_they_read() {
    let mut profile = recorded(&[("/usr/bin/python3", 0..8), ("/b%ff", 3..4)]);
    profile.merge(&recorded(&[("/b%ff", 0..4)]), 3);
    let packed = rmp_serde::to_vec(&profile).expect("encodes");
    assert_eq!(rmp_serde::from_slice::<Profile>(&packed).expect("decodes"), profile);
    let named = rmp_serde::to_vec_named(&profile).expect("encodes");
    assert_eq!(rmp_serde::from_slice::<Profile>(&named).expect("decodes"), profile);
    let bad = Part { end: 0, ..Part::new(path("/a"), 0..1) };
    let packed = rmp_serde::to_vec(&(1, vec![bad])).expect("encodes");
    assert!(rmp_serde::from_slice::<Profile>(&packed).is_err());
}

#[test]
fn the_fingerprint_depends_on_paths_ranges_and_order_alone() {
    let parts = [("/a", 0..8), ("/b", 0..4)];
    let mut seen_twice = recorded(&parts);
    seen_twice.merge(&recorded(&parts), 3);
    assert_eq!(recorded(&parts).fingerprint(), seen_twice.fingerprint());
    let [one, two] = parts;
    assert_ne!(recorded(&[two, one]).fingerprint(), seen_twice.fingerprint());
}

proptest! {
    #[test]
    fn a_merged_profile_covers_exactly_what_was_recorded_and_nothing_twice(
        recordings in proptest::collection::vec(
            proptest::collection::vec((0_u8..3, 0_u64..40, 1_u64..10), 0..20), 1..6),
    ) {
        let mut profile = Profile::default();
        let mut expected: BTreeMap<(FilePath, u64), u32> = BTreeMap::new();
        for recording in recordings {
            let parts = recording.into_iter().map(|(file, start, len)| (path(&format!("/{file}")), start..start + len));
            let parts: Vec<_> = parts.collect();
            let bytes = parts.iter().flat_map(|(path, range)| range.clone().map(|byte| (path.clone(), byte)));
            for byte in bytes.collect::<BTreeSet<_>>() {
                *expected.entry(byte).or_default() += 1;
            }
            profile.merge(&Profile::recorded(parts), u32::MAX);
        }
        let mut got: BTreeMap<(FilePath, u64), u32> = BTreeMap::new();
        for part in profile.parts() {
            for byte in part.start..part.end {
                prop_assert!(got.insert((part.path.clone(), byte), part.seen).is_none(), "a byte twice");
            }
        }
        prop_assert_eq!(got, expected);
        let again = decode(profile.recordings(), profile.parts().to_vec());
        prop_assert_eq!(again, Ok(profile));
    }
}
