//! What every request gets: an id, a span, a line in the log, errors in one form, and JSON with limits.

use super::{
    HttpState,
    problem::{Code, Problem},
};
use actix_web::{
    Error, FromRequest, HttpRequest,
    body::{BoxBody, MessageBody},
    dev::{Payload, ServiceRequest, ServiceResponse},
    http::header::{HeaderName, HeaderValue},
    middleware::Next,
    web::{Data, Json},
};
use faasnet_actors::id::RequestId;
use futures::{StreamExt, future::LocalBoxFuture};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::Instant;
use tracing::Instrument;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives each request its id, for the log, the response, and the instance behind the gateway.
pub(super) async fn identify<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let began = Instant::now();
    let id = request.headers().get(REQUEST_ID).filter(|id| is_fit(id)).cloned().unwrap_or_else(new_id);
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        path = request.path(),
    );
    let state = request.app_data::<Data<HttpState>>().expect("the application has its state").clone();
    let (inner, original) = (next.call(request), span.clone());
    async move {
        let mut response = match inner.await {
            Ok(response) => response.map_into_boxed_body(),
            // Only a layer below this one gives an error instead of a response; its request is gone.
            Err(error) => return Err(error),
        };
        state.events.answered(&response, id.to_str().unwrap_or_default());
        response.headers_mut().insert(REQUEST_ID, id);
        let (status, elapsed_ms) = (response.status().as_u16(), began.elapsed().as_millis());
        if status >= 500 {
            let reason = response.response().error().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(parent: &original, status, elapsed_ms, reason, "request failed");
        } else {
            tracing::debug!(parent: &original, status, elapsed_ms, "request answered");
        }
        Ok(response)
    }
    .instrument(span)
    .await
}

fn is_fit(id: &HeaderValue) -> bool {
    id.to_str().is_ok_and(|id| id.parse::<RequestId>().is_ok())
}

/// The id that every request has been given.
pub(super) fn id_of(request: &HttpRequest) -> Option<RequestId> {
    request.headers().get(REQUEST_ID)?.to_str().ok()?.parse().ok()
}

fn new_id() -> HeaderValue {
    HeaderValue::from_str(&uuid::Uuid::now_v7().to_string()).expect("a UUID is visible ASCII")
}

/// A JSON body of at most `http.json_bytes_max`. The type of the content is not asked for: a caller
/// with a token sends what it means.
pub(super) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for JsonBody<T> {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let state = request.app_data::<Data<HttpState>>().expect("the application has its state");
        let bytes_max = state.settings.json_bytes_max;
        let deadline = Duration::from_millis(state.settings.request_deadline_ms);
        let payload = payload.take();
        Box::pin(async move {
            let bytes =
                tokio::time::timeout(deadline, read(payload, bytes_max)).await.map_err(|_| too_slow())??;
            let value = serde_json::from_slice(&bytes)
                .map_err(|error| Problem::invalid(format!("the body is not what is wanted here: {error}")))?;
            Ok(Self(value))
        })
    }
}

async fn read(mut payload: Payload, bytes_max: usize) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| Problem::invalid(format!("the body is cut off: {error}")))?;
        if bytes.len() + chunk.len() > bytes_max {
            return Err(too_large(bytes_max as u64));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

pub(super) fn too_slow() -> Problem {
    Problem::new(Code::BodyTooSlow, "the body did not arrive in time")
}

pub(super) fn too_large(bytes_max: u64) -> Problem {
    let detail = format!("the body may have {bytes_max} bytes");
    Problem::new(Code::BodyTooLarge, detail)
}

/// What a handler answers.
pub(super) type Answer<T> = Result<Json<T>, Problem>;
