//! One HTTP client for all registries: who is trusted, what may go without TLS, how far redirects are
//! followed, and how long an answer may take.
//!
//! TLS is rustls with the ring provider. The system's authorities are those that reqwest's platform
//! verifier reads (`/etc/ssl/certs`, or `SSL_CERT_FILE`), those of `origin.ca_files` are added.
//! Redirects are followed here and not by reqwest: each hop is checked for TLS, and the credentials stay
//! with the registry they belong to, even when a chain of redirects comes back to it.

use super::{RegistryError, content::Content};
use crate::settings::OriginSettings;
use reqwest::{
    Certificate, Client, Method, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER},
    redirect::Policy,
};
use serde::Deserialize;
use std::{collections::BTreeSet, path::PathBuf, time::Duration};

/// Idle connections kept to one registry. As many ranges as an agent has in flight at once.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// Bytes read of an error's body to find its code.
const ERROR_BYTES_MAX: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Transport {
    client: Client,
    plain_http: BTreeSet<String>,
    redirects_max: usize,
    pub(super) answer_deadline: Duration,
}

/// One request, which can be sent again.
pub(super) struct Call<'a> {
    pub registry: &'a str,
    /// What the user knows the object by, for errors.
    pub what: String,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Content,
    /// Until the head of the answer has arrived.
    pub deadline: Duration,
}

impl Transport {
    pub(super) fn new(settings: &OriginSettings) -> Result<Self, RegistryError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authorities = read_authorities(&settings.ca_files)?;
        let builder = || {
            Client::builder()
                .user_agent(concat!("faasnet/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(Duration::from_millis(settings.connect_ms))
                .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
                .redirect(Policy::none())
                .retry(reqwest::retry::never())
        };
        // Without any authority the platform verifier refuses to be made, which must not keep a machine
        // without them from folders and registries without TLS.
        let client = builder()
            .tls_certs_merge(authorities.clone())
            .build()
            .or_else(|_| builder().tls_certs_only(authorities).build())
            .map_err(|error| RegistryError::Setup(error.without_url().to_string()))?;
        let plain_http = settings.plain_http_registries.iter();
        Ok(Self {
            client,
            plain_http: plain_http.map(|name| name.to_lowercase()).collect(),
            redirects_max: settings.redirects_max,
            answer_deadline: Duration::from_millis(settings.read_ms),
        })
    }

    /// `http` for the registries named in `origin.plain_http_registries`, `https` for all others.
    pub(super) fn scheme(&self, authority: &str) -> &'static str {
        if self.plain_http.contains(authority) { "http" } else { "https" }
    }

    /// Sends the call and gives the first answer that is no redirect, whatever its status.
    ///
    /// `authorization` goes only to the origin `home`, and to nobody once a redirect led away from it.
    pub(super) async fn send(
        &self,
        call: &Call<'_>,
        home: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let mut url = call.url.clone();
        let mut authorization = authorization;
        for _ in 0..=self.redirects_max {
            authorization = authorization.filter(|_| url.origin() == home.origin());
            let response = self.send_once(call, &url, authorization).await?;
            match redirect_target(call, &response) {
                None => return Ok(response),
                Some(next) => {
                    let reason = "a redirect without a usable Location".to_owned();
                    let registry = call.registry.to_owned();
                    url = next.ok_or(RegistryError::Protocol { registry, reason })?;
                }
            }
        }
        let (registry, what) = (call.registry.to_owned(), call.what.clone());
        Err(RegistryError::Redirects { registry, what, max: self.redirects_max })
    }

    async fn send_once(
        &self,
        call: &Call<'_>,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let host = authority(url);
        match url.scheme() {
            "https" => {}
            "http" if self.plain_http.contains(&host) => {}
            _ => return Err(RegistryError::PlainHttp { registry: host }),
        }
        let mut request = self.client.request(call.method.clone(), url.clone()).headers(call.headers.clone());
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let answer = call.body.attach(request).send();
        let answer = tokio::time::timeout(call.deadline, answer).await;
        match answer {
            Err(_) => Err(RegistryError::Slow { registry: host, deadline: call.deadline }),
            Ok(Err(error)) => Err(RegistryError::transport(&host, error)),
            Ok(Ok(response)) => Ok(response),
        }
    }
}

/// Host and port of a URL as `origin.plain_http_registries` names them.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Where a redirect leads; `Some(None)` when it does not say. Only calls without a body follow it.
fn redirect_target(call: &Call<'_>, response: &Response) -> Option<Option<Url>> {
    let follows = matches!(call.method, Method::GET | Method::HEAD);
    if !follows || !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    Some(location(response))
}

/// The `Location` of an answer, relative to what was asked.
pub(super) fn location(response: &Response) -> Option<Url> {
    let text = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(text).ok()
}

/// Passes an answer that is a success and makes an error of any other.
pub(super) async fn checked(
    call: &Call<'_>,
    response: Response,
    deadline: Duration,
) -> Result<Response, RegistryError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let (registry, what) = (call.registry.to_owned(), call.what.clone());
    let retry_after = retry_after(response.headers());
    Err(match status {
        StatusCode::NOT_FOUND => RegistryError::NotFound { what },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized { registry, what },
        StatusCode::TOO_MANY_REQUESTS => RegistryError::Busy { registry, retry_after },
        StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() => {
            RegistryError::Busy { registry, retry_after }
        }
        _ => {
            let code = tokio::time::timeout(deadline, error_code(response)).await.ok().flatten();
            RegistryError::Status { registry, what, status: status.as_u16(), code }
        }
    })
}

/// `Retry-After` as seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or_default())
}

/// The code of an error as the distribution specification has it, such as `MANIFEST_UNKNOWN`.
async fn error_code(mut response: Response) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        code: String,
    }
    let mut text = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        text.extend_from_slice(&piece);
        if text.len() > ERROR_BYTES_MAX {
            return None;
        }
    }
    let code = serde_json::from_slice::<Body>(&text).ok()?.errors.into_iter().next()?.code;
    let is_code = code.len() <= 40 && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    is_code.then_some(code)
}

fn read_authorities(files: &[PathBuf]) -> Result<Vec<Certificate>, RegistryError> {
    let mut authorities = Vec::new();
    for path in files {
        let unusable =
            |reason: String| RegistryError::Setup(format!("{} in origin.ca_files: {reason}", path.display()));
        let text = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
        let found = Certificate::from_pem_bundle(&text)
            .map_err(|_| unusable("it is not in PEM format".to_owned()))?;
        if found.is_empty() {
            return Err(unusable("it has no certificate in PEM format".to_owned()));
        }
        authorities.extend(found);
    }
    Ok(authorities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_and_as_date() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().expect("header"));
            retry_after(&headers)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let later = read("Sat, 06 Nov 2094 08:49:37 GMT").expect("a date");
        assert!(later > Duration::from_secs(86400 * 365), "{later:?}");
        assert_eq!(read("-1"), None);
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let error = read_authorities(&[file.path().to_owned()]).expect_err("empty").to_string();
        assert!(error.contains("origin.ca_files"), "{error}");
    }
}
