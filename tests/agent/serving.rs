//! An agent that serves children: what is read first is sent first, and its memory does not grow.

use crate::{
    SERVE,
    child::Asking,
    noise, website,
    world::{Agent, World, patiently},
};
use faasnet_actors::{
    id::BlockId,
    wire::{control::Upstream, peer::Urgency},
};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_demand_overtakes_megabytes_that_were_asked_for_ahead() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(21, 40 << 20)), SERVE);
    let _agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    let mut child = Asking::open(&world, "vm-9", &image, &session).await.unwrap();
    child.take_all(16).await.unwrap(); // the agent has everything now
    let demanded = BlockId(child.index.block_count() - 2);
    child.ask((1..61).map(BlockId).collect(), Urgency::Prefetch).await.unwrap();
    for _ in 0..10 {
        child.next_block().await.unwrap();
    }
    let mut order = Vec::new();
    child.ask(vec![demanded], Urgency::Demand).await.unwrap();
    while order.last() != Some(&demanded) {
        order.push(child.next_block().await.unwrap().0);
    }
    // What the kernel of the reader holds, and what was on its way; 50 were asked for before it.
    assert!(order.len() <= 16, "{} blocks came before it", order.len());
    for _ in 10 + order.len()..61 {
        child.next_block().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_two_children_stays_small_however_slowly_they_read() {
    const MOST: u64 = 64 << 20;
    let world = World::new().await;
    let image = world.image("web", &website(&noise(22, 160 << 20)), SERVE);
    let agents = [Agent::start(&world, "vm-1", &[]), Agent::start(&world, "vm-2", &[])];
    let (mut root, mut middle) = (world.session("vm-1").await, world.session("vm-2").await);
    root.orders.send(world.order("s1", &image, "vm-1", &root, vec![Upstream::Origin])).unwrap();
    middle.orders.send(world.order("s2", &image, "vm-2", &middle, vec![root.upstream("vm-1")])).unwrap();
    root.ready("s1").await;
    middle.ready("s2").await;
    let mut fast = Asking::open(&world, "vm-8", &image, &middle).await.unwrap();
    let mut slow = Asking::open(&world, "vm-9", &image, &middle).await.unwrap();
    // Asks for as much as it may, and reads nothing until the other one has everything.
    slow.ask((1..61).map(BlockId).collect(), Urgency::Prefetch).await.unwrap();
    let taking = tokio::spawn(async move { fast.take_all(32).await.unwrap() });
    let (mut samples, mut look) = (Vec::new(), tokio::time::interval(Duration::from_millis(20)));
    while !taking.is_finished() {
        samples.push(agents[1].resident_bytes().1);
        look.tick().await;
    }
    assert_eq!(patiently(taking).await.unwrap(), image.blob_bytes);
    for _ in 0..60 {
        slow.next_block().await.unwrap();
        samples.push(agents[1].resident_bytes().1);
    }
    let most = samples.iter().max().unwrap();
    assert!(*most < MOST, "{} MiB", most >> 20);
    let (first, last) = samples.split_at(samples.len() / 2);
    let growth = last.iter().max().unwrap().saturating_sub(*first.iter().max().unwrap());
    assert!(growth < 16 << 20, "it grows: {} MiB", growth >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_asks_for_one_block_ten_thousand_times_holds_up_nobody() {
    const TIMES: usize = 10_000;
    let world = World::new().await;
    let image = world.image("web", &website(&noise(23, 16 << 20)), SERVE);
    let agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    let mut other = Asking::open(&world, "vm-8", &image, &session).await.unwrap();
    let mut greedy = Asking::open(&world, "vm-9", &image, &session).await.unwrap();
    let (block, last) = (BlockId(1), BlockId(other.index.block_count() - 1));
    let before = agent.resident_bytes().1;
    // None of the answers is read, and they would be gigabytes.
    for _ in 0..TIMES {
        patiently(greedy.ask(vec![block], Urgency::Demand)).await.unwrap();
    }
    assert_eq!(other.take_all(32).await.unwrap(), image.blob_bytes);
    let grown = agent.resident_bytes().1.saturating_sub(before);
    assert!(grown < 32 << 20, "{} MiB", grown >> 20);
    let until_next = async |greedy: &mut Asking| {
        greedy.ask(vec![last], Urgency::Demand).await.unwrap();
        let mut answers = 0;
        while greedy.next_block().await.unwrap().0 != last {
            answers += 1;
        }
        answers
    };
    // It gets on when it reads at last. While an answer waits to be sent, another question for it is the same one.
    let answers = until_next(&mut greedy).await;
    assert!((1..=TIMES).contains(&answers), "{answers} times the same block");
    greedy.ask(vec![block; TIMES], Urgency::Demand).await.unwrap();
    let answers = until_next(&mut greedy).await;
    assert!((1..=16).contains(&answers), "{answers} times the same block for one question");
}
