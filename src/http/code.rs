//! Packages of code: uploaded under the SHA-256 of their bytes, then named by a function.

use super::{
    HttpState,
    auth::Caller,
    problem::{Code, Problem},
    request::{Answer, too_large, too_slow},
};
use crate::code::{Arriving, CodeError};
use actix_web::{
    HttpRequest, HttpResponse,
    http::header::CONTENT_LENGTH,
    web::{Data, Json, Path, Payload},
};
use faasnet_actors::id::{Digest, TenantId};
use futures::StreamExt;
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

/// Bytes that are brought to the disk in one go: a thread is asked for each of them.
const BATCH_BYTES: usize = 1 << 20;

#[derive(Serialize, ToSchema)]
#[schema(as = CodeLimits)]
pub(super) struct Limits {
    package_bytes_max: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = KeptPackage)]
pub(super) struct Kept {
    digest: Digest,
    bytes: u64,
}

/// What a caller should know before it sends a package.
pub(super) async fn limits(state: Data<HttpState>, _: Caller) -> Answer<Limits> {
    Ok(Json(Limits { package_bytes_max: state.packages.package_bytes_max() }))
}

/// Takes a package. Again for one that is there already; answered when it would survive a crash.
pub(super) async fn put_package(
    state: Data<HttpState>,
    caller: Caller,
    digest: Path<Digest>,
    request: HttpRequest,
    mut body: Payload,
) -> Result<HttpResponse, Problem> {
    let digest = digest.into_inner();
    let limit = state.packages.package_bytes_max();
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > limit) {
        return Err(too_large(limit));
    }
    let (packages, tenant) = (state.packages.clone(), caller.tenant);
    let mut arriving = blocking(move || packages.receive(&tenant, digest)).await?;
    let (idle, mut batch) = (Duration::from_millis(state.settings.request_deadline_ms), Vec::new());
    while let Some(chunk) = tokio::time::timeout(idle, body.next()).await.map_err(|_| too_slow())? {
        let chunk = chunk.map_err(|error| Problem::invalid(format!("the body is cut off: {error}")))?;
        batch.extend_from_slice(&chunk);
        if batch.len() >= BATCH_BYTES {
            arriving = written(arriving, std::mem::take(&mut batch)).await?;
        }
    }
    let arriving = written(arriving, batch).await?;
    let bytes = blocking(move || arriving.finish()).await?;
    Ok(HttpResponse::Created().json(Kept { digest, bytes }))
}

/// Makes sure that a package is there, and stays for a function that is about to name it.
pub(super) async fn keep(state: &HttpState, tenant: &TenantId, package: Digest) -> Result<(), Problem> {
    let (packages, tenant) = (state.packages.clone(), tenant.clone());
    blocking(move || packages.keep(&tenant, package)).await
}

async fn written(mut arriving: Arriving, batch: Vec<u8>) -> Result<Arriving, Problem> {
    blocking(move || arriving.write(&batch).map(|()| arriving)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CodeError> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Problem::from),
        Err(_) => Err(internal("the work was interrupted".into())),
    }
}

fn internal(detail: String) -> Problem {
    Problem::new(Code::CodeFailed, detail)
}

impl From<CodeError> for Problem {
    fn from(error: CodeError) -> Self {
        let detail = error.to_string();
        match error {
            CodeError::TooLarge(limit) => too_large(limit),
            CodeError::WrongDigest { .. } => Self::invalid(detail),
            CodeError::TooMany(_) => Self::new(Code::TooManyPackages, detail),
            CodeError::Missing(_) => Self::new(Code::PackageMissing, detail),
            CodeError::Full(_) => Self::new(Code::PackagesFull, detail),
            CodeError::Busy => Self::new(Code::TooManyUploads, detail),
            CodeError::Io(_) => {
                tracing::error!(reason = detail, "a package was not kept");
                internal(detail)
            }
        }
    }
}
