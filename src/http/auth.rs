//! Who calls. Every request shows a token, or a session of the console; every route names the role it needs. Without
//! either there are the health checks, the files of the console and of the API's page, and the login.

use super::{
    HttpState, calls,
    problem::{Code, Problem},
    request::id_of,
};
use crate::tokens::{Principal, Role, TenantScope};
use actix_web::{
    Error, FromRequest, HttpMessage, HttpRequest,
    body::{BoxBody, MessageBody},
    dev::{Payload, ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{self, HeaderMap},
    },
    middleware::Next,
    web::Data,
};
use faasnet_actors::id::{RequestId, TenantId};
use std::{
    future::{Ready, ready},
    time::SystemTime,
};

/// Names the tenant of a request whose token is good for all of them.
pub const TENANT_HEADER: &str = "faasnet-tenant";
/// The tenant when nobody names one.
pub const DEFAULT_TENANT: &str = "default";

/// Holds a session, in browsers.
pub(super) const SESSION_COOKIE: &str = "faasnet_session";
/// Only a page of the same origin can send it: another one would have to ask first, and is not answered.
pub(super) const CSRF_HEADER: &str = "x-faasnet-csrf";

/// The addresses that need no token.
const PUBLIC: [&str; 6] = [
    calls::HEALTH.pattern,
    calls::READINESS.pattern,
    calls::ROOT.pattern,
    calls::CONSOLE.pattern,
    calls::DOCS.pattern,
    calls::DESCRIPTION.pattern,
];
/// Below these are the files of the console, and of the page over the description.
const FOLDERS: [&str; 2] = ["/console/", "/docs/"];

fn is_public(method: &Method, path: &str) -> bool {
    PUBLIC.contains(&path)
        || FOLDERS.iter().any(|folder| path.starts_with(folder))
        || (path == calls::LOG_IN.pattern && method == Method::POST)
}

/// Around the whole application: without a valid token nothing is answered, not even whether an
/// address exists.
pub(super) async fn authenticate<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if !is_public(request.method(), request.path()) {
        let (shown, principal) = match identify(&request) {
            Ok(known) => known,
            Err(problem) => return Ok(refuse(request, problem)),
        };
        request.extensions_mut().insert(shown);
        request.extensions_mut().insert(principal);
    }
    next.call(request).await.map(ServiceResponse::map_into_boxed_body)
}

/// What a caller has shown: a token by its row, or a session by its text. Worth as much as it is at that moment.
#[derive(Clone)]
pub(super) enum Shown {
    Token(String),
    Session(String),
}

impl Shown {
    /// Who it stands for, if it is still good.
    pub fn principal(&self, state: &HttpState) -> Option<Principal> {
        match self {
            Self::Token(row) => state.tokens.of_row(row),
            Self::Session(text) => state.tokens.of_row(&state.sessions.check(text, SystemTime::now())?),
        }
    }
}

fn identify(request: &ServiceRequest) -> Result<(Shown, Principal), Problem> {
    let state = request.app_data::<Data<HttpState>>().expect("the application has its state");
    let shown = match request.headers().get(header::AUTHORIZATION) {
        Some(header) => header.to_str().ok().and_then(|text| state.tokens.row_of(text)).map(Shown::Token),
        // What instances answer at the gateway shares the console's origin. A session is worth nothing there, or a
        // function's page could act as whoever looks at it.
        None if request.path().starts_with("/v1/") => {
            request.cookie(SESSION_COOKIE).map(|cookie| Shown::Session(cookie.value().to_owned()))
        }
        None => None,
    };
    let shown = shown.ok_or_else(unauthorized)?;
    let principal = shown.principal(state).ok_or_else(unauthorized)?;
    if matches!(shown, Shown::Session(_)) {
        demand_own_page(request.method(), request.headers())?;
    }
    Ok((shown, principal))
}

/// A browser adds the session to what other sites make it send as well. What changes something must come from our
/// own page; and so must a websocket, whose answers browsers show to whoever opened it.
pub(super) fn demand_own_page(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let is_websocket = headers.contains_key(header::UPGRADE);
    if method.is_safe() && !is_websocket {
        return Ok(());
    }
    if is_same_origin(headers) && (is_websocket || headers.contains_key(CSRF_HEADER)) {
        return Ok(());
    }
    let detail = format!("with a session this takes the Origin of the console, and the header {CSRF_HEADER}");
    Err(Problem::new(Code::ForeignOrigin, detail))
}

fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    // No page can set it. Browsers leave it out when the console is reached without TLS.
    if let Some(site) = text(header::HeaderName::from_static("sec-fetch-site")) {
        return site == "same-origin";
    }
    let (Some(origin), Some(host)) = (text(header::ORIGIN), text(header::HOST)) else { return false };
    let named = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    named.is_some_and(|named| named.eq_ignore_ascii_case(host))
}

/// A response, not an error: layers around this one have something to add to it.
fn refuse(request: ServiceRequest, problem: Problem) -> ServiceResponse<BoxBody> {
    ServiceResponse::from_err(problem, request.into_parts().0)
}

pub(super) fn unauthorized() -> Problem {
    let detail = "a valid token is needed: `Authorization: Bearer fn_...`, or a session of the console";
    Problem::new(Code::Unauthorized, detail)
}

pub(super) fn forbidden(detail: String) -> Problem {
    Problem::new(Code::Forbidden, detail)
}

/// Around one route: the caller's role must be `role` or more.
pub(super) async fn require(
    role: Role,
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let has = request.extensions().get::<Principal>().map(|principal| principal.role);
    match has {
        None => Ok(refuse(request, unauthorized())),
        Some(has) if has < role => {
            let detail = format!("this needs the role {}, the token has {}", role.name(), has.name());
            Ok(refuse(request, forbidden(detail)))
        }
        Some(_) => next.call(request).await,
    }
}

/// Whether the page of a browser that asks, if one does, is from this server: a page of others must not read
/// what the browser's owner may.
pub(super) fn same_origin(request: &HttpRequest) -> Result<(), Problem> {
    match request.headers().get(header::ORIGIN) {
        Some(origin) if !is_same_origin(request.headers()) => {
            let origin = origin.to_str().unwrap_or_default();
            Err(forbidden(format!("pages of {origin:?} may not read this")))
        }
        _ => Ok(()),
    }
}

/// The caller and the tenant for which it acts.
pub(super) struct Caller {
    pub tenant: TenantId,
    pub principal: Principal,
    pub request: Option<RequestId>,
}

/// A caller whose token is good for all tenants: VMs belong to none of them.
pub(super) struct AllTenants;

impl FromRequest for Caller {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let principal = request.extensions().get::<Principal>().cloned().ok_or_else(unauthorized);
        let of =
            |principal| Ok(Self { tenant: tenant(request, &principal)?, principal, request: id_of(request) });
        ready(principal.and_then(of))
    }
}

fn tenant(request: &HttpRequest, principal: &Principal) -> Result<TenantId, Problem> {
    let named = match request.headers().get(TENANT_HEADER) {
        Some(value) => {
            Some(value.to_str().unwrap_or_default().parse::<TenantId>().map_err(Problem::invalid)?)
        }
        None => None,
    };
    match (&principal.tenant, named) {
        (TenantScope::All, Some(named)) => Ok(named),
        (TenantScope::All, None) => Ok(DEFAULT_TENANT.parse().expect("a valid name")),
        (TenantScope::One(own), Some(named)) if *own != named => {
            Err(forbidden(format!("the token is not good for tenant {named}")))
        }
        (TenantScope::One(own), _) => Ok(own.clone()),
    }
}

impl FromRequest for AllTenants {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let extensions = request.extensions();
        let answer = match extensions.get::<Principal>().map(|principal| &principal.tenant) {
            None => Err(unauthorized()),
            Some(TenantScope::All) => Ok(Self),
            Some(TenantScope::One(_)) => {
                Err(forbidden("what is of all tenants is shown to tokens for all tenants only".into()))
            }
        };
        ready(answer)
    }
}
