//! Whole trees of transfer cores on virtual time: an event heap, links that may be cut, an origin.

use super::{
    ChildId, Wish,
    core::{Effect, Event, TransferCore, TransferLimits},
    fixtures::{Agenda, index, ms, stored, vm},
};
use crate::{
    id::{BlockId, Epoch, VmId},
    image::Index,
    tree::{Node, Striped, Topology, ancestors},
    wire::{
        control::{Seat, Upstream, Wait, Waits, WorstStall},
        peer::{NotServed, Reach, Urgency},
    },
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

pub(super) const LIMITS: TransferLimits = TransferLimits {
    in_flight_blocks_min: 4,
    in_flight_blocks_max: 12,
    queued_blocks_max: 16,
    read_ahead_blocks_max: 4,
    origin_share_blocks: 4,
    retry_max: ms(400),
    read_deadline: ms(20_000),
    ..TransferLimits::SHIPPED
};
const HOP: Duration = Duration::from_millis(1);

pub(super) fn upstream(number: usize) -> Upstream {
    Upstream::Vm { vm: vm(number), address: ([127, 0, 0, 1], 1).into() }
}

/// A place of a VM that is that far below the root.
fn seat(depth: u32) -> Seat {
    Seat { depths: vec![depth], ..Seat::default() }
}

/// The first place of a VM below these.
pub(super) fn placed(counter: u64, upstreams: Vec<Upstream>) -> Event {
    Event::Placed { epoch: Epoch { term: 1, counter }, stripes: vec![upstreams], seat: seat(5) }
}

/// How a VM asks that is far below all others.
pub(super) const FROM_BELOW: Reach = Reach::Upward { stripes: 1, depth: 9 };

/// What happens at one VM at one moment.
enum Arrival {
    Event(Event),
    Connect(Upstream),
}

/// VMs in a tree; `alive[n]` says whether VM n answers.
pub(super) struct World {
    pub now: Instant,
    index: Arc<Index>,
    pub vms: Vec<TransferCore>,
    pub alive: Vec<bool>,
    /// Child connections by (parent, child number of the VM).
    agenda: Agenda<(usize, Arrival)>,
    answered: Vec<BTreeSet<BlockId>>,
    failed: Vec<BTreeSet<BlockId>>,
    pub origin_blocks: BTreeMap<BlockId, u32>,
    /// Who asked the origin for what; no block is for the index.
    origin_asks: BTreeSet<(usize, Option<BlockId>)>,
    asks: Vec<(usize, Vec<VmId>)>,
}

impl World {
    pub fn new(vms: usize, blocks: u32) -> Self {
        let now = Instant::now();
        let core = |number| TransferCore::new(vm(number), LIMITS, None, BTreeSet::new(), now);
        let mut world = Self {
            now,
            index: index(blocks),
            vms: (0..vms).map(core).collect(),
            alive: vec![true; vms],
            agenda: Agenda::new(),
            answered: vec![BTreeSet::new(); vms],
            failed: vec![BTreeSet::new(); vms],
            origin_blocks: BTreeMap::new(),
            origin_asks: BTreeSet::new(),
            asks: Vec::new(),
        };
        for number in 0..vms {
            world.place(number, 1);
        }
        world
    }

    /// Parent, grandparent and root of a binary tree; the root reads from the origin.
    pub fn place(&mut self, number: usize, counter: u64) {
        let mut ancestors = Vec::new();
        let mut place = number;
        while place > 0 {
            place = (place - 1) / 2;
            ancestors.push(upstream(place));
        }
        let root = ancestors.last().cloned();
        ancestors.truncate(2);
        ancestors.extend(root.filter(|root| !ancestors.contains(root)));
        if ancestors.is_empty() {
            ancestors.push(Upstream::Origin);
        }
        let epoch = Epoch { term: 1, counter };
        let seat = seat((number + 1).ilog2());
        self.send(number, Duration::ZERO, Event::Placed { epoch, stripes: vec![ancestors], seat });
    }

    /// Gives everyone a place in a striped tree, parent and grandparent for each stripe.
    fn place_striped(&mut self, tree: &Striped) {
        for number in 0..self.vms.len() {
            let node = Node(u32::try_from(number).expect("few"));
            let upstreams = |stripe| {
                let above = ancestors(tree, node, stripe).take(2);
                let names: Vec<_> = above.map(|above| upstream(above.0 as usize)).collect();
                if names.is_empty() { vec![Upstream::Origin] } else { names }
            };
            let stripes = (0..tree.stripes()).map(upstreams).collect();
            let depth = |stripe| ancestors(tree, node, stripe).count() as u32;
            let seat = Seat { depths: (0..tree.stripes()).map(depth).collect(), ..Seat::default() };
            let event = Event::Placed { epoch: Epoch { term: 1, counter: 2 }, stripes, seat };
            self.send(number, Duration::ZERO, event);
        }
    }

    pub fn send(&mut self, to: usize, after: Duration, event: Event) {
        self.agenda.add(self.now + after, (to, Arrival::Event(event)));
    }

    pub fn run(&mut self, length: Duration) {
        let end = self.now + length;
        let mut tick_at = self.now;
        while self.now < end {
            let next = self.agenda.next_at().filter(|at| *at <= tick_at);
            let Some(at) = next else {
                self.now = tick_at;
                tick_at += Duration::from_millis(50);
                for number in 0..self.vms.len() {
                    self.step(number, Event::Tick);
                }
                continue;
            };
            self.now = at;
            let (to, arrival) = self.agenda.pop().expect("peeked");
            match arrival {
                Arrival::Event(event) => self.step(to, event),
                Arrival::Connect(to_whom) => self.connect(to, to_whom),
            }
        }
    }

    fn number_of(upstream: &Upstream) -> Option<usize> {
        match upstream {
            Upstream::Origin => None,
            Upstream::Vm { vm, .. } => Some(super::fixtures::number(vm)),
        }
    }

    fn connect(&mut self, from: usize, to: Upstream) {
        if let Some(parent) = Self::number_of(&to) {
            if !self.alive[parent] {
                return self.send(from, HOP, Event::Lost { upstream: to });
            }
            self.send(parent, HOP, Event::ChildOpened { child: ChildId(from as u64), vm: vm(from) });
        }
        self.send(from, HOP * 2, Event::Opened { upstream: to });
    }

    fn step(&mut self, number: usize, event: Event) {
        // What is cut off is the network: a VM's own disk always answers.
        if !self.alive[number] && !matches!(event, Event::Kept { .. }) {
            return;
        }
        let mut effects = Vec::new();
        self.vms[number].apply(event, self.now, &mut effects);
        for effect in effects {
            self.perform(number, effect);
        }
    }

    fn perform(&mut self, number: usize, effect: Effect) {
        let child_of = |child: ChildId| usize::try_from(child.0).expect("small");
        match effect {
            Effect::Connect(to) => self.agenda.add(self.now, (number, Arrival::Connect(to))),
            Effect::Disconnect(to) => {
                if let Some(parent) = Self::number_of(&to) {
                    self.send(parent, HOP, Event::ChildLost { child: ChildId(number as u64) });
                }
            }
            Effect::AskIndex { upstream: Upstream::Origin, .. } => {
                self.origin_asks.insert((number, None));
                let index = Arc::clone(&self.index);
                self.send(number, HOP * 5, Event::IndexArrived { index });
            }
            Effect::AskIndex { upstream, reach } => {
                let parent = Self::number_of(&upstream).expect("a VM");
                self.send(parent, HOP, Event::ChildWantsIndex { child: ChildId(number as u64), reach });
            }
            Effect::Ask { upstream: Upstream::Origin, blocks, .. } => {
                for block in blocks {
                    *self.origin_blocks.entry(block).or_default() += 1;
                    self.origin_asks.insert((number, Some(block)));
                    let event =
                        Event::Arrived { upstream: Upstream::Origin, blocks: vec![(block, stored(block))] };
                    self.send(number, HOP * 5, event);
                }
            }
            Effect::Ask { upstream, blocks, urgency, path, reach } => {
                let parent = Self::number_of(&upstream).expect("a VM");
                let visited: BTreeSet<_> = path.iter().collect();
                assert_eq!(visited.len(), path.len(), "invariant 11: no demand visits a VM twice");
                self.asks.push((parent, path.clone()));
                let child = ChildId(number as u64);
                self.send(parent, HOP, Event::ChildWanted { child, blocks, urgency, path, reach });
            }
            Effect::Keep { block, stored: bytes } => {
                assert_eq!(bytes, stored(block));
                self.send(number, HOP / 2, Event::Kept { block });
            }
            Effect::Hurry { upstream, blocks } => {
                // The origin of this world answers all it is asked at once.
                if let Some(parent) = Self::number_of(&upstream) {
                    let child = ChildId(number as u64);
                    self.send(parent, HOP, Event::ChildHurries { child, blocks });
                }
            }
            Effect::Serve { child, block, urgency, .. } => {
                self.send(number, HOP, Event::ChildSent { child, urgency });
                let event =
                    Event::Arrived { upstream: upstream(number), blocks: vec![(block, stored(block))] };
                self.send(child_of(child), HOP, event);
            }
            Effect::ServeIndex { child } => {
                let index = Arc::clone(&self.index);
                self.send(child_of(child), HOP, Event::IndexArrived { index });
            }
            Effect::NotServed { child, block, reason } => {
                self.send(
                    child_of(child),
                    HOP,
                    Event::NotServed { upstream: upstream(number), block, reason },
                );
            }
            Effect::TellWaiting { child, .. } => {
                self.send(child_of(child), HOP, Event::UpstreamWaits { upstream: upstream(number) });
            }
            Effect::RefuseChild { child } => {
                self.send(child_of(child), HOP, Event::Lost { upstream: upstream(number) });
            }
            Effect::Present { blocks } => self.answered[number].extend(blocks),
            Effect::Unavailable { blocks } => self.failed[number].extend(blocks),
            Effect::Check { block } => {
                let event = Event::Checked { block, is_whole: true };
                self.send(number, HOP, event);
            }
            Effect::TellCorrupt { .. }
            | Effect::Step(_)
            | Effect::Mount
            | Effect::ReportLost { .. }
            | Effect::WantOrigin { .. } => {}
        }
    }
}

#[test]
fn every_vm_gets_what_it_reads_and_the_origin_is_asked_once_for_each_block() {
    let mut world = World::new(15, 40);
    world.run(Duration::from_millis(200));
    for number in 0..15 {
        let blocks = (0..40).map(BlockId).collect();
        world.send(number, Duration::ZERO, Event::Demanded { blocks });
    }
    world.run(Duration::from_secs(5));
    for number in 0..15 {
        assert_eq!(world.answered[number].len(), 40, "vm {number}");
        assert_eq!(world.vms[number].bytes().origin > 0, number == 0);
    }
    assert!(world.origin_blocks.values().all(|count| *count == 1), "invariant 6: {:?}", world.origin_blocks);
}

#[test]
fn a_read_goes_on_at_the_next_upstream_when_the_parent_dies() {
    let mut world = World::new(7, 20);
    world.run(Duration::from_millis(200));
    world.alive[2] = false;
    world.send(5, Duration::ZERO, Event::Demanded { blocks: (5..20).map(BlockId).collect() });
    world.run(LIMITS.stall + Duration::from_millis(200));
    assert!((5..20).all(|block| world.answered[5].contains(&BlockId(block))), "{:?}", world.answered[5]);
    assert!(world.vms[5].bytes().ancestor > 0);
}

#[test]
fn vms_that_want_the_whole_image_get_it_while_others_have_what_they_read() {
    for wish in [Wish::Rest, Wish::Whole] {
        let mut world = World::new(7, 60);
        world.run(Duration::from_millis(200));
        for number in [3, 5] {
            world.send(number, Duration::ZERO, Event::Wished { wish });
        }
        world.send(6, Duration::ZERO, Event::Demanded { blocks: vec![BlockId(50)] });
        world.run(Duration::from_secs(5));
        for (number, expected) in [(0, 60), (1, 60), (2, 60), (3, 60), (4, 1), (5, 60), (6, 2)] {
            assert_eq!(world.vms[number].present().len(), expected, "vm {number}");
        }
        assert!(world.origin_blocks.values().all(|count| *count == 1), "invariant 6");
    }
}

#[test]
fn what_is_in_the_background_leaves_room_for_a_read_which_overtakes_it_everywhere() {
    let now = Instant::now();
    let mut core = TransferCore::new(vm(9), LIMITS, Some(index(30)), BTreeSet::from([BlockId(0)]), now);
    let mut effects = Vec::new();
    core.apply(placed(1, vec![upstream(0)]), now, &mut effects);
    core.apply(Event::Wished { wish: Wish::Rest }, now, &mut effects);
    core.apply(Event::Opened { upstream: upstream(0) }, now, &mut effects);
    let asked = |effects: &mut Vec<Effect>| {
        let asks = std::mem::take(effects).into_iter().filter_map(|effect| match effect {
            Effect::Ask { blocks, urgency, .. } => Some((urgency, blocks)),
            _ => None,
        });
        asks.collect::<Vec<_>>()
    };
    assert_eq!(asked(&mut effects), [(Urgency::Background, [1, 2, 3, 4].map(BlockId).to_vec())]);
    core.apply(Event::Demanded { blocks: vec![BlockId(20)] }, now, &mut effects);
    assert_eq!(asked(&mut effects), [(Urgency::Demand, vec![BlockId(20)])]);
    // Also what was asked for already: the parent is told that it is read now.
    core.apply(Event::Demanded { blocks: vec![BlockId(2)] }, now, &mut effects);
    let hurry = Effect::Hurry { upstream: upstream(0), blocks: vec![BlockId(2)] };
    assert_eq!(std::mem::take(&mut effects), [hurry]);
    core.apply(Event::Wished { wish: Wish::Read }, now, &mut effects);
    for block in [1, 2, 3, 4, 20].map(BlockId) {
        core.apply(
            Event::Arrived { upstream: upstream(0), blocks: vec![(block, stored(block))] },
            now,
            &mut effects,
        );
    }
    assert!(asked(&mut effects).len() <= 1 + LIMITS.queued_blocks_max / 2, "no more is begun");
}

/// Twelve VMs in three stripes, each with its own root, none of which has asked for anything yet.
fn striped_world(blocks: u32) -> (World, Striped) {
    let mut tree = Striped::new(3, 3);
    (0..12).for_each(|number| drop(tree.join(Node(number))));
    let mut world = World::new(12, blocks);
    world.agenda.clear();
    world.place_striped(&tree);
    world.run(Duration::from_millis(200));
    (world, tree)
}

#[test]
fn each_root_of_several_stripes_reads_its_own_stripe_from_the_origin_and_one_the_index() {
    let (mut world, tree) = striped_world(40);
    for number in 0..12 {
        world.send(number, Duration::ZERO, Event::Demanded { blocks: (0..40).map(BlockId).collect() });
    }
    world.run(Duration::from_secs(5));
    assert!(world.answered.iter().all(|blocks| blocks.len() == 40));
    let root = |stripe: u32| tree.root(stripe as usize).expect("a root").0 as usize;
    let mut wanted: BTreeSet<_> = (0..40).map(|block| (root(block % 3), Some(BlockId(block)))).collect();
    wanted.insert((root(0), None));
    assert_eq!(world.origin_asks, wanted);
    assert!(world.origin_blocks.values().all(|count| *count == 1), "invariant 6: {:?}", world.origin_blocks);
    assert!(world.vms.iter().all(|vm| vm.bytes().ancestor == 0), "parents give everything");
}

#[test]
fn while_all_above_in_one_stripe_are_lost_an_upstream_of_another_serves_it() {
    let (mut world, tree) = striped_world(40);
    // A VM that is no root, and has two others above it in the last stripe.
    let above = |number: u32, stripe| -> Vec<usize> {
        ancestors(&tree, Node(number), stripe).map(|node| node.0 as usize).collect()
    };
    let reader = (0..12).find(|reader| {
        above(*reader, 2).len() == 2 && (0..2).all(|stripe| !above(*reader, stripe).is_empty())
    });
    let reader = reader.expect("a leaf");
    let warm = above(reader, 0)[0];
    world.send(warm, Duration::ZERO, Event::Demanded { blocks: (0..40).map(BlockId).collect() });
    world.run(Duration::from_secs(2));
    assert!(!above(reader, 2).contains(&warm), "{warm} is above in the first stripe only");
    above(reader, 2).into_iter().for_each(|lost| world.alive[lost] = false);
    let reader = reader as usize;
    world.send(reader, Duration::ZERO, Event::Demanded { blocks: (0..40).map(BlockId).collect() });
    world.run(LIMITS.stall * 3);
    assert_eq!(world.answered[reader].len(), 40);
    assert_eq!(world.vms[reader].bytes().origin, 0, "invariant 6");
}

#[test]
fn a_corrupt_block_is_asked_for_elsewhere() {
    let mut core = TransferCore::new(vm(3), LIMITS, Some(index(4)), BTreeSet::new(), Instant::now());
    let now = Instant::now();
    let mut effects = Vec::new();
    core.apply(placed(1, vec![upstream(1), upstream(0)]), now, &mut effects);
    core.apply(Event::Opened { upstream: upstream(1) }, now, &mut effects);
    core.apply(Event::Corrupt { upstream: upstream(1), block: BlockId(0) }, now, &mut effects);
    assert!(effects.contains(&Effect::TellCorrupt { upstream: upstream(1), block: BlockId(0) }));
    core.apply(Event::Lost { upstream: upstream(1) }, now, &mut effects);
    core.apply(Event::Opened { upstream: upstream(0) }, now, &mut effects);
    let asked: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Ask { upstream, blocks, .. } => Some((upstream.clone(), blocks.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(asked, [(upstream(1), vec![BlockId(0)]), (upstream(0), vec![BlockId(0)])]);
}

#[test]
fn a_demand_that_comes_back_is_refused() {
    let mut core = TransferCore::new(vm(1), LIMITS, Some(index(4)), BTreeSet::new(), Instant::now());
    let (now, child) = (Instant::now(), ChildId(1));
    let mut effects = Vec::new();
    core.apply(placed(1, vec![upstream(0)]), now, &mut effects);
    effects.clear();
    core.apply(Event::ChildOpened { child, vm: vm(2) }, now, &mut effects);
    let event = Event::ChildWanted {
        child,
        blocks: vec![BlockId(1)],
        urgency: Urgency::Demand,
        path: vec![vm(1), vm(2)],
        reach: FROM_BELOW,
    };
    core.apply(event, now, &mut effects);
    let reason = NotServed::Loop;
    assert_eq!(effects, [Effect::NotServed { child, block: BlockId(1), reason }]);
}

#[test]
fn an_older_place_changes_nothing() {
    let mut core = TransferCore::new(vm(1), LIMITS, None, BTreeSet::new(), Instant::now());
    let now = Instant::now();
    let mut effects = Vec::new();
    for counter in [2, 1] {
        core.apply(placed(counter, vec![upstream(counter as usize)]), now, &mut effects);
    }
    assert_eq!(effects, [Effect::Connect(upstream(2))]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// VMs other than the root die and come back at random; afterwards every read was answered.
    #[test]
    fn every_read_is_answered_whoever_dies_meanwhile(
        faults in proptest::collection::vec((1_usize..12, 0_u64..400, 50_u64..1500), 0..12),
        reads in proptest::collection::vec((0_usize..12, 0_u32..30, 0_u64..600), 1..60),
    ) {
        let mut world = World::new(12, 30);
        world.run(Duration::from_millis(100));
        let mut script: Vec<(u64, Option<bool>, usize, u32)> = Vec::new();
        for &(number, from, length) in &faults {
            script.push((from, Some(false), number, 0));
            script.push((from + length, Some(true), number, 0));
        }
        script.extend(reads.iter().map(|&(number, block, at)| (at, None, number, block)));
        script.sort();
        let mut asked = vec![BTreeSet::new(); 12];
        let mut at = 0;
        for (when, fault, number, block) in script {
            world.run(Duration::from_millis(when - at));
            at = when;
            match fault {
                Some(alive) => world.alive[number] = alive,
                None if world.alive[number] => {
                    asked[number].insert(BlockId(block));
                    world.send(number, Duration::ZERO, Event::Demanded { blocks: vec![BlockId(block)] });
                }
                None => {}
            }
        }
        world.alive = vec![true; 12];
        world.run(Duration::from_secs(30));
        for (number, asked) in asked.iter().enumerate() {
            // A read is answered, or was lost with its VM: the holder asks again, so does this test.
            let missing: Vec<_> = asked.difference(&world.answered[number]).copied().collect();
            world.send(number, Duration::ZERO, Event::Demanded { blocks: missing });
        }
        world.run(Duration::from_secs(30));
        for (number, asked) in asked.iter().enumerate() {
            prop_assert!(asked.is_subset(&world.answered[number]), "vm {number}");
        }
    }
}

/// A core with an index and a place, and what it asks of whom.
pub(super) struct Asker {
    core: TransferCore,
    now: Instant,
    pub effects: Vec<Effect>,
}

impl Asker {
    pub fn new(limits: TransferLimits, upstreams: Vec<Upstream>) -> Self {
        let now = Instant::now();
        // Block 0, the metadata, is there.
        let core = TransferCore::new(vm(9), limits, Some(index(8)), BTreeSet::from([BlockId(0)]), now);
        let mut asker = Self { core, now, effects: Vec::new() };
        asker.apply(placed(1, upstreams));
        asker
    }

    pub fn apply(&mut self, event: Event) {
        self.core.apply(event, self.now, &mut self.effects);
    }

    fn asked(&mut self) -> Vec<(Upstream, Vec<BlockId>)> {
        let asked = self.effects.extract_if(.., |effect| matches!(effect, Effect::Ask { .. }));
        asked
            .map(|effect| match effect {
                Effect::Ask { upstream, blocks, .. } => (upstream, blocks),
                _ => unreachable!("just matched"),
            })
            .collect()
    }
}

#[test]
fn a_block_that_the_parent_refuses_is_asked_of_the_next_upstream() {
    let mut asker = Asker::new(LIMITS, vec![upstream(1), upstream(0)]);
    asker.apply(Event::Demanded { blocks: vec![BlockId(3)] });
    asker.apply(Event::Opened { upstream: upstream(1) });
    assert_eq!(asker.asked(), [(upstream(1), vec![BlockId(3)])]);
    let reason = NotServed::NoSource;
    asker.apply(Event::NotServed { upstream: upstream(1), block: BlockId(3), reason });
    assert!(asker.effects.contains(&Effect::Connect(upstream(0))), "{:?}", asker.effects);
    asker.apply(Event::Opened { upstream: upstream(0) });
    assert_eq!(asker.asked(), [(upstream(0), vec![BlockId(3)])]);
    asker.apply(Event::Demanded { blocks: vec![BlockId(5)] });
    assert_eq!(asker.asked(), [(upstream(1), vec![BlockId(5)])], "the parent stays the first");
}

#[test]
fn a_read_whose_upstreams_refuse_for_a_while_waits_until_its_deadline() {
    let mut asker = Asker::new(LIMITS, vec![upstream(1)]);
    asker.apply(Event::Opened { upstream: upstream(1) });
    asker.apply(Event::Demanded { blocks: vec![BlockId(3)] });
    let from = asker.now;
    let mut rounds = 0;
    while !asker.effects.contains(&Effect::Unavailable { blocks: vec![BlockId(3)] }) {
        for (upstream, _) in asker.asked() {
            rounds += 1;
            let reason = NotServed::Loop;
            asker.apply(Event::NotServed { upstream, block: BlockId(3), reason });
        }
        asker.now += Duration::from_millis(50);
        asker.apply(Event::Tick);
    }
    assert_eq!(asker.now - from, LIMITS.read_deadline);
    let stalls = asker.core.stalls(asker.now);
    assert_eq!((stalls.count, stalls.longest), (1, LIMITS.read_deadline));
    let most = LIMITS.read_deadline.as_millis() / LIMITS.retry_max.as_millis() + 5;
    assert!((10..most).contains(&rounds), "{rounds} rounds");
}

#[test]
fn the_longest_stall_counts_a_read_that_still_waits_and_is_kept_when_it_is_over() {
    let mut asker = Asker::new(LIMITS, vec![upstream(1)]);
    let longest = |asker: &Asker| asker.core.stalls(asker.now).longest.as_millis();
    asker.apply(Event::Demanded { blocks: vec![BlockId(3)] });
    asker.now += Duration::from_millis(300);
    asker.apply(Event::Demanded { blocks: vec![BlockId(5)] });
    assert_eq!(longest(&asker), 300);
    asker.now += Duration::from_millis(40);
    for block in [3, 5].map(BlockId) {
        asker.apply(Event::Arrived { upstream: upstream(1), blocks: vec![(block, stored(block))] });
    }
    asker.now += Duration::from_millis(10);
    assert_eq!(longest(&asker), 350, "it is on its way to the disk");
    for block in [3, 5].map(BlockId) {
        asker.apply(Event::Kept { block });
    }
    asker.now += Duration::from_secs(9);
    assert_eq!(longest(&asker), 350);
    assert_eq!(asker.core.stalls(asker.now).together.as_millis(), 400);
    let worst = WorstStall { block: BlockId(3), us: 350_000, disk_us: 10_000, from: Some(vm(1)) };
    assert_eq!(asker.core.worst_stall(), Some(&worst));
}

#[test]
fn what_blocks_waited_for_is_told_apart() {
    let mut asker = Asker::new(LIMITS, vec![upstream(1), upstream(2)]);
    for (block, from) in [(3, 1), (4, 2)] {
        asker.apply(Event::Demanded { blocks: vec![BlockId(block)] });
        asker.now += Duration::from_millis(5);
        let blocks = vec![(BlockId(block), stored(BlockId(block)))];
        asker.apply(Event::Arrived { upstream: upstream(from), blocks });
    }
    asker.now += Duration::from_millis(20);
    // Somebody reads what is being written: a stall that is the disk's alone.
    asker.apply(Event::Demanded { blocks: vec![BlockId(4)] });
    asker.apply(Event::Kept { block: BlockId(4) });
    let Waits { parent, ancestor, origin, disk } = asker.core.waits();
    let wait = |blocks, us| Wait { blocks, us };
    assert_eq!((parent, ancestor), (wait(1, 5_000), wait(1, 5_000)));
    assert_eq!((origin, disk), (wait(0, 0), wait(1, 20_000)));
    assert_eq!(asker.core.stalls(asker.now).count, 2, "the second was stalled already");
    // What was only passed on to a child is nobody's wait here.
    asker.apply(Event::ChildOpened { child: ChildId(1), vm: vm(10) });
    let want = Event::ChildWanted {
        child: ChildId(1),
        blocks: vec![BlockId(7)],
        urgency: Urgency::Demand,
        path: vec![vm(10)],
        reach: FROM_BELOW,
    };
    asker.apply(want);
    asker.apply(Event::Arrived { upstream: upstream(1), blocks: vec![(BlockId(7), stored(BlockId(7)))] });
    assert_eq!(asker.core.waits().parent.blocks, 1);
}

#[test]
fn demands_that_join_keep_a_path_that_is_not_refused_for_its_length() {
    let limits = TransferLimits { hops_max: 4, ..LIMITS };
    let mut asker = Asker::new(limits, vec![upstream(1)]);
    for child in [10, 20, 30] {
        let event = Event::ChildOpened { child: ChildId(child as u64), vm: vm(child) };
        asker.apply(event);
        let path = vec![vm(child + 1), vm(child)];
        let (child, blocks) = (ChildId(child as u64), vec![BlockId(3)]);
        let urgency = Urgency::Demand;
        asker.apply(Event::ChildWanted { child, blocks, urgency, path, reach: FROM_BELOW });
    }
    asker.apply(Event::Opened { upstream: upstream(1) });
    let path = asker.effects.iter().find_map(|effect| match effect {
        Effect::Ask { path, .. } => Some(path.clone()),
        _ => None,
    });
    assert_eq!(path, Some(vec![vm(10), vm(11), vm(9)]));
}

#[test]
fn a_full_cache_fails_reads_and_stops_fetching_for_a_while() {
    let mut asker = Asker::new(LIMITS, vec![upstream(1)]);
    asker.apply(Event::Opened { upstream: upstream(1) });
    asker.apply(Event::Demanded { blocks: vec![BlockId(3)] });
    assert_eq!(asker.asked().len(), 1);
    asker.apply(Event::Arrived { upstream: upstream(1), blocks: vec![(BlockId(3), stored(BlockId(3)))] });
    asker.apply(Event::NotKept { block: BlockId(3) });
    asker.apply(Event::Demanded { blocks: vec![BlockId(6)] });
    let failed = |block| Effect::Unavailable { blocks: vec![BlockId(block)] };
    assert!(asker.effects.contains(&failed(3)) && asker.effects.contains(&failed(6)));
    assert_eq!(asker.asked(), []);
    asker.now += LIMITS.retry_max;
    asker.apply(Event::Demanded { blocks: vec![BlockId(6)] });
    assert_eq!(asker.asked(), [(upstream(1), vec![BlockId(6)])]);
}

#[test]
fn metadata_that_the_cache_does_not_take_is_not_fetched_again_and_again() {
    let now = Instant::now();
    let mut core = TransferCore::new(vm(9), LIMITS, Some(index(4)), BTreeSet::new(), now);
    let mut effects = Vec::new();
    core.apply(placed(1, vec![Upstream::Origin]), now, &mut effects);
    core.apply(Event::Opened { upstream: Upstream::Origin }, now, &mut effects);
    let mut fetched = 0;
    for tick in 0..100 {
        let now = now + tick * Duration::from_millis(50);
        core.apply(Event::Tick, now, &mut effects);
        let asks = effects.extract_if(.., |effect| matches!(effect, Effect::Ask { .. })).count();
        for _ in 0..asks {
            fetched += 1;
            let block = BlockId(0);
            let event = Event::Arrived { upstream: Upstream::Origin, blocks: vec![(block, stored(block))] };
            core.apply(event, now, &mut effects);
            core.apply(Event::NotKept { block }, now, &mut effects);
        }
    }
    assert!((2..=14).contains(&fetched), "fetched {fetched} times in 5 s");
}

fn served(effects: &[Effect]) -> Vec<u32> {
    let block = |effect: &Effect| match effect {
        Effect::Serve { block, .. } => Some(block.0),
        _ => None,
    };
    effects.iter().filter_map(block).collect()
}

/// A VM with all blocks, and a child that asks for so many ahead.
fn server(ahead: std::ops::Range<u32>) -> Asker {
    let now = Instant::now();
    let core = TransferCore::new(vm(9), LIMITS, Some(index(20)), (0..20).map(BlockId).collect(), now);
    let mut asker = Asker { core, now, effects: Vec::new() };
    asker.apply(placed(1, vec![upstream(1)]));
    asker.apply(Event::ChildOpened { child: ChildId(1), vm: vm(1) });
    asker.child_wants(ahead.map(BlockId).collect(), Urgency::Prefetch);
    asker
}

impl Asker {
    fn child_wants(&mut self, blocks: Vec<BlockId>, urgency: Urgency) {
        let (child, path) = (ChildId(1), vec![vm(1)]);
        self.apply(Event::ChildWanted { child, blocks, urgency, path, reach: FROM_BELOW });
    }
}

#[test]
fn a_child_that_reads_slowly_is_given_few_blocks_and_its_demands_overtake() {
    let mut server = server(0..14);
    assert_eq!(served(&server.effects), [0, 1, 2, 3]);
    server.effects.clear();
    server.child_wants(vec![BlockId(19)], Urgency::Demand);
    assert_eq!(served(&server.effects), [19], "a demand goes to the connection at once");
    server.apply(Event::ChildSent { child: ChildId(1), urgency: Urgency::Prefetch });
    assert_eq!(served(&server.effects), [19, 4]);
}

#[test]
fn what_a_child_asked_for_ahead_and_reads_now_overtakes() {
    let mut server = server(0..14);
    server.effects.clear();
    server.apply(Event::ChildHurries { child: ChildId(1), blocks: vec![BlockId(12), BlockId(2)] });
    let (child, urgency) = (ChildId(1), Urgency::Demand);
    let demanded = Effect::Serve { child, block: BlockId(12), urgency, stored: None };
    assert_eq!(server.effects, [demanded], "what is under way is not sent twice");
    server.apply(Event::ChildSent { child, urgency: Urgency::Prefetch });
    assert_eq!(served(&server.effects), [12, 4]);
}

#[test]
fn a_child_is_promised_no_more_than_its_limit() {
    let mut server = server(0..20);
    assert_eq!(served(&server.effects), [0, 1, 2, 3]);
    let busy = |effect: &&Effect| matches!(effect, Effect::NotServed { reason: NotServed::Busy, .. });
    // Four were given to the connection, and sixteen may wait.
    assert_eq!(server.effects.iter().filter(busy).count(), 0);
    server.effects.clear();
    server.child_wants((0..4).map(BlockId).collect(), Urgency::Prefetch);
    assert_eq!(server.effects.iter().filter(busy).count(), 4);
}

#[test]
fn a_demand_is_asked_for_when_the_window_is_full_of_read_ahead() {
    let mut asker = Asker::new(TransferLimits { queued_blocks_max: 64, ..LIMITS }, vec![upstream(2)]);
    asker.apply(Event::Opened { upstream: upstream(2) });
    asker.apply(Event::ChildOpened { child: ChildId(1), vm: vm(1) });
    asker.child_wants((1..8).map(BlockId).collect(), Urgency::Prefetch);
    assert_eq!(asker.asked(), [(upstream(2), (1..5).map(BlockId).collect())], "the least window");
    asker.apply(Event::Demanded { blocks: vec![BlockId(7)] });
    assert_eq!(asker.asked(), [(upstream(2), vec![BlockId(7)])]);
    asker.effects.clear();
    asker.apply(Event::Demanded { blocks: vec![BlockId(3)] });
    let hurry = Effect::Hurry { upstream: upstream(2), blocks: vec![BlockId(3)] };
    assert_eq!(asker.effects, [hurry], "it was asked for ahead, and is read now");
}

#[test]
fn what_was_found_on_disk_is_used_when_it_is_verified_and_fetched_when_it_is_damaged() {
    let now = Instant::now();
    let core = TransferCore::new(vm(9), LIMITS, Some(index(8)), BTreeSet::new(), now)
        .with_found((0..6).map(BlockId).collect());
    let mut asker = Asker { core, now, effects: Vec::new() };
    asker.apply(placed(1, vec![upstream(1)]));
    asker.apply(Event::Opened { upstream: upstream(1) });
    let check = |block| Effect::Check { block: BlockId(block) };
    assert!(asker.effects.contains(&check(0)), "the mount needs it");
    assert!(!asker.effects.contains(&check(1)), "the rest waits");
    asker.apply(Event::Checked { block: BlockId(0), is_whole: true });
    assert!(asker.effects.contains(&Effect::Mount) && asker.effects.contains(&check(1)));
    asker.apply(Event::Demanded { blocks: vec![BlockId(3), BlockId(4)] });
    assert!(asker.effects.contains(&check(3)) && asker.effects.contains(&check(4)));
    assert_eq!(asker.asked(), [], "nobody is asked for what is probably here");
    asker.apply(Event::ChildOpened { child: ChildId(1), vm: vm(1) });
    asker.child_wants(vec![BlockId(3)], Urgency::Demand);
    assert_eq!(served(&asker.effects), [0; 0], "invariant 5");
    asker.apply(Event::Checked { block: BlockId(3), is_whole: true });
    assert_eq!(served(&asker.effects), [3]);
    assert!(asker.effects.contains(&Effect::Present { blocks: vec![BlockId(3)] }));
    asker.apply(Event::Checked { block: BlockId(4), is_whole: false });
    assert_eq!(asker.asked(), [(upstream(1), vec![BlockId(4)])]);
    assert_eq!(asker.core.stalls(now).count, 2);
}

#[test]
fn what_the_holder_serves_although_it_is_damaged_is_fetched_until_it_is_there() {
    let mut asker = Asker::new(LIMITS, vec![upstream(1)]);
    asker.apply(Event::Opened { upstream: upstream(1) });
    let wanted = [(upstream(1), vec![BlockId(3)])];
    let arrived = || Event::Arrived { upstream: upstream(1), blocks: vec![(BlockId(3), stored(BlockId(3)))] };
    asker.apply(Event::Damaged { block: BlockId(3) });
    assert_eq!(asker.asked(), wanted);
    asker.apply(arrived());
    asker.apply(Event::NotKept { block: BlockId(3) });
    assert_eq!(asker.asked(), [], "the cache takes nothing for a while");
    asker.now += LIMITS.retry_max;
    asker.apply(Event::Tick);
    assert_eq!(asker.asked(), wanted);
    let reason = NotServed::NoSource;
    asker.apply(Event::NotServed { upstream: upstream(1), block: BlockId(3), reason });
    asker.now += LIMITS.retry_min;
    asker.apply(Event::Tick);
    assert_eq!(asker.asked(), wanted, "nobody waits for it who could ask elsewhere");
    asker.apply(arrived());
    asker.apply(Event::Kept { block: BlockId(3) });
    asker.apply(Event::Tick);
    assert_eq!(asker.asked(), []);
    assert_eq!(asker.core.stalls(asker.now).count, 0);
}
