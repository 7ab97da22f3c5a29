//! Manager and agent: requests to instances, on connections of their own.
//!
//! The manager opens a connection, sends one `RequestHead`, and gets one `RequestAnswer`. After
//! `Ready` of a `Forward` both sides copy raw bytes to and from the instance's HTTP port; after `Logs`
//! the body of the answer's frame is the kept output.

use crate::id::StartId;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestHead {
    /// Bytes to and from the instance's HTTP port.
    Forward { start: StartId },
    /// The last `tail_bytes` of what the container wrote.
    Logs { start: StartId, tail_bytes: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestAnswer {
    Ready,
    Logs,
    /// The instance is not here, or its port does not accept connections.
    NotHere,
}
