//! What became of requests.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// Of latencies: what is longer counts as this.
const LATENCY_MAX_US: u64 = 3_600_000_000;
/// Kinds of failures that are told apart; further ones are counted together.
const KINDS_MAX: usize = 16;
const OTHER_KINDS: &str = "other failures";

/// One request and what became of it.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The place of what it asked.
    pub target: usize,
    /// When it was to be sent, from the beginning.
    pub intended: Duration,
    /// From then to the end of the answer.
    pub latency: Duration,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Answered {
        status: u16,
        has_retry_after: bool,
    },
    /// The connection was refused or cut, or what came is no answer.
    Failed(String),
    /// No answer within the generator's own deadline.
    TimedOut,
    /// As many requests were under way as the generator may have.
    NotSent,
    /// The generator was stopped first.
    CutOff,
}

impl Outcome {
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Answered { status: 200..300, .. })
    }

    /// Told to come back later.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Answered { status: 429 | 503, .. })
    }
}

/// Latencies, each known to a thousandth.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("the bounds are sound"))
    }
}

impl Latencies {
    pub fn add(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_micros().try_into().unwrap_or(u64::MAX));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that so many of a hundred do not exceed, in ms; 0 of none.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        match self.is_empty() {
            true => 0.0,
            false => self.0.value_at_percentile(percent) as f64 / 1000.0,
        }
    }
}

impl FromIterator<Duration> for Latencies {
    fn from_iter<T: IntoIterator<Item = Duration>>(latencies: T) -> Self {
        let mut all = Self::default();
        latencies.into_iter().for_each(|latency| all.add(latency));
        all
    }
}

/// What became of many requests. Latencies are those of requests that were answered and not refused.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    pub requests: usize,
    pub ok: usize,
    pub refused: usize,
    pub by_status: BTreeMap<u16, usize>,
    /// Without an answer: connections refused or cut.
    pub failed: BTreeMap<String, usize>,
    pub timed_out: usize,
    pub not_sent: usize,
    pub cut_off: usize,
    /// Answers 429 and 503 without `Retry-After`.
    pub without_retry_after: usize,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    /// Of refusals: 99 of 100 came within.
    pub refused_p99_ms: f64,
}

impl Summary {
    pub fn of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Self {
        let mut summary = Self::default();
        let (mut served, mut refused) = (Latencies::default(), Latencies::default());
        for sample in samples {
            summary.requests += 1;
            summary.ok += usize::from(sample.outcome.is_ok());
            match &sample.outcome {
                Outcome::Answered { status, has_retry_after } => {
                    *summary.by_status.entry(*status).or_default() += 1;
                    let is_refusal = sample.outcome.is_refused();
                    summary.refused += usize::from(is_refusal);
                    summary.without_retry_after += usize::from(is_refusal && !has_retry_after);
                    if is_refusal { &mut refused } else { &mut served }.add(sample.latency);
                }
                Outcome::Failed(reason) => {
                    let is_known = summary.failed.contains_key(reason);
                    let has_room = is_known || summary.failed.len() < KINDS_MAX;
                    let kind = if has_room { reason } else { OTHER_KINDS };
                    *summary.failed.entry(kind.to_owned()).or_default() += 1;
                }
                Outcome::TimedOut => summary.timed_out += 1,
                Outcome::NotSent => summary.not_sent += 1,
                Outcome::CutOff => summary.cut_off += 1,
            }
        }
        [summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.p999_ms, summary.max_ms] =
            [50.0, 90.0, 99.0, 99.9, 100.0].map(|percent| served.percentile_ms(percent));
        summary.refused_p99_ms = refused.percentile_ms(99.0);
        summary
    }

    pub fn with_status(&self, status: u16) -> usize {
        self.by_status.get(&status).copied().unwrap_or_default()
    }

    /// Neither served nor refused with when to come back: what no caller should see. What the generator did
    /// not send, or gave up when it was stopped, is none of the system's.
    pub fn errors(&self) -> usize {
        self.requests - self.ok - self.refused - self.not_sent - self.cut_off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(outcome: Outcome, ms: u64) -> Sample {
        Sample { target: 0, intended: Duration::ZERO, latency: Duration::from_millis(ms), outcome }
    }

    fn answered(status: u16, has_retry_after: bool, ms: u64) -> Sample {
        sample(Outcome::Answered { status, has_retry_after }, ms)
    }

    #[test]
    fn latencies_are_those_of_served_requests_and_refusals_must_say_when_to_come_back() {
        let samples = [
            answered(200, false, 10),
            answered(200, false, 30),
            answered(429, true, 1),
            answered(503, false, 2),
        ];
        let summary = Summary::of(&samples);
        let exact = |ms: f64| ms.round();
        assert_eq!(
            [summary.p50_ms, summary.p99_ms, summary.max_ms, summary.refused_p99_ms].map(exact),
            [10.0, 30.0, 30.0, 2.0]
        );
        assert_eq!((summary.without_retry_after, summary.ok, summary.refused), (1, 2, 2));
        assert_eq!((summary.with_status(200), summary.errors()), (2, 0));
        assert_eq!(Summary::of(&[]).max_ms, 0.0);
    }

    #[test]
    fn every_request_has_one_outcome_and_many_kinds_of_failures_stay_few() {
        let mut samples: Vec<_> =
            (0..100).map(|number| sample(Outcome::Failed(format!("kind {number}")), 1)).collect();
        samples
            .extend([Outcome::TimedOut, Outcome::NotSent, Outcome::CutOff].map(|outcome| sample(outcome, 1)));
        samples.push(answered(504, false, 5));
        let summary = Summary::of(&samples);
        assert!(summary.failed.len() <= KINDS_MAX + 1);
        assert_eq!(summary.failed.values().sum::<usize>(), 100);
        let counted = (summary.timed_out, summary.not_sent, summary.cut_off, summary.with_status(504));
        assert_eq!(counted, (1, 1, 1, 1));
        assert_eq!((summary.requests, summary.errors()), (104, 102));
    }

    #[test]
    fn percentiles_are_exact_to_a_thousandth() {
        let latencies: Latencies = (1..=10_000).map(Duration::from_millis).collect();
        for (percent, exact) in [(50.0, 5000.0), (99.0, 9900.0), (99.9, 9990.0), (100.0, 10_000.0)] {
            let measured = latencies.percentile_ms(percent);
            assert!((measured / exact - 1.0).abs() <= 0.001, "{percent}: {measured}");
        }
        let endless: Latencies = [Duration::MAX].into_iter().collect();
        assert!(endless.percentile_ms(50.0) >= 3.6e6 * 0.999);
    }
}
