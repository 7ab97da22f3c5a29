use super::*;
use crate::{
    image::{
        artifact,
        convert::{ConvertError, ConvertOptions},
        erofs::Layout,
        packing::Plan,
        progress::Progress,
        publish::folder::FolderDestination,
        resolve::Platform,
    },
    settings::Settings,
};
use faasnet_actors::image::BlockImage;
use proptest::prelude::*;
use std::io::Write;

const LIMITS: ZipLimits = ZipLimits { entries_max: 100, plain_bytes_max: 1 << 20, ratio_max: 100 };
pub(crate) const FILE: u32 = 0o100_644;
pub(crate) const LINK: u32 = 0o120_777;
pub(crate) const FOLDER: u32 = 0o040_755;

/// An entry as the test wants it, true or not.
#[derive(Clone)]
pub(crate) struct Part {
    name: Vec<u8>,
    local_name: Option<Vec<u8>>,
    mode: u32,
    flags: u16,
    method: u16,
    /// As it lies in the zip.
    packed: Vec<u8>,
    plain_bytes: u32,
    crc: u32,
    /// Another place than that where it lies.
    offset: Option<u32>,
}

impl Part {
    pub(crate) fn new(name: &str, mode: u32, data: &[u8]) -> Self {
        Self {
            name: name.into(),
            local_name: None,
            mode,
            flags: 0x800,
            method: 0,
            packed: data.to_vec(),
            plain_bytes: data.len() as u32,
            crc: rawzip::crc32(data),
            offset: None,
        }
    }

    pub(crate) fn deflated(name: &str, data: &[u8]) -> Self {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(data).expect("in memory");
        let packed = encoder.finish().expect("in memory");
        Self { method: 8, packed, ..Self::new(name, FILE, data) }
    }

    pub(crate) fn zstd(name: &str, data: &[u8]) -> Self {
        let packed = zstd::bulk::compress(data, 3).expect("in memory");
        Self { method: 93, packed, ..Self::new(name, FILE, data) }
    }

    /// What both headers have, from the flags to the length of the extra fields.
    fn middle(&self, name: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&self.method.to_le_bytes());
        // 1980-01-01, midnight.
        out.extend_from_slice(&[0, 0, 0x21, 0]);
        out.extend_from_slice(&self.crc.to_le_bytes());
        out.extend_from_slice(&(self.packed.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.plain_bytes.to_le_bytes());
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        out
    }
}

pub(crate) fn zip(parts: &[Part]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for part in parts {
        let offset = part.offset.unwrap_or(out.len() as u32);
        let local_name = part.local_name.as_ref().unwrap_or(&part.name);
        if part.offset.is_none() {
            out.extend_from_slice(b"PK\x03\x04\x14\0");
            out.extend(part.middle(local_name));
            out.extend_from_slice(local_name);
            out.extend_from_slice(&part.packed);
        }
        // Made by Unix.
        directory.extend_from_slice(b"PK\x01\x02\x14\x03\x14\0");
        directory.extend(part.middle(&part.name));
        // No comment, disk 0, no internal attributes.
        directory.extend_from_slice(&[0; 6]);
        directory.extend_from_slice(&(part.mode << 16).to_le_bytes());
        directory.extend_from_slice(&offset.to_le_bytes());
        directory.extend_from_slice(&part.name);
    }
    let (at, count) = (out.len() as u32, parts.len() as u16);
    out.extend_from_slice(&directory);
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&(directory.len() as u32).to_le_bytes());
    out.extend_from_slice(&at.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out
}

/// Path, mode and data of everything, in the order of paths.
type Listing = Vec<(String, u16, Vec<u8>)>;

fn listing(bytes: &[u8]) -> Result<Listing, ZipError> {
    listing_within(bytes, &LIMITS)
}

fn listing_within(bytes: &[u8], limits: &ZipLimits) -> Result<Listing, ZipError> {
    let package = Package::read(bytes, bytes.len() as u64, limits)?;
    let mut found = Vec::new();
    let mut folders = vec![(ROOT, String::new())];
    while let Some((folder, path)) = folders.pop() {
        for (name, child) in package.tree().children(folder).expect("a folder") {
            let path = format!("{path}{}", String::from_utf8_lossy(name));
            let inode = package.tree().inode(child.inode);
            let mut data = Vec::new();
            match &inode.kind {
                Kind::Directory(_) => folders.push((child.inode, format!("{path}/"))),
                Kind::File { data: place, size, .. } => {
                    assert_eq!(package.copy_file(*place, &mut data)?, *size);
                }
                Kind::Symlink(target) => data.extend_from_slice(target),
                other => panic!("{path} is {other:?}"),
            }
            found.push((path, inode.attributes.mode, data));
        }
    }
    found.sort();
    Ok(found)
}

fn refusal(parts: &[Part]) -> String {
    listing(&zip(parts)).expect_err("refused").to_string()
}

fn refusal_of_name(name: &str) -> String {
    refusal(&[Part::new(name, FILE, b"x")])
}

#[test]
fn a_package_is_what_its_zip_says() {
    let parts = [
        Part::new("bin/run", 0o100_700, b"#!/bin/sh\n"),
        Part::new("lib/", FOLDER, b""),
        Part::deflated("./lib//app.py", b"print('hello')\n"),
        Part::new("lib/link", LINK, b"../bin/run"),
        Part::new("secret", 0o104_600, b""),
    ];
    let found = listing(&zip(&parts)).expect("a package");
    let file = |path: &str, mode, data: &[u8]| (path.to_owned(), mode, data.to_vec());
    let expected = [
        file("bin", 0o755, b""),
        file("bin/run", 0o755, b"#!/bin/sh\n"),
        file("lib", 0o755, b""),
        file("lib/app.py", 0o644, b"print('hello')\n"),
        file("lib/link", 0o777, b"../bin/run"),
        file("secret", 0o644, b""),
    ];
    assert_eq!(found, expected);
    assert_eq!(listing(&zip(&[])).expect("empty, and a zip"), []);
}

#[test]
fn paths_stay_in_the_package() {
    for (name, reason) in [
        ("/etc/passwd", "absolute"),
        ("C:/windows", "absolute"),
        ("../up", "`..`"),
        ("a/../../up", "`..`"),
        ("a/..", "`..`"),
        ("a\\..\\up", "backslash"),
        ("a\0b", "NUL"),
        ("./", "names nothing"),
        ("", "names nothing"),
        (&"a/".repeat(2048), "longer than"),
        (&"a".repeat(256), "longer than"),
    ] {
        assert!(refusal_of_name(name).contains(reason), "{name:?}: {}", refusal_of_name(name));
    }
    let part = Part { name: vec![b'a', 0xff], ..Part::new("", FILE, b"x") };
    assert!(refusal(&[part]).contains("not UTF-8"));
}

#[test]
fn nothing_has_two_meanings() {
    let file = |name| Part::new(name, FILE, b"x");
    for parts in [
        [file("a"), file("a")],
        [file("a"), file("./a")],
        [file("a/b"), file("a")],
        [Part::new("a/", FOLDER, b""), Part::new("a/", FOLDER, b"")],
        [Part::new("a", LINK, b"b"), Part::new("a/", FOLDER, b"")],
    ] {
        assert!(refusal(&parts).contains("twice"), "{}", refusal(&parts));
    }
    assert!(refusal(&[file("a"), file("a/b")]).contains("not a folder"));
    assert!(refusal(&[Part::new("a", LINK, b"."), file("a/b")]).contains("not a folder"));
    let other_name = Part { local_name: Some(b"b".to_vec()), ..file("a") };
    assert!(refusal(&[other_name]).contains("its own header"));
    // One entry under two names, which would also be a bomb if it were a larger one.
    let again = Part { offset: Some(0), local_name: None, ..file("a") };
    assert!(refusal(&[file("a"), Part { name: b"a".to_vec(), ..again }]).contains("twice"));
    let within = Part { offset: Some(0), ..Part::new("b", FILE, b"x") };
    let reason = refusal(&[Part { local_name: Some(b"b".to_vec()), ..file("b") }, within]);
    assert!(reason.contains("twice"), "{reason}");
    let mut behind = zip(&[file("a")]);
    behind.extend_from_slice(b"PK");
    assert!(matches!(listing(&behind), Err(ZipError::BytesBehind)), "{:?}", listing(&behind));
}

#[test]
fn entries_do_not_share_bytes() {
    // The second lies in the data of the first, with a header of its own.
    let inner = zip(&[Part::new("inner", FILE, b"x")]);
    let local = &inner[..inner.windows(4).position(|bytes| bytes == b"PK\x01\x02").expect("a directory")];
    let outer = Part::new("outer", FILE, local);
    let at = (30 + outer.name.len()) as u32;
    let inside = Part { offset: Some(at), ..Part::new("inner", FILE, b"x") };
    assert!(refusal(&[outer, inside]).contains("another entry"));
}

#[test]
fn only_files_folders_and_links_are_taken() {
    for mode in [0o020_666, 0o060_666, 0o010_644, 0o140_755] {
        assert!(refusal(&[Part::new("a", mode, b"")]).contains("device, socket or pipe"), "{mode:o}");
        assert!(refusal(&[Part::new("a/", mode, b"")]).contains("device, socket or pipe"), "{mode:o}");
    }
    assert!(refusal(&[Part::new("a/", FOLDER, b"data")]).contains("has data"));
    // A folder of a writer that gives no modes.
    assert_eq!(listing(&zip(&[Part::new("a/", 0, b"")])).expect("taken")[0].1, 0o755);
    let encrypted = Part { flags: 0x801, ..Part::new("a", FILE, b"x") };
    assert!(refusal(&[encrypted]).contains("without a password"));
    let lzma = Part { method: 14, ..Part::new("a", FILE, b"x") };
    assert!(refusal(&[lzma]).contains("make the zip with deflate"));
}

#[test]
fn links_lead_to_what_is_in_the_package() {
    let link = |name, target: &str| Part::new(name, LINK, target.as_bytes());
    let deep = || Part::new("a/b/c/file", FILE, b"x");
    for parts in [
        vec![link("up", "../x")],
        vec![link("root", "/etc/passwd")],
        vec![deep(), link("a/b/out", "../../../x")],
        vec![link("missing", "nowhere/../../x")],
        // By name within, along the link to a folder nearer to the root outside.
        vec![deep(), link("a/b/c/top", "../../.."), link("a/b/c/out", "top/../etc")],
        vec![deep(), link("near", "a"), link("a/b/out", "../../near/../../x")],
    ] {
        let reason = refusal(&parts);
        assert!(reason.contains("leads out of the package"), "{reason}");
    }
    for parts in [
        vec![deep(), link("a/b/in", "c/file"), link("in", "a/b/in")],
        vec![deep(), link("a/b/c/up", "../../b/c/file")],
        vec![link("missing", "nowhere")],
        vec![link("round", "round")],
        vec![link("one", "other/x"), link("other", "one/x")],
    ] {
        listing(&zip(&parts)).expect("taken");
    }
    for target in ["", "a\0b", &"a/".repeat(2048)] {
        assert!(refusal(&[link("a", target)]).contains("the target of the link"));
    }
    let bent = Part { crc: 1, ..link("a", "b") };
    assert!(refusal(&[bent]).contains("checksum"));
}

#[test]
fn links_through_links_through_links_end() {
    let chain = |number: usize| {
        let target = if number == 39 { ".".to_owned() } else { format!("l{}/", number + 1).repeat(500) };
        Part::new(&format!("l{number}"), LINK, target.as_bytes())
    };
    let parts: Vec<Part> = (0..40).map(chain).collect();
    let many = (0..60).map(|number| Part::new(&format!("m{number}"), LINK, "l0/".repeat(1300).as_bytes()));
    let parts: Vec<Part> = parts.into_iter().chain(many).collect();
    let _either_way = listing(&zip(&parts));
}

#[test]
fn sizes_are_held_against_what_comes_out() {
    let honest = Part::deflated("a", &[7; 5000]);
    for plain_bytes in [0, 1, 4999, 5001] {
        let part = Part { plain_bytes, ..honest.clone() };
        let reason = refusal(&[part]);
        assert!(reason.contains("more or less data"), "{plain_bytes}: {reason}");
    }
    assert!(refusal(&[Part { crc: 0, ..honest.clone() }]).contains("checksum"));
    let mut damaged = honest.clone();
    damaged.packed[3] ^= 0xff;
    listing(&zip(&[damaged])).expect_err("damaged");
    let cut = Part { packed: honest.packed[..honest.packed.len() - 2].to_vec(), ..honest.clone() };
    listing(&zip(&[cut])).expect_err("cut short");
    let plain = Part { plain_bytes: 2, ..Part::new("a", FILE, b"abc") };
    assert!(refusal(&[plain]).contains("more or less data"));
}

/// As the manager does it; what is published is thrown away.
fn converted(bytes: &[u8]) -> Result<BlockImage, ConvertError> {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("package.zip");
    std::fs::write(&path, bytes).expect("written");
    let options = ConvertOptions {
        platform: Platform::of_this_machine(),
        settings: Settings::load(None).expect("defaults").image,
        spool: folder.path().to_owned(),
    };
    let destination = FolderDestination::new(folder.path().join("images"));
    let digest = artifact::digest_of(bytes);
    convert_package(&path, digest, &LIMITS, &destination, &options, &Progress::default())
}

#[test]
fn files_that_are_said_to_be_empty_are_empty() {
    converted(&zip(&[Part::new("a", FILE, b""), Part::deflated("b", b"")])).expect("taken");
    let lies = Part { plain_bytes: 0, crc: 0, ..Part::deflated("a", b"not empty") };
    for parts in [vec![lies.clone()], vec![Part::new("b", FILE, b"x"), lies]] {
        let reason = converted(&zip(&parts)).expect_err("refused").to_string();
        assert!(reason.contains("\"a\"") && reason.contains("more or less data"), "{reason}");
    }
}

#[test]
fn bombs_are_refused_before_they_are_unpacked() {
    let zeros = |bytes| Part::deflated("zeros", &vec![0; bytes]);
    assert!(matches!(listing(&zip(&[zeros(2 << 20)])), Err(ZipError::TooLarge { .. })));
    let limits = ZipLimits { plain_bytes_max: 1 << 30, ..LIMITS };
    listing_within(&zip(&[zeros(2 << 20)]), &limits).expect("small, however well packed");
    assert!(matches!(listing_within(&zip(&[zeros(17 << 20)]), &limits), Err(ZipError::Ratio(100))));
    let many: Vec<Part> = (0..101).map(|number| Part::new(&format!("{number}"), FILE, b"")).collect();
    assert!(matches!(listing(&zip(&many)), Err(ZipError::TooManyEntries(100))));
    // Folders that are only in paths count.
    let deep = |folders| Part::new(&format!("{}file", "a/".repeat(folders)), FILE, b"");
    assert!(matches!(listing(&zip(&[deep(100)])), Err(ZipError::TooManyEntries(100))));
    assert_eq!(listing(&zip(&[deep(99)])).expect("a hundred").len(), 100);
    assert!(refusal(&[deep(10_000)]).contains("longer than"));
    let huge = Part { plain_bytes: u32::MAX - 1, ..Part::new("a", FILE, b"") };
    assert!(matches!(listing(&zip(&[huge.clone(), huge])), Err(ZipError::TooLarge { .. })));
}

#[test]
fn what_is_cut_short_is_no_package() {
    let whole = zip(&[Part::deflated("a/b", &[1; 100]), Part::new("c", FILE, b"abc")]);
    for length in 0..whole.len() {
        listing(&whole[..length]).expect_err("cut short");
    }
}

#[test]
fn the_count_of_entries_must_be_true() {
    let part = |name| Part::new(name, FILE, b"x");
    for said in [1_u8, 3] {
        let mut bytes = zip(&[part("a"), part("b")]);
        let end = bytes.len() - 22;
        (bytes[end + 8], bytes[end + 10]) = (said, said);
        assert!(matches!(listing(&bytes), Err(ZipError::Count { .. })), "{said}");
    }
}

proptest! {
    /// Whatever the bytes are, reading ends, and what comes out stays within the limits.
    #[test]
    fn any_damage_is_refused_or_harmless(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let parts = [
            Part::deflated("lib/app.py", &[9; 3000]),
            Part::new("lib/link", LINK, b"app.py"),
            Part::new("d/", FOLDER, b""),
            Part::new("run", 0o100_755, b"#!/bin/sh\n"),
        ];
        let mut bytes = zip(&parts);
        for (place, byte) in changes {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(found) = listing(&bytes) {
            let plain: usize = found.iter().map(|(_, _, data)| data.len()).sum();
            prop_assert!(plain as u64 <= LIMITS.plain_bytes_max + 4095);
            let package = Package::read(bytes.as_slice(), bytes.len() as u64, &LIMITS).expect("read before");
            let plan = Plan::new(package.tree(), None);
            prop_assert!(Layout::new(package.tree(), &plan, 1 << 30).is_ok());
        }
    }
}
