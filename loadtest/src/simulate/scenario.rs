//! Bursts onto many VMs, and what goes wrong in the middle of them.

use super::{
    invariants::{self, Depth, Violation},
    model::{FunctionModel, Hot, ImageModel, MILLISECOND, Model, Reads, SECOND},
    queue::Nanos,
    world::{Watch, World},
};
use clap::ValueEnum;
use faasnet_actors::{id::VmId, model::StartState, wire::control::EndReason};
use rand::RngExt;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// Nothing goes wrong: two and a half starts for each VM at once
    Burst,
    /// The root stands still for five seconds in the middle of a burst
    RootPause,
    /// Three VMs of ten vanish at once in the middle of a burst
    Vanish,
    /// The manager dies in the middle of a burst and is there again a second later
    ManagerRestart,
    /// Ten times as many VMs and starts, without a block to move: what the control plane costs
    ControlPlane,
}

impl Scenario {
    pub const ALL: [Self; 5] =
        [Self::Burst, Self::RootPause, Self::Vanish, Self::ManagerRestart, Self::ControlPlane];
}

/// What came of a scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub scenario: Scenario,
    pub seed: u64,
    pub vms: usize,
    pub starts: usize,
    pub ready: usize,
    /// From the acknowledgement to ready, in milliseconds.
    pub median_ms: u64,
    pub slowest_ms: u64,
    /// Ended for that reason.
    pub ended: BTreeMap<String, usize>,
    /// Bytes asked of the origin, for each byte of the image.
    pub origin_per_image: f64,
    /// VMs that got another parent, and those among them whose parent was there.
    pub moves: usize,
    pub needless_moves: usize,
    pub events: u64,
    pub virtual_ms: u64,
    pub wall_ms: u64,
    pub violation: Option<Violation>,
}

/// When trouble begins after the starts were asked for: some VMs have the first blocks by then.
const TROUBLE_AFTER: Nanos = 700 * MILLISECOND;
/// When every start must have ended.
const PATIENCE: Nanos = 60 * SECOND;

impl Scenario {
    /// Plays the scenario with that many VMs.
    pub fn play(self, vms: usize, image: ImageModel, seed: u64) -> Report {
        self.watched(vms, image, seed, false).0
    }

    /// The same, with the events that subscribers of the event stream would get, one JSON object each.
    pub fn record(self, vms: usize, image: ImageModel, seed: u64) -> (Report, Vec<String>) {
        let (report, world) = self.watched(vms, image, seed, true);
        (report, world.told())
    }

    fn watched(self, vms: usize, image: ImageModel, seed: u64, is_watched: bool) -> (Report, World) {
        let begun = Instant::now();
        let (vms, image) = match self {
            Self::ControlPlane => (
                10 * vms,
                ImageModel {
                    blocks: 1,
                    stored_bytes: 1,
                    metadata_blocks: 1,
                    reads: Reads::Random(0),
                    packed_blocks: 0,
                    hot: Hot::Unknown,
                },
            ),
            _ => (vms, image),
        };
        let model =
            Model { vms, images: vec![image], functions: vec![FunctionModel::default()], ..Model::default() };
        let mut world = World::new(model, seed, Watch { depth: Depth::Light, prints: false });
        if is_watched {
            world.watch();
        }
        (0..vms).for_each(|vm| world.boot(vm));
        let all_up = |world: &World| {
            let up = world.manager.iter().flat_map(|manager| manager.nodes.values());
            up.filter(|node| node.is_up()).count() == vms
        };
        world.run_until(20 * SECOND, all_up);
        let begin = world.now;
        world.start(0, (vms * 5 / 2) as u32);
        world.run_until(begin + TROUBLE_AFTER, |_| false);
        let lost = self.trouble(&mut world);
        world.run_until(begin + PATIENCE, |world| self.is_over(world));
        let violation = world.violation.take().or_else(|| self.judge(&mut world, &lost).err());
        (self.report(&world, begin, begun, violation), world)
    }

    /// Returns the VMs that are silent for longer than a lease.
    fn trouble(self, world: &mut World) -> BTreeSet<VmId> {
        match self {
            Self::Burst | Self::ControlPlane => BTreeSet::new(),
            Self::RootPause => {
                let root = root(world);
                let number = world.hosts.iter().position(|host| Some(&host.id) == root.as_ref());
                if let Some(number) = number {
                    world.pause(number, 5 * SECOND);
                }
                root.into_iter().collect()
            }
            Self::Vanish => {
                let mut left: Vec<usize> = (0..world.hosts.len()).collect();
                let mut lost = BTreeSet::new();
                for _ in 0..world.hosts.len() * 3 / 10 {
                    let chosen = left.swap_remove(world.rng.random_range(0..left.len()));
                    world.crash(chosen, true);
                    lost.insert(world.hosts[chosen].id.clone());
                }
                lost
            }
            Self::ManagerRestart => {
                world.restart_manager(SECOND);
                BTreeSet::new()
            }
        }
    }

    fn is_over(self, world: &World) -> bool {
        !world.book.acknowledged.is_empty() && invariants::every_start_ended(world).is_ok()
    }

    fn judge(self, world: &mut World, lost: &BTreeSet<VmId>) -> Result<(), Violation> {
        invariants::check_all(world)?;
        invariants::every_start_ended(world)?;
        for (start, view) in views(world) {
            let reason = view.reason;
            let was_lost = view.vm.as_ref().is_some_and(|vm| lost.contains(vm));
            let is_right = view.state == StartState::Ready || was_lost && reason == Some(EndReason::VmLost);
            if !is_right {
                let what = format!("{start} on {:?} is {:?} because of {reason:?}", view.vm, view.state);
                return Err(Violation::new(10, what));
            }
        }
        // The root of before and the one after it read the image once each.
        let bytes = origin_per_image(world);
        if bytes > 2.0 {
            return Err(Violation::new(6, format!("the origin gave {bytes:.2} times the image")));
        }
        Ok(())
    }

    fn report(self, world: &World, begin: Nanos, begun: Instant, violation: Option<Violation>) -> Report {
        let mut times: Vec<Nanos> =
            world.book.ready.values().map(|ready| (ready - begin) / MILLISECOND).collect();
        times.sort_unstable();
        let mut ended = BTreeMap::new();
        for (_, view) in views(world) {
            if let Some(reason) = view.reason {
                *ended.entry(reason.to_string()).or_default() += 1;
            }
        }
        let troubled = || world.book.moves.iter().filter(|moved| moved.at >= begin + TROUBLE_AFTER);
        Report {
            scenario: self,
            seed: world.seed,
            vms: world.hosts.len(),
            starts: world.book.acknowledged.len(),
            ready: times.len(),
            median_ms: times.get(times.len() / 2).copied().unwrap_or_default(),
            slowest_ms: times.last().copied().unwrap_or_default(),
            ended,
            origin_per_image: origin_per_image(world),
            moves: troubled().count(),
            needless_moves: troubled().filter(|moved| moved.is_needless).count(),
            events: world.events,
            virtual_ms: (world.now - begin) / MILLISECOND,
            wall_ms: begun.elapsed().as_millis() as u64,
            violation,
        }
    }
}

fn views(world: &World) -> Vec<(String, faasnet_actors::model::StartView)> {
    let Some(manager) = &world.manager else { return Vec::new() };
    let starts = world.book.acknowledged.iter();
    let views = starts.filter_map(|(start, ((tenant, _), _))| {
        Some((start.to_string(), manager.scheduler.start_view(tenant, start).ok()?))
    });
    views.collect()
}

fn root(world: &World) -> Option<VmId> {
    let (tree, core) = world.manager.as_ref()?.trees.first_key_value()?;
    core.view(tree.image).members.first().map(|member| member.vm.clone())
}

fn origin_per_image(world: &World) -> f64 {
    let bytes: u64 = world.book.origin_bytes.keys().map(|tree| world.book.origin_bytes_of(tree)).sum();
    let image: u64 = world.images.iter().map(|image| image.description.blob_bytes).sum();
    bytes as f64 / image as f64
}
