//! `complete`: every level but the last is full, the last may have holes.
//!
//! The children of place `p` are the places `d * p + 1 ..= d * p + d`. A VM joins in the last level, below
//! a ready member if one has room there, else at the first free place; only a full level is followed by
//! another. When a VM above the last level leaves, one of the last level takes its place, a ready one if
//! there is one. So the height is always that of a complete tree, a join moves nobody else and a leave
//! at most one (invariant 2).

use super::{
    Node, Topology,
    nodes::{Nodes, Room},
};
use std::{collections::BTreeMap, ops::Range};

pub struct Complete {
    fan_out: u64,
    /// By place. No array, because a last level with holes may be much longer than its members are many.
    members: BTreeMap<u64, Node>,
    seats: Nodes<Seat>,
    room: Room,
    last: Level,
}

struct Seat {
    place: u64,
    is_ready: bool,
}

/// The deepest level that has members.
#[derive(Clone, Copy)]
struct Level {
    depth: u32,
    first: u64,
    width: u64,
    taken: u64,
}

const TOP: Level = Level { depth: 0, first: 0, width: 1, taken: 0 };

impl Complete {
    /// `fan_out` is the number of children of a VM, at least 1.
    pub fn new(fan_out: usize) -> Self {
        assert!(fan_out >= 1, "a tree without children has one member");
        Self {
            fan_out: fan_out as u64,
            members: BTreeMap::new(),
            seats: Nodes::default(),
            room: Room::default(),
            last: TOP,
        }
    }

    pub(super) fn is_ready(&self, node: Node) -> bool {
        self.seats.get(node).is_some_and(|seat| seat.is_ready)
    }

    fn above(&self, place: u64) -> Option<u64> {
        Some(place.checked_sub(1)? / self.fan_out)
    }

    fn below(&self, place: u64) -> Range<u64> {
        place * self.fan_out + 1..(place + 1) * self.fan_out + 1
    }

    /// The free place to take next.
    fn next_place(&mut self) -> u64 {
        if self.members.is_empty() {
            return 0;
        }
        if self.last.taken == self.last.width {
            let Level { depth, first, width, .. } = self.last;
            self.last =
                Level { depth: depth + 1, first: first + width, width: width * self.fan_out, taken: 0 };
        }
        let parents = self.above(self.last.first).unwrap_or(0)..self.last.first;
        let parent = self.room.first(parents).expect("a level that is not full has a free place");
        self.below(parent).find(|place| !self.members.contains_key(place)).expect("it has room")
    }

    fn put(&mut self, node: Node, place: u64, is_ready: bool) {
        self.members.insert(place, node);
        self.seats.insert(node, Seat { place, is_ready });
        self.note_room(place);
    }

    /// Frees a place in the last level.
    fn take_last(&mut self, place: u64) {
        self.members.remove(&place);
        self.room.set(place, false, false);
        if let Some(above) = self.above(place) {
            self.note_room(above);
        }
        self.last.taken -= 1;
        if self.last.taken == 0 && self.last.depth > 0 {
            let width = self.last.width / self.fan_out;
            let first = self.last.first - width;
            self.last = Level { depth: self.last.depth - 1, first, width, taken: width };
        }
    }

    fn note_room(&mut self, place: u64) {
        let children = self.members.range(self.below(place)).count() as u64;
        let is_ready = self.seats[self.members[&place]].is_ready;
        self.room.set(place, children < self.fan_out, is_ready);
    }
}

impl Topology for Complete {
    fn join(&mut self, node: Node) -> Vec<Node> {
        let place = self.next_place();
        self.put(node, place, false);
        self.last.taken += 1;
        if let Some(above) = self.above(place) {
            self.note_room(above);
        }
        vec![node]
    }

    fn leave(&mut self, node: Node) -> Vec<Node> {
        let Some(Seat { place, .. }) = self.seats.remove(node) else { return Vec::new() };
        if place >= self.last.first {
            self.take_last(place);
            return Vec::new();
        }
        let from = self.room.last(self.last.first..).expect("the last level has members without children");
        let heir = self.members[&from];
        let Seat { is_ready, .. } = self.seats.remove(heir).expect("whoever has a place is a member");
        self.put(heir, place, is_ready);
        self.take_last(from);
        let mut moved = self.children(heir, 0);
        moved.push(heir);
        moved
    }

    fn set_ready(&mut self, node: Node) {
        if self.seats.get(node).is_some_and(|seat| !seat.is_ready) {
            self.seats[node].is_ready = true;
            self.note_room(self.seats[node].place);
        }
    }

    fn clear(&mut self) {
        *self = Self::new(self.fan_out as usize);
    }

    fn len(&self) -> usize {
        self.seats.len()
    }

    fn stripes(&self) -> usize {
        1
    }

    fn root(&self, _stripe: usize) -> Option<Node> {
        self.members.get(&0).copied()
    }

    fn parent(&self, node: Node, _stripe: usize) -> Option<Node> {
        let above = self.above(self.seats.get(node)?.place)?;
        Some(self.members[&above])
    }

    fn children(&self, node: Node, _stripe: usize) -> Vec<Node> {
        let Some(seat) = self.seats.get(node) else { return Vec::new() };
        self.members.range(self.below(seat.place)).map(|(_, child)| *child).collect()
    }

    fn depth(&self, node: Node, _stripe: usize) -> u32 {
        let place = self.seats.get(node).map_or(0, |seat| seat.place);
        std::iter::successors(self.above(place), |above| self.above(*above)).fold(0, |depth, _| depth + 1)
    }

    fn height(&self) -> u32 {
        self.last.depth
    }

    fn place(&self, node: Node) -> Option<u64> {
        Some(self.seats.get(node)?.place)
    }

    /// Everyone stays who had a place that the shape has now; places above the last level whose VM is
    /// missing are filled by those who have none, then by those of the last level.
    fn restore(&mut self, mut members: Vec<(u64, Node)>) {
        members.sort_unstable();
        let mut last = TOP;
        while last.first + last.width < members.len() as u64 {
            let Level { depth, first, width, .. } = last;
            last = Level { depth: depth + 1, first: first + width, width: width * self.fan_out, taken: 0 };
        }
        let mut seated: BTreeMap<u64, Node> = BTreeMap::new();
        let mut without = Vec::new();
        for (place, node) in members {
            if place >= last.first + last.width || seated.contains_key(&place) {
                without.push(node);
            } else {
                seated.insert(place, node);
            }
        }
        for place in 0..last.first {
            if !seated.contains_key(&place) {
                let heir = without.pop().or_else(|| Some(seated.pop_last()?.1));
                seated.insert(place, heir.expect("there are members enough for all levels above the last"));
            }
        }
        last.taken = seated.len() as u64 - last.first;
        self.last = last;
        for (place, node) in seated {
            self.put(node, place, false);
        }
        for place in self.members.keys().copied().collect::<Vec<_>>() {
            self.note_room(place);
        }
        for node in without {
            self.join(node);
        }
    }
}
