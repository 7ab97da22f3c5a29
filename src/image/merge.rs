//! The first pass: the headers of all layers become one tree.
//!
//! Layers are applied from the lowest up, as unpacking would do it, because then hard links to files of
//! lower layers, duplicate entries and replaced types need no rules of their own. What a layer covers
//! leaves the tree at once, so memory never holds more than one file system.

use crate::image::{
    tar::{Entry, EntryKind, TarError},
    tree::{
        Attributes, Child, Children, ContentHash, DataPlace, Inode, InodeId, Kind, ROOT, Tree,
        implied_directory,
    },
    xattr,
};
use std::path::PathBuf;

/// `NAME_MAX` of Linux; EROFS and overlayfs have the same limit.
const NAME_BYTES_MAX: usize = 255;
/// `PATH_MAX` of Linux, less the final NUL.
const PATH_BYTES_MAX: usize = 4095;
/// Prefix of whiteouts in the OCI image specification.
const WHITEOUT: &[u8] = b".wh.";
/// Marks of the aufs file system begin with the prefix twice; one of them hides a whole directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// Why an entry is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the path leads out of the image by `..`")]
    ParentDirectory,
    #[error("the path is absolute")]
    Absolute,
    #[error("the path is empty")]
    Empty,
    #[error("a name is longer than {NAME_BYTES_MAX} bytes or the path longer than {PATH_BYTES_MAX}")]
    TooLong,
    #[error("a name or link target contains a NUL byte")]
    Nul,
    #[error("the path goes through {0:?}, which is not a directory")]
    NotADirectory(PathBuf),
    #[error("the root of the image is not a directory")]
    Root,
    #[error("it is a hard link to {target:?}, {problem}")]
    HardLink { target: PathBuf, problem: LinkProblem },
    #[error("the target of the symbolic link is empty or longer than {PATH_BYTES_MAX} bytes")]
    SymlinkTarget,
    #[error("a whiteout has no name")]
    Whiteout,
    #[error("it is a 0:0 character device, which overlayfs takes for a deleted file")]
    OverlayDevice,
    #[error("the device number {0}:{1} is not valid")]
    Device(u64, u64),
    #[error("the {0} {1} is not valid")]
    Number(&'static str, u64),
    #[error(transparent)]
    Xattr(#[from] xattr::XattrError),
    #[error(
        "the image has more than {0} entries, directories in their paths included, the limit set by image.entries_max"
    )]
    TooManyEntries(u64),
    #[error(transparent)]
    Tar(#[from] TarError),
}

/// What is wrong with the target of a hard link.
#[derive(Debug, thiserror::Error)]
pub enum LinkProblem {
    #[error("which does not exist in this layer or below")]
    Missing,
    #[error("which is a directory")]
    Directory,
    #[error("which is no path within the image")]
    Outside,
}

/// The tree of the layers applied so far.
#[derive(Debug)]
pub struct Merger {
    tree: Tree,
    layer: u16,
    entry: u32,
    entries_max: u64,
    /// Entries that may still come; directories that are only in their paths count.
    entries_left: u64,
}

impl Merger {
    /// For all layers together so many entries, and directories that only the paths of entries name: one entry
    /// may have two thousand of them.
    pub fn new(entries_max: u64) -> Self {
        Self { tree: Tree::new(), layer: 0, entry: 0, entries_max, entries_left: entries_max }
    }

    /// Begins the next layer.
    pub fn begin_layer(&mut self, layer: u16) {
        (self.layer, self.entry) = (layer, 0);
    }

    /// Applies the next entry of the present layer; `content` is of its data, if it was hashed.
    pub fn apply(&mut self, entry: Entry, content: Option<ContentHash>) -> Result<(), Refusal> {
        let number = self.entry;
        self.entry += 1;
        self.count()?;
        let path = split(&entry.path)?;
        let Some((name, parents)) = path.split_last() else {
            return self.apply_root(entry);
        };
        if name.starts_with(WHITEOUT) {
            return self.apply_whiteout(parents, name);
        }
        let directory = self.directory(parents)?;
        if let EntryKind::HardLink { target } = &entry.kind {
            return self.apply_link(directory, name, target);
        }
        let attributes = attributes(&entry)?;
        let kind = self.kind(&entry, number, content)?;
        self.place(directory, name, Inode { attributes, kind, names: 1 });
        Ok(())
    }

    pub fn finish(self) -> Tree {
        self.tree
    }

    fn count(&mut self) -> Result<(), Refusal> {
        let left = self.entries_left.checked_sub(1);
        self.entries_left = left.ok_or(Refusal::TooManyEntries(self.entries_max))?;
        Ok(())
    }

    fn apply_root(&mut self, entry: Entry) -> Result<(), Refusal> {
        if entry.kind != EntryKind::Directory {
            return Err(Refusal::Root);
        }
        self.tree.inode_mut(ROOT).attributes = attributes(&entry)?;
        Ok(())
    }

    /// Hides what lower layers have; entries of the present layer stay, whether they come before or after.
    fn apply_whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<(), Refusal> {
        let Some(directory) = self.existing_directory(parents)? else {
            return Ok(());
        };
        if name == OPAQUE {
            self.tree.hide_below(directory, self.layer);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Refusal::Whiteout);
        }
        let Some(child) = self.tree.child(directory, hidden) else {
            return Ok(());
        };
        if self.tree.children(child.inode).is_some() {
            self.tree.hide_below(child.inode, self.layer);
        }
        let is_empty = self.tree.children(child.inode).is_none_or(Children::is_empty);
        if child.layer < self.layer && is_empty {
            self.tree.remove(directory, hidden);
        }
        Ok(())
    }

    /// The header's attributes are ignored: they are those of the target, which has them already.
    fn apply_link(&mut self, directory: InodeId, name: &[u8], target: &[u8]) -> Result<(), Refusal> {
        let error = |problem| Refusal::HardLink { target: lossy(target), problem };
        let path = split(target).map_err(|_| error(LinkProblem::Outside))?;
        let (last, parents) = path.split_last().ok_or_else(|| error(LinkProblem::Directory))?;
        let found = self.existing_directory(parents)?.and_then(|parent| self.tree.child(parent, last));
        let found = found.ok_or_else(|| error(LinkProblem::Missing))?;
        if self.tree.children(found.inode).is_some() {
            return Err(error(LinkProblem::Directory));
        }
        let replaced = self.tree.child(directory, name);
        if replaced.is_some_and(|child| child.inode == found.inode) {
            self.tree.touch(directory, name, self.layer);
            return Ok(());
        }
        self.tree.link(directory, name, Child { inode: found.inode, layer: self.layer });
        Ok(())
    }

    fn place(&mut self, directory: InodeId, name: &[u8], inode: Inode) {
        if let Some(child) = self.tree.child(directory, name) {
            let both_directories =
                self.tree.children(child.inode).is_some() && matches!(inode.kind, Kind::Directory(_));
            if both_directories {
                self.tree.inode_mut(child.inode).attributes = inode.attributes;
                self.tree.touch(directory, name, self.layer);
                return;
            }
            self.tree.remove(directory, name);
        }
        self.tree.add(directory, name, self.layer, inode);
    }

    /// The directory of that path; those that are missing are made.
    fn directory(&mut self, path: &[&[u8]]) -> Result<InodeId, Refusal> {
        let mut directory = ROOT;
        for (depth, name) in path.iter().enumerate() {
            directory = match self.tree.child(directory, name) {
                None => {
                    self.count()?;
                    self.tree.add(directory, name, self.layer, implied_directory())
                }
                Some(child) if self.tree.children(child.inode).is_some() => child.inode,
                Some(_) => return Err(Refusal::NotADirectory(lossy(&path[..=depth].join(&b'/')))),
            };
        }
        Ok(directory)
    }

    fn existing_directory(&self, path: &[&[u8]]) -> Result<Option<InodeId>, Refusal> {
        let mut directory = ROOT;
        for (depth, name) in path.iter().enumerate() {
            let Some(child) = self.tree.child(directory, name) else {
                return Ok(None);
            };
            if self.tree.children(child.inode).is_none() {
                return Err(Refusal::NotADirectory(lossy(&path[..=depth].join(&b'/'))));
            }
            directory = child.inode;
        }
        Ok(Some(directory))
    }

    fn kind(&self, entry: &Entry, number: u32, content: Option<ContentHash>) -> Result<Kind, Refusal> {
        Ok(match &entry.kind {
            EntryKind::Directory => Kind::Directory(Children::new()),
            EntryKind::File { size } => {
                Kind::File { size: *size, data: DataPlace { layer: self.layer, entry: number }, content }
            }
            EntryKind::Symlink { target } if target.contains(&0) => return Err(Refusal::Nul),
            EntryKind::Symlink { target } if target.is_empty() || target.len() > PATH_BYTES_MAX => {
                return Err(Refusal::SymlinkTarget);
            }
            EntryKind::Symlink { target } => Kind::Symlink(target.as_slice().into()),
            EntryKind::CharDevice { major: 0, minor: 0 } => return Err(Refusal::OverlayDevice),
            EntryKind::CharDevice { major, minor } => Kind::CharDevice(device(*major, *minor)?),
            EntryKind::BlockDevice { major, minor } => Kind::BlockDevice(device(*major, *minor)?),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::HardLink { .. } => unreachable!("links are made from the inode they lead to"),
        })
    }
}

/// The names of a path, checked one by one; none for the root itself.
fn split(path: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    // Some builders write an entry for the root under its absolute name.
    if path == b"/" {
        return Ok(Vec::new());
    }
    match path {
        b"" => return Err(Refusal::Empty),
        [b'/', ..] => return Err(Refusal::Absolute),
        _ if path.contains(&0) => return Err(Refusal::Nul),
        _ if path.len() > PATH_BYTES_MAX => return Err(Refusal::TooLong),
        _ => {}
    }
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let names: Vec<&[u8]> = names.collect();
    if names.contains(&b"..".as_slice()) {
        return Err(Refusal::ParentDirectory);
    }
    if names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
        return Err(Refusal::TooLong);
    }
    Ok(names)
}

fn attributes(entry: &Entry) -> Result<Attributes, Refusal> {
    // The largest number means "no user" to the kernel.
    let owner = |what, number: u64| match u32::try_from(number) {
        Ok(id) if id < u32::MAX => Ok(id),
        _ => Err(Refusal::Number(what, number)),
    };
    // Some writers add the file type's bits, which the type flag says already.
    if entry.mode > 0o177_777 {
        return Err(Refusal::Number("mode", entry.mode));
    }
    xattr::check(&entry.xattrs, matches!(entry.kind, EntryKind::Directory))?;
    Ok(Attributes {
        mode: (entry.mode & 0o7777) as u16,
        uid: owner("user", entry.uid)?,
        gid: owner("group", entry.gid)?,
        mtime: entry.mtime,
        xattrs: entry.xattrs.clone(),
    })
}

/// The kernel's encoding of a device number in 32 bits: 12 bits of major, 20 of minor.
fn device(major: u64, minor: u64) -> Result<u32, Refusal> {
    if major > 0xfff || minor > 0xf_ffff {
        return Err(Refusal::Device(major, minor));
    }
    let (major, minor) = (major as u32, minor as u32);
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

fn lossy(path: &[u8]) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(path).into_owned())
}
