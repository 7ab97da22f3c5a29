//! The origin: where block images are published and from where roots read them.
//!
//! One reader serves every image: an image says itself whether it lies in a folder or in a registry.
//! Nothing is verified here, the caller checks every block against the index. What is checked is that
//! a range lies inside the object that the metadata store describes, so that a wrong order can neither
//! ask for memory without limit nor read another file.

mod counters;
mod folder;
mod registry;

pub use counters::{OriginCounters, OriginCounts};

use crate::{
    registry::{RegistryClient, RegistryError},
    settings::OriginSettings,
};
use bytes::Bytes;
use faasnet_actors::{
    id::Digest,
    image::{BlockImage, ImageLocation},
    world::{Origin, OriginError, Part},
};
use folder::FolderOrigin;
use futures::future::{BoxFuture, FutureExt};
use registry::RegistryOrigin;
use std::{ops::Range, sync::Arc};

/// Longest range of one read, in bytes: the largest index (48 bytes for each of 2^20 blocks) and some.
/// Bounds the memory of one call whatever the caller asks for.
pub const RANGE_BYTES_MAX: u64 = 64 << 20;

/// Reads block images from folders and registries. Shared by all transfers of an agent.
pub struct OriginReader {
    folder: FolderOrigin,
    registry: RegistryOrigin,
    counters: Arc<OriginCounters>,
}

/// Makes the reader. Nothing is connected or opened before the first read, which must be awaited within
/// a tokio runtime. `seed` decides the jitter of pauses between attempts.
///
/// Fails when a file of `origin.ca_files` cannot be used.
pub fn open(settings: &OriginSettings, seed: u64) -> Result<Arc<OriginReader>, RegistryError> {
    let counters = Arc::new(OriginCounters::default());
    let folder = FolderOrigin::new(settings, Arc::clone(&counters));
    let registry = RegistryOrigin::new(RegistryClient::new(settings, seed)?, Arc::clone(&counters));
    Ok(Arc::new(OriginReader { folder, registry, counters }))
}

impl OriginReader {
    /// What was read until now.
    pub fn counters(&self) -> Arc<OriginCounters> {
        Arc::clone(&self.counters)
    }
}

impl Origin for OriginReader {
    fn read(
        &self,
        image: &BlockImage,
        part: Part,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<Bytes, OriginError>> {
        let object = match checked(image, part, &range) {
            Ok(_) if range.is_empty() => return futures::future::ready(Ok(Bytes::new())).boxed(),
            Ok(object) => object,
            Err(error) => return futures::future::ready(Err(error)).boxed(),
        };
        match &image.location {
            ImageLocation::Folder { path } => self.folder.read(path, object, range),
            ImageLocation::Registry { repository } => self.registry.read(repository, object, range),
        }
    }
}

/// The object that holds the part, after the range was found to lie inside it.
fn checked(image: &BlockImage, part: Part, range: &Range<u64>) -> Result<Digest, OriginError> {
    let (object, object_bytes) = match part {
        Part::Index => (image.index_digest, image.index_bytes),
        Part::Blob => (image.blob_digest, image.blob_bytes),
    };
    let fits = range.start <= range.end && range.end <= object_bytes;
    if !fits || range.end - range.start > RANGE_BYTES_MAX {
        let text = format!(
            "range {}..{} of {object}, which has {object_bytes} bytes, is not allowed (longest range: {RANGE_BYTES_MAX})",
            range.start, range.end
        );
        return Err(OriginError::Failed(text));
    }
    Ok(object)
}
