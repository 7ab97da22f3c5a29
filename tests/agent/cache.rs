//! Caches and disks that are too small for all images that a VM runs.

use super::*;
use crate::world::SmallDisk;
use faasnet_actors::{
    id::{Epoch, ImageId},
    image::BlockImage,
    wire::control::{ColdTree, ToManager},
};
use std::path::Path;

const MIB: usize = 1 << 20;
/// What an image takes with all its blocks: 8 MiB of files that do not compress, and busybox in both forms.
const BIG: usize = 8 * MIB;
/// Room for two of the images.
const TWO: (&str, &str) = ("FAASNET__TRANSFER__DISK_CACHE_BYTES", "26214400");

/// However busy the machine is, nobody gives up waiting for room.
const PATIENT: (&str, &str) = ("FAASNET__TRANSFER__ROOM_WAIT_MS", "60000");

/// One VM, and images with what their big file holds.
struct Small {
    world: World,
    images: Vec<(BlockImage, Vec<u8>)>,
}

impl Small {
    async fn new() -> Self {
        let world = World::new().await;
        let make = |number: u64| {
            let big = noise(40 + number, BIG);
            (world.image(&format!("web-{number}"), &website(&big), SERVE), big)
        };
        let images = (0..3).map(make).collect();
        Self { world, images }
    }

    /// Runs the image, reads all of it, and ends the instance.
    async fn run(&self, session: &mut Session, start: &str, number: usize) {
        let (image, big) = &self.images[number];
        let order = self.world.order(start, image, "vm-1", session, vec![Upstream::Origin]);
        session.orders.send(order).unwrap();
        session.ready(start).await;
        let read = self.world.get(session, "vm-1", start, "/big").await.unwrap();
        assert!(read == *big, "image {number} has other bytes");
        session.orders.send(ToAgent::Stop { start: start.parse().unwrap() }).unwrap();
        assert_eq!(session.ended(start).await, EndReason::Stopped);
    }

    fn leave(&self, session: &Session, number: usize) {
        let epoch = Epoch { term: 1, counter: 2 };
        session.orders.send(ToAgent::Leave { tree: tree_of(&self.images[number].0), epoch }).unwrap();
    }

    /// Waits until the VM says that it has kept these images of trees that it has left.
    async fn cold(&self, session: &mut Session, numbers: &[usize]) -> Vec<ColdTree> {
        let mut wanted: Vec<ImageId> = numbers.iter().map(|number| self.images[*number].0.id).collect();
        wanted.sort();
        let is_it = |report: &ToManager| {
            let ToManager::Cold { trees, proofs } = report else { return false };
            let mut images: Vec<ImageId> = trees.iter().map(|cold| cold.tree.image).collect();
            images.sort();
            images == wanted && proofs.len() == trees.len()
        };
        let ToManager::Cold { trees, .. } = patiently(session.report(is_it)).await else {
            unreachable!("just matched")
        };
        trees
    }
}

/// The images that have a place in the cache.
fn places(data: &Path) -> usize {
    let names = std::fs::read_dir(data.join("images")).unwrap().map(|entry| entry.unwrap().file_name());
    // The holder's mount points have the name of the image alone.
    names.filter(|name| name.to_string_lossy().starts_with("acme.")).count()
}

/// Three images in a cache with room for two: that which was left first goes, and each start has its own bytes.
async fn three_images_take_turns(small: &Small, variables: &[(&str, &str)]) {
    let agent = Agent::start(&small.world, "vm-1", variables);
    let mut session = small.world.session("vm-1").await;
    for turn in 0..6 {
        small.run(&mut session, &format!("s{turn}"), turn % 3).await;
        small.leave(&session, turn % 3);
    }
    small.cold(&mut session, &[1, 2]).await;
    patiently(async {
        while places(&agent.data) != 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(agent.log().contains("an image was removed from the cache"), "{}", agent.log());
    assert!(!agent.log().contains("a block was not kept"), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_at_its_limit_lets_go_of_what_was_left_first() {
    three_images_take_turns(&Small::new().await, &[TWO, PATIENT]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_lets_go_of_what_was_left_first() {
    let small = Small::new().await;
    let _disk = SmallDisk::at(small.world.folder.path().join("vm-1"), "26m");
    three_images_take_turns(&small, &[PATIENT]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_tree_is_not_left_goes_when_the_manager_says_so() {
    let small = Small::new().await;
    let _agent = Agent::start(&small.world, "vm-1", &[TWO, PATIENT]);
    let mut session = small.world.session("vm-1").await;
    small.run(&mut session, "s0", 0).await;
    small.run(&mut session, "s1", 1).await;
    let order = small.world.order("s2", &small.images[2].0, "vm-1", &session, vec![Upstream::Origin]);
    session.orders.send(order).unwrap();
    let wanted = session.report(|report| matches!(report, ToManager::RoomWanted { .. })).await;
    let ToManager::RoomWanted { candidates, .. } = wanted else { unreachable!("just matched") };
    let named: Vec<ImageId> = candidates.iter().map(|candidate| candidate.tree.image).collect();
    assert_eq!(named, [small.images[0].0.id, small.images[1].0.id], "the first was not used for longest");
    // Not the first: what the manager says counts.
    let tree = tree_of(&small.images[1].0);
    session.orders.send(ToAgent::GiveUp { trees: vec![tree.clone()] }).unwrap();
    session.orders.send(ToAgent::Leave { tree, epoch: Epoch { term: 1, counter: 2 } }).unwrap();
    session.ready("s2").await;
    assert!(small.world.get(&session, "vm-1", "s2", "/big").await.unwrap() == small.images[2].1);
    let held =
        session.report(|report| matches!(report, ToManager::Heartbeat { held } if held.len() == 2)).await;
    let ToManager::Heartbeat { held } = held else { unreachable!("just matched") };
    assert!(held.iter().all(|held| held.tree.image != small.images[1].0.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_finds_what_it_had_kept_and_needs_no_origin_for_it() {
    let small = Small::new().await;
    let mut agent = Agent::start(&small.world, "vm-1", &[TWO, PATIENT]);
    let mut session = small.world.session("vm-1").await;
    for number in [0, 1] {
        small.run(&mut session, &format!("s{number}"), number).await;
        small.leave(&session, number);
    }
    let cold = small.cold(&mut session, &[0, 1]).await;
    assert!(
        cold.iter().all(|cold| cold.blocks_present == cold.blocks_total && cold.blocks_total > 0),
        "{cold:?}"
    );
    agent.kill();
    drop(session);
    agent.again();
    let mut session = small.world.session("vm-1").await;
    assert_eq!(session.hello.held, []);
    let mut again = small.cold(&mut session, &[0, 1]).await;
    again.sort_by_key(|cold| cold.tree.image);
    let mut before = cold;
    before.sort_by_key(|cold| cold.tree.image);
    assert_eq!(again, before);
    // Nothing of it comes from anywhere.
    let (image, big) = &small.images[1];
    session.orders.send(small.world.order("s2", image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    let report = session.ready("s2").await;
    assert_eq!(report.bytes.origin, 0);
    assert!(small.world.get(&session, "vm-1", "s2", "/big").await.unwrap() == *big);
    // A third one has room: that which is not used goes.
    small.run(&mut session, "s3", 2).await;
    assert_eq!(places(&agent.data), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_tenant_has_left_is_gone_before_another_runs() {
    let small = Small::new().await;
    let agent = Agent::start(&small.world, "vm-1", &[]);
    let mut session = small.world.session("vm-1").await;
    small.run(&mut session, "s0", 0).await;
    small.leave(&session, 0);
    small.cold(&mut session, &[0]).await;
    let (image, _) = &small.images[1];
    let ToAgent::Start(mut order) = small.world.order("s1", image, "vm-1", &session, vec![Upstream::Origin])
    else {
        unreachable!("an order to start")
    };
    order.place.tree.tenant = "other".parse().unwrap();
    order.place.capability = small.world.capability(&order.place.tree, &session, "vm-1");
    session.orders.send(ToAgent::Start(order)).unwrap();
    session.ready("s1").await;
    assert_eq!(places(&agent.data), 0);
}
