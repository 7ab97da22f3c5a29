//! What starts are told to fetch ahead, which are recorded, and how functions get to packed images.

use super::{vms::tree, *};
use crate::{
    id::{BlockId, ImageId, TreeId},
    profiles::{Hint, Hinted},
    wire::holder::PlainRange,
};
use std::sync::Arc;

/// The image that is made of `app:1` for its starts.
fn packed() -> Arc<BlockImage> {
    let plain = block_image("app:1");
    Arc::new(BlockImage { id: block_image("packed").id, ..plain })
}

fn hint(recordings: u32, packed: Option<Arc<BlockImage>>) -> Hint {
    let hot = BTreeMap::from([(block_image("app:1").id, [7, 5].map(BlockId).into())]);
    Hint { recordings, hot, packed }
}

impl World {
    fn hint(&mut self, hint: Hint) {
        let key = (api().0, block_image("app:1").source);
        self.apply(Event::Hinted(Hinted { key, hint: Some(hint) }));
    }

    /// Places one start and says whether it is recorded.
    fn records_one(&mut self) -> (StartId, bool) {
        let start = self.start(api(), 1).remove(0);
        let draft = self.draft.as_ref().expect("it was placed");
        assert_eq!(draft.start, start);
        (start, draft.record)
    }

    fn image(&self) -> ImageId {
        self.core.image_of(&api().0, &api().1).expect("ready").0.id
    }

    fn recorded(&mut self, vm: VmId, start: &StartId, image: ImageId) -> usize {
        let ranges = [PlainRange(0, 10)].into();
        self.news(vm, VmEvent::Recorded { start: start.clone(), image, ranges });
        std::mem::take(&mut self.recorded).len()
    }
}

#[test]
fn starts_are_told_what_earlier_ones_have_read() {
    let mut world = World::with_vms(2);
    world.start(api(), 1);
    assert!(world.draft.as_ref().expect("placed").hot.is_empty());
    world.hint(hint(1, None));
    world.start(api(), 1);
    assert_eq!(world.draft.expect("placed").hot[..], [7, 5].map(BlockId));
}

#[test]
fn a_few_starts_are_recorded_at_once_and_no_more_than_are_wanted() {
    // Each VM has room for one.
    let mut world = World::with_vms(0);
    (0..6).for_each(|number| world.up(number, facts(number, GIB / 4)));
    let starts: Vec<_> = (0..3).map(|_| world.records_one()).collect();
    assert_eq!(starts.iter().map(|(_, record)| *record).collect::<Vec<_>>(), [true, true, false]);
    world.run(&starts[0].0);
    assert!(world.records_one().1, "one of them is under way no more");
    world.hint(hint(2, None));
    assert!(!world.records_one().1, "of three that are wanted two are known and two under way");
    let mut world = World::with_vms(1);
    world.hint(hint(3, None));
    assert!(!world.records_one().1);
}

#[test]
fn a_start_whose_vm_has_the_image_mounted_is_not_recorded() {
    let mut world = World::with_vms(1);
    let (first, _) = world.records_one();
    world.run(&first);
    assert!(!world.records_one().1, "the first instance has read it");
    let mut world = World::with_vms(0);
    world.up(0, facts(0, GIB));
    world.holds(0, &[tree(&api(), "app:1")]);
    assert!(!world.records_one().1);
}

#[test]
fn a_recording_is_taken_once_from_the_vm_that_was_asked_for_it() {
    let mut world = World::with_vms(4);
    let (asked, _) = world.records_one();
    let image = world.image();
    world.run(&asked);
    let (own, other) = (world.vm_of(&asked), vm(3));
    assert_ne!(own, other);
    assert_eq!(world.recorded(other, &asked, image), 0, "another VM");
    assert_eq!(world.recorded(own.clone(), &asked, packed().id), 0, "another image");
    assert_eq!(world.recorded(own.clone(), &asked, image), 1);
    assert_eq!(world.recorded(own, &asked, image), 0, "a second time");
    world.hint(hint(3, None));
    let (not_asked, record) = world.records_one();
    world.run(&not_asked);
    assert!(!record);
    assert_eq!(world.recorded(world.vm_of(&not_asked), &not_asked, image), 0);
}

#[test]
fn a_start_that_waits_again_gives_its_recording_to_another() {
    let mut world = World::with_vms(3);
    let (first, _) = world.records_one();
    let (second, _) = world.records_one();
    world.news(world.vm_of(&first), VmEvent::Undeliverable { start: first.clone() });
    assert!(world.draft.as_ref().expect("placed again").record);
    world.end(&second, EndReason::NotReady);
    assert!(world.records_one().1);
}

#[test]
fn new_starts_use_the_packed_image_when_that_is_durable_and_instances_stay() {
    let mut world = World::with_vms(2);
    let old = world.start(api(), 1).remove(0);
    world.run(&old);
    let plain = world.image();
    world.disk_is_slow = true;
    world.hint(hint(3, Some(packed())));
    world.hint(hint(3, Some(packed())));
    assert_eq!((world.image(), world.writes.len()), (plain, 1), "not yet on the disk, and asked for once");
    world.write_one(Ok(()));
    assert_eq!(world.image(), packed().id);
    assert!(world.stops.is_empty());
    assert_eq!(world.state(&old).0, StartState::Ready);
    world.disk_is_slow = false;
    let (_, record) = world.records_one();
    let draft = world.draft.as_ref().expect("placed");
    assert_eq!((draft.image.id, record, draft.hot.len()), (packed().id, false, 0));
    let row = world.rows.get(&(Table::Functions, "acme/api".into())).expect("written").clone();
    assert!(String::from_utf8_lossy(&row).contains(&packed().id.to_string()));
}

#[test]
fn the_tree_of_the_image_before_is_left_as_instances_end() {
    let mut world = World::with_vms(3);
    let starts = world.start(api(), 2);
    starts.iter().for_each(|start| world.run(start));
    let old = TreeId { tenant: api().0, image: world.image() };
    let without = (0..3).map(vm).find(|name| starts.iter().all(|start| world.vm_of(start) != *name));
    let without = without.expect("two of three have an instance");
    world.news(without.clone(), VmEvent::Member(BTreeSet::from([old])));
    world.hint(hint(3, Some(packed())));
    assert_eq!(std::mem::take(&mut world.others), [format!("leave {without}")]);
    let first = world.vm_of(&starts[0]);
    world.end(&starts[0], EndReason::Stopped);
    assert_eq!(std::mem::take(&mut world.others), [format!("leave {first}")]);
    world.end(&starts[1], EndReason::Stopped);
    assert_eq!(std::mem::take(&mut world.others), ["dissolve"]);
}

#[test]
fn a_tree_that_another_function_starts_from_stays() {
    let mut world = World::with_vms(2);
    world.deploy(key("other", "api"), "app:1");
    world.deploy(key("acme", "second"), "app:1");
    let start = world.start(api(), 1).remove(0);
    world.run(&start);
    world.hint(hint(3, Some(packed())));
    let (own, _) = world.core.image_of(&api().0, &"second".parse().expect("name")).expect("ready");
    assert_eq!(own.id, packed().id, "all functions of the tenant use it");
    let other = key("other", "api");
    let (other, _) = world.core.image_of(&other.0, &other.1).expect("ready");
    assert_eq!(other.id, block_image("app:1").id, "nothing of one tenant is another's");
}

#[test]
fn a_function_that_comes_later_gets_the_packed_image_too() {
    let mut world = World::with_vms(1);
    world.hint(hint(3, Some(packed())));
    world.deploy(key("acme", "second"), "app:1");
    let (image, _) = world.core.image_of(&api().0, &"second".parse().expect("name")).expect("ready");
    assert_eq!(image.id, packed().id);
    world.put(key("acme", "second"), spec("app:2"));
    world.convert("app:2");
    let (image, _) = world.core.image_of(&api().0, &"second".parse().expect("name")).expect("ready");
    assert_eq!(image.id, block_image("app:2").id);
}

#[test]
fn a_packed_image_that_could_not_be_made_durable_is_tried_again() {
    let mut world = World::with_vms(1);
    world.disk_is_slow = true;
    world.hint(hint(3, Some(packed())));
    world.write_one(Err(MetadataError::Unavailable("away".into())));
    assert_ne!(world.image(), packed().id);
    world.disk_is_slow = false;
    world.pass(Duration::from_secs(1));
    assert_eq!(world.image(), packed().id);
}

#[test]
fn a_description_on_its_way_to_the_disk_is_not_written_over() {
    let mut world = World::with_vms(1);
    world.disk_is_slow = true;
    let described = FunctionSpec { concurrency: 9, ..spec("app:1") };
    world.put(api(), described.clone());
    world.hint(hint(3, Some(packed())));
    while world.write_one(Ok(())) {}
    let row = &world.rows[&(Table::Functions, "acme/api".into())];
    assert!(String::from_utf8_lossy(row).contains("concurrency\u{9}"), "the last word is the new one");
    assert_eq!(world.image(), packed().id);
}
