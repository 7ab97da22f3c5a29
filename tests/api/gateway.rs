//! Requests on their way to instances that are real HTTP servers, or sockets that misbehave.

use super::{
    control::{OTHER_START, START},
    world::{PATIENCE, World},
};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use bytes::Bytes;
use faasnet_actors::scheduler::Located;
use futures::StreamExt;
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream_of::receiver_stream;

/// A stream over a channel, without a crate for it.
mod tokio_stream_of {
    use super::*;

    pub fn receiver_stream(
        receiver: mpsc::Receiver<Bytes>,
    ) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Send {
        futures::stream::unfold(receiver, async |mut receiver| Some((Ok(receiver.recv().await?), receiver)))
    }
}

fn instance(start: &str, address: SocketAddr) -> Located {
    Located { start: start.parse().expect("valid"), vm: "vm-1".parse().expect("valid"), address }
}

/// A server that answers with what it got.
async fn echo() -> Located {
    async fn answer(request: HttpRequest, body: Bytes) -> HttpResponse {
        let headers: serde_json::Map<String, Value> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), json!(value.to_str().expect("text"))))
            .collect();
        HttpResponse::Created()
            .insert_header(("x-answer", "yes"))
            .insert_header(("keep-alive", "timeout=5"))
            .append_header(("set-cookie", "a=1"))
            .append_header(("set-cookie", "b=2"))
            .json(json!({
                "method": request.method().as_str(),
                "uri": request.uri().to_string(),
                "headers": headers,
                "body": String::from_utf8_lossy(&body),
            }))
    }
    let server = HttpServer::new(|| {
        App::new()
            .route("/empty", web::to(async || HttpResponse::NoContent().finish()))
            .route("/length", web::to(async || HttpResponse::Ok().body("12345")))
            .default_service(web::to(answer))
    })
    .workers(1)
    .disable_signals()
    .bind("127.0.0.1:0")
    .expect("bound");
    let address = server.addrs()[0];
    actix_web::rt::spawn(server.run());
    instance(START, address)
}

/// A server that hands each connection to `serve`, and counts them.
async fn raw<F>(
    start: &str,
    serve: impl Fn(BufReader<TcpStream>) -> F + 'static,
) -> (Located, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let count = Arc::new(AtomicUsize::new(0));
    let connections = Arc::clone(&count);
    actix_web::rt::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            actix_web::rt::spawn(serve(BufReader::new(stream)));
        }
    });
    (instance(start, address), count)
}

async fn read_head(stream: &mut BufReader<TcpStream>) {
    let mut line = String::new();
    while stream.read_line(&mut line).await.expect("read") > 2 {
        line.clear();
    }
}

async fn code(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    let problem: Value = response.json().await.expect("a problem");
    (status, problem["code"].as_str().expect("a code").to_owned())
}

#[actix_web::test]
async fn a_request_passes_but_for_what_is_the_gateways() {
    let world = World::with(vec![echo().await], |_| {}).await;
    let response = world
        .as_admin("PATCH", "/fn/app/a%2Fb//c?x=1&y=%20")
        .header("x-own", "kept")
        .header("x-hop", "dropped")
        .header("connection", "x-hop")
        .header("faasnet-tenant", "default")
        .header("x-request-id", "r-1")
        .header("host", "app.example")
        .body("hello")
        .send()
        .await
        .expect("answered");
    assert_eq!(response.status(), 201);
    let headers = response.headers().clone();
    assert_eq!(
        (&headers["faasnet-start"], &headers["faasnet-vm"]),
        (&START.parse().expect("text"), &"vm-1".parse().expect("text"))
    );
    assert_eq!(
        (&headers["x-answer"], &headers["x-request-id"]),
        (&"yes".parse().expect("text"), &"r-1".parse().expect("text"))
    );
    assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
    assert!(!headers.contains_key("keep-alive"));

    let seen: Value = response.json().await.expect("JSON");
    assert_eq!(seen["method"], "PATCH");
    assert_eq!(seen["uri"], "/a%2Fb//c?x=1&y=%20");
    assert_eq!(seen["body"], "hello");
    let wanted = [
        ("x-own", json!("kept")),
        ("x-hop", Value::Null),
        ("authorization", Value::Null),
        ("faasnet-tenant", Value::Null),
        ("host", json!("app.example")),
        ("content-length", json!("5")),
        ("x-request-id", json!("r-1")),
        ("x-forwarded-for", json!("127.0.0.1")),
        ("x-forwarded-proto", json!("http")),
        ("x-forwarded-host", json!("app.example")),
    ];
    for (name, value) in wanted {
        assert_eq!(seen["headers"].get(name).unwrap_or(&Value::Null), &value, "{name}");
    }
    world.wait_for_places(0).await;
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
    let body = reqwest::Body::wrap_stream(receiver_stream(receiver));
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
async fn a_client_that_leaves_takes_its_request_along() {
    let (left, mut instance_left) = mpsc::channel(1);
    // Begins to answer requests for /begun only; tells when the gateway has hung up.
    let (located, _) = raw(START, move |mut stream| {
        let left = left.clone();
        async move {
            let mut line = String::new();
            stream.read_line(&mut line).await.expect("read");
            read_head(&mut stream).await;
            if line.contains("/begun") {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nbegun").await.expect("written");
            }
            let _ = stream.read(&mut [0]).await;
            let _ = left.send(()).await;
        }
    })
    .await;
    let world = World::with(vec![located], |_| {}).await;
    for path in ["/fn/app/silent", "/fn/app/begun"] {
        let mut client = TcpStream::connect(world.address()).await.expect("connected");
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n", world.admin);
        client.write_all(head.as_bytes()).await.expect("sent");
        world.wait_for_places(1).await;
        if path.ends_with("begun") {
            let mut begun = Vec::new();
            while !begun.ends_with(b"begun\r\n") {
                assert_ne!(client.read_buf(&mut begun).await.expect("read"), 0);
            }
        }
        drop(client);
        world.wait_for_places(0).await;
        tokio::time::timeout(PATIENCE, instance_left.recv()).await.expect("the connection is closed");
    }
}

#[actix_web::test]
async fn an_instance_that_does_not_begin_to_answer_ends_in_504() {
    let (silent, _) = raw(START, async |mut stream| {
        read_head(&mut stream).await;
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let world = World::with(vec![silent], |settings| settings.request_deadline_ms = 100).await;
    let response = world.as_admin("GET", "/fn/app/").send().await.expect("answered");
    assert_eq!(code(response).await, (504, "deadline_exceeded".into()));
    world.wait_for_places(0).await;

    let world = World::with(vec![], |settings| settings.request_deadline_ms = 100).await;
    let response = world.as_admin("GET", "/fn/app/").send().await.expect("answered");
    assert_eq!(code(response).await, (504, "deadline_exceeded".into()));
}

#[actix_web::test]
async fn a_response_that_falls_silent_is_cut() {
    let (silent, _) = raw(START, async |mut stream| {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.expect("written");
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let world = World::with(vec![silent], |settings| settings.body_idle_ms = 100).await;
    let response = world.as_admin("GET", "/fn/app/").send().await.expect("begun");
    assert!(response.bytes().await.is_err());
    world.wait_for_places(0).await;
}

#[actix_web::test]
async fn what_may_be_repeated_is_repeated_once() {
    let closing = async || raw(START, async |mut stream| read_head(&mut stream).await).await;
    let (located, connections) = closing().await;
    let world = World::with(vec![located], |_| {}).await;
    let get = world.as_admin("GET", "/fn/app/").send().await.expect("answered");
    assert_eq!(code(get).await, (502, "instance_closed".into()));
    assert_eq!(connections.swap(0, Ordering::SeqCst), 2);
    let post = world.as_admin("POST", "/fn/app/").send().await.expect("answered");
    assert_eq!(code(post).await, (502, "instance_closed".into()));
    assert_eq!(connections.swap(0, Ordering::SeqCst), 1, "a POST may have had its effect");
    let put = world.as_admin("PUT", "/fn/app/").body("spent").send().await.expect("answered");
    assert_eq!(code(put).await, (502, "instance_closed".into()));
    assert_eq!(connections.load(Ordering::SeqCst), 1, "its body is spent");
    world.wait_for_places(0).await;
}

#[actix_web::test]
async fn an_instance_that_is_gone_is_replaced_by_another() {
    let unused = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let gone = instance(OTHER_START, unused.local_addr().expect("bound"));
    drop(unused);
    let world = World::with(vec![gone, echo().await], |_| {}).await;
    let response = world.as_admin("POST", "/fn/app/").body("kept").send().await.expect("answered");
    assert_eq!(response.headers()["faasnet-start"], START);
    assert_eq!(response.json::<Value>().await.expect("JSON")["body"], "kept");

    let pinned = world.as_admin("GET", "/fn/app/").header("faasnet-start", OTHER_START);
    assert_eq!(code(pinned.send().await.expect("answered")).await, (502, "instance_refused".into()));
    world.wait_for_places(0).await;
}

#[actix_web::test]
async fn one_instance_can_be_chosen() {
    let other = Located { start: OTHER_START.parse().expect("valid"), ..echo().await };
    let world = World::with(vec![echo().await, other], |_| {}).await;
    for start in [START, OTHER_START, START, START] {
        let request = world.as_admin("GET", "/fn/app/").header("faasnet-start", start);
        assert_eq!(request.send().await.expect("answered").headers()["faasnet-start"], start);
    }
    let send = async |start: &str| {
        let request = world.as_admin("GET", "/fn/app/").header("faasnet-start", start);
        code(request.send().await.expect("answered")).await
    };
    assert_eq!(send("unknown").await, (404, "not_found".into()));
    assert_eq!(send("NO/ID").await, (400, "invalid".into()));
}

#[actix_web::test]
async fn upgrades_are_refused_clearly() {
    let world = World::with(vec![echo().await], |_| {}).await;
    let upgrade =
        |to| world.as_admin("GET", "/fn/app/").header("connection", "upgrade").header("upgrade", to);
    let websocket = upgrade("websocket").send().await.expect("answered");
    assert_eq!(code(websocket).await, (501, "upgrade_not_supported".into()));
    assert_eq!(upgrade("h2c").send().await.expect("answered").status(), 201);
}

#[actix_web::test]
async fn many_requests_at_once_each_get_their_own_answer() {
    let world = World::with(vec![echo().await], |_| {}).await;
    let one = async |number: usize| {
        let response =
            world.as_admin("POST", &format!("/fn/app/{number}")).body(number.to_string()).send().await;
        let seen: Value = response.expect("answered").json().await.expect("JSON");
        assert_eq!((&seen["uri"], &seen["body"]), (&json!(format!("/{number}")), &json!(number.to_string())));
    };
    futures::future::join_all((0..100).map(one)).await;
    world.wait_for_places(0).await;
}
