//! The bounds of a transfer.

use std::time::Duration;

/// The bounds of one transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferLimits {
    /// Blocks that one upstream may be asked for before anything is known of its speed.
    pub in_flight_blocks_min: usize,
    /// Blocks asked of all upstreams and not on disk yet. The last `in_flight_blocks_min` are for demands.
    pub in_flight_blocks_max: usize,
    /// Blocks that one child may wait for.
    pub queued_blocks_max: usize,
    /// Blocks given to a child's connection and not sent yet, demands and read-ahead each.
    pub unsent_blocks_max: usize,
    pub children_max: usize,
    pub read_ahead_blocks_max: u32,
    /// VMs that a demand may pass.
    pub hops_max: usize,
    /// Silence of an upstream after which the next is tried.
    pub stall: Duration,
    /// How long a child waits for the place that makes this VM its parent.
    pub early_child: Duration,
    /// Blocks that a child of the root may read from the origin when the manager does not answer.
    pub origin_share_blocks: u32,
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// After it a want is given up.
    pub read_deadline: Duration,
}

impl TransferLimits {
    /// What `config/default.toml` says. A test of the settings holds them equal.
    pub const SHIPPED: Self = Self {
        in_flight_blocks_min: 8,
        in_flight_blocks_max: 64,
        queued_blocks_max: 64,
        unsent_blocks_max: 4,
        children_max: 16,
        read_ahead_blocks_max: 8,
        hops_max: 64,
        stall: Duration::from_millis(400),
        early_child: Duration::from_secs(1),
        origin_share_blocks: 16,
        retry_min: Duration::from_millis(50),
        retry_max: Duration::from_millis(500),
        read_deadline: Duration::from_secs(30),
    };
}

impl TransferLimits {
    /// How long an upstream that says that it waits is believed: there is time for parent, grandparent and leave
    /// to read the origin before a read fails.
    pub(super) fn patience(&self) -> Duration {
        (self.read_deadline / 4).max(self.stall)
    }
}
