//! VMs that are drained, and taken back.

use super::{vms::tree, *};
use crate::model::VmView;

impl World {
    fn drain(&mut self, name: &VmId) -> Ticket {
        self.ask(|ticket| Event::Drain { ticket, vm: name.clone(), force: false })
    }

    fn undrain(&mut self, name: &VmId) -> Ticket {
        self.ask(|ticket| Event::Undrain { ticket, vm: name.clone() })
    }

    fn vm_state(&self, name: &VmId) -> VmState {
        self.core.vm_view(name).expect("known").state
    }

    fn view(&self, ticket: Ticket) -> &VmView {
        match &self.answers[&ticket] {
            Ok(Answer::Vm(view)) => view,
            other => panic!("no VM: {other:?}"),
        }
    }

    /// An instance that had a request.
    fn serve_one(&mut self) -> StartId {
        let request = self.acquire();
        let start = match self.granted(request) {
            Some(start) => start,
            None => {
                let (_, start) = self.joins.last().expect("started for it").clone();
                self.run(&start);
                start
            }
        };
        assert_eq!(self.granted(request).as_ref(), Some(&start));
        start
    }

    fn disk_has(&self, name: &VmId) -> bool {
        self.rows.contains_key(&(Table::Drains, name.to_string()))
    }
}

#[test]
fn an_instance_that_serves_is_replaced_elsewhere_first_and_ends_after_its_last_request() {
    let mut world = World::with_vms(2);
    let old = world.serve_one();
    let name = world.vm_of(&old);
    let drained = world.drain(&name);
    assert_eq!(world.view(drained).state, VmState::Draining);
    let new = world.joins.last().expect("a replacement").1.clone();
    assert_ne!(world.vm_of(&new), name);
    let meanwhile = world.acquire();
    assert_eq!(world.granted(meanwhile), Some(old.clone()), "it serves until the other is ready");
    world.run(&new);
    world.pass(Duration::from_millis(1));
    let after = world.acquire();
    assert_eq!(world.granted(after), Some(new.clone()));
    world.release(&old);
    assert!(world.stops.is_empty(), "one request is in flight");
    world.release(&old);
    assert_eq!(world.stops, [(name.clone(), old.clone())]);
    world.end(&old, EndReason::Stopped);
    assert_eq!(world.vm_state(&name), VmState::Drained);
    assert_eq!(world.joins.len(), 2, "one replacement for one instance");
}

#[test]
fn several_that_serve_end_one_by_one_as_their_replacements_become_ready() {
    let mut world = World::with_vms(1);
    let old = world.start(api(), 2);
    old.iter().for_each(|start| world.run(start));
    let requests: Vec<Ticket> = (0..2).map(|_| world.acquire()).collect();
    old.iter().for_each(|start| world.release(start));
    assert!(requests.iter().all(|request| world.granted(*request).is_some()));
    world.up(1, facts(1, GIB));
    world.drain(&vm(0));
    let new: Vec<StartId> = world.joins[2..].iter().map(|(_, start)| start.clone()).collect();
    assert_eq!(new.len(), 2);
    world.run(&new[0]);
    (0..3).for_each(|_| world.pass(Duration::from_millis(1)));
    assert_eq!(world.stops.len(), 1, "the other serves until the second is ready");
    world.run(&new[1]);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.stops.len(), 2);
}

#[test]
fn min_instances_are_replaced_and_what_nobody_needs_ends_at_once() {
    let mut world = World::with_vms(1);
    let unused = world.start(api(), 1).remove(0);
    world.run(&unused);
    world.put(key("acme", "web"), FunctionSpec { min_instances: 1, ..spec("web:1") });
    world.convert("web:1");
    let kept = world.joins[1].1.clone();
    world.run(&kept);
    world.up(1, facts(1, GIB));
    world.drain(&vm(0));
    assert_eq!(world.stops, [(vm(0), unused)]);
    assert_eq!((world.joins.len(), world.joins[2].0.clone()), (3, vm(1)));
    assert_eq!(world.ready(&key("acme", "web")), 1);
    world.run(&world.joins[2].1.clone());
    world.pass(Duration::from_millis(1));
    assert_eq!(world.stops[1], (vm(0), kept));
    assert_eq!(world.ready(&key("acme", "web")), 1);
}

#[test]
fn starts_under_way_go_elsewhere_under_the_same_name() {
    let mut world = World::with_vms(1);
    let starts = world.start(api(), 3);
    world.news(vm(0), VmEvent::Ordered { start: starts[0].clone() });
    world.news(vm(0), VmEvent::Queued { start: starts[2].clone() });
    world.up(1, facts(1, GIB));
    world.drain(&vm(0));
    let stopped = |world: &World| world.stops.iter().cloned().collect::<BTreeSet<_>>();
    let known = [0, 2].map(|number: usize| (vm(0), starts[number].clone()));
    assert_eq!(stopped(&world), BTreeSet::from(known));
    assert!(starts.iter().all(|start| world.vm_of(start) == vm(1)));
    world.news(vm(0), VmEvent::Ordered { start: starts[1].clone() });
    assert_eq!(world.stops.last(), Some(&(vm(0), starts[1].clone())), "its order was on its way");
    world.run(&starts[0]);
    assert_eq!(world.state(&starts[0]).0, StartState::Ready);
    assert_eq!(world.vm_state(&vm(0)), VmState::Drained);
}

#[test]
fn what_is_still_there_at_the_deadline_is_stopped_all_the_same() {
    let mut world = World::with_vms(2);
    let old = world.serve_one();
    let name = world.vm_of(&old);
    world.drain(&name);
    world.pass(LIMITS.drain_deadline - Duration::from_secs(1));
    world.drain(&name);
    assert!(world.stops.is_empty(), "no other is ready, and it has a request");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.stops, [(name, old)], "asked again, it has no more time");
}

#[test]
fn a_drained_vm_has_left_its_trees_and_takes_starts_when_it_is_undrained() {
    let mut world = World::with_vms(1);
    let start = world.start(api(), 1).remove(0);
    world.run(&start);
    world.holds(0, &[tree(&api(), "app:1")]);
    world.ask(|ticket| Event::Drain { ticket, vm: vm(0), force: true });
    world.end(&start, EndReason::Stopped);
    world.pass(Duration::from_millis(1));
    assert_eq!(
        (world.others.clone(), world.vm_state(&vm(0))),
        (vec!["leave vm-0".into()], VmState::Draining)
    );
    world.pass(LIMITS.lease);
    assert_eq!(world.others.len(), 2, "told again: the first order may be lost");
    world.holds(0, &[]);
    assert_eq!(world.vm_state(&vm(0)), VmState::Drained);
    let waiting = world.start(api(), 1).remove(0);
    assert_eq!(world.state(&waiting).0, StartState::Waiting);
    for _ in 0..2 {
        let undrained = world.undrain(&vm(0));
        assert_eq!(world.view(undrained).state, VmState::Up, "undrained twice is undrained");
    }
    assert_eq!(world.vm_of(&waiting), vm(0));
}

#[test]
fn a_drain_is_answered_when_it_is_durable_and_is_the_same_when_it_is_asked_twice() {
    let mut world = World::with_vms(2);
    world.disk_is_slow = true;
    let refused = world.drain(&vm(0));
    assert!(!world.answers.contains_key(&refused));
    world.write_one(Err(MetadataError::Full("disk".into())));
    assert!(matches!(world.error(refused), ControlError::Metadata(_)));
    assert_eq!(world.vm_state(&vm(0)), VmState::Up);
    world.disk_is_slow = false;
    let drained = [world.drain(&vm(0)), world.drain(&vm(0))];
    assert_eq!(world.view(drained[0]), world.view(drained[1]));
    assert!(world.disk_has(&vm(0)));
    world.undrain(&vm(0));
    assert!(!world.disk_has(&vm(0)));
}

#[test]
fn the_last_vm_that_takes_starts_is_drained_by_force_only_and_one_that_is_down_always() {
    let mut world = World::with_vms(3);
    let unknown = [world.drain(&vm(9)), world.undrain(&vm(9))];
    assert!(unknown.iter().all(|ticket| world.error(*ticket) == ControlError::NotFound("VM")));
    world.news(vm(2), VmEvent::Down);
    world.disk_is_slow = true;
    let first = world.drain(&vm(0));
    let last = world.drain(&vm(1));
    let ControlError::Conflict(text) = world.error(last) else { panic!("the other is on its way out") };
    assert!(text.contains("let another VM join") && text.contains("force"), "{text}");
    world.disk_is_slow = false;
    world.write_one(Ok(()));
    assert_eq!(world.view(first).state, VmState::Drained);
    let down = world.drain(&vm(2));
    assert!(world.view(down).draining && world.view(down).state == VmState::Lost);
    let again = world.drain(&vm(0));
    assert_eq!(world.view(again).state, VmState::Drained);
    let forced = world.ask(|ticket| Event::Drain { ticket, vm: vm(1), force: true });
    assert_eq!(world.view(forced).state, VmState::Drained);
    world.up(2, facts(2, GIB));
    assert_eq!(world.vm_state(&vm(2)), VmState::Drained);
    world.start(api(), 1);
    assert!(world.joins.is_empty());
}

#[test]
fn a_new_manager_and_a_vm_that_comes_back_know_of_the_drain() {
    let known: StartId = "known".parse().expect("name");
    let row = super::row(std::slice::from_ref(&known));
    let mut world = World::new();
    let all = Loaded {
        functions: BTreeMap::from([(api(), loaded("app:1"))]),
        vms: vec![vm(0), vm(1)],
        drains: BTreeSet::from([vm(0)]),
        starts: vec![row],
    };
    world.apply(Event::Loaded(Box::new(all)));
    for _ in 0..2 {
        let instances = vec![instance(&known, "app:1", true)];
        world.up(0, VmFacts { instances, ..facts(0, GIB) });
        assert_eq!(world.vm_state(&vm(0)), VmState::Draining);
        world.news(vm(0), VmEvent::Down);
    }
    let instances = vec![instance(&known, "app:1", true)];
    world.up(0, VmFacts { instances, ..facts(0, GIB) });
    assert_eq!(world.ready(&api()), 1, "what ran may have served, and stays until another is there");
    world.up(1, facts(1, GIB));
    let (to, new) = world.joins[0].clone();
    assert_eq!((world.joins.len(), to), (1, vm(1)));
    world.run(&new);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.stops, [(vm(0), known)]);
}

#[test]
fn a_vm_that_is_removed_is_not_drained_when_it_joins_again() {
    let mut world = World::with_vms(2);
    world.drain(&vm(0));
    world.news(vm(0), VmEvent::Down);
    world.disk_is_slow = true;
    world.ask(|ticket| Event::RemoveVm { ticket, vm: vm(0) });
    let late = world.drain(&vm(0));
    world.disk_is_slow = false;
    while world.write_one(Ok(())) {}
    assert_eq!(world.error(late), ControlError::NotFound("VM"));
    assert!(!world.disk_has(&vm(0)));
    world.up(0, facts(0, GIB));
    assert_eq!(world.vm_state(&vm(0)), VmState::Up);
}

#[test]
fn instances_count_again_when_their_vm_is_undrained_in_time() {
    let mut world = World::with_vms(2);
    world.put(api(), FunctionSpec { min_instances: 1, max_instances: Some(1), ..spec("app:1") });
    let old = world.joins[0].1.clone();
    world.run(&old);
    let name = world.vm_of(&old);
    world.drain(&name);
    assert_eq!(world.joins.len(), 2);
    world.undrain(&name);
    world.pass(Duration::from_millis(1));
    let new = world.joins[1].1.clone();
    world.news(world.vm_of(&new), VmEvent::Ordered { start: new.clone() });
    assert_eq!(world.stops, [(world.vm_of(&new), new)], "max_instances is 1, and the ready one stays");
    assert_eq!(world.ready(&api()), 1);
}
