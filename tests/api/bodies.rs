//! Bodies that pass the gateway: streamed, limited, and never cut without a sign.

use super::{
    control::START,
    instances::{code, echo, raw, read_head},
    world::World,
};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

/// The chunks that a test sends, as a body.
fn streamed(receiver: mpsc::Receiver<Bytes>) -> reqwest::Body {
    let next = async |mut receiver: mpsc::Receiver<Bytes>| {
        Some((Ok::<_, std::io::Error>(receiver.recv().await?), receiver))
    };
    reqwest::Body::wrap_stream(futures::stream::unfold(receiver, next))
}

#[actix_web::test]
async fn responses_without_a_body_stay_as_they_are() {
    let world = World::with(vec![echo().await], |_| {}).await;
    let head = world.as_admin("HEAD", "/fn/app/length").send().await.expect("answered");
    assert_eq!(head.headers()["content-length"], "5");
    let empty = world.as_admin("GET", "/fn/app/empty").send().await.expect("answered");
    assert_eq!(empty.status(), 204);
    let get = world.as_admin("GET", "/fn/app/length").send().await.expect("answered");
    assert_eq!(get.headers()["content-length"], "5");
    assert_eq!(get.text().await.expect("text"), "12345");
    let root: Value =
        world.as_admin("GET", "/fn/app").send().await.expect("answered").json().await.expect("JSON");
    assert_eq!(root["uri"], "/");
    world.wait_for_places(0).await;
}

#[actix_web::test]
async fn bodies_stream_in_both_directions_at_once() {
    // Answers each line as soon as it came, while the request goes on.
    let (located, _) = raw(START, async |mut stream| {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("written");
        let mut line = String::new();
        while stream.read_line(&mut line).await.is_ok_and(|length| length > 0) {
            // Lines of the chunked coding are short here; text is marked.
            if line.starts_with('>') {
                stream.write_all(line.as_bytes()).await.expect("written");
            }
            if line.starts_with("0\r") {
                return;
            }
            line.clear();
        }
    })
    .await;
    let world = World::with(vec![located], |_| {}).await;
    let (sender, receiver) = mpsc::channel(1);
    sender.send(Bytes::from_static(b">one\n")).await.expect("sent");
    let body = streamed(receiver);
    let response = world.as_admin("POST", "/fn/app/").body(body).send().await.expect("answered");
    let mut chunks = response.bytes_stream();
    assert_eq!(chunks.next().await.expect("a chunk").expect("whole"), ">one\n");
    sender.send(Bytes::from_static(b">two\n")).await.expect("sent");
    assert_eq!(chunks.next().await.expect("a chunk").expect("whole"), ">two\n");
    drop(sender);
    assert!(chunks.next().await.is_none());
    world.wait_for_places(0).await;
}

#[actix_web::test]
async fn bodies_have_limits_in_both_directions() {
    let world = World::with(vec![echo().await], |settings| {
        settings.request_body_bytes_max = 1000;
        settings.response_body_bytes_max = 20_000;
    })
    .await;
    let post = |body: reqwest::Body| world.as_admin("POST", "/fn/app/").body(body);
    let known = post("x".repeat(1001).into()).send().await.expect("answered");
    assert_eq!(code(known).await, (413, "body_too_large".into()));
    let chunks = futures::stream::iter((0..3).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 500]))));
    let chunked = post(reqwest::Body::wrap_stream(chunks)).send().await.expect("answered");
    assert_eq!(code(chunked).await, (413, "body_too_large".into()));
    let just_fits = post("x".repeat(1000).into()).send().await.expect("answered");
    assert_eq!(just_fits.status(), 201);
    world.wait_for_places(0).await;

    let announced = raw(START, async |mut stream| {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 20001\r\n\r\n").await;
    });
    let world =
        World::with(vec![announced.await.0], |settings| settings.response_body_bytes_max = 20_000).await;
    let response = world.as_admin("GET", "/fn/app/").send().await.expect("answered");
    assert_eq!(code(response).await, (502, "bad_response".into()));

    let endless = raw(START, async |mut stream| {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 1000]).await.is_ok() {}
    });
    let world =
        World::with(vec![endless.await.0], |settings| settings.response_body_bytes_max = 20_000).await;
    let response = world.as_admin("GET", "/fn/app/").send().await.expect("begun");
    assert_eq!(response.status(), 200);
    assert!(response.bytes().await.is_err(), "a response that was cut must not look complete");
    world.wait_for_places(0).await;
}

#[actix_web::test]
async fn a_response_that_falls_silent_is_cut() {
    let heads =
        ["content-length: 10\r\n\r\nhalf", "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", "\r\nhalf"];
    for head in heads {
        let (silent, _) = raw(START, move |mut stream| async move {
            read_head(&mut stream).await;
            let response = format!("HTTP/1.1 200 OK\r\n{head}");
            stream.write_all(response.as_bytes()).await.expect("written");
            let _ = stream.read(&mut [0]).await;
        })
        .await;
        let world = World::with(vec![silent], |settings| settings.body_idle_ms = 100).await;
        let response = world.as_admin("GET", "/fn/app/").send().await.expect("begun");
        let error = response.bytes().await.expect_err("it must not look complete");
        assert!(!error.is_timeout(), "{head:?} was cut by the client: {error}");
        world.wait_for_places(0).await;
    }
}

#[actix_web::test]
async fn a_client_that_does_not_read_does_not_keep_its_place() {
    let (endless, _) = raw(START, async |mut stream| {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    })
    .await;
    let world = World::with(vec![endless], |settings| settings.body_idle_ms = 100).await;
    let mut client = TcpStream::connect(world.address()).await.expect("connected");
    let head = format!("GET /fn/app/ HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n", world.admin);
    client.write_all(head.as_bytes()).await.expect("sent");
    world.wait_for_places(1).await;
    world.wait_for_places(0).await;
    drop(client);
}

#[actix_web::test]
async fn a_response_that_its_instance_cuts_does_not_look_complete() {
    let heads = [
        "content-length: 10\r\n\r\nhalf",
        "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "transfer-encoding: chunked\r\n\r\n4\r\nha",
    ];
    for head in heads {
        let (cutting, _) = raw(START, move |mut stream| async move {
            read_head(&mut stream).await;
            let response = format!("HTTP/1.1 200 OK\r\n{head}");
            stream.write_all(response.as_bytes()).await.expect("written");
        })
        .await;
        let world = World::with(vec![cutting], |_| {}).await;
        let response = world.as_admin("GET", "/fn/app/").send().await.expect("begun");
        assert!(response.bytes().await.is_err(), "{head:?}");
        world.wait_for_places(0).await;
    }
}
