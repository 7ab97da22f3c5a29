//! Decides where everything lies, before a byte is written.

use super::{FS_BLOCK_BYTES, LayoutError, directory, inode::INODE_BYTES, superblock::SUPERBLOCK_END};
use crate::image::{
    tree::{InodeId, Kind, ROOT, Tree},
    xattr,
};
use faasnet_actors::image::BLOCK_BYTES;

/// Inodes begin at multiples of this; their number is their place divided by it.
pub const SLOT_BYTES: u64 = 32;

/// Where an inode and its content lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Byte of the inode.
    pub inode: u64,
    /// First block of the content; 0 if it has none.
    pub block: u32,
    /// Bytes of the content.
    pub bytes: u64,
    /// Whether the part behind the last full block stands behind the inode.
    pub inline: bool,
}

impl Place {
    pub fn nid(&self) -> u64 {
        self.inode / SLOT_BYTES
    }

    /// Blocks outside the inode.
    pub fn blocks(&self) -> u64 {
        if self.inline { self.bytes / FS_BLOCK_BYTES } else { self.bytes.div_ceil(FS_BLOCK_BYTES) }
    }
}

/// Places of all inodes of a tree.
#[derive(Debug)]
pub struct Layout {
    /// By number of the inode in the tree.
    places: Vec<Place>,
    /// Inodes in the order of their places, each with the directory that it was found in.
    order: Vec<(InodeId, InodeId)>,
    metadata_bytes: u64,
    plain_bytes: u64,
}

impl Layout {
    /// Lays out a tree with the data of `files`, every regular file once, in that order.
    pub fn new(tree: &Tree, files: &[InodeId], plain_bytes_max: u64) -> Result<Self, LayoutError> {
        let mut layout = Self {
            places: vec![Place::default(); tree.len_max()],
            order: inode_order(tree),
            metadata_bytes: 0,
            plain_bytes: 0,
        };
        layout.place_metadata(tree);
        let mut next = layout.metadata_bytes;
        for file in files {
            let size = layout.place(*file).bytes;
            layout.take_blocks(*file, &mut next);
            // Checked for each file, so that hostile sizes never overflow the sum.
            if size > plain_bytes_max || next > plain_bytes_max {
                return Err(LayoutError::TooLarge { bytes: next.max(size), limit: plain_bytes_max });
            }
        }
        layout.plain_bytes = next;
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

    /// Bytes of the whole file system.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Leading blocks of a block image that hold all metadata.
    pub fn metadata_blocks(&self) -> u32 {
        self.metadata_bytes.div_ceil(u64::from(BLOCK_BYTES)) as u32
    }

    /// The root comes first: its number has only 16 bits in the superblock.
    fn place_metadata(&mut self, tree: &Tree) {
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
            let inline = is_metadata && tail > 0 && head + tail <= FS_BLOCK_BYTES;
            let at = inode_place(next, head, if inline { tail } else { 0 });
            self.places[id.0 as usize] = Place { inode: at, block: 0, bytes, inline };
            next = at + head + if inline { tail } else { 0 };
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

    fn take_blocks(&mut self, id: InodeId, next: &mut u64) {
        let place = &mut self.places[id.0 as usize];
        if place.blocks() > 0 {
            // Sizes above the limit are refused right after this, before the number is used.
            place.block = (*next / FS_BLOCK_BYTES) as u32;
            *next = next.saturating_add(place.blocks().saturating_mul(FS_BLOCK_BYTES));
        }
    }
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
