//! The one table of all routes: what exists, and who may use it.

use super::{
    api,
    auth::require,
    calls::{self, Call},
    code, console, docs, events, gateway, metrics,
    openapi::{self, About, operations},
    problem::{Code, Problem},
    session, tokens,
};
use crate::tokens::Role;
use actix_web::{
    Route,
    dev::ServiceRequest,
    http::Method,
    middleware::{Next, from_fn},
    web::{self, PathConfig, QueryConfig, ServiceConfig},
};

/// One row of the table.
pub struct RouteEntry {
    /// What it is called in the description.
    pub id: String,
    /// `None` stands for all methods.
    pub method: Option<Method>,
    /// In actix's notation.
    pub pattern: &'static str,
    /// `None` stands for everybody, without a token.
    pub role: Option<Role>,
    handler: fn() -> Route,
    about: fn() -> About,
}

impl RouteEntry {
    /// What the description says of it.
    pub(super) fn about(&self) -> About {
        (self.about)()
    }
}

fn row(call: Call, role: Option<Role>, handler: fn() -> Route, about: fn() -> About) -> RouteEntry {
    let Call { name, method, pattern } = call;
    let method = (method != "*").then(|| Method::from_bytes(method.as_bytes()).expect("a method"));
    RouteEntry { id: name.to_ascii_lowercase(), method, pattern, role, handler, about }
}

/// All routes; those of one pattern stand together.
pub fn routes() -> Vec<RouteEntry> {
    const ALL: Option<Role> = None;
    const VIEWER: Option<Role> = Some(Role::Viewer);
    const OPERATOR: Option<Role> = Some(Role::Operator);
    const ADMIN: Option<Role> = Some(Role::Admin);
    vec![
        row(calls::HEALTH, ALL, || web::to(api::healthz), operations::health),
        row(calls::READINESS, ALL, || web::to(api::readyz), operations::readiness),
        row(calls::ROOT, ALL, || web::to(console::redirect), operations::root),
        row(calls::CONSOLE, ALL, || web::to(console::redirect), operations::console),
        row(calls::CONSOLE_FILE, ALL, || web::to(console::file), operations::console_file),
        row(calls::DOCS, ALL, || web::to(docs::redirect), operations::docs),
        row(calls::DOCS_FILE, ALL, || web::to(docs::file), operations::docs_file),
        row(calls::DESCRIPTION, ALL, || web::to(openapi::serve), operations::description),
        row(calls::LOG_IN, ALL, || web::to(session::log_in), operations::log_in),
        row(calls::WHO, VIEWER, || web::to(session::who), operations::who),
        row(calls::LOG_OUT, VIEWER, || web::to(session::log_out), operations::log_out),
        row(calls::LIST_TOKENS, ADMIN, || web::to(tokens::list), operations::list_tokens),
        row(calls::CREATE_TOKEN, ADMIN, || web::to(tokens::create), operations::create_token),
        row(calls::DELETE_TOKEN, ADMIN, || web::to(tokens::delete), operations::delete_token),
        row(calls::LIST_FUNCTIONS, VIEWER, || web::to(api::list_functions), operations::list_functions),
        row(calls::GET_FUNCTION, VIEWER, || web::to(api::get_function), operations::get_function),
        row(calls::PUT_FUNCTION, OPERATOR, || web::to(api::put_function), operations::put_function),
        row(calls::DELETE_FUNCTION, OPERATOR, || web::to(api::delete_function), operations::delete_function),
        row(calls::GET_CODE_LIMITS, VIEWER, || web::to(code::limits), operations::get_code_limits),
        row(calls::PUT_CODE, OPERATOR, || web::to(code::put_package), operations::put_code),
        row(calls::LIST_STARTS, VIEWER, || web::to(api::list_starts), operations::list_starts),
        row(calls::START, OPERATOR, || web::to(api::start_instances), operations::start),
        row(calls::GET_TREE, VIEWER, || web::to(api::tree), operations::get_tree),
        row(calls::GET_PROFILE, VIEWER, || web::to(api::profile), operations::get_profile),
        row(calls::OPTIMIZE, OPERATOR, || web::to(api::optimize), operations::optimize),
        row(calls::GET_PREHEAT, VIEWER, || web::to(api::preheated), operations::get_preheat),
        row(calls::PREHEAT, OPERATOR, || web::to(api::preheat), operations::preheat),
        row(calls::GET_START, VIEWER, || web::to(api::get_start), operations::get_start),
        row(calls::STOP, OPERATOR, || web::to(api::stop), operations::stop),
        row(calls::EXPLAIN_START, VIEWER, || web::to(api::explain_start), operations::explain_start),
        row(calls::GET_LOGS, VIEWER, || web::to(api::logs), operations::get_logs),
        row(calls::LIST_VMS, VIEWER, || web::to(api::list_vms), operations::list_vms),
        row(calls::REMOVE_VM, ADMIN, || web::to(api::remove_vm), operations::remove_vm),
        row(calls::DRAIN_VM, ADMIN, || web::to(api::drain_vm), operations::drain_vm),
        row(calls::UNDRAIN_VM, ADMIN, || web::to(api::undrain_vm), operations::undrain_vm),
        row(calls::SUBSCRIBE, VIEWER, || web::to(events::subscribe), operations::subscribe),
        row(calls::SCRAPE, VIEWER, || web::to(metrics::scrape), operations::scrape),
        row(calls::LIST_ACTORS, VIEWER, || web::to(api::list_actors), operations::list_actors),
        row(
            calls::CREATE_JOIN_TOKEN,
            ADMIN,
            || web::to(api::create_join_token),
            operations::create_join_token,
        ),
        row(calls::INVOKE, OPERATOR, || web::to(gateway::invoke), operations::invoke),
        row(calls::INVOKE_PATH, OPERATOR, || web::to(gateway::invoke), operations::invoke_path),
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
    Err(Problem::new(Code::NoSuchAddress, "there is nothing at this address"))
}
