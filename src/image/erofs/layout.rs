//! Decides where everything lies, before a byte is written.

use super::{
    FS_BLOCK_BYTES, LayoutError, directory,
    inode::{INODE_BYTES, NO_BLOCK},
    superblock::SUPERBLOCK_END,
};
use crate::image::{
    packing::Plan,
    tree::{InodeId, Kind, ROOT, Tree},
    xattr,
};
use faasnet_actors::image::BLOCK_BYTES;
use std::{collections::BTreeMap, ops::Range};

/// Inodes begin at multiples of this; their number is their place divided by it.
pub const SLOT_BYTES: u64 = 32;
/// A chunk's entry in its file's table: the number of its first block.
const TABLE_ENTRY_BYTES: u64 = 4;

/// Where an inode and its content lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Byte of the inode.
    pub inode: u64,
    /// First block of the content; 0 if it has none, or chunks.
    pub block: u32,
    /// Bytes of the content.
    pub bytes: u64,
    pub form: Form,
}

/// How the content of an inode is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// In blocks, one behind the other.
    #[default]
    Blocks,
    /// As before, but what is behind the last full block stands behind the inode.
    InlineTail,
    /// In chunks anywhere; a table behind the inode says where.
    Chunked,
}

impl Place {
    pub fn nid(&self) -> u64 {
        self.inode / SLOT_BYTES
    }

    /// Blocks outside the inode.
    pub fn blocks(&self) -> u64 {
        match self.form {
            Form::Blocks => self.bytes.div_ceil(FS_BLOCK_BYTES),
            Form::InlineTail => self.bytes / FS_BLOCK_BYTES,
            Form::Chunked => 0,
        }
    }
}

/// Neighbouring bytes of a file that are neighbours in the image, all of them in the hot set or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Bytes of the file.
    pub file: Range<u64>,
    /// Place of the first in the image.
    pub place: u64,
}

/// Places of all inodes of a tree.
#[derive(Debug)]
pub struct Layout {
    /// By number of the inode in the tree.
    places: Vec<Place>,
    /// Inodes in the order of their places, each with the directory that it was found in.
    order: Vec<(InodeId, InodeId)>,
    /// First block of each chunk, of files with chunks whose data is stored.
    tables: BTreeMap<InodeId, Vec<u32>>,
    chunk_bytes: u64,
    metadata_bytes: u64,
    /// End of metadata and hot set.
    hot_end: u64,
    plain_bytes: u64,
}

impl Layout {
    /// Lays out a tree with the file data that the plan stores: metadata, hot set, the rest.
    pub fn new(tree: &Tree, plan: &Plan, plain_bytes_max: u64) -> Result<Self, LayoutError> {
        check_sizes(tree, plan, plain_bytes_max)?;
        let mut layout = Self {
            places: vec![Place::default(); tree.len_max()],
            order: inode_order(tree),
            tables: BTreeMap::new(),
            chunk_bytes: plan.chunk_bytes(),
            metadata_bytes: 0,
            hot_end: 0,
            plain_bytes: 0,
        };
        layout.place_metadata(tree, plan);
        let mut next = layout.metadata_bytes;
        let limit = |bytes| match bytes <= plain_bytes_max {
            true => Ok(()),
            false => Err(LayoutError::TooLarge { bytes, limit: plain_bytes_max }),
        };
        limit(next)?;
        for hot in plan.hot() {
            if plan.is_split(hot.file) {
                layout.take_chunks(hot.file, hot.chunks.clone(), &mut next);
            } else {
                layout.take_blocks(hot.file, &mut next);
            }
        }
        layout.hot_end = next;
        for (_, file) in plan.files() {
            let place = layout.place(*file);
            match place.form {
                Form::Chunked => {
                    let all = 0..place.bytes.div_ceil(layout.chunk_bytes);
                    layout.take_chunks(*file, all, &mut next);
                }
                _ if place.block == 0 => layout.take_blocks(*file, &mut next),
                _ => {}
            }
            limit(next)?;
        }
        layout.plain_bytes = next;
        for (id, _) in &layout.order {
            let stored = plan.stored(*id);
            if stored != *id {
                layout.places[id.0 as usize].block = layout.places[stored.0 as usize].block;
            }
        }
        Ok(layout)
    }

    pub fn place(&self, id: InodeId) -> Place {
        self.places[id.0 as usize]
    }

    /// Inodes in the order of their places, each with the directory that it was found in.
    pub fn order(&self) -> &[(InodeId, InodeId)] {
        &self.order
    }

    pub fn metadata_bytes(&self) -> u64 {
        self.metadata_bytes
    }

    /// End of metadata and hot set.
    pub fn hot_end(&self) -> u64 {
        self.hot_end
    }

    /// Leading blocks of a block image that hold metadata and hot set.
    pub fn hot_blocks(&self) -> u32 {
        self.hot_end.div_ceil(u64::from(BLOCK_BYTES)) as u32
    }

    pub fn has_chunks(&self) -> bool {
        !self.tables.is_empty()
    }

    /// What all inodes with chunks say of them: how often the size of a block must be doubled.
    pub fn chunk_format(&self) -> u32 {
        (self.chunk_bytes / FS_BLOCK_BYTES).ilog2()
    }

    /// First block of each chunk of a stored file, if it has chunks.
    pub fn table(&self, stored: InodeId) -> &[u32] {
        self.tables.get(&stored).map_or(&[], Vec::as_slice)
    }

    /// Where the data of a stored file lies, in the order of the file.
    pub fn runs(&self, stored: InodeId) -> Vec<Run> {
        let place = self.place(stored);
        let at = |block: u32| u64::from(block) * FS_BLOCK_BYTES;
        if place.form != Form::Chunked {
            return vec![Run { file: 0..place.bytes, place: at(place.block) }];
        }
        let mut runs: Vec<Run> = Vec::new();
        for (number, block) in (0..).zip(self.table(stored)) {
            let start = number * self.chunk_bytes;
            let end = (start + self.chunk_bytes).min(place.bytes);
            let goes_on = |last: &Run| {
                let is_hot = |place| place < self.hot_end;
                last.place + (start - last.file.start) == at(*block)
                    && is_hot(last.place) == is_hot(at(*block))
            };
            match runs.last_mut() {
                Some(last) if goes_on(last) => last.file.end = end,
                _ => runs.push(Run { file: start..end, place: at(*block) }),
            }
        }
        runs
    }

    /// Bytes of the whole file system.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Leading blocks of a block image that hold all metadata.
    pub fn metadata_blocks(&self) -> u32 {
        self.metadata_bytes.div_ceil(u64::from(BLOCK_BYTES)) as u32
    }

    /// The root comes first: its number has only 16 bits in the superblock.
    fn place_metadata(&mut self, tree: &Tree, plan: &Plan) {
        let mut next = SUPERBLOCK_END;
        for (id, _) in &self.order {
            let inode = tree.inode(*id);
            let head = INODE_BYTES + xattr::encoded_len(&inode.attributes.xattrs) as u64;
            let (bytes, is_metadata) = match &inode.kind {
                Kind::Directory(children) => (directory::body_len(children), true),
                Kind::Symlink(target) => (target.len() as u64, true),
                Kind::File { size, .. } => (*size, false),
                Kind::CharDevice(_) | Kind::BlockDevice(_) | Kind::Fifo => (0, false),
            };
            let tail = bytes % FS_BLOCK_BYTES;
            let stored = plan.stored(*id);
            let (form, inline, behind) = if plan.is_split(stored) {
                let chunks = bytes.div_ceil(self.chunk_bytes);
                self.tables.entry(stored).or_insert_with(|| vec![NO_BLOCK; chunks as usize]);
                // A table may cross blocks.
                (Form::Chunked, 0, chunks * TABLE_ENTRY_BYTES)
            } else if is_metadata && tail > 0 && head + tail <= FS_BLOCK_BYTES {
                (Form::InlineTail, tail, tail)
            } else {
                (Form::Blocks, 0, 0)
            };
            let at = inode_place(next, head, inline);
            self.places[id.0 as usize] = Place { inode: at, block: 0, bytes, form };
            next = at + head + behind;
        }
        next = next.next_multiple_of(FS_BLOCK_BYTES);
        for number in 0..self.order.len() {
            let (id, _) = self.order[number];
            if matches!(tree.inode(id).kind, Kind::Directory(_) | Kind::Symlink(_)) {
                self.take_blocks(id, &mut next);
            }
        }
        self.metadata_bytes = next;
    }

    /// Gives places to those of the chunks that have none.
    fn take_chunks(&mut self, id: InodeId, chunks: Range<u64>, next: &mut u64) {
        let bytes = self.place(id).bytes;
        let table = self.tables.get_mut(&id).expect("split files have a table");
        for chunk in chunks {
            let block = &mut table[chunk as usize];
            if *block == NO_BLOCK {
                *block = (*next / FS_BLOCK_BYTES) as u32;
                let left = bytes - chunk * self.chunk_bytes;
                *next += left.min(self.chunk_bytes).next_multiple_of(FS_BLOCK_BYTES);
            }
        }
    }

    fn take_blocks(&mut self, id: InodeId, next: &mut u64) {
        let place = &mut self.places[id.0 as usize];
        if place.blocks() > 0 {
            place.block = (*next / FS_BLOCK_BYTES) as u32;
            *next += place.blocks() * FS_BLOCK_BYTES;
        }
    }
}

/// Hostile sizes are refused before anything is computed or kept for them. With this, tables of chunks stay
/// below a thousandth of the limit.
fn check_sizes(tree: &Tree, plan: &Plan, plain_bytes_max: u64) -> Result<(), LayoutError> {
    let mut sum = 0_u64;
    for (_, id) in plan.files() {
        if let Kind::File { size, .. } = tree.inode(*id).kind {
            sum = sum.saturating_add(size);
        }
    }
    if sum > plain_bytes_max {
        return Err(LayoutError::TooLarge { bytes: sum, limit: plain_bytes_max });
    }
    Ok(())
}

/// The first place at or behind `next` where neither the inode nor its tail crosses a block.
fn inode_place(next: u64, head: u64, tail: u64) -> u64 {
    let at = next.next_multiple_of(SLOT_BYTES);
    let inside = |from: u64, bytes: u64| from % FS_BLOCK_BYTES + bytes <= FS_BLOCK_BYTES;
    if inside(at, INODE_BYTES) && (tail == 0 || inside(at + head, tail)) {
        return at;
    }
    at.next_multiple_of(FS_BLOCK_BYTES)
}

/// Directories breadth first, what lies in one directory together: listing one with attributes reads
/// neighbouring blocks. An inode with many names stands where it was found first.
fn inode_order(tree: &Tree) -> Vec<(InodeId, InodeId)> {
    let mut seen = vec![false; tree.len_max()];
    seen[ROOT.0 as usize] = true;
    let mut order = vec![(ROOT, ROOT)];
    let mut next = 0;
    while let Some((directory, _)) = order.get(next).copied() {
        next += 1;
        for child in tree.children(directory).into_iter().flat_map(|children| children.values()) {
            if !std::mem::replace(&mut seen[child.inode.0 as usize], true) {
                order.push((child.inode, directory));
            }
        }
    }
    order
}
