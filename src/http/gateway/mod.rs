//! The gateway: forwards a request to an instance of a function.
//!
//! Each request has a connection of its own to its instance, over the agent. What belongs to it (the
//! place at the instance, the connection, both bodies) hangs on the response's body or on the
//! handler's future: a client that leaves drops them, and all of it is released.

mod bodies;
mod headers;

pub use headers::{START_HEADER, VM_HEADER};

use super::{
    HttpState,
    auth::Caller,
    dial::DialError,
    problem::{Code, Problem},
    request::too_large,
};
use actix_web::{
    HttpRequest, HttpResponse,
    body::BodySize,
    http::{Method, StatusCode},
    web::{Data, Path, Payload},
};
use bodies::{RequestBody, ResponseBody, Upload};
use faasnet_actors::{
    id::{FunctionName, StartId},
    scheduler::Acquired,
};
use hyper::{Response, body::Incoming, client::conn::http1, http};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Attempts for one request, the first included: an instance may have ended a moment ago.
const ATTEMPTS_MAX: u32 = 2;

pub(super) async fn invoke(
    state: Data<HttpState>,
    caller: Caller,
    path: Path<Target>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let deadline = Instant::now() + Duration::from_millis(state.settings.request_deadline_ms);
    headers::refuse_upgrade(&request)?;
    let on = headers::chosen_start(&request)?;
    let bytes_max = state.settings.request_body_bytes_max;
    if headers::content_length(&request).is_some_and(|length| length > bytes_max) {
        return Err(too_large(bytes_max));
    }
    let upload = Upload::new(payload.into_inner(), headers::has_body(&request), bytes_max);
    let name = &path.name;
    let scheduler = state.scheduler.clone().for_request(caller.request.clone());
    let mut attempt = 1;
    loop {
        let acquired = scheduler.acquire(caller.tenant.clone(), name.clone(), on.clone(), deadline).await?;
        let exchange = exchange(&state, &acquired, &request, &upload);
        let failure = match tokio::time::timeout_at(deadline, exchange).await {
            Ok(Ok((response, connection))) => return answer(&state, acquired, response, connection),
            Ok(Err(failure)) => failure,
            Err(_) => return Err(no_first_byte()),
        };
        if attempt == ATTEMPTS_MAX || !failure.may_repeat(request.method(), &upload) {
            return Err(failure.problem(&upload, bytes_max));
        }
        tracing::debug!(start = %acquired.located().start, reason = %failure, "tried another connection");
        attempt += 1;
    }
}

#[derive(serde::Deserialize)]
pub(super) struct Target {
    name: FunctionName,
}

/// The task that moves the bytes of one connection; it ends when this is dropped.
type ConnectionTask = AbortOnDropHandle<()>;

/// Sends the request and waits for the head of the response.
async fn exchange(
    state: &HttpState,
    acquired: &Acquired,
    request: &HttpRequest,
    upload: &Upload,
) -> Result<(Response<Incoming>, ConnectionTask), Failure> {
    let stream = state.dial.dial(acquired.located()).await?;
    let (mut sender, connection) =
        http1::handshake::<_, RequestBody>(TokioIo::new(stream)).await.map_err(Failure::Closed)?;
    let task = AbortOnDropHandle::new(actix_web::rt::spawn(async move {
        // Its errors reach the caller through the response or its body.
        let _ = connection.await;
    }));
    let outgoing = headers::outgoing(request, upload.body()).map_err(Failure::Request)?;
    let response = sender.send_request(outgoing).await.map_err(Failure::Closed)?;
    Ok((response, task))
}

fn answer(
    state: &HttpState,
    acquired: Acquired,
    response: Response<Incoming>,
    connection: ConnectionTask,
) -> Result<HttpResponse, Problem> {
    let bad = |detail: &str| Problem::new(Code::BadResponse, detail);
    let status =
        StatusCode::from_u16(response.status().as_u16()).map_err(|_| bad("its status is no status"))?;
    if status.is_informational() {
        return Err(bad("the instance changed the protocol without being asked"));
    }
    let bytes_max = state.settings.response_body_bytes_max;
    let size = headers::response_size(&response);
    if matches!(size, BodySize::Sized(length) if length > bytes_max) {
        return Err(bad(&format!("the instance's response has more than {bytes_max} bytes")));
    }
    let mut builder = HttpResponse::build(status);
    headers::copy_response(&response, acquired.located(), &mut builder);
    let idle = Duration::from_millis(state.settings.body_idle_ms);
    let body = ResponseBody::new(response.into_body(), size, bytes_max, idle, (acquired, connection));
    Ok(builder.body(body))
}

/// Why an attempt gave no response.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the instance closed the connection before it answered: {0}")]
    Closed(hyper::Error),
    #[error("the request cannot be forwarded: {0}")]
    Request(http::Error),
}

impl Failure {
    /// A failed dial has sent nothing. A request that may have arrived is repeated only when that
    /// does no harm and nothing of its body is spent.
    fn may_repeat(&self, method: &Method, upload: &Upload) -> bool {
        match self {
            Self::Dial(DialError::Unreachable(_) | DialError::Refused(_)) => true,
            Self::Dial(DialError::Busy) | Self::Request(_) => false,
            Self::Closed(_) => method.is_idempotent() && upload.is_untouched(),
        }
    }

    fn problem(self, upload: &Upload, bytes_max: u64) -> Problem {
        if upload.is_too_large() {
            return too_large(bytes_max);
        }
        let detail = self.to_string();
        match self {
            Self::Dial(error) => error.into(),
            Self::Closed(_) => Problem::new(Code::InstanceClosed, detail),
            Self::Request(_) => Problem::invalid(detail),
        }
    }
}

fn no_first_byte() -> Problem {
    let detail = "the instance did not begin to answer in time";
    Problem::new(Code::DeadlineExceeded, detail)
}

/// The instance that the caller wants to speak to, if it named one.
type Chosen = Option<StartId>;
