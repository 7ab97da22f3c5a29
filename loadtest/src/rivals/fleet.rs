//! What all rivals run on: VMs with links, cores and disks, one registry, and one clock.

use super::flows::{Flows, Resource};
use crate::simulate::{Nanos, Queue, SECOND, Spread};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;
use std::collections::VecDeque;

/// The numbers of a rival's world. Rates are bytes a second.
#[derive(Debug, Clone)]
pub struct Setup {
    pub vms: usize,
    pub uplink: f64,
    pub downlink: f64,
    pub cores: f64,
    /// One way.
    pub latency: Nanos,
    pub registry: Registry,
    pub image: Image,
    pub local: Local,
    pub seed: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Registry {
    pub rate: f64,
    /// To one VM, at most.
    pub rate_per_vm: f64,
    /// From a request to the first byte, without the network.
    pub latency: Nanos,
    pub requests_per_second: f64,
}

#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// As the registry stores it.
    pub bytes: f64,
    pub layers: u32,
    /// Blocks that a start reads, one after the other, and what each takes on a link.
    pub read_blocks: u32,
    pub block_bytes: f64,
}

/// What a VM does itself.
#[derive(Debug, Clone)]
pub struct Local {
    /// Bytes of layers that a VM decompresses and writes in a second, one layer after the other.
    pub unpack_rate: f64,
    /// Before a start that reads lazily: manifest, metadata, mount.
    pub prepare: Spread,
    /// Time of a core for each start, apart from reads.
    pub run: Spread,
    /// Time of a core for each block that is read.
    pub read: Nanos,
}

/// A start that was asked for, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Started {
    pub vm: usize,
    pub asked_at: Nanos,
    /// The image, or what must be there before the container, is there.
    pub pulled_at: Option<Nanos>,
    pub ready_at: Option<Nanos>,
}

impl Started {
    pub fn seconds(&self) -> Option<f64> {
        self.ready_at.map(|ready| (ready - self.asked_at) as f64 / SECOND as f64)
    }

    pub fn pull_seconds(&self) -> Option<f64> {
        self.pulled_at.map(|pulled| (pulled - self.asked_at) as f64 / SECOND as f64)
    }
}

/// A way to bring images to VMs.
pub trait Rival {
    /// Asks for a start on that VM now; returns its number.
    fn start(&mut self, vm: usize) -> usize;
    /// Lets everything happen until that moment.
    fn run_until(&mut self, end: Nanos);
    fn now(&self) -> Nanos;
    fn starts(&self) -> &[Started];
    /// Bytes that left the registry.
    fn registry_bytes(&self) -> f64;
}

/// What one way has of its own; the rest of [`Rival`] is the same for all that run on a fleet.
pub(super) trait OnFleet {
    type Event;

    fn fleet(&self) -> &Fleet<Self::Event>;
    fn fleet_mut(&mut self) -> &mut Fleet<Self::Event>;
    /// A start is asked for on that VM now; returns its number.
    fn begin(&mut self, vm: usize) -> usize;
    fn happen(&mut self, event: Self::Event);

    fn registry_bytes(&self) -> f64 {
        self.fleet().flows.used(self.fleet().registry)
    }
}

impl<T: OnFleet> Rival for T {
    fn start(&mut self, vm: usize) -> usize {
        self.begin(vm)
    }

    fn run_until(&mut self, end: Nanos) {
        while let Some(event) = self.fleet_mut().next(end) {
            self.happen(event);
        }
    }

    fn now(&self) -> Nanos {
        self.fleet().now
    }

    fn starts(&self) -> &[Started] {
        &self.fleet().starts
    }

    fn registry_bytes(&self) -> f64 {
        OnFleet::registry_bytes(self)
    }
}

/// One start after the other on VMs in turn, all at the same moment, until all are ready or the time is over.
pub fn burst(rival: &mut dyn Rival, vms: usize, starts: usize, patience: Nanos) {
    for number in 0..starts {
        rival.start(number % vms);
    }
    rival.run_until(patience);
}

/// Resources of one VM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vm {
    pub up: Resource,
    pub down: Resource,
    pub cores: Resource,
    pub unpack: Resource,
    /// What the registry gives to it.
    pub stream: Resource,
}

pub(super) struct Fleet<E> {
    pub setup: Setup,
    pub vms: Vec<Vm>,
    pub registry: Resource,
    pub starts: Vec<Started>,
    pub now: Nanos,
    pub rng: StdRng,
    pub flows: Flows<E>,
    queue: Queue<E>,
    ended: VecDeque<E>,
    registry_free_at: Nanos,
}

impl<E> Fleet<E> {
    pub fn new(setup: Setup) -> Self {
        let mut flows = Flows::default();
        let registry = flows.resource(setup.registry.rate);
        let vms = (0..setup.vms).map(|_| Self::vm(&setup, &mut flows)).collect();
        Self {
            vms,
            registry,
            starts: Vec::new(),
            now: 0,
            rng: StdRng::seed_from_u64(setup.seed),
            flows,
            queue: Queue::default(),
            ended: VecDeque::new(),
            registry_free_at: 0,
            setup,
        }
    }

    fn vm(setup: &Setup, flows: &mut Flows<E>) -> Vm {
        Vm {
            up: flows.resource(setup.uplink),
            down: flows.resource(setup.downlink),
            cores: flows.resource(setup.cores),
            unpack: flows.resource(setup.local.unpack_rate),
            stream: flows.resource(setup.registry.rate_per_vm),
        }
    }

    /// A machine of the VMs' size that runs no containers.
    pub fn extra_vm(&mut self) -> Vm {
        Self::vm(&self.setup, &mut self.flows)
    }

    pub fn asked(&mut self, vm: usize) -> usize {
        self.starts.push(Started { vm, asked_at: self.now, pulled_at: None, ready_at: None });
        self.starts.len() - 1
    }

    pub fn after(&mut self, delay: Nanos, event: E) {
        self.queue.push(self.now + delay, event);
    }

    pub fn transfer(&mut self, uses: Vec<Resource>, bytes: f64, event: E) {
        self.flows.begin(self.now, uses, f64::INFINITY, bytes, event);
    }

    /// Takes so much time of one core of that VM.
    pub fn work(&mut self, vm: usize, length: Nanos, event: E) {
        let cores = self.vms[vm].cores;
        self.flows.begin(self.now, vec![cores], 1.0, length as f64 / SECOND as f64, event);
    }

    pub fn spread(&mut self, spread: &Spread) -> Nanos {
        self.rng.random_range(spread.clone())
    }

    /// What comes before the container of a start is there, and it runs: what it does itself apart from its reads.
    pub fn run(&mut self, vm: usize, start: usize, event: E) {
        self.starts[start].pulled_at = Some(self.now);
        let length = self.spread(&self.setup.local.run.clone());
        self.work(vm, length, event);
    }

    /// From a request of a VM until the registry sends: requests wait for each other above the registry's rate.
    pub fn registry_delay(&mut self) -> Nanos {
        let Registry { latency, requests_per_second, .. } = self.setup.registry;
        let begins = self.registry_free_at.max(self.now + self.setup.latency);
        self.registry_free_at = begins + (SECOND as f64 / requests_per_second) as Nanos;
        begins - self.now + latency
    }

    pub fn ready(&mut self, start: usize) {
        self.starts[start].ready_at = Some(self.now);
    }

    /// What the registry sends to a VM.
    pub fn registry_to(&self, to: Vm) -> Vec<Resource> {
        vec![self.registry, to.stream, to.down]
    }

    /// What happens next, until that moment.
    pub fn next(&mut self, end: Nanos) -> Option<E> {
        loop {
            if let Some(event) = self.ended.pop_front() {
                return Some(event);
            }
            let (timer, flow) = (self.queue.next_at(), self.flows.next_end(self.now));
            let at = timer.into_iter().chain(flow).min().filter(|at| *at <= end);
            let Some(at) = at else {
                self.now = self.now.max(end);
                return None;
            };
            self.now = at;
            if timer == Some(at) {
                return self.queue.pop().map(|(_, event)| event);
            }
            self.ended.extend(self.flows.take_ended(at));
        }
    }
}
