//! The agent's own numbers for Prometheus: `GET /metrics` on a listener of its own, for whoever shows the token in the data
//! folder. The manager's page has only sums, and none while the manager is away.

use crate::{
    http::{Code, Problem},
    metrics::{self, AgentParts},
    origin::OriginCounters,
    tokens::FileToken,
};
use actix::Addr;
use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::ServerHandle,
    http::{KeepAlive, header::AUTHORIZATION},
    web::{self, Data},
};
use anyhow::Context;
use faasnet_actors::{
    agent::{Agent, GetHeld},
    block_transfer::DoneByAll,
    support::Observe,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// In the data folder.
pub const TOKEN: &str = "metrics.token";
/// Two of Prometheus, as it is run for safety, and whoever looks. Further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4;
/// For a request to come, which is a few lines; for the actors to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Actors of one parent that are asked: far above what a VM has of each.
const CHILDREN_MAX: usize = 1000;

/// Who knows the numbers.
#[derive(Clone)]
pub struct Sources {
    pub token: FileToken,
    pub agent: Addr<Agent>,
    pub done: Arc<DoneByAll>,
    pub origin: Arc<OriginCounters>,
    pub connections: TaskTracker,
    pub connections_max: usize,
}

/// The listener, until it is told to stop.
pub struct Serving(ServerHandle);

impl Serving {
    /// Afterwards the address is free. Scrapes under way are cut: the next one asks the next process.
    pub async fn stop(self) {
        self.0.stop(false).await;
    }
}

pub fn serve(listen: SocketAddr, sources: Sources) -> anyhow::Result<Serving> {
    let sources = Data::new(sources);
    let app = move || App::new().app_data(sources.clone()).route("/metrics", web::get().to(scrape));
    let server = HttpServer::new(app)
        .workers(1)
        .max_connections(CONNECTIONS_MAX)
        .keep_alive(KeepAlive::Disabled)
        .client_request_timeout(PATIENCE)
        .client_disconnect_timeout(PATIENCE)
        .h1_allow_half_closed(false)
        .disable_signals()
        .bind(listen)
        .with_context(|| {
            format!("listening on {listen} for Prometheus; choose another address with agent.metrics_listen")
        })?;
    for address in server.addrs() {
        tracing::info!(%address, "numbers are at /metrics");
    }
    let server = server.run();
    let handle = server.handle();
    tokio::spawn(server);
    Ok(Serving(handle))
}

async fn scrape(request: HttpRequest, sources: Data<Sources>) -> Result<HttpResponse, Problem> {
    let shown = request.headers().get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    if !shown.is_some_and(|header| sources.token.is_shown(header)) {
        let detail = format!("show the token that is in the file {TOKEN} in the agent's data folder");
        return Err(Problem::new(Code::Unauthorized, detail));
    }
    let asking = async {
        let observe = sources.agent.send(Observe::new(PATIENCE / 2, CHILDREN_MAX));
        let (actors, held) = tokio::join!(observe, sources.agent.send(GetHeld));
        Some(AgentParts { actors: actors.ok()?.into_root("agent"), held: held.ok()? })
    };
    let numbers = metrics::Agent {
        parts: timeout(PATIENCE, asking).await.ok().flatten(),
        done: sources.done.snapshot(),
        origin: sources.origin.snapshot(),
        connections: sources.connections.len(),
        connections_max: sources.connections_max,
    };
    Ok(HttpResponse::Ok().content_type(metrics::TEXT_FORMAT).body(metrics::agent_page(&numbers)))
}
