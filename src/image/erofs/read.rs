//! Reads the metadata of an image that this module wrote: which bytes of the image belong to which file.
//!
//! The bytes may come from anywhere. Each inode is visited once, all directories and all tables of chunks
//! together may be no longer than the metadata itself, and a file's path is put together only when it is
//! asked for: memory stays within a small multiple of the metadata.

use super::{
    FS_BLOCK_BYTES,
    directory::{ENTRY_BYTES, TYPE_DIRECTORY, TYPE_FILE},
    inode::{CHUNK_BASED, EXTENDED, FLAT_INLINE, FLAT_PLAIN, INODE_BYTES, NO_BLOCK},
    layout::SLOT_BYTES,
    superblock::{MAGIC, SUPERBLOCK_END, SUPERBLOCK_START},
};
use faasnet_actors::profile::{FilePath, PARTS_MAX, Profile};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// Why bytes are not the metadata of one of our images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("it is not an EROFS image of ours")]
    Superblock,
    #[error("an inode lies outside of the metadata or is of an unknown form")]
    Inode,
    #[error("the content of a directory is malformed")]
    Directory,
    #[error("a file has bytes outside of the image")]
    File,
    #[error("directories or tables overlap")]
    Overlap,
}

/// Bytes of the image that are bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    /// Place in the image.
    start: u64,
    end: u64,
    /// Place within the file.
    at: u64,
    /// Number of the file's name in `names`.
    name: u32,
}

/// A name and the directory that it is in.
#[derive(Debug, Clone, Copy)]
struct Name {
    /// Number of the directory's name; its own for the root. Else smaller than its own.
    parent: u32,
    /// Place in `text`.
    start: u32,
    bytes: u8,
}

/// Which bytes of an image belong to which file. Bytes that belong to several count for one of them.
#[derive(Debug)]
pub struct FileMap {
    /// By their place in the image; none overlap.
    extents: Vec<Extent>,
    names: Vec<Name>,
    text: Vec<u8>,
}

/// More ranges of files than a profile holds are never needed: what is left out is what came last, and what
/// is read twice is dropped from them.
const RANGES_MAX: usize = 8 * PARTS_MAX;

impl FileMap {
    /// Reads the leading plain bytes of a block image, all blocks that hold metadata.
    pub fn read(metadata: &[u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(metadata)?;
        reader.walk()?;
        let Reader { mut extents, names, text, .. } = reader;
        extents.sort_by_key(|extent| extent.start);
        let mut end = 0;
        for extent in &mut extents {
            let covered = extent.end.min(end).saturating_sub(extent.start);
            (extent.start, extent.at) = (extent.start + covered, extent.at + covered);
            end = end.max(extent.end);
        }
        extents.retain(|extent| extent.start < extent.end);
        Ok(Self { extents, names, text })
    }

    /// The parts of files that lie in these ranges of the image, in their order. Metadata and padding are
    /// no part of any.
    pub fn parts(&self, ranges: impl IntoIterator<Item = Range<u64>>) -> Profile {
        let mut paths = BTreeMap::new();
        let extents = ranges.into_iter().filter(|range| !range.is_empty());
        let extents = extents.flat_map(|range| self.within(range)).take(RANGES_MAX);
        let parts = extents.filter_map(|extent| {
            let path = paths.entry(extent.name).or_insert_with(|| self.path(extent.name));
            Some((path.clone()?, extent.at..extent.at + (extent.end - extent.start)))
        });
        Profile::recorded(parts)
    }

    /// Where the parts of a profile lie in the image, in their order. A part of a file that is not there, or whose
    /// bytes count for another file, is left out.
    pub fn places(&self, profile: &Profile) -> Vec<Range<u64>> {
        let mut numbers: BTreeMap<(u32, &[u8]), u32> = BTreeMap::new();
        for (number, Name { parent, start, bytes }) in (0..).zip(&self.names).skip(1) {
            numbers.insert((*parent, &self.text[*start as usize..][..usize::from(*bytes)]), number);
        }
        let number =
            |path: &FilePath| path.names().try_fold(0, |parent, name| numbers.get(&(parent, name)).copied());
        let wanted: BTreeMap<&FilePath, u32> =
            profile.parts().iter().filter_map(|part| Some((&part.path, number(&part.path)?))).collect();
        let mut extents: BTreeMap<u32, Vec<Extent>> =
            wanted.values().map(|name| (*name, Vec::new())).collect();
        for extent in &self.extents {
            if let Some(of_file) = extents.get_mut(&extent.name) {
                of_file.push(*extent);
            }
        }
        extents.values_mut().for_each(|of_file| of_file.sort_by_key(|extent| extent.at));
        let mut places = Vec::new();
        for part in profile.parts() {
            let of_file = wanted.get(&part.path).and_then(|name| extents.get(name));
            let of_file = of_file.map(Vec::as_slice).unwrap_or_default();
            let first =
                of_file.partition_point(|extent| extent.at + (extent.end - extent.start) <= part.start);
            let within = of_file[first..].iter().take_while(|extent| extent.at < part.end);
            places.extend(within.map(|Extent { start, end, at, name: _ }| {
                let (from, to) = (part.start.max(*at), part.end.min(at + (end - start)));
                start + (from - at)..start + (to - at)
            }));
        }
        places
    }

    /// What of the extents lies within a range of the image.
    fn within(&self, range: Range<u64>) -> impl Iterator<Item = Extent> {
        let first = self.extents.partition_point(|extent| extent.end <= range.start);
        let found = self.extents[first..].iter().take_while(move |extent| extent.start < range.end);
        found.map(move |extent| {
            let (start, end) = (extent.start.max(range.start), extent.end.min(range.end));
            Extent { start, end, at: extent.at + (start - extent.start), ..*extent }
        })
    }

    /// None if it would be longer than paths can be.
    fn path(&self, mut number: u32) -> Option<FilePath> {
        let mut names = Vec::new();
        while number != 0 {
            let Name { parent, start, bytes } = self.names[number as usize];
            names.push(&self.text[start as usize..][..usize::from(bytes)]);
            number = parent;
        }
        let path: Vec<u8> = names.into_iter().rev().flat_map(|name| [b"/", name].concat()).collect();
        FilePath::new(&path).ok()
    }
}

struct Reader<'a> {
    metadata: &'a [u8],
    image_bytes: u64,
    /// Bytes of directories and tables that may still be read.
    budget: u64,
    seen: BTreeSet<u64>,
    extents: Vec<Extent>,
    names: Vec<Name>,
    text: Vec<u8>,
}

/// Number of the inode, type and name.
type Entry<'a> = (u64, u8, &'a [u8]);

/// What is read of an inode.
struct Node {
    /// Byte behind the inode and its attributes.
    behind: u64,
    layout: u16,
    size: u64,
    union: u32,
}

impl<'a> Reader<'a> {
    fn new(metadata: &'a [u8]) -> Result<Self, ReadError> {
        let superblock = metadata.get(SUPERBLOCK_START..SUPERBLOCK_END as usize);
        let superblock = superblock.ok_or(ReadError::Superblock)?;
        let is_ours = u32_at(superblock, 0) == MAGIC
            && superblock[12] == FS_BLOCK_BYTES.ilog2() as u8
            && u32_at(superblock, 40) == 0;
        if !is_ours || u32::try_from(metadata.len()).is_err() {
            return Err(ReadError::Superblock);
        }
        Ok(Self {
            metadata,
            image_bytes: u64::from(u32_at(superblock, 36)) * FS_BLOCK_BYTES,
            budget: metadata.len() as u64,
            seen: BTreeSet::new(),
            extents: Vec::new(),
            names: vec![Name { parent: 0, start: 0, bytes: 0 }],
            text: Vec::new(),
        })
    }

    fn walk(&mut self) -> Result<(), ReadError> {
        let root = u64::from(u16_at(self.metadata, SUPERBLOCK_START + 14));
        self.seen.insert(root);
        // Directories that wait, each with the number of its name.
        let mut directories = vec![(root, 0)];
        while let Some((nid, name)) = directories.pop() {
            for (nid, kind, text) in self.directory(nid)? {
                if matches!(text, b"." | b"..") || !self.seen.insert(nid) {
                    continue;
                }
                if kind == TYPE_DIRECTORY {
                    directories.push((nid, self.name(name, text)?));
                } else if kind == TYPE_FILE {
                    let name = self.name(name, text)?;
                    self.file(nid, name)?;
                }
            }
        }
        Ok(())
    }

    fn name(&mut self, parent: u32, text: &[u8]) -> Result<u32, ReadError> {
        let number = u32::try_from(self.names.len()).map_err(|_| ReadError::Directory)?;
        let start = u32::try_from(self.text.len()).map_err(|_| ReadError::Directory)?;
        let bytes = u8::try_from(text.len()).map_err(|_| ReadError::Directory)?;
        self.text.extend_from_slice(text);
        self.names.push(Name { parent, start, bytes });
        Ok(number)
    }

    fn spend(&mut self, bytes: u64) -> Result<(), ReadError> {
        self.budget = self.budget.checked_sub(bytes).ok_or(ReadError::Overlap)?;
        Ok(())
    }

    fn bytes(&self, start: u64, bytes: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(start).ok()?;
        self.metadata.get(start..start.checked_add(usize::try_from(bytes).ok()?)?)
    }

    fn node(&self, nid: u64) -> Result<Node, ReadError> {
        let start = nid.checked_mul(SLOT_BYTES).ok_or(ReadError::Inode)?;
        let inode = self.bytes(start, INODE_BYTES).ok_or(ReadError::Inode)?;
        let format = u16_at(inode, 0);
        if format & 1 != EXTENDED {
            return Err(ReadError::Inode);
        }
        let xattrs = match u64::from(u16_at(inode, 2)) {
            0 => 0,
            count => 12 + 4 * (count - 1),
        };
        let (size, union) = (u64_at(inode, 8), u32_at(inode, 16));
        Ok(Node { behind: start + INODE_BYTES + xattrs, layout: format & !1, size, union })
    }

    fn directory(&mut self, nid: u64) -> Result<Vec<Entry<'a>>, ReadError> {
        let node = self.node(nid)?;
        self.spend(node.size)?;
        let outside = match node.layout {
            FLAT_PLAIN => node.size,
            FLAT_INLINE => node.size - node.size % FS_BLOCK_BYTES,
            _ => return Err(ReadError::Inode),
        };
        let blocks = match outside {
            0 => &[][..],
            _ => {
                let start = u64::from(node.union) * FS_BLOCK_BYTES;
                self.bytes(start, outside).ok_or(ReadError::Directory)?
            }
        };
        let inline = self.bytes(node.behind, node.size - outside).ok_or(ReadError::Directory)?;
        let mut entries = Vec::new();
        let blocks = blocks.chunks(FS_BLOCK_BYTES as usize);
        for block in blocks.chain([inline]).filter(|block| !block.is_empty()) {
            entries_of(block, &mut entries).ok_or(ReadError::Directory)?;
        }
        Ok(entries)
    }

    fn file(&mut self, nid: u64, name: u32) -> Result<(), ReadError> {
        let node = self.node(nid)?;
        if node.size == 0 {
            return Ok(());
        }
        match node.layout {
            FLAT_PLAIN => self.extent(node.union, 0..node.size, name),
            CHUNK_BASED => self.chunks(&node, name),
            _ => Err(ReadError::Inode),
        }
    }

    fn chunks(&mut self, node: &Node, name: u32) -> Result<(), ReadError> {
        // Other bits tell of longer entries, which are not written here.
        if node.union > 31 {
            return Err(ReadError::Inode);
        }
        let chunk_bytes = FS_BLOCK_BYTES << node.union;
        let count = node.size.div_ceil(chunk_bytes);
        let table_bytes = count.checked_mul(4).ok_or(ReadError::Inode)?;
        self.spend(table_bytes)?;
        let table = self.bytes(node.behind, table_bytes).ok_or(ReadError::Inode)?;
        for (number, block) in (0..).zip(table.chunks_exact(4)) {
            let start = number * chunk_bytes;
            let block = u32_at(block, 0);
            if block != NO_BLOCK {
                self.extent(block, start..start.saturating_add(chunk_bytes).min(node.size), name)?;
            }
        }
        Ok(())
    }

    fn extent(&mut self, block: u32, range: Range<u64>, name: u32) -> Result<(), ReadError> {
        let start = u64::from(block) * FS_BLOCK_BYTES;
        let end = start.checked_add(range.end - range.start).filter(|end| *end <= self.image_bytes);
        let end = end.ok_or(ReadError::File)?;
        let next = Extent { start, end, at: range.start, name };
        match self.extents.last_mut() {
            Some(last)
                if (last.name, last.end, last.at + (last.end - last.start)) == (name, start, next.at) =>
            {
                last.end = end;
            }
            _ => self.extents.push(next),
        }
        Ok(())
    }
}

/// The entries of one block of a directory.
fn entries_of<'a>(block: &'a [u8], entries: &mut Vec<Entry<'a>>) -> Option<()> {
    let heads_bytes = usize::from(u16_at(block.get(..ENTRY_BYTES)?, 8));
    let heads =
        block.get(..heads_bytes).filter(|heads| heads.len() % ENTRY_BYTES == 0 && !heads.is_empty())?;
    let mut heads = heads.chunks_exact(ENTRY_BYTES).peekable();
    while let Some(head) = heads.next() {
        let start = usize::from(u16_at(head, 8));
        let text = match heads.peek() {
            Some(next) => block.get(start..usize::from(u16_at(next, 8)))?,
            // Behind the last name there are zeros up to the end of the block.
            None => block.get(start..)?.split(|byte| *byte == 0).next()?,
        };
        entries.push((u64_at(head, 0), head[10], text));
    }
    Some(())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(std::array::from_fn(|place| bytes[at + place]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|place| bytes[at + place]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|place| bytes[at + place]))
}

#[cfg(test)]
pub(crate) mod tests;
