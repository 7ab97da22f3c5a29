//! What is to happen, in the order of virtual time; at the same moment in the order in which it was said.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Virtual time, in nanoseconds from the beginning of a history.
pub type Nanos = u64;

struct Entry<E> {
    key: Reverse<(Nanos, u64)>,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

pub struct Queue<E> {
    heap: BinaryHeap<Entry<E>>,
    said: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), said: 0 }
    }
}

impl<E> Queue<E> {
    pub fn push(&mut self, at: Nanos, event: E) {
        self.said += 1;
        self.heap.push(Entry { key: Reverse((at, self.said)), event });
    }

    pub fn pop(&mut self) -> Option<(Nanos, E)> {
        self.heap.pop().map(|Entry { key: Reverse((at, _)), event }| (at, event))
    }

    pub fn next_at(&self) -> Option<Nanos> {
        self.heap.peek().map(|Entry { key: Reverse((at, _)), .. }| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_at_one_moment_happens_in_the_order_in_which_it_was_said() {
        let mut queue = Queue::default();
        for (at, event) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b')] {
            queue.push(at, event);
        }
        assert_eq!(queue.next_at(), Some(1));
        let order: String = std::iter::from_fn(|| queue.pop()).map(|(_, event)| event).collect();
        assert_eq!(order, "abcd");
    }
}
