//! A cache whose disk becomes read-only, before a start and in the middle of one.

use super::*;
use crate::world::FaultyDisk;
use std::process::Command;

const WHY: &str = "the disk of the cache is read-only";

fn remount(disk: &std::path::Path, how: &str) {
    let mounted = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(disk).status();
    assert!(mounted.unwrap().success(), "remount {how}");
}

async fn refused(
    world: &World,
    session: &mut Session,
    image: &faasnet_actors::image::BlockImage,
    start: &str,
) {
    session.orders.send(world.order(start, image, "vm-1", session, vec![Upstream::Origin])).unwrap();
    let why = session.ended(start).await.to_string();
    assert!(why.contains(WHY), "{start}: {why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_a_read_only_disk_ends_with_the_reason_and_works_when_it_is_writable() {
    let world = World::new().await;
    let big = noise(95, 3 << 20);
    let image = world.image("web", &website(&big), SERVE);
    let folder = world.folder.path().join("vm-1/images");
    let _disk = SmallDisk::at(folder.clone(), "64m");
    let agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    remount(&folder, "ro");
    for start in ["s1", "s2"] {
        refused(&world, &mut session, &image, start).await;
    }
    remount(&folder, "rw");
    session.orders.send(world.order("s3", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s3").await;
    assert!(world.get(&session, "vm-1", "s3", "/big").await.unwrap() == big);
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_goes_on_when_the_disk_becomes_read_only_and_starts_work_after_its_repair() {
    let world = World::new().await;
    let make = |number: u64| {
        let big = noise(95 + number, 16 << 20);
        (world.image(&format!("web-{number}"), &website(&big), SERVE), big)
    };
    let images = [make(1), make(2), make(3)];
    let mut disk = FaultyDisk::at(world.folder.path(), world.folder.path().join("vm-1/images"));
    let mut agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    for (start, (image, _)) in ["s0", "s1"].iter().zip(&images) {
        session.orders.send(world.order(start, image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
        session.ready(start).await;
    }
    // Of the first everything is there, of the second what its start has read.
    assert!(world.get(&session, "vm-1", "s0", "/big").await.unwrap() == images[0].1);
    disk.fail();
    assert!(world.get(&session, "vm-1", "s0", "/big").await.unwrap() == images[0].1);
    let cut = world.get(&session, "vm-1", "s1", "/big").await;
    assert!(cut.is_err(), "a block was read that could not be kept");
    for start in ["s0", "s1"] {
        assert_eq!(world.get(&session, "vm-1", start, "/").await, Ok(Bytes::from_static(b"hello")));
    }
    for start in ["s2", "s3"] {
        refused(&world, &mut session, &images[2].0, start).await;
    }
    // It is the same process, which has not begun again and again.
    let log = agent.log();
    assert!(log.contains(WHY) && !log.contains("panicked"), "{log}");
    assert_eq!(log.matches("the agent is up").count(), 1, "{log}");

    // What the reason says: mounted writable, and the agent started again.
    agent.terminate();
    assert!(agent.ends().await, "{}", agent.log());
    disk.repair();
    agent.again();
    let mut session = world.session("vm-1").await;
    for (number, (image, big)) in images.iter().enumerate() {
        let start = format!("again-{number}");
        session.orders.send(world.order(&start, image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
        session.ready(&start).await;
        assert!(world.get(&session, "vm-1", &start, "/big").await.unwrap() == *big, "{start}");
    }
}
