//! Instances that only read: in place of a container, a process of ours that reads a part of the image's files and
//! then answers. What it reads is the hot set of such a function. It costs a fraction of a container's CPU, so that one
//! machine carries far more VMs.
//!
//! `faasnet-reading-runtime` stands in for the OCI runtime (setting `holder.runtime`) and takes the calls that a
//! holder makes: run, kill, delete. There is no confinement: it is for test beds.

mod instance;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The program beside `faasnet-loadtest`.
pub const PROGRAM: &str = "faasnet-reading-runtime";
/// The variable of a function that says how much its instances read.
const PERCENT: &str = "READ_PERCENT";
/// Of the image's files, where the function does not say.
const PERCENT_DEFAULT: u8 = 25;

#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, about = "Runs instances on a test bed that only read")]
pub struct ReadingRuntime {
    /// Where it notes which process an instance is
    #[arg(long)]
    root: PathBuf,
    /// Not written: what goes wrong goes to the error output
    #[arg(long)]
    log: Option<PathBuf>,
    #[arg(long)]
    log_format: Option<String>,
    #[command(subcommand)]
    call: Call,
}

#[derive(Debug, Subcommand)]
enum Call {
    /// Start an instance and return
    Run {
        #[arg(long, required = true)]
        detach: bool,
        #[arg(long)]
        bundle: PathBuf,
        #[arg(long)]
        pid_file: PathBuf,
        id: String,
    },
    /// Send an instance a signal
    Kill { id: String, signal: i32 },
    /// Kill an instance if it lives, and forget it
    Delete {
        #[arg(long)]
        force: bool,
        id: String,
    },
    /// Be an instance
    #[command(hide = true)]
    Be { rootfs: PathBuf, port: u16, percent: u8, id: String },
}

impl ReadingRuntime {
    pub fn run(self) -> anyhow::Result<()> {
        match self.call {
            Call::Run { bundle, pid_file, id, .. } => start(&self.root, &bundle, &pid_file, &id),
            Call::Kill { id, signal } => {
                let signal = Signal::from_named_raw(signal).context("there is no such signal")?;
                Ok(kill_process(process(&self.root, &id)?, signal)?)
            }
            Call::Delete { id, .. } => delete(&self.root, &id),
            Call::Be { rootfs, port, percent, .. } => instance::serve(&rootfs, port, percent),
        }
    }
}

/// What the holder's description of a container says that matters here.
fn described(bundle: &Path) -> anyhow::Result<(u16, u8)> {
    let path = bundle.join("config.json");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let config: Value = serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    let variables = config["process"]["env"].as_array().context("the container has no environment")?;
    let variable = |name: &str| {
        variables.iter().filter_map(Value::as_str).find_map(|text| text.strip_prefix(name)?.strip_prefix('='))
    };
    let port = variable("PORT").context("the container has no PORT")?.parse().context("PORT")?;
    let percent = variable(PERCENT).map_or(Ok(PERCENT_DEFAULT), str::parse).context(PERCENT)?;
    ensure!(percent <= 100, "{PERCENT} is {percent}; use 0 to 100");
    Ok((port, percent))
}

/// The process becomes the holder's when this one ends.
fn start(root: &Path, bundle: &Path, pid_file: &Path, id: &str) -> anyhow::Result<()> {
    let (port, percent) = described(bundle)?;
    let child = Command::new(std::env::current_exe()?)
        .arg("--root")
        .arg(root)
        .arg("be")
        .arg(bundle.join("rootfs"))
        .args([&port.to_string(), &percent.to_string(), id])
        .stdin(Stdio::null())
        .spawn()
        .context("start the instance")?;
    let note = root.join(id);
    fs::create_dir_all(&note).with_context(|| format!("create {}", note.display()))?;
    let pid = child.id().to_string();
    fs::write(note.join("pid"), &pid)?;
    fs::write(pid_file, &pid).with_context(|| format!("write {}", pid_file.display()))
}

/// An instance that lives. Its number may have gone to another process, which does not have its name.
fn process(root: &Path, id: &str) -> anyhow::Result<Pid> {
    let path = root.join(id).join("pid");
    let text = fs::read_to_string(&path).with_context(|| format!("there is no instance {id}"))?;
    let command = fs::read(format!("/proc/{}/cmdline", text.trim())).unwrap_or_default();
    let is_it = command.split(|byte| *byte == 0).any(|argument| argument == id.as_bytes());
    ensure!(is_it, "the instance {id} has ended");
    Pid::from_raw(text.trim().parse()?).context("no process has the number 0")
}

fn delete(root: &Path, id: &str) -> anyhow::Result<()> {
    if let Ok(pid) = process(root, id) {
        kill_process(pid, Signal::KILL)?;
    }
    match fs::remove_dir_all(root.join(id)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
