//! Warm starts: the container of an instance again, from an overlay over the unpacked image on this
//! machine's disk. What a start costs when nothing has to be moved.
//!
//! The bundle is that of the instance itself: the same command, environment, limits and confinement, in the
//! network of the same host. Only where it is mounted from differs.

mod group;
mod worker;

pub use group::Usage;
pub use worker::WarmWorker;

use crate::{
    bed::BedState,
    rig::{Cluster, Image, run},
};
use anyhow::{Context, bail, ensure};
use group::Group;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The hidden verb of a worker.
pub const VERB: &str = "warm-worker";
/// Above the control groups of warm containers; the bed removes what begins like this.
const GROUPS: &str = "/faasnet-warm";

/// Debian 12's mkfs.erofs stumbles over what is there for file systems, and no service reads it.
const EXCLUDE: &str = "--exclude-path=opt/odd";

/// What one start took, from the first mount to the first answer of the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmStart {
    pub mount: Duration,
    pub run: Duration,
    pub probe: Duration,
    pub ready: Duration,
    /// What running the container took of the cores, and what then passed until the answer.
    pub run_used: Usage,
    pub probe_used: Usage,
    /// What the start read of the image, when that lies in a file of its own.
    pub bytes_read: Option<u64>,
}

/// The container of an instance, to be started again.
pub struct WarmContainer {
    config: Value,
    port: u16,
    folder: TempDir,
}

/// An image unpacked by umoci, below a folder that goes with it.
pub struct Unpacked {
    pub rootfs: PathBuf,
    folder: TempDir,
}

impl Unpacked {
    pub fn new(image: &Image) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("faasnet-warm-").tempdir()?;
        Ok(Self { rootfs: image.unpack(folder.path())?, folder })
    }

    /// An EROFS of it, made by mkfs.erofs without compression.
    pub fn erofs(&self) -> anyhow::Result<PathBuf> {
        let file = self.folder.path().join("erofs");
        if !file.exists() {
            // mkfs.erofs wants a device, or a file that is there.
            fs::File::create(&file)?;
            run(Command::new("mkfs.erofs").args(["--quiet", EXCLUDE]).arg(&file).arg(&self.rootfs))
                .context("is the package erofs-utils installed?")?;
        }
        Ok(file)
    }
}

impl WarmContainer {
    /// Takes the bundle of an instance that runs on this VM.
    pub fn of_instance(cluster: &Cluster, vm: &str, start: &str) -> anyhow::Result<Self> {
        let bundle = cluster.data(vm).join("instances").join(start);
        let text = fs::read_to_string(bundle.join("config.json")).context("read the instance's bundle")?;
        let config: Value = serde_json::from_str(&text)?;
        let folder = tempfile::Builder::new().prefix("faasnet-warm-").tempdir()?;
        for name in ["hosts", "resolv.conf"] {
            fs::copy(bundle.join(name), folder.path().join(name))?;
        }
        let env = config["process"]["env"].as_array().context("the bundle has no environment")?;
        let port = env.iter().filter_map(Value::as_str).find_map(|line| line.strip_prefix("PORT="));
        let port = port.context("the bundle has no PORT")?.parse()?;
        Ok(Self { config, port, folder })
    }

    /// One start on each of these hosts, all at the same moment; gives what each took, and how long it took
    /// until the last one was ready. All are stopped afterwards.
    pub fn start(
        &self,
        bed: &BedState,
        hosts: &[String],
        lower: &Path,
    ) -> anyhow::Result<(Vec<WarmStart>, Duration)> {
        let mut workers = Vec::new();
        for (number, host) in hosts.iter().enumerate() {
            workers.push(self.worker(bed, host, number, lower)?);
        }
        for worker in &mut workers {
            ensure!(worker.line()? == "prepared", "a warm container was not prepared");
        }
        let begin = Instant::now();
        for worker in &mut workers {
            worker.input()?.write_all(b"start\n")?;
        }
        let mut starts = Vec::new();
        for worker in &mut workers {
            let start: WarmStart = serde_json::from_str(&worker.line()?)?;
            starts.push(start);
        }
        let last = begin.elapsed();
        workers.into_iter().try_for_each(Worker::stop)?;
        Ok((starts, last))
    }

    fn worker(&self, bed: &BedState, host: &str, number: usize, lower: &Path) -> anyhow::Result<Worker> {
        let id = format!("warm-{}-{number}", bed.id());
        let bundle = self.folder.path().join(&id);
        if bundle.exists() {
            fs::remove_dir_all(&bundle)?;
        }
        fs::create_dir(&bundle)?;
        let mut config = self.config.clone();
        let group = PathBuf::from(format!("{GROUPS}-{}-{number}", bed.id()));
        config["linux"]["cgroupsPath"] = json!(Group::of_container(&group));
        for mount in config["mounts"].as_array_mut().into_iter().flatten() {
            for name in ["hosts", "resolv.conf"] {
                if mount["destination"] == json!(format!("/etc/{name}")) {
                    mount["source"] = json!(self.folder.path().join(name));
                }
            }
        }
        fs::write(bundle.join("config.json"), config.to_string())?;
        let mut command = bed.command(host, "unshare")?;
        command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe()?).arg(VERB);
        command.arg("--bundle").arg(&bundle).arg("--lower").arg(lower);
        command.args(["--port", &self.port.to_string(), "--id", &id, "--group"]).arg(&group);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start a warm container")?;
        let lines = BufReader::new(child.stdout.take().context("it has no output")?);
        let input = child.stdin.take();
        Ok(Worker { child, input, lines })
    }
}

/// Dropping it without [`Worker::stop`] ends it as well, which then stops its container.
struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

impl Worker {
    fn input(&mut self) -> anyhow::Result<&mut ChildStdin> {
        self.input.as_mut().context("the worker's input is closed")
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        if line.is_empty() {
            bail!("a warm container ended with {}", self.child.wait()?);
        }
        Ok(line.trim_end().to_owned())
    }

    fn stop(mut self) -> anyhow::Result<()> {
        self.input = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "a warm container ended with {status}");
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.input = None;
        // Ended already, when it was stopped.
        let _ = self.child.wait();
    }
}
