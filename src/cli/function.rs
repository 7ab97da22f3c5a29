//! `faasnet function deploy|list|show|delete`.

use super::{
    Context, Failure,
    output::{pairs, parse, progress, size, table},
    upload::upload,
};
use bytes::Bytes;
use clap::{Args, Subcommand};
use faasnet_actors::{
    id::{Digest, FunctionName},
    model::{FunctionSpec, FunctionView, ImageState},
    wire::control::Mode,
};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{iter, path::PathBuf, process::ExitCode, time::Duration};
use tokio::time::Instant;

#[derive(Debug, Subcommand)]
pub enum Function {
    /// Create or replace a function, and wait until its image is converted
    Deploy(Box<Deploy>),
    /// List the functions of the tenant
    List,
    /// Show one function
    Show { name: FunctionName },
    /// Delete a function and stop its instances
    Delete { name: FunctionName },
}

#[derive(Debug, Args)]
pub struct Deploy {
    name: FunctionName,
    /// The image: a registry reference, or oci:DIR[:TAG] on the manager's machine
    #[arg(long, value_name = "REF", required_unless_present = "zip", conflicts_with = "zip")]
    image: Option<String>,
    /// A zip with code, which instances find at /var/task in the image given by --runtime
    #[arg(long, value_name = "FILE", requires = "runtime")]
    zip: Option<PathBuf>,
    /// The image that the code runs in; functions of a tenant share its blocks
    #[arg(long, value_name = "REF", requires = "zip", conflicts_with = "image")]
    runtime: Option<String>,
    /// Memory of one instance [default: 256]
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// CPU of one instance, in thousandths of a core [default: 100]
    #[arg(long, value_name = "MILLIS")]
    cpu: Option<u32>,
    /// Requests that one instance serves at once [default: 80]
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
    /// Instances kept running, requests or not [default: 0]
    #[arg(long, value_name = "N")]
    min: Option<u32>,
    /// Instances at most [default: the manager's limit]
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// How long an instance is kept without a request [default: the manager's, 900]
    #[arg(long, value_name = "SECONDS")]
    keep_alive: Option<u64>,
    /// Set a variable of the environment; may be given again
    #[arg(long, value_name = "K=V", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Path that answers below 400 when an instance is ready [default: /]
    #[arg(long, value_name = "PATH")]
    probe: Option<String>,
    /// How much of the image is brought to an instance's VM: what is read, all in the background, or all before it
    /// starts [default: lazy]
    #[arg(long, value_name = "MODE", value_parser = mode_named)]
    mode: Option<Mode>,
    /// What to run, with its arguments, in place of the image's entrypoint and command. All that follows
    /// belongs to it
    #[arg(long, value_name = "WORD", num_args = 1.., allow_hyphen_values = true)]
    command: Option<Vec<String>>,
    /// Return when the function is accepted, before its image is converted
    #[arg(long)]
    no_wait: bool,
    /// Longest wait for the conversion, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, conflicts_with = "no_wait")]
    timeout: u64,
}

fn mode_named(text: &str) -> Result<Mode, &'static str> {
    serde_json::from_value(json!(text)).map_err(|_| "use lazy, lazy-then-whole or whole")
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("use NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Deserialize)]
struct Functions {
    functions: Vec<FunctionView>,
}

impl Function {
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        match self {
            Self::Deploy(deploy) => deploy.run(context).await?,
            Self::List => {
                let body = context.client.get("/v1/functions").await?;
                context.output.answer(&body, |answer: Functions| list(answer.functions))?;
            }
            Self::Show { name } => {
                let body = context.client.get(&path(&name)).await?;
                context.output.answer(&body, show)?;
            }
            Self::Delete { name } => {
                context.client.delete(&path(&name)).await?;
                context.output.done(&format!("{name} is deleted"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn path(name: &FunctionName) -> String {
    format!("/v1/functions/{name}")
}

/// Pause between two looks at a conversion.
const POLL: Duration = Duration::from_millis(200);

impl Deploy {
    async fn run(self, context: &mut Context<'_>) -> Result<(), Failure> {
        let code = match &self.zip {
            Some(zip) => Some(upload(&context.client, zip).await?),
            None => None,
        };
        let accepted = context.client.send(Method::PUT, &path(&self.name), &self.spec(code)).await?;
        let body = if self.no_wait { accepted } else { self.wait(context, accepted).await? };
        let states = states(parse(&body)?);
        if let (false, Some(reason)) = (self.no_wait, states.iter().find_map(failure)) {
            return Err(Failure::Conversion(reason));
        }
        context.output.answer(&body, show)
    }

    /// Names only what was given, so that the defaults stay the manager's.
    fn spec(&self, code: Option<Digest>) -> Value {
        let image = self.image.as_ref().or(self.runtime.as_ref());
        let mut spec = Map::from_iter([("image".to_owned(), json!(image))]);
        let optional = [
            ("memory_mib", self.memory.map(Value::from)),
            ("cpu_millis", self.cpu.map(Value::from)),
            ("concurrency", self.concurrency.map(Value::from)),
            ("min_instances", self.min.map(Value::from)),
            ("max_instances", self.max.map(Value::from)),
            ("keep_alive_ms", self.keep_alive.map(|seconds| seconds.saturating_mul(1000).into())),
            ("probe_path", self.probe.clone().map(Value::from)),
            ("code", code.map(|code| code.to_string().into())),
            ("command", self.command.clone().map(Value::from)),
            ("mode", self.mode.map(|mode| json!(mode))),
        ];
        spec.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        if !self.env.is_empty() {
            let env = self.env.iter().map(|(name, value)| (name.clone(), json!(value)));
            spec.insert("env".to_owned(), Value::Object(env.collect()));
        }
        Value::Object(spec)
    }

    /// Looks until the conversion has come to its end, and returns the last answer.
    async fn wait(&self, context: &Context<'_>, accepted: Bytes) -> Result<Bytes, Failure> {
        let timeout = Duration::from_secs(self.timeout);
        let began = Instant::now();
        let progress = progress(0, "{msg} {bar:30} {bytes}/{total_bytes} {elapsed}");
        let mut body = accepted;
        loop {
            let states = states(parse(&body)?);
            let is_over = states.iter().any(|state| failure(state).is_some());
            let converting = |state: &&ImageState| matches!(state, ImageState::Converting { .. });
            match states.iter().find(converting).filter(|_| !is_over) {
                Some(ImageState::Converting { phase, done, total }) => {
                    progress.set_message(super::output::printable(phase));
                    progress.set_length(*total);
                    progress.set_position(*done);
                }
                _ => {
                    progress.finish_and_clear();
                    return Ok(body);
                }
            }
            if began.elapsed() >= timeout {
                return Err(Failure::Timeout(timeout));
            }
            tokio::time::sleep(POLL).await;
            body = context.client.get(&path(&self.name)).await?;
        }
    }
}

/// Where the image and the code stand.
fn states(function: FunctionView) -> Vec<ImageState> {
    iter::once(function.image_state).chain(function.code_state).collect()
}

fn failure(state: &ImageState) -> Option<String> {
    match state {
        ImageState::Failed { reason } => Some(reason.clone()),
        ImageState::Converting { .. } | ImageState::Ready { .. } => None,
    }
}

fn list(functions: Vec<FunctionView>) -> String {
    let row = |function: FunctionView| {
        [
            function.name.to_string(),
            function.spec.image,
            state(&function.image_state),
            function.ready.to_string(),
            function.starting.to_string(),
        ]
    };
    table(["NAME", "IMAGE", "STATE", "READY", "STARTING"], functions.into_iter().map(row).collect())
}

fn state(state: &ImageState) -> String {
    match state {
        ImageState::Converting { phase, done, total } if *total > 0 => {
            format!("converting: {phase}, {} of {}", size(*done), size(*total))
        }
        ImageState::Converting { phase, .. } => format!("converting: {phase}"),
        ImageState::Ready { .. } => "ready".to_owned(),
        ImageState::Failed { reason } => format!("failed: {reason}"),
    }
}

fn scaling(spec: &FunctionSpec) -> String {
    let max = spec.max_instances.map_or_else(String::new, |max| format!(" to {max}"));
    let kept = spec.keep_alive_ms.map(|ms| format!(", kept {} s without a request", ms as f64 / 1000.0));
    format!("{}{max} instances{}", spec.min_instances, kept.unwrap_or_default())
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Lazy => "lazy: what is read is fetched",
        Mode::LazyThenWhole => "lazy-then-whole: the rest of the image is fetched when an instance is ready",
        Mode::Whole => "whole: instances start when all of the image is there",
    }
}

fn show(function: FunctionView) -> String {
    let scaling = scaling(&function.spec);
    let mut lines = vec![
        ("name", function.name.to_string()),
        ("image", function.spec.image),
        ("state", state(&function.image_state)),
    ];
    if let ImageState::Ready { id, source, plain_bytes, stored_bytes } = function.image_state {
        lines.push(("source", source.to_string()));
        lines.push(("block image", id.to_string()));
        lines.push(("size", format!("{}, {} as stored", size(plain_bytes), size(stored_bytes))));
    }
    // Arguments may be secrets, as values of the environment are.
    if let Some([program, arguments @ ..]) = function.spec.command.as_deref() {
        lines.push(("command", format!("{program}, {} arguments", arguments.len())));
    }
    if let (Some(package), Some(code)) = (function.spec.code, &function.code_state) {
        lines.push(("code", format!("{package}, {}", state(code))));
    }
    lines.push(("memory", size(function.spec.memory_mib << 20)));
    lines.push(("cpu", format!("{} thousandths of a core", function.spec.cpu_millis)));
    lines.push(("concurrency", function.spec.concurrency.to_string()));
    lines.push(("scaling", scaling));
    lines.push(("mode", mode(function.spec.mode).to_owned()));
    lines.push(("probe", function.spec.probe_path));
    // Values may be secrets.
    let names: Vec<_> = function.spec.env.into_keys().collect();
    if !names.is_empty() {
        lines.push(("env", names.join(", ")));
    }
    lines.push(("instances", format!("{} ready, {} starting", function.ready, function.starting)));
    lines.push(("requests", format!("{} waiting", function.waiting)));
    pairs(lines)
}
