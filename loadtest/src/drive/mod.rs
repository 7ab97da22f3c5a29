//! `faasnet-loadtest drive`: open-loop load against a running system, and what became of it.
//!
//! ```text
//! trace or rates --arrivals--> plan --> load (open loop) --samples--> figures --> thresholds, table
//!                     ^ seed             |                               |
//!          API: starts, trees, VMs <-- watch, beside it                  +------> JSON, page
//! ```

mod figures;
mod page;
mod plan;
mod target;
mod threshold;
mod trace;
mod watch;

pub use figures::Outcome;
pub use plan::{Plan, Tenant, What, When};
pub use threshold::Threshold;

use crate::{
    bed,
    load::{Limits, Load, Piece, Progress, Rates, Sample, Spacing, Summary},
    rig::Api,
};
use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch as channel,
};
use watch::Watcher;

/// A threshold is violated.
const VIOLATED: u8 = 3;
/// As a shell counts a program that SIGINT has ended.
const INTERRUPTED: u8 = 130;
/// Of a burst: as many as are sent at all.
const BURST_MAX: usize = 100_000;
const SECONDS_MAX: f64 = crate::load::LENGTH_MAX.as_secs() as f64;

#[derive(Debug, Subcommand)]
pub enum DriveVerb {
    /// So many at once
    Burst {
        #[arg(long)]
        count: usize,
        #[command(flatten)]
        common: Common,
    },
    /// One rate all the time
    Steady {
        /// Requests a second
        #[arg(long)]
        rate: f64,
        #[arg(long)]
        seconds: f64,
        #[command(flatten)]
        common: Common,
    },
    /// From one rate to another in a moment
    Step {
        /// Requests a second, before
        #[arg(long)]
        from: f64,
        /// Requests a second, after
        #[arg(long)]
        to: f64,
        /// How long before
        #[arg(long)]
        before_seconds: f64,
        /// How long after
        #[arg(long)]
        seconds: f64,
        #[command(flatten)]
        common: Common,
    },
    /// From one rate to another in a straight line
    Ramp {
        /// Requests a second, at the beginning
        #[arg(long)]
        from: f64,
        /// Requests a second, at the end
        #[arg(long)]
        to: f64,
        #[arg(long)]
        seconds: f64,
        #[command(flatten)]
        common: Common,
    },
    /// The rates of a trace: a file of times and rates, or iot, gaming, video, iot-test, synthetic
    Replay {
        trace: String,
        /// So many times the rates of the trace
        #[arg(long, default_value_t = 1.0)]
        scale_rate: f64,
        /// So many times its length; rates stay what they are, so that 0.1 sends a tenth of the requests
        #[arg(long, default_value_t = 1.0)]
        scale_time: f64,
        #[command(flatten)]
        common: Common,
    },
}

/// What all of them need.
#[derive(Debug, Clone, Args)]
pub struct Common {
    #[command(flatten)]
    target: target::Args,
    /// What one arrival is
    #[arg(long, value_enum, default_value_t = What::Requests)]
    what: What,
    /// Path and query of requests
    #[arg(long, default_value = "/")]
    path: String,
    /// Popularity of functions: the nth gets requests in proportion to 1 / n^ZIPF; 0 for all alike
    #[arg(long, default_value_t = 1.0)]
    zipf: f64,
    /// How far apart requests are
    #[arg(long, value_enum, default_value_t = Spacing::Even)]
    spacing: Spacing,
    /// The same seed, the same requests
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Longest wait for an answer, from when the request was to be sent
    #[arg(long, default_value_t = 70.0)]
    deadline_seconds: f64,
    /// Requests under way at once; what comes when so many are is not sent, and counted
    #[arg(long, default_value_t = 4000)]
    in_flight_max: usize,
    /// Longest wait for starts to settle, after the load
    #[arg(long, default_value_t = 60.0)]
    settle_seconds: f64,
    /// What the measurement must not be, such as "p99_ready_ms > 900"; then the exit status is 3
    #[arg(long)]
    fail_if: Vec<Threshold>,
    /// Folder of the report
    #[arg(long, default_value = "target/report")]
    out: PathBuf,
    /// Name of the report's files; without it the verb's
    #[arg(long)]
    name: Option<String>,
    /// The test bed whose cluster the load is for; its links are then measured as well
    #[arg(long)]
    bed: Option<String>,
}

impl DriveVerb {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let (verb, when, common) = self.when()?;
        if let When::Over(rates) = &when {
            rates.check()?;
        }
        common.run(verb, when)
    }

    fn when(self) -> anyhow::Result<(&'static str, When, Common)> {
        let constant = |rate: f64, length| Piece { from: rate, to: rate, length };
        Ok(match self {
            Self::Burst { count, common } => {
                ensure!((1..=BURST_MAX).contains(&count), "a burst is 1 to {BURST_MAX}, not {count}");
                ("burst", When::AtOnce(count), common)
            }
            Self::Steady { rate, seconds, common } => {
                ("steady", When::Over(Rates(vec![constant(rate, length(seconds)?)])), common)
            }
            Self::Step { from, to, before_seconds, seconds, common } => {
                let pieces = vec![constant(from, length(before_seconds)?), constant(to, length(seconds)?)];
                ("step", When::Over(Rates(pieces)), common)
            }
            Self::Ramp { from, to, seconds, common } => {
                let pieces = vec![Piece { from, to, length: length(seconds)? }];
                ("ramp", When::Over(Rates(pieces)), common)
            }
            Self::Replay { trace, scale_rate, scale_time, common } => {
                for (name, scale) in [("--scale-rate", scale_rate), ("--scale-time", scale_time)] {
                    let is_sound = scale.is_finite() && scale > 0.0 && scale <= 1000.0;
                    ensure!(is_sound, "{name} must be above 0 and at most 1000, not {scale}");
                }
                ("replay", When::Over(trace::load(&trace)?.scaled(scale_rate, scale_time)), common)
            }
        })
    }
}

fn length(seconds: f64) -> anyhow::Result<Duration> {
    ensure!(
        seconds.is_finite() && seconds > 0.0 && seconds <= SECONDS_MAX,
        "a load lasts above 0 and up to {SECONDS_MAX} seconds, not {seconds}"
    );
    Ok(Duration::from_secs_f64(seconds))
}

impl Common {
    fn run(self, verb: &str, when: When) -> anyhow::Result<ExitCode> {
        let bed = self.bed.as_deref().map(bed::load).transpose()?;
        let (api, tenants) = self.target.connect(bed.as_ref())?;
        let plan = Plan {
            when,
            spacing: self.spacing,
            seed: self.seed,
            what: self.what,
            functions: self.target.functions()?,
            tenants,
            zipf: self.zipf,
            path: self.path.clone(),
        };
        let limits = Limits { deadline: length(self.deadline_seconds)?, in_flight_max: self.in_flight_max };
        target::allow_connections(self.in_flight_max)?;
        let settle = length(self.settle_seconds)?;
        self.target.prepare(&api, &plan)?;
        let outcome = drive(&api, bed.as_ref(), &plan, limits, settle)?;
        println!("{}\n{}", page::by_function(&outcome), page::outcomes(&outcome.summary));
        println!("{}", page::figures(&outcome));
        let name = self.name.as_deref().unwrap_or(verb);
        println!("{}", page::page(&format!("FaaSNet: {name}"), &outcome).write(&self.out, name, &outcome)?);
        let violations: Vec<_> =
            self.fail_if.iter().filter_map(|threshold| threshold.violated(&outcome.figures)).collect();
        violations.iter().for_each(|violation| eprintln!("FAILED: {violation}"));
        Ok(match (outcome.is_complete, violations.is_empty()) {
            (false, _) => ExitCode::from(INTERRUPTED),
            (true, false) => ExitCode::from(VIOLATED),
            (true, true) => ExitCode::SUCCESS,
        })
    }
}

/// Sends the plan's load to a running system, watches it, and says what became of it.
pub fn drive(
    api: &Api,
    bed: Option<&bed::BedState>,
    plan: &Plan,
    limits: Limits,
    settle: Duration,
) -> anyhow::Result<Outcome> {
    let (targets, arrivals) = plan.lay_out()?;
    let names: Vec<String> = targets.iter().map(|target| label(&target.tenant, &target.path)).collect();
    let load = Load { address: api.address, targets: targets.into(), arrivals, limits };
    let progress: Arc<Progress> = Arc::default();
    let mut watcher = Watcher::new(api, bed, plan).context("look at the functions")?;
    let (stopper, stop) = channel::channel(false);
    let is_over = AtomicBool::new(false);
    let begin = Instant::now();
    watcher.begin();
    let (sent, watched) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut shown = Shown::new(load.arrivals.len());
            watcher.watch(|| {
                shown.show(begin, &progress);
                is_over.load(Ordering::Relaxed)
            });
            shown.end();
            let was_stopped = *stop.borrow();
            watcher.finish(settle, || was_stopped || *stop.borrow())
        });
        let over = Over(&is_over);
        let send = || send(&load, &progress, &stopper, stop.clone());
        let sent = match &api.from {
            Some((bed, host)) => bed.inside(host, send).and_then(|sent| sent),
            None => send(),
        };
        drop(over);
        (sent, watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (samples, is_complete) = sent?;
    let late_us = progress.late_max_us.load(Ordering::Relaxed);
    Ok(outcome(&samples, &names, is_complete, late_us as f64 / 1000.0, watched?))
}

/// `TENANT/FUNCTION` of a target.
fn label(tenant: &str, path: &str) -> String {
    let rest = path.strip_prefix("/fn/").or(path.strip_prefix("/v1/functions/")).unwrap_or(path);
    format!("{tenant}/{}", rest.split(['/', '?']).next().unwrap_or_default())
}

fn outcome(
    samples: &[Sample],
    names: &[String],
    is_complete: bool,
    sent_late_max_ms: f64,
    watched: watch::Watched,
) -> Outcome {
    let summary = Summary::of(samples);
    let mut by_function: BTreeMap<String, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        by_function.entry(names[sample.target].clone()).or_default().push(sample);
    }
    let ends = samples.iter().map(|sample| (sample.intended + sample.latency).as_secs_f64());
    let length_s = ends.fold(0.0, f64::max);
    let bin_s = figures::bin_s(length_s);
    Outcome {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        length_s,
        is_complete,
        figures: figures::figures(&summary, &watched),
        by_function: by_function.into_iter().map(|(name, of)| (name, Summary::of(of))).collect(),
        summary,
        bin_s,
        over_time: figures::over_time(samples, bin_s),
        sent_late_max_ms,
        watched,
    }
}

/// Sends the load; the samples, and whether that was all. A signal ends it.
fn send(
    load: &Load,
    progress: &Arc<Progress>,
    stopper: &channel::Sender<bool>,
    stop: channel::Receiver<bool>,
) -> anyhow::Result<(Vec<Sample>, bool)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let sending = load.run(progress, stop.clone());
        tokio::pin!(sending);
        let samples = tokio::select! {
            samples = &mut sending => samples,
            _ = interrupt.recv() => { let _ = stopper.send(true); sending.await }
            _ = terminate.recv() => { let _ = stopper.send(true); sending.await }
        };
        let was_stopped = *stop.borrow();
        Ok((samples, !was_stopped))
    })
}

/// Ends the watch, also when the load panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The line that says how far the load is.
struct Shown {
    all: usize,
    is_terminal: bool,
    last: Option<Instant>,
}

impl Shown {
    fn new(all: usize) -> Self {
        Self { all, is_terminal: std::io::stderr().is_terminal(), last: None }
    }

    fn show(&mut self, begin: Instant, progress: &Progress) {
        let every = Duration::from_secs(if self.is_terminal { 0 } else { 5 });
        if self.last.is_some_and(|last| last.elapsed() < every) {
            return;
        }
        self.last = Some(Instant::now());
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (sent, ok, other) = (of(&progress.sent), of(&progress.ok), of(&progress.other));
        let (not_sent, under_way) = (of(&progress.not_sent), sent.saturating_sub(ok + other));
        let line = format!(
            "{:.0} s: {sent} of {} sent, {ok} ok, {other} refused or failed, {not_sent} not sent, {under_way} under way",
            begin.elapsed().as_secs_f64(),
            self.all
        );
        match self.is_terminal {
            true => eprint!("\r\x1b[K{line}"),
            false => eprintln!("{line}"),
        }
        let _nobody_reads_it = std::io::stderr().flush();
    }

    fn end(&self) {
        if self.is_terminal {
            eprintln!();
        }
    }
}
