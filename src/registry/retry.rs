//! When a failed call is tried again: attempts limited, pauses that double, with jitter, and what the
//! registry says in `Retry-After`.

use super::RegistryError;
use crate::settings::OriginSettings;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The rule for all calls of one client.
#[derive(Debug)]
pub(super) struct RetryPolicy {
    attempts_max: u32,
    pause_min: Duration,
    pause_max: Duration,
    /// Each call draws its pauses from a generator of its own, made from the seed and the number of
    /// the call: no lock, and the same seed gives the same pauses.
    seed: u64,
    calls: AtomicU64,
}

/// The state of one call.
pub(super) struct Attempts<'a> {
    policy: &'a RetryPolicy,
    random: StdRng,
    /// Attempts that failed until now.
    failed: u32,
}

impl RetryPolicy {
    pub(super) fn new(settings: &OriginSettings, seed: u64) -> Self {
        Self {
            attempts_max: settings.attempts_max,
            pause_min: Duration::from_millis(settings.retry_min_ms),
            pause_max: Duration::from_millis(settings.retry_max_ms),
            seed,
            calls: AtomicU64::new(0),
        }
    }

    pub(super) fn attempts(&self) -> Attempts<'_> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        Attempts { policy: self, random: StdRng::seed_from_u64(self.seed.wrapping_add(call)), failed: 0 }
    }

    /// Calls until one succeeds, fails for good, or the attempts are used up. `call` is told how many
    /// attempts failed before.
    pub(super) async fn run<T, F, Answer>(&self, mut call: F) -> Result<T, RegistryError>
    where
        F: FnMut(u32) -> Answer,
        Answer: Future<Output = Result<T, RegistryError>>,
    {
        let mut attempts = self.attempts();
        loop {
            match call(attempts.failed).await {
                Ok(answer) => return Ok(answer),
                Err(error) => attempts.wait_after(error).await?,
            }
        }
    }
}

impl Attempts<'_> {
    /// Waits before the next attempt, or gives the error back when there is none.
    pub(super) async fn wait_after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        match self.pause_after(&error) {
            Some(pause) => {
                tracing::debug!(%error, ?pause, "registry call is tried again");
                tokio::time::sleep(pause).await;
                Ok(())
            }
            None => Err(error),
        }
    }

    /// The pause after that failure; `None` when the call has failed for good. A `Retry-After` longer
    /// than the longest pause ends the call too: the registry is not bothered before its time, and the
    /// caller learns how long to stay away.
    fn pause_after(&mut self, error: &RegistryError) -> Option<Duration> {
        self.failed += 1;
        if !error.is_retryable() || self.failed >= self.policy.attempts_max {
            return None;
        }
        let asked = error.retry_after().unwrap_or_default();
        if asked > self.policy.pause_max {
            return None;
        }
        let doubled = self.policy.pause_min.saturating_mul(1 << (self.failed - 1).min(20));
        let longest = doubled.min(self.policy.pause_max);
        // From half to all of it, so that VMs that failed together do not come back together.
        Some(longest.mul_f64(self.random.random_range(0.5..=1.0)).max(asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    fn policy() -> RetryPolicy {
        RetryPolicy::new(&Settings::load(None).expect("defaults").origin, 7)
    }

    fn busy(seconds: Option<u64>) -> RegistryError {
        let retry_after = seconds.map(Duration::from_secs);
        RegistryError::Busy { registry: "r".to_owned(), retry_after }
    }

    #[test]
    fn pauses_double_within_their_bounds_and_end() {
        let policy = policy();
        let mut attempts = policy.attempts();
        let pauses: Vec<_> = std::iter::from_fn(|| attempts.pause_after(&busy(None))).collect();
        assert_eq!(pauses.len(), 3, "four attempts have three pauses");
        for (pause, longest_ms) in pauses.iter().zip([100, 200, 400]) {
            let longest = Duration::from_millis(longest_ms);
            assert!((longest / 2..=longest).contains(pause), "{pause:?} of {longest:?}");
        }
    }

    #[test]
    fn retry_after_is_kept_or_ends_the_call() {
        let policy = policy();
        assert_eq!(policy.attempts().pause_after(&busy(Some(3))), Some(Duration::from_secs(3)));
        assert_eq!(policy.attempts().pause_after(&busy(Some(3600))), None);
    }

    #[test]
    fn calls_differ_and_seeds_repeat() {
        let pause = |policy: &RetryPolicy| policy.attempts().pause_after(&busy(None));
        let (one, same) = (policy(), policy());
        let first = pause(&one);
        assert_ne!(first, pause(&one));
        assert_eq!(first, pause(&same));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_get_better_is_not_tried_again() {
        let mut calls = 0;
        let not_found = |_| {
            calls += 1;
            async { Err::<(), _>(RegistryError::NotFound { what: "x".to_owned() }) }
        };
        assert!(policy().run(not_found).await.is_err());
        assert_eq!(calls, 1);
    }
}
