//! What the journal is told.

use crate::world::{MetadataError, Write};
use actix::prelude::*;
use tokio::sync::OwnedSemaphorePermit;

/// Called once, when the writes are durable or have failed.
pub type Done = Box<dyn FnOnce(Result<(), MetadataError>) + Send>;

/// Makes writes durable, all or none. The permit bounds what waits.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Commit {
    pub writes: Vec<Write>,
    pub done: Done,
    pub permit: OwnedSemaphorePermit,
}
