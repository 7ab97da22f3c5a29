//! Why a registry did not do what was asked, told so that the user knows what to change.
//!
//! Texts name the registry and the object, never a URL with its query (it may be signed), a header, or
//! a text that the other side wrote: a hostile server could echo a secret into a log that way. Of an
//! error body only the code of the distribution specification is taken.

use faasnet_actors::id::Digest;
use std::{error::Error, time::Duration};

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{text:?} does not name an image: {rule}")]
    Reference { text: String, rule: &'static str },
    #[error("{what} does not exist")]
    NotFound { what: String },
    #[error(
        "{registry} refuses the credentials for {what}: log in with `docker login {registry}` or ask for access"
    )]
    Unauthorized { registry: String, what: String },
    #[error("the docker credentials for {registry} cannot be used: {reason}")]
    Credentials { registry: String, reason: String },
    #[error("{registry} asks to come back later{}", .retry_after.map(|wait| format!(" (in {} s)", wait.as_secs())).unwrap_or_default())]
    Busy { registry: String, retry_after: Option<Duration> },
    #[error("{registry} answers {status} to {what}{}", .code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default())]
    Status { registry: String, what: String, status: u16, code: Option<String> },
    #[error("{registry} cannot be reached: {reason}")]
    Unreachable { registry: String, reason: String },
    #[error("{registry} gives no answer within {deadline:?}")]
    Slow { registry: String, deadline: Duration },
    #[error("no trusted connection to {registry}: {reason}; {hint}")]
    Tls { registry: String, reason: String, hint: String },
    #[error(
        "{registry} would be spoken to without TLS: if that is wanted, add {registry:?} to origin.plain_http_registries"
    )]
    PlainHttp { registry: String },
    #[error("{registry} redirects {what} more than {max} times (origin.redirects_max)")]
    Redirects { registry: String, what: String, max: usize },
    #[error("{what} ended after {got} of {wanted} bytes")]
    CutShort { what: String, got: u64, wanted: u64 },
    #[error("{what} has digest {got} instead of {wanted}")]
    WrongDigest { what: String, wanted: Digest, got: Digest },
    #[error("{what} is larger than {bytes_max} bytes")]
    TooLarge { what: String, bytes_max: u64 },
    #[error("{what} is longer than the {size} bytes that its manifest states")]
    Surplus { what: String, size: u64 },
    #[error("{registry} ignores ranges: it would send all of {what}")]
    RangeIgnored { registry: String, what: String },
    #[error("{registry} does not follow the distribution specification: {reason}")]
    Protocol { registry: String, reason: String },
    #[error("read the content to send: {0}")]
    Local(#[source] std::io::Error),
    #[error("the TLS settings cannot be used: {0}")]
    Setup(String),
}

impl RegistryError {
    /// Whether the same call may succeed a little later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Unreachable { .. } | Self::Slow { .. } | Self::CutShort { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// How long the registry asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Makes an error of what the HTTP library says, without the URL.
    pub(super) fn transport(registry: &str, error: reqwest::Error) -> Self {
        let registry = registry.to_owned();
        let error = error.without_url();
        match find::<rustls::Error>(&error) {
            Some(rustls::Error::InvalidMessage(_)) => {
                let reason = "it does not speak TLS".to_owned();
                let hint = format!(
                    "if it is meant to be used without TLS, add {registry:?} to origin.plain_http_registries"
                );
                Self::Tls { registry, reason, hint }
            }
            Some(tls) => {
                let hint = "if a private authority issued its certificate, add that authority's PEM file to origin.ca_files";
                Self::Tls { registry, reason: tls.to_string(), hint: hint.to_owned() }
            }
            None => Self::Unreachable { registry, reason: innermost(&error) },
        }
    }
}

/// Looks for a cause of that type. `io::Error` hides what it wraps from `source`, so it is opened.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match inside {
            Some(inside) => Some(inside),
            None => error.source(),
        };
    }
    None
}

fn innermost(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
