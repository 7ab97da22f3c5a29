//! Decides whether a VM is there, and what that means for those who use it.
//!
//! ```text
//!            opened                    closed, or silent for a lease
//!   down ---------------> up ------------------------------------------> down
//!    |                    ^ |
//!    | a lease later      +-+ opened, after a lease of silence or when it has yielded
//!    v
//!   lost (said once)
//! ```

use super::{
    messages::{Order, SessionId, VmEvent, VmFacts},
    parts::Parts,
    starts::Waiting,
};
use crate::{
    block_store::COLD_MAX,
    function_tree::{Contact, Event as TreeEvent},
    id::{StartId, TreeId, VmId},
    resources::Resources,
    wire::{
        PROTOCOL_VERSION,
        control::{BytesBySource, HeldTree, Hello, JoinRefusal, Place, RunningInstance, ToAgent, ToManager},
    },
    world::KeyHash,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

pub enum Event {
    Opened {
        session: SessionId,
        key_hash: KeyHash,
        hello: Hello,
    },
    Heard {
        session: SessionId,
        message: ToManager,
    },
    Closed {
        session: SessionId,
    },
    Order(Order),
    /// The session's queue has no room for what was to be sent, that start for instance.
    QueueFull {
        start: Option<StartId>,
    },
    /// The tree, or every tree, wants to know what this VM holds.
    Rejoin(Option<TreeId>),
    /// The scheduler wants to know everything.
    Report,
    /// The VM is removed.
    Forgotten,
    Tick,
}

#[derive(Debug, PartialEq)]
pub enum Effect {
    Accept {
        session: SessionId,
    },
    Refuse {
        session: SessionId,
        reason: JoinRefusal,
    },
    Send(ToAgent),
    /// A start to send; what follows depends on whether the queue takes it.
    SendStart {
        start: StartId,
        message: ToAgent,
    },
    CloseSession,
    News(VmEvent),
    Tree {
        tree: TreeId,
        event: TreeEvent,
    },
}

/// What one VM may hold and run at most, as it says itself; more is a broken or hostile agent.
const HELD_MAX: usize = 4096;
const INSTANCES_MAX: usize = 4096;
/// Far more than a VM is told within a lease; a VM with more is told everything anew.
const KEPT_BACK_MAX: usize = 1024;
/// Far more than end on one VM within the second that a scheduler takes to be rebuilt.
const ENDED_KEPT: usize = 256;

#[derive(Debug, Clone, Copy)]
pub struct NodeLimits {
    /// Silence after which the VM counts as lost.
    pub lease: Duration,
    /// Starts handed to the agent that are neither ready nor ended, at least 1; further ones wait.
    pub in_flight_max: usize,
    /// Starts that wait for that.
    pub queued_max: usize,
    /// Functions on the VM.
    pub functions_max: usize,
}

pub(super) struct Session {
    id: SessionId,
    heard_at: Instant,
    /// Orders for the agent's next process, once this one has said that it yields.
    kept_back: Option<Vec<ToAgent>>,
    /// Instances are those that were ordered and have not ended.
    pub facts: VmFacts,
}

pub struct VmCore {
    vm: VmId,
    pub(super) limits: NodeLimits,
    pub(super) session: Option<Session>,
    /// While down: when the lease is over. None once that was said.
    lost_at: Option<Instant>,
    /// Trees that count the VM as a member.
    pub(super) trees: BTreeSet<TreeId>,
    /// The trees of each start that was ordered on this session or that the agent told of.
    pub(super) starts: BTreeMap<StartId, Vec<TreeId>>,
    pub(super) parts: Parts,
    pub(super) waiting: Waiting,
    /// Trees that were told that the VM is gone while it was up, and have not sent it a start since.
    pub(super) left: BTreeSet<TreeId>,
    /// How instances ended lately, for a scheduler that was away.
    ended: VecDeque<VmEvent>,
}

impl VmCore {
    /// A VM that nobody has heard of yet; a lease from now it is lost.
    pub fn new(vm: VmId, limits: NodeLimits, now: Instant) -> Self {
        assert!(limits.in_flight_max >= 1, "starts would wait for ever");
        Self {
            vm,
            limits,
            session: None,
            lost_at: Some(now + limits.lease),
            trees: BTreeSet::new(),
            starts: BTreeMap::new(),
            parts: Parts::default(),
            waiting: Waiting::default(),
            left: BTreeSet::new(),
            ended: VecDeque::new(),
        }
    }

    pub fn limits(&self) -> NodeLimits {
        self.limits
    }

    pub fn is_up(&self) -> bool {
        self.session.is_some()
    }

    pub fn apply(&mut self, event: Event, now: Instant, effects: &mut Vec<Effect>) {
        match event {
            Event::Opened { session, key_hash, hello } => self.opened(session, key_hash, hello, now, effects),
            Event::Heard { session, message } => {
                if let Some(present) = self.session.as_mut().filter(|present| present.id == session) {
                    present.heard_at = now;
                    self.heard(message, effects);
                }
            }
            Event::Closed { session } => {
                // One that has yielded is awaited for the rest of its lease.
                let ends = |present: &Session| present.id == session && present.kept_back.is_none();
                if self.session.as_ref().is_some_and(ends) {
                    self.down(now, effects);
                }
            }
            Event::Order(order) => self.order(order, now, effects),
            // An agent that does not read must not miss an order for good: with a new session it tells
            // what it has, and everything is decided anew.
            Event::QueueFull { start } => {
                let undeliverable = start.map(|start| Effect::News(VmEvent::Undeliverable { start }));
                effects.extend(undeliverable);
                self.down(now, effects);
            }
            Event::Rejoin(tree) => {
                let before = effects.len();
                self.rejoin(tree.as_ref(), effects);
                if effects.len() > before {
                    effects.push(Effect::News(VmEvent::Rejoined));
                }
            }
            Event::Report => {
                // The scheduler that chose this VM for them is gone.
                self.refuse_waiting(|_| true, effects);
                self.report(effects);
            }
            Event::Forgotten => self.down(now, effects),
            Event::Tick => self.tick(now, effects),
        }
        debug_assert!(self.session.is_none() || self.lost_at.is_none(), "a VM that is up is not lost");
    }

    fn opened(
        &mut self,
        id: SessionId,
        key_hash: KeyHash,
        hello: Hello,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(reason) = self.refusal(&hello, now) {
            return effects.push(Effect::Refuse { session: id, reason });
        }
        let kept_back = self.session.as_mut().and_then(|before| before.kept_back.take());
        if kept_back.is_some() {
            self.session = None; // the same VM goes on, and nobody has to hear of it
        } else if self.session.is_some() {
            self.down(now, effects);
        }
        let Hello { memory_bytes, cpu_millis, address, held, instances, .. } = hello;
        let capacity = Resources { memory_bytes, cpu_millis };
        let of = |one: &RunningInstance| (one.start.clone(), one.trees().collect());
        self.starts = instances.iter().map(of).collect();
        let facts = VmFacts { address, key_hash, capacity, held, cold: Vec::new(), instances };
        effects.push(Effect::Accept { session: id });
        effects.push(Effect::News(VmEvent::Up(Box::new(facts.clone()))));
        self.session = Some(Session { id, heard_at: now, kept_back: None, facts });
        self.lost_at = None;
        if let Some(kept_back) = kept_back {
            self.went_on(kept_back, effects);
        }
        self.rejoin(None, effects);
    }

    /// Another process of the agent has taken over.
    fn went_on(&mut self, kept_back: Vec<ToAgent>, effects: &mut Vec<Effect>) {
        // The scheduler, which has just heard all that the VM has, places them again.
        self.refuse_waiting(|_| true, effects);
        let facts = self.session.as_ref().map(|session| &session.facts);
        let held: BTreeSet<TreeId> =
            facts.iter().flat_map(|facts| &facts.held).map(|held| held.tree.clone()).collect();
        for gone in self.trees.difference(&held).cloned().collect::<Vec<_>>() {
            self.trees.remove(&gone);
            self.leave(gone, effects);
        }
        effects.extend(kept_back.into_iter().map(Effect::Send));
    }

    fn refusal(&self, hello: &Hello, now: Instant) -> Option<JoinRefusal> {
        if hello.version != PROTOCOL_VERSION {
            return Some(JoinRefusal::Version);
        }
        if hello.held.len() > HELD_MAX || hello.instances.len() > INSTANCES_MAX {
            return Some(JoinRefusal::Request);
        }
        let is_alive =
            |session: &Session| session.kept_back.is_none() && now < session.heard_at + self.limits.lease;
        let alive = self.session.as_ref().is_some_and(is_alive);
        alive.then_some(JoinRefusal::NameTaken)
    }

    fn report(&self, effects: &mut Vec<Effect>) {
        let Some(session) = &self.session else { return effects.push(Effect::News(VmEvent::Down)) };
        effects.push(Effect::News(VmEvent::Up(Box::new(session.facts.clone()))));
        effects.push(self.member());
        // The facts do not tell of what is over.
        effects.extend(self.ended.iter().cloned().map(Effect::News));
    }

    pub(super) fn member(&self) -> Effect {
        Effect::News(VmEvent::Member(self.trees.clone()))
    }

    /// Tells trees that the VM holds them.
    fn rejoin(&mut self, only: Option<&TreeId>, effects: &mut Vec<Effect>) {
        let Some(session) = &self.session else { return };
        for held in &session.facts.held {
            if only.is_some_and(|tree| *tree != held.tree) {
                continue;
            }
            self.trees.insert(held.tree.clone());
            report(&self.vm, &session.facts, held.clone(), effects);
        }
    }

    /// The VM becomes a member of the tree, which has sent it a start.
    pub(super) fn join(&mut self, place: &Place, effects: &mut Vec<Effect>) -> bool {
        let Some(session) = &self.session else { return false };
        if !self.trees.insert(place.tree.clone()) {
            return false;
        }
        if self.left.remove(&place.tree) {
            // The tree may have sent it before it heard that the VM is gone.
            let held = HeldTree {
                tree: place.tree.clone(),
                epoch: place.epoch,
                place: place.seat.place,
                blocks_present: 0,
                blocks_total: 0,
                bytes: BytesBySource::default(),
                longest_stall_us: 0,
                preheated: None,
            };
            report(&self.vm, &session.facts, held, effects);
        }
        effects.push(self.member());
        true
    }

    fn heard(&mut self, message: ToManager, effects: &mut Vec<Effect>) {
        match message {
            // Hello is said once; a second one is a broken agent.
            ToManager::Hello(_) => effects.push(Effect::CloseSession),
            ToManager::Heartbeat { held } => self.held(held, effects),
            // Answered where the connection ends: it needs the CA, and changes nothing here.
            ToManager::Renew { .. } => {}
            // For whoever asked, whom the shell knows.
            ToManager::Observed { .. } => {}
            ToManager::Recorded { start, image, ranges } => {
                let ranges = ranges.into();
                effects.push(Effect::News(VmEvent::Recorded { start, image, ranges }));
            }
            ToManager::Progress { start, step, elapsed_us } => {
                effects.push(Effect::News(VmEvent::Progress { start, step, elapsed_us }));
            }
            ToManager::Ready { start, report } => {
                for tree in self.starts.get(&start).into_iter().flatten() {
                    let event = TreeEvent::Ready { vm: self.vm.clone() };
                    effects.push(Effect::Tree { tree: tree.clone(), event });
                }
                self.keep(|facts| {
                    facts
                        .instances
                        .iter_mut()
                        .filter(|one| one.start == start)
                        .for_each(|one| one.ready = true);
                });
                effects.push(Effect::News(VmEvent::Ready { start, report }));
                self.send_waiting(effects);
            }
            ToManager::Ended { start, reason, report } => {
                self.starts.remove(&start);
                self.keep(|facts| facts.instances.retain(|one| one.start != start));
                let ended = VmEvent::Ended { start, reason, report };
                if self.ended.len() == ENDED_KEPT {
                    self.ended.pop_front();
                }
                self.ended.push_back(ended.clone());
                effects.push(Effect::News(ended));
                self.send_waiting(effects);
            }
            ToManager::Yield => {
                if let Some(session) = self.session.as_mut().filter(|session| session.kept_back.is_none()) {
                    session.kept_back = Some(Vec::new());
                    effects.push(Effect::Send(ToAgent::Yielded));
                }
            }
            ToManager::OriginWanted { tree, blocks } => {
                if self.trees.contains(&tree) {
                    let event = TreeEvent::OriginWanted { vm: self.vm.clone(), blocks };
                    effects.push(Effect::Tree { tree, event });
                }
            }
            // The connection has seen the proofs.
            ToManager::Cold { mut trees, proofs: _ } => {
                trees.truncate(COLD_MAX);
                self.keep(|facts| facts.cold.clone_from(&trees));
                effects.push(Effect::News(VmEvent::Cold(trees)));
            }
            ToManager::RoomWanted { bytes, mut candidates } => {
                candidates.truncate(COLD_MAX);
                effects.push(Effect::News(VmEvent::RoomWanted { bytes, candidates }));
            }
            ToManager::UpstreamLost { tree, epoch, vm } => {
                let event = TreeEvent::UpstreamLost { by: self.vm.clone(), epoch, vm };
                effects.push(Effect::Tree { tree, event });
            }
        }
    }

    pub(super) fn keep(&mut self, change: impl FnOnce(&mut VmFacts)) {
        if let Some(session) = &mut self.session {
            change(&mut session.facts);
        }
    }

    fn held(&mut self, mut held: Vec<HeldTree>, effects: &mut Vec<Effect>) {
        held.truncate(HELD_MAX);
        let session = self.session.as_mut().expect("only a session is heard");
        if session.facts.held == held {
            return;
        }
        let vm = &self.vm;
        let mut any_gone = false;
        for gone in &session.facts.held {
            if held.iter().all(|still| still.tree != gone.tree) && self.trees.remove(&gone.tree) {
                any_gone = true;
                let event = TreeEvent::Gone { vm: vm.clone() };
                effects.push(Effect::Tree { tree: gone.tree.clone(), event });
            }
        }
        for now in held.iter().filter(|now| !session.facts.held.contains(now)) {
            // A tree that the manager did not send the VM to is none of its business.
            if self.trees.contains(&now.tree) {
                let event = TreeEvent::Held { vm: vm.clone(), held: now.clone() };
                effects.push(Effect::Tree { tree: now.tree.clone(), event });
            }
        }
        let before = std::mem::replace(&mut session.facts.held, held.clone());
        if any_gone {
            effects.push(self.member());
            let is_gone = |tree: &TreeId| {
                let of = |held: &[HeldTree]| held.iter().any(|one| one.tree == *tree);
                of(&before) && !of(&held)
            };
            self.refuse_waiting(is_gone, effects);
        }
        effects.push(Effect::News(VmEvent::Held(held)));
    }

    fn order(&mut self, order: Order, now: Instant, effects: &mut Vec<Effect>) {
        if self.session.is_none() {
            // The tree hears of it as well: it may have placed the VM after it was told of its end.
            match order {
                Order::Start(start) => {
                    effects.push(Effect::News(VmEvent::Undeliverable { start: start.start }));
                    self.leave(start.place.tree, effects);
                }
                Order::Part(part) => {
                    effects.push(Effect::News(VmEvent::Undeliverable { start: part.start().clone() }));
                    self.leave(part.place().tree.clone(), effects);
                }
                Order::Preheat(preheat) => self.leave(preheat.place.tree, effects),
                Order::Place(place) => self.leave(place.tree, effects),
                // A VM that comes back tells what it runs and holds.
                Order::Stop { .. } | Order::Leave { .. } | Order::Origin { .. } | Order::GiveUp { .. } => {}
            }
            return;
        }
        match order {
            Order::Start(order) => self.start(order, effects),
            Order::Part(part) => self.part(*part, now, effects),
            Order::Preheat(order) => self.preheat(order, now, effects),
            Order::Stop { start } => {
                if !self.stop_waiting(&start, effects) {
                    self.send(ToAgent::Stop { start }, now, effects);
                }
            }
            Order::Place(place) => {
                self.renew(&place);
                self.send(ToAgent::Place(place), now, effects);
            }
            Order::Origin { tree, answer } => self.send(ToAgent::Origin { tree, answer }, now, effects),
            Order::GiveUp { trees } => self.send(ToAgent::GiveUp { trees }, now, effects),
            Order::Leave { tree, epoch } => {
                let was_member = self.trees.remove(&tree);
                self.refuse_waiting(|waits| *waits == tree, effects);
                self.send(ToAgent::Leave { tree, epoch }, now, effects);
                if was_member {
                    effects.push(self.member());
                }
            }
        }
    }

    /// Sends an order, or keeps it for the agent's next process.
    pub(super) fn send(&mut self, message: ToAgent, now: Instant, effects: &mut Vec<Effect>) {
        match self.session.as_mut().and_then(|session| session.kept_back.as_mut()) {
            None => effects.push(Effect::Send(message)),
            Some(kept) if kept.len() < KEPT_BACK_MAX => kept.push(message),
            Some(_) => self.down(now, effects),
        }
    }

    /// Whether orders are kept for the agent's next process.
    pub(super) fn has_yielded(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.kept_back.is_some())
    }

    pub(super) fn leave(&mut self, tree: TreeId, effects: &mut Vec<Effect>) {
        if self.session.is_some() {
            self.left.insert(tree.clone());
        }
        effects.push(Effect::Tree { tree, event: TreeEvent::Gone { vm: self.vm.clone() } });
    }

    fn down(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let Some(session) = self.session.take() else { return };
        self.lost_at = Some((session.heard_at + self.limits.lease).max(now));
        effects.push(Effect::CloseSession);
        effects.push(Effect::News(VmEvent::Down));
        for tree in std::mem::take(&mut self.trees) {
            self.leave(tree, effects);
        }
        self.starts.clear();
        self.left.clear();
        self.refuse_waiting(|_| true, effects);
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.session.as_ref().is_some_and(|session| now >= session.heard_at + self.limits.lease) {
            self.down(now, effects);
        }
        self.expire_parts(now, effects);
        if self.lost_at.is_some_and(|at| now >= at) {
            self.lost_at = None;
            effects.push(Effect::News(VmEvent::LeaseOver));
        }
    }
}

/// Tells a tree that the VM holds it. The tree may have forgotten the VM: that an instance serves there is
/// said with it, because its agent says so once only.
fn report(vm: &VmId, facts: &VmFacts, held: HeldTree, effects: &mut Vec<Effect>) {
    let contact = Contact { address: facts.address, key_hash: facts.key_hash.clone() };
    let tree = held.tree.clone();
    let is_ready = facts.instances.iter().any(|one| one.ready && one.trees().any(|own| own == tree));
    let event = TreeEvent::Reported { vm: vm.clone(), contact, held };
    effects.push(Effect::Tree { tree: tree.clone(), event });
    if is_ready {
        effects.push(Effect::Tree { tree, event: TreeEvent::Ready { vm: vm.clone() } });
    }
}
