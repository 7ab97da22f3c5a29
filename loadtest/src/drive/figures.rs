//! What a load came to: the figures of thresholds, and the curves of the page.

use super::{threshold::Figures, watch::Watched};
use crate::load::{Latencies, Sample, Summary};
use faasnet_actors::{
    model::{StartState, StartView},
    wire::control::BytesBySource,
};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// Bars and steps of a plot over time.
const BINS: f64 = 200.0;
/// Shortest one: a burst is over in a second or two.
const BIN_MIN_S: f64 = 0.05;

/// What happened in one piece of time.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Bin {
    /// Its beginning.
    pub at_s: f64,
    /// Requests that were to be sent in it.
    pub arrivals: usize,
    /// Answers that came in it.
    pub ok: usize,
    pub refused: usize,
    pub other: usize,
    /// Of the requests that were to be sent in it and were served.
    pub p50_ms: f64,
    pub max_ms: f64,
}

/// Everything that is written as JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// How it was made.
    pub command: String,
    pub length_s: f64,
    pub is_complete: bool,
    pub figures: Figures,
    pub summary: Summary,
    /// By tenant and function.
    pub by_function: BTreeMap<String, Summary>,
    pub bin_s: f64,
    pub over_time: Vec<Bin>,
    /// Latest that the generator sent a request, after it was to be sent.
    pub sent_late_max_ms: f64,
    pub watched: Watched,
}

/// How long pieces of time are, for a load of that length.
pub fn bin_s(length_s: f64) -> f64 {
    (length_s / BINS).max(BIN_MIN_S)
}

pub fn over_time(samples: &[Sample], bin_s: f64) -> Vec<Bin> {
    let bin_of = |at: Duration| (at.as_secs_f64() / bin_s) as usize;
    let last = samples.iter().map(|sample| bin_of(sample.intended + sample.latency)).max();
    let mut bins: Vec<Bin> = (0..last.map_or(0, |last| last + 1))
        .map(|place| Bin { at_s: place as f64 * bin_s, ..Bin::default() })
        .collect();
    let mut latencies: BTreeMap<usize, Vec<Duration>> = BTreeMap::new();
    for sample in samples {
        let (began, ended) = (bin_of(sample.intended), bin_of(sample.intended + sample.latency));
        bins[began].arrivals += 1;
        let end = &mut bins[ended];
        if sample.outcome.is_ok() {
            end.ok += 1;
            latencies.entry(began).or_default().push(sample.latency);
        } else if sample.outcome.is_refused() {
            end.refused += 1;
        } else {
            end.other += 1;
        }
    }
    for (bin, latencies) in latencies {
        let latencies: Latencies = latencies.into_iter().collect();
        let [p50, max] = [50.0, 100.0].map(|percent| latencies.percentile_ms(percent));
        (bins[bin].p50_ms, bins[bin].max_ms) = (p50, max);
    }
    bins
}

/// From acceptance to ready, of starts that became so; also of those that have ended since.
pub fn ready_ms(start: &StartView) -> Option<f64> {
    start.timeline_us.ready.map(|us| us as f64 / 1000.0)
}

/// When starts became ready, from the beginning of the load: as exact as the looks are close.
pub fn ready_times(watched: &Watched) -> Vec<f64> {
    let ready_s = |ready_us: u64| ready_us as f64 / 1e6;
    let mut times: Vec<f64> = watched
        .starts
        .iter()
        .filter_map(|start| Some(start.seen_s? + ready_s(start.view.timeline_us.ready?)))
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

/// Most within one second, wherever it begins.
fn busiest_second(times: &[f64]) -> usize {
    let within = |(place, time): (usize, &f64)| times.partition_point(|other| *other < time + 1.0) - place;
    times.iter().enumerate().map(within).max().unwrap_or_default()
}

pub fn figures(summary: &Summary, watched: &Watched) -> Figures {
    let share = |part: usize| part as f64 / summary.requests.max(1) as f64;
    let mut figures: Figures = [
        ("requests", summary.requests as f64),
        ("ok", summary.ok as f64),
        ("refused", summary.refused as f64),
        ("errors", summary.errors() as f64),
        ("timed_out", summary.timed_out as f64),
        ("not_sent", summary.not_sent as f64),
        ("without_retry_after", summary.without_retry_after as f64),
        ("error_share", share(summary.errors())),
        ("refused_share", share(summary.refused)),
    ]
    .into();
    let answered: usize = summary.by_status.values().sum();
    if answered > summary.refused {
        let Summary { p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. } = *summary;
        figures.extend([
            ("p50_ms", p50_ms),
            ("p90_ms", p90_ms),
            ("p99_ms", p99_ms),
            ("p999_ms", p999_ms),
            ("max_ms", max_ms),
        ]);
    }
    let views = || watched.starts.iter().map(|start| &start.view);
    let was_not_ready =
        |start: &&StartView| start.state == StartState::Ended && start.timeline_us.ready.is_none();
    figures.insert("starts", watched.starts.len() as f64);
    figures.insert("starts_failed", views().filter(was_not_ready).count() as f64);
    let ready: Latencies =
        views().filter_map(|start| start.timeline_us.ready).map(Duration::from_micros).collect();
    if !ready.is_empty() {
        for (name, percent) in
            [("p50_ready_ms", 50.0), ("p90_ready_ms", 90.0), ("p99_ready_ms", 99.0), ("max_ready_ms", 100.0)]
        {
            figures.insert(name, ready.percentile_ms(percent));
        }
        let bytes = views().fold(BytesBySource::default(), |sum, start| sum.plus(start.bytes));
        figures.insert("origin_bytes", bytes.origin as f64);
        figures.insert("peer_bytes", bytes.parent.saturating_add(bytes.ancestor) as f64);
        figures.insert("starts_per_s", busiest_second(&ready_times(watched)) as f64);
    }
    if let Some(height) = watched.looks.iter().map(|look| look.tree_height).max() {
        figures.insert("tree_height_max", f64::from(height));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Outcome as Became;

    fn sample(intended_ms: u64, latency_ms: u64, status: u16) -> Sample {
        let outcome = Became::Answered { status, has_retry_after: true };
        let [intended, latency] = [intended_ms, latency_ms].map(Duration::from_millis);
        Sample { target: 0, intended, latency, outcome }
    }

    #[test]
    fn requests_count_where_they_began_and_answers_where_they_came() {
        let samples =
            [sample(0, 10, 200), sample(50, 1200, 200), sample(1100, 20, 429), sample(1900, 500, 500)];
        let bins = over_time(&samples, 1.0);
        let counts: Vec<_> =
            bins.iter().map(|bin| (bin.at_s, bin.arrivals, bin.ok, bin.refused, bin.other)).collect();
        assert_eq!(counts, [(0.0, 2, 1, 0, 0), (1.0, 2, 1, 1, 0), (2.0, 0, 0, 0, 1)]);
        assert!((bins[0].max_ms / 1200.0 - 1.0).abs() < 0.002 && bins[1].max_ms == 0.0);
        assert_eq!(over_time(&[], 1.0), []);
    }

    #[test]
    fn the_busiest_second_may_begin_anywhere() {
        assert_eq!(busiest_second(&[0.1, 0.9, 1.0, 1.05, 1.95, 5.0]), 4);
        assert_eq!(busiest_second(&[]), 0);
    }

    #[test]
    fn every_figure_is_known_by_name_and_what_was_not_measured_is_missing() {
        let nothing = figures(&Summary::default(), &Watched::default());
        assert!(!nothing.contains_key("p99_ms") && !nothing.contains_key("p99_ready_ms"));
        let samples = [sample(0, 10, 200)];
        let some = figures(&Summary::of(&samples), &Watched::default());
        let known: Vec<_> = super::super::threshold::FIGURES.iter().map(|(name, _)| *name).collect();
        assert!(some.keys().all(|name| known.contains(name)), "{some:?}");
        assert_eq!((some["requests"], some["ok"], some["error_share"]), (1.0, 1.0, 0.0));
    }
}
