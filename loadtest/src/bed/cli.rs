//! `faasnet-loadtest bed ...`: a bed by hand.

use super::{
    Bed, BedSpec, BedState, HostSpec, LinkChange, Rate, hint_at_left_over_beds, list, load, need_root,
    take_down,
};
use crate::{
    reading,
    rig::{
        Cluster, ClusterSpec, Image, Variant,
        cluster::{MANAGER, api_of},
    },
};
use anyhow::{Context, bail, ensure};
use clap::Subcommand;
use rustix::process::Signal;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// What one machine runs with real agents and containers.
const VMS_MAX: usize = 64;
/// The same when their instances are no containers.
const READING_VMS_MAX: usize = 200;

/// What stands for a start on a bed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Instance {
    /// A real container by the OCI runtime
    Container,
    /// A process that reads a quarter of the image's files (READ_PERCENT of the function) and answers: for many VMs
    Read,
}

impl Instance {
    fn vms_max(self) -> usize {
        match self {
            Self::Container => VMS_MAX,
            Self::Read => READING_VMS_MAX,
        }
    }
}

/// The program that takes the place of the OCI runtime, beside this one.
fn reading_runtime() -> anyhow::Result<String> {
    let program = std::env::current_exe()?.with_file_name(reading::PROGRAM);
    ensure!(
        program.exists(),
        "there is no {}; build it: cargo build --release -p faasnet-loadtest",
        program.display()
    );
    Ok(program.display().to_string())
}

#[derive(Debug, Subcommand)]
pub enum BedVerb {
    /// Make a bed that stands until `bed down`: registry, manager, and on each VM a real agent and its holder
    Up {
        /// VMs; they are named vm-1, vm-2, ...
        #[arg(long, visible_alias = "hosts", default_value_t = 8)]
        vms: usize,
        /// Rate of each link and direction, for example 1gbit; without it links are not shaped
        #[arg(long)]
        rate: Option<Rate>,
        /// The binary that runs on it; build it with --release
        #[arg(long, default_value = "target/release/faasnet")]
        program: PathBuf,
        /// Images that the registry gets
        #[arg(long, value_enum)]
        image: Vec<Variant>,
        /// Folder where images are kept from run to run
        #[arg(long, default_value = "target/rig")]
        cache: PathBuf,
        /// What stands for a start
        #[arg(long, value_enum, default_value_t = Instance::Container)]
        instance: Instance,
        /// A setting of manager and agents, as SECTION__KEY=VALUE
        #[arg(long)]
        set: Vec<String>,
        /// Namespaces and links only, nothing runs in them
        #[arg(long, conflicts_with_all = ["image", "set"])]
        network_only: bool,
    },
    /// Take a bed down, with every process in it; without a name all whose maker is gone or was `bed up`
    Down { id: Option<String> },
    /// Show the beds of this machine and the bytes their links carried
    Status,
    /// Run a command in the network of one host; where a cluster runs, FAASNET_API and FAASNET_TOKEN are its own
    Exec {
        id: String,
        host: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// kill -9 of everything on a host
    Kill {
        id: String,
        host: String,
        /// Of its agent alone: the holder and the containers go on
        #[arg(long)]
        agent: bool,
    },
    /// Stop everything on a host where it is, as a VM that hangs; `resume` ends it
    Pause { id: String, host: String },
    /// Let what was paused go on
    Resume { id: String, host: String },
    /// Give a host's link another rate, for example 10mbit
    Shape { id: String, host: String, rate: Rate },
    /// Pull a host's cable; `plug` ends it
    Unplug { id: String, host: String },
    /// Put the cable back
    Plug { id: String, host: String },
    /// Two hosts no longer reach each other, and are not told; `heal` ends it
    Partition { id: String, one: String, other: String },
    /// End a partition
    Heal { id: String, one: String, other: String },
}

impl BedVerb {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !matches!(self, Self::Status) {
            need_root()?;
        }
        match self {
            Self::Up { vms, rate, network_only: true, .. } => network_up(vms, rate)?,
            Self::Up { vms, rate, program, image, cache, instance, set, network_only: false } => {
                cluster_up(vms, rate, &program, &image, &cache, instance, &set)?;
            }
            Self::Down { id: Some(id) } => down(&id)?,
            Self::Down { id: None } => down_unowned()?,
            Self::Status => list()?.iter().try_for_each(|id| status(id))?,
            Self::Exec { id, host, command } => return exec(&load(&id)?, &host, &command),
            Self::Kill { id, host, agent: true } => load(&id)?.kill_agent(&host)?,
            Self::Kill { id, host, agent: false } => load(&id)?.kill_processes(&host)?,
            Self::Pause { id, host } => signal(&load(&id)?, &host, Signal::STOP)?,
            Self::Resume { id, host } => signal(&load(&id)?, &host, Signal::CONT)?,
            Self::Shape { id, host, rate } => load(&id)?.set_link(&host, LinkChange::Rate(rate))?,
            Self::Unplug { id, host } => load(&id)?.set_link(&host, LinkChange::Down)?,
            Self::Plug { id, host } => load(&id)?.set_link(&host, LinkChange::Up)?,
            Self::Partition { id, one, other } => load(&id)?.partition(&one, &other)?,
            Self::Heal { id, one, other } => load(&id)?.heal(&one, &other)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn network_up(hosts: usize, rate: Option<Rate>) -> anyhow::Result<()> {
    hint_at_left_over_beds();
    let hosts = (1..=hosts).map(|number| HostSpec::new(format!("vm-{number}"), rate)).collect();
    let state = Bed::up(BedSpec { hosts })?.keep(None)?;
    println!("{}", state.id());
    Ok(())
}

/// The name of the bed goes to the output, for scripts; how to use it to the error output, for people.
fn cluster_up(
    vms: usize,
    rate: Option<Rate>,
    program: &Path,
    images: &[Variant],
    cache: &Path,
    instance: Instance,
    set: &[String],
) -> anyhow::Result<()> {
    let most = instance.vms_max();
    let hint = if instance == Instance::Container { "; --instance read takes more" } else { "" };
    ensure!((1..=most).contains(&vms), "one machine runs 1 to {most} VMs, not {vms}{hint}");
    let program = program
        .canonicalize()
        .with_context(|| format!("there is no {}; run cargo build --release first", program.display()))?;
    hint_at_left_over_beds();
    let mut spec = ClusterSpec { rate, ..ClusterSpec::new(program, vms) };
    if instance == Instance::Read {
        spec.settings.insert("HOLDER__RUNTIME".into(), reading_runtime()?);
    }
    for setting in set {
        let (key, value) = setting.split_once('=').with_context(|| format!("{setting:?} is no KEY=VALUE"))?;
        spec.settings.insert(key.to_owned(), value.to_owned());
    }
    let cluster = Cluster::up(spec)?;
    let mut references = Vec::new();
    for &variant in images {
        let image = Image::cached(cache, variant)?;
        let name = format!("images/{variant:?}").to_lowercase();
        references.push(cluster.registry.push(&image, &name)?);
    }
    let logs = cluster.logs();
    let state = cluster.keep()?;
    let id = state.id();
    println!("{id}");
    eprintln!("{vms} VMs are up; logs are in {}", logs.display());
    references.iter().for_each(|reference| eprintln!("image: {reference}"));
    let image = references.first().map_or("IMAGE", String::as_str);
    eprintln!("load:  faasnet-loadtest drive burst --bed {id} --image {image} --count {vms}");
    eprintln!("down:  faasnet-loadtest bed down {id}");
    Ok(())
}

fn down(id: &str) -> anyhow::Result<()> {
    if !list()?.iter().any(|known| known == id) {
        bail!("there is no test bed {id}; `bed status` shows those there are");
    }
    take_down(id)
}

fn down_unowned() -> anyhow::Result<()> {
    for id in list()? {
        let owner_lives = load(&id).is_ok_and(|state| !state.is_kept && !state.is_left_over());
        if !owner_lives {
            take_down(&id)?;
            println!("{id} is down");
        }
    }
    Ok(())
}

fn signal(state: &BedState, host: &str, signal: Signal) -> anyhow::Result<()> {
    let reached = state.signal_processes(host, signal)?;
    ensure!(reached > 0, "nothing runs on {host}");
    Ok(())
}

fn status(id: &str) -> anyhow::Result<()> {
    let Ok(state) = load(id) else {
        println!("{id}: no state file; `bed down {id}` removes what is left");
        return Ok(());
    };
    let whose = match (state.is_kept, state.is_left_over()) {
        (true, _) => "stands until `bed down`".to_owned(),
        (false, true) => format!("left over, its maker is gone; `bed down {id}` removes it"),
        (false, false) => format!("of process {}", state.owner_pid),
    };
    println!("{id}: {} hosts, {whose}", state.spec.hosts.len());
    let Ok(counters) = state.all_counters() else {
        println!("  its network is gone");
        return Ok(());
    };
    for host in &state.spec.hosts {
        let address = state.address(&host.name)?;
        let rate = host.rate.map_or("not shaped".to_owned(), |rate| format!("{} bit/s", rate.bits_per_s()));
        let carried = counters.get(&host.name).map_or("no link".to_owned(), |counters| {
            format!("sent {} B, received {} B", counters.sent_bytes, counters.received_bytes)
        });
        println!("  {:<12} {address:<14} {rate:<18} {carried}", host.name);
    }
    Ok(())
}

fn exec(state: &BedState, host: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let (program, arguments) = command.split_first().expect("clap demands a command");
    let mut command = state.command(host, program)?;
    if state.folder.is_some() {
        let api = api_of(state).with_context(|| format!("use the cluster of the host {MANAGER}"))?;
        command.env("FAASNET_API", format!("http://{}", api.address)).env("FAASNET_TOKEN", api.token);
    }
    let status = command.args(arguments).status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
