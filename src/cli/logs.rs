//! `faasnet logs START_ID`.

use super::{Context, Failure};
use clap::Args;
use faasnet_actors::id::StartId;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct Logs {
    #[arg(value_name = "START_ID")]
    start: StartId,
    /// Print only the last so many bytes
    #[arg(long, value_name = "BYTES")]
    tail: Option<u64>,
}

impl Logs {
    /// Prints the output as it is, also with --json: the API gives text.
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        let mut path = format!("/v1/starts/{}/logs", self.start);
        if let Some(tail) = self.tail {
            path = format!("{path}?tail={tail}");
        }
        let text = context.client.get(&path).await?;
        context.output.bytes(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
