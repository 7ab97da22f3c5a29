//! What happens to a tree, and what it has done.

use super::news::TreeNews;
use crate::{
    function_tree::messages::{PreheatDraft, StartDraft},
    id::{Epoch, VmId},
    wire::control::{HeldTree, OriginAnswer, Seat, Upstream},
    world::KeyHash,
};
use std::net::SocketAddr;

/// How a member is reached and recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    pub address: SocketAddr,
    pub key_hash: KeyHash,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A start on that VM, which becomes a member if it is none.
    Join { vm: VmId, contact: Contact, start: Box<StartDraft> },
    /// What that VM is to hold before any start; it becomes a member if it is none.
    Preheat { vm: VmId, contact: Contact, draft: Box<PreheatDraft> },
    /// The VM says that it holds the tree: it is or becomes a member.
    Reported { vm: VmId, contact: Contact, held: HeldTree },
    /// What a member holds has changed.
    Held { vm: VmId, held: HeldTree },
    /// A start on that VM became ready.
    Ready { vm: VmId },
    /// The VM is lost or removed, or holds the tree no more.
    Gone { vm: VmId },
    /// The VM is to leave.
    Leave { vm: VmId },
    /// `by` is not served by its upstream `vm`.
    UpstreamLost { by: VmId, epoch: Epoch, vm: VmId },
    /// Nobody serves the VM, which waits for so many blocks.
    OriginWanted { vm: VmId, blocks: u32 },
    /// All who may be members have reported, or the time for that is over.
    Gathered,
    /// No function uses the tree any more.
    Dissolve,
    /// Time goes on.
    Tick,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Start {
        vm: VmId,
        key_hash: KeyHash,
        placing: Placing,
        start: Box<StartDraft>,
    },
    Preheat {
        vm: VmId,
        key_hash: KeyHash,
        placing: Placing,
        draft: Box<PreheatDraft>,
    },
    Place {
        vm: VmId,
        key_hash: KeyHash,
        placing: Placing,
    },
    Leave {
        vm: VmId,
        epoch: Epoch,
    },
    Origin {
        vm: VmId,
        answer: OriginAnswer,
    },
    /// For whoever watches.
    Tell(TreeNews),
}

/// A place without the capability, which the shell adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placing {
    pub epoch: Epoch,
    pub stripes: Vec<Vec<Upstream>>,
    pub seat: Seat,
}
