//! The superblock: 128 bytes at 1024, and a checksum over the rest of the first block.

use super::{FS_BLOCK_BYTES, layout::Layout};
use crate::image::tree::ROOT;

pub const SUPERBLOCK_START: usize = 1024;
/// Where inodes may begin.
pub const SUPERBLOCK_END: u64 = 1152;

pub const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`.
const HAS_CHECKSUM: u32 = 1;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`.
const CHUNKED_FILE: u32 = 4;
/// Place of the checksum within the superblock.
const CHECKSUM: usize = 4;

/// The superblock, still without its checksum. The time of building is 0: bytes must not depend on it.
pub fn encode(layout: &Layout, uuid: [u8; 16]) -> Vec<u8> {
    let mut out = vec![0; SUPERBLOCK_START];
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&HAS_CHECKSUM.to_le_bytes());
    // log2 of the block size, then no extra slots.
    out.extend_from_slice(&[FS_BLOCK_BYTES.ilog2() as u8, 0]);
    let root = u16::try_from(layout.place(ROOT).nid()).expect("the root is placed first");
    out.extend_from_slice(&root.to_le_bytes());
    out.extend_from_slice(&(layout.order().len() as u64).to_le_bytes());
    out.extend_from_slice(&[0; 12]);
    out.extend_from_slice(&((layout.plain_bytes() / FS_BLOCK_BYTES) as u32).to_le_bytes());
    // Inode numbers count from the beginning of the image; no attributes are shared.
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&uuid);
    // No name.
    out.extend_from_slice(&[0; 16]);
    let features = if layout.has_chunks() { CHUNKED_FILE } else { 0 };
    out.extend_from_slice(&features.to_le_bytes());
    out.resize(SUPERBLOCK_END as usize, 0);
    out
}

/// Writes the checksum into the image's first block.
pub fn seal(first_block: &mut [u8]) {
    let checksum = crc32c(&first_block[SUPERBLOCK_START..]);
    first_block[SUPERBLOCK_START + CHECKSUM..][..4].copy_from_slice(&checksum.to_le_bytes());
}

/// CRC-32C as the kernel calls it: all ones at the start, not inverted at the end. Bit by bit, since it
/// is taken of 3 KiB once.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
