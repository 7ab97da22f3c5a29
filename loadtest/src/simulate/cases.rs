//! Bursts as a file describes them.

use super::{
    costs::Costs,
    figure::Burst,
    model::{Cores, FunctionModel, Hot, ImageModel, MILLISECOND, Model, Reads, SECOND, WorldLimits},
};
use anyhow::{Context, ensure};
use faasnet_actors::image::BLOCK_BYTES;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Bytes in a second of a link of 1 Mbit/s.
const MEGABIT: u64 = 125_000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioFile {
    /// Relative to this file.
    pub costs: PathBuf,
    #[serde(default = "one")]
    pub seed: u64,
    pub image: ImageFile,
    pub network: NetworkFile,
    pub vm: VmFile,
    #[serde(default)]
    pub manager: ManagerFile,
    #[serde(rename = "case")]
    pub cases: Vec<Case>,
}

fn one() -> u64 {
    1
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// Of the file system.
    pub plain_bytes: u64,
    /// Of each block.
    pub stored_bytes_per_block: u32,
    pub metadata_blocks: u32,
    /// Blocks that a start reads, while they lie where the layers have them.
    pub read_blocks: u32,
    /// Blocks that hold what a start reads, once they are packed.
    pub packed_blocks: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkFile {
    pub uplink_mbit: u64,
    pub downlink_mbit: u64,
    pub round_trip_ms: f64,
    pub registry_mbit: u64,
    /// To the first byte of an answer.
    pub registry_latency_ms: f64,
    /// 0 for any number.
    #[serde(default)]
    pub registry_requests_per_s: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmFile {
    pub cores: u32,
    pub memory_mib: u64,
}

/// Settings that are not those of `config/default.toml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManagerFile {
    pub heartbeat_ms: Option<u64>,
    pub lease_ms: Option<u64>,
}

impl ManagerFile {
    fn apply(&self, limits: &mut WorldLimits) {
        let millis = Duration::from_millis;
        limits.heartbeat = self.heartbeat_ms.map_or(limits.heartbeat, millis);
        limits.scheduler.lease = self.lease_ms.map_or(limits.scheduler.lease, millis);
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    pub vms: usize,
    pub starts: u32,
    #[serde(default = "one_function")]
    pub functions: usize,
    pub hot: Hot,
    /// Memory of an instance.
    pub memory_mib: u64,
    /// What the last start should take at most.
    #[serde(default)]
    pub goal_ms: Option<f64>,
}

fn one_function() -> usize {
    1
}

impl ScenarioFile {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the scenario {}", path.display()))?;
        let mut file: Self =
            toml::from_str(&text).with_context(|| format!("in the scenario {}", path.display()))?;
        if let Some(folder) = path.parent() {
            file.costs = folder.join(&file.costs);
        }
        file.check().with_context(|| format!("in the scenario {}", path.display()))?;
        Ok(file)
    }

    fn check(&self) -> anyhow::Result<()> {
        let Self { image, network, vm, manager, cases, .. } = self;
        let mut limits = WorldLimits::default();
        manager.apply(&mut limits);
        ensure!(
            !limits.heartbeat.is_zero()
                && limits.scheduler.lease > limits.heartbeat
                && limits.scheduler.lease <= Duration::from_hours(1),
            "manager: a heartbeat takes time, and a lease is longer than it, up to an hour"
        );
        let blocks = self.blocks();
        ensure!((1..=100_000).contains(&blocks), "image.plain_bytes makes {blocks} blocks; use 1 to 100000");
        let is_stored = (1..BLOCK_BYTES).contains(&image.stored_bytes_per_block);
        ensure!(is_stored, "image.stored_bytes_per_block must be from 1 to {}", BLOCK_BYTES - 1);
        let read = image.read_blocks.max(image.packed_blocks).saturating_add(image.metadata_blocks);
        ensure!(image.metadata_blocks >= 1 && read <= blocks, "a start reads more blocks than the image has");
        let links = [network.uplink_mbit, network.downlink_mbit, network.registry_mbit];
        ensure!(links.iter().all(|mbit| (1..=1_000_000).contains(mbit)), "links have 1 to 1000000 Mbit/s");
        let times = [network.round_trip_ms, network.registry_latency_ms];
        ensure!(times.iter().all(|ms| (0.0..=60_000.0).contains(ms)), "latencies are 0 to 60000 ms");
        ensure!((1..=1024).contains(&vm.cores) && vm.memory_mib >= 1, "a VM has cores and memory");
        ensure!(!cases.is_empty(), "there is no [[case]]");
        for case in cases {
            let Case { name, vms, starts, functions, memory_mib, .. } = case;
            let is_sound = (1..=100_000).contains(vms)
                && (1..=1_000_000).contains(starts)
                && (1..=1000).contains(functions)
                && (1..=vm.memory_mib).contains(memory_mib);
            ensure!(
                is_sound,
                "case {name:?}: use 1 to 100000 VMs, 1 to 1000000 starts, 1 to 1000 functions, and instances \
                 that fit into a VM"
            );
        }
        Ok(())
    }

    fn blocks(&self) -> u32 {
        let blocks = self.image.plain_bytes.div_ceil(u64::from(BLOCK_BYTES));
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }

    /// What a case plays under those costs.
    pub fn burst(&self, case: &Case, costs: &Costs) -> Burst {
        let Self { image, network, vm, manager, .. } = self;
        let nanos = |ms: f64| (ms * MILLISECOND as f64) as u64;
        let image = ImageModel {
            blocks: self.blocks(),
            stored_bytes: image.stored_bytes_per_block,
            metadata_blocks: image.metadata_blocks,
            reads: Reads::Random(image.read_blocks),
            hot: case.hot,
            packed_blocks: image.packed_blocks,
        };
        let function = |number: usize| FunctionModel {
            name: format!("function-{number}"),
            image: number,
            memory_mib: case.memory_mib,
            ..FunctionModel::default()
        };
        let mut model = Model {
            vms: case.vms,
            memory_bytes: vm.memory_mib << 20,
            images: vec![image; case.functions],
            functions: (0..case.functions).map(function).collect(),
            uplink: network.uplink_mbit * MEGABIT,
            downlink: network.downlink_mbit * MEGABIT,
            // A VM adds up to half as much again at either end.
            latency: nanos(network.round_trip_ms) / 3,
            origin_rate: network.registry_mbit * MEGABIT,
            origin_latency: nanos(network.registry_latency_ms),
            origin_requests: network.registry_requests_per_s,
            costs: costs.clone(),
            cores: Cores::Each(vm.cores),
            stand_ins: true,
            ..Model::without_times()
        };
        manager.apply(&mut model.limits);
        Burst { model, starts: case.starts, seed: self.seed, patience: 600 * SECOND }
    }
}
