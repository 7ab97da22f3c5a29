//! Content of directories: blocks of entries sorted by name, each block complete in itself.

use super::FS_BLOCK_BYTES;
use crate::image::tree::{Children, InodeId, Kind, Tree};
use std::{iter, ops::Bound};

pub const ENTRY_BYTES: usize = 12;
/// `EROFS_FT_*` of what a reader tells apart.
pub const TYPE_FILE: u8 = 1;
pub const TYPE_DIRECTORY: u8 = 2;
const BLOCK: usize = FS_BLOCK_BYTES as usize;

/// Bytes of a directory's content: full blocks, and what the last one uses.
pub fn body_len(children: &Children) -> u64 {
    let (mut full_blocks, mut used) = (0, 0);
    for name in names(children) {
        let entry = ENTRY_BYTES + name.len();
        if used + entry > BLOCK {
            full_blocks += 1;
            used = 0;
        }
        used += entry;
    }
    full_blocks * FS_BLOCK_BYTES + used as u64
}

/// A directory's content.
///
/// `nid` gives the number of an inode in the file system.
pub fn body(
    tree: &Tree,
    children: &Children,
    own: InodeId,
    parent: InodeId,
    nid: impl Fn(InodeId) -> u64,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut block: Vec<(&[u8], InodeId)> = Vec::new();
    let mut used = 0;
    for name in names(children) {
        let id = match name {
            b"." => own,
            b".." => parent,
            _ => children[name].inode,
        };
        let entry = ENTRY_BYTES + name.len();
        if used + entry > BLOCK {
            push_block(tree, &block, &nid, &mut out);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
            block.clear();
            used = 0;
        }
        used += entry;
        block.push((name, id));
    }
    push_block(tree, &block, &nid, &mut out);
    out
}

fn push_block(tree: &Tree, block: &[(&[u8], InodeId)], nid: impl Fn(InodeId) -> u64, out: &mut Vec<u8>) {
    let mut name_offset = ENTRY_BYTES * block.len();
    for (name, id) in block {
        out.extend_from_slice(&nid(*id).to_le_bytes());
        out.extend_from_slice(&(name_offset as u16).to_le_bytes());
        out.extend_from_slice(&[file_type(&tree.inode(*id).kind), 0]);
        name_offset += name.len();
    }
    for (name, _) in block {
        out.extend_from_slice(name);
    }
}

/// All names in bytewise order; `.` and `..` have their places among them.
fn names(children: &Children) -> impl Iterator<Item = &[u8]> {
    let (dot, dots) = (b".".as_slice(), b"..".as_slice());
    let range =
        |from: Bound<&[u8]>, to: Bound<&[u8]>| children.range::<[u8], _>((from, to)).map(|(name, _)| &**name);
    let before = range(Bound::Unbounded, Bound::Excluded(dot));
    let between = range(Bound::Included(dot), Bound::Excluded(dots));
    let behind = range(Bound::Included(dots), Bound::Unbounded);
    before.chain(iter::once(dot)).chain(between).chain(iter::once(dots)).chain(behind)
}

/// `EROFS_FT_*`, the same numbers as `FT_*` of other file systems.
fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => TYPE_FILE,
        Kind::Directory(_) => TYPE_DIRECTORY,
        Kind::CharDevice(_) => 3,
        Kind::BlockDevice(_) => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}
