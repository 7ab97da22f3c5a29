//! Inodes in their extended form: 64 bytes, with all of the owner, time and link count.

use super::layout::{Form, Place};
use crate::image::{
    tree::{Inode, Kind, Tree},
    xattr,
};

pub const INODE_BYTES: u64 = 64;

/// Bit 0 of the format: the extended form.
pub const EXTENDED: u16 = 1;
/// Bits 1 to 3 of the format: how the content is laid out.
pub const FLAT_PLAIN: u16 = 0 << 1;
pub const FLAT_INLINE: u16 = 2 << 1;
pub const CHUNK_BASED: u16 = 4 << 1;
/// `EROFS_NULL_ADDR`: a chunk of zeros that is stored nowhere.
pub const NO_BLOCK: u32 = u32::MAX;

/// `S_IF*` of Linux.
fn type_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice(_) => 0o020_000,
        Kind::Directory(_) => 0o040_000,
        Kind::BlockDevice(_) => 0o060_000,
        Kind::File { .. } => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
    }
}

/// The inode's 64 bytes. `chunk_format` is that of all files with chunks; `number` is what `stat` shows on machines of 32 bits.
pub fn encode(tree: &Tree, inode: &Inode, place: Place, chunk_format: u32, number: u32) -> Vec<u8> {
    let attributes = &inode.attributes;
    let union = match &inode.kind {
        Kind::CharDevice(device) | Kind::BlockDevice(device) => *device,
        Kind::File { .. } if place.form == Form::Chunked => chunk_format,
        Kind::Directory(_) | Kind::File { .. } | Kind::Symlink(_) | Kind::Fifo => place.block,
    };
    let mut out = Vec::with_capacity(INODE_BYTES as usize);
    out.extend_from_slice(&(EXTENDED | data_layout(place.form)).to_le_bytes());
    out.extend_from_slice(&xattr::count(&attributes.xattrs).to_le_bytes());
    out.extend_from_slice(&(type_bits(&inode.kind) | attributes.mode).to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&place.bytes.to_le_bytes());
    out.extend_from_slice(&union.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&attributes.uid.to_le_bytes());
    out.extend_from_slice(&attributes.gid.to_le_bytes());
    out.extend_from_slice(&attributes.mtime.seconds.to_le_bytes());
    out.extend_from_slice(&attributes.mtime.nanos.to_le_bytes());
    out.extend_from_slice(&links(tree, inode).to_le_bytes());
    out.resize(INODE_BYTES as usize, 0);
    out
}

fn data_layout(form: Form) -> u16 {
    match form {
        Form::Blocks => FLAT_PLAIN,
        Form::InlineTail => FLAT_INLINE,
        Form::Chunked => CHUNK_BASED,
    }
}

/// Of a directory: its name, its `.`, and the `..` of each directory in it.
fn links(tree: &Tree, inode: &Inode) -> u32 {
    let Kind::Directory(children) = &inode.kind else {
        return inode.names;
    };
    let directories = children.values().filter(|child| tree.children(child.inode).is_some());
    2 + directories.count() as u32
}
