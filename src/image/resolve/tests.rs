use super::*;

#[test]
fn platforms_are_written_as_others_write_them() {
    for text in ["linux/amd64", "linux/arm/v7"] {
        assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
    }
    assert_eq!("arm64".parse::<Platform>().unwrap().to_string(), "linux/arm64");
    for text in ["", "linux/", "windows/amd64", "a/b/c/d"] {
        assert!(text.parse::<Platform>().is_err(), "{text:?}");
    }
}

#[test]
fn a_variant_counts_only_when_it_is_asked_for() {
    let any: Platform = "linux/arm".parse().unwrap();
    assert!(any.fits("linux", "arm", Some("v7")) && any.fits("linux", "arm", None));
    let v7: Platform = "linux/arm/v7".parse().unwrap();
    assert!(v7.fits("linux", "arm", Some("v7")) && !v7.fits("linux", "arm", Some("v6")));
    assert!(!any.fits("linux", "arm64", None) && !any.fits("windows", "arm", None));
}
