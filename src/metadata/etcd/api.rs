//! What travels between us and etcd's JSON gateway: the part of its API (v3) that is used here.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes, which are base64 in JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Numbers of 64 bits are text in JSON.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

#[derive(Serialize, Default)]
pub(super) struct Range {
    pub key: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range_end: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// The state of the store that is read; none for the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
}

#[derive(Serialize)]
pub(super) struct Put {
    pub key: Bytes,
    pub value: Bytes,
}

#[derive(Serialize)]
pub(super) struct DeleteRange {
    pub key: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range_end: Option<Bytes>,
}

#[derive(Serialize)]
pub(super) enum Operation {
    #[serde(rename = "request_range")]
    Range(Range),
    #[serde(rename = "request_put")]
    Put(Put),
    #[serde(rename = "request_delete_range")]
    Delete(DeleteRange),
}

/// Holds when the row is as it is named.
#[derive(Serialize)]
#[serde(tag = "target", rename_all = "UPPERCASE")]
pub(super) enum Compare {
    Value {
        key: Bytes,
        value: Bytes,
    },
    /// Revision 0: there is no such row.
    Mod {
        key: Bytes,
        mod_revision: i64,
    },
}

#[derive(Serialize)]
pub(super) struct Txn {
    /// All equal, which is what etcd takes when nothing else is said.
    pub compare: Vec<Compare>,
    pub success: Vec<Operation>,
    pub failure: Vec<Operation>,
}

#[derive(Serialize)]
pub(super) struct Compaction {
    pub revision: i64,
}

#[derive(Serialize)]
pub(super) struct Authenticate<'a> {
    pub name: &'a str,
    pub password: &'a str,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Header {
    #[serde(deserialize_with = "number")]
    pub revision: i64,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
pub(super) struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    #[serde(deserialize_with = "number")]
    pub mod_revision: i64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct RangeAnswer {
    pub header: Header,
    pub kvs: Vec<KeyValue>,
    pub more: bool,
}

#[derive(Deserialize)]
pub(super) struct PutAnswer {
    pub header: Header,
}

#[derive(Deserialize)]
pub(super) struct TxnAnswer {
    pub header: Header,
    #[serde(default)]
    pub succeeded: bool,
    #[serde(default)]
    pub responses: Vec<OperationAnswer>,
}

/// Only reads have something to say.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct OperationAnswer {
    pub response_range: RangeAnswer,
}

#[derive(Deserialize)]
pub(super) struct Authenticated {
    pub token: String,
}

#[derive(Deserialize)]
pub(super) struct Nothing {}

/// What etcd answers instead.
#[derive(Deserialize)]
pub(super) struct Refusal {
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub code: u32,
}
