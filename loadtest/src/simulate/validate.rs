//! `faasnet-loadtest simulate validate`: one burst on a test bed and on virtual time, beside each other.
//!
//! The image, its packed hot set, links, VMs and starts are the same. The bed tells what the image is, and warm starts
//! tell what running a container and the application take of the cores when nothing is moved. All else comes from the file
//! of costs. In the model two cores are shared by all VMs and the manager, as they are on the bed.

use super::{
    Costs, FunctionModel, Hot, ImageModel, Model, Quantiles, Reads, SECOND,
    figure::{Burst, Run, StartTrace},
    model::{Cores, MILLISECOND},
};
use crate::{
    bed::Rate,
    distribute::{self, Account, Part, Plan, What},
    guard::guard,
    hotset::{App, Way},
    report::Table,
};
use anyhow::{Context, ensure};
use clap::Args;
use faasnet::settings::Topology;
use faasnet_actors::{image::BLOCK_BYTES, model::Timeline};
use serde::Serialize;
use std::{
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

/// Share by which the simulator may miss the bed.
const GOAL: f64 = 0.15;
/// One way over two shaped links and a bridge, and what the bed's registry takes to its first byte: estimates
/// that are small beside everything else.
const LATENCY: u64 = MILLISECOND / 20;
const REGISTRY: u64 = 3 * MILLISECOND;

#[derive(Debug, Args)]
pub struct Validate {
    /// The binary to measure; build it with --release
    #[arg(long, default_value = "target/release/faasnet")]
    program: PathBuf,
    /// Folder where the images are kept from run to run
    #[arg(long, default_value = "target/rig")]
    cache: PathBuf,
    /// Costs of this machine, as `simulate calibrate` writes them
    #[arg(long, default_value = "loadtest/costs/measured.toml")]
    costs: PathBuf,
    /// Numbers of VMs, each with one start
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 16, 32], value_parser = distribute::vms)]
    vms: Vec<usize>,
    /// Rate of every link; without it as much as N VMs can take together on this machine
    #[arg(long)]
    rate: Option<Rate>,
    #[arg(long, value_enum, default_value_t = App::Node)]
    image: App,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A JSON object for each burst instead of tables
    #[arg(long)]
    json: bool,
    /// Not in a process of its own, which takes the test bed down whatever ends this one
    #[arg(long, hide = true)]
    unguarded: bool,
}

/// Where the time of a burst goes; milliseconds. Phases are means of all starts.
#[derive(Debug, Clone, Serialize)]
struct Side {
    last_ms: f64,
    phases: Vec<(&'static str, f64)>,
    /// Of the cores, from the call to the last answer.
    cpu_percent: f64,
    /// Milliseconds of cores, by what used them.
    used: Account,
}

#[derive(Debug, Clone, Serialize)]
struct Pair {
    vms: usize,
    rate_bits_per_s: u64,
    bed: Side,
    simulated: Side,
    /// Simulated over measured.
    ratio: f64,
    is_close: bool,
}

impl Validate {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let program = self.program.canonicalize().with_context(|| {
            format!("there is no {}; run cargo build --release first", self.program.display())
        })?;
        let costs = Costs::read(&self.costs)?;
        if !self.unguarded {
            return guard(std::env::args_os().skip(1).chain(["--unguarded".into()]));
        }
        let mut pairs = Vec::new();
        for &vms in &self.vms {
            let pair = self.pair(&program, vms, &costs).with_context(|| format!("{vms} VMs"))?;
            match self.json {
                true => println!("{}", serde_json::to_string(&pair)?),
                false => eprintln!("{vms} VMs: {:.2} s on the bed", pair.bed.last_ms / 1e3),
            }
            pairs.push(pair);
        }
        if !self.json {
            print!("{}", Shown(&pairs));
        }
        Ok(ExitCode::SUCCESS)
    }

    fn pair(&self, program: &Path, vms: usize, costs: &Costs) -> anyhow::Result<Pair> {
        let rate = self.rate.unwrap_or_else(|| distribute::rate_for(vms));
        let (cache, app, way) = (self.cache.as_path(), self.image, Way::Packed);
        let (what, topology) = (What::Starts, "complete");
        let measured = distribute::measure(&Plan { program, cache, what, vms, rate, app, way, topology })?;
        let timelines: Vec<Timeline> = measured.starts.iter().map(|start| start.timeline_us).collect();
        let bed = Side {
            last_ms: measured.last_s * 1e3,
            phases: of_bed(&timelines),
            cpu_percent: measured.cpu_percent,
            used: measured.used.clone(),
        };
        let simulated = of_run(&burst(&measured, costs, self.seed)?.play())?;
        let ratio = simulated.last_ms / bed.last_ms.max(f64::MIN_POSITIVE);
        let is_close = (ratio - 1.0).abs() <= GOAL;
        Ok(Pair { vms, rate_bits_per_s: rate.bits_per_s(), bed, simulated, ratio, is_close })
    }
}

/// The burst of the bed, on virtual time.
fn burst(measured: &distribute::Report, costs: &Costs, seed: u64) -> anyhow::Result<Burst> {
    let (hot, alone) = measured.hot.zip(measured.warm_alone).context("the bed did not tell its hot set")?;
    ensure!(hot.blocks > 0 && hot.stored_bytes > 0, "the image has no hot set");
    let each = (hot.stored_bytes / hot.blocks).clamp(1, u64::from(BLOCK_BYTES) - 1);
    let packed_blocks = u32::try_from(hot.blocks)?;
    // Whatever else came before a start was ready is taken for metadata.
    let moved = (measured.stored_bytes / each as f64).round() as u32;
    let metadata_blocks = moved.saturating_sub(packed_blocks).max(1);
    let mut costs = costs.clone();
    let container = &mut costs.container;
    container.run_ms = Quantiles::One(alone.run_used.cpu.as_secs_f64() * 1e3);
    container.application_ms = Quantiles::One(alone.probe_used.cpu.as_secs_f64() * 1e3);
    let cores = u32::try_from(thread::available_parallelism()?.get())?;
    let memory_mib = measured.app.memory_mib();
    let image = ImageModel {
        blocks: metadata_blocks + packed_blocks,
        stored_bytes: each as u32,
        metadata_blocks,
        reads: Reads::Random(packed_blocks),
        hot: Hot::Packed,
        packed_blocks,
    };
    let rate = measured.rate_bits_per_s / 8;
    let mut model = Model {
        vms: measured.vms,
        // One start for each VM.
        memory_bytes: memory_mib << 20,
        images: vec![image],
        functions: vec![FunctionModel { memory_mib, ..FunctionModel::default() }],
        uplink: rate,
        downlink: rate,
        latency: LATENCY,
        origin_rate: rate,
        origin_latency: REGISTRY,
        costs,
        cores: Cores::Shared(cores),
        stand_ins: true,
        ..Model::without_times()
    };
    model.limits.shape.topology = Topology::Complete;
    Ok(Burst { model, starts: u32::try_from(measured.vms)?, seed, patience: 300 * SECOND })
}

/// Phases that both sides tell, under one name: from the acceptance until the manager knows that it is ready.
const PHASES: [&str; 8] =
    ["placed", "connected", "index", "metadata", "mounted", "running", "answered", "told"];

/// `part` of each start, on average.
fn mean<T>(starts: &[T], part: impl Fn(&T) -> f64) -> f64 {
    starts.iter().map(part).sum::<f64>() / starts.len().max(1) as f64
}

fn of_bed(timelines: &[Timeline]) -> Vec<(&'static str, f64)> {
    let lengths = |timeline: &Timeline| {
        let Timeline { waiting, placing, connecting, index, metadata, whole, mount, run, probe, ready } =
            *timeline;
        let ms = |parts: &[Option<u64>]| parts.iter().flatten().sum::<u64>() as f64 / 1e3;
        let known = [
            ms(&[waiting, placing]),
            ms(&[connecting]),
            ms(&[index]),
            ms(&[metadata, whole]),
            ms(&[mount]),
            ms(&[run]),
            ms(&[probe]),
        ];
        let told = (ms(&[ready]) - known.iter().sum::<f64>()).max(0.0);
        (known, told)
    };
    let mean_of = |number: usize| {
        mean(timelines, |timeline| {
            let (known, told) = lengths(timeline);
            known.get(number).copied().unwrap_or(told)
        })
    };
    PHASES.into_iter().enumerate().map(|(number, name)| (name, mean_of(number))).collect()
}

fn of_run(run: &Run) -> anyhow::Result<Side> {
    ensure!(run.failed == 0, "{} of {} simulated starts did not answer", run.failed, run.asked);
    // The bed's clock begins when the start is acknowledged, too.
    let last_ms = run.starts.iter().map(|start| start.answered_ms - start.accepted_ms).fold(0.0, f64::max);
    let length = |name: &str| {
        let name = if name == "placed" { "ordered" } else { name };
        let of_start = |start: &StartTrace| {
            start.phases().iter().filter(|(phase, _)| *phase == name).map(|(_, ms)| ms).sum::<f64>()
        };
        mean(&run.starts, of_start)
    };
    let phases = PHASES.into_iter().map(|name| (name, length(name))).collect();
    Ok(Side { last_ms, phases, cpu_percent: 100.0 * run.cpu_mean, used: run.used.clone() })
}

/// All bursts in a line each, and where the time goes in those that are not close.
struct Shown<'a>(&'a [Pair]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = Table::new([
            "VMs",
            "Mbit/s",
            "bed ms",
            "simulated ms",
            "ratio",
            "within 15 %",
            "bed CPU %",
            "simulated CPU %",
        ]);
        for pair in self.0 {
            all.push([
                pair.vms.to_string(),
                (pair.rate_bits_per_s / 1_000_000).to_string(),
                format!("{:.0}", pair.bed.last_ms),
                format!("{:.0}", pair.simulated.last_ms),
                format!("{:.2}", pair.ratio),
                if pair.is_close { "yes" } else { "no" }.into(),
                format!("{:.0}", pair.bed.cpu_percent),
                format!("{:.0}", pair.simulated.cpu_percent),
            ]);
        }
        write!(out, "{all}")?;
        for pair in self.0 {
            writeln!(out, "\nCPU for each of {} starts:", pair.vms)?;
            let mut used = Table::new(["by", "bed ms", "simulated ms", "missing ms"]);
            for part in Part::ALL {
                let [bed, simulated] =
                    [&pair.bed, &pair.simulated].map(|side| side.used.of(part) / pair.vms as f64);
                let missing =
                    if part == Part::Others { String::new() } else { format!("{:.1}", bed - simulated) };
                used.push([part.name().to_owned(), format!("{bed:.1}"), format!("{simulated:.1}"), missing]);
            }
            write!(out, "{used}")?;
        }
        for pair in self.0.iter().filter(|pair| !pair.is_close) {
            writeln!(out, "\n{} VMs, {}:", pair.vms, pair.reason())?;
            let mut phases = Table::new(["phase, mean", "bed ms", "simulated ms", "missing ms"]);
            for ((name, bed), (_, simulated)) in pair.phases() {
                phases.push([
                    (*name).to_owned(),
                    format!("{bed:.0}"),
                    format!("{simulated:.0}"),
                    format!("{:.0}", bed - simulated),
                ]);
            }
            write!(out, "{phases}")?;
        }
        Ok(())
    }
}

type Phase = (&'static str, f64);

impl Pair {
    fn phases(&self) -> impl Iterator<Item = (&Phase, &Phase)> {
        self.bed.phases.iter().zip(&self.simulated.phases)
    }

    /// Which phase most of the difference is in.
    fn reason(&self) -> String {
        let differences = self.phases().map(|((name, bed), (_, simulated))| (*name, bed - simulated));
        let largest = differences.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
        let (name, missing) = largest.unwrap_or_default();
        let which = if missing > 0.0 { "shorter" } else { "longer" };
        format!("most of it because \"{name}\" is {:.0} ms {which} in the simulator", missing.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        distribute::HotBlocks,
        warm::{Usage, WarmStart},
    };
    use std::time::Duration;

    fn measured(vms: usize, link_mbit: u64) -> distribute::Report {
        let ms = Duration::from_millis;
        let used = |cpu| Usage { cpu: ms(cpu), stalled: Duration::ZERO };
        distribute::Report {
            what: What::Starts,
            app: App::Node,
            topology: "complete".into(),
            vms,
            rate_bits_per_s: link_mbit * 1_000_000,
            stored_bytes: 10e6,
            transfer_s: 0.0,
            warm_s: None,
            warm_alone: Some(WarmStart {
                mount: ms(1),
                run: ms(40),
                probe: ms(100),
                ready: ms(141),
                run_used: used(40),
                probe_used: used(100),
                bytes_read: None,
            }),
            hot: Some(HotBlocks { blocks: 90, stored_bytes: 9_000_000 }),
            last_s: 1.0,
            ratio: 1.0,
            cpu_percent: 0.0,
            used: Account::default(),
            starts: Vec::new(),
        }
    }

    #[test]
    fn vms_that_share_cores_take_as_long_as_their_work_and_links_do() {
        let play = |vms, mbit| {
            let run = burst(&measured(vms, mbit), &Costs::default(), 1).expect("a burst").play();
            of_run(&run).expect("all answer").last_ms
        };
        let alone = play(1, 100_000);
        assert!((140.0..190.0).contains(&alone), "the container, and nothing for the link: {alone}");
        let cores = thread::available_parallelism().expect("a number").get();
        let shared = play(16 * cores, 100_000);
        assert!((2240.0..2400.0).contains(&shared), "16 containers on each core: {shared}");
        // 10 MB at 80 Mbit/s.
        let slow = play(1, 80);
        assert!((1000.0..1300.0).contains(&slow), "{slow}");
    }

    #[test]
    fn the_phases_of_a_bed_make_up_its_time() {
        let timeline = Timeline {
            waiting: Some(1000),
            metadata: Some(20_000),
            probe: Some(300_000),
            ready: Some(400_000),
            ..Timeline::default()
        };
        let phases = of_bed(&[timeline, timeline]);
        assert_eq!(phases.iter().map(|(_, ms)| ms).sum::<f64>(), 400.0);
        assert_eq!(phases.last(), Some(&("told", 79.0)));
    }
}
