//! What one case measured, and the table of all.

use super::{Case, burst::Reads};
use faasnet::settings::Settings;
use faasnet_actors::{image::BLOCK_BYTES, support::millis};
use serde::Serialize;
use std::{collections::BTreeMap, fmt};

/// Frames, TCP and HTTP on top of what the registry counts.
const OVERHEAD: f64 = 1.15;
/// The index, manifests and answers without a body.
const OTHER_BYTES: u64 = 8 << 20;

const LEGEND: &str = "\
longest read: in running containers before and after the fault, on VMs that were not hit; of starts there, the
  longest wait for a block; on VMs whose agent was away for a while; how late the machine woke a reader
origin: what the registry gave of the block image, and the part of its stored bytes that this is
";

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub case: Case,
    pub vms: usize,
    pub victims: Vec<String>,
    /// Starts that were ready, and that were not, when the fault came.
    pub ready_at_fault: usize,
    pub unready_at_fault: usize,
    pub acknowledged: usize,
    /// Starts after the fault, and how many ended for which reason.
    pub ready: usize,
    pub ended: BTreeMap<String, usize>,
    /// From the first start of the burst, and from the fault, until each start was ready or had ended.
    pub burst_ms: u64,
    pub settled_ms: u64,
    /// Containers whose process was compared.
    pub watched: usize,
    /// Reads of running containers before the fault.
    pub reads_before: Tally,
    /// From the fault on: on VMs that were not hit, and on those whose agent was away for a while.
    pub reads_after: Tally,
    pub reads_absent: Tally,
    /// The longest wait of a read for a block from the order to ready, as the agents report it, on VMs
    /// that were not hit.
    pub longest_stall_ms: u64,
    pub image_bytes: u64,
    /// What the registry gave of the block image, and all that its interface sent.
    pub origin_bytes: u64,
    pub origin_wire_bytes: u64,
    /// Promises that were broken.
    pub violations: Vec<String>,
}

/// The longest reads of several containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub longest_ms: u64,
    /// Where that was.
    pub vm: String,
    /// How late the machine woke a reader at most: what is not the system's own.
    pub late_ms: u64,
    pub reads: u64,
}

impl Tally {
    pub(super) fn add(&mut self, vm: &str, seen: &Reads) {
        let longest_ms = millis(seen.longest);
        if longest_ms >= self.longest_ms {
            self.longest_ms = longest_ms;
            self.vm = vm.to_owned();
        }
        self.late_ms = self.late_ms.max(millis(seen.latest));
        self.reads += seen.count;
    }
}

impl Report {
    pub(super) fn new(case: Case, vms: usize, image_bytes: u64) -> Self {
        Self {
            case,
            vms,
            victims: Vec::new(),
            ready_at_fault: 0,
            unready_at_fault: 0,
            acknowledged: 0,
            ready: 0,
            ended: BTreeMap::new(),
            burst_ms: 0,
            settled_ms: 0,
            watched: 0,
            reads_before: Tally::default(),
            reads_after: Tally::default(),
            reads_absent: Tally::default(),
            longest_stall_ms: 0,
            image_bytes,
            origin_bytes: 0,
            origin_wire_bytes: 0,
            violations: Vec::new(),
        }
    }

    /// A case that could not be run to its end.
    pub(super) fn failed(case: Case, vms: usize, error: &anyhow::Error) -> Self {
        Self { violations: vec![format!("not run to its end: {error:#}")], ..Self::new(case, vms, 0) }
    }

    pub(super) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Notes an error as a violation of what should be.
    pub(super) fn check<T>(&mut self, what: &str, result: anyhow::Result<T>) -> Option<T> {
        result.map_err(|error| self.violation(format!("not so: {what}: {error:#}"))).ok()
    }

    /// Invariant 6, by the registry's own account and by its interface: a killed registry has not told of
    /// its last answers.
    pub(super) fn count_origin(&mut self, given: u64, sent: u64) {
        (self.origin_bytes, self.origin_wire_bytes) = (given, sent);
        let most = self.image_bytes + asked_again(&Settings::default(), self.image_bytes);
        if given > most {
            self.violation(format!("invariant 6: the registry gave {given} bytes, at most {most} are right"));
        }
        let most = (most as f64 * OVERHEAD) as u64 + OTHER_BYTES;
        if sent > most {
            self.violation(format!("invariant 6: the registry sent {sent} bytes, at most {most} are right"));
        }
    }
}

/// Bytes that may be asked of the origin again: what was in flight when a root or the registry was lost, and
/// what the tree's budget gives to those whom nobody serves.
fn asked_again(settings: &Settings, image_bytes: u64) -> u64 {
    let in_flight = settings.transfer.in_flight_blocks_max as u64 * u64::from(BLOCK_BYTES);
    in_flight + image_bytes * u64::from(settings.tree.origin_budget_percent) / 100
}

/// One line for each case, and below it what was broken.
pub(super) struct Table<'a>(pub &'a [Report]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{:<19} {:>11} {:>13} {:>8} {:>29} {:>13}  victims",
            "case", "at fault", "after", "settled", "longest read, ms", "origin"
        )?;
        writeln!(
            out,
            "{:<19} {:>5} {:>5} {:>6} {:>6} {:>8} {:>6} {:>6} {:>5} {:>4} {:>4} {:>8} {:>4}",
            "", "ready", "not", "ready", "ended", "s", "before", "after", "start", "hit", "late", "MB", "%"
        )?;
        for report in self.0 {
            let ended: usize = report.ended.values().sum();
            let percent = 100.0 * report.origin_bytes as f64 / report.image_bytes.max(1) as f64;
            writeln!(
                out,
                "{:<19} {:>5} {:>5} {:>6} {:>6} {:>8.1} {:>6} {:>6} {:>5} {:>4} {:>4} {:>8.1} {:>4.0}  {}",
                report.case.name(),
                report.ready_at_fault,
                report.unready_at_fault,
                report.ready,
                ended,
                report.settled_ms as f64 / 1000.0,
                report.reads_before.longest_ms,
                report.reads_after.longest_ms,
                report.longest_stall_ms,
                report.reads_absent.longest_ms,
                report.reads_after.late_ms,
                report.origin_bytes as f64 / 1e6,
                percent,
                report.victims.join(", ")
            )?;
            for violation in &report.violations {
                writeln!(out, "    BROKEN: {violation}")?;
            }
        }
        out.write_str(LEGEND)
    }
}
