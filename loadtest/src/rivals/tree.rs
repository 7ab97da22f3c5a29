//! Containers that read blocks as they need them: from the registry, or from a tree of VMs below one root.
//!
//! - **Lazy reads** ([`Source::Registry`]): each block with a request of its own.
//! - **DADI+P2P** ([`Source::Tree`]): a machine of the VMs' size is the root. It manages the tree, which takes it a fixed
//!   time for each VM that joins, one after the other; it alone reads from the registry, each block once; a VM gets
//!   a block from its parent, which gets it from its own if it has to. The tree is filled level by level.
//!
//! Blocks are read in one order, each when the one before was read. What one start on a VM has read the others find there.

use super::fleet::{Fleet, OnFleet, Setup, Vm};
use crate::simulate::Nanos;

#[derive(Debug, Clone, Copy)]
pub enum Source {
    Registry,
    Tree {
        fan_out: usize,
        /// Time of the root for each VM that joins.
        join: Nanos,
    },
}

pub(super) enum Event {
    /// The root has told the VM its place.
    Joined {
        place: usize,
    },
    Prepared {
        place: usize,
    },
    Ran {
        start: usize,
    },
    /// Someone asks for the next block of a place: its own containers, or a child.
    Asked {
        place: usize,
        by: usize,
    },
    Sends {
        place: usize,
    },
    Arrived {
        place: usize,
    },
    Sent {
        to: usize,
    },
    Read {
        start: usize,
    },
}

/// A VM in the tree of an image, or the root.
struct Place {
    /// Its VM by its number, unless it is the root.
    number: usize,
    vm: Vm,
    /// None for the root, and for VMs that read from the registry.
    parent: Option<usize>,
    has_asked: bool,
    is_prepared: bool,
    /// Blocks that are there: those before this number.
    has: u32,
    is_fetching: bool,
    /// Children that wait for their next block.
    children: Vec<usize>,
    /// Starts that wait for what comes before the container, and for the next block.
    waiting: Vec<usize>,
    reading: Vec<usize>,
}

impl Place {
    fn new(number: usize, vm: Vm) -> Self {
        Self {
            number,
            vm,
            parent: None,
            has_asked: false,
            is_prepared: false,
            has: 0,
            is_fetching: false,
            children: Vec::new(),
            waiting: Vec::new(),
            reading: Vec::new(),
        }
    }
}

pub struct Tree {
    fleet: Fleet<Event>,
    source: Source,
    places: Vec<Place>,
    /// Where each start is, and the blocks that it has read.
    at: Vec<usize>,
    read: Vec<u32>,
    /// The places of each image in the order of joining, the root before them.
    joined: Vec<Vec<usize>>,
    root_free_at: Nanos,
}

impl Tree {
    pub fn new(setup: Setup, source: Source) -> Self {
        Self::of_images(setup, source, 1)
    }

    /// With so many images, all like the one of the setup.
    pub fn of_images(setup: Setup, source: Source, images: usize) -> Self {
        let mut fleet = Fleet::new(setup);
        let vms = fleet.vms.clone();
        let of_image = || vms.iter().enumerate().map(|(number, vm)| Place::new(number, *vm));
        let mut places: Vec<Place> = (0..images).flat_map(|_| of_image()).collect();
        let mut joined = Vec::new();
        if let Source::Tree { .. } = source {
            let root = fleet.extra_vm();
            for _ in 0..images {
                joined.push(vec![places.len()]);
                places.push(Place::new(vms.len(), root));
            }
        }
        Self { fleet, source, places, at: Vec::new(), read: Vec::new(), joined, root_free_at: 0 }
    }

    /// Asks for a start of an image on that VM now; returns its number.
    pub fn start_of(&mut self, image: usize, vm: usize) -> usize {
        let start = self.fleet.asked(vm);
        let place = image * self.fleet.vms.len() + vm;
        self.at.push(place);
        self.read.push(0);
        if self.places[place].is_prepared {
            self.run(place, start);
            return start;
        }
        self.places[place].waiting.push(start);
        if std::mem::replace(&mut self.places[place].has_asked, true) {
            return start;
        }
        match self.source {
            Source::Registry => {
                // The manifest, which is small.
                let delay = self.fleet.registry_delay();
                self.fleet.after(delay, Event::Joined { place });
            }
            Source::Tree { fan_out, join } => {
                let joined = &mut self.joined[image];
                self.places[place].parent = Some(joined[(joined.len() - 1) / fan_out.max(1)]);
                joined.push(place);
                let latency = self.fleet.setup.latency;
                self.root_free_at = self.root_free_at.max(self.fleet.now + latency) + join;
                let delay = self.root_free_at + latency - self.fleet.now;
                self.fleet.after(delay, Event::Joined { place });
            }
        }
        start
    }

    fn prepare(&mut self, place: usize) {
        let length = self.fleet.spread(&self.fleet.setup.local.prepare.clone());
        self.fleet.work(self.places[place].number, length, Event::Prepared { place });
    }

    fn run(&mut self, place: usize, start: usize) {
        self.fleet.run(self.places[place].number, start, Event::Ran { start });
    }

    /// A container reads its next block, or is ready.
    fn go_on(&mut self, start: usize) {
        let place = self.at[start];
        let block = self.read[start];
        if block == self.fleet.setup.image.read_blocks {
            self.fleet.ready(start);
        } else if block < self.places[place].has {
            let length = self.fleet.setup.local.read;
            self.fleet.work(self.places[place].number, length, Event::Read { start });
        } else {
            self.places[place].reading.push(start);
            self.fetch(place);
        }
    }

    /// Asks for the next block of a place, unless it is on its way.
    fn fetch(&mut self, place: usize) {
        if std::mem::replace(&mut self.places[place].is_fetching, true) {
            return;
        }
        match self.places[place].parent {
            Some(parent) => {
                let latency = self.fleet.setup.latency;
                self.fleet.after(latency, Event::Asked { place: parent, by: place });
            }
            None => {
                let delay = self.fleet.registry_delay();
                self.fleet.after(delay, Event::Sends { place });
            }
        }
    }

    fn asked(&mut self, place: usize, by: usize) {
        if self.places[by].has < self.places[place].has {
            self.send(place, by);
        } else {
            self.places[place].children.push(by);
            self.fetch(place);
        }
    }

    fn send(&mut self, from: usize, to: usize) {
        let uses = vec![self.places[from].vm.up, self.places[to].vm.down];
        let bytes = self.fleet.setup.image.block_bytes;
        self.fleet.transfer(uses, bytes, Event::Sent { to });
    }

    fn arrived(&mut self, place: usize) {
        let known = &mut self.places[place];
        known.has += 1;
        known.is_fetching = false;
        for child in std::mem::take(&mut self.places[place].children) {
            self.asked(place, child);
        }
        for start in std::mem::take(&mut self.places[place].reading) {
            self.go_on(start);
        }
    }
}

impl OnFleet for Tree {
    type Event = Event;

    fn fleet(&self) -> &Fleet<Event> {
        &self.fleet
    }

    fn fleet_mut(&mut self) -> &mut Fleet<Event> {
        &mut self.fleet
    }

    fn begin(&mut self, vm: usize) -> usize {
        self.start_of(0, vm)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Joined { place } => self.prepare(place),
            Event::Prepared { place } => {
                self.places[place].is_prepared = true;
                for start in std::mem::take(&mut self.places[place].waiting) {
                    self.run(place, start);
                }
            }
            Event::Ran { start } => self.go_on(start),
            Event::Asked { place, by } => self.asked(place, by),
            Event::Sends { place } => {
                let uses = self.fleet.registry_to(self.places[place].vm);
                let bytes = self.fleet.setup.image.block_bytes;
                self.fleet.transfer(uses, bytes, Event::Arrived { place });
            }
            Event::Sent { to } => {
                let latency = self.fleet.setup.latency;
                self.fleet.after(latency, Event::Arrived { place: to });
            }
            Event::Arrived { place } => self.arrived(place),
            Event::Read { start } => {
                self.read[start] += 1;
                self.go_on(start);
            }
        }
    }
}
