//! What the shapes keep by node, and by place.

use super::Node;
use std::{
    collections::BTreeSet,
    ops::{Index, IndexMut, RangeBounds},
};

/// A value for each member, in one array.
#[derive(Debug)]
pub(super) struct Nodes<T> {
    slots: Vec<Option<T>>,
    len: usize,
}

impl<T> Default for Nodes<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), len: 0 }
    }
}

impl<T> Nodes<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, node: Node) -> Option<&T> {
        self.slots.get(node.0 as usize)?.as_ref()
    }

    pub fn insert(&mut self, node: Node, value: T) {
        let number = node.0 as usize;
        if number >= self.slots.len() {
            self.slots.resize_with(number + 1, || None);
        }
        let before = self.slots[number].replace(value);
        assert!(before.is_none(), "a tree has each member once (invariant 1)");
        self.len += 1;
    }

    pub fn remove(&mut self, node: Node) -> Option<T> {
        let value = self.slots.get_mut(node.0 as usize)?.take()?;
        self.len -= 1;
        Some(value)
    }
}

impl<T> Index<Node> for Nodes<T> {
    type Output = T;

    fn index(&self, node: Node) -> &T {
        self.get(node).expect("only members are looked up")
    }
}

impl<T> IndexMut<Node> for Nodes<T> {
    fn index_mut(&mut self, node: Node) -> &mut T {
        self.slots[node.0 as usize].as_mut().expect("only members are looked up")
    }
}

/// The taken places below which another child has room. Those of ready members are found first.
#[derive(Debug, Default)]
pub(super) struct Room {
    all: BTreeSet<u64>,
    ready: BTreeSet<u64>,
}

impl Room {
    pub fn set(&mut self, place: u64, has_room: bool, is_ready: bool) {
        if has_room {
            self.all.insert(place);
        } else {
            self.all.remove(&place);
        }
        if has_room && is_ready {
            self.ready.insert(place);
        } else {
            self.ready.remove(&place);
        }
    }

    pub fn first(&self, places: impl RangeBounds<u64> + Clone) -> Option<u64> {
        self.ready.range(places.clone()).next().or_else(|| self.all.range(places).next()).copied()
    }

    pub fn last(&self, places: impl RangeBounds<u64> + Clone) -> Option<u64> {
        self.ready.range(places.clone()).next_back().or_else(|| self.all.range(places).next_back()).copied()
    }
}
