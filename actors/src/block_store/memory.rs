//! The memory part of the cache: it forgets the block that was used longest ago.

use crate::{
    id::{BlockId, TreeId},
    support::Snapshot,
};
use bytes::Bytes;
use std::collections::BTreeMap;

pub struct MemoryCore {
    memory_bytes_max: u64,
    memory_bytes: u64,
    recent: BTreeMap<u64, (TreeId, BlockId)>,
    blocks: BTreeMap<(TreeId, BlockId), (u64, Bytes)>,
    clock: u64,
}

impl MemoryCore {
    pub fn new(memory_bytes_max: u64) -> Self {
        Self { memory_bytes_max, memory_bytes: 0, recent: BTreeMap::new(), blocks: BTreeMap::new(), clock: 0 }
    }

    /// Adds what is used of the limit.
    pub fn observe(&self, snapshot: Snapshot) -> Snapshot {
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        snapshot.queue("memory bytes", bytes(self.memory_bytes), bytes(self.memory_bytes_max))
    }

    pub fn remember(&mut self, tree: &TreeId, block: BlockId, stored: Bytes) {
        let length = stored.len() as u64;
        if length > self.memory_bytes_max {
            return;
        }
        self.forget(tree, block);
        self.clock += 1;
        self.recent.insert(self.clock, (tree.clone(), block));
        self.blocks.insert((tree.clone(), block), (self.clock, stored));
        self.memory_bytes += length;
        while self.memory_bytes > self.memory_bytes_max {
            let (_, (tree, block)) = self.recent.first_key_value().expect("bytes are of some block");
            let (tree, block) = (tree.clone(), *block);
            self.forget(&tree, block);
        }
    }

    /// Forgets all blocks of an image.
    pub fn forget_all(&mut self, tree: &TreeId) {
        let of_tree = (tree.clone(), BlockId(0))..=(tree.clone(), BlockId(u32::MAX));
        for (_, block) in self.blocks.range(of_tree).map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.forget(tree, block);
        }
    }

    pub fn recall(&mut self, tree: &TreeId, block: BlockId) -> Option<Bytes> {
        let stored = self.blocks.get(&(tree.clone(), block)).map(|(_, stored)| stored.clone())?;
        self.remember(tree, block, stored.clone());
        Some(stored)
    }

    pub fn forget(&mut self, tree: &TreeId, block: BlockId) {
        if let Some((used_at, stored)) = self.blocks.remove(&(tree.clone(), block)) {
            self.recent.remove(&used_at);
            self.memory_bytes -= stored.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Digest;

    fn tree() -> TreeId {
        TreeId { tenant: "acme".parse().expect("valid"), image: Digest::from_bytes([1; 32]) }
    }

    #[test]
    fn memory_keeps_what_was_used_last() {
        let mut core = MemoryCore::new(300);
        for block in 0..3 {
            core.remember(&tree(), BlockId(block), Bytes::from(vec![0; 100]));
        }
        assert!(core.recall(&tree(), BlockId(0)).is_some());
        core.remember(&tree(), BlockId(3), Bytes::from(vec![0; 100]));
        assert!(core.recall(&tree(), BlockId(1)).is_none());
        assert!(core.recall(&tree(), BlockId(0)).is_some());
        core.remember(&tree(), BlockId(4), Bytes::from(vec![0; 301]));
        assert!(core.recall(&tree(), BlockId(4)).is_none());
    }
}
