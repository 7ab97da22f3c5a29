//! VMs that are asked only for what they hold: by a root before it reads the origin, by its children when
//! the root is silent.

use super::core::{Named, TreeCore};
use crate::tree::Node;
use std::{cmp::Reverse, collections::BTreeSet};

/// VMs named beside a root: its children and whoever holds most. A block that none of them has is with
/// nobody, or deep in the tree.
const BESIDE_ROOT: usize = 3;

impl TreeCore {
    /// Whom a member may ask for what they hold, besides those who are named for stripes.
    pub(super) fn beside(&self, node: Node, stripes: &[Named]) -> Vec<Node> {
        let is_at = |depth| stripes.iter().any(|named| named.depth == depth);
        let is_root = is_at(0);
        if !is_root && !is_at(1) {
            return Vec::new(); // it has two ancestors, and a helper if there is one
        }
        let suits = |other: &Node| {
            *other != node
                && !self.complaints.holds(node, *other)
                && !stripes.iter().flat_map(Named::all).any(|name| name == *other)
                && (is_root || self.member(*other).ready)
        };
        let told = &self.member(node).names;
        let before: Vec<Node> =
            told.beside.iter().copied().filter(|other| self.is_member(*other) && suits(other)).collect();
        // Whoever was root before has read all that the others have, and need not ask them.
        let was_root = told.stripes.iter().any(|named| named.depth == 0);
        if if is_root { was_root } else { !before.is_empty() } {
            return before;
        }
        let near = self.helpers.near.iter().copied().filter(|other| self.is_member(*other) && suits(other));
        if !is_root {
            return self.pick(node, near).into_iter().collect();
        }
        let mut seen = BTreeSet::new();
        let mut richest: Vec<Node> = near.filter(|other| seen.insert(*other)).collect();
        richest.sort_by_key(|other| Reverse(self.member(*other).blocks_present));
        richest.truncate(BESIDE_ROOT);
        richest
    }

    /// The members that have this one beside them: roots and their children at most.
    pub(super) fn beside_which(&self, node: Node) -> Vec<Node> {
        let tree = self.topology.as_ref();
        let roots = (0..tree.stripes()).filter_map(|stripe| Some((tree.root(stripe)?, stripe)));
        let near = roots.flat_map(|(root, stripe)| tree.children(root, stripe).into_iter().chain([root]));
        near.filter(|other| self.is_member(*other) && self.member(*other).names.beside.contains(&node))
            .collect()
    }
}
