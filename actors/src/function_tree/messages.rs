//! What a function tree and its parent are told.

use super::core::Event;
use crate::{
    id::{BlockId, FunctionName, RequestId, StartId, TreeId, VmId},
    image::BlockImage,
    model::TreeView,
    resources::Resources,
    scheduler::Reply,
    support::{Flow, Hop, Slot},
    wire::control::{Mode, Warmth},
};
use actix::prelude::*;
use std::{collections::BTreeMap, fmt::Display, sync::Arc};

/// For one tree. Joins, preheats and reports make the tree when it is not there; anything else is dropped then.
/// Bounded by the starts that the scheduler lets in and by the slots of agents' sessions.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ToTree {
    pub tree: TreeId,
    pub event: Event,
    pub slot: Slot,
}

impl Flow for ToTree {
    fn hop(&self) -> Option<Hop<'_>> {
        let slot = if self.slot.is_some() { "session slot" } else { "" };
        let (message, about, permit): (_, &dyn Display, _) = match &self.event {
            Event::Join { start, .. } => ("Join", &start.start, "start waiting"),
            Event::Preheat { vm, .. } => ("Preheat", vm, ""),
            Event::Reported { vm, .. } => ("Reported", vm, slot),
            Event::Ready { vm } => ("Ready", vm, slot),
            Event::Gone { vm } => ("Gone", vm, slot),
            Event::Leave { vm } => ("Leave", vm, ""),
            Event::UpstreamLost { by, .. } => ("UpstreamLost", by, slot),
            Event::OriginWanted { vm, .. } => ("OriginWanted", vm, slot),
            Event::Dissolve => ("Dissolve", &self.tree, ""),
            // Heartbeats and time.
            Event::Held { .. } | Event::Gathered | Event::Tick => return None,
        };
        Some(Hop { message, about, permit })
    }
}

/// For the parent of all trees.
#[derive(Message)]
#[rtype(result = "()")]
pub enum ToForest {
    /// What a tree looks like now.
    View { tree: TreeId, reply: Reply<TreeView> },
    /// The VM is gone from all trees, and nobody knows from which.
    VmGone { vm: VmId },
    /// All who may be members of that tree, or of any, have reported.
    Gathered { tree: Option<TreeId> },
}

impl Flow for ToForest {
    fn hop(&self) -> Option<Hop<'_>> {
        match self {
            Self::View { .. } | Self::Gathered { .. } => None,
            Self::VmGone { vm } => Some(Hop { message: "VmGone", about: vm, permit: "" }),
        }
    }
}

/// An event, from the parent to the tree it looked up.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Happened {
    pub event: Event,
    pub slot: Slot,
}

/// Its way to the parent has been noted.
impl Flow for Happened {
    fn hop(&self) -> Option<Hop<'_>> {
        None
    }
}

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct GetView(pub Reply<TreeView>);

/// From a tree to its parent before anything of that epoch is sent, so that a rebuilt tree continues
/// behind it. Bounded by what the tree itself is told.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct EpochRaised {
    pub tree: TreeId,
    pub counter: u64,
}

/// What the image of a tree is to a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// All that its container is made of.
    Whole,
    /// Its container's root file system; another tree has its code.
    Runtime,
    /// Its code.
    Code,
}

/// A start as the scheduler decided it; the tree adds the place.
#[derive(Debug, Clone, PartialEq)]
pub struct StartDraft {
    pub start: StartId,
    pub request: Option<RequestId>,
    pub function: FunctionName,
    pub image: Arc<BlockImage>,
    pub role: Role,
    pub env: BTreeMap<String, String>,
    pub command: Option<Vec<String>>,
    pub needs: Resources,
    pub probe_path: String,
    pub mode: Mode,
    pub ready_deadline_ms: u64,
    /// Whether it is to be recorded what it reads.
    pub record: bool,
    /// What it will read, in that order.
    pub hot: Arc<[BlockId]>,
}

/// What a VM is to hold before any start, as the scheduler decided it; the tree adds the place.
#[derive(Debug, Clone, PartialEq)]
pub struct PreheatDraft {
    pub number: u64,
    pub image: Arc<BlockImage>,
    pub what: Warmth,
    /// What starts read, in that order.
    pub hot: Arc<[BlockId]>,
}
