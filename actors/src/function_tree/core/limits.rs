//! The bounds of a tree.

use crate::function_tree::origin::OriginLimits;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeLimits {
    /// Upstreams named to a VM for each stripe, at least 1.
    pub ancestors_max: usize,
    /// A capability is renewed when half of this is over.
    pub capability_ttl: Duration,
    /// How long a VM is not sent to an upstream that did not serve it.
    pub complaint_life: Duration,
    pub origin: OriginLimits,
    /// How long a VM that leaves is kept for a former child that does not say that it has its new place.
    pub lease: Duration,
}

impl TreeLimits {
    /// What `config/default.toml` says. A test of the settings holds them equal.
    pub const SHIPPED: Self = Self {
        ancestors_max: 3,
        capability_ttl: Duration::from_secs(3600),
        complaint_life: Duration::from_secs(60),
        origin: OriginLimits {
            budget_percent: 50,
            window: Duration::from_secs(600),
            grant_blocks: 8,
            grant_ttl: Duration::from_secs(5),
        },
        lease: Duration::from_secs(3),
    };
}
