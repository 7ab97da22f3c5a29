//! Transfers and the manager's tree together on virtual time: VMs die, pause and are cut off from each other.

use super::{
    ChildId,
    core::{Effect, Event, TransferCore, TransferLimits},
    fixtures::{Agenda, index, ms, number, stored, vm},
};
use crate::{
    function_tree::{
        Contact, Effect as TreeEffect, Event as TreeEvent, Role, StartDraft, TreeCore, TreeLimits,
    },
    id::{BlockId, Digest, Epoch, VmId},
    image::{BLOCK_BYTES, BlockImage, Index},
    resources::Resources,
    tree::Complete,
    wire::control::Upstream,
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

const LIMITS: TransferLimits = TransferLimits {
    in_flight_blocks_min: 4,
    in_flight_blocks_max: 12,
    read_ahead_blocks_max: 4,
    hops_max: 32,
    origin_share_blocks: 4,
    read_deadline: ms(20_000),
    ..TransferLimits::SHIPPED
};
const TREE: TreeLimits = TreeLimits::SHIPPED;
const HOP: Duration = ms(1);
const ORIGIN: Duration = ms(20);
const CONNECT: Duration = ms(1000);
const LEASE: Duration = ms(3000);

fn contact(number: usize) -> Contact {
    Contact { address: ([127, 0, 0, 1], 1000 + number as u16).into(), key_hash: vec![number as u8].into() }
}

/// A connection of a child to its parent.
type Link = u64;

enum News {
    Local(Event),
    /// From a parent, on that connection.
    Down(Link, Event),
    /// From a child.
    Up(Link, Event),
    /// The parent is reached.
    Reached(Link),
    Manager(TreeEvent),
}

const MANAGER: usize = usize::MAX;

struct World {
    now: Instant,
    index: Arc<Index>,
    tree: TreeCore,
    is_managed: bool,
    vms: Vec<TransferCore>,
    dead: BTreeSet<usize>,
    /// Until when a VM does nothing.
    paused: BTreeMap<usize, Instant>,
    cut: BTreeSet<(usize, usize)>,
    /// VMs that say to their children that they wait, and nothing else.
    pretending: BTreeSet<usize>,
    /// Until when the origin answers nothing.
    origin_rests_until: Instant,
    complaints: u32,
    /// Blocks that VMs were asked for.
    asked_of_vms: usize,
    links: BTreeMap<Link, (usize, Upstream)>,
    present_links: BTreeMap<(usize, Upstream), Link>,
    agenda: Agenda<(usize, News)>,
    links_made: Link,
    asked: Vec<BTreeSet<BlockId>>,
    answered: Vec<BTreeSet<BlockId>>,
    failed: u32,
    origin_blocks: u32,
    tick_at: Instant,
    ticks: u32,
}

impl World {
    /// VMs that have joined one after the other and have had time for the index.
    fn new(vms: usize, blocks: u32) -> Self {
        let now = Instant::now();
        let core = |number| TransferCore::new(vm(number), LIMITS, None, BTreeSet::new(), now);
        let mut world = Self {
            now,
            index: index(blocks),
            tree: TreeCore::new(TREE, Box::new(Complete::new(2)), Epoch { term: 1, counter: 0 }),
            is_managed: true,
            vms: (0..vms).map(core).collect(),
            dead: BTreeSet::new(),
            paused: BTreeMap::new(),
            cut: BTreeSet::new(),
            pretending: BTreeSet::new(),
            origin_rests_until: now,
            complaints: 0,
            asked_of_vms: 0,
            links: BTreeMap::new(),
            present_links: BTreeMap::new(),
            agenda: Agenda::new(),
            links_made: 0,
            asked: vec![BTreeSet::new(); vms],
            answered: vec![BTreeSet::new(); vms],
            failed: 0,
            origin_blocks: 0,
            tick_at: now,
            ticks: 0,
        };
        for number in 0..vms {
            let mut image = BlockImage::of_test(Digest::from_bytes([1; 32]));
            image.plain_bytes = u64::from(blocks) * u64::from(BLOCK_BYTES);
            let start = Box::new(StartDraft {
                request: None,
                start: format!("start-{number}").parse().expect("valid"),
                function: "api".parse().expect("valid"),
                image: Arc::new(image),
                role: Role::Whole,
                env: BTreeMap::new(),
                command: None,
                needs: Resources { memory_bytes: 1, cpu_millis: 1 },
                probe_path: "/".into(),
                mode: crate::wire::control::Mode::default(),
                ready_deadline_ms: 1000,
                record: false,
                hot: Arc::default(),
            });
            world.manage(TreeEvent::Join { vm: vm(number), contact: contact(number), start });
        }
        world.run(ms(300));
        world
    }

    fn send(&mut self, to: usize, after: Duration, news: News) {
        self.agenda.add(self.now + after, (to, news));
    }

    fn run(&mut self, length: Duration) {
        let end = self.now + length;
        loop {
            let next = self.agenda.next_at().filter(|at| *at <= self.tick_at);
            let at = next.unwrap_or(self.tick_at);
            if at > end {
                self.now = end;
                return;
            }
            self.now = at;
            if next.is_none() {
                self.tick_at += ms(50);
                for number in 0..self.vms.len() {
                    if !self.is_paused(number) {
                        self.step(number, Event::Tick);
                    }
                }
                self.ticks += 1;
                if self.ticks.is_multiple_of(20) {
                    self.manage(TreeEvent::Tick);
                }
                continue;
            }
            let (to, news) = self.agenda.pop().expect("peeked");
            self.deliver(to, news);
        }
    }

    fn is_paused(&self, number: usize) -> bool {
        self.paused.get(&number).is_some_and(|until| self.now < *until)
    }

    fn reach(&self, one: usize, other: usize) -> bool {
        let is_cut = self.cut.contains(&(one.min(other), one.max(other)));
        !is_cut && !self.dead.contains(&one) && !self.dead.contains(&other)
    }

    fn deliver(&mut self, to: usize, news: News) {
        if let Some(until) = self.paused.get(&to).filter(|until| self.now < **until) {
            let after = until.duration_since(self.now);
            return self.send(to, after, news);
        }
        match news {
            News::Local(event) => self.step(to, event),
            News::Manager(event) => self.manage(event),
            News::Down(link, event) => {
                let Some((child, upstream)) = self.links.get(&link).cloned() else { return };
                let parent = self.parent_of(link);
                let is_present = self.present_links.get(&(child, upstream)) == Some(&link);
                if is_present && (parent.is_none_or(|parent| self.reach(parent, child)) || is_end(&event)) {
                    self.step(child, event);
                }
            }
            News::Up(link, event) => {
                let (Some((child, _)), Some(parent)) = (self.links.get(&link).cloned(), self.parent_of(link))
                else {
                    return;
                };
                if self.reach(child, parent) {
                    self.step(parent, event);
                }
            }
            News::Reached(link) => {
                let (Some((child, upstream)), Some(parent)) =
                    (self.links.get(&link).cloned(), self.parent_of(link))
                else {
                    return;
                };
                if self.reach(child, parent) {
                    self.step(parent, Event::ChildOpened { child: ChildId(link), vm: vm(child) });
                    self.send(child, HOP, News::Down(link, Event::Opened { upstream }));
                }
            }
        }
    }

    fn parent_of(&self, link: Link) -> Option<usize> {
        match &self.links.get(&link)?.1 {
            Upstream::Origin => None,
            Upstream::Vm { vm, .. } => Some(number(vm)),
        }
    }

    fn manage(&mut self, event: TreeEvent) {
        if !self.is_managed {
            return;
        }
        let mut effects = Vec::new();
        self.tree.apply(event, self.now, &mut effects);
        self.tree.check();
        for effect in effects {
            let (to, event) = match effect {
                TreeEffect::Start { vm, placing, .. }
                | TreeEffect::Preheat { vm, placing, .. }
                | TreeEffect::Place { vm, placing, .. } => {
                    let (epoch, stripes, seat) = (placing.epoch, placing.stripes, placing.seat);
                    (vm, Event::Placed { epoch, stripes, seat })
                }
                TreeEffect::Origin { vm, answer } => (vm, Event::OriginAnswered { answer }),
                TreeEffect::Leave { .. } | TreeEffect::Tell(_) => continue,
            };
            self.send(number(&to), HOP, News::Local(event));
        }
    }

    fn step(&mut self, number: usize, event: Event) {
        if self.dead.contains(&number) {
            return;
        }
        if self.pretending.contains(&number) {
            return if matches!(event, Event::Tick) {
                self.pretend(number)
            };
        }
        let mut effects = Vec::new();
        self.vms[number].apply(event, self.now, &mut effects);
        for effect in effects {
            self.perform(number, effect);
        }
    }

    fn pretend(&mut self, number: usize) {
        let links = self.present_links.values().copied();
        let children: Vec<Link> = links.filter(|link| self.parent_of(*link) == Some(number)).collect();
        for link in children {
            self.down(ChildId(link), |upstream| Event::UpstreamWaits { upstream });
        }
    }

    fn up(&mut self, number: usize, upstream: &Upstream, event: impl FnOnce(ChildId) -> Event) {
        let Some(&link) = self.present_links.get(&(number, upstream.clone())) else { return };
        let Some(parent) = self.parent_of(link) else { return };
        self.send(parent, HOP, News::Up(link, event(ChildId(link))));
    }

    fn down(&mut self, ChildId(link): ChildId, event: impl FnOnce(Upstream) -> Event) {
        let Some((child, upstream)) = self.links.get(&link).cloned() else { return };
        self.send(child, HOP, News::Down(link, event(upstream)));
    }

    fn perform(&mut self, number: usize, effect: Effect) {
        match effect {
            Effect::Connect(upstream) => {
                self.links_made += 1;
                let link = self.links_made;
                self.links.insert(link, (number, upstream.clone()));
                self.present_links.insert((number, upstream.clone()), link);
                match self.parent_of(link) {
                    None => self.send(number, HOP, News::Down(link, Event::Opened { upstream })),
                    Some(parent) if self.reach(number, parent) => self.send(parent, HOP, News::Reached(link)),
                    Some(_) => self.send(number, CONNECT, News::Down(link, Event::Lost { upstream })),
                }
            }
            Effect::Disconnect(upstream) => {
                self.up(number, &upstream, |child| Event::ChildLost { child });
                self.present_links.remove(&(number, upstream));
            }
            Effect::AskIndex { upstream: Upstream::Origin, .. } => {
                let index = Arc::clone(&self.index);
                self.send(number, ORIGIN, News::Local(Event::IndexArrived { index }));
            }
            Effect::AskIndex { upstream, reach } => {
                self.up(number, &upstream, |child| Event::ChildWantsIndex { child, reach });
            }
            Effect::Ask { upstream: Upstream::Origin, blocks, .. } => {
                let link = self.present_links[&(number, Upstream::Origin)];
                let after = self.origin_rests_until.saturating_duration_since(self.now) + ORIGIN;
                for block in blocks {
                    self.origin_blocks += 1;
                    let event =
                        Event::Arrived { upstream: Upstream::Origin, blocks: vec![(block, stored(block))] };
                    self.send(number, after, News::Down(link, event));
                }
            }
            Effect::Ask { upstream, blocks, urgency, path, reach } => {
                let visited: BTreeSet<_> = path.iter().collect();
                assert_eq!(visited.len(), path.len(), "invariant 11: no demand visits a VM twice");
                self.asked_of_vms += blocks.len();
                self.up(number, &upstream, |child| Event::ChildWanted {
                    child,
                    blocks,
                    urgency,
                    path,
                    reach,
                });
            }
            Effect::Keep { block, .. } => self.send(number, HOP, News::Local(Event::Kept { block })),
            Effect::Hurry { upstream, blocks } => {
                self.up(number, &upstream, |child| Event::ChildHurries { child, blocks });
            }
            Effect::Serve { child, block, urgency, .. } => {
                self.send(number, HOP, News::Local(Event::ChildSent { child, urgency }));
                self.down(child, |upstream| Event::Arrived {
                    upstream,
                    blocks: vec![(block, stored(block))],
                });
            }
            Effect::ServeIndex { child } => {
                let index = Arc::clone(&self.index);
                self.down(child, |_| Event::IndexArrived { index });
            }
            Effect::NotServed { child, block, reason } => {
                self.down(child, |upstream| Event::NotServed { upstream, block, reason });
            }
            Effect::TellWaiting { child, .. } => {
                self.down(child, |upstream| Event::UpstreamWaits { upstream })
            }
            Effect::RefuseChild { child } => self.down(child, |upstream| Event::Lost { upstream }),
            Effect::Present { blocks } => self.answered[number].extend(blocks),
            Effect::Unavailable { blocks } => self.failed += blocks.len() as u32,
            Effect::ReportLost { vm: lost } => {
                self.complaints += 1;
                let (by, epoch) = (vm(number), self.vms[number].epoch().expect("it has upstreams"));
                self.send(MANAGER, HOP, News::Manager(TreeEvent::UpstreamLost { by, epoch, vm: lost }));
            }
            Effect::WantOrigin { blocks } => {
                let vm = vm(number);
                self.send(MANAGER, HOP, News::Manager(TreeEvent::OriginWanted { vm, blocks }));
            }
            Effect::Check { block } => {
                let event = Event::Checked { block, is_whole: true };
                self.send(number, HOP, News::Local(event));
            }
            Effect::TellCorrupt { .. } | Effect::Step(_) | Effect::Mount => {}
        }
    }

    /// Ends a VM. Its connections are closed, or it is only silent; the manager notices either.
    fn kill(&mut self, number: usize, is_closed: bool) {
        if !self.dead.insert(number) {
            return;
        }
        let children: Vec<_> = (self.present_links.iter())
            .filter(|((_, upstream), link)| {
                *upstream != Upstream::Origin && self.parent_of(**link) == Some(number)
            })
            .map(|((child, upstream), link)| (*child, upstream.clone(), *link))
            .collect();
        for (child, upstream, link) in children.into_iter().filter(|_| is_closed) {
            self.send(child, HOP, News::Down(link, Event::Lost { upstream }));
        }
        let noticed = if is_closed { HOP } else { LEASE };
        self.send(MANAGER, noticed, News::Manager(TreeEvent::Gone { vm: vm(number) }));
    }

    fn read(&mut self, number: usize, blocks: impl IntoIterator<Item = u32>) {
        let blocks: Vec<BlockId> = blocks.into_iter().map(BlockId).collect();
        self.asked[number].extend(&blocks);
        self.send(number, Duration::ZERO, News::Local(Event::Demanded { blocks }));
    }

    /// Everyone reads everything, some blocks at a time, in an order of its own; `happens` in the middle.
    fn read_all(&mut self, happens: impl FnOnce(&mut Self)) {
        let blocks = self.index.block_count();
        let mut happens = Some(happens);
        for step in 0..blocks {
            for number in 0..self.vms.len() {
                self.read(number, [(step + number as u32 % 3) % blocks]);
            }
            if step == blocks / 2
                && let Some(happens) = happens.take()
            {
                happens(self);
            }
            self.run(ms(15));
        }
        self.run(ms(10_000));
    }

    fn living(&self) -> Vec<usize> {
        (0..self.vms.len()).filter(|number| !self.dead.contains(number)).collect()
    }

    fn longest_stall(&self) -> Duration {
        let stalls = self.living().into_iter().map(|number| self.vms[number].stalls(self.now).longest);
        stalls.max().unwrap_or_default()
    }

    fn assert_all_answered(&self) {
        assert_eq!(self.failed, 0, "reads failed");
        for number in self.living() {
            let missing: Vec<_> = self.asked[number].difference(&self.answered[number]).collect();
            assert!(missing.is_empty(), "invariant 7: vm-{number} waits for {missing:?}");
        }
    }

    /// The places of the tree by VM: who is whose parent.
    fn parents(&self) -> BTreeMap<VmId, Option<VmId>> {
        let view = self.tree.view(Digest::from_bytes([1; 32]));
        view.members.into_iter().map(|member| (member.vm, member.parent)).collect()
    }
}

fn is_end(event: &Event) -> bool {
    matches!(event, Event::Lost { .. })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn when_one_vm_dies_no_read_stalls_for_a_second(dies in 0_usize..20, is_closed in any::<bool>()) {
        let mut world = World::new(20, 24);
        world.read_all(|world| world.kill(dies, is_closed));
        world.assert_all_answered();
        prop_assert!(world.longest_stall() < ms(1000), "{:?}", world.longest_stall());
        prop_assert!(world.origin_blocks <= 2 * 24, "invariant 6: {} blocks", world.origin_blocks);
    }

    #[test]
    fn when_several_levels_die_at_once_every_read_is_answered(
        dying in proptest::collection::btree_map(0_usize..31, any::<bool>(), 1..8),
    ) {
        let mut world = World::new(31, 24);
        world.read_all(|world| dying.iter().for_each(|(number, is_closed)| world.kill(*number, *is_closed)));
        world.assert_all_answered();
        prop_assert!(world.origin_blocks <= 3 * 24, "invariant 6: {} blocks", world.origin_blocks);
    }

    #[test]
    fn two_vms_that_cannot_reach_each_other_read_on_and_the_parent_stays(child in 3_usize..31) {
        let mut world = World::new(31, 24);
        let parents = world.parents();
        let parent = number(parents[&vm(child)].as_ref().expect("no root"));
        world.read_all(|world| world.cut.extend([(child.min(parent), child.max(parent))]));
        world.assert_all_answered();
        prop_assert!(world.longest_stall() < ms(1000), "{:?}", world.longest_stall());
        prop_assert_eq!(&world.parents()[&vm(parent)], &parents[&vm(parent)]);
        prop_assert!(world.origin_blocks <= 24, "invariant 6: {} blocks", world.origin_blocks);
    }
}

#[test]
fn a_root_that_pauses_sends_no_crowd_to_the_origin() {
    let mut world = World::new(127, 40);
    world.read_all(|world| {
        let until = world.now + ms(5000);
        world.paused.insert(0, until);
    });
    world.assert_all_answered();
    assert!(world.longest_stall() < ms(1000), "{:?}", world.longest_stall());
    assert!(world.origin_blocks <= 2 * 40, "invariant 6: {} blocks", world.origin_blocks);
}

const PATIENCE: Duration = ms(LIMITS.read_deadline.as_millis() as u64 / 4);

#[test]
fn a_parent_that_says_for_ever_that_it_waits_is_passed_over_and_loses_its_children() {
    let mut world = World::new(15, 24);
    world.pretending.insert(3);
    [7, 8].into_iter().for_each(|child| world.read(child, 0..24));
    world.run(PATIENCE + ms(300));
    world.assert_all_answered();
    assert!(world.longest_stall() < PATIENCE + ms(300), "{:?}", world.longest_stall());
    assert_eq!((world.complaints, world.origin_blocks), (0, 24), "it may be right");
    world.run(PATIENCE);
    assert_eq!(world.complaints, 2, "its children have what it has not");
    world.run(ms(1000));
    assert!([7, 8].iter().all(|child| world.parents()[&vm(*child)] != Some(vm(3))));
}

#[test]
fn a_root_that_says_for_ever_that_it_waits_is_replaced_before_reads_fail() {
    let mut world = World::new(15, 24);
    world.pretending.insert(0);
    (1..15).for_each(|number| world.read(number, 0..24));
    world.run(2 * PATIENCE + ms(1500));
    world.assert_all_answered();
    assert_ne!(world.parents()[&vm(0)], None);
    assert!(world.origin_blocks <= 24 + 24 * TREE.origin.budget_percent / 100, "invariant 6");
}

#[test]
fn when_the_origin_is_slow_everyone_waits_and_nobody_is_blamed() {
    let mut world = World::new(63, 24);
    let parents = world.parents();
    world.origin_rests_until = world.now + 3 * PATIENCE;
    (0..63).for_each(|number| world.read(number, 0..24));
    world.run(LIMITS.read_deadline);
    world.assert_all_answered();
    assert_eq!((world.complaints, world.parents()), (0, parents), "no VM is moved");
    assert!(world.asked_of_vms <= 4 * 63 * 24, "no storm: {} blocks were asked for", world.asked_of_vms);
    let leave = 24 * TREE.origin.budget_percent / 100;
    assert!(world.origin_blocks <= 24 + leave, "invariant 6: {} blocks", world.origin_blocks);
}

#[test]
fn a_root_that_is_replaced_reads_only_what_nobody_holds() {
    let mut world = World::new(15, 40);
    for number in 1..15 {
        world.read(number, 0..30);
    }
    world.run(ms(5000));
    assert!((30..40).contains(&world.origin_blocks), "with what was read ahead");
    world.kill(0, true);
    world.run(ms(100));
    for number in 1..15 {
        world.read(number, 0..40);
    }
    world.run(ms(5000));
    world.assert_all_answered();
    assert_eq!(world.origin_blocks, 40, "invariant 6");
}

#[test]
fn without_the_manager_only_the_children_of_a_dead_root_read_the_origin_and_only_their_share() {
    let mut world = World::new(31, 40);
    world.is_managed = false;
    world.kill(0, true);
    for number in 1..31 {
        world.read(number, 1..40);
    }
    world.run(ms(15_000));
    assert_eq!(
        world.origin_blocks,
        1 + 2 * LIMITS.origin_share_blocks,
        "block 0, the metadata, and two shares"
    );
    world.run(LIMITS.read_deadline);
    for number in world.living() {
        let waits = world.vms[number].stalls(world.now).longest;
        assert!(waits <= LIMITS.read_deadline + ms(50), "invariant 7: vm-{number} waited for {waits:?}");
    }
}
