//! Bad input: every one gets an error that names what is wrong, and nothing is published.

use crate::{
    archive::{Archive, Header, noise},
    oci::{Converted, GZIP, Image, Layer, PLAIN, convert_layout, settings},
};
use faasnet::image::{artifact::digest_of, convert::ConvertError};
use serde_json::json;
use std::fs;

/// The text of the error, which must be there.
fn refused(result: Result<Converted, ConvertError>) -> String {
    result.expect_err("must be refused").to_string()
}

fn refused_layer(archive: Archive) -> String {
    refused(Image::new(&[Layer::plain(archive.finish())]).convert())
}

fn device(path: &str, major: &'static str, minor: &'static str) -> Header {
    Header { device: (major, minor), ..Header::new(b'3', path) }
}

#[test]
fn entries_that_would_leave_the_image_or_trick_overlayfs_are_refused_by_name() {
    let start = || Archive::default().directory("dir").file("file", b"x").symlink("link", "dir");
    let xattr = |name: &str| start().pax(&[(name, b"y")]).file("marked", b"");
    let long_name = "n".repeat(256);
    let long_path = "dir/".repeat(1100);
    let cases = [
        ("..", start().file("dir/../../up", b""), "leads out of the image"),
        ("dir/../x", start().file("dir/../x", b""), "leads out of the image"),
        ("/etc/passwd", start().file("/etc/passwd", b""), "absolute"),
        ("link/below", start().file("link/below", b""), "not a directory"),
        ("file/below", start().file("file/below", b""), "not a directory"),
        ("file/.wh.x", start().file("file/.wh.x", b""), "not a directory"),
        ("out", start().hard_link("out", "../../etc/shadow"), "no path within the image"),
        ("absolute", start().hard_link("absolute", "/etc/shadow"), "no path within the image"),
        ("through", start().hard_link("through", "link/x"), "not a directory"),
        ("missing", start().hard_link("missing", "nowhere"), "does not exist"),
        ("to-dir", start().hard_link("to-dir", "dir"), "is a directory"),
        ("deleted", start().header(device("deleted", "0000000", "0000000")), "deleted file"),
        ("major", start().header(device("major", "0010000", "0000000")), "device number"),
        ("marked", xattr("SCHILY.xattr.trusted.overlay.opaque"), "overlayfs"),
        ("marked", xattr("SCHILY.xattr.user.overlay.whiteout"), "overlayfs"),
        ("marked", xattr("SCHILY.xattr.system.nfs4_acl"), "images cannot carry"),
        ("marked", xattr("SCHILY.xattr.system.posix_acl_access"), "malformed"),
        ("nnnn", start().pax(&[("path", long_name.as_bytes())]).file("x", b""), "longer than"),
        ("dir", start().pax(&[("path", long_path.as_bytes())]).file("x", b""), "longer than"),
        ("nul", start().pax(&[("path", b"nul\0hidden")]).file("x", b""), "NUL"),
        ("empty-link", start().symlink("empty-link", ""), "symbolic link"),
        ("dir/.wh.", start().file("dir/.wh.", b""), "whiteout has no name"),
        ("user", start().pax(&[("uid", b"4294967295")]).file("user", b""), "user 4294967295"),
        ("mode", start().header(Header { mode: "7777777", ..Header::new(b'0', "mode") }), "mode"),
    ];
    for (path, archive, reason) in cases {
        let error = refused_layer(archive);
        assert!(error.contains("layer 0 (sha256:"), "{path}: {error}");
        assert!(error.contains(path) && error.contains(reason), "{path}: {error}");
    }
}

#[test]
fn archives_that_make_no_sense_are_refused() {
    let file = || Archive::default().file("before", b"x");
    let mut broken = file().file("broken", b"").finish();
    broken[1024 + 100] ^= 1;
    let bad = Archive::default().pax(&[("path", b"p")]).finish();
    let mut bad_pax = bad.clone();
    bad_pax[512] = b'8';
    let cases = [
        (broken, "checksum"),
        (bad, "ends in the middle"),
        (bad_pax, "extended header is malformed"),
        (file().header(Header { size: "9".to_owned(), ..Header::new(b'0', "x") }).finish(), "field size"),
        (file().header(Header { uid: "\u{7f}", ..Header::new(b'0', "x") }).finish(), "field uid"),
        (file().header(Header::new(b'V', "label")).finish(), "entry type 'V'"),
        (
            file().header(Header { size: "77777777777".to_owned(), ..Header::new(b'x', "x") }).finish(),
            "longer",
        ),
        (
            file().header(Header { size: "77777777777".to_owned(), ..Header::new(b'0', "x") }).finish(),
            "ends in the middle",
        ),
        (
            file()
                .pax(&[("GNU.sparse.map", b"4,8,2,1"), ("GNU.sparse.size", b"100")])
                .file("sparse", &[1; 9])
                .finish(),
            "map of a sparse file",
        ),
        (
            file()
                .pax(&[("GNU.sparse.map", b"0,9"), ("GNU.sparse.size", b"5")])
                .file("sparse", &[1; 9])
                .finish(),
            "map of a sparse file",
        ),
    ];
    for (tar, reason) in cases {
        let error = refused(Image::new(&[Layer::plain(tar)]).convert());
        assert!(error.contains("layer 0 (sha256:"), "{error}");
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn a_layer_that_is_not_what_the_manifest_says_is_refused() {
    let tar = Archive::default().file("file", &noise(300_000, 1)).finish();
    let image = |change: fn(&mut Vec<u8>)| {
        let layer = Layer::gzip(&tar);
        let path = digest_of(&layer.stored).hex();
        let image = Image::new(&[layer]);
        let path = image.folder.path().join("blobs/sha256").join(path);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        image
    };
    let error = refused(image(|bytes| bytes.truncate(1000)).convert());
    assert!(error.contains("ended after 1000 of"), "{error}");
    let error = refused(image(|bytes| bytes[5000] ^= 1).convert());
    assert!(error.contains("has digest"), "{error}");
    let error = refused(image(|bytes| bytes.push(0)).convert());
    assert!(error.contains("longer than"), "{error}");

    let wrong = Layer { diff_id: digest_of(b"another"), ..Layer::gzip(&tar) };
    let error = refused(Image::new(&[wrong]).convert());
    assert!(error.contains("decompressed layer") && error.contains("has digest"), "{error}");
    let not_gzip = Layer { media_type: GZIP, ..Layer::plain(tar.clone()) };
    let error = refused(Image::new(&[not_gzip]).convert());
    assert!(error.contains("layer 0"), "{error}");
    let unknown =
        Layer { media_type: "application/vnd.oci.image.layer.v1.tar+encrypted", ..Layer::plain(tar) };
    let error = refused(Image::new(&[unknown]).convert());
    assert!(error.contains("not supported"), "{error}");
}

#[test]
fn limits_stop_bombs_before_they_are_unpacked() {
    let mut small = settings();
    small.plain_bytes_max = 4 << 20;
    let bomb = Archive::default().file("zeros", &vec![0; 16 << 20]).finish();
    for layer in [Layer::gzip(&bomb), Layer::zstd(&bomb), Layer::plain(bomb)] {
        let error = refused(convert_layout(Image::new(&[layer]).folder.path(), &small));
        assert!(error.contains("image.plain_bytes_max"), "{error}");
    }
    let sparse = Archive::default()
        .pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"4611686018427387903")])
        .file("sparse", b"x")
        .finish();
    let error = refused(Image::new(&[Layer::plain(sparse)]).convert());
    assert!(error.contains("image.plain_bytes_max"), "{error}");

    let mut few = settings();
    few.entries_max = 2;
    let three = Archive::default().file("1", b"").file("2", b"").file("3", b"").finish();
    let error = refused(convert_layout(Image::new(&[Layer::plain(three)]).folder.path(), &few));
    assert!(error.contains("image.entries_max"), "{error}");

    // Directories that are only in paths count.
    few.entries_max = 1000;
    let image = |directories: &[usize]| {
        let archive = directories.iter().enumerate().fold(Archive::default(), |archive, (number, count)| {
            let path = format!("{number}/{}file", "d/".repeat(count - 1));
            archive.pax(&[("path", path.as_bytes())]).file("x", b"")
        });
        convert_layout(Image::new(&[Layer::plain(archive.finish())]).folder.path(), &few)
    };
    for directories in [&[1000][..], &[499, 500], &[300, 300, 398]] {
        let error = refused(image(directories));
        assert!(error.contains("image.entries_max"), "{directories:?}: {error}");
    }
    image(&[499, 499]).unwrap();
    let error = refused(image(&[10_000]));
    assert!(error.contains("longer than"), "{error}");

    let mut thin = settings();
    thin.layers_max = 1;
    let layer = || Layer::plain(Archive::default().finish());
    let error = refused(convert_layout(Image::new(&[layer(), layer()]).folder.path(), &thin));
    assert!(error.contains("image.layers_max"), "{error}");

    let mut terse = settings();
    terse.manifest_bytes_max = 100;
    let error = refused(convert_layout(Image::new(&[layer()]).folder.path(), &terse));
    assert!(error.contains("image.manifest_bytes_max"), "{error}");
}

#[test]
fn images_that_cannot_be_resolved_say_why() {
    let image = Image::new(&[]);
    let manifest = fs::read(image.folder.path().join("index.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let mut entry = manifest["manifests"][0].clone();
    let tag = entry["annotations"].take();
    entry["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    let mut other = entry.clone();
    other["platform"] = json!({ "os": "linux", "architecture": "arm", "variant": "v7" });
    let mut attestation = entry.clone();
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    let nested = json!({ "schemaVersion": 2, "manifests": [entry, other, attestation] });
    let mut nested =
        image.put("application/vnd.oci.image.index.v1+json", &serde_json::to_vec(&nested).unwrap());
    nested["annotations"] = tag;
    image.put_index(&json!({ "schemaVersion": 2, "manifests": [nested] }));
    let error = refused(image.convert());
    assert!(error.ends_with("it exists for linux/s390x, linux/arm/v7"), "{error}");

    let image = Image::with_architecture(&[], json!({}), "s390x");
    let error = refused(image.convert());
    assert!(error.contains("linux/s390x"), "{error}");

    let error = refused(convert_layout("/nowhere".as_ref(), &settings()));
    assert!(error.contains("/nowhere/index.json does not exist"), "{error}");
    let image = Image::new(&[]);
    image.put_index(&json!({ "schemaVersion": 2, "manifests": [] }));
    let error = refused(image.convert());
    assert!(error.contains("tag \"test\""), "{error}");

    let image = Image::new(&[]);
    let descriptor = |digest: &str| json!({ "mediaType": PLAIN, "digest": digest, "size": 3 });
    image.put_manifest(json!({ "config": descriptor("sha256:../../../etc/passwd"), "layers": [] }));
    let error = refused(image.convert());
    assert!(error.contains("not understood"), "{error}");
}

#[test]
fn a_configuration_that_cannot_be_run_is_refused() {
    let passwd = || Layer::plain(Archive::default().file("etc/passwd", b"root:x:0:0::/:/bin/sh\n").finish());
    let cases = [
        (json!({ "User": "nobody" }), "nobody"),
        (json!({ "User": "root:wheel" }), "wheel"),
        (json!({ "Env": ["NOVALUE"] }), "NOVALUE"),
        (json!({ "WorkingDir": "relative" }), "relative"),
        (json!({ "StopSignal": "SIGNOTHING" }), "SIGNOTHING"),
    ];
    for (process, word) in cases {
        let error = refused(Image::with_config(&[passwd()], process).convert());
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn the_api_names_layout_folders_only_below_the_allowed_roots() {
    let image = Image::new(&[]);
    let root = tempfile::TempDir::new().unwrap();
    let mut settings = faasnet::settings::Settings::load(None).unwrap();
    let reference = |folder: &std::path::Path| format!("oci:{}:test", folder.display());
    let is_refused = |folder: &std::path::Path, settings: &_| {
        faasnet::image::source::open_for_api(&reference(folder), settings).is_err()
    };
    assert!(is_refused(image.folder.path(), &settings), "none is allowed at first");
    settings.image.layout_roots = vec![root.path().to_owned()];
    assert!(is_refused(image.folder.path(), &settings));
    let link = root.path().join("link");
    std::os::unix::fs::symlink(image.folder.path(), &link).unwrap();
    assert!(is_refused(&link, &settings), "a link leads out");
    assert!(is_refused(&root.path().join(".."), &settings));
    let inside = root.path().join("inside");
    fs::rename(image.folder.path(), &inside).unwrap();
    assert!(!is_refused(&inside, &settings));
}
