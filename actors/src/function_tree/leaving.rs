//! Who was taken out of the tree and still serves those who were its children: it is told to leave when
//! each of them has said that it has its new place, or a lease later.

use crate::id::{Epoch, VmId};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

/// VMs that are no members any more and have not been told. Bounded by those who were members within a lease.
#[derive(Default)]
pub(super) struct Leaving {
    /// Each with its former children and the epoch of the place that they have got instead.
    vms: BTreeMap<VmId, Held>,
    /// Who waits for the word of each child.
    awaited: BTreeMap<VmId, BTreeSet<VmId>>,
    deadlines: BTreeSet<(Instant, VmId)>,
    /// Those for whom nobody is missing.
    free: Vec<VmId>,
}

struct Held {
    children: BTreeMap<VmId, Epoch>,
    until: Instant,
}

impl Leaving {
    pub fn hold(&mut self, vm: VmId, children: BTreeMap<VmId, Epoch>, until: Instant) {
        for child in children.keys() {
            self.awaited.entry(child.clone()).or_default().insert(vm.clone());
        }
        self.deadlines.insert((until, vm.clone()));
        if children.is_empty() {
            self.free.push(vm.clone());
        }
        self.vms.insert(vm, Held { children, until });
    }

    pub fn holds(&self, vm: &VmId) -> bool {
        self.vms.contains_key(vm)
    }

    /// The VM is a member again, or not there any more, or told. False if it was not held.
    pub fn forget(&mut self, vm: &VmId) -> bool {
        let Some(Held { children, until }) = self.vms.remove(vm) else { return false };
        self.deadlines.remove(&(until, vm.clone()));
        for child in children.keys() {
            self.wait_no_more(child, vm);
        }
        true
    }

    fn wait_no_more(&mut self, child: &VmId, vm: &VmId) {
        if let Some(vms) = self.awaited.get_mut(child) {
            vms.remove(vm);
            if vms.is_empty() {
                self.awaited.remove(child);
            }
        }
    }

    /// The child has its place of that epoch.
    pub fn has_place(&mut self, child: &VmId, epoch: Epoch) {
        self.settle(child, |placed| epoch >= placed);
    }

    /// The child is no member any more: its word is not waited for.
    pub fn gone(&mut self, child: &VmId) {
        self.settle(child, |_| true);
    }

    fn settle(&mut self, child: &VmId, is_enough: impl Fn(Epoch) -> bool) {
        for vm in self.awaited.get(child).cloned().unwrap_or_default() {
            let children = &mut self.vms.get_mut(&vm).expect("only those who are held wait").children;
            if !is_enough(children[child]) {
                continue;
            }
            children.remove(child);
            if children.is_empty() {
                self.free.push(vm.clone());
            }
            self.wait_no_more(child, &vm);
        }
    }

    /// Those who may leave now.
    pub fn released(&mut self, now: Instant) -> Vec<VmId> {
        let due = self.deadlines.iter().take_while(|(until, _)| *until <= now).map(|(_, vm)| vm.clone());
        let mut released: Vec<VmId> = std::mem::take(&mut self.free).into_iter().chain(due).collect();
        // Some may be back meanwhile, or be named by both.
        released.retain(|vm| self.forget(vm));
        released
    }

    /// All of them, whoever they wait for.
    pub fn take_all(&mut self) -> impl Iterator<Item = VmId> {
        std::mem::take(self).vms.into_keys()
    }

    pub fn iter(&self) -> impl Iterator<Item = &VmId> {
        self.vms.keys()
    }
}
