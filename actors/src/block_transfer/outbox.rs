//! What waits to be sent to one child. Only few blocks are given to its connection at a time, so that a demand
//! does not wait behind read-ahead, and that a slow child holds numbers and not bytes.

use crate::{id::BlockId, wire::peer::Urgency};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// In the order in which they are to be sent.
    waiting: BTreeSet<(Urgency, u64, BlockId)>,
    places: BTreeMap<BlockId, (Urgency, u64)>,
    sequence: u64,
    /// Blocks that the connection was given and has not sent yet.
    unsent: BTreeMap<Urgency, usize>,
}

impl Outbox {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn contains(&self, block: BlockId) -> bool {
        self.places.contains_key(&block)
    }

    /// Adds a block; one that waits already may become more urgent.
    pub fn push(&mut self, block: BlockId, urgency: Urgency) {
        if let Some(&(present, number)) = self.places.get(&block) {
            if urgency >= present {
                return;
            }
            self.waiting.remove(&(present, number, block));
        }
        self.sequence += 1;
        self.places.insert(block, (urgency, self.sequence));
        self.waiting.insert((urgency, self.sequence, block));
    }

    /// The next block for the connection, which has at most `unsent_max` of each urgency: it lets demands
    /// overtake.
    pub fn next(&mut self, unsent_max: usize) -> Option<(BlockId, Urgency)> {
        let &(urgency, number, block) = self.waiting.first()?;
        let unsent = self.unsent.entry(urgency).or_default();
        if *unsent >= unsent_max {
            return None;
        }
        *unsent += 1;
        self.waiting.remove(&(urgency, number, block));
        self.places.remove(&block);
        Some((block, urgency))
    }

    /// The connection has sent a block, or was not given it after all.
    pub fn sent(&mut self, urgency: Urgency) {
        if let Some(unsent) = self.unsent.get_mut(&urgency) {
            *unsent = unsent.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demands_go_first_and_few_are_given_at_a_time() {
        let mut outbox = Outbox::default();
        (0..4).for_each(|block| outbox.push(BlockId(block), Urgency::Prefetch));
        assert_eq!(outbox.next(2), Some((BlockId(0), Urgency::Prefetch)));
        assert_eq!(outbox.next(2), Some((BlockId(1), Urgency::Prefetch)));
        assert_eq!(outbox.next(2), None);
        outbox.push(BlockId(9), Urgency::Demand);
        outbox.push(BlockId(3), Urgency::Demand);
        assert_eq!(outbox.next(2), Some((BlockId(9), Urgency::Demand)));
        assert_eq!(outbox.next(2), Some((BlockId(3), Urgency::Demand)));
        assert_eq!((outbox.next(2), outbox.len()), (None, 1));
        outbox.sent(Urgency::Prefetch);
        assert_eq!(outbox.next(2), Some((BlockId(2), Urgency::Prefetch)));
    }
}
