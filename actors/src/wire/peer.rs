//! Child and parent: the index and the blocks of one tree over one connection.

use super::control::Capability;
use crate::id::{BlockId, RequestId, TreeId, VmId};
use serde::{Deserialize, Serialize};

/// Why a block is wanted. The order of urgency: the more urgent overtakes on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Urgency {
    /// A read waits for it.
    Demand,
    /// It will probably be read soon.
    Prefetch,
    /// Nobody is known to need it; the VM is to hold the whole image.
    Background,
}

/// How far a question may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// The VM that is asked has it, or says `NotHeld` at once.
    Held,
    /// That VM may ask its own upstreams if it is nearer to the root than the asker, which is `depth` edges
    /// below it in the tree of the stripe, one of `stripes`; else it refuses with `Loop`. Questions that are
    /// passed on only ever go upwards, so that no set of VMs waits on itself (invariant 11).
    Upward { stripes: u32, depth: u32 },
}

/// From a child to the VM it asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToParent {
    /// First on each connection.
    Open { version: u32, tree: TreeId, capability: Capability },
    /// Answered by `Index` with the encoded index as body, as soon as the parent has it; not at all by a
    /// VM that does not have it and may not ask on.
    WantIndex { reach: Reach },
    /// Each block is answered by `Block` or `NotServed`. `path` holds the VMs that the demand has
    /// passed, the asker last; a VM that finds itself in it refuses with `Loop` (invariant 11). Asked again
    /// for a block that is not there yet, only the reach changes.
    Want {
        blocks: Vec<BlockId>,
        urgency: Urgency,
        path: Vec<VmId>,
        reach: Reach,
        /// The request that is behind what reads wait for: of the start that asked first. For logs; an older
        /// release neither sends nor reads it.
        #[serde(default)]
        request: Option<RequestId>,
    },
    /// Reads wait now for blocks that were wanted ahead: what is not under way yet overtakes. Not answered.
    Hurry { blocks: Vec<BlockId> },
    /// The stored bytes of the block did not have the hash of the index.
    Corrupt { block: BlockId },
}

/// From a parent to its child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromParent {
    Opened,
    /// The connection is closed behind it.
    Refused {
        reason: Refusal,
    },
    /// Body: the encoded index.
    Index,
    /// Body: the stored bytes.
    Block {
        block: BlockId,
    },
    NotServed {
        block: BlockId,
        reason: NotServed,
    },
    /// The parent itself waits: nothing has arrived above it for that long.
    Waiting {
        silent_ms: u64,
    },
}

/// Why a child is not served at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    #[error("the other side speaks another version of the protocol")]
    Version,
    #[error("the capability is missing, expired, or for another tree or key")]
    Capability,
    /// The same answer whether the tree exists elsewhere or not.
    #[error("this VM does not hold that block image")]
    NotHeld,
    #[error("this VM serves as many children as it may")]
    Busy,
    #[error("the other side broke the protocol")]
    Protocol,
}

/// Why one block is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotServed {
    /// The demand came back to a VM it had passed, or did not come from further below.
    Loop,
    /// It is not here, and more was not asked.
    NotHeld,
    /// No upstream of the parent has it.
    NoSource,
    /// More blocks are asked for than the limit allows.
    Busy,
}
