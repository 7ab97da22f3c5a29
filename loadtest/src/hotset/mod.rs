//! `faasnet-loadtest hotset`: what a cold start on one VM reads, moves and takes, for images of three kinds,
//! beside a warm start of the same container from a local overlay.
//!
//! - *plain*: what the start reads of its file system. The unpacked image in an EROFS of its own, on a loop
//!   device without read-ahead: the device counts the pages that somebody asked for.
//! - *warm*: from the first mount of an overlay over the unpacked image to the first answer of the probe.
//! - *cold*: from the acceptance of the start to the news that the probe has answered, as the manager tells
//!   it; on a VM that has nothing and is alone in the tree: its blocks come from the registry.

mod report;

pub use report::{Cold, Report};

use crate::{
    bed::Rate,
    guard::guard,
    rig::{Cluster, ClusterSpec, Image, Variant, wait_until},
    warm::{Unpacked, WarmContainer, WarmStart},
};
use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use faasnet_actors::{
    id::VmId,
    model::{HeldImageView, ProfileView, StartView},
};
pub(crate) use report::median;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

const FUNCTION: &str = "measured";
/// For one start, on a machine that does much else.
const READY: Duration = Duration::from_secs(120);
/// What starts that were recorded have in common is known after two.
const RECORDINGS: usize = 2;
/// Above it the image's conversion and its VMs take longer than anybody waits.
const REPEATS_MAX: usize = 20;

#[derive(Debug, Args)]
pub struct HotSet {
    /// The binary to measure; build it with --release
    #[arg(long, default_value = "target/release/faasnet")]
    program: PathBuf,
    /// Folder where the images are kept from run to run
    #[arg(long, default_value = "target/rig")]
    cache: PathBuf,
    /// Images to measure; all without it
    #[arg(long = "image", value_enum)]
    images: Vec<App>,
    /// Starts of each kind, each on a VM of its own; their median is shown
    #[arg(long, default_value_t = 3, value_parser = repeats)]
    repeats: usize,
    /// Rate of every link; without it as fast as the machine
    #[arg(long)]
    rate: Option<Rate>,
    /// A JSON object for each image instead of a table
    #[arg(long)]
    json: bool,
    /// Not in a process of its own, which takes the test bed down whatever ends this one
    #[arg(long, hide = true)]
    unguarded: bool,
}

fn repeats(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=REPEATS_MAX).contains(count));
    count.ok_or_else(|| format!("use 1 to {REPEATS_MAX}"))
}

/// Services that do something before they listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum App {
    /// Python that imports NumPy, SciPy and pandas
    Python,
    /// Node.js with Express, GraphQL, React and others
    Node,
    /// A JVM with Spring, Jackson, Guava and others
    Jvm,
}

impl App {
    pub const ALL: [Self; 3] = [Self::Python, Self::Node, Self::Jvm];

    pub fn variant(self) -> Variant {
        match self {
            Self::Python => Variant::Scientific,
            Self::Node => Variant::Node,
            Self::Jvm => Variant::Jvm,
        }
    }

    pub fn memory_mib(self) -> u64 {
        match self {
            Self::Python => 1024,
            Self::Node | Self::Jvm => 512,
        }
    }
}

/// How the blocks of a start come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// As they are read.
    Demand,
    /// Those that recorded starts have read, fetched ahead.
    Pushed,
    /// The same, of an image in which they lie together.
    Packed,
}

impl Way {
    const ALL: [Self; 3] = [Self::Demand, Self::Pushed, Self::Packed];

    fn name(self) -> &'static str {
        match self {
            Self::Demand => "no hot set",
            Self::Pushed => "pushed",
            Self::Packed => "packed",
        }
    }

    /// Starts that are recorded first, and are none of those that are measured.
    pub fn recordings(self) -> usize {
        match self {
            Self::Demand => 0,
            Self::Pushed | Self::Packed => RECORDINGS,
        }
    }

    /// Nothing is recorded later, and nothing is packed but when it is asked for.
    pub fn settings(self) -> BTreeMap<String, String> {
        let recordings = self.recordings().to_string();
        let settings = [("PROFILE__RECORDINGS_MAX", recordings), ("PROFILE__OPTIMIZE_AFTER", "0".to_owned())];
        settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Waits for what the recorded starts lead to.
    pub fn prepare(self, cluster: &Cluster, function: &str) -> anyhow::Result<()> {
        if self == Self::Demand {
            return Ok(());
        }
        let path = format!("/v1/functions/{function}/profile");
        let wait_for = |what: &str, is_so: &dyn Fn(&ProfileView) -> bool| {
            wait_until(what, READY, || {
                let answer = cluster.api.call("GET", &path, "")?;
                if !answer.status.is_success() {
                    return Ok(None);
                }
                let profile: ProfileView = serde_json::from_value(answer.json()?)?;
                Ok(is_so(&profile).then_some(()))
            })
        };
        let is_known =
            |profile: &ProfileView| profile.recordings as usize >= RECORDINGS && profile.blocks.is_some();
        wait_for("the profile of what starts read", &is_known)?;
        if self == Self::Packed {
            cluster.cli(&["image", "optimize", function, "--wait"])?;
            wait_for("the packed image to be looked at", &|profile| profile.is_packed && is_known(profile))?;
        }
        Ok(())
    }
}

impl HotSet {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let program = self.program.canonicalize().with_context(|| {
            format!("there is no {}; run cargo build --release first", self.program.display())
        })?;
        if !self.unguarded {
            return guard(std::env::args_os().skip(1).chain(["--unguarded".into()]));
        }
        let apps = if self.images.is_empty() { App::ALL.to_vec() } else { self.images.clone() };
        let mut reports = Vec::new();
        for app in apps {
            let image = Image::cached(&self.cache, app.variant())?;
            let report = measure(&program, &image, app, self.repeats, self.rate);
            let report = report.with_context(|| format!("measure {app:?}"))?;
            match self.json {
                true => println!("{}", serde_json::to_string(&report)?),
                false => println!("{report}"),
            }
            reports.push(report);
        }
        if !self.json {
            print!("{}", report::Table(&reports));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Measures one image.
pub fn measure(
    program: &Path,
    image: &Image,
    app: App,
    repeats: usize,
    rate: Option<Rate>,
) -> anyhow::Result<Report> {
    let say = |what: &str| eprintln!("{app:?}: {what}");
    say("is being unpacked");
    let unpacked = Unpacked::new(image)?;
    let mut warm = Vec::new();
    let mut plain = None;
    let mut cold = Vec::new();
    for way in Way::ALL {
        let spec = ClusterSpec::new(program, way.recordings() + repeats);
        let cluster = Cluster::up(ClusterSpec { rate, settings: way.settings(), ..spec })?;
        let reference = cluster.registry.push(image, "measured/image")?;
        let memory = app.memory_mib().to_string();
        cluster.cli(&["function", "deploy", FUNCTION, "--image", &reference, "--memory", &memory])?;
        for _ in 0..way.recordings() {
            say(&format!("{}, a start is recorded", way.name()));
            let (start, _) = cold_start(&cluster)?;
            cluster.drain(start.vm.as_ref().map(VmId::as_str))?;
        }
        way.prepare(&cluster, FUNCTION)?;
        let mut starts = Vec::new();
        for number in 1..=repeats {
            say(&format!("{}, start {number} of {repeats}", way.name()));
            let (start, held) = cold_start(&cluster)?;
            let vm = start.vm.as_ref().context("a ready start has no VM")?.to_string();
            if warm.is_empty() {
                let container = WarmContainer::of_instance(&cluster, &vm, start.id.as_str())?;
                cluster.drain([vm.as_str()])?;
                say("warm starts");
                plain = Some(plain_read(&container, &cluster, &vm, &unpacked)?);
                warm = warm_starts(&container, &cluster, &vm, &unpacked, repeats)?;
            } else {
                cluster.drain([vm.as_str()])?;
            }
            starts.push((start, held));
        }
        cold.push(Cold::new(way, &starts));
    }
    let warm_ms = median(warm.iter().map(|start| start.ready.as_secs_f64() * 1000.0));
    Ok(Report {
        app,
        image_bytes: image.unpacked_bytes()?,
        rate_bits_per_s: rate.map(Rate::bits_per_s),
        plain_bytes: plain.context("nothing was measured")?,
        warm,
        warm_ms,
        cold,
    })
}

/// A start on a VM that has nothing, and what that VM holds when it is ready.
fn cold_start(cluster: &Cluster) -> anyhow::Result<(StartView, HeldImageView)> {
    let id = cluster.api.start(FUNCTION, 1)?.pop().context("no start was accepted")?;
    let start: StartView = serde_json::from_value(cluster.api.ready(&id, READY)?)?;
    let vm = start.vm.as_ref().context("a ready start has no VM")?;
    let held = wait_until("the VM to say what it holds", READY, || {
        let held = cluster.vm(vm.as_str())?.trees.into_iter().next();
        Ok(held.filter(|held| held.bytes.total() >= start.bytes.total()))
    })?;
    Ok((start, held))
}

fn plain_read(
    container: &WarmContainer,
    cluster: &Cluster,
    vm: &str,
    unpacked: &Unpacked,
) -> anyhow::Result<u64> {
    let (starts, _) = container.start(cluster.bed.state(), &[vm.to_owned()], &unpacked.erofs()?)?;
    starts[0].bytes_read.context("the loop device counted nothing")
}

/// The first one brings the files into the page cache and does not count.
fn warm_starts(
    container: &WarmContainer,
    cluster: &Cluster,
    vm: &str,
    unpacked: &Unpacked,
    repeats: usize,
) -> anyhow::Result<Vec<WarmStart>> {
    let mut warm = Vec::new();
    for _ in 0..=repeats {
        let (starts, _) = container.start(cluster.bed.state(), &[vm.to_owned()], &unpacked.rootfs)?;
        warm.extend(starts);
    }
    warm.remove(0);
    ensure!(warm.len() == repeats, "a warm start is missing");
    Ok(warm)
}
