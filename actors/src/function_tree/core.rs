//! Decides who is whose parent in one tree, and who must be told.
//!
//! Invariants: 1 (each member once, one root, everyone reaches it), 4 (a report about an older epoch
//! changes nothing), and of 6 the part that the tree decides: nobody but a root is sent to the origin.

use super::{
    complaints::Complaints,
    leaving::Leaving,
    messages::{PreheatDraft, StartDraft},
    origin::{OriginBudget, OriginLimits},
    rejoin::Rejoin,
};
use crate::{
    id::{Epoch, ImageId, VmId},
    image::{BLOCK_BYTES, BlockImage},
    model::{MemberView, PlaceView, TreeView},
    tree::{Node, Topology, ancestors, breadth_first},
    wire::control::{HeldTree, OriginAnswer, Seat, Upstream},
    world::KeyHash,
};
use slab::Slab;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeLimits {
    /// Upstreams named to a VM for each stripe, at least 1.
    pub ancestors_max: usize,
    /// A capability is renewed when half of this is over.
    pub capability_ttl: Duration,
    /// How long a VM is not sent to an upstream that did not serve it.
    pub complaint_life: Duration,
    pub origin: OriginLimits,
    /// How long a VM that leaves is kept for a former child that does not say that it has its new place.
    pub lease: Duration,
}

impl TreeLimits {
    /// What `config/default.toml` says. A test of the settings holds them equal.
    pub const SHIPPED: Self = Self {
        ancestors_max: 3,
        capability_ttl: Duration::from_secs(3600),
        complaint_life: Duration::from_secs(60),
        origin: OriginLimits {
            budget_percent: 50,
            window: Duration::from_secs(600),
            grant_blocks: 8,
            grant_ttl: Duration::from_secs(5),
        },
        lease: Duration::from_secs(3),
    };
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
    /// What that VM is to hold before any start; it becomes a member if it is none.
    Preheat { vm: VmId, contact: Contact, draft: Box<PreheatDraft> },
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
    /// Nobody serves the VM, which waits for so many blocks.
    OriginWanted { vm: VmId, blocks: u32 },
    /// All who may be members have reported, or the time for that is over.
    Gathered,
    /// No function uses the tree any more.
    Dissolve,
    /// Time goes on.
    Tick,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Start { vm: VmId, key_hash: KeyHash, placing: Placing, start: Box<StartDraft> },
    Preheat { vm: VmId, key_hash: KeyHash, placing: Placing, draft: Box<PreheatDraft> },
    Place { vm: VmId, key_hash: KeyHash, placing: Placing },
    Leave { vm: VmId, epoch: Epoch },
    Origin { vm: VmId, answer: OriginAnswer },
}

/// A place without the capability, which the shell adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placing {
    pub epoch: Epoch,
    pub stripes: Vec<Vec<Upstream>>,
    pub seat: Seat,
}

pub(super) struct Member {
    vm: VmId,
    contact: Contact,
    /// Has had a ready start, or holds all blocks.
    pub ready: bool,
    /// One of those from whom helpers are chosen once they are ready.
    near: bool,
    pub blocks_present: u32,
    blocks_total: u32,
    /// The names in the place that was sent last.
    pub names: Names,
    /// The place must be sent again although it names the same VMs.
    stale: bool,
    /// The epoch of that place, and when its capability was issued.
    epoch: Epoch,
    placed_at: Instant,
}

/// Whom a member is sent to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    place: u64,
    /// For each stripe.
    pub stripes: Vec<Named>,
    /// Asked only for what they hold.
    pub beside: Vec<Node>,
}

/// Whom a member is sent to for one stripe: nobody if it is the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// Edges to the root. All who are named are nearer to it (invariant 11).
    pub depth: u32,
    /// Its nearest ancestors, the parent first.
    pub above: Vec<Node>,
    /// A ready member near the root that is no ancestor.
    helper: Option<Node>,
}

impl Named {
    pub fn all(&self) -> impl Iterator<Item = Node> {
        self.above.iter().copied().chain(self.helper)
    }
}

impl Names {
    /// Whether a place reads the same with either: a helper may have become an ancestor where it stands.
    fn reads_as(&self, other: &Self) -> bool {
        let stripe = |(a, b): (&Named, &Named)| a.depth == b.depth && a.all().eq(b.all());
        (self.place, self.stripes.len(), &self.beside) == (other.place, other.stripes.len(), &other.beside)
            && self.stripes.iter().zip(&other.stripes).all(stripe)
    }

    fn all(&self) -> impl Iterator<Item = Node> {
        self.stripes.iter().flat_map(Named::all).chain(self.beside.iter().copied())
    }
}

/// Ready members near the root that a VM is sent to besides its ancestors are chosen from this many,
/// so that a broken tree does not fall upon one VM.
const HELPERS: usize = 8;
/// How long a VM that is served by no ancestor is left where it is: when its upstream is silent, the other
/// children say so within a stall limit, and not the VM is moved but the upstream.
const ALONE: Duration = Duration::from_secs(1);
/// Members with which such a VM tries to change places: one with another parent is among the last few.
const EXCHANGES: usize = 4;
/// Places looked at for them: the first six levels of a binary tree.
const HELPER_PLACES: usize = 64;
/// Places sent again in one tick only because a helper can be named now.
const HINTS_PER_TICK: usize = 64;
/// Members without a helper that are looked at for that.
const LOOKS_PER_TICK: usize = 1024;
/// Capabilities that are due together are renewed over so many ticks: half of their life is left.
const RENEWAL_TICKS: usize = 8;

pub struct TreeCore {
    pub(super) limits: TreeLimits,
    pub(super) topology: Box<dyn Topology>,
    epoch: Epoch,
    members: Slab<Member>,
    nodes: BTreeMap<VmId, Node>,
    /// When each member's capability was issued.
    issued: BTreeSet<(Instant, Node)>,
    pub(super) helpers: Helpers,
    pub(super) complaints: Complaints,
    pub(super) origin: OriginBudget,
    /// While members report to a tree that is rebuilt.
    pub(super) rejoin: Option<Rejoin>,
    leaving: Leaving,
}

/// Who may be named as helper, who is, and who lacks one.
///
/// Those who lose a helper, or could have one now, are told with the ticks and not with the change: their
/// ancestors are there.
#[derive(Default)]
pub(super) struct Helpers {
    /// The ready ones of the members near the root of each stripe, in the order of their places.
    ready: Vec<Vec<Node>>,
    pub near: Vec<Node>,
    /// Whether the above must be found anew.
    outdated: bool,
    /// Each helper with each member that it is named to.
    named_to: BTreeSet<(Node, Node)>,
    lacking: BTreeSet<Node>,
    /// From here on, those that lack a helper may find one.
    look_from: Option<Node>,
}

impl TreeCore {
    /// An empty tree; its first change has the epoch behind `epoch`.
    pub fn new(limits: TreeLimits, topology: Box<dyn Topology>, epoch: Epoch) -> Self {
        assert!(limits.ancestors_max >= 1, "a VM needs a parent");
        Self {
            limits,
            topology,
            epoch,
            members: Slab::new(),
            nodes: BTreeMap::new(),
            issued: BTreeSet::new(),
            helpers: Helpers::default(),
            complaints: Complaints::default(),
            origin: OriginBudget::default(),
            rejoin: None,
            leaving: Leaving::default(),
        }
    }

    /// A tree that may have members already, who report until `Event::Gathered`.
    pub fn rejoining(limits: TreeLimits, topology: Box<dyn Topology>, epoch: Epoch) -> Self {
        Self { rejoin: Some(Rejoin::default()), ..Self::new(limits, topology, epoch) }
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Members, and how many of them are ready.
    pub fn sizes(&self) -> (usize, usize) {
        (self.members.len(), self.members.iter().filter(|(_, member)| member.ready).count())
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn apply(&mut self, event: Event, now: Instant, effects: &mut Vec<Effect>) {
        let Some(event) = self.keep_for_later(event, effects) else { return };
        match event {
            Event::Join { vm, contact, start } => self.join(vm, contact, start, now, effects),
            Event::Preheat { vm, contact, draft } => self.preheat(vm, contact, draft, now, effects),
            Event::Reported { vm, contact, held } => self.reported(vm, contact, &held, now, effects),
            Event::Held { vm, held } => {
                self.held(&vm, &held);
                self.leaving.has_place(&vm, held.epoch);
            }
            Event::Ready { vm } => self.ready(&vm),
            Event::Gone { vm } => {
                self.leaving.forget(&vm);
                self.remove(&vm, now, effects);
            }
            Event::Leave { vm } => self.leave(vm, now, effects),
            Event::UpstreamLost { by, epoch, vm } => self.upstream_lost(&by, epoch, &vm, now, effects),
            Event::OriginWanted { vm, blocks } => self.origin_wanted(vm, blocks, now, effects),
            Event::Gathered => self.gathered(now, effects),
            Event::Dissolve => self.dissolve(effects),
            Event::Tick => self.tick(now, effects),
        }
        let epoch = self.epoch;
        effects.extend(self.leaving.released(now).into_iter().map(|vm| Effect::Leave { vm, epoch }));
        debug_assert_eq!(self.members.len(), self.topology.len(), "invariant 1");
    }

    /// While members report nobody is placed. Returns what is to be done all the same.
    fn keep_for_later(&mut self, event: Event, effects: &mut Vec<Effect>) -> Option<Event> {
        let Some(rejoin) = &mut self.rejoin else { return Some(event) };
        match event {
            Event::Join { vm, contact, start } => rejoin.join(vm, contact, start),
            Event::Preheat { vm, contact, draft } => rejoin.preheat(vm, contact, draft),
            Event::Reported { vm, contact, held } => rejoin.reported(vm, contact, held),
            Event::Held { vm, held } => rejoin.held(&vm, held),
            Event::Ready { vm } => rejoin.ready(vm),
            Event::Gone { vm } => {
                rejoin.gone(&vm);
            }
            Event::Leave { vm } => {
                if rejoin.gone(&vm) {
                    self.epoch.counter += 1;
                    effects.push(Effect::Leave { vm, epoch: self.epoch });
                }
            }
            Event::OriginWanted { vm, blocks: _ } => {
                let answer = OriginAnswer::Refused { retry_after_ms: 1000 };
                effects.push(Effect::Origin { vm, answer });
            }
            Event::Dissolve => {
                self.epoch.counter += 1;
                let vms = std::mem::take(rejoin).into_vms();
                effects.extend(vms.map(|vm| Effect::Leave { vm, epoch: self.epoch }));
            }
            Event::UpstreamLost { .. } | Event::Tick => {}
            Event::Gathered => return Some(event),
        }
        None
    }

    /// Children move first, then the VM goes.
    fn leave(&mut self, vm: VmId, now: Instant, effects: &mut Vec<Effect>) {
        if self.leaving.holds(&vm) {
            return;
        }
        let children: BTreeSet<Node> = match self.nodes.get(&vm) {
            Some(&node) => {
                (0..self.topology.stripes()).flat_map(|stripe| self.topology.children(node, stripe)).collect()
            }
            // Told again also when it is no member any more: the order before may be lost.
            None => BTreeSet::new(),
        };
        self.remove(&vm, now, effects);
        // Whoever got no other place was not sent to it.
        let moved =
            children.into_iter().map(|node| self.member(node)).filter(|child| child.epoch == self.epoch);
        let children = moved.map(|child| (child.vm.clone(), child.epoch)).collect();
        self.leaving.hold(vm, children, now + self.limits.lease);
    }

    pub(super) fn join(
        &mut self,
        vm: VmId,
        contact: Contact,
        start: Box<StartDraft>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let (key_hash, placing, affected) = self.seat(&vm, contact, &start.image, now);
        effects.push(Effect::Start { vm, key_hash, placing, start });
        self.place_changed(affected, now, effects);
    }

    pub(super) fn preheat(
        &mut self,
        vm: VmId,
        contact: Contact,
        draft: Box<PreheatDraft>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let (key_hash, placing, affected) = self.seat(&vm, contact, &draft.image, now);
        effects.push(Effect::Preheat { vm, key_hash, placing, draft });
        self.place_changed(affected, now, effects);
    }

    /// Gives the VM its place, for an order that names it. Returns the others whose upstreams may differ now.
    fn seat(
        &mut self,
        vm: &VmId,
        contact: Contact,
        image: &BlockImage,
        now: Instant,
    ) -> (KeyHash, Placing, Vec<Node>) {
        let blocks = image.plain_bytes.div_ceil(u64::from(BLOCK_BYTES));
        self.origin.image_has(u32::try_from(blocks).unwrap_or(u32::MAX));
        self.leaving.forget(vm);
        let (node, mut affected) = self.admit(vm, contact, now);
        affected.retain(|other| *other != node);
        let names = self.names(node);
        self.place(node, names, now);
        (self.member(node).contact.key_hash.clone(), self.placing(node), affected)
    }

    fn reported(
        &mut self,
        vm: VmId,
        contact: Contact,
        held: &HeldTree,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.leaving.forget(&vm);
        let (node, affected) = self.admit(&vm, contact, now);
        self.held(&vm, held);
        self.leaving.has_place(&vm, held.epoch);
        self.place_changed(affected, now, effects);
        // What was sent on the VM's last session may not have arrived.
        let sent_now =
            effects.iter().any(|effect| matches!(effect, Effect::Place { vm: to, .. } if *to == vm));
        if held.epoch < self.member(node).epoch && !sent_now {
            let names = self.names(node);
            self.push_place(node, names, now, effects);
        }
    }

    /// Makes the VM a member, reached there. Returns the members whose upstreams may differ now.
    fn admit(&mut self, vm: &VmId, contact: Contact, now: Instant) -> (Node, Vec<Node>) {
        if let Some(&node) = self.nodes.get(vm) {
            if self.member(node).contact == contact {
                return (node, Vec::new());
            }
            self.epoch.counter += 1;
            // A new key needs a new capability, a new address must be told to those who use it.
            self.member_mut(node).contact = contact;
            let alone = self.drop_helper(node);
            let mut affected = self.with_those_below(vec![node], self.chain_max());
            affected.extend(alone);
            affected.extend(self.beside_which(node));
            for &other in &affected {
                self.member_mut(other).stale = true;
            }
            return (node, affected);
        }
        self.epoch.counter += 1;
        let node = self.enroll(vm, contact, now);
        let moved = self.topology.join(node);
        (node, self.affected(moved))
    }

    /// Makes the VM a member without a place.
    pub(super) fn enroll(&mut self, vm: &VmId, contact: Contact, now: Instant) -> Node {
        let member = Member {
            vm: vm.clone(),
            contact,
            ready: false,
            near: false,
            blocks_present: 0,
            blocks_total: 0,
            names: Names::default(),
            stale: true,
            epoch: Epoch::default(),
            placed_at: now,
        };
        let node = Node(u32::try_from(self.members.insert(member)).expect("far fewer VMs exist"));
        self.nodes.insert(vm.clone(), node);
        self.issued.insert((now, node));
        node
    }

    pub(super) fn has_member(&self, vm: &VmId) -> bool {
        self.nodes.contains_key(vm)
    }

    pub(super) fn raise_epoch(&mut self) {
        self.epoch.counter += 1;
    }

    pub(super) fn helpers_are_outdated(&mut self) {
        self.helpers.outdated = true;
    }

    pub(super) fn held(&mut self, vm: &VmId, held: &HeldTree) {
        let Some(&node) = self.nodes.get(vm) else { return };
        self.origin.image_has(held.blocks_total);
        let member = self.member_mut(node);
        member.blocks_present = held.blocks_present;
        member.blocks_total = held.blocks_total;
        if held.blocks_total > 0 && held.blocks_present >= held.blocks_total {
            self.ready(vm);
        }
    }

    pub(super) fn ready(&mut self, vm: &VmId) {
        let Some(&node) = self.nodes.get(vm) else { return };
        let member = self.member_mut(node);
        if !std::mem::replace(&mut member.ready, true) {
            self.helpers.outdated |= member.near;
            self.topology.set_ready(node);
        }
    }

    /// Takes a VM out and places anew whom that concerns. False if it was no member.
    fn remove(&mut self, vm: &VmId, now: Instant, effects: &mut Vec<Effect>) -> bool {
        let Some(node) = self.nodes.remove(vm) else { return false };
        self.leaving.gone(vm);
        self.epoch.counter += 1;
        let alone = self.drop_helper(node);
        self.name(node, Names::default());
        self.complaints.forget(node);
        let beside = self.beside_which(node);
        let member = self.members.remove(node.0 as usize);
        self.issued.remove(&(member.placed_at, node));
        self.helpers.lacking.remove(&node);
        self.helpers.outdated |= member.near;
        let moved = self.topology.leave(node);
        let mut affected = self.affected(moved);
        affected.extend(beside.into_iter().chain(alone));
        self.place_changed(affected, now, effects);
        true
    }

    /// A VM that is not served is sent elsewhere; an upstream that serves nobody loses its children: it
    /// goes to the end, where it has none.
    fn upstream_lost(&mut self, by: &VmId, epoch: Epoch, vm: &VmId, now: Instant, effects: &mut Vec<Effect>) {
        let (Some(&by), Some(&node)) = (self.nodes.get(by), self.nodes.get(vm)) else { return };
        let member = self.member(by);
        // Told about a place that it has no more, or once again.
        let is_named = member.names.all().any(|up| up == node);
        if epoch < member.epoch || !is_named || self.complaints.holds(by, node) {
            return;
        }
        self.complaints.add(by, node, now);
        let stripes = 0..self.topology.stripes();
        let children: BTreeSet<Node> =
            stripes.clone().flat_map(|stripe| self.topology.children(node, stripe)).collect();
        let is_root = stripes.clone().any(|stripe| self.topology.parent(node, stripe).is_none());
        self.epoch.counter += 1;
        if self.complaints.is_at_fault(node, &children, is_root) {
            self.complaints.forget_about(node);
            // Nobody is sent to it by choice, until it says again that it can serve.
            self.member_mut(node).ready = false;
            self.helpers.outdated = true;
            return self.move_to_the_end(node, now, effects);
        }
        if self.is_cut_off(by) {
            self.complaints.wait_alone(by, now);
        }
        self.place_changed(vec![by], now, effects);
    }

    fn move_to_the_end(&mut self, node: Node, now: Instant, effects: &mut Vec<Effect>) {
        let mut moved = self.topology.leave(node);
        moved.extend(self.topology.join(node));
        let affected = self.affected(moved);
        self.place_changed(affected, now, effects);
    }

    /// Whether a member is served by none of its ancestors in some stripe.
    fn is_cut_off(&self, node: Node) -> bool {
        (0..self.topology.stripes()).any(|stripe| {
            let mut above = self.chain(node, stripe).peekable();
            above.peek().is_some() && above.all(|up| self.complaints.holds(node, up))
        })
    }

    /// Gives another parent to those who are cut off, once it is clear that it is not their upstream's fault.
    fn move_cut_off(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        for node in self.complaints.alone_for(now, ALONE) {
            if !self.is_member(node) || !self.is_cut_off(node) {
                continue;
            }
            self.epoch.counter += 1;
            let mut moved = BTreeSet::from([node]);
            let last: Vec<Node> =
                breadth_first(self.topology.as_ref(), 0).filter(|other| *other != node).collect();
            for other in last.into_iter().rev().take(EXCHANGES) {
                moved.extend(self.topology.leave(node));
                moved.extend(self.topology.leave(other));
                moved.extend(self.topology.join(other));
                moved.extend(self.topology.join(node));
                if !self.is_cut_off(node) {
                    break;
                }
            }
            let affected = self.affected(moved.into_iter().collect());
            self.place_changed(affected, now, effects);
        }
    }

    fn dissolve(&mut self, effects: &mut Vec<Effect>) {
        self.epoch.counter += 1;
        let epoch = self.epoch;
        self.members.clear();
        self.topology.clear();
        self.issued.clear();
        self.helpers = Helpers::default();
        self.complaints = Complaints::default();
        let vms = std::mem::take(&mut self.nodes).into_keys();
        let vms = vms.chain(self.leaving.take_all());
        effects.extend(vms.map(|vm| Effect::Leave { vm, epoch }));
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let half_ttl = self.limits.capability_ttl / 2;
        let old = self.issued.iter().take_while(|(issued_at, _)| now >= *issued_at + half_ttl);
        let share = self.members.len().div_ceil(RENEWAL_TICKS).max(HINTS_PER_TICK);
        for node in old.map(|(_, node)| *node).take(share).collect::<Vec<_>>() {
            let names = self.names(node);
            self.push_place(node, names, now, effects);
        }
        self.move_cut_off(now, effects);
        let tried_again = self.complaints.expire(now, self.limits.complaint_life);
        self.place_changed(tried_again, now, effects);
        self.find_helpers();
        let Some(first) = self.helpers.look_from.take() else { return };
        let mut lacking = self.helpers.lacking.range(first..).copied();
        let looked: Vec<Node> = lacking.by_ref().take(LOOKS_PER_TICK).collect();
        self.helpers.look_from = lacking.next();
        let mut sent = 0;
        for node in looked {
            if sent == HINTS_PER_TICK {
                self.helpers.look_from = Some(node);
                return;
            }
            let before = effects.len();
            self.place_changed(vec![node], now, effects);
            sent += effects.len() - before;
        }
    }

    /// Those whose upstreams may differ now that `moved` have other parents.
    fn affected(&mut self, moved: Vec<Node>) -> Vec<Node> {
        let stripes = 0..self.topology.stripes();
        // Whoever is near a root has its parent there too.
        let near = |node: Node| self.members.get(node.0 as usize).is_some_and(|member| member.near);
        self.helpers.outdated |= moved.iter().any(|&node| {
            near(node) || stripes.clone().any(|stripe| self.topology.parent(node, stripe).is_none_or(near))
        });
        let mut affected = self.with_those_below(moved.clone(), self.chain_max() - 1);
        let displaced = self.displaced(moved);
        // Whoever is not nearer to the root any more is no helper.
        let named_to = displaced.iter().flat_map(|helper| self.named_to(*helper)).collect::<Vec<_>>();
        affected.extend(named_to);
        affected.extend(displaced);
        affected.sort_unstable();
        affected.dedup();
        affected
    }

    /// The nodes and those below them whose depth differs from what they were told.
    fn displaced(&self, nodes: Vec<Node>) -> Vec<Node> {
        let mut all = nodes.clone();
        for stripe in 0..self.topology.stripes() {
            let told = |node: Node| self.member(node).names.stripes.get(stripe).map(|named| named.depth);
            let mut level = nodes.clone();
            while !level.is_empty() {
                level = level.into_iter().flat_map(|node| self.topology.children(node, stripe)).collect();
                level.retain(|node| told(*node) != Some(self.topology.depth(*node, stripe)));
                all.extend(&level);
            }
        }
        all
    }

    fn named_to(&self, helper: Node) -> impl Iterator<Item = Node> {
        let named_to = self.helpers.named_to.range((helper, Node(0))..=(helper, Node(u32::MAX)));
        named_to.map(|(_, node)| *node)
    }

    /// The ancestors that are named to a member, if it reaches them.
    fn chain(&self, node: Node, stripe: usize) -> impl Iterator<Item = Node> {
        ancestors(self.topology.as_ref(), node, stripe).take(self.chain_max())
    }

    /// The nodes and everyone so many levels below them.
    fn with_those_below(&self, nodes: Vec<Node>, levels: usize) -> Vec<Node> {
        let mut all = nodes.clone();
        for stripe in 0..self.topology.stripes() {
            let mut level = nodes.clone();
            for _ in 0..levels {
                level = level.into_iter().flat_map(|node| self.topology.children(node, stripe)).collect();
                all.extend(&level);
            }
        }
        all
    }

    /// Ancestors in a place: all but one of its upstreams, the last is a helper.
    fn chain_max(&self) -> usize {
        (self.limits.ancestors_max - 1).max(1)
    }

    /// Sends places to those among `affected` whose upstreams have changed.
    fn place_changed(&mut self, affected: Vec<Node>, now: Instant, effects: &mut Vec<Effect>) {
        for node in affected {
            let names = self.names(node);
            let member = self.member(node);
            if member.stale || !member.names.reads_as(&names) {
                self.push_place(node, names, now, effects);
            } else if member.names != names {
                self.name(node, names);
            }
        }
    }

    pub(super) fn push_place(&mut self, node: Node, names: Names, now: Instant, effects: &mut Vec<Effect>) {
        self.place(node, names, now);
        let member = self.member(node);
        let (vm, key_hash) = (member.vm.clone(), member.contact.key_hash.clone());
        effects.push(Effect::Place { vm, key_hash, placing: self.placing(node) });
    }

    /// Gives a member the upstreams of its present place, with a fresh capability.
    fn place(&mut self, node: Node, names: Names, now: Instant) {
        if self.member(node).names != names {
            self.name(node, names);
        }
        let epoch = self.epoch;
        let member = self.member_mut(node);
        member.epoch = epoch;
        member.stale = false;
        let issued_at = std::mem::replace(&mut member.placed_at, now);
        if issued_at != now {
            self.issued.remove(&(issued_at, node));
            self.issued.insert((now, node));
        }
    }

    /// Replaces the names in a member's place, here and where they are looked up by the one who is named.
    fn name(&mut self, node: Node, names: Names) {
        let before = std::mem::replace(&mut self.member_mut(node).names, names);
        for helper in before.stripes.iter().filter_map(|named| named.helper) {
            self.helpers.named_to.remove(&(helper, node));
        }
        let now = &self.members[node.0 as usize].names.stripes;
        self.helpers
            .named_to
            .extend(now.iter().filter_map(|named| named.helper).map(|helper| (helper, node)));
        let room = self.limits.ancestors_max;
        let lacks = |named: &Named| !named.above.is_empty() && named.all().count() < room;
        if now.iter().any(lacks) {
            self.helpers.lacking.insert(node);
        } else {
            self.helpers.lacking.remove(&node);
        }
    }

    /// Names a VM to nobody as helper any more. They are told with the next ticks; those whom nobody else is named
    /// to are returned.
    fn drop_helper(&mut self, helper: Node) -> Vec<Node> {
        let mut alone = Vec::new();
        for node in self.named_to(helper).collect::<Vec<_>>() {
            let mut names = self.member(node).names.clone();
            for named in names.stripes.iter_mut().filter(|named| named.helper == Some(helper)) {
                named.helper = None;
                if named.above.is_empty() {
                    alone.push(node);
                }
            }
            self.name(node, names);
            self.member_mut(node).stale = true;
            self.helpers.lacking.insert(node);
            self.helpers.look_from = Some(Node(0));
        }
        alone
    }

    fn placing(&self, node: Node) -> Placing {
        let upstream = |node: Node| {
            let member = self.member(node);
            Upstream::Vm { vm: member.vm.clone(), address: member.contact.address }
        };
        let member = self.member(node);
        // By depth and not by who is named: one that reaches no ancestor has only a helper (invariant 6).
        let stripe = |named: &Named| match named.depth {
            0 => vec![Upstream::Origin],
            _ => named.all().map(upstream).collect(),
        };
        let names = &member.names;
        let seat = Seat {
            place: names.place,
            depths: names.stripes.iter().map(|named| named.depth).collect(),
            beside: names.beside.iter().map(|node| upstream(*node)).collect(),
        };
        Placing { epoch: member.epoch, stripes: names.stripes.iter().map(stripe).collect(), seat }
    }

    /// Whom a member is to ask: for each stripe its nearest ancestors and a helper, nobody for a root.
    pub(super) fn names(&mut self, node: Node) -> Names {
        self.find_helpers();
        let stripes: Vec<_> = (0..self.topology.stripes()).map(|stripe| self.named(node, stripe)).collect();
        let beside = self.beside(node, &stripes);
        // Without places the order is that of the levels.
        let depth = stripes.first().map_or(0, |named| u64::from(named.depth));
        let place = self.topology.place(node).unwrap_or(depth);
        Names { place, stripes, beside }
    }

    fn named(&self, node: Node, stripe: usize) -> Named {
        let depth = self.topology.depth(node, stripe);
        let reached = |up: &Node| !self.complaints.holds(node, *up);
        let mut above: Vec<Node> = self.chain(node, stripe).filter(reached).collect();
        let has_room = depth > 0 && above.len() < self.limits.ancestors_max;
        let helper = if has_room { self.helper(node, (stripe, depth), &above) } else { None };
        if above.is_empty() && helper.is_none() {
            above.extend(self.chain(node, stripe)); // better than nobody
        }
        Named { depth, above, helper }
    }

    /// A ready member near the root; the one that was named before, while it is still right.
    fn helper(&self, node: Node, (stripe, depth): (usize, u32), above: &[Node]) -> Option<Node> {
        let suits = |helper: &Node| {
            self.member(*helper).ready
                && !above.contains(helper)
                && !self.complaints.holds(node, *helper)
                && self.topology.depth(*helper, stripe) < depth
        };
        let before = self.member(node).names.stripes.get(stripe).and_then(|named| named.helper);
        if let Some(helper) = before.filter(suits) {
            return Some(helper);
        }
        let ready = self.helpers.ready.get(stripe)?.iter().copied();
        self.pick(node, ready.filter(suits))
    }

    /// One of the first few: another for each member, so that a broken tree does not fall upon one.
    pub(super) fn pick(&self, node: Node, suitable: impl Iterator<Item = Node>) -> Option<Node> {
        let few: Vec<Node> = suitable.take(HELPERS).collect();
        let pick = xxhash_rust::xxh3::xxh3_64(self.member(node).vm.as_str().as_bytes()) as usize;
        few.get(pick.checked_rem(few.len())?).copied()
    }

    /// Finds out anew who can be helper, if that may have changed.
    fn find_helpers(&mut self) {
        if !std::mem::take(&mut self.helpers.outdated) {
            return;
        }
        for node in std::mem::take(&mut self.helpers.near) {
            if let Some(member) = self.members.get_mut(node.0 as usize) {
                member.near = false;
            }
        }
        let mut ready = Vec::new();
        for stripe in 0..self.topology.stripes() {
            let near: Vec<Node> = breadth_first(self.topology.as_ref(), stripe).take(HELPER_PLACES).collect();
            ready.push(near.iter().copied().filter(|node| self.member(*node).ready).collect());
            self.helpers.near.extend(near);
        }
        for &node in &self.helpers.near {
            self.members[node.0 as usize].near = true;
        }
        if ready != self.helpers.ready {
            self.helpers.ready = ready;
            self.helpers.look_from = Some(Node(0));
        }
    }

    pub(super) fn is_member(&self, node: Node) -> bool {
        self.members.contains(node.0 as usize)
    }

    pub(super) fn member(&self, node: Node) -> &Member {
        &self.members[node.0 as usize]
    }

    fn member_mut(&mut self, node: Node) -> &mut Member {
        &mut self.members[node.0 as usize]
    }

    pub fn view(&self, image: ImageId) -> TreeView {
        let tree = self.topology.as_ref();
        let members = self.places(0).map(|(node, PlaceView { vm, place, parent, children })| {
            let Member { ready, blocks_present, blocks_total, .. } = *self.member(node);
            MemberView { vm, place, parent, children, ready, blocks_present, blocks_total }
        });
        let further = 1..tree.stripes();
        TreeView {
            image,
            epoch: self.epoch,
            height: tree.height(),
            members: members.collect(),
            further_stripes: further
                .map(|stripe| self.places(stripe).map(|(_, place)| place).collect())
                .collect(),
            code: None,
        }
    }

    /// Who feeds whom in a stripe, the root first.
    fn places(&self, stripe: usize) -> impl Iterator<Item = (Node, PlaceView)> {
        let tree = self.topology.as_ref();
        let name = |node: Node| self.member(node).vm.clone();
        (0..).zip(breadth_first(tree, stripe)).map(move |(place, node)| {
            let parent = tree.parent(node, stripe).map(name);
            let children = tree.children(node, stripe).into_iter().map(name).collect();
            (node, PlaceView { vm: name(node), place, parent, children })
        })
    }

    /// Checks the invariants over all members; for tests and the simulator, because it looks at everyone.
    pub fn check(&self) {
        let tree = self.topology.as_ref();
        for (vm, &node) in &self.nodes {
            let member = self.member(node);
            assert_eq!(member.vm, *vm);
            assert_eq!(member.names.stripes.len(), tree.stripes());
            for (stripe, named) in member.names.stripes.iter().enumerate() {
                let above: Vec<Node> = ancestors(tree, node, stripe).take(self.members.len() + 1).collect();
                assert!(above.len() < self.members.len(), "invariant 1: {vm} is in a cycle");
                assert_eq!(named.depth as usize, above.len(), "{vm} does not know how deep it is");
                assert_eq!(named.all().count() == 0, above.is_empty(), "invariant 6: only a root reads it");
                let sent_to_origin = self.placing(node).stripes[stripe].contains(&Upstream::Origin);
                assert_eq!(sent_to_origin, above.is_empty(), "invariant 6: nobody else is sent there");
                let reached: Vec<Node> = above.iter().copied().take(self.chain_max()).collect();
                let cut_off = reached.iter().any(|up| self.complaints.holds(node, *up));
                assert!(cut_off || named.above == reached, "the parent is asked first, then its parent");
                assert!(named.all().count() <= self.limits.ancestors_max);
                assert_eq!(named.all().collect::<BTreeSet<_>>().len(), named.all().count(), "no repeats");
                for name in named.all() {
                    assert!(self.topology.depth(name, stripe) < named.depth, "invariant 11: {vm} asks down");
                }
                if let Some(helper) = named.helper {
                    assert!(self.members.contains(helper.0 as usize), "{vm} is sent to a stranger");
                    assert!(self.helpers.named_to.contains(&(helper, node)));
                }
            }
            for beside in &member.names.beside {
                assert!(*beside != node && self.members.contains(beside.0 as usize));
                assert!(self.beside_which(*beside).contains(&node));
            }
            assert!(member.epoch <= self.epoch);
            assert!(self.issued.contains(&(member.placed_at, node)));
        }
        let helped: BTreeSet<(Node, Node)> = self
            .members
            .iter()
            .flat_map(|(number, member)| member.names.stripes.iter().map(move |named| (number, named.helper)))
            .filter_map(|(number, helper)| Some((helper?, Node(number as u32))))
            .collect();
        assert_eq!(helped, self.helpers.named_to);
        assert!(self.helpers.lacking.iter().all(|node| self.members.contains(node.0 as usize)));
        assert!(self.leaving.iter().all(|vm| !self.nodes.contains_key(vm)), "a member is not told to leave");
        assert_eq!(self.issued.len(), self.members.len());
        assert_eq!(self.nodes.len(), self.members.len());
        assert_eq!(self.members.len(), tree.len(), "invariant 1");
    }
}
