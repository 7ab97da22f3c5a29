//! The event log as those see it who tell it something, and those who read it.

use super::{
    core::{Page, StreamId},
    messages::{News, ToEventLog},
    tally::Totals,
};
use crate::{id::TenantId, support::Link};
use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

/// Tells the log what has happened, and never waits for it. Cheap to clone.
#[derive(Clone)]
pub struct Teller {
    pub(super) link: Link<ToEventLog>,
    pub(super) backlog: Backlog,
}

/// What may wait for the log; what is above it is dropped and counted. Cheap to clone.
#[derive(Clone)]
pub(super) struct Backlog {
    pub room: Arc<Semaphore>,
    pub dropped: Arc<AtomicU64>,
}

impl Backlog {
    pub fn new(events_max: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(events_max)), dropped: Arc::default() }
    }
}

impl Teller {
    pub fn tell(&self, news: News) {
        if let Some(room) = self.room() {
            self.link.send(ToEventLog::Happened { news: Box::new(news), room });
        }
    }

    pub fn refused(&self, tenant: Option<TenantId>, code: Cow<'static, str>) {
        if let Some(room) = self.room() {
            self.link.send(ToEventLog::Refused { tenant, code, room });
        }
    }

    fn room(&self) -> Option<OwnedSemaphorePermit> {
        let room = Arc::clone(&self.backlog.room).try_acquire_owned().ok();
        if room.is_none() {
            self.backlog.dropped.fetch_add(1, Ordering::Relaxed);
        }
        room
    }
}

/// How far the log is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Newest {
    pub stream: StreamId,
    /// The number of the event that comes next.
    pub next: u64,
}

/// Reads the log. Cheap to clone.
#[derive(Clone)]
pub struct EventLogHandle {
    pub(super) link: Link<ToEventLog>,
    /// Changes with each event.
    pub newest: watch::Receiver<Newest>,
}

impl EventLogHandle {
    /// The events from that number on. None while the log is being rebuilt.
    pub async fn read(&self, from: u64, events_max: usize, bytes_max: usize) -> Option<Page> {
        let (reply, page) = oneshot::channel();
        self.link.send(ToEventLog::Read { from, events_max, bytes_max, reply });
        page.await.ok()
    }

    /// What has happened since the log began. None while it is being rebuilt.
    pub async fn totals(&self) -> Option<Totals> {
        let (reply, totals) = oneshot::channel();
        self.link.send(ToEventLog::Sum { reply });
        totals.await.ok()
    }
}
