//! A repository of a registry as destination: blobs, then the manifest, then the list of referrers.
//!
//! The manifest also gets the tag `faasnet-<digest>`: registries collect manifests without a tag, and
//! the source image, which `subject` names, is usually in another repository.

use super::{Artifact, Destination, MANIFEST_MEDIA_TYPE, PublishError};
use crate::{
    image::progress::{Phase, Progress},
    registry::{BlockingClient, Content, Descriptor, Reference, RegistryClient, RegistryError, Repository},
};
use faasnet_actors::{id::Digest, image::ImageLocation};
use oci_spec::image::ImageManifest;
use std::{fs::File, path::Path, sync::Arc, time::Duration};

/// How often bytes sent are reported and a cancellation is looked for.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// A repository. Manifests and lists of referrers are bounded by `image.manifest_bytes_max`.
pub struct RegistryDestination {
    client: BlockingClient,
    repository: Repository,
    manifest_bytes_max: u64,
}

impl RegistryDestination {
    pub fn new(client: BlockingClient, repository: Repository, manifest_bytes_max: u64) -> Self {
        Self { client, repository, manifest_bytes_max }
    }

    async fn has_whole(&self, client: &RegistryClient, digest: Digest) -> Result<bool, RegistryError> {
        let reference = Reference { repository: self.repository.clone(), tag: None, digest: Some(digest) };
        let manifest = match client.manifest(&reference, self.manifest_bytes_max).await {
            Ok(manifest) => manifest,
            Err(RegistryError::NotFound { .. }) => return Ok(false),
            Err(other) => return Err(other),
        };
        let Ok(manifest) = ImageManifest::from_reader(manifest.bytes.as_ref()) else { return Ok(false) };
        for blob in manifest.layers().iter().chain([manifest.config()]) {
            let Ok(digest) = blob.digest().as_ref().parse() else { return Ok(false) };
            if !client.has_blob(&self.repository, digest).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends a blob while counting what leaves; a blob that is there already counts as sent.
    async fn push(
        &self,
        client: &RegistryClient,
        digest: Digest,
        content: Content,
        progress: &Progress,
    ) -> Result<(), PublishError> {
        let mut reported = 0;
        let mut interval = tokio::time::interval(REPORT_INTERVAL);
        let mut push = std::pin::pin!(client.push_blob(&self.repository, digest, &content));
        loop {
            let ended = tokio::select! {
                biased;
                result = &mut push => Some(result),
                _ = interval.tick() => None,
            };
            let done = match &ended {
                Some(_) => content.len(),
                // A blob that is sent again after a failure counts from the start again: no step back.
                None => content.sent().max(reported),
            };
            progress.advance(done - reported)?;
            reported = done;
            if let Some(result) = ended {
                return result.map(drop).map_err(|error| self.error(error));
            }
        }
    }

    async fn publish_all(
        &self,
        client: &RegistryClient,
        artifact: &Artifact,
        progress: &Progress,
    ) -> Result<(), PublishError> {
        let parts = [&artifact.config_ref, &artifact.index_ref, &artifact.blob_ref];
        progress.begin(Phase::Publishing, parts.iter().map(|part| part.size).sum());
        let blob = open(&artifact.blob_path, artifact.blob_ref.size)?;
        let parts = [
            (artifact.config_ref.digest, Content::bytes(artifact.config.clone())),
            (artifact.index_ref.digest, Content::bytes(artifact.index.clone())),
            (artifact.blob_ref.digest, blob),
        ];
        for (digest, content) in parts {
            self.push(client, digest, content, progress).await?;
        }
        let tag = format!("faasnet-{}", artifact.manifest_digest.hex());
        let reference = Reference { repository: self.repository.clone(), tag: Some(tag), digest: None };
        let bytes = artifact.manifest.clone().into();
        let is_listed = client.push_manifest(&reference, MANIFEST_MEDIA_TYPE, bytes).await;
        let is_listed = is_listed.map_err(|error| self.error(error))?;
        let (subject, entry) = (artifact.subject.digest, entry(artifact));
        client
            .add_referrer(&self.repository, subject, &entry, is_listed, self.manifest_bytes_max)
            .await
            .map_err(|error| self.error(error))
    }

    fn error(&self, error: RegistryError) -> PublishError {
        let (what, reason) = (self.repository.to_string(), error.to_string());
        match error {
            RegistryError::Unauthorized { what, .. } => PublishError::Unauthorized { what },
            RegistryError::Local(error) => PublishError::Io { path: "the blob of blocks".into(), error },
            RegistryError::NotFound { .. }
            | RegistryError::WrongDigest { .. }
            | RegistryError::TooLarge { .. }
            | RegistryError::Surplus { .. } => PublishError::Refused { what, reason },
            RegistryError::Status { status: 400..500, .. } => PublishError::Refused { what, reason },
            RegistryError::Protocol { .. } | RegistryError::Reference { .. } => {
                PublishError::Invalid { what, reason }
            }
            _ => PublishError::Unavailable { what, reason },
        }
    }
}

impl Destination for RegistryDestination {
    fn has(&self, manifest: Digest) -> Result<bool, PublishError> {
        self.client.wait(|client| self.has_whole(client, manifest)).map_err(|error| self.error(error))
    }

    fn publish(&self, artifact: &Artifact, progress: &Progress) -> Result<ImageLocation, PublishError> {
        self.client.wait(|client| self.publish_all(client, artifact, progress))?;
        Ok(ImageLocation::Registry { repository: self.repository.to_string() })
    }
}

fn open(path: &Path, size: u64) -> Result<Content, PublishError> {
    let file = File::open(path).map_err(PublishError::io(path))?;
    Ok(Content::file(Arc::new(file), size))
}

/// How the list of referrers names the artifact (distribution specification 1.1, "Listing Referrers").
fn entry(artifact: &Artifact) -> Descriptor {
    Descriptor {
        media_type: MANIFEST_MEDIA_TYPE.to_owned(),
        digest: artifact.manifest_digest,
        size: artifact.manifest.len() as u64,
        artifact_type: Some(super::ARTIFACT_TYPE.to_owned()),
        annotations: artifact.annotations.clone(),
    }
}
