//! Who holds which image, and which images a VM with a full cache gives up.

use super::{Effect, SchedulerCore, Vm};
use crate::{
    block_store::choose,
    id::{TreeId, VmId},
    wire::control::{Candidate, ColdTree, HeldTree},
};
use std::collections::{BTreeMap, BTreeSet};

impl SchedulerCore {
    /// Takes over what a VM says that it holds, as a member or of trees that it has left.
    pub(super) fn set_holdings(
        &mut self,
        name: &VmId,
        held: Option<BTreeMap<TreeId, HeldTree>>,
        cold: Option<BTreeMap<TreeId, ColdTree>>,
    ) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        self.changed.vms.insert(name.clone());
        let before = vm.holdings();
        if let Some(held) = held {
            vm.held = held;
        }
        if let Some(cold) = cold {
            vm.cold = cold;
        }
        let now = vm.holdings();
        vm.going.retain(|tree| now.contains(tree));
        for tree in now.difference(&before) {
            self.holders.entry(tree.clone()).or_default().insert(name.clone());
        }
        for tree in before.difference(&now) {
            self.holds_no_more(name, tree);
        }
    }

    fn holds_no_more(&mut self, name: &VmId, tree: &TreeId) {
        if let Some(holders) = self.holders.get_mut(tree) {
            holders.remove(name);
            if holders.is_empty() {
                self.holders.remove(tree);
            }
        }
    }

    /// A VM whose cache is full gives up images that nothing on it uses: what others hold before last copies, and
    /// what it did not use for longest first. Those of trees that it is in their trees let go. What is given up
    /// counts as no copy from now on, so that of two VMs which ask at once one keeps theirs.
    pub(super) fn room_wanted(
        &mut self,
        name: &VmId,
        bytes: u64,
        mut candidates: Vec<Candidate>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(vm) = self.vms.get(name).filter(|vm| vm.up) else { return };
        let is_free_to_go = |tree: &TreeId| {
            (vm.cold.contains_key(tree) || vm.held.contains_key(tree)) && !vm.trees.contains_key(tree)
        };
        candidates.retain(|candidate| is_free_to_go(&candidate.tree));
        let chosen = choose(candidates, bytes, |tree| self.is_held_elsewhere(name, tree));
        let members = chosen.iter().filter(|tree| vm.held.contains_key(*tree));
        effects.extend(members.map(|tree| Effect::Leave { tree: tree.clone(), vm: name.clone() }));
        effects.push(Effect::GiveUp { vm: name.clone(), trees: chosen.clone() });
        self.vms.get_mut(name).expect("it was just there").going.extend(chosen);
    }

    /// Whether another VM holds about as much of the image as this one.
    fn is_held_elsewhere(&self, name: &VmId, tree: &TreeId) -> bool {
        let own = self.vms[name].blocks_of(tree);
        let holds = |other: &&VmId| {
            let vm = &self.vms[*other];
            let is_copy = 10 * u64::from(vm.blocks_of(tree)) >= 9 * u64::from(own);
            *other != name && vm.up && !vm.going.contains(tree) && is_copy
        };
        self.holders.get(tree).into_iter().flatten().any(|other| holds(&other))
    }

    #[cfg(test)]
    pub(super) fn check_holders(&self) {
        let mut holders: BTreeMap<TreeId, BTreeSet<VmId>> = BTreeMap::new();
        for (name, vm) in &self.vms {
            for tree in vm.holdings() {
                holders.entry(tree).or_default().insert(name.clone());
            }
            assert!(vm.going.is_subset(&vm.holdings()));
        }
        assert_eq!(holders, self.holders);
    }
}

impl Vm {
    fn holdings(&self) -> BTreeSet<TreeId> {
        self.held.keys().chain(self.cold.keys()).cloned().collect()
    }

    pub(super) fn blocks_of(&self, tree: &TreeId) -> u32 {
        let held = self.held.get(tree).map(|held| held.blocks_present);
        held.or_else(|| self.cold.get(tree).map(|cold| cold.blocks_present)).unwrap_or_default()
    }
}
