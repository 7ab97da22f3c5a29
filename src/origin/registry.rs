//! Block images in a registry: ranges of two blobs of a repository.
//!
//! Each attempt is counted with what arrived of it, so that the sum can be compared with the bytes that
//! the registry says it sent. Attempts, pauses and deadlines are the client's.

use super::counters::OriginCounters;
use crate::registry::{RegistryClient, RegistryError, Repository};
use bytes::Bytes;
use faasnet_actors::{id::Digest, world::OriginError};
use futures::future::{BoxFuture, FutureExt};
use std::{ops::Range, sync::Arc};

pub(super) struct RegistryOrigin {
    client: RegistryClient,
    counters: Arc<OriginCounters>,
}

impl RegistryOrigin {
    pub(super) fn new(client: RegistryClient, counters: Arc<OriginCounters>) -> Self {
        Self { client, counters }
    }

    pub(super) fn read(
        &self,
        repository: &str,
        object: Digest,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<Bytes, OriginError>> {
        let repository: Repository = match repository.parse() {
            Ok(repository) => repository,
            Err(error) => return futures::future::ready(Err(to_origin(error))).boxed(),
        };
        let (client, counters) = (self.client.clone(), Arc::clone(&self.counters));
        async move {
            let attempt =
                |failed| read_once(&client, &counters, &repository, object, range.clone(), failed > 0);
            client.retrying(attempt).await.map_err(to_origin)
        }
        .boxed()
    }
}

async fn read_once(
    client: &RegistryClient,
    counters: &OriginCounters,
    repository: &Repository,
    object: Digest,
    range: Range<u64>,
    is_retry: bool,
) -> Result<Bytes, RegistryError> {
    counters.request(is_retry);
    let answer = client.blob_range(repository, object, range).await;
    let used = answer.result.as_ref().map_or(0, |bytes| bytes.len() as u64);
    counters.received(answer.body_bytes);
    counters.wasted(answer.body_bytes - used);
    answer.result
}

fn to_origin(error: RegistryError) -> OriginError {
    match error {
        RegistryError::NotFound { what } => OriginError::NotFound(what),
        RegistryError::Unauthorized { .. } | RegistryError::Credentials { .. } => {
            OriginError::Unauthorized(error.to_string())
        }
        RegistryError::Busy { retry_after, .. } => OriginError::Busy { retry_after },
        RegistryError::CutShort { got, wanted, .. } => OriginError::Truncated { got, wanted },
        other => OriginError::Failed(other.to_string()),
    }
}
