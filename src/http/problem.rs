//! Errors of the API as problem details (RFC 9457): a stable code for programs, a sentence for people.

mod codes;

pub use codes::{Code, CodeRow};

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use faasnet_actors::{scheduler::ControlError, world::MetadataError};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, time::Duration};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{Object, Type},
    },
};

/// Media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What is wrong. Servers make it of a code of the table; clients read it from what servers send, which may be of
/// another release.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Problem {
    status: u16,
    pub detail: String,
    code: Cow<'static, str>,
    /// Seconds after which the same request may succeed; also in the header `Retry-After`.
    #[serde(default)]
    pub retry_after: Option<u64>,
    /// For the header `Allow` of a 405.
    #[serde(skip)]
    allow: Option<String>,
}

/// What is wrong, as problem details (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemJson<'a> {
    /// `urn:faasnet:problem:` and the code.
    r#type: String,
    /// The status in words.
    title: &'a str,
    status: u16,
    /// For people: what exactly, and often what to do.
    detail: &'a str,
    /// For programs: stable.
    #[schema(value_type = ProblemCode)]
    code: &'a str,
    /// Seconds after which the same request may succeed; also in the header `Retry-After`.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

/// Stable names of what is wrong.
pub(super) struct ProblemCode;

impl PartialSchema for ProblemCode {
    fn schema() -> RefOr<Schema> {
        let row = |code: &Code| {
            let CodeRow { name, status, when, remedy } = code.row();
            format!("| `{name}` | {} | {when} | {remedy} |\n", status.as_u16())
        };
        let rows: String = Code::ALL.iter().map(row).collect();
        let names = Code::ALL.iter().map(|code| code.row().name);
        Object::builder()
            .schema_type(Type::String)
            .enum_values(Some(names))
            .description(Some(format!(
                "| code | status | when | what to do |\n| --- | --- | --- | --- |\n{rows}"
            )))
            .into()
    }
}

impl ToSchema for ProblemCode {}

/// Given when the reason of a 503 does not say how long it lasts.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let CodeRow { name, status, .. } = code.row();
        Self {
            status: status.as_u16(),
            detail: detail.into(),
            code: name.into(),
            retry_after: (status == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER.as_secs()),
            allow: None,
        }
    }

    /// Stable, in snake case.
    pub fn code(&self) -> &Cow<'static, str> {
        &self.code
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// Tells the caller when to come back; whole seconds, at least one.
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.retry_after = Some(pause.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX));
        self
    }

    pub fn invalid(detail: impl fmt::Display) -> Self {
        Self::new(Code::Invalid, detail.to_string())
    }

    fn json(&self) -> Vec<u8> {
        let json = ProblemJson {
            r#type: format!("urn:faasnet:problem:{}", self.code),
            title: self.status_code().canonical_reason().unwrap_or("Error"),
            status: self.status,
            detail: &self.detail,
            code: &self.code,
            retry_after: self.retry_after,
        };
        serde_json::to_vec(&json).expect("a problem has only text and numbers")
    }

    pub(super) fn method_not_allowed(allow: String) -> Self {
        let detail = format!("this address knows {allow}");
        Self { allow: Some(allow), ..Self::new(Code::MethodNotAllowed, detail) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({})", self.detail, self.code)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        response.content_type(PROBLEM_JSON);
        if let Some(seconds) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        if let Some(allow) = &self.allow {
            response.insert_header((header::ALLOW, allow.as_str()));
        }
        if self.status_code() == StatusCode::UNAUTHORIZED {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"faasnet\""));
        }
        response.body(self.json())
    }
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        let detail = error.to_string();
        match error {
            ControlError::NotFound(_) => Self::new(Code::NotFound, detail),
            ControlError::Invalid(_) => Self::invalid(detail),
            ControlError::Conflict(_) => Self::new(Code::Conflict, detail),
            ControlError::TooMany { retry_after, .. } => {
                Self::new(Code::TooMany, detail).retry_after(retry_after)
            }
            ControlError::Overloaded { retry_after } => {
                Self::new(Code::Overloaded, detail).retry_after(retry_after)
            }
            ControlError::ImageNotReady { retry_after } => {
                Self::new(Code::ImageNotReady, detail).retry_after(retry_after)
            }
            // The function's owner can mend it, the caller's next try cannot.
            ControlError::ImageFailed(_) => Self::new(Code::ImageFailed, detail),
            // The function's owner or the operator can mend it, the caller's next try cannot.
            ControlError::TooLarge { .. } => Self::new(Code::TooLarge, detail),
            ControlError::StartFailed(_) => Self::new(Code::StartFailed, detail),
            ControlError::DeadlineExceeded => Self::new(Code::DeadlineExceeded, detail),
            ControlError::Metadata(error) => error.into(),
            ControlError::Interrupted { retry_after } => {
                Self::new(Code::Interrupted, detail).retry_after(retry_after)
            }
            ControlError::Closed => Self::new(Code::ShuttingDown, detail),
        }
    }
}

/// All of them pass: the disk gets room, the store comes back, the newest manager answers.
impl From<MetadataError> for Problem {
    fn from(error: MetadataError) -> Self {
        let code = match error {
            MetadataError::Full(_) => Code::MetadataFull,
            MetadataError::Busy => Code::MetadataBusy,
            MetadataError::Superseded => Code::Superseded,
            MetadataError::Unknown => Code::OutcomeUnknown,
            MetadataError::Unwritable(_)
            | MetadataError::Unavailable(_)
            | MetadataError::TooLarge(_)
            | MetadataError::Conflict { .. }
            | MetadataError::Damaged(_) => Code::MetadataUnavailable,
        };
        let detail = ControlError::Metadata(error).to_string();
        Self::new(code, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_given_in_whole_seconds_and_never_as_zero() {
        let problem =
            |retry_after| Problem::from(ControlError::TooMany { what: "requests", retry_after }).retry_after;
        assert_eq!(problem(Duration::ZERO), Some(1));
        assert_eq!(problem(Duration::from_millis(1001)), Some(2));
        assert_eq!(Problem::from(ControlError::Closed).retry_after, Some(1));
        assert_eq!(Problem::from(ControlError::NotFound("function")).retry_after, None);
    }
}
