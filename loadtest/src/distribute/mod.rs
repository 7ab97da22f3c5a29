//! `faasnet-loadtest distribute`: how long it takes until the last of N VMs has what it needs, beside the
//! least that it can take.
//!
//! Each VM must receive S bytes over a link of rate U, so that nobody can be quicker than S/U (the minimum
//! distribution time of peer-assisted distribution, when every peer can send as fast as it receives).
//!
//! - *starts*: a burst of N starts on N VMs without the image, until the last one is ready. The least is S/U
//!   and what N simultaneous warm starts of the same container take here: N VMs share this machine's cores.
//! - *image*: N VMs receive the whole image before they start it; the least is S/U.
//!
//! The link's rate is chosen so that moving the bytes of N VMs takes less than half of the machine, or the
//! machine and not the trees would be measured; how much it took is printed.

mod account;
mod cpu;
mod report;

pub use account::{Account, Part};
pub use report::{HotBlocks, Report};

use crate::{
    bed::Rate,
    guard::guard,
    hotset::{App, Way},
    rig::{
        Cluster, ClusterSpec, Image, Variant,
        cluster::{MANAGER, REGISTRY},
    },
    warm::{Unpacked, WarmContainer},
};
use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use cpu::Cpu;
use faasnet_actors::model::{ProfileView, StartView};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

const FUNCTION: &str = "distributed";
/// For a whole burst, on a machine that does much else.
const READY: Duration = Duration::from_secs(300);
/// What one machine runs: more VMs than that take all of its memory.
const VMS_MAX: usize = 64;
/// All links together, and one alone: what costs less than half of two cores (measured, and printed).
const RATE_OF_ALL: Rate = Rate::mbit(500);
const RATE_MAX: Rate = Rate::mbit(200);

#[derive(Debug, Args)]
pub struct Distribute {
    /// The binary to measure; build it with --release
    #[arg(long, default_value = "target/release/faasnet")]
    program: PathBuf,
    /// Folder where the images are kept from run to run
    #[arg(long, default_value = "target/rig")]
    cache: PathBuf,
    /// What is measured; both without it
    #[arg(long = "what", value_enum)]
    what: Vec<What>,
    /// Numbers of VMs
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32], value_parser = vms)]
    vms: Vec<usize>,
    /// Rate of every link; without it as much as N VMs can take together on this machine
    #[arg(long)]
    rate: Option<Rate>,
    /// The image of the starts
    #[arg(long, value_enum, default_value_t = App::Node)]
    image: App,
    /// How the blocks of the starts come
    #[arg(long, value_enum, default_value_t = Way::Packed)]
    hot_set: Way,
    /// Shape of the tree, as in tree.topology
    #[arg(long, default_value = "striped")]
    topology: String,
    /// A JSON object for each measurement instead of a table
    #[arg(long)]
    json: bool,
    /// Not in a process of its own, which takes the test bed down whatever ends this one
    #[arg(long, hide = true)]
    unguarded: bool,
}

pub(crate) fn vms(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=VMS_MAX).contains(count));
    count.ok_or_else(|| format!("use 1 to {VMS_MAX}"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// N starts, until the last one is ready
    Starts,
    /// The whole image on N VMs
    Image,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    pub program: &'a Path,
    pub cache: &'a Path,
    pub what: What,
    pub vms: usize,
    pub rate: Rate,
    pub app: App,
    pub way: Way,
    pub topology: &'a str,
}

impl Distribute {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let program = self.program.canonicalize().with_context(|| {
            format!("there is no {}; run cargo build --release first", self.program.display())
        })?;
        if !self.unguarded {
            return guard(std::env::args_os().skip(1).chain(["--unguarded".into()]));
        }
        let both = [What::Starts, What::Image];
        let chosen = if self.what.is_empty() { &both[..] } else { &self.what };
        let mut reports = Vec::new();
        for &what in chosen {
            for &vms in &self.vms {
                let rate = self.rate.unwrap_or_else(|| rate_for(vms));
                let (cache, topology) = (self.cache.as_path(), self.topology.as_str());
                let plan = Plan {
                    program: &program,
                    cache,
                    what,
                    vms,
                    rate,
                    app: self.image,
                    way: self.hot_set,
                    topology,
                };
                let report = measure(&plan).with_context(|| format!("measure {what:?} on {vms} VMs"))?;
                match self.json {
                    true => println!("{}", serde_json::to_string(&report)?),
                    false => eprintln!("{report}"),
                }
                reports.push(report);
            }
        }
        if !self.json {
            print!("{}", report::Table(&reports));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// As much as so many VMs can take together on this machine.
pub(crate) fn rate_for(vms: usize) -> Rate {
    RATE_MAX.min(Rate::mbit(RATE_OF_ALL.bits_per_s() / 1_000_000 / vms as u64))
}

/// Brings up a cluster and measures one distribution.
pub fn measure(plan: &Plan<'_>) -> anyhow::Result<Report> {
    let variant = match plan.what {
        What::Starts => plan.app.variant(),
        What::Image => Variant::Ballast,
    };
    let image = Image::cached(plan.cache, variant)?;
    let way = match plan.what {
        What::Starts => plan.way,
        What::Image => Way::Demand,
    };
    let mut settings = way.settings();
    settings.insert("TREE__TOPOLOGY".into(), plan.topology.to_owned());
    let vms = match plan.what {
        What::Starts => plan.vms + way.recordings().max(1),
        What::Image => plan.vms,
    };
    let spec = ClusterSpec { rate: Some(plan.rate), settings, ..ClusterSpec::new(plan.program, vms) };
    let cluster = Cluster::up(spec)?;
    let reference = cluster.registry.push(&image, "distributed/image")?;
    match plan.what {
        What::Starts => starts(plan, &cluster, &image, &reference),
        What::Image => whole_image(plan, &cluster, &reference),
    }
}

/// First the starts that are recorded, on VMs of their own, which then leave the tree.
fn starts(plan: &Plan<'_>, cluster: &Cluster, image: &Image, reference: &str) -> anyhow::Result<Report> {
    let memory = plan.app.memory_mib().to_string();
    cluster.cli(&["function", "deploy", FUNCTION, "--image", reference, "--memory", &memory])?;
    let mut container = None;
    for _ in 0..plan.way.recordings().max(1) {
        let start = burst(cluster, 1)?.starts.remove(0);
        let vm = start.vm.as_ref().context("a ready start has no VM")?.to_string();
        container = Some(WarmContainer::of_instance(cluster, &vm, start.id.as_str())?);
        cluster.drain([vm.as_str()])?;
    }
    let container = container.context("nothing was started")?;
    plan.way.prepare(cluster, FUNCTION)?;
    let hot = hot_blocks(cluster)?;

    let Burst { starts, cpu, used } = burst(cluster, plan.vms)?;
    let hosts: Vec<String> = starts.iter().filter_map(|start| Some(start.vm.as_ref()?.to_string())).collect();
    ensure!(hosts.len() == plan.vms, "{} of {} starts have a VM", hosts.len(), plan.vms);
    cluster.drain(hosts.iter().map(String::as_str))?;
    let unpacked = Unpacked::new(image)?;
    // The first one brings the files into the page cache.
    container.start(cluster.bed.state(), &hosts[..1], &unpacked.rootfs)?;
    let (alone, _) = container.start(cluster.bed.state(), &hosts[..1], &unpacked.rootfs)?;
    let (_, warm) = container.start(cluster.bed.state(), &hosts, &unpacked.rootfs)?;
    let last_us = starts.iter().filter_map(|start| start.timeline_us.ready).max().unwrap_or_default();
    let report = Report::new(plan, &starts, Duration::from_micros(last_us), Some(warm), cpu);
    Ok(Report { warm_alone: alone.first().copied(), hot, used, ..report })
}

/// What is known of what starts read, if anything is.
fn hot_blocks(cluster: &Cluster) -> anyhow::Result<Option<HotBlocks>> {
    let answer = cluster.api.call("GET", &format!("/v1/functions/{FUNCTION}/profile"), "")?;
    if !answer.status.is_success() {
        return Ok(None);
    }
    let profile: ProfileView = serde_json::from_value(answer.json()?)?;
    let known = profile.blocks.zip(profile.stored_bytes);
    Ok(known.map(|(blocks, stored_bytes)| HotBlocks { blocks, stored_bytes }))
}

fn whole_image(plan: &Plan<'_>, cluster: &Cluster, reference: &str) -> anyhow::Result<Report> {
    cluster.cli(&["function", "deploy", FUNCTION, "--image", reference, "--mode", "whole"])?;
    let Burst { starts, cpu, used } = burst(cluster, plan.vms)?;
    let complete = |start: &StartView| {
        let timeline = start.timeline_us;
        let after = [timeline.mount, timeline.run, timeline.probe].into_iter().flatten().sum::<u64>();
        timeline.ready.map(|ready| ready.saturating_sub(after))
    };
    let last_us = starts.iter().filter_map(complete).max().unwrap_or_default();
    Ok(Report { used, ..Report::new(plan, &starts, Duration::from_micros(last_us), None, cpu) })
}

struct Burst {
    starts: Vec<StartView>,
    /// What of the machine they took.
    cpu: Cpu,
    used: Account,
}

/// So many starts in one request, until the last one is ready.
fn burst(cluster: &Cluster, count: usize) -> anyhow::Result<Burst> {
    let account = || Account::now(cluster.bed.state(), MANAGER, REGISTRY);
    let (used, before) = (account()?, Cpu::now()?);
    let ids = cluster.api.start(FUNCTION, count)?;
    let mut starts = Vec::new();
    for id in ids {
        starts.push(serde_json::from_value(cluster.api.ready(&id, READY)?)?);
    }
    Ok(Burst { starts, cpu: Cpu::now()?.since(before), used: account()?.since(&used) })
}
