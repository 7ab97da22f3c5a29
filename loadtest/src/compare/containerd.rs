//! The other side: Debian's containerd, started for one measurement with folders of its own.

use crate::{
    bed::BedState,
    rig::{Api, process::Service, run, wait_until},
};
use anyhow::Context;
use faasnet_actors::support::millis;
use serde::Serialize;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A port of the VM's own loopback; nothing else runs there during this measurement.
const PORT: u16 = 8081;

/// What `ctr image pull` and `ctr run` took.
#[derive(Debug, Clone, Serialize)]
pub struct Containerd {
    pub pull_ms: u64,
    /// From `ctr run` to the first answer.
    pub run_ms: u64,
    pub total_ms: u64,
    /// Counted by the VM's interface.
    pub received_bytes: u64,
}

/// Pulls the image onto a host of the bed and runs it until it answers.
pub fn pull_and_run(bed: &BedState, host: &str, reference: &str, env: &str) -> anyhow::Result<Containerd> {
    let mut measured = burst(bed, &[host.to_owned()], reference, env)?;
    measured.pop().context("one host, one measurement")
}

/// The same on several hosts at once.
pub fn burst(
    bed: &BedState,
    hosts: &[String],
    reference: &str,
    env: &str,
) -> anyhow::Result<Vec<Containerd>> {
    let folders: Vec<TempDir> = hosts.iter().map(|_| tempfile::tempdir()).collect::<Result<_, _>>()?;
    let daemons = hosts.iter().zip(&folders).map(|(host, folder)| Daemon::start(bed, host, folder.path()));
    let daemons: Vec<Daemon<'_>> = daemons.collect::<Result<_, _>>()?;
    std::thread::scope(|scope| {
        let one = |daemon| move || daemon_pulls_and_runs(daemon, reference, env);
        let threads: Vec<_> = daemons.iter().map(|daemon| scope.spawn(one(daemon))).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

fn daemon_pulls_and_runs(daemon: &Daemon<'_>, reference: &str, env: &str) -> anyhow::Result<Containerd> {
    let (bed, host) = (daemon.bed, daemon.host);
    let received = bed.counters(host)?.received_bytes;
    let begin = Instant::now();
    run(daemon.ctr()?.args(["image", "pull", "--plain-http", reference]))?;
    let pull_ms = millis(begin.elapsed());
    let port = format!("PORT={PORT}");
    let options = ["run", "-d", "--net-host", "--env", &port, "--env", env];
    run(daemon.ctr()?.args(options).args([reference, &daemon.container]))?;
    let from = Some((bed.clone(), host.to_owned()));
    let server = Api { address: SocketAddr::from(([127, 0, 0, 1], PORT)), token: String::new(), from };
    wait_until("the container to answer", Duration::from_secs(120), || {
        Ok(server.call("GET", "/", "").is_ok_and(|answer| answer.status.is_success()).then_some(()))
    })?;
    let total_ms = millis(begin.elapsed());
    let received_bytes = bed.counters(host)?.received_bytes - received;
    Ok(Containerd { pull_ms, run_ms: total_ms - pull_ms, total_ms, received_bytes })
}

struct Daemon<'a> {
    bed: &'a BedState,
    host: &'a str,
    socket: PathBuf,
    /// Unique on this machine: the runtime keeps its state in one folder for all.
    container: String,
    service: Service,
}

impl<'a> Daemon<'a> {
    /// Its mounts lie in a mount namespace of its own and go with it.
    fn start(bed: &'a BedState, host: &'a str, folder: &Path) -> anyhow::Result<Self> {
        let (socket, config) = (folder.join("containerd.sock"), folder.join("config.toml"));
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {socket:?}\n",
            folder.join("root"),
            folder.join("state")
        );
        fs::write(&config, text)?;
        let mut command = bed.command(host, "unshare")?;
        command.args(["--mount", "--propagation", "private", "containerd", "--config"]).arg(&config);
        let service = Service::start("containerd", &mut command, folder)?;
        let container = format!("compared-{}-{host}", bed.id());
        let mut daemon = Self { bed, host, socket, container, service };
        wait_until("containerd to listen", Duration::from_secs(30), || {
            if let Some(status) = daemon.service.ended()? {
                anyhow::bail!("it ended with {status}: {}", fs::read_to_string(&daemon.service.log)?);
            }
            Ok(run(daemon.ctr()?.arg("version")).ok())
        })?;
        Ok(daemon)
    }

    fn ctr(&self) -> anyhow::Result<Command> {
        let mut command = self.bed.command(self.host, "ctr")?;
        command.arg("--address").arg(&self.socket);
        Ok(command)
    }
}

/// Also when the measurement failed; the daemon itself is killed behind it.
impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        for arguments in [&["task", "rm", "--force"][..], &["container", "rm"]] {
            let _nothing_left_to_do =
                self.ctr().and_then(|mut ctr| run(ctr.args(arguments).arg(&self.container)));
        }
    }
}
