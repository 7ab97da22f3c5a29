//! API tokens: made, listed and deleted by administrators, those of one tenant for their own.

use super::{
    HttpState,
    auth::Caller,
    problem::{Code, Problem},
    request::{Answer, JsonBody},
};
use crate::tokens::{ApiToken, Principal, Role, TenantScope, TokenError};
use actix_web::{
    HttpResponse,
    web::{Data, Json, Path},
};
use faasnet_actors::id::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const NAME_CHARS_MAX: usize = 64;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenWanted {
    name: String,
    role: Role,
    /// None: all of them.
    #[serde(default)]
    tenant: Option<TenantId>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct TokenMade {
    /// Shown this once, and kept nowhere.
    token: String,
    #[serde(flatten)]
    listed: ApiToken,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ListedTokens {
    tokens: Vec<ApiToken>,
}

pub(super) async fn list(state: Data<HttpState>, caller: Caller) -> Answer<ListedTokens> {
    Ok(Json(ListedTokens { tokens: state.tokens.list(&caller.principal.tenant) }))
}

pub(super) async fn create(
    state: Data<HttpState>,
    caller: Caller,
    wanted: JsonBody<TokenWanted>,
) -> Result<HttpResponse, Problem> {
    let TokenWanted { name, role, tenant } = wanted.0;
    let length = name.chars().count();
    if !(1..=NAME_CHARS_MAX).contains(&length) || name.chars().any(char::is_control) {
        let rule =
            format!("name must have 1 to {NAME_CHARS_MAX} characters, none of them a control character");
        return Err(Problem::invalid(rule));
    }
    let tenant = tenant.map_or(TenantScope::All, TenantScope::One);
    if !caller.principal.tenant.covers(&tenant) {
        let detail = "a token of one tenant makes tokens of that tenant only; name it in `tenant`";
        return Err(Problem::new(Code::Forbidden, detail));
    }
    let made = state.tokens.create(Principal { name, role, tenant }).await;
    let (token, listed) = made.map_err(problem)?;
    Ok(HttpResponse::Created().json(TokenMade { token, listed }))
}

pub(super) async fn delete(
    state: Data<HttpState>,
    caller: Caller,
    id: Path<String>,
) -> Result<HttpResponse, Problem> {
    state.tokens.delete(&id, &caller.principal.tenant).await.map_err(problem)?;
    Ok(HttpResponse::NoContent().finish())
}

pub(super) fn problem(error: TokenError) -> Problem {
    let code = match error {
        TokenError::Metadata(error) => return error.into(),
        TokenError::TooMany(_) => Code::TooManyJoinTokens,
        TokenError::TooManyApi(_) => Code::TooManyTokens,
        TokenError::LastAdmin => Code::LastAdmin,
        TokenError::Unknown => Code::NotFound,
        TokenError::File { .. }
        | TokenError::Random(_)
        | TokenError::NotAJoinToken
        | TokenError::SessionKey
        | TokenError::NotAToken(_) => Code::TokenNotMade,
    };
    Problem::new(code, error.to_string())
}
