//! Rows of the metadata store that the scheduler writes and reads: MessagePack with named fields.

use crate::{
    id::{FunctionName, ImageId, RequestId, StartId, TenantId, VmId},
    image::{BlockImage, FORMAT_VERSION},
    model::FunctionSpec,
    world::{Metadata, MetadataError, Row, Table, Write},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A function of a tenant.
pub type FunctionKey = (TenantId, FunctionName);

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionRecord {
    spec: FunctionSpec,
    /// None while the image is being converted.
    image: Option<ImageId>,
    /// The same of its package of code, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<ImageId>,
}

/// A block image that is trusted. Earlier releases wrote the image alone, of a format that is read no more.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageRecord {
    format_version: u32,
    image: BlockImage,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StartRecord {
    tenant: TenantId,
    function: FunctionName,
    /// Left out when it is only the start that the row is named by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    starts: Vec<StartId>,
    /// Absent in rows of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    accepted_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<RequestId>,
}

/// Accepted starts of one request that have not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartRow {
    /// The first start that was in it.
    pub id: StartId,
    pub key: FunctionKey,
    pub starts: Vec<StartId>,
    /// Unix time of their acceptance, if that is known.
    pub accepted_at_ms: Option<u64>,
    /// What the request is called.
    pub request: Option<RequestId>,
}

/// A function, and what it has of its block images.
#[derive(Debug, Clone)]
pub struct LoadedFunction {
    pub spec: FunctionSpec,
    pub image: Option<Arc<BlockImage>>,
    pub code: Option<Arc<BlockImage>>,
}

/// All that survives a manager.
#[derive(Debug, Default, Clone)]
pub struct Loaded {
    pub functions: BTreeMap<FunctionKey, LoadedFunction>,
    pub vms: Vec<VmId>,
    /// Those among them that are drained.
    pub drains: BTreeSet<VmId>,
    /// Accepted starts that had not ended.
    pub starts: Vec<StartRow>,
}

pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(record).expect("records are plain data")
}

pub fn decode<T: DeserializeOwned>(row: &Row) -> Result<T, MetadataError> {
    rmp_serde::from_slice(&row.value).map_err(|_| damaged(row))
}

pub fn damaged(row: &Row) -> MetadataError {
    MetadataError::Damaged(format!("the row {:?} of table {}", row.key, row.table.name()))
}

fn function_row_key((tenant, name): &FunctionKey) -> String {
    format!("{tenant}/{name}")
}

/// `image` and `code` are what it has of its block images.
pub fn put_function(
    key: &FunctionKey,
    spec: &FunctionSpec,
    image: Option<ImageId>,
    code: Option<ImageId>,
) -> Write {
    let value = encode(&FunctionRecord { spec: spec.clone(), image, code });
    Write::Put(Row { table: Table::Functions, key: function_row_key(key), value })
}

pub fn delete_function(key: &FunctionKey) -> Write {
    Write::Delete { table: Table::Functions, key: function_row_key(key) }
}

pub fn put_image(image: &BlockImage) -> Write {
    let record = ImageRecord { format_version: FORMAT_VERSION, image: image.clone() };
    Write::Put(Row { table: Table::Images, key: image.id.to_string(), value: encode(&record) })
}

/// The block images that agents of this release can read. Of others it is as if they had not been made yet: what
/// needs them has them converted again.
pub async fn read_images(
    metadata: &dyn Metadata,
) -> Result<BTreeMap<ImageId, Arc<BlockImage>>, MetadataError> {
    let mut images = BTreeMap::new();
    for row in metadata.scan(Table::Images).await? {
        match decode::<ImageRecord>(&row) {
            Ok(ImageRecord { format_version: FORMAT_VERSION, image }) => {
                images.insert(image.id, Arc::new(image));
            }
            Ok(ImageRecord { format_version, image }) => {
                tracing::info!(image = %image.id, format_version, "a block image has another format");
            }
            Err(_) => {
                let image: BlockImage = decode(&row)?;
                tracing::info!(image = %image.id, "a block image was made by an earlier release");
            }
        }
    }
    Ok(images)
}

pub fn put_starts(row: &StartRow) -> Write {
    let (tenant, function) = row.key.clone();
    let starts = if row.starts == [row.id.clone()] { Vec::new() } else { row.starts.clone() };
    let value = encode(&StartRecord {
        tenant,
        function,
        starts,
        accepted_at_ms: row.accepted_at_ms,
        request: row.request.clone(),
    });
    Write::Put(Row { table: Table::Starts, key: row.id.as_str().to_owned(), value })
}

pub fn delete_starts(row: &StartId) -> Write {
    Write::Delete { table: Table::Starts, key: row.as_str().to_owned() }
}

pub fn put_drain(vm: &VmId) -> Write {
    Write::Put(Row { table: Table::Drains, key: vm.as_str().to_owned(), value: Vec::new() })
}

pub fn delete_drain(vm: &VmId) -> Write {
    Write::Delete { table: Table::Drains, key: vm.as_str().to_owned() }
}

impl StartRow {
    pub fn read(row: &Row) -> Result<Self, MetadataError> {
        let StartRecord { tenant, function, mut starts, accepted_at_ms, request } = decode(row)?;
        let id: StartId = row.key.parse().map_err(|_| damaged(row))?;
        if starts.is_empty() {
            starts.push(id.clone());
        }
        Ok(Self { id, key: (tenant, function), starts, accepted_at_ms, request })
    }
}

impl Loaded {
    /// Reads everything. A row that is not understood is damage, not something to skip: what was
    /// acknowledged would be lost silently.
    pub async fn read(metadata: &dyn Metadata) -> Result<Self, MetadataError> {
        let images = read_images(metadata).await?;
        let mut loaded = Self::default();
        for row in metadata.scan(Table::Functions).await? {
            let record: FunctionRecord = decode(&row)?;
            let (tenant, name) = row.key.split_once('/').ok_or_else(|| damaged(&row))?;
            let key = (tenant.parse().ok()).zip(name.parse().ok()).ok_or_else(|| damaged(&row))?;
            let of = |id: Option<ImageId>| images.get(&id?).cloned();
            let (image, code) = (of(record.image), of(record.code));
            loaded.functions.insert(key, LoadedFunction { spec: record.spec, image, code });
        }
        for row in metadata.scan(Table::Starts).await? {
            loaded.starts.push(StartRow::read(&row)?);
        }
        for row in metadata.scan(Table::Vms).await? {
            loaded.vms.push(row.key.parse().map_err(|_| damaged(&row))?);
        }
        for row in metadata.scan(Table::Drains).await? {
            let vm = row.key.parse().map_err(|_| damaged(&row))?;
            // A VM may have been removed while it was drained.
            if loaded.vms.contains(&vm) {
                loaded.drains.insert(vm);
            }
        }
        Ok(loaded)
    }
}
