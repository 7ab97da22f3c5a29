//! The bytes of a layer: decompressed, counted, and checked against digest, size, diff id and limit.

use crate::image::{
    progress::Progress,
    source::{BlobRef, SourceError},
};
use faasnet_actors::id::Digest;
use sha2::{Digest as _, Sha256};
use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    /// From the media types of the OCI image specification and of Docker.
    pub fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Some(Self::Plain),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Passes bytes on, and turns their end into an error unless length and digest are as expected.
pub struct Checked<R> {
    inner: R,
    what: String,
    expected: Digest,
    /// Exact length, if it is known.
    size: Option<u64>,
    /// Most bytes, and the setting that says so.
    limit: (u64, &'static str),
    got: u64,
    sha256: Sha256,
    is_verified: Arc<AtomicBool>,
}

impl<R: Read> Checked<R> {
    /// Expects the blob's bytes.
    pub fn blob(inner: R, blob: &BlobRef) -> Self {
        Self {
            inner,
            what: format!("blob {}", blob.digest),
            expected: blob.digest,
            size: Some(blob.size),
            limit: (u64::MAX, ""),
            got: 0,
            sha256: Sha256::new(),
            is_verified: Arc::default(),
        }
    }

    /// Expects the decompressed bytes of a layer.
    fn plain(inner: R, diff_id: Digest, plain_bytes_max: u64) -> Self {
        Self {
            inner,
            what: format!("decompressed layer {diff_id}"),
            expected: diff_id,
            size: None,
            limit: (plain_bytes_max, "image.plain_bytes_max"),
            got: 0,
            sha256: Sha256::new(),
            is_verified: Arc::default(),
        }
    }

    fn check_end(&mut self) -> Result<(), SourceError> {
        if let Some(expected) = self.size.filter(|size| self.got < *size) {
            return Err(SourceError::Truncated { what: self.what.clone(), expected, got: self.got });
        }
        let got = Digest::from_bytes(std::mem::take(&mut self.sha256).finalize().into());
        if got != self.expected {
            return Err(SourceError::WrongDigest { what: self.what.clone(), expected: self.expected, got });
        }
        self.is_verified.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn check_length(&self) -> Result<(), SourceError> {
        if let Some(size) = self.size.filter(|size| self.got > *size) {
            let reason = format!("it is longer than the {size} bytes that the manifest says");
            return Err(SourceError::Invalid { what: self.what.clone(), reason });
        }
        let (limit, setting) = self.limit;
        if self.got > limit {
            return Err(SourceError::TooLarge { what: self.what.clone(), limit, setting });
        }
        Ok(())
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.is_verified.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let got = self.inner.read(buffer)?;
        if got == 0 {
            self.check_end().map_err(io::Error::other)?;
            return Ok(0);
        }
        self.got += got as u64;
        self.sha256.update(&buffer[..got]);
        self.check_length().map_err(io::Error::other)?;
        Ok(got)
    }
}

/// Counts bytes into the progress, and ends with an error when the conversion is cancelled.
struct Counted<'a, R> {
    inner: R,
    progress: Option<&'a Progress>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        if let Some(progress) = self.progress {
            progress.advance(got as u64).map_err(|error| io::Error::other(SourceError::from(error)))?;
        }
        Ok(got)
    }
}

/// A layer of an image.
#[derive(Debug, Clone)]
pub struct Layer {
    pub blob: BlobRef,
    pub compression: Compression,
    pub diff_id: Digest,
}

/// The decompressed bytes of a layer.
pub struct LayerReader<'a> {
    plain: Checked<Box<dyn Read + 'a>>,
    blob_is_verified: Arc<AtomicBool>,
}

/// zstd's own default limit: frames that need more than 128 MiB of memory are refused.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

impl<'a> LayerReader<'a> {
    /// Reads a layer from the bytes of its blob; `progress` counts those, if it is given.
    pub fn new(
        layer: &Layer,
        blob: Box<dyn Read + Send>,
        plain_bytes_max: u64,
        progress: Option<&'a Progress>,
    ) -> io::Result<Self> {
        let checked = Checked::blob(Counted { inner: blob, progress }, &layer.blob);
        let blob_is_verified = Arc::clone(&checked.is_verified);
        let buffered = io::BufReader::with_capacity(256 * 1024, checked);
        let decoder: Box<dyn Read + 'a> = match layer.compression {
            Compression::Plain => Box::new(buffered),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
        };
        Ok(Self { plain: Checked::plain(decoder, layer.diff_id, plain_bytes_max), blob_is_verified })
    }

    /// Reads what is left, makes sure that all of the layer was checked, and returns its plain length.
    pub fn finish(mut self) -> io::Result<u64> {
        io::copy(&mut self, &mut io::sink())?;
        if !self.blob_is_verified.load(Ordering::Relaxed) {
            let reason = "there are bytes behind the compressed data".to_owned();
            let what = self.plain.what.clone();
            return Err(io::Error::other(SourceError::Invalid { what, reason }));
        }
        Ok(self.plain.got)
    }
}

impl Read for LayerReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.plain.read(buffer)
    }
}
