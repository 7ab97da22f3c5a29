//! The cache of blocks on one VM: a small part in memory for children, everything on disk.
//!
//! Decoding, hashing and disk never run on the actor's thread; answers come back as messages.

mod core;

pub use self::core::StoreCore;

use crate::{
    agent::world::{Disk, DiskError},
    id::{BlockId, TreeId},
    image::{BlockEntry, Codec, Index},
    support::{Flow, Hop, Life, Observe, Snapshot},
};
use actix::prelude::*;
use bytes::Bytes;
use std::sync::Arc;

/// Writes a verified block. The bytes count against the disk's limit from here on.
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

impl Flow for Found {
    fn hop(&self) -> Option<Hop<'_>> {
        None
    }
}

/// Blocks of an image that were found on disk when it was opened.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Found {
    pub tree: TreeId,
    pub disk_bytes: u64,
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

pub struct BlockStore {
    core: StoreCore,
    disk: Arc<dyn Disk>,
    life: Life<&'static str>,
}

impl BlockStore {
    pub fn new(
        disk: Arc<dyn Disk>,
        memory_bytes_max: u64,
        disk_bytes_max: u64,
        life: Life<&'static str>,
    ) -> Self {
        Self { core: StoreCore::new(memory_bytes_max, disk_bytes_max), disk, life }
    }
}

impl Actor for BlockStore {
    type Context = Context<Self>;
}

impl Handler<Keep> for BlockStore {
    type Result = ResponseActFuture<Self, Result<(), DiskError>>;

    fn handle(&mut self, Keep { tree, index, block, stored }: Keep, ctx: &mut Context<Self>) -> Self::Result {
        self.life.took(ctx);
        let disk_bytes = disk_bytes(&index, block);
        if !self.core.reserve(&tree, disk_bytes) {
            return Box::pin(actix::fut::ready(Err(DiskError::Full)));
        }
        self.core.remember(&tree, block, stored.clone());
        let keeping = self.disk.keep(&tree, index, block, stored).into_actor(self);
        Box::pin(keeping.map(move |kept, store, _| {
            if kept.is_err() {
                store.core.release(&tree, disk_bytes);
            }
            kept
        }))
    }
}

impl Handler<Load> for BlockStore {
    type Result = ResponseActFuture<Self, Result<Bytes, DiskError>>;

    fn handle(&mut self, Load { tree, index, block }: Load, ctx: &mut Context<Self>) -> Self::Result {
        self.life.took(ctx);
        if let Some(stored) = self.core.recall(&tree, block) {
            return Box::pin(actix::fut::ready(Ok(stored)));
        }
        let loading = self.disk.load(&tree, index, block).into_actor(self);
        Box::pin(loading.map(move |loaded, store, _| {
            if let Ok(stored) = &loaded {
                store.core.remember(&tree, block, stored.clone());
            }
            loaded
        }))
    }
}

impl Handler<Found> for BlockStore {
    type Result = ();

    fn handle(&mut self, Found { tree, disk_bytes }: Found, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.core.found(&tree, disk_bytes);
    }
}

impl Handler<Release> for BlockStore {
    type Result = ();

    fn handle(&mut self, Release { tree, disk_bytes }: Release, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.core.release(&tree, disk_bytes);
    }
}

impl Handler<Distrust> for BlockStore {
    type Result = ();

    fn handle(&mut self, Distrust { tree, block }: Distrust, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.core.forget(&tree, block);
    }
}

impl Handler<Observe> for BlockStore {
    type Result = Snapshot;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> Snapshot {
        self.core.observe(Snapshot::new("up"))
    }
}
