//! Real agents with real holders, mounts and containers; the test is their manager.

#![allow(clippy::unwrap_used)] // A test that panics has failed, as it should.

mod away;
mod cache;
mod child;
mod hostile;
mod lying;
mod metrics;
mod parent;
#[path = "../support/promtool.rs"]
mod promtool;
mod readonly;
mod replace;
mod serving;
mod tampered;
mod world;

use bytes::Bytes;
use faasnet::net::{
    Purpose,
    framed::{self, FrameReader},
};
use faasnet_actors::{
    id::BlockId,
    wire::{
        PROTOCOL_VERSION,
        control::{EndReason, StartOrder, ToAgent, ToManager, Upstream},
        frame::FrameLimits,
        holder::Exit,
        peer::{FromParent, Reach, Refusal, ToParent, Urgency},
    },
};
use std::os::unix::fs::FileExt;
use world::{Agent, PATIENCE, Session, SmallDisk, World, bad_token, in_an_hour, patiently, tree_of};

const FRAME: FrameLimits = FrameLimits { header_bytes_max: 1 << 20, body_bytes_max: 64 << 20 };
const SERVE: &str = "exec busybox httpd -f -p 127.0.0.1:$PORT -h /www";

/// Bytes that do not compress and differ with the seed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut out = vec![0; bytes];
    hasher.finalize_xof().fill(&mut out);
    out
}

fn website(big: &[u8]) -> Vec<(&'static str, u32, Vec<u8>)> {
    vec![("www/index.html", 0o644, b"hello".to_vec()), ("www/big", 0o644, big.to_vec())]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_answers_on_a_vm_that_never_had_its_image() {
    let world = World::new().await;
    let big = noise(1, 9 << 20);
    let image = world.image("web", &website(&big), SERVE);
    let _agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    let report = session.ready("s1").await;
    assert_eq!(world.get(&session, "vm-1", "s1", "/").await, Ok(Bytes::from_static(b"hello")));
    let at_ready = report.bytes.origin;
    assert!(at_ready > 0 && at_ready < image.blob_bytes / 2, "{at_ready} of {}", image.blob_bytes);
    assert_eq!((report.bytes.parent, report.bytes.ancestor), (0, 0));
    assert_eq!(report.steps_us.len(), 6, "{:?}", report.steps_us);
    assert_eq!(world.get(&session, "vm-1", "s1", "/big").await, Ok(big.into()));
    session.orders.send(ToAgent::Stop { start: "s1".parse().unwrap() }).unwrap();
    assert_eq!(session.ended("s1").await, EndReason::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_thread_is_enough_to_start_with_no_block_present() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(2, 4 << 20)), SERVE);
    let _agent = Agent::start(&world, "vm-1", &[("FAASNET__AGENT__THREADS", "1")]);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    assert_eq!(world.get(&session, "vm-1", "s1", "/").await, Ok(Bytes::from_static(b"hello")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_gets_its_blocks_from_its_parent_only() {
    let world = World::new().await;
    let big = noise(3, 9 << 20);
    let image = world.image("web", &website(&big), SERVE);
    let _agents = [Agent::start(&world, "vm-1", &[]), Agent::start(&world, "vm-2", &[])];
    let (mut root, mut child) = (world.session("vm-1").await, world.session("vm-2").await);
    root.orders.send(world.order("s1", &image, "vm-1", &root, vec![Upstream::Origin])).unwrap();
    child.orders.send(world.order("s2", &image, "vm-2", &child, vec![root.upstream("vm-1")])).unwrap();
    let report = child.ready("s2").await;
    assert!(report.bytes.parent > 0);
    assert_eq!((report.bytes.origin, report.bytes.ancestor), (0, 0));
    assert_eq!(world.get(&child, "vm-2", "s2", "/big").await, Ok(big.into()));
    root.ready("s1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_a_request_is_in_the_logs_of_the_agents_that_read_for_it() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(5, 4 << 20)), SERVE);
    let json = [("FAASNET__LOG__FORMAT", "json")];
    let agents = [Agent::start(&world, "vm-1", &json), Agent::start(&world, "vm-2", &json)];
    let (mut root, mut child) = (world.session("vm-1").await, world.session("vm-2").await);
    let asked = |order: ToAgent, id: &str| match order {
        ToAgent::Start(order) => {
            ToAgent::Start(Box::new(StartOrder { request: Some(id.parse().unwrap()), ..*order }))
        }
        other => other,
    };
    let order = world.order("s1", &image, "vm-1", &root, vec![Upstream::Origin]);
    root.orders.send(asked(order, "call-of-the-root")).unwrap();
    root.ready("s1").await;
    let order = world.order("s2", &image, "vm-2", &child, vec![root.upstream("vm-1")]);
    child.orders.send(asked(order, "call-of-the-child")).unwrap();
    child.ready("s2").await;
    let told = |agent: &Agent, id: &str| -> Vec<String> {
        let lines =
            agent.log().lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>();
        let of_id = lines.unwrap().into_iter().filter(|line| line["fields"]["request"] == id);
        of_id.map(|line| line["fields"]["message"].as_str().unwrap().to_owned()).collect()
    };
    let own = told(&agents[0], "call-of-the-root");
    assert_eq!(
        own,
        ["a start was ordered", "the origin is read for a request", "a start is ready or has ended"]
    );
    // What the root does not have it reads from the origin, in the child's name as well.
    let for_child = told(&agents[0], "call-of-the-child");
    assert_eq!(for_child.first().map(String::as_str), Some("a child reads for a request"));
    assert_eq!(
        told(&agents[1], "call-of-the-child"),
        ["a start was ordered", "a start is ready or has ended"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_requests_survive_the_killing_of_the_agent() {
    let world = World::new().await;
    let big = noise(4, 24 << 20);
    let mut files = website(&big);
    files.push(("www/cgi-bin/sum", 0o755, b"#!/bin/sh\necho; busybox md5sum /www/big\n".to_vec()));
    let image = world.image("web", &files, SERVE);
    let mut agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    // A request that reads the whole file is under way inside the container when the agent dies: its
    // connection goes with the agent, the reading does not.
    let reading = world.get(&session, "vm-1", "s1", "/cgi-bin/sum");
    let killing = async {
        let plain = plain_path(&agent.data);
        patiently(async {
            while allocated(&plain) < 6 << 20 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        agent.kill();
    };
    let (cut, ()) = tokio::join!(reading, killing);
    assert!(cut.is_err(), "the request outlived the agent: kill it earlier");
    agent.again();
    let session = world.session("vm-1").await;
    assert_eq!(session.hello.instances.len(), 1);
    assert_eq!(world.get(&session, "vm-1", "s1", "/").await, Ok(Bytes::from_static(b"hello")));
    let sum = world.get(&session, "vm-1", "s1", "/cgi-bin/sum").await.unwrap();
    let expected = md5_of(&big);
    assert!(sum.starts_with(expected.as_bytes()), "{sum:?}, not {expected}");
}

fn plain_path(data: &std::path::Path) -> std::path::PathBuf {
    let images = std::fs::read_dir(data.join("images")).unwrap();
    let mut files = images.map(|entry| entry.unwrap().path().join("plain"));
    files.find(|plain| plain.exists()).unwrap() // the holder's mount point is there too
}

fn allocated(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

fn md5_of(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let output = std::process::Command::new("md5sum").arg(file.path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..32].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_rots_on_the_parents_disk_reaches_nobody() {
    let world = World::new().await;
    let big = noise(5, 6 << 20);
    let image = world.image("web", &website(&big), SERVE);
    // Nothing stays in memory, so that the parent must read its disk for the child.
    let forgetful = [("FAASNET__TRANSFER__MEMORY_CACHE_BYTES", "0")];
    let _parent = Agent::start(&world, "vm-1", &forgetful);
    let _child = Agent::start(&world, "vm-2", &[]);
    let (mut root, mut child) = (world.session("vm-1").await, world.session("vm-2").await);
    root.orders.send(world.order("s1", &image, "vm-1", &root, vec![Upstream::Origin])).unwrap();
    root.ready("s1").await;
    assert_eq!(world.get(&root, "vm-1", "s1", "/big").await, Ok(big.clone().into()));
    let stored = plain_path(&_parent.data).with_file_name("stored");
    let file = std::fs::File::options().write(true).open(stored).unwrap();
    for block in 0..image.blob_bytes / (512 << 10) {
        file.write_all_at(b"rotten", block * (512 << 10) + 1000).unwrap();
    }
    child.orders.send(world.order("s2", &image, "vm-2", &child, vec![root.upstream("vm-1")])).unwrap();
    child.ready("s2").await;
    assert_eq!(world.get(&child, "vm-2", "s2", "/big").await, Ok(big.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_origin_fails_the_start_with_a_reason() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(6, 2 << 20)), SERVE);
    let blob = world.folder.path().join("origin/blobs/sha256").join(image.blob_digest.hex());
    std::fs::File::options().write(true).open(blob).unwrap().write_all_at(&[0; 4096], 10).unwrap();
    let _agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    let ToAgent::Start(mut order) = world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])
    else {
        unreachable!("an order to start")
    };
    order.ready_deadline_ms = 2_000;
    session.orders.send(ToAgent::Start(order)).unwrap();
    let reason = session.ended("s1").await;
    assert!(matches!(reason, EndReason::ImageUnavailable(_)), "{reason:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_container_ended_is_told() {
    let world = World::new().await;
    let _agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    let cases = [
        ("exits", "exit 7", EndReason::Exited(Exit::Code(7))),
        ("sleeps", "exec busybox sleep 1000", EndReason::NotReady),
        ("eats", "exec busybox tail /dev/zero", EndReason::Exited(Exit::OutOfMemory)),
    ];
    for (name, command, expected) in cases {
        let image = world.image(name, &[], command);
        let ToAgent::Start(mut order) = world.order(name, &image, "vm-1", &session, vec![Upstream::Origin])
        else {
            unreachable!("an order to start")
        };
        order.ready_deadline_ms = if name == "sleeps" { 3_000 } else { 30_000 };
        order.memory_bytes = 32 << 20;
        session.orders.send(ToAgent::Start(order)).unwrap();
        assert_eq!(session.ended(name).await, expected, "{name}");
    }
    let missing = world.image("missing", &[], "exit 0");
    let ToAgent::Start(mut order) =
        world.order("missing", &missing, "vm-1", &session, vec![Upstream::Origin])
    else {
        unreachable!("an order to start")
    };
    order.image.runtime.cmd = vec!["/no/such/program".into()];
    session.orders.send(ToAgent::Start(order)).unwrap();
    let reason = session.ended("missing").await;
    assert!(matches!(&reason, EndReason::RunFailed(why) if why.contains("/no/such/program")), "{reason:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_capability_of_the_manager_opens_a_tree() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(7, 1 << 20)), SERVE);
    let _agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    let (dialer, identity) = world.stranger("vm-9");
    let key_hash = faasnet::net::identity::Peer::of(&identity.certificate).unwrap().key_hash;
    let tree = tree_of(&image);
    let vm = "vm-9".parse().unwrap();
    let good = world.capabilities.issue(&tree, &vm, &key_hash, in_an_hour());
    let mut forged = good.clone();
    forged.signature[0] ^= 1;
    let mut elsewhere = tree.clone();
    elsewhere.image = image.source;
    let cases = [
        (tree.clone(), forged, Some(Refusal::Capability)),
        (
            tree.clone(),
            world.capabilities.issue(&tree, &vm, &[0; 32], in_an_hour()),
            Some(Refusal::Capability),
        ),
        (tree.clone(), world.capabilities.issue(&tree, &vm, &key_hash, 1000), Some(Refusal::Capability)),
        (
            tree.clone(),
            world.capabilities.issue(&elsewhere, &vm, &key_hash, in_an_hour()),
            Some(Refusal::Capability),
        ),
        (
            elsewhere.clone(),
            world.capabilities.issue(&elsewhere, &vm, &key_hash, in_an_hour()),
            Some(Refusal::NotHeld),
        ),
        (tree.clone(), good, None),
    ];
    for (tree, capability, expected) in cases {
        let stream =
            dialer.vm(&"vm-1".parse().unwrap(), session.hello.address, Purpose::Blocks).await.unwrap();
        let (reading, mut writing) = tokio::io::split(stream);
        let open = ToParent::Open { version: PROTOCOL_VERSION, tree, capability };
        framed::write(&mut writing, &open, &[]).await.unwrap();
        let mut frames = FrameReader::<_, FromParent>::new(reading, FRAME);
        let answer = frames.expect(PATIENCE).await.unwrap().header;
        match expected {
            Some(reason) => assert_eq!(answer, FromParent::Refused { reason }),
            None => {
                assert_eq!(answer, FromParent::Opened);
                let want = ToParent::Want {
                    request: None,
                    blocks: vec![BlockId(0)],
                    urgency: Urgency::Demand,
                    path: vec![vm.clone()],
                    reach: Reach::Held,
                };
                framed::write(&mut writing, &want, &[]).await.unwrap();
                assert_eq!(
                    frames.expect(PATIENCE).await.unwrap().header,
                    FromParent::Block { block: BlockId(0) }
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_joins_only_with_a_right_token_and_its_own_folder() {
    let world = World::new().await;
    let mut stranger =
        Agent::start_with(&world, "vm-2", world.folder.path().join("vm-2"), &bad_token(&world), &[]);
    assert!(!stranger.ends().await);
    assert!(stranger.log().contains("join token is wrong"), "{}", stranger.log());
    let mut first = Agent::start(&world, "vm-1", &[]);
    world.session("vm-1").await;
    let mut second = Agent::start(&world, "vm-1", &[]);
    assert!(!second.ends().await);
    assert!(second.log().contains("another agent uses the data folder"), "{}", second.log());
    assert!(second.log().contains("add --replace"), "{}", second.log());
    first.terminate();
    assert!(first.ends().await);
    let mut renamed = Agent::start_with(&world, "vm-7", first.data.clone(), &world.token, &[]);
    assert!(!renamed.ends().await);
    assert!(renamed.log().contains("belongs to VM vm-1"), "{}", renamed.log());
    for agent in [stranger, second, renamed, first] {
        std::mem::forget(agent); // they have ended, and there is no holder to end
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_when_an_agent_is_told_to_end() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(8, 1 << 20)), SERVE);
    let mut agent = Agent::start(&world, "vm-1", &[]);
    let mut session: Session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    agent.terminate();
    assert!(agent.ends().await);
    assert!(!agent.data.join("holder.sock").exists());
    let folder = agent.data.to_str().unwrap().to_owned();
    let processes: Vec<String> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("cmdline")).ok())
        .filter(|command| command.contains(&folder))
        .collect();
    assert_eq!(processes, Vec::<String>::new());
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&folder));
    std::mem::forget(agent);
}

/// Ends a start of `image` because the cache is full, leaves its tree, and starts `small` in its room.
async fn a_full_cache_is_told_and_survived(world: &World, variables: &[(&str, &str)]) {
    let hungry = "busybox md5sum /www/big; exec busybox httpd -f -p 127.0.0.1:$PORT -h /www";
    let image = world.image("hungry", &website(&noise(9, 24 << 20)), hungry);
    let small = world.image("small", &website(b""), SERVE);
    let _agent = Agent::start(world, "vm-1", variables);
    let mut session = world.session("vm-1").await;
    let ToAgent::Start(mut order) = world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])
    else {
        unreachable!("an order to start")
    };
    // It does not end because of its deadline.
    order.ready_deadline_ms = u64::try_from(10 * PATIENCE.as_millis()).unwrap();
    session.orders.send(ToAgent::Start(order.clone())).unwrap();
    let reason = session.ended("s1").await;
    let EndReason::ImageUnavailable(why) = &reason else { panic!("{reason:?}") };
    assert!(why.contains("free space") && why.contains("transfer.disk_cache_bytes"), "{why}");
    session.orders.send(ToAgent::Leave { tree: order.place.tree, epoch: order.place.epoch }).unwrap();
    session.orders.send(world.order("s2", &small, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s2").await;
    assert_eq!(world.get(&session, "vm-1", "s2", "/").await, Ok(Bytes::from_static(b"hello")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_at_its_limit_fails_the_start_with_a_reason() {
    let world = World::new().await;
    let limit = ("FAASNET__TRANSFER__DISK_CACHE_BYTES", "12582912");
    a_full_cache_is_told_and_survived(&world, &[limit]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_start_with_a_reason() {
    let world = World::new().await;
    let _disk = SmallDisk::at(world.folder.path().join("vm-1"), "12m");
    a_full_cache_is_told_and_survived(&world, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_left_a_tree_serves_it_until_its_last_instance_ends_and_then_keeps_the_image() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(10, 1 << 20)), SERVE);
    let agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    let (dialer, identity) = world.stranger("vm-9");
    let key_hash = faasnet::net::identity::Peer::of(&identity.certificate).unwrap().key_hash;
    let (tree, vm) = (tree_of(&image), "vm-9".parse().unwrap());
    let capability = world.capabilities.issue(&tree, &vm, &key_hash, in_an_hour());
    let stream = dialer.vm(&"vm-1".parse().unwrap(), session.hello.address, Purpose::Blocks).await.unwrap();
    let (reading, mut writing) = tokio::io::split(stream);
    let open = ToParent::Open { version: PROTOCOL_VERSION, tree: tree.clone(), capability };
    framed::write(&mut writing, &open, &[]).await.unwrap();
    let mut frames = FrameReader::<_, FromParent>::new(reading, FRAME);
    assert_eq!(frames.expect(PATIENCE).await.unwrap().header, FromParent::Opened);
    let epoch = faasnet_actors::id::Epoch { term: 1, counter: 2 };
    session.orders.send(ToAgent::Leave { tree, epoch }).unwrap();
    let (urgency, reach) = (Urgency::Demand, Reach::Held);
    let want = ToParent::Want { request: None, blocks: vec![BlockId(0)], urgency, path: vec![vm], reach };
    framed::write(&mut writing, &want, &[]).await.unwrap();
    assert_eq!(frames.expect(PATIENCE).await.unwrap().header, FromParent::Block { block: BlockId(0) });
    session.orders.send(ToAgent::Stop { start: "s1".parse().unwrap() }).unwrap();
    assert_eq!(session.ended("s1").await, EndReason::Stopped);
    assert!(!matches!(patiently(frames.next()).await, Ok(Some(_))), "the child is still served");
    let is_left = || {
        std::fs::read_dir(agent.data.join("images")).unwrap().any(|folder| {
            let folder = folder.unwrap().path();
            folder.join("left").exists() && !folder.join("record").exists()
        })
    };
    patiently(async {
        while !is_left() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_goes_from_one_tenant_to_the_next_with_the_same_image() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(11, 1 << 20)), SERVE);
    let _agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    session.orders.send(ToAgent::Stop { start: "s1".parse().unwrap() }).unwrap();
    session.ended("s1").await;
    // The order to leave the first tenant's tree is not there yet.
    for start in ["s2", "s3"] {
        let ToAgent::Start(mut order) = world.order(start, &image, "vm-1", &session, vec![Upstream::Origin])
        else {
            unreachable!("an order to start")
        };
        order.place.tree.tenant = "other".parse().unwrap();
        order.place.capability = world.capability(&order.place.tree, &session, "vm-1");
        session.orders.send(ToAgent::Start(order)).unwrap();
        session.ready(start).await;
        assert_eq!(world.get(&session, "vm-1", start, "/").await, Ok(Bytes::from_static(b"hello")));
    }
}
