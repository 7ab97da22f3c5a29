//! What the journal is told.

use crate::world::{Batch, MetadataError};
use actix::prelude::*;
use tokio::sync::OwnedSemaphorePermit;

/// Called once, when the batch is durable or has failed.
pub type Done = Box<dyn FnOnce(Result<(), MetadataError>) + Send>;

/// Makes a batch durable.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Commit {
    pub batch: Batch,
    pub done: Done,
    pub room: Room,
}

/// Bounds what waits, by number and by bytes; given back when it is dropped.
pub struct Room {
    pub(super) _commit: OwnedSemaphorePermit,
    pub(super) _bytes: OwnedSemaphorePermit,
}
