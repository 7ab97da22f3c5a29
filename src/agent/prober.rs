//! Readiness probes over HTTP on the VM's loopback.

use faasnet_actors::agent::world::Prober;
use futures::future::BoxFuture;
use http_body_util::Empty;
use hyper::{Request, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use std::{
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};
use tokio::net::TcpStream;

pub struct HttpProber;

impl Prober for HttpProber {
    fn probe(&self, port: u16, path: String, timeout: Duration) -> BoxFuture<'static, bool> {
        let probing = tokio::spawn(async move {
            tokio::time::timeout(timeout, answers(port, &path))
                .await
                .is_ok_and(|answer| answer.unwrap_or(false))
        });
        Box::pin(async move { probing.await.unwrap_or(false) })
    }

    fn free_port(&self) -> Option<u16> {
        // The kernel does not give the same port out again soon, so that the container finds it free.
        Some(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?.local_addr().ok()?.port())
    }
}

async fn answers(port: u16, path: &str) -> anyhow::Result<bool> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(HOST, format!("127.0.0.1:{port}"))
        .header("user-agent", "faasnet-probe")
        .body(Empty::<Bytes>::new())?;
    tokio::select! {
        answer = sender.send_request(request) => Ok(answer?.status().as_u16() < 400),
        _ = connection => Ok(false),
    }
}
