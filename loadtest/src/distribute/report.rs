//! What one distribution took, and the table of all.

use super::{Account, Plan, What, cpu::Cpu};
use crate::{
    hotset::{App, median},
    warm::WarmStart,
};
use faasnet_actors::model::StartView;
use serde::Serialize;
use std::{fmt, time::Duration};

/// Times the least that it can take.
const STARTS_GOAL: f64 = 1.15;
const IMAGE_GOAL: f64 = 1.10;

/// Where that what starts read lies in the image.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct HotBlocks {
    pub blocks: u64,
    pub stored_bytes: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub what: What,
    pub app: App,
    pub topology: String,
    pub vms: usize,
    pub rate_bits_per_s: u64,
    /// Stored bytes that a VM received: the median.
    pub stored_bytes: f64,
    /// Those over the link's rate.
    pub transfer_s: f64,
    /// Until the last of as many warm starts was ready.
    pub warm_s: Option<f64>,
    /// One warm start alone.
    pub warm_alone: Option<WarmStart>,
    pub hot: Option<HotBlocks>,
    /// Until the last VM was ready, or had all.
    pub last_s: f64,
    /// Last over least.
    pub ratio: f64,
    /// Of the machine, while it went on.
    pub cpu_percent: f64,
    /// By what used the cores meanwhile.
    pub used: Account,
    pub starts: Vec<StartView>,
}

impl Report {
    pub(super) fn new(
        plan: &Plan<'_>,
        starts: &[StartView],
        last: Duration,
        warm: Option<Duration>,
        cpu: Cpu,
    ) -> Self {
        let stored_bytes = median(starts.iter().map(|start| start.bytes.total() as f64));
        let transfer_s = stored_bytes / plan.rate.bytes_per_s() as f64;
        let warm_s = warm.map(|warm| warm.as_secs_f64());
        Self {
            what: plan.what,
            app: plan.app,
            topology: plan.topology.to_owned(),
            vms: plan.vms,
            rate_bits_per_s: plan.rate.bits_per_s(),
            stored_bytes,
            transfer_s,
            warm_s,
            warm_alone: None,
            hot: None,
            last_s: last.as_secs_f64(),
            ratio: last.as_secs_f64() / (transfer_s + warm_s.unwrap_or_default()).max(f64::MIN_POSITIVE),
            cpu_percent: cpu.percent(),
            used: Account::default(),
            starts: starts.to_vec(),
        }
    }

    fn goal(&self) -> f64 {
        match self.what {
            What::Starts => STARTS_GOAL,
            What::Image => IMAGE_GOAL,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, vms, last) = (self.what, self.vms, self.last_s);
        write!(
            out,
            "{what:?} on {vms} VMs: the last one after {last:.2} s, {:.2} times the least",
            self.ratio
        )
    }
}

/// One line for each.
pub(super) struct Table<'a>(pub &'a [Report]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{:<7} {:<9} {:>4} {:>7} {:>7} {:>7} {:>7} {:>7} {:>6} {:>5} {:>5}",
            "what",
            "topology",
            "VMs",
            "Mbit/s",
            "S MB",
            "S/U s",
            "warm s",
            "last s",
            "ratio",
            "goal",
            "CPU %"
        )?;
        for report in self.0 {
            let warm = report.warm_s.map_or("-".to_owned(), |warm| format!("{warm:.2}"));
            writeln!(
                out,
                "{:<7} {:<9} {:>4} {:>7.0} {:>7.1} {:>7.2} {:>7} {:>7.2} {:>6.2} {:>5.2} {:>5.0}",
                format!("{:?}", report.what).to_lowercase(),
                report.topology,
                report.vms,
                report.rate_bits_per_s as f64 / 1e6,
                report.stored_bytes / 1e6,
                report.transfer_s,
                warm,
                report.last_s,
                report.ratio,
                report.goal(),
                report.cpu_percent
            )?;
        }
        Ok(())
    }
}
