//! `faasnet-loadtest simulate ...`

use super::{
    Costs, History, ImageModel, Report, Scenario, ScenarioFile, calibrate::Calibrate, figure::Run, shapes,
    validate::Validate,
};
use anyhow::{Context, ensure};
use clap::Subcommand;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Histories tried to make a failing one shorter.
const SHRINK_TRIES: usize = 200;

#[derive(Debug, Subcommand)]
pub enum SimulateVerb {
    /// Bursts onto many VMs in which something goes wrong
    Faults {
        #[arg(long, default_value_t = 1000)]
        vms: usize,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Only that scenario
        #[arg(long)]
        only: Option<Scenario>,
        /// Writes the event stream of that scenario there, a JSON object in each line
        #[arg(long, requires = "only")]
        record: Option<PathBuf>,
        /// A JSON object for each scenario instead of lines for people
        #[arg(long)]
        json: bool,
    },
    /// Random histories of a small cluster, with every invariant checked after every event
    History {
        /// The first seed
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Seeds to play
        #[arg(long, default_value_t = 1)]
        count: u64,
        /// Print everything that happens
        #[arg(long)]
        trace: bool,
        /// A JSON object for each history instead of lines for people
        #[arg(long)]
        json: bool,
    },
    /// Bursts with all costs as a file describes them: when the last start answers, and where the time goes
    Scenario {
        file: PathBuf,
        /// Only that case
        #[arg(long)]
        case: Option<String>,
        /// Other costs than those that the file names
        #[arg(long)]
        costs: Option<PathBuf>,
        #[arg(long)]
        seed: Option<u64>,
        /// Writes all starts of all cases there
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Measures costs on this machine into a file for scenarios, which takes root and a minute
    Calibrate(Calibrate),
    /// One burst on a test bed and on virtual time, beside each other; takes root and some minutes
    Validate(Validate),
    /// Bursts in trees of every shape and fan-out: when the last VM has the hot set, or the whole image
    Shapes {
        #[arg(long, value_delimiter = ',', default_values_t = [32, 128])]
        vms: Vec<usize>,
        /// Rate of every link
        #[arg(long, default_value_t = 100)]
        mbit: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

impl SimulateVerb {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Faults { vms, seed, only, record, json } => {
                faults(vms, seed, only, record.as_deref(), json)
            }
            Self::Scenario { file, case, costs, seed, json } => {
                scenario(&file, case.as_deref(), costs.as_deref(), seed, json.as_deref())
            }
            Self::Calibrate(calibrate) => calibrate.run(),
            Self::Validate(validate) => validate.run(),
            Self::Shapes { vms, mbit, seed } => {
                shapes::print(&vms, mbit, seed);
                Ok(ExitCode::SUCCESS)
            }
            Self::History { seed, count, trace, json } => histories(seed, count, trace, json),
        }
    }
}

fn faults(
    vms: usize,
    seed: u64,
    only: Option<Scenario>,
    record: Option<&Path>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut failed = false;
    for scenario in Scenario::ALL.into_iter().filter(|scenario| only.is_none_or(|only| only == *scenario)) {
        let report = match record {
            None => scenario.play(vms, ImageModel::default(), seed),
            Some(path) => {
                let (report, events) = scenario.record(vms, ImageModel::default(), seed);
                let lines: String = events.into_iter().map(|event| event + "\n").collect();
                std::fs::write(path, lines).with_context(|| format!("cannot write {}", path.display()))?;
                report
            }
        };
        failed |= report.violation.is_some();
        if json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print(&report);
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(report: &Report) {
    let Report { scenario, seed, vms, starts, ready, median_ms, slowest_ms, .. } = report;
    println!("{scenario:?}, seed {seed}: {starts} starts on {vms} VMs");
    println!("  {ready} were ready, half of them after {median_ms} ms, all after {slowest_ms} ms");
    for (reason, count) in &report.ended {
        println!("  {count} ended: {reason}");
    }
    let Report { origin_per_image, moves, needless_moves, events, virtual_ms, wall_ms, .. } = report;
    println!("  the origin gave {origin_per_image:.2} times the image");
    println!("  {moves} VMs got another parent, {needless_moves} of them while theirs was there");
    println!("  {events} events, {virtual_ms} ms of virtual time, {wall_ms} ms to compute");
    match &report.violation {
        Some(violation) => println!("  FAILED: {violation}"),
        None => println!("  all invariants hold"),
    }
}

fn histories(seed: u64, count: u64, trace: bool, json: bool) -> anyhow::Result<ExitCode> {
    for seed in seed..seed.saturating_add(count) {
        let played = History::new(seed).play(trace);
        match played {
            Ok(outcome) if json => println!("{}", serde_json::to_string(&(seed, outcome))?),
            Ok(outcome) => println!("seed {seed}: {outcome:?}"),
            Err(failure) => {
                let least = History::shrink(failure, if trace { 0 } else { SHRINK_TRIES });
                if json {
                    println!("{}", serde_json::to_string(&least)?);
                } else {
                    println!("FAILED {least}");
                }
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn scenario(
    file: &Path,
    case: Option<&str>,
    costs: Option<&Path>,
    seed: Option<u64>,
    json: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let mut scenario = ScenarioFile::read(file)?;
    scenario.seed = seed.unwrap_or(scenario.seed);
    let costs = Costs::read(costs.unwrap_or(&scenario.costs))?;
    let chosen = scenario.cases.iter().filter(|known| case.is_none_or(|name| known.name == name));
    let chosen: Vec<_> = chosen.collect();
    ensure!(!chosen.is_empty(), "{} has no case of that name", file.display());
    println!("costs: {}", costs.name);
    let mut runs = Vec::new();
    for case in chosen {
        let run = scenario.burst(case, &costs).play();
        print_run(&case.name, &run, case.goal_ms);
        runs.push((case.clone(), run));
    }
    if let Some(json) = json {
        let text = serde_json::to_string(&runs)?;
        std::fs::write(json, text).with_context(|| format!("cannot write {}", json.display()))?;
    }
    Ok(if runs.iter().any(|(_, run)| run.failed > 0) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_run(name: &str, run: &Run, goal_ms: Option<f64>) {
    let Run { vms, functions, asked, failed, bytes, tree_height, .. } = run;
    let at = |share| run.quantile(share).map_or("never".to_owned(), |ms| format!("{ms:.0} ms"));
    println!("{name}: {asked} starts of {functions} functions on {vms} VMs");
    let goal = goal_ms.map(|goal| format!(" (goal: {goal:.0} ms)")).unwrap_or_default();
    println!("  answered: first {}, half {}, 99 % {}, last {}{goal}", at(0.0), at(0.5), at(0.99), at(1.0));
    if *failed > 0 {
        println!("  FAILED: {failed} starts did not answer");
    }
    for (what, reasons) in [("were refused", &run.refused), ("ended", &run.ended)] {
        reasons.iter().for_each(|(reason, starts)| println!("  {starts} {what}: {reason}"));
    }
    if run.asked_again > 0 {
        println!("  {} requests were refused at first, and made again after Retry-After", run.asked_again);
    }
    for (what, start) in [("last", run.last()), ("middle", run.starts.get(run.starts.len() / 2))] {
        let Some(start) = start else { continue };
        let phases: Vec<String> =
            start.phases().iter().map(|(phase, ms)| format!("{phase} {ms:.0}")).collect();
        println!(
            "  the {what} start, ms: {}; {} reads waited {:.0} ms",
            phases.join(", "),
            start.stalls,
            start.stalled_ms
        );
    }
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "  bytes: {:.0} MB from the origin ({:.2} images), {:.0} MB from parents, {:.0} MB from others; tree \
         height {tree_height}",
        mb(bytes.origin),
        bytes.origin as f64 / (run.image_bytes.max(1) * *functions as u64) as f64,
        mb(bytes.parent),
        mb(bytes.ancestor),
    );
    let used = run.starts.iter().map(|start| start.vm).collect::<std::collections::BTreeSet<_>>().len();
    println!(
        "  {used} VMs were used; CPU {:.0} % on average, {:.0} % on the busiest VM; {} events in {} ms",
        100.0 * run.cpu_mean,
        100.0 * run.cpu_max,
        run.events,
        run.wall_ms
    );
}
