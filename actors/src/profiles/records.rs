//! The rows of table `Profiles`: MessagePack with named fields.

use super::core::ProfileKey;
use crate::{
    id::ImageId,
    image::BlockImage,
    profile::Profile,
    scheduler::{damaged, decode, encode, read_images},
    world::{HotSet, Metadata, MetadataError, Row, Table, Write},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A packed image of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedImage {
    pub image: ImageId,
    /// Recordings of the profile that it was packed by.
    pub recordings: u32,
    /// Of that profile.
    pub fingerprint: String,
}

/// All that is kept of one profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileRecord {
    /// How functions name the source image.
    pub source: String,
    pub profile: Profile,
    /// Where it lies in block images of the source.
    pub hot: Vec<(ImageId, HotSet)>,
    pub packed: Option<PackedImage>,
    /// A packing was asked for and has not been done.
    pub is_wanted: bool,
}

fn row_key((tenant, source): &ProfileKey) -> String {
    format!("{tenant}/{source}")
}

pub fn put(key: &ProfileKey, record: &ProfileRecord) -> Write {
    Write::Put(Row { table: Table::Profiles, key: row_key(key), value: encode(record) })
}

pub fn delete(key: &ProfileKey) -> Write {
    Write::Delete { table: Table::Profiles, key: row_key(key) }
}

/// Reads all profiles, with the packed images that are trusted.
pub async fn read(
    metadata: &dyn Metadata,
) -> Result<Vec<(ProfileKey, ProfileRecord, Option<Arc<BlockImage>>)>, MetadataError> {
    let images = read_images(metadata).await?;
    let mut profiles = Vec::new();
    for row in metadata.scan(Table::Profiles).await? {
        let record: ProfileRecord = decode(&row)?;
        let (tenant, source) = row.key.split_once('/').ok_or_else(|| damaged(&row))?;
        let key = tenant.parse().ok().zip(source.parse().ok()).ok_or_else(|| damaged(&row))?;
        let image = record.packed.as_ref().and_then(|packed| images.get(&packed.image).cloned());
        profiles.push((key, record, image));
    }
    Ok(profiles)
}
