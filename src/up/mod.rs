//! `faasnet up`: the whole system on one machine. A manager and some agents as processes of their own,
//! each with its own data folder, a folder as origin, and a sample function.
//!
//! Everything lies below one data folder. The processes end with this one, however it ends.

mod processes;

use crate::{
    cli::Client,
    sample::{self, SampleOptions},
    settings::Settings,
};
use anyhow::{Context, bail};
use faasnet_actors::model::{VmState, VmView};
use processes::{Processes, ready_line};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

/// What the command line says.
#[derive(Debug, Clone)]
pub struct UpOptions {
    pub vms: u32,
    pub data: PathBuf,
    /// Whether the sample function is built and deployed.
    pub has_sample: bool,
    pub json: bool,
}

/// Time for the manager and all agents to come up: on a busy machine with many VMs.
const UP_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The line that a manager prints when it serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ManagerReady {
    pub api: String,
    pub control: SocketAddr,
    pub token_file: PathBuf,
}

/// The line that `up --json` prints when everything is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpReady {
    pub api: String,
    pub token_file: PathBuf,
    pub vms: Vec<String>,
    pub function: Option<String>,
}

/// The name under which the sample is deployed.
const SAMPLE: &str = "sample";

/// Brings everything up, waits for SIGINT or SIGTERM, and takes everything down.
pub async fn run(settings: Settings, options: UpOptions) -> anyhow::Result<()> {
    if options.vms == 0 || options.vms > 200 {
        bail!("--vms takes 1 to 200");
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut processes = Processes::default();
    let result = tokio::select! {
        result = bring_up(&settings, &options, &mut processes) => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    let result = match result {
        Ok(()) if processes.is_complete() => tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            name = processes.any_ends() => Err(anyhow::anyhow!("{name} has ended; its log is in {}", options.data.display())),
        },
        other => other,
    };
    let grace = settings.agent.stop_grace_ms + settings.holder.call_deadline_ms + settings.http.shutdown_ms;
    processes.stop(Duration::from_millis(grace)).await;
    result
}

async fn bring_up(settings: &Settings, options: &UpOptions, processes: &mut Processes) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(&options.data).context("making the data folder")?;
    let data = options.data.canonicalize()?;
    let config = write_settings(settings, options, &data)?;
    tracing::info!(data = %data.display(), "starting the manager");
    let log = data.join("manager.log");
    let manager = processes.start("manager", &log, &["manager"], &config, &[]).await?;
    let line =
        tokio::time::timeout(UP_DEADLINE, ready_line(manager)).await.context("waiting for the manager")?;
    let line = line.with_context(|| last_words("the manager", &log))?;
    let ready: ManagerReady = serde_json::from_str(&line).context("reading what the manager said")?;
    let token = fs::read_to_string(&ready.token_file).context("reading the API token")?;
    let client = Client::new(ready.api.clone(), token.trim().to_owned(), None)?;
    let vms = start_agents(&client, &ready, options, &data, &config, processes).await?;
    let function = if options.has_sample { Some(deploy_sample(&client, &data).await?) } else { None };
    processes.complete();
    announce(&UpReady { api: ready.api, token_file: ready.token_file, vms, function }, options.json);
    Ok(())
}

/// Why a process ended: the last line of its log.
fn last_words(name: &str, log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().last().unwrap_or("it said nothing");
    format!("{name} ended while it was starting: {last} (log: {})", log.display())
}

fn announce(ready: &UpReady, is_json: bool) {
    if is_json {
        println!("{}", serde_json::to_string(ready).expect("plain data"));
        return;
    }
    println!("FaaSNet is up: {} VMs, API at {}", ready.vms.len(), ready.api);
    println!(
        "The API token is in {}; with it you can log in to the console at {}/",
        ready.token_file.display(),
        ready.api
    );
    if let Some(function) = &ready.function {
        println!("The function {function:?} is deployed. Try, in another terminal:");
        println!("  export FAASNET_API={} FAASNET_TOKEN=$(cat {})", ready.api, ready.token_file.display());
        println!("  faasnet start {function} --count {} --wait", ready.vms.len());
        println!("  faasnet invoke {function}");
        println!("  faasnet tree {function}");
    }
    println!("Ctrl-C takes everything down.");
}

/// The user's settings with the folders of this run, for all its processes.
fn write_settings(settings: &Settings, options: &UpOptions, data: &Path) -> anyhow::Result<PathBuf> {
    let mut settings = settings.clone();
    settings.manager.data = data.join("manager");
    settings.image.layout_roots.push(data.join("layouts"));
    if settings.agent.memory_bytes == 0 {
        // All agents share one machine: each gets its part, none what it does not have.
        let info = rustix::system::sysinfo();
        let total = info.totalram.saturating_mul(u64::from(info.mem_unit));
        settings.agent.memory_bytes = total / u64::from(options.vms) / 4 * 3;
    }
    let path = data.join("settings.toml");
    fs::write(&path, settings.to_toml()).context("writing the settings of this run")?;
    Ok(path)
}

async fn start_agents(
    client: &Client,
    ready: &ManagerReady,
    options: &UpOptions,
    data: &Path,
    config: &Path,
    processes: &mut Processes,
) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Made {
        token: String,
    }
    #[derive(Deserialize)]
    struct Vms {
        vms: Vec<VmView>,
    }
    let made = client.send(Method::POST, "/v1/join-tokens", &serde_json::json!({})).await?;
    let made: Made = serde_json::from_slice(&made).context("reading the join token")?;
    let names: Vec<String> = (1..=options.vms).map(|number| format!("vm-{number}")).collect();
    let control = ready.control.to_string();
    for name in &names {
        let folder = data.join(name);
        let variables = [
            ("FAASNET_JOIN_TOKEN", made.token.as_str()),
            ("FAASNET__AGENT__DATA", folder.to_str().context("the data folder's path must be UTF-8")?),
        ];
        let arguments = ["agent", "--name", name, "--manager", &control];
        processes.start(name, &data.join(format!("{name}.log")), &arguments, config, &variables).await?;
    }
    let deadline = Instant::now() + UP_DEADLINE;
    loop {
        let vms: Vms = serde_json::from_slice(&client.get("/v1/vms").await?).context("reading the VMs")?;
        let up = vms.vms.iter().filter(|vm| vm.state != VmState::Lost).count();
        if up >= names.len() {
            return Ok(names);
        }
        if let Some(name) = processes.ended() {
            bail!(last_words(&name, &data.join(format!("{name}.log"))));
        }
        if Instant::now() > deadline {
            bail!("only {up} of {} agents came up; their logs are in {}", names.len(), data.display());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Builds the sample image, deploys it and waits for its block image.
async fn deploy_sample(client: &Client, data: &Path) -> anyhow::Result<String> {
    let layout = data.join("layouts").join("sample");
    let building = tokio::task::spawn_blocking(move || {
        if layout.exists() {
            fs::remove_dir_all(&layout)?;
        }
        sample::build(&layout, &SampleOptions::of_this_program()?)
    });
    let image = building.await.context("building the sample image")??;
    let spec = serde_json::json!({ "image": image.reference(), "memory_mib": 128, "probe_path": "/healthz" });
    client.send(Method::PUT, &format!("/v1/functions/{SAMPLE}"), &spec).await?;
    loop {
        let function = client.get(&format!("/v1/functions/{SAMPLE}")).await?;
        let function: serde_json::Value = serde_json::from_slice(&function)?;
        match function["image_state"]["state"].as_str() {
            Some("ready") => return Ok(SAMPLE.to_owned()),
            Some("converting") => tokio::time::sleep(LOOK_AGAIN).await,
            _ => bail!("the sample image could not be converted: {}", function["image_state"]["reason"]),
        }
    }
}
