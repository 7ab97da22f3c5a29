//! Kraken: whole layers from each other in a random regular graph, and from origins that have them all.
//!
//! Each layer is cut into pieces. A VM asks each of its neighbours for one piece at a time, of those that it lacks and the
//! neighbour has that which the fewest of its neighbours have, and tells them of each that it got. What a tracker,
//! announcements and the writing of pieces cost is left out, in favour of Kraken. Layers are asked for, unpacked
//! and run as in [`super::Pull`].

use super::fleet::{Fleet, OnFleet, Setup, Vm};
use rand::{RngExt, seq::SliceRandom};

/// Kraken's default for pieces of large blobs.
pub const PIECE_BYTES: f64 = (4 << 20) as f64;
/// Connections of a peer: Kraken's default.
const DEGREE: usize = 10;
/// Docker's default for concurrent downloads of one pull.
const LAYERS_MAX: usize = 3;

pub(super) enum Event {
    /// A neighbour has told of a piece, or of itself.
    Told {
        peer: usize,
        neighbour: usize,
        piece: Option<usize>,
    },
    Got {
        peer: usize,
        neighbour: usize,
        piece: usize,
    },
    Unpacked {
        peer: usize,
    },
    Ran {
        start: usize,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Absent,
    Coming,
    Here,
}

struct Peer {
    vm: Vm,
    neighbours: Vec<Neighbour>,
    pieces: Vec<Piece>,
    /// How many neighbours are known to have each piece.
    known: Vec<u32>,
    /// Layers that are wanted: those before this number.
    asked: usize,
    unpacked: usize,
    is_unpacking: bool,
    waiting: Vec<usize>,
}

struct Neighbour {
    peer: usize,
    /// This peer's place among the neighbour's neighbours.
    back: usize,
    has: Vec<bool>,
    is_sending: bool,
}

pub struct Kraken {
    fleet: Fleet<Event>,
    peers: Vec<Peer>,
    origins: Vec<usize>,
    pieces_per_layer: usize,
    layers: usize,
}

impl Kraken {
    /// `origins` machines of the VMs' size hold the image from the beginning.
    pub fn new(setup: Setup, origins: usize) -> Self {
        let layers = setup.image.layers.max(1) as usize;
        let pieces_per_layer = (setup.image.bytes / layers as f64 / PIECE_BYTES).ceil().max(1.0) as usize;
        let pieces = layers * pieces_per_layer;
        let vms = setup.vms;
        let mut fleet = Fleet::new(setup);
        let peer = |vm: Vm, piece| Peer {
            vm,
            neighbours: Vec::new(),
            pieces: vec![piece; pieces],
            known: vec![0; pieces],
            asked: 0,
            unpacked: 0,
            is_unpacking: false,
            waiting: Vec::new(),
        };
        let mut peers: Vec<Peer> = fleet.vms.iter().map(|vm| peer(*vm, Piece::Absent)).collect();
        for _ in 0..origins {
            peers.push(peer(fleet.extra_vm(), Piece::Here));
        }
        let origins = (vms..peers.len()).collect();
        let mut kraken = Self { fleet, peers, origins, pieces_per_layer, layers };
        kraken.connect();
        kraken
    }

    /// Some random rings through all peers: nearly regular, and in one piece.
    fn connect(&mut self) {
        let mut order: Vec<usize> = (0..self.peers.len()).collect();
        for _ in 0..DEGREE / 2 {
            order.shuffle(&mut self.fleet.rng);
            for place in 0..order.len() {
                self.connect_pair(order[place], order[(place + 1) % order.len()]);
            }
        }
    }

    fn connect_pair(&mut self, a: usize, b: usize) {
        if a == b || self.peers[a].neighbours.iter().any(|neighbour| neighbour.peer == b) {
            return;
        }
        let (at_a, at_b) = (self.peers[a].neighbours.len(), self.peers[b].neighbours.len());
        let pieces = self.peers[a].pieces.len();
        let neighbour = |peer, back| Neighbour { peer, back, has: vec![false; pieces], is_sending: false };
        self.peers[a].neighbours.push(neighbour(b, at_b));
        self.peers[b].neighbours.push(neighbour(a, at_a));
    }

    /// Asks a neighbour for the rarest piece that it has, if it sends none.
    fn ask(&mut self, peer: usize, neighbour: usize) {
        let known = &self.peers[peer];
        if known.neighbours[neighbour].is_sending {
            return;
        }
        let (mut rarest, mut least, mut ties) = (None, u32::MAX, 0);
        for piece in 0..(known.asked * self.pieces_per_layer).min(known.pieces.len()) {
            let is_wanted = known.pieces[piece] == Piece::Absent && known.neighbours[neighbour].has[piece];
            if !is_wanted || known.known[piece] > least {
                continue;
            }
            ties = if known.known[piece] < least { 1 } else { ties + 1 };
            least = known.known[piece];
            if self.fleet.rng.random_range(0..ties) == 0 {
                rarest = Some(piece);
            }
        }
        let Some(piece) = rarest else { return };
        let from = known.neighbours[neighbour].peer;
        let uses = vec![self.peers[from].vm.up, known.vm.down];
        self.peers[peer].pieces[piece] = Piece::Coming;
        self.peers[peer].neighbours[neighbour].is_sending = true;
        let bytes = self.fleet.setup.image.bytes / (self.layers * self.pieces_per_layer) as f64;
        self.fleet.transfer(uses, bytes, Event::Got { peer, neighbour, piece });
    }

    fn got(&mut self, peer: usize, neighbour: usize, piece: usize) {
        let known = &mut self.peers[peer];
        known.pieces[piece] = Piece::Here;
        known.neighbours[neighbour].is_sending = false;
        let latency = self.fleet.setup.latency;
        for other in &known.neighbours {
            let told = Event::Told { peer: other.peer, neighbour: other.back, piece: Some(piece) };
            self.fleet.after(latency, told);
        }
        if self.has_layer(peer, piece / self.pieces_per_layer) {
            self.want_next(peer);
            self.unpack(peer);
        } else {
            self.ask(peer, neighbour);
        }
    }

    fn has_layer(&self, peer: usize, layer: usize) -> bool {
        let pieces = layer * self.pieces_per_layer..(layer + 1) * self.pieces_per_layer;
        self.peers[peer].pieces[pieces].iter().all(|piece| *piece == Piece::Here)
    }

    fn want_next(&mut self, peer: usize) {
        self.peers[peer].asked = (self.peers[peer].asked + 1).min(self.layers);
        (0..self.peers[peer].neighbours.len()).for_each(|neighbour| self.ask(peer, neighbour));
    }

    fn unpack(&mut self, peer: usize) {
        let layer = self.peers[peer].unpacked;
        if layer == self.layers {
            for start in std::mem::take(&mut self.peers[peer].waiting) {
                self.fleet.run(peer, start, Event::Ran { start });
            }
        } else if !self.peers[peer].is_unpacking && self.has_layer(peer, layer) {
            self.peers[peer].is_unpacking = true;
            let bytes = self.fleet.setup.image.bytes / self.layers as f64;
            self.fleet.transfer(vec![self.peers[peer].vm.unpack], bytes, Event::Unpacked { peer });
        }
    }
}

impl OnFleet for Kraken {
    type Event = Event;

    fn fleet(&self) -> &Fleet<Event> {
        &self.fleet
    }

    fn fleet_mut(&mut self) -> &mut Fleet<Event> {
        &mut self.fleet
    }

    fn begin(&mut self, vm: usize) -> usize {
        let start = self.fleet.asked(vm);
        if self.peers[vm].unpacked == self.layers {
            self.fleet.run(vm, start, Event::Ran { start });
            return start;
        }
        self.peers[vm].waiting.push(start);
        if self.peers[vm].asked == 0 {
            self.peers[vm].asked = LAYERS_MAX.min(self.layers);
            // Origins say what they have when a peer connects.
            let latency = 2 * self.fleet.setup.latency;
            for neighbour in 0..self.peers[vm].neighbours.len() {
                if self.origins.contains(&self.peers[vm].neighbours[neighbour].peer) {
                    self.fleet.after(latency, Event::Told { peer: vm, neighbour, piece: None });
                } else {
                    self.ask(vm, neighbour);
                }
            }
        }
        start
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Told { peer, neighbour, piece } => {
                let known = &mut self.peers[peer];
                let told = piece.map_or(0..known.pieces.len(), |piece| piece..piece + 1);
                for piece in told {
                    if !std::mem::replace(&mut known.neighbours[neighbour].has[piece], true) {
                        known.known[piece] += 1;
                    }
                }
                self.ask(peer, neighbour);
            }
            Event::Got { peer, neighbour, piece } => self.got(peer, neighbour, piece),
            Event::Unpacked { peer } => {
                self.peers[peer].unpacked += 1;
                self.peers[peer].is_unpacking = false;
                self.unpack(peer);
            }
            Event::Ran { start } => self.fleet.ready(start),
        }
    }

    /// What left the origins: nothing else reads from the registry.
    fn registry_bytes(&self) -> f64 {
        self.origins.iter().map(|origin| self.fleet.flows.used(self.peers[*origin].vm.up)).sum()
    }
}
