//! Consistent hashing: the order in which VMs are considered for a function, and the thread of a tree. A
//! VM that comes or goes changes the order of few functions, and each function has an order of its own.
//!
//! Positions are never stored or sent, so they may change with the program.

use consistent_hash::{Node, RingHash, StaticHashRing};
use std::hash::{Hash, Hasher};
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::VmId;

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
}
