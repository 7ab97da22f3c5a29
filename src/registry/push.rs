//! Writing blobs.
//!
//! A blob goes up in one PUT (POST, then PUT with the digest), which every registry takes; chunked
//! uploads are optional in the specification and limited by several. It is streamed from its file, so
//! memory does not grow with it, and sent again from the start when it fails.

use super::{Content, RegistryClient, RegistryError, Repository, auth::Access, transport};
use faasnet_actors::id::Digest;
use reqwest::{
    Method,
    header::{CONTENT_TYPE, HeaderValue},
};
use std::time::Duration;

/// The slowest upload that is waited for, in bytes a second: the deadline of an upload grows with its
/// size. Below it a gigabyte takes over an hour.
const UPLOAD_BYTES_PER_SECOND_MIN: u64 = 256 * 1024;

impl RegistryClient {
    /// Writes a blob unless the repository has it. Says whether it was sent.
    ///
    /// The registry checks the digest of what it received.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        blob: Digest,
        content: &Content,
    ) -> Result<bool, RegistryError> {
        if self.has_blob(repository, blob).await? {
            return Ok(false);
        }
        self.0.retry.run(|_| self.push_blob_once(repository, blob, content)).await?;
        Ok(true)
    }

    async fn push_blob_once(
        &self,
        repository: &Repository,
        blob: Digest,
        content: &Content,
    ) -> Result<(), RegistryError> {
        let what = format!("{repository}@{blob}");
        let begin = self.call(repository, Method::POST, "blobs/uploads/", what.clone())?;
        let begun = self.send(&begin, repository, Access::Push).await?;
        let mut url = transport::location(&begun).ok_or_else(|| RegistryError::Protocol {
            registry: repository.registry().to_owned(),
            reason: "it begins an upload without saying where".to_owned(),
        })?;
        url.query_pairs_mut().append_pair("digest", &blob.to_string());
        let mut put = self.call(repository, Method::PUT, "", what)?;
        put.url = url;
        put.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        put.body = content.clone();
        put.deadline += Duration::from_secs(content.len() / UPLOAD_BYTES_PER_SECOND_MIN);
        self.send(&put, repository, Access::Push).await.map(drop)
    }
}
