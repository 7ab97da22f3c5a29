//! The same burst three ways, on the same VMs and links, from the same registry:
//!
//! - containerd pulls the whole image on every VM and runs it;
//! - our agents read lazily, each straight from the registry: every VM is the only one of its tenant, so that
//!   it is the root of a tree of its own;
//! - our agents, in one tree.
//!
//! The hot set is unknown to all of them, and no VM has anything of the image.

use super::{FUNCTION, containerd};
use crate::{
    bed::Rate,
    report::{Axis, Page, Plot, Series, Table},
    rig::{Cluster, ClusterSpec, Image, cluster::REGISTRY, wait_until},
};
use anyhow::{Context, ensure};
use faasnet_actors::model::{StartState, StartView};
use serde::Serialize;
use std::{collections::BTreeSet, fmt, path::Path, time::Duration};

/// For a whole burst, on a machine that does much else.
const READY: Duration = Duration::from_secs(300);
const LISTENS_AT_ONCE: &str = "NO_IMPORTS=1";
const MB: f64 = 1e6;

/// One way.
#[derive(Debug, Clone, Serialize)]
pub struct Way {
    pub name: &'static str,
    /// From the call until each VM's container answered, the quickest first.
    pub ready_ms: Vec<f64>,
    /// What the registry's link carried away.
    pub registry_bytes: u64,
    /// Of the last one ready: how many times as long as in our tree.
    pub ratio: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Burst {
    pub vms: usize,
    pub rate_bits_per_s: Option<u64>,
    pub image_layer_bytes: u64,
    pub ways: Vec<Way>,
}

/// All three, one after the other.
pub fn measure(program: &Path, image: &Image, rate: Option<Rate>, vms: usize) -> anyhow::Result<Burst> {
    // As many again, which have nothing either when the first are done.
    let spec = ClusterSpec { rate, ..ClusterSpec::new(program, 2 * vms) };
    let cluster = Cluster::up(spec)?;
    let reference = cluster.registry.push(image, "compared/python")?;
    let sent = || Ok::<_, anyhow::Error>(cluster.bed.counters(REGISTRY)?.sent_bytes);

    let hosts: Vec<String> = (1..=vms).map(|number| format!("vm-{number}")).collect();
    let before = sent()?;
    let pulled = containerd::burst(cluster.bed.state(), &hosts, &reference, LISTENS_AT_ONCE)
        .context("measure containerd")?;
    let containerd =
        way("ctr pull and run", pulled.iter().map(|pulled| pulled.total_ms as f64), sent()? - before);

    let alone: Vec<String> = (1..=vms).map(|number| format!("alone-{number}")).collect();
    let tenants: Vec<&str> = alone.iter().map(String::as_str).collect();
    let (starts, bytes) = tenants_burst(&cluster, &tenants, &reference, 1, &sent)?;
    let lazy = way("lazy, from the registry", ready_ms(&starts), bytes);
    let (starts, bytes) = tenants_burst(&cluster, &["together"], &reference, vms, &sent)?;
    let tree = way("lazy, in one tree", ready_ms(&starts), bytes);

    let mut ways = vec![containerd, lazy, tree];
    let least = ways.last().map_or(0.0, Way::last_ms);
    ways.iter_mut().for_each(|way| way.ratio = way.last_ms() / least.max(f64::MIN_POSITIVE));
    let (rate_bits_per_s, image_layer_bytes) = (rate.map(Rate::bits_per_s), image.layer_bytes()?);
    Ok(Burst { vms, rate_bits_per_s, image_layer_bytes, ways })
}

/// A function for each tenant, and so many starts of each, all asked for before any is waited for.
fn tenants_burst(
    cluster: &Cluster,
    tenants: &[&str],
    reference: &str,
    count: usize,
    sent: &impl Fn() -> anyhow::Result<u64>,
) -> anyhow::Result<(Vec<StartView>, u64)> {
    for tenant in tenants {
        let deploy = ["--tenant", tenant, "function", "deploy", FUNCTION, "--image", reference];
        cluster.cli(&[&deploy[..], &["--memory", "128", "--env", LISTENS_AT_ONCE]].concat())?;
    }
    let before = sent()?;
    let path = format!("/v1/functions/{FUNCTION}/starts");
    for tenant in tenants {
        let answer = cluster.api.call_of(tenant, "POST", &path, format!("{{\"count\":{count}}}"))?;
        ensure!(answer.status.is_success(), "POST {path}: {} {}", answer.status, answer.text());
    }
    let starts = wait_until("the starts to settle", READY, || {
        let mut all: Vec<StartView> = Vec::new();
        for tenant in tenants {
            let answer = cluster.api.call_of(tenant, "GET", &path, "")?.json()?;
            all.extend(serde_json::from_value::<Vec<StartView>>(answer["starts"].clone())?);
        }
        let is_settled = |start: &StartView| matches!(start.state, StartState::Ready | StartState::Ended);
        Ok(all.iter().all(is_settled).then_some(all))
    })?;
    let vms: BTreeSet<_> = starts.iter().filter_map(|start| start.vm.as_ref()).collect();
    ensure!(starts.len() == tenants.len() * count, "{} starts are listed", starts.len());
    ensure!(vms.len() == starts.len(), "{} starts were on {} VMs", starts.len(), vms.len());
    for start in &starts {
        ensure!(start.state == StartState::Ready, "start {} ended: {:?}", start.id, start.reason);
    }
    Ok((starts, sent()? - before))
}

fn ready_ms(starts: &[StartView]) -> impl Iterator<Item = f64> {
    starts.iter().filter_map(|start| start.timeline_us.ready).map(|us| us as f64 / 1000.0)
}

fn way(name: &'static str, ready_ms: impl Iterator<Item = f64>, registry_bytes: u64) -> Way {
    let mut ready_ms: Vec<f64> = ready_ms.collect();
    ready_ms.sort_by(f64::total_cmp);
    Way { name, ready_ms, registry_bytes, ratio: 0.0 }
}

impl Way {
    fn last_ms(&self) -> f64 {
        self.ready_ms.last().copied().unwrap_or_default()
    }
}

impl Burst {
    fn table(&self) -> Table {
        let mut table = Table::new([
            "way",
            "first ready s",
            "half ready s",
            "last ready s",
            "registry sent MB",
            "times ours",
        ]);
        for way in &self.ways {
            let at = |place: usize| way.ready_ms.get(place).copied().unwrap_or_default() / 1000.0;
            let (half, last) = (at(way.ready_ms.len().saturating_sub(1) / 2), way.last_ms() / 1000.0);
            let registry = way.registry_bytes as f64 / MB;
            let figures = [at(0), half, last].map(|seconds| format!("{seconds:.2}")).into_iter();
            let others = [format!("{registry:.1}"), format!("{:.2}", way.ratio)];
            table.push(std::iter::once(way.name.to_owned()).chain(figures).chain(others));
        }
        table
    }

    pub fn page(&self) -> Page {
        let mut page = Page::new("A burst three ways");
        page.command(std::env::args().collect::<Vec<_>>().join(" "))
            .text(self.headline())
            .table(self.table());
        let axis = Axis::linear("s, from the call");
        let plot = Plot::new("VMs whose container answers", axis, Axis::linear("part of the VMs").to(1.0));
        page.plot(self.ways.iter().fold(plot, |plot, way| {
            plot.with(Series::cdf(way.name, way.ready_ms.iter().map(|ms| ms / 1000.0)))
        }));
        page
    }

    fn headline(&self) -> String {
        let rate = self
            .rate_bits_per_s
            .map_or("not shaped".to_owned(), |rate| format!("of {} Mbit/s", rate / 1_000_000));
        let layers = self.image_layer_bytes as f64 / MB;
        format!("{} VMs, links {rate}, image of {layers:.0} MB in layers, hot set unknown", self.vms)
    }
}

impl fmt::Display for Burst {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}\n{}", self.headline(), self.table())
    }
}
