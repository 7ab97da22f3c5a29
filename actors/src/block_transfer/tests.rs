//! Whole trees of transfer cores on virtual time: an event heap, links that may be cut, an origin.

use super::{
    ChildId,
    core::{Effect, Event, TransferCore, TransferLimits},
};
use crate::{
    id::{BlockId, Epoch, VmId},
    image::{BLOCK_BYTES, BlockEntry, Codec, Index},
    wire::{control::Upstream, peer::Urgency},
};
use bytes::Bytes;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

const LIMITS: TransferLimits = TransferLimits {
    in_flight_blocks_max: 4,
    queued_blocks_max: 16,
    children_max: 16,
    read_ahead_blocks_max: 4,
    hops_max: 32,
    stall: Duration::from_millis(900),
    retry_min: Duration::from_millis(50),
    retry_max: Duration::from_millis(400),
    read_deadline: Duration::from_secs(20),
};
const HOP: Duration = Duration::from_millis(1);

fn vm(number: usize) -> VmId {
    format!("vm-{number}").parse().expect("valid")
}

fn upstream(number: usize) -> Upstream {
    Upstream::Vm { vm: vm(number), address: ([127, 0, 0, 1], 1).into() }
}

fn stored(block: BlockId) -> Bytes {
    Bytes::from(block.0.to_le_bytes().to_vec())
}

fn index(blocks: u32) -> Arc<Index> {
    let entry = |block: u32| BlockEntry {
        offset: u64::from(block) * 4,
        stored_bytes: 4,
        codec: Codec::Zstd,
        hash: *blake3::hash(&stored(BlockId(block))).as_bytes(),
    };
    let entries = (0..blocks).map(entry).collect();
    Arc::new(Index::new(u64::from(blocks) * u64::from(BLOCK_BYTES), 1, entries).expect("valid"))
}

/// What happens at one VM at one moment.
enum Arrival {
    Event(Event),
    Connect(Upstream),
}

/// VMs in a tree; `alive[n]` says whether VM n answers.
struct World {
    now: Instant,
    index: Arc<Index>,
    vms: Vec<TransferCore>,
    alive: Vec<bool>,
    /// Child connections by (parent, child number of the VM).
    queue: BTreeMap<(Instant, u64), (usize, Arrival)>,
    sequence: u64,
    answered: Vec<BTreeSet<BlockId>>,
    failed: Vec<BTreeSet<BlockId>>,
    origin_blocks: BTreeMap<BlockId, u32>,
    asks: Vec<(usize, Vec<VmId>)>,
}

impl World {
    fn new(vms: usize, blocks: u32) -> Self {
        let now = Instant::now();
        let core = |number| TransferCore::new(vm(number), LIMITS, None, BTreeSet::new(), now);
        let mut world = Self {
            now,
            index: index(blocks),
            vms: (0..vms).map(core).collect(),
            alive: vec![true; vms],
            queue: BTreeMap::new(),
            sequence: 0,
            answered: vec![BTreeSet::new(); vms],
            failed: vec![BTreeSet::new(); vms],
            origin_blocks: BTreeMap::new(),
            asks: Vec::new(),
        };
        for number in 0..vms {
            world.place(number, 1);
        }
        world
    }

    /// Parent, grandparent and root of a binary tree; the root reads from the origin.
    fn place(&mut self, number: usize, counter: u64) {
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
        self.send(number, Duration::ZERO, Event::Placed { epoch, stripes: vec![ancestors] });
    }

    fn send(&mut self, to: usize, after: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), (to, Arrival::Event(event)));
    }

    fn run(&mut self, length: Duration) {
        let end = self.now + length;
        let mut tick_at = self.now;
        while self.now < end {
            let next = self.queue.first_key_value().map(|((at, _), _)| *at).filter(|at| *at <= tick_at);
            let Some(at) = next else {
                self.now = tick_at;
                tick_at += Duration::from_millis(50);
                for number in 0..self.vms.len() {
                    self.step(number, Event::Tick);
                }
                continue;
            };
            self.now = at;
            let (_, (to, arrival)) = self.queue.pop_first().expect("peeked");
            match arrival {
                Arrival::Event(event) => self.step(to, event),
                Arrival::Connect(to_whom) => self.connect(to, to_whom),
            }
        }
    }

    fn number_of(upstream: &Upstream) -> Option<usize> {
        match upstream {
            Upstream::Origin => None,
            Upstream::Vm { vm, .. } => vm.as_str().strip_prefix("vm-")?.parse().ok(),
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
        if !self.alive[number] {
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
            Effect::Connect(to) => {
                self.sequence += 1;
                self.queue.insert((self.now, self.sequence), (number, Arrival::Connect(to)));
            }
            Effect::Disconnect(to) => {
                if let Some(parent) = Self::number_of(&to) {
                    self.send(parent, HOP, Event::ChildLost { child: ChildId(number as u64) });
                }
            }
            Effect::AskIndex(Upstream::Origin) => {
                let index = Arc::clone(&self.index);
                self.send(number, HOP * 5, Event::IndexArrived { index });
            }
            Effect::AskIndex(to) => {
                let parent = Self::number_of(&to).expect("a VM");
                self.send(parent, HOP, Event::ChildWantsIndex { child: ChildId(number as u64) });
            }
            Effect::Ask { upstream: Upstream::Origin, blocks, .. } => {
                for block in blocks {
                    *self.origin_blocks.entry(block).or_default() += 1;
                    let event = Event::Arrived { upstream: Upstream::Origin, block, stored: stored(block) };
                    self.send(number, HOP * 5, event);
                }
            }
            Effect::Ask { upstream, blocks, urgency, path } => {
                let parent = Self::number_of(&upstream).expect("a VM");
                let visited: BTreeSet<_> = path.iter().collect();
                assert_eq!(visited.len(), path.len(), "invariant 11: no demand visits a VM twice");
                self.asks.push((parent, path.clone()));
                let child = ChildId(number as u64);
                self.send(parent, HOP, Event::ChildWanted { child, blocks, urgency, path });
            }
            Effect::Keep { block, stored: bytes } => {
                assert_eq!(bytes, stored(block));
                self.send(number, HOP / 2, Event::Kept { block });
            }
            Effect::Serve { child, block, .. } => {
                let event = Event::Arrived { upstream: upstream(number), block, stored: stored(block) };
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
            Effect::TellCorrupt { .. } | Effect::Step(_) | Effect::Mount | Effect::ReportLost { .. } => {}
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
fn a_corrupt_block_is_asked_for_elsewhere() {
    let mut core = TransferCore::new(vm(3), LIMITS, Some(index(4)), BTreeSet::new(), Instant::now());
    let now = Instant::now();
    let mut effects = Vec::new();
    let stripes = vec![vec![upstream(1), upstream(0)]];
    core.apply(Event::Placed { epoch: Epoch { term: 1, counter: 1 }, stripes }, now, &mut effects);
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
    core.apply(Event::ChildOpened { child, vm: vm(2) }, now, &mut effects);
    let event = Event::ChildWanted {
        child,
        blocks: vec![BlockId(1)],
        urgency: Urgency::Demand,
        path: vec![vm(1), vm(2)],
    };
    core.apply(event, now, &mut effects);
    let reason = crate::wire::peer::NotServed::Loop;
    assert_eq!(effects, [Effect::NotServed { child, block: BlockId(1), reason }]);
}

#[test]
fn an_older_place_changes_nothing() {
    let mut core = TransferCore::new(vm(1), LIMITS, None, BTreeSet::new(), Instant::now());
    let now = Instant::now();
    let mut effects = Vec::new();
    for counter in [2, 1] {
        let stripes = vec![vec![upstream(counter as usize)]];
        core.apply(Event::Placed { epoch: Epoch { term: 1, counter }, stripes }, now, &mut effects);
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
