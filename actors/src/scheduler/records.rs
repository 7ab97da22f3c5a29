//! Rows of the metadata store that the scheduler writes and reads: MessagePack with named fields.

use crate::{
    id::{FunctionName, ImageId, StartId, TenantId},
    image::BlockImage,
    model::FunctionSpec,
    world::{Metadata, MetadataError, Row, Table, Write},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, sync::Arc};

/// A function of a tenant.
pub type FunctionKey = (TenantId, FunctionName);

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionRecord {
    spec: FunctionSpec,
    /// None while the image is being converted.
    image: Option<ImageId>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StartRecord {
    tenant: TenantId,
    function: FunctionName,
}

/// All that survives a manager.
#[derive(Debug, Default, Clone)]
pub struct Loaded {
    pub functions: BTreeMap<FunctionKey, (FunctionSpec, Option<Arc<BlockImage>>)>,
    pub vms: Vec<crate::id::VmId>,
    /// Accepted starts that had not ended.
    pub starts: BTreeMap<StartId, FunctionKey>,
}

fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(record).expect("records are plain data")
}

fn decode<T: DeserializeOwned>(row: &Row) -> Result<T, MetadataError> {
    rmp_serde::from_slice(&row.value).map_err(|_| damaged(row))
}

fn damaged(row: &Row) -> MetadataError {
    MetadataError::Damaged(format!("the row {:?} of table {}", row.key, row.table.name()))
}

fn function_row_key((tenant, name): &FunctionKey) -> String {
    format!("{tenant}/{name}")
}

pub fn put_function(key: &FunctionKey, spec: &FunctionSpec, image: Option<ImageId>) -> Write {
    let value = encode(&FunctionRecord { spec: spec.clone(), image });
    Write::Put(Row { table: Table::Functions, key: function_row_key(key), value })
}

pub fn delete_function(key: &FunctionKey) -> Write {
    Write::Delete { table: Table::Functions, key: function_row_key(key) }
}

pub fn put_image(image: &BlockImage) -> Write {
    Write::Put(Row { table: Table::Images, key: image.id.to_string(), value: encode(image) })
}

pub fn put_start(start: &StartId, (tenant, function): &FunctionKey) -> Write {
    let record = StartRecord { tenant: tenant.clone(), function: function.clone() };
    Write::Put(Row { table: Table::Starts, key: start.as_str().to_owned(), value: encode(&record) })
}

pub fn delete_start(start: &StartId) -> Write {
    Write::Delete { table: Table::Starts, key: start.as_str().to_owned() }
}

impl Loaded {
    /// Reads everything. A row that is not understood is damage, not something to skip: what was
    /// acknowledged would be lost silently.
    pub async fn read(metadata: &dyn Metadata) -> Result<Self, MetadataError> {
        let mut images = BTreeMap::new();
        for row in metadata.scan(Table::Images).await? {
            let image: BlockImage = decode(&row)?;
            images.insert(image.id, Arc::new(image));
        }
        let mut loaded = Self::default();
        for row in metadata.scan(Table::Functions).await? {
            let record: FunctionRecord = decode(&row)?;
            let (tenant, name) = row.key.split_once('/').ok_or_else(|| damaged(&row))?;
            let key = (tenant.parse().ok()).zip(name.parse().ok()).ok_or_else(|| damaged(&row))?;
            let image = record.image.and_then(|id| images.get(&id).cloned());
            loaded.functions.insert(key, (record.spec, image));
        }
        for row in metadata.scan(Table::Starts).await? {
            let record: StartRecord = decode(&row)?;
            let start = row.key.parse().map_err(|_| damaged(&row))?;
            loaded.starts.insert(start, (record.tenant, record.function));
        }
        for row in metadata.scan(Table::Vms).await? {
            loaded.vms.push(row.key.parse().map_err(|_| damaged(&row))?);
        }
        Ok(loaded)
    }
}
