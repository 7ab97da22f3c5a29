//! A full listing of a file system tree, one line of JSON for each name, to compare what a container sees
//! with the unpacked image. Mount points are named and not entered.

use rustix::{
    fs::{lgetxattr, llistxattr},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

/// Longest list of names and longest value of extended attributes: the kernel's own limit.
const XATTR_BYTES_MAX: usize = 65536;

/// One name of the tree. Bytes that are no UTF-8 appear as `\xNN`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Absolute, as seen from the root of the tree.
    pub path: String,
    /// `file`, `folder`, `link`, `pipe`, `socket`, `char`, `block` or `mount`.
    pub kind: String,
    /// Permissions with set-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of a file; zero for all else, because file systems count folders differently.
    pub bytes: u64,
    pub modified_s: i64,
    pub modified_ns: i64,
    /// Of everything but folders, whose count file systems choose.
    pub links: u64,
    pub device: u64,
    /// Target of a symbolic link.
    pub target: String,
    /// SHA-256 of a file's content, hexadecimal: what every system can compute again.
    pub sha256: String,
    /// Values in hexadecimal.
    pub xattrs: BTreeMap<String, String>,
}

/// Calls `each` for every name below `root`, the root included, sorted within each folder.
pub fn list(root: &Path, mut each: impl FnMut(Entry) -> io::Result<()>) -> io::Result<()> {
    let mounts = if root == Path::new("/") { mount_points()? } else { BTreeSet::new() };
    let mut waiting = vec![root.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let entry = entry(root, &path, mounts.contains(&path))?;
        if entry.kind == "folder" {
            let names =
                fs::read_dir(&path)?.map(|name| Ok(name?.path())).collect::<io::Result<BTreeSet<_>>>()?;
            waiting.extend(names.into_iter().rev());
        }
        each(entry)?;
    }
    Ok(())
}

fn entry(root: &Path, path: &Path, is_mount: bool) -> io::Result<Entry> {
    let seen = Path::new("/").join(path.strip_prefix(root).expect("walked from the root"));
    let metadata = fs::symlink_metadata(path)?;
    let kind = if is_mount { "mount" } else { kind(&metadata) };
    let mut entry = Entry {
        path: printable(seen.as_os_str().as_bytes()),
        kind: kind.to_owned(),
        mode: 0,
        uid: 0,
        gid: 0,
        bytes: 0,
        modified_s: 0,
        modified_ns: 0,
        links: 0,
        device: 0,
        target: String::new(),
        sha256: String::new(),
        xattrs: BTreeMap::new(),
    };
    if is_mount {
        return Ok(entry);
    }
    entry.mode = metadata.mode() & 0o7777;
    (entry.uid, entry.gid) = (metadata.uid(), metadata.gid());
    (entry.modified_s, entry.modified_ns) = (metadata.mtime(), metadata.mtime_nsec());
    entry.xattrs = xattrs(path)?;
    match kind {
        "folder" => return Ok(entry),
        "file" => {
            entry.bytes = metadata.len();
            entry.sha256 = digest(path)?;
        }
        "link" => entry.target = printable(fs::read_link(path)?.as_os_str().as_bytes()),
        _ => entry.device = metadata.rdev(),
    }
    entry.links = metadata.nlink();
    Ok(entry)
}

fn kind(metadata: &fs::Metadata) -> &'static str {
    match rustix::fs::FileType::from_raw_mode(metadata.mode()) {
        rustix::fs::FileType::RegularFile => "file",
        rustix::fs::FileType::Directory => "folder",
        rustix::fs::FileType::Symlink => "link",
        rustix::fs::FileType::Fifo => "pipe",
        rustix::fs::FileType::Socket => "socket",
        rustix::fs::FileType::CharacterDevice => "char",
        rustix::fs::FileType::BlockDevice => "block",
        rustix::fs::FileType::Unknown => "unknown",
    }
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = io::Read::read(&mut file, &mut buffer)?;
        if read == 0 {
            return Ok(hexadecimal(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let length = match llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; XATTR_BYTES_MAX];
        let length = lgetxattr(path, name, &mut value[..])?;
        found.insert(printable(name), hexadecimal(&value[..length]));
    }
    Ok(found)
}

/// The mount points that this process sees, without the root.
fn mount_points() -> io::Result<BTreeSet<PathBuf>> {
    let text = fs::read("/proc/self/mountinfo")?;
    let fifth = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).map(unescaped);
    let points = text.split(|byte| *byte == b'\n').filter_map(fifth);
    Ok(points.filter(|point| point != Path::new("/")).collect())
}

/// The kernel writes blanks, tabs, line ends and backslashes as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| behind.get(..3)).flatten();
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn listed(root: &Path) -> BTreeMap<String, Entry> {
        let mut entries = BTreeMap::new();
        list(root, |entry| {
            entries.insert(entry.path.clone(), entry);
            Ok(())
        })
        .unwrap();
        entries
    }

    #[test]
    fn every_property_of_every_name_is_listed() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir(path("folder")).unwrap();
        fs::write(path("folder/file"), "abc").unwrap();
        fs::set_permissions(path("folder/file"), fs::Permissions::from_mode(0o4755)).unwrap();
        rustix::fs::setxattr(path("folder/file"), "user.note", b"\x01\xff", rustix::fs::XattrFlags::empty())
            .unwrap();
        fs::hard_link(path("folder/file"), path("again")).unwrap();
        symlink("folder/file", path("link")).unwrap();
        let entries = listed(root.path());
        assert_eq!(entries.keys().collect::<Vec<_>>(), ["/", "/again", "/folder", "/folder/file", "/link"]);
        let file = &entries["/folder/file"];
        assert_eq!((file.kind.as_str(), file.mode, file.links, file.bytes), ("file", 0o4755, 2, 3));
        assert_eq!(file.xattrs["user.note"], "01ff");
        assert!(file.sha256.starts_with("ba7816bf8f01cfea414140de5dae2223"));
        assert_eq!(
            (entries["/link"].kind.as_str(), entries["/link"].target.as_str()),
            ("link", "folder/file")
        );
        fs::write(path("folder/file"), "abd").unwrap();
        assert_ne!(listed(root.path())["/again"].sha256, file.sha256);
    }

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        assert!(mount_points().unwrap().contains(Path::new("/proc")));
        assert_eq!(unescaped(b"/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(printable(b"a\xffb"), "a\\xffb");
    }
}
