//! What is fetched before it is read: in its order, behind everything that a read waits for.

use super::{
    core::{Effect, Event, TransferCore},
    fixtures::{index, stored, vm},
    tests::{Asker, LIMITS, World, placed, upstream},
};
use crate::{
    id::BlockId,
    wire::{control::Upstream, peer::Urgency},
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

fn ahead(blocks: &[u32]) -> Event {
    Event::Ahead { blocks: blocks.iter().copied().map(BlockId).collect() }
}

fn arrived(block: u32) -> Event {
    Event::Arrived { upstream: upstream(1), blocks: vec![(BlockId(block), stored(BlockId(block)))] }
}

/// A core whose parent is connected, and what it asks.
fn connected() -> Asker {
    let mut asker = Asker::new(LIMITS, vec![upstream(1)]);
    asker.apply(Event::Opened { upstream: upstream(1) });
    asker
}

fn asks(asker: &mut Asker) -> Vec<(Urgency, Vec<u32>)> {
    let asks = asker.effects.extract_if(.., |effect| matches!(effect, Effect::Ask { .. }));
    let ask = |effect| match effect {
        Effect::Ask { blocks, urgency, .. } => (urgency, blocks.iter().map(|block| block.0).collect()),
        _ => unreachable!("just matched"),
    };
    asks.map(ask).collect()
}

#[test]
fn a_hot_set_is_asked_for_in_its_order_and_leaves_room_for_reads() {
    let mut asker = connected();
    asker.apply(ahead(&[6, 2, 99, 0, 7, 3, 1]));
    assert_eq!(asks(&mut asker), [(Urgency::Prefetch, vec![6, 2, 7, 3])], "the least window");
    asker.apply(Event::Demanded { blocks: vec![BlockId(5)] });
    assert_eq!(asks(&mut asker), [(Urgency::Demand, vec![5])]);
    asker.apply(arrived(6));
    assert_eq!(asks(&mut asker), [], "the window is full but for reads");
    asker.apply(arrived(5));
    assert_eq!(asks(&mut asker), [(Urgency::Prefetch, vec![1])]);
}

#[test]
fn a_read_of_what_was_asked_for_ahead_makes_the_question_urgent_once() {
    let mut asker = connected();
    asker.apply(ahead(&[6, 2]));
    assert_eq!(asks(&mut asker), [(Urgency::Prefetch, vec![6, 2])]);
    asker.effects.clear();
    for _ in 0..2 {
        asker.apply(Event::Demanded { blocks: vec![BlockId(2)] });
    }
    assert_eq!(asker.effects, [Effect::Hurry { upstream: upstream(1), blocks: vec![BlockId(2)] }]);
}

#[test]
fn the_origin_is_told_what_becomes_urgent_and_not_asked_again() {
    let mut asker = Asker::new(LIMITS, vec![Upstream::Origin]);
    asker.apply(Event::Opened { upstream: Upstream::Origin });
    asker.apply(ahead(&[6, 2]));
    asks(&mut asker);
    asker.effects.clear();
    asker.apply(Event::Demanded { blocks: vec![BlockId(2)] });
    assert_eq!(asker.effects, [Effect::Hurry { upstream: Upstream::Origin, blocks: vec![BlockId(2)] }]);
}

#[test]
fn a_mount_waits_for_the_metadata_and_for_nothing_that_is_fetched_ahead() {
    let now = Instant::now();
    let mut core = TransferCore::new(vm(9), LIMITS, Some(index(8)), BTreeSet::new(), now);
    let mut effects = Vec::new();
    core.apply(ahead(&[5, 6, 7]), now, &mut effects);
    core.apply(placed(1, vec![upstream(1)]), now, &mut effects);
    core.apply(Event::Opened { upstream: upstream(1) }, now, &mut effects);
    let asked = |effect: &Effect| match effect {
        Effect::Ask { blocks, urgency, .. } => Some((*urgency, blocks.clone())),
        _ => None,
    };
    let expected = [(Urgency::Demand, vec![BlockId(0)]), (Urgency::Prefetch, (5..8).map(BlockId).collect())];
    assert_eq!(effects.iter().filter_map(asked).collect::<Vec<_>>(), expected);
    core.apply(arrived(0), now, &mut effects);
    core.apply(Event::Kept { block: BlockId(0) }, now, &mut effects);
    assert!(effects.contains(&Effect::Mount), "{effects:?}");
}

#[test]
fn a_hot_set_goes_down_the_tree_with_one_read_of_the_origin_and_no_stall() {
    let mut world = World::new(15, 40);
    let hot: Vec<u32> = (10..30).rev().collect();
    for number in 0..15 {
        world.send(number, Duration::ZERO, ahead(&hot));
    }
    world.run(Duration::from_secs(2));
    for number in 0..15 {
        world.send(
            number,
            Duration::ZERO,
            Event::Demanded { blocks: hot.iter().copied().map(BlockId).collect() },
        );
    }
    world.run(Duration::from_secs(1));
    for core in &world.vms {
        assert_eq!((core.present().len(), core.stalls(world.now).count), (21, 0));
    }
    assert!(world.origin_blocks.values().all(|count| *count == 1), "invariant 6: {:?}", world.origin_blocks);
    assert_eq!(world.origin_blocks.len(), 21);
}

#[test]
fn what_a_parent_cannot_give_ahead_is_asked_for_again_later() {
    let mut world = World::new(2, 8);
    world.alive[0] = false;
    world.send(1, Duration::ZERO, ahead(&[3]));
    world.run(Duration::from_secs(3));
    world.alive[0] = true;
    world.place(0, 2);
    world.run(Duration::from_secs(3));
    assert!(world.vms[1].present().contains(&BlockId(3)));
}

#[test]
fn what_is_packed_behind_the_metadata_is_fetched_ahead_without_being_told() {
    let packed = index(8).as_ref().clone().packed(4).expect("valid");
    let now = Instant::now();
    let mut core = TransferCore::new(vm(9), LIMITS, Some(packed.into()), BTreeSet::from([BlockId(0)]), now);
    let mut effects = Vec::new();
    core.apply(placed(1, vec![upstream(1)]), now, &mut effects);
    core.apply(Event::Opened { upstream: upstream(1) }, now, &mut effects);
    let asked = |effect: &Effect| {
        matches!(effect, Effect::Ask { blocks, urgency: Urgency::Prefetch, .. }
        if *blocks == [1, 2, 3].map(BlockId))
    };
    assert!(effects.iter().any(asked), "{effects:?}");
}
