//! A cluster in which nothing goes wrong, and of which only starts are asked.

use super::{
    invariants::Depth,
    model::{Model, SECOND},
    queue::Nanos,
    world::{Watch, World},
};
use faasnet_actors::id::StartId;

pub struct Cluster {
    world: World,
}

/// In which all agents have found the manager.
const BOOT: Nanos = 60 * SECOND;

impl Cluster {
    /// All VMs are up, and hold nothing.
    pub fn new(model: Model, seed: u64) -> Self {
        let vms = model.vms;
        let mut world = World::new(model, seed, Watch { depth: Depth::Light, prints: false });
        (0..vms).for_each(|vm| world.boot(vm));
        world.run_until(BOOT, |world| {
            let up = world.manager.iter().flat_map(|manager| manager.nodes.values());
            up.filter(|node| node.is_up()).count() == vms
        });
        Self { world }
    }

    /// Keeps what the event log of the manager is told from now on.
    pub fn watch(&mut self) {
        self.world.watch();
    }

    /// What it was told, as subscribers get it.
    pub fn told(&self) -> Vec<String> {
        self.world.told()
    }

    /// A VM ends, with all that runs on it.
    pub fn crash(&mut self, vm: usize) {
        self.world.crash(vm, false);
    }

    pub fn now(&self) -> Nanos {
        self.world.now
    }

    /// Asks for that many starts of a function by its number.
    pub fn start(&mut self, function: usize, count: u32) {
        self.world.start(function, count);
    }

    pub fn run_until(&mut self, end: Nanos) {
        self.world.run_until(end, |_| false);
    }

    /// When each start whose probe was answered was acknowledged, and when that was, in the order of their names.
    pub fn ready(&self) -> Vec<(Nanos, Nanos)> {
        let answered = self.world.book.answered.iter();
        let times = |(start, at): (&StartId, &Nanos)| Some((self.world.book.acknowledged.get(start)?.1, *at));
        answered.filter_map(times).collect()
    }
}
