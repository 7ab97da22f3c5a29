//! The agent is gone for long: what is there is read on, what is not there fails after its deadline and never hangs.

use super::*;
use faasnet_actors::wire::control::Mode;
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const DEADLINE_MS: u64 = 2000;
/// Says on which port it is reached while no agent forwards requests, and what reading the big file came to.
const PORT: &[u8] = b"#!/bin/sh\necho; echo $PORT\n";
const READ: &[u8] =
    b"#!/bin/sh\necho; busybox cat /www/big 2>&1 >/dev/null; busybox md5sum /www/big 2>/dev/null\n";

fn pages(big: &[u8]) -> Vec<(&'static str, u32, Vec<u8>)> {
    let mut files = website(big);
    files.push(("www/cgi-bin/port", 0o755, PORT.to_vec()));
    files.push(("www/cgi-bin/read", 0o755, READ.to_vec()));
    files
}

/// A container's answer to a GET on its own port.
async fn direct(port: u16, path: &str) -> String {
    let asking = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    let answer = patiently(asking).await;
    let (head, body) = answer.split_once("\r\n\r\n").or_else(|| answer.split_once("\n\n")).unwrap();
    assert!(head.contains("200 OK"), "{answer}");
    body.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_hits_are_read_and_misses_fail_until_one_is_back() {
    let world = World::new().await;
    let deadline = DEADLINE_MS.to_string();
    let limits = [
        ("FAASNET__TRANSFER__STALL_MS", "500"),
        ("FAASNET__HOLDER__READ_DEADLINE_MS", deadline.as_str()),
        // Nothing is fetched before it is read.
        ("FAASNET__TRANSFER__READ_AHEAD_BLOCKS_MAX", "0"),
    ];
    let mut agent = Agent::start(&world, "vm-1", &limits);
    let mut session = world.session("vm-1").await;
    let mut containers = Vec::new();
    for (number, mode) in [(1, Mode::Whole), (2, Mode::Lazy)] {
        let big = noise(90 + number, 16 << 20);
        let image = world.image(&format!("web-{number}"), &pages(&big), SERVE);
        let start = format!("s{number}");
        let order = world.order(&start, &image, "vm-1", &session, vec![Upstream::Origin]);
        let ToAgent::Start(mut order) = order else { unreachable!("an order to start") };
        order.mode = mode;
        session.orders.send(ToAgent::Start(order)).unwrap();
        session.ready(&start).await;
        let port = world.get(&session, "vm-1", &start, "/cgi-bin/port").await.unwrap();
        let port: u16 = std::str::from_utf8(&port).unwrap().trim().parse().unwrap();
        containers.push((start, port, md5_of(&big)));
    }
    let [(_, whole_port, whole_sum), (lazy, lazy_port, lazy_sum)] = &containers[..] else {
        unreachable!("two")
    };

    agent.kill();
    // All of it is there, and nothing of it was read yet: every byte comes from the holder.
    assert!(direct(*whole_port, "/cgi-bin/read").await.starts_with(whole_sum));
    let began = Instant::now();
    let failed = direct(*lazy_port, "/cgi-bin/read").await;
    assert!(began.elapsed() >= Duration::from_millis(DEADLINE_MS), "{:?}", began.elapsed());
    assert!(failed.contains("nput/output error") || failed.contains("I/O error"), "{failed}");
    assert!(!failed.contains(lazy_sum.as_str()));
    // It lives, and what it has read before is there.
    assert_eq!(direct(*lazy_port, "/").await, "hello");
    assert!(direct(*whole_port, "/cgi-bin/read").await.starts_with(whole_sum));

    agent.again();
    let session = world.session("vm-1").await;
    assert_eq!(session.hello.instances.len(), 2);
    assert!(direct(*lazy_port, "/cgi-bin/read").await.starts_with(lazy_sum), "reads work again");
    let read = world.get(&session, "vm-1", lazy, "/cgi-bin/read").await.unwrap();
    assert!(read.starts_with(lazy_sum.as_bytes()), "{read:?}");
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}
