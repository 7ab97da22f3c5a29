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

use super::{
    children::Child,
    found::Found,
    links::{Choice, Link, LinkState, Links, Query},
    origin::OriginPass,
    read_ahead::ReadAhead,
    rest::{Rest, Wish},
};
use crate::{
    id::{BlockId, Epoch, VmId},
    image::Index,
    support::Snapshot,
    wire::{
        control::{BytesBySource, OriginAnswer, Seat, Step, Upstream},
        peer::{NotServed, Reach, Urgency},
    },
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// The bounds of one transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferLimits {
    /// Blocks that one upstream may be asked for before anything is known of its speed.
    pub in_flight_blocks_min: usize,
    /// Blocks asked of all upstreams and not on disk yet. The last `in_flight_blocks_min` are for demands.
    pub in_flight_blocks_max: usize,
    /// Blocks that one child may wait for.
    pub queued_blocks_max: usize,
    /// Blocks given to a child's connection and not sent yet, demands and read-ahead each.
    pub unsent_blocks_max: usize,
    pub children_max: usize,
    pub read_ahead_blocks_max: u32,
    /// VMs that a demand may pass.
    pub hops_max: usize,
    /// Silence of an upstream after which the next is tried.
    pub stall: Duration,
    /// How long a child waits for the place that makes this VM its parent.
    pub early_child: Duration,
    /// Blocks that a child of the root may read from the origin when the manager does not answer.
    pub origin_share_blocks: u32,
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// After it a want is given up.
    pub read_deadline: Duration,
}

impl TransferLimits {
    /// What `config/default.toml` says. A test of the settings holds them equal.
    pub const SHIPPED: Self = Self {
        in_flight_blocks_min: 8,
        in_flight_blocks_max: 64,
        queued_blocks_max: 64,
        unsent_blocks_max: 4,
        children_max: 16,
        read_ahead_blocks_max: 8,
        hops_max: 64,
        stall: Duration::from_millis(400),
        early_child: Duration::from_secs(1),
        origin_share_blocks: 16,
        retry_min: Duration::from_millis(50),
        retry_max: Duration::from_millis(500),
        read_deadline: Duration::from_secs(30),
    };
}

impl TransferLimits {
    /// How long an upstream that says that it waits is believed: there is time for parent, grandparent and leave
    /// to read the origin before a read fails.
    fn patience(&self) -> Duration {
        (self.read_deadline / 4).max(self.stall)
    }
}

/// Times that a block is refused by everyone before leave is asked to read the origin: a fraction of a second.
const ROUNDS_BEFORE_ORIGIN: u32 = 2;

/// A child's connection. A child that comes back gets a new number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildId(pub u64);

#[derive(Debug)]
pub enum Event {
    /// A new place in the tree, or the first.
    Placed {
        epoch: Epoch,
        stripes: Vec<Vec<Upstream>>,
        seat: Seat,
    },
    Opened {
        upstream: Upstream,
    },
    /// The connection could not be made, was refused, or ended.
    Lost {
        upstream: Upstream,
    },
    /// The index is there; its digest was checked.
    IndexArrived {
        index: Arc<Index>,
    },
    /// Stored bytes, checked against the index (invariant 5). What came at once comes as one event, so that what
    /// is asked for next is asked for at once as well: the origin gives blocks in a row for one request.
    Arrived {
        upstream: Upstream,
        blocks: Vec<(BlockId, Bytes)>,
    },
    /// What came did not have the hash of the index.
    Corrupt {
        upstream: Upstream,
        block: BlockId,
    },
    NotServed {
        upstream: Upstream,
        block: BlockId,
        reason: NotServed,
    },
    /// The upstream lives, but waits itself.
    UpstreamWaits {
        upstream: Upstream,
    },
    /// The manager's answer to `OriginWanted`.
    OriginAnswered {
        answer: OriginAnswer,
    },
    /// Plain and stored bytes are in the cache.
    Kept {
        block: BlockId,
    },
    /// The cache could not take the block.
    NotKept {
        block: BlockId,
    },
    /// A block that was found on disk was verified, or is not what the index says.
    Checked {
        block: BlockId,
        is_whole: bool,
    },
    /// The cache has lost the block.
    Dropped {
        block: BlockId,
    },
    /// The holder takes a block for present that is damaged.
    Damaged {
        block: BlockId,
    },
    /// A start here will read these blocks, in this order. None: it is not known what it will read, but for
    /// what the index says.
    Ahead {
        blocks: Vec<BlockId>,
    },
    /// How much of the image this VM is to hold.
    Wished {
        wish: Wish,
    },
    /// Reads on this VM wait for these blocks.
    Demanded {
        blocks: Vec<BlockId>,
    },
    ChildOpened {
        child: ChildId,
        vm: VmId,
    },
    ChildWantsIndex {
        child: ChildId,
        reach: Reach,
    },
    ChildWanted {
        child: ChildId,
        blocks: Vec<BlockId>,
        urgency: Urgency,
        path: Vec<VmId>,
        reach: Reach,
    },
    /// Reads wait for what the child has asked for ahead.
    ChildHurries {
        child: ChildId,
        blocks: Vec<BlockId>,
    },
    /// The child's connection has sent a block, or could not be given one that was to be served.
    ChildSent {
        child: ChildId,
        urgency: Urgency,
    },
    ChildLost {
        child: ChildId,
    },
    Tick,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Connect(Upstream),
    Disconnect(Upstream),
    AskIndex {
        upstream: Upstream,
        reach: Reach,
    },
    Ask {
        upstream: Upstream,
        blocks: Vec<BlockId>,
        urgency: Urgency,
        path: Vec<VmId>,
        reach: Reach,
    },
    /// Reads wait now for what this upstream VM was asked for ahead.
    Hurry {
        upstream: Upstream,
        blocks: Vec<BlockId>,
    },
    /// Tells an upstream VM that its copy of the block is bad.
    TellCorrupt {
        upstream: Upstream,
        block: BlockId,
    },
    Keep {
        block: BlockId,
        stored: Bytes,
    },
    /// Verifies a block that was found on disk. Answered by `Checked`.
    Check {
        block: BlockId,
    },
    /// Without bytes: they are in the cache. Answered by `ChildSent`.
    Serve {
        child: ChildId,
        block: BlockId,
        urgency: Urgency,
        stored: Option<Bytes>,
    },
    ServeIndex {
        child: ChildId,
    },
    NotServed {
        child: ChildId,
        block: BlockId,
        reason: NotServed,
    },
    TellWaiting {
        child: ChildId,
        silent: Duration,
    },
    RefuseChild {
        child: ChildId,
    },
    /// The holder's reads of these blocks can go on.
    Present {
        blocks: Vec<BlockId>,
    },
    /// The holder's reads of these blocks fail.
    Unavailable {
        blocks: Vec<BlockId>,
    },
    Step(Step),
    /// Everything that a mount reads is there.
    Mount,
    /// Nobody serves this VM, which is no root: the manager is asked whether it may read the origin.
    WantOrigin {
        blocks: u32,
    },
    /// The manager is told that an upstream does not serve.
    ReportLost {
        vm: VmId,
    },
}

/// Somebody waits for a block, or will.
#[derive(Debug)]
pub(super) struct Want {
    since: Instant,
    pub(super) urgency: Urgency,
    /// Reads on this VM wait.
    pub(super) is_read: bool,
    pub(super) children: BTreeSet<ChildId>,
    /// VMs that the demand has passed before this one.
    pub(super) path: BTreeSet<VmId>,
    pub(super) asked: Option<Upstream>,
    /// Upstreams that said no.
    refused: BTreeSet<Upstream>,
    /// Times that all upstreams had said no.
    rounds: u32,
    /// Not asked before.
    not_before: Option<Instant>,
}

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
    stalls: Stalls,
}

/// Reads on this VM that had to wait for a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stalls {
    pub count: u32,
    /// The waits of all reads that have ended.
    pub together: Duration,
    /// The longest wait of one read.
    pub longest: Duration,
}

impl Stalls {
    /// Of two images together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            count: self.count.saturating_add(other.count),
            together: self.together + other.together,
            longest: self.longest.max(other.longest),
        }
    }

    fn ended(&mut self, wait: Duration) {
        self.together += wait;
        self.longest = self.longest.max(wait);
    }
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

    /// The longest wait counts while it lasts.
    pub fn stalls(&self, now: Instant) -> Stalls {
        let waiting = self.wanted.values().filter(|want| want.is_read);
        let longest = waiting.map(|want| now.duration_since(want.since)).max().unwrap_or_default();
        Stalls { longest: longest.max(self.stalls.longest), ..self.stalls }
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

    /// Wants the next blocks of the rest of the image, if this VM is to hold it.
    fn want_rest(&mut self, now: Instant) {
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
    fn hot_end(&self, index: &Index) -> u32 {
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
    fn note_whole(&mut self, effects: &mut Vec<Effect>) {
        let count = self.index.as_ref().map(|index| index.block_count() as usize);
        if !self.is_whole && count == Some(self.present.len()) {
            self.is_whole = true;
            effects.push(Effect::Step(Step::Whole));
        }
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

    /// Whoever was asked by a VM further below must know that it is nearer to the root now.
    fn ask_again(&self, effects: &mut Vec<Effect>) {
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

    fn path_through(&self, want: &Want) -> Vec<VmId> {
        want.path.iter().cloned().chain([self.own.clone()]).collect()
    }

    /// Wants that pause are tried at once: there is somebody new to ask.
    fn wake(&mut self, now: Instant) {
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

    /// Queues again what a connection that is gone was asked for.
    fn take_back(&mut self, link: &Link, now: Instant) {
        for &block in link.in_flight.keys() {
            if let Some(want) = self.wanted.get_mut(&block) {
                want.asked = None;
                self.enqueue(block, now);
            }
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

    /// Wants what a start will read, behind the metadata and before it reads it. The mount does not wait for it.
    fn want_ahead(&mut self, now: Instant) {
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
    fn ahead_blocks(&self) -> impl Iterator<Item = BlockId> + use<'_> {
        let count = self.index.as_ref().map_or(0, |index| index.block_count());
        let is_told = !self.ahead.is_empty();
        let packed = self.index.as_ref().filter(|_| !is_told);
        let packed = packed.map_or(0..0, |index| index.metadata_blocks()..index.hot_blocks());
        self.ahead.iter().copied().filter(move |block| block.0 < count).chain(packed.map(BlockId))
    }

    /// Wants what the mount reads, and says when it is there.
    fn want_metadata(&mut self, now: Instant, effects: &mut Vec<Effect>) {
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

    pub(super) fn want(&mut self, block: BlockId, urgency: Urgency, now: Instant) -> &mut Want {
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

    pub(super) fn enqueue(&mut self, block: BlockId, now: Instant) {
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

    pub(super) fn dequeue(&mut self, block: BlockId) {
        if let Some((urgency, sequence)) = self.queued_at.remove(&block) {
            self.queue.remove(&(urgency, sequence, block));
        }
    }

    /// Asks for what is wanted, as far as windows are open.
    fn pump(&mut self, now: Instant, effects: &mut Vec<Effect>) {
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
    fn hurry(&mut self, effects: &mut Vec<Effect>) {
        let mut hurried: BTreeMap<&Upstream, Vec<BlockId>> = BTreeMap::new();
        for block in std::mem::take(&mut self.hurried) {
            let asked = self.wanted.get(&block).and_then(|want| want.asked.as_ref());
            if let Some(upstream @ Upstream::Vm { .. }) = asked {
                hurried.entry(upstream).or_default().push(block);
            }
        }
        for (upstream, blocks) in hurried {
            effects.push(Effect::Hurry { upstream: upstream.clone(), blocks });
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
        match upstream {
            Upstream::Origin => self.bytes.origin += length,
            Upstream::Vm { .. } if self.links.is_parent(upstream, block) => self.bytes.parent += length,
            Upstream::Vm { .. } => self.bytes.ancestor += length,
        }
        if self.present.contains(&block) || self.writing.contains_key(&block) {
            return; // it came twice: an upstream that counted as lost has answered after all
        }
        self.found.remove(block);
        self.writing.insert(block, stored.clone());
        if let Some(want) = self.no_longer_wanted(block, now) {
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

    /// Ends a want because its block is here.
    pub(super) fn no_longer_wanted(&mut self, block: BlockId, now: Instant) -> Option<Want> {
        let want = self.wanted.remove(&block)?;
        self.dequeue(block);
        if want.is_read {
            self.stalls.ended(now.duration_since(want.since));
        }
        Some(want)
    }

    fn kept(&mut self, block: BlockId, now: Instant, effects: &mut Vec<Effect>) {
        self.writing.remove(&block);
        self.present.insert(block);
        self.is_kept(block, now, effects);
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
        self.cache_rests_until = Some(now + self.limits.retry_max);
        effects.push(Effect::Unavailable { blocks: vec![block] });
    }

    pub(super) fn cache_rests(&self, now: Instant) -> bool {
        self.cache_rests_until.is_some_and(|until| now < until)
    }

    /// An upstream does not give a block: the next is asked.
    fn refused(&mut self, upstream: &Upstream, block: BlockId, now: Instant) {
        self.links.refused(upstream, block, now);
        self.turn_away(upstream, block, now);
    }

    /// Asks others for what upstreams have said for too long that they wait for.
    fn doubt(&mut self, now: Instant, patience: Duration) {
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

    fn turn_away(&mut self, upstream: &Upstream, block: BlockId, now: Instant) {
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
    fn exhausted(&mut self, block: BlockId, now: Instant, effects: &mut Vec<Effect>) {
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
    pub(super) fn is_needed(&self, block: BlockId) -> bool {
        let is_packed = self.index.as_ref().is_some_and(|index| block.0 < index.hot_blocks());
        let is_known_to_be_read = is_packed || self.is_ahead.contains(&block);
        is_known_to_be_read || self.damaged.contains(&block) || self.rest.wants(block)
    }

    /// Tells all who wait that the block cannot be had.
    fn give_up(&mut self, block: BlockId, now: Instant, effects: &mut Vec<Effect>) {
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
