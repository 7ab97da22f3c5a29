//! Numbers for Prometheus: what has happened is counted by the event log, what is so now is asked of who knows it.

use super::{
    HttpState,
    auth::AllTenants,
    problem::{Code, Problem},
};
use crate::metrics::{self, Manager};
use actix_web::{HttpResponse, web::Data};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::timeout};

/// Scrapes that are answered at once, because each asks every actor: two of Prometheus, as it is run for safety, and
/// of whoever looks.
const AT_ONCE_MAX: usize = 4;

/// Places of those who scrape. Cheap to clone.
#[derive(Clone)]
pub struct Scrapes(Arc<Semaphore>);

impl Default for Scrapes {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE_MAX)))
    }
}

pub(super) async fn scrape(state: Data<HttpState>, _: AllTenants) -> Result<HttpResponse, Problem> {
    let _place = state.scrapes.0.try_acquire().map_err(|_| {
        let detail = format!("{AT_ONCE_MAX} scrapes are being answered; scrape less often");
        Problem::new(Code::TooManyScrapes, detail)
    })?;
    let within = Duration::from_millis(state.settings.metrics_ms);
    let (totals, counts, actors, agents) = tokio::join!(
        timeout(within, state.events.totals()),
        timeout(within, state.scheduler.counts()),
        timeout(within, state.actors.manager()),
        timeout(within, state.actors.agents()),
    );
    let manager = Manager {
        totals: totals.ok().flatten(),
        counts: counts.ok().and_then(Result::ok),
        actors: actors.ok().flatten(),
        agents: agents.ok(),
    };
    Ok(HttpResponse::Ok().content_type(metrics::TEXT_FORMAT).body(metrics::manager_page(&manager)))
}
