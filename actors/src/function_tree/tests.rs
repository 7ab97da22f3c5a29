mod watched;

use super::{
    StartDraft,
    core::{Contact, Effect, Event, Placing, TreeCore, TreeLimits},
    messages::Role,
};
use crate::{
    id::{Digest, Epoch, TreeId, VmId},
    image::BlockImage,
    model::{MemberView, TreeView},
    resources::Resources,
    tree::{Avl, Complete, Striped, Topology},
    wire::control::{BytesBySource, HeldTree, Mode, Upstream},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use watched::Watched;

const LIMITS: TreeLimits = TreeLimits::SHIPPED;

fn vm(number: u16) -> VmId {
    format!("vm-{number}").parse().expect("name")
}

fn contact(number: u16) -> Contact {
    Contact { address: ([127, 0, 0, 1], 1000 + number).into(), key_hash: vec![number as u8].into() }
}

fn tree_id() -> TreeId {
    TreeId { tenant: "acme".parse().expect("name"), image: Digest::from_bytes([1; 32]) }
}

fn image() -> Arc<BlockImage> {
    let digest = Digest::from_bytes([1; 32]);
    Arc::new(BlockImage::of_test(digest))
}

fn draft(number: usize) -> Box<StartDraft> {
    Box::new(StartDraft {
        start: format!("start-{number}").parse().expect("name"),
        request: None,
        function: "api".parse().expect("name"),
        image: image(),
        role: Role::Whole,
        env: BTreeMap::new(),
        command: None,
        needs: Resources { memory_bytes: 1 << 28, cpu_millis: 100 },
        probe_path: "/".into(),
        mode: Mode::default(),
        ready_deadline_ms: 1000,
        record: false,
        hot: Arc::default(),
    })
}

fn join(number: u16) -> Event {
    Event::Join { vm: vm(number), contact: contact(number), start: draft(usize::from(number)) }
}

fn held(epoch: Epoch, blocks_present: u32) -> HeldTree {
    let bytes = BytesBySource::default();
    HeldTree {
        tree: tree_id(),
        epoch,
        place: 0,
        blocks_present,
        blocks_total: 10,
        bytes,
        longest_stall_us: 0,
        preheated: None,
    }
}

fn name(upstream: &Upstream) -> String {
    match upstream {
        Upstream::Vm { vm, .. } => vm.to_string(),
        Upstream::Origin => "origin".into(),
    }
}

fn names(numbers: &[u16]) -> Vec<String> {
    numbers.iter().map(|number| vm(*number).to_string()).collect()
}

/// A tree and the agents of its VMs, which do what they are told.
struct World {
    core: TreeCore,
    now: Instant,
    /// What each VM was told last.
    places: BTreeMap<VmId, Placing>,
    /// Who has complained of whom.
    complaints: BTreeSet<(VmId, VmId)>,
    starts: usize,
    /// Places sent by the last event.
    sent: Vec<VmId>,
    /// Who was asked to leave and has not been told so.
    leaving: BTreeSet<VmId>,
    watched: Watched,
}

impl World {
    fn new() -> Self {
        Self::shaped(Box::new(Complete::new(2)))
    }

    fn shaped(shape: Box<dyn Topology>) -> Self {
        let core = TreeCore::new(LIMITS, shape, Epoch { term: 1, counter: 0 });
        Self {
            core,
            now: Instant::now(),
            places: BTreeMap::new(),
            complaints: BTreeSet::new(),
            starts: 0,
            sent: Vec::new(),
            leaving: BTreeSet::new(),
            watched: Watched::default(),
        }
    }

    fn with(members: u16) -> Self {
        let mut world = Self::new();
        (0..members).for_each(|number| world.apply(join(number)));
        world
    }

    fn apply(&mut self, event: Event) {
        let refresh = matches!(event, Event::Tick | Event::Reported { .. } | Event::Join { .. });
        match &event {
            Event::Leave { vm } => drop(self.leaving.insert(vm.clone())),
            Event::Join { vm, .. }
            | Event::Preheat { vm, .. }
            | Event::Reported { vm, .. }
            | Event::Gone { vm } => {
                self.leaving.remove(vm);
            }
            _ => {}
        }
        let mut effects = Vec::new();
        self.core.apply(event, self.now, &mut effects);
        self.sent.clear();
        for effect in effects {
            match effect {
                Effect::Tell(news) => self.watched.hears(news),
                Effect::Start { vm, placing, .. } => {
                    self.starts += 1;
                    self.places.insert(vm, placing);
                }
                Effect::Preheat { vm, placing, .. } => {
                    self.places.insert(vm, placing);
                }
                Effect::Place { vm, placing, .. } => {
                    if let Some(before) = self.places.insert(vm.clone(), placing.clone()) {
                        assert!(placing.epoch >= before.epoch, "invariant 4");
                        let same = (before.stripes, before.seat) == (placing.stripes, placing.seat);
                        assert!(refresh || !same, "{vm} was told what it knew");
                    }
                    self.sent.push(vm);
                }
                Effect::Origin { .. } => {}
                Effect::Leave { vm, epoch } => {
                    assert!(self.leaving.remove(&vm) || self.core.is_empty(), "{vm} was not asked to leave");
                    let before = self.places.remove(&vm);
                    assert!(before.is_none_or(|before| epoch > before.epoch), "invariant 4");
                }
            }
        }
        self.core.check();
        self.watched.check(&self.core);
    }

    fn complain(&mut self, by: u16, about: u16) {
        self.complaints.insert((vm(by), vm(about)));
        let epoch = self.core.epoch();
        self.apply(Event::UpstreamLost { by: vm(by), epoch, vm: vm(about) });
    }

    fn upstreams(&self, number: u16) -> Vec<String> {
        self.places[&vm(number)].stripes[0].iter().map(name).collect()
    }

    fn beside(&self, number: u16) -> Vec<String> {
        self.places[&vm(number)].seat.beside.iter().map(name).collect()
    }
}

#[test]
fn a_vm_without_a_start_gets_a_place_like_any_other() {
    let mut world = World::with(2);
    let preheat = |vm| {
        let (draft, address) = (draft(0), ([127, 0, 0, 9], 9).into());
        let (number, what, hot) = (7, crate::wire::control::Warmth::Whole, draft.hot.clone());
        let draft = Box::new(super::messages::PreheatDraft { number, image: draft.image, what, hot });
        Event::Preheat { vm, contact: Contact { address, key_hash: vec![9].into() }, draft }
    };
    world.apply(preheat(vm(2)));
    assert_eq!((world.upstreams(2), world.core.sizes()), (vec!["vm-0".into()], (3, 0)));
    let epoch = world.core.epoch();
    world.apply(preheat(vm(2)));
    assert_eq!((world.core.epoch(), world.starts), (epoch, 2), "it has its place already");
}

#[test]
fn the_first_vm_reads_the_origin_and_the_others_their_ancestors() {
    let world = World::with(4);
    assert_eq!(world.upstreams(0), ["origin"]);
    assert_eq!(world.upstreams(1), ["vm-0"]);
    assert_eq!(world.upstreams(3), ["vm-1", "vm-0"]);
    assert_eq!(world.core.epoch(), Epoch { term: 1, counter: 4 });
}

#[test]
fn a_second_start_on_a_vm_reuses_its_place() {
    let mut world = World::with(4);
    let epoch = world.core.epoch();
    world.apply(join(3));
    assert_eq!((world.starts, world.core.epoch()), (5, epoch));
    assert!(world.sent.is_empty());
}

#[test]
fn when_a_vm_goes_the_last_takes_its_place_and_only_those_concerned_are_told() {
    let mut world = World::with(8);
    world.apply(Event::Gone { vm: vm(1) });
    assert_eq!(world.sent, [vm(3), vm(4), vm(7)]);
    assert_eq!(world.upstreams(7), ["vm-0"]);
    assert_eq!(world.upstreams(3), ["vm-7", "vm-0"]);
    assert_eq!(world.upstreams(5), ["vm-2", "vm-0"]);
}

#[test]
fn a_lost_root_is_replaced_and_the_new_one_reads_the_origin() {
    let mut world = World::with(3);
    world.apply(Event::Gone { vm: vm(0) });
    assert_eq!(world.upstreams(2), ["origin"]);
    assert_eq!(world.upstreams(1), ["vm-2"]);
}

#[test]
fn a_ready_vm_near_the_root_is_named_as_third_upstream_and_stays() {
    let mut world = World::with(8);
    world.apply(Event::Ready { vm: vm(2) });
    world.apply(join(8));
    assert_eq!(world.upstreams(8), ["vm-3", "vm-1", "vm-2"]);
    world.apply(Event::Tick);
    assert_eq!(world.upstreams(7), ["vm-3", "vm-1", "vm-2"]);
    assert_eq!(world.upstreams(5), ["vm-2", "vm-0"], "its own ancestor is no help");
    world.apply(Event::Tick);
    assert!(world.sent.is_empty());
}

#[test]
fn a_capability_is_renewed_at_half_of_its_life_and_not_before() {
    let mut world = World::with(3);
    world.now += Duration::from_secs(1799);
    world.apply(Event::Tick);
    assert!(world.sent.is_empty());
    world.now += Duration::from_secs(1);
    let epoch = world.core.epoch();
    world.apply(Event::Tick);
    assert_eq!((world.sent.len(), world.core.epoch()), (3, epoch));
    world.apply(Event::Tick);
    assert!(world.sent.is_empty());
}

#[test]
fn a_vm_that_serves_none_of_its_children_loses_them() {
    let mut world = World::with(7);
    world.complain(3, 1);
    assert_eq!(world.upstreams(3), ["vm-0"], "one child alone may be cut off itself");
    assert_eq!(world.sent, [vm(3)], "nobody is moved for it");
    world.complain(4, 1);
    assert_eq!(world.upstreams(1), ["vm-2", "vm-0"], "moved to the end");
    assert_eq!(world.upstreams(4), ["vm-6", "vm-0"]);
    assert_eq!(world.upstreams(3), ["vm-6", "vm-0"]);
}

#[test]
fn two_vms_that_cannot_reach_each_other_are_kept_apart_for_a_while() {
    let mut world = World::with(15);
    world.complain(7, 3);
    world.complain(7, 1);
    assert_eq!(world.upstreams(7), ["vm-3", "vm-1"], "better than nobody");
    world.now += Duration::from_secs(1);
    world.apply(Event::Tick);
    assert_eq!(world.upstreams(7), ["vm-6", "vm-2"], "it has changed places with the last");
    assert_eq!(world.upstreams(14), ["vm-3", "vm-1"]);
    assert_eq!(world.upstreams(3), ["vm-1", "vm-0"], "its parent stays where it is");
    world.complain(8, 3);
    assert_eq!(world.upstreams(8), ["vm-1"]);
    world.now += LIMITS.complaint_life;
    world.apply(Event::Tick);
    assert_eq!(world.upstreams(8), ["vm-3", "vm-1"], "it is tried again");
}

#[test]
fn a_vm_that_reaches_no_ancestor_is_sent_to_a_helper_and_never_to_the_origin() {
    let mut world = World::with(15);
    world.apply(Event::Ready { vm: vm(2) });
    world.complain(7, 3);
    world.complain(7, 1);
    assert_eq!(world.upstreams(7), ["vm-2"], "invariant 6");
}

#[test]
fn a_vm_whose_helper_is_gone_is_told_with_the_next_tick_and_at_once_if_it_has_nobody_else() {
    let mut world = World::with(15);
    world.apply(Event::Ready { vm: vm(2) });
    world.apply(Event::Tick);
    world.complain(8, 3);
    world.complain(8, 1);
    assert_eq!((world.upstreams(7), world.upstreams(8)), (names(&[3, 1, 2]), names(&[2])));
    world.apply(Event::Gone { vm: vm(2) });
    assert_eq!((world.upstreams(7), world.upstreams(8)), (names(&[3, 1, 2]), names(&[3, 1])));
    world.apply(Event::Tick);
    assert_eq!(world.upstreams(7), names(&[3, 1]));
}

#[test]
fn the_root_is_replaced_only_on_the_word_of_all_its_children() {
    let mut world = World::with(5);
    world.complain(1, 0);
    assert_eq!(world.upstreams(0), ["origin"]);
    assert_eq!(world.upstreams(1), ["vm-0"]);
    world.complain(2, 0);
    assert_eq!(world.upstreams(4), ["origin"], "the last takes its place");
    assert_eq!(world.upstreams(0), ["vm-1", "vm-4"]);
}

#[test]
fn a_vm_found_at_fault_is_not_ready_until_it_says_so_or_the_complaints_are_old() {
    for says_so in [true, false] {
        let mut world = World::with(7);
        (0..7).for_each(|number| world.apply(Event::Ready { vm: vm(number) }));
        world.complain(3, 1);
        world.complain(4, 1);
        assert_eq!(world.core.sizes(), (7, 6));
        world.now += LIMITS.complaint_life - Duration::from_millis(1);
        world.apply(Event::Tick);
        assert_eq!(world.core.sizes(), (7, 6));
        if says_so {
            world.apply(Event::Ready { vm: vm(1) });
        } else {
            world.now += Duration::from_millis(1);
            world.apply(Event::Tick);
        }
        assert_eq!(world.core.sizes(), (7, 7), "lazy images: no other word of it comes");
    }
}

#[test]
fn an_old_word_or_one_about_somebody_else_changes_nothing() {
    let mut world = World::with(7);
    let before = world.core.epoch();
    let old = Epoch { term: 1, counter: 1 };
    world.apply(Event::UpstreamLost { by: vm(3), epoch: old, vm: vm(1) });
    world.apply(Event::UpstreamLost { by: vm(3), epoch: before, vm: vm(2) });
    assert_eq!(world.core.epoch(), before, "invariant 4");
}

#[test]
fn a_vm_whose_helper_becomes_its_ancestor_is_not_told_what_it_knows() {
    let mut world = World::shaped(Box::new(Striped::new(2, 2)));
    (0..6).for_each(|number| world.apply(join(number)));
    let members = world.core.view(tree_id().image).members;
    let [root, parent, heir, child, ..] = &members[..] else { panic!("six are members") };
    assert_eq!(child.parent.as_ref(), Some(&parent.vm));
    world.apply(Event::Ready { vm: heir.vm.clone() });
    let epoch = world.core.epoch();
    world.apply(Event::UpstreamLost { by: child.vm.clone(), epoch, vm: root.vm.clone() });
    let asked = |world: &World| world.places[&child.vm].stripes[0].iter().map(name).collect::<Vec<_>>();
    assert_eq!(asked(&world), [parent.vm.as_str(), heir.vm.as_str()], "its helper is the last");
    world.apply(Event::Gone { vm: root.vm.clone() });
    assert_eq!(world.core.view(tree_id().image).members[0].vm, heir.vm, "it takes the place of the root");
    assert!(!world.sent.contains(&child.vm));
    assert_eq!(asked(&world), [parent.vm.as_str(), heir.vm.as_str()]);
}

#[test]
fn a_root_that_is_replaced_asks_its_children_and_the_richest_before_the_origin() {
    let mut world = World::with(9);
    world.apply(Event::Held { vm: vm(6), held: held(world.core.epoch(), 9) });
    world.apply(Event::Gone { vm: vm(0) });
    assert_eq!(world.upstreams(8), ["origin"]);
    assert_eq!(world.beside(8), ["vm-6", "vm-1", "vm-2"]);
    world.apply(Event::Gone { vm: vm(6) });
    assert_eq!(world.beside(8), ["vm-1", "vm-2"]);
}

#[test]
fn the_first_root_of_a_tree_asks_the_origin_at_once() {
    let mut world = World::with(9);
    (1..9).for_each(|number| world.apply(Event::Ready { vm: vm(number) }));
    world.apply(Event::Tick);
    assert_eq!(world.beside(0), Vec::<String>::new());
    assert_eq!(world.beside(2).len(), 1, "a child of the root may ask one that is ready");
    assert_ne!(world.beside(2), ["vm-0"]);
}

#[test]
fn a_vm_with_a_new_address_is_told_to_those_who_use_it() {
    let mut world = World::with(4);
    world.apply(Event::Reported { vm: vm(1), contact: contact(99), held: held(world.core.epoch(), 3) });
    assert_eq!(world.sent, [vm(1), vm(3)]);
    let Upstream::Vm { address, .. } = &world.places[&vm(3)].stripes[0][0] else { panic!("a VM is above") };
    assert_eq!(*address, contact(99).address);
}

#[test]
fn a_vm_that_missed_its_place_gets_it_again_when_it_reports() {
    let mut world = World::with(2);
    let old = Epoch { term: 1, counter: 1 };
    world.apply(Event::Reported { vm: vm(1), contact: contact(1), held: held(old, 3) });
    assert_eq!(world.sent, [vm(1)]);
    world.apply(Event::Reported { vm: vm(1), contact: contact(1), held: held(world.core.epoch(), 3) });
    assert!(world.sent.is_empty());
}

fn says(number: u16, epoch: Epoch) -> Event {
    Event::Held { vm: vm(number), held: held(epoch, 1) }
}

#[test]
fn a_vm_leaves_when_its_children_have_said_that_they_have_their_new_places() {
    let mut world = World::with(7);
    let before = world.core.epoch();
    world.apply(Event::Leave { vm: vm(1) });
    assert_eq!(world.upstreams(3), ["vm-6", "vm-0"]);
    assert_eq!(world.upstreams(4), ["vm-6", "vm-0"]);
    world.apply(says(3, world.core.epoch()));
    world.apply(says(4, before));
    world.apply(Event::Leave { vm: vm(1) });
    world.apply(Event::Tick);
    assert_eq!(world.leaving, [vm(1)].into(), "one of them is still served by it");
    world.apply(says(4, world.core.epoch()));
    assert!(world.leaving.is_empty());
    world.apply(Event::Leave { vm: vm(3) });
    assert!(world.leaving.is_empty(), "it has no children");
}

#[test]
fn a_vm_waits_for_a_child_that_says_nothing_for_a_lease_and_not_for_one_that_is_gone() {
    let mut world = World::with(7);
    world.apply(Event::Leave { vm: vm(1) });
    world.apply(says(3, world.core.epoch()));
    world.now += LIMITS.lease - Duration::from_millis(1);
    world.apply(Event::Tick);
    assert_eq!(world.leaving.len(), 1);
    world.now += Duration::from_millis(1);
    world.apply(Event::Tick);
    assert!(world.leaving.is_empty());
    world.apply(Event::Leave { vm: vm(2) });
    assert_eq!(world.leaving.len(), 1);
    world.apply(Event::Gone { vm: vm(5) });
    assert!(world.leaving.is_empty());
}

#[test]
fn a_vm_that_comes_back_or_is_gone_before_it_was_told_to_leave_is_not_told() {
    let mut world = World::with(7);
    world.apply(Event::Leave { vm: vm(1) });
    world.apply(join(1));
    world.apply(Event::Leave { vm: vm(2) });
    world.apply(Event::Gone { vm: vm(2) });
    (0..7).for_each(|number| world.apply(says(number, world.core.epoch())));
    world.now += LIMITS.lease;
    world.apply(Event::Tick); // a VM that is told without being asked is found by `apply`
    assert!(world.places.contains_key(&vm(1)));
}

#[test]
fn a_tree_that_dissolves_also_tells_those_who_wait_for_their_children() {
    let mut world = World::with(7);
    world.apply(Event::Leave { vm: vm(1) });
    world.apply(Event::Dissolve);
    assert!(world.leaving.is_empty());
}

#[test]
fn a_tree_that_dissolves_tells_everyone_to_leave() {
    let mut world = World::with(5);
    world.apply(Event::Dissolve);
    assert!(world.places.is_empty() && world.core.is_empty());
}

/// A tree of a new manager, which members report to as the one before had placed them.
fn reported(world: &World, missing: &[u16]) -> World {
    let mut next = World::new();
    let epoch = Epoch { term: 2, counter: 0 };
    next.core = TreeCore::rejoining(LIMITS, Box::new(Complete::new(2)), epoch);
    for name in world.places.keys().rev() {
        let number: u16 = name.as_str()[3..].parse().expect("made here");
        if !missing.contains(&number) {
            let place = &world.places[name];
            let held = HeldTree { place: place.seat.place, ..held(place.epoch, 3) };
            next.apply(Event::Reported { vm: name.clone(), contact: contact(number), held });
        }
    }
    next
}

fn parents(world: &World) -> BTreeMap<VmId, Option<VmId>> {
    let view = world.core.view(tree_id().image);
    view.members.into_iter().map(|member| (member.vm, member.parent)).collect()
}

#[test]
fn a_tree_that_is_put_together_again_leaves_everyone_in_place() {
    let mut world = World::with(20);
    for number in [3, 0, 11] {
        world.apply(Event::Gone { vm: vm(number) });
        world.places.remove(&vm(number));
    }
    let mut next = reported(&world, &[]);
    next.apply(Event::Tick);
    next.apply(join(30));
    assert!(next.places.is_empty() && next.starts == 0, "nobody is placed before all have reported");
    next.apply(Event::Gathered);
    let mut after = parents(&next);
    assert_eq!((next.starts, after.remove(&vm(30)).is_some()), (1, true), "starts go on");
    assert_eq!(after, parents(&world));
}

#[test]
fn only_the_places_of_those_who_are_missing_are_filled_anew() {
    let world = World::with(31);
    let mut next = reported(&world, &[2, 7]);
    next.apply(Event::Gathered);
    let (before, after) = (parents(&world), parents(&next));
    let moved: Vec<_> =
        after.iter().filter(|(vm, parent)| before[*vm] != **parent).map(|(vm, _)| vm).collect();
    // Two of the last level take their places; the children of those have new parents.
    assert_eq!(after.len(), 29);
    assert!(moved.len() <= 2 + 2 * 2, "{moved:?}");
}

#[test]
fn a_vm_that_reports_late_joins_as_any_other() {
    let world = World::with(7);
    let mut next = reported(&world, &[2]);
    next.apply(Event::Gathered);
    let held = held(Epoch { term: 1, counter: 7 }, 3);
    next.apply(Event::Reported { vm: vm(2), contact: contact(2), held });
    assert_eq!(parents(&next).len(), 7);
}

/// Parent and children of each member.
type Edges = BTreeMap<VmId, (Option<VmId>, Vec<VmId>)>;

/// Those of each stripe, as the view has them.
fn stripes(view: &TreeView) -> Vec<Edges> {
    let first = view.members.iter().map(|member| {
        let MemberView { vm, parent, children, .. } = member.clone();
        (vm, (parent, children))
    });
    let further = view.further_stripes.iter().map(|stripe| {
        stripe
            .iter()
            .map(|place| (place.vm.clone(), (place.parent.clone(), place.children.clone())))
            .collect()
    });
    std::iter::once(first.collect()).chain(further).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_happens_every_vm_knows_its_present_place(
        shape in 0_usize..4,
        history in proptest::collection::vec((0_u8..8, 0_u16..30, 0_u16..30), 1..300),
    ) {
        let shapes: [Box<dyn Topology>; 4] = [
            Box::new(Complete::new(2)),
            Box::new(Avl::new()),
            Box::new(Striped::new(2, 2)),
            Box::new(Striped::new(4, 3)),
        ];
        let mut world = World::shaped(shapes.into_iter().nth(shape).expect("one of them"));
        for (what, number, other) in history {
            let epoch = world.core.epoch();
            if what == 6 {
                world.complaints.insert((vm(number), vm(other)));
            }
            world.apply(match what {
                0..=2 => join(number),
                3 => Event::Gone { vm: vm(number) },
                4 => Event::Leave { vm: vm(number) },
                5 => Event::Ready { vm: vm(number) },
                6 => Event::UpstreamLost { by: vm(number), epoch, vm: vm(other) },
                _ => Event::Reported { vm: vm(number), contact: contact(other), held: held(epoch, 10) },
            });
            if what == 3 || what == 4 {
                world.places.remove(&vm(number));
            }
            world.now += Duration::from_secs(1);
            let view = world.core.view(tree_id().image);
            let stripes = stripes(&view);
            prop_assert!(world.places.values().all(|place| place.stripes.len() == stripes.len()));
            for (stripe, members) in stripes.iter().enumerate() {
                prop_assert!(members.keys().eq(world.places.keys()), "each VM is in each stripe once");
                for (vm, (above, below)) in members {
                    let place = &world.places[vm];
                    let told = &place.stripes[stripe];
                    let depth = std::iter::successors(above.clone(), |above| members[above].0.clone());
                    prop_assert_eq!(place.seat.depths[stripe], depth.count() as u32, "depth of {}", vm);
                    let parent = match &told[0] {
                        Upstream::Vm { vm, .. } => Some(vm.clone()),
                        Upstream::Origin => None,
                    };
                    let is_cut_off =
                        above.clone().is_some_and(|above| world.complaints.contains(&(vm.clone(), above)));
                    prop_assert!(parent == *above || is_cut_off, "{vm} has another parent");
                    prop_assert!(below.iter().all(|child| members[child].0.as_ref() == Some(vm)));
                    prop_assert!(told.len() <= LIMITS.ancestors_max);
                }
            }
            // A second look finds nothing to tell, once helpers were named.
            world.apply(Event::Tick);
            world.apply(Event::Tick);
            prop_assert!(world.sent.is_empty());
        }
        world.now += LIMITS.lease;
        world.apply(Event::Tick);
        prop_assert!(world.leaving.is_empty(), "nobody stays for longer than a lease");
    }
}
