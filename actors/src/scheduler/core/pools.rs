//! Which VM takes the next start: the VMs that may, kept so that the best one is found without looking
//! at the others.

use super::FunctionKey;
use crate::{
    id::{TenantId, TreeId, VmId},
    resources::Resources,
    ring::{Position, VmRing},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// What placement knows of a VM that may take starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Whose VM it is; None in the free pool.
    pub tenant: Option<TenantId>,
    /// Starts under way on it.
    pub starting: u32,
    /// What it has left.
    pub room: Resources,
    /// Its functions, when it may take no others.
    pub only: Option<BTreeSet<FunctionKey>>,
    /// The trees whose image it holds or is about to, also what it has kept of trees that it has left.
    pub trees: BTreeSet<TreeId>,
}

/// What a start asks for.
pub(super) struct Wanted<'a> {
    pub key: &'a FunctionKey,
    pub tree: &'a TreeId,
    pub needs: Resources,
    pub position: Position,
}

/// VMs by their room.
type Rings = BTreeMap<Resources, VmRing>;

/// VMs by the starts under way on them.
type Levels = BTreeMap<u32, Rings>;

/// The free pool, and the active pool of each tenant.
///
/// VMs with the same room share a ring; rooms are few, because VMs come in few sizes and instances too.
/// A change of a VM costs the same however many VMs there are, but for a logarithm, and so does a search.
pub(super) struct Pools {
    /// Starts under way on an active VM from which on a free one is preferred.
    starts_at_once: u32,
    free: Rings,
    /// Free VMs that have kept an image of a tree.
    free_holders: BTreeMap<TreeId, Rings>,
    active: BTreeMap<TenantId, Levels>,
    holders: BTreeMap<TreeId, Levels>,
    /// VMs that have as many functions as they may, by each of these; they are in no other pool.
    full: BTreeMap<FunctionKey, Levels>,
}

impl Pools {
    pub fn new(starts_at_once: u32) -> Self {
        let (active, holders, full) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (free, free_holders) = (BTreeMap::new(), BTreeMap::new());
        Self { starts_at_once, free, free_holders, active, holders, full }
    }

    pub fn insert(&mut self, vm: &VmId, entry: &Entry) {
        let room = whole(entry.room);
        let Some(tenant) = &entry.tenant else {
            for tree in &entry.trees {
                self.free_holders.entry(tree.clone()).or_default().entry(room).or_default().insert(vm);
            }
            return self.free.entry(room).or_default().insert(vm);
        };
        if let Some(functions) = &entry.only {
            for key in functions {
                put(self.full.entry(key.clone()).or_default(), entry.starting, room, vm);
            }
            return;
        }
        put(self.active.entry(tenant.clone()).or_default(), entry.starting, room, vm);
        for tree in &entry.trees {
            put(self.holders.entry(tree.clone()).or_default(), entry.starting, room, vm);
        }
    }

    /// Takes a VM out that was put in with that entry.
    pub fn remove(&mut self, vm: &VmId, entry: &Entry) {
        let room = whole(entry.room);
        let Some(tenant) = &entry.tenant else {
            for tree in &entry.trees {
                let Some(rings) = self.free_holders.get_mut(tree) else { continue };
                take_ring(rings, &room, vm);
                if rings.is_empty() {
                    self.free_holders.remove(tree);
                }
            }
            return take_ring(&mut self.free, &room, vm);
        };
        if let Some(functions) = &entry.only {
            for key in functions {
                take(&mut self.full, key, entry.starting, &room, vm);
            }
            return;
        }
        take(&mut self.active, tenant, entry.starting, &room, vm);
        for tree in &entry.trees {
            take(&mut self.holders, tree, entry.starting, &room, vm);
        }
    }

    /// The VM for a start, among those that `suits` does not refuse. In this order of preference:
    ///
    /// 1. an active VM of the tenant on which fewer than `starts_at_once` starts are under way,
    /// 2. a VM of the free pool, those first that have kept the block image from before,
    /// 3. any other active VM of the tenant that has room;
    ///
    /// and among active VMs (1 and 3):
    ///
    /// 1. the fewest starts under way,
    /// 2. those that hold the block image,
    /// 3. the least room that suffices, in memory and then in CPU,
    /// 4. the order of the ring for the function.
    ///
    /// Free VMs run nothing, which leaves the last three.
    ///
    /// Active VMs come first, so that instances are packed onto few VMs and the free pool stays for other
    /// tenants. But starts at the same moment share the link and the cores of their VM, and are as slow
    /// together as they are many: a burst that is wider than the active pool takes free VMs, and is packed
    /// deeper only when there are none. A VM with the image starts without fetching, so it comes before
    /// others. The tightest fit keeps large gaps for large functions, and
    /// lets VMs that empty become idle. The ring breaks what ties
    /// are left: the same function finds the same VMs again, different ones begin at different places.
    pub fn find(&self, wanted: &Wanted<'_>, suits: impl Fn(&VmId) -> bool) -> Option<VmId> {
        let found = self
            .find_active(wanted, 0..self.starts_at_once, &suits)
            .or_else(|| self.find_free(wanted, &suits))
            .or_else(|| self.find_active(wanted, self.starts_at_once..u32::MAX, &suits));
        found.cloned()
    }

    fn find_active<'a>(
        &'a self,
        wanted: &Wanted<'_>,
        starting: Range<u32>,
        suits: &impl Fn(&VmId) -> bool,
    ) -> Option<&'a VmId> {
        // What runs as many functions as it may, this one among them, most likely holds the image too.
        let (holders, full) = (self.holders.get(wanted.tree), self.full.get(wanted.key));
        let active = self.active.get(&wanted.tree.tenant);
        let mut from = starting.start;
        loop {
            let pools = [holders, full, active].map(|levels| levels?.range(from..starting.end).next());
            let fewest = pools.iter().flatten().map(|(level, _)| **level).min()?;
            let rings = pools.into_iter().flatten().filter(|(level, _)| **level == fewest);
            if let Some(vm) = rings.map(|(_, rings)| rings).find_map(|rings| first(rings, wanted, suits)) {
                return Some(vm);
            }
            from = fewest + 1;
        }
    }

    fn find_free<'a>(&'a self, wanted: &Wanted<'_>, suits: &impl Fn(&VmId) -> bool) -> Option<&'a VmId> {
        let holders = self.free_holders.get(wanted.tree);
        holders.and_then(|rings| first(rings, wanted, suits)).or_else(|| first(&self.free, wanted, suits))
    }

    /// How many VMs are in the free and active pools; for tests, because it looks at everyone.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        let active = self.active.values().flat_map(BTreeMap::values).flat_map(BTreeMap::values);
        self.free.values().chain(active).map(VmRing::len).sum()
    }
}

/// The first VM that suits in the first ring with enough room.
fn first<'a>(rings: &'a Rings, wanted: &Wanted<'_>, suits: &impl Fn(&VmId) -> bool) -> Option<&'a VmId> {
    let least = Resources { cpu_millis: 0, ..wanted.needs };
    let mut rings = rings.range(least..).filter(|(room, _)| room.holds(wanted.needs));
    rings.find_map(|(_, ring)| ring.walk(wanted.position).find(|vm| suits(vm)))
}

/// Whole MiB, as functions ask for them: VMs of one kind differ by less, and shall share a key.
fn whole(room: Resources) -> Resources {
    Resources { memory_bytes: room.memory_bytes >> 20 << 20, ..room }
}

fn put(levels: &mut Levels, starting: u32, room: Resources, vm: &VmId) {
    levels.entry(starting).or_default().entry(room).or_default().insert(vm);
}

fn take<N: Ord>(all: &mut BTreeMap<N, Levels>, name: &N, starting: u32, room: &Resources, vm: &VmId) {
    let Some(levels) = all.get_mut(name) else { return };
    if let Some(rings) = levels.get_mut(&starting) {
        take_ring(rings, room, vm);
        if rings.is_empty() {
            levels.remove(&starting);
        }
    }
    if levels.is_empty() {
        all.remove(name);
    }
}

fn take_ring(rings: &mut Rings, room: &Resources, vm: &VmId) {
    if let Some(ring) = rings.get_mut(room) {
        ring.remove(vm);
        if ring.is_empty() {
            rings.remove(room);
        }
    }
}
