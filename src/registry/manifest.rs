//! Manifests and indexes: read within a limit, checked against their digest, and written.

use super::{Content, Reference, RegistryClient, RegistryError, Repository, auth::Access};
use bytes::Bytes;
use faasnet_actors::id::Digest;
use reqwest::{
    Method, Response,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// What we can read: manifests and indexes, OCI's and Docker's.
const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// A manifest or index as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub media_type: String,
    pub bytes: Bytes,
    /// The SHA-256 of `bytes`, equal to the digest that was asked for, if one was.
    pub digest: Digest,
}

/// Names a manifest in an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl RegistryClient {
    /// Reads what a reference names, at most `bytes_max` bytes.
    pub async fn manifest(&self, reference: &Reference, bytes_max: u64) -> Result<Manifest, RegistryError> {
        self.0.retry.run(|_| self.manifest_once(reference, bytes_max, Access::Pull)).await
    }

    pub(super) async fn manifest_once(
        &self,
        reference: &Reference,
        bytes_max: u64,
        access: Access,
    ) -> Result<Manifest, RegistryError> {
        let repository = &reference.repository;
        let path = format!("manifests/{}", reference.wanted());
        let mut call = self.call(repository, Method::GET, &path, reference.to_string())?;
        call.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        let response = self.send(&call, repository, access).await?;
        let (media_type, stated) =
            (header(&response, "content-type"), header(&response, "docker-content-digest"));
        let bytes = self.bounded_body(response, reference.to_string(), bytes_max).await?;
        let digest = sha256(&bytes);
        let stated = stated.and_then(|text| text.parse().ok());
        match reference.digest.or(stated) {
            Some(wanted) if wanted != digest => {
                Err(RegistryError::WrongDigest { what: reference.to_string(), wanted, got: digest })
            }
            _ => Ok(Manifest { media_type: media_type_of(media_type, &bytes), bytes, digest }),
        }
    }

    /// Whether the repository has the manifest.
    pub async fn has_manifest(
        &self,
        repository: &Repository,
        manifest: Digest,
    ) -> Result<bool, RegistryError> {
        let attempt = |_| async move {
            let what = Reference::by_digest(repository, manifest).to_string();
            let mut call = self.call(repository, Method::HEAD, &format!("manifests/{manifest}"), what)?;
            call.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
            match self.send(&call, repository, Access::Push).await {
                Ok(_) => Ok(true),
                Err(RegistryError::NotFound { .. }) => Ok(false),
                Err(other) => Err(other),
            }
        };
        self.0.retry.run(attempt).await
    }

    /// Writes a manifest under a tag or its digest. Says whether the registry keeps the list of referrers
    /// of the manifest's `subject` itself.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<bool, RegistryError> {
        let (repository, bytes) = (&reference.repository, &bytes);
        let attempt = |_| async move {
            let path = format!("manifests/{}", reference.wanted());
            let mut call = self.call(repository, Method::PUT, &path, reference.to_string())?;
            let value = HeaderValue::from_str(media_type);
            call.headers.insert(CONTENT_TYPE, value.map_err(|_| unusable(repository, media_type))?);
            call.body = Content::bytes(bytes.clone());
            let response = self.send(&call, repository, Access::Push).await?;
            let (wanted, what) = (sha256(bytes), reference.to_string());
            match header(&response, "docker-content-digest").and_then(|text| text.parse().ok()) {
                Some(got) if got != wanted => Err(RegistryError::WrongDigest { what, wanted, got }),
                _ => Ok(response.headers().contains_key("oci-subject")),
            }
        };
        self.0.retry.run(attempt).await
    }

    /// The body of an answer, within a limit and the deadline for answers.
    pub(super) async fn bounded_body(
        &self,
        mut response: Response,
        what: String,
        bytes_max: u64,
    ) -> Result<Bytes, RegistryError> {
        let stated = response.content_length();
        if stated.is_some_and(|stated| stated > bytes_max) {
            return Err(RegistryError::TooLarge { what, bytes_max });
        }
        let mut body = Vec::new();
        let deadline = tokio::time::Instant::now() + self.transport().answer_deadline;
        loop {
            match tokio::time::timeout_at(deadline, response.chunk()).await {
                Ok(Ok(Some(piece))) if (body.len() + piece.len()) as u64 > bytes_max => {
                    return Err(RegistryError::TooLarge { what, bytes_max });
                }
                Ok(Ok(Some(piece))) => body.extend_from_slice(&piece),
                Ok(Ok(None)) => return Ok(body.into()),
                Ok(Err(_)) | Err(_) => {
                    let got = body.len() as u64;
                    return Err(RegistryError::CutShort { what, got, wanted: stated.unwrap_or(got + 1) });
                }
            }
        }
    }
}

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

fn header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// The media type stated with the answer, without parameters; that in the document when it says nothing
/// of use.
fn media_type_of(stated: Option<String>, bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let stated = stated.unwrap_or_default();
    let stated = stated.split(';').next().unwrap_or_default().trim();
    if stated.starts_with("application/vnd.") {
        return stated.to_owned();
    }
    let inside = serde_json::from_slice::<Typed>(bytes).ok().and_then(|typed| typed.media_type);
    inside.unwrap_or_else(|| stated.to_owned())
}

fn unusable(repository: &Repository, media_type: &str) -> RegistryError {
    let reason = format!("a manifest of type {media_type:?} cannot be sent");
    RegistryError::Protocol { registry: repository.registry().to_owned(), reason }
}
