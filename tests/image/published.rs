//! The artifact: the same bytes every time, and all that a start needs in it.

use crate::{
    archive::{Archive, Header, noise},
    oci::{Converted, Image, Layer, settings},
};
use faasnet::image::{
    artifact::digest_of,
    inspect::{FolderParts, InspectError, inspect, open_folder, verify},
    progress::Progress,
    publish::{Destination, folder::FolderDestination},
};
use faasnet_actors::id::Digest;
use proptest::prelude::*;
use serde_json::json;
use std::fs;

fn golden_image() -> Image {
    let compressible: Vec<u8> = (0..700_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
    let lower = Archive::default()
        .directory("./")
        .directory("etc/")
        .file("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/app:/bin/sh\n")
        .file("etc/group", b"root:x:0:\nvideo:x:44:other,app\naudio:x:29:app\n")
        .file("noise", &noise(1_500_000, 7))
        .file("numbers", &compressible)
        .pax(&[("SCHILY.xattr.user.binary", b"\n=\n\0"), ("mtime", b"1700000000.123456789")])
        .file("marked", b"x")
        .symlink("link", "marked")
        .hard_link("again", "marked")
        .finish();
    let upper = Archive::default()
        .file(".wh.numbers", b"")
        .file("numbers-again", &compressible)
        .header(Header { device: ("0000001", "0000003"), ..Header::new(b'3', "null") })
        .finish();
    let process = json!({
        "User": "app", "Env": ["A=b=c", "PATH=/bin"], "Entrypoint": ["/app"], "Cmd": ["serve"],
        "WorkingDir": "/srv", "StopSignal": "SIGRTMIN+3",
    });
    Image::with_architecture(&[Layer::plain(lower), Layer::plain(upper)], process, "amd64")
}

/// These change only together with `FORMAT_VERSION`.
#[test]
fn an_image_gives_the_bytes_that_are_written_down_here() {
    let converted = golden_image().convert_for("linux/amd64", &settings()).unwrap();
    let image = &converted.image;
    assert_eq!(
        [image.blob_digest, image.index_digest, image.id].map(|digest| digest.to_string()),
        GOLDEN,
        "blob, index, artifact"
    );
}

const GOLDEN: [&str; 3] = [
    "sha256:79e1f4da9b680e25d6537d43272a0249faaaa0aa3aeecb738ce9024429821dd9",
    "sha256:80f952b2a0ce5be73efa9ebb0f1e0a6047fc0e06e8a1355f2001388ab85910a3",
    "sha256:31afc32ae3dd144004fe3e10903c3e9bfaee36d945e5ddecb79d366178bae7dd",
];

#[test]
fn threads_and_repetition_change_no_byte() {
    let image = golden_image();
    let ids: Vec<Digest> = [1, 2, 7]
        .map(|threads| {
            let mut settings = settings();
            settings.threads = threads;
            image.convert_for("linux/amd64", &settings).unwrap().image.id
        })
        .into();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
}

#[test]
fn the_artifact_alone_says_how_to_run_the_image() {
    let converted = golden_image().convert_for("linux/amd64", &settings()).unwrap();
    let opened = open_folder(converted.folder.path(), None, 1 << 20).unwrap();
    assert_eq!(opened, converted.image);
    let runtime = opened.runtime;
    assert_eq!((runtime.uid, runtime.gid, runtime.additional_gids), (1000, 1001, vec![44, 29]));
    assert_eq!((runtime.entrypoint, runtime.cmd), (vec!["/app".to_owned()], vec!["serve".to_owned()]));
    assert_eq!((runtime.env["A"].as_str(), runtime.env["PATH"].as_str()), ("b=c", "/bin"));
    assert_eq!((runtime.cwd.as_str(), runtime.stop_signal), ("/srv", 37));
}

#[test]
fn what_is_published_can_be_inspected_and_verified() {
    let converted = golden_image().convert_for("linux/amd64", &settings()).unwrap();
    let parts = FolderParts::new(converted.folder.path(), &converted.image);
    let inspection = inspect(&converted.image, &parts).unwrap();
    let blocks = converted.image.plain_bytes.div_ceil(512 * 1024);
    assert_eq!((u64::from(inspection.blocks), inspection.metadata_blocks), (blocks, 1));
    assert!(inspection.plain_blocks >= 1, "noise does not shrink: {inspection:?}");
    let verification = verify(&converted.image, &parts, &Progress::default()).unwrap();
    assert_eq!(u64::from(verification.blocks), blocks);
}

fn blob_file(converted: &Converted, digest: Digest) -> std::path::PathBuf {
    converted.folder.path().join("blobs/sha256").join(digest.hex())
}

#[test]
fn damage_is_found_wherever_it_is() {
    let converted = golden_image().convert_for("linux/amd64", &settings()).unwrap();
    let image = &converted.image;
    let parts = FolderParts::new(converted.folder.path(), image);
    let check = || verify(image, &parts, &Progress::default());
    let flip = |digest, place: usize| {
        let path = blob_file(&converted, digest);
        let mut bytes = fs::read(&path).unwrap();
        let place = place % bytes.len();
        bytes[place] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    flip(image.blob_digest, 1_000_000);
    assert!(matches!(check(), Err(InspectError::Hash(_))));
    flip(image.blob_digest, 1_000_000);
    check().unwrap();
    flip(image.index_digest, 60);
    assert!(matches!(check(), Err(InspectError::IndexDigest { .. })));
    flip(image.index_digest, 60);
    let blob = blob_file(&converted, image.blob_digest);
    fs::OpenOptions::new().write(true).open(blob).unwrap().set_len(1000).unwrap();
    assert!(matches!(check(), Err(InspectError::Origin(_))));
    flip(image.id, 10);
    assert!(matches!(
        open_folder(converted.folder.path(), None, 1 << 20),
        Err(InspectError::Artifact { .. })
    ));
}

#[test]
fn a_folder_keeps_every_image_that_is_written_at_the_same_time() {
    let folder = tempfile::TempDir::new().unwrap();
    let ids: Vec<Digest> = std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..6)
            .map(|number| {
                let folder = folder.path();
                scope.spawn(move || {
                    let tar = Archive::default().file("number", &[number]).finish();
                    Image::new(&[Layer::plain(tar)]).convert_into(folder).unwrap().id
                })
            })
            .collect();
        jobs.into_iter().map(|job| job.join().unwrap()).collect()
    });
    let destination = FolderDestination::new(folder.path());
    assert!(!destination.has(digest_of(b"another")).unwrap());
    for id in ids {
        assert!(destination.has(id).unwrap());
        let image = open_folder(folder.path(), Some(id), 1 << 20).unwrap();
        verify(&image, &FolderParts::new(folder.path(), &image), &Progress::default()).unwrap();
    }
    let several = open_folder(folder.path(), None, 1 << 20);
    assert!(matches!(several, Err(InspectError::Ambiguous { found, .. }) if found.len() == 6));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_converter_panic(
        places in proptest::collection::vec((0_usize..4096, any::<u8>()), 1..8),
        cut in 0_usize..8192,
    ) {
        let mut tar = Archive::default()
            .directory("dir")
            .pax(&[("SCHILY.xattr.user.a", b"b"), ("path", b"dir/file")])
            .file("x", &[3; 700])
            .pax(&[("GNU.sparse.map", b"0,5,100,4"), ("GNU.sparse.size", b"200")])
            .file("sparse", &[1; 9])
            .hard_link("again", "dir/file")
            .finish();
        for (place, byte) in places {
            let place = place % tar.len();
            tar[place] = byte;
            // Keeps the checksum right, so that damaged fields are reached.
            fix_checksum(&mut tar, place / 512 * 512);
        }
        let length = tar.len();
        tar.truncate(length.max(cut + 1) - cut);
        drop(Image::new(&[Layer::plain(tar)]).convert());
    }
}

fn fix_checksum(tar: &mut [u8], at: usize) {
    let header = &mut tar[at..at + 512];
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
