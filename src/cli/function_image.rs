//! `faasnet image profile` and `faasnet image optimize`: what starts of a function read of its image, and
//! packing the image by that. `faasnet image preheat` is in `preheat`.

use super::{
    Context,
    failure::Failure,
    output::{pairs, parse, progress, size},
};
use bytes::Bytes;
use clap::{Args, Subcommand};
use faasnet_actors::{
    id::FunctionName,
    model::{PackingState, ProfileView},
};
use reqwest::Method;
use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

/// What is done with the image of a function, over the API.
#[derive(Debug, Clone, Subcommand)]
pub enum FunctionImage {
    /// Show what starts of a function read of its image before they are ready
    Profile(ShowProfile),
    /// Bring a function's image to VMs before any start
    Preheat(super::preheat::Preheat),
    /// Pack a function's image so that what its starts read lies together; new starts use it
    Optimize(Optimize),
}

#[derive(Debug, Clone, Args)]
pub struct ShowProfile {
    /// The function
    name: FunctionName,
    /// Write the profile to that file, as `faasnet image convert --profile` takes it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct Optimize {
    /// The function
    name: FunctionName,
    /// Wait until it is done
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
}

/// Pause between two looks at a conversion.
const POLL: Duration = Duration::from_millis(200);

impl FunctionImage {
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        match self {
            Self::Profile(profile) => profile.run(context).await?,
            Self::Preheat(preheat) => preheat.run(context).await?,
            Self::Optimize(optimize) => optimize.run(context).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ShowProfile {
    async fn run(self, context: &mut Context<'_>) -> Result<(), Failure> {
        let body = context.client.get(&format!("/v1/functions/{}/profile", self.name)).await?;
        if let Some(path) = self.out {
            let view: ProfileView = parse(&body)?;
            let text = serde_json::to_vec_pretty(&view.profile).expect("profiles are plain data");
            std::fs::write(&path, text).map_err(|error| Failure::File { path, error })?;
        }
        context.output.answer(&body, show)
    }
}

impl Optimize {
    async fn run(self, context: &mut Context<'_>) -> Result<(), Failure> {
        let path = format!("/v1/functions/{}/optimize", self.name);
        let accepted = context.client.send(Method::POST, &path, &serde_json::json!({})).await?;
        let body = if self.wait { self.wait(context, accepted).await? } else { accepted };
        context.output.answer(&body, show)
    }

    /// Looks until new starts use the packed image, and returns the last answer.
    async fn wait(&self, context: &Context<'_>, accepted: Bytes) -> Result<Bytes, Failure> {
        let began = Instant::now();
        let timeout = Duration::from_secs(self.timeout);
        let bar = progress(0, "{msg} {bar:30} {bytes}/{total_bytes} {elapsed}");
        let mut body = accepted;
        loop {
            let view: ProfileView = parse(&body)?;
            match view.packing {
                PackingState::Done if view.is_packed => {
                    bar.finish_and_clear();
                    return Ok(body);
                }
                PackingState::Failed { reason, .. } => {
                    bar.finish_and_clear();
                    return Err(Failure::Conversion(reason));
                }
                PackingState::Running { phase, done, total } => {
                    bar.set_message(super::output::printable(&phase));
                    bar.set_length(total);
                    bar.set_position(done);
                }
                PackingState::None | PackingState::Waiting | PackingState::Done => {}
            }
            if began.elapsed() >= timeout {
                return Err(Failure::Timeout(timeout));
            }
            tokio::time::sleep(POLL).await;
            body = context.client.get(&format!("/v1/functions/{}/profile", self.name)).await?;
        }
    }
}

fn packing(state: PackingState) -> String {
    match state {
        PackingState::None => "not packed".into(),
        PackingState::Waiting => "waits for its turn".into(),
        PackingState::Running { phase, done, total } if total > 0 => {
            format!("{phase}, {} of {}", size(done), size(total))
        }
        PackingState::Running { phase, .. } => phase,
        PackingState::Done => "packed by this profile".into(),
        PackingState::Failed { reason, attempts } => format!("failed {attempts} times: {reason}"),
    }
}

fn show(view: ProfileView) -> String {
    let mut lines = vec![
        ("source", view.source.to_string()),
        ("block image", view.image.to_string()),
        ("recordings", view.recordings.to_string()),
        ("starts read", format!("{} of {} files", size(view.plain_bytes), view.files)),
    ];
    if let (Some(blocks), Some(stored)) = (view.blocks, view.stored_bytes) {
        let ratio = stored as f64 / view.plain_bytes.max(1) as f64;
        let lie = format!("{blocks} blocks, {} as stored, {ratio:.2} times what is read", size(stored));
        lines.push(("lying in", lie));
    }
    lines.push(("packing", packing(view.packing)));
    pairs(lines)
}
