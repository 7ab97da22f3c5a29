//! Who waits for a VM, whose turn it is, and what a choice means.

use super::{Effect, FunctionKey, Images, Phase, ReadyImages, Rest, SchedulerCore, Tries, pools::Wanted};
use crate::{
    function_tree::{Role, StartDraft},
    id::{FunctionName, ImageId, StartId, TenantId, TreeId, VmId},
    image::BlockImage,
    resources::Resources,
    ring::Position,
    support::millis,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    ops::Bound,
    sync::Arc,
};
use tokio::time::Instant;

/// The functions of each tenant that are tried, the one with the oldest start first.
type Turns = BTreeMap<TenantId, BTreeSet<(u64, FunctionName)>>;

/// VMs looked at when one is to be taken back from another tenant: a search that finds none is made again with
/// each change, and must not look at everyone.
const RESTING_LOOKED_AT: usize = 1000;

impl SchedulerCore {
    /// Puts a start into the queue of its function, to be tried when this event is over.
    pub(super) fn queue(&mut self, id: &StartId) {
        let (key, sequence) = (self.starts[id].key.clone(), self.starts[id].sequence);
        let function = self.functions.get_mut(&key).expect("only starts of known functions wait");
        function.unplaced.insert(sequence, id.clone());
        self.queue.entry(key.0.clone()).or_default().insert(key.1.clone());
        self.tries.functions.insert(key);
    }

    /// Places as many starts as find room, among those for which there may be some.
    ///
    /// Tenants take turns, a start each, beginning behind the one who had the last turn ever, so that a
    /// tenant with one start waits for at most one of each other; a tenant's own are placed by age.
    pub(super) fn place_waiting(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let mut turns = self.turns();
        while let Some(tenant) = next(&turns, self.last_turn.as_ref()) {
            let functions = turns.get_mut(&tenant).expect("it was just there");
            let (_, name) = functions.pop_first().expect("tenants without functions are dropped");
            let key = (tenant.clone(), name);
            if self.place_next(&key, now, effects) {
                functions.extend(self.oldest(&key).map(|sequence| (sequence, key.1)));
            } else {
                self.take_back_idle(&key, now, effects);
            }
            if functions.is_empty() {
                turns.remove(&tenant);
            }
            self.last_turn = Some(tenant);
        }
    }

    fn turns(&mut self) -> Turns {
        let Tries { functions, tenants } = std::mem::take(&mut self.tries);
        let all = std::mem::take(&mut self.room_changed);
        let tried: Vec<FunctionKey> = if all {
            waiting(&self.queue, self.queue.keys())
        } else {
            let of_tenants = waiting(&self.queue, &tenants);
            of_tenants.into_iter().chain(functions).collect()
        };
        let mut turns = Turns::new();
        for (tenant, name) in tried {
            let key = (tenant, name);
            if self.functions.get(&key).is_none_or(|function| function.unplaced.is_empty()) {
                if let Some(names) = self.queue.get_mut(&key.0) {
                    names.remove(&key.1);
                    if names.is_empty() {
                        self.queue.remove(&key.0);
                    }
                }
            } else if let Some(sequence) = self.oldest(&key) {
                turns.entry(key.0).or_default().insert((sequence, key.1));
            }
        }
        turns
    }

    /// The oldest start of a function that can be placed.
    fn oldest(&self, key: &FunctionKey) -> Option<u64> {
        let function = self.functions.get(key)?;
        let is_ready = matches!(function.images(), Images::Ready(_));
        function.unplaced.first_key_value().filter(|_| is_ready).map(|(sequence, _)| *sequence)
    }

    /// Places one start of the function. False if there is no room for any.
    fn place_next(&mut self, key: &FunctionKey, now: Instant, effects: &mut Vec<Effect>) -> bool {
        let function = &self.functions[key];
        let Images::Ready(ready) = function.images() else { return false };
        // The larger one as a rule, and the one that other functions share.
        let tree = TreeId { tenant: key.0.clone(), image: ready.image.id };
        let needs = function.spec.needs();
        let wanted =
            Wanted { key, tree: &tree, needs, position: Position::of(&format!("{}/{}", key.0, key.1)) };
        let functions_max = self.limits.functions_per_vm_max;
        let mut chosen = None;
        for (sequence, id) in &function.unplaced {
            let avoid = &self.starts[id].avoid;
            let suits = |vm: &VmId| !avoid.contains(vm) && self.vms[vm].has_room(key, needs, functions_max);
            chosen = self.pools.find(&wanted, suits).map(|vm| (*sequence, vm));
            // One that avoids no VM speaks for all behind it.
            if chosen.is_some() || avoid.is_empty() {
                break;
            }
        }
        let Some((sequence, vm)) = chosen else { return false };
        let unplaced = &mut self.functions.get_mut(key).expect("it was just there").unplaced;
        let id = unplaced.remove(&sequence).expect("it was just there");
        self.choose(&id, &vm, now, effects);
        true
    }

    /// Asks for VMs back that rest with other tenants, those that rest longest first, as many as the
    /// function has starts without room. They are free when they have left their trees.
    fn take_back_idle(&mut self, key: &FunctionKey, now: Instant, effects: &mut Vec<Effect>) {
        let function = &self.functions[key];
        let needs = function.spec.needs();
        let missing = function.unplaced.len().saturating_sub(self.leaving);
        let may_go = |name: &VmId| {
            let vm = &self.vms[name];
            vm.up
                && vm.drain_by.is_none()
                && matches!(vm.rest, Rest::Idle { .. })
                && vm.tenant.as_ref() != Some(&key.0)
                && vm.capacity.holds(needs)
        };
        let longest = self.rests.iter().take(RESTING_LOOKED_AT).map(|(_, name)| name);
        let idle = longest.filter(|name| may_go(name));
        for name in idle.take(missing).cloned().collect::<Vec<_>>() {
            self.leave_trees(&name, now, effects);
        }
    }

    fn choose(&mut self, id: &StartId, vm: &VmId, now: Instant, effects: &mut Vec<Effect>) {
        let key = &self.starts[id].key;
        let Images::Ready(ReadyImages { image, code }) = self.functions[key].images() else { return };
        let (image, code, tenant) = (Arc::clone(image), code.cloned(), key.0.clone());
        let tree = TreeId { tenant: tenant.clone(), image: image.id };
        let (hot, record) = self.look_ahead(vm, &tree, &image);
        if record {
            self.records(id, (tenant.clone(), image.source));
        }
        let start = self.starts.get_mut(id).expect("it waits");
        let function = &self.functions[&start.key];
        start.phase = Phase::Chosen;
        start.chosen_at = Some(now);
        start.revision = function.revision;
        let draft = StartDraft {
            start: id.clone(),
            request: start.request.clone(),
            function: start.key.1.clone(),
            image,
            role: if code.is_some() { Role::Runtime } else { Role::Whole },
            env: function.spec.env.clone(),
            command: function.spec.command.clone(),
            needs: function.spec.needs(),
            probe_path: function.spec.probe_path.clone(),
            mode: function.spec.mode,
            ready_deadline_ms: millis(self.limits.ready_deadline),
            record,
            hot,
        };
        let of_code = |code: Arc<BlockImage>| StartDraft {
            image: code,
            role: Role::Code,
            env: BTreeMap::new(),
            command: None,
            probe_path: String::new(),
            record: false,
            hot: Default::default(),
            ..draft.clone()
        };
        let drafts: Vec<StartDraft> = iter::once(draft.clone()).chain(code.map(of_code)).collect();
        let needs = draft.needs;
        let images: Vec<ImageId> = drafts.iter().map(|draft| draft.image.id).collect();
        self.starts_waiting.give_back(&tenant, 1);
        self.set_timer(id, Some(now + self.limits.lease));
        let contact = self.vms[vm].contact().expect("a VM that is up has said who it is");
        self.assign(id, vm, images, needs);
        // Each of the trees gives its part of the order; they meet at the VM's node.
        effects.extend(drafts.into_iter().map(|draft| Effect::Join {
            tree: TreeId { tenant: tenant.clone(), image: draft.image.id },
            vm: vm.clone(),
            contact: contact.clone(),
            start: Box::new(draft),
        }));
    }

    pub(super) fn assign(&mut self, id: &StartId, name: &VmId, images: Vec<ImageId>, needs: Resources) {
        let start = self.starts.get_mut(id).expect("callers looked");
        debug_assert!(start.vm.is_none(), "a start has one VM");
        start.vm = Some(name.clone());
        start.images = images;
        start.needs = needs;
        for tree in start.trees() {
            *self.trees.entry(tree).or_default() += 1;
        }
        let vm = self.vms.get_mut(name).expect("callers looked");
        debug_assert!(vm.has_room(&start.key, needs, self.limits.functions_per_vm_max), "invariant 8");
        self.changed.starts.insert(id.clone());
        vm.tenant = Some(start.key.0.clone());
        vm.used = vm.used.plus(needs);
        vm.functions.entry(start.key.clone()).or_default().insert(id.clone());
        vm.starting.insert(id.clone());
        for tree in start.trees() {
            vm.going.remove(&tree);
            *vm.trees.entry(tree).or_default() += 1;
        }
        self.set_rest(name, Rest::None);
        self.pool(name);
    }

    /// Gives back what a start has on its VM.
    pub(super) fn unassign(&mut self, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        let start = self.starts.get_mut(id).expect("callers looked");
        self.changed.starts.insert(id.clone());
        let Some(name) = start.vm.clone() else { return };
        self.changed.vms.insert(name.clone());
        let trees: Vec<TreeId> = start.trees().collect();
        let mut emptied = BTreeSet::new();
        if let Some(vm) = self.vms.get_mut(&name) {
            vm.used = vm.used.minus(start.needs);
            vm.starting.remove(id);
            if let Some(starts) = vm.functions.get_mut(&start.key) {
                starts.remove(id);
                if starts.is_empty() {
                    vm.functions.remove(&start.key);
                }
            }
            for tree in &trees {
                if let Some(instances) = vm.trees.get_mut(tree) {
                    *instances -= 1;
                    if *instances == 0 {
                        vm.trees.remove(tree);
                        emptied.insert(tree.clone());
                    }
                }
            }
            self.settle(&name, now);
        }
        for tree in trees {
            let users = self.trees.get_mut(&tree).expect("counted when assigned");
            *users -= 1;
            if *users == 0 {
                self.trees.remove(&tree);
                self.dissolve_if_unused(&tree, effects);
            } else if emptied.contains(&tree) && !self.is_current(&tree) {
                // Only instances on other VMs need it still.
                effects.push(Effect::Leave { tree, vm: name.clone() });
            }
        }
    }

    /// Checks that nobody waits who could be placed; for tests, because it looks at everyone.
    #[cfg(test)]
    pub(super) fn check_waiting(&self) {
        for (key, function) in &self.functions {
            let Images::Ready(_) = function.images() else { continue };
            let needs = function.spec.needs();
            for id in function.unplaced.values() {
                assert_eq!(self.starts[id].phase, Phase::Waiting);
                let may = |name: &&VmId| {
                    let vm = &self.vms[*name];
                    vm.entry.is_some()
                        && vm.has_room(key, needs, self.limits.functions_per_vm_max)
                        && !self.starts[id].avoid.contains(*name)
                };
                assert_eq!(self.vms.keys().find(may), None, "{id} waits although there is room");
            }
        }
    }
}

/// The functions of those tenants that may have starts without a VM.
fn waiting<'a>(
    queue: &BTreeMap<TenantId, BTreeSet<FunctionName>>,
    tenants: impl IntoIterator<Item = &'a TenantId>,
) -> Vec<FunctionKey> {
    let of = |tenant: &TenantId| {
        let names = queue.get(tenant).into_iter().flatten();
        names.map(|name| (tenant.clone(), name.clone())).collect::<Vec<_>>()
    };
    tenants.into_iter().flat_map(of).collect()
}

/// The tenant behind that one, around the circle.
fn next(turns: &Turns, last: Option<&TenantId>) -> Option<TenantId> {
    let behind = last.and_then(|last| turns.range((Bound::Excluded(last), Bound::Unbounded)).next());
    behind.or_else(|| turns.first_key_value()).map(|(tenant, _)| tenant.clone())
}
