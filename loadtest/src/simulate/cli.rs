//! `faasnet-loadtest simulate ...`

use super::{History, ImageModel, Report, Scenario, shapes};
use clap::Subcommand;
use std::process::ExitCode;

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
            Self::Faults { vms, seed, only, json } => faults(vms, seed, only, json),
            Self::Shapes { vms, mbit, seed } => {
                shapes::print(&vms, mbit, seed);
                Ok(ExitCode::SUCCESS)
            }
            Self::History { seed, count, trace, json } => histories(seed, count, trace, json),
        }
    }
}

fn faults(vms: usize, seed: u64, only: Option<Scenario>, json: bool) -> anyhow::Result<ExitCode> {
    let mut failed = false;
    for scenario in Scenario::ALL.into_iter().filter(|scenario| only.is_none_or(|only| only == *scenario)) {
        let report = scenario.play(vms, ImageModel::default(), seed);
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
