//! A client of the HTTP API, inside or outside a bed.

use super::wait_until;
use crate::bed::BedState;
use anyhow::{Context, bail, ensure};
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, body::Bytes, header, http::request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};

/// Longest wait for one answer.
const DEADLINE: Duration = Duration::from_secs(120);
/// Names the instance that a request through the gateway is for.
const START_HEADER: &str = "faasnet-start";
/// Names the tenant that a request is for.
const TENANT_HEADER: &str = "faasnet-tenant";

/// Where the API is, and the token of its administrator.
#[derive(Debug, Clone)]
pub struct Api {
    pub address: SocketAddr,
    pub token: String,
    /// The host of a bed whose network the requests go out from.
    pub from: Option<(BedState, String)>,
}

/// An answer with its whole body.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {}", self.text()))
    }
}

impl Api {
    /// One request on a connection of its own.
    pub fn call(&self, method: &str, path: &str, body: impl Into<Bytes>) -> anyhow::Result<Answer> {
        self.exchange(Request::builder().method(method).uri(path), body.into())
            .with_context(|| format!("{method} {path} on {}", self.address))
    }

    /// The same for a tenant, with a token that is good for it.
    pub fn call_of(
        &self,
        tenant: &str,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answer> {
        let request = Request::builder().method(method).uri(path).header(TENANT_HEADER, tenant);
        self.exchange(request, body.into()).with_context(|| format!("{method} {path} on {}", self.address))
    }

    /// A GET through the gateway, answered by the instance of this start.
    pub fn invoke(&self, function: &str, path: &str, start: &str) -> anyhow::Result<Answer> {
        let request = Request::get(format!("/fn/{function}{path}")).header(START_HEADER, start);
        self.exchange(request, Bytes::new())
            .with_context(|| format!("GET {path} from the instance of start {start}"))
    }

    fn exchange(&self, request: request::Builder, body: Bytes) -> anyhow::Result<Answer> {
        let request = request
            .header(header::HOST, self.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let exchange = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                tokio::time::timeout(DEADLINE, exchange(self.address, request)).await.context("no answer")?
            })
        };
        match &self.from {
            Some((bed, host)) => bed.inside(host, exchange)?,
            None => exchange(),
        }
    }

    /// A JSON answer; any status but success is an error.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.call("GET", path, "")?;
        ensure!(answer.status.is_success(), "GET {path}: {} {}", answer.status, answer.text());
        answer.json()
    }

    /// Asks for more instances and gives the ids of their starts.
    pub fn start(&self, function: &str, count: usize) -> anyhow::Result<Vec<String>> {
        let path = format!("/v1/functions/{function}/starts");
        let answer = self.call("POST", &path, json!({ "count": count }).to_string())?;
        ensure!(answer.status == StatusCode::ACCEPTED, "POST {path}: {} {}", answer.status, answer.text());
        let body = answer.json()?;
        let ids = body["starts"].as_array().context("the answer names no starts")?;
        Ok(ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect())
    }

    /// Waits until the start is ready or has ended, and gives what the API says of it.
    pub fn settled(&self, start: &str, within: Duration) -> anyhow::Result<Value> {
        wait_until(&format!("start {start} to settle"), within, || {
            let seen = self.get(&format!("/v1/starts/{start}"))?;
            let state = seen["state"].as_str().unwrap_or_default();
            Ok(matches!(state, "ready" | "ended").then_some(seen))
        })
    }

    /// Waits until the start is ready; one that ends instead is an error with its reason.
    pub fn ready(&self, start: &str, within: Duration) -> anyhow::Result<Value> {
        let seen = self.settled(start, within)?;
        if seen["state"] != "ready" {
            bail!("start {start} ended: {}", seen["reason"]);
        }
        Ok(seen)
    }
}

async fn exchange(address: SocketAddr, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok(Answer { status, body })
}
