//! Bursts with all costs, from the call of the API to the last answer to a probe: what figures are made of.

use super::{
    invariants::Depth,
    manager::parents,
    model::{Cores, MILLISECOND, Model, SECOND},
    queue::Nanos,
    world::{Watch, World},
};
use crate::distribute::Account;
use faasnet_actors::wire::control::{BytesBySource, Step};
use serde::Serialize;
use std::{collections::BTreeMap, time::Instant};

/// Time for all VMs to say hello before anything is asked.
const BOOT: Nanos = 60 * SECOND;
/// Traffic is counted in intervals of that length.
pub const TRAFFIC: Nanos = 100 * MILLISECOND;

/// Bytes into and out of each VM, in intervals.
pub type Traffic = Vec<Vec<(u64, u64)>>;

/// One burst: so many starts at once, spread evenly over the functions of the model.
#[derive(Debug, Clone)]
pub struct Burst {
    pub model: Model,
    pub starts: u32,
    pub seed: u64,
    /// Given up after that.
    pub patience: Nanos,
}

/// What came of it. All times are milliseconds since the API was called.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Run {
    pub vms: usize,
    pub functions: usize,
    /// In the order in which they answered.
    pub starts: Vec<StartTrace>,
    pub asked: u32,
    /// Starts that were refused, ended, or had not answered when patience was over.
    pub failed: u32,
    /// Why clients did not get starts, and how many.
    pub refused: BTreeMap<String, u32>,
    /// Why starts ended before they answered, and how many.
    pub ended: BTreeMap<String, u32>,
    /// Requests that were made once more, when the manager said so.
    pub asked_again: u32,
    /// When nothing was left to do, or patience was over.
    pub end_ms: f64,
    /// Stored bytes of one image.
    pub image_bytes: u64,
    pub bytes: Sources,
    /// Edges from a root to the VM furthest below it.
    pub tree_height: usize,
    /// Share of its cores that a VM used from the call to the last answer.
    pub cpu_mean: f64,
    pub cpu_max: f64,
    /// Milliseconds of cores that all VMs and the manager used until nothing was left to do, by what used them.
    pub used: Account,
    /// Bytes into and out of each VM, in intervals of 100 ms from the call on.
    #[serde(skip)]
    pub traffic: Traffic,
    pub events: u64,
    pub wall_ms: u64,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Sources {
    pub origin: u64,
    pub parent: u64,
    pub ancestor: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct StartTrace {
    pub vm: usize,
    pub function: String,
    /// It was durable that it will be done.
    pub accepted_ms: f64,
    /// Its order reached the VM.
    pub ordered_ms: f64,
    /// When each step was done.
    pub steps_ms: BTreeMap<Step, f64>,
    /// A probe was answered.
    pub answered_ms: f64,
    pub stalls: u32,
    pub stalled_ms: f64,
    pub bytes: Sources,
}

impl From<BytesBySource> for Sources {
    fn from(BytesBySource { parent, ancestor, origin }: BytesBySource) -> Self {
        Self { origin, parent, ancestor }
    }
}

impl StartTrace {
    /// How long each phase took, in order; all together are the time to the answer.
    pub fn phases(&self) -> Vec<(&'static str, f64)> {
        let mut before = self.ordered_ms;
        let mut phases =
            vec![("accepted", self.accepted_ms), ("ordered", self.ordered_ms - self.accepted_ms)];
        let steps = [
            ("connected", Step::Connecting),
            ("index", Step::Index),
            ("metadata", Step::Metadata),
            ("whole image", Step::Whole),
            ("mounted", Step::Mount),
            ("running", Step::Run),
        ];
        for (name, step) in steps {
            if let Some(at) = self.steps_ms.get(&step) {
                phases.push((name, (at - before).max(0.0)));
                before = at.max(before);
            }
        }
        phases.push(("answered", self.answered_ms - before));
        phases
    }
}

impl Burst {
    pub fn play(self) -> Run {
        let begun = Instant::now();
        let Self { model, starts, seed, patience } = self;
        let (vms, functions) = (model.vms, model.functions.len());
        let mut world = World::new(model, seed, Watch { depth: Depth::Light, prints: false });
        (0..vms).for_each(|vm| world.boot(vm));
        world.run_until(world.now + BOOT, |world| {
            let up = world.manager.iter().flat_map(|manager| manager.nodes.values());
            up.filter(|node| node.is_up()).count() == vms
        });
        let begin = world.now;
        world.book.traffic_from(begin, vms);
        let busy_before = world.busy();
        let events_before = world.events;
        world.used.clear();
        for function in 0..functions {
            let share = |number: usize| (starts as usize * number / functions) as u32;
            let count = share(function + 1) - share(function);
            if count > 0 {
                world.want(function, count);
            }
        }
        world.run_until(begin + patience, World::all_settled);
        let ms = |at: Nanos| at.saturating_sub(begin) as f64 / MILLISECOND as f64;
        let mut traces: Vec<StartTrace> = Vec::new();
        for (start, answered) in &world.book.answered {
            let (Some((vm, ordered)), Some(((_, name), accepted))) =
                (world.book.ordered.get(start), world.book.acknowledged.get(start))
            else {
                continue;
            };
            let report = world.report(*vm, start);
            let steps = report.steps_us.iter();
            traces.push(StartTrace {
                vm: *vm,
                function: name.to_string(),
                accepted_ms: ms(*accepted),
                ordered_ms: ms(*ordered),
                steps_ms: steps.map(|(step, us)| (*step, ms(*ordered) + *us as f64 / 1000.0)).collect(),
                answered_ms: ms(*answered),
                stalls: report.stalls,
                stalled_ms: report.stalled_us as f64 / 1000.0,
                bytes: report.bytes.into(),
            });
        }
        traces.sort_by(|a, b| a.answered_ms.total_cmp(&b.answered_ms));
        let last = traces.last().map_or(0.0, |last| last.answered_ms);
        let cores = match world.model.cores {
            Cores::Each(cores) | Cores::Shared(cores) => f64::from(cores),
        };
        let used = world.busy().into_iter().zip(busy_before);
        let used: Vec<f64> =
            used.map(|(after, before)| ms(begin + after - before) / (cores * last.max(0.001))).collect();
        let trees = world.manager.iter().flat_map(|manager| &manager.trees);
        let height = trees.map(|(tree, core)| height(&parents(core.view(tree.image)))).max();
        let bytes = world.moved();
        Run {
            vms,
            functions,
            asked: starts,
            failed: starts.saturating_sub(traces.len() as u32),
            refused: std::mem::take(&mut world.book.not_got),
            ended: std::mem::take(&mut world.book.over),
            asked_again: world.book.asked_again,
            end_ms: ms(world.now),
            starts: traces,
            image_bytes: world.images.first().map_or(0, |image| image.description.blob_bytes),
            bytes,
            tree_height: height.unwrap_or_default(),
            cpu_mean: used.iter().sum::<f64>() / used.len().max(1) as f64,
            cpu_max: used.iter().copied().fold(0.0, f64::max),
            used: Account(
                world.used.iter().map(|(part, used)| (*part, *used as f64 / MILLISECOND as f64)).collect(),
            ),
            traffic: world.book.take_traffic(),
            events: world.events - events_before,
            wall_ms: begun.elapsed().as_millis() as u64,
        }
    }
}

fn height(parents: &super::book::Parents) -> usize {
    let depth = |vm| {
        let above = std::iter::successors(parents.get(vm).cloned().flatten(), |up| {
            parents.get(up).cloned().flatten()
        });
        above.take(parents.len()).count()
    };
    parents.keys().map(depth).max().unwrap_or_default()
}

impl Run {
    /// When that share of all starts had answered, in milliseconds; none if fewer did.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let rank = (share * f64::from(self.asked)).ceil().max(1.0) as usize;
        self.starts.get(rank - 1).map(|start| start.answered_ms)
    }

    pub fn last_ms(&self) -> Option<f64> {
        self.quantile(1.0)
    }

    /// The start that answered last.
    pub fn last(&self) -> Option<&StartTrace> {
        self.starts.last()
    }
}
