//! Who calls. Every request but the health checks shows a token; every route names the role it needs.

use super::{HttpState, problem::Problem};
use crate::tokens::{Principal, Role, TenantScope};
use actix_web::{
    Error, FromRequest, HttpMessage, HttpRequest,
    body::{BoxBody, MessageBody},
    dev::{Payload, ServiceRequest, ServiceResponse},
    http::{
        StatusCode,
        header::{self, HeaderValue},
    },
    middleware::Next,
    web::Data,
};
use faasnet_actors::id::TenantId;
use std::future::{Ready, ready};

/// Names the tenant of a request whose token is good for all of them.
pub const TENANT_HEADER: &str = "faasnet-tenant";
/// The tenant when nobody names one.
pub const DEFAULT_TENANT: &str = "default";

/// The addresses that need no token.
pub(super) const PUBLIC: [&str; 2] = ["/healthz", "/readyz"];

/// Around the whole application: without a valid token nothing is answered, not even whether an
/// address exists.
pub(super) async fn authenticate<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if !PUBLIC.contains(&request.path()) {
        let principal = {
            let state = request.app_data::<Data<HttpState>>().expect("the application has its state");
            let header = request.headers().get(header::AUTHORIZATION);
            header
                .and_then(|header| header.to_str().ok())
                .and_then(|text| state.tokens.authenticate(text))
                .cloned()
        };
        let Some(principal) = principal else { return Ok(refuse(request, unauthorized())) };
        request.extensions_mut().insert(principal);
    }
    next.call(request).await.map(ServiceResponse::map_into_boxed_body)
}

/// A response, not an error: layers around this one have something to add to it.
fn refuse(request: ServiceRequest, problem: Problem) -> ServiceResponse<BoxBody> {
    ServiceResponse::from_err(problem, request.into_parts().0)
}

pub(super) fn unauthorized() -> Problem {
    let detail = "a valid token is needed: `Authorization: Bearer fn_...`";
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
}

pub(super) fn forbidden(detail: String) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
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
            let detail = format!("this needs the role {}, the token has {}", name(role), name(has));
            Ok(refuse(request, forbidden(detail)))
        }
        Some(_) => next.call(request).await,
    }
}

pub(super) fn name(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

/// Whether the page of a browser that asks, if one does, is from this server: a page of others must not read
/// what the browser's owner may.
pub(super) fn same_origin(request: &HttpRequest) -> Result<(), Problem> {
    let text =
        |name| request.headers().get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
    let Some(origin) = text(header::ORIGIN) else { return Ok(()) };
    let host = origin.split_once("://").map(|(_, host)| host);
    if host.is_some() && host == text(header::HOST) {
        return Ok(());
    }
    Err(forbidden(format!("pages of {origin:?} may not read this")))
}

/// The caller and the tenant for which it acts.
pub(super) struct Caller {
    pub tenant: TenantId,
}

/// A caller whose token is good for all tenants: VMs belong to none of them.
pub(super) struct AllTenants;

impl FromRequest for Caller {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(tenant(request).map(|tenant| Self { tenant }))
    }
}

fn tenant(request: &HttpRequest) -> Result<TenantId, Problem> {
    let named = match request.headers().get(TENANT_HEADER) {
        Some(value) => {
            Some(value.to_str().unwrap_or_default().parse::<TenantId>().map_err(Problem::invalid)?)
        }
        None => None,
    };
    let extensions = request.extensions();
    let principal = extensions.get::<Principal>().ok_or_else(unauthorized)?;
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
                Err(forbidden("VMs are shown to tokens for all tenants only".into()))
            }
        };
        ready(answer)
    }
}
