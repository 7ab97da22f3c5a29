//! `faasnet token create|list|delete`.

use super::{Context, Failure, output::table};
use crate::tokens::{ApiToken, Role};
use clap::{Subcommand, ValueEnum};
use faasnet_actors::id::TenantId;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token and print it; it is kept nowhere
    Create {
        /// What it is for
        name: String,
        #[arg(long, value_enum, default_value_t)]
        role: RoleName,
        /// The only tenant that it is good for [default: all tenants]
        #[arg(long = "only", value_name = "TENANT")]
        only: Option<TenantId>,
    },
    /// List all tokens
    List,
    /// Delete a token, and end the sessions that were opened with it
    Delete { id: String },
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum RoleName {
    /// Looks
    #[default]
    Viewer,
    /// Deploys, starts, stops and invokes functions, too
    Operator,
    /// Admits and removes VMs and tokens, too
    Admin,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Viewer => Self::Viewer,
            RoleName::Operator => Self::Operator,
            RoleName::Admin => Self::Admin,
        }
    }
}

#[derive(Deserialize)]
struct Made {
    token: String,
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<ApiToken>,
}

impl Token {
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        match self {
            Self::Create { name, role, only } => {
                let wanted = json!({ "name": name, "role": Role::from(role), "tenant": only });
                let body = context.client.send(Method::POST, "/v1/tokens", &wanted).await?;
                context.output.answer(&body, |made: Made| format!("{}\n", made.token))?;
            }
            Self::List => {
                let body = context.client.get("/v1/tokens").await?;
                context.output.answer(&body, |answer: Tokens| list(answer.tokens))?;
            }
            Self::Delete { id } => {
                let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
                if !is_id {
                    return Err(Failure::Usage("ID is what `faasnet token list` shows".into()));
                }
                context.client.delete(&format!("/v1/tokens/{id}")).await?;
                context.output.done("the token is deleted")?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn list(tokens: Vec<ApiToken>) -> String {
    let row = |token: ApiToken| {
        let tenant = token.tenant.map_or_else(|| "all".to_owned(), |tenant| tenant.to_string());
        [token.id, token.name, token.role.name().to_owned(), tenant]
    };
    table(["ID", "NAME", "ROLE", "TENANT"], tokens.into_iter().map(row).collect())
}
