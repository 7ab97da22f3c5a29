//! Who is not served by whom: a pair of VMs that cannot reach each other is remembered, a VM that serves
//! nobody is found out.

use crate::tree::Node;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// Pairs of a VM and an upstream that does not serve it. Bounded by members and the names in a place.
#[derive(Default)]
pub(super) struct Complaints {
    /// The upstream, whoever is not served, and when that was said.
    pairs: BTreeMap<Node, BTreeMap<Node, Instant>>,
    /// VMs that none of their ancestors serves, and since when.
    alone: BTreeMap<Node, Instant>,
    /// VMs that were ready until they were found at fault, and when that was.
    doubted: BTreeMap<Node, Instant>,
}

impl Complaints {
    pub fn add(&mut self, by: Node, about: Node, now: Instant) {
        self.pairs.entry(about).or_default().insert(by, now);
    }

    pub fn holds(&self, by: Node, about: Node) -> bool {
        self.pairs.get(&about).is_some_and(|complainers| complainers.contains_key(&by))
    }

    /// One child alone may be cut off itself. An upstream is at fault when most of its children say so,
    /// two at least; a root only when all do, because a new root may have to read the origin.
    pub fn is_at_fault(&self, node: Node, children: &BTreeSet<Node>, is_root: bool) -> bool {
        let complaints = children.iter().filter(|child| self.holds(**child, node)).count();
        if is_root {
            return complaints > 0 && complaints == children.len();
        }
        complaints >= 2 && 2 * complaints > children.len()
    }

    pub fn wait_alone(&mut self, node: Node, now: Instant) {
        self.alone.entry(node).or_insert(now);
    }

    /// Takes those who have been alone for that long.
    pub fn alone_for(&mut self, now: Instant, length: Duration) -> Vec<Node> {
        self.alone.extract_if(.., |_, since| now >= *since + length).map(|(node, _)| node).collect()
    }

    pub fn doubt(&mut self, node: Node, now: Instant) {
        self.doubted.insert(node, now);
    }

    /// It has said again that it serves.
    pub fn trust(&mut self, node: Node) {
        self.doubted.remove(&node);
    }

    /// Takes those who have been doubted for that long.
    pub fn doubted_for(&mut self, now: Instant, length: Duration) -> Vec<Node> {
        self.doubted.extract_if(.., |_, since| now >= *since + length).map(|(node, _)| node).collect()
    }

    /// The VM has another place: what its former children said is over.
    pub fn forget_about(&mut self, node: Node) {
        self.pairs.remove(&node);
    }

    /// The VM is gone.
    pub fn forget(&mut self, node: Node) {
        self.pairs.remove(&node);
        self.alone.remove(&node);
        self.doubted.remove(&node);
        for complainers in self.pairs.values_mut() {
            complainers.remove(&node);
        }
    }

    /// Forgets what is older than `life`. Returns those whose upstreams are tried again.
    pub fn expire(&mut self, now: Instant, life: Duration) -> Vec<Node> {
        let mut expired = Vec::new();
        for complainers in self.pairs.values_mut() {
            let old = complainers.extract_if(.., |_, at| now >= *at + life);
            expired.extend(old.map(|(by, _)| by));
        }
        self.pairs.retain(|_, complainers| !complainers.is_empty());
        expired
    }
}
