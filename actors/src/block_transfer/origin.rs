//! When a VM that is no root may read the origin: the last way out, with leave of the manager, or, when the
//! manager does not answer, a fixed share for the children of a root.

use crate::{id::VmId, wire::control::OriginAnswer};
use std::time::Duration;
use tokio::time::Instant;

/// Keeps the VM's part of invariant 6: it reads no more blocks from the origin than it was given leave for.
pub(super) struct OriginPass {
    /// Spreads VMs that go to the origin without the manager; another value for each VM.
    seed: u64,
    patience: Duration,
    state: State,
    /// Blocks that may be read.
    left: u32,
    /// What is left of the share that needs no leave; full again with each new place, because then the
    /// manager is there.
    share: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Idle,
    Asked {
        at: Instant,
    },
    Granted {
        until: Instant,
    },
    Refused {
        until: Instant,
    },
    /// The manager did not answer: the share is used from then on, until the manager is asked again.
    Alone {
        from: Instant,
        until: Instant,
    },
}

impl OriginPass {
    /// `patience` is how long the manager's answer is waited for.
    pub fn new(own: &VmId, patience: Duration, share: u32) -> Self {
        let seed = xxhash_rust::xxh3::xxh3_64(own.as_str().as_bytes());
        Self { seed, patience, state: State::Idle, left: 0, share }
    }

    pub fn placed(&mut self, share: u32) {
        self.share = share;
    }

    pub fn answered(&mut self, answer: OriginAnswer, now: Instant) {
        match answer {
            OriginAnswer::Granted { blocks, ttl_ms } => {
                self.left = blocks;
                self.state = State::Granted { until: now + Duration::from_millis(ttl_ms) };
            }
            OriginAnswer::Refused { retry_after_ms } => {
                self.left = 0;
                self.state = State::Refused { until: now + Duration::from_millis(retry_after_ms) };
            }
        }
    }

    /// Time goes on. `has_share` is true for children of a root: nobody else goes without leave.
    pub fn tick(&mut self, now: Instant, has_share: bool) {
        match self.state {
            State::Asked { at } if now.duration_since(at) >= self.patience => {
                let jitter = self.seed % u64::try_from(self.patience.as_millis()).unwrap_or(1).max(1);
                let from = now + Duration::from_millis(jitter);
                self.left = if has_share { self.share } else { 0 };
                self.share -= self.left;
                self.state = State::Alone { from, until: from + 4 * self.patience };
            }
            State::Granted { until } | State::Refused { until } | State::Alone { until, .. }
                if now >= until =>
            {
                self.left = 0;
                self.state = State::Idle;
            }
            State::Idle
            | State::Asked { .. }
            | State::Granted { .. }
            | State::Refused { .. }
            | State::Alone { .. } => {}
        }
    }

    pub fn may_read(&self, now: Instant) -> bool {
        let is_time = match self.state {
            State::Granted { until } => now < until,
            State::Alone { from, until } => from <= now && now < until,
            State::Idle | State::Asked { .. } | State::Refused { .. } => false,
        };
        is_time && self.left > 0
    }

    /// One block is asked of the origin.
    pub fn spend(&mut self) {
        self.left = self.left.checked_sub(1).expect("invariant 6: nobody reads the origin without leave");
    }

    /// Whether leave may come soon, so that waiting is worth it.
    pub fn may_come(&self, now: Instant) -> bool {
        match self.state {
            State::Idle | State::Asked { .. } => true,
            State::Granted { .. } => self.left > 0,
            State::Alone { from, .. } => self.left > 0 && now < from,
            State::Refused { .. } => false,
        }
    }

    /// True when the manager is to be asked now.
    pub fn ask(&mut self, now: Instant) -> bool {
        let is_spent = matches!(self.state, State::Granted { .. }) && self.left == 0;
        let asks = self.state == State::Idle || is_spent;
        if asks {
            self.state = State::Asked { at: now };
        }
        asks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(400);

    fn pass() -> (OriginPass, Instant) {
        (OriginPass::new(&"vm-1".parse().expect("valid"), PATIENCE, 3), Instant::now())
    }

    #[test]
    fn leave_is_for_so_many_blocks_and_so_long() {
        let (mut pass, now) = pass();
        assert!(!pass.may_read(now));
        assert!(pass.ask(now) && !pass.ask(now), "asked once");
        pass.answered(OriginAnswer::Granted { blocks: 2, ttl_ms: 1000 }, now);
        assert!(pass.may_read(now));
        pass.spend();
        pass.spend();
        assert!(!pass.may_read(now) && pass.ask(now), "and then again");
        pass.answered(OriginAnswer::Granted { blocks: 2, ttl_ms: 1000 }, now);
        pass.tick(now + Duration::from_secs(1), true);
        assert!(!pass.may_read(now + Duration::from_secs(1)));
    }

    #[test]
    fn a_refusal_is_obeyed_for_as_long_as_it_says() {
        let (mut pass, now) = pass();
        assert!(pass.ask(now));
        pass.answered(OriginAnswer::Refused { retry_after_ms: 500 }, now);
        pass.tick(now + Duration::from_millis(499), true);
        assert!(!pass.ask(now) && !pass.may_come(now));
        pass.tick(now + Duration::from_millis(500), true);
        assert!(pass.ask(now));
    }

    #[test]
    fn without_the_manager_a_child_of_the_root_has_its_share_once_and_others_nothing() {
        for (has_share, expected) in [(true, 3), (false, 0)] {
            let (mut pass, mut now) = pass();
            let mut read = 0;
            for _ in 0..1000 {
                now += Duration::from_millis(50);
                pass.tick(now, has_share);
                pass.ask(now);
                while pass.may_read(now) {
                    pass.spend();
                    read += 1;
                }
            }
            assert_eq!(read, expected);
        }
    }
}
