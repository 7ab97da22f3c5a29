//! `striped`: `k` trees over the same members, one for each stripe of blocks, so that every uplink is
//! used and none twice.
//!
//! Each member has one of `k` colours, and the numbers of members of two colours differ by at most 1.
//! In tree `i` only members of colour `i` have children: they form its **core**, a complete tree with fan-out
//! `d >= k` that is filled from left to right, and all others are leaves below the core. Fewer than `2k`
//! members form one [`Complete`] tree that serves all stripes.
//!
//! **There is room.** With `N >= 2k` members each colour has `n >= floor(N / k)` of them. The core of a tree
//! has `d n` places for the `N - 1` members that are not its root, and `N - 1 <= k n + k - 2 <= d n + k - 2`.
//! So the root takes at most `k - 2` children more than `d`, and only while nobody else has room: none with
//! two stripes, none with `d > k` as soon as each colour has `k - 2` members.
//!
//! **Height** (invariant 3): a core of `n <= ceil(N / k)` members has the height of a complete tree of `n`, and
//! a leaf is at most one edge below it.
//!
//! **A join** adds a leaf to `k - 1` trees and a member to the end of one core. If its parent there is full, one
//! leaf moves away: at most one other member has another parent.
//!
//! **A leave** frees a leaf's place in `k - 1` trees, which moves nobody, and a place in the core of one tree.
//! An heir takes that place: the last of the same core or, if another colour has more members, the last of
//! that colour's core, which is recoloured and stays where it is in the tree of its former colour, as a
//! leaf. Then colours differ by at most 1 again. The heir's former leaves, at most `d`, find other
//! parents; the children of the one who left, at most `d + k - 2`, get the heir as parent where they are.
//! So a leave recolours at most one member, gives at most `d + 1` another place, and at most `2 d + k - 1` another
//! parent. When `2k` members become one less, or one more, all of them move: fewer than `2k + 1`.

use super::{
    Complete, Node, Topology, breadth_first,
    nodes::{Nodes, Room},
};

pub struct Striped {
    fan_out: usize,
    /// All members while they are fewer than twice the stripes; else nobody.
    few: Complete,
    /// All members while they are more.
    seats: Nodes<Seat>,
    trees: Vec<Tree>,
}

/// One stripe's tree.
#[derive(Default)]
struct Tree {
    /// The members that may have children here, by position: those of `p` are `d * p + 1 ..= d * p + d`.
    core: Vec<Node>,
    room: Room,
}

struct Seat {
    /// The tree in which the member may have children, and where.
    colour: usize,
    position: usize,
    is_ready: bool,
    /// Its children there that are of other colours.
    leaves: Vec<Node>,
    /// Its parents in the other trees; in its own the position says it.
    parents: Vec<Option<Node>>,
}

impl Striped {
    /// `fan_out` is the number of children of a VM, at least as many as there are stripes.
    pub fn new(fan_out: usize, stripes: usize) -> Self {
        assert!((1..=fan_out).contains(&stripes), "a tree for each stripe needs as many children");
        Self {
            fan_out,
            few: Complete::new(fan_out),
            seats: Nodes::default(),
            trees: (0..stripes).map(|_| Tree::default()).collect(),
        }
    }

    fn few_max(&self) -> usize {
        2 * self.trees.len() - 1
    }

    fn core_above(&self, colour: usize, position: usize) -> Option<Node> {
        Some(self.trees[colour].core[position.checked_sub(1)? / self.fan_out])
    }

    fn core_below(&self, colour: usize, position: usize) -> &[Node] {
        let core = &self.trees[colour].core;
        let first = (position * self.fan_out + 1).min(core.len());
        &core[first..(first + self.fan_out).min(core.len())]
    }

    fn note_room(&mut self, node: Node) {
        let Seat { colour, position, is_ready, ref leaves, .. } = self.seats[node];
        let children = self.core_below(colour, position).len() + leaves.len();
        self.trees[colour].room.set(position as u64, children < self.fan_out, is_ready);
    }

    /// Gives a member a parent in the tree of another colour.
    fn hang(&mut self, leaf: Node, stripe: usize) {
        let tree = &self.trees[stripe];
        let position = tree.room.first(..).unwrap_or(0);
        let parent = tree.core[position as usize];
        self.hang_below(leaf, stripe, parent);
    }

    fn hang_below(&mut self, leaf: Node, stripe: usize, parent: Node) {
        self.seats[parent].leaves.push(leaf);
        self.seats[leaf].parents[stripe] = Some(parent);
        self.note_room(parent);
    }

    /// Takes a leaf from its parent, if it has one in that tree.
    fn cut(&mut self, leaf: Node, stripe: usize) {
        if let Some(parent) = self.seats[leaf].parents[stripe].take() {
            self.seats[parent].leaves.retain(|other| *other != leaf);
            self.note_room(parent);
        }
    }

    /// Takes the last member out of a core. Returns it and its former leaves, which hang nowhere.
    fn pop(&mut self, colour: usize) -> (Node, Vec<Node>) {
        let tree = &mut self.trees[colour];
        let node = tree.core.pop().expect("each colour has members");
        let position = tree.core.len();
        tree.room.set(position as u64, false, false);
        if let Some(above) = self.core_above(colour, position) {
            self.note_room(above);
        }
        let leaves = std::mem::take(&mut self.seats[node].leaves);
        for leaf in &leaves {
            self.seats[*leaf].parents[colour] = None;
        }
        (node, leaves)
    }

    /// Adds a member at the end of a core.
    fn push(&mut self, node: Node, colour: usize, is_ready: bool) {
        let position = self.trees[colour].core.len();
        self.trees[colour].core.push(node);
        let parents = vec![None; self.trees.len()];
        self.seats.insert(node, Seat { colour, position, is_ready, leaves: Vec::new(), parents });
        self.note_room(node);
        if let Some(above) = self.core_above(colour, position) {
            self.note_room(above);
        }
    }

    fn hang_everywhere(&mut self, node: Node) {
        for stripe in 0..self.trees.len() {
            if stripe != self.seats[node].colour {
                self.hang(node, stripe);
            }
        }
    }

    /// Adds a member to trees that are there.
    fn add(&mut self, node: Node) {
        let sizes = self.trees.iter().map(|tree| tree.core.len()).enumerate();
        let (colour, position) = sizes.min_by_key(|(_, size)| *size).expect("there are trees");
        let above = self.core_above(colour, position).expect("each tree has a root");
        self.push(node, colour, false);
        let children = self.core_below(colour, self.seats[above].position).len();
        if children + self.seats[above].leaves.len() > self.fan_out {
            let leaf = *self.seats[above].leaves.last().expect("not all of its children are of its colour");
            self.cut(leaf, colour);
            self.hang(leaf, colour);
        }
        self.hang_everywhere(node);
    }

    fn remove(&mut self, node: Node) {
        for stripe in 0..self.trees.len() {
            self.cut(node, stripe);
        }
        let (colour, donor) = (self.seats[node].colour, self.donor(node));
        let (heir, orphans) = self.pop(donor);
        if heir != node {
            if donor != colour {
                // A leaf where it was in the core, and in the core where it was a leaf.
                let parent = self.core_above(donor, self.trees[donor].core.len());
                self.hang_below(heir, donor, parent.expect("more members than another has are not one"));
                self.cut(heir, colour);
            }
            let Seat { position, leaves, .. } = self.seats.remove(node).expect("it is a member");
            for leaf in &leaves {
                self.seats[*leaf].parents[colour] = Some(heir);
            }
            self.trees[colour].core[position] = heir;
            let seat = &mut self.seats[heir];
            (seat.colour, seat.position, seat.leaves) = (colour, position, leaves);
            self.note_room(heir);
        } else {
            self.seats.remove(node);
        }
        for orphan in orphans {
            self.hang(orphan, donor);
        }
    }

    /// The colour whose last member takes the place of one that leaves: its own, unless another has more
    /// members.
    fn donor(&self, node: Node) -> usize {
        let colour = self.seats[node].colour;
        let size = |colour: usize| self.trees[colour].core.len();
        (0..self.trees.len()).find(|other| size(*other) > size(colour)).unwrap_or(colour)
    }

    /// From one tree to several.
    fn spread(&mut self, members: &[Node]) {
        for (number, &node) in members.iter().enumerate() {
            self.push(node, number % self.trees.len(), self.few.is_ready(node));
        }
        self.few.clear();
        for &node in members {
            self.hang_everywhere(node);
        }
    }

    /// From several trees to one.
    fn gather(&mut self, members: &[Node]) {
        for &node in members {
            self.few.join(node);
            if self.seats[node].is_ready {
                self.few.set_ready(node);
            }
        }
        self.seats = Nodes::default();
        self.trees.iter_mut().for_each(|tree| *tree = Tree::default());
    }

    fn assert_balanced(&self) {
        let sizes = || self.trees.iter().map(|tree| tree.core.len());
        debug_assert!(sizes().max() <= sizes().min().map(|smallest| smallest + 1), "invariant 3");
    }

    /// Makes a change and returns those among `candidates` that have another parent after it.
    fn moved(&mut self, mut candidates: Vec<Node>, change: impl FnOnce(&mut Self)) -> Vec<Node> {
        let parents = |tree: &Self, node: Node| -> Vec<Option<Node>> {
            (0..tree.trees.len()).map(|stripe| tree.parent(node, stripe)).collect()
        };
        candidates.sort_unstable();
        candidates.dedup();
        let before: Vec<_> = candidates.iter().map(|node| parents(self, *node)).collect();
        change(self);
        let now_and_then = candidates.into_iter().zip(before);
        now_and_then.filter(|(node, before)| parents(self, *node) != *before).map(|(node, _)| node).collect()
    }
}

impl Topology for Striped {
    fn join(&mut self, node: Node) -> Vec<Node> {
        if self.len() < self.few_max() {
            return self.few.join(node);
        }
        let mut moved = if self.seats.len() == 0 {
            let mut members: Vec<Node> = breadth_first(&self.few, 0).collect();
            self.moved(members.clone(), |tree| {
                members.push(node);
                tree.spread(&members);
            })
        } else {
            let smallest = self.trees.iter().enumerate().min_by_key(|(_, tree)| tree.core.len());
            let (colour, tree) = smallest.expect("there are trees");
            let above = self.core_above(colour, tree.core.len()).expect("each tree has a root");
            self.moved(self.seats[above].leaves.clone(), |tree| tree.add(node))
        };
        moved.push(node);
        self.assert_balanced();
        moved
    }

    fn leave(&mut self, node: Node) -> Vec<Node> {
        if self.seats.get(node).is_none() {
            return self.few.leave(node);
        }
        if self.len() - 1 <= self.few_max() {
            let members: Vec<Node> = breadth_first(self, 0).filter(|other| *other != node).collect();
            return self.moved(members.clone(), |tree| tree.gather(&members));
        }
        let donor = self.donor(node);
        let heir = *self.trees[donor].core.last().expect("each colour has members");
        let mut candidates = self.children(node, self.seats[node].colour);
        candidates.extend(self.children(heir, donor));
        candidates.push(heir);
        candidates.retain(|other| *other != node);
        let moved = self.moved(candidates, |tree| tree.remove(node));
        debug_assert!(moved.len() < 2 * self.fan_out + self.trees.len().max(2), "invariant 3");
        self.assert_balanced();
        moved
    }

    fn set_ready(&mut self, node: Node) {
        self.few.set_ready(node);
        if self.seats.get(node).is_some_and(|seat| !seat.is_ready) {
            self.seats[node].is_ready = true;
            self.note_room(node);
        }
    }

    fn clear(&mut self) {
        *self = Self::new(self.fan_out, self.trees.len());
    }

    fn len(&self) -> usize {
        self.few.len() + self.seats.len()
    }

    fn stripes(&self) -> usize {
        self.trees.len()
    }

    fn root(&self, stripe: usize) -> Option<Node> {
        self.few.root(0).or_else(|| self.trees[stripe].core.first().copied())
    }

    fn parent(&self, node: Node, stripe: usize) -> Option<Node> {
        let Some(seat) = self.seats.get(node) else { return self.few.parent(node, 0) };
        if seat.colour == stripe { self.core_above(stripe, seat.position) } else { seat.parents[stripe] }
    }

    fn children(&self, node: Node, stripe: usize) -> Vec<Node> {
        let Some(seat) = self.seats.get(node) else { return self.few.children(node, 0) };
        if seat.colour != stripe {
            return Vec::new();
        }
        [self.core_below(stripe, seat.position), &seat.leaves].concat()
    }

    fn depth(&self, node: Node, stripe: usize) -> u32 {
        let Some(seat) = self.seats.get(node) else { return self.few.depth(node, 0) };
        let (edges, core) = match seat.parents[stripe] {
            Some(parent) => (1, &self.seats[parent]),
            None => (0, seat),
        };
        let above = |position: &usize| Some(position.checked_sub(1)? / self.fan_out);
        std::iter::successors(above(&core.position), above).fold(edges, |depth, _| depth + 1)
    }

    fn height(&self) -> u32 {
        let height = |tree: &Tree| {
            // The first position of the deepest level of the core.
            let (mut first, mut width, mut depth) = (0, 1, 0);
            while first + width < tree.core.len() {
                (first, width, depth) = (first + width, width * self.fan_out, depth + 1);
            }
            let deepest = tree.core.get(first..).unwrap_or_default();
            depth + u32::from(deepest.iter().any(|node| !self.seats[*node].leaves.is_empty()))
        };
        self.trees.iter().map(height).max().unwrap_or(0).max(self.few.height())
    }
}
