//! What is heard of VMs: they come with all that they run, and go.

use super::{
    Answer, Change, ControlError, Effect, Entry, Function, FunctionKey, Images, Phase, Rest, SchedulerCore,
    Start, Ticket, Vm,
};
use crate::{
    function_tree::Contact,
    id::{ImageId, StartId, TreeId, VmId},
    resources::Resources,
    scheduler::records,
    vm_node::{VmEvent, VmFacts},
    wire::control::{EndReason, HeldTree, RunningInstance, StartReport},
    world::{Table, Write},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    time::Duration,
};
use tokio::time::Instant;

impl SchedulerCore {
    pub(super) fn news(&mut self, vm: VmId, event: VmEvent, now: Instant, effects: &mut Vec<Effect>) {
        match event {
            VmEvent::Up(facts) => self.vm_up(&vm, *facts, now, effects),
            VmEvent::Held(held) => {
                let Some(known) = self.vms.get(&vm) else { return };
                let held = by_tree(held);
                // Mostly only blocks have come.
                let is_other = !held.keys().eq(known.held.keys());
                self.set_holdings(&vm, Some(held), None);
                if is_other {
                    self.settle(&vm, now);
                }
            }
            VmEvent::Cold(cold) => {
                let cold = cold.into_iter().map(|cold| (cold.tree.clone(), cold)).collect();
                self.set_holdings(&vm, None, Some(cold));
                self.pool(&vm);
            }
            VmEvent::RoomWanted { bytes, candidates } => self.room_wanted(&vm, bytes, candidates, effects),
            VmEvent::Member(trees) => {
                if let Some(known) = self.vms.get_mut(&vm) {
                    known.is_member_of(trees);
                    self.settle(&vm, now);
                }
            }
            VmEvent::Rejoined => {
                if self.vms.contains_key(&vm) {
                    self.leave_strangers(&vm, effects);
                }
            }
            VmEvent::Down => self.vm_down(&vm, now, effects),
            VmEvent::LeaseOver => self.lease_over(&vm, now, effects),
            VmEvent::Queued { start } => self.queued(&vm, &start, now, effects),
            VmEvent::Ordered { start } => self.ordered(&vm, &start, now, effects),
            VmEvent::Undeliverable { start } => {
                if self.is_at(&start, &vm) && self.starts[&start].phase == Phase::Chosen {
                    self.requeue(&start, now, effects);
                }
            }
            VmEvent::Progress { start: id, step, elapsed_us } => {
                if self.is_at(&id, &vm) {
                    let start = self.starts.get_mut(&id).expect("it was just there");
                    start.report.steps_us.insert(step, elapsed_us);
                    self.changed.starts.insert(id);
                }
            }
            VmEvent::Recorded { start, image, ranges } => self.recorded(&vm, &start, image, ranges, effects),
            VmEvent::Ready { start, report } => self.ready(&vm, start, report, now, effects),
            VmEvent::Ended { start, reason, report } if self.may_have_run(&start, &vm) => {
                // It ended while the scheduler was away. It is not placed again, unless another VM runs it.
                let start = self.starts.get_mut(&start).expect("it recovers");
                start.report = report;
                start.ends_as = Some(reason);
            }
            VmEvent::Ended { start, reason, report } => {
                let is_here = self.is_at(&start, &vm);
                if let Some(known) =
                    self.starts.get_mut(&start).filter(|known| known.vm.as_ref() == Some(&vm))
                {
                    known.report = report;
                    self.changed.starts.insert(start.clone());
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

    /// Whether a start that was found accepted may have been on that VM. A VM is believed about the tenant
    /// of whose trees it is a member.
    fn may_have_run(&self, start: &StartId, vm: &VmId) -> bool {
        let found = self.starts.get(start).filter(|start| start.phase == Phase::Recovering);
        found.zip(self.vms.get(vm)).is_some_and(|(start, vm)| {
            vm.held.keys().chain(&vm.member_of).any(|tree| tree.tenant == start.key.0)
        })
    }

    /// Whether the start is on that VM and has not ended.
    fn is_at(&self, start: &StartId, vm: &VmId) -> bool {
        self.starts
            .get(start)
            .is_some_and(|start| start.vm.as_ref() == Some(vm) && start.phase != Phase::Ended)
    }

    fn vm_up(&mut self, name: &VmId, facts: VmFacts, now: Instant, effects: &mut Vec<Effect>) {
        let held = by_tree(facts.held);
        let cold = facts.cold.into_iter().map(|cold| (cold.tree.clone(), cold)).collect();
        let capacity = facts.capacity;
        let before = self.vms.entry(name.clone()).or_default();
        let said_before = before.address.is_some().then_some(before.capacity);
        let is_new_size = !self.sizes.contains_key(&capacity);
        self.count_size(said_before, Some(capacity));
        let vm = self.vms.get_mut(name).expect("it was just made");
        vm.up = true;
        vm.address = Some(facts.address);
        vm.key_hash = Some(facts.key_hash);
        vm.capacity = capacity;
        // Orders that were on their way may be lost with the session.
        vm.preheats.retain(|tree, _| held.contains_key(tree));
        vm.is_member_of(held.keys().cloned().collect());
        self.set_holdings(name, Some(held), Some(cold));
        let vm = self.vms.get_mut(name).expect("it was just made");
        if vm.functions.is_empty() {
            vm.tenant = None;
        }
        let placed: Vec<StartId> = vm.functions.values().flatten().cloned().collect();
        self.set_rest(name, Rest::None);
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
        self.settle(name, now);
        self.offer(name);
        self.leave_strangers(name, effects);
        self.preheat_again(name, now, effects);
        if is_new_size {
            self.keep_each_min(now, effects);
        }
        if self.vms[name].drain_by.is_some() {
            self.move_away(name, now, effects);
        }
    }

    /// Trees of another tenant, and those that neither it nor a start to come needs, the VM leaves.
    fn leave_strangers(&self, name: &VmId, effects: &mut Vec<Effect>) {
        let vm = &self.vms[name];
        let is_stranger = |tree: &&TreeId| {
            Some(&tree.tenant) != vm.tenant.as_ref()
                || !(vm.trees.contains_key(*tree) || self.is_current(tree))
        };
        let strangers = vm.held.keys().filter(is_stranger);
        effects.extend(strangers.map(|tree| Effect::Leave { tree: tree.clone(), vm: name.clone() }));
    }

    fn count_size(&mut self, before: Option<Resources>, now: Option<Resources>) {
        if let Some(before) = before
            && let Some(count) = self.sizes.get_mut(&before)
        {
            *count -= 1;
            if *count == 0 {
                self.sizes.remove(&before);
            }
        }
        if let Some(now) = now {
            *self.sizes.entry(now).or_default() += 1;
        }
    }

    /// Whether a VM is as large as an instance of the function needs, as far as VMs have said how large they are.
    pub(super) fn may_hold(&self, function: &Function) -> bool {
        let needs = function.spec.needs();
        self.sizes.is_empty() || self.sizes.keys().any(|size| size.holds(needs))
    }

    /// Why no start of the function can ever be placed on the VMs that there are. None as long as a VM
    /// has not said what it has.
    pub(super) fn too_large(&self, function: &Function) -> Option<ControlError> {
        let needs = function.spec.needs();
        let all_known = self.sizes.values().sum::<u32>() as usize == self.vms.len();
        if self.vms.is_empty() || !all_known || self.sizes.keys().any(|size| size.holds(needs)) {
            return None;
        }
        let memory_bytes = self.sizes.keys().map(|size| size.memory_bytes).max()?;
        let cpu_millis = self.sizes.keys().map(|size| size.cpu_millis).max()?;
        Some(ControlError::TooLarge { needs, most: Resources { memory_bytes, cpu_millis } })
    }

    /// Puts the VM into the pool where it belongs now. True if that is new.
    pub(super) fn pool(&mut self, name: &VmId) -> bool {
        let Some(vm) = self.vms.get_mut(name) else { return false };
        self.changed.vms.insert(name.clone());
        let entry = vm.entry(self.limits.functions_per_vm_max);
        if vm.entry == entry {
            return false;
        }
        if let Some(before) = std::mem::replace(&mut vm.entry, entry) {
            self.pools.remove(name, &before);
        }
        if let Some(entry) = &vm.entry {
            self.pools.insert(name, entry);
        }
        true
    }

    /// Decides what becomes of a VM after it may have got less to do or to hold.
    pub(super) fn settle(&mut self, name: &VmId, now: Instant) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        if vm.up && vm.functions.is_empty() {
            // It belongs to whose image it holds, until it holds none.
            let holder_of = vm.trees_of().next().map(|tree| tree.tenant.clone());
            let is_in_a_tree = holder_of.is_some();
            if vm.tenant.is_none() || !is_in_a_tree {
                vm.tenant = holder_of;
            }
            if !is_in_a_tree {
                self.set_rest(name, Rest::None);
            } else if vm.rest == Rest::None {
                let stays = if vm.drain_by.is_some() { Duration::ZERO } else { self.limits.vm_idle };
                self.set_rest(name, Rest::Idle { until: now + stays });
                // Others that wait may ask for it.
                self.room_changed = true;
            }
        }
        if self.pool(name) {
            self.offer(name);
        }
    }

    /// Those who wait and may use that VM are tried when this event is over.
    fn offer(&mut self, name: &VmId) {
        match self.vms[name].entry.as_ref().map(|entry| entry.tenant.clone()) {
            None => {}
            Some(None) => self.room_changed = true,
            Some(Some(tenant)) => drop(self.tries.tenants.insert(tenant)),
        }
    }

    pub(super) fn set_rest(&mut self, name: &VmId, rest: Rest) {
        let vm = self.vms.get_mut(name).expect("callers looked");
        let before = std::mem::replace(&mut vm.rest, rest);
        // One that is drained is nobody's when it has left.
        let is_counted = |rest| vm.drain_by.is_none() && matches!(rest, Rest::Leaving { .. });
        self.leaving -= usize::from(is_counted(before));
        self.leaving += usize::from(is_counted(rest));
        if let Some(at) = before.ends_at() {
            self.rests.remove(&(at, name.clone()));
        }
        self.rests.extend(rest.ends_at().map(|at| (at, name.clone())));
    }

    /// Tells a VM on which nothing runs to leave its trees; it takes no starts until it has.
    pub(super) fn leave_trees(&mut self, name: &VmId, now: Instant, effects: &mut Vec<Effect>) {
        // An order may be lost when an actor between here and the VM is rebuilt.
        self.set_rest(name, Rest::Leaving { again: now + self.limits.lease });
        self.pool(name);
        let vm = &self.vms[name];
        let trees: BTreeSet<&TreeId> = vm.trees_of().collect();
        effects.extend(trees.into_iter().map(|tree| Effect::Leave { tree: tree.clone(), vm: name.clone() }));
    }

    pub(super) fn end_rests(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while let Some((_, name)) = self.rests.first().filter(|(at, _)| *at <= now).cloned() {
            self.leave_trees(&name, now, effects);
        }
    }

    /// A start on that VM is under way no more.
    pub(super) fn started(&mut self, name: &VmId, id: &StartId) {
        if let Some(vm) = self.vms.get_mut(name) {
            vm.starting.remove(id);
            self.pool(name);
        }
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
            // The node in which it waited was rebuilt.
            (Phase::Chosen, None) if start.queued => self.requeue(id, now, effects),
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
                self.changed.starts.insert(id.clone());
                let key = start.key.clone();
                self.unroute(id);
                self.vms.get_mut(vm).expect("it is up").starting.insert(id.clone());
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
            // Every accepted start is known until it has ended: this manager or one before has ended it.
            None => false,
            Some(start) if start.key != key => false,
            Some(start) => match start.phase {
                Phase::Recovering => true,
                // It waits because it was moved from there.
                Phase::Waiting => self.vms[vm].drain_by.is_none(),
                Phase::Chosen | Phase::Ordered | Phase::Ready | Phase::Ended => false,
            },
        };
        let needs = Resources { memory_bytes: told.memory_bytes, cpu_millis: told.cpu_millis };
        let fits = self.vms[vm].has_room(&key, needs, self.limits.functions_per_vm_max);
        let Some(function) = self.functions.get_mut(&key).filter(|_| free && fits) else {
            return effects.push(Effect::Stop { vm: vm.clone(), start: id.clone() });
        };
        let images: Vec<ImageId> = iter::once(told.image).chain(told.code).collect();
        let is_present =
            matches!(function.images(), Images::Ready(ready) if ready.ids().eq(images.iter().copied()));
        let revision = if is_present { function.revision } else { 0 };
        let start = &self.starts[id];
        function.unplaced.remove(&start.sequence);
        let was_waiting = start.phase == Phase::Waiting;
        self.starts_waiting.give_back(&key.0, usize::from(was_waiting));
        let start = self.starts.get_mut(id).expect("it is free");
        start.phase = Phase::Ordered;
        start.ends_as = None;
        start.revision = revision;
        start.chosen_at = Some(now);
        start.ordered_at = Some(now);
        start.has_served = true;
        self.assign(id, vm, images, needs);
        self.set_timer(id, Some(now + self.limits.ready_deadline + self.limits.lease));
        if told.ready {
            self.became_ready(id, now, effects);
        }
        self.found(id, now, effects);
    }

    fn vm_down(&mut self, name: &VmId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        vm.up = false;
        self.set_rest(name, Rest::None);
        self.pool(name);
        let vm = &self.vms[name];
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
        if let Some(start) = self.arrived(vm, id, now, effects) {
            start.phase = Phase::Ordered;
            start.ordered_at = Some(now);
        }
    }

    fn queued(&mut self, vm: &VmId, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        if let Some(start) = self.arrived(vm, id, now, effects) {
            start.queued = true;
        }
    }

    /// The order has reached its VM, or the node in front of it.
    fn arrived(
        &mut self,
        vm: &VmId,
        id: &StartId,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> Option<&mut Start> {
        let is_at = self.is_at(id, vm);
        let is_awaited = is_at && self.starts[id].phase == Phase::Chosen;
        // The start has ended, or is somewhere else, while its order was on its way; or it is to end.
        if !is_at || (is_awaited && self.starts[id].stopping) {
            effects.push(Effect::Stop { vm: vm.clone(), start: id.clone() });
        }
        if !is_awaited {
            return None;
        }
        self.changed.starts.insert(id.clone());
        // Those under way have ended by then: the agent says when it is too late, or has not a lease later.
        self.set_timer(id, Some(now + self.limits.ready_deadline + self.limits.lease));
        self.starts.get_mut(id)
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
        let writes = vec![delete, records::delete_drain(&name)];
        self.persist(writes, Change::RemoveVm { ticket, vm: name }, effects);
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
        if self.vms.contains_key(name) {
            // It may have come back meanwhile.
            self.vm_down(name, now, effects);
            self.set_drain(name, None, now);
        }
        self.set_holdings(name, Some(BTreeMap::new()), Some(BTreeMap::new()));
        self.changed.vms.insert(name.clone());
        if let Some(vm) = self.vms.remove(name) {
            self.count_size(vm.address.map(|_| vm.capacity), None);
        }
        if self.sizes.is_empty() {
            self.keep_each_min(now, effects);
        }
        effects.push(Effect::Forget { vm: name.clone() });
        effects.push(Effect::Answer { ticket, answer: Ok(Answer::Done) });
    }
}

impl Rest {
    fn ends_at(self) -> Option<Instant> {
        match self {
            Self::None => None,
            Self::Idle { until } => Some(until),
            Self::Leaving { again } => Some(again),
        }
    }
}

impl Vm {
    /// Who the VM is, once it has said so.
    pub(super) fn contact(&self) -> Option<Contact> {
        Some(Contact { address: self.address?, key_hash: self.key_hash.clone()? })
    }

    /// Whether one more instance keeps invariant 8.
    pub(super) fn has_room(&self, key: &FunctionKey, needs: Resources, functions_max: usize) -> bool {
        let own_tenant = self.tenant.as_ref().is_none_or(|tenant| *tenant == key.0);
        let function_fits = self.functions.contains_key(key) || self.functions.len() < functions_max;
        own_tenant && function_fits && self.capacity.minus(self.used).holds(needs)
    }

    pub(super) fn is_in_no_tree(&self) -> bool {
        self.trees_of().next().is_none()
    }

    /// As the pools are to know it.
    fn entry(&self, functions_max: usize) -> Option<Entry> {
        if !self.up || self.drain_by.is_some() || matches!(self.rest, Rest::Leaving { .. }) {
            return None;
        }
        // The images of one tenant are gone when another's start is there; a free VM may be anybody's.
        let held = self.held.keys().chain(self.cold.keys()).chain(self.preheats.keys());
        let held = held.filter(|tree| self.tenant.as_ref().is_none_or(|tenant| tree.tenant == *tenant));
        Some(Entry {
            tenant: self.tenant.clone(),
            starting: u32::try_from(self.starting.len()).unwrap_or(u32::MAX),
            room: self.capacity.minus(self.used),
            only: (self.functions.len() >= functions_max).then(|| self.functions.keys().cloned().collect()),
            trees: held.chain(self.trees.keys()).cloned().collect(),
        })
    }

    /// Whether it is counted in a pool; for tests.
    #[cfg(test)]
    pub(super) fn is_pooled(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.only.is_none())
    }
}

#[cfg(test)]
impl SchedulerCore {
    /// Checks that the VM is in the pool where it belongs.
    pub(super) fn check_pools(&self, name: &VmId, vm: &Vm) {
        assert_eq!(
            vm.entry,
            vm.entry(self.limits.functions_per_vm_max),
            "{name} is where it does not belong"
        );
        assert_eq!(
            vm.rest.ends_at().is_some(),
            vm.rest.ends_at().is_some_and(|at| self.rests.contains(&(at, name.clone())))
        );
        if !vm.up {
            return assert_eq!(vm.rest, Rest::None);
        }
        let is_free = vm.functions.is_empty() && vm.is_in_no_tree();
        assert_eq!(vm.tenant.is_none(), is_free, "free is what runs nothing and is in no tree");
        assert_eq!(vm.rest != Rest::None, vm.functions.is_empty() && !is_free, "{name} rests");
    }
}

fn by_tree(held: Vec<HeldTree>) -> BTreeMap<TreeId, HeldTree> {
    held.into_iter().map(|held| (held.tree.clone(), held)).collect()
}
