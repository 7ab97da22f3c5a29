//! The file system of an image while it is put together: inodes and names, no file data.
//!
//! Memory grows with the number of entries (some 200 bytes and the name each), never with data.

use crate::image::tar::Time;
use std::collections::{BTreeMap, BTreeSet};

/// The number of an inode within its tree; the root is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub u32);

pub const ROOT: InodeId = InodeId(0);

/// What `stat` tells of an inode beside its type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, set-id and sticky bits: 07777.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Full names and values, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Where a file's data is found: the entry of that number in that layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DataPlace {
    pub layer: u16,
    pub entry: u32,
}

/// 128 bits: none but who made an image could find two contents with one hash, and would only spoil his own.
pub type ContentHash = [u8; 16];

/// A name in a directory, and the layer that last wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    pub inode: InodeId,
    pub layer: u16,
}

pub type Children = BTreeMap<Box<[u8]>, Child>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory(Children),
    File {
        size: u64,
        data: DataPlace,
        /// Beginning of the BLAKE3 hash of the data, if it was taken: equal files are stored once.
        content: Option<ContentHash>,
    },
    Symlink(Box<[u8]>),
    /// Device number as the kernel encodes it in 32 bits.
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    pub attributes: Attributes,
    pub kind: Kind,
    /// Names that lead here; of directories always 1.
    pub names: u32,
}

/// Inodes by number. Those without a name are gone.
#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Option<Inode>>,
    hidden: Hidden,
}

/// The layer in which something was hidden last, and directories below which nothing older than it is left. This
/// stays true: of a layer that is being applied nothing goes but what the same layer replaces.
#[derive(Debug, Default)]
struct Hidden {
    layer: u16,
    directories: BTreeSet<InodeId>,
}

impl Tree {
    /// A root directory and nothing in it.
    pub fn new() -> Self {
        Self { inodes: vec![Some(implied_directory())], hidden: Hidden::default() }
    }

    pub fn inode(&self, id: InodeId) -> &Inode {
        self.inodes[id.0 as usize].as_ref().expect("only inodes with a name are asked for")
    }

    pub fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        self.inodes[id.0 as usize].as_mut().expect("only inodes with a name are asked for")
    }

    /// One more than the largest number of an inode.
    pub fn len_max(&self) -> usize {
        self.inodes.len()
    }

    /// All inodes that have a name.
    pub fn iter(&self) -> impl Iterator<Item = (InodeId, &Inode)> {
        let numbered = (0..).map(InodeId).zip(&self.inodes);
        numbered.filter_map(|(id, inode)| inode.as_ref().map(|inode| (id, inode)))
    }

    /// Names in a directory, or `None` if it is something else.
    pub fn children(&self, id: InodeId) -> Option<&Children> {
        match &self.inode(id).kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    pub fn child(&self, directory: InodeId, name: &[u8]) -> Option<Child> {
        self.children(directory)?.get(name).copied()
    }

    /// Adds an inode under a name that is free.
    pub fn add(&mut self, directory: InodeId, name: &[u8], layer: u16, inode: Inode) -> InodeId {
        let id = InodeId(u32::try_from(self.inodes.len()).expect("entries are limited far below 2^32"));
        self.inodes.push(Some(inode));
        self.children_mut(directory).insert(name.into(), Child { inode: id, layer });
        id
    }

    /// Gives an inode that has names already one more. What has that name goes with everything below it, which may
    /// be where the inode had its only name: therefore it goes last.
    pub fn link(&mut self, directory: InodeId, name: &[u8], child: Child) {
        self.inode_mut(child.inode).names += 1;
        if let Some(replaced) = self.children_mut(directory).insert(name.into(), child) {
            self.drop_name(replaced.inode);
        }
    }

    /// Takes away a name and everything below it.
    pub fn remove(&mut self, directory: InodeId, name: &[u8]) {
        if let Some(child) = self.children_mut(directory).remove(name) {
            self.drop_name(child.inode);
        }
    }

    /// Marks a name as written by a layer.
    pub fn touch(&mut self, directory: InodeId, name: &[u8], layer: u16) {
        if let Some(child) = self.children_mut(directory).get_mut(name) {
            child.layer = layer;
        }
    }

    /// Takes away everything below a directory that is older than the layer. Older directories stay if
    /// something of the layer is in them. However often a layer asks for it, each directory is looked at once.
    pub fn hide_below(&mut self, top: InodeId, layer: u16) {
        if self.hidden.layer != layer {
            self.hidden = Hidden { layer, directories: BTreeSet::new() };
        }
        let unhidden = self.unhidden_below(top);
        for &directory in unhidden.iter().rev() {
            let children = std::mem::take(self.children_mut(directory));
            let is_kept = |child: &Child| {
                child.layer == layer || self.children(child.inode).is_some_and(|below| !below.is_empty())
            };
            let (kept, hidden): (Children, Children) =
                children.into_iter().partition(|(_, child)| is_kept(child));
            *self.children_mut(directory) = kept;
            for child in hidden.into_values() {
                self.drop_name(child.inode);
            }
        }
        self.hidden.directories.extend(unhidden);
    }

    /// A directory and all below it, each after the one it lies in.
    pub fn directories_below(&self, top: InodeId) -> Vec<InodeId> {
        self.directories(top, |_| true)
    }

    /// Those that the present layer has not hidden yet.
    fn unhidden_below(&self, top: InodeId) -> Vec<InodeId> {
        self.directories(top, |id| !self.hidden.directories.contains(&id))
    }

    /// As far down as they are wanted.
    fn directories(&self, top: InodeId, is_wanted: impl Fn(InodeId) -> bool) -> Vec<InodeId> {
        let is_wanted = |id: &InodeId| self.children(*id).is_some() && is_wanted(*id);
        let mut found: Vec<InodeId> = Some(top).into_iter().filter(is_wanted).collect();
        let mut next = 0;
        while let Some(directory) = found.get(next).copied() {
            let children = self.children(directory).into_iter().flat_map(BTreeMap::values);
            found.extend(children.map(|child| child.inode).filter(is_wanted));
            next += 1;
        }
        found
    }

    fn children_mut(&mut self, id: InodeId) -> &mut Children {
        match &mut self.inode_mut(id).kind {
            Kind::Directory(children) => children,
            _ => panic!("callers look up directories before they change them"),
        }
    }

    /// Not recursive: paths may be two thousand directories deep.
    fn drop_name(&mut self, id: InodeId) {
        let mut dropped = vec![id];
        while let Some(id) = dropped.pop() {
            let inode = self.inode_mut(id);
            inode.names -= 1;
            if inode.names > 0 {
                continue;
            }
            if let Some(Inode { kind: Kind::Directory(children), .. }) = self.inodes[id.0 as usize].take() {
                dropped.extend(children.into_values().map(|child| child.inode));
            }
        }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

/// A directory that no entry describes: of root, for all to enter, of 1970 because conversions must not
/// depend on the clock.
pub fn implied_directory() -> Inode {
    let attributes = Attributes { mode: 0o755, ..Attributes::default() };
    Inode { attributes, kind: Kind::Directory(Children::new()), names: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Inode {
        let data = DataPlace { layer: 0, entry: 0 };
        Inode { kind: Kind::File { size: 0, data, content: None }, ..implied_directory() }
    }

    #[test]
    fn a_link_may_take_the_place_of_the_directory_that_its_target_lies_in() {
        let mut tree = Tree::new();
        let directory = tree.add(ROOT, b"d", 0, implied_directory());
        let target = tree.add(directory, b"f", 0, file());
        let other = tree.add(directory, b"other", 0, file());
        tree.link(ROOT, b"d", Child { inode: target, layer: 1 });
        assert_eq!(tree.child(ROOT, b"d").map(|child| child.inode), Some(target));
        assert_eq!(tree.inode(target).names, 1);
        assert!(tree.iter().all(|(id, _)| id != directory && id != other));
    }

    #[test]
    fn a_layer_that_hides_the_same_again_and_again_looks_at_each_directory_once() {
        let mut tree = Tree::new();
        let mut chain = vec![ROOT];
        for depth in 0..1000 {
            let directory = tree.add(chain[depth], b"d", 0, implied_directory());
            tree.add(directory, b"old", 0, file());
            chain.push(directory);
        }
        let deepest = chain[1000];
        tree.add(deepest, b"new", 1, file());
        let mut looked_at = 0;
        // From the deepest up, which finds all that is below each time, and again.
        for directory in chain.iter().rev().chain(&chain) {
            looked_at += tree.unhidden_below(*directory).len();
            tree.hide_below(*directory, 1);
        }
        assert_eq!(looked_at, chain.len());
        assert_eq!(tree.directories_below(ROOT).len(), chain.len(), "something new is below each of them");
        assert!(chain.iter().all(|directory| tree.child(*directory, b"old").is_none()));
        assert!(tree.child(deepest, b"new").is_some());

        // What the layer adds meanwhile is looked at once more, what is older for the next layer again.
        let added = tree.add(deepest, b"added", 1, implied_directory());
        assert_eq!(tree.unhidden_below(ROOT), []);
        assert_eq!(tree.unhidden_below(added), [added]);
        tree.hide_below(ROOT, 2);
        assert_eq!(tree.directories_below(ROOT), [ROOT]);
    }
}
