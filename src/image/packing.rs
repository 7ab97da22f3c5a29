//! Decides which data of files is stored, and in which order: equal files once, and what starts read first.

use crate::image::{
    erofs::FS_BLOCK_BYTES,
    tree::{DataPlace, InodeId, Kind, ROOT, Tree},
};
use faasnet_actors::profile::{Covered, FilePath, Profile};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// What starts read, and the granularity at which it is taken out of its files.
#[derive(Debug, Clone, Copy)]
pub struct HotSet<'a> {
    pub profile: &'a Profile,
    /// A power of two, at least a block of the file system.
    pub chunk_bytes: u64,
}

/// Chunks of one file, by their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotChunks {
    pub file: InodeId,
    pub chunks: Range<u64>,
}

/// The order of all file data.
#[derive(Debug)]
pub struct Plan {
    /// Files whose data is stored, in the order of the layers.
    files: Vec<(DataPlace, InodeId)>,
    /// The stored file with the same bytes, of files that are not stored themselves.
    same_as: BTreeMap<InodeId, InodeId>,
    /// In the order of first use, nothing twice.
    hot: Vec<HotChunks>,
    /// Stored files of which only some chunks are hot.
    split: BTreeSet<InodeId>,
    chunk_bytes: u64,
    ignored_parts: u64,
}

impl Plan {
    /// Without a hot set, all data is in the order of the layers.
    pub fn new(tree: &Tree, hot_set: Option<HotSet<'_>>) -> Self {
        let mut plan = Self {
            files: files_in_layer_order(tree),
            same_as: BTreeMap::new(),
            hot: Vec::new(),
            split: BTreeSet::new(),
            chunk_bytes: FS_BLOCK_BYTES,
            ignored_parts: 0,
        };
        plan.store_equal_files_once(tree);
        if let Some(hot_set) = hot_set {
            plan.put_first(tree, hot_set);
        }
        plan
    }

    /// All of these files in this order, for tests of what follows a plan.
    #[cfg(test)]
    pub fn in_order(files: &[InodeId]) -> Self {
        let place = |entry| DataPlace { layer: 0, entry };
        let mut plan = Self::new(&Tree::new(), None);
        plan.files = (0..).map(place).zip(files.iter().copied()).collect();
        plan
    }

    /// Files whose data is stored, in the order of the layers.
    pub fn files(&self) -> &[(DataPlace, InodeId)] {
        &self.files
    }

    /// The file whose stored data is that of this file.
    pub fn stored(&self, id: InodeId) -> InodeId {
        self.same_as.get(&id).copied().unwrap_or(id)
    }

    pub fn hot(&self) -> &[HotChunks] {
        &self.hot
    }

    /// Whether only some chunks of a stored file are hot.
    pub fn is_split(&self, stored: InodeId) -> bool {
        self.split.contains(&stored)
    }

    pub fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// Parts of the profile that the image does not have.
    pub fn ignored_parts(&self) -> u64 {
        self.ignored_parts
    }

    fn store_equal_files_once(&mut self, tree: &Tree) {
        let mut known = BTreeMap::new();
        let same_as = &mut self.same_as;
        self.files.retain(|(_, id)| {
            let Kind::File { size, content: Some(content), .. } = &tree.inode(*id).kind else {
                return true;
            };
            let stored = *known.entry((*size, *content)).or_insert(*id);
            if stored != *id {
                same_as.insert(*id, stored);
            }
            stored == *id
        });
    }

    /// Paths that do not lead to a file, and ranges behind a file's end, are from another version of the image.
    fn put_first(&mut self, tree: &Tree, hot_set: HotSet<'_>) {
        self.chunk_bytes = hot_set.chunk_bytes;
        let mut covered: BTreeMap<InodeId, Covered> = BTreeMap::new();
        for part in hot_set.profile.parts() {
            let Some((id, size)) = find(tree, &part.path).filter(|(_, size)| part.start < *size) else {
                self.ignored_parts += 1;
                continue;
            };
            let file = self.stored(id);
            let last = part.end.min(size).div_ceil(self.chunk_bytes);
            let new = covered.entry(file).or_default().take(part.start / self.chunk_bytes..last);
            self.hot.extend(new.into_iter().map(|chunks| HotChunks { file, chunks }));
        }
        for (file, covered) in &covered {
            let Kind::File { size, .. } = tree.inode(*file).kind else { continue };
            if !covered.is_all_of(size.div_ceil(self.chunk_bytes)) {
                self.split.insert(*file);
            }
        }
        // A file that is hot as a whole needs no table of chunks: all of it stands where it is first used.
        let mut whole = BTreeSet::new();
        let split = &self.split;
        self.hot.retain(|hot| split.contains(&hot.file) || whole.insert(hot.file));
    }
}

/// The file of a path, and its size.
fn find(tree: &Tree, path: &FilePath) -> Option<(InodeId, u64)> {
    let id = path.names().try_fold(ROOT, |directory, name| Some(tree.child(directory, name)?.inode))?;
    match tree.inode(id).kind {
        Kind::File { size, .. } => Some((id, size)),
        _ => None,
    }
}

fn files_in_layer_order(tree: &Tree) -> Vec<(DataPlace, InodeId)> {
    let place = |kind: &Kind| match kind {
        Kind::File { size: 1.., data, .. } => Some(*data),
        _ => None,
    };
    let mut files: Vec<_> = tree.iter().filter_map(|(id, inode)| Some((place(&inode.kind)?, id))).collect();
    files.sort_unstable();
    files
}

#[cfg(test)]
mod tests;
