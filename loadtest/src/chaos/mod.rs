//! `faasnet-loadtest chaos`: one fault in the middle of a burst, on real processes and containers, and
//! what became of the promises.
//!
//! Each case has a cluster of its own. On half of the VMs a container runs and reads blocks that its VM
//! does not have; on the others one is being started when the fault comes. After it:
//!
//! - each start that was acknowledged is known and settled; on VMs that were not hit it is ready;
//! - each container that ran is the same process, its reads went on, and none was long;
//! - the registry gave no more of the block image than invariant 6 allows;
//! - what was away comes back, and one more start becomes ready.

mod burst;
mod case;
mod report;

pub use case::Case;
pub use report::Report;

use crate::{
    bed::Rate,
    guard::guard,
    rig::{Image, Variant, wait_until},
};
use anyhow::Context;
use burst::{Burst, Container};
use case::Harm;
use clap::Args;
use faasnet_actors::support::millis;
use report::{Table, Tally};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

/// From the fault until each start is ready or has ended: `scheduler.placement_deadline_ms` and
/// `scheduler.ready_deadline_ms` one after the other, and as much again.
const SETTLED: Duration = Duration::from_secs(300);
/// For one more read: `holder.read_deadline_ms`, and as much again.
const NEXT_READ: Duration = Duration::from_secs(60);
/// Until what was away is back.
const BACK: Duration = Duration::from_secs(60);

/// What a case is run on.
#[derive(Debug, Clone)]
pub struct ChaosSpec {
    /// The binary `faasnet`.
    pub program: PathBuf,
    /// [`Variant::Ballast`].
    pub image: Image,
    pub vms: usize,
    /// Of every link: it makes the length of the burst.
    pub rate: Rate,
    /// Chooses the victims.
    pub seed: u64,
    /// Longest read that is no violation. Without it reads are measured only.
    pub read_max: Option<Duration>,
    /// Where logs of a case with violations are kept.
    pub logs: Option<PathBuf>,
}

impl ChaosSpec {
    /// Links of 100 Mbit/s, as slow as makes the transfer and not two cores the length of the burst.
    pub fn new(program: impl Into<PathBuf>, image: Image, vms: usize) -> Self {
        let (program, rate) = (program.into(), Rate::mbit(100));
        Self { program, image, vms, rate, seed: 1, read_max: None, logs: None }
    }
}

/// Runs one case; `say` hears what is being done. An error means that it could not be run, a broken
/// promise is in the report.
pub fn run_case(spec: &ChaosSpec, case: Case, say: &dyn Fn(&str)) -> anyhow::Result<Report> {
    say(&format!("{} VMs come up", spec.vms));
    let mut burst = Burst::prepare(spec)?;
    let logs = burst.cluster.logs();
    let report = strike_and_look(spec, case, &mut burst, say);
    match &report {
        Ok(report) => report.violations.iter().for_each(|violation| say(&format!("BROKEN: {violation}"))),
        Err(error) => say(&format!("{error:#}")),
    }
    say("everything is being taken down");
    let is_fine = report.as_ref().is_ok_and(|report| report.violations.is_empty());
    if let (false, Some(folder)) = (is_fine, &spec.logs) {
        let kept = keep(&logs, &folder.join(case.name()))?;
        say(&format!("logs are in {}", kept.display()));
    }
    report
}

fn strike_and_look(
    spec: &ChaosSpec,
    case: Case,
    burst: &mut Burst,
    say: &dyn Fn(&str),
) -> anyhow::Result<Report> {
    let mut report = Report::new(case, spec.vms, burst.image_bytes);
    let join_token = burst.cluster.cli(&["vm", "join-token"])?;
    let known_before = Known::of(burst)?;
    say("the burst begins");
    let begun = Instant::now();
    burst.begin()?;
    let watched = watch(burst, &mut report)?;
    report.unready_at_fault = burst.vms_with("starting")?.len();

    let struck = Instant::now();
    let harm = case.strike(burst, spec.seed).context("inject the fault")?;
    report.victims = harm.victims.clone();
    say(&format!(
        "{} ready, {} starting: {}",
        report.ready_at_fault,
        report.unready_at_fault,
        report.victims.join(", ")
    ));
    let starts = settle(burst)?;
    report.settled_ms = millis(struck.elapsed());
    report.burst_ms = millis(begun.elapsed());
    say("each start has settled");

    check_starts(&mut report, &burst.acknowledged, &starts, &harm);
    check_containers(&mut report, burst, &starts, &harm, watched)?;
    check_reads(&mut report, spec.read_max);
    let (origin_bytes, wire_bytes) = burst.origin_bytes()?;
    report.count_origin(origin_bytes, wire_bytes);
    if case.hits_manager() {
        known_before.check(burst, &mut report)?;
        check_join_token(&mut report, burst, join_token.trim())?;
    }
    report.check("what was away is back", come_back(burst, &harm));
    report.check("one more start becomes ready", burst.start_one_more());
    Ok(report)
}

/// The containers that run now, from now on.
fn watch(burst: &Burst, report: &mut Report) -> anyhow::Result<BTreeMap<String, Container>> {
    let mut watched = BTreeMap::new();
    for (start, seen) in burst.starts()? {
        if let ("ready", Some(vm)) = (state(&seen), seen["vm"].as_str()) {
            let container = burst.container(&seen)?;
            let reads = container.reads_until_now()?;
            report.reads_before.add(vm, &reads);
            watched.insert(start, container);
        }
    }
    report.ready_at_fault = watched.len();
    Ok(watched)
}

/// Waits until each acknowledged start is ready or has ended. The API may be away meanwhile. One that
/// the API does not know is not waited for, and found by the caller.
fn settle(burst: &Burst) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut last = BTreeMap::new();
    let waited = wait_until("each start to settle", SETTLED, || {
        let Ok(starts) = burst.starts() else { return Ok(None) };
        let is_settled = |start: &Value| matches!(state(start), "ready" | "ended");
        let all = starts.values().all(is_settled);
        last = starts;
        Ok(all.then_some(()))
    });
    match waited {
        Err(error) if last.is_empty() => Err(error),
        _ => Ok(last),
    }
}

fn check_starts(
    report: &mut Report,
    acknowledged: &BTreeSet<String>,
    starts: &BTreeMap<String, Value>,
    harm: &Harm,
) {
    report.acknowledged = acknowledged.len();
    for id in acknowledged {
        let Some(start) = starts.get(id) else {
            report.violation(format!("start {id} was acknowledged and is unknown"));
            continue;
        };
        let vm = start["vm"].as_str().unwrap_or("no VM");
        let may_end = harm.lost.contains(vm) || harm.absent.contains(vm);
        match state(start) {
            "ready" => {
                report.ready += 1;
                let stall_us = start["longest_stall_us"].as_u64().unwrap_or(0);
                if !may_end {
                    report.longest_stall_ms = report.longest_stall_ms.max(stall_us / 1000);
                }
            }
            "ended" => {
                let reason = start["reason"]["kind"].as_str().unwrap_or("no reason");
                *report.ended.entry(reason.to_owned()).or_default() += 1;
                if !may_end || reason == "no reason" {
                    report.violation(format!("start {id} on {vm} ended: {}", start["reason"]));
                }
            }
            other => report.violation(format!("start {id} on {vm} is still {other}")),
        }
    }
}

/// Each container that ran before or runs now, if its VM has power and the manager says that it is ready,
/// answers as the process that it was, and reads on.
fn check_containers(
    report: &mut Report,
    burst: &Burst,
    starts: &BTreeMap<String, Value>,
    harm: &Harm,
    mut containers: BTreeMap<String, Container>,
) -> anyhow::Result<()> {
    for (id, start) in starts {
        let vm = start["vm"].as_str().unwrap_or_default();
        let is_new = state(start) == "ready" && !containers.contains_key(id) && !harm.lost.contains(vm);
        if is_new && let Some(container) = report.check("a new container answers", burst.container(start)) {
            containers.insert(id.clone(), container);
        }
    }
    for (id, container) in containers {
        let vm = container.vm.as_str();
        let is_over = harm.absent.contains(vm) && starts.get(&id).is_none_or(|start| state(start) == "ended");
        if harm.dark.contains(vm) || is_over {
            continue;
        }
        report.watched += 1;
        let what = format!("the container of start {id} on {vm}");
        report.check(&format!("{what} is the same process"), container.check());
        // Without an agent a read waits until it fails.
        if harm.lost.contains(vm) {
            continue;
        }
        let Some(seen) = report.check(&format!("{what} reads on"), read_on(&container)) else { continue };
        if !seen.failed.is_empty() {
            report.violation(format!("{what} read wrongly: {}", seen.failed));
        }
        let tally = if harm.absent.contains(vm) { &mut report.reads_absent } else { &mut report.reads_after };
        tally.add(vm, &seen);
    }
    Ok(())
}

/// Waits for two more reads: the first of them may have begun before.
fn read_on(container: &Container) -> anyhow::Result<burst::Reads> {
    let before = container.reads()?.count;
    wait_until("the container to read on", NEXT_READ, || {
        let seen = container.reads()?;
        Ok((seen.count >= before + 2).then_some(seen))
    })
}

fn check_reads(report: &mut Report, read_max: Option<Duration>) {
    let Tally { longest_ms, vm, .. } = report.reads_after.clone();
    let stall_ms = report.longest_stall_ms;
    let Some(max_ms) = read_max.map(millis) else { return };
    if longest_ms >= max_ms {
        report.violation(format!("a read on {vm}, which was not hit, took {longest_ms} ms"));
    }
    if stall_ms >= max_ms {
        report.violation(format!("a read of a start, on a VM that was not hit, waited {stall_ms} ms"));
    }
}

/// What the API knows beside starts.
#[derive(Debug, PartialEq)]
struct Known {
    functions: BTreeSet<String>,
    vms: BTreeSet<String>,
}

impl Known {
    fn of(burst: &Burst) -> anyhow::Result<Self> {
        let functions = burst.cluster.api.get("/v1/functions")?;
        let functions = functions["functions"].as_array().context("the answer names no functions")?;
        let described = |function: &Value| format!("{} {}", function["name"], function["spec"]);
        Ok(Self {
            functions: functions.iter().map(described).collect(),
            vms: burst.cluster.vms()?.into_keys().collect(),
        })
    }

    fn check(&self, burst: &Burst, report: &mut Report) -> anyhow::Result<()> {
        let now = Self::of(burst)?;
        if *self != now {
            report.violation(format!("the manager knew {self:?}, and now {now:?}"));
        }
        Ok(())
    }
}

/// A VM joins with a token that was made before the manager was killed.
fn check_join_token(report: &mut Report, burst: &Burst, token: &str) -> anyhow::Result<()> {
    const GUEST: &str = "guest";
    let data = tempfile::tempdir()?;
    let mut command = burst.cluster.agent_command("vm-1", GUEST, token)?;
    let guest =
        crate::rig::process::Service::start(GUEST, command.arg("--data").arg(data.path()), data.path())?;
    report.check("the join token is still good", burst.wait_for_vm(GUEST, "up", BACK));
    guest.stop(BACK)?;
    Ok(())
}

fn come_back(burst: &mut Burst, harm: &Harm) -> anyhow::Result<()> {
    if let Some((one, other)) = &harm.partition {
        burst.cluster.bed.heal(one, other)?;
    }
    for vm in &harm.lost {
        match harm.dark.contains(vm) {
            true => burst.cluster.restore_power(vm)?,
            false => burst.cluster.start_agent(vm)?,
        }
    }
    burst.vms().iter().try_for_each(|vm| burst.wait_for_vm(vm, "up", BACK))
}

fn state(start: &Value) -> &str {
    start["state"].as_str().unwrap_or_default()
}

fn keep(logs: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    for log in fs::read_dir(logs)?.flatten() {
        fs::copy(log.path(), folder.join(log.file_name()))?;
    }
    Ok(folder.to_path_buf())
}

#[derive(Debug, Args)]
pub struct Chaos {
    /// Run only this case; may be given again
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<Case>,
    #[arg(long, default_value_t = 16)]
    vms: usize,
    /// Rate of every link
    #[arg(long, default_value = "100mbit")]
    rate: Rate,
    /// Chooses the victims
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Longest read on a VM that was not hit
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    read_max_ms: u64,
    /// The binary to test; build it with --release
    #[arg(long, default_value = "target/release/faasnet")]
    program: PathBuf,
    /// Folder where the image is kept from run to run
    #[arg(long, default_value = "target/rig")]
    cache: PathBuf,
    /// Where the logs of cases with violations are kept
    #[arg(long, default_value = "target/chaos")]
    logs: PathBuf,
    /// Also write the reports to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// In this process, without another that takes the bed down when this one is killed
    #[arg(long, hide = true)]
    unguarded: bool,
}

impl Chaos {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !self.unguarded {
            return guard(std::env::args_os().skip(1).chain(["--unguarded".into()]));
        }
        let program = self.program.canonicalize().with_context(|| {
            format!("there is no {}; run cargo build --release first", self.program.display())
        })?;
        eprintln!("making the image, unless it is in {}", self.cache.display());
        let spec = ChaosSpec {
            rate: self.rate,
            seed: self.seed,
            read_max: Some(Duration::from_millis(self.read_max_ms)),
            logs: Some(self.logs.clone()),
            ..ChaosSpec::new(program, Image::cached(&self.cache, Variant::Ballast)?, self.vms)
        };
        let cases = if self.cases.is_empty() { Case::all() } else { &self.cases };
        let mut reports = Vec::new();
        for &case in cases {
            let name = case.name();
            let begin = Instant::now();
            let say = |text: &str| eprintln!("{:>6.1} s  {name}: {text}", begin.elapsed().as_secs_f64());
            let report =
                run_case(&spec, case, &say).unwrap_or_else(|error| Report::failed(case, spec.vms, &error));
            reports.push(report);
            if let Some(file) = &self.json {
                let text = serde_json::to_vec_pretty(&reports)?;
                fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
            }
        }
        print!("{}", Table(&reports));
        let held = reports.iter().all(|report| report.violations.is_empty());
        Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
