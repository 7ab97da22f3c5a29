//! Asks upstreams for what is wanted, the most urgent first, as far as windows are open.

use super::{Effect, ROUNDS_BEFORE_ORIGIN, TransferCore, TransferLimits, Want};
use crate::{
    block_transfer::links::{Choice, Link, Query},
    id::{BlockId, VmId},
    wire::{
        control::Upstream,
        peer::{Reach, Urgency},
    },
};
use std::collections::BTreeMap;
use tokio::time::Instant;

impl TransferCore {
    /// Whoever was asked by a VM further below must know that it is nearer to the root now.
    pub(super) fn ask_again(&self, effects: &mut Vec<Effect>) {
        for (upstream, link) in self.links.open_links().filter(|(upstream, _)| **upstream != Upstream::Origin)
        {
            if link.is_index_asked {
                let reach = self.links.reach(upstream, BlockId(0));
                effects.push(Effect::AskIndex { upstream: upstream.clone(), reach });
            }
            for &block in link.in_flight.keys() {
                let Some(want) = self.wanted.get(&block) else { continue };
                effects.push(Effect::Ask {
                    upstream: upstream.clone(),
                    blocks: vec![block],
                    urgency: want.urgency,
                    path: self.path_through(want),
                    reach: self.links.reach(upstream, block),
                });
            }
        }
    }

    pub(super) fn path_through(&self, want: &Want) -> Vec<VmId> {
        want.path.iter().cloned().chain([self.own.clone()]).collect()
    }

    /// Asks for what is wanted, as far as windows are open.
    pub(super) fn pump(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.check_found(effects);
        let (stall, is_needed) = (self.limits.stall, self.index.is_none() || !self.wanted.is_empty());
        for upstream in self.links.due_connections(now, stall, is_needed) {
            effects.push(Effect::Connect(upstream));
        }
        if self.index.is_none() {
            match self.links.choose_for_index(now, stall) {
                Choice::Ask(upstream) => {
                    let reach = self.links.reach(&upstream, BlockId(0));
                    effects.push(Effect::AskIndex { upstream, reach });
                }
                Choice::Connect(upstream) => effects.push(Effect::Connect(upstream)),
                Choice::Wait | Choice::Nobody => {}
            }
            return;
        }
        let mut asks: BTreeMap<(Urgency, Upstream, Vec<VmId>, Reach), Vec<BlockId>> = BTreeMap::new();
        let (mut chosen, mut exhausted) = (Vec::new(), Vec::new());
        let TransferLimits { in_flight_blocks_min: min, in_flight_blocks_max: max, .. } = self.limits;
        let mut arriving = self.links.in_flight() + self.writing.len();
        for &(urgency, _, block) in &self.queue {
            // Demands may use what read-ahead leaves of the whole, and whole windows of read-ahead besides; read-ahead
            // what the background leaves.
            let has_room = |link: &Link| match urgency {
                Urgency::Demand => true,
                Urgency::Prefetch | Urgency::Background => link.window.has_room(min, now),
            };
            let is_full = match urgency {
                Urgency::Demand => arriving >= max,
                Urgency::Prefetch | Urgency::Background => {
                    let left = if urgency == Urgency::Background { 2 * min } else { min };
                    let mut open = self.links.open_links().map(|(_, link)| link).peekable();
                    arriving + left >= max || (open.peek().is_some() && !open.any(has_room))
                }
            };
            if is_full {
                break; // what follows is no more urgent
            }
            let Some(want) = self.wanted.get_mut(&block) else {
                continue;
            };
            // Leave to read the origin is for what is needed.
            let may_read_origin = urgency != Urgency::Background && self.origin.may_read(now);
            let query =
                Query { block, refused: &want.refused, path: &want.path, may_read_origin, now, stall };
            let upstream = match self.links.choose(query, has_room) {
                Choice::Ask(upstream) => upstream,
                Choice::Wait => continue,
                Choice::Connect(upstream) => {
                    effects.push(Effect::Connect(upstream));
                    continue;
                }
                Choice::Nobody => {
                    exhausted.push(block);
                    continue;
                }
            };
            if upstream == Upstream::Origin && !self.links.is_root_of(block) {
                self.origin.spend();
            }
            let entry = self.index.as_ref().and_then(|index| index.entry(block));
            let bytes = entry.map_or(0, |entry| u64::from(entry.stored_bytes));
            self.links.ask(&upstream, (block, bytes), min, now);
            arriving += 1;
            want.asked = Some(upstream.clone());
            chosen.push(block);
            let reach = self.links.reach(&upstream, block);
            let path: Vec<VmId> = want.path.iter().cloned().chain([self.own.clone()]).collect();
            asks.entry((urgency, upstream, path, reach)).or_default().push(block);
        }
        for block in chosen {
            self.dequeue(block);
        }
        // Refusals are common while places are on their way; only who is refused again asks for leave.
        let is_stuck = |block: &&BlockId| {
            let want = &self.wanted[*block];
            want.rounds >= ROUNDS_BEFORE_ORIGIN && want.urgency == Urgency::Demand
        };
        let stuck = exhausted.iter().filter(is_stuck).filter(|block| !self.links.is_root_of(**block)).count();
        if stuck > 0 && self.origin.ask(now) {
            effects.push(Effect::WantOrigin { blocks: u32::try_from(stuck).unwrap_or(u32::MAX) });
        }
        for block in exhausted {
            self.exhausted(block, now, effects);
        }
        for ((urgency, upstream, path, reach), blocks) in asks {
            effects.push(Effect::Ask { upstream, blocks, urgency, path, reach });
        }
        self.hurry(effects);
    }

    /// Tells upstreams what reads wait for now, so that it overtakes what is not waited for.
    pub(super) fn hurry(&mut self, effects: &mut Vec<Effect>) {
        let mut hurried: BTreeMap<&Upstream, Vec<BlockId>> = BTreeMap::new();
        for block in std::mem::take(&mut self.hurried) {
            let asked = self.wanted.get(&block).and_then(|want| want.asked.as_ref());
            if let Some(upstream) = asked {
                hurried.entry(upstream).or_default().push(block);
            }
        }
        for (upstream, blocks) in hurried {
            effects.push(Effect::Hurry { upstream: upstream.clone(), blocks });
        }
    }
}
