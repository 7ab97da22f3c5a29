//! Reads zips: packages of code. Nothing is unpacked; a package becomes a tree, and its files are read one
//! by one into the file system that is made of it.
//!
//! The central directory says what a zip contains; `rawzip` reads it. Whatever could make two readers see
//! two different packages is refused: names that come twice (the `zip` crate silently keeps the last),
//! local headers that say something else, entries that share bytes, bytes behind the end. So is what no
//! package of code needs: devices, links that lead out of it, encryption. Sizes are claims until as many
//! bytes have come out, and nothing is published before they have.
//!
//! The same zip gives the same tree: everything belongs to root, and modes are 0755 for folders and what
//! anybody may execute, 0644 for all else. Zips of Python's `zipfile` and of Windows carry modes that only
//! the user who made them could read. Times are kept, because compiled Python files name those of their
//! sources.

mod convert;
mod data;
mod entry;
mod links;
#[cfg(test)]
pub(crate) mod tests;

pub use convert::convert_package;

use crate::image::tree::{
    Attributes, Children, DataPlace, Inode, InodeId, Kind, ROOT, Tree, implied_directory,
};
use data::Packed;
use entry::EntryKind;
use rawzip::{MAX_CENTRAL_DIRECTORY_RECORD_SIZE, ReaderAt, ZipArchive, ZipLocator};
use std::{collections::BTreeSet, io};

/// What a package may be.
#[derive(Debug, Clone, Copy)]
pub struct ZipLimits {
    /// Files, folders and links, those that are only in paths included.
    pub entries_max: u64,
    pub plain_bytes_max: u64,
    /// Plain bytes for each byte of the zip.
    pub ratio_max: u64,
}

/// The ratio of a package that is smaller than this bounds nothing worth it: a file of zeros may be a thousand
/// times as large as its entry.
const RATIO_FREE_BYTES: u64 = 16 << 20;
/// The end of the central directory, and the longest comment behind it.
const END_BYTES_MAX: u64 = 22 + u16::MAX as u64;

/// Why a zip is not a package of code.
#[derive(Debug, thiserror::Error)]
pub enum ZipError {
    #[error(
        "it is not a zip, or cut short: {0}; make it again with `zip -r FILE .` in the folder of the code"
    )]
    NotAZip(rawzip::Error),
    #[error("there are bytes behind the end of the zip; make it again")]
    BytesBehind,
    #[error("its directory has {found} entries and says that there are {said}; make the zip again")]
    Count { said: u64, found: u64 },
    #[error(
        "it has more than {0} files, folders and links, the limit set by code.entries_max; leave out what the \
         function does not need"
    )]
    TooManyEntries(u64),
    #[error(
        "unpacked it would have {bytes} bytes, more than {limit}, the limit set by code.plain_bytes_max; leave out \
         what the function does not need"
    )]
    TooLarge { bytes: u64, limit: u64 },
    #[error(
        "unpacked it would be more than {0} times as large as the zip, the limit set by code.ratio_max; leave out \
         large files that are nearly empty"
    )]
    Ratio(u64),
    #[error("{path:?}: {refusal}")]
    Entry { path: String, refusal: EntryRefusal },
    /// The zip cannot be read any more, or what is made of it not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is wrong with one entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryRefusal {
    #[error("the path is absolute; make the zip in the folder of the code, of `.`")]
    Absolute,
    #[error("the path leads out of the package by `..`; make the zip in the folder of the code, of `.`")]
    ParentDirectory,
    #[error("the path contains a backslash; make the zip with `/` between names")]
    Backslash,
    #[error("the path contains a NUL byte; make the zip again")]
    Nul,
    #[error("the path is not UTF-8; make the zip with UTF-8 names")]
    NotUtf8,
    #[error("the path names nothing; make the zip again")]
    Empty,
    #[error(
        "a name is longer than {} bytes or the path longer than {}; shorten it",
        entry::NAME_BYTES_MAX,
        entry::PATH_BYTES_MAX
    )]
    TooLong,
    #[error("the package has it twice; make the zip again, with each path once")]
    Duplicate,
    #[error("the path goes through something that is not a folder; rename one of them")]
    NotAFolder,
    #[error("it is a device, socket or pipe; leave it out")]
    Special,
    #[error("it is a folder and has data; make the zip again")]
    FolderWithData,
    #[error("it is encrypted; make the zip without a password")]
    Encrypted,
    #[error("it is compressed by {0}; make the zip with deflate, zstd or without compression")]
    Method(rawzip::CompressionMethod),
    #[error("its own header says something else than the directory of the zip; make the zip again")]
    LocalHeader,
    #[error("its data lies in that of another entry, or in the directory of the zip; make the zip again")]
    Overlap,
    #[error(
        "the target of the link is empty, longer than {} bytes or contains a NUL byte; leave it out",
        entry::PATH_BYTES_MAX
    )]
    LinkTarget,
    #[error(
        "the link to {0:?} leads out of the package; leave it out, or make the zip without `-y`, which stores what it \
         leads to"
    )]
    LinkOutside(String),
    #[error("the links of the package lead through too many others; leave some out")]
    LinkMaze,
    #[error("it has more or less data than the {0} bytes that its header says; make the zip again")]
    Length(u64),
    #[error("its data has another checksum than its header says; make the zip again")]
    Checksum,
    #[error("its data cannot be unpacked: {0}; make the zip again")]
    Unpack(io::Error),
    #[error("{0}; make the zip again")]
    Zip(rawzip::Error),
}

/// A zip that may become a package; the data of its files is not checked yet.
pub struct Package<R> {
    archive: ZipArchive<R>,
    tree: Tree,
    /// By the number of the entry, as in [`DataPlace`].
    files: Vec<Packed>,
}

impl<R: ReaderAt> Package<R> {
    /// Reads the directory of a zip of that length.
    pub fn read(zip: R, bytes: u64, limits: &ZipLimits) -> Result<Self, ZipError> {
        let mut buffer = vec![0; MAX_CENTRAL_DIRECTORY_RECORD_SIZE];
        let locator = ZipLocator::new().max_search_space(END_BYTES_MAX);
        let located = locator.locate_in_reader(zip, &mut buffer, bytes);
        let archive = located.map_err(|(_, error)| ZipError::NotAZip(error))?;
        if archive.end_offset() != bytes {
            return Err(ZipError::BytesBehind);
        }
        if archive.entries_hint() > limits.entries_max {
            return Err(ZipError::TooManyEntries(limits.entries_max));
        }
        let mut builder = Builder::new(limits);
        let mut entries = archive.entries(&mut buffer);
        let mut found = 0_u64;
        while let Some(record) = entries.next_entry().map_err(ZipError::NotAZip)? {
            found += 1;
            if found > archive.entries_hint() {
                break;
            }
            builder.add(&archive, &record)?;
        }
        if found != archive.entries_hint() {
            return Err(ZipError::Count { said: archive.entries_hint(), found });
        }
        let free = RATIO_FREE_BYTES.max(bytes.saturating_mul(limits.ratio_max));
        if builder.plain_bytes > free {
            return Err(ZipError::Ratio(limits.ratio_max));
        }
        builder.check_ranges(archive.directory_offset())?;
        links::check(&builder.tree)?;
        Ok(Self { archive, tree: builder.tree, files: builder.files })
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Writes the data of a file, and makes sure that it is what its header says. After an error some of it
    /// may have been written, never more than the header says.
    pub fn copy_file(&self, place: DataPlace, out: &mut dyn io::Write) -> Result<u64, ZipError> {
        self.files[place.entry as usize].copy(&self.archive, out)
    }

    /// Makes sure that files without data have none in the zip: nobody copies them.
    pub fn check_empty_files(&self) -> Result<(), ZipError> {
        let mut empty = self.files.iter().filter(|file| file.plain_bytes == 0);
        empty.try_for_each(|file| file.copy(&self.archive, &mut io::sink()).map(drop))
    }
}

/// Puts the tree together.
struct Builder<'a> {
    limits: &'a ZipLimits,
    tree: Tree,
    files: Vec<Packed>,
    /// Bytes of the zip that entries take, headers included, each with its path.
    ranges: Vec<(u64, u64, String)>,
    /// Folders that have an entry of their own.
    described: BTreeSet<InodeId>,
    plain_bytes: u64,
}

impl<'a> Builder<'a> {
    fn new(limits: &'a ZipLimits) -> Self {
        Self {
            limits,
            tree: Tree::new(),
            files: Vec::new(),
            ranges: Vec::new(),
            described: BTreeSet::new(),
            plain_bytes: 0,
        }
    }

    fn add<R: ReaderAt>(
        &mut self,
        archive: &ZipArchive<R>,
        record: &rawzip::ZipFileHeaderRecord<'_>,
    ) -> Result<(), ZipError> {
        let path = String::from_utf8_lossy(record.file_path().as_ref()).into_owned();
        let entry = entry::read(archive, record);
        let refused = |refusal| ZipError::Entry { path: path.clone(), refusal };
        let entry = entry.map_err(refused)?;
        let (start, end) = entry.packed.range;
        self.ranges.push((record.local_header_offset(), end.max(start), path.clone()));
        // Claims; what comes out is held against them.
        let size = entry.packed.plain_bytes;
        self.plain_bytes = self.plain_bytes.saturating_add(size);
        let limit = self.limits.plain_bytes_max;
        if self.plain_bytes > limit {
            return Err(ZipError::TooLarge { bytes: self.plain_bytes, limit });
        }
        let number = u32::try_from(self.files.len()).expect("entries are limited far below 2^32");
        let kind = match entry.kind {
            EntryKind::Folder => Kind::Directory(Children::new()),
            EntryKind::File { .. } => {
                self.files.push(entry.packed);
                Kind::File { size, data: DataPlace { layer: 0, entry: number }, content: None }
            }
            EntryKind::Link => {
                Kind::Symlink(entry.packed.link_target(archive).map_err(|error| match error {
                    ZipError::Entry { refusal, .. } => refused(refusal),
                    other => other,
                })?)
            }
        };
        let attributes = Attributes { mode: entry.kind.mode(), mtime: entry.mtime, ..Attributes::default() };
        let inode = Inode { attributes, kind, names: 1 };
        self.place(&entry.names, inode).map_err(refused)?;
        // Less the root.
        if self.tree.len_max() as u64 - 1 > self.limits.entries_max {
            return Err(ZipError::TooManyEntries(self.limits.entries_max));
        }
        Ok(())
    }

    fn place(&mut self, names: &[&[u8]], inode: Inode) -> Result<(), EntryRefusal> {
        let Some((name, folders)) = names.split_last() else { return Err(EntryRefusal::Empty) };
        let mut folder = ROOT;
        for name in folders {
            folder = match self.tree.child(folder, name) {
                None => self.tree.add(folder, name, 0, implied_directory()),
                Some(child) if self.tree.children(child.inode).is_some() => child.inode,
                Some(_) => return Err(EntryRefusal::NotAFolder),
            };
        }
        let is_folder = matches!(inode.kind, Kind::Directory(_));
        let id = match self.tree.child(folder, name) {
            None => self.tree.add(folder, name, 0, inode),
            // So far it was only in the paths of what is in it.
            Some(child) if is_folder && self.tree.children(child.inode).is_some() => {
                self.tree.inode_mut(child.inode).attributes = inode.attributes;
                child.inode
            }
            Some(_) => return Err(EntryRefusal::Duplicate),
        };
        if is_folder && !self.described.insert(id) {
            return Err(EntryRefusal::Duplicate);
        }
        Ok(())
    }

    /// Entries that share bytes are how small zips become huge ones.
    fn check_ranges(&mut self, directory: u64) -> Result<(), ZipError> {
        self.ranges.sort_unstable();
        let ends = self.ranges.iter().skip(1).map(|(start, ..)| *start).chain([directory]);
        match self.ranges.iter().zip(ends).find(|((_, end, _), next)| end > next) {
            Some(((_, _, path), _)) => {
                Err(ZipError::Entry { path: path.clone(), refusal: EntryRefusal::Overlap })
            }
            None => Ok(()),
        }
    }
}
