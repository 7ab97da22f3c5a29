//! The journal: all writes to the metadata store, in the order in which they came, in groups.
//!
//! A commit to a disk takes the same time for one write as for hundreds. What comes while a commit is
//! under way waits and is committed together; each caller is answered when its writes are durable.

mod messages;

pub use messages::{Commit, Done};

use crate::{
    support::{ExitNotice, Stop},
    world::{Metadata, MetadataError, Write},
};
use actix::prelude::*;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Commits for one caller that wait or are under way; each holds one of the handle's permits.
struct Waiting {
    done: Done,
    permit: OwnedSemaphorePermit,
}

pub struct Journal {
    metadata: Arc<dyn Metadata>,
    writes: Vec<Write>,
    waiting: Vec<Waiting>,
    committing: bool,
    _exit: Option<ExitNotice<&'static str>>,
}

impl Journal {
    pub fn new(metadata: Arc<dyn Metadata>, exit: Option<ExitNotice<&'static str>>) -> Self {
        Self { metadata, writes: Vec::new(), waiting: Vec::new(), committing: false, _exit: exit }
    }

    fn commit_next(&mut self, ctx: &mut Context<Self>) {
        if self.committing || self.waiting.is_empty() {
            return;
        }
        self.committing = true;
        let waiting = std::mem::take(&mut self.waiting);
        let commit = self.metadata.commit(std::mem::take(&mut self.writes));
        ctx.spawn(commit.into_actor(self).map(move |committed, journal, ctx| {
            if let Err(error) = &committed {
                tracing::error!(%error, "commit to the metadata store");
            }
            for Waiting { done, permit } in waiting {
                done(committed.clone());
                drop(permit);
            }
            journal.committing = false;
            journal.commit_next(ctx);
        }));
    }
}

impl Actor for Journal {
    type Context = Context<Self>;
}

impl Handler<Commit> for Journal {
    type Result = ();

    fn handle(&mut self, Commit { writes, done, permit }: Commit, ctx: &mut Context<Self>) {
        self.writes.extend(writes);
        self.waiting.push(Waiting { done, permit });
        self.commit_next(ctx);
    }
}

impl Handler<Stop> for Journal {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

/// The journal as others see it. Cheap to clone.
#[derive(Clone)]
pub struct JournalHandle {
    commits: Recipient<Commit>,
    permits: Arc<Semaphore>,
}

impl JournalHandle {
    /// At most `commits_max` commits wait or are under way; further ones are refused at once.
    pub fn new(commits: Recipient<Commit>, commits_max: usize) -> Self {
        Self { commits, permits: Arc::new(Semaphore::new(commits_max)) }
    }

    /// Hands in writes; `done` is called when they are durable or failed, in the order of calls.
    pub fn submit(&self, writes: Vec<Write>, done: Done) {
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => self.commits.do_send(Commit { writes, done, permit }),
            Err(_) => done(Err(MetadataError::Unwritable("too many writes wait already".into()))),
        }
    }

    /// Returns when the writes are durable.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<(), MetadataError> {
        let (reply, answer) = oneshot::channel();
        self.submit(
            writes,
            Box::new(move |result| {
                // The caller may have given up; the writes are durable all the same.
                let _gone = reply.send(result);
            }),
        );
        let closed = || MetadataError::Unwritable("the journal is closed".into());
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}
