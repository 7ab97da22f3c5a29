//! Block images mounted by the kernel, straight from a file without a loop device, and listings to
//! compare file systems by.

use crate::oci::Converted;
use faasnet::image::{artifact::digest_of, blocks::decode_block};
use faasnet_actors::{
    id::{BlockId, Digest},
    image::Index,
};
use rustix::{
    fs::{AtFlags, CWD, FileType},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
        fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
    },
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// A mounted block image; dropping it unmounts.
pub struct Mounted {
    folder: TempDir,
}

impl Mounted {
    pub fn new(converted: &Converted) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("image");
        write_plain(converted, &file);
        fsck(&file);
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(&context, "source", &file).unwrap();
        fsconfig_create(&context).unwrap();
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).unwrap();
        move_mount(&mount, "", CWD, &root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
        Self { folder }
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path().join("image")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(self.root(), UnmountFlags::DETACH).unwrap();
    }
}

/// Decodes all blocks into a file, as an agent would.
pub fn write_plain(converted: &Converted, path: &Path) {
    let blob = |digest: Digest| converted.folder.path().join("blobs/sha256").join(digest.hex());
    let index = Index::decode(&fs::read(blob(converted.image.index_digest)).unwrap()).unwrap();
    let stored = fs::read(blob(converted.image.blob_digest)).unwrap();
    assert_eq!(stored.len() as u64, index.blob_bytes());
    let mut file = File::create(path).unwrap();
    for block in (0..index.block_count()).map(BlockId) {
        let entry = index.entry(block).unwrap();
        let bytes = &stored[entry.offset as usize..][..entry.stored_bytes as usize];
        assert!(index.verify(block, bytes));
        file.write_all(&decode_block(entry, index.plain_len(block), bytes).unwrap()).unwrap();
    }
}

pub fn fsck(file: &Path) {
    let output = Command::new("fsck.erofs").arg("--extract").arg(file).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("<E>"), "fsck.erofs: {text}");
}

/// What is compared of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub kind: &'static str,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub device: u64,
    pub links: u64,
    pub size: u64,
    /// Names of the same inode, by the first of them.
    pub same_as: PathBuf,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a file's bytes or a symbolic link's target.
    pub content: Option<Digest>,
}

/// Everything below a folder, the folder itself as the empty path.
pub fn listing(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let (mut found, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    let mut folders = vec![root.to_owned()];
    let mut paths = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            paths.push(entry.path());
        }
    }
    paths.sort();
    for path in paths {
        let name = path.strip_prefix(root).unwrap().to_owned();
        let facts = facts(&path, &name, &mut inodes);
        found.insert(name, facts);
    }
    found
}

fn facts(path: &Path, name: &Path, inodes: &mut BTreeMap<u64, PathBuf>) -> Facts {
    let data = fs::symlink_metadata(path).unwrap();
    let kind = FileType::from_raw_mode(data.mode());
    let is_directory = kind == FileType::Directory;
    let content = match kind {
        FileType::RegularFile => Some(digest_of(&fs::read(path).unwrap())),
        FileType::Symlink => Some(digest_of(fs::read_link(path).unwrap().as_os_str().as_bytes())),
        _ => None,
    };
    Facts {
        kind: match kind {
            FileType::RegularFile => "file",
            FileType::Directory => "directory",
            FileType::Symlink => "symlink",
            FileType::Fifo => "fifo",
            FileType::CharacterDevice => "char",
            FileType::BlockDevice => "block",
            _ => "other",
        },
        mode: data.mode() & 0o7777,
        uid: data.uid(),
        gid: data.gid(),
        mtime: (data.mtime(), data.mtime_nsec()),
        device: data.rdev(),
        links: data.nlink(),
        size: if is_directory { 0 } else { data.size() },
        same_as: inodes.entry(data.ino()).or_insert_with(|| name.to_owned()).clone(),
        xattrs: xattrs(path),
        content,
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        value
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// Compares two file systems and shows what differs.
pub fn assert_same(got: &BTreeMap<PathBuf, Facts>, expected: &BTreeMap<PathBuf, Facts>) {
    for (path, facts) in expected {
        assert_eq!(got.get(path), Some(facts), "{}", path.display());
    }
    let extra: Vec<_> = got.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(extra.is_empty(), "not in the reference: {extra:?}");
}

/// Sets the modification time of a path itself, to the nanosecond.
pub fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
