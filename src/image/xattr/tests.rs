use super::*;

fn check_one(name: &str, value: &[u8], is_directory: bool) -> Result<(), XattrError> {
    check(&[(name.as_bytes().to_vec(), value.to_vec())], is_directory)
}

#[test]
fn names_are_those_that_the_file_system_knows() {
    let acl = [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255];
    for name in ["user.a", "trusted.a", "security.capability", "user.overlayfs"] {
        check_one(name, b"", false).unwrap();
    }
    check_one("system.posix_acl_access", &acl, false).unwrap();
    check_one("system.posix_acl_default", &acl, true).unwrap();
    assert!(check_one("system.posix_acl_default", &acl, false).is_err(), "only directories have one");
    assert!(check_one("system.posix_acl_access", &acl[..11], false).is_err());
    for name in ["user.", "user", "system.x", "system.posix_acl_access.x", "", "btrfs.compression"] {
        assert!(matches!(check_one(name, b"", false), Err(XattrError::Unknown(_))), "{name}");
    }
    for name in ["trusted.overlay.opaque", "user.overlay.redirect"] {
        assert!(matches!(check_one(name, b"", false), Err(XattrError::Overlay(_))), "{name}");
    }
}

#[test]
fn lengths_are_bounded() {
    let long = format!("user.{}", "n".repeat(250));
    check_one(&long, &[0; 65_535], false).unwrap();
    assert!(check_one(&format!("{long}n"), b"", false).is_err());
    assert!(check_one("user.a", &[0; 65_536], false).is_err());
    let many: Vec<_> =
        (0..5).map(|number| (format!("user.{number}").into_bytes(), vec![0; 60_000])).collect();
    assert!(check(&many, false).is_err(), "all together");
}

#[test]
fn what_is_written_is_as_long_as_announced() {
    for bytes in 0..20 {
        let xattrs = vec![(b"user.a".to_vec(), vec![1; bytes]), (b"security.bc".to_vec(), vec![])];
        assert_eq!(encode(&xattrs).len(), encoded_len(&xattrs));
        assert_eq!(12 + 4 * (usize::from(count(&xattrs)) - 1), encoded_len(&xattrs));
    }
    assert_eq!((encode(&[]).len(), count(&[])), (0, 0));
}
