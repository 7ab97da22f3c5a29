//! Which images go from full caches, and what kept images are good for.

use super::vms::{held, tree};
use super::*;
use crate::{
    id::TreeId,
    wire::control::{Candidate, ColdTree},
};

fn of(source: &str) -> TreeId {
    tree(&api(), source)
}

fn cold(tree: TreeId, blocks_present: u32) -> ColdTree {
    ColdTree { tree, blocks_present, blocks_total: 9 }
}

impl World {
    fn keeps(&mut self, number: usize, cold: Vec<ColdTree>) {
        self.news(vm(number), VmEvent::Cold(cold));
    }

    /// The VM asks for a byte, that is one image. What it is told to remove.
    fn wants_room(&mut self, number: usize, candidates: &[&str]) -> Vec<TreeId> {
        let candidate = |source: &&str| Candidate { tree: of(source), bytes: 100 };
        let candidates = candidates.iter().map(candidate).collect();
        self.news(vm(number), VmEvent::RoomWanted { bytes: 1, candidates });
        self.given_up.pop().expect("answered").1
    }
}

#[test]
fn what_another_vm_holds_too_goes_before_the_last_copy() {
    let mut world = World::with_vms(3);
    world.keeps(0, ["app:1", "app:2", "app:3"].map(|source| cold(of(source), 9)).to_vec());
    world.keeps(1, vec![cold(of("app:2"), 9), cold(of("app:3"), 8)]);
    assert_eq!(world.wants_room(0, &["app:1", "app:3", "app:2"]), [of("app:2")], "8 of 9 blocks are no copy");
    // Vm 0 has been told to remove its copy: that of VM 1 is the last now.
    assert_eq!(world.wants_room(1, &["app:2", "app:3"]), [of("app:3")], "VM 0 has all of it");
    // Nothing but last copies: the one that was not used for longest.
    assert_eq!(world.wants_room(0, &["app:3", "app:1"]), [of("app:3")]);
    // Images that the VM has not named before are none of its.
    assert_eq!(world.wants_room(2, &["app:1"]), []);
}

#[test]
fn two_vms_that_ask_at_once_do_not_both_remove_the_last_copies() {
    let mut world = World::with_vms(2);
    for number in [0, 1] {
        world.keeps(number, ["app:1", "app:2"].map(|source| cold(of(source), 9)).to_vec());
    }
    assert_eq!(world.wants_room(0, &["app:1", "app:2"]), [of("app:1")]);
    assert_eq!(world.wants_room(1, &["app:1", "app:2"]), [of("app:2")]);
    // The first has removed its own, and the copy of the other is the last one for good.
    world.keeps(0, vec![cold(of("app:2"), 9)]);
    world.keeps(1, vec![cold(of("app:1"), 9)]);
    assert_eq!(world.wants_room(1, &["app:1"]), [of("app:1")], "there is nothing else");
}

#[test]
fn the_image_of_a_tree_is_given_up_by_its_tree_and_never_while_something_uses_it() {
    let mut world = World::with_vms(2);
    let used = world.run_one(api());
    let number = usize::from(used != vm(0));
    world.holds(number, &[of("app:1"), of("app:2")]);
    world.others.clear();
    assert_eq!(world.wants_room(number, &["app:1", "app:2"]), [of("app:2")]);
    assert_eq!(world.others, [format!("leave {used}")]);
    world.news(used, VmEvent::Held(vec![held(of("app:1"))]));
}

#[test]
fn a_start_goes_to_a_free_vm_that_has_kept_its_image() {
    for number in 0..3 {
        let mut world = World::with_vms(3);
        world.keeps(number, vec![cold(of("app:1"), 9)]);
        let stranger = tree(&key("other", "api"), "app:1");
        world.keeps((number + 1) % 3, vec![cold(stranger, 9)]);
        assert_eq!(world.run_one(api()), vm(number));
    }
}

#[test]
fn an_active_vm_that_has_kept_the_image_comes_before_another_of_its_tenant() {
    for number in 0..2 {
        let mut world = World::with_vms(0);
        for number in 0..2 {
            world.up(number, facts(number, GIB));
            world.holds(number, &[of("app:9")]);
        }
        world.keeps(number, vec![cold(of("app:1"), 9)]);
        assert_eq!(world.run_one(api()), vm(number));
    }
}
