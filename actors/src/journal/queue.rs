//! What waits for the disk, and how much of it goes there at once.

use crate::world::{Batch, BatchLimits};
use std::collections::VecDeque;

/// Batches in the order of their arrival, each with whoever waits for it.
pub(super) struct Queue<W> {
    limits: BatchLimits,
    waiting: VecDeque<Entry<W>>,
}

struct Entry<W> {
    batch: Batch,
    waiter: W,
    /// It was in a group whose conditions did not all hold.
    alone: bool,
}

/// Batches that are committed together: all or none.
pub(super) struct Group<W> {
    pub batch: Batch,
    entries: Vec<Entry<W>>,
}

impl<W> Group<W> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn into_waiters(self) -> impl Iterator<Item = W> {
        self.entries.into_iter().map(|entry| entry.waiter)
    }
}

impl<W> Queue<W> {
    pub fn new(limits: BatchLimits) -> Self {
        Self { limits, waiting: VecDeque::new() }
    }

    pub fn push(&mut self, batch: Batch, waiter: W) {
        self.waiting.push_back(Entry { batch, waiter, alone: false });
    }

    /// As many of the oldest as the store takes at once. Conditions are checked before any write of a group,
    /// therefore a batch does not go with one that writes what it looks at.
    pub fn next_group(&mut self) -> Option<Group<W>> {
        let first = self.waiting.pop_front()?;
        let (mut operations, mut bytes) = (first.batch.operations(), first.batch.bytes());
        let mut group = Group { batch: first.batch.clone(), entries: vec![first] };
        while let Some(next) = self.waiting.front() {
            operations += next.batch.operations();
            bytes += next.batch.bytes();
            let fits = operations <= self.limits.operations_max && bytes <= self.limits.bytes_max;
            let together = !next.alone && !group.entries[0].alone;
            if !fits || !together || looks_at_writes(&next.batch, &group.batch) {
                break;
            }
            let next = self.waiting.pop_front().expect("it was just seen");
            group.batch.conditions.extend_from_slice(&next.batch.conditions);
            group.batch.writes.extend_from_slice(&next.batch.writes);
            group.entries.push(next);
        }
        Some(group)
    }

    /// Takes back a group that was not applied because a condition of some batch in it did not hold: each
    /// is then tried by itself, before all others.
    pub fn one_by_one(&mut self, group: Group<W>) {
        for entry in group.entries.into_iter().rev() {
            self.waiting.push_front(Entry { alone: true, ..entry });
        }
    }
}

fn looks_at_writes(batch: &Batch, before: &Batch) -> bool {
    let written = |place| before.writes.iter().any(|write| write.place() == place);
    batch.conditions.iter().any(|condition| written((condition.table, condition.key.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Condition, Row, Table, Write};

    fn put(key: &str, bytes: usize) -> Batch {
        vec![Write::Put(Row { table: Table::Values, key: key.into(), value: vec![0; bytes] })].into()
    }

    fn insert(key: &str) -> Batch {
        let absent = Condition { table: Table::Values, key: key.into(), value: None };
        Batch { conditions: vec![absent], ..put(key, 1) }
    }

    fn queue(operations_max: usize, bytes_max: usize, batches: Vec<Batch>) -> Queue<usize> {
        let mut queue = Queue::new(BatchLimits { operations_max, bytes_max });
        for (number, batch) in batches.into_iter().enumerate() {
            queue.push(batch, number);
        }
        queue
    }

    fn groups(mut queue: Queue<usize>) -> Vec<Vec<usize>> {
        std::iter::from_fn(|| queue.next_group()).map(|group| group.into_waiters().collect()).collect()
    }

    #[test]
    fn groups_are_cut_at_the_limits_of_the_store() {
        let three = || vec![put("a", 9), put("b", 9), put("c", 9)];
        assert_eq!(groups(queue(2, 1000, three())), [vec![0, 1], vec![2]]);
        assert_eq!(groups(queue(1000, 20, three())), [vec![0, 1], vec![2]]);
        assert_eq!(groups(queue(1000, 1000, three())), [vec![0, 1, 2]]);
    }

    #[test]
    fn a_batch_does_not_go_with_one_that_writes_what_it_looks_at() {
        let batches = vec![insert("a"), insert("b"), insert("a"), put("c", 1)];
        assert_eq!(groups(queue(1000, 1000, batches)), [vec![0, 1], vec![2, 3]]);
    }

    #[test]
    fn a_group_that_was_refused_is_tried_one_by_one_and_in_order() {
        let mut queue = queue(1000, 1000, vec![put("a", 1), insert("b")]);
        let group = queue.next_group().expect("there are two");
        queue.push(put("later", 1), 2);
        queue.push(put("last", 1), 3);
        queue.one_by_one(group);
        assert_eq!(groups(queue), [vec![0], vec![1], vec![2, 3]]);
    }
}
