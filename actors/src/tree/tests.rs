//! What holds of every shape over long random histories, and what each promises of its own.

use super::{Complete, Node, Topology, ancestors, breadth_first};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// The parents of each member, one for each stripe.
type Parents = BTreeMap<Node, Vec<Option<Node>>>;

/// A shape, who is in it, and what one step has changed.
struct Grove {
    tree: Box<dyn Topology>,
    fan_out: usize,
    ready: BTreeSet<Node>,
    parents: Parents,
}

/// What one step did.
struct Step {
    before: Parents,
    moved: BTreeSet<Node>,
}

impl Grove {
    fn new(tree: impl Topology + 'static, fan_out: usize) -> Self {
        Self { tree: Box::new(tree), fan_out, ready: BTreeSet::new(), parents: Parents::new() }
    }

    /// Lets a member leave, or anyone else join, and checks what holds of every shape.
    fn toggle(&mut self, node: Node) -> Step {
        let mut before = std::mem::take(&mut self.parents);
        let is_member = before.contains_key(&node);
        let moved = if is_member { self.tree.leave(node) } else { self.tree.join(node) };
        self.ready.remove(&node);
        let mut members: BTreeSet<Node> = before.keys().copied().collect();
        if !members.insert(node) {
            members.remove(&node);
        }
        let tree = self.tree.as_ref();
        let stripes = 0..tree.stripes();
        let parents_of = |node| stripes.clone().map(|stripe| tree.parent(node, stripe)).collect();
        self.parents = members.iter().map(|&node| (node, parents_of(node))).collect();
        assert_eq!(tree.len(), members.len(), "invariant 1");
        let mut height = 0;
        for stripe in stripes.clone() {
            let reached: Vec<Node> = breadth_first(tree, stripe).take(members.len() + 1).collect();
            assert_eq!(reached.iter().copied().collect::<BTreeSet<_>>(), members, "invariant 1");
            assert_eq!(reached.len(), members.len(), "invariant 1");
            for &node in &members {
                let above = ancestors(tree, node, stripe).count();
                height = height.max(above);
                for child in tree.children(node, stripe) {
                    assert_eq!(tree.parent(child, stripe), Some(node));
                }
                assert_eq!(above == 0, tree.root(stripe) == Some(node), "one root (invariant 1)");
            }
        }
        assert_eq!(tree.height() as usize, height);
        let changed = self.parents.iter().filter(|(node, parents)| before.get(node) != Some(parents));
        let changed: Vec<Node> = changed.map(|(node, _)| *node).collect();
        let mut told = moved.clone();
        told.sort();
        assert_eq!(told, changed, "exactly those with another parent are named, each once");
        before.remove(&node);
        Step { before, moved: moved.into_iter().filter(|other| *other != node).collect() }
    }

    fn set_ready(&mut self, node: Node) {
        self.tree.set_ready(node);
        if self.parents.contains_key(&node) {
            self.ready.insert(node);
        }
    }

    fn depth(&self, node: Node) -> usize {
        ancestors(self.tree.as_ref(), node, 0).count()
    }
}

/// Edges of a tree of `count` members in which every level but the last is full.
fn complete_height(count: usize, fan_out: usize) -> u32 {
    let (mut room, mut level, mut height) = (1, 1, 0);
    while room < count {
        level *= fan_out;
        room += level;
        height += 1;
    }
    height
}

/// Joins and leaves, more of the former at first, and members that become ready.
fn history() -> impl Strategy<Value = Vec<(u32, bool)>> {
    proptest::collection::vec((0_u32..60, proptest::bool::weighted(0.7)), 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn complete_has_the_exact_height_and_a_leave_moves_one_other(fan_out in 1_usize..5, steps in history()) {
        let mut grove = Grove::new(Complete::new(fan_out), fan_out);
        for (number, toggles) in steps {
            let node = Node(number);
            if !toggles {
                grove.set_ready(node);
                continue;
            }
            let was_member = grove.parents.contains_key(&node);
            let Step { before, moved } = grove.toggle(node);
            prop_assert_eq!(grove.tree.height(), complete_height(grove.tree.len(), fan_out), "invariant 2");
            for node in grove.parents.keys() {
                prop_assert!(grove.tree.children(*node, 0).len() <= grove.fan_out);
            }
            if !was_member {
                prop_assert!(moved.is_empty(), "a join moves nobody");
                let above = grove.parents[&node][0];
                let level = above.map_or(0, |above| grove.depth(above));
                let ready_with_room = |other: &&Node| {
                    grove.depth(**other) == level
                        && **other != node
                        && grove.tree.children(**other, 0).len() < fan_out
                };
                if above.is_some_and(|above| !grove.ready.contains(&above)) {
                    prop_assert_eq!(grove.ready.iter().find(ready_with_room), None, "a ready parent had room");
                }
            } else {
                // All but the one who takes the place are children of the place, and stay below it.
                let stays_below = |other: &Node| {
                    before[other][0] == Some(node)
                        && grove.parents[other][0].is_some_and(|parent| moved.contains(&parent))
                };
                let heirs = moved.iter().filter(|other| !stays_below(other));
                prop_assert!(heirs.count() <= 1, "invariant 2");
            }
        }
    }
}
