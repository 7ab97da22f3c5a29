//! Instances behind the gateway: real HTTP servers, and sockets that misbehave.

use super::control::START;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use bytes::Bytes;
use faasnet_actors::scheduler::Located;
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{TcpListener, TcpStream},
};

pub fn instance(start: &str, address: SocketAddr) -> Located {
    Located { start: start.parse().expect("valid"), vm: "vm-1".parse().expect("valid"), address }
}

/// A server that answers with what it got.
pub async fn echo() -> Located {
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
pub async fn raw<F>(
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

pub async fn read_head(stream: &mut BufReader<TcpStream>) {
    let mut line = String::new();
    while stream.read_line(&mut line).await.expect("read") > 2 {
        line.clear();
    }
}

pub async fn code(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    let problem: Value = response.json().await.expect("a problem");
    (status, problem["code"].as_str().expect("a code").to_owned())
}
