//! What the agent can be told and asked.

use crate::{
    agent::world::ChildLink,
    block_transfer::Opened,
    id::{StartId, TreeId, VmId},
    support::{Flow, Hop},
    wire::{
        control::{Capability, ColdTree, HeldTree, Hello, ToAgent},
        peer::Refusal,
    },
};
use actix::prelude::*;
use std::fmt::Display;

/// An order of the manager.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Order(pub ToAgent);

impl Flow for Order {
    fn hop(&self) -> Option<Hop<'_>> {
        let (message, about): (_, &dyn Display) = match &self.0 {
            ToAgent::Start(order) => ("Start", &order.start),
            ToAgent::Preheat(order) => ("Preheat", &order.place.tree),
            ToAgent::Stop { start } => ("Stop", start),
            ToAgent::Place(place) => ("Place", &place.tree),
            ToAgent::Leave { tree, .. } => ("Leave", tree),
            ToAgent::Origin { tree, .. } => ("Origin", tree),
            ToAgent::Welcome { .. }
            | ToAgent::GiveUp { .. }
            | ToAgent::Refused { .. }
            | ToAgent::Renewed { .. }
            | ToAgent::Observe { .. }
            | ToAgent::Yielded => return None,
        };
        Some(Hop { message, about, permit: "order slot" })
    }
}

/// The manager has accepted the session; capabilities are signed with this key.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Welcomed {
    pub capability_key: Vec<u8>,
}

/// The VM's certificate expires: the manager is asked for a new one.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Renew {
    pub signing_request: String,
}

/// All that the VM is and has, for a new session.
#[derive(Message)]
#[rtype(result = "Hello")]
pub struct GetHello;

/// The trees that the VM is a member of, for a heartbeat.
#[derive(Message)]
#[rtype(result = "Vec<HeldTree>")]
pub struct GetHeld;

/// The images of trees that the VM has left, for the manager.
#[derive(Message)]
#[rtype(result = "Cold")]
pub struct GetCold;

#[derive(Debug, Clone, Default, PartialEq, MessageResponse)]
pub struct Cold {
    pub trees: Vec<ColdTree>,
    pub proofs: Vec<Capability>,
}

/// A VM with a valid capability wants to be served.
#[derive(Message)]
#[rtype(result = "Result<Opened, Refusal>")]
pub struct OpenChildOf {
    pub tree: TreeId,
    pub vm: VmId,
    pub link: ChildLink,
}

/// The loopback port of an instance that runs here.
#[derive(Message)]
#[rtype(result = "Option<u16>")]
pub struct GetPort {
    pub start: StartId,
}

/// Another process takes this agent's place: answered when nothing changes any more but what is under way
/// on connections. Containers and the holder go on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Yield;

/// The manager sends no more orders, or there is no session.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Yielded;

/// Stops every instance and the holder; answered when the holder has gone.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Shutdown;
