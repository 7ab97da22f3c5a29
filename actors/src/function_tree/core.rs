//! Decides who is whose parent in one tree, and who must be told.
//!
//! Invariants: 1 (each member once, one root, everyone reaches it), 4 (a report about an older epoch
//! changes nothing), and of 6 the part that the tree decides: nobody but a root is sent to the origin.

use super::messages::StartDraft;
use crate::{
    id::{Epoch, ImageId, VmId},
    model::{MemberView, TreeView},
    tree::{Node, Topology, ancestors, breadth_first},
    wire::control::{HeldTree, Upstream},
    world::KeyHash,
};
use slab::Slab;
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
    vm: VmId,
    contact: Contact,
    /// Has had a ready start, or holds all blocks.
    ready: bool,
    /// One of those from whom helpers are chosen once they are ready.
    near: bool,
    blocks_present: u32,
    blocks_total: u32,
    /// The names in the place that was sent last, for each stripe.
    upstreams: Vec<Named>,
    /// The place must be sent again although it names the same VMs.
    stale: bool,
    /// The epoch of that place, and when its capability was issued.
    epoch: Epoch,
    placed_at: Instant,
    complained_at: Option<Instant>,
    /// Members that name this one and were not served by it.
    complaints: BTreeSet<Node>,
}

/// Whom a member is sent to for one stripe: nobody if it is the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Named {
    /// Its nearest ancestors, the parent first.
    above: Vec<Node>,
    /// A ready member near the root that is neither above nor below.
    helper: Option<Node>,
}

impl Named {
    fn all(&self) -> impl Iterator<Item = Node> {
        self.above.iter().copied().chain(self.helper)
    }
}

/// Ready members near the root that a VM is sent to besides its ancestors are chosen from this many,
/// so that a broken tree does not fall upon one VM.
const HELPERS: usize = 8;
/// Places looked at for them: the first six levels of a binary tree.
const HELPER_PLACES: usize = 64;
/// Places sent again in one tick only because a helper can be named now.
const HINTS_PER_TICK: usize = 64;
/// Members without a helper that are looked at for that.
const LOOKS_PER_TICK: usize = 1024;
/// Capabilities that are due together are renewed over so many ticks: half of their life is left.
const RENEWAL_TICKS: usize = 8;

pub struct TreeCore {
    limits: TreeLimits,
    topology: Box<dyn Topology>,
    epoch: Epoch,
    members: Slab<Member>,
    nodes: BTreeMap<VmId, Node>,
    /// When each member's capability was issued.
    issued: BTreeSet<(Instant, Node)>,
    helpers: Helpers,
}

/// Who may be named as helper, who is, and who lacks one.
///
/// Those who lose a helper, or could have one now, are told with the ticks and not with the change: their
/// ancestors are there.
#[derive(Default)]
struct Helpers {
    /// The ready ones of the members near the root of each stripe, in the order of their places.
    ready: Vec<Vec<Node>>,
    near: Vec<Node>,
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
        }
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
            Event::Reported { vm, contact, held } => self.reported(vm, contact, &held, now, effects),
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
            Event::UpstreamLost { by, epoch, vm } => self.upstream_lost(&by, epoch, &vm, now, effects),
            Event::Dissolve => self.dissolve(effects),
            Event::Tick => self.tick(now, effects),
        }
        debug_assert_eq!(self.members.len(), self.topology.len(), "invariant 1");
    }

    fn join(
        &mut self,
        vm: VmId,
        contact: Contact,
        start: Box<StartDraft>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let (node, mut affected) = self.admit(&vm, contact, now);
        affected.retain(|other| *other != node);
        let upstreams = self.upstreams(node);
        self.place(node, upstreams, now);
        let key_hash = self.member(node).contact.key_hash.clone();
        effects.push(Effect::Start { vm, key_hash, placing: self.placing(node), start });
        self.place_changed(affected, now, effects);
    }

    fn reported(
        &mut self,
        vm: VmId,
        contact: Contact,
        held: &HeldTree,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let (node, affected) = self.admit(&vm, contact, now);
        self.held(&vm, held);
        self.place_changed(affected, now, effects);
        // What was sent on the VM's last session may not have arrived.
        let sent_now =
            effects.iter().any(|effect| matches!(effect, Effect::Place { vm: to, .. } if *to == vm));
        if held.epoch < self.member(node).epoch && !sent_now {
            let upstreams = self.upstreams(node);
            self.push_place(node, upstreams, now, effects);
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
            self.drop_helper(node);
            let affected = self.with_those_below(vec![node], self.chain_max());
            for &other in &affected {
                self.member_mut(other).stale = true;
            }
            return (node, affected);
        }
        self.epoch.counter += 1;
        let member = Member {
            vm: vm.clone(),
            contact,
            ready: false,
            near: false,
            blocks_present: 0,
            blocks_total: 0,
            upstreams: Vec::new(),
            stale: true,
            epoch: Epoch::default(),
            placed_at: now,
            complained_at: None,
            complaints: BTreeSet::new(),
        };
        let node = Node(u32::try_from(self.members.insert(member)).expect("far fewer VMs exist"));
        self.nodes.insert(vm.clone(), node);
        self.issued.insert((now, node));
        let moved = self.topology.join(node);
        (node, self.affected(moved))
    }

    fn held(&mut self, vm: &VmId, held: &HeldTree) {
        let Some(&node) = self.nodes.get(vm) else { return };
        let member = self.member_mut(node);
        member.blocks_present = held.blocks_present;
        member.blocks_total = held.blocks_total;
        if held.blocks_total > 0 && held.blocks_present >= held.blocks_total {
            self.ready(vm);
        }
    }

    fn ready(&mut self, vm: &VmId) {
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
        self.epoch.counter += 1;
        self.drop_helper(node);
        self.name(node, Vec::new());
        let member = self.members.remove(node.0 as usize);
        self.issued.remove(&(member.placed_at, node));
        self.helpers.lacking.remove(&node);
        self.helpers.outdated |= member.near;
        let moved = self.topology.leave(node);
        let affected = self.affected(moved);
        self.place_changed(affected, now, effects);
        true
    }

    /// A VM that does not serve its children loses them: it goes to the end, where it has none. A word
    /// against the root must come from all its children, because a new root reads from the origin.
    fn upstream_lost(&mut self, by: &VmId, epoch: Epoch, vm: &VmId, now: Instant, effects: &mut Vec<Effect>) {
        let (Some(&by), Some(&node)) = (self.nodes.get(by), self.nodes.get(vm)) else { return };
        let pause = self.limits.complaint_pause;
        let member = self.member_mut(by);
        // Told about a place that it has no more, or too often.
        let fresh =
            epoch >= member.epoch && member.upstreams.iter().flat_map(Named::all).any(|up| up == node);
        let paused = member.complained_at.is_some_and(|at| now < at + pause);
        if !fresh || paused {
            return;
        }
        member.complained_at = Some(now);
        self.member_mut(node).complaints.insert(by);
        let stripes = 0..self.topology.stripes();
        let children: BTreeSet<Node> =
            stripes.clone().flat_map(|stripe| self.topology.children(node, stripe)).collect();
        let complaints = children.intersection(&self.member(node).complaints).count();
        let is_root = stripes.clone().any(|stripe| self.topology.parent(node, stripe).is_none());
        let enough = if is_root { children.len() } else { children.len().div_ceil(2) };
        if complaints == 0 || complaints < enough {
            return;
        }
        let accused = self.member_mut(node);
        accused.complaints.clear();
        // Nobody is sent to it by choice, until it says again that it can serve.
        accused.ready = false;
        self.helpers.outdated = true;
        self.epoch.counter += 1;
        let mut moved = self.topology.leave(node);
        moved.extend(self.topology.join(node));
        let affected = self.affected(moved);
        self.place_changed(affected, now, effects);
    }

    fn dissolve(&mut self, effects: &mut Vec<Effect>) {
        self.epoch.counter += 1;
        let epoch = self.epoch;
        self.members.clear();
        self.topology.clear();
        self.issued.clear();
        self.helpers = Helpers::default();
        let vms = std::mem::take(&mut self.nodes).into_keys();
        effects.extend(vms.map(|vm| Effect::Leave { vm, epoch }));
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let half_ttl = self.limits.capability_ttl / 2;
        let old = self.issued.iter().take_while(|(issued_at, _)| now >= *issued_at + half_ttl);
        let share = self.members.len().div_ceil(RENEWAL_TICKS).max(HINTS_PER_TICK);
        for node in old.map(|(_, node)| *node).take(share).collect::<Vec<_>>() {
            let upstreams = self.upstreams(node);
            self.push_place(node, upstreams, now, effects);
        }
        self.find_helpers();
        let Some(first) = self.helpers.look_from.take() else { return };
        let mut lacking = self.helpers.lacking.range(first..).copied();
        let looked: Vec<Node> = lacking.by_ref().take(LOOKS_PER_TICK).collect();
        self.helpers.look_from = lacking.next();
        let mut sent = 0;
        for node in looked {
            let upstreams = self.upstreams(node);
            if self.member(node).upstreams == upstreams {
                continue;
            }
            if sent == HINTS_PER_TICK {
                self.helpers.look_from = Some(node);
                return;
            }
            self.push_place(node, upstreams, now, effects);
            sent += 1;
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
        let is_new = |node: &Node| self.member(*node).upstreams.is_empty();
        let looped = if moved.iter().all(is_new) { Vec::new() } else { self.looped() };
        let mut affected = self.with_those_below(moved, self.chain_max() - 1);
        affected.extend(looped);
        affected.sort_unstable();
        affected.dedup();
        affected
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

    /// The members that have their helper below them now.
    fn looped(&self) -> Vec<Node> {
        let mut looped = Vec::new();
        let mut next = self.helpers.named_to.first();
        while let Some(&(helper, _)) = next {
            for stripe in 0..self.topology.stripes() {
                let above = ancestors(self.topology.as_ref(), helper, stripe);
                looped.extend(above.filter(|above| self.helpers.named_to.contains(&(helper, *above))));
            }
            next = self.helpers.named_to.range((Node(helper.0 + 1), Node(0))..).next();
        }
        looped
    }

    /// Ancestors in a place: all but one of its upstreams, the last is a helper.
    fn chain_max(&self) -> usize {
        (self.limits.ancestors_max - 1).max(1)
    }

    /// Sends places to those among `affected` whose upstreams have changed.
    fn place_changed(&mut self, affected: Vec<Node>, now: Instant, effects: &mut Vec<Effect>) {
        for node in affected {
            let upstreams = self.upstreams(node);
            let member = self.member(node);
            if member.stale || member.upstreams != upstreams {
                self.push_place(node, upstreams, now, effects);
            }
        }
    }

    fn push_place(&mut self, node: Node, upstreams: Vec<Named>, now: Instant, effects: &mut Vec<Effect>) {
        self.place(node, upstreams, now);
        let member = self.member(node);
        let (vm, key_hash) = (member.vm.clone(), member.contact.key_hash.clone());
        effects.push(Effect::Place { vm, key_hash, placing: self.placing(node) });
    }

    /// Gives a member the upstreams of its present place, with a fresh capability.
    fn place(&mut self, node: Node, upstreams: Vec<Named>, now: Instant) {
        if self.member(node).upstreams != upstreams {
            self.name(node, upstreams);
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
    fn name(&mut self, node: Node, upstreams: Vec<Named>) {
        let before = std::mem::replace(&mut self.member_mut(node).upstreams, upstreams);
        for helper in before.iter().filter_map(|named| named.helper) {
            self.helpers.named_to.remove(&(helper, node));
        }
        let now = &self.members[node.0 as usize].upstreams;
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
        let names: Vec<Node> = now.iter().flat_map(Named::all).collect();
        for name in before.iter().flat_map(Named::all).filter(|name| !names.contains(name)) {
            if let Some(member) = self.members.get_mut(name.0 as usize) {
                member.complaints.remove(&node);
            }
        }
    }

    /// Names a VM to nobody as helper any more.
    fn drop_helper(&mut self, helper: Node) {
        let named_to = self.helpers.named_to.range((helper, Node(0))..=(helper, Node(u32::MAX)));
        for (_, node) in named_to.copied().collect::<Vec<_>>() {
            let mut upstreams = self.member(node).upstreams.clone();
            for named in upstreams.iter_mut().filter(|named| named.helper == Some(helper)) {
                named.helper = None;
            }
            self.name(node, upstreams);
            self.helpers.look_from = Some(Node(0));
        }
    }

    fn placing(&self, node: Node) -> Placing {
        let upstream = |node: Node| {
            let member = self.member(node);
            Upstream::Vm { vm: member.vm.clone(), address: member.contact.address }
        };
        let member = self.member(node);
        let stripe = |named: &Named| match named.above.as_slice() {
            [] => vec![Upstream::Origin],
            _ => named.all().map(upstream).collect(),
        };
        Placing { epoch: member.epoch, stripes: member.upstreams.iter().map(stripe).collect() }
    }

    /// Whom a member is to ask, for each stripe: its nearest ancestors and a helper; nobody for a root.
    fn upstreams(&mut self, node: Node) -> Vec<Named> {
        self.find_helpers();
        (0..self.topology.stripes()).map(|stripe| self.upstreams_of(node, stripe)).collect()
    }

    fn upstreams_of(&self, node: Node, stripe: usize) -> Named {
        let chain = ancestors(self.topology.as_ref(), node, stripe).take(self.chain_max());
        let above: Vec<Node> = chain.collect();
        let has_room = !above.is_empty() && above.len() < self.limits.ancestors_max;
        let helper = if has_room { self.helper(node, stripe, &above) } else { None };
        Named { above, helper }
    }

    /// A ready member near the root; the one that was named before, while it is still right.
    fn helper(&self, node: Node, stripe: usize, above: &[Node]) -> Option<Node> {
        let suits = |helper: &Node| {
            let member = self.member(*helper);
            // Below one that is not near a root nobody is near.
            let may_be_below = self.member(node).near || !member.near;
            member.ready
                && *helper != node
                && !above.contains(helper)
                && !(may_be_below && ancestors(self.topology.as_ref(), *helper, stripe).any(|up| up == node))
        };
        let before = self.member(node).upstreams.get(stripe).and_then(|named| named.helper);
        if let Some(helper) = before.filter(suits) {
            return Some(helper);
        }
        let ready = self.helpers.ready.get(stripe)?.iter().copied();
        let helpers: Vec<Node> = ready.filter(suits).take(HELPERS).collect();
        let pick = xxhash_rust::xxh3::xxh3_64(self.member(node).vm.as_str().as_bytes()) as usize;
        helpers.get(pick.checked_rem(helpers.len())?).copied()
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

    fn member(&self, node: Node) -> &Member {
        &self.members[node.0 as usize]
    }

    fn member_mut(&mut self, node: Node) -> &mut Member {
        &mut self.members[node.0 as usize]
    }

    pub fn view(&self, image: ImageId) -> TreeView {
        let tree = self.topology.as_ref();
        let name = |node: Node| self.member(node).vm.clone();
        let members = (0..).zip(breadth_first(tree, 0)).map(|(place, node)| {
            let member = self.member(node);
            MemberView {
                vm: member.vm.clone(),
                place,
                parent: tree.parent(node, 0).map(name),
                children: tree.children(node, 0).into_iter().map(name).collect(),
                ready: member.ready,
                blocks_present: member.blocks_present,
                blocks_total: member.blocks_total,
            }
        });
        TreeView { image, epoch: self.epoch, height: tree.height(), members: members.collect() }
    }

    /// Checks the invariants over all members; for tests, because it looks at everyone.
    #[cfg(test)]
    pub fn check(&self) {
        let tree = self.topology.as_ref();
        for (vm, &node) in &self.nodes {
            let member = self.member(node);
            assert_eq!(member.vm, *vm);
            assert_eq!(member.upstreams.len(), tree.stripes());
            for (stripe, named) in member.upstreams.iter().enumerate() {
                let above: Vec<Node> = ancestors(tree, node, stripe).take(self.members.len() + 1).collect();
                assert!(above.len() < self.members.len(), "invariant 1: {vm} is in a cycle");
                assert!(above.starts_with(&named.above), "the parent is asked first, then its parent");
                assert_eq!(named.above.len(), above.len().min(self.chain_max()), "invariant 6 for the root");
                assert!(named.all().count() <= self.limits.ancestors_max);
                assert_eq!(named.all().collect::<BTreeSet<_>>().len(), named.all().count(), "no repeats");
                for name in named.all() {
                    assert!(!ancestors(tree, name, stripe).any(|up| up == node) && name != node, "no loops");
                }
                if let Some(helper) = named.helper {
                    assert!(self.members.contains(helper.0 as usize), "{vm} is sent to a stranger");
                    assert!(self.helpers.named_to.contains(&(helper, node)));
                }
            }
            assert!(member.epoch <= self.epoch);
            assert!(self.issued.contains(&(member.placed_at, node)));
            assert!(member.complaints.iter().all(|by| {
                self.member(*by).upstreams.iter().flat_map(Named::all).any(|name| name == node)
            }));
        }
        let helped: BTreeSet<(Node, Node)> = self
            .members
            .iter()
            .flat_map(|(number, member)| member.upstreams.iter().map(move |named| (number, named.helper)))
            .filter_map(|(number, helper)| Some((helper?, Node(number as u32))))
            .collect();
        assert_eq!(helped, self.helpers.named_to);
        assert!(self.helpers.lacking.iter().all(|node| self.members.contains(node.0 as usize)));
        assert_eq!(self.issued.len(), self.members.len());
        assert_eq!(self.nodes.len(), self.members.len());
        assert_eq!(self.members.len(), tree.len(), "invariant 1");
    }
}
