//! What the tests of transfers share: VMs and blocks by number, and an event heap.

use crate::{
    id::{BlockId, VmId},
    image::{BLOCK_BYTES, BlockEntry, Codec, Index},
};
use bytes::Bytes;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

pub const fn ms(length: u64) -> Duration {
    Duration::from_millis(length)
}

pub fn vm(number: usize) -> VmId {
    format!("vm-{number}").parse().expect("valid")
}

pub fn number(vm: &VmId) -> usize {
    vm.as_str().strip_prefix("vm-").and_then(|number| number.parse().ok()).expect("made here")
}

pub fn stored(block: BlockId) -> Bytes {
    Bytes::from(block.0.to_le_bytes().to_vec())
}

pub fn index(blocks: u32) -> Arc<Index> {
    let entry = |block: u32| BlockEntry {
        offset: u64::from(block) * 4,
        stored_bytes: 4,
        codec: Codec::Zstd,
        hash: *blake3::hash(&stored(BlockId(block))).as_bytes(),
    };
    let entries = (0..blocks).map(entry).collect();
    Arc::new(Index::new(u64::from(blocks) * u64::from(BLOCK_BYTES), 1, entries).expect("valid"))
}

/// What will happen, and when; things of one moment happen in the order in which they were added.
pub struct Agenda<T> {
    queue: BTreeMap<(Instant, u64), T>,
    sequence: u64,
}

impl<T> Agenda<T> {
    pub fn new() -> Self {
        Self { queue: BTreeMap::new(), sequence: 0 }
    }

    pub fn add(&mut self, at: Instant, thing: T) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), thing);
    }

    pub fn next_at(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    pub fn pop(&mut self) -> Option<T> {
        self.queue.pop_first().map(|(_, thing)| thing)
    }

    pub fn clear(&mut self) {
        self.queue.clear();
    }
}
