//! What happens to a transfer, and what it has done.

use crate::{
    block_transfer::rest::Wish,
    id::{BlockId, Epoch, VmId},
    image::Index,
    wire::{
        control::{OriginAnswer, Seat, Step, Upstream},
        peer::{NotServed, Reach, Urgency},
    },
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

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
    /// Reads wait now for what this upstream was asked for ahead.
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
