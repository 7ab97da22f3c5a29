//! `faasnet-loadtest compare`: one VM that has nothing, from the call to the first answer, beside
//! `ctr image pull` and `ctr run` of the same image from the same registry over the same link.
//!
//! With several VMs: a burst onto all of them, also by lazy reads straight from the registry (`burst`).
//!
//! Both sides find the registry's files in its page cache and nothing on the VM. The conversion happens
//! once per image, when a function is deployed; it is timed on its own.

mod burst;
mod containerd;

pub use containerd::{Containerd, pull_and_run};

use crate::{
    bed::Rate,
    guard::guard,
    rig::{Cluster, ClusterSpec, Image, Variant},
};
use anyhow::{Context, ensure};
use clap::Args;
use faasnet_actors::support::millis;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

/// What the server of the image does before it listens, and the variable that makes it so. The libraries
/// are in the image either way: the one shows what FaaSNet and containerd take, the other what is left of
/// the difference beside an application that works for more than a second before it listens.
const APPS: [(&str, &str); 2] =
    [("listens at once", "NO_IMPORTS=1"), ("imports NumPy, SciPy and pandas first", "IMPORTS=1")];

const VM: &str = "vm-1";
const FUNCTION: &str = "compared";

/// Of a start, in their order.
const PHASES: [&str; 9] =
    ["waiting", "placing", "connecting", "index", "metadata", "whole", "mount", "run", "probe"];

#[derive(Debug, Args)]
pub struct Compare {
    /// The binary to measure; build it with --release
    #[arg(long, default_value = "target/release/faasnet")]
    program: PathBuf,
    /// Folder where the image is kept from run to run
    #[arg(long, default_value = "target/rig")]
    cache: PathBuf,
    /// Rate of the VM's and the registry's link; without it as fast as the machine
    #[arg(long)]
    rate: Option<Rate>,
    /// A burst onto so many VMs, also by lazy reads straight from the registry, instead of one VM
    #[arg(long, value_parser = clap::value_parser!(u16).range(2..=32))]
    vms: Option<u16>,
    /// Folder of the report of a burst
    #[arg(long, default_value = "target/report")]
    out: PathBuf,
    /// A JSON object for each application instead of lines for people
    #[arg(long)]
    json: bool,
    /// Not in a process of its own, which takes the test bed down whatever ends this one
    #[arg(long, hide = true)]
    unguarded: bool,
}

/// What one run measured.
#[derive(Debug, Clone, Serialize)]
struct Report {
    app: &'static str,
    image_unpacked_bytes: u64,
    image_layer_bytes: u64,
    rate_bits_per_s: Option<u64>,
    containerd: Containerd,
    faasnet: Faasnet,
    /// How many times longer containerd takes.
    ratio: f64,
}

#[derive(Debug, Clone, Serialize)]
struct Faasnet {
    /// Pull and conversion, once per image.
    deploy_ms: u64,
    /// From the call of the API to its answer, the container's start included.
    total_ms: u64,
    received_bytes: u64,
    /// The start as the API tells it: phases, stalls, bytes by source.
    start: serde_json::Value,
}

impl Compare {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let program = self.program.canonicalize().with_context(|| {
            format!("there is no {}; run cargo build --release first", self.program.display())
        })?;
        if !self.unguarded {
            return guard(std::env::args_os().skip(1).chain(["--unguarded".into()]));
        }
        if let Some(vms) = self.vms {
            let image = Image::cached(&self.cache, Variant::Minimal)?;
            let burst = burst::measure(&program, &image, self.rate, vms.into())?;
            println!("{burst}\n{}", burst.page().write(&self.out, "compare", &burst)?);
            return Ok(ExitCode::SUCCESS);
        }
        let image = Image::cached(&self.cache, Variant::Scientific)?;
        for (app, env) in APPS {
            let report = measure(&program, &image, self.rate, app, env)?;
            match self.json {
                true => println!("{}", serde_json::to_string(&report)?),
                false => println!("{report}"),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn measure(
    program: &Path,
    image: &Image,
    rate: Option<Rate>,
    app: &'static str,
    env: &str,
) -> anyhow::Result<Report> {
    let cluster = Cluster::up(ClusterSpec { rate, ..ClusterSpec::new(program, 1) })?;
    let reference = cluster.registry.push(image, "compared/python")?;
    let containerd = pull_and_run(cluster.bed.state(), VM, &reference, env).context("measure containerd")?;
    let faasnet = deploy_and_call(&cluster, &reference, env).context("measure faasnet")?;
    Ok(Report {
        app,
        image_unpacked_bytes: image.unpacked_bytes()?,
        image_layer_bytes: image.layer_bytes()?,
        rate_bits_per_s: rate.map(Rate::bits_per_s),
        ratio: containerd.total_ms as f64 / faasnet.total_ms.max(1) as f64,
        containerd,
        faasnet,
    })
}

fn deploy_and_call(cluster: &Cluster, reference: &str, env: &str) -> anyhow::Result<Faasnet> {
    let begin = Instant::now();
    cluster.cli(&["function", "deploy", FUNCTION, "--image", reference, "--memory", "1024", "--env", env])?;
    let deploy_ms = millis(begin.elapsed());
    let received = cluster.bed.counters(VM)?.received_bytes;
    let begin = Instant::now();
    let answer = cluster.api.call("GET", &format!("/fn/{FUNCTION}/"), "")?;
    let total_ms = millis(begin.elapsed());
    ensure!(answer.status.is_success(), "the function answered {}: {}", answer.status, answer.text());
    let received_bytes = cluster.bed.counters(VM)?.received_bytes - received;
    let starts = cluster.api.call("GET", &format!("/v1/functions/{FUNCTION}/starts"), "")?;
    let starts: serde_json::Value = serde_json::from_str(&starts.text()).context("read the starts")?;
    Ok(Faasnet { deploy_ms, total_ms, received_bytes, start: starts["starts"][0].clone() })
}

impl std::fmt::Display for Report {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |ms: u64| ms as f64 / 1000.0;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let (ctr, own) = (&self.containerd, &self.faasnet);
        let (unpacked, layers) = (megabytes(self.image_unpacked_bytes), megabytes(self.image_layer_bytes));
        writeln!(out, "a server that {}", self.app)?;
        writeln!(out, "image: {unpacked:.0} MB unpacked, {layers:.0} MB in layers")?;
        match self.rate_bits_per_s {
            Some(rate) => writeln!(out, "links: {:.0} Mbit/s", rate as f64 / 1e6)?,
            None => writeln!(out, "links: not shaped")?,
        }
        let (total, pull, run) = (seconds(ctr.total_ms), seconds(ctr.pull_ms), seconds(ctr.run_ms));
        let received = megabytes(ctr.received_bytes);
        writeln!(
            out,
            "containerd: {total:.2} s (pull {pull:.2} s, run {run:.2} s), {received:.1} MB received"
        )?;
        let (total, received) = (seconds(own.total_ms), megabytes(own.received_bytes));
        writeln!(out, "faasnet:    {total:.2} s, {received:.1} MB received")?;
        for phase in PHASES {
            if let Some(us) = own.start["timeline_us"][phase].as_u64() {
                writeln!(out, "            {phase:10} {:>8.1} ms", us as f64 / 1000.0)?;
            }
        }
        let stalled_ms = own.start["stalled_us"].as_u64().unwrap_or(0) as f64 / 1000.0;
        writeln!(
            out,
            "            {} reads waited for a block, {stalled_ms:.0} ms together",
            own.start["stalls"]
        )?;
        writeln!(out, "ratio:      {:.1}", self.ratio)?;
        writeln!(out, "deployment (pull and conversion, once per image): {:.2} s", seconds(own.deploy_ms))
    }
}
