//! `faasnet stop ID`.

use super::{Context, Failure};
use clap::Args;
use faasnet_actors::id::StartId;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct Stop {
    /// The start whose instance is ended
    #[arg(value_name = "START_ID")]
    start: StartId,
}

impl Stop {
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        context.client.delete(&format!("/v1/starts/{}", self.start)).await?;
        context.output.done(&format!("{} is being stopped", self.start))?;
        Ok(ExitCode::SUCCESS)
    }
}
