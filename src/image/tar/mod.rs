//! Reads layers: tar archives in the v7, ustar, GNU and PAX formats, as a stream.
//!
//! Own code, because the `tar` crate splits PAX records at line ends (file capabilities are binary and
//! contain such bytes) and knows neither GNU's PAX sparse formats nor limits. Where parsers disagree
//! (sizes of entries that have no data, PAX over GNU long names) it does as Go's `archive/tar`, which
//! is what other container tools read layers with.

mod header;
mod pax;
mod sparse;

use header::Header;
use pax::Records;
use sparse::Extent;
use std::io::{self, Read, Write};

/// Records of archives are multiples of this.
const RECORD_BYTES: u64 = 512;
/// Longest PAX header or GNU long name: room for several xattrs of 64 KiB, the most Linux allows.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// Seconds since 1970, and nanoseconds of the second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    pub seconds: i64,
    pub nanos: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file with its size as a reader sees it, holes included.
    File {
        size: u64,
    },
    HardLink {
        target: Vec<u8>,
    },
    Symlink {
        target: Vec<u8>,
    },
    CharDevice {
        major: u64,
        minor: u64,
    },
    BlockDevice {
        major: u64,
        minor: u64,
    },
    Directory,
    Fifo,
}

/// One entry of an archive. Nothing in it has been checked but its syntax.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: EntryKind,
    pub mode: u64,
    pub uid: u64,
    pub gid: u64,
    pub mtime: Time,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the archive ends in the middle of an entry")]
    Truncated,
    #[error("the header has a wrong checksum")]
    Checksum,
    #[error("the header has a bad number in field {0}")]
    Number(&'static str),
    #[error("the extended header is malformed")]
    Pax,
    #[error("the {0} is longer than {EXTENSION_BYTES_MAX} bytes")]
    TooLong(&'static str),
    #[error("the map of a sparse file is malformed")]
    Sparse,
    #[error("entry type {:?} is not supported", char::from(*.0))]
    Unsupported(u8),
}

/// A stream of entries; the data of the present one may be copied out before the next is asked for.
pub struct Reader<R> {
    inner: R,
    /// Bytes of the present entry in the archive that were not read yet, and the padding behind them.
    left: u64,
    padding: u64,
    size: u64,
    /// Where the bytes belong, if the present entry is sparse.
    extents: Option<Vec<Extent>>,
    global: Records,
}

impl<R: Read> Reader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, size: 0, extents: None, global: Records::default() }
    }

    /// The next entry, or `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let (mut local, mut long_name, mut long_link) = (Records::default(), None, None);
        let mut is_described = false;
        loop {
            if self.skip(self.left)? < self.left {
                return Err(TarError::Truncated);
            }
            // umoci's `insert` leaves out the last padding; the digest tells whether something is missing.
            self.skip(self.padding)?;
            (self.left, self.padding, self.extents) = (0, 0, None);
            let Some(header) = self.read_header()? else {
                return if is_described { Err(TarError::Truncated) } else { Ok(None) };
            };
            is_described |= matches!(header.kind(), b'x' | b'L' | b'K');
            match header.kind() {
                b'x' => local = Records::parse(&self.read_extension(&header, "extended header")?)?,
                b'g' => self.global = Records::parse(&self.read_extension(&header, "extended header")?)?,
                b'L' => long_name = Some(self.read_extension(&header, "name")?),
                b'K' => long_link = Some(self.read_extension(&header, "link target")?),
                _ => return self.read_entry(&header, local, long_name, long_link).map(Some),
            }
        }
    }

    /// Copies the data of the present entry, holes as zeros, and returns its length.
    pub fn copy_data(&mut self, out: &mut dyn Write) -> Result<u64, TarError> {
        let extents = self.extents.take().unwrap_or_else(|| vec![Extent { offset: 0, bytes: self.left }]);
        let mut end = 0;
        for extent in extents {
            write_zeros(out, extent.offset - end)?;
            self.copy_stored(extent.bytes, out)?;
            end = extent.offset + extent.bytes;
        }
        write_zeros(out, self.size - end)?;
        Ok(self.size)
    }

    /// Whether the present entry has holes.
    pub fn is_sparse(&self) -> bool {
        self.extents.is_some()
    }

    /// Gives back the stream, which may hold bytes behind the end of the archive.
    pub fn into_inner(self) -> R {
        self.inner
    }

    fn read_entry(
        &mut self,
        header: &Header,
        local: Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let records = local.over(&self.global);
        let path = records.text("path").or(long_name.map(until_nul)).unwrap_or_else(|| header.path());
        let target = records.text("linkpath").or(long_link.map(until_nul)).unwrap_or_else(|| header.target());
        let stored = records.number("size")?.map_or_else(|| header.size(), Ok)?;
        let mut entry = Entry {
            path,
            kind: EntryKind::Directory,
            mode: header.mode()?,
            uid: records.number("uid")?.map_or_else(|| header.uid(), Ok)?,
            gid: records.number("gid")?.map_or_else(|| header.gid(), Ok)?,
            mtime: records.time("mtime")?.map_or_else(|| header.mtime(), Ok)?,
            xattrs: records.xattrs(),
        };
        let device = || Ok::<_, TarError>((header.device_major()?, header.device_minor()?));
        entry.kind = match header.kind() {
            // Archives older than ustar mark directories by their names.
            b'0' | 0 | b'7' if entry.path.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' | b'S' => {
                self.left = stored;
                self.padding = stored.next_multiple_of(RECORD_BYTES) - stored;
                EntryKind::File { size: self.begin_file(header, &records, &mut entry.path)? }
            }
            b'1' => EntryKind::HardLink { target },
            b'2' => EntryKind::Symlink { target },
            b'3' => device().map(|(major, minor)| EntryKind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(TarError::Unsupported(other)),
        };
        Ok(entry)
    }

    /// Finds out whether the file is sparse, reads its map, and returns its size with holes.
    fn begin_file(
        &mut self,
        header: &Header,
        records: &Records,
        path: &mut Vec<u8>,
    ) -> Result<u64, TarError> {
        let map = if header.kind() == b'S' {
            Some(sparse::gnu_map(header, &mut self.inner)?)
        } else if records.is_sparse_1_0() {
            let before = self.left;
            let (extents, read) = sparse::leading_map(&mut (&mut self.inner).take(before))?;
            self.left = before.checked_sub(read).ok_or(TarError::Sparse)?;
            Some((extents, records.sparse_size()?))
        } else {
            records.sparse_map()?
        };
        if let Some(name) = records.text("GNU.sparse.name") {
            *path = name;
        }
        self.size = self.left;
        if let Some((extents, size)) = map {
            sparse::check(&extents, size, self.left)?;
            (self.size, self.extents) = (size, Some(extents));
        }
        Ok(self.size)
    }

    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        let mut bytes = [0; RECORD_BYTES as usize];
        let got = read_up_to(&mut self.inner, &mut bytes)?;
        if got == 0 || (got == bytes.len() && bytes == [0; RECORD_BYTES as usize]) {
            return Ok(None);
        }
        if got < bytes.len() {
            return Err(TarError::Truncated);
        }
        Header::parse(bytes).map(Some)
    }

    fn read_extension(&mut self, header: &Header, what: &'static str) -> Result<Vec<u8>, TarError> {
        let size = header.size()?;
        if size > EXTENSION_BYTES_MAX {
            return Err(TarError::TooLong(what));
        }
        let mut bytes = Vec::new();
        self.left = size;
        self.padding = size.next_multiple_of(RECORD_BYTES) - size;
        self.copy_stored(size, &mut bytes)?;
        Ok(bytes)
    }

    fn copy_stored(&mut self, bytes: u64, out: &mut dyn Write) -> Result<(), TarError> {
        let mut buffer = vec![0; bytes.clamp(1, 128 * 1024) as usize];
        let mut wanted = bytes;
        while wanted > 0 {
            let part = wanted.min(buffer.len() as u64) as usize;
            let got = read_up_to(&mut self.inner, &mut buffer[..part])?;
            if got < part {
                return Err(TarError::Truncated);
            }
            out.write_all(&buffer[..part])?;
            wanted -= part as u64;
            self.left -= part as u64;
        }
        Ok(())
    }

    /// Returns how many bytes there were to skip.
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.inner).take(bytes), &mut io::sink())
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Reads until the buffer is full or the stream ends, and returns how much it read.
fn read_up_to(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn write_zeros(out: &mut dyn Write, bytes: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(bytes), out).map(drop)
}

#[cfg(test)]
mod tests;
