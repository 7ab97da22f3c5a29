//! Blocks that were on disk when the image was opened. None is used before it was verified: at once when somebody
//! wants it, else one after the other in the background.

use super::core::{Effect, TransferCore};
use crate::{id::BlockId, wire::peer::Urgency};
use std::collections::BTreeSet;
use tokio::time::Instant;

/// Blocks verified at once while somebody waits. The disk's own threads bound how many really are.
const CHECKS_MAX: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Found {
    unverified: BTreeSet<BlockId>,
    /// Of those: being verified.
    checking: BTreeSet<BlockId>,
    /// Of those: wanted, and not being verified yet.
    wanted: BTreeSet<BlockId>,
}

impl Found {
    pub fn new(unverified: BTreeSet<BlockId>) -> Self {
        Self { unverified, ..Self::default() }
    }

    pub fn blocks(&self) -> &BTreeSet<BlockId> {
        &self.unverified
    }

    /// Somebody waits for a block. False if it was not found.
    pub fn want(&mut self, block: BlockId) -> bool {
        let is_found = self.unverified.contains(&block);
        if is_found && !self.checking.contains(&block) {
            self.wanted.insert(block);
        }
        is_found
    }

    /// The next block to verify; in the background only one at a time, because starts want the CPU.
    fn next(&mut self) -> Option<BlockId> {
        let block = if self.wanted.is_empty() {
            self.unverified.first().copied().filter(|_| self.checking.is_empty())?
        } else {
            let has_room = self.checking.len() < CHECKS_MAX;
            has_room.then(|| self.wanted.pop_first()).flatten()?
        };
        self.checking.insert(block);
        Some(block)
    }

    /// False if the block does not count as found any more.
    pub fn remove(&mut self, block: BlockId) -> bool {
        self.checking.remove(&block);
        self.wanted.remove(&block);
        self.unverified.remove(&block)
    }
}

impl TransferCore {
    /// Wants what the holder serves although it is damaged. It takes no block back, and whoever reads the block
    /// gets wrong bytes until the right ones are written in their place.
    pub(super) fn want_damaged(&mut self, now: Instant) {
        if self.damaged.is_empty() || self.index.is_none() || self.cache_rests(now) {
            return;
        }
        let is_absent = |block: &&BlockId| !self.present.contains(block) && !self.writing.contains_key(block);
        let absent = self.damaged.iter().filter(is_absent).take(self.limits.in_flight_blocks_max);
        for block in absent.copied().collect::<Vec<_>>() {
            self.want(block, Urgency::Demand, now);
        }
    }

    /// Verifies what was found, as far as its turn has come.
    pub(super) fn check_found(&mut self, effects: &mut Vec<Effect>) {
        while let Some(block) = self.found.next() {
            effects.push(Effect::Check { block });
        }
    }

    pub(super) fn checked(
        &mut self,
        block: BlockId,
        is_whole: bool,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if !self.found.remove(block) {
            return; // it has come from elsewhere
        }
        if !is_whole {
            return self.enqueue(block, now);
        }
        self.present.insert(block);
        if let Some(want) = self.no_longer_wanted(block) {
            if want.is_read {
                self.stalls.ended(now.duration_since(want.since));
            }
            for child in want.children {
                self.child_answered(child, block);
                self.serve(child, block, want.urgency, effects);
            }
        }
        self.is_kept(block, now, effects);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(blocks: u32) -> Found {
        Found::new((0..blocks).map(BlockId).collect())
    }

    #[test]
    fn what_is_wanted_is_verified_first_and_the_rest_one_by_one() {
        let mut found = found(20);
        assert_eq!((found.next(), found.next()), (Some(BlockId(0)), None));
        assert!(found.want(BlockId(15)) && found.want(BlockId(0)) && !found.want(BlockId(20)));
        assert_eq!((found.next(), found.next()), (Some(BlockId(15)), None));
        assert!(found.remove(BlockId(0)) && !found.remove(BlockId(0)));
        assert_eq!(found.next(), None, "one is being verified still");
        found.remove(BlockId(15));
        assert_eq!(found.next(), Some(BlockId(1)));
    }

    #[test]
    fn few_are_verified_at_once_however_many_are_wanted() {
        let mut found = found(20);
        assert!((0..20).all(|block| found.want(BlockId(block))));
        assert_eq!(std::iter::from_fn(|| found.next()).count(), CHECKS_MAX);
    }
}
