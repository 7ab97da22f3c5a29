//! The cache of blocks on one VM: a small part in memory for children, everything on disk.
//!
//! Decoding, hashing and disk never run on the actor's thread; answers come back as messages. A write that finds no
//! room waits until an image has gone that nobody here needs; which one is asked of the manager, over the agent.

mod memory;
mod room;

pub use self::{
    memory::MemoryCore,
    room::{COLD_MAX, RoomCore, RoomEffect, RoomEvent, RoomLimits, Standing, Ticket, choose},
};

use crate::{
    agent::world::{Disk, DiskError},
    id::{BlockId, TreeId},
    image::{BlockEntry, Codec, Index},
    support::{Flow, Hop, Life, Observe, Snapshot},
    wire::control::Candidate,
};
use actix::prelude::*;
use bytes::Bytes;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::Instant};

/// Far below the shortest time that room is waited for.
const TICK: Duration = Duration::from_millis(50);

/// Writes a verified block. The bytes count against the disk's limit from here on. Answered when it is written,
/// or there is no room for it in time.
#[derive(Message)]
#[rtype(result = "Result<(), DiskError>")]
pub struct Keep {
    pub tree: TreeId,
    pub index: Arc<Index>,
    pub block: BlockId,
    pub stored: Bytes,
}

/// Stored bytes of a block, for a child.
#[derive(Message)]
#[rtype(result = "Result<Bytes, DiskError>")]
pub struct Load {
    pub tree: TreeId,
    pub index: Arc<Index>,
    pub block: BlockId,
}

/// Blocks of an image that were found on disk.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Found {
    pub tree: TreeId,
    pub disk_bytes: u64,
}

/// What an image is to this VM now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stands {
    pub tree: TreeId,
    pub standing: Standing,
}

/// The manager's answer to `StoreNews::RoomWanted`.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Advised(pub Vec<TreeId>);

/// The files of an image are gone.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Removed(pub TreeId);

/// Told to the agent, which owns the images.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub enum StoreNews {
    /// For the manager: which of these go?
    RoomWanted { bytes: u64, candidates: Vec<Candidate> },
    /// The files of that image go, unless it is used again meanwhile. Answered by `Removed`.
    Remove(TreeId),
}

/// Bytes of a block that were kept once are not used on disk any more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Release {
    pub tree: TreeId,
    pub disk_bytes: u64,
}

/// What a block takes on disk: its stored and its plain bytes, once if they are the same.
pub fn disk_bytes(index: &Index, block: BlockId) -> u64 {
    let stored = match index.entry(block) {
        Some(BlockEntry { codec: Codec::Zstd, stored_bytes, .. }) => *stored_bytes,
        Some(BlockEntry { codec: Codec::Plain, .. }) | None => 0,
    };
    u64::from(stored) + u64::from(index.plain_len(block))
}

/// Forgets the memory copy of a block that turned out bad.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Distrust {
    pub tree: TreeId,
    pub block: BlockId,
}

/// A block that waits for room, or for the disk.
struct Write {
    tree: TreeId,
    index: Arc<Index>,
    block: BlockId,
    stored: Bytes,
    reply: oneshot::Sender<Result<(), DiskError>>,
}

pub struct BlockStore {
    memory: MemoryCore,
    room: RoomCore,
    /// Bounded by the room's own limit and by what transfers write at once.
    writes: BTreeMap<Ticket, Write>,
    tickets: u64,
    disk: Arc<dyn Disk>,
    news: Recipient<StoreNews>,
    life: Life<&'static str>,
}

impl BlockStore {
    pub fn new(
        disk: Arc<dyn Disk>,
        memory_bytes_max: u64,
        room: RoomLimits,
        news: Recipient<StoreNews>,
        life: Life<&'static str>,
    ) -> Self {
        let (memory, room) = (MemoryCore::new(memory_bytes_max), RoomCore::new(room));
        Self { memory, room, writes: BTreeMap::new(), tickets: 0, disk, news, life }
    }

    fn apply(&mut self, event: RoomEvent, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        self.room.apply(event, Instant::now(), &mut effects);
        for effect in effects {
            match effect {
                RoomEffect::Grant(ticket) => self.write(ticket, ctx),
                RoomEffect::Refuse(ticket) => self.answer(ticket, Err(DiskError::Full)),
                RoomEffect::Ask { bytes, candidates } => {
                    tracing::info!(bytes, candidates = candidates.len(), "the cache needs room");
                    self.news.do_send(StoreNews::RoomWanted { bytes, candidates });
                }
                RoomEffect::Remove(tree) => self.news.do_send(StoreNews::Remove(tree)),
            }
        }
    }

    fn write(&self, ticket: Ticket, ctx: &mut Context<Self>) {
        let Some(Write { tree, index, block, stored, .. }) = self.writes.get(&ticket) else { return };
        let keeping = self.disk.keep(tree, Arc::clone(index), *block, stored.clone());
        let written = keeping.into_actor(self);
        ctx.spawn(written.map(move |written, store, ctx| store.written(ticket, written, ctx)));
    }

    fn written(&mut self, ticket: Ticket, written: Result<(), DiskError>, ctx: &mut Context<Self>) {
        let Some(write) = self.writes.get(&ticket) else { return };
        let (tree, bytes) = (write.tree.clone(), disk_bytes(&write.index, write.block));
        match written {
            Err(DiskError::Full) => {
                tracing::warn!(%tree, "the disk is full; room is made for what does not fit");
                self.apply(RoomEvent::NoSpace { ticket, tree, bytes }, ctx);
            }
            Err(error) => {
                self.apply(RoomEvent::Refund { tree, bytes }, ctx);
                self.answer(ticket, Err(error));
            }
            Ok(()) => self.answer(ticket, Ok(())),
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<(), DiskError>) {
        if let Some(write) = self.writes.remove(&ticket) {
            // The transfer may be gone.
            let _gone = write.reply.send(answer);
        }
    }
}

impl Actor for BlockStore {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(TICK, |store, ctx| store.apply(RoomEvent::Tick, ctx));
    }
}

impl Handler<Keep> for BlockStore {
    type Result = ResponseActFuture<Self, Result<(), DiskError>>;

    fn handle(&mut self, Keep { tree, index, block, stored }: Keep, ctx: &mut Context<Self>) -> Self::Result {
        self.life.took(ctx);
        self.tickets += 1;
        let (ticket, bytes) = (Ticket(self.tickets), disk_bytes(&index, block));
        self.memory.remember(&tree, block, stored.clone());
        let (reply, kept) = oneshot::channel();
        self.writes.insert(ticket, Write { tree: tree.clone(), index, block, stored, reply });
        self.apply(RoomEvent::Wanted { ticket, tree, bytes }, ctx);
        Box::pin(kept.into_actor(self).map(|kept, _, _| kept.expect("each write is answered")))
    }
}

impl Handler<Load> for BlockStore {
    type Result = ResponseActFuture<Self, Result<Bytes, DiskError>>;

    fn handle(&mut self, Load { tree, index, block }: Load, ctx: &mut Context<Self>) -> Self::Result {
        self.life.took(ctx);
        if let Some(stored) = self.memory.recall(&tree, block) {
            return Box::pin(actix::fut::ready(Ok(stored)));
        }
        let loading = self.disk.load(&tree, index, block).into_actor(self);
        Box::pin(loading.map(move |loaded, store, _| {
            if let Ok(stored) = &loaded {
                store.memory.remember(&tree, block, stored.clone());
            }
            loaded
        }))
    }
}

impl Handler<Found> for BlockStore {
    type Result = ();

    fn handle(&mut self, Found { tree, disk_bytes: bytes }: Found, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.apply(RoomEvent::Found { tree, bytes }, ctx);
    }
}

impl Handler<Stands> for BlockStore {
    type Result = ();

    fn handle(&mut self, Stands { tree, standing }: Stands, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.apply(RoomEvent::Stands { tree, standing }, ctx);
    }
}

impl Handler<Advised> for BlockStore {
    type Result = ();

    fn handle(&mut self, Advised(trees): Advised, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.apply(RoomEvent::Advised { trees }, ctx);
    }
}

impl Handler<Removed> for BlockStore {
    type Result = ();

    fn handle(&mut self, Removed(tree): Removed, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.memory.forget_all(&tree);
        self.apply(RoomEvent::Removed { tree }, ctx);
    }
}

impl Handler<Release> for BlockStore {
    type Result = ();

    fn handle(&mut self, Release { tree, disk_bytes: bytes }: Release, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.apply(RoomEvent::Refund { tree, bytes }, ctx);
    }
}

impl Handler<Distrust> for BlockStore {
    type Result = ();

    fn handle(&mut self, Distrust { tree, block }: Distrust, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.memory.forget(&tree, block);
    }
}

impl Handler<Observe> for BlockStore {
    type Result = Snapshot;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> Snapshot {
        self.room.observe(self.memory.observe(Snapshot::new("up")))
    }
}

/// As often as the agent has something to say about its images.
macro_rules! no_hops {
    ($($message:ty),*) => {$(
        impl Flow for $message {
            fn hop(&self) -> Option<Hop<'_>> {
                None
            }
        }
    )*};
}

no_hops!(Found, Stands, Advised, Removed);
