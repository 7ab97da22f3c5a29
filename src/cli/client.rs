//! The HTTP client of the verbs.

use super::failure::Failure;
use crate::http::{PROBLEM_JSON, Problem, TENANT_HEADER};
use bytes::Bytes;
use faasnet_actors::id::TenantId;
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use std::{error::Error, time::Duration};

/// A manager that does not take a connection within this time does not run.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For one question to the API; above the manager's own deadlines.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
    tenant: Option<TenantId>,
}

impl Client {
    pub fn new(url: String, token: String, tenant: Option<TenantId>) -> Result<Self, Failure> {
        // The API is named exactly: no proxy of the environment, no redirect to elsewhere.
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| Failure::Usage(chain(&error)))?;
        Ok(Self { http, url, token, tenant })
    }

    pub fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    /// A request to a path of the API, with all that each of them has.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token);
        if let Some(tenant) = &self.tenant {
            request = request.header(TENANT_HEADER, tenant.as_str());
        }
        request
    }

    pub async fn get(&self, path: &str) -> Result<Bytes, Failure> {
        self.call(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Result<Bytes, Failure> {
        self.call(self.request(Method::DELETE, path)).await
    }

    pub async fn send(&self, method: Method, path: &str, body: &impl Serialize) -> Result<Bytes, Failure> {
        self.call(self.request(method, path).json(body)).await
    }

    /// Asks the API and returns the body of its answer.
    pub async fn call(&self, request: RequestBuilder) -> Result<Bytes, Failure> {
        let response = self.exchange(request.timeout(CALL_TIMEOUT)).await?;
        let status = response.status();
        let is_problem = is_problem(&response);
        let body = response.bytes().await.map_err(|error| Failure::Answer(chain(&error)))?;
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice(&body) {
            Ok(problem) if is_problem => Err(Failure::Refused(problem)),
            _ => Err(Failure::Answer(format!("status {status}"))),
        }
    }

    /// Sends a request and returns the response as soon as its head is there.
    pub async fn exchange(&self, request: RequestBuilder) -> Result<Response, Failure> {
        request.send().await.map_err(|error| {
            if error.is_builder() {
                return Failure::Usage(format!("the request cannot be made: {}", chain(&error)));
            }
            Failure::Unreachable { url: self.url.clone(), reason: chain(&error.without_url()) }
        })
    }
}

pub fn is_problem(response: &Response) -> bool {
    response.headers().get("content-type").is_some_and(|kind| kind == PROBLEM_JSON)
}

pub async fn problem(response: Response) -> Result<Problem, Failure> {
    response.json().await.map_err(|error| Failure::Answer(chain(&error)))
}

/// The error with its causes: the innermost one is the one that helps.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
