//! Cases that can be computed by hand.

use super::*;
use crate::simulate::{MILLISECOND, SECOND};

const MEGABYTE: f64 = 1e6;

/// VMs on 100 MB/s and a registry of 200 MB/s; nothing takes time but bytes.
fn setup(vms: usize) -> Setup {
    Setup {
        vms,
        uplink: 100.0 * MEGABYTE,
        downlink: 100.0 * MEGABYTE,
        cores: 2.0,
        latency: 0,
        registry: Registry {
            rate: 200.0 * MEGABYTE,
            rate_per_vm: f64::MAX,
            latency: 0,
            requests_per_second: 1e12,
        },
        image: Image { bytes: 100.0 * MEGABYTE, layers: 4, read_blocks: 10, block_bytes: MEGABYTE },
        local: Local { unpack_rate: 1e15, prepare: 0..=0, run: 0..=0, read: 0 },
        seed: 1,
    }
}

fn last(rival: &mut dyn Rival, vms: usize, starts: usize) -> f64 {
    burst(rival, vms, starts, 1_000 * SECOND);
    assert_eq!(rival.starts().len(), starts);
    let seconds = rival.starts().iter().map(|start| start.seconds().expect("every start is ready"));
    seconds.fold(0.0, f64::max)
}

fn assert_about(value: f64, expected: f64) {
    assert!((value - expected).abs() <= expected * 0.01, "{value} is not about {expected}");
}

#[test]
fn pulls_take_the_bytes_of_all_over_the_rate_of_the_registry() {
    // One is held up by its own link, eight by the registry.
    assert_about(last(&mut Pull::new(setup(1)), 1, 1), 1.0);
    assert_about(last(&mut Pull::new(setup(8)), 8, 8), 4.0);
}

#[test]
fn a_pull_unpacks_layer_by_layer_while_it_downloads() {
    let mut slow = setup(1);
    slow.local.unpack_rate = 50.0 * MEGABYTE;
    let (first_three, unpacked) = (0.75, 2.0);
    assert_about(last(&mut Pull::new(slow), 1, 1), first_three + unpacked);
}

#[test]
fn starts_on_one_vm_share_a_pull_and_its_cores() {
    let mut busy = setup(1);
    busy.local.run = SECOND..=SECOND;
    let mut pull = Pull::new(busy);
    assert_about(last(&mut pull, 1, 4), 1.0 + 2.0);
    assert_about(pull.registry_bytes(), 100.0 * MEGABYTE);
}

#[test]
fn lazy_reads_move_only_what_is_read_and_wait_for_the_registry_each_time() {
    let mut far = setup(1);
    far.registry.latency = 90 * MILLISECOND;
    let mut lazy = Tree::new(far, Source::Registry);
    // The manifest, then ten blocks of 10 ms.
    assert_about(last(&mut lazy, 1, 1), 0.09 + 10.0 * (0.09 + 0.01));
    assert_about(lazy.registry_bytes(), 10.0 * MEGABYTE);
}

#[test]
fn lazy_reads_of_many_wait_for_the_requests_that_a_registry_answers() {
    let mut busy = setup(20);
    busy.registry.requests_per_second = 10.0;
    assert_about(last(&mut Tree::new(busy, Source::Registry), 20, 20), 22.0);
}

#[test]
fn only_the_root_of_a_tree_reads_from_the_registry() {
    let mut tree = Tree::new(setup(15), Source::Tree { fan_out: 2, join: 0 });
    let last = last(&mut tree, 15, 15);
    assert_about(tree.registry_bytes(), 10.0 * MEGABYTE);
    // Ten blocks at half of an uplink each, and what the levels above take for one block.
    assert!((0.2..0.4).contains(&last), "{last}");
}

#[test]
fn the_root_of_a_tree_lets_one_vm_join_after_the_other() {
    let join = 100 * MILLISECOND;
    let last = last(&mut Tree::new(setup(20), Source::Tree { fan_out: 2, join }), 20, 20);
    assert!((2.0..2.5).contains(&last), "{last}");
}

#[test]
fn images_on_one_vm_share_its_link() {
    let tree = Source::Tree { fan_out: 2, join: 0 };
    let time = |images: usize| {
        let mut tree = Tree::of_images(setup(1), tree, images);
        (0..images).for_each(|image| {
            tree.start_of(image, 0);
        });
        tree.run_until(100 * SECOND);
        assert_about(tree.registry_bytes(), images as f64 * 10.0 * MEGABYTE);
        tree.starts().iter().filter_map(|start| start.seconds()).fold(0.0, f64::max)
    };
    // Each block goes over the root's link, then over that of the VM. Images that begin together go on together, each
    // at an eighth: one link waits while the other sends.
    assert_about(time(1), 0.2);
    assert_about(time(8), 1.6);
}

#[test]
fn kraken_brings_an_image_to_many_in_little_more_than_to_one() {
    let one = last(&mut Kraken::new(setup(1), 1), 1, 1);
    assert_about(one, 1.0);
    let mut kraken = Kraken::new(setup(32), 1);
    let many = last(&mut kraken, 32, 32);
    assert!((1.0..4.0).contains(&many), "{many}");
    assert!(kraken.registry_bytes() >= 100.0 * MEGABYTE * 0.99, "the origin gives each piece at least once");
    assert!(kraken.registry_bytes() < 0.5 * 32.0 * 100.0 * MEGABYTE, "most comes from each other");
}

#[test]
fn more_origins_are_not_slower() {
    let time = |origins| last(&mut Kraken::new(setup(32), origins), 32, 32);
    assert!(time(5) <= time(1));
}

#[test]
fn a_seed_is_a_history() {
    let play = |seed| {
        let mut setup = setup(16);
        setup.seed = seed;
        setup.local.run = 0..=SECOND;
        let mut kraken = Kraken::new(setup, 1);
        burst(&mut kraken, 16, 32, 1_000 * SECOND);
        kraken.starts().to_vec()
    };
    assert_eq!(play(7), play(7));
    assert_ne!(play(7), play(8));
}

#[test]
fn a_start_on_a_vm_that_has_the_image_only_runs() {
    let mut busy = setup(1);
    busy.local.run = SECOND..=SECOND;
    let rivals: [Box<dyn Rival>; 3] = [
        Box::new(Pull::new(busy.clone())),
        Box::new(Tree::new(busy.clone(), Source::Registry)),
        Box::new(Kraken::new(busy, 1)),
    ];
    for mut rival in rivals {
        rival.start(0);
        rival.run_until(10 * SECOND);
        let start = rival.start(0);
        rival.run_until(20 * SECOND);
        assert_eq!(rival.starts()[start].seconds(), Some(1.0));
    }
}
