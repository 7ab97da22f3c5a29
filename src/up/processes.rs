//! The processes of one `up`.

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use std::{fs::File, path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// In the order of their start; they are stopped in the reverse.
#[derive(Default)]
pub struct Processes {
    running: Vec<(String, Child)>,
    is_complete: bool,
}

impl Processes {
    /// Starts this program again with other arguments. It ends with us, even when we are killed.
    pub async fn start(
        &mut self,
        name: &str,
        log: &Path,
        arguments: &[&str],
        config: &Path,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<&mut Child> {
        let log = File::create(log).with_context(|| format!("making the log {}", log.display()))?;
        let mut command = Command::new(std::env::current_exe()?);
        // They are in the settings of this run already, where some of them were replaced.
        for (variable, _) in std::env::vars_os() {
            if variable.as_encoded_bytes().starts_with(b"FAASNET__") {
                command.env_remove(variable);
            }
        }
        let child = command
            .arg("--config")
            .arg(config)
            .args(arguments)
            .arg("--end-with-parent")
            .envs(variables.iter().copied())
            // A group of its own: Ctrl-C in the terminal is ours to pass on, in the right order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        self.running.push((name.to_owned(), child));
        Ok(&mut self.running.last_mut().expect("pushed above").1)
    }

    pub fn complete(&mut self) {
        self.is_complete = true;
    }

    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// A process that has ended, if one has.
    pub fn ended(&mut self) -> Option<String> {
        self.running.iter_mut().find_map(|(name, child)| {
            child.try_wait().is_ok_and(|status| status.is_some()).then(|| name.clone())
        })
    }

    /// Waits for the first process to end by itself.
    pub async fn any_ends(&mut self) -> String {
        let waits = self.running.iter_mut().map(|(name, child)| {
            Box::pin(async move {
                let _ = child.wait().await;
                name.clone()
            })
        });
        futures::future::select_all(waits).await.0
    }

    /// Agents first, all at once, then the manager. What does not end in time is killed.
    pub async fn stop(&mut self, grace: Duration) {
        let agents = self.running.split_off(1.min(self.running.len()));
        let manager = std::mem::take(&mut self.running);
        for group in [agents, manager] {
            let ends = group.into_iter().map(|(name, mut child)| async move {
                signal(&child, Signal::TERM);
                if tokio::time::timeout(grace, child.wait()).await.is_err() {
                    tracing::error!(process = name, "did not end in time and is killed");
                    let _ = child.kill().await;
                }
            });
            futures::future::join_all(ends).await;
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

/// The first line that a process prints.
pub async fn ready_line(child: &mut Child) -> anyhow::Result<String> {
    let output = child.stdout.take().context("its output is read once")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).await?;
    anyhow::ensure!(!line.is_empty(), "it ended before it was ready");
    Ok(line)
}
