//! The published form of a block image: an OCI image manifest, whose configuration holds what a start
//! needs beside the blocks.

use crate::image::{
    manifest::{Descriptor, Manifest},
    publish::{ARTIFACT_TYPE, Artifact, MANIFEST_MEDIA_TYPE},
    source::BlobRef,
};
use faasnet_actors::{
    id::Digest,
    image::{BlockImage, FORMAT_VERSION, ImageLocation, Index, RuntimeConfig},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, path::PathBuf};

const CONFIG_MEDIA_TYPE: &str = "application/vnd.faasnet.block-image.config.v1+json";
const INDEX_MEDIA_TYPE: &str = "application/vnd.faasnet.block-image.index.v1";
const BLOB_MEDIA_TYPE: &str = "application/vnd.faasnet.block-image.blocks.v1";
const VERSION_ANNOTATION: &str = "io.faasnet.format-version";
/// Fingerprint of the profile that a block image is packed by; missing if it is not.
const PROFILE_ANNOTATION: &str = "io.faasnet.profile";

/// The artifact's configuration blob.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArtifactConfig {
    format_version: u32,
    source: Digest,
    plain_bytes: u64,
    /// Fingerprint of the profile that it is packed by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    runtime: RuntimeConfig,
}

/// Why a manifest and its configuration are not those of a block image.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("it is not a block image: {0}")]
    NotABlockImage(&'static str),
    #[error("the block image has format version {0}; this program reads version {FORMAT_VERSION}")]
    Version(u32),
    #[error("the {0} has another digest or length than the manifest says")]
    Digest(&'static str),
    #[error("the {what} is not understood: {error}")]
    Json { what: &'static str, error: serde_json::Error },
}

/// The SHA-256 digest of bytes.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

/// Puts an artifact together; its bytes depend on nothing but the arguments.
pub fn build(
    subject: BlobRef,
    runtime: RuntimeConfig,
    profile: Option<String>,
    index: &Index,
    blob_digest: Digest,
    blob_path: PathBuf,
) -> Artifact {
    let config = ArtifactConfig {
        format_version: FORMAT_VERSION,
        source: subject.digest,
        plain_bytes: index.plain_bytes(),
        profile: profile.clone(),
        runtime,
    };
    let config = to_json(&config);
    let index_bytes = index.encode();
    let blob_ref =
        |media_type: &str, digest, size| BlobRef { media_type: media_type.to_owned(), digest, size };
    let config_ref = blob_ref(CONFIG_MEDIA_TYPE, digest_of(&config), config.len() as u64);
    let index_ref = blob_ref(INDEX_MEDIA_TYPE, digest_of(&index_bytes), index_bytes.len() as u64);
    let blocks_ref = blob_ref(BLOB_MEDIA_TYPE, blob_digest, index.blob_bytes());
    let annotations = annotations(profile);
    let manifest = to_json(&Manifest {
        schema_version: 2,
        media_type: MANIFEST_MEDIA_TYPE.to_owned(),
        artifact_type: Some(ARTIFACT_TYPE.to_owned()),
        config: Descriptor::from(&config_ref),
        layers: vec![Descriptor::from(&index_ref), Descriptor::from(&blocks_ref)],
        subject: Some(Descriptor::from(&subject)),
        annotations: annotations.clone(),
    });
    Artifact {
        manifest_digest: digest_of(&manifest),
        manifest,
        config,
        config_ref,
        index: index_bytes,
        index_ref,
        blob_path,
        blob_ref: blocks_ref,
        subject,
        annotations,
    }
}

/// What lists of referrers show, so that artifacts of one source can be told apart without reading them.
fn annotations(profile: Option<String>) -> BTreeMap<String, String> {
    let version = (VERSION_ANNOTATION.to_owned(), FORMAT_VERSION.to_string());
    let profile = profile.map(|profile| (PROFILE_ANNOTATION.to_owned(), profile));
    std::iter::once(version).chain(profile).collect()
}

/// The configuration blob that an artifact's manifest names, so that it can be read.
pub fn config_ref(manifest: &[u8]) -> Result<BlobRef, ArtifactError> {
    parse_manifest(manifest).map(|manifest| BlobRef::from(&manifest.config))
}

/// Rebuilds what the metadata store records from the artifact alone.
pub fn read_artifact(
    manifest: &[u8],
    config: &[u8],
    location: ImageLocation,
) -> Result<BlockImage, ArtifactError> {
    let parsed = parse_manifest(manifest)?;
    if config.len() as u64 != parsed.config.size || digest_of(config) != parsed.config.digest {
        return Err(ArtifactError::Digest("configuration"));
    }
    let config: ArtifactConfig = serde_json::from_slice(config)
        .map_err(|error| ArtifactError::Json { what: "configuration", error })?;
    if config.format_version != FORMAT_VERSION {
        return Err(ArtifactError::Version(config.format_version));
    }
    let [index, blob] = &parsed.layers[..] else {
        return Err(ArtifactError::NotABlockImage("it does not have two layers"));
    };
    if index.media_type != INDEX_MEDIA_TYPE || blob.media_type != BLOB_MEDIA_TYPE {
        return Err(ArtifactError::NotABlockImage("its layers are of other types"));
    }
    if parsed.subject.is_none_or(|subject| subject.digest != config.source) {
        return Err(ArtifactError::NotABlockImage("its subject is not its source"));
    }
    Ok(BlockImage {
        id: digest_of(manifest),
        source: config.source,
        index_digest: index.digest,
        index_bytes: index.size,
        blob_digest: blob.digest,
        blob_bytes: blob.size,
        plain_bytes: config.plain_bytes,
        location,
        runtime: config.runtime,
    })
}

fn parse_manifest(manifest: &[u8]) -> Result<Manifest, ArtifactError> {
    let parsed: Manifest =
        serde_json::from_slice(manifest).map_err(|error| ArtifactError::Json { what: "manifest", error })?;
    if parsed.artifact_type.as_deref() != Some(ARTIFACT_TYPE) {
        return Err(ArtifactError::NotABlockImage("its artifact type is another"));
    }
    Ok(parsed)
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structures of strings and numbers always encode")
}
