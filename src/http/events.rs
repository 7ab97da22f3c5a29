//! The event stream: a websocket on which a subscriber gets what happens, as arrays of JSON objects.
//!
//! Each subscriber is one task with a position in the log. It reads a page when there is something new, at most
//! one in each interval, and waits for the socket; nothing is queued for it but what the socket takes.

use super::{
    HttpState, auth,
    problem::{Code, Problem},
};
use crate::{
    settings::EventSettings,
    tokens::{Principal, Role, TenantScope},
};
use actix_web::{
    HttpMessage, HttpRequest, HttpResponse,
    dev::ServiceResponse,
    http::StatusCode,
    web::{Data, Payload, Query},
};
use actix_ws::{CloseCode, CloseReason, Closed, Message, MessageStream, Session};
use faasnet_actors::{
    event_log::{
        Audit, EventLogHandle, Filter, Happening, Item, Kind, Newest, News, Page, Reader, StreamId, Teller,
        Totals,
    },
    id::{FunctionName, TenantId, VmId},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use utoipa::{IntoParams, ToSchema};

/// The event log, and who may read it. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    log: EventLogHandle,
    teller: Teller,
    settings: Arc<EventSettings>,
    places: Arc<Semaphore>,
}

impl Events {
    /// What has happened since the log began. None while it is rebuilt.
    pub(super) async fn totals(&self) -> Option<Totals> {
        self.log.totals().await
    }

    pub fn new(log: EventLogHandle, teller: Teller, settings: EventSettings) -> Self {
        let places = Arc::new(Semaphore::new(settings.subscribers_max));
        Self { log, teller, settings: Arc::new(settings), places }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// The number of the last event that the subscriber has; without it only what is new comes.
    since: Option<u64>,
    /// The stream in which it had that number.
    stream: Option<String>,
    /// Only what is this tenant's.
    tenant: Option<TenantId>,
    /// Only what is about this function, or about a tree of its image.
    function: Option<FunctionName>,
    /// Only what is about this VM.
    vm: Option<VmId>,
    /// Kinds, with commas between them.
    kind: Option<String>,
}

/// What a subscriber gets beside events.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Notice {
    /// Comes first. `next` is the number of the event that comes next; views that are read from now on show
    /// all before it.
    Hello { stream: String, next: u64 },
    /// Events with these numbers were not kept long enough, or never reached the log; some may not have passed the
    /// filter.
    Lost { from: u64, to: u64 },
    /// Another life of the log, of which all events follow from number 1. What happened since the last one of
    /// the stream before nobody can say.
    Began { stream: String },
}

pub(super) async fn subscribe(
    state: Data<HttpState>,
    request: HttpRequest,
    wanted: Query<Wanted>,
    body: Payload,
) -> Result<HttpResponse, Problem> {
    auth::same_origin(&request)?;
    let Events { log, settings, places, .. } = state.events.clone();
    let newest = *log.newest.borrow();
    let filter = filter(&request, &wanted)?;
    let (stream, position) = position(&wanted, newest)?;
    let shown = request.extensions().get::<auth::Shown>().cloned().ok_or_else(auth::unauthorized)?;
    let place = Arc::clone(&places).try_acquire_owned().map_err(|_| {
        let detail = "as many subscribers are connected as may be (events.subscribers_max)";
        Problem::new(Code::TooManySubscribers, detail)
    })?;
    let (response, session, messages) = actix_ws::handle(&request, body).map_err(|error| {
        Problem::invalid(format!("this address speaks websocket only ({error}); try `faasnet events`"))
    })?;
    let subscriber = Subscriber {
        newest: log.newest.clone(),
        log,
        session,
        reader: Reader::new(stream, position, filter),
        stagger: stagger(&settings, places.available_permits()),
        settings: Arc::clone(&settings),
        shown,
        state: state.clone(),
        _place: place,
    };
    let messages = messages.max_frame_size(settings.frame_bytes_max);
    let hello = Notice::Hello { stream: newest.stream.to_string(), next: newest.next };
    actix_web::rt::spawn(subscriber.serve(hello, messages, state.ready.clone()));
    Ok(response)
}

/// What the caller wants to see, within what it may see.
fn filter(request: &HttpRequest, wanted: &Wanted) -> Result<Filter, Problem> {
    let extensions = request.extensions();
    let principal = extensions.get::<Principal>().ok_or_else(auth::unauthorized)?;
    let tenant = match (&principal.tenant, &wanted.tenant) {
        (TenantScope::All, wanted) => wanted.clone(),
        (TenantScope::One(own), Some(named)) if own != named => {
            return Err(auth::forbidden(format!("the token is not good for tenant {named}")));
        }
        (TenantScope::One(own), _) => Some(own.clone()),
    };
    let kinds = wanted.kind.as_deref().map(kinds).transpose()?.unwrap_or_default();
    Ok(Filter {
        tenant,
        function: wanted.function.clone(),
        vm: wanted.vm.clone(),
        kinds,
        sees_audit: principal.role == Role::Admin,
    })
}

fn kinds(text: &str) -> Result<BTreeSet<Kind>, Problem> {
    let name = |kind: Kind| serde_json::to_value(kind).expect("a word");
    let kind = |text: &str| {
        Kind::ALL.into_iter().find(|kind| name(*kind) == text).ok_or_else(|| {
            let all: Vec<String> =
                Kind::ALL.map(|kind| name(kind).as_str().unwrap_or_default().to_owned()).into();
            Problem::invalid(format!("there is no kind of event {text:?}; there are {}", all.join(", ")))
        })
    };
    text.split(',').map(str::trim).map(kind).collect()
}

fn position(wanted: &Wanted, newest: Newest) -> Result<(StreamId, u64), Problem> {
    let stream: Option<StreamId> =
        wanted.stream.as_deref().map(str::parse).transpose().map_err(Problem::invalid)?;
    let stream = stream.unwrap_or(newest.stream);
    let position = wanted.since.map_or(newest.next, |since| since.saturating_add(1));
    if stream == newest.stream && position > newest.next {
        let last = newest.next - 1;
        return Err(Problem::invalid(format!("since is ahead of the stream, whose last event is {last}")));
    }
    Ok((stream, position))
}

struct Subscriber {
    log: EventLogHandle,
    newest: watch::Receiver<Newest>,
    reader: Reader,
    session: Session,
    settings: Arc<EventSettings>,
    /// How long it waits before it reads what is new.
    stagger: Duration,
    /// Looked at again with each ping: what was deleted or has ended opens nothing any more.
    shown: auth::Shown,
    state: Data<HttpState>,
    _place: OwnedSemaphorePermit,
}

/// The connection is over, and whether the other side is to be told why.
enum End {
    Gone,
    Because(CloseCode, &'static str),
}

impl Subscriber {
    async fn serve(mut self, hello: Notice, mut messages: MessageStream, serving: watch::Receiver<bool>) {
        let end = match self.send(&[notice(&hello)]).await {
            Ok(()) => self.feed(&mut messages, serving).await,
            Err(end) => end,
        };
        if let End::Because(code, reason) = end {
            let close = self.session.close(Some(CloseReason { code, description: Some(reason.into()) }));
            // It is closed either way: the socket goes with this task.
            let _said = tokio::time::timeout(Duration::from_millis(self.settings.interval_ms), close).await;
        }
    }

    async fn feed(&mut self, messages: &mut MessageStream, mut serving: watch::Receiver<bool>) -> End {
        let mut ping = tokio::time::interval(Duration::from_millis(self.settings.ping_ms));
        let idle = Duration::from_millis(self.settings.idle_ms);
        let mut heard = Instant::now();
        let mut turn = Turn { not_before: heard, stagger: Duration::ZERO };
        loop {
            let end = tokio::select! {
                message = messages.recv() => match message {
                    Some(Ok(Message::Pong(_))) => {
                        heard = Instant::now();
                        Ok(())
                    }
                    Some(Ok(Message::Ping(bytes))) => within(self.settings.send_ms, self.session.pong(&bytes)).await,
                    None | Some(Ok(Message::Close(_))) => Err(End::Gone),
                    Some(Ok(_)) => Err(End::Because(CloseCode::Policy, "a subscriber only listens")),
                    Some(Err(_)) => Err(End::Because(CloseCode::Protocol, "a frame is wrong or too long")),
                },
                _ = ping.tick() => {
                    if heard.elapsed() > idle {
                        Err(End::Because(CloseCode::Policy, "no answer to pings"))
                    } else if self.shown.principal(&self.state).is_none() {
                        Err(End::Because(CloseCode::Policy, "the token is deleted, or the session has ended"))
                    } else {
                        within(self.settings.send_ms, self.session.ping(b"")).await
                    }
                }
                _ = serving.wait_for(|serving| !serving) => {
                    Err(End::Because(CloseCode::Away, "the manager shuts down"))
                }
                items = next(&self.log, &mut self.newest, &self.reader, &self.settings, turn) => {
                    let next_interval = Instant::now() + Duration::from_millis(self.settings.interval_ms);
                    turn = Turn { not_before: next_interval, stagger: self.stagger };
                    let mut texts: Vec<String> = Vec::new();
                    if let Some(page) = items {
                        texts.extend(self.reader.take(page).into_iter().map(text));
                        // Who is behind reads on at once: its socket alone sets the pace.
                        if self.reader.position() < self.newest.borrow().next {
                            turn = Turn { not_before: Instant::now(), stagger: Duration::ZERO };
                        }
                    }
                    if texts.is_empty() { Ok(()) } else { self.send(&texts).await }
                }
            };
            if let Err(end) = end {
                return end;
            }
        }
    }

    async fn send(&mut self, items: &[String]) -> Result<(), End> {
        let text = format!("[{}]", items.join(","));
        within(self.settings.send_ms, self.session.text(text)).await
    }
}

/// Gives the socket `send_ms` to take what is sent.
async fn within(send_ms: u64, sending: impl Future<Output = Result<(), Closed>>) -> Result<(), End> {
    match tokio::time::timeout(Duration::from_millis(send_ms), sending).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Gone),
        Err(_) => Err(End::Because(CloseCode::Again, "too slow; come back with since")),
    }
}

/// When a subscriber reads.
#[derive(Clone, Copy)]
struct Turn {
    not_before: Instant,
    /// From then, or from when something is new, until it reads.
    stagger: Duration,
}

/// Those of a thousand subscribers that had all would all read the next event as soon as it happens, and the answer to
/// who made it happen would stand behind them: they are spread over an interval. With few, none of them waits.
fn stagger(settings: &EventSettings, free: usize) -> Duration {
    let others = settings.subscribers_max.saturating_sub(free + 1);
    Duration::from_millis(settings.interval_ms)
        .mul_f64(others as f64 / settings.subscribers_max.max(1) as f64)
}

/// The next page that has something, when it is the reader's turn. Nothing is lost when it is dropped.
async fn next(
    log: &EventLogHandle,
    newest: &mut watch::Receiver<Newest>,
    reader: &Reader,
    settings: &EventSettings,
    Turn { not_before, stagger }: Turn,
) -> Option<Page> {
    tokio::time::sleep_until(not_before).await;
    let is_new = |newest: &Newest| newest.stream != reader.stream() || newest.next > reader.position();
    if newest.wait_for(is_new).await.is_err() {
        // The actors have ended; so will this process.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(stagger).await;
    log.read(reader.position(), settings.batch_events_max, settings.batch_bytes_max).await
}

fn text(item: Item) -> String {
    match item {
        Item::Event(record) => record.json.to_string(),
        Item::Lost { from, to } => notice(&Notice::Lost { from, to }),
        Item::Began(stream) => notice(&Notice::Began { stream: stream.to_string() }),
    }
}

fn notice(notice: &Notice) -> String {
    serde_json::to_string(notice).expect("plain data")
}

impl Events {
    /// Tells of the answer to a request: that it refused work because a limit was reached, or what was to be
    /// changed by whom. Requests to instances change nothing here.
    pub(super) fn answered(&self, answer: &ServiceResponse, request: &str) {
        let asked = answer.request();
        let extensions = asked.extensions();
        let Some(principal) = extensions.get::<Principal>() else { return };
        let tenant = match &principal.tenant {
            TenantScope::All => None,
            TenantScope::One(tenant) => Some(tenant.clone()),
        };
        let status = answer.status();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            let problem = answer.response().error().and_then(|error| error.as_error::<Problem>());
            let code = problem.map_or("unknown".into(), |problem| problem.code().clone());
            self.teller.refused(tenant.clone(), code);
        }
        if asked.method().is_safe() || !asked.path().starts_with("/v1/") {
            return;
        }
        let audit = Audit {
            who: principal.name.clone(),
            role: principal.role.name(),
            method: asked.method().to_string(),
            path: asked.path().to_owned(),
            status: status.as_u16(),
            request: request.to_owned(),
        };
        let Audit { who, role, method, path, status, request } = &audit;
        tracing::info!(target: "faasnet::audit", who, role, method, path, status, request, "a change was asked for");
        self.teller.tell(News { tenant, happening: Happening::Audit(audit) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn subscribers_are_spread_over_an_interval_and_the_first_does_not_wait() {
        let settings = Settings::default().events;
        let interval = Duration::from_millis(settings.interval_ms);
        let of = |free: usize| stagger(&settings, free);
        assert_eq!(of(settings.subscribers_max - 1), Duration::ZERO);
        assert_eq!(of(settings.subscribers_max / 2 - 1), interval / 2);
        assert!(of(0) > interval * 99 / 100 && of(0) < interval);
    }
}
