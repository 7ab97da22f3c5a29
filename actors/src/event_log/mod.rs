//! The event log: what has happened, numbered, for whoever watches.
//!
//! ```text
//! Scheduler ----+
//! FunctionTree -+-- News --> EventLog -- Page --> a subscriber's task (position, filter) --> websocket
//! HTTP ---------+               |                              ^
//!                               +------ newest number ---------+
//! ```
//!
//! Subscribers pull: the log has a ring of the last events and no queue for anybody, so that one who is slow
//! costs nothing and loses what the ring no longer has, which it is told. Those who tell never wait: above a limit
//! what they say is dropped, and its numbers are missing. A rebuilt log begins a new stream.

mod core;
mod handle;
mod messages;
mod reader;
mod tally;
#[cfg(test)]
mod tally_tests;
#[cfg(test)]
mod tests;

pub use self::{
    core::{EventJson, EventLogCore, Page, Record, RingLimits, StreamId},
    handle::{EventLogHandle, Newest, Teller},
    messages::{Audit, Happening, Kind, News, ToEventLog},
    reader::{Filter, Item, Reader, StreamIdError},
    tally::{Durations, Ending, Totals},
};

use crate::support::{Life, Link, Observe, Snapshot, Stop, Threads};
use actix::prelude::*;
use handle::Backlog;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::watch;

/// Milliseconds since 1970.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

#[derive(Debug, Clone, Copy)]
pub struct EventLogLimits {
    pub ring: RingLimits,
    /// Events that may wait for the log; above it they are dropped.
    pub waiting_max: usize,
    /// Starts, and members of trees, that are remembered so that each counts once.
    pub counted_max: usize,
    /// How often at most a thing is told that changes all the time.
    pub coalesce: Duration,
}

/// What a log is made with, and made again.
#[derive(Clone)]
pub struct EventLogSettings {
    limits: EventLogLimits,
    term: u64,
    clock: WallClock,
    backlog: Backlog,
    newest: Arc<watch::Sender<Newest>>,
    pub(crate) threads: Threads,
}

impl EventLogSettings {
    pub fn new(limits: EventLogLimits, term: u64, clock: WallClock, threads: Threads) -> Self {
        let (backlog, newest) = (Backlog::new(limits.waiting_max), Arc::new(watch::Sender::default()));
        Self { limits, term, clock, backlog, newest, threads }
    }

    pub fn teller(&self, link: Link<ToEventLog>) -> Teller {
        Teller { link, backlog: self.backlog.clone() }
    }

    pub fn handle(&self, link: Link<ToEventLog>) -> EventLogHandle {
        EventLogHandle { link, newest: self.newest.subscribe() }
    }
}

pub struct EventLog {
    settings: EventLogSettings,
    core: EventLogCore,
    life: Life<&'static str>,
}

impl EventLog {
    pub fn new(settings: EventLogSettings, life: Life<&'static str>) -> Self {
        let stream = StreamId { term: settings.term, generation: life.generation() };
        let core = EventLogCore::new(stream, settings.limits.ring, settings.limits.counted_max);
        Self { settings, core, life }
    }

    fn now_ms(&self) -> u64 {
        (self.settings.clock)()
    }

    fn say_newest(&self) {
        let newest = Newest { stream: self.core.stream(), next: self.core.next() };
        self.settings.newest.send_if_modified(|before| std::mem::replace(before, newest) != newest);
    }
}

impl Actor for EventLog {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.say_newest();
        ctx.run_interval(self.settings.limits.coalesce, |log, ctx| {
            if !log.life.parent_is_up() {
                return ctx.stop();
            }
            log.core.tick(log.now_ms());
            log.say_newest();
        });
    }
}

impl Handler<ToEventLog> for EventLog {
    type Result = ();

    fn handle(&mut self, message: ToEventLog, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        match message {
            ToEventLog::Happened { news, room } => {
                self.core.skip(self.settings.backlog.dropped.swap(0, Ordering::Relaxed));
                self.core.happened(*news, self.now_ms());
                self.say_newest();
                drop(room);
            }
            ToEventLog::Refused { tenant, code, room } => {
                self.core.refused(tenant, code);
                drop(room);
            }
            ToEventLog::Read { from, events_max, bytes_max, reply } => {
                // Whoever asked may be gone; then nobody wants the page.
                let _gone = reply.send(self.core.read(from, events_max, bytes_max));
            }
            ToEventLog::Sum { reply } => {
                self.core.skip(self.settings.backlog.dropped.swap(0, Ordering::Relaxed));
                // As above.
                let _gone = reply.send(self.core.totals());
            }
        }
    }
}

impl Handler<Observe> for EventLog {
    type Result = Snapshot;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> Snapshot {
        let (events, bytes) = self.core.sizes();
        let EventLogLimits { ring, waiting_max, .. } = self.settings.limits;
        let waiting = waiting_max - self.settings.backlog.room.available_permits();
        Snapshot::new(format!("stream {}, event {} is next", self.core.stream(), self.core.next()))
            .queue("waiting", waiting, waiting_max)
            .queue("events", events, ring.events_max)
            .queue("bytes", bytes, ring.bytes_max)
    }
}

impl Handler<Stop> for EventLog {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}
