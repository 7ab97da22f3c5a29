//! Looks at published block images: what one consists of, and whether all of it is sound.

use crate::image::{
    artifact::{ArtifactError, config_ref, digest_of, read_artifact},
    blocks::{BlockError, decode_block},
    erofs::read::{FileMap, ReadError},
    manifest,
    progress::{Cancelled, Phase, Progress},
    publish::{ARTIFACT_TYPE, folder::INDEX_BYTES_MAX},
    source::{
        Source, SourceError,
        layout::{blob_path, open_file, read_bounded},
    },
};
use bytes::Bytes;
use faasnet_actors::{
    id::{BlockId, Digest, ImageId},
    image::{BLOCKS_MAX, BlockImage, Codec, FORMAT_VERSION, ImageLocation, Index, IndexError, RuntimeConfig},
    world::{Origin, OriginError, Part},
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::{
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why a block image could not be looked at, or what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{what}: {error}")]
    Artifact { what: String, error: ArtifactError },
    #[error("{} holds no block image{}", folder.display(), digest.map_or_else(String::new, |digest| format!(" {digest}")))]
    NotFound { folder: PathBuf, digest: Option<Digest> },
    #[error("{} holds several block images, name one of them: {}", folder.display(), names(found))]
    Ambiguous { folder: PathBuf, found: Vec<Digest> },
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error("the index has digest {got} instead of {expected}")]
    IndexDigest { got: Digest, expected: Digest },
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("the index does not fit the blob or the file system that the artifact states")]
    Sizes,
    #[error("block {0} does not have the hash that the index states")]
    Hash(u32),
    #[error("block {block}: {error}")]
    Block { block: u32, error: BlockError },
    #[error("the file system is damaged: {0}")]
    FileSystem(#[from] ReadError),
    #[error("the blob has digest {got} instead of {expected}")]
    BlobDigest { got: Digest, expected: Digest },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

fn names(digests: &[Digest]) -> String {
    digests.iter().map(|digest| format!("@{digest}")).collect::<Vec<_>>().join(", ")
}

/// What a block image consists of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    pub id: ImageId,
    pub source: Digest,
    pub location: ImageLocation,
    pub format_version: u32,
    pub plain_bytes: u64,
    pub stored_bytes: u64,
    /// Plain bytes for each stored byte.
    pub ratio: f64,
    pub blocks: u32,
    /// Blocks that did not shrink.
    pub plain_blocks: u32,
    pub metadata_blocks: u32,
    /// Leading blocks with the metadata and what starts read.
    pub hot_blocks: u32,
    /// Stored bytes of those.
    pub hot_stored_bytes: u64,
    pub index_bytes: u64,
    pub runtime: RuntimeConfig,
}

/// What was read while a block image was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verification {
    pub id: ImageId,
    pub blocks: u32,
    pub stored_bytes: u64,
    pub plain_bytes: u64,
}

/// Gives ranges of a block image's index and blob. Blocking.
pub trait Parts {
    fn read(&self, part: Part, range: Range<u64>) -> Result<Bytes, OriginError>;
}

/// Reads through an [`Origin`] from a thread that may block.
pub struct OriginParts {
    pub origin: Arc<dyn Origin>,
    pub image: BlockImage,
    pub runtime: tokio::runtime::Handle,
}

impl Parts for OriginParts {
    fn read(&self, part: Part, range: Range<u64>) -> Result<Bytes, OriginError> {
        self.runtime.block_on(self.origin.read(&self.image, part, range))
    }
}

/// Reads from an OCI layout folder.
pub struct FolderParts {
    index: PathBuf,
    blob: PathBuf,
}

impl FolderParts {
    pub fn new(folder: &Path, image: &BlockImage) -> Self {
        let path = |digest| blob_path(folder, digest);
        Self { index: path(image.index_digest), blob: path(image.blob_digest) }
    }
}

impl Parts for FolderParts {
    fn read(&self, part: Part, range: Range<u64>) -> Result<Bytes, OriginError> {
        let path = match part {
            Part::Index => &self.index,
            Part::Blob => &self.blob,
        };
        let file = open_file(path).map_err(|error| match error {
            SourceError::NotFound { what } => OriginError::NotFound(what),
            other => OriginError::Failed(other.to_string()),
        })?;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start)
            .map_err(|error| OriginError::Failed(format!("{}: {error}", path.display())))?;
        Ok(bytes.into())
    }
}

/// Finds a block image in an OCI layout folder: that of the digest, or the only one.
pub fn open_folder(
    folder: &Path,
    digest: Option<Digest>,
    manifest_bytes_max: u64,
) -> Result<BlockImage, InspectError> {
    let what = || folder.display().to_string();
    let json = read_bounded(&folder.join("index.json"), INDEX_BYTES_MAX)?;
    let index: manifest::Index = serde_json::from_slice(&json)
        .map_err(|error| SourceError::Invalid { what: what(), reason: error.to_string() })?;
    let ours = index.manifests.iter().filter(|entry| entry.artifact_type.as_deref() == Some(ARTIFACT_TYPE));
    let found: Vec<Digest> =
        ours.map(|entry| entry.digest).filter(|found| digest.is_none_or(|wanted| wanted == *found)).collect();
    let id = match found[..] {
        [id] => id,
        [] => return Err(InspectError::NotFound { folder: folder.to_owned(), digest }),
        _ => return Err(InspectError::Ambiguous { folder: folder.to_owned(), found }),
    };
    let artifact_error = |error| InspectError::Artifact { what: format!("artifact {id}"), error };
    let manifest = read_bounded(&blob_path(folder, id), manifest_bytes_max)?;
    if digest_of(&manifest) != id {
        return Err(artifact_error(ArtifactError::Digest("manifest")));
    }
    let config = config_ref(&manifest).map_err(artifact_error)?;
    let config = read_bounded(&blob_path(folder, config.digest), manifest_bytes_max)?;
    let path = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    read_artifact(&manifest, &config, ImageLocation::Folder { path }).map_err(artifact_error)
}

/// Reads the artifact that a source's reference names; `location` is where its parts lie.
pub fn open_artifact(
    source: &dyn Source,
    location: ImageLocation,
    manifest_bytes_max: u64,
) -> Result<BlockImage, InspectError> {
    let document = source.root()?;
    let artifact_error =
        |error| InspectError::Artifact { what: format!("artifact {}", document.digest), error };
    let config = config_ref(&document.bytes).map_err(artifact_error)?;
    let what = format!("configuration {}", config.digest);
    if config.size > manifest_bytes_max {
        let setting = "image.manifest_bytes_max";
        return Err(SourceError::TooLarge { what, limit: manifest_bytes_max, setting }.into());
    }
    let mut bytes = Vec::new();
    let mut bounded = source.blob(&config)?.take(config.size);
    bounded.read_to_end(&mut bytes).map_err(|error| {
        let other = |error: io::Error| SourceError::Unavailable { what, reason: error.to_string() };
        error.downcast::<SourceError>().unwrap_or_else(other)
    })?;
    read_artifact(&document.bytes, &bytes, location).map_err(artifact_error)
}

/// Reads and checks the index of a block image.
pub fn read_index(image: &BlockImage, parts: &dyn Parts) -> Result<Index, InspectError> {
    if image.index_bytes > Index::encoded_len(BLOCKS_MAX) {
        return Err(IndexError::Length.into());
    }
    let bytes = parts.read(Part::Index, 0..image.index_bytes)?;
    let got = digest_of(&bytes);
    if got != image.index_digest {
        return Err(InspectError::IndexDigest { got, expected: image.index_digest });
    }
    let index = Index::decode(&bytes)?;
    if index.blob_bytes() != image.blob_bytes || index.plain_bytes() != image.plain_bytes {
        return Err(InspectError::Sizes);
    }
    Ok(index)
}

/// Says what a block image consists of.
pub fn inspect(image: &BlockImage, parts: &dyn Parts) -> Result<Inspection, InspectError> {
    let index = read_index(image, parts)?;
    let blocks = (0..index.block_count()).map(BlockId);
    let plain_blocks =
        blocks.filter_map(|block| index.entry(block)).filter(|entry| entry.codec == Codec::Plain);
    Ok(Inspection {
        id: image.id,
        source: image.source,
        location: image.location.clone(),
        format_version: FORMAT_VERSION,
        plain_bytes: image.plain_bytes,
        stored_bytes: image.blob_bytes,
        ratio: image.plain_bytes as f64 / image.blob_bytes as f64,
        blocks: index.block_count(),
        plain_blocks: plain_blocks.count() as u32,
        metadata_blocks: index.metadata_blocks(),
        hot_blocks: index.hot_blocks(),
        hot_stored_bytes: hot_stored_bytes(&index),
        index_bytes: image.index_bytes,
        runtime: image.runtime.clone(),
    })
}

fn hot_stored_bytes(index: &Index) -> u64 {
    match index.entry(BlockId(index.hot_blocks())) {
        Some(first_behind) => first_behind.offset,
        None => index.blob_bytes(),
    }
}

/// Reads all of a block image and checks every digest, hash and length, that every block decodes, and that the
/// metadata blocks hold a file system whose files lie within the image.
pub fn verify(
    image: &BlockImage,
    parts: &dyn Parts,
    progress: &Progress,
) -> Result<Verification, InspectError> {
    let index = read_index(image, parts)?;
    progress.begin(Phase::Verifying, index.blob_bytes());
    let (mut sha256, mut metadata) = (Sha256::new(), Vec::new());
    for block in (0..index.block_count()).map(BlockId) {
        let entry = index.entry(block).expect("blocks are counted by the index");
        let end = entry.offset + u64::from(entry.stored_bytes);
        let stored = parts.read(Part::Blob, entry.offset..end)?;
        if !index.verify(block, &stored) {
            return Err(InspectError::Hash(block.0));
        }
        let plain = decode_block(entry, index.plain_len(block), &stored)
            .map_err(|error| InspectError::Block { block: block.0, error })?;
        if block.0 < index.metadata_blocks() {
            metadata.extend_from_slice(&plain);
        }
        sha256.update(&stored);
        progress.advance(stored.len() as u64)?;
    }
    let got = Digest::from_bytes(sha256.finalize().into());
    if got != image.blob_digest {
        return Err(InspectError::BlobDigest { got, expected: image.blob_digest });
    }
    FileMap::read(&metadata)?;
    progress.begin(Phase::Done, 0);
    Ok(Verification {
        id: image.id,
        blocks: index.block_count(),
        stored_bytes: index.blob_bytes(),
        plain_bytes: index.plain_bytes(),
    })
}
