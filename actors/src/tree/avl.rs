//! `avl`: the tree of the FaaSNet paper, a binary tree without order that rotations keep balanced.
//!
//! A VM joins below the first node, breadth-first, that has fewer than two children, at its free side, the
//! left one first. When one leaves, a lone child takes its place; of two children's subtrees the first
//! leaf, breadth-first, does. Then, on the way up, a rotation follows wherever the heights of two siblings
//! differ by more than 1: the paper's four cases. What it does not do, though one may read it into "height
//! floor(log2 N)": after leaves the tree is balanced, but not complete, and a rotation moves whole
//! subtrees. Whether members are ready changes nothing: the paper's authors keep a flag for it and do not
//! use it.
//!
//! The two searches are not made by walking: each node knows how far below it the nearest free place is,
//! and the nearest leaf. Every step is O(log N).

use super::{Node, Topology, ancestors, nodes::Nodes};

#[derive(Default)]
pub struct Avl {
    root: Option<Node>,
    seats: Nodes<Seat>,
}

struct Seat {
    parent: Option<Node>,
    /// Left and right.
    children: [Option<Node>; 2],
    /// Levels of the subtree, 1 for a leaf.
    levels: u32,
    /// Edges down to the nearest node with fewer than two children.
    to_room: u32,
    /// Edges down to the nearest leaf.
    to_leaf: u32,
}

const LEFT: usize = 0;
const RIGHT: usize = 1;

/// Those whose parent was set, with the parent before.
type Log = Vec<(Node, Option<Node>)>;

impl Avl {
    pub fn new() -> Self {
        Self::default()
    }

    /// The first node from there on, breadth-first, at which the distance is 0.
    fn nearest(&self, from: Node, distance: impl Fn(&Seat) -> u32) -> Node {
        let mut node = from;
        while distance(&self.seats[node]) > 0 {
            let children = self.seats[node].children.into_iter().flatten();
            // Of two that are equally far the left one.
            let nearer = children.min_by_key(|child| distance(&self.seats[*child]));
            node = nearer.expect("a distance is that of a node below");
        }
        node
    }

    fn levels(&self, child: Option<Node>) -> u32 {
        child.map_or(0, |child| self.seats[child].levels)
    }

    fn has_more_levels(&self, node: Node, side: usize, by: u32) -> bool {
        let children = self.seats[node].children;
        self.levels(children[side]) > self.levels(children[1 - side]) + by
    }

    /// Takes over what the children say of themselves.
    fn update(&mut self, node: Node) {
        let below = self.seats[node].children.map(|child| child.map(|child| &self.seats[child]));
        let levels = 1 + below.iter().flatten().map(|child| child.levels).max().unwrap_or(0);
        let to_room = match below {
            [Some(left), Some(right)] => 1 + left.to_room.min(right.to_room),
            _ => 0,
        };
        let to_leaf = below.iter().flatten().map(|child| 1 + child.to_leaf).min().unwrap_or(0);
        let seat = &mut self.seats[node];
        (seat.levels, seat.to_room, seat.to_leaf) = (levels, to_room, to_leaf);
    }

    fn set_child(&mut self, node: Node, side: usize, child: Option<Node>, log: &mut Log) {
        self.seats[node].children[side] = child;
        if let Some(child) = child {
            self.set_parent(child, Some(node), log);
        }
    }

    fn set_parent(&mut self, node: Node, parent: Option<Node>, log: &mut Log) {
        log.push((node, std::mem::replace(&mut self.seats[node].parent, parent)));
    }

    /// Puts another node, or none, where `old` hangs below `parent`.
    fn replace(&mut self, parent: Option<Node>, old: Node, new: Option<Node>, log: &mut Log) {
        if let Some(parent) = parent {
            let side = if self.seats[parent].children[LEFT] == Some(old) { LEFT } else { RIGHT };
            return self.set_child(parent, side, new, log);
        }
        self.root = new;
        if let Some(new) = new {
            self.set_parent(new, None, log);
        }
    }

    /// A rotation: the child on that side comes above the node, which it had as parent.
    fn lift(&mut self, node: Node, side: usize, log: &mut Log) -> Node {
        let child = self.seats[node].children[side].expect("the higher side is not empty");
        let parent = self.seats[node].parent;
        let inner = self.seats[child].children[1 - side];
        self.replace(parent, node, Some(child), log);
        self.set_child(node, side, inner, log);
        self.set_child(child, 1 - side, Some(node), log);
        self.update(node);
        self.update(child);
        child
    }

    /// Updates the nodes from there up to the root, and rotates where heights differ by more than 1.
    fn balance(&mut self, from: Option<Node>, log: &mut Log) {
        let mut next = from;
        while let Some(mut node) = next {
            self.update(node);
            for side in [LEFT, RIGHT] {
                if self.has_more_levels(node, side, 1) {
                    let child = self.seats[node].children[side].expect("it has levels");
                    if self.has_more_levels(child, 1 - side, 0) {
                        self.lift(child, 1 - side, log);
                    }
                    node = self.lift(node, side, log);
                }
            }
            next = self.seats[node].parent;
        }
    }

    /// Whoever has another parent at the end than at the beginning, each once.
    fn moved(&self, mut log: Log) -> Vec<Node> {
        // Stable: the first parent of each is the one before the change.
        log.sort_by_key(|(node, _)| *node);
        log.dedup_by_key(|(node, _)| *node);
        log.retain(|(node, before)| self.seats[*node].parent != *before);
        log.into_iter().map(|(node, _)| node).collect()
    }
}

impl Topology for Avl {
    fn join(&mut self, node: Node) -> Vec<Node> {
        let seat = Seat { parent: None, children: [None; 2], levels: 1, to_room: 0, to_leaf: 0 };
        self.seats.insert(node, seat);
        let mut log = Log::new();
        let parent = self.root.map(|root| self.nearest(root, |seat| seat.to_room));
        match parent {
            None => self.root = Some(node),
            Some(parent) => {
                let side = if self.seats[parent].children[LEFT].is_none() { LEFT } else { RIGHT };
                self.set_child(parent, side, Some(node), &mut log);
            }
        }
        // The first free place is never in the higher of two subtrees, so that nothing rotates.
        self.balance(parent, &mut log);
        debug_assert!(log.len() <= 1);
        vec![node]
    }

    fn leave(&mut self, node: Node) -> Vec<Node> {
        let Some(seat) = self.seats.get(node) else { return Vec::new() };
        let (parent, children) = (seat.parent, seat.children);
        let mut log = Log::new();
        let changed = match children {
            [Some(_), Some(_)] => {
                let heir = self.nearest(node, |seat| seat.to_leaf);
                let above = self.seats[heir].parent.expect("it is below the node");
                self.replace(Some(above), heir, None, &mut log);
                let children = self.seats[node].children;
                self.replace(parent, node, Some(heir), &mut log);
                for side in [LEFT, RIGHT] {
                    self.set_child(heir, side, children[side], &mut log);
                }
                Some(if above == node { heir } else { above })
            }
            [left, right] => {
                self.replace(parent, node, left.or(right), &mut log);
                parent
            }
        };
        self.seats.remove(node);
        self.balance(changed, &mut log);
        self.moved(log)
    }

    fn set_ready(&mut self, _node: Node) {}

    fn clear(&mut self) {
        *self = Self::new();
    }

    fn len(&self) -> usize {
        self.seats.len()
    }

    fn stripes(&self) -> usize {
        1
    }

    fn root(&self, _stripe: usize) -> Option<Node> {
        self.root
    }

    fn parent(&self, node: Node, _stripe: usize) -> Option<Node> {
        self.seats.get(node)?.parent
    }

    fn children(&self, node: Node, _stripe: usize) -> Vec<Node> {
        self.seats.get(node).map_or_else(Vec::new, |seat| seat.children.into_iter().flatten().collect())
    }

    fn depth(&self, node: Node, stripe: usize) -> u32 {
        ancestors(self, node, stripe).fold(0, |depth, _| depth + 1)
    }

    fn height(&self) -> u32 {
        self.levels(self.root).saturating_sub(1)
    }
}
