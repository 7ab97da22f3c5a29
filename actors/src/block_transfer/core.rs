//! Decides which blocks are asked of whom, and who is told when they come.
//!
//! ```text
//!              demand, read-ahead, child           Arrived             Kept
//!   absent ------------------------------> wanted ---------> writing ---------> present
//!                                           |   ^
//!                                  Ask      v   | Lost, Corrupt, NotServed
//!                                         in flight
//! ```
//!
//! A want leaves `wanted` in one of two ways: its block arrives, or everybody who waits is told that
//! it cannot be had. Invariants 5, 7 and 11 of the design are kept here.

mod ahead;
mod asking;
mod events;
mod limits;
mod stalls;
mod waits;
mod wants;

use self::{
    waits::{Waited, Whose},
    wants::Want,
};
use super::{
    children::Child,
    done::Done,
    found::Found,
    links::{LinkState, Links},
    origin::OriginPass,
    read_ahead::ReadAhead,
    rest::Rest,
};
use crate::{
    id::{BlockId, Epoch, VmId},
    image::Index,
    support::Snapshot,
    wire::{
        control::{BytesBySource, Seat, Step, Upstream, Waits, WorstStall},
        peer::{NotServed, Urgency},
    },
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::time::Instant;

pub use self::{
    events::{ChildId, Effect, Event},
    limits::TransferLimits,
    stalls::Stalls,
};

/// Times that a block is refused by everyone before leave is asked to read the origin: a fraction of a second.
const ROUNDS_BEFORE_ORIGIN: u32 = 2;

pub struct TransferCore {
    pub(super) own: VmId,
    pub(super) limits: TransferLimits,
    epoch: Option<Epoch>,
    pub(super) links: Links,
    origin: OriginPass,
    pub(super) index: Option<Arc<Index>>,
    /// Set once `Mount` was asked for.
    is_mountable: bool,
    pub(super) present: BTreeSet<BlockId>,
    pub(super) found: Found,
    /// What the holder serves although it is damaged.
    pub(super) damaged: BTreeSet<BlockId>,
    pub(super) writing: BTreeMap<BlockId, Bytes>,
    pub(super) wanted: BTreeMap<BlockId, Want>,
    /// Wants that are asked of nobody, in the order in which they are to be.
    queue: BTreeSet<(Urgency, u64, BlockId)>,
    queued_at: BTreeMap<BlockId, (Urgency, u64)>,
    sequence: u64,
    /// Asked for ahead, and waited for since the last event.
    hurried: Vec<BlockId>,
    pub(super) children: BTreeMap<ChildId, Child>,
    /// What a start here will read, in that order.
    ahead: Vec<BlockId>,
    is_ahead: BTreeSet<BlockId>,
    read_ahead: ReadAhead,
    rest: Rest,
    /// All blocks are there, which was said.
    is_whole: bool,
    progress_at: Instant,
    /// The cache did not take a block lately.
    cache_rests_until: Option<Instant>,
    bytes: BytesBySource,
    pub(super) stalls: Stalls,
    waited: Waited,
}

impl TransferCore {
    /// `index` and `present` are verified.
    pub fn new(
        own: VmId,
        limits: TransferLimits,
        index: Option<Arc<Index>>,
        present: BTreeSet<BlockId>,
        now: Instant,
    ) -> Self {
        Self {
            origin: OriginPass::new(&own, limits.stall, limits.origin_share_blocks),
            own,
            limits,
            epoch: None,
            links: Links::default(),
            index,
            is_mountable: false,
            present,
            found: Found::default(),
            damaged: BTreeSet::new(),
            writing: BTreeMap::new(),
            wanted: BTreeMap::new(),
            queue: BTreeSet::new(),
            queued_at: BTreeMap::new(),
            sequence: 0,
            hurried: Vec::new(),
            children: BTreeMap::new(),
            ahead: Vec::new(),
            is_ahead: BTreeSet::new(),
            read_ahead: ReadAhead::new(limits.read_ahead_blocks_max),
            rest: Rest::default(),
            is_whole: false,
            progress_at: now,
            cache_rests_until: None,
            bytes: BytesBySource::default(),
            stalls: Stalls::default(),
            waited: Waited::default(),
        }
    }

    /// With blocks that the cache held already.
    #[must_use]
    pub fn with_found(mut self, unverified: BTreeSet<BlockId>) -> Self {
        self.found = Found::new(unverified);
        self
    }

    /// Blocks that take room on disk, but for those that are being written.
    pub fn on_disk(&self) -> impl Iterator<Item = &BlockId> {
        self.present.iter().chain(self.found.blocks())
    }

    pub fn index(&self) -> Option<&Arc<Index>> {
        self.index.as_ref()
    }

    pub fn present(&self) -> &BTreeSet<BlockId> {
        &self.present
    }

    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    pub fn bytes(&self) -> BytesBySource {
        self.bytes
    }

    /// What it has done so far.
    pub fn done(&self) -> Done {
        Done::new(self.bytes, self.stalls)
    }

    /// The longest wait counts while it lasts.
    pub fn stalls(&self, now: Instant) -> Stalls {
        let waiting = self.wanted.values().filter(|want| want.is_read);
        let longest = waiting.map(|want| now.duration_since(want.since)).max().unwrap_or_default();
        let longest = longest.max(self.waited.longest(now));
        Stalls { longest: longest.max(self.stalls.longest), ..self.stalls }
    }

    pub fn waits(&self) -> Waits {
        self.waited.waits()
    }

    /// The longest wait of a read, once it is over.
    pub fn worst_stall(&self) -> Option<&WorstStall> {
        self.waited.worst()
    }

    /// What is there, and what is waited for of each bounded thing.
    pub fn observe(&self) -> Snapshot {
        let total = self.index.as_ref().map_or(0, |index| index.block_count());
        let epoch = self.epoch.unwrap_or_default();
        let connected = if self.links.is_any_open() { "connected" } else { "no upstream" };
        let present = self.present.len();
        let state =
            format!("{present} of {total} blocks, epoch {}.{}, {connected}", epoch.term, epoch.counter);
        let asked = self.wanted.values().filter(|want| want.asked.is_some()).count();
        Snapshot::new(state)
            .queue("blocks wanted", self.wanted.len(), total as usize)
            .queue("blocks in flight", asked, self.limits.in_flight_blocks_max)
            .queue("blocks on their way to the disk", self.writing.len(), total as usize)
            .queue("children", self.children.len(), self.limits.children_max)
    }

    pub fn apply(&mut self, event: Event, now: Instant, effects: &mut Vec<Effect>) {
        match event {
            Event::Placed { epoch, stripes, seat } => self.placed(epoch, stripes, &seat, now, effects),
            Event::Opened { upstream } => self.opened(&upstream, now, effects),
            Event::Lost { upstream } => self.lost(&upstream, now, effects),
            Event::IndexArrived { index } => self.index_arrived(index, now, effects),
            Event::Arrived { upstream, blocks } => {
                for (block, stored) in blocks {
                    self.arrived(&upstream, block, stored, now, effects);
                }
            }
            Event::Corrupt { upstream, block } => {
                effects.push(Effect::TellCorrupt { upstream: upstream.clone(), block });
                self.refused(&upstream, block, now);
            }
            Event::NotServed { upstream, block, reason: _ } => self.refused(&upstream, block, now),
            Event::UpstreamWaits { upstream } => self.links.heard(&upstream, now),
            Event::OriginAnswered { answer } => {
                self.origin.answered(answer, now);
                self.wake(now);
            }
            Event::Kept { block } => self.kept(block, now, effects),
            Event::NotKept { block } => self.not_kept(block, now, effects),
            Event::Checked { block, is_whole } => self.checked(block, is_whole, now, effects),
            Event::Dropped { block } => {
                if self.present.remove(&block) {
                    self.is_whole = false;
                    self.rest.missed();
                }
            }
            Event::Damaged { block } => drop(self.damaged.insert(block)),
            Event::Ahead { blocks } => {
                (self.is_ahead, self.ahead) = (blocks.iter().copied().collect(), blocks);
                self.want_ahead(now);
            }
            Event::Wished { wish } => self.rest.set(wish),
            Event::Demanded { blocks } => self.demanded(&blocks, now, effects),
            Event::ChildOpened { child, vm } => self.child_opened(child, vm, now, effects),
            Event::ChildWantsIndex { child, reach } => self.child_wants_index(child, reach, effects),
            Event::ChildWanted { child, blocks, urgency, path, reach } => {
                self.child_wanted(child, &blocks, urgency, (&path, reach), now, effects);
            }
            Event::ChildHurries { child, blocks } => self.child_hurries(child, &blocks, now, effects),
            Event::ChildSent { child, urgency } => self.child_sent(child, urgency, effects),
            Event::ChildLost { child } => self.child_lost(child),
            Event::Tick => self.tick(now, effects),
        }
        self.want_damaged(now);
        self.want_rest(now);
        self.pump(now, effects);
        self.assert_invariants();
    }

    fn placed(
        &mut self,
        epoch: Epoch,
        stripes: Vec<Vec<Upstream>>,
        seat: &Seat,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if self.epoch.is_some_and(|accepted| epoch < accepted) {
            return; // invariant 4
        }
        if self.epoch != Some(epoch) {
            self.origin.placed(self.limits.origin_share_blocks);
        }
        self.epoch = Some(epoch);
        let has_risen = self.links.rises_to(&seat.depths);
        for (upstream, link) in self.links.place(stripes, seat) {
            effects.push(Effect::Disconnect(upstream));
            self.take_back(&link, now);
        }
        self.return_to_children(effects);
        if has_risen {
            self.ask_again(effects);
        }
        self.wake(now);
        if self.index.is_some() {
            self.want_metadata(now, effects);
            self.want_ahead(now);
        }
    }

    fn opened(&mut self, upstream: &Upstream, now: Instant, effects: &mut Vec<Effect>) {
        if !self.links.open(upstream, now) {
            return effects.push(Effect::Disconnect(upstream.clone()));
        }
        effects.push(Effect::Step(Step::Connecting));
        self.wake(now);
    }

    /// Children that are not below this VM any more do not wait for it (invariant 11).
    fn return_to_children(&mut self, effects: &mut Vec<Effect>) {
        let mut returned = Vec::new();
        for (child, state) in &mut self.children {
            let lost = state.waits_for.extract_if(.., |block, reach| !self.links.is_above(*block, *reach));
            returned.extend(lost.map(|(block, _)| (*child, block)));
            state.wants_index = state.wants_index.filter(|reach| self.links.is_above(BlockId(0), *reach));
        }
        for (child, block) in returned {
            if let Some(want) = self.wanted.get_mut(&block) {
                want.children.remove(&child);
            }
            effects.push(Effect::NotServed { child, block, reason: NotServed::Loop });
        }
    }

    fn lost(&mut self, upstream: &Upstream, now: Instant, effects: &mut Vec<Effect>) {
        let (retry_min, retry_max) = (self.limits.retry_min, self.limits.retry_max);
        let Some(link) = self.links.down(upstream, now, retry_min, retry_max) else {
            return;
        };
        self.take_back(&link, now);
        if let Upstream::Vm { vm, .. } = upstream {
            effects.push(Effect::ReportLost { vm: vm.clone() });
        }
    }

    fn index_arrived(&mut self, index: Arc<Index>, now: Instant, effects: &mut Vec<Effect>) {
        if self.index.is_some() {
            return;
        }
        let count = index.block_count();
        self.index = Some(index);
        self.progress_at = now;
        self.links.index_answered();
        effects.push(Effect::Step(Step::Index));
        let beyond: Vec<_> = self.wanted.range(BlockId(count)..).map(|(block, _)| *block).collect();
        for block in beyond {
            self.give_up(block, now, effects);
        }
        for (child, state) in &mut self.children {
            if state.wants_index.take().is_some() {
                effects.push(Effect::ServeIndex { child: *child });
            }
        }
        self.want_metadata(now, effects);
        self.want_ahead(now);
    }

    fn demanded(&mut self, blocks: &[BlockId], now: Instant, effects: &mut Vec<Effect>) {
        let Some(count) = self.index.as_ref().map(|index| index.block_count()) else {
            return;
        };
        let mut there = Vec::new();
        for &block in blocks.iter().filter(|block| block.0 < count) {
            if self.present.contains(&block) {
                there.push(block);
                continue;
            }
            if self.writing.contains_key(&block) {
                self.stalls.count += u32::from(self.waited.read(block, now));
                continue; // every kept block is told
            }
            if self.cache_rests(now) {
                effects.push(Effect::Unavailable { blocks: vec![block] });
                continue;
            }
            let want = self.want(block, Urgency::Demand, now);
            if !std::mem::replace(&mut want.is_read, true) {
                // From here on the read waits; what a prefetch took before is no stall.
                want.since = now;
                self.stalls.count += 1;
            }
            for ahead in self.read_ahead.next(block) {
                let is_here = self.present.contains(&ahead) || self.writing.contains_key(&ahead);
                if ahead.0 < count && !is_here {
                    self.want(ahead, Urgency::Prefetch, now);
                }
            }
        }
        if !there.is_empty() {
            effects.push(Effect::Present { blocks: there });
        }
    }

    fn arrived(
        &mut self,
        upstream: &Upstream,
        block: BlockId,
        stored: Bytes,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.links.arrived(upstream, block, now);
        self.progress_at = now;
        let length = stored.len() as u64;
        let whose = match upstream {
            Upstream::Origin => Whose::Origin,
            Upstream::Vm { .. } if self.links.is_parent(upstream, block) => Whose::Parent,
            Upstream::Vm { .. } => Whose::Ancestor,
        };
        match whose {
            Whose::Origin => self.bytes.origin += length,
            Whose::Parent => self.bytes.parent += length,
            Whose::Ancestor => self.bytes.ancestor += length,
        }
        if self.present.contains(&block) || self.writing.contains_key(&block) {
            return; // it came twice: an upstream that counted as lost has answered after all
        }
        self.found.remove(block);
        self.writing.insert(block, stored.clone());
        let is_own = self.is_needed(block);
        if let Some(want) = self.no_longer_wanted(block) {
            if want.is_read || is_own {
                self.waited.arrived(block, (want.since, want.is_read), (upstream, whose), now);
            }
            if let Some(asked) = want.asked.as_ref().filter(|asked| *asked != upstream) {
                self.links.forget(asked, block);
            }
            for child in want.children {
                self.child_answered(child, block);
                self.serve(child, block, want.urgency, effects);
            }
        }
        effects.push(Effect::Keep { block, stored });
    }

    fn kept(&mut self, block: BlockId, now: Instant, effects: &mut Vec<Effect>) {
        self.writing.remove(&block);
        self.is_written(block, now);
        self.present.insert(block);
        self.is_kept(block, now, effects);
    }

    /// A read that waited for the block goes on, or fails.
    fn is_written(&mut self, block: BlockId, now: Instant) {
        if let Some(wait) = self.waited.written(block, now) {
            self.stalls.ended(wait);
        }
    }

    pub(super) fn is_kept(&mut self, block: BlockId, now: Instant, effects: &mut Vec<Effect>) {
        self.damaged.remove(&block);
        effects.push(Effect::Present { blocks: vec![block] });
        if !self.is_mountable {
            self.want_metadata(now, effects);
        }
        self.note_whole(effects);
    }

    /// A block that was not kept counts as absent; reads that wait for it fail rather than go round, and
    /// nothing is fetched for this VM's own sake while the cache cannot take it.
    fn not_kept(&mut self, block: BlockId, now: Instant, effects: &mut Vec<Effect>) {
        self.writing.remove(&block);
        self.is_written(block, now);
        self.cache_rests_until = Some(now + self.limits.retry_max);
        effects.push(Effect::Unavailable { blocks: vec![block] });
    }

    pub(super) fn cache_rests(&self, now: Instant) -> bool {
        self.cache_rests_until.is_some_and(|until| now < until)
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.origin.tick(now, self.links.is_below_a_root());
        let patience = self.limits.patience();
        for upstream in self.links.stalled(now, self.limits.stall, patience) {
            effects.push(Effect::Disconnect(upstream.clone()));
            self.lost(&upstream, now, effects);
        }
        self.doubt(now, patience);
        let overdue: Vec<_> = self
            .wanted
            .iter()
            .filter(|(_, want)| now.duration_since(want.since) >= self.limits.read_deadline)
            .map(|(block, _)| *block)
            .collect();
        for block in overdue {
            self.give_up(block, now, effects);
        }
        let rested: Vec<_> = self
            .wanted
            .iter_mut()
            .filter(|(_, want)| want.not_before.is_some_and(|at| at <= now))
            .map(|(block, want)| {
                want.not_before = None;
                *block
            })
            .collect();
        for block in rested {
            self.enqueue(block, now);
        }
        let silent = now.duration_since(self.progress_at);
        for (child, state) in &mut self.children {
            let waits = state.wants_index.is_some() || !state.waits_for.is_empty();
            if waits && now.duration_since(state.told_waiting_at) >= self.limits.stall / 3 {
                state.told_waiting_at = now;
                effects.push(Effect::TellWaiting { child: *child, silent });
            }
        }
        // A metadata block that was given up is wanted again: without it nothing can be mounted.
        if self.index.is_some() && !self.is_mountable && !self.cache_rests(now) {
            self.want_metadata(now, effects);
        }
    }

    fn assert_invariants(&self) {
        debug_assert!(
            self.wanted
                .keys()
                .all(|block| !self.present.contains(block) && !self.writing.contains_key(block)),
            "invariant 7: no block is both present and in flight"
        );
        debug_assert!(self.links.open_links().all(|(_, link)| {
            link.state == LinkState::Open && link.in_flight.len() <= self.limits.in_flight_blocks_max
        }));
        debug_assert!(self.queue.len() == self.queued_at.len());
        debug_assert!(
            (self.found.blocks().iter())
                .all(|block| !self.present.contains(block) && !self.writing.contains_key(block)),
            "invariant 5: what was not verified is not present"
        );
        debug_assert!(
            (self.children.values())
                .flat_map(|child| &child.waits_for)
                .all(|(block, reach)| self.links.is_above(*block, *reach)),
            "invariant 11: only VMs further below wait for this one"
        );
        debug_assert!(self.children.values().all(|child| child.queued() <= self.limits.queued_blocks_max));
    }
}
