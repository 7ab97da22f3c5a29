//! Random trees whose sizes lie around the edges of blocks, seen by three readers: the kernel,
//! `fsck.erofs` and erofs-rs.

use crate::{
    archive::{Archive, noise},
    mounted::{Facts, Mounted, assert_same, listing, write_plain},
    oci::{Converted, Image, Layer},
    roundtrip::run,
};
use erofs_rs::{EroFS, backend::SliceImage};
use faasnet::image::{artifact::digest_of, resolve::Platform};
use faasnet_actors::profile::{FilePath, Profile};
use proptest::{prelude::*, sample::Index};
use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    File(usize),
    Symlink(usize),
    HardLink(Index),
}

#[derive(Debug, Clone)]
struct Node {
    parent: Index,
    name_bytes: usize,
    kind: Kind,
    xattr_bytes: Option<usize>,
}

/// Lengths that fill a block exactly are as likely as any others.
fn around_blocks(max: usize) -> impl Strategy<Value = usize> {
    let edges = (0..=max / 4096)
        .prop_flat_map(move |block| (block * 4096).saturating_sub(200)..=(block * 4096 + 40).min(max));
    prop_oneof![0..=max, edges]
}

fn node() -> impl Strategy<Value = Node> {
    let kind = prop_oneof![
        3 => Just(Kind::Directory),
        4 => around_blocks(20_000).prop_map(Kind::File),
        3 => around_blocks(4095).prop_map(|bytes| Kind::Symlink(bytes.max(1))),
        1 => any::<Index>().prop_map(Kind::HardLink),
    ];
    let xattr = proptest::option::weighted(0.3, 0_usize..3500);
    (any::<Index>(), 1_usize..=200, kind, xattr).prop_map(|(parent, name_bytes, kind, xattr_bytes)| Node {
        parent,
        name_bytes,
        kind,
        xattr_bytes,
    })
}

/// A layer of these nodes; each lies in one of the directories before it.
fn archive(nodes: &[Node]) -> Vec<u8> {
    let (mut archive, mut directories, mut files) =
        (Archive::default().directory("./"), vec![String::new()], vec![]);
    for (number, node) in nodes.iter().enumerate() {
        let parent = node.parent.get(&directories);
        let path = format!("{parent}{number}-{}", "n".repeat(node.name_bytes));
        if path.len() > 3800 {
            continue;
        }
        let xattr = vec![b'x'; node.xattr_bytes.unwrap_or(0)];
        let long_target = "t/".repeat(2048);
        let mut records = vec![("path", path.as_bytes())];
        if node.xattr_bytes.is_some() && !matches!(node.kind, Kind::HardLink(_)) {
            records.push(("SCHILY.xattr.trusted.random", &xattr));
        }
        archive = match &node.kind {
            Kind::Directory => archive.pax(&records).directory("x"),
            Kind::File(bytes) => archive.pax(&records).file("x", &noise(*bytes, number as u64 % 4)),
            Kind::Symlink(bytes) => {
                records.push(("linkpath", &long_target.as_bytes()[..*bytes]));
                archive.pax(&records).symlink("x", "y")
            }
            Kind::HardLink(_) if files.is_empty() => continue,
            Kind::HardLink(target) => {
                let target: &String = target.get(&files);
                records.push(("linkpath", target.as_bytes()));
                archive.pax(&records).hard_link("x", "y")
            }
        };
        match node.kind {
            Kind::Directory => directories.push(path + "/"),
            Kind::File(_) | Kind::Symlink(_) => files.push(path),
            Kind::HardLink(_) => {}
        }
    }
    archive.finish()
}

/// A read of a file, sometimes behind its end.
fn read() -> impl Strategy<Value = (Index, u64, u64)> {
    (any::<Index>(), 0_u64..21_000, 1_u64..12_000)
}

/// What was read of which files.
fn profile(expected: &BTreeMap<PathBuf, Facts>, reads: &[(Index, u64, u64)]) -> Profile {
    let paths: Vec<&PathBuf> = expected.keys().filter(|path| !path.as_os_str().is_empty()).collect();
    let part = |(file, start, bytes): &(Index, u64, u64)| {
        let path = Path::new("/").join(file.get(&paths));
        (FilePath::new(path.as_os_str().as_bytes()).unwrap(), *start..start + bytes)
    };
    Profile::recorded(reads.iter().map(part))
}

fn unpacked_by_tar(tar: &[u8]) -> BTreeMap<PathBuf, Facts> {
    let folder = TempDir::new().unwrap();
    let (file, root) = (folder.path().join("tar"), folder.path().join("root"));
    fs::write(&file, tar).unwrap();
    fs::create_dir(&root).unwrap();
    let (file, root_text) = (file.display().to_string(), root.display().to_string());
    let options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--delay-directory-restore"];
    run("tar", &[&options[..], &["-pxf", &file, "-C", &root_text]].concat());
    listing(&root)
}

fn assert_erofs_rs_agrees(converted: &Converted, expected: &BTreeMap<PathBuf, Facts>) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("image");
    write_plain(converted, &file);
    let bytes = fs::read(&file).unwrap();
    let image = EroFS::new(SliceImage::new(&bytes)).unwrap();
    let mut seen = 0;
    for entry in image.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let path = entry.dir_entry.path().to_string();
        let facts = &expected[Path::new(path.trim_start_matches('/'))];
        let inode = entry.inode;
        assert_eq!((inode.uid(), inode.gid(), u64::from(inode.nlink())), (facts.uid, facts.gid, facts.links));
        assert_eq!(image.xattrs_inode(inode).unwrap().len(), facts.xattrs.len(), "{path}");
        let content = if inode.is_file() {
            let mut content = Vec::new();
            image.open_inode_file(inode).unwrap().read_to_end(&mut content).unwrap();
            Some(content)
        } else if inode.is_symlink() {
            Some(image.read_link_inode(inode).unwrap().as_bytes().to_vec())
        } else {
            None
        };
        assert_eq!(content.map(|bytes| digest_of(&bytes)), facts.content, "{path}");
        seen += 1;
    }
    assert_eq!(seen + 1, expected.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_look_the_same_to_all_readers(
        nodes in proptest::collection::vec(node(), 1..120),
        reads in proptest::collection::vec(read(), 0..60),
    ) {
        let tar = archive(&nodes);
        let expected = unpacked_by_tar(&tar);
        let image = Image::new(&[Layer::plain(tar)]);
        let profile = profile(&expected, &reads);
        let packed = image.convert_packed(Platform::of_this_machine(), &profile).unwrap();
        for converted in [image.convert().unwrap(), packed] {
            assert_same(&listing(&Mounted::new(&converted).root()), &expected);
            assert_erofs_rs_agrees(&converted, &expected);
        }
    }
}
