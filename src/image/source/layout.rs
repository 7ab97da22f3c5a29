//! Source images in an OCI layout folder: `oci:DIR[:TAG]` or `oci:DIR@DIGEST`.

use super::{BlobRef, Document, Source, SourceError};
use crate::image::manifest::{Descriptor, Index, OCI_INDEX};
use faasnet_actors::id::Digest;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The annotation that holds a tag in a layout's index.
const TAG: &str = "org.opencontainers.image.ref.name";

/// An image in an OCI layout folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutSource {
    folder: PathBuf,
    selector: Selector,
    manifest_bytes_max: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Selector {
    Only,
    Tag(String),
    Digest(Digest),
}

impl LayoutSource {
    /// Reads `DIR[:TAG]` or `DIR@DIGEST`.
    pub fn new(text: &str, manifest_bytes_max: u64) -> Result<Self, SourceError> {
        let invalid = |reason: String| SourceError::Invalid { what: format!("oci:{text}"), reason };
        let (folder, selector) = if let Some((folder, digest)) = text.split_once('@') {
            (folder, Selector::Digest(digest.parse().map_err(|error| invalid(format!("{error}")))?))
        } else {
            match text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
                Some((folder, tag)) => (folder, Selector::Tag(tag.to_owned())),
                None => (text, Selector::Only),
            }
        };
        if folder.is_empty() {
            return Err(invalid("name a folder: oci:DIR or oci:DIR:TAG".to_owned()));
        }
        Ok(Self { folder: folder.into(), selector, manifest_bytes_max })
    }

    /// The folder that is read, for callers that allow only some.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn read_document(&self, digest: Digest, media_type: String) -> Result<Document, SourceError> {
        let path = blob_path(&self.folder, digest);
        let bytes = read_bounded(&path, self.manifest_bytes_max)?;
        let got = Digest::from_bytes(Sha256::digest(&bytes).into());
        if got != digest {
            return Err(SourceError::WrongDigest { what: path.display().to_string(), expected: digest, got });
        }
        Ok(Document { media_type, bytes, digest })
    }

    fn select(&self, index: &Index) -> Result<Descriptor, SourceError> {
        let tags =
            || index.manifests.iter().filter_map(|entry| entry.annotations.get(TAG)).map(String::as_str);
        let what = || match &self.selector {
            Selector::Only => self.folder.display().to_string(),
            Selector::Tag(tag) => format!("tag {tag:?} in {}", self.folder.display()),
            Selector::Digest(digest) => format!("manifest {digest} in {}", self.folder.display()),
        };
        let found = match &self.selector {
            Selector::Only if index.manifests.len() > 1 => {
                let known = tags().collect::<Vec<_>>().join(", ");
                let reason = format!("it holds several images, name one of them: {known}");
                return Err(SourceError::Invalid { what: what(), reason });
            }
            Selector::Only => index.manifests.first(),
            Selector::Tag(tag) => {
                index.manifests.iter().find(|entry| entry.annotations.get(TAG) == Some(tag))
            }
            Selector::Digest(digest) => index.manifests.iter().find(|entry| entry.digest == *digest),
        };
        found.cloned().ok_or_else(|| SourceError::NotFound { what: what() })
    }
}

impl Source for LayoutSource {
    fn root(&self) -> Result<Document, SourceError> {
        let path = self.folder.join("index.json");
        let bytes = read_bounded(&path, self.manifest_bytes_max)?;
        let index: Index = serde_json::from_slice(&bytes).map_err(|error| SourceError::Invalid {
            what: path.display().to_string(),
            reason: error.to_string(),
        })?;
        let descriptor = self.select(&index)?;
        self.read_document(descriptor.digest, descriptor.media_type)
    }

    fn manifest(&self, digest: Digest) -> Result<Document, SourceError> {
        self.read_document(digest, String::new())
    }

    fn blob(&self, blob: &BlobRef) -> Result<Box<dyn Read + Send>, SourceError> {
        let path = blob_path(&self.folder, blob.digest);
        Ok(Box::new(open_file(&path)?))
    }

    fn is_local(&self) -> bool {
        true
    }
}

/// An index without entries, as new layout folders have it.
pub(crate) fn empty_index() -> Index {
    Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests: Vec::new() }
}

/// Where a layout folder keeps a blob.
pub(crate) fn blob_path(folder: &Path, digest: Digest) -> PathBuf {
    folder.join("blobs/sha256").join(digest.hex())
}

/// Opens a regular file. Others could block, or lead out of the folder.
pub(crate) fn open_file(path: &Path) -> Result<File, SourceError> {
    let io = |error| SourceError::Io { path: path.to_owned(), error };
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file =
        OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).map_err(|error| {
            match error.kind() {
                std::io::ErrorKind::NotFound => SourceError::NotFound { what: path.display().to_string() },
                _ => io(error),
            }
        })?;
    if file.metadata().map_err(io)?.is_file() {
        return Ok(file);
    }
    let reason = "it is not a regular file".to_owned();
    Err(SourceError::Invalid { what: path.display().to_string(), reason })
}

pub(crate) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, SourceError> {
    let mut bytes = Vec::new();
    let mut bounded = open_file(path)?.take(bytes_max.saturating_add(1));
    bounded.read_to_end(&mut bytes).map_err(|error| SourceError::Io { path: path.to_owned(), error })?;
    if bytes.len() as u64 <= bytes_max {
        return Ok(bytes);
    }
    let (what, setting) = (path.display().to_string(), "image.manifest_bytes_max");
    Err(SourceError::TooLarge { what, limit: bytes_max, setting })
}
