//! One entry of a zip: what it is called, what it is, and where its data lies.

use super::{
    EntryRefusal,
    data::{Method, Packed},
};
use crate::image::tar::Time;
use rawzip::{
    CreatorSystem, ReaderAt, ZipArchive, ZipFileHeaderRecord, time::UtcDateTime, time::ZipDateTimeKind,
};

/// `NAME_MAX` and `PATH_MAX` of Linux, the latter less the final NUL.
pub const NAME_BYTES_MAX: usize = 255;
pub const PATH_BYTES_MAX: usize = 4095;
/// Name and extra fields of a local header.
const LOCAL_BYTES_MAX: usize = 2 * u16::MAX as usize;

/// Types in a mode of Unix.
const TYPE_BITS: u32 = 0o170_000;
const TYPE_FOLDER: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_LINK: u32 = 0o120_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    Folder,
    File { is_executable: bool },
    Link,
}

impl EntryKind {
    pub fn mode(self) -> u16 {
        match self {
            Self::Folder | Self::File { is_executable: true } => 0o755,
            Self::File { is_executable: false } => 0o644,
            Self::Link => 0o777,
        }
    }
}

pub struct Entry<'a> {
    /// The path, name by name.
    pub names: Vec<&'a [u8]>,
    pub kind: EntryKind,
    pub mtime: Time,
    pub packed: Packed,
}

/// Checks an entry of the central directory against its own header. The data is not looked at.
pub fn read<'a, R: ReaderAt>(
    archive: &ZipArchive<R>,
    record: &ZipFileHeaderRecord<'a>,
) -> Result<Entry<'a>, EntryRefusal> {
    let path = record.file_path().as_bytes();
    let names = names(path)?;
    let kind = kind(record, path.ends_with(b"/"))?;
    let flags = record.flags();
    if flags.is_encrypted() || flags.has_strong_encryption() || flags.is_masked() {
        return Err(EntryRefusal::Encrypted);
    }
    let id = record.compression_method();
    let method = Method::of(id).ok_or(EntryRefusal::Method(id))?;
    let found = archive.get_entry(record.wayfinder()).map_err(EntryRefusal::Zip)?;
    let mut buffer = vec![0; LOCAL_BYTES_MAX];
    let local = found.local_header(&mut buffer).map_err(EntryRefusal::Zip)?;
    let is_same = local.file_path().as_bytes() == path
        && local.compression_method() == id
        && !local.flags().is_encrypted();
    // Behind the data, where those are that were not known before it, nobody looks for them.
    let has_sizes = !local.flags().has_data_descriptor();
    let sizes = (local.crc32(), local.compressed_size_hint(), local.uncompressed_size_hint());
    let said = (record.crc32(), record.compressed_size_hint(), record.uncompressed_size_hint());
    if !is_same || (has_sizes && sizes != said) {
        return Err(EntryRefusal::LocalHeader);
    }
    if kind == EntryKind::Folder && said.2 != 0 {
        return Err(EntryRefusal::FolderWithData);
    }
    let packed = Packed {
        path: String::from_utf8_lossy(path).into_owned(),
        wayfinder: record.wayfinder(),
        method,
        range: found.compressed_data_range(),
        plain_bytes: said.2,
        crc: said.0,
    };
    Ok(Entry { names, kind, mtime: mtime(record), packed })
}

fn names(path: &[u8]) -> Result<Vec<&[u8]>, EntryRefusal> {
    let text = std::str::from_utf8(path).map_err(|_| EntryRefusal::NotUtf8)?;
    if path.contains(&0) {
        return Err(EntryRefusal::Nul);
    }
    if text.contains('\\') {
        return Err(EntryRefusal::Backslash);
    }
    // `C:/` too, which some tools take for a drive.
    let has_drive = matches!(path, [letter, b':', ..] if letter.is_ascii_alphabetic());
    if path.starts_with(b"/") || has_drive {
        return Err(EntryRefusal::Absolute);
    }
    let names: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&b"..".as_slice()) {
        return Err(EntryRefusal::ParentDirectory);
    }
    if path.len() > PATH_BYTES_MAX || names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
        return Err(EntryRefusal::TooLong);
    }
    if names.is_empty() {
        return Err(EntryRefusal::Empty);
    }
    Ok(names)
}

/// A type is said by the mode, if the writer was of Unix and gave one, and by a slash at the end of a folder.
fn kind(record: &ZipFileHeaderRecord<'_>, has_slash: bool) -> Result<EntryKind, EntryRefusal> {
    let creator = record.version_made_by().creator_system();
    let is_unix = matches!(creator, CreatorSystem::UNIX | CreatorSystem::MACOS);
    let mode = if is_unix { record.external_attributes() >> 16 } else { 0 };
    match mode & TYPE_BITS {
        0 | TYPE_FILE if has_slash => Ok(EntryKind::Folder),
        TYPE_FOLDER => Ok(EntryKind::Folder),
        0 | TYPE_FILE => Ok(EntryKind::File { is_executable: mode & 0o111 != 0 }),
        TYPE_LINK if !has_slash => Ok(EntryKind::Link),
        _ => Err(EntryRefusal::Special),
    }
}

/// In seconds. A time without a zone is taken for one of UTC, so that it is the same on every machine.
fn mtime(record: &ZipFileHeaderRecord<'_>) -> Time {
    let utc = match record.last_modified() {
        ZipDateTimeKind::Utc(time) => Some(time),
        ZipDateTimeKind::Local(time) => UtcDateTime::from_components(
            time.year(),
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            0,
        ),
    };
    Time { seconds: utc.map_or(0, |time| time.to_unix().max(0)), nanos: 0 }
}
