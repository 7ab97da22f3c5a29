//! What the journal is told.

use crate::{
    support::{Flow, Hop},
    world::{Batch, MetadataError, Write},
};
use actix::prelude::*;
use tokio::sync::OwnedSemaphorePermit;

type Answer = Box<dyn FnOnce(Result<(), MetadataError>) + Send>;

/// Called once, when the batch is durable or has failed. Dropped uncalled, because the journal crashed, it
/// says that nobody knows.
pub struct Done(Option<Answer>);

impl Done {
    pub fn new(answer: impl FnOnce(Result<(), MetadataError>) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    pub fn call(mut self, result: Result<(), MetadataError>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Err(MetadataError::Unknown));
        }
    }
}

/// Makes a batch durable.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Commit {
    pub batch: Batch,
    pub done: Done,
    pub room: Room,
}

impl Flow for Commit {
    fn hop(&self) -> Option<Hop<'_>> {
        let about: &dyn std::fmt::Display = match self.batch.writes.first()? {
            Write::Put(row) => &row.key,
            Write::Delete { key, .. } => key,
        };
        Some(Hop { message: "Commit", about, permit: "commit" })
    }
}

/// Bounds what waits, by number and by bytes; given back when it is dropped.
pub struct Room {
    pub(super) _commit: OwnedSemaphorePermit,
    pub(super) _bytes: OwnedSemaphorePermit,
}
