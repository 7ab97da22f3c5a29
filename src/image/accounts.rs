//! Finds the files of an image that name users and groups, and copies them while they pass.

use crate::image::{
    runtime::AccountFiles,
    tree::{InodeId, Kind, ROOT, Tree},
};

/// Most bytes of `/etc/passwd` and `/etc/group` that are looked at.
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;
/// Symbolic links followed for one path: `MAXSYMLINKS` of Linux.
const SYMLINKS_MAX: usize = 40;

/// The files that name users and groups, copied while they pass.
pub struct Accounts {
    passwd: Option<InodeId>,
    group: Option<InodeId>,
    pub files: AccountFiles,
}

impl Accounts {
    pub fn find(tree: &Tree) -> Self {
        let is_small = |id: &InodeId| match tree.inode(*id).kind {
            Kind::File { size, .. } => size <= ACCOUNTS_BYTES_MAX,
            _ => false,
        };
        let find = |path: &[u8]| lookup(tree, path).filter(is_small);
        Self { passwd: find(b"etc/passwd"), group: find(b"etc/group"), files: AccountFiles::default() }
    }

    /// The two files, as far as they were found.
    pub fn ids(&self) -> impl Iterator<Item = InodeId> {
        self.passwd.into_iter().chain(self.group)
    }

    /// Where the file's data is to be copied to, if it is one of the two.
    pub fn copy_of(&mut self, id: InodeId) -> Option<&mut Vec<u8>> {
        match id {
            _ if self.passwd == Some(id) => Some(&mut self.files.passwd),
            _ if self.group == Some(id) => Some(&mut self.files.group),
            _ => None,
        }
    }
}

/// The inode of a path, symbolic links followed within the image.
fn lookup(tree: &Tree, path: &[u8]) -> Option<InodeId> {
    let names = |path: &[u8]| path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut left = names(path);
    let mut parents = vec![ROOT];
    let mut symlinks = 0;
    while let Some(name) = left.pop() {
        let directory = *parents.last()?;
        match &name[..] {
            b"" | b"." => continue,
            b".." if parents.len() > 1 => drop(parents.pop()),
            b".." => {}
            _ => {
                let id = tree.child(directory, &name)?.inode;
                let Kind::Symlink(target) = &tree.inode(id).kind else {
                    parents.push(id);
                    continue;
                };
                symlinks += 1;
                if symlinks > SYMLINKS_MAX {
                    return None;
                }
                if target.starts_with(b"/") {
                    parents.truncate(1);
                }
                left.extend(names(target));
            }
        }
    }
    parents.pop()
}
