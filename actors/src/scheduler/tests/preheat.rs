//! Which VMs hold an image before any start, and what becomes of them.

use super::{vms::tree, *};
use crate::{
    id::{BlockId, TreeId},
    model::{PreheatSpec, PreheatView},
    profiles::{Hint, Hinted},
    wire::control::{HeldTree, Preheated, Warmth},
};

fn held(tree: TreeId, blocks_present: u32, preheated: Option<Preheated>) -> HeldTree {
    let epoch = crate::id::Epoch { term: 1, counter: 1 };
    HeldTree { epoch, blocks_present, preheated, ..vms::held(tree) }
}

fn some(vms: u32) -> PreheatSpec {
    PreheatSpec { vms: Some(vms), names: Vec::new(), what: Warmth::Whole }
}

fn these(vms: &[usize]) -> PreheatSpec {
    PreheatSpec { vms: None, names: vms.iter().map(|number| vm(*number)).collect(), what: Warmth::Whole }
}

impl World {
    fn preheat(&mut self, key: FunctionKey, spec: PreheatSpec) -> Result<PreheatView, ControlError> {
        let ticket = self.ask(|ticket| Event::Preheat { ticket, key, spec });
        match self.answers[&ticket].clone_answer()? {
            Answer::Preheat(view) => Ok(*view),
            other => panic!("another answer: {other:?}"),
        }
    }

    /// The VM has become a member and holds so many of 9 blocks.
    fn holds_blocks(&mut self, number: usize, tree: &TreeId, blocks: u32, preheated: Option<Preheated>) {
        self.news(vm(number), VmEvent::Member([tree.clone()].into()));
        self.news(vm(number), VmEvent::Held(vec![held(tree.clone(), blocks, preheated)]));
    }

    fn preheated_vms(&self) -> Vec<VmId> {
        self.preheats.iter().map(|(vm, _)| vm.clone()).collect()
    }
}

trait Cloned {
    fn clone_answer(&self) -> Result<Answer, ControlError>;
}

impl Cloned for Result<Answer, ControlError> {
    fn clone_answer(&self) -> Result<Answer, ControlError> {
        match self {
            Ok(Answer::Preheat(view)) => Ok(Answer::Preheat(view.clone())),
            Ok(other) => panic!("another answer: {other:?}"),
            Err(error) => Err(error.clone()),
        }
    }
}

#[test]
fn the_next_start_goes_to_a_vm_that_was_preheated() {
    let mut world = World::with_vms(4);
    let view = world.preheat(api(), these(&[2])).expect("there is room");
    assert_eq!((view.vms[0].vm.clone(), view.vms[0].is_done), (vm(2), false));
    let draft = world.preheats[0].1.clone();
    assert_eq!((draft.what, draft.image.id), (Warmth::Whole, block_image("app:1").id));

    // Also before anything is heard of it.
    let start = world.start(api(), 1).remove(0);
    assert_eq!(world.vm_of(&start), vm(2));
    world.end(&start, EndReason::Stopped);
    world.holds_blocks(2, &tree(&api(), "app:1"), 9, None);
    assert!(world.core.preheat_view(&api()).expect("known").vms[0].is_done);
    let start = world.start(api(), 1).remove(0);
    assert_eq!(world.vm_of(&start), vm(2));
}

#[test]
fn holders_are_chosen_first_and_never_the_vms_of_others_or_drained_ones() {
    let mut world = World::with_vms(6);
    let other = key("other", "api");
    world.deploy(other.clone(), "app:2");
    world.preheat(other.clone(), these(&[0])).expect("it is free");
    let ticket = world.ask(|ticket| Event::Drain { ticket, vm: vm(1), force: false });
    assert!(world.answers[&ticket].is_ok());
    world.preheat(api(), these(&[3, 4])).expect("they are free");
    world.holds_blocks(4, &tree(&api(), "app:1"), 5, None);
    world.holds_blocks(3, &tree(&api(), "app:1"), 2, None);

    world.preheats.clear();
    world.preheat(api(), some(1)).expect("there are some");
    assert_eq!(world.preheated_vms(), [vm(4)], "the one that holds most");
    for refused in [0, 1, 9] {
        let error = world.preheat(api(), these(&[2, refused])).expect_err("it may not be used");
        let text = error.to_string();
        assert!(matches!(error, ControlError::Conflict(_)) && text.contains("belongs to others"), "{text}");
    }
    world.preheats.clear();
    world.preheat(api(), some(4)).expect("four are left");
    assert_eq!(world.preheated_vms(), [vm(2), vm(3), vm(4), vm(5)]);
    assert_eq!(world.core.preheat_view(&other).expect("known").vms.len(), 1, "tenants see their own");
}

#[test]
fn what_cannot_be_preheated_is_refused_and_nothing_is_ordered() {
    let mut world = World::with_vms(2);
    let unknown = world.preheat(key("acme", "unknown"), some(1));
    assert_eq!(unknown, Err(ControlError::NotFound("function")));
    let conflict = |result| assert!(matches!(result, Err(ControlError::Conflict(_))), "{result:?}");
    conflict(world.preheat(api(), some(3)));
    conflict(world.preheat(api(), PreheatSpec { what: Warmth::Hot, ..some(1) }));
    let invalid = |result| assert!(matches!(result, Err(ControlError::Invalid(_))), "{result:?}");
    invalid(world.preheat(api(), some(0)));
    invalid(world.preheat(api(), some(5)));
    invalid(world.preheat(api(), these(&[])));
    invalid(world.preheat(api(), PreheatSpec { vms: Some(1), ..these(&[1]) }));
    world.put(key("acme", "new"), spec("app:new"));
    let converting = world.preheat(key("acme", "new"), some(1));
    assert!(matches!(converting, Err(ControlError::ImageNotReady { .. })), "{converting:?}");
    let failed = Event::Converted { source: source("app:new"), result: Err("no such image".into()) };
    world.apply(failed);
    let failed = world.preheat(key("acme", "new"), some(1));
    assert!(matches!(failed, Err(ControlError::ImageFailed(_))), "{failed:?}");
    assert_eq!(world.preheated_vms(), []);
}

#[test]
fn a_preheated_vm_is_given_back_after_a_while_or_when_the_order_is_lost() {
    let mut world = World::with_vms(2);
    let image = tree(&api(), "app:1");
    world.preheat(api(), some(2)).expect("there are two");
    assert_eq!(world.core.vm_view(&vm(0)).expect("known").tenant, Some(api().0));
    world.holds_blocks(0, &image, 1, None);
    // The other one says nothing.
    world.pass(LIMITS.lease);
    let tenant = |world: &World, number| world.core.vm_view(&vm(number)).expect("known").tenant;
    assert_eq!((tenant(&world, 0), tenant(&world, 1)), (Some(api().0), None));

    world.pass(LIMITS.vm_idle);
    assert_eq!(world.others, ["leave vm-0"]);
    world.news(vm(0), VmEvent::Member(BTreeSet::new()));
    world.news(vm(0), VmEvent::Held(Vec::new()));
    assert_eq!(tenant(&world, 0), None);
    assert_eq!(world.core.preheat_view(&api()).expect("known").vms, []);
}

#[test]
fn the_hot_set_is_there_when_the_vm_says_so_of_this_order() {
    let mut world = World::with_vms(1);
    let image = block_image("app:1");
    let hint = Hint { hot: [(image.id, [BlockId(4), BlockId(2)].into())].into(), ..Hint::default() };
    world.apply(Event::Hinted(Hinted { key: (api().0, image.source), hint: Some(hint) }));
    world.preheat(api(), PreheatSpec { what: Warmth::Hot, ..some(1) }).expect("it is known");
    let draft = world.preheats[0].1.clone();
    assert_eq!((draft.what, &draft.hot[..]), (Warmth::Hot, &[BlockId(4), BlockId(2)][..]));
    let image = tree(&api(), "app:1");
    for (order, missing, is_done) in
        [(draft.number + 1, 0, false), (draft.number, 1, false), (draft.number, 0, true)]
    {
        world.holds_blocks(0, &image, 3, Some(Preheated { order, missing }));
        assert_eq!(world.core.preheat_view(&api()).expect("known").vms[0].is_done, is_done);
    }
    // Another process of the agent is told again.
    world.preheats.clear();
    world.news(vm(0), VmEvent::Down);
    let facts = VmFacts { held: vec![held(image, 3, None)], ..facts(0, GIB) };
    world.up(0, facts);
    assert_eq!(world.preheated_vms(), [vm(0)]);
    assert!(!world.core.preheat_view(&api()).expect("known").vms[0].is_done);
}

#[test]
fn when_the_image_is_packed_the_packed_one_is_brought_instead() {
    let mut world = World::with_vms(1);
    let before = block_image("app:1");
    world.preheat(api(), some(1)).expect("there is one");
    world.holds_blocks(0, &tree(&api(), "app:1"), 9, None);
    let packed = BlockImage { id: block_image("packed").id, ..before.clone() };
    let hint = Hint { packed: Some(packed.clone().into()), ..Hint::default() };
    world.apply(Event::Hinted(Hinted { key: (api().0, before.source), hint: Some(hint) }));
    let drafts = world.preheats.iter().map(|(_, draft)| (draft.image.id, draft.what));
    assert_eq!(drafts.collect::<Vec<_>>(), [(before.id, Warmth::Whole), (packed.id, Warmth::Whole)]);
    assert!(!world.core.preheat_view(&api()).expect("known").vms[0].is_done);
}
