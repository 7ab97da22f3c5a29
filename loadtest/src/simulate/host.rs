//! A VM: its disk, its holder with mounts and containers, and the agent when it is up.

use super::{
    agent::{Agent, Cached},
    queue::Nanos,
};
use faasnet_actors::{
    agent::world::{InstanceRecord, TreeRecord},
    id::{BlockId, StartId, TreeId, VmId},
};
use std::collections::{BTreeMap, BTreeSet};

pub(super) struct Host {
    pub id: VmId,
    /// What this VM adds to the latency of everything that it sends or gets.
    pub distance: Nanos,
    /// Counts the lives of the VM: what was meant for an earlier one is lost.
    pub life: u32,
    pub agent: Option<Agent>,
    /// It vanished without a word: nobody is told that its connections are gone.
    pub is_silent: bool,
    pub paused_until: Nanos,
    /// It damages some of the blocks that it sends.
    pub is_faulty: bool,
    /// What survives a life.
    pub cached: BTreeMap<TreeId, Cached>,
    pub places: BTreeMap<TreeId, TreeRecord>,
    /// Trees that were left and whose images are kept, the last one at the end.
    pub left: Vec<TreeId>,
    pub instances: BTreeMap<StartId, InstanceRecord>,
    pub holder: Holder,
}

/// Mounts, containers and the reads that wait.
#[derive(Default)]
pub(super) struct Holder {
    pub mounts: BTreeSet<TreeId>,
    pub containers: BTreeMap<StartId, Container>,
    /// Blocks that containers have read of images whose use is recorded, in that order.
    pub recordings: BTreeMap<TreeId, Vec<BlockId>>,
    /// Containers that wait for a block.
    pub reads: BTreeMap<(TreeId, BlockId), BTreeSet<StartId>>,
}

pub(super) struct Container {
    pub tree: TreeId,
    /// Work between two reads.
    pub think: Nanos,
    /// Its process runs.
    pub is_running: bool,
    /// Of the blocks that it reads, how many it has.
    pub read: usize,
    pub waits: Option<(BlockId, Nanos)>,
    pub is_ready: bool,
}

impl Host {
    pub fn new(id: VmId, distance: Nanos) -> Self {
        Self {
            id,
            distance,
            life: 0,
            agent: None,
            is_silent: false,
            paused_until: 0,
            is_faulty: false,
            cached: BTreeMap::new(),
            places: BTreeMap::new(),
            left: Vec::new(),
            instances: BTreeMap::new(),
            holder: Holder::default(),
        }
    }

    pub fn is_up(&self) -> bool {
        self.agent.is_some()
    }

    pub fn has_block(&self, tree: &TreeId, block: BlockId) -> bool {
        let transfer = self.agent.as_ref().and_then(|agent| agent.trees.get(tree)?.transfer.as_ref());
        transfer.is_some_and(|transfer| transfer.core.present().contains(&block))
    }
}

impl Holder {
    /// Forgets a container with what it waits for. None if it is not there.
    pub fn remove(&mut self, start: &StartId) -> Option<Container> {
        let container = self.containers.remove(start)?;
        if let Some((block, _)) = container.waits {
            let key = (container.tree.clone(), block);
            if let Some(readers) = self.reads.get_mut(&key) {
                readers.remove(start);
                if readers.is_empty() {
                    self.reads.remove(&key);
                }
            }
        }
        Some(container)
    }
}
