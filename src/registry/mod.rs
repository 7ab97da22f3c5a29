//! A client for registries (OCI distribution specification 1.1 and Docker's HTTP API V2), used by the
//! origin and by the converter.
//!
//! It is written over reqwest and not over oci-client, because that client follows redirects by
//! reqwest's policy, waits for answers without a bound on the whole, reads manifests and error bodies
//! without a limit, never tries again, drops `Retry-After`, and cannot tell how much of a range had
//! arrived when it was cut short, which the origin counts. Names are parsed by oci-spec, challenges by
//! http-auth, and docker's credentials are found by docker_credential.
//!
//! Invariants: credentials reach only the registry that they belong to and the token server that it
//! names; nothing goes without TLS unless the settings name the host; every answer has a limit in bytes
//! and a deadline; no error or log line holds a secret.

mod auth;
mod blob;
mod blocking;
mod content;
mod credentials;
mod error;
mod manifest;
mod push;
mod reference;
mod referrers;
mod retry;
mod transport;

pub use blob::{BlobStream, RangeAnswer};
pub use blocking::BlockingClient;
pub use content::Content;
pub use error::RegistryError;
pub use manifest::{Descriptor, Manifest};
pub use reference::{Reference, Repository};

use crate::settings::OriginSettings;
use auth::{Access, Auth, Challenge};
use credentials::CredentialStore;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ACCEPT_ENCODING, HeaderMap, HeaderValue},
};
use retry::RetryPolicy;
use std::sync::Arc;
use transport::{Call, Transport};

/// A client for all registries; copies share its connections, tokens and limits.
#[derive(Debug, Clone)]
pub struct RegistryClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    transport: Transport,
    auth: Auth,
    retry: RetryPolicy,
    /// One at a time changes the list of referrers that a fallback tag names.
    fallback_lock: tokio::sync::Mutex<()>,
}

impl RegistryClient {
    /// Makes a client; nothing is connected yet. `seed` decides the jitter of pauses between attempts.
    ///
    /// Fails when a file of `origin.ca_files` cannot be used.
    pub fn new(settings: &OriginSettings, seed: u64) -> Result<Self, RegistryError> {
        let transport = Transport::new(settings)?;
        let credentials = CredentialStore::new(settings.docker_config.clone(), transport.answer_deadline);
        Ok(Self(Arc::new(Inner {
            transport,
            auth: Auth::new(credentials),
            retry: RetryPolicy::new(settings, seed),
            fallback_lock: tokio::sync::Mutex::default(),
        })))
    }

    /// Calls until one attempt succeeds, fails for good, or the attempts of the settings are used up, with
    /// pauses in between. `attempt` is told how many failed before.
    pub async fn retrying<T, F, Answer>(&self, attempt: F) -> Result<T, RegistryError>
    where
        F: FnMut(u32) -> Answer,
        Answer: Future<Output = Result<T, RegistryError>>,
    {
        self.0.retry.run(attempt).await
    }

    fn transport(&self) -> &Transport {
        &self.0.transport
    }

    /// A call to `/v2/<name>/<path>`.
    fn call<'a>(
        &self,
        repository: &'a Repository,
        method: Method,
        path: &str,
        what: String,
    ) -> Result<Call<'a>, RegistryError> {
        let authority = repository.authority();
        let text =
            format!("{}://{authority}/v2/{}/{path}", self.transport().scheme(authority), repository.name());
        let url = Url::parse(&text).map_err(|_| RegistryError::Reference {
            text: repository.to_string(),
            rule: "use a host name that can be part of a URL",
        })?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let deadline = self.transport().answer_deadline;
        Ok(Call {
            registry: repository.registry(),
            what,
            method,
            url,
            headers,
            body: Content::empty(),
            deadline,
        })
    }

    /// Sends a call once, answering a challenge if there is one. The answer is a success.
    async fn send(
        &self,
        call: &Call<'_>,
        repository: &Repository,
        access: Access,
    ) -> Result<Response, RegistryError> {
        let (auth, transport) = (&self.0.auth, self.transport());
        let home = self.call(repository, Method::GET, "", String::new())?.url;
        let slot = auth.slot(repository, access);
        let header = auth.current(&slot, transport, repository, access).await?;
        let response = transport.send(call, &home, header.as_ref()).await?;
        // A host that we were redirected to may not ask for the registry's credentials.
        let is_challenge =
            response.status() == StatusCode::UNAUTHORIZED && response.url().origin() == home.origin();
        if !is_challenge {
            return transport::checked(call, response, transport.answer_deadline).await;
        }
        let challenge = Challenge::of(&response, repository)?;
        drop(response);
        let header = auth.renew(&slot, header, challenge, transport, repository, access).await?;
        let response = transport.send(call, &home, header.as_ref()).await?;
        transport::checked(call, response, transport.answer_deadline).await
    }
}

/// A seed for commands that run once: pauses of processes that were started together differ.
pub fn jitter_seed() -> u64 {
    u64::from(std::process::id())
}
