//! `complete`: every place but those of the last level is taken, from left to right.
//!
//! The members lie in one list, the children of place `p` at `d * p + 1 ..= d * p + d`. A VM joins at
//! the end; when one leaves, the last of the list takes its place. Both move nobody else (invariant 2),
//! and the height is always that of a complete tree.

use super::Topology;
use crate::id::VmId;
use std::collections::{BTreeMap, BTreeSet};

pub struct Complete {
    fan_out: usize,
    members: Vec<VmId>,
    places: BTreeMap<VmId, usize>,
}

impl Complete {
    /// `fan_out` is the number of children of a VM, at least 1.
    pub fn new(fan_out: usize) -> Self {
        assert!(fan_out >= 1, "a tree without children has one member");
        Self { fan_out, members: Vec::new(), places: BTreeMap::new() }
    }

    fn children_of(&self, place: usize) -> &[VmId] {
        let first = (place * self.fan_out + 1).min(self.members.len());
        let end = (first + self.fan_out).min(self.members.len());
        &self.members[first..end]
    }
}

impl Topology for Complete {
    fn join(&mut self, vm: &VmId) -> BTreeSet<VmId> {
        let before = self.places.insert(vm.clone(), self.members.len());
        assert!(before.is_none(), "a tree has each member once (invariant 1)");
        self.members.push(vm.clone());
        BTreeSet::from([vm.clone()])
    }

    fn leave(&mut self, vm: &VmId) -> BTreeSet<VmId> {
        let Some(place) = self.places.remove(vm) else { return BTreeSet::new() };
        let last = self.members.pop().expect("whoever has a place is in the list");
        if last == *vm {
            return BTreeSet::new();
        }
        self.members[place] = last.clone();
        self.places.insert(last.clone(), place);
        self.children_of(place).iter().cloned().chain([last]).collect()
    }

    fn stripes(&self) -> usize {
        1
    }

    fn parent(&self, vm: &VmId, _stripe: usize) -> Option<&VmId> {
        let place = *self.places.get(vm)?;
        let above = place.checked_sub(1)? / self.fan_out;
        Some(&self.members[above])
    }

    fn children(&self, vm: &VmId, _stripe: usize) -> Vec<&VmId> {
        self.places.get(vm).map_or_else(Vec::new, |&place| self.children_of(place).iter().collect())
    }

    fn members(&self) -> &[VmId] {
        &self.members
    }

    fn place(&self, vm: &VmId) -> Option<usize> {
        self.places.get(vm).copied()
    }

    fn height(&self) -> u32 {
        let mut last = self.members.len().saturating_sub(1);
        let mut height = 0;
        while last > 0 {
            last = (last - 1) / self.fan_out;
            height += 1;
        }
        height
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::ancestors;
    use proptest::prelude::*;

    fn vm(number: u32) -> VmId {
        format!("vm-{number}").parse().expect("name")
    }

    /// Edges of a tree of `count` members in which every level but the last is full.
    fn height_wanted(count: usize, fan_out: usize) -> u32 {
        let (mut room, mut level, mut height) = (1, 1, 0);
        while room < count {
            level *= fan_out;
            room += level;
            height += 1;
        }
        height
    }

    fn parents(tree: &Complete) -> BTreeMap<VmId, Option<VmId>> {
        tree.members().iter().map(|vm| (vm.clone(), tree.parent(vm, 0).cloned())).collect()
    }

    proptest! {
        #[test]
        fn any_history_leaves_one_complete_tree_and_names_exactly_who_moved(
            fan_out in 1_usize..5,
            history in proptest::collection::vec((0_u32..40, proptest::bool::ANY), 1..400),
        ) {
            let mut tree = Complete::new(fan_out);
            let mut members = BTreeSet::new();
            for (number, joins) in history {
                let (before, places) = (parents(&tree), tree.places.clone());
                let vm = vm(number);
                let changed = if joins && !members.contains(&vm) {
                    members.insert(vm.clone());
                    tree.join(&vm)
                } else {
                    members.remove(&vm);
                    tree.leave(&vm)
                };
                let after = parents(&tree);
                prop_assert_eq!(after.keys().cloned().collect::<BTreeSet<_>>(), members.clone());
                prop_assert_eq!(tree.height(), height_wanted(members.len(), fan_out));
                let moved = places.iter().filter(|(name, place)| {
                    tree.place(name).is_some_and(|now| now != **place)
                });
                prop_assert!(moved.count() <= 1, "invariant 2");
                for (name, parent) in &after {
                    let other = before.get(name) != Some(parent);
                    prop_assert!(changed.contains(name) || !other, "{} moved silently", name);
                    prop_assert!(ancestors(&tree, name, 0).count() <= tree.height() as usize);
                    prop_assert!(tree.children(name, 0).len() <= fan_out);
                    for child in tree.children(name, 0) {
                        prop_assert_eq!(tree.parent(child, 0), Some(name));
                    }
                }
                prop_assert_eq!(after.values().filter(|parent| parent.is_none()).count(), members.len().min(1));
            }
        }
    }
}
