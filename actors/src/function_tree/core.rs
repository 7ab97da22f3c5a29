//! Decides who is whose parent in one tree, and who must be told.
//!
//! Invariants: 1 (each member once, one root, everyone reaches it), 4 (a report about an older epoch
//! changes nothing), and of 6 the part that the tree decides: nobody but a root is sent to the origin.

use super::messages::StartDraft;
use crate::{
    id::{Epoch, ImageId, VmId},
    model::{MemberView, TreeView},
    tree::{Topology, ancestors},
    wire::control::{HeldTree, Upstream},
    world::KeyHash,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};
use tokio::time::Instant;

#[derive(Debug, Clone, Copy)]
pub struct TreeLimits {
    /// Upstreams named to a VM for each stripe, at least 1.
    pub ancestors_max: usize,
    /// A capability is renewed when half of this is over.
    pub capability_ttl: Duration,
    /// Time after which a VM's word against an upstream counts again.
    pub complaint_pause: Duration,
}

/// How a member is reached and recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    pub address: SocketAddr,
    pub key_hash: KeyHash,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A start on that VM, which becomes a member if it is none.
    Join { vm: VmId, contact: Contact, start: Box<StartDraft> },
    /// The VM says that it holds the tree: it is or becomes a member.
    Reported { vm: VmId, contact: Contact, held: HeldTree },
    /// What a member holds has changed.
    Held { vm: VmId, held: HeldTree },
    /// A start on that VM became ready.
    Ready { vm: VmId },
    /// The VM is lost or removed, or holds the tree no more.
    Gone { vm: VmId },
    /// The VM is to leave.
    Leave { vm: VmId },
    /// `by` is not served by its upstream `vm`.
    UpstreamLost { by: VmId, epoch: Epoch, vm: VmId },
    /// No function uses the tree any more.
    Dissolve,
    /// Time goes on.
    Tick,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Start { vm: VmId, key_hash: KeyHash, placing: Placing, start: Box<StartDraft> },
    Place { vm: VmId, key_hash: KeyHash, placing: Placing },
    Leave { vm: VmId, epoch: Epoch },
}

/// A place without the capability, which the shell adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placing {
    pub epoch: Epoch,
    pub stripes: Vec<Vec<Upstream>>,
}

struct Member {
    contact: Contact,
    /// Has had a ready start, or holds all blocks.
    ready: bool,
    blocks_present: u32,
    blocks_total: u32,
    /// The names in the place that was sent last, for each stripe; a root has none.
    upstreams: Vec<Vec<VmId>>,
    /// The place must be sent again although it names the same VMs.
    stale: bool,
    /// The epoch of that place, and when its capability was issued.
    epoch: Epoch,
    placed_at: Instant,
    complained_at: Option<Instant>,
    /// Members that were not served by this one since it got its place.
    complaints: BTreeSet<VmId>,
}

/// Ready members near the root that a VM is sent to besides its ancestors are chosen from this many,
/// so that a broken tree does not fall upon one VM.
const HELPERS: usize = 8;
/// Places looked at for them: the first six levels of a binary tree.
const HELPER_PLACES: usize = 64;
/// Places sent again in one tick only because a helper can be named now.
const HINTS_PER_TICK: usize = 64;

pub struct TreeCore {
    limits: TreeLimits,
    topology: Box<dyn Topology>,
    epoch: Epoch,
    members: BTreeMap<VmId, Member>,
    /// The members whose places name a VM.
    named_by: BTreeMap<VmId, BTreeSet<VmId>>,
    /// Whether members that have no helper may find one.
    helpers_changed: bool,
}

impl TreeCore {
    /// An empty tree; its first change has the epoch behind `epoch`.
    pub fn new(limits: TreeLimits, topology: Box<dyn Topology>, epoch: Epoch) -> Self {
        assert!(limits.ancestors_max >= 1, "a VM needs a parent");
        let members = BTreeMap::new();
        Self { limits, topology, epoch, members, named_by: BTreeMap::new(), helpers_changed: false }
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn apply(&mut self, event: Event, now: Instant, effects: &mut Vec<Effect>) {
        match event {
            Event::Join { vm, contact, start } => self.join(vm, contact, start, now, effects),
            Event::Reported { vm, contact, held } => self.reported(&vm, contact, &held, now, effects),
            Event::Held { vm, held } => self.held(&vm, &held),
            Event::Ready { vm } => self.ready(&vm),
            Event::Gone { vm } => {
                self.remove(&vm, now, effects);
            }
            Event::Leave { vm } => {
                if self.remove(&vm, now, effects) {
                    effects.push(Effect::Leave { vm, epoch: self.epoch });
                }
            }
            Event::UpstreamLost { by, epoch, vm } => self.upstream_lost(by, epoch, &vm, now, effects),
            Event::Dissolve => self.dissolve(effects),
            Event::Tick => self.tick(now, effects),
        }
        debug_assert_eq!(self.members.len(), self.topology.members().len(), "invariant 1");
    }

    fn join(
        &mut self,
        vm: VmId,
        contact: Contact,
        start: Box<StartDraft>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let mut others = self.admit(&vm, contact, now);
        others.remove(&vm);
        self.place(&vm, now);
        let member = &self.members[&vm];
        let (key_hash, placing) = (member.contact.key_hash.clone(), self.placing(&vm));
        effects.push(Effect::Start { vm, key_hash, placing, start });
        self.place_changed(others, now, effects);
    }

    fn reported(
        &mut self,
        vm: &VmId,
        contact: Contact,
        held: &HeldTree,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let affected = self.admit(vm, contact, now);
        self.held(vm, held);
        self.place_changed(affected, now, effects);
        // What was sent on the VM's last session may not have arrived.
        let member = &self.members[vm];
        let sent_now =
            effects.iter().any(|effect| matches!(effect, Effect::Place { vm: to, .. } if to == vm));
        if held.epoch < member.epoch && !sent_now {
            self.push_place(vm, now, effects);
        }
    }

    /// Makes the VM a member, reached there. Returns the members whose upstreams may differ now.
    fn admit(&mut self, vm: &VmId, contact: Contact, now: Instant) -> BTreeSet<VmId> {
        if let Some(member) = self.members.get_mut(vm) {
            if member.contact == contact {
                return BTreeSet::new();
            }
            self.epoch.counter += 1;
            // A new key needs a new capability, a new address must be told to those who use it.
            member.contact = contact;
            let mut affected = self.named_by.get(vm).cloned().unwrap_or_default();
            affected.insert(vm.clone());
            for name in &affected {
                self.members.get_mut(name).expect("only members name others").stale = true;
            }
            return affected;
        }
        self.epoch.counter += 1;
        let member = Member {
            contact,
            ready: false,
            blocks_present: 0,
            blocks_total: 0,
            upstreams: Vec::new(),
            stale: true,
            epoch: Epoch::default(),
            placed_at: now,
            complained_at: None,
            complaints: BTreeSet::new(),
        };
        self.members.insert(vm.clone(), member);
        let moved = self.topology.join(vm);
        self.affected(moved)
    }

    fn held(&mut self, vm: &VmId, held: &HeldTree) {
        let Some(member) = self.members.get_mut(vm) else { return };
        member.blocks_present = held.blocks_present;
        member.blocks_total = held.blocks_total;
        if held.blocks_total > 0 && held.blocks_present >= held.blocks_total {
            self.ready(vm);
        }
    }

    fn ready(&mut self, vm: &VmId) {
        let Some(member) = self.members.get_mut(vm) else { return };
        let near_the_root = self.topology.place(vm).is_some_and(|place| place < HELPER_PLACES);
        self.helpers_changed |= !member.ready && near_the_root;
        member.ready = true;
    }

    /// Takes a VM out and places anew whom that concerns. False if it was no member.
    fn remove(&mut self, vm: &VmId, now: Instant, effects: &mut Vec<Effect>) -> bool {
        if !self.members.contains_key(vm) {
            return false;
        }
        self.epoch.counter += 1;
        self.name(vm, Vec::new());
        self.members.remove(vm);
        let mut affected = self.named_by.get(vm).cloned().unwrap_or_default();
        let moved = self.topology.leave(vm);
        affected.extend(self.affected(moved));
        affected.remove(vm);
        self.place_changed(affected, now, effects);
        self.named_by.remove(vm);
        true
    }

    /// A VM that does not serve its children loses them: it goes to the end, where it has none. A word
    /// against the root must come from all its children, because a new root reads from the origin.
    fn upstream_lost(&mut self, by: VmId, epoch: Epoch, vm: &VmId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(member) = self.members.get_mut(&by) else { return };
        // Told about a place that it has no more, or too often.
        let fresh = epoch >= member.epoch && member.upstreams.iter().flatten().any(|name| name == vm);
        let paused = member.complained_at.is_some_and(|at| now < at + self.limits.complaint_pause);
        if !fresh || paused {
            return;
        }
        member.complained_at = Some(now);
        let Some(accused) = self.members.get_mut(vm) else { return };
        accused.complaints.insert(by);
        let stripes = 0..self.topology.stripes();
        let children: BTreeSet<&VmId> =
            stripes.clone().flat_map(|stripe| self.topology.children(vm, stripe)).collect();
        let complaints = children.iter().filter(|child| accused.complaints.contains(**child)).count();
        let is_root = stripes.clone().any(|stripe| self.topology.parent(vm, stripe).is_none());
        let enough = if is_root { children.len() } else { children.len().div_ceil(2) };
        if complaints == 0 || complaints < enough {
            return;
        }
        accused.complaints.clear();
        self.epoch.counter += 1;
        let mut moved = self.topology.leave(vm);
        moved.extend(self.topology.join(vm));
        let affected = self.affected(moved);
        self.place_changed(affected, now, effects);
    }

    fn dissolve(&mut self, effects: &mut Vec<Effect>) {
        self.epoch.counter += 1;
        let epoch = self.epoch;
        for vm in std::mem::take(&mut self.members).into_keys() {
            self.topology.leave(&vm);
            effects.push(Effect::Leave { vm, epoch });
        }
        self.named_by.clear();
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let half_ttl = self.limits.capability_ttl / 2;
        let old = self.members.iter().filter(|(_, member)| now >= member.placed_at + half_ttl);
        for vm in old.map(|(vm, _)| vm.clone()).collect::<Vec<_>>() {
            self.place(&vm, now);
            self.push_place(&vm, now, effects);
        }
        if !std::mem::take(&mut self.helpers_changed) {
            return;
        }
        let mut sent = 0;
        for vm in self.topology.members().to_vec() {
            if self.members[&vm].upstreams == self.upstreams(&vm) {
                continue;
            }
            if sent == HINTS_PER_TICK {
                self.helpers_changed = true;
                return;
            }
            self.push_place(&vm, now, effects);
            sent += 1;
        }
    }

    /// Those who got other parents, and everyone whose place names one above or below them.
    fn affected(&self, moved: BTreeSet<VmId>) -> BTreeSet<VmId> {
        let mut affected = moved.clone();
        for stripe in 0..self.topology.stripes() {
            let mut level: BTreeSet<&VmId> = moved.iter().collect();
            for _ in 0..self.chain_max() {
                level = level.into_iter().flat_map(|vm| self.topology.children(vm, stripe)).collect();
                affected.extend(level.iter().map(|vm| (*vm).clone()));
            }
            for vm in &moved {
                // Whoever is above a moved VM now may not use it as helper any more.
                affected.extend(ancestors(self.topology.as_ref(), vm, stripe).cloned());
            }
        }
        affected
    }

    /// Ancestors in a place: all but one of its upstreams, the last is a helper.
    fn chain_max(&self) -> usize {
        (self.limits.ancestors_max - 1).max(1)
    }

    /// Sends places to those among `affected` whose upstreams have changed.
    fn place_changed(&mut self, affected: BTreeSet<VmId>, now: Instant, effects: &mut Vec<Effect>) {
        for vm in affected {
            let Some(member) = self.members.get(&vm) else { continue };
            if member.stale || member.upstreams != self.upstreams(&vm) {
                self.push_place(&vm, now, effects);
            }
        }
    }

    fn push_place(&mut self, vm: &VmId, now: Instant, effects: &mut Vec<Effect>) {
        self.place(vm, now);
        let key_hash = self.members[vm].contact.key_hash.clone();
        effects.push(Effect::Place { vm: vm.clone(), key_hash, placing: self.placing(vm) });
    }

    /// Gives a member the upstreams of its present place, with a fresh capability.
    fn place(&mut self, vm: &VmId, now: Instant) {
        let upstreams = self.upstreams(vm);
        let epoch = self.epoch;
        if self.members[vm].upstreams != upstreams {
            self.name(vm, upstreams);
        }
        let member = self.members.get_mut(vm).expect("only members are placed");
        member.epoch = epoch;
        member.placed_at = now;
        member.stale = false;
    }

    /// Replaces the names in a member's place, here and in the reverse index.
    fn name(&mut self, vm: &VmId, upstreams: Vec<Vec<VmId>>) {
        let member = self.members.get_mut(vm).expect("only members name others");
        for name in std::mem::replace(&mut member.upstreams, upstreams).iter().flatten() {
            if let Some(by) = self.named_by.get_mut(name) {
                by.remove(vm);
            }
        }
        for name in self.members[vm].upstreams.iter().flatten() {
            self.named_by.entry(name.clone()).or_default().insert(vm.clone());
        }
    }

    fn placing(&self, vm: &VmId) -> Placing {
        let upstream =
            |name: &VmId| Upstream::Vm { vm: name.clone(), address: self.members[name].contact.address };
        let member = &self.members[vm];
        let stripe = |names: &Vec<VmId>| match names.as_slice() {
            [] => vec![Upstream::Origin],
            names => names.iter().map(upstream).collect(),
        };
        Placing { epoch: member.epoch, stripes: member.upstreams.iter().map(stripe).collect() }
    }

    /// Whom a member is to ask, for each stripe: its nearest ancestors and a helper; nobody for a root.
    fn upstreams(&self, vm: &VmId) -> Vec<Vec<VmId>> {
        (0..self.topology.stripes()).map(|stripe| self.upstreams_of(vm, stripe)).collect()
    }

    fn upstreams_of(&self, vm: &VmId, stripe: usize) -> Vec<VmId> {
        let above = ancestors(self.topology.as_ref(), vm, stripe).take(self.chain_max());
        let mut names: Vec<VmId> = above.cloned().collect();
        if !names.is_empty() && names.len() < self.limits.ancestors_max {
            names.extend(self.helper(vm, stripe, &names));
        }
        names
    }

    /// A ready member near the root; the one that was named before, while it is still right.
    fn helper(&self, vm: &VmId, stripe: usize, names: &[VmId]) -> Option<VmId> {
        let suits = |name: &&VmId| {
            self.members.get(*name).is_some_and(|member| member.ready)
                && *name != vm
                && !names.contains(name)
                && !ancestors(self.topology.as_ref(), name, stripe).any(|above| above == vm)
        };
        let before = self.members[vm].upstreams.get(stripe).and_then(|names| names.last());
        if let Some(name) = before.filter(suits) {
            return Some(name.clone());
        }
        let near = self.topology.members().iter().take(HELPER_PLACES);
        let helpers: Vec<&VmId> = near.filter(suits).take(HELPERS).collect();
        let pick = xxhash_rust::xxh3::xxh3_64(vm.as_str().as_bytes()) as usize;
        helpers.get(pick.checked_rem(helpers.len())?).map(|name| (*name).clone())
    }

    pub fn view(&self, image: ImageId) -> TreeView {
        let members = (0..).zip(self.topology.members()).map(|(place, vm)| {
            let member = &self.members[vm];
            MemberView {
                vm: vm.clone(),
                place,
                parent: self.topology.parent(vm, 0).cloned(),
                children: self.topology.children(vm, 0).into_iter().cloned().collect(),
                ready: member.ready,
                blocks_present: member.blocks_present,
                blocks_total: member.blocks_total,
            }
        });
        TreeView { image, epoch: self.epoch, height: self.topology.height(), members: members.collect() }
    }

    /// Checks the invariants over all members; for tests, because it looks at everyone.
    #[cfg(test)]
    pub fn check(&self) {
        for (vm, member) in &self.members {
            for (stripe, names) in member.upstreams.iter().enumerate() {
                let tree = self.topology.as_ref();
                let above: Vec<&VmId> = ancestors(tree, vm, stripe).take(self.members.len() + 1).collect();
                assert!(above.len() < self.members.len(), "invariant 1: {vm} is in a cycle");
                assert_eq!(names.is_empty(), above.is_empty(), "invariant 6: only a root reads the origin");
                assert_eq!(names.first(), above.first().copied(), "the parent is asked first");
                assert!(names.len() <= self.limits.ancestors_max);
                assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "no repeats");
                for name in names {
                    assert!(self.members.contains_key(name), "{vm} is sent to a stranger");
                    assert!(!ancestors(tree, name, stripe).any(|up| up == vm) && name != vm, "no loops");
                    assert!(self.named_by[name].contains(vm));
                }
            }
            assert_eq!(member.upstreams.len(), self.topology.stripes());
            assert!(member.epoch <= self.epoch);
        }
        assert_eq!(self.members.len(), self.topology.members().len(), "invariant 1");
    }
}
