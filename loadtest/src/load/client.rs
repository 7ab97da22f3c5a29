//! The HTTP side of the generator: connections that are used again.

use super::Outcome;
use anyhow::Context;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1::SendRequest, header};
use hyper_util::rt::TokioIo;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Idle connections older than this are not used again: below the server's own limit of 5 s.
const IDLE: Duration = Duration::from_secs(2);

/// What is asked.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// JSON, or nothing.
    pub body: String,
    pub token: String,
    pub tenant: String,
}

impl Target {
    pub fn get(path: impl Into<String>, token: impl Into<String>, tenant: impl Into<String>) -> Self {
        let (path, token, tenant) = (path.into(), token.into(), tenant.into());
        Self { method: Method::GET, path, body: String::new(), token, tenant }
    }
}

/// Without the token: reports and messages are for more eyes than it is.
impl std::fmt::Debug for Target {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {} of {}", self.method, self.path, self.tenant)
    }
}

type Connection = SendRequest<Full<Bytes>>;

#[derive(Clone)]
pub(super) struct Client {
    address: SocketAddr,
    targets: Arc<[Target]>,
    idle: Arc<Mutex<Vec<(Instant, Connection)>>>,
}

impl Client {
    pub(super) fn new(address: SocketAddr, targets: Arc<[Target]>) -> Self {
        Self { address, targets, idle: Arc::default() }
    }

    pub(super) async fn ask(&self, target: usize, deadline: Instant) -> Outcome {
        match tokio::time::timeout_at(deadline, self.exchange(&self.targets[target])).await {
            Ok(Ok((status, has_retry_after))) => Outcome::Answered { status, has_retry_after },
            Ok(Err(error)) => Outcome::Failed(format!("{error:#}")),
            Err(_) => Outcome::TimedOut,
        }
    }

    async fn exchange(&self, target: &Target) -> anyhow::Result<(u16, bool)> {
        let mut connection = self.connection().await?;
        let request = Request::builder()
            .method(&target.method)
            .uri(&target.path)
            .header(header::HOST, self.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {}", target.token))
            .header("faasnet-tenant", &target.tenant);
        let request = match target.body.is_empty() {
            true => request,
            false => request.header(header::CONTENT_TYPE, "application/json"),
        };
        let request = request.body(Full::new(Bytes::from(target.body.clone())))?;
        let response = connection.send_request(request).await.context("send the request")?;
        let status = response.status().as_u16();
        let has_retry_after = response.headers().contains_key(header::RETRY_AFTER);
        let mut body = response.into_body();
        // Dropped piece by piece: nobody looks at it, and it may be long.
        while let Some(piece) = body.frame().await {
            piece.context("read the answer")?;
        }
        self.idle().push((Instant::now(), connection));
        Ok((status, has_retry_after))
    }

    /// The connection that became idle last, or a new one.
    async fn connection(&self) -> anyhow::Result<Connection> {
        while let Some((since, mut connection)) = self.take_idle() {
            if since.elapsed() < IDLE && connection.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        let stream = tokio::net::TcpStream::connect(self.address).await.context("connect")?;
        stream.set_nodelay(true)?;
        let (connection, task) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Its errors are those of the requests on it.
        tokio::spawn(task);
        Ok(connection)
    }

    fn take_idle(&self) -> Option<(Instant, Connection)> {
        self.idle().pop()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, Connection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
