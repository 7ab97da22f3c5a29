//! HTTP of the manager: the API, the gateway to instances, and the console.
//!
//! ```text
//! request -> id and span -> token or session -> route -> role -> handler -> scheduler
//!                                                                   |
//!                                                         gateway: scheduler -> agent -> instance
//! ```

mod api;
mod auth;
mod calls;
mod code;
mod console;
mod dial;
mod docs;
mod events;
mod gateway;
mod metrics;
mod observer;
mod openapi;
mod problem;
mod request;
mod routes;
mod session;
mod tokens;

pub use auth::{DEFAULT_TENANT, TENANT_HEADER};
pub use calls::Call;
pub use dial::{AsyncReadWrite, DialError, InstanceDialer};
pub use events::Events;
pub use gateway::{START_HEADER, VM_HEADER};
pub use metrics::Scrapes;
pub use observer::Observer;
pub use openapi::{PATH_METHODS, document};
pub use problem::{Code, CodeRow, PROBLEM_JSON, Problem};
pub use routes::{RouteEntry, routes};

use crate::{
    code::CodePackages,
    settings::HttpSettings,
    tokens::{ApiTokens, JoinTokens, Sessions},
};
use actix_web::{
    App, HttpServer,
    dev::{Server, ServerHandle},
    middleware::from_fn,
    web::Data,
};
use faasnet_actors::scheduler::SchedulerHandle;
use std::{io, net::TcpListener, sync::Arc};
use tokio::sync::watch;

/// All that handlers reach. Cheap to clone.
#[derive(Clone)]
pub struct HttpState {
    pub scheduler: SchedulerHandle,
    pub tokens: Arc<ApiTokens>,
    pub sessions: Arc<Sessions>,
    pub join: Arc<JoinTokens>,
    pub packages: CodePackages,
    pub dial: Arc<dyn InstanceDialer>,
    pub actors: Arc<dyn Observer>,
    pub settings: HttpSettings,
    pub events: Events,
    /// What `/readyz` says.
    pub ready: watch::Receiver<bool>,
    pub scrapes: Scrapes,
}

/// Serves HTTP on `listener` until the handle is told to stop. The server is a future that must be
/// awaited or spawned; its threads are its own.
pub fn serve(state: HttpState, listener: TcpListener) -> io::Result<(Server, ServerHandle)> {
    let settings = state.settings.clone();
    let app = move || {
        App::new()
            .app_data(Data::new(state.clone()))
            .configure(routes::configure)
            .wrap(from_fn(auth::authenticate))
            .wrap(from_fn(request::identify))
    };
    let server = HttpServer::new(app)
        .workers(settings.workers)
        // actix counts connections for each worker.
        .max_connections(settings.connections_max.div_ceil(settings.workers))
        // A client that closes its side has left: its request is dropped, and with it its place.
        .h1_allow_half_closed(false)
        .shutdown_timeout(settings.shutdown_ms.div_ceil(1000))
        .disable_signals()
        .listen(listener)?
        .run();
    let handle = server.handle();
    Ok((server, handle))
}
