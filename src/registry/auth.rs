//! Who we are to a registry: the answer to its challenge, kept until it expires.
//!
//! A registry says with 401 what it wants: a password (Basic) or a token from a token server (Bearer).
//! One slot for each (registry, scope) keeps the answer; who finds it missing or expired renews it while
//! the others wait, so that a burst asks the token server once.

use super::{
    RegistryError, Repository,
    content::Content,
    credentials::{CredentialStore, Credentials},
    transport::{Call, Transport},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Answers kept at once; above it all are forgotten, which costs a renewal each.
const SLOTS_MAX: usize = 1024;
/// Longest answer of a token server.
const TOKEN_BYTES_MAX: usize = 256 * 1024;
/// Life of a token that does not state it (distribution specification, token authentication).
const TOKEN_LIFE: Duration = Duration::from_secs(60);
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Access {
    Pull,
    Push,
}

#[derive(Debug)]
pub(super) struct Auth {
    credentials: CredentialStore,
    slots: Mutex<HashMap<(Repository, Access), Arc<Slot>>>,
}

/// The answer for one scope. The lock is held while it is renewed.
#[derive(Debug, Default)]
pub(super) struct Slot(tokio::sync::Mutex<State>);

#[derive(Debug, Default)]
struct State {
    challenge: Option<Challenge>,
    header: Option<HeaderValue>,
    expires_at: Option<Instant>,
}

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String>, scope: Option<String> },
}

impl Auth {
    pub(super) fn new(credentials: CredentialStore) -> Self {
        Self { credentials, slots: Mutex::default() }
    }

    pub(super) fn slot(&self, repository: &Repository, access: Access) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= SLOTS_MAX {
            slots.clear();
        }
        Arc::clone(slots.entry((repository.clone(), access)).or_default())
    }

    /// What to send now; `None` as long as the registry has not asked for anything.
    pub(super) async fn current(
        &self,
        slot: &Slot,
        transport: &Transport,
        repository: &Repository,
        access: Access,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let mut state = slot.0.lock().await;
        let is_expired = state.expires_at.is_some_and(|expires_at| expires_at <= Instant::now());
        if let (true, Some(challenge)) = (is_expired, state.challenge.clone()) {
            *state = self.answer(challenge, transport, repository, access).await?;
        }
        Ok(state.header.clone())
    }

    /// What to send after `refused` (or nothing) was answered with that challenge.
    pub(super) async fn renew(
        &self,
        slot: &Slot,
        refused: Option<HeaderValue>,
        challenge: Challenge,
        transport: &Transport,
        repository: &Repository,
        access: Access,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let mut state = slot.0.lock().await;
        if state.header.is_none() || state.header == refused {
            *state = self.answer(challenge, transport, repository, access).await?;
        }
        Ok(state.header.clone())
    }

    async fn answer(
        &self,
        challenge: Challenge,
        transport: &Transport,
        repository: &Repository,
        access: Access,
    ) -> Result<State, RegistryError> {
        let credentials = self.credentials.lookup(repository.registry()).await?;
        let Challenge::Bearer { realm, service, scope } = &challenge else {
            let header = match &credentials {
                Credentials::Password { user, password } => basic(user, password.expose()),
                Credentials::None | Credentials::IdentityToken(_) => return Err(refused(repository)),
            };
            return Ok(State { challenge: Some(challenge), header: Some(header), expires_at: None });
        };
        let own_scope = match access {
            Access::Pull => format!("repository:{}:pull", repository.name()),
            Access::Push => format!("repository:{}:pull,push", repository.name()),
        };
        let scope = scope.clone().unwrap_or(own_scope);
        let request = TokenRequest { realm, service: service.as_deref(), scope: &scope };
        let token = request.send(&credentials, transport, repository).await?;
        // A tenth earlier, so that a request that is under way does not meet the end.
        let life = token.expires_in.map_or(TOKEN_LIFE, Duration::from_secs).min(TOKEN_LIFE_MAX).mul_f64(0.9);
        let text = token.token.or(token.access_token).unwrap_or_default();
        let header = sensitive(&format!("Bearer {text}"));
        let header = header.ok_or_else(|| protocol(repository, "the token server gives no usable token"))?;
        Ok(State {
            challenge: Some(challenge),
            header: Some(header),
            expires_at: Some(Instant::now() + life),
        })
    }
}

struct TokenRequest<'a> {
    realm: &'a Url,
    service: Option<&'a str>,
    scope: &'a str,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl TokenRequest<'_> {
    /// Asks the token server: by GET with the password if there is one, by POST (OAuth) with an
    /// identity token. The secret goes to the realm itself and to no other host.
    async fn send(
        &self,
        credentials: &Credentials,
        transport: &Transport,
        repository: &Repository,
    ) -> Result<TokenAnswer, RegistryError> {
        let mut call = Call {
            registry: repository.registry(),
            what: repository.to_string(),
            method: Method::GET,
            url: self.realm.clone(),
            headers: HeaderMap::new(),
            body: Content::empty(),
            deadline: transport.answer_deadline,
        };
        let mut fields = vec![("scope", self.scope)];
        fields.extend(self.service.map(|service| ("service", service)));
        let mut authorization = None;
        match credentials {
            Credentials::IdentityToken(token) => {
                fields.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "faasnet"),
                    ("refresh_token", token.expose()),
                ]);
                let form = form(&fields);
                call.method = Method::POST;
                call.headers
                    .insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
                call.body = Content::bytes(form);
            }
            Credentials::Password { user, password } => {
                call.url.query_pairs_mut().extend_pairs(fields);
                authorization = Some(basic(user, password.expose()));
            }
            Credentials::None => {
                call.url.query_pairs_mut().extend_pairs(fields);
            }
        }
        let response = transport.send(&call, self.realm, authorization.as_ref()).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(refused(repository));
            }
            _ => {
                return match super::transport::checked(&call, response, call.deadline).await {
                    Err(error) => Err(error),
                    Ok(_) => Err(protocol(repository, "the token server gives no token")),
                };
            }
        }
        let body = bounded(response, call.deadline, repository).await?;
        serde_json::from_slice(&body)
            .map_err(|_| protocol(repository, "the token server's answer is not JSON"))
    }
}

async fn bounded(
    mut response: Response,
    deadline: Duration,
    repository: &Repository,
) -> Result<Vec<u8>, RegistryError> {
    let registry = repository.registry();
    let read = async {
        let mut body = Vec::new();
        while let Some(piece) =
            response.chunk().await.map_err(|error| RegistryError::transport(registry, error))?
        {
            body.extend_from_slice(&piece);
            if body.len() > TOKEN_BYTES_MAX {
                return Err(protocol(repository, "the token server's answer is too long"));
            }
        }
        Ok(body)
    };
    let late = |_| RegistryError::Slow { registry: registry.to_owned(), deadline };
    tokio::time::timeout(deadline, read).await.map_err(late)?
}

impl Challenge {
    /// The strongest challenge of a 401 that can be answered.
    pub(super) fn of(response: &Response, repository: &Repository) -> Result<Self, RegistryError> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let texts: Vec<_> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
        let found: Vec<_> = texts.iter().filter_map(|text| Self::parse(text)).flatten().collect();
        let bearer = found.iter().find(|challenge| matches!(challenge, Self::Bearer { .. }));
        let best = bearer.or_else(|| found.first()).cloned();
        best.ok_or_else(|| protocol(repository, "it asks for credentials without saying which kind"))
    }

    fn parse(text: &str) -> Option<Vec<Self>> {
        let challenges = http_auth::parse_challenges(text).ok()?;
        let read = |challenge: http_auth::ChallengeRef<'_>| {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                return Some(Self::Basic);
            }
            if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                return None;
            }
            let value = |name: &str| {
                let mut all = challenge.params.iter();
                all.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped())
            };
            let realm = value("realm")?.parse().ok()?;
            Some(Self::Bearer { realm, service: value("service"), scope: value("scope") })
        };
        Some(challenges.into_iter().filter_map(read).collect())
    }
}

fn form(fields: &[(&str, &str)]) -> String {
    let mut url = Url::parse("form:").expect("a constant that parses");
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

fn basic(user: &str, password: &str) -> HeaderValue {
    let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
    sensitive(&format!("Basic {encoded}")).expect("base64 has no character that a header refuses")
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok().filter(|_| !text.ends_with(' '))?;
    value.set_sensitive(true);
    Some(value)
}

fn refused(repository: &Repository) -> RegistryError {
    RegistryError::Unauthorized { registry: repository.registry().to_owned(), what: repository.to_string() }
}

fn protocol(repository: &Repository, reason: &str) -> RegistryError {
    RegistryError::Protocol { registry: repository.registry().to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_whatever_their_order_and_case() {
        let text =
            r#"bearer service="s \"x\"",realm="https://auth.example/token",scope="repository:a/b:pull""#;
        let realm = "https://auth.example/token".parse().expect("url");
        let (service, scope) = (Some("s \"x\"".to_owned()), Some("repository:a/b:pull".to_owned()));
        assert_eq!(Challenge::parse(text), Some(vec![Challenge::Bearer { realm, service, scope }]));
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(vec![Challenge::Basic]));
        assert_eq!(Challenge::parse("Bearer realm=\"not a url\""), Some(vec![]));
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let header = basic("user", "hunter2");
        let state = State { header: Some(header), ..State::default() };
        let encoded = BASE64_STANDARD.encode("user:hunter2");
        assert!(!format!("{state:?}").contains(&encoded));
    }
}
