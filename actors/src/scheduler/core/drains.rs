//! VMs that are drained: nothing is placed on them, and what runs there ends as soon as there is enough of it
//! elsewhere.
//!
//! A start that is not ready is placed again. A ready instance does not count for its function any more
//! (see `scaling`), and serves until others are there: the function keeps as many as it needs, which is
//! `min_instances`, and as many as have served requests. Whoever is not needed takes no more requests and ends
//! with the last that it has, at the deadline all the same. Then the VM leaves its trees like one that rests.

use super::{Answer, Change, ControlError, Effect, FunctionKey, Phase, Rest, SchedulerCore, Start, Ticket};
use crate::{
    id::{StartId, VmId},
    scheduler::records,
    wire::control::StartReport,
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

impl SchedulerCore {
    pub(super) fn drain_vm(&mut self, ticket: Ticket, name: VmId, force: bool, effects: &mut Vec<Effect>) {
        let Some(vm) = self.vms.get(&name) else {
            return effects.push(Effect::Answer { ticket, answer: Err(ControlError::NotFound("VM")) });
        };
        let takes_starts = vm.up && vm.drain_by.is_none();
        if takes_starts && !force && self.is_last(&name) {
            let error = ControlError::Conflict(format!(
                "VM {name} is the last that is up and not drained, and nothing could run elsewhere; let another \
                 VM join or undrain one, or drain it all the same with force"
            ));
            return effects.push(Effect::Answer { ticket, answer: Err(error) });
        }
        // Written again when it is drained: an undrain may be on its way to the disk.
        self.persist(vec![records::put_drain(&name)], Change::Drain { ticket, vm: name }, effects);
    }

    /// Whether no other VM takes starts, or will when what is on its way to the disk is there.
    fn is_last(&self, name: &VmId) -> bool {
        let coming: BTreeSet<&VmId> = (self.changes.values())
            .filter_map(|change| match change {
                Change::Drain { vm, .. } => Some(vm),
                _ => None,
            })
            .collect();
        !self
            .vms
            .iter()
            .any(|(other, vm)| other != name && vm.up && vm.drain_by.is_none() && !coming.contains(other))
    }

    pub(super) fn drain_durable(
        &mut self,
        ticket: Ticket,
        name: &VmId,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if self.vms.get(name).is_some_and(|vm| vm.drain_by.is_none()) {
            self.set_drain(name, Some(now + self.limits.drain_deadline), now);
            self.move_away(name, now, effects);
        }
        if !self.vms.contains_key(name) {
            // It was removed meanwhile, and one of that name that joins later is another.
            self.persist(vec![records::delete_drain(name)], Change::Hint, effects);
        }
        self.answer_vm(ticket, name, effects);
    }

    pub(super) fn undrain_vm(&mut self, ticket: Ticket, name: VmId, effects: &mut Vec<Effect>) {
        if !self.vms.contains_key(&name) {
            return effects.push(Effect::Answer { ticket, answer: Err(ControlError::NotFound("VM")) });
        }
        self.persist(vec![records::delete_drain(&name)], Change::Undrain { ticket, vm: name }, effects);
    }

    pub(super) fn undrain_durable(
        &mut self,
        ticket: Ticket,
        name: &VmId,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if self.draining.contains(name) {
            self.set_drain(name, None, now);
            let functions = self.vms[name].functions.clone();
            for id in functions.values().flatten() {
                self.recount(id);
            }
            for key in functions.keys() {
                self.trim(key, now, effects);
            }
            self.end_moves(now, effects);
        }
        self.answer_vm(ticket, name, effects);
    }

    fn answer_vm(&self, ticket: Ticket, name: &VmId, effects: &mut Vec<Effect>) {
        let view = self.vm_view(name).ok_or(ControlError::NotFound("VM"));
        effects.push(Effect::Answer { ticket, answer: view.map(|view| Answer::Vm(Box::new(view))) });
    }

    /// Takes the VM out of the pools until that time at the latest, or puts it back.
    pub(super) fn set_drain(&mut self, name: &VmId, by: Option<Instant>, now: Instant) {
        let Some(vm) = self.vms.get(name) else { return };
        let rest = match vm.rest {
            Rest::Idle { .. } if by.is_some() => Rest::Idle { until: now },
            Rest::Idle { .. } => Rest::Idle { until: now + self.limits.vm_idle },
            rest @ (Rest::None | Rest::Leaving { .. }) => rest,
        };
        // Who leaves is counted with those that are not drained.
        self.set_rest(name, Rest::None);
        self.vms.get_mut(name).expect("it was just there").drain_by = by;
        self.set_rest(name, rest);
        if by.is_some() {
            self.draining.insert(name.clone());
        } else {
            self.draining.remove(name);
        }
        self.pool(name);
        // Whoever counted on that VM, or may use it now, is tried again.
        self.room_changed = true;
    }

    pub(super) fn is_on_draining_vm(&self, start: &Start) -> bool {
        start.vm.as_ref().is_some_and(|vm| self.draining.contains(vm))
    }

    /// Lets all that is on that VM be replaced elsewhere.
    pub(super) fn move_away(&mut self, name: &VmId, now: Instant, effects: &mut Vec<Effect>) {
        let functions = self.vms[name].functions.clone();
        for (key, starts) in &functions {
            self.keep_size(key, starts);
        }
        for id in functions.values().flatten() {
            // Placing one again may end others, which are forgotten one day.
            let Some(start) = self.starts.get(id) else { continue };
            match start.phase {
                Phase::Chosen | Phase::Ordered if !start.stopping => self.place_again(id, now, effects),
                Phase::Ready => self.recount(id),
                Phase::Chosen | Phase::Ordered | Phase::Recovering | Phase::Waiting | Phase::Ended => {}
            }
        }
        for key in functions.keys() {
            self.scale(key, now, effects);
        }
        self.end_moves(now, effects);
    }

    /// Notes how many instances the function needs while those are moved.
    fn keep_size(&mut self, key: &FunctionKey, moved: &BTreeSet<StartId>) {
        let Some(function) = self.functions.get(key) else { return };
        let serves = |id: &&StartId| {
            let start = &self.starts[*id];
            start.has_served && self.is_present(start)
        };
        let had_served = function.live.iter().filter(serves).count();
        if moved.iter().any(|id| self.is_present(&self.starts[id])) {
            let function = self.functions.get_mut(key).expect("it was just there");
            function.had_served = function.had_served.max(had_served);
            self.moved.insert(key.clone());
        }
    }

    /// Whether it is a ready instance of the present description that has no end yet.
    fn is_present(&self, start: &Start) -> bool {
        let revision = self.functions.get(&start.key).map(|function| function.revision);
        start.phase == Phase::Ready && start.goes_on() && revision == Some(start.revision)
    }

    /// A start that is not ready waits again, for another VM.
    fn place_again(&mut self, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        let start = self.starts.get_mut(id).expect("callers looked");
        if start.phase == Phase::Ordered || start.queued {
            let vm = start.vm.clone().expect("an order went to a VM");
            effects.push(Effect::Stop { vm, start: id.clone() });
            (start.ordered_at, start.ready_at) = (None, None);
            start.report = StartReport::default();
            self.changed.starts.insert(id.clone());
        }
        self.requeue(id, now, effects);
        if self.starts[id].phase == Phase::Waiting {
            self.set_timer(id, Some(now + self.limits.placement_deadline));
        }
    }

    /// Ends instances on VMs that are drained: those for which there are enough others, and all of a VM
    /// whose time is over.
    pub(super) fn end_drains(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let is_late = |name: &&VmId| self.vms[*name].drain_by.is_some_and(|by| by <= now);
        let late = self.draining.iter().filter(is_late);
        let starts: Vec<StartId> =
            late.flat_map(|name| self.vms[name].functions.values().flatten()).cloned().collect();
        for id in starts {
            if self.starts.get(&id).is_some_and(|start| !start.stopping) {
                self.stop(&id, now, effects);
            }
        }
        self.end_moves(now, effects);
    }

    fn end_moves(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let mut moving: BTreeMap<FunctionKey, BTreeSet<StartId>> = BTreeMap::new();
        for name in &self.draining {
            for (key, starts) in &self.vms[name].functions {
                let present = starts.iter().filter(|id| self.is_present(&self.starts[*id]));
                moving.entry(key.clone()).or_default().extend(present.cloned());
            }
        }
        moving.retain(|_, starts| !starts.is_empty());
        for (key, starts) in &moving {
            let Some(function) = self.functions.get(key) else { continue };
            let surplus = function.routable.len().saturating_sub(self.limits.scaling(function).min);
            // Those with the fewest requests first.
            let ends = function.routable.iter().map(|(_, id)| id).filter(|id| starts.contains(*id));
            for id in ends.take(surplus).cloned().collect::<Vec<_>>() {
                self.drain(&id, now, effects);
            }
        }
        let over: Vec<FunctionKey> =
            self.moved.iter().filter(|key| !moving.contains_key(*key)).cloned().collect();
        for key in over {
            self.moved.remove(&key);
            if let Some(function) = self.functions.get_mut(&key) {
                function.had_served = 0;
                self.look_at_kept(&key, now);
            }
        }
    }

    /// Nothing is placed on a VM that is drained, and a drained one has nothing left.
    #[cfg(test)]
    pub(super) fn check_drains(&self) {
        use crate::model::VmState;
        for (name, vm) in &self.vms {
            assert_eq!(vm.drain_by.is_some(), self.draining.contains(name));
            if vm.drain_by.is_none() {
                continue;
            }
            assert_eq!(vm.entry, None, "{name} is drained and takes starts");
            for id in vm.functions.values().flatten() {
                let start = &self.starts[id];
                assert!(
                    start.phase == Phase::Ready || start.stopping,
                    "{id} starts on {name}, which is drained"
                );
            }
            if vm.up && vm.functions.is_empty() {
                let is_out = vm.held.is_empty() && vm.member_of.is_empty();
                assert_eq!(vm.rest == Rest::None, is_out, "{name} is told to leave its trees");
                assert_eq!(self.vm_view(name).map(|view| view.state == VmState::Drained), Some(is_out));
            }
        }
        for (key, function) in &self.functions {
            assert!(function.had_served == 0 || self.moved.contains(key), "{key:?} would be kept large");
        }
        let leaves = |name: &&VmId| {
            let vm = &self.vms[*name];
            vm.drain_by.is_none() && matches!(vm.rest, Rest::Leaving { .. })
        };
        assert_eq!(self.leaving, self.vms.keys().filter(leaves).count());
    }

    /// After a tick: what is on a VM whose time is over was told to stop.
    #[cfg(test)]
    pub fn check_drains_end(&self, now: Instant) {
        for name in &self.draining {
            let vm = &self.vms[name];
            let is_over = vm.drain_by.is_some_and(|by| by <= now);
            let starts = vm.functions.values().flatten();
            assert!(!is_over || starts.into_iter().all(|id| self.starts[id].stopping), "{name} is overdue");
        }
    }

    #[cfg(test)]
    pub fn is_draining(&self, name: &VmId) -> bool {
        self.draining.contains(name)
    }
}
