//! Decides which starts go to the agent, which wait for that, and which the VM does not take.
//!
//! Invariant: a start waits only while as many as may are under way, and each that waited is sent,
//! undeliverable or ended.

use super::{
    core::{Effect, VmCore},
    messages::VmEvent,
};
use crate::{
    id::{StartId, TreeId},
    resources::Resources,
    wire::control::{EndReason, Place, PreheatOrder, RunningInstance, StartOrder, StartReport, ToAgent},
};
use std::{
    collections::{BTreeSet, VecDeque},
    iter,
};
use tokio::time::Instant;

/// Starts that wait in the node.
#[derive(Default)]
pub(super) struct Waiting {
    orders: VecDeque<Box<StartOrder>>,
    /// Trees that count the VM as a member although the agent has not heard of them: only such starts want them.
    unheard: BTreeSet<TreeId>,
}

impl VmCore {
    /// Starts that wait, and those under way: handed to the agent and neither ready nor ended.
    pub fn starts(&self) -> (usize, usize) {
        (self.waiting.orders.len(), self.instances().iter().filter(|one| !one.ready).count())
    }

    fn instances(&self) -> &[RunningInstance] {
        self.session.as_ref().map(|session| session.facts.instances.as_slice()).unwrap_or_default()
    }

    /// Takes an order while there is a session.
    pub(super) fn start(&mut self, order: Box<StartOrder>, effects: &mut Vec<Effect>) {
        order.images().for_each(|(_, place)| self.renew(place));
        let start = order.start.clone();
        if self.waiting.orders.iter().any(|other| other.start == start) {
            return;
        }
        let (waiting, in_flight) = self.starts();
        let is_known = self.instances().iter().any(|one| one.start == start);
        let goes_now = !self.has_yielded() && (is_known || in_flight < self.limits.in_flight_max);
        let may_wait = waiting < self.limits.queued_max;
        if !(is_known || self.has_room(&order)) || !(goes_now || may_wait) {
            effects.push(Effect::News(VmEvent::Undeliverable { start }));
            for tree in order.trees() {
                if !self.trees.contains(tree) {
                    // It has placed the VM for this start.
                    self.leave(tree.clone(), effects);
                }
                self.leave_unheard(tree, effects);
            }
            return;
        }
        order.images().for_each(|(_, place)| self.join_unheard(place, effects));
        if goes_now {
            return self.send_start(order, effects);
        }
        self.waiting.orders.push_back(order);
        effects.push(Effect::News(VmEvent::Queued { start }));
    }

    /// The VM becomes a member of the tree; its agent does not know yet.
    pub(super) fn join_unheard(&mut self, place: &Place, effects: &mut Vec<Effect>) {
        if self.join(place, effects) {
            self.waiting.unheard.insert(place.tree.clone());
        }
    }

    /// Takes an order to preheat while there is a session. It needs no room, but a VM that is nobody else's.
    pub(super) fn preheat(&mut self, order: Box<PreheatOrder>, now: Instant, effects: &mut Vec<Effect>) {
        let tree = &order.place.tree;
        let is_others = self.instances().iter().any(|one| one.tenant != tree.tenant)
            || self.waiting.orders.iter().any(|other| other.place.tree.tenant != tree.tenant);
        if is_others {
            if !self.trees.contains(tree) {
                // The tree has placed the VM for this order.
                self.leave(tree.clone(), effects);
            }
            return;
        }
        self.renew(&order.place);
        self.join(&order.place, effects);
        self.waiting.unheard.remove(&order.place.tree);
        self.send(ToAgent::Preheat(order), now, effects);
    }

    /// Whether one more instance keeps invariant 8, as far as this VM is known here.
    fn has_room(&self, order: &StartOrder) -> bool {
        let capacity = self.session.as_ref().map(|session| session.facts.capacity).unwrap_or_default();
        let waiting: Vec<RunningInstance> = self.waiting.orders.iter().map(|order| running(order)).collect();
        let (mut used, mut functions) = (needs(&running(order)), BTreeSet::from([&order.function]));
        for one in self.instances().iter().chain(&waiting) {
            if one.tenant != order.place.tree.tenant {
                return false;
            }
            used = used.plus(needs(one));
            functions.insert(&one.function);
        }
        capacity.holds(used) && functions.len() <= self.limits.functions_max
    }

    fn send_start(&mut self, order: Box<StartOrder>, effects: &mut Vec<Effect>) {
        let (start, trees) = (order.start.clone(), order.trees().cloned().collect::<Vec<_>>());
        for tree in &trees {
            self.waiting.unheard.remove(tree);
        }
        self.starts.insert(start.clone(), trees);
        if self.instances().iter().all(|one| one.start != start) {
            self.keep(|facts| facts.instances.push(running(&order)));
        }
        effects.push(Effect::SendStart { start, message: ToAgent::Start(order) });
    }

    /// Sends those who wait longest, as many as may go.
    pub(super) fn send_waiting(&mut self, effects: &mut Vec<Effect>) {
        while !self.has_yielded() && self.starts().1 < self.limits.in_flight_max {
            let Some(order) = self.waiting.orders.pop_front() else { return };
            self.send_start(order, effects);
        }
    }

    /// Starts that wait are sent with the last place of their tree: an older one would be refused.
    pub(super) fn renew(&mut self, place: &Place) {
        let orders = self.waiting.orders.iter_mut();
        let places = orders.flat_map(|order| {
            iter::once(&mut order.place).chain(order.code.as_mut().map(|code| &mut code.place))
        });
        let of_tree = places.chain(self.parts.places_mut()).filter(|known| known.tree == place.tree);
        of_tree.for_each(|known| *known = place.clone());
    }

    /// Ends a start that waits. False if it does not.
    pub(super) fn stop_waiting(&mut self, start: &StartId, effects: &mut Vec<Effect>) -> bool {
        let mut dropped = self.take_waiting(|order| order.start == *start, effects);
        dropped.extend(self.take_parts(|part| part.start() == start, effects));
        let (reason, report) = (EndReason::Stopped, StartReport::default());
        let ended = |start| VmEvent::Ended { start, reason: reason.clone(), report: report.clone() };
        effects.extend(dropped.iter().map(|start| Effect::News(ended(start.clone()))));
        !dropped.is_empty()
    }

    /// Gives up those starts that wait for one of these trees; the scheduler finds another VM for them.
    pub(super) fn refuse_waiting(&mut self, of: impl Fn(&TreeId) -> bool, effects: &mut Vec<Effect>) {
        let mut dropped = self.take_waiting(|order| order.trees().any(&of), effects);
        dropped.extend(self.take_parts(|part| of(&part.place().tree), effects));
        let undeliverable = |start| Effect::News(VmEvent::Undeliverable { start });
        effects.extend(dropped.into_iter().map(undeliverable));
    }

    fn take_waiting(
        &mut self,
        which: impl Fn(&StartOrder) -> bool,
        effects: &mut Vec<Effect>,
    ) -> Vec<StartId> {
        let orders = std::mem::take(&mut self.waiting.orders);
        let (dropped, kept) = orders.into_iter().partition(|order| which(order));
        self.waiting.orders = kept;
        let dropped: VecDeque<Box<StartOrder>> = dropped;
        for tree in dropped.iter().flat_map(|order| order.trees()) {
            self.leave_unheard(tree, effects);
        }
        dropped.into_iter().map(|order| order.start).collect()
    }

    /// A tree that nobody waits for any more, and of which the agent has never heard, is left.
    pub(super) fn leave_unheard(&mut self, tree: &TreeId, effects: &mut Vec<Effect>) {
        let is_wanted = self.parts.want(tree) || self.waiting.orders.iter().any(|order| order.is_of(tree));
        if is_wanted || !self.waiting.unheard.remove(tree) {
            return;
        }
        if self.trees.remove(tree) {
            self.leave(tree.clone(), effects);
            effects.push(self.member());
        }
    }

    /// Checks what is bounded here; for tests.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let (waiting, in_flight) = self.starts();
        assert!(waiting <= self.limits.queued_max);
        let is_held_up = in_flight >= self.limits.in_flight_max || self.has_yielded();
        assert!(waiting == 0 || is_held_up, "a start waits for nothing");
        assert!(self.waiting.unheard.iter().all(|tree| self.trees.contains(tree)));
        assert!(
            self.waiting.orders.iter().flat_map(|order| order.trees()).all(|tree| self.trees.contains(tree))
        );
        self.check_parts();
    }
}

fn needs(one: &RunningInstance) -> Resources {
    Resources { memory_bytes: one.memory_bytes, cpu_millis: one.cpu_millis }
}

/// An instance as the agent would tell of it right after the order.
fn running(order: &StartOrder) -> RunningInstance {
    RunningInstance {
        start: order.start.clone(),
        tenant: order.place.tree.tenant.clone(),
        function: order.function.clone(),
        image: order.place.tree.image,
        code: order.code.as_ref().map(|code| code.place.tree.image),
        memory_bytes: order.memory_bytes,
        cpu_millis: order.cpu_millis,
        ready: false,
    }
}
