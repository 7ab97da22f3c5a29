//! The children of a transfer: what they wait for, and what is sent to them in which order.

use super::{
    core::{ChildId, Effect, TransferCore},
    outbox::Outbox,
};
use crate::{
    id::{BlockId, VmId},
    image::BLOCKS_MAX,
    wire::{
        control::Upstream,
        peer::{NotServed, Reach, Urgency},
    },
};
use std::collections::BTreeMap;
use tokio::time::Instant;

pub(super) struct Child {
    vm: VmId,
    /// Blocks that are not here yet.
    pub waits_for: BTreeMap<BlockId, Reach>,
    /// Blocks that are here.
    outbox: Outbox,
    pub wants_index: Option<Reach>,
    pub told_waiting_at: Instant,
}

impl Child {
    /// Blocks that the child was promised.
    pub fn queued(&self) -> usize {
        self.waits_for.len() + self.outbox.len()
    }
}

impl TransferCore {
    pub(super) fn child_opened(&mut self, child: ChildId, vm: VmId, now: Instant, effects: &mut Vec<Effect>) {
        if self.children.len() >= self.limits.children_max {
            return effects.push(Effect::RefuseChild { child });
        }
        let state = Child {
            vm,
            waits_for: BTreeMap::new(),
            outbox: Outbox::default(),
            wants_index: None,
            told_waiting_at: now,
        };
        self.children.insert(child, state);
    }

    pub(super) fn child_wants_index(&mut self, child: ChildId, reach: Reach, effects: &mut Vec<Effect>) {
        let Some(state) = self.children.get_mut(&child) else {
            return;
        };
        if self.index.is_some() {
            effects.push(Effect::ServeIndex { child });
        } else if self.links.is_above(BlockId(0), reach) {
            state.wants_index = Some(reach);
        }
    }

    pub(super) fn child_wanted(
        &mut self,
        child: ChildId,
        blocks: &[BlockId],
        urgency: Urgency,
        (path, reach): (&[VmId], Reach),
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let count = self.index.as_ref().map_or(BLOCKS_MAX, |index| index.block_count());
        let hops_max = self.limits.hops_max;
        for &block in blocks {
            let is_here = self.has(block);
            let Some(state) = self.children.get_mut(&child) else {
                return;
            };
            let refuse = |reason| Effect::NotServed { child, block, reason };
            if is_here {
                if state.queued() < self.limits.queued_blocks_max || state.outbox.contains(block) {
                    self.serve(child, block, urgency, effects);
                } else {
                    effects.push(refuse(NotServed::Busy));
                }
                continue;
            }
            // A demand that has been here, or is waited for from the very child, would wait on itself; a child
            // that was only asked for what it holds answers at once.
            let asks_child =
                self.wanted.get(&block).and_then(|want| want.asked.as_ref()).is_some_and(|asked| {
                    let is_child = matches!(asked, Upstream::Vm { vm, .. } if *vm == state.vm);
                    is_child && self.links.reach(asked, block) != Reach::Held
                });
            let is_above = self.links.is_above(block, reach);
            let waits_already = state.waits_for.contains_key(&block);
            if reach == Reach::Held {
                effects.push(refuse(NotServed::NotHeld));
            } else if asks_child || !is_above || path.contains(&self.own) || path.len() >= hops_max {
                if state.waits_for.remove(&block).is_some()
                    && let Some(want) = self.wanted.get_mut(&block)
                {
                    want.children.remove(&child);
                }
                effects.push(refuse(NotServed::Loop));
            } else if !waits_already && state.queued() >= self.limits.queued_blocks_max {
                effects.push(refuse(NotServed::Busy));
            } else if block.0 >= count {
                effects.push(refuse(NotServed::NoSource));
            } else {
                state.waits_for.insert(block, reach);
                let want = self.want(block, urgency, now);
                want.children.insert(child);
                // A path that grew too long by joining would be refused, though each demand may go on.
                let joined = want.path.len() + path.iter().filter(|vm| !want.path.contains(*vm)).count();
                if want.asked.is_none() && (want.path.is_empty() || joined + 1 < hops_max) {
                    want.path.extend(path.iter().cloned());
                }
            }
        }
    }

    pub(super) fn child_answered(&mut self, child: ChildId, block: BlockId) {
        if let Some(state) = self.children.get_mut(&child) {
            state.waits_for.remove(&block);
        }
    }

    pub(super) fn child_lost(&mut self, child: ChildId) {
        let Some(state) = self.children.remove(&child) else {
            return;
        };
        for block in state.waits_for.into_keys() {
            let is_needed = self.is_needed(block);
            let Some(want) = self.wanted.get_mut(&block) else {
                continue;
            };
            want.children.remove(&child);
            // What only the lost child wanted, and nobody was asked for yet, is wanted no more.
            if want.children.is_empty() && !want.is_read && !is_needed && want.asked.is_none() {
                self.wanted.remove(&block);
                self.dequeue(block);
            }
        }
    }

    /// Reads of the child wait for these blocks: they overtake what it only asked for ahead.
    pub(super) fn child_hurries(
        &mut self,
        child: ChildId,
        blocks: &[BlockId],
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        for &block in blocks.iter().take(self.limits.queued_blocks_max) {
            let Some(state) = self.children.get_mut(&child) else {
                return;
            };
            if state.outbox.contains(block) {
                state.outbox.push(block, Urgency::Demand);
            } else if state.waits_for.contains_key(&block) {
                self.want(block, Urgency::Demand, now);
            }
        }
        self.hand_over(child, effects);
    }

    fn has(&self, block: BlockId) -> bool {
        self.present.contains(&block) || self.writing.contains_key(&block)
    }

    /// Sends a block that is here, when its turn comes.
    pub(super) fn serve(
        &mut self,
        child: ChildId,
        block: BlockId,
        urgency: Urgency,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(state) = self.children.get_mut(&child) {
            state.outbox.push(block, urgency);
            self.hand_over(child, effects);
        }
    }

    pub(super) fn child_sent(&mut self, child: ChildId, urgency: Urgency, effects: &mut Vec<Effect>) {
        if let Some(state) = self.children.get_mut(&child) {
            state.outbox.sent(urgency);
            self.hand_over(child, effects);
        }
    }

    /// Gives a child's connection as many blocks as it may have.
    fn hand_over(&mut self, child: ChildId, effects: &mut Vec<Effect>) {
        while let Some(state) = self.children.get_mut(&child)
            && let Some((block, urgency)) = state.outbox.next(self.limits.unsent_blocks_max)
        {
            if self.has(block) {
                let stored = self.writing.get(&block).cloned();
                effects.push(Effect::Serve { child, block, urgency, stored });
            } else if let Some(state) = self.children.get_mut(&child) {
                // The cache has lost it meanwhile.
                state.outbox.sent(urgency);
                effects.push(Effect::NotServed { child, block, reason: NotServed::NoSource });
            }
        }
    }
}
