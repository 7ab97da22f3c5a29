//! What VM nodes, their parent, and whoever hears from them are told.

use crate::{
    id::{Epoch, StartId, TreeId, VmId},
    support::Slot,
    wire::control::{
        EndReason, HeldTree, Hello, JoinRefusal, Place, RunningInstance, StartOrder, StartReport, Step,
        ToAgent, ToManager,
    },
    world::KeyHash,
};
use actix::prelude::*;
use std::net::SocketAddr;
use tokio::sync::{mpsc, oneshot};

/// One connection of an agent, numbered by the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// For one VM. Dropped when nobody knows the VM, but a start is reported as undeliverable.
/// Orders are bounded by the starts that the scheduler lets in, reports by the slots of sessions.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ToVm {
    pub vm: VmId,
    pub message: VmMessage,
}

pub enum VmMessage {
    /// For the agent, on its session.
    Order(Order),
    /// From the agent.
    Heard { session: SessionId, message: Box<ToManager>, slot: Slot },
    /// The connection has ended.
    Closed { session: SessionId },
}

/// What an agent is told to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    Start(Box<StartOrder>),
    Stop { start: StartId },
    Place(Place),
    Leave { tree: TreeId, epoch: Epoch },
}

/// For the parent of all VM nodes.
#[derive(Message)]
#[rtype(result = "()")]
pub enum ToFleet {
    /// A VM has shown a join token. Answered when its name and key are durable, or with a refusal when
    /// another VM has the name.
    Register { vm: VmId, key_hash: KeyHash, reply: oneshot::Sender<Result<(), JoinRefusal>> },
    /// An agent has a connection and has said hello. The session lives as long as somebody holds the
    /// sender of its orders.
    Open(Opening),
    /// The VM is no longer registered.
    Forget { vm: VmId },
    /// VMs that hold the tree, or any tree, are to report it.
    Rejoin { tree: Option<TreeId> },
    /// All VMs are to report everything to the scheduler.
    ReportAll,
}

pub struct Opening {
    pub vm: VmId,
    /// Of the certificate that the connection has shown.
    pub key_hash: KeyHash,
    pub hello: Hello,
    /// Bounded; a full one means that the agent does not read.
    pub orders: mpsc::Sender<ToAgent>,
    pub reply: oneshot::Sender<Result<SessionId, JoinRefusal>>,
}

/// What the scheduler hears about VMs. From one VM in order. Bounded as `ToVm`.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct VmNews {
    pub vm: VmId,
    pub event: VmEvent,
    pub slot: Slot,
}

#[derive(Debug, Clone, PartialEq)]
pub enum VmEvent {
    /// The VM has a session: all that it is and has.
    Up(Box<VmFacts>),
    /// What it holds has changed.
    Held(Vec<HeldTree>),
    /// It has no session: nothing is sent to it until it is up again.
    Down,
    /// It has been down for longer than a lease.
    LeaseOver,
    /// The order for that start was handed to its session.
    Ordered {
        start: StartId,
    },
    /// The order could not be handed over and will not be.
    Undeliverable {
        start: StartId,
    },
    Progress {
        start: StartId,
        step: Step,
        elapsed_us: u64,
    },
    Ready {
        start: StartId,
        report: StartReport,
    },
    Ended {
        start: StartId,
        reason: EndReason,
        report: StartReport,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct VmFacts {
    pub address: SocketAddr,
    pub key_hash: KeyHash,
    pub memory_bytes: u64,
    pub held: Vec<HeldTree>,
    pub instances: Vec<RunningInstance>,
}

/// From the fleet to one node: an agent has opened a session.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Opened {
    pub session: SessionId,
    pub opening: Opening,
}

/// From the fleet to one node.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct ToNode(pub VmMessage);

/// From the fleet to all nodes.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Rejoin(pub Option<TreeId>);

/// From the fleet to all nodes.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Report;

/// The VM is forgotten: its session is closed and the node ends.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Forgotten;
