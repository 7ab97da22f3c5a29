//! The systems that are compared, and how each is run.

use super::{costs::Costs, image::Image};
use crate::{
    rivals::{self, Kraken, Pull, Rival, Setup, Source, Started, Tree},
    simulate::{
        Cluster, Cores, FunctionModel, Hot, ImageModel, Model, Nanos, Reads, SECOND, WorldLimits,
        figure::{Burst, StartTrace},
    },
};
use anyhow::ensure;
use faasnet::settings::{Topology, TreeSettings};
use std::{fmt, time::Duration};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    Baseline,
    OnDemand,
    Dadi,
    Kraken {
        origins: usize,
    },
    /// FaaSNet as published, on our cores: the paper's tree, and blocks only when they are read.
    Published,
    /// Ours with its defaults and a packed hot set.
    Ours,
}

/// When every start must be ready.
pub const PATIENCE: Nanos = 3600 * SECOND;
const MEMORY_MIB: u64 = 256;
/// Of our block images; what is read of them is in none of the paper's numbers.
const METADATA_BLOCKS: u32 = 2;
/// DADI's paper shows trees of 2 to 5 children; two as FaaSNet, so that only the root makes the difference.
const DADI_FAN_OUT: usize = 2;

impl System {
    /// As the files of the paper's points call it, where they have it.
    pub fn in_paper(self) -> Option<&'static str> {
        match self {
            Self::Baseline => Some("baseline"),
            Self::OnDemand => Some("ondemand"),
            Self::Dadi => Some("dadi_p2p"),
            Self::Kraken { origins: 1 } => Some("kraken"),
            Self::Published => Some("faasnet"),
            Self::Kraken { .. } | Self::Ours => None,
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Baseline => write!(out, "whole-image pull"),
            Self::OnDemand => write!(out, "lazy reads"),
            Self::Dadi => write!(out, "DADI+P2P"),
            Self::Kraken { origins: 1 } => write!(out, "Kraken, 1 origin"),
            Self::Kraken { origins } => write!(out, "Kraken, {origins} origins"),
            Self::Published => write!(out, "FaaSNet as published"),
            Self::Ours => write!(out, "ours"),
        }
    }
}

/// Seconds of a start that is ready.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    pub total: f64,
    /// What each phase took, in order; all together are the total.
    pub phases: Vec<(&'static str, f64)>,
    /// In which its reads waited for blocks; rivals do not tell.
    pub stalled: Option<f64>,
}

impl Times {
    pub fn of_rival(start: &Started) -> Option<Self> {
        let (pull, total) = (start.pull_seconds()?, start.seconds()?);
        Some(Self { total, phases: vec![("pull", pull), ("start", total - pull)], stalled: None })
    }

    pub fn of_ours(start: &StartTrace) -> Self {
        let phases = start.phases().into_iter().map(|(name, ms)| (name, ms / 1000.0));
        Self {
            total: start.answered_ms / 1000.0,
            phases: phases.collect(),
            stalled: Some(start.stalled_ms / 1000.0),
        }
    }

    pub fn of_phases(&self, names: &[&str]) -> f64 {
        self.phases.iter().filter(|(name, _)| names.contains(name)).map(|(_, seconds)| seconds).sum()
    }
}

/// VMs and starts of a system, asked for at any time.
pub enum Running {
    Rival { rival: Box<dyn Rival>, per_vm: usize },
    Cluster(Box<Cluster>),
}

impl Running {
    /// Nothing is on any VM; each takes `per_vm` starts.
    pub fn new(system: System, costs: &Costs, image: &Image, vms: usize, per_vm: usize, seed: u64) -> Self {
        match rival(system, costs, image, vms, seed) {
            Some(rival) => Self::Rival { rival, per_vm },
            None => {
                let model = model(system, costs, &[image], vms, per_vm);
                Self::Cluster(Box::new(Cluster::new(model, seed)))
            }
        }
    }

    pub fn now(&self) -> Nanos {
        match self {
            Self::Rival { rival, .. } => rival.now(),
            Self::Cluster(cluster) => cluster.now(),
        }
    }

    pub fn start(&mut self, count: usize) {
        match self {
            Self::Rival { rival, per_vm } => {
                let first = rival.starts().len();
                (first..first + count).for_each(|number| {
                    rival.start(number / *per_vm);
                });
            }
            Self::Cluster(cluster) => cluster.start(0, count as u32),
        }
    }

    pub fn run_until(&mut self, end: Nanos) {
        match self {
            Self::Rival { rival, .. } => rival.run_until(end),
            Self::Cluster(cluster) => cluster.run_until(end),
        }
    }

    /// When each start that is ready was asked for and was ready, in the order of asking.
    pub fn ready(&self) -> Vec<(Nanos, Nanos)> {
        match self {
            Self::Rival { rival, .. } => {
                let ready = rival.starts().iter().map(|start| Some((start.asked_at, start.ready_at?)));
                ready.flatten().collect()
            }
            Self::Cluster(cluster) => cluster.ready(),
        }
    }
}

/// None for what runs our cores.
fn rival(system: System, costs: &Costs, image: &Image, vms: usize, seed: u64) -> Option<Box<dyn Rival>> {
    let setup: Setup = costs.rival(image, vms, seed);
    Some(match system {
        System::Baseline => Box::new(Pull::new(setup)),
        System::OnDemand => Box::new(Tree::new(setup, Source::Registry)),
        System::Dadi => Box::new(dadi(costs, image, vms, 1, seed)),
        System::Kraken { origins } => Box::new(Kraken::new(setup, origins)),
        System::Published | System::Ours => return None,
    })
}

/// DADI with P2P and so many images that are alike.
pub fn dadi(costs: &Costs, image: &Image, vms: usize, images: usize, seed: u64) -> Tree {
    let source = Source::Tree { fan_out: DADI_FAN_OUT, join: costs.join_ns };
    Tree::of_images(costs.rival(image, vms, seed), source, images)
}

/// Starts of one function at the same moment; in no particular order.
pub fn burst(
    system: System,
    costs: &Costs,
    image: &Image,
    vms: usize,
    starts: usize,
    seed: u64,
) -> anyhow::Result<Vec<Times>> {
    let times: Vec<Times> = match rival(system, costs, image, vms, seed) {
        Some(mut rival) => {
            rivals::burst(rival.as_mut(), vms, starts, PATIENCE);
            rival.starts().iter().filter_map(Times::of_rival).collect()
        }
        None => play(model(system, costs, &[image], vms, starts.div_ceil(vms)), starts, seed),
    };
    ensure!(times.len() == starts, "{system}: only {} of {starts} starts were ever ready", times.len());
    Ok(times)
}

/// Starts at the same moment in a world of our cores, evenly over its functions.
pub fn play(model: Model, starts: usize, seed: u64) -> Vec<Times> {
    let played = Burst { model, starts: starts as u32, seed, patience: PATIENCE }.play();
    played.starts.iter().map(Times::of_ours).collect()
}

pub fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / SECOND as f64
}

/// A world of our cores: a function for each image.
pub fn model(system: System, costs: &Costs, images: &[&Image], vms: usize, per_vm: usize) -> Model {
    let image_model = |image: &&Image| {
        let hot = if system == System::Ours { Hot::Packed } else { Hot::Unknown };
        ImageModel {
            // Blocks that nobody reads are never there.
            blocks: METADATA_BLOCKS + image.read_blocks.max(image.packed_blocks),
            stored_bytes: image.block_bytes,
            metadata_blocks: METADATA_BLOCKS,
            reads: Reads::Random(image.read_blocks),
            hot,
            packed_blocks: image.packed_blocks,
        }
    };
    let function = |number: usize| FunctionModel {
        name: format!("function-{number}"),
        image: number,
        memory_mib: MEMORY_MIB,
        ..FunctionModel::default()
    };
    let mut limits = WorldLimits::default();
    limits.scheduler.ready_deadline = Duration::from_nanos(PATIENCE);
    limits.transfer.read_deadline = Duration::from_nanos(PATIENCE);
    if system == System::Published {
        limits.shape = TreeSettings { topology: Topology::Avl, fan_out: 2, ..limits.shape };
        // Nothing is learned of what starts read.
        limits.scheduler.recordings_max = 0;
    }
    Model {
        vms,
        memory_bytes: per_vm as u64 * (MEMORY_MIB << 20),
        images: images.iter().map(image_model).collect(),
        functions: (0..images.len()).map(function).collect(),
        uplink: costs.link,
        downlink: costs.link,
        // A VM adds up to half as much again at either end.
        latency: costs.latency_ns * 2 / 3,
        origin_rate: costs.registry_rate as u64,
        origin_latency: costs.registry_latency_ns,
        origin_requests: costs.registry_requests_per_second as u64,
        disk: costs.disk_ns,
        costs: costs.ours.clone(),
        cores: Cores::Each(costs.cores),
        stand_ins: true,
        limits,
        ..Model::without_times()
    }
}
