//! The event stream over real sockets: what is sent to whom, and those who misuse it.

use super::world::{PATIENCE, World};
use faasnet_actors::{
    event_log::{Happening, News},
    function_tree::TreeNews,
    id::{Digest, Epoch},
};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        http::{HeaderValue, Request},
        protocol::frame::coding::CloseCode,
    },
};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub fn request(world: &World, query: &str, token: &str) -> Request<()> {
    let url = format!("{}/v1/events{query}", world.url.replace("http:", "ws:"));
    let mut request = url.into_client_request().expect("a request");
    let bearer = HeaderValue::from_str(&format!("Bearer {token}")).expect("text");
    request.headers_mut().insert("authorization", bearer);
    request
}

/// Subscribes, and returns what the server says first.
pub async fn subscribe(world: &World, query: &str, token: &str) -> (Socket, Value) {
    let (mut socket, _) =
        tokio_tungstenite::connect_async(request(world, query, token)).await.expect("subscribed");
    let hello = read(&mut socket).await.remove(0);
    assert_eq!(hello["type"], "hello");
    (socket, hello)
}

/// A subscriber that is only a socket: it does not read by itself, and does not answer pings.
async fn subscribe_raw(world: &World) -> TcpStream {
    let mut silent = TcpStream::connect(world.address()).await.expect("connected");
    let handshake = format!(
        "GET /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: x3JJHMbDL1EzLkh9GBhXDw==\r\n\r\n",
        world.viewer
    );
    silent.write_all(handshake.as_bytes()).await.expect("sent");
    let mut answer = [0; 12];
    silent.read_exact(&mut answer).await.expect("answered");
    assert_eq!(&answer, b"HTTP/1.1 101");
    silent
}

/// What the server answers to somebody who may not subscribe.
pub async fn refused(request: Request<()>) -> (u16, Value) {
    let error = tokio_tungstenite::connect_async(request).await.expect_err("refused");
    let Error::Http(response) = error else { panic!("{error}") };
    let status = response.status().as_u16();
    let body = response.into_body().expect("a problem");
    (status, serde_json::from_slice(&body).expect("JSON"))
}

/// The next message's items.
async fn read(socket: &mut Socket) -> Vec<Value> {
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.expect("in time");
        match message.expect("open").expect("a message") {
            Message::Text(text) => return serde_json::from_str(&text).expect("an array"),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

pub async fn read_until(socket: &mut Socket, number: u64) -> Vec<Value> {
    let mut items = Vec::new();
    while items.last().is_none_or(|item: &Value| item["number"].as_u64() < Some(number)) {
        items.extend(read(socket).await);
    }
    items
}

/// The code with which the server closes.
async fn closed(socket: &mut Socket) -> Option<CloseCode> {
    loop {
        match tokio::time::timeout(PATIENCE, socket.next()).await.expect("in time") {
            Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

/// A VM has left a tree.
fn left(vm: u64) -> Happening {
    let vm = format!("vm-{vm}").parse().expect("name");
    let news = TreeNews::Left { vm, epoch: Epoch::default() };
    Happening::of_tree(Digest::from_bytes([1; 32]), news)
}

fn tell(world: &World, tenant: &str, vm: u64) {
    world.log.teller.tell(News::of(&tenant.parse().expect("name"), left(vm)));
}

#[actix_web::test]
async fn a_subscriber_gets_what_happens_and_can_come_back() {
    let world = World::new().await;
    let (mut socket, hello) = subscribe(&world, "", &world.viewer).await;
    assert_eq!((&hello["stream"], &hello["next"]), (&json!("7.0"), &json!(1)));
    (1..=3).for_each(|vm| tell(&world, "acme", vm));
    let items = read_until(&mut socket, 3).await;
    let vms: Vec<&Value> = items.iter().map(|item| &item["data"]["vm"]).collect();
    assert_eq!(vms, ["vm-1", "vm-2", "vm-3"]);
    drop(socket);

    tell(&world, "acme", 4);
    let (mut socket, hello) = subscribe(&world, "?since=2&stream=7.0&vm=vm-4", &world.viewer).await;
    assert_eq!(hello["next"], 5);
    assert_eq!(read_until(&mut socket, 4).await.len(), 1, "the filter holds for what is replayed");
    let (mut socket, _) = subscribe(&world, "?since=99&stream=6.0", &world.viewer).await;
    let items = read_until(&mut socket, 4).await;
    assert_eq!(items[0], json!({"type": "began", "stream": "7.0"}));
    assert_eq!(items.len(), 5, "the whole new stream");
}

#[actix_web::test]
async fn a_gap_is_told() {
    let world = World::with_events(vec![], |_| {}, |events| events.kept_events_max = 2).await;
    (1..=5).for_each(|vm| tell(&world, "acme", vm));
    let (mut first, _) = subscribe(&world, "?since=4", &world.viewer).await;
    read_until(&mut first, 5).await;
    let (mut socket, _) = subscribe(&world, "?since=0", &world.viewer).await;
    let items = read_until(&mut socket, 5).await;
    assert_eq!(items[0], json!({"type": "lost", "from": 1, "to": 3}));
    assert_eq!(items.len(), 3);
}

#[actix_web::test]
async fn who_is_behind_reads_on_without_a_pause() {
    let rarely = |events: &mut faasnet::settings::EventSettings| {
        (events.interval_ms, events.batch_events_max) = (PATIENCE.as_millis() as u64 * 2, 2);
    };
    let world = World::with_events(vec![], |_| {}, rarely).await;
    (1..=9).for_each(|vm| tell(&world, "acme", vm));
    let all = world.log.handle.read(1, 9, usize::MAX).await.expect("it runs");
    assert_eq!(all.records.len(), 9, "there before anybody subscribes");
    let (mut socket, _) = subscribe(&world, "?since=0", &world.viewer).await;
    assert_eq!(read_until(&mut socket, 9).await.len(), 9);
    let (mut filtered, _) = subscribe(&world, "?since=0&vm=vm-9", &world.viewer).await;
    assert_eq!(read_until(&mut filtered, 9).await.len(), 1);
}

#[actix_web::test]
async fn tenants_get_their_own_events_only() {
    let world = World::new().await;
    let (mut own, _) = subscribe(&world, "", &world.team_a).await;
    let (mut chosen, _) = subscribe(&world, "?tenant=team-b&kind=member_left,start", &world.viewer).await;
    tell(&world, "team-b", 1);
    world.log.teller.tell(News::of_all(left(2)));
    tell(&world, "team-a", 3);
    tell(&world, "team-b", 4);
    assert_eq!(read_until(&mut own, 3).await.len(), 1);
    let chosen = read_until(&mut chosen, 4).await;
    assert_eq!(chosen.iter().map(|item| &item["number"]).collect::<Vec<_>>(), [1, 4]);
}

#[actix_web::test]
async fn changes_and_refusals_are_told() {
    let world = World::with_events(vec![], |_| {}, |events| events.subscribers_max = 2).await;
    let (mut admin, _) = subscribe(&world, "?kind=audit,refused", &world.admin).await;
    let (mut viewer, _) = subscribe(&world, "?kind=audit,refused", &world.viewer).await;
    let spec = json!({"image": "registry.example/app:1"});
    let put = world.as_admin("PUT", "/v1/functions/app").header("x-request-id", "mine").json(&spec);
    assert_eq!(put.send().await.expect("answered").status(), 200);
    let (status, problem) = refused(request(&world, "", &world.viewer)).await;
    assert_eq!((status, &problem["code"]), (503, &json!("too_many_subscribers")));
    let items = read_until(&mut admin, 2).await;
    let change = json!({
        "who": "admin", "role": "admin", "method": "PUT", "path": "/v1/functions/app", "status": 200,
        "request": "mine",
    });
    assert_eq!(items[0]["data"], change);
    assert_eq!(items[1]["data"], json!({"code": "too_many_subscribers", "count": 1}));
    assert_eq!(read_until(&mut viewer, 2).await.len(), 1, "who changed what is for admins");
}

#[actix_web::test]
async fn mistakes_are_told_before_anything_is_subscribed() {
    let world = World::new().await;
    let cases = [
        ("?kind=starts", "there is no kind of event \"starts\"; there are function, "),
        ("?since=7", "since is ahead of the stream, whose last event is 0"),
        ("?stream=seven", "stream must be two numbers"),
        ("?vm=UPPER", "UPPER"),
        ("?wrong=1", "wrong"),
    ];
    for (query, detail) in cases {
        let (status, problem) = refused(request(&world, query, &world.viewer)).await;
        let said = problem["detail"].as_str().expect("text");
        assert!(status == 400 && said.contains(detail), "{query}: {status} {said}");
    }
    let (status, _) = refused(request(&world, "?tenant=team-b", &world.team_a)).await;
    assert_eq!(status, 403);
    let plain = world.as_admin("GET", "/v1/events").send().await.expect("answered");
    assert_eq!(plain.status(), 400);
}

#[actix_web::test]
async fn a_page_of_another_origin_gets_nothing() {
    let world = World::new().await;
    let with_origin = |origin: &str| {
        let mut request = request(&world, "", &world.viewer);
        request.headers_mut().insert("origin", HeaderValue::from_str(origin).expect("text"));
        request
    };
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1", ""] {
        let (status, problem) = refused(with_origin(origin)).await;
        assert_eq!((status, &problem["code"]), (403, &json!("forbidden")), "{origin}");
    }
    tokio_tungstenite::connect_async(with_origin(&world.url)).await.expect("its own page");
}

#[actix_web::test]
async fn who_talks_is_cut_off_and_nobody_else_notices() {
    let world = World::new().await;
    let (mut good, _) = subscribe(&world, "", &world.viewer).await;
    let (mut talks, _) = subscribe(&world, "", &world.viewer).await;
    talks.send(Message::text("hello")).await.expect("sent");
    assert_eq!(closed(&mut talks).await, Some(CloseCode::Policy));
    let (mut huge, _) = subscribe(&world, "", &world.viewer).await;
    // It may be cut off before all of it is sent.
    let _sent = huge.send(Message::binary(vec![0; 1 << 20])).await;
    assert!(matches!(closed(&mut huge).await, None | Some(CloseCode::Protocol)));
    tell(&world, "acme", 1);
    assert_eq!(read_until(&mut good, 1).await.len(), 1);
}

#[actix_web::test]
async fn who_never_reads_is_cut_off_and_nobody_else_notices() {
    let slow = |events: &mut faasnet::settings::EventSettings| {
        (events.send_ms, events.interval_ms, events.kept_events_max) = (200, 1, 100_000);
        (events.subscribers_max, events.waiting_max) = (2, 200_000);
    };
    let world = World::with_events(vec![], |_| {}, slow).await;
    let (mut good, _) = subscribe(&world, "", &world.viewer).await;
    let _silent = subscribe_raw(&world).await;
    // As much as sockets and queues take, and more.
    const EVENTS: u64 = 60_000;
    (1..=EVENTS).for_each(|vm| tell(&world, "acme", vm % 1000));
    let items = read_until(&mut good, EVENTS).await;
    assert_eq!(items.len() as u64, EVENTS, "who reads loses nothing");
    // Its place is free when it has been cut off.
    let free = async {
        loop {
            match tokio_tungstenite::connect_async(request(&world, "", &world.viewer)).await {
                Ok(_) => return,
                Err(Error::Http(response)) => assert_eq!(response.status().as_u16(), 503),
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("its place is free");
}

#[actix_web::test]
async fn subscribers_are_told_that_the_manager_shuts_down() {
    let world = World::new().await;
    let (mut socket, _) = subscribe(&world, "", &world.viewer).await;
    world.ready.send_replace(false);
    assert_eq!(closed(&mut socket).await, Some(CloseCode::Away));
}

#[actix_web::test]
async fn a_deleted_token_ends_its_subscriptions() {
    let world = World::with_events(vec![], |_| {}, |events| events.ping_ms = 20).await;
    let made = world.as_admin("POST", "/v1/tokens").json(&json!({ "name": "guest", "role": "viewer" }));
    let made: Value = made.send().await.expect("answered").json().await.expect("JSON");
    let (mut guest, _) = subscribe(&world, "", made["token"].as_str().expect("text")).await;
    let (mut other, _) = subscribe(&world, "", &world.viewer).await;
    let path = format!("/v1/tokens/{}", made["id"].as_str().expect("text"));
    assert_eq!(world.as_admin("DELETE", &path).send().await.expect("answered").status(), 204);
    assert_eq!(closed(&mut guest).await, Some(CloseCode::Policy));
    tell(&world, "acme", 1);
    read_until(&mut other, 1).await;
}

#[actix_web::test]
async fn who_does_not_answer_pings_is_cut_off() {
    let quick = |events: &mut faasnet::settings::EventSettings| (events.ping_ms, events.idle_ms) = (50, 200);
    let world = World::with_events(vec![], |_| {}, quick).await;
    let mut silent = subscribe_raw(&world).await;
    let mut all = Vec::new();
    tokio::time::timeout(PATIENCE, silent.read_to_end(&mut all)).await.expect("closed").expect("read");
}

#[actix_web::test]
async fn the_command_line_follows_the_stream_and_comes_back() {
    let world = World::new().await;
    tell(&world, "acme", 1);
    let mut command = super::cli::command(&["events", "--since", "0", "--vm", "vm-1"]);
    command.env("FAASNET_API", &world.url).env("FAASNET_TOKEN", &world.viewer);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut line = async || {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("in time");
        line.expect("read").expect("a line")
    };
    assert_eq!(line().await, "22:13:20.000  member_left  vm-1                            left the tree");
    // The subscriber is sent away, and tries again until the manager serves.
    world.ready.send_replace(false);
    let mut errors = BufReader::new(child.stderr.take().expect("piped")).lines();
    let said = tokio::time::timeout(PATIENCE, errors.next_line()).await.expect("in time").expect("read");
    assert_eq!(said.as_deref(), Some("the stream has ended; waiting for the manager"));
    tell(&world, "acme", 2);
    tell(&world, "acme", 1);
    world.ready.send_replace(true);
    assert!(line().await.contains("left the tree"), "what happened meanwhile is shown");
    child.kill().await.expect("killed");

    let wrong = world.cli(&["events", "--kind", "weather"]).await;
    assert_eq!(wrong.code, 1);
    assert!(wrong.err.contains("there is no kind of event \"weather\""), "{}", wrong.err);
}
