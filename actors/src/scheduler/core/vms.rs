//! What is heard of VMs: they come with all that they run, and go.

use super::{
    Answer, Change, ControlError, Effect, FunctionKey, Image, Phase, SchedulerCore, Start, Ticket, Vm,
};
use crate::{
    id::{StartId, TreeId, VmId},
    vm_node::{VmEvent, VmFacts},
    wire::control::{EndReason, HeldTree, RunningInstance, StartReport},
    world::{Table, Write},
};
use std::collections::BTreeMap;
use tokio::time::Instant;

impl SchedulerCore {
    pub(super) fn news(&mut self, vm: VmId, event: VmEvent, now: Instant, effects: &mut Vec<Effect>) {
        match event {
            VmEvent::Up(facts) => self.vm_up(&vm, *facts, now, effects),
            VmEvent::Held(held) => {
                if let Some(known) = self.vms.get_mut(&vm) {
                    known.held = by_tree(held);
                }
            }
            VmEvent::Down => self.vm_down(&vm, now, effects),
            VmEvent::LeaseOver => self.lease_over(&vm, now, effects),
            VmEvent::Ordered { start } => self.ordered(&vm, &start, now, effects),
            VmEvent::Undeliverable { start } => {
                if self.is_at(&start, &vm) && self.starts[&start].phase == Phase::Chosen {
                    self.requeue(&start, now, effects);
                }
            }
            VmEvent::Progress { start, step, elapsed_us } => {
                if self.is_at(&start, &vm) {
                    let start = self.starts.get_mut(&start).expect("it was just there");
                    start.report.steps_us.insert(step, elapsed_us);
                }
            }
            VmEvent::Ready { start, report } => self.ready(&vm, start, report, now, effects),
            VmEvent::Ended { start, reason, report } => {
                let is_here = self.is_at(&start, &vm);
                if let Some(known) =
                    self.starts.get_mut(&start).filter(|known| known.vm.as_ref() == Some(&vm))
                {
                    known.report = report;
                    if known.reason == Some(EndReason::VmLost) {
                        // It was missing in a hello, and now the agent says why.
                        known.reason = Some(reason.clone());
                    }
                }
                if is_here {
                    self.end(&start, reason, now, effects);
                }
            }
        }
    }

    /// Whether the start is on that VM and has not ended.
    fn is_at(&self, start: &StartId, vm: &VmId) -> bool {
        self.starts
            .get(start)
            .is_some_and(|start| start.vm.as_ref() == Some(vm) && start.phase != Phase::Ended)
    }

    fn vm_up(&mut self, name: &VmId, facts: VmFacts, now: Instant, effects: &mut Vec<Effect>) {
        if !self.vms.contains_key(name) {
            self.vms.insert(name.clone(), Vm::default());
            self.forget_orders();
        }
        let held = by_tree(facts.held);
        for tree in held.keys().filter(|tree| !self.tree_is_used(tree)) {
            effects.push(Effect::Leave { tree: tree.clone(), vm: name.clone() });
        }
        let vm = self.vms.get_mut(name).expect("it was just made");
        vm.up = true;
        vm.address = Some(facts.address);
        vm.key_hash = Some(facts.key_hash);
        vm.memory_bytes = facts.memory_bytes;
        vm.held = held;
        let placed: Vec<StartId> = vm.functions.values().flatten().cloned().collect();
        let told: BTreeMap<StartId, RunningInstance> =
            facts.instances.into_iter().map(|instance| (instance.start.clone(), instance)).collect();
        for id in placed {
            self.compare(name, &id, told.get(&id), now, effects);
            self.found(&id, now, effects);
        }
        for (id, instance) in told {
            if !self.is_at(&id, name) {
                self.adopt(name, &id, &instance, now, effects);
            }
        }
        self.room_changed = true;
    }

    /// What is known of a start on a VM, against what its agent says.
    fn compare(
        &mut self,
        vm: &VmId,
        id: &StartId,
        told: Option<&RunningInstance>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let start = self.starts.get_mut(id).expect("VMs have known starts");
        match (start.phase, told) {
            // The order may still be on its way; if it is not, its time ends.
            (Phase::Chosen, None) => {}
            (Phase::Chosen, Some(_)) => self.ordered(vm, id, now, effects),
            (_, None) => self.end(id, EndReason::VmLost, now, effects),
            (_, Some(_)) if start.stopping => {
                effects.push(Effect::Stop { vm: vm.clone(), start: id.clone() });
            }
            (Phase::Ready, Some(told)) if !told.ready => {
                // The agent probes it again after its own restart, and will say ready or ended.
                start.phase = Phase::Ordered;
                let key = start.key.clone();
                self.unroute(id);
                self.set_timer(id, Some(now + self.limits.ready_deadline + self.limits.lease));
                if let Some(function) = self.functions.get_mut(&key) {
                    function.unfinished.insert(id.clone());
                }
            }
            (_, Some(told)) if told.ready => self.became_ready(id, now, effects),
            (_, Some(_)) => {}
        }
    }

    /// An instance that the agent runs and that is not placed there: taken over, or stopped.
    fn adopt(
        &mut self,
        vm: &VmId,
        id: &StartId,
        told: &RunningInstance,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let key: FunctionKey = (told.tenant.clone(), told.function.clone());
        let free = match self.starts.get(id) {
            None => true,
            Some(start) => matches!(start.phase, Phase::Recovering | Phase::Waiting) && start.key == key,
        };
        let fits = self.vms[vm].has_room(&key, told.memory_bytes, self.limits.functions_per_vm_max);
        let Some(function) = self.functions.get_mut(&key).filter(|_| free && fits) else {
            return effects.push(Effect::Stop { vm: vm.clone(), start: id.clone() });
        };
        let is_present = matches!(&function.image, Image::Ready(image) if image.id == told.image);
        let revision = if is_present { function.revision } else { 0 };
        function.unplaced.retain(|waiting| waiting != id);
        if let Some(start) = self.starts.get(id) {
            self.starts_waiting -= usize::from(start.phase == Phase::Waiting);
        } else {
            self.sequence += 1;
            let start = Start::new(self.sequence, key.clone(), Phase::Recovering, now);
            self.insert_start(id.clone(), start);
        }
        let start = self.starts.get_mut(id).expect("it was just made");
        start.phase = Phase::Ordered;
        start.revision = revision;
        start.chosen_at = Some(now);
        start.ordered_at = Some(now);
        let tree = TreeId { tenant: told.tenant.clone(), image: told.image };
        self.assign(id, vm, &tree, told.memory_bytes);
        self.set_timer(id, Some(now + self.limits.ready_deadline + self.limits.lease));
        if told.ready {
            self.became_ready(id, now, effects);
        }
        self.found(id, now, effects);
    }

    fn vm_down(&mut self, name: &VmId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        vm.up = false;
        let keys: Vec<FunctionKey> = vm.functions.keys().cloned().collect();
        for id in vm.functions.values().flatten().cloned().collect::<Vec<_>>() {
            self.unroute(&id);
        }
        for key in keys {
            self.scale(&key, now, effects);
        }
    }

    fn lease_over(&mut self, name: &VmId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(vm) = self.vms.get(name).filter(|vm| !vm.up) else { return };
        let keys: Vec<FunctionKey> = vm.functions.keys().cloned().collect();
        for id in vm.functions.values().flatten().cloned().collect::<Vec<_>>() {
            let start = &self.starts[&id];
            match start.phase {
                Phase::Chosen => self.requeue(&id, now, effects),
                Phase::Ready if !start.stopping => self.lost(&id),
                Phase::Ordered | Phase::Ready => self.end(&id, EndReason::VmLost, now, effects),
                Phase::Recovering | Phase::Waiting | Phase::Ended => {}
            }
        }
        for key in keys {
            self.scale(&key, now, effects);
        }
    }

    fn ordered(&mut self, vm: &VmId, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        if !self.is_at(id, vm) || self.starts[id].phase != Phase::Chosen {
            // The start has ended, or is somewhere else, while its order was on its way.
            if !self.is_at(id, vm) {
                effects.push(Effect::Stop { vm: vm.clone(), start: id.clone() });
            }
            return;
        }
        let start = self.starts.get_mut(id).expect("it was just there");
        start.phase = Phase::Ordered;
        start.ordered_at = Some(now);
        let stopping = start.stopping;
        // The agent says when it is too late; a lease later it has not, and that is the end.
        self.set_timer(id, Some(now + self.limits.ready_deadline + self.limits.lease));
        if stopping {
            effects.push(Effect::Stop { vm: vm.clone(), start: id.clone() });
        }
    }

    fn ready(
        &mut self,
        vm: &VmId,
        id: StartId,
        report: StartReport,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if !self.is_at(&id, vm) {
            return effects.push(Effect::Stop { vm: vm.clone(), start: id });
        }
        let start = self.starts.get_mut(&id).expect("it was just there");
        start.report = report;
        start.ordered_at.get_or_insert(now);
        self.became_ready(&id, now, effects);
    }

    pub(super) fn remove_vm(&mut self, ticket: Ticket, name: VmId, effects: &mut Vec<Effect>) {
        let error = match self.vms.get(&name) {
            None => Some(ControlError::NotFound("VM")),
            Some(vm) if vm.up => {
                Some(ControlError::Conflict(format!("VM {name} is up; stop its agent before it is removed")))
            }
            Some(_) => None,
        };
        if let Some(error) = error {
            return effects.push(Effect::Answer { ticket, answer: Err(error) });
        }
        let delete = Write::Delete { table: Table::Vms, key: name.as_str().to_owned() };
        self.persist(vec![delete], Change::RemoveVm { ticket, vm: name }, effects);
    }

    pub(super) fn vm_removed(
        &mut self,
        ticket: Ticket,
        name: &VmId,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let vm = self.vms.get(name);
        let starts: Vec<StartId> =
            vm.map(|vm| vm.functions.values().flatten().cloned().collect()).unwrap_or_default();
        for id in starts {
            self.end(&id, EndReason::VmLost, now, effects);
        }
        self.vms.remove(name);
        self.forget_orders();
        effects.push(Effect::Forget { vm: name.clone() });
        effects.push(Effect::Answer { ticket, answer: Ok(Answer::Done) });
    }

    fn forget_orders(&mut self) {
        self.ring = None;
        self.orders.clear();
    }
}

fn by_tree(held: Vec<HeldTree>) -> BTreeMap<TreeId, HeldTree> {
    held.into_iter().map(|held| (held.tree.clone(), held)).collect()
}
