//! Handlers of the API: each asks the scheduler one question.

use super::{
    HttpState,
    auth::{AllTenants, Caller},
    code,
    dial::DialError,
    problem::{Code, Problem},
    request::{Answer, JsonBody},
    tokens,
};
use actix_web::{
    HttpResponse,
    http::header,
    web::{Data, Json, Path, Query},
};
use faasnet_actors::{
    explain::{Explanation, explain},
    id::{FunctionName, StartId, VmId},
    model::{FunctionSpec, FunctionView, PreheatSpec, PreheatView, ProfileView, StartView, TreeView, VmView},
    support::ActorView,
};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};
use utoipa::{IntoParams, ToSchema};

type State = Data<HttpState>;

#[derive(Serialize, ToSchema)]
pub(super) struct Functions {
    functions: Vec<FunctionView>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Starts {
    starts: Vec<StartView>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Vms {
    vms: Vec<VmView>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Actors {
    actors: Vec<ActorView>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WhichActors {
    /// Those of this VM's agent.
    vm: Option<VmId>,
    /// Those of all agents.
    #[serde(default)]
    agents: bool,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Accepted {
    starts: Vec<StartId>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct JoinTokenText {
    token: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    status: &'static str,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StartsWanted {
    /// How many instances, at least 1.
    #[schema(minimum = 1)]
    count: u32,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Tail {
    /// How many bytes from the end; never more than `http.log_tail_bytes_max`.
    tail: Option<u64>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Limit {
    /// How many, the newest first; never more than `http.starts_listed_max`.
    limit: Option<usize>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Force {
    /// Also when what it runs, or a tree, would be left without another VM.
    #[serde(default)]
    force: bool,
}

pub(super) async fn put_function(
    state: State,
    caller: Caller,
    name: Path<FunctionName>,
    spec: JsonBody<FunctionSpec>,
) -> Answer<FunctionView> {
    if let Some(package) = spec.0.code {
        code::keep(&state, &caller.tenant, package).await?;
    }
    Ok(Json(state.scheduler.put_function(caller.tenant, name.into_inner(), spec.0).await?))
}

pub(super) async fn get_function(
    state: State,
    caller: Caller,
    name: Path<FunctionName>,
) -> Answer<FunctionView> {
    Ok(Json(state.scheduler.function(caller.tenant, name.into_inner()).await?))
}

pub(super) async fn list_functions(state: State, caller: Caller) -> Answer<Functions> {
    Ok(Json(Functions { functions: state.scheduler.functions(caller.tenant).await? }))
}

pub(super) async fn delete_function(
    state: State,
    caller: Caller,
    name: Path<FunctionName>,
) -> Result<HttpResponse, Problem> {
    state.scheduler.delete_function(caller.tenant, name.into_inner()).await?;
    Ok(HttpResponse::NoContent().finish())
}

pub(super) async fn start_instances(
    state: State,
    caller: Caller,
    name: Path<FunctionName>,
    wanted: JsonBody<StartsWanted>,
) -> Result<HttpResponse, Problem> {
    if wanted.0.count == 0 {
        return Err(Problem::invalid("count must be at least 1"));
    }
    let scheduler = state.scheduler.clone().for_request(caller.request);
    let starts = scheduler.start(caller.tenant, name.into_inner(), wanted.0.count).await?;
    Ok(HttpResponse::Accepted().json(Accepted { starts }))
}

pub(super) async fn list_starts(
    state: State,
    caller: Caller,
    name: Path<FunctionName>,
    query: Query<Limit>,
) -> Answer<Starts> {
    let limit_max = state.settings.starts_listed_max;
    let limit = query.limit.unwrap_or(limit_max).min(limit_max);
    Ok(Json(Starts { starts: state.scheduler.starts(caller.tenant, name.into_inner(), limit).await? }))
}

pub(super) async fn get_start(state: State, caller: Caller, start: Path<StartId>) -> Answer<StartView> {
    Ok(Json(state.scheduler.start_view(caller.tenant, start.into_inner()).await?))
}

/// Starts of the same function that a start is compared with.
const COMPARED_WITH: usize = 200;

/// Why a start took as long as it did.
pub(super) async fn explain_start(state: State, caller: Caller, start: Path<StartId>) -> Answer<Explanation> {
    let start = state.scheduler.start_view(caller.tenant.clone(), start.into_inner()).await?;
    let limit = COMPARED_WITH.min(state.settings.starts_listed_max);
    let others = state.scheduler.starts(caller.tenant, start.function.clone(), limit).await;
    // The function may be gone, with what it was compared with.
    Ok(Json(explain(&start, &others.unwrap_or_default())))
}

pub(super) async fn stop(
    state: State,
    caller: Caller,
    start: Path<StartId>,
) -> Result<HttpResponse, Problem> {
    state.scheduler.stop(caller.tenant, start.into_inner()).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// The end of an instance's output, as it wrote it.
pub(super) async fn logs(
    state: State,
    caller: Caller,
    start: Path<StartId>,
    query: Query<Tail>,
) -> Result<HttpResponse, Problem> {
    let tail_max = state.settings.log_tail_bytes_max;
    let tail = query.tail.unwrap_or(tail_max).min(tail_max);
    let located = state.scheduler.locate(caller.tenant, start.into_inner()).await?;
    let deadline = Duration::from_millis(state.settings.request_deadline_ms);
    let output = tokio::time::timeout(deadline, state.dial.logs(&located, tail))
        .await
        .unwrap_or_else(|_| Err(DialError::Unreachable("it did not answer in time".into())))?;
    // An agent of another release might send more than was asked for.
    let output = output.slice(output.len() - output.len().min(tail as usize)..);
    Ok(HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        // The text is a tenant's: no browser may guess that it is a page of ours.
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(output))
}

pub(super) async fn tree(state: State, caller: Caller, name: Path<FunctionName>) -> Answer<TreeView> {
    Ok(Json(state.scheduler.tree(caller.tenant, name.into_inner()).await?))
}

pub(super) async fn profile(state: State, caller: Caller, name: Path<FunctionName>) -> Answer<ProfileView> {
    Ok(Json(state.scheduler.profile(caller.tenant, name.into_inner()).await?))
}

/// Accepted when it is durable that the image will be packed; how far that is says the profile.
pub(super) async fn optimize(
    state: State,
    caller: Caller,
    name: Path<FunctionName>,
) -> Result<HttpResponse, Problem> {
    let view = state.scheduler.optimize(caller.tenant, name.into_inner()).await?;
    Ok(HttpResponse::Accepted().json(view))
}

/// Accepted when the VMs are chosen; how far they are says `preheated`.
pub(super) async fn preheat(
    state: State,
    caller: Caller,
    name: Path<FunctionName>,
    spec: JsonBody<PreheatSpec>,
) -> Result<HttpResponse, Problem> {
    let view = state.scheduler.preheat(caller.tenant, name.into_inner(), spec.0).await?;
    Ok(HttpResponse::Accepted().json(view))
}

pub(super) async fn preheated(state: State, caller: Caller, name: Path<FunctionName>) -> Answer<PreheatView> {
    Ok(Json(state.scheduler.preheated(caller.tenant, name.into_inner()).await?))
}

pub(super) async fn list_vms(state: State, _: AllTenants) -> Answer<Vms> {
    Ok(Json(Vms { vms: state.scheduler.vms().await? }))
}

pub(super) async fn remove_vm(state: State, _: AllTenants, vm: Path<VmId>) -> Result<HttpResponse, Problem> {
    state.scheduler.remove_vm(vm.into_inner()).await?;
    Ok(HttpResponse::NoContent().finish())
}

pub(super) async fn drain_vm(
    state: State,
    _: AllTenants,
    vm: Path<VmId>,
    query: Query<Force>,
) -> Answer<VmView> {
    Ok(Json(state.scheduler.drain_vm(vm.into_inner(), query.force).await?))
}

pub(super) async fn undrain_vm(state: State, _: AllTenants, vm: Path<VmId>) -> Answer<VmView> {
    Ok(Json(state.scheduler.undrain_vm(vm.into_inner()).await?))
}

/// How the actors are: the manager's, those of one VM's agent, or those of all agents.
pub(super) async fn list_actors(state: State, _: AllTenants, query: Query<WhichActors>) -> Answer<Actors> {
    let actors = match query.into_inner() {
        WhichActors { vm: Some(_), agents: true } => {
            return Err(Problem::invalid("give vm or agents, not both"));
        }
        WhichActors { vm: Some(vm), agents: false } => {
            let silent = || {
                Problem::new(
                    Code::AgentSilent,
                    format!("the agent of VM {vm} has no session or does not answer"),
                )
            };
            vec![state.actors.agent(vm.clone()).await.ok_or_else(silent)?]
        }
        WhichActors { vm: None, agents: true } => state.actors.agents().await,
        WhichActors { vm: None, agents: false } => {
            let ended = || Problem::new(Code::ShuttingDown, "the manager's actors have ended");
            vec![state.actors.manager().await.ok_or_else(ended)?]
        }
    };
    Ok(Json(Actors { actors }))
}

pub(super) async fn create_join_token(state: State, _: AllTenants) -> Result<HttpResponse, Problem> {
    let token = state.join.create(SystemTime::now()).await.map_err(tokens::problem)?;
    Ok(HttpResponse::Created().json(JoinTokenText { token }))
}

/// The process lives.
pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// The manager has read its metadata and takes requests.
pub(super) async fn readyz(state: State) -> Answer<Health> {
    if *state.ready.borrow() {
        return Ok(Json(Health { status: "ready" }));
    }
    Err(Problem::new(Code::NotReady, "the manager is starting or shutting down"))
}
