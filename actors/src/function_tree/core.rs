//! Decides who is whose parent in one tree, and who must be told.
//!
//! Invariants: 1 (each member once, one root, everyone reaches it), 4 (a report about an older epoch
//! changes nothing), and of 6 the part that the tree decides: nobody but a root is sent to the origin.

mod events;
mod helpers;
mod limits;
mod names;
mod news;
mod unserved;
mod view;

pub(super) use self::names::{Named, Names};
use self::{helpers::Helpers, news::News};
use super::{
    complaints::Complaints,
    leaving::Leaving,
    messages::{PreheatDraft, StartDraft},
    origin::OriginBudget,
    rejoin::Rejoin,
};
use crate::{
    id::{Epoch, VmId},
    image::{BLOCK_BYTES, BlockImage},
    tree::{Node, Topology},
    wire::control::{HeldTree, OriginAnswer},
    world::KeyHash,
};
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

pub use self::{
    events::{Contact, Effect, Event, Placing},
    limits::TreeLimits,
    news::{Cause, HoldingNews, SeatNews, SeatPlace, TreeNews},
};

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
    news: News,
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
            news: News::default(),
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
        effects.extend(self.take_news().map(Effect::Tell));
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

    pub(super) fn held(&mut self, vm: &VmId, held: &HeldTree) {
        let Some(&node) = self.nodes.get(vm) else { return };
        self.origin.image_has(held.blocks_total);
        let member = self.member_mut(node);
        let is_news =
            (member.blocks_present, member.blocks_total) != (held.blocks_present, held.blocks_total);
        member.blocks_present = held.blocks_present;
        member.blocks_total = held.blocks_total;
        if is_news {
            self.note_holding(held, vm);
        }
        if held.blocks_total > 0 && held.blocks_present >= held.blocks_total {
            self.ready(vm);
        }
    }

    pub(super) fn ready(&mut self, vm: &VmId) {
        let Some(&node) = self.nodes.get(vm) else { return };
        self.complaints.trust(node);
        let member = self.member_mut(node);
        if !std::mem::replace(&mut member.ready, true) {
            self.helpers.outdated |= member.near;
            self.topology.set_ready(node);
            self.news.seat(node, Cause::Ready);
        }
    }

    /// Takes a VM out and places anew whom that concerns. False if it was no member.
    fn remove(&mut self, vm: &VmId, now: Instant, effects: &mut Vec<Effect>) -> bool {
        let Some(node) = self.nodes.remove(vm) else { return false };
        self.leaving.gone(vm);
        self.epoch.counter += 1;
        self.news.gone(node);
        self.news.tell(TreeNews::Left { vm: vm.clone(), epoch: self.epoch });
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
        self.news = News::default();
        self.news.tell(TreeNews::Dissolved);
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
        self.trust_again(now);
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

    pub(super) fn is_member(&self, node: Node) -> bool {
        self.members.contains(node.0 as usize)
    }

    pub(super) fn member(&self, node: Node) -> &Member {
        &self.members[node.0 as usize]
    }

    fn member_mut(&mut self, node: Node) -> &mut Member {
        &mut self.members[node.0 as usize]
    }
}
