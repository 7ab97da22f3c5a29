//! Requests on their way to instances.

use super::{
    control::{OTHER_START, START},
    instances::{code, echo, instance, raw, read_head},
    world::{PATIENCE, World},
};
use faasnet_actors::scheduler::Located;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

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
async fn a_client_that_leaves_while_it_waits_for_an_instance_waits_no_more() {
    let world = World::new().await;
    for body in ["", "a body that nobody reads yet"] {
        let mut client = TcpStream::connect(world.address()).await.expect("connected");
        let length = format!("content-length: {}", body.len());
        let head = format!("POST /fn/app/ HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}", world.admin);
        client.write_all(format!("{head}\r\n{length}\r\n\r\n{body}").as_bytes()).await.expect("sent");
        world.wait_for_callers(1).await;
        drop(client);
        world.wait_for_callers(0).await;
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
