//! The journal: all writes to the metadata store, in the order in which they came, in groups.
//!
//! A commit to a disk takes the same time for one write as for hundreds. What comes while a commit is
//! under way waits and is committed together, as far as the store takes it at once; each caller is
//! answered when its own batch is durable. A group whose conditions do not all hold is committed batch by
//! batch, so that only those fail whose own conditions do not hold.
//!
//! The actor may crash. Of the batches that it had then nobody knows whether they are durable, and their
//! callers are told so; the store applies none of them after what the next journal hands in.

mod messages;
mod queue;

pub use messages::{Commit, Done, Room};

use crate::{
    support::{Life, Link, Observe, Snapshot, Stop},
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

/// What a journal is made with, and made again.
#[derive(Clone)]
pub struct JournalSettings {
    metadata: Arc<dyn Metadata>,
    limits: JournalLimits,
    commits: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl JournalSettings {
    pub fn new(metadata: Arc<dyn Metadata>, commits_max: usize, bytes_max: usize) -> Self {
        let limits = JournalLimits { commits_max, bytes_max, batch: metadata.limits() };
        let (commits, bytes) = (Semaphore::new(commits_max), Semaphore::new(bytes_max));
        Self { metadata, limits, commits: Arc::new(commits), bytes: Arc::new(bytes) }
    }

    /// What is above the limits is refused at once.
    pub fn handle(&self, link: Link<Commit>) -> JournalHandle {
        let (commits, bytes) = (Arc::clone(&self.commits), Arc::clone(&self.bytes));
        JournalHandle { link, batch: self.limits.batch, commits, bytes }
    }
}

pub struct Journal {
    settings: JournalSettings,
    queue: Queue<Waiter>,
    /// Batches that are on their way to the disk.
    committing: usize,
    life: Life<&'static str>,
}

impl Journal {
    pub fn new(settings: JournalSettings, life: Life<&'static str>) -> Self {
        let queue = Queue::new(settings.limits.batch);
        Self { settings, queue, committing: 0, life }
    }

    fn commit_next(&mut self, ctx: &mut Context<Self>) {
        if self.committing > 0 {
            return;
        }
        let Some(mut group) = self.queue.next_group() else { return };
        self.committing = group.len();
        let commit = self.settings.metadata.commit(std::mem::take(&mut group.batch));
        ctx.spawn(commit.into_actor(self).map(move |result, journal, ctx| {
            journal.committing = 0;
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
            waiter.done.call(result.clone());
        }
    }
}

impl Actor for Journal {
    type Context = Context<Self>;
}

impl Handler<Commit> for Journal {
    type Result = ();

    fn handle(&mut self, Commit { batch, done, room }: Commit, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.queue.push(batch, Waiter { done, _room: room });
        self.commit_next(ctx);
    }
}

impl Handler<Observe> for Journal {
    type Result = Snapshot;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> Snapshot {
        let state = match self.committing {
            0 => "idle".to_owned(),
            batches => format!("{batches} batches on their way to the disk"),
        };
        let JournalSettings { limits, commits, bytes, .. } = &self.settings;
        Snapshot::new(state)
            .queue("commits", limits.commits_max - commits.available_permits(), limits.commits_max)
            .queue("bytes", limits.bytes_max - bytes.available_permits(), limits.bytes_max)
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
struct JournalLimits {
    /// Commits that wait or are under way.
    commits_max: usize,
    /// Their keys and values together.
    bytes_max: usize,
    /// One commit: what the store takes at once.
    batch: BatchLimits,
}

/// The journal as others see it. Cheap to clone.
#[derive(Clone)]
pub struct JournalHandle {
    link: Link<Commit>,
    batch: BatchLimits,
    commits: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl JournalHandle {
    /// Hands in a batch; `done` is called when it is durable or has failed, in the order of calls.
    pub fn submit(&self, batch: Batch, done: Done) {
        match self.room(&batch) {
            Ok(room) => self.link.send(Commit { batch, done, room }),
            Err(error) => done.call(Err(error)),
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
            _commit: Arc::clone(&self.commits).try_acquire_owned().map_err(full)?,
            _bytes: Arc::clone(&self.bytes).try_acquire_many_owned(permits).map_err(full)?,
        })
    }

    /// Returns when the batch is durable.
    pub async fn commit(&self, batch: Batch) -> Result<(), MetadataError> {
        let (reply, answer) = oneshot::channel();
        self.submit(
            batch,
            Done::new(move |result| {
                // The caller may have given up; the batch is durable all the same.
                let _gone = reply.send(result);
            }),
        );
        answer.await.unwrap_or(Err(MetadataError::Unknown))
    }
}
