//! What a transfer can be told. Events of upstreams are `agent::world::FromUpstream`.

use super::{
    core::{ChildId, Stalls, TransferCore},
    rest::Wish,
};
use crate::{
    agent::world::ChildLink,
    block_store::BlockStore,
    id::{BlockId, Epoch, ImageId, RequestId, StartId, TreeId, VmId},
    support::{Flow, Hop, micros},
    wire::{
        control::{
            BytesBySource, HeldTree, OriginAnswer, Place, Preheated, StartReport, Step, Waits, Warmth,
            WorstStall,
        },
        peer::{Reach, Refusal, Urgency},
    },
};
use actix::prelude::*;
use std::collections::BTreeMap;
use tokio::time::Instant;

/// A new place in the tree, or fresh hints for the present one.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Placed(pub Place);

/// The manager says whether this VM may read the origin.
#[derive(Message)]
#[rtype(result = "()")]
pub struct OriginAnswered(pub OriginAnswer);

/// What is known of the next start here, before its place.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ahead {
    /// What it will read, in that order; none if only the index may know.
    pub hot: Vec<BlockId>,
    /// Whether what it reads is to be recorded.
    pub record: bool,
}
/// How much of the image this VM is to hold.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wished {
    pub wish: Wish,
    /// The request behind what reads wait for: of the first start under way on the image that has one.
    pub request: Option<RequestId>,
}

/// Reads on this VM wait for these blocks.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Demand(pub Vec<BlockId>);

/// The holder has mounted the image, or could not.
#[derive(Message)]
#[rtype(result = "()")]
pub struct MountEnded(pub Result<(), String>);

/// The holder was lost and is there again: the image must be mounted anew if it is not `mounted`.
#[derive(Message)]
#[rtype(result = "()")]
pub struct HolderBack {
    pub is_mounted: bool,
}

/// The cache's actor was rebuilt.
#[derive(Message)]
#[rtype(result = "()")]
pub struct StoreBack(pub Addr<BlockStore>);

/// An instance follows the image. What has happened already is told at once.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Attach {
    pub start: StartId,
    pub events: Recipient<FromImage>,
}

/// Something happened to an image that instances wait for.
#[derive(Message, Debug, Clone, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct FromImage {
    pub image: ImageId,
    pub event: ImageEvent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageEvent {
    Step(Step),
    Mounted,
    MountFailed(String),
    /// Why nothing arrives at the moment; not final.
    Trouble(String),
    /// The cache did not take a block: reads of it fail.
    NotKept(String),
}

/// What a transfer has done so far.
#[derive(Message)]
#[rtype(result = "TransferReport")]
pub struct GetReport;

#[derive(Debug, Clone, Default, PartialEq, Eq, MessageResponse)]
pub struct TransferReport {
    pub blocks_present: u32,
    pub blocks_total: u32,
    /// Blocks that starts read and that are not there; None without an index.
    pub hot_missing: Option<u32>,
    pub bytes: BytesBySource,
    pub stalls: Stalls,
    pub waits: Waits,
    pub worst_stall: Option<WorstStall>,
}

impl TransferReport {
    pub fn of(core: &TransferCore, now: Instant) -> Self {
        Self {
            blocks_present: u32::try_from(core.present().len()).unwrap_or(u32::MAX),
            blocks_total: core.index().map_or(0, |index| index.block_count()),
            hot_missing: core.hot_missing(),
            bytes: core.bytes(),
            stalls: core.stalls(now),
            waits: core.waits(),
            worst_stall: core.worst_stall().cloned(),
        }
    }

    /// Of two images together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            blocks_present: self.blocks_present.saturating_add(other.blocks_present),
            blocks_total: self.blocks_total.saturating_add(other.blocks_total),
            hot_missing: self.hot_missing.zip(other.hot_missing).map(|(own, more)| own.saturating_add(more)),
            bytes: self.bytes.plus(other.bytes),
            stalls: self.stalls.plus(other.stalls),
            waits: self.waits.plus(other.waits),
            worst_stall: [self.worst_stall, other.worst_stall]
                .into_iter()
                .flatten()
                .max_by_key(|stall| stall.us),
        }
    }

    /// As a member tells the manager.
    pub fn held(self, tree: TreeId, epoch: Epoch, place: u64, preheat: Option<(u64, Warmth)>) -> HeldTree {
        let preheated = preheat.and_then(|(order, what)| self.preheated(order, what));
        let Self { blocks_present, blocks_total, hot_missing: _, bytes, stalls, waits: _, worst_stall: _ } =
            self;
        let longest_stall_us = micros(stalls.longest);
        HeldTree { tree, epoch, place, blocks_present, blocks_total, bytes, longest_stall_us, preheated }
    }

    fn preheated(&self, order: u64, what: Warmth) -> Option<Preheated> {
        let hot = self.hot_missing?;
        let missing = match what {
            Warmth::Hot => hot,
            Warmth::Whole => self.blocks_total.saturating_sub(self.blocks_present),
        };
        Some(Preheated { order, missing })
    }

    /// What one start took, when this was the report before its order.
    pub fn start_report(&self, steps_us: BTreeMap<Step, u64>, after: &Self) -> StartReport {
        let before = self;
        StartReport {
            steps_us,
            bytes: BytesBySource {
                parent: after.bytes.parent.saturating_sub(before.bytes.parent),
                ancestor: after.bytes.ancestor.saturating_sub(before.bytes.ancestor),
                origin: after.bytes.origin.saturating_sub(before.bytes.origin),
            },
            stalls: after.stalls.count.saturating_sub(before.stalls.count),
            stalled_us: micros(after.stalls.together.saturating_sub(before.stalls.together)),
            longest_stall_us: micros(after.stalls.longest),
            waits: after.waits.since(before.waits),
            worst_stall: after.worst_stall.clone().filter(|stall| before.worst_stall.as_ref() != Some(stall)),
        }
    }
}

/// A child has shown a valid capability.
#[derive(Message)]
#[rtype(result = "Result<Opened, Refusal>")]
pub struct OpenChild {
    pub vm: VmId,
    pub link: ChildLink,
}

pub struct Opened {
    pub child: ChildId,
    pub requests: Recipient<FromChild>,
}

/// A child said something. Bounded by the frames that its connection reads at once.
#[derive(Message)]
#[rtype(result = "()")]
pub struct FromChild {
    pub child: ChildId,
    pub event: ChildEvent,
}

pub enum ChildEvent {
    WantsIndex {
        reach: Reach,
    },
    Wants {
        blocks: Vec<BlockId>,
        urgency: Urgency,
        path: Vec<VmId>,
        reach: Reach,
        request: Option<RequestId>,
    },
    /// Reads wait for what it has asked for ahead.
    Hurries(Vec<BlockId>),
    SaysCorrupt(BlockId),
    /// Its connection has sent a block.
    Sent(Urgency),
    Gone,
}

/// Messages that only say that something has happened, or when.
macro_rules! hops {
    ($($message:ty => $name:literal),*) => {$(
        impl Flow for $message {
            fn hop(&self) -> Option<Hop<'_>> {
                Some(Hop { message: $name, about: &"", permit: "" })
            }
        }
    )*};
}

hops!(MountEnded => "MountEnded", HolderBack => "HolderBack", StoreBack => "StoreBack");

impl Flow for Placed {
    fn hop(&self) -> Option<Hop<'_>> {
        Some(Hop { message: "Placed", about: &self.0.tree, permit: "" })
    }
}

impl Flow for Attach {
    fn hop(&self) -> Option<Hop<'_>> {
        Some(Hop { message: "Attach", about: &self.start, permit: "instance" })
    }
}

impl Flow for FromImage {
    fn hop(&self) -> Option<Hop<'_>> {
        let message = match self.event {
            ImageEvent::Mounted => "Mounted",
            ImageEvent::MountFailed(_) => "MountFailed",
            ImageEvent::NotKept(_) => "NotKept",
            ImageEvent::Step(_) | ImageEvent::Trouble(_) => return None,
        };
        Some(Hop { message, about: &"", permit: "" })
    }
}

/// As often as a start of the image becomes ready or ends.
impl Flow for Wished {
    fn hop(&self) -> Option<Hop<'_>> {
        None
    }
}

impl Flow for Ahead {
    fn hop(&self) -> Option<Hop<'_>> {
        None
    }
}

/// As many as reads wait.
impl Flow for Demand {
    fn hop(&self) -> Option<Hop<'_>> {
        None
    }
}
