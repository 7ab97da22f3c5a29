//! Symbolic links of a package: each may lead only to what is in the package.
//!
//! Packages of interpreters have links (`node_modules/.bin`), so they are not refused altogether. One that
//! leads out would find something else in each runtime image, and in whatever else opens the package. Both
//! readings of a target are checked: names alone, as tools that unpack it may look at it, and along the
//! other links, as the kernel does. Targets that do not exist lead nowhere and are left alone.

use super::{EntryRefusal, ZipError};
use crate::image::tree::{InodeId, Kind, ROOT, Tree};
use std::collections::BTreeMap;

/// Links that the kernel follows in one path.
const HOPS_MAX: u32 = 40;
/// Names looked up for all links together: many links through many others would take for ever.
const STEPS_MAX: u64 = 2_000_000;

pub fn check(tree: &Tree) -> Result<(), ZipError> {
    let mut places = BTreeMap::new();
    let mut depths = BTreeMap::from([(ROOT, 0)]);
    let mut links = Vec::new();
    // Each folder comes after the one it lies in.
    for folder in tree.directories_below(ROOT) {
        if let Some((parent, _)) = places.get(&folder) {
            depths.insert(folder, depths[parent] + 1);
        }
        for (name, child) in tree.children(folder).into_iter().flatten() {
            places.insert(child.inode, (folder, &**name));
            if let Kind::Symlink(target) = &tree.inode(child.inode).kind {
                links.push((child.inode, folder, target));
            }
        }
    }
    let mut walk = Walk { tree, places: &places, steps: 0 };
    for (link, folder, target) in links {
        walk.check(folder, depths[&folder], target).map_err(|refusal| {
            let path = walk.path(link);
            ZipError::Entry { path, refusal }
        })?;
    }
    Ok(())
}

struct Walk<'a> {
    tree: &'a Tree,
    /// The folder and the name of everything.
    places: &'a BTreeMap<InodeId, (InodeId, &'a [u8])>,
    steps: u64,
}

impl<'t> Walk<'t> {
    fn check(&mut self, folder: InodeId, mut depth: usize, target: &'t [u8]) -> Result<(), EntryRefusal> {
        let outside = || EntryRefusal::LinkOutside(String::from_utf8_lossy(target).into_owned());
        for name in names(target) {
            depth = match name {
                b".." => depth.checked_sub(1).ok_or_else(outside)?,
                _ => depth + 1,
            };
        }
        if target.starts_with(b"/") {
            return Err(outside());
        }
        let (mut at, mut hops) = (folder, 0);
        let mut left = Vec::new();
        self.push(target, &mut left)?;
        while let Some(name) = left.pop() {
            if name == b".." {
                if at == ROOT {
                    return Err(outside());
                }
                at = self.places[&at].0;
                continue;
            }
            let Some(child) = self.tree.child(at, name) else { return Ok(()) };
            match &self.tree.inode(child.inode).kind {
                Kind::Directory(_) => at = child.inode,
                Kind::Symlink(next) => {
                    hops += 1;
                    // The kernel gives up here.
                    if hops > HOPS_MAX {
                        return Ok(());
                    }
                    if next.starts_with(b"/") {
                        return Err(outside());
                    }
                    self.push(next, &mut left)?;
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// Puts the names of a path before those that are left.
    fn push(&mut self, path: &'t [u8], left: &mut Vec<&'t [u8]>) -> Result<(), EntryRefusal> {
        let before = left.len();
        left.extend(names(path).rev());
        self.steps += (left.len() - before) as u64;
        if self.steps > STEPS_MAX { Err(EntryRefusal::LinkMaze) } else { Ok(()) }
    }

    fn path(&self, mut inode: InodeId) -> String {
        let mut names = Vec::new();
        while let Some((folder, name)) = self.places.get(&inode) {
            names.push(String::from_utf8_lossy(name).into_owned());
            inode = *folder;
        }
        names.reverse();
        names.join("/")
    }
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."))
}
