//! VMs as the manager sees them: one actor for each, and the `Fleet` that owns them all.
//!
//! A node owns its VM's session and lease. Orders for the VM pass through it into the session's
//! bounded queue; what the agent reports passes through it to the scheduler and to the trees.

mod core;
mod fleet;
mod messages;
mod parts;
mod starts;
#[cfg(test)]
mod tests;

pub use self::core::{Effect, Event, NodeLimits, VmCore};
pub use fleet::{Fleet, FleetSettings, VmRecord};
pub use messages::{
    Opening, Order, SessionId, StartPart, ToFleet, ToVm, VmEvent, VmFacts, VmMessage, VmNews,
};

use crate::{
    function_tree::ToTree,
    id::{StartId, VmId},
    support::{ActorView, Life, Link, Observe, Slot, Snapshot, Stop},
    wire::{
        PROTOCOL_VERSION,
        control::{JoinRefusal, ToAgent, ToManager},
    },
};
use actix::prelude::*;
use messages::{Forgotten, Opened, Rejoin, Report, ToNode};
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// The shell of one VM. Its end closes the session, because the session ends when nobody holds the
/// sender of its orders; the agent then connects again and tells everything.
struct VmNode {
    vm: VmId,
    core: VmCore,
    orders: Option<mpsc::Sender<ToAgent>>,
    asked: Asked,
    news: Link<VmNews>,
    trees: Link<ToTree>,
    welcome: ToAgent,
    tick: Duration,
    life: Life<VmId>,
}

/// Whoever waits for the agent's view of its actors.
#[derive(Default)]
struct Asked {
    replies: BTreeMap<u64, oneshot::Sender<ActorView>>,
    numbers: u64,
}

/// Questions to one agent at once; people ask them.
const ASKED_MAX: usize = 8;

impl Asked {
    fn ask(&mut self, reply: oneshot::Sender<ActorView>) -> Option<u64> {
        self.replies.retain(|_, reply| !reply.is_closed());
        if self.replies.len() >= ASKED_MAX {
            return None;
        }
        self.numbers += 1;
        self.replies.insert(self.numbers, reply);
        Some(self.numbers)
    }

    /// False when it is no answer; one that nobody waits for is dropped.
    fn answer(&mut self, message: &ToManager) -> bool {
        let ToManager::Observed { number, agent } = message else { return false };
        if let Some(reply) = self.replies.remove(number) {
            // Whoever asked may be gone; then nobody wants the view.
            let _gone = reply.send(agent.clone());
        }
        true
    }
}

impl Actor for VmNode {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(self.tick, |node, ctx| {
            if !node.life.parent_is_up() {
                return ctx.stop();
            }
            node.happened(Event::Tick, &None);
        });
    }
}

impl VmNode {
    fn happened(&mut self, event: Event, slot: &Slot) {
        let mut effects = Vec::new();
        self.core.apply(event, Instant::now(), &mut effects);
        for effect in effects {
            self.perform(effect, slot);
        }
    }

    fn perform(&mut self, effect: Effect, slot: &Slot) {
        match effect {
            // Only while a session opens, which answers both.
            Effect::Accept { .. } | Effect::Refuse { .. } => {}
            Effect::Send(message) => {
                if !self.send(message) {
                    self.happened(Event::QueueFull { start: None }, slot);
                }
            }
            Effect::SendStart { start, message } => {
                if self.send(message) {
                    self.tell(VmEvent::Ordered { start }, slot);
                } else {
                    self.happened(Event::QueueFull { start: Some(start) }, slot);
                }
            }
            Effect::CloseSession => self.orders = None,
            Effect::News(event) => self.tell(event, slot),
            Effect::Tree { tree, event } => self.trees.send(ToTree { tree, event, slot: slot.clone() }),
        }
    }

    fn send(&self, message: ToAgent) -> bool {
        self.orders.as_ref().is_some_and(|orders| orders.try_send(message).is_ok())
    }

    fn tell(&self, event: VmEvent, slot: &Slot) {
        self.news.send(VmNews { vm: self.vm.clone(), event, slot: slot.clone() });
    }
}

impl Handler<Opened> for VmNode {
    type Result = ();

    fn handle(&mut self, opened: Opened, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        let Opened { session, opening, gathering: _gathering } = opened;
        let Opening { key_hash, hello, orders, reply, .. } = opening;
        let mut effects = Vec::new();
        self.core.apply(Event::Opened { session, key_hash, hello }, Instant::now(), &mut effects);
        let mut answer = Some((reply, orders));
        for effect in effects {
            match effect {
                Effect::Accept { session } => self.accept(session, &mut answer),
                Effect::Refuse { reason, .. } => {
                    if let Some((reply, _orders)) = answer.take() {
                        // The connection may be gone; then nobody needs the refusal.
                        let _gone = reply.send(Err(reason));
                    }
                }
                other => self.perform(other, &None),
            }
        }
    }
}

type Answer = (oneshot::Sender<Result<SessionId, JoinRefusal>>, mpsc::Sender<ToAgent>);

impl VmNode {
    fn accept(&mut self, session: SessionId, answer: &mut Option<Answer>) {
        let Some((reply, orders)) = answer.take() else { return };
        self.orders = Some(orders);
        self.send(self.welcome.clone());
        // A connection that is gone already says so with `Closed`, or is silent for a lease.
        let _gone = reply.send(Ok(session));
    }
}

impl Handler<ToNode> for VmNode {
    type Result = ();

    fn handle(&mut self, ToNode(message): ToNode, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        match message {
            VmMessage::Order(order) => self.happened(Event::Order(order), &None),
            VmMessage::Heard { session: _, message, slot: _ } if self.asked.answer(&message) => {}
            VmMessage::Heard { session, message, slot } => {
                self.happened(Event::Heard { session, message: *message }, &slot);
            }
            VmMessage::Closed { session } => self.happened(Event::Closed { session }, &None),
            VmMessage::Observe { children_max, reply } => {
                if let Some(number) = self.asked.ask(reply) {
                    let children_max = u32::try_from(children_max).unwrap_or(u32::MAX);
                    // Unanswered it is given up by whoever asked.
                    let _sent = self.send(ToAgent::Observe { number, children_max });
                }
            }
        }
    }
}

impl Handler<Rejoin> for VmNode {
    type Result = ();

    fn handle(&mut self, Rejoin { tree, _gathering }: Rejoin, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.happened(Event::Rejoin(tree), &None);
    }
}

impl Handler<Report> for VmNode {
    type Result = ();

    fn handle(&mut self, _: Report, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.happened(Event::Report, &None);
    }
}

impl Handler<Forgotten> for VmNode {
    type Result = ();

    fn handle(&mut self, _: Forgotten, ctx: &mut Context<Self>) {
        self.happened(Event::Forgotten, &None);
        ctx.stop();
    }
}

impl Handler<Observe> for VmNode {
    type Result = Snapshot;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> Snapshot {
        let Some(orders) = self.orders.as_ref().filter(|_| self.core.is_up()) else {
            return Snapshot::new("down");
        };
        let length = orders.max_capacity() - orders.capacity();
        let ((waiting, in_flight), limits) = (self.core.starts(), self.core.limits());
        Snapshot::new("up")
            .queue("orders", length, orders.max_capacity())
            .queue("starts under way", in_flight, limits.in_flight_max)
            .queue("starts waiting for that", waiting, limits.queued_max)
    }
}

impl Handler<Stop> for VmNode {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

fn welcome(heartbeat: Duration, capability_key: &[u8]) -> ToAgent {
    ToAgent::Welcome {
        version: PROTOCOL_VERSION,
        heartbeat_ms: u64::try_from(heartbeat.as_millis()).expect("heartbeats are not centuries apart"),
        capability_key: capability_key.to_vec(),
    }
}

/// What the fleet says of a start for a VM that nobody knows.
fn undeliverable(vm: VmId, start: StartId) -> VmNews {
    VmNews { vm, event: VmEvent::Undeliverable { start }, slot: None }
}
