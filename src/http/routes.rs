//! The one table of all routes: what exists, and who may use it.

use super::{
    api,
    auth::{PUBLIC, SESSION, require},
    code, console, events, gateway, metrics,
    problem::Problem,
    session, tokens,
};
use crate::tokens::Role;
use actix_web::{
    Route,
    dev::ServiceRequest,
    http::{Method, StatusCode},
    middleware::{Next, from_fn},
    web::{self, PathConfig, QueryConfig, ServiceConfig},
};

/// One row of the table.
pub struct RouteEntry {
    /// `None` stands for all methods.
    pub method: Option<Method>,
    /// In actix's notation.
    pub pattern: &'static str,
    /// `None` stands for everybody, without a token.
    pub role: Option<Role>,
    handler: fn() -> Route,
}

/// All routes; those of one pattern stand together.
pub fn routes() -> Vec<RouteEntry> {
    let public = |pattern, handler| RouteEntry { method: Some(Method::GET), pattern, role: None, handler };
    let route = |method, pattern, role, handler| RouteEntry {
        method: Some(method),
        pattern,
        role: Some(role),
        handler,
    };
    let any = |pattern, role, handler| RouteEntry { method: None, pattern, role: Some(role), handler };
    use Role::{Admin, Operator, Viewer};
    const FUNCTION: &str = "/v1/functions/{name}";
    const STARTS: &str = "/v1/functions/{name}/starts";
    const PREHEAT: &str = "/v1/functions/{name}/preheat";
    const START: &str = "/v1/starts/{id}";
    vec![
        public(PUBLIC[0], || web::to(api::healthz)),
        public(PUBLIC[1], || web::to(api::readyz)),
        public(PUBLIC[2], || web::to(console::redirect)),
        public(PUBLIC[3], || web::to(console::redirect)),
        public("/console/{path:.*}", || web::to(console::file)),
        RouteEntry {
            method: Some(Method::POST),
            pattern: SESSION,
            role: None,
            handler: || web::to(session::log_in),
        },
        route(Method::GET, SESSION, Viewer, || web::to(session::who)),
        route(Method::DELETE, SESSION, Viewer, || web::to(session::log_out)),
        route(Method::GET, "/v1/tokens", Admin, || web::to(tokens::list)),
        route(Method::POST, "/v1/tokens", Admin, || web::to(tokens::create)),
        route(Method::DELETE, "/v1/tokens/{id}", Admin, || web::to(tokens::delete)),
        route(Method::GET, "/v1/functions", Viewer, || web::to(api::list_functions)),
        route(Method::GET, FUNCTION, Viewer, || web::to(api::get_function)),
        route(Method::PUT, FUNCTION, Operator, || web::to(api::put_function)),
        route(Method::DELETE, FUNCTION, Operator, || web::to(api::delete_function)),
        route(Method::GET, "/v1/code", Viewer, || web::to(code::limits)),
        route(Method::PUT, "/v1/code/{digest}", Operator, || web::to(code::put_package)),
        route(Method::GET, STARTS, Viewer, || web::to(api::list_starts)),
        route(Method::POST, STARTS, Operator, || web::to(api::start_instances)),
        route(Method::GET, "/v1/functions/{name}/tree", Viewer, || web::to(api::tree)),
        route(Method::GET, "/v1/functions/{name}/profile", Viewer, || web::to(api::profile)),
        route(Method::POST, "/v1/functions/{name}/optimize", Operator, || web::to(api::optimize)),
        route(Method::GET, PREHEAT, Viewer, || web::to(api::preheated)),
        route(Method::POST, PREHEAT, Operator, || web::to(api::preheat)),
        route(Method::GET, START, Viewer, || web::to(api::get_start)),
        route(Method::DELETE, START, Operator, || web::to(api::stop)),
        route(Method::GET, "/v1/starts/{id}/explanation", Viewer, || web::to(api::explain_start)),
        route(Method::GET, "/v1/starts/{id}/logs", Viewer, || web::to(api::logs)),
        route(Method::GET, "/v1/vms", Viewer, || web::to(api::list_vms)),
        route(Method::DELETE, "/v1/vms/{id}", Admin, || web::to(api::remove_vm)),
        route(Method::POST, "/v1/vms/{id}/drain", Admin, || web::to(api::drain_vm)),
        route(Method::POST, "/v1/vms/{id}/undrain", Admin, || web::to(api::undrain_vm)),
        route(Method::GET, "/v1/events", Viewer, || web::to(events::subscribe)),
        route(Method::GET, "/metrics", Viewer, || web::to(metrics::scrape)),
        route(Method::GET, "/v1/actors", Viewer, || web::to(api::list_actors)),
        route(Method::POST, "/v1/join-tokens", Admin, || web::to(api::create_join_token)),
        any("/fn/{name}", Operator, || web::to(gateway::invoke)),
        any("/fn/{name}/{path:.*}", Operator, || web::to(gateway::invoke)),
    ]
}

/// Registers the table, and problems for whatever it does not name.
pub(super) fn configure(config: &mut ServiceConfig) {
    config
        .app_data(PathConfig::default().error_handler(|error, _| Problem::invalid(error).into()))
        .app_data(QueryConfig::default().error_handler(|error, _| Problem::invalid(error).into()))
        .default_service(web::to(no_such_address));
    for same_pattern in routes().chunk_by(|one, next| one.pattern == next.pattern) {
        let mut resource = web::resource(same_pattern[0].pattern);
        let methods: Vec<_> = same_pattern.iter().filter_map(|entry| entry.method.clone()).collect();
        for entry in same_pattern {
            resource = resource.route(guarded(entry));
        }
        let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let refuse = move || std::future::ready(Err::<&str, _>(Problem::method_not_allowed(allow.clone())));
        config.service(resource.default_service(web::to(refuse)));
    }
}

fn guarded(entry: &RouteEntry) -> Route {
    let mut route = (entry.handler)();
    if let Some(method) = entry.method.clone() {
        route = route.method(method);
    }
    match entry.role {
        None => route,
        Some(role) => {
            route.wrap(from_fn(move |request: ServiceRequest, next: Next<_>| require(role, request, next)))
        }
    }
}

async fn no_such_address() -> Result<&'static str, Problem> {
    Err(Problem::new(StatusCode::NOT_FOUND, "no_such_address", "there is nothing at this address"))
}
