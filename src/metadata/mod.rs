//! Metadata stores: adapters of [`faasnet_actors::world::Metadata`], an embedded file and etcd. What every
//! adapter must hold to is in the tests of this module.

mod calls;
#[cfg(feature = "etcd")]
mod etcd;
mod redb;
mod term;
#[cfg(test)]
mod tests;

#[cfg(feature = "etcd")]
pub use etcd::{EtcdMetadata, EtcdOptions};
pub use redb::RedbMetadata;
pub use term::Term;

use crate::settings::{MetadataSettings, MetadataStore};
use anyhow::Context;
use faasnet_actors::world::Metadata;
use std::{path::Path, sync::Arc};

/// Opens the store that the settings name; the embedded one is a file in `data`.
pub async fn open(settings: &MetadataSettings, data: &Path) -> anyhow::Result<Arc<dyn Metadata>> {
    match settings.store {
        MetadataStore::Redb => {
            let store = RedbMetadata::open(&data.join("metadata.redb"));
            Ok(Arc::new(store.context("opening the metadata store")?))
        }
        #[cfg(feature = "etcd")]
        MetadataStore::Etcd => {
            let store = EtcdMetadata::open(EtcdOptions::new(settings)?).await;
            Ok(Arc::new(store.context("opening the metadata store")?))
        }
        #[cfg(not(feature = "etcd"))]
        MetadataStore::Etcd => {
            anyhow::bail!("this program was built without etcd; build it with the feature \"etcd\"")
        }
    }
}
