//! What holds of every shape over long random histories, and what each promises of its own.

use super::{Avl, Complete, Node, Striped, Topology, ancestors, breadth_first};
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
                assert_eq!(tree.depth(node, stripe) as usize, above);
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

    fn depth(&self, node: Node) -> u32 {
        self.tree.depth(node, 0)
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
    #![proptest_config(ProptestConfig::with_cases(32))]

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

    #[test]
    fn avl_takes_the_first_free_place_and_is_balanced(steps in history()) {
        let mut grove = Grove::new(Avl::new(), 2);
        for (number, toggles) in steps {
            let node = Node(number);
            if !toggles {
                grove.set_ready(node);
                continue;
            }
            let has_room = |node: &Node| grove.tree.children(*node, 0).len() < 2;
            let first_free = breadth_first(grove.tree.as_ref(), 0).find(has_room);
            let was_member = grove.parents.contains_key(&node);
            let Step { moved, .. } = grove.toggle(node);
            if !was_member {
                prop_assert!(moved.is_empty(), "a join moves nobody");
                prop_assert_eq!(grove.parents[&node][0], first_free);
            }
            let levels = levels(grove.tree.as_ref());
            for node in grove.parents.keys() {
                let below: Vec<u32> = grove.tree.children(*node, 0).iter().map(|node| levels[node]).collect();
                let [left, right] = match below.as_slice() {
                    [] => [0, 0],
                    [one] => [*one, 0],
                    [left, right] => [*left, *right],
                    _ => panic!("a binary tree"),
                };
                prop_assert!(left.abs_diff(right) <= 1);
            }
        }
    }

    #[test]
    fn striped_uses_each_uplink_once_within_its_bounds(
        (fan_out, stripes) in (1_usize..6).prop_flat_map(|fan_out| (Just(fan_out), 1..=fan_out)),
        steps in history(),
    ) {
        let mut grove = Grove::new(Striped::new(fan_out, stripes), fan_out);
        for (number, toggles) in steps {
            let node = Node(number);
            if !toggles {
                grove.set_ready(node);
                continue;
            }
            let was_member = grove.parents.contains_key(&node);
            let interior = |grove: &Grove, node: Node, stripe: usize| {
                !grove.tree.children(node, stripe).is_empty()
            };
            let colours = |grove: &Grove| -> BTreeMap<Node, usize> {
                let trees = grove.parents.keys().flat_map(|node| (0..stripes).map(|stripe| (*node, stripe)));
                trees.filter(|(node, stripe)| interior(grove, *node, *stripe)).collect()
            };
            let before = colours(&grove);
            let Step { moved, .. } = grove.toggle(node);
            let count = grove.parents.len();
            if count < 2 * stripes {
                prop_assert_eq!(grove.tree.height(), complete_height(count, fan_out));
                continue;
            }
            prop_assert!(
                grove.tree.height() <= complete_height(count.div_ceil(stripes), fan_out) + 1,
                "invariant 3"
            );
            let mut with_children = 0;
            for node in grove.parents.keys() {
                let trees = (0..stripes).filter(|stripe| interior(&grove, *node, *stripe)).count();
                prop_assert!(trees <= 1, "invariant 3");
                with_children += trees;
                for stripe in 0..stripes {
                    let spare = if grove.tree.root(stripe) == Some(*node) { stripes.saturating_sub(2) } else { 0 };
                    prop_assert!(grove.tree.children(*node, stripe).len() <= fan_out + spare);
                }
            }
            prop_assert!(with_children >= stripes);
            if was_member {
                prop_assert!(moved.len() < 2 * fan_out + stripes.max(2), "invariant 3");
                let after = colours(&grove);
                let recoloured = after.iter().filter(|(node, colour)| {
                    before.get(node).is_some_and(|before| before != *colour)
                });
                prop_assert!(recoloured.count() <= 1, "invariant 3");
            } else if count > 2 * stripes {
                prop_assert!(moved.len() <= 1, "a join moves at most one other");
            }
        }
    }
}

/// The levels of the subtree of each member.
fn levels(tree: &dyn Topology) -> BTreeMap<Node, u32> {
    let mut levels = BTreeMap::new();
    let order: Vec<Node> = breadth_first(tree, 0).collect();
    for node in order.into_iter().rev() {
        let below = tree.children(node, 0).iter().map(|child| levels[child]).max().unwrap_or(0);
        levels.insert(node, below + 1);
    }
    levels
}
