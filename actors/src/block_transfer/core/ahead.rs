//! What this VM wants before anything reads it: metadata, the hot set, and the rest of the image.

use super::{Effect, TransferCore};
use crate::{
    block_transfer::rest::Wish,
    id::BlockId,
    image::Index,
    wire::{control::Step, peer::Urgency},
};
use tokio::time::Instant;

impl TransferCore {
    /// Wants the next blocks of the rest of the image, if this VM is to hold it.
    pub(super) fn want_rest(&mut self, now: Instant) {
        let Some(index) = self.index.as_ref().filter(|_| !self.is_whole && !self.cache_rests(now)) else {
            return;
        };
        let Some(urgency) = self.rest.wish().urgency() else { return };
        let size = (index.block_count(), u32::try_from(self.links.stripe_count()).unwrap_or(u32::MAX));
        let (wanted, writing, present) = (&self.wanted, &self.writing, &self.present);
        let is_coming = |block| wanted.contains_key(&block) || writing.contains_key(&block);
        // Half of what a child may wait for at its parent is left for what is read.
        let open_max = (self.limits.queued_blocks_max / 2).max(1);
        // Of what is only to be warm the rest counts as there.
        let (hot_end, ahead) = (self.hot_end(index), &self.is_ahead);
        let is_hot_enough = self.rest.wish() == Wish::Hot;
        let is_meant = |block: BlockId| !is_hot_enough || block.0 < hot_end || ahead.contains(&block);
        let is_here = |block| present.contains(&block) || !is_meant(block);
        let next = self.rest.take(size, open_max, (is_coming, is_here), (now, self.limits.retry_max));
        for block in next {
            if !self.writing.contains_key(&block) {
                self.want(block, urgency, now);
            }
        }
    }

    /// Where the blocks end that lie first and are read by starts: the metadata, and what is packed behind them
    /// unless it was said what starts read.
    pub(super) fn hot_end(&self, index: &Index) -> u32 {
        if self.ahead.is_empty() { index.hot_blocks() } else { index.metadata_blocks() }
    }

    /// Blocks that starts read, as far as it is known, and that are not there. None without an index.
    pub fn hot_missing(&self) -> Option<u32> {
        let index = self.index.as_ref()?;
        let (end, count) = (self.hot_end(index), index.block_count());
        let behind = self.is_ahead.range(BlockId(end)..BlockId(count.max(end))).copied();
        let missing = (0..end).map(BlockId).chain(behind).filter(|block| !self.present.contains(block));
        u32::try_from(missing.count()).ok()
    }

    /// Says once that all blocks are there.
    pub(super) fn note_whole(&mut self, effects: &mut Vec<Effect>) {
        let count = self.index.as_ref().map(|index| index.block_count() as usize);
        if !self.is_whole && count == Some(self.present.len()) {
            self.is_whole = true;
            effects.push(Effect::Step(Step::Whole));
        }
    }

    /// Wants what a start will read, behind the metadata and before it reads it. The mount does not wait for it.
    pub(super) fn want_ahead(&mut self, now: Instant) {
        if self.index.is_none() || self.cache_rests(now) {
            return;
        }
        for block in self.ahead_blocks().collect::<Vec<_>>() {
            if !self.present.contains(&block) && !self.writing.contains_key(&block) {
                self.want(block, Urgency::Prefetch, now);
            }
        }
    }

    /// In their order: what the start was said to read, else what is packed behind the metadata. Numbers that the
    /// image does not have are left out.
    pub(super) fn ahead_blocks(&self) -> impl Iterator<Item = BlockId> + use<'_> {
        let count = self.index.as_ref().map_or(0, |index| index.block_count());
        let is_told = !self.ahead.is_empty();
        let packed = self.index.as_ref().filter(|_| !is_told);
        let packed = packed.map_or(0..0, |index| index.metadata_blocks()..index.hot_blocks());
        self.ahead.iter().copied().filter(move |block| block.0 < count).chain(packed.map(BlockId))
    }

    /// Wants what the mount reads, and says when it is there.
    pub(super) fn want_metadata(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let Some(index) = self.index.clone() else {
            return;
        };
        let mut is_whole = true;
        for block in (0..index.metadata_blocks()).map(BlockId) {
            if !self.present.contains(&block) {
                is_whole = false;
                if !self.writing.contains_key(&block) {
                    self.want(block, Urgency::Demand, now);
                }
            }
        }
        if is_whole && !self.is_mountable {
            self.is_mountable = true;
            effects.push(Effect::Step(Step::Metadata));
            effects.push(Effect::Mount);
        }
        self.note_whole(effects);
    }
}
