//! The data of one entry: unpacked, counted, and held against what its header says.

use super::{EntryRefusal, ZipError, entry::PATH_BYTES_MAX};
use rawzip::{CompressionMethod, Crc32, ReaderAt, ZipArchive, ZipArchiveEntryWayfinder};
use std::io::{self, BufReader, Read, Write};

/// zstd's own default limit: frames that need more than 128 MiB of memory are refused.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const BUFFER_BYTES: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Plain,
    Deflate,
    Zstd,
}

impl Method {
    pub fn of(id: CompressionMethod) -> Option<Self> {
        match id {
            CompressionMethod::STORE => Some(Self::Plain),
            CompressionMethod::DEFLATE => Some(Self::Deflate),
            CompressionMethod::ZSTD => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Data within a zip, as the central directory describes it.
#[derive(Debug, Clone)]
pub struct Packed {
    pub path: String,
    pub wayfinder: ZipArchiveEntryWayfinder,
    pub method: Method,
    /// Bytes of the zip.
    pub range: (u64, u64),
    pub plain_bytes: u64,
    pub crc: u32,
}

impl Packed {
    /// Writes the plain bytes, never more than the header says.
    pub fn copy<R: ReaderAt>(&self, zip: &ZipArchive<R>, out: &mut dyn Write) -> Result<u64, ZipError> {
        let refused = |refusal| ZipError::Entry { path: self.path.clone(), refusal };
        let found = zip.get_entry(self.wayfinder).map_err(|error| refused(EntryRefusal::Zip(error)))?;
        let packed = found.reader();
        let unpack = |error| refused(EntryRefusal::Unpack(error));
        match self.method {
            Method::Plain => self.copy_from(packed, out),
            Method::Deflate => {
                let buffered = BufReader::with_capacity(BUFFER_BYTES, packed);
                self.copy_from(flate2::bufread::DeflateDecoder::new(buffered), out)
            }
            Method::Zstd => {
                let buffered = BufReader::with_capacity(BUFFER_BYTES, packed);
                let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered).map_err(unpack)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(unpack)?;
                self.copy_from(decoder, out)
            }
        }
    }

    fn copy_from(&self, mut plain: impl Read, out: &mut dyn Write) -> Result<u64, ZipError> {
        let refused = |refusal| ZipError::Entry { path: self.path.clone(), refusal };
        let (mut left, mut crc) = (self.plain_bytes, Crc32::new());
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let got = match plain.read(&mut buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(refused(EntryRefusal::Unpack(error))),
            };
            if got as u64 > left || (got == 0 && left > 0) {
                return Err(refused(EntryRefusal::Length(self.plain_bytes)));
            }
            if got == 0 {
                break;
            }
            crc.update(&buffer[..got]);
            out.write_all(&buffer[..got])?;
            left -= got as u64;
        }
        if crc.checksum() != self.crc {
            return Err(refused(EntryRefusal::Checksum));
        }
        Ok(self.plain_bytes)
    }

    /// The data of a symbolic link.
    pub fn link_target<R: ReaderAt>(&self, zip: &ZipArchive<R>) -> Result<Box<[u8]>, ZipError> {
        let refused = || ZipError::Entry { path: self.path.clone(), refusal: EntryRefusal::LinkTarget };
        if !(1..=PATH_BYTES_MAX as u64).contains(&self.plain_bytes) {
            return Err(refused());
        }
        let mut target = Vec::new();
        self.copy(zip, &mut target)?;
        if target.contains(&0) {
            return Err(refused());
        }
        Ok(target.into_boxed_slice())
    }
}
