//! What Prometheus scrapes. Each answer is made anew from what is so then; there is no registry and no state.
//!
//! Names and labels are few and fixed: nothing that users name is one.

mod actors;
mod agent;
mod manager;
mod process;

pub use agent::{Agent, AgentParts, page as agent_page};
pub use manager::{Manager, page as manager_page};

use faasnet_actors::{event_log::Durations, wire::control::BytesBySource};
use prometheus::{
    TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

/// The media type of a page.
pub const TEXT_FORMAT: &str = prometheus::TEXT_FORMAT;

type Labels<'a> = &'a [(&'a str, &'a str)];

/// An answer that is being written.
#[derive(Default)]
struct Page {
    families: Vec<MetricFamily>,
}

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help).add(&[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.counters(name, help).add(&[], value);
    }

    fn gauges(&mut self, name: &str, help: &str) -> Samples<'_> {
        self.family(name, help, MetricType::GAUGE)
    }

    fn counters(&mut self, name: &str, help: &str) -> Samples<'_> {
        self.family(name, help, MetricType::COUNTER)
    }

    fn histograms(&mut self, name: &str, help: &str) -> Samples<'_> {
        self.family(name, help, MetricType::HISTOGRAM)
    }

    fn family(&mut self, name: &str, help: &str, kind: MetricType) -> Samples<'_> {
        let mut family = MetricFamily::default();
        family.set_name(name.into());
        family.set_help(help.into());
        family.set_field_type(kind);
        self.families.push(family);
        Samples { family: self.families.last_mut().expect("it was just added"), kind, metrics: Vec::new() }
    }

    /// A family without a sample is left out.
    fn text(mut self) -> String {
        self.families.retain(|family| !family.get_metric().is_empty());
        TextEncoder::new().encode_to_string(&self.families).expect("every family has a name and a sample")
    }
}

/// The samples of one family; they are in it when this is dropped.
struct Samples<'a> {
    family: &'a mut MetricFamily,
    kind: MetricType,
    metrics: Vec<Metric>,
}

impl Samples<'_> {
    fn add(&mut self, labels: Labels, value: f64) {
        let mut metric = labelled(labels);
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    fn add_durations(&mut self, labels: Labels, Durations { up_to, count, sum_us }: &Durations) {
        let mut so_far = 0;
        let bucket = |(bound_us, in_it): (&u64, &u64)| {
            so_far += in_it;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(seconds(*bound_us));
            bucket.set_cumulative_count(so_far);
            bucket
        };
        let mut histogram = Histogram::default();
        histogram.set_bucket(Durations::BOUNDS_US.iter().zip(up_to).map(bucket).collect());
        histogram.set_sample_count(*count);
        histogram.set_sample_sum(seconds(*sum_us));
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }
}

impl Drop for Samples<'_> {
    fn drop(&mut self) {
        self.family.set_metric(std::mem::take(&mut self.metrics));
    }
}

fn labelled(labels: Labels) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).into());
        pair.set_value((*value).into());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// Which program it is.
fn build(page: &mut Page) {
    let help = "1, with the version of the program.";
    page.gauges("faasnet_build_info", help).add(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
}

fn by_source(page: &mut Page, name: &str, help: &str, bytes: BytesBySource) {
    let BytesBySource { parent, ancestor, origin } = bytes;
    let mut samples = page.counters(name, help);
    for (source, received) in [("parent", parent), ("ancestor", ancestor), ("origin", origin)] {
        samples.add(&[("source", source)], received as f64);
    }
}
