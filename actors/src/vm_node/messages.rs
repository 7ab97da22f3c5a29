//! What VM nodes, their parent, and whoever hears from them are told.

use crate::{
    function_tree::Gathering,
    id::{Epoch, ImageId, StartId, TreeId, VmId},
    resources::Resources,
    support::{ActorView, Flow, Hop, Slot},
    wire::{
        control::{
            Candidate, CodeOrder, ColdTree, EndReason, HeldTree, Hello, JoinRefusal, OriginAnswer, Place,
            PreheatOrder, RunningInstance, StartOrder, StartReport, Step, ToAgent, ToManager,
        },
        holder::PlainRange,
    },
    world::KeyHash,
};
use actix::prelude::*;
use std::{collections::BTreeSet, fmt::Display, net::SocketAddr, sync::Arc};
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
    /// The agent is to show its actors. Not answered when it has no session or is asked too often.
    Observe { children_max: usize, reply: oneshot::Sender<ActorView> },
}

impl Flow for ToVm {
    fn hop(&self) -> Option<Hop<'_>> {
        let (message, about, permit): (_, &dyn Display, _) = match &self.message {
            VmMessage::Order(Order::Start(order)) => ("Order(Start)", &order.start, "start waiting"),
            VmMessage::Order(Order::Part(part)) => (part.hop(), part.start(), "start waiting"),
            VmMessage::Order(Order::Preheat(_)) => ("Order(Preheat)", &self.vm, ""),
            VmMessage::Order(Order::Stop { start }) => ("Order(Stop)", start, ""),
            VmMessage::Order(Order::Place(_)) => ("Order(Place)", &self.vm, ""),
            VmMessage::Order(Order::Leave { .. }) => ("Order(Leave)", &self.vm, ""),
            VmMessage::Order(Order::Origin { .. }) => ("Order(Origin)", &self.vm, ""),
            VmMessage::Order(Order::GiveUp { .. }) => ("Order(GiveUp)", &self.vm, ""),
            VmMessage::Heard { message, .. } => {
                let Hop { message, about, .. } = message.hop()?;
                (message, about, "session slot")
            }
            VmMessage::Closed { .. } => ("Closed", &self.vm, ""),
            VmMessage::Observe { .. } => return None,
        };
        Some(Hop { message, about, permit })
    }
}

/// What an agent is told to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    Start(Box<StartOrder>),
    /// One of the two orders that together start a function with code; sent on when both are there.
    Part(Box<StartPart>),
    Preheat(Box<PreheatOrder>),
    Stop {
        start: StartId,
    },
    Place(Place),
    Leave {
        tree: TreeId,
        epoch: Epoch,
    },
    Origin {
        tree: TreeId,
        answer: OriginAnswer,
    },
    GiveUp {
        trees: Vec<TreeId>,
    },
}

impl Order {
    /// The start that the VM is to make, if it is one.
    pub fn start(&self) -> Option<&StartId> {
        match self {
            Self::Start(order) => Some(&order.start),
            Self::Part(part) => Some(part.start()),
            Self::Stop { .. }
            | Self::Preheat(_)
            | Self::Place(_)
            | Self::Leave { .. }
            | Self::Origin { .. }
            | Self::GiveUp { .. } => None,
        }
    }
}

/// What one tree has to say of a start that needs places in two.
#[derive(Debug, Clone, PartialEq)]
pub enum StartPart {
    /// All but the code.
    Runtime(StartOrder),
    Code {
        start: StartId,
        code: CodeOrder,
    },
}

impl StartPart {
    pub fn start(&self) -> &StartId {
        match self {
            Self::Runtime(order) => &order.start,
            Self::Code { start, .. } => start,
        }
    }

    pub fn place(&self) -> &Place {
        match self {
            Self::Runtime(order) => &order.place,
            Self::Code { code, .. } => &code.place,
        }
    }

    pub(super) fn place_mut(&mut self) -> &mut Place {
        match self {
            Self::Runtime(order) => &mut order.place,
            Self::Code { code, .. } => &mut code.place,
        }
    }

    fn hop(&self) -> &'static str {
        match self {
            Self::Runtime(_) => "Order(Runtime)",
            Self::Code { .. } => "Order(Code)",
        }
    }
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

impl Flow for ToFleet {
    fn hop(&self) -> Option<Hop<'_>> {
        let (message, about): (_, &dyn Display) = match self {
            Self::Register { vm, .. } => ("Register", vm),
            Self::Open(opening) => ("Open", &opening.vm),
            Self::Forget { vm } => ("Forget", vm),
            Self::Rejoin { tree: Some(tree) } => ("Rejoin", tree),
            Self::Rejoin { tree: None } => ("Rejoin", &"all trees"),
            Self::ReportAll => ("ReportAll", &"all VMs"),
        };
        Some(Hop { message, about, permit: "" })
    }
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
    /// What it has kept of trees that it has left.
    Cold(Vec<ColdTree>),
    /// Its cache is full: which of these images go to give so much back?
    RoomWanted {
        bytes: u64,
        candidates: Vec<Candidate>,
    },
    /// The trees that the VM was sent to and has not been told to leave.
    Member(BTreeSet<TreeId>),
    /// Rebuilt trees were told what the VM holds. Orders to leave that they had are lost.
    Rejoined,
    /// It has no session: nothing is sent to it until it is up again.
    Down,
    /// It has been down for longer than a lease.
    LeaseOver,
    /// The order for that start waits in the node, because many are under way on the VM. It is ordered,
    /// undeliverable or ended later.
    Queued {
        start: StartId,
    },
    /// The order for that start was handed to its session.
    Ordered {
        start: StartId,
    },
    /// The order could not be handed over and will not be: the VM is away, or has no room.
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
    /// What the VM says that a start has read. Nothing of it was checked.
    Recorded {
        start: StartId,
        image: ImageId,
        ranges: Arc<[PlainRange]>,
    },
    Ended {
        start: StartId,
        reason: EndReason,
        report: StartReport,
    },
}

impl Flow for VmNews {
    fn hop(&self) -> Option<Hop<'_>> {
        let slot = if self.slot.is_some() { "session slot" } else { "" };
        let (message, about, permit): (_, &dyn Display, _) = match &self.event {
            VmEvent::Up(_) => ("Up", &self.vm, slot),
            VmEvent::RoomWanted { .. } => ("RoomWanted", &self.vm, slot),
            VmEvent::Rejoined => ("Rejoined", &self.vm, slot),
            VmEvent::Down => ("Down", &self.vm, slot),
            VmEvent::LeaseOver => ("LeaseOver", &self.vm, slot),
            VmEvent::Queued { start } => ("Queued", start, slot),
            VmEvent::Ordered { start } => ("Ordered", start, slot),
            VmEvent::Undeliverable { start } => ("Undeliverable", start, slot),
            VmEvent::Ready { start, .. } => ("Ready", start, slot),
            VmEvent::Recorded { start, .. } => ("Recorded", start, slot),
            VmEvent::Ended { start, .. } => ("Ended", start, slot),
            // Heartbeats, and steps that change nothing.
            VmEvent::Held(_) | VmEvent::Cold(_) | VmEvent::Member(_) | VmEvent::Progress { .. } => {
                return None;
            }
        };
        Some(Hop { message, about, permit })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct VmFacts {
    pub address: SocketAddr,
    pub key_hash: KeyHash,
    pub capacity: Resources,
    pub held: Vec<HeldTree>,
    pub cold: Vec<ColdTree>,
    pub instances: Vec<RunningInstance>,
}

/// From the fleet to one node: an agent has opened a session.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Opened {
    pub session: SessionId,
    pub opening: Opening,
    /// Let go of when the trees have heard of the VM.
    pub gathering: Option<Arc<Gathering>>,
}

/// From the fleet to one node.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct ToNode(pub VmMessage);

/// Their way to the parent has been noted.
impl Flow for Opened {
    fn hop(&self) -> Option<Hop<'_>> {
        None
    }
}

impl Flow for ToNode {
    fn hop(&self) -> Option<Hop<'_>> {
        None
    }
}

/// From the fleet to all nodes.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Rejoin {
    pub tree: Option<TreeId>,
    pub _gathering: Arc<Gathering>,
}

/// From the fleet to all nodes.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Report;

/// The VM is forgotten: its session is closed and the node ends.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Forgotten;

impl Flow for ToManager {
    fn hop(&self) -> Option<Hop<'_>> {
        let (message, about): (_, &dyn Display) = match self {
            Self::Ready { start, .. } => ("Ready", start),
            Self::Ended { start, .. } => ("Ended", start),
            Self::Recorded { start, .. } => ("Recorded", start),
            Self::UpstreamLost { vm, .. } => ("UpstreamLost", vm),
            Self::OriginWanted { tree, .. } => ("OriginWanted", tree),
            Self::Hello(_)
            | Self::Heartbeat { .. }
            | Self::Cold { .. }
            | Self::RoomWanted { .. }
            | Self::Progress { .. }
            | Self::Renew { .. }
            | Self::Observed { .. }
            | Self::Yield => return None,
        };
        Some(Hop { message, about, permit: "" })
    }
}
