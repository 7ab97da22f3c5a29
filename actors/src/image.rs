//! The block image as agents see it: its index and what the metadata store records of it.

use crate::id::{BlockId, Digest, ImageId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Plain bytes of a block; the last of an image may be shorter. The paper's choice (section 3.5),
/// fixed here because it is part of the format.
pub const BLOCK_BYTES: u32 = 512 * 1024;

/// Raised whenever the writer or a codec yields other bytes for the same source.
pub const FORMAT_VERSION: u32 = 2;

/// The most blocks an index may have: 512 GiB of file system, 23 MB of index.
pub const BLOCKS_MAX: u32 = 1 << 20;

/// How the stored bytes of a block were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// The plain bytes themselves: the block did not shrink.
    Plain,
    /// One zstd frame.
    Zstd,
}

/// Where a block lies in the blob, and the proof of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    /// Place of the stored bytes in the blob.
    pub offset: u64,
    pub stored_bytes: u32,
    pub codec: Codec,
    /// BLAKE3 of the stored bytes.
    pub hash: [u8; 32],
}

/// The offset table of a block image. A decoded index is checked: entries lie inside the blob,
/// follow each other without overlap and cover the plain bytes exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    plain_bytes: u64,
    metadata_blocks: u32,
    hot_blocks: u32,
    entries: Vec<BlockEntry>,
}

/// What is wrong with an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    #[error("the index is cut short or has bytes left over")]
    Length,
    #[error("this is not an index of a block image")]
    Magic,
    #[error("the index has format version {0}; this program reads version {FORMAT_VERSION}")]
    Version(u32),
    #[error("the index has an entry out of bounds, overlapping, or of an unknown codec: block {0}")]
    Entry(u32),
    #[error("the numbers of blocks do not match the size of the file system or each other")]
    Count,
}

const MAGIC: &[u8; 8] = b"FAASNETX";
const HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 48;

impl Index {
    /// Makes a checked index.
    ///
    /// `metadata_blocks` is the number of leading blocks that hold all metadata of the file system.
    pub fn new(plain_bytes: u64, metadata_blocks: u32, entries: Vec<BlockEntry>) -> Result<Self, IndexError> {
        let index = Self { plain_bytes, metadata_blocks, hot_blocks: metadata_blocks, entries };
        index.check().map(|()| index)
    }

    /// The same index of an image with what starts read packed behind the metadata: `hot_blocks` leading
    /// blocks hold both.
    pub fn packed(self, hot_blocks: u32) -> Result<Self, IndexError> {
        let index = Self { hot_blocks, ..self };
        index.check().map(|()| index)
    }

    fn check(&self) -> Result<(), IndexError> {
        let count = u64::try_from(self.entries.len()).map_err(|_| IndexError::Count)?;
        let fits = count == self.plain_bytes.div_ceil(u64::from(BLOCK_BYTES))
            && (1..=u64::from(BLOCKS_MAX)).contains(&count)
            && self.metadata_blocks <= self.hot_blocks
            && u64::from(self.hot_blocks) <= count;
        if !fits {
            return Err(IndexError::Count);
        }
        let mut end = 0;
        for (number, entry) in (0..).zip(&self.entries) {
            let plain = self.plain_len(BlockId(number));
            let length_ok = match entry.codec {
                Codec::Plain => entry.stored_bytes == plain,
                Codec::Zstd => (1..plain).contains(&entry.stored_bytes),
            };
            if entry.offset != end || !length_ok {
                return Err(IndexError::Entry(number));
            }
            end += u64::from(entry.stored_bytes);
        }
        Ok(())
    }

    /// The bytes that are published and hashed: a header of 32 bytes, then 48 bytes for each block,
    /// all numbers little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + ENTRY_BYTES * self.entries.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&self.metadata_blocks.to_le_bytes());
        out.extend_from_slice(&self.plain_bytes.to_le_bytes());
        out.extend_from_slice(&self.block_count().to_le_bytes());
        out.extend_from_slice(&self.hot_blocks.to_le_bytes());
        for entry in &self.entries {
            out.extend_from_slice(&entry.offset.to_le_bytes());
            out.extend_from_slice(&entry.stored_bytes.to_le_bytes());
            let codec = match entry.codec {
                Codec::Plain => 0_u32,
                Codec::Zstd => 1,
            };
            out.extend_from_slice(&codec.to_le_bytes());
            out.extend_from_slice(&entry.hash);
        }
        out
    }

    /// Reads and checks published bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or(IndexError::Length)?;
        if !header.starts_with(MAGIC) {
            return Err(IndexError::Magic);
        }
        let version = u32_at(header, 8);
        if version != FORMAT_VERSION {
            return Err(IndexError::Version(version));
        }
        let count = u32_at(header, 24);
        if body.len() != count as usize * ENTRY_BYTES {
            return Err(IndexError::Length);
        }
        let mut entries = Vec::with_capacity(body.len() / ENTRY_BYTES);
        for (number, entry) in (0..).zip(body.chunks_exact(ENTRY_BYTES)) {
            let codec = match u32_at(entry, 12) {
                0 => Codec::Plain,
                1 => Codec::Zstd,
                _ => return Err(IndexError::Entry(number)),
            };
            let mut hash = [0; 32];
            hash.copy_from_slice(&entry[16..48]);
            entries.push(BlockEntry {
                offset: u64_at(entry, 0),
                stored_bytes: u32_at(entry, 8),
                codec,
                hash,
            });
        }
        Self::new(u64_at(header, 16), u32_at(header, 12), entries)?.packed(u32_at(header, 28))
    }

    /// Length of the published bytes of an index with that many blocks.
    pub fn encoded_len(block_count: u32) -> u64 {
        HEADER_BYTES as u64 + ENTRY_BYTES as u64 * u64::from(block_count)
    }

    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Leading blocks that hold all metadata of the file system.
    pub fn metadata_blocks(&self) -> u32 {
        self.metadata_blocks
    }

    /// Leading blocks that hold the metadata and what starts read; those of the metadata alone if the image
    /// is not packed.
    pub fn hot_blocks(&self) -> u32 {
        self.hot_blocks
    }

    pub fn block_count(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Bytes of the blob that the index describes.
    pub fn blob_bytes(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.offset + u64::from(entry.stored_bytes))
    }

    pub fn entry(&self, block: BlockId) -> Option<&BlockEntry> {
        self.entries.get(block.0 as usize)
    }

    /// Place of a block's plain bytes in the file system.
    pub fn plain_offset(&self, block: BlockId) -> u64 {
        u64::from(block.0) * u64::from(BLOCK_BYTES)
    }

    /// Plain bytes of a block: full, but for the last.
    pub fn plain_len(&self, block: BlockId) -> u32 {
        let left = self.plain_bytes.saturating_sub(self.plain_offset(block));
        left.min(u64::from(BLOCK_BYTES)) as u32
    }

    /// Whether these are the stored bytes of the block (invariant 5 rests on this check).
    pub fn verify(&self, block: BlockId, stored: &[u8]) -> bool {
        self.entry(block).is_some_and(|entry| {
            stored.len() == entry.stored_bytes as usize && *blake3::hash(stored).as_bytes() == entry.hash
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|place| bytes[at + place]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|place| bytes[at + place]))
}

/// What the metadata store records of a block image that our converter made, and what an agent
/// needs to use it. A block image that is not recorded there is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockImage {
    /// Digest of the artifact's manifest.
    pub id: ImageId,
    /// Digest of the source image's manifest (of the chosen platform).
    pub source: Digest,
    pub index_digest: Digest,
    pub index_bytes: u64,
    pub blob_digest: Digest,
    /// Stored bytes of all blocks.
    pub blob_bytes: u64,
    pub plain_bytes: u64,
    pub location: ImageLocation,
    pub runtime: RuntimeConfig,
}

/// Where the origin keeps the index and the blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageLocation {
    /// An OCI layout folder.
    Folder { path: PathBuf },
    /// A repository of a registry, `host[:port]/name`.
    Registry { repository: String },
}

/// What the source image says about how to run it, with users and groups resolved to numbers,
/// so that nothing must be read below a mount to start a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    /// Signal number that asks the process to end; 15 (TERM) unless the image says otherwise.
    pub stop_signal: i32,
}

#[cfg(test)]
impl BlockImage {
    /// An image of which nothing matters but its digest.
    pub(crate) fn of_test(digest: Digest) -> Self {
        Self {
            id: digest,
            source: digest,
            index_digest: digest,
            index_bytes: 80,
            blob_digest: digest,
            blob_bytes: 100,
            plain_bytes: 1000,
            location: ImageLocation::Folder { path: "/images".into() },
            runtime: RuntimeConfig::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let hash = *blake3::hash(&[7; 100]).as_bytes();
        let entry = |offset, stored_bytes, codec| BlockEntry { offset, stored_bytes, codec, hash };
        let entries = vec![entry(0, 100, Codec::Zstd), entry(100, 5000, Codec::Plain)];
        Index::new(u64::from(BLOCK_BYTES) + 5000, 1, entries).expect("valid")
    }

    #[test]
    fn an_index_survives_its_encoding() {
        assert_eq!(Index::decode(&index().encode()), Ok(index()));
        assert_eq!(Index::encoded_len(2), index().encode().len() as u64);
    }

    #[test]
    fn every_damaged_byte_is_noticed_or_changes_the_hash_only() {
        let good = index().encode();
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0x81;
            let inside_hash = place >= 32 && (place - 32) % 48 >= 16;
            let decoded = Index::decode(&bad);
            assert!(decoded.is_err() || inside_hash, "byte {place}");
        }
        assert_eq!(Index::decode(&good[..good.len() - 1]), Err(IndexError::Length));
    }

    #[test]
    fn hot_blocks_are_at_least_those_of_the_metadata_and_no_more_than_all() {
        assert_eq!((index().metadata_blocks(), index().hot_blocks()), (1, 1));
        let packed = index().packed(2).expect("valid");
        assert_eq!(Index::decode(&packed.encode()).expect("valid").hot_blocks(), 2);
        assert_eq!(index().packed(0), Err(IndexError::Count));
        assert_eq!(index().packed(3), Err(IndexError::Count));
    }

    #[test]
    fn only_the_right_bytes_are_verified() {
        assert!(index().verify(BlockId(0), &[7; 100]));
        assert!(!index().verify(BlockId(0), &[8; 100]));
        assert!(!index().verify(BlockId(0), &[7; 99]));
        assert!(!index().verify(BlockId(2), &[7; 100]));
    }
}
