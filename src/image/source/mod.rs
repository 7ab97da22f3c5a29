//! Where source images are read from, behind one trait: an OCI layout folder or a registry.

pub mod layout;
pub mod registry;

use crate::{
    image::progress::Cancelled,
    registry::{BlockingClient, RegistryError, jitter_seed},
    settings::Settings,
};
use faasnet_actors::id::Digest;
pub use layout::LayoutSource;
use registry::RegistrySource;
use std::{
    io,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

/// A manifest or index as received. `digest` is of `bytes`, checked by the source if it was asked for
/// by digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub media_type: String,
    pub bytes: Vec<u8>,
    pub digest: Digest,
}

/// Names a blob in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRef {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
}

/// Where a source image is read from. Blocking; called on a blocking thread.
pub trait Source: Send + Sync {
    /// What the reference (tag or digest) names: a manifest or an index.
    fn root(&self) -> Result<Document, SourceError>;

    /// A manifest that an index names.
    fn manifest(&self, digest: Digest) -> Result<Document, SourceError>;

    /// The blob's bytes, unverified; may be read again from the start by calling again.
    ///
    /// A reader that ends in an [`io::Error`] should wrap a [`SourceError`] where it has one
    /// (`io::Error::other(source_error)`): the converter unwraps it again.
    fn blob(&self, blob: &BlobRef) -> Result<Box<dyn Read + Send>, SourceError>;

    /// Whether reading a blob again costs no more than reading a file. Layers of other sources are kept
    /// in the spool folder between the two passes of a conversion.
    fn is_local(&self) -> bool {
        false
    }
}

/// A source of which one manifest is read, whatever its reference leads to by now.
pub struct Pinned<'a> {
    pub inner: &'a dyn Source,
    pub manifest: Digest,
}

impl Source for Pinned<'_> {
    fn root(&self) -> Result<Document, SourceError> {
        self.inner.manifest(self.manifest)
    }

    fn manifest(&self, digest: Digest) -> Result<Document, SourceError> {
        self.inner.manifest(digest)
    }

    fn blob(&self, blob: &BlobRef) -> Result<Box<dyn Read + Send>, SourceError> {
        self.inner.blob(blob)
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }
}

/// Why a source image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{what} does not exist: check the spelling of the image and its tag")]
    NotFound { what: String },
    #[error("{what} may not be read with these credentials: log in with `docker login` or ask for access")]
    Unauthorized { what: String },
    #[error("the registry asks to come back later: {what}")]
    RateLimited { what: String, retry_after: Option<Duration> },
    #[error("{what} ended after {got} of {expected} bytes")]
    Truncated { what: String, expected: u64, got: u64 },
    #[error("{what} has digest {got} instead of {expected}")]
    WrongDigest { what: String, expected: Digest, got: Digest },
    #[error("{what} is not understood: {reason}")]
    Invalid { what: String, reason: String },
    #[error("{what} is larger than {limit} bytes, the limit set by {setting}")]
    TooLarge { what: String, limit: u64, setting: &'static str },
    #[error("the registry is not to be had: {what}: {reason}")]
    Unavailable { what: String, reason: String },
    #[error("{what} cannot be read from here: {reason}")]
    Unusable { what: String, reason: String },
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl SourceError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::Truncated { .. } | Self::Unavailable { .. })
    }
}

/// The source that a reference names: `oci:DIR[:TAG]`, or a repository of a registry.
pub fn open(reference: &str, settings: &Settings) -> Result<Box<dyn Source>, SourceError> {
    if let Some(layout) = reference.strip_prefix("oci:") {
        return Ok(Box::new(LayoutSource::new(layout, settings.image.manifest_bytes_max)?));
    }
    let unusable = |error: RegistryError| SourceError::Unusable {
        what: reference.to_owned(),
        reason: error.to_string(),
    };
    let image = reference.parse().map_err(unusable)?;
    let client = BlockingClient::new(&settings.origin, jitter_seed()).map_err(unusable)?;
    Ok(Box::new(RegistrySource::new(client, image, settings.image.manifest_bytes_max)))
}

/// As [`open`], for references that others send: layout folders only below `image.layout_roots`.
pub fn open_for_api(reference: &str, settings: &Settings) -> Result<Box<dyn Source>, SourceError> {
    if let Some(layout) = reference.strip_prefix("oci:") {
        let source = LayoutSource::new(layout, settings.image.manifest_bytes_max)?;
        check_allowed(source.folder(), &settings.image.layout_roots)?;
    }
    open(reference, settings)
}

/// Links are followed before the comparison, so that none leads out.
fn check_allowed(folder: &Path, roots: &[PathBuf]) -> Result<(), SourceError> {
    let is_below = |real: &Path, root: &PathBuf| root.canonicalize().is_ok_and(|root| real.starts_with(root));
    match folder.canonicalize() {
        Ok(real) if roots.iter().any(|root| is_below(&real, root)) => Ok(()),
        // The same answer whether the folder is there or not.
        _ => {
            let reason = "it is not a folder below one of image.layout_roots".to_owned();
            Err(SourceError::Invalid { what: format!("layout folder {}", folder.display()), reason })
        }
    }
}
