//! `faasnet agent --replace`: another process takes over while containers read and answer.

use super::*;
use faasnet_actors::wire::handover::{FromPredecessor, ToPredecessor};
use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};
use tokio::net::UnixStream;

/// A page that names the container's process, so that a new container would show, and one that reads a file.
fn pages(big: &[u8]) -> Vec<(&'static str, u32, Vec<u8>)> {
    let mut files = website(big);
    files.push((
        "www/cgi-bin/who",
        0o755,
        b"#!/bin/sh\necho; busybox cut -d' ' -f22 /proc/1/stat; busybox hostname\n".to_vec(),
    ));
    files.push(("www/cgi-bin/sum", 0o755, b"#!/bin/sh\necho; busybox md5sum /www/big\n".to_vec()));
    files
}

/// The agent's process has ended well, and only it: its holder goes on.
async fn ended_well(mut before: Agent) {
    assert!(before.ends().await, "{}", before.log());
    std::mem::forget(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_fails_while_agents_take_each_others_place() {
    let world = World::new().await;
    let big = noise(20, 24 << 20);
    let image = world.image("web", &pages(&big), SERVE);
    let mut agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    let who = world.get(&session, "vm-1", "s1", "/cgi-bin/who").await.unwrap();
    // One request reads the whole file, by blocks that were never there, through all the replacements; others
    // come one behind the other.
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let reading = world.get(&session, "vm-1", "s1", "/cgi-bin/sum");
    let asking = async {
        while !is_over.load(Ordering::Relaxed) {
            let answer = world.get(&session, "vm-1", "s1", "/cgi-bin/who").await;
            assert_eq!(answer.as_ref(), Ok(&who), "request {}", answered.load(Ordering::Relaxed));
            answered.fetch_add(1, Ordering::Relaxed);
        }
    };
    let replacing = async {
        for _ in 0..3 {
            let before = agent.replaced();
            let again = world.session("vm-1").await;
            let [instance] = &again.hello.instances[..] else { panic!("{:?}", again.hello.instances) };
            assert!(instance.ready, "it was ready and has not been away");
            assert_eq!(again.hello.address, session.hello.address);
            let so_far = answered.load(Ordering::Relaxed);
            patiently(async {
                while answered.load(Ordering::Relaxed) < so_far + 3 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
            .await;
            ended_well(before).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let (sum, (), ()) = tokio::join!(reading, asking, replacing);
    assert!(sum.unwrap().starts_with(md5_of(&big).as_bytes()));
    let log = agent.log();
    assert_eq!(log.matches("the agent ends, as it was replaced").count(), 3, "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_under_way_goes_on_in_the_next_process() {
    let world = World::new().await;
    let slow = "busybox sleep 2; exec busybox httpd -f -p 127.0.0.1:$PORT -h /www";
    let image = world.image("slow", &website(&noise(21, 1 << 20)), slow);
    let mut agent = Agent::start(&world, "vm-1", &[]);
    let session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    // Right after the order: whatever has been done by then, the rest is done by the next process.
    let before = agent.replaced();
    let mut again = world.session("vm-1").await;
    if again.hello.instances.is_empty() {
        // The order was still on its way when the session ended; a manager keeps it back.
        again.orders.send(world.order("s1", &image, "vm-1", &again, vec![Upstream::Origin])).unwrap();
    }
    again.ready("s1").await;
    assert_eq!(world.get(&again, "vm-1", "s1", "/").await, Ok(Bytes::from_static(b"hello")));
    ended_well(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hangs_is_killed_and_replaced() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(22, 1 << 20)), SERVE);
    let mut agent = Agent::start(&world, "vm-1", &[("FAASNET__AGENT__REPLACE_MS", "500")]);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    agent.signal(rustix::process::Signal::STOP);
    let mut before = agent.replaced();
    assert!(!before.ends().await, "it was killed");
    std::mem::forget(before);
    let session = world.session("vm-1").await;
    assert!(session.hello.instances[0].ready);
    assert_eq!(world.get(&session, "vm-1", "s1", "/").await, Ok(Bytes::from_static(b"hello")));
    assert!(agent.log().contains("killed the agent before"), "{}", agent.log());
}

async fn say(data: &std::path::Path, message: &ToPredecessor) -> UnixStream {
    let mut stream = UnixStream::connect(data.join("agent.sock")).await.unwrap();
    framed::write(&mut stream, message, &[]).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_outlives_successors_that_fail() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(23, 1 << 20)), SERVE);
    let agent = Agent::start(&world, "vm-1", &[("FAASNET__AGENT__REPLACE_MS", "1000")]);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;

    // One that could not speak with the holder is refused before anything is touched.
    let stream = say(&agent.data, &ToPredecessor::HandOver { version: PROTOCOL_VERSION + 1 }).await;
    let answer = FrameReader::<_, FromPredecessor>::new(stream, FRAME).expect(PATIENCE).await.unwrap();
    assert_eq!(answer.header, FromPredecessor::Refused { version: PROTOCOL_VERSION });
    drop(say(&agent.data, &ToPredecessor::Taken).await);
    assert_eq!(world.get(&session, "vm-1", "s1", "/").await, Ok(Bytes::from_static(b"hello")));

    // One that dies in the middle leaves the agent where it was, and one that is silent too.
    for is_silent in [false, true] {
        let stream = say(&agent.data, &ToPredecessor::HandOver { version: PROTOCOL_VERSION }).await;
        let kept = is_silent.then_some(stream);
        let session = world.session("vm-1").await;
        assert!(session.hello.instances[0].ready);
        assert_eq!(world.get(&session, "vm-1", "s1", "/").await, Ok(Bytes::from_static(b"hello")));
        drop(kept);
    }
    assert_eq!(agent.log().matches("the other process gave up: we go on").count(), 2, "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_work_cost_the_agent_nothing() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(24, 1 << 20)), SERVE);
    let agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    for (key, value, named) in [
        ("FAASNET__AGENT__LISTEN", "192.0.2.1:7000", "listening on 192.0.2.1:7000"),
        ("FAASNET__AGENT__LISTEN", "0.0.0.0:7000", "agent.listen must name the address"),
    ] {
        let mut next = Agent::start_replacing(&world, "vm-1", &[(key, value)]);
        assert!(!next.ends().await);
        assert!(next.log().contains(named), "{}", next.log());
        std::mem::forget(next);
        assert_eq!(world.get(&session, "vm-1", "s1", "/").await, Ok(Bytes::from_static(b"hello")));
    }
    assert!(!agent.log().contains("another process takes our place"), "{}", agent.log());
}
