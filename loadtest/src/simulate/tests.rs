//! What VMs do with what is known of starts.

use super::{
    invariants::{self, Depth},
    model::{FunctionModel, Hot, ImageModel, Model, Reads, SECOND},
    world::{Watch, World},
};
use faasnet_actors::{id::BlockId, wire::control::Warmth};

const READS: u32 = 12;

fn world(hot: Hot) -> World {
    let image = ImageModel {
        blocks: 48,
        stored_bytes: 50_000,
        metadata_blocks: 2,
        reads: Reads::Random(READS),
        hot,
        packed_blocks: 5,
    };
    let functions = vec![FunctionModel::default()];
    let model = Model { vms: 6, images: vec![image], functions, ..Model::default() };
    let mut world = World::new(model, 1, Watch { depth: Depth::Full, prints: false });
    (0..6).for_each(|vm| world.boot(vm));
    world.run_until(world.now + SECOND, |_| false);
    world
}

fn start(world: &mut World, count: u32) {
    let wanted = world.book.acknowledged.len() + count as usize;
    world.start(0, count);
    let end = world.now + 20 * SECOND;
    let is_ready = world.run_until(end, |world| world.book.ready.len() >= wanted);
    assert_eq!(world.violation, None);
    assert!(is_ready, "{:?}", invariants::every_start_ended(world));
}

/// What each VM holds of that image.
fn held(world: &World, image: usize) -> Vec<Vec<BlockId>> {
    let id = world.images[image].description.id;
    let transfers = world.hosts.iter().flat_map(|host| {
        let trees = host.agent.iter().flat_map(|agent| &agent.trees);
        trees.filter(|(tree, _)| tree.image == id).filter_map(|(_, known)| known.transfer.as_ref())
    });
    transfers.map(|transfer| transfer.core.present().iter().copied().collect()).collect()
}

#[test]
fn a_full_cache_gives_up_what_no_instance_needs_and_keeps_to_its_limit() {
    let image = ImageModel {
        blocks: 20,
        stored_bytes: 50_000,
        metadata_blocks: 2,
        reads: Reads::Sequential(18),
        hot: Hot::Unknown,
        packed_blocks: 18,
    };
    let function = |number: usize| FunctionModel {
        name: format!("function-{number}"),
        image: number,
        ..FunctionModel::default()
    };
    let functions = (0..3).map(function).collect();
    let mut model = Model { vms: 1, images: vec![image; 3], functions, ..Model::default() };
    // Two of the three images.
    model.limits.disk.bytes_max = 2 * 20 * (50_000 + (512 << 10)) + 100_000;
    let mut world = World::new(model, 1, Watch { depth: Depth::Full, prints: false });
    world.boot(0);
    world.run_until(world.now + SECOND, |_| false);
    for function in 0..3 {
        world.start(function, 1);
        world.run_until(world.now + 5 * SECOND, |world| world.book.ready.len() > function);
        assert_eq!((world.violation.take(), world.book.ready.len()), (None, function + 1));
        let newest = world.book.ready.iter().max_by_key(|(_, at)| **at).map(|(start, _)| start.clone());
        world.end(&newest.expect("one is ready"));
        world.run_until(world.now + SECOND, |_| false);
    }
    assert_eq!(world.book.evictions, 1, "the third needs the room of one");
}

#[test]
fn what_the_first_start_reads_is_fetched_ahead_for_the_next() {
    let mut world = world(Hot::Unknown);
    start(&mut world, 1);
    world.run_until(world.now + SECOND, |_| false);
    assert!(world.book.stalls > 0, "nothing was known");
    start(&mut world, 1);
    let reads = &world.images[0].reads;
    let known = world.hosts.iter().flat_map(|host| host.agent.iter().flat_map(|agent| agent.trees.values()));
    assert_eq!(known.filter(|known| known.hot == *reads).count(), 1, "the order said what it will read");
}

#[test]
fn an_image_is_packed_when_enough_starts_were_recorded_and_later_starts_use_it() {
    let mut world = world(Hot::Unknown);
    for _ in 0..3 {
        start(&mut world, 1);
        // Another VM each time: only the first mount on one is recorded.
        let used = world.hosts.iter().position(|host| !host.holder.containers.is_empty());
        world.crash(used.expect("one runs"), false);
        world.run_until(world.now + SECOND, |_| false);
    }
    world.run_until(world.now + 20 * SECOND, |_| false);
    assert!(held(&world, 1).is_empty(), "nobody has asked for it yet");
    start(&mut world, 1);
    let held = held(&world, 1);
    assert_eq!(held.len(), 1, "{held:?}");
    assert_eq!(held[0], (0..7).map(BlockId).collect::<Vec<_>>(), "the hot set and nothing else");
}

#[test]
fn a_packed_hot_set_keeps_reads_from_waiting() {
    let mut unknown = world(Hot::Unknown);
    start(&mut unknown, 6);
    let mut packed = world(Hot::Packed);
    start(&mut packed, 6);
    assert!(packed.book.stalls < unknown.book.stalls, "{} {}", packed.book.stalls, unknown.book.stalls);
    assert!(packed.book.moved_bytes < unknown.book.moved_bytes);
    assert_eq!(held(&packed, 0), Vec::<Vec<BlockId>>::new());
}

#[test]
fn preheated_vms_hold_what_they_are_to_hold_and_starts_there_read_nothing_from_outside() {
    for (what, blocks) in [(Warmth::Hot, 2 + READS as usize), (Warmth::Whole, 48)] {
        let mut world = world(Hot::Pushed);
        world.preheat(0, 3, what);
        world.run_until(world.now + 5 * SECOND, |_| false);
        let held = held(&world, 0);
        assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [blocks; 3], "{what:?}");
        let moved = world.book.moved_bytes;
        start(&mut world, 3);
        assert_eq!(world.book.moved_bytes, moved, "{what:?}");
        assert_eq!(world.book.stalls, 0);
    }
}
