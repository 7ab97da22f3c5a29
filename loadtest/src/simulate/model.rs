//! The numbers of a simulated world.

use super::{costs::Costs, queue::Nanos};
use bytes::Bytes;
use faasnet::settings::{Settings, TreeSettings};
use faasnet_actors::{
    block_store::RoomLimits,
    block_transfer::TransferLimits,
    function_tree::TreeLimits,
    id::{BlockId, Digest},
    image::{BLOCK_BYTES, BlockEntry, BlockImage, Codec, ImageLocation, Index, RuntimeConfig},
    profiles::ProfileLimits,
    scheduler::Limits,
    wire::control::Mode,
    world::BatchLimits,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{ops::RangeInclusive, sync::Arc, time::Duration};

pub const MILLISECOND: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000 * MILLISECOND;

/// 1 Gbit/s, in bytes.
pub const GIGABIT: u64 = 125_000_000;

pub fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}

/// How long something takes: evenly distributed between both ends.
pub type Spread = RangeInclusive<Nanos>;

#[derive(Debug, Clone)]
pub struct Model {
    pub vms: usize,
    /// For instances, on each VM.
    pub memory_bytes: u64,
    pub images: Vec<ImageModel>,
    pub functions: Vec<FunctionModel>,
    /// Bytes in a second out of and into each VM.
    pub uplink: u64,
    pub downlink: u64,
    /// One way between two VMs, or a VM and the manager; each VM adds up to as much again.
    pub latency: Nanos,
    /// Bytes in a second that the origin gives to all, and the time to the first of them.
    pub origin_rate: u64,
    pub origin_latency: Nanos,
    /// Writing or reading one block on a VM's disk.
    pub disk: Nanos,
    /// One group commit of the metadata store.
    pub commit: Nanos,
    pub mount: Spread,
    /// From the order to run a container to its first instruction.
    pub run: Spread,
    /// What a container does itself between two reads.
    pub think: Nanos,
    pub probe: Nanos,
    /// CPU of all of this, beside the times above.
    pub costs: Costs,
    pub cores: Cores,
    /// Requests in a second that the origin answers; 0 for any number.
    pub origin_requests: u64,
    /// All blocks have the same bytes in memory: nothing is to be seen of damage, and images may be large.
    pub stand_ins: bool,
    pub limits: WorldLimits,
}

/// Whose cores they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    /// As many for each VM; the manager has its own.
    Each(u32),
    /// As many for all VMs and the manager together, as on a test bed.
    Shared(u32),
}

/// What the simulated metadata store takes at once.
pub(super) const BATCH: BatchLimits = BatchLimits { operations_max: 100_000, bytes_max: 64 << 20 };

/// The limits of manager and agents.
#[derive(Debug, Clone)]
pub struct WorldLimits {
    pub scheduler: Limits,
    pub tree: TreeLimits,
    /// How long trees of a new manager wait for their members to report.
    pub rejoin_grace: Duration,
    pub shape: TreeSettings,
    pub profiles: ProfileLimits,
    /// Recordings without a part until it is taken for something that starts do not need.
    pub missed_max: u32,
    pub transfer: TransferLimits,
    pub heartbeat: Duration,
    pub orders_in_flight_max: usize,
    pub orders_queued_max: usize,
    pub instances_max: usize,
    pub memory_cache_bytes: u64,
    pub disk: RoomLimits,
    pub probe_interval: Duration,
    pub connect: Duration,
    pub handshake: Duration,
    pub reconnect_min: Duration,
    pub reconnect_max: Duration,
    /// After it a VM notices that the other end of a connection is gone without a word.
    pub vanished: Duration,
}

impl Default for WorldLimits {
    /// Those of `config/default.toml`, as manager and agent read them.
    fn default() -> Self {
        let settings = Settings::default();
        let (manager, agent) = (settings.manager_limits(BATCH), settings.agent_limits());
        Self {
            scheduler: manager.scheduler,
            tree: manager.tree,
            rejoin_grace: manager.rejoin_grace,
            shape: settings.tree.clone(),
            profiles: manager.profiles,
            missed_max: settings.profile.missed_max,
            transfer: agent.transfer,
            heartbeat: manager.heartbeat,
            orders_in_flight_max: manager.orders_in_flight_max,
            orders_queued_max: manager.orders_queued_max,
            instances_max: agent.instances_max,
            memory_cache_bytes: agent.memory_cache_bytes,
            disk: agent.disk,
            probe_interval: agent.instance.probe_interval,
            connect: Duration::from_millis(settings.agent.connect_ms),
            handshake: Duration::from_millis(settings.agent.handshake_ms),
            reconnect_min: agent.reconnect_min,
            reconnect_max: agent.reconnect_max,
            vanished: Duration::from_secs(10),
        }
    }
}

impl Default for Model {
    /// VMs on 1 Gbit/s with an image like that of a Python service: 266 blocks of which a start reads 64.
    fn default() -> Self {
        Self {
            vms: 8,
            memory_bytes: 4 << 30,
            images: vec![ImageModel::default()],
            functions: vec![FunctionModel::default()],
            uplink: GIGABIT,
            downlink: GIGABIT,
            latency: MILLISECOND / 4,
            origin_rate: GIGABIT,
            origin_latency: 20 * MILLISECOND,
            disk: MILLISECOND / 2,
            commit: 2 * MILLISECOND,
            mount: 5 * MILLISECOND..=20 * MILLISECOND,
            run: 50 * MILLISECOND..=150 * MILLISECOND,
            think: MILLISECOND,
            probe: MILLISECOND / 2,
            costs: Costs::default(),
            cores: Cores::Each(2),
            origin_requests: 0,
            stand_ins: false,
            limits: WorldLimits::default(),
        }
    }
}

impl Model {
    /// Nothing takes time but what `costs` and links say.
    pub fn without_times() -> Self {
        let none = || 0..=0;
        let (disk, commit, think, probe) = (0, 0, 0, 0);
        Self { disk, commit, mount: none(), run: none(), think, probe, ..Self::default() }
    }
}

#[derive(Debug, Clone)]
pub struct ImageModel {
    pub blocks: u32,
    /// Of each block.
    pub stored_bytes: u32,
    pub metadata_blocks: u32,
    /// Blocks that a start reads beside the metadata.
    pub reads: Reads,
    /// What is known of that before the first start.
    pub hot: Hot,
    /// Blocks that hold what a start reads, once they are packed behind those of the metadata.
    pub packed_blocks: u32,
}

impl Default for ImageModel {
    fn default() -> Self {
        Self {
            blocks: 266,
            stored_bytes: 256 << 10,
            metadata_blocks: 2,
            reads: Reads::Random(64),
            hot: Hot::Unknown,
            packed_blocks: 26,
        }
    }
}

/// What is known of the blocks that starts read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hot {
    Unknown,
    /// They are fetched in the order in which a start read them.
    Pushed,
    /// They lie together in an image of their own.
    Packed,
}

/// Which blocks a container reads before it is ready, always the same for an image.
#[derive(Debug, Clone, Copy)]
pub enum Reads {
    /// That many from the first on.
    Sequential(u32),
    /// That many anywhere, in any order.
    Random(u32),
}

#[derive(Debug, Clone)]
pub struct FunctionModel {
    pub tenant: String,
    pub name: String,
    /// The number of its image.
    pub image: usize,
    pub memory_mib: u64,
    pub mode: Mode,
}

impl Default for FunctionModel {
    fn default() -> Self {
        Self { tenant: "acme".into(), name: "web".into(), image: 0, memory_mib: 256, mode: Mode::Lazy }
    }
}

/// A block image with its bytes.
pub(super) struct Image {
    kind: &'static str,
    pub description: BlockImage,
    pub index: Arc<Index>,
    pub index_bytes: u64,
    blocks: Vec<Bytes>,
    /// What a container reads, in this order.
    pub reads: Vec<BlockId>,
}

impl Image {
    pub fn new(number: usize, model: &ImageModel, stand_ins: bool, rng: &mut StdRng) -> Self {
        let index = |index: Index| index;
        Self::make((number, "image"), model, stand_ins, reads(model, rng), index)
    }

    /// What the converter makes of it once it is known what starts read.
    pub fn packed(number: usize, model: &ImageModel, stand_ins: bool) -> Self {
        let hot = model.metadata_blocks.saturating_add(model.packed_blocks).min(model.blocks);
        let reads = (model.metadata_blocks..hot).map(BlockId).collect();
        let index = |index: Index| index.packed(hot).expect("as many blocks as there are");
        Self::make((number, "packed"), model, stand_ins, reads, index)
    }

    fn make(
        (number, kind): (usize, &'static str),
        model: &ImageModel,
        stand_ins: bool,
        reads: Vec<BlockId>,
        pack: impl FnOnce(Index) -> Index,
    ) -> Self {
        let plain = model.stored_bytes.clamp(1, BLOCK_BYTES - 1) as usize;
        let content = |block: u32| {
            let mut bytes = vec![number as u8; plain];
            let mark = (block ^ u32::from(kind == "packed") << 31).to_le_bytes();
            let length = mark.len().min(plain);
            bytes[..length].copy_from_slice(&mark[..length]);
            Bytes::from(bytes)
        };
        let blocks: Vec<Bytes> = if stand_ins {
            // Told apart by where they begin.
            let all = Bytes::from(vec![0; plain + model.blocks as usize]);
            (0..model.blocks as usize).map(|block| all.slice(block..block + plain)).collect()
        } else {
            (0..model.blocks).map(content).collect()
        };
        let hash = |stored: &Bytes| if stand_ins { [0; 32] } else { *blake3::hash(stored).as_bytes() };
        let entry = |(number, stored): (u64, &Bytes)| BlockEntry {
            offset: number * plain as u64,
            stored_bytes: plain as u32,
            codec: Codec::Zstd,
            hash: hash(stored),
        };
        let plain_bytes = u64::from(model.blocks) * u64::from(BLOCK_BYTES);
        let entries = (0..).zip(&blocks).map(entry).collect();
        let index =
            Index::new(plain_bytes, model.metadata_blocks, entries).expect("every block has the same length");
        let index = pack(index);
        let digest =
            |text: &str| Digest::from_bytes(*blake3::hash(format!("{text} {number}").as_bytes()).as_bytes());
        let description = BlockImage {
            id: digest(kind),
            source: digest("source"),
            index_digest: digest(&format!("{kind} index")),
            index_bytes: Index::encoded_len(model.blocks),
            blob_digest: digest(&format!("{kind} blob")),
            blob_bytes: index.blob_bytes(),
            plain_bytes,
            location: ImageLocation::Registry { repository: "registry.example/images".into() },
            runtime: RuntimeConfig::default(),
        };
        let index_bytes = Index::encoded_len(model.blocks);
        Self { kind, description, index: Arc::new(index), index_bytes, blocks, reads }
    }

    pub fn is_packed(&self) -> bool {
        self.kind == "packed"
    }

    pub fn stored(&self, block: BlockId) -> Bytes {
        self.blocks.get(block.0 as usize).cloned().unwrap_or_default()
    }

    /// The check of a connection against the index; the very bytes of the image need no hashing.
    pub fn verify(&self, block: BlockId, stored: &Bytes) -> bool {
        let same = |own: &Bytes| own.as_ptr() == stored.as_ptr() && own.len() == stored.len();
        self.blocks.get(block.0 as usize).is_some_and(same) || self.index.verify(block, stored)
    }
}

fn reads(model: &ImageModel, rng: &mut StdRng) -> Vec<BlockId> {
    let all = model.metadata_blocks.min(model.blocks)..model.blocks;
    match model.reads {
        Reads::Sequential(count) => all.take(count as usize).map(BlockId).collect(),
        Reads::Random(count) => {
            let mut left: Vec<BlockId> = all.map(BlockId).collect();
            let count = (count as usize).min(left.len());
            (0..count).map(|_| left.swap_remove(rng.random_range(0..left.len()))).collect()
        }
    }
}

pub(super) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}
