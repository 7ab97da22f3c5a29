//! Writes EROFS: 4 KiB blocks, uncompressed (our own blocks are compressed), extended inodes, all
//! metadata at the front, file data behind it in the order asked for.
//!
//! ```text
//! 0      1024         1152                                      hot set                data
//! | zero | superblock | inodes, xattrs, inline bodies, tables | bodies | chunk, file, chunk ... | file, rest of a file ... |
//! |<---------------------------- metadata ---------------------------->|
//! ```
//!
//! A file of which only a part is in the hot set has chunks; a table behind its inode says where each lies.
//! Chunks of zeros are stored as others are: that they are zeros is known only after everything was laid
//! out, and zstd leaves nothing of them.
//!
//! A body is the content of a directory or symbolic link. Its tail stands inline behind its inode. File
//! data never does: all metadata must be present before a mount, so it has to stay small, and the
//! padding behind a file costs nothing once zstd has seen it.

mod directory;
mod inode;
mod layout;
pub mod read;
mod superblock;
mod write;

pub use layout::Layout;
pub use write::{Writer, copy_hot};

/// Bytes of a block of the file system; the kernel wants no more than a page.
pub const FS_BLOCK_BYTES: u64 = 4096;

/// Why a tree cannot be an EROFS image.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error(
        "the file system would have {bytes} bytes, more than {limit}, the limit set by image.plain_bytes_max"
    )]
    TooLarge { bytes: u64, limit: u64 },
}

#[cfg(test)]
mod tests;
