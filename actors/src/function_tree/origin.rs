//! How much of the origin VMs may read that are no roots: the tree's retry budget (invariant 6).

use super::core::{Effect, TreeCore};
use crate::{id::VmId, support::millis, wire::control::OriginAnswer};
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// How often the origin may be read once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginLimits {
    /// Blocks given away within `window`, in percent of the image's.
    pub budget_percent: u32,
    pub window: Duration,
    /// Blocks of one leave, and how long it is valid.
    pub grant_blocks: u32,
    pub grant_ttl: Duration,
}

/// What was given away within the window.
#[derive(Default)]
pub(super) struct OriginBudget {
    /// As far as it is known from starts and reports.
    image_blocks: u32,
    given: VecDeque<(Instant, u32)>,
}

impl OriginBudget {
    pub fn image_has(&mut self, blocks: u32) {
        self.image_blocks = self.image_blocks.max(blocks);
    }

    fn answer(&mut self, wanted: u32, limits: &OriginLimits, now: Instant) -> OriginAnswer {
        while self.given.front().is_some_and(|(at, _)| now >= *at + limits.window) {
            self.given.pop_front();
        }
        let budget = u64::from(self.image_blocks) * u64::from(limits.budget_percent) / 100;
        let budget = u32::try_from(budget).unwrap_or(u32::MAX);
        let given: u32 = self.given.iter().map(|(_, blocks)| blocks).sum();
        let blocks = wanted.min(limits.grant_blocks).min(budget - given.min(budget));
        if blocks == 0 {
            let free_at = self.given.front().map_or(now + limits.window, |(at, _)| *at + limits.window);
            // No later than a leave lasts: what was given may be enough to end the trouble.
            let retry_after = free_at.duration_since(now).min(limits.grant_ttl);
            return OriginAnswer::Refused { retry_after_ms: millis(retry_after) };
        }
        self.given.push_back((now, blocks));
        debug_assert!(given + blocks <= budget, "invariant 6");
        OriginAnswer::Granted { blocks, ttl_ms: millis(limits.grant_ttl) }
    }
}

impl TreeCore {
    /// A member that nobody serves asks to read the origin itself.
    pub(super) fn origin_wanted(&mut self, vm: VmId, blocks: u32, now: Instant, effects: &mut Vec<Effect>) {
        if !self.has_member(&vm) {
            return;
        }
        let answer = self.origin.answer(blocks, &self.limits.origin, now);
        effects.push(Effect::Origin { vm, answer });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::core::TreeLimits, *};

    const LIMITS: OriginLimits =
        OriginLimits { window: Duration::from_secs(60), ..TreeLimits::SHIPPED.origin };

    #[test]
    fn whoever_asks_and_however_often_only_the_budget_is_given_within_a_window() {
        let (mut budget, start) = (OriginBudget::default(), Instant::now());
        budget.image_has(100);
        let mut given = 0;
        for second in 0..60 {
            for _ in 0..1000 {
                match budget.answer(20, &LIMITS, start + Duration::from_secs(second)) {
                    OriginAnswer::Granted { blocks, .. } => given += blocks,
                    OriginAnswer::Refused { retry_after_ms } => assert!(retry_after_ms <= 5000),
                }
            }
        }
        assert_eq!(given, 50);
        let later = budget.answer(20, &LIMITS, start + Duration::from_secs(60));
        assert_eq!(later, OriginAnswer::Granted { blocks: 8, ttl_ms: 5000 });
    }
}
