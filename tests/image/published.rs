//! The artifact: the same bytes every time, and all that a start needs in it.

use crate::{
    archive::{Archive, Header, noise},
    mounted::{Mounted, assert_same, listing, write_plain},
    oci::{Converted, Image, Layer, settings},
};
use faasnet::image::{
    artifact::digest_of,
    erofs::read::FileMap,
    inspect::{FolderParts, InspectError, inspect, open_folder, verify},
    progress::Progress,
    publish::{Destination, folder::FolderDestination},
};
use faasnet_actors::{
    id::Digest,
    image::{BLOCK_BYTES, BlockImage, Index},
    profile::Profile,
};
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

/// What a start might read of it: a part of one file, a part of another by its second name, all of a third, and
/// what the image does not have.
fn golden_profile() -> Profile {
    let parts = [
        ("/noise", 1_000_000..1_010_000),
        ("/numbers-again", 0..5000),
        ("/again", 0..4096),
        ("/noise", 0..4096),
        ("/noise", 1_499_000..9_000_000),
        ("/gone", 0..4096),
        ("/etc", 0..4096),
        ("/marked", 1..2),
    ];
    Profile::recorded(parts.map(|(path, range)| (path.parse().unwrap(), range)))
}

fn golden_packed() -> Converted {
    golden_image().convert_packed("linux/amd64".parse().unwrap(), &golden_profile()).unwrap()
}

#[test]
fn a_packed_image_gives_the_bytes_that_are_written_down_here() {
    let (converted, again) = (golden_packed(), golden_packed());
    assert_eq!(converted.image, BlockImage { location: converted.image.location.clone(), ..again.image });
    let image = &converted.image;
    assert_eq!(
        [image.blob_digest, image.index_digest, image.id].map(|digest| digest.to_string()),
        GOLDEN_PACKED,
        "blob, index, artifact"
    );
}

#[test]
fn a_packed_image_reads_like_the_plain_one_and_says_what_is_hot() {
    let plain = golden_image().convert_for("linux/amd64", &settings()).unwrap();
    let packed = golden_packed();
    assert_same(&listing(&Mounted::new(&packed).root()), &listing(&Mounted::new(&plain).root()));
    let inspect = |converted: &Converted| {
        let parts = FolderParts::new(converted.folder.path(), &converted.image);
        verify(&converted.image, &parts, &Progress::default()).unwrap();
        inspect(&converted.image, &parts).unwrap()
    };
    let (plain, packed) = (inspect(&plain), inspect(&packed));
    assert_eq!((plain.metadata_blocks, plain.hot_blocks), (1, 1));
    assert_eq!((packed.metadata_blocks, packed.hot_blocks), (1, 1), "the hot set fits behind the metadata");
    assert_eq!(plain.source, packed.source);
}

#[test]
fn the_first_blocks_of_a_packed_image_hold_what_starts_read_in_its_order() {
    let packed = golden_packed();
    let file = packed.folder.path().join("plain");
    write_plain(&packed, &file);
    let bytes = fs::read(&file).unwrap();
    let map = FileMap::read(&bytes).unwrap();
    let index = Index::decode(&fs::read(blob_file(&packed, packed.image.index_digest)).unwrap()).unwrap();
    let front = map.parts(std::iter::once(0..u64::from(index.hot_blocks() * BLOCK_BYTES)));
    let shown: Vec<_> =
        front.parts().iter().take(5).map(|part| (part.path.to_string(), part.start, part.end)).collect();
    let expected = [
        ("/noise", 999_424, 1_011_712),
        ("/numbers-again", 0, 8192),
        ("/again", 0, 1),
        ("/noise", 0, 4096),
        ("/noise", 1_495_040, 1_500_000),
    ];
    assert_eq!(shown, expected.map(|(path, start, end)| (path.to_owned(), start, end)));
}

#[test]
fn plain_and_packed_artifacts_of_one_source_are_told_apart_in_a_folder() {
    let packed = golden_packed();
    let json = fs::read(packed.folder.path().join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let annotations = &index["manifests"][0]["annotations"];
    assert_eq!(annotations["io.faasnet.profile"], golden_profile().fingerprint());
    let plain = golden_image().convert_for("linux/amd64", &settings()).unwrap();
    assert_ne!(plain.image.id, packed.image.id);
    let json = fs::read(plain.folder.path().join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert!(index["manifests"][0]["annotations"].get("io.faasnet.profile").is_none());
}

#[test]
fn a_profile_as_users_write_it_is_read_and_checked() {
    let json = serde_json::to_string(&golden_profile()).unwrap();
    assert_eq!(serde_json::from_str::<Profile>(&json).unwrap(), golden_profile());
    let short = r#"{"recordings":1,"parts":[{"path":"/a","start":0,"end":9}]}"#;
    assert_eq!(serde_json::from_str::<Profile>(short).unwrap().bytes(), 9);
    for bad in [
        r#"{"recordings":1,"parts":[{"path":"a","start":0,"end":9}]}"#,
        r#"{"recordings":1,"parts":[{"path":"/../a","start":0,"end":9}]}"#,
        r#"{"recordings":1,"parts":[{"path":"/a","start":9,"end":9}]}"#,
        r#"{"recordings":1,"parts":[{"path":"/a","start":-1,"end":9}]}"#,
        r#"{"recordings":1,"parts":[{"path":"/a","start":0,"end":18446744073709551615}]}"#,
        r#"{"recordings":0,"parts":[{"path":"/a","start":0,"end":9}]}"#,
        r#"{"recordings":1,"parts":[],"extra":1}"#,
    ] {
        assert!(serde_json::from_str::<Profile>(bad).is_err(), "{bad}");
    }
}

const GOLDEN_PACKED: [&str; 3] = [
    "sha256:f1693d81f1552532a31759c0447b40b75ef43d0d21b88cc9ab93580738776b9f",
    "sha256:2443b85a7c3bc8d1c8bc72de9d9d8f798c9a1d155dfb5ea50350146d3223f1a8",
    "sha256:137d399c10ebe3165a9ec05de8fd2d118eff6c5de63449d4a7fdf74a9dda0cab",
];

const GOLDEN: [&str; 3] = [
    "sha256:01732414d0efaee67bbe9b394e7e8327b4d804aac19d1adca8f0e0038fd0a107",
    "sha256:87cd1e53fdee5a2a66cad2f368a36100163bcac592b5368f8332b51cf36ea9a3",
    "sha256:1cecdc99396c0aa8f911f7b362d2fc0a6275bcfb04fc7f724bb69592d630cb15",
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
