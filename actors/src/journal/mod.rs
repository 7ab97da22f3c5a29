//! The journal: all writes to the metadata store, in the order in which they came, in groups.
//!
//! A commit to a disk takes the same time for one write as for hundreds. What comes while a commit is
//! under way waits and is committed together, as far as the store takes it at once; each caller is
//! answered when its own batch is durable. A group whose conditions do not all hold is committed batch by
//! batch, so that only those fail whose own conditions do not hold.

mod messages;
mod queue;

pub use messages::{Commit, Done, Room};

use crate::{
    support::{ExitNotice, Stop},
    world::{Batch, BatchLimits, Metadata, MetadataError},
};
use actix::prelude::*;
use queue::{Group, Queue};
use std::sync::Arc;
use tokio::sync::{Semaphore, oneshot};

/// A batch's caller; it holds the room that the batch takes.
struct Waiter {
    done: Done,
    _room: Room,
}

pub struct Journal {
    metadata: Arc<dyn Metadata>,
    queue: Queue<Waiter>,
    committing: bool,
    _exit: Option<ExitNotice<&'static str>>,
}

impl Journal {
    pub fn new(metadata: Arc<dyn Metadata>, exit: Option<ExitNotice<&'static str>>) -> Self {
        let queue = Queue::new(metadata.limits());
        Self { metadata, queue, committing: false, _exit: exit }
    }

    fn commit_next(&mut self, ctx: &mut Context<Self>) {
        if self.committing {
            return;
        }
        let Some(mut group) = self.queue.next_group() else { return };
        self.committing = true;
        let commit = self.metadata.commit(std::mem::take(&mut group.batch));
        ctx.spawn(commit.into_actor(self).map(move |result, journal, ctx| {
            journal.committing = false;
            journal.committed(group, result);
            journal.commit_next(ctx);
        }));
    }

    fn committed(&mut self, group: Group<Waiter>, result: Result<(), MetadataError>) {
        match &result {
            Err(MetadataError::Conflict { .. }) if group.len() > 1 => return self.queue.one_by_one(group),
            // An answer to one caller, not trouble.
            Err(MetadataError::Conflict { .. }) | Ok(()) => {}
            Err(error) => tracing::error!(%error, batches = group.len(), "commit to the metadata store"),
        }
        for waiter in group.into_waiters() {
            (waiter.done)(result.clone());
        }
    }
}

impl Actor for Journal {
    type Context = Context<Self>;
}

impl Handler<Commit> for Journal {
    type Result = ();

    fn handle(&mut self, Commit { batch, done, room }: Commit, ctx: &mut Context<Self>) {
        self.queue.push(batch, Waiter { done, _room: room });
        self.commit_next(ctx);
    }
}

impl Handler<Stop> for Journal {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

/// What the journal takes.
#[derive(Debug, Clone, Copy)]
pub struct JournalLimits {
    /// Commits that wait or are under way.
    pub commits_max: usize,
    /// Their keys and values together.
    pub bytes_max: usize,
    /// One commit: what the store takes at once.
    pub batch: BatchLimits,
}

/// The journal as others see it. Cheap to clone.
#[derive(Clone)]
pub struct JournalHandle {
    commits: Recipient<Commit>,
    batch: BatchLimits,
    permits: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl JournalHandle {
    /// What is above the limits is refused at once.
    pub fn new(commits: Recipient<Commit>, limits: JournalLimits) -> Self {
        let permits = Arc::new(Semaphore::new(limits.commits_max));
        Self { commits, batch: limits.batch, permits, bytes: Arc::new(Semaphore::new(limits.bytes_max)) }
    }

    /// Hands in a batch; `done` is called when it is durable or has failed, in the order of calls.
    pub fn submit(&self, batch: Batch, done: Done) {
        match self.room(&batch) {
            Ok(room) => self.commits.do_send(Commit { batch, done, room }),
            Err(error) => done(Err(error)),
        }
    }

    fn room(&self, batch: &Batch) -> Result<Room, MetadataError> {
        let bytes = batch.bytes();
        if !self.batch.allow(batch) {
            return Err(MetadataError::TooLarge(bytes));
        }
        let permits = u32::try_from(bytes).map_err(|_| MetadataError::TooLarge(bytes))?;
        let full = |_| MetadataError::Busy;
        Ok(Room {
            _commit: Arc::clone(&self.permits).try_acquire_owned().map_err(full)?,
            _bytes: Arc::clone(&self.bytes).try_acquire_many_owned(permits).map_err(full)?,
        })
    }

    /// Returns when the batch is durable.
    pub async fn commit(&self, batch: Batch) -> Result<(), MetadataError> {
        let (reply, answer) = oneshot::channel();
        self.submit(
            batch,
            Box::new(move |result| {
                // The caller may have given up; the batch is durable all the same.
                let _gone = reply.send(result);
            }),
        );
        let closed = || MetadataError::Unwritable("the journal is closed".into());
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}
