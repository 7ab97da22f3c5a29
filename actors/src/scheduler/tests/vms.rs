//! Where starts go, whose turn it is, and what becomes of VMs on which nothing runs.

use super::*;
use crate::{
    id::TreeId,
    wire::control::{BytesBySource, HeldTree},
};

pub(super) fn tree(function: &FunctionKey, source: &str) -> TreeId {
    TreeId { tenant: function.0.clone(), image: block_image(source).id }
}

pub(super) fn held(tree: TreeId) -> HeldTree {
    let (epoch, bytes) = (Default::default(), BytesBySource::default());
    HeldTree {
        tree,
        epoch,
        place: 0,
        blocks_present: 9,
        blocks_total: 9,
        bytes,
        longest_stall_us: 0,
        preheated: None,
    }
}

impl World {
    /// The VM was sent to those trees and says that it holds them.
    pub(super) fn holds(&mut self, number: usize, trees: &[TreeId]) {
        self.news(vm(number), VmEvent::Member(trees.iter().cloned().collect()));
        self.news(vm(number), VmEvent::Held(trees.iter().cloned().map(held).collect()));
    }

    fn describe(&mut self, key: FunctionKey, spec: FunctionSpec) {
        let source = spec.image.clone();
        self.put(key, spec);
        self.convert(&source);
    }

    fn start_one(&mut self, key: FunctionKey) -> StartId {
        self.start(key, 1).remove(0)
    }

    /// Starts and runs one instance.
    pub(super) fn run_one(&mut self, key: FunctionKey) -> VmId {
        let start = self.start_one(key);
        self.run(&start);
        self.vm_of(&start)
    }

    fn stop(&mut self, start: &StartId) {
        for tenant in [api().0, key("other", "api").0] {
            self.ask(|ticket| Event::Stop { ticket, tenant, start: start.clone() });
        }
        self.end(start, EndReason::Stopped);
    }

    fn tenant_of(&self, number: usize) -> Option<String> {
        let view = self.core.vm_views().into_iter().find(|view| view.id == vm(number)).expect("known");
        view.tenant.map(|tenant| tenant.to_string())
    }

    fn vms_of(&self, starts: &[StartId]) -> Vec<VmId> {
        starts.iter().map(|start| self.vm_of(start)).collect()
    }
}

#[test]
fn starts_one_after_the_other_are_packed_on_one_vm_until_its_memory_or_cpu_is_full() {
    let mut world = World::with_vms(4);
    let first = world.run_one(api());
    for _ in 0..3 {
        assert_eq!(world.run_one(api()), first, "1 GiB holds four times 256 MiB");
    }
    let second = world.run_one(api());
    assert_ne!(second, first);
    let busy = FunctionSpec { cpu_millis: 1500, ..spec("app:1") };
    world.describe(key("acme", "busy"), busy);
    assert_eq!(world.run_one(key("acme", "busy")), second, "beside an instance of 100 of 2000");
    assert!(
        ![first, second.clone()].contains(&world.run_one(key("acme", "busy"))),
        "no CPU left for another"
    );
}

#[test]
fn a_burst_wider_than_the_active_pool_takes_free_vms_before_it_is_packed_deeper() {
    let mut world = World::with_vms(4);
    let first = world.run_one(api());
    let burst = world.start(api(), 4);
    let vms = world.vms_of(&burst);
    assert_eq!(vms[0], first, "active before free");
    assert_eq!(vms.iter().collect::<BTreeSet<_>>().len(), 4, "starts of one moment share nothing");
    let deeper = world.start(api(), 3);
    let vms = world.vms_of(&deeper);
    assert_eq!(vms.iter().collect::<BTreeSet<_>>().len(), 3, "the fewest starts under way first");
}

#[test]
fn holders_of_the_image_come_before_other_vms_of_the_tenant_and_the_tightest_fit_before_larger_ones() {
    let mut world = World::with_vms(0);
    world.deploy(key("acme", "web"), "web:1");
    (0..3).for_each(|number| world.up(number, facts(number, (number as u64 + 1) * GIB)));
    assert_eq!(world.run_one(api()), vm(0), "the smallest free VM that suffices");
    let large = FunctionSpec { memory_mib: 2000, ..spec("app:1") };
    world.describe(key("acme", "large"), large);
    assert_eq!(world.run_one(key("acme", "large")), vm(1));
    world.holds(1, &[tree(&api(), "app:1"), tree(&api(), "web:1")]);
    // vm-1 has 48 MiB left, vm-0 has 768.
    let small = FunctionSpec { memory_mib: 32, ..spec("web:1") };
    world.describe(key("acme", "small"), small);
    assert_eq!(world.run_one(key("acme", "small")), vm(1), "it holds the image");
    assert_eq!(world.run_one(key("acme", "web")), vm(0), "the holder has no room");
}

#[test]
fn a_vm_on_which_nothing_runs_stays_with_its_tenant_for_its_time_and_is_free_when_it_left_its_trees() {
    let mut world = World::with_vms(1);
    world.deploy(key("other", "api"), "other:1");
    let start = world.start_one(api());
    world.run(&start);
    world.holds(0, &[tree(&api(), "app:1")]);
    world.stop(&start);
    world.pass(LIMITS.vm_idle - Duration::from_secs(1));
    assert_eq!((world.others.len(), world.tenant_of(0)), (0, Some("acme".into())));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.others, ["leave vm-0"], "children are moved by the tree first");
    let waiting = world.start_one(api());
    assert_eq!(world.state(&waiting).0, StartState::Waiting, "nothing is placed on a VM that leaves");
    world.pass(LIMITS.lease);
    assert_eq!(world.others.len(), 2, "told again: the first order may be lost");
    world.news(vm(0), VmEvent::Member(BTreeSet::new()));
    assert_eq!(world.tenant_of(0), Some("acme".into()), "the VM still says that it holds the image");
    world.news(vm(0), VmEvent::Held(Vec::new()));
    assert_eq!(world.vm_of(&waiting), vm(0), "free, and taken");
}

#[test]
fn a_start_within_the_time_keeps_a_vm_and_its_trees() {
    let mut world = World::with_vms(1);
    let start = world.start_one(api());
    world.run(&start);
    world.holds(0, &[tree(&api(), "app:1")]);
    world.stop(&start);
    world.pass(LIMITS.vm_idle / 2);
    world.run_one(api());
    world.pass(LIMITS.vm_idle);
    assert!(world.others.is_empty());
}

#[test]
fn a_tenant_without_a_free_vm_gets_the_one_that_rested_longest_with_another() {
    let mut world = World::with_vms(2);
    world.deploy(key("other", "api"), "app:1");
    let starts = world.start(api(), 2);
    starts.iter().for_each(|start| world.run(start));
    for (start, pause) in starts.iter().zip([5, 7]) {
        let number = if world.vm_of(start) == vm(0) { 0 } else { 1 };
        world.holds(number, &[tree(&api(), "app:1")]);
        world.stop(start);
        world.pass(Duration::from_secs(pause));
    }
    let longest = world.vm_of(&starts[0]);
    let start = world.start_one(key("other", "api"));
    assert_eq!(world.others, [format!("leave {longest}")], "one VM for one start");
    let number = if longest == vm(0) { 0 } else { 1 };
    world.holds(number, &[]);
    assert_eq!(world.vm_of(&start), longest);
    assert_eq!(world.tenant_of(number), Some("other".into()));
}

#[test]
fn one_start_of_a_tenant_is_placed_among_the_first_whatever_another_has_waiting() {
    let mut world = World::with_vms(0);
    world.deploy(key("other", "api"), "app:1");
    let burst = world.start(api(), 100);
    let single = world.start_one(key("other", "api"));
    world.up(0, facts(0, GIB));
    world.up(1, facts(1, GIB));
    assert_eq!(world.vm_of(&single), vm(1), "the second VM that came, not the twenty-sixth");
    let placed = world.joins.iter().filter(|(_, start)| burst.contains(start)).count();
    assert_eq!(placed, 4, "what one VM holds");
}

#[test]
fn one_tenant_cannot_fill_the_waiting_room() {
    let mut world = World::with(Limits { starts_waiting_max: 100, ..LIMITS });
    world.deploy(api(), "app:1");
    world.deploy(key("other", "api"), "app:1");
    assert_eq!(world.start(api(), 50).len(), 50);
    let refused = world.ask(|ticket| Event::Start { ticket, key: api(), count: 1 });
    assert!(matches!(world.error(refused), ControlError::TooMany { what: "starts of this tenant", .. }));
    assert_eq!(world.start(key("other", "api"), 25).len(), 25);
}

#[test]
fn a_function_that_no_vm_could_ever_hold_is_refused_at_once() {
    let mut world = World::with_vms(0);
    let large = || key("acme", "large");
    world.describe(large(), FunctionSpec { memory_mib: 2048, ..spec("app:1") });
    let before = world.start_one(large());
    world.up(0, facts(0, GIB));
    let refused = world.ask(|ticket| Event::Start { ticket, key: large(), count: 1 });
    let text = world.error(refused).to_string();
    assert!(matches!(world.error(refused), ControlError::TooLarge { .. }));
    assert!(text.contains("2048 MiB") && text.contains("at most 1024 MiB"), "{text}");
    // Its first start still waits, for a VM that may be joining.
    world.pass(LIMITS.placement_deadline);
    assert_eq!(world.state(&before), ended(EndReason::NoRoom));
    let deadline = world.now + Duration::from_secs(9);
    let request = world.ask(|ticket| Event::Acquire { ticket, key: large(), on: None, deadline });
    assert!(matches!(world.error(request), ControlError::TooLarge { .. }));
    world.up(1, facts(1, 2 * GIB));
    assert_eq!(world.run_one(large()), vm(1));
}

#[test]
fn what_ended_while_the_scheduler_was_away_is_not_placed_again_if_a_vm_of_its_tenant_says_so() {
    let starts: Vec<StartId> = ["over", "moved", "stranger"].map(|id| id.parse().expect("name")).into();
    let row = super::row(&starts);
    let mut world = World::new();
    let functions = BTreeMap::from([(api(), loaded("app:1"))]);
    let vms = (0..3).map(vm).collect();
    world.apply(Event::Loaded(Box::new(Loaded {
        functions,
        vms,
        drains: BTreeSet::new(),
        starts: vec![row],
    })));
    let of_tenant = |number| VmFacts { held: vec![held(tree(&api(), "app:1"))], ..facts(number, GIB) };
    world.up(0, of_tenant(0));
    world.up(1, facts(1, GIB));
    let over = |start: &StartId| {
        let reason = EndReason::NotReady;
        VmEvent::Ended { start: start.clone(), reason, report: StartReport::default() }
    };
    world.news(vm(0), over(&starts[0]));
    world.news(vm(0), over(&starts[1]));
    world.news(vm(1), over(&starts[2]));
    world.up(2, VmFacts { instances: vec![instance(&starts[1], "app:1", true)], ..of_tenant(2) });
    world.pass(LIMITS.rejoin_grace);
    assert_eq!(world.state(&starts[0]), ended(EndReason::NotReady));
    assert_eq!(world.state(&starts[1]).0, StartState::Ready, "another VM runs it");
    assert_eq!(world.joins.iter().map(|(_, start)| start).collect::<Vec<_>>(), [&starts[2]]);
}

#[test]
fn a_min_that_no_vm_is_large_enough_for_waits_until_one_is() {
    let mut world = World::with_vms(1);
    let large = || key("acme", "large");
    let scaling = limited(1, 2, LIMITS.keep_alive);
    world.describe(large(), FunctionSpec { memory_mib: 2048, ..scaling });
    (0..5).for_each(|_| world.pass(LIMITS.placement_deadline));
    assert_eq!(world.core.start_views(&large(), 9).expect("known").len(), 0);
    world.up(1, facts(1, 2 * GIB));
    world.run_all();
    assert_eq!(world.ready(&large()), 1);
}

#[test]
fn news_of_vms_that_nobody_knows_change_nothing() {
    let mut world = World::with_vms(1);
    let start: StartId = "stray".parse().expect("name");
    for event in [
        VmEvent::Down,
        VmEvent::LeaseOver,
        VmEvent::Held(vec![held(tree(&api(), "app:1"))]),
        VmEvent::Member(BTreeSet::from([tree(&api(), "app:1")])),
        VmEvent::Rejoined,
        VmEvent::Undeliverable { start: start.clone() },
        VmEvent::Progress { start, step: Step::Run, elapsed_us: 1 },
    ] {
        world.news(vm(9), event);
    }
    assert_eq!(world.core.vm_views().len(), 1);
    let unknown = world.ask(|ticket| Event::RemoveVm { ticket, vm: vm(9) });
    assert_eq!(world.error(unknown), ControlError::NotFound("VM"));
}

#[test]
fn a_vm_with_as_many_functions_as_it_may_takes_more_of_these_also_with_a_new_image() {
    let mut world = World::with_vms(1);
    world.deploy(key("acme", "web"), "web:1");
    world.deploy(key("acme", "job"), "job:1");
    world.run_one(api());
    world.run_one(key("acme", "web"));
    let third = world.start_one(key("acme", "job"));
    assert_eq!(world.state(&third).0, StartState::Waiting, "a VM has at most two functions here");
    world.deploy(api(), "app:2");
    assert_eq!(world.joins.len(), 3, "the new image replaces the old one on the same VM");
}

#[test]
fn a_start_that_waits_in_its_node_is_left_there_and_a_stop_reaches_it() {
    let mut world = World::with_vms(2);
    let start = world.start_one(api());
    let first = world.vm_of(&start);
    world.news(first.clone(), VmEvent::Queued { start: start.clone() });
    world.pass(LIMITS.lease * 2);
    assert_eq!((world.vm_of(&start), world.state(&start).0), (first.clone(), StartState::Starting));
    world.ask(|ticket| Event::Stop { ticket, tenant: api().0, start: start.clone() });
    assert_eq!(world.stops, [(first, start.clone())]);
    world.end(&start, EndReason::Stopped);
    assert_eq!(world.state(&start), (StartState::Ended, Some(EndReason::Stopped)));
}

#[test]
fn a_start_whose_node_was_rebuilt_while_it_waited_there_goes_elsewhere() {
    let mut world = World::with_vms(2);
    let start = world.start_one(api());
    let first = world.vm_of(&start);
    world.news(first.clone(), VmEvent::Queued { start: start.clone() });
    world.news(first.clone(), VmEvent::Down);
    world.news(first.clone(), VmEvent::Up(Box::new(facts(if first == vm(0) { 0 } else { 1 }, GIB))));
    assert_ne!(world.vm_of(&start), first);
}

#[test]
fn a_start_that_waits_too_long_in_its_node_ends_there() {
    let mut world = World::with_vms(2);
    let start = world.start_one(api());
    let first = world.vm_of(&start);
    world.news(first.clone(), VmEvent::Queued { start: start.clone() });
    world.pass(LIMITS.ready_deadline + LIMITS.lease);
    assert_eq!(world.stops, [(first, start.clone())]);
    assert_eq!(world.state(&start), (StartState::Ended, Some(EndReason::NoRoom)));
}
