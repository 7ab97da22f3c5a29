//! The whole image from the registry, as `docker pull` does it, then the container.
//!
//! Three layers at a time are downloaded, and unpacked one after the other in their order. Starts on one VM share a pull.

use super::fleet::{Fleet, OnFleet, Setup};

/// Docker's default for concurrent downloads of one pull.
const DOWNLOADS_MAX: u32 = 3;

pub(super) enum Event {
    /// The registry begins to send a layer.
    Sends {
        vm: usize,
        layer: u32,
    },
    Downloaded {
        vm: usize,
        layer: u32,
    },
    Unpacked {
        vm: usize,
    },
    Ran {
        start: usize,
    },
}

#[derive(Default)]
struct Puller {
    is_begun: bool,
    asked: u32,
    downloaded: Vec<bool>,
    unpacked: u32,
    is_unpacking: bool,
    waiting: Vec<usize>,
}

pub struct Pull {
    fleet: Fleet<Event>,
    pullers: Vec<Puller>,
}

impl Pull {
    pub fn new(setup: Setup) -> Self {
        let pullers = (0..setup.vms).map(|_| Puller::default()).collect();
        Self { fleet: Fleet::new(setup), pullers }
    }

    fn layers(&self) -> u32 {
        self.fleet.setup.image.layers.max(1)
    }

    fn layer_bytes(&self) -> f64 {
        self.fleet.setup.image.bytes / f64::from(self.layers())
    }

    fn ask(&mut self, vm: usize) {
        let layer = self.pullers[vm].asked;
        if layer < self.layers() {
            self.pullers[vm].asked += 1;
            let delay = self.fleet.registry_delay();
            self.fleet.after(delay, Event::Sends { vm, layer });
        }
    }

    fn unpack(&mut self, vm: usize) {
        let layers = self.layers();
        let puller = &mut self.pullers[vm];
        if puller.unpacked == layers {
            for start in std::mem::take(&mut puller.waiting) {
                self.fleet.run(vm, start, Event::Ran { start });
            }
        } else if !puller.is_unpacking && puller.downloaded[puller.unpacked as usize] {
            puller.is_unpacking = true;
            let (uses, bytes) = (vec![self.fleet.vms[vm].unpack], self.layer_bytes());
            self.fleet.transfer(uses, bytes, Event::Unpacked { vm });
        }
    }
}

impl OnFleet for Pull {
    type Event = Event;

    fn fleet(&self) -> &Fleet<Event> {
        &self.fleet
    }

    fn fleet_mut(&mut self) -> &mut Fleet<Event> {
        &mut self.fleet
    }

    fn begin(&mut self, vm: usize) -> usize {
        let start = self.fleet.asked(vm);
        let layers = self.layers();
        let puller = &mut self.pullers[vm];
        if puller.unpacked == layers {
            self.fleet.run(vm, start, Event::Ran { start });
            return start;
        }
        puller.waiting.push(start);
        if !std::mem::replace(&mut puller.is_begun, true) {
            puller.downloaded = vec![false; layers as usize];
            (0..DOWNLOADS_MAX).for_each(|_| self.ask(vm));
        }
        start
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Sends { vm, layer } => {
                let uses = self.fleet.registry_to(self.fleet.vms[vm]);
                let bytes = self.layer_bytes();
                self.fleet.transfer(uses, bytes, Event::Downloaded { vm, layer });
            }
            Event::Downloaded { vm, layer } => {
                self.pullers[vm].downloaded[layer as usize] = true;
                self.ask(vm);
                self.unpack(vm);
            }
            Event::Unpacked { vm } => {
                self.pullers[vm].unpacked += 1;
                self.pullers[vm].is_unpacking = false;
                self.unpack(vm);
            }
            Event::Ran { start } => self.fleet.ready(start),
        }
    }
}
