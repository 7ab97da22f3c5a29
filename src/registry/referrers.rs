//! What refers to a manifest: the referrers API, or the tag `sha256-<hex>` where there is none
//! (distribution specification 1.1, "Referrers Tag Schema").
//!
//! The fallback tag names an index that every writer reads, extends and writes again. Registries have no
//! conditional write, so another process can overwrite an entry between the two. Within this process
//! writers take turns; against others an entry is read back after writing and added again if it was
//! lost, with growing pauses. What remains is a writer that started before our write and ends after our
//! look: closing that gap needs a registry with the referrers API.

use super::{
    Descriptor, Reference, RegistryClient, RegistryError, Repository, auth::Access, manifest::sha256,
};
use faasnet_actors::id::Digest;
use reqwest::{
    Method,
    header::{ACCEPT, HeaderValue},
};
use serde_json::{Value, json};

const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";

impl RegistryClient {
    /// The manifests that refer to `subject`, in the registry's order. The answer may be hostile: a
    /// referrer proves nothing about who made it.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: Digest,
        bytes_max: u64,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let answer = self.0.retry.run(|_| self.referrers_api(repository, subject, bytes_max)).await?;
        let index = match answer {
            Some(index) => Some(index),
            None => self.0.retry.run(|_| self.fallback_index(repository, subject, bytes_max)).await?,
        };
        Ok(index.map(|index| entries(&index)).unwrap_or_default())
    }

    /// Makes sure that `subject` is known to be referred to by a manifest that was just pushed;
    /// `is_listed` is what [`push_manifest`](Self::push_manifest) said.
    pub async fn add_referrer(
        &self,
        repository: &Repository,
        subject: Digest,
        entry: &Descriptor,
        is_listed: bool,
        bytes_max: u64,
    ) -> Result<(), RegistryError> {
        if is_listed {
            return Ok(());
        }
        if self.0.retry.run(|_| self.referrers_api(repository, subject, bytes_max)).await?.is_some() {
            return Ok(());
        }
        let _turn = self.0.fallback_lock.lock().await;
        self.0.retry.run(|_| self.add_to_fallback(repository, subject, entry, bytes_max)).await
    }

    /// The index of the referrers API; `None` from a registry that has none.
    async fn referrers_api(
        &self,
        repository: &Repository,
        subject: Digest,
        bytes_max: u64,
    ) -> Result<Option<Value>, RegistryError> {
        let what = format!("the referrers of {repository}@{subject}");
        let mut call = self.call(repository, Method::GET, &format!("referrers/{subject}"), what.clone())?;
        call.headers.insert(ACCEPT, HeaderValue::from_static(INDEX_MEDIA_TYPE));
        let response = match self.send(&call, repository, Access::Pull).await {
            Ok(response) => response,
            Err(RegistryError::NotFound { .. } | RegistryError::Status { status: 400 | 405 | 501, .. }) => {
                return Ok(None);
            }
            Err(other) => return Err(other),
        };
        let body = self.bounded_body(response, what, bytes_max).await?;
        // Some registries answer every unknown path with a page.
        Ok(serde_json::from_slice(&body).ok().filter(|index: &Value| index["manifests"].is_array()))
    }

    /// The index behind the fallback tag; `None` when there is no such tag.
    async fn fallback_index(
        &self,
        repository: &Repository,
        subject: Digest,
        bytes_max: u64,
    ) -> Result<Option<Value>, RegistryError> {
        let reference = fallback_reference(repository, subject);
        let manifest = match self.manifest_once(&reference, bytes_max, Access::Push).await {
            Ok(manifest) => manifest,
            Err(RegistryError::NotFound { .. }) => return Ok(None),
            Err(other) => return Err(other),
        };
        let index: Option<Value> = serde_json::from_slice(&manifest.bytes).ok();
        let index = index.filter(|index| index["manifests"].is_array());
        index.map(Some).ok_or_else(|| RegistryError::Protocol {
            registry: repository.registry().to_owned(),
            reason: format!("the tag {reference} is in use for something else than the list of referrers"),
        })
    }

    async fn add_to_fallback(
        &self,
        repository: &Repository,
        subject: Digest,
        entry: &Descriptor,
        bytes_max: u64,
    ) -> Result<(), RegistryError> {
        let has_entry = |index: &Value| entries(index).iter().any(|known| known.digest == entry.digest);
        let mut index = self
            .fallback_index(repository, subject, bytes_max)
            .await?
            .unwrap_or_else(|| json!({ "schemaVersion": 2, "mediaType": INDEX_MEDIA_TYPE, "manifests": [] }));
        if has_entry(&index) {
            return Ok(());
        }
        // As a JSON value, so that what others wrote keeps fields that we do not know.
        let added = serde_json::to_value(entry).expect("a descriptor has only string keys");
        index["manifests"].as_array_mut().expect("checked when it was read").push(added);
        let bytes = serde_json::to_vec(&index).expect("a JSON value can be written");
        let reference = fallback_reference(repository, subject);
        let (written, what) = (sha256(&bytes), reference.to_string());
        self.push_manifest(&reference, INDEX_MEDIA_TYPE, bytes.into()).await?;
        let found = self.fallback_index(repository, subject, bytes_max).await?;
        match found.as_ref().is_some_and(has_entry) {
            true => Ok(()),
            false => {
                tracing::warn!(%what, %written, "another writer replaced the list of referrers, adding again");
                Err(RegistryError::Busy { registry: repository.registry().to_owned(), retry_after: None })
            }
        }
    }
}

fn fallback_reference(repository: &Repository, subject: Digest) -> Reference {
    Reference::by_tag(repository, format!("sha256-{}", subject.hex()))
}

/// The entries that can be understood.
fn entries(index: &Value) -> Vec<Descriptor> {
    let all = index["manifests"].as_array().into_iter().flatten();
    all.filter_map(|entry| serde_json::from_value(entry.clone()).ok()).collect()
}
