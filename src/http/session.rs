//! Logging in to the console: a token for a cookie. The cookie is no token, works nowhere but here, and no script reads it.

use super::{
    HttpState,
    auth::{self, Caller, SESSION_COOKIE},
    problem::{Code, Problem},
    request::{Answer, JsonBody},
};
use crate::tokens::{Principal, Role, TenantScope};
use actix_web::{
    HttpRequest, HttpResponse,
    cookie::{Cookie, SameSite, time},
    http::header,
    web::{Data, Json},
};
use faasnet_actors::id::TenantId;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Instant, SystemTime},
};
use utoipa::ToSchema;

/// Never beyond the API: instances behind the gateway share the console's origin, and must not get it.
const COOKIE_PATH: &str = "/v1";

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    token: String,
}

/// Who somebody is.
#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
pub(super) struct SessionView {
    name: String,
    role: Role,
    /// None: all of them.
    tenant: Option<TenantId>,
}

impl From<Principal> for SessionView {
    fn from(principal: Principal) -> Self {
        let tenant = match principal.tenant {
            TenantScope::All => None,
            TenantScope::One(tenant) => Some(tenant),
        };
        Self { name: principal.name, role: principal.role, tenant }
    }
}

pub(super) async fn log_in(
    state: Data<HttpState>,
    request: HttpRequest,
    login: JsonBody<Login>,
) -> Result<HttpResponse, Problem> {
    // Or another site could log its visitors in as somebody of its choice.
    auth::demand_own_page(request.method(), request.headers())?;
    let from = request.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
    state.sessions.try_login(from, Instant::now()).map_err(|pause| {
        let detail = "too many logins with a wrong token from this address";
        Problem::new(Code::TooManyLogins, detail).retry_after(pause)
    })?;
    let wrong = || Problem::new(Code::WrongToken, "this manager knows no such token");
    let (row, principal) = state.tokens.find(&login.0.token).ok_or_else(wrong)?;
    state.sessions.logged_in(from);
    let text = state.sessions.issue(&row, SystemTime::now());
    let life = time::Duration::try_from(state.sessions.ttl()).unwrap_or(time::Duration::MAX);
    tracing::info!(name = principal.name, %from, "logged in to the console");
    Ok(HttpResponse::Ok()
        .cookie(cookie(&request, text, life))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(SessionView::from(principal)))
}

pub(super) async fn who(caller: Caller) -> Answer<SessionView> {
    Ok(Json(caller.principal.into()))
}

pub(super) async fn log_out(request: HttpRequest) -> HttpResponse {
    HttpResponse::NoContent().cookie(cookie(&request, String::new(), time::Duration::ZERO)).finish()
}

fn cookie(request: &HttpRequest, text: String, life: time::Duration) -> Cookie<'static> {
    // The manager has no TLS of its own; behind a proxy that has, only the browser says so.
    let is_secure = request
        .headers()
        .get(header::ORIGIN)
        .is_some_and(|origin| origin.as_bytes().starts_with(b"https://"));
    Cookie::build(SESSION_COOKIE, text)
        .path(COOKIE_PATH)
        .http_only(true)
        .same_site(SameSite::Strict)
        .secure(is_secure)
        .max_age(life)
        .finish()
}
