//! What is waited for: how a want begins, pauses, goes to another upstream and ends.

use super::{ChildId, Effect, ROUNDS_BEFORE_ORIGIN, TransferCore};
use crate::{
    block_transfer::links::Link,
    id::{BlockId, VmId},
    wire::{
        control::Upstream,
        peer::{NotServed, Urgency},
    },
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

/// Somebody waits for a block, or will.
#[derive(Debug)]
pub(in crate::block_transfer) struct Want {
    pub(in crate::block_transfer) since: Instant,
    pub(in crate::block_transfer) urgency: Urgency,
    /// Reads on this VM wait.
    pub(in crate::block_transfer) is_read: bool,
    pub(in crate::block_transfer) children: BTreeSet<ChildId>,
    /// VMs that the demand has passed before this one.
    pub(in crate::block_transfer) path: BTreeSet<VmId>,
    pub(in crate::block_transfer) asked: Option<Upstream>,
    /// Upstreams that said no.
    pub(in crate::block_transfer) refused: BTreeSet<Upstream>,
    /// Times that all upstreams had said no.
    pub(in crate::block_transfer) rounds: u32,
    /// Not asked before.
    pub(in crate::block_transfer) not_before: Option<Instant>,
}

impl TransferCore {
    /// Wants that pause are tried at once: there is somebody new to ask.
    pub(super) fn wake(&mut self, now: Instant) {
        let paused: Vec<_> = self
            .wanted
            .iter()
            .filter(|(_, want)| want.not_before.is_some())
            .map(|(block, _)| *block)
            .collect();
        for block in paused {
            self.wanted.get_mut(&block).expect("it was just there").not_before = None;
            self.enqueue(block, now);
        }
    }

    /// Queues again what a connection that is gone was asked for.
    pub(super) fn take_back(&mut self, link: &Link, now: Instant) {
        for &block in link.in_flight.keys() {
            if let Some(want) = self.wanted.get_mut(&block) {
                want.asked = None;
                self.enqueue(block, now);
            }
        }
    }

    pub(in crate::block_transfer) fn want(
        &mut self,
        block: BlockId,
        urgency: Urgency,
        now: Instant,
    ) -> &mut Want {
        let is_new = !self.wanted.contains_key(&block);
        let want = self.wanted.entry(block).or_insert_with(|| Want {
            since: now,
            urgency,
            is_read: false,
            children: BTreeSet::new(),
            path: BTreeSet::new(),
            asked: None,
            refused: BTreeSet::new(),
            rounds: 0,
            not_before: None,
        });
        let is_raised = urgency < want.urgency;
        want.urgency = want.urgency.min(urgency);
        let is_asked = want.asked.is_some();
        if is_new || (is_raised && !is_asked) {
            self.enqueue(block, now);
        } else if is_raised && urgency == Urgency::Demand {
            self.hurried.push(block);
        }
        self.wanted.get_mut(&block).expect("inserted above")
    }

    pub(in crate::block_transfer) fn enqueue(&mut self, block: BlockId, now: Instant) {
        self.dequeue(block);
        let Some(want) = self.wanted.get(&block) else {
            return;
        };
        if self.found.want(block) || want.asked.is_some() || want.not_before.is_some_and(|at| at > now) {
            return;
        }
        self.sequence += 1;
        self.queue.insert((want.urgency, self.sequence, block));
        self.queued_at.insert(block, (want.urgency, self.sequence));
    }

    pub(in crate::block_transfer) fn dequeue(&mut self, block: BlockId) {
        if let Some((urgency, sequence)) = self.queued_at.remove(&block) {
            self.queue.remove(&(urgency, sequence, block));
        }
    }

    /// Ends a want because its block is here.
    pub(in crate::block_transfer) fn no_longer_wanted(&mut self, block: BlockId) -> Option<Want> {
        let want = self.wanted.remove(&block)?;
        self.dequeue(block);
        Some(want)
    }

    /// An upstream does not give a block: the next is asked.
    pub(super) fn refused(&mut self, upstream: &Upstream, block: BlockId, now: Instant) {
        self.links.refused(upstream, block, now);
        self.turn_away(upstream, block, now);
    }

    /// Asks others for what upstreams have said for too long that they wait for.
    pub(super) fn doubt(&mut self, now: Instant, patience: Duration) {
        // Below a root nobody else may be there, and that was not over at once: leave to read the origin is asked for.
        // Those further below wait, or all of them would ask when the origin is slow.
        let rounds = if self.links.is_below_a_root() { ROUNDS_BEFORE_ORIGIN } else { 0 };
        for (upstream, blocks) in self.links.doubt(now, patience) {
            for block in blocks {
                if let Some(want) = self.wanted.get_mut(&block) {
                    want.rounds = want.rounds.max(rounds);
                }
                self.turn_away(&upstream, block, now);
            }
        }
    }

    pub(super) fn turn_away(&mut self, upstream: &Upstream, block: BlockId, now: Instant) {
        let Some(want) = self.wanted.get_mut(&block).filter(|want| want.asked.as_ref() == Some(upstream))
        else {
            return;
        };
        want.asked = None;
        want.refused.insert(upstream.clone());
        self.enqueue(block, now);
    }

    /// Every upstream has said no, or would. A demand of children is given back, because they have other
    /// upstreams; this VM's own is repeated after a pause, until its deadline.
    pub(super) fn exhausted(&mut self, block: BlockId, now: Instant, effects: &mut Vec<Effect>) {
        self.dequeue(block);
        let is_needed = self.is_needed(block);
        let want = self.wanted.get_mut(&block).expect("only what is wanted is queued");
        want.rounds += 1;
        want.refused.clear();
        // The children are told below; from then on the demand is this VM's own.
        want.path.clear();
        let pause = self.limits.retry_min.saturating_mul(2_u32.saturating_pow(want.rounds - 1));
        want.not_before = Some(now + pause.min(self.limits.retry_max));
        let is_own = want.is_read || is_needed;
        let may_wait = want.urgency != Urgency::Background;
        if may_wait && !self.links.is_root_of(block) && self.origin.may_come(now) {
            return; // children wait for what the manager says
        }
        for child in std::mem::take(&mut want.children) {
            self.child_answered(child, block);
            effects.push(Effect::NotServed { child, block, reason: NotServed::NoSource });
        }
        if !is_own {
            self.give_up(block, now, effects);
        }
    }

    /// Whether this VM wants the block for itself before it is read.
    pub(in crate::block_transfer) fn is_needed(&self, block: BlockId) -> bool {
        let is_packed = self.index.as_ref().is_some_and(|index| block.0 < index.hot_blocks());
        let is_known_to_be_read = is_packed || self.is_ahead.contains(&block);
        is_known_to_be_read || self.damaged.contains(&block) || self.rest.wants(block)
    }

    /// Tells all who wait that the block cannot be had.
    pub(super) fn give_up(&mut self, block: BlockId, now: Instant, effects: &mut Vec<Effect>) {
        self.dequeue(block);
        let Some(want) = self.wanted.remove(&block) else {
            return;
        };
        if let Some(asked) = &want.asked {
            self.links.forget(asked, block);
        }
        for child in want.children {
            self.child_answered(child, block);
            effects.push(Effect::NotServed { child, block, reason: NotServed::NoSource });
        }
        if want.is_read {
            self.stalls.ended(now.duration_since(want.since));
            effects.push(Effect::Unavailable { blocks: vec![block] });
        }
    }
}
