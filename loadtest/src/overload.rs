//! `faasnet-loadtest overload`: ten times what a function can serve, and what becomes of it.
//!
//! The function's capacity is known: its instances serve so many requests at once, and each takes as long as
//! it is told to. Beside it another tenant sends a few requests to a function of its own. Measured are what is
//! answered how, how fast, what waits, and the manager's memory: before, during and after.

use crate::{
    load::{Limits, Load, Piece, Rates, Sample, Summary, Target},
    rig::{Cluster, ClusterSpec, Image, Variant},
};
use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use std::{
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

const FUNCTION: &str = "loaded";
const TENANT: &str = "default";
const NEIGHBOUR: &str = "neighbour";
/// Of the neighbour's requests, a second.
const NEIGHBOUR_RATE: f64 = 5.0;
const PHASES: [&str; 3] = ["before", "overload", "after"];
/// Before and after, as a part of what can be served.
const CALM: f64 = 0.5;
/// Longest wait of the generator for an answer: longer than the gateway's deadline of 60 s.
const DEADLINE: Duration = Duration::from_secs(70);
/// How often memory and waiting requests are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Longest wait for an instance of the neighbour.
const READY: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub struct Overload {
    /// The binary to measure; build it with --release
    #[arg(long, default_value = "target/release/faasnet")]
    program: PathBuf,
    /// Folder where the image is kept from run to run
    #[arg(long, default_value = "target/rig")]
    cache: PathBuf,
    /// Length of the overload, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many times what can be served
    #[arg(long, default_value_t = 10.0)]
    factor: f64,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// How much of what, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub instances: u32,
    pub concurrency: u32,
    /// How long a request takes at its instance.
    pub service: Duration,
    pub factor: f64,
    pub calm: Duration,
    pub overload: Duration,
    /// Requests that may wait: what is served in the time that a caller would wait.
    pub waiting_max: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Requests a second that the function can serve.
    pub capacity: f64,
    pub offered: f64,
    /// Before, during and after the overload.
    pub loaded: Vec<Summary>,
    pub neighbour: Vec<Summary>,
    pub waiting_max: usize,
    pub waiting_peak: u64,
    /// When all requests were answered.
    pub waiting_after: u64,
    pub manager_rss_bytes: Rss,
    /// From the end of the overload until the last request that was refused, or slower than twice the 99th
    /// percentile of before.
    pub recovered_ms: f64,
}

/// Memory of the manager's process.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Rss {
    pub before: u64,
    pub peak: u64,
    pub after: u64,
}

impl Overload {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let program = self.program.canonicalize().with_context(|| {
            format!("there is no {}; run cargo build --release first", self.program.display())
        })?;
        let plan = Plan {
            instances: 2,
            concurrency: 4,
            service: Duration::from_millis(100),
            factor: self.factor,
            calm: Duration::from_secs(15),
            overload: Duration::from_secs(self.seconds),
            waiting_max: 160,
        };
        let report = measure(&program, &self.cache, plan)?;
        match self.json {
            true => println!("{}", serde_json::to_string(&report)?),
            false => println!("{report}"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Brings up a cluster, sends the plan's load to it, and says what became of it.
pub fn measure(program: &Path, cache: &Path, plan: Plan) -> anyhow::Result<Report> {
    let image = Image::cached(cache, Variant::Minimal)?;
    let mut spec = ClusterSpec::new(program, 3);
    let bound = plan.waiting_max.to_string();
    spec.settings.insert("SCHEDULER__REQUESTS_WAITING_PER_FUNCTION_MAX".into(), bound);
    let cluster = Cluster::up(spec)?;
    let reference = cluster.registry.push(&image, "library/python")?;
    deploy(&cluster, TENANT, &reference, plan.instances, plan.concurrency)?;
    deploy(&cluster, NEIGHBOUR, &reference, 1, 4)?;

    let load = |tenant: &str, rates: Rates| {
        let path = format!("/fn/{FUNCTION}/sleep?ms={}", plan.service.as_millis());
        let target = Target::get(path, &cluster.api.token, tenant);
        let limits = Limits { deadline: DEADLINE, in_flight_max: 4000 };
        Load::of_one(cluster.api.address, target, &rates, limits)
    };
    let capacity = f64::from(plan.instances * plan.concurrency) / plan.service.as_secs_f64();
    let offered = capacity * plan.factor;
    let phases = |calm: f64, overload: f64| {
        let phases = [(calm, plan.calm), (overload, plan.overload), (calm, plan.calm)];
        Rates(phases.map(|(rate, length)| Piece { from: rate, to: rate, length }).to_vec())
    };
    let (own, others) = (phases(capacity * CALM, offered), phases(NEIGHBOUR_RATE, NEIGHBOUR_RATE));
    let (own, others) = (load(TENANT, own), load(NEIGHBOUR, others));
    let send = || -> anyhow::Result<_> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(async { tokio::join!(own.send(), others.send()) }))
    };
    let before = cluster.manager_rss_bytes()?;
    let is_over = AtomicBool::new(false);
    let (sent, watched) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| watch(&cluster, &is_over));
        let over = Over(&is_over);
        let sent = cluster.bed.inside("manager", send);
        drop(over);
        (sent, watch.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (loaded, neighbour) = sent??;
    let (peak, waiting_peak) = watched?;
    let manager_rss_bytes = Rss { before, peak, after: cluster.manager_rss_bytes()? };
    let ends = [plan.calm, plan.calm + plan.overload];
    let phase_of = |sample: &Sample| ends.partition_point(|end| *end <= sample.intended);
    let by_phase = |samples: &[Sample]| {
        let of = |phase| Summary::of(samples.iter().filter(move |sample| phase_of(sample) == phase));
        (0..PHASES.len()).map(of).collect::<Vec<_>>()
    };
    let loaded_by_phase = by_phase(&loaded);
    let usual_ms = 2.0 * loaded_by_phase[0].p99_ms;
    Ok(Report {
        capacity,
        offered,
        recovered_ms: recovered_ms(&loaded, plan.calm + plan.overload, usual_ms),
        loaded: loaded_by_phase,
        neighbour: by_phase(&neighbour),
        waiting_max: plan.waiting_max,
        waiting_peak,
        waiting_after: waiting(&cluster)?,
        manager_rss_bytes,
    })
}

/// Deploys the function for a tenant and waits for its instances.
fn deploy(
    cluster: &Cluster,
    tenant: &str,
    image: &str,
    instances: u32,
    concurrency: u32,
) -> anyhow::Result<()> {
    let (number, concurrency) = (instances.to_string(), concurrency.to_string());
    let limits = ["--min", &number, "--max", &number, "--concurrency", &concurrency, "--memory", "128"];
    let deploy = ["--tenant", tenant, "function", "deploy", FUNCTION, "--image", image];
    cluster.cli(&[&deploy[..], &limits[..]].concat())?;
    let show = ["--tenant", tenant, "--json", "function", "show", FUNCTION];
    crate::rig::wait_until("the instances to be ready", READY, || {
        let view: serde_json::Value = serde_json::from_str(&cluster.cli(&show)?)?;
        Ok((view["ready"] == instances).then_some(()))
    })
}

/// Ends the watch, also when the load panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The most memory that the manager had, and the most requests that waited.
fn watch(cluster: &Cluster, is_over: &AtomicBool) -> anyhow::Result<(u64, u64)> {
    let (mut peak, mut waiting_peak) = (0, 0);
    while !is_over.load(Ordering::Relaxed) {
        peak = peak.max(cluster.manager_rss_bytes()?);
        waiting_peak = waiting_peak.max(waiting(cluster)?);
        crate::rig::pause(LOOK);
    }
    Ok((peak, waiting_peak))
}

fn waiting(cluster: &Cluster) -> anyhow::Result<u64> {
    let view = cluster.api.get(&format!("/v1/functions/{FUNCTION}"))?;
    view["waiting"].as_u64().context("the view does not say who waits")
}

fn recovered_ms(samples: &[Sample], end: Duration, usual_ms: f64) -> f64 {
    let is_usual =
        |sample: &Sample| sample.outcome.is_ok() && sample.latency.as_secs_f64() * 1000.0 <= usual_ms;
    let late = samples.iter().filter(|sample| sample.intended >= end && !is_usual(sample));
    late.map(|sample| (sample.intended - end).as_secs_f64() * 1000.0).fold(0.0, f64::max)
}

impl Report {
    /// Whether every answer was one that a caller can act on, and what was to be bounded was.
    pub fn check(&self) -> anyhow::Result<()> {
        for summary in self.loaded.iter().chain(&self.neighbour) {
            let typed: usize = [200, 429, 503, 504].iter().map(|status| summary.with_status(*status)).sum();
            ensure!(typed + summary.not_sent == summary.requests, "an answer of another kind: {summary:?}");
            ensure!(summary.without_retry_after == 0, "a refusal without Retry-After: {summary:?}");
        }
        ensure!(self.waiting_peak <= self.waiting_max as u64, "{} requests waited", self.waiting_peak);
        for neighbour in &self.neighbour {
            ensure!(neighbour.with_status(200) == neighbour.requests, "the neighbour was hit: {neighbour:?}");
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (capacity, offered) = (self.capacity, self.offered);
        writeln!(out, "capacity {capacity:.0} requests/s, offered {offered:.0}, open loop; latencies in ms")?;
        writeln!(
            out,
            "{:10} {:9} {:>8} {:>8} {:>8} {:>6} {:>6} {:>6} {:>7} {:>7} {:>7} {:>11}",
            "tenant",
            "phase",
            "requests",
            "200",
            "429",
            "503",
            "504",
            "other",
            "p50",
            "p99",
            "max",
            "refused p99"
        )?;
        for (tenant, summaries) in [("loaded", &self.loaded), ("neighbour", &self.neighbour)] {
            for (phase, summary) in PHASES.iter().zip(summaries) {
                let [ok, many, busy, late] = [200, 429, 503, 504].map(|status| summary.with_status(status));
                let other = summary.requests - ok - many - busy - late;
                let Summary { requests, p50_ms, p99_ms, max_ms, refused_p99_ms, .. } = summary;
                writeln!(
                    out,
                    "{tenant:10} {phase:9} {requests:>8} {ok:>8} {many:>8} {busy:>6} {late:>6} {other:>6} \
                     {p50_ms:>7.0} {p99_ms:>7.0} {max_ms:>7.0} {refused_p99_ms:>11.1}"
                )?;
            }
        }
        writeln!(out, "waiting: at most {} of {}", self.waiting_peak, self.waiting_max)?;
        let Rss { before, peak, after } = self.manager_rss_bytes;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            out,
            "memory of the manager: {:.1} MiB before, {:.1} at most, {:.1} after",
            mib(before),
            mib(peak),
            mib(after)
        )?;
        writeln!(out, "usual again {:.0} ms after the end of the overload", self.recovered_ms)?;
        match self.check() {
            Ok(()) => write!(out, "every answer was typed, and what is bounded stayed within"),
            Err(error) => write!(out, "FAILED: {error:#}"),
        }
    }
}
