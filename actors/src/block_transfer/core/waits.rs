//! What this VM waited for: blocks from whom, and the disk.

use crate::{
    id::{BlockId, VmId},
    support::micros,
    wire::control::{Upstream, Wait, Waits, WorstStall},
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// Who an upstream is to this VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Parent,
    Ancestor,
    Origin,
}

/// A block that this VM wanted for itself, on its way to the disk.
struct Coming {
    /// Since when a read waits for it.
    read_since: Option<Instant>,
    arrived: Instant,
    from: Option<VmId>,
}

#[derive(Default)]
pub(super) struct Waited {
    coming: BTreeMap<BlockId, Coming>,
    waits: Waits,
    worst: Option<WorstStall>,
}

fn add(wait: &mut Wait, length: Duration) {
    wait.blocks = wait.blocks.saturating_add(1);
    wait.us = wait.us.saturating_add(micros(length));
}

impl Waited {
    pub fn waits(&self) -> Waits {
        self.waits
    }

    /// The longest wait of a read that is over.
    pub fn worst(&self) -> Option<&WorstStall> {
        self.worst.as_ref()
    }

    /// The longest wait of a read for the disk that lasts.
    pub fn longest(&self, now: Instant) -> Duration {
        let since = self.coming.values().filter_map(|coming| coming.read_since).min();
        since.map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    /// A block arrived that was wanted since then, and maybe read.
    pub fn arrived(
        &mut self,
        block: BlockId,
        (since, is_read): (Instant, bool),
        (upstream, whose): (&Upstream, Whose),
        now: Instant,
    ) {
        let wait = match whose {
            Whose::Parent => &mut self.waits.parent,
            Whose::Ancestor => &mut self.waits.ancestor,
            Whose::Origin => &mut self.waits.origin,
        };
        add(wait, now.duration_since(since));
        let from = match upstream {
            Upstream::Vm { vm, .. } => Some(vm.clone()),
            Upstream::Origin => None,
        };
        self.coming.insert(block, Coming { read_since: is_read.then_some(since), arrived: now, from });
    }

    /// A read waits for a block that is being written. True if it is the first.
    pub fn read(&mut self, block: BlockId, now: Instant) -> bool {
        let coming = self.coming.get_mut(&block);
        coming.is_some_and(|coming| coming.read_since.replace(coming.read_since.unwrap_or(now)).is_none())
    }

    /// The block is on the disk, or will not be. Returns how long reads waited for it.
    pub fn written(&mut self, block: BlockId, now: Instant) -> Option<Duration> {
        let Coming { read_since, arrived, from } = self.coming.remove(&block)?;
        let disk = now.duration_since(arrived);
        add(&mut self.waits.disk, disk);
        let length = now.duration_since(read_since?);
        let us = micros(length);
        if self.worst.as_ref().is_none_or(|worst| worst.us < us) {
            self.worst = Some(WorstStall { block, us, disk_us: micros(disk.min(length)), from });
        }
        Some(length)
    }
}
