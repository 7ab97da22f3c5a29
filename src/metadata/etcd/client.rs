//! One request to etcd: which endpoint, who asks, and what a bad answer means.

use super::{
    EtcdOptions,
    api::{Authenticate, Authenticated, Refusal},
};
use anyhow::Context;
use faasnet_actors::world::MetadataError;
use reqwest::{Certificate, Client, Identity, Url, header::AUTHORIZATION};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Codes of gRPC that etcd answers with.
const UNAUTHENTICATED: u32 = 16;
/// The caller is wrong, and would be the next time: invalid, not found, forbidden, precondition, out of range.
const LASTING: [u32; 5] = [3, 5, 7, 9, 11];

/// Pause before the endpoints are tried again when none of them answered: an election takes a second.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct EtcdClient {
    http: Client,
    endpoints: Vec<Url>,
    /// The endpoint that answered last, or the one after the one that did not.
    preferred: AtomicUsize,
    credentials: Option<(String, String)>,
    token: watch::Sender<Option<String>>,
    request: Duration,
}

/// Why a request has no usable answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may have been carried out or not, and may be tried again.
    Unknown(String),
    /// It will not be carried out the next time either. The write that finds etcd's space exceeded is applied
    /// all the same, if the space ended between its two checks.
    Refused(MetadataError),
    /// The token has expired, or etcd was restarted.
    Token,
}

impl EtcdClient {
    pub fn new(options: &EtcdOptions) -> anyhow::Result<Self> {
        // Another client of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let endpoints = options.endpoints.iter().map(|endpoint| {
            let url: Url = endpoint.parse().with_context(|| format!("etcd endpoint {endpoint:?}"))?;
            anyhow::ensure!(
                matches!(url.scheme(), "http" | "https"),
                "etcd endpoint {endpoint:?}: use http:// or https://"
            );
            Ok(url)
        });
        let endpoints: Vec<Url> = endpoints.collect::<anyhow::Result<_>>()?;
        anyhow::ensure!(!endpoints.is_empty(), "name at least one address of etcd");
        let mut builder = Client::builder()
            .connect_timeout(options.connect)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            // What a manager keeps goes to nobody else.
            .no_proxy();
        if let Some(path) = &options.ca_file {
            let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            let authorities = Certificate::from_pem_bundle(&text)
                .with_context(|| format!("certificates in {}", path.display()))?;
            builder = builder.tls_certs_only(authorities);
        } else if endpoints.iter().all(|url| url.scheme() == "http") {
            // A machine without any authority can speak without TLS.
            builder = builder.tls_certs_only([]);
        }
        if let Some((certificate, key)) = &options.identity {
            let mut text = fs::read(certificate).with_context(|| certificate.display().to_string())?;
            text.push(b'\n');
            text.extend(fs::read(key).with_context(|| key.display().to_string())?);
            builder = builder.identity(Identity::from_pem(&text).context("the certificate shown to etcd")?);
        }
        Ok(Self {
            http: builder.build().context("the client of etcd")?,
            endpoints,
            preferred: AtomicUsize::new(0),
            credentials: options.credentials.clone(),
            token: watch::Sender::new(None),
            request: options.request,
        })
    }

    /// Asks for what may be asked twice, until the deadline.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        body: &impl Serialize,
        deadline: Instant,
    ) -> Result<T, MetadataError> {
        loop {
            match self.once(method, body, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(trouble) => self.recover(trouble, deadline).await?,
            }
        }
    }

    /// Prepares another attempt, or says why there is none.
    pub async fn recover(&self, trouble: Trouble, deadline: Instant) -> Result<(), MetadataError> {
        let reason = match trouble {
            Trouble::Refused(error) => return Err(error),
            Trouble::Token => match self.authenticate(deadline).await {
                Ok(()) => return Ok(()),
                Err(Trouble::Refused(error)) => return Err(error),
                Err(Trouble::Unknown(reason)) => reason,
                Err(Trouble::Token) => "it does not accept a new token".into(),
            },
            Trouble::Unknown(reason) => reason,
        };
        let next = self.preferred.fetch_add(1, Ordering::Relaxed) + 1;
        if next.is_multiple_of(self.endpoints.len()) {
            tokio::time::sleep(PAUSE).await;
        }
        if Instant::now() < deadline { Ok(()) } else { Err(MetadataError::Unavailable(reason)) }
    }

    async fn authenticate(&self, deadline: Instant) -> Result<(), Trouble> {
        let Some((name, password)) = &self.credentials else {
            let reason = "etcd asks for a user; set metadata.etcd_user".to_owned();
            return Err(Trouble::Refused(MetadataError::Unavailable(reason)));
        };
        let request = Authenticate { name, password };
        let answer: Authenticated = self.send("auth/authenticate", &request, None, deadline).await?;
        self.token.send_replace(Some(answer.token));
        Ok(())
    }

    /// One attempt at one endpoint.
    pub async fn once<T: DeserializeOwned>(
        &self,
        method: &str,
        body: &impl Serialize,
        deadline: Instant,
    ) -> Result<T, Trouble> {
        let token = self.token.borrow().clone();
        if token.is_none() && self.credentials.is_some() {
            return Err(Trouble::Token);
        }
        self.send(method, body, token, deadline).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: &str,
        body: &impl Serialize,
        token: Option<String>,
        deadline: Instant,
    ) -> Result<T, Trouble> {
        let endpoint = &self.endpoints[self.preferred.load(Ordering::Relaxed) % self.endpoints.len()];
        let unknown = |reason: String| Trouble::Unknown(format!("{endpoint}: {reason}"));
        let url = endpoint.join(&format!("/v3/{method}")).expect("a path behind an address");
        let mut request = self.http.post(url).json(body);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let patience = self.request.min(deadline.saturating_duration_since(Instant::now()));
        let exchange = async {
            let response = request.send().await?;
            Ok((response.status(), response.bytes().await?))
        };
        let (status, bytes) = match tokio::time::timeout(patience, exchange).await {
            Err(_) => return Err(unknown(format!("no answer within {} ms", patience.as_millis()))),
            Ok(Err(error)) => return Err(unknown(chain(&reqwest::Error::without_url(error)))),
            Ok(Ok(answer)) => answer,
        };
        if status.is_success() {
            return serde_json::from_slice(&bytes)
                .map_err(|error| unknown(format!("an answer that is not understood: {error}")));
        }
        match serde_json::from_slice::<Refusal>(&bytes) {
            Ok(refusal) => Err(judge(refusal, endpoint)),
            Err(_) => Err(unknown(format!("answers {status}"))),
        }
    }
}

fn judge(Refusal { message, code }: Refusal, endpoint: &Url) -> Trouble {
    let text = format!("{endpoint}: {message}");
    if message.contains("space exceeded") {
        let advice = "compact and defragment etcd or raise its quota, then `etcdctl alarm disarm`";
        return Trouble::Refused(MetadataError::Full(format!("{text}; {advice}")));
    }
    match code {
        UNAUTHENTICATED => Trouble::Token,
        // An old token after its user was changed looks like a wrong argument.
        _ if message.contains("invalid auth token") || message.contains("revision of auth store is old") => {
            Trouble::Token
        }
        _ if LASTING.contains(&code) => Trouble::Refused(MetadataError::Unwritable(text)),
        _ => Trouble::Unknown(text),
    }
}

/// An error with its causes: reqwest's own text leaves out why.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
