//! A limited number of places for many owners, of whom none can take them all.
//!
//! An owner gets a place while it has fewer than are still free. Alone it may thus have half of them, two
//! have a third each, and so on: whoever comes new finds room, and nobody has to divide the places
//! beforehand. (Choudhury and Hahne, *Dynamic queue length thresholds*, 1998, with a factor of 1.)

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts who has how many places.
#[derive(Debug)]
pub struct Shares<K> {
    max: usize,
    total: usize,
    taken: BTreeMap<K, usize>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The owner has its share.
    Owner,
    /// All places are taken.
    All,
}

impl<K: Ord + Clone> Shares<K> {
    pub fn new(max: usize) -> Self {
        Self { max, total: 0, taken: BTreeMap::new() }
    }

    pub fn take(&mut self, owner: &K) -> Result<(), Full> {
        if self.free() == 0 {
            return Err(Full::All);
        }
        if self.of(owner) >= self.free() {
            return Err(Full::Owner);
        }
        self.add(owner, 1);
        Ok(())
    }

    /// Takes places without asking whether there are any: for callers that looked at `room`, and for those
    /// who were let in before and come back.
    pub fn add(&mut self, owner: &K, count: usize) {
        if count > 0 {
            *self.taken.entry(owner.clone()).or_default() += count;
            self.total += count;
        }
    }

    pub fn give_back(&mut self, owner: &K, count: usize) {
        if count == 0 {
            return;
        }
        let taken = self.taken.get_mut(owner).expect("only what was taken is given back");
        *taken = taken.checked_sub(count).expect("no more than was taken is given back");
        if *taken == 0 {
            self.taken.remove(owner);
        }
        self.total -= count;
    }

    /// How many more places the owner would get, one after the other.
    pub fn room(&self, owner: &K) -> usize {
        (self.free() + 1).saturating_sub(self.of(owner)) / 2
    }

    pub fn free(&self) -> usize {
        self.max.saturating_sub(self.total)
    }

    pub fn of(&self, owner: &K) -> usize {
        self.taken.get(owner).copied().unwrap_or_default()
    }

    pub fn total(&self) -> usize {
        self.total
    }
}

/// Places that are handed out as permits. Cheap to clone.
#[derive(Debug)]
pub struct SharedPermits<K: Ord + Clone>(Arc<Mutex<Shares<K>>>);

/// One place; dropped, it is free again.
#[derive(Debug)]
pub struct SharedPermit<K: Ord + Clone> {
    owner: K,
    shares: SharedPermits<K>,
}

impl<K: Ord + Clone> Clone for SharedPermits<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Ord + Clone> SharedPermits<K> {
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Mutex::new(Shares::new(max))))
    }

    pub fn take(&self, owner: K) -> Result<SharedPermit<K>, Full> {
        self.shares().take(&owner)?;
        Ok(SharedPermit { owner, shares: self.clone() })
    }

    fn shares(&self) -> MutexGuard<'_, Shares<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord + Clone> Drop for SharedPermit<K> {
    fn drop(&mut self) {
        self.shares.shares().give_back(&self.owner, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(shares: &mut Shares<&'static str>, owner: &'static str) -> usize {
        let room = shares.room(&owner);
        while shares.take(&owner).is_ok() {}
        assert_eq!(shares.of(&owner), room);
        room
    }

    #[test]
    fn one_owner_gets_half_and_each_further_one_a_part_of_the_rest() {
        let mut shares = Shares::new(100);
        assert_eq!((fill(&mut shares, "a"), fill(&mut shares, "b"), fill(&mut shares, "c")), (50, 25, 13));
        assert_eq!(shares.take(&"a"), Err(Full::Owner));
        assert_eq!(shares.take(&"d"), Ok(()));
    }

    #[test]
    fn all_places_are_taken_only_by_many_owners() {
        let mut shares = Shares::new(3);
        assert_eq!([shares.take(&1), shares.take(&2), shares.take(&3)], [Ok(()); 3]);
        assert_eq!(shares.take(&4), Err(Full::All));
        shares.give_back(&2, 1);
        assert_eq!(shares.take(&4), Ok(()));
    }

    #[test]
    fn whoever_comes_back_finds_a_place_and_keeps_others_out_until_there_is_room() {
        let mut shares = Shares::new(2);
        shares.add(&1, 4);
        assert_eq!((shares.free(), shares.room(&2), shares.take(&2)), (0, 0, Err(Full::All)));
        shares.give_back(&1, 3);
        assert_eq!((shares.room(&1), shares.room(&2), shares.take(&2)), (0, 1, Ok(())));
    }

    #[test]
    fn a_dropped_permit_is_free_again() {
        let permits = SharedPermits::new(2);
        let first = permits.take("a").expect("free");
        assert_eq!(permits.take("a").err(), Some(Full::Owner));
        drop(first);
        assert!(permits.take("a").is_ok());
    }
}
