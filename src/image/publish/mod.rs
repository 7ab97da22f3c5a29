//! Where block images are published, behind one trait: an OCI layout folder or a registry.

pub mod folder;
pub mod registry;

use crate::{
    image::{
        progress::{Cancelled, Progress},
        source::BlobRef,
    },
    registry::{BlockingClient, RegistryError, jitter_seed},
    settings::Settings,
};
use faasnet_actors::{id::Digest, image::ImageLocation};
use folder::FolderDestination;
use registry::RegistryDestination;
use std::{collections::BTreeMap, io, path::PathBuf};

/// A block image ready to be published: an OCI image manifest with `subject`, a configuration and two
/// layers (index, blob of blocks).
#[derive(Debug)]
pub struct Artifact {
    pub manifest: Vec<u8>,
    pub manifest_digest: Digest,
    pub config: Vec<u8>,
    pub config_ref: BlobRef,
    pub index: Vec<u8>,
    pub index_ref: BlobRef,
    /// The file that holds the stored bytes of all blocks.
    pub blob_path: PathBuf,
    pub blob_ref: BlobRef,
    /// The source manifest, as named by `subject`.
    pub subject: BlobRef,
    /// Those of the manifest, which lists of artifacts repeat.
    pub annotations: BTreeMap<String, String>,
}

/// The media type of the artifact's manifest.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// What tells our artifacts from images: `artifactType` of the manifest.
pub const ARTIFACT_TYPE: &str = "application/vnd.faasnet.block-image.v1";

/// Where block images go. Blocking; called on a blocking thread.
pub trait Destination: Send + Sync {
    /// Whether this artifact is there already, whole.
    fn has(&self, manifest: Digest) -> Result<bool, PublishError>;

    /// Publishes the artifact: blobs first, the manifest last, so that what can be found is whole.
    fn publish(&self, artifact: &Artifact, progress: &Progress) -> Result<ImageLocation, PublishError>;
}

/// Why a block image could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("{what} may not be written with these credentials: log in with `docker login` or ask for access")]
    Unauthorized { what: String },
    #[error("{what} is not to be had: {reason}")]
    Unavailable { what: String, reason: String },
    #[error("{what} refuses the block image: {reason}")]
    Refused { what: String, reason: String },
    #[error("{what} is not understood: {reason}")]
    Invalid { what: String, reason: String },
    #[error("no space left for {}: free some space or choose another image.destination", path.display())]
    Full { path: PathBuf },
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl PublishError {
    /// An I/O error with its path; a full disk has a variant of its own.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::Io { path, error },
        }
    }
}

/// The destination that a text names: `folder:DIR` or `registry:HOST/REPOSITORY`; empty is a folder in the
/// manager's data folder.
pub fn open(destination: &str, settings: &Settings) -> Result<Box<dyn Destination>, PublishError> {
    if destination.is_empty() {
        return Ok(Box::new(FolderDestination::new(settings.manager.data.join("images"))));
    }
    if let Some(folder) = destination.strip_prefix("folder:") {
        return Ok(Box::new(FolderDestination::new(folder)));
    }
    let invalid = |reason: String| PublishError::Invalid { what: destination.to_owned(), reason };
    let Some(repository) = destination.strip_prefix("registry:") else {
        return Err(invalid("use folder:DIR or registry:HOST/REPOSITORY".to_owned()));
    };
    let unusable = |error: RegistryError| invalid(error.to_string());
    let repository = repository.parse().map_err(unusable)?;
    let client = BlockingClient::new(&settings.origin, jitter_seed()).map_err(unusable)?;
    Ok(Box::new(RegistryDestination::new(client, repository, settings.image.manifest_bytes_max)))
}
