//! Consistent hashing: the order in which VMs are considered for a function, and the thread of a tree. A
//! VM that comes or goes changes the order of few functions, and each function has an order of its own.
//!
//! Positions are never stored or sent, so they may change with the program.

use crate::id::VmId;
use consistent_hash::{Node, RingHash, StaticHashRing};
use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
};
use xxhash_rust::xxh3::Xxh3;

/// Positions of each name on the ring: with 16 the share of a VM is within a third of the mean, and
/// building a ring of 1,000 VMs stays within milliseconds.
const POSITIONS_OF_EACH: usize = 16;

/// Hashes the bytes of names; Rust's own `Hash` of a string is not the same in all versions.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Name<T>(T);

impl<T: AsRef<[u8]>> Hash for Name<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.0.as_ref());
    }
}

struct ByXxh3;

impl RingHash for ByXxh3 {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut hasher = Xxh3::new();
        item.hash(&mut hasher);
        hasher.digest()
    }

    fn hash_vnode<K: Hash>(&self, node_key: &K, vnode_seq: usize) -> u64 {
        let mut hasher = Xxh3::new();
        node_key.hash(&mut hasher);
        hasher.update(&(vnode_seq as u64).to_le_bytes());
        hasher.digest()
    }
}

/// Names on a ring. Made anew when one comes or goes.
pub struct Ring<N: AsRef<[u8]> + Ord + 'static>(StaticHashRing<'static, Name<N>, (), ByXxh3>);

impl<N: AsRef<[u8]> + Ord + Clone + 'static> Ring<N> {
    pub fn new(names: impl Iterator<Item = N>) -> Self {
        let nodes = names.map(|name| Node::new(Name(name)).quantity(POSITIONS_OF_EACH));
        Self(StaticHashRing::new(ByXxh3, nodes))
    }

    /// Each name once, in the order for that key.
    pub fn order(&self, key: &str) -> Vec<N> {
        self.0.calc_candidates(&Name(key)).map(|node| node.key.0.clone()).collect()
    }

    /// The first of that order.
    pub fn first(&self, key: &str) -> Option<N> {
        self.0.calc_candidates(&Name(key)).next().map(|node| node.key.0.clone())
    }
}

/// Positions of a VM on a ring that changes. One would leave all functions of a VM that goes to a single
/// other; more cost time with each change, and do not spread better, because a VM that is taken leaves.
const POSITIONS_OF_A_VM: usize = 4;

/// Where a function begins to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position(u64);

impl Position {
    pub fn of(key: &str) -> Self {
        Self(ByXxh3.hash_item(&Name(key)))
    }
}

/// VMs on a ring that changes in place, with the order of a `StaticHashRing` made anew: placement puts VMs
/// in and takes them out thousands of times a second, and each costs but a logarithm of how many there are.
#[derive(Debug, Default)]
pub struct VmRing {
    /// None sorts before every VM at its position, so that a walk may begin there.
    places: BTreeSet<(u64, Option<VmId>)>,
}

impl VmRing {
    pub fn insert(&mut self, vm: &VmId) {
        self.places.extend(places(vm));
    }

    pub fn remove(&mut self, vm: &VmId) {
        for place in places(vm) {
            self.places.remove(&place);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub fn len(&self) -> usize {
        self.places.len() / POSITIONS_OF_A_VM
    }

    /// All VMs in the order from there; each comes as often as it has positions.
    pub fn walk(&self, Position(from): Position) -> impl Iterator<Item = &VmId> {
        let ahead = self.places.range((from, None)..);
        ahead.chain(self.places.range(..(from, None))).filter_map(|(_, vm)| vm.as_ref())
    }
}

fn places(vm: &VmId) -> impl Iterator<Item = (u64, Option<VmId>)> {
    let name = Name(vm.as_str());
    (0..POSITIONS_OF_A_VM).map(move |number| (ByXxh3.hash_vnode(&name, number), Some(vm.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vms(count: usize) -> Vec<VmId> {
        (0..count).map(|number| format!("vm-{number}").parse().expect("name")).collect()
    }

    #[test]
    fn every_vm_is_in_the_order_once_and_keys_differ() {
        let ring = Ring::new(vms(50).into_iter());
        let mut order = ring.order("acme/api");
        assert_ne!(order, ring.order("acme/web"));
        order.sort();
        let mut all = vms(50);
        all.sort();
        assert_eq!(order, all);
        assert!(Ring::<VmId>::new(std::iter::empty()).order("acme/api").is_empty());
    }

    #[test]
    fn a_vm_that_goes_leaves_the_order_of_the_others_unchanged() {
        let before = Ring::new(vms(50).into_iter()).order("acme/api");
        let gone = before[0].clone();
        let after = Ring::new(vms(50).into_iter().filter(|vm| *vm != gone)).order("acme/api");
        assert_eq!(after, before[1..]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_ring_that_was_changed_has_the_order_of_one_made_anew(
            changes in proptest::collection::vec((0_usize..60, any::<bool>()), 0..120),
        ) {
            let (names, mut ring) = (vms(60), VmRing::default());
            let mut members = BTreeSet::new();
            for (number, comes) in changes {
                let vm = &names[number];
                if comes {
                    ring.insert(vm);
                    members.insert(vm);
                } else {
                    ring.remove(vm);
                    members.remove(vm);
                }
            }
            let nodes = members.iter().map(|vm| Node::new(Name(vm.as_str())).quantity(POSITIONS_OF_A_VM));
            let anew = StaticHashRing::new(ByXxh3, nodes);
            prop_assert_eq!(ring.len(), members.len());
            for key in ["acme/api", "acme/web", "other/api"] {
                let expected: Vec<&str> = anew.calc_candidates(&Name(key)).map(|node| node.key.0).collect();
                let mut seen = BTreeSet::new();
                let found = ring.walk(Position::of(key)).map(VmId::as_str).filter(|vm| seen.insert(*vm));
                prop_assert_eq!(found.collect::<Vec<_>>(), expected);
            }
        }
    }
}
