//! One life of an agent: its cores, and what passes between them, the disk, the holder and others.
//!
//! This stands for the shells of `faasnet_actors::agent`: no decision of a core is made here.

mod cache;
mod messages;
mod starts;
mod transfers;

pub(super) use messages::{Effect, Event, FromPeer};

use crate::simulate::model::{Image, WorldLimits};
use bytes::Bytes;
use faasnet_actors::{
    agent::{
        Told,
        world::{InstanceRecord, TreeRecord},
    },
    agent_session::{self, SessionCore},
    block_store::{MemoryCore, RoomCore, RoomEffect, RoomEvent, Standing, Ticket, disk_bytes},
    block_transfer::{self, ChildId, FromImage, ImageEvent, TransferCore, TransferReport, Wish},
    id::{BlockId, StartId, TenantId, TreeId, VmId},
    instance::{self, InstanceCore, Wants},
    support::{micros, millis},
    wire::{
        PROTOCOL_VERSION,
        control::{
            ColdTree, EndReason, HeldTree, Hello, Place, PreheatOrder, RunningInstance, StartOrder,
            StartReport, Step, ToAgent, ToManager, Upstream, Warmth,
        },
        holder::{Exit, PlainRange},
        peer::{FromParent, NotServed, Refusal, ToParent, Urgency},
    },
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Of a VM: more than its memory ever lets in, for memory is what is simulated.
const CPU_MILLIS: u32 = 1_000_000;

pub(super) struct Tree {
    pub record: TreeRecord,
    is_left: bool,
    pub is_mounted: bool,
    pub transfer: Option<Transfer>,
    /// What the last start that came with such was told to fetch ahead.
    pub hot: Vec<BlockId>,
    /// Starts whose reads are recorded, until the first of them is ready.
    recording: BTreeSet<StartId>,
    /// Whether the next mount records what is read.
    records: bool,
    /// What it is to hold whatever runs, and the order that said so last.
    preheat: Option<(u64, Warmth)>,
}

pub(super) struct Transfer {
    pub core: TransferCore,
    pub links: BTreeMap<Upstream, u64>,
    /// Blocks that are read from the disk for each child.
    children: BTreeSet<ChildId>,
    steps: BTreeSet<Step>,
}

pub(super) struct Ordered {
    pub order: StartOrder,
    pub core: InstanceCore,
    pub is_ready: bool,
    before: TransferReport,
}

/// What the disk of a VM holds of an image.
#[derive(Debug, Clone, Default)]
pub(super) struct Cached {
    pub has_index: bool,
    pub blocks: BTreeSet<BlockId>,
}

pub(super) struct Agent {
    pub vm: VmId,
    address: SocketAddr,
    memory_bytes: u64,
    limits: Arc<WorldLimits>,
    images: Arc<Vec<Image>>,
    session: SessionCore,
    link: u64,
    pub trees: BTreeMap<TreeId, Tree>,
    /// Images of trees that this VM has left, with a number that says which was left later.
    cold: BTreeMap<TreeId, (u64, ColdTree)>,
    said_cold: Vec<ColdTree>,
    left: u64,
    opening: BTreeSet<TreeId>,
    removing: BTreeSet<TreeId>,
    pub ordered: BTreeMap<StartId, Ordered>,
    store: MemoryCore,
    room: RoomCore,
    tickets: u64,
    /// Blocks that wait for room.
    writes: BTreeMap<Ticket, (TreeId, BlockId, Bytes)>,
    told: Told,
    /// Children of trees that are not here yet.
    early: Vec<(u64, TreeId, VmId)>,
    conns_made: u64,
}

impl Agent {
    /// `conns` is the number behind which the connections of this life begin.
    pub fn new(
        vm: VmId,
        address: SocketAddr,
        memory_bytes: u64,
        limits: Arc<WorldLimits>,
        images: Arc<Vec<Image>>,
        conns: u64,
        now: Instant,
    ) -> Self {
        let session = SessionCore::new(now, limits.reconnect_min, limits.reconnect_max);
        let told = Told::new(2 * limits.instances_max);
        let store = MemoryCore::new(limits.memory_cache_bytes);
        let room = RoomCore::new(limits.disk);
        Self {
            vm,
            address,
            memory_bytes,
            limits,
            images,
            session,
            link: conns,
            trees: BTreeMap::new(),
            cold: BTreeMap::new(),
            said_cold: Vec::new(),
            left: 0,
            opening: BTreeSet::new(),
            removing: BTreeSet::new(),
            ordered: BTreeMap::new(),
            store,
            room,
            tickets: 0,
            writes: BTreeMap::new(),
            told,
            early: Vec::new(),
            conns_made: conns,
        }
    }

    /// Takes over what a former life of the agent left on disk; its containers are gone with the VM.
    pub fn restore(
        &mut self,
        trees: &BTreeMap<TreeId, TreeRecord>,
        cold: &[(TreeId, Cached)],
        instances: &BTreeMap<StartId, InstanceRecord>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.trees = trees.iter().map(|(tree, record)| (tree.clone(), Tree::new(record.clone()))).collect();
        self.restore_cold(cold, now, effects);
        if let Some((_, first)) = instances.first_key_value() {
            self.purge_foreign(&first.order.place.tree.tenant, effects);
        }
        for tree in trees.keys() {
            self.open(tree, effects);
        }
        for (start, InstanceRecord { order, is_ready, .. }) in instances {
            let deadline = Duration::from_millis(order.ready_deadline_ms);
            // What was not ready is begun anew.
            let make = if *is_ready { InstanceCore::ready } else { InstanceCore::new };
            let core = make(now, deadline, self.limits.probe_interval, Wants::of(order));
            let before = TransferReport::default();
            let known = self.trees.get_mut(&order.place.tree).filter(|_| !is_ready);
            if let Some(known) = known {
                known.starts(order);
            }
            let ordered = Ordered { order: order.clone(), core, is_ready: *is_ready, before };
            self.ordered.insert(start.clone(), ordered);
            self.instance(start, instance::Event::NotHeld { is_mounted: false }, now, effects);
        }
    }

    /// The present connection to the manager.
    pub fn link(&self) -> u64 {
        self.link
    }

    pub fn apply(&mut self, event: Event, now: Instant, effects: &mut Vec<Effect>) {
        match event {
            Event::Manager { link, message } if link == self.link => self.manager(message, now, effects),
            Event::ManagerClosed { link } if link == self.link => {
                self.session(agent_session::Event::Closed, now, effects);
            }
            Event::Manager { .. } | Event::ManagerClosed { .. } => {}
            Event::CacheOpened { tree } => self.cache_opened(&tree, effects),
            Event::CacheRemoved { tree } => self.removed(tree, now, effects),
            Event::Upstream { tree, upstream, conn, said } => {
                self.upstream(&tree, upstream, conn, said, now, effects);
            }
            Event::ChildCame { conn, tree, vm } => self.child_came(conn, tree, vm, now, effects),
            Event::ChildWaited { conn } => {
                if let Some(place) = self.early.iter().position(|(early, _, _)| *early == conn) {
                    self.early.remove(place);
                    effects.push(Effect::Refuse { conn, reason: Refusal::NotHeld });
                }
            }
            Event::ChildSent { conn, tree, urgency } => {
                let event = block_transfer::Event::ChildSent { child: ChildId(conn), urgency };
                self.transfer(&tree, event, now, effects);
            }
            Event::Child { conn, tree, said } => self.child(conn, &tree, said, now, effects),
            Event::ChildGone { conn, tree } => {
                self.early.retain(|(early, _, _)| *early != conn);
                self.child_lost(&tree, ChildId(conn), now, effects);
            }
            Event::Kept { tree, block } => {
                self.transfer(&tree, block_transfer::Event::Kept { block }, now, effects);
            }
            Event::Checked { tree, block } => {
                let event = block_transfer::Event::Checked { block, is_whole: true };
                self.transfer(&tree, event, now, effects);
            }
            Event::Loaded { tree, child, block, urgency } => {
                self.loaded(&tree, child, block, urgency, effects);
            }
            Event::Mounted { tree } => {
                if let Some(known) = self.trees.get_mut(&tree) {
                    known.is_mounted = true;
                    self.tell_followers(&tree, &ImageEvent::Mounted, now, effects);
                }
            }
            Event::Recorded { tree, ranges } => self.recorded(&tree, ranges, now, effects),
            Event::Missed { tree, blocks } => {
                self.transfer(&tree, block_transfer::Event::Demanded { blocks }, now, effects);
            }
            Event::Running { start } => self.instance(&start, instance::Event::Running, now, effects),
            Event::Exited { start, exit } => {
                self.instance(&start, instance::Event::Exited(exit), now, effects);
            }
            Event::Probed { start, is_ready } => {
                self.instance(&start, instance::Event::Probed(is_ready), now, effects);
                let waits = |ordered: &Ordered| *ordered.core.phase() == instance::Phase::Probing;
                if !is_ready && self.ordered.get(&start).is_some_and(waits) {
                    effects.push(Effect::ProbeAgain { start });
                }
            }
            Event::InstanceTick { start } => self.instance(&start, instance::Event::Tick, now, effects),
            Event::Tick => self.tick(now, effects),
        }
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.session(agent_session::Event::Tick, now, effects);
        self.room(RoomEvent::Tick, now, effects);
        let moving = self.trees.iter().filter(|(_, tree)| tree.transfer.is_some());
        for tree in moving.map(|(tree, _)| tree.clone()).collect::<Vec<_>>() {
            self.transfer(&tree, block_transfer::Event::Tick, now, effects);
        }
        let starting = self.ordered.iter().filter(|(_, ordered)| !ordered.is_ready);
        for start in starting.map(|(start, _)| start.clone()).collect::<Vec<_>>() {
            self.instance(&start, instance::Event::Tick, now, effects);
        }
    }

    fn session(&mut self, event: agent_session::Event, now: Instant, effects: &mut Vec<Effect>) {
        let mut done = Vec::new();
        self.session.apply(event, now, &mut done);
        for effect in done {
            let message = match effect {
                agent_session::Effect::Connect => {
                    self.link += 1;
                    self.said_cold.clear();
                    effects.push(Effect::DialManager { link: self.link, hello: self.hello(now) });
                    continue;
                }
                agent_session::Effect::Send(message) => *message,
                agent_session::Effect::Heartbeat => {
                    let (link, held) = (self.link, self.held(now));
                    effects.push(Effect::Say { link, message: ToManager::Heartbeat { held } });
                    self.say_cold(effects);
                    continue;
                }
                agent_session::Effect::Leave => unreachable!("agents are not replaced here"),
            };
            effects.push(Effect::Say { link: self.link, message });
        }
    }

    /// The manager did not answer the hello in time.
    pub fn session_timed_out(&mut self, link: u64, now: Instant, effects: &mut Vec<Effect>) {
        if link == self.link && !self.session.is_open() {
            self.link += 1; // what the old connection still says is not ours any more
            effects.push(Effect::CloseManager { link });
            self.session(agent_session::Event::Closed, now, effects);
        }
    }

    fn say(&mut self, message: ToManager, now: Instant, effects: &mut Vec<Effect>) {
        self.told.note(&message);
        self.session(agent_session::Event::Say(Box::new(message)), now, effects);
    }

    fn hello(&self, now: Instant) -> Hello {
        let running = |(start, ordered): (&StartId, &Ordered)| RunningInstance {
            start: start.clone(),
            tenant: ordered.order.place.tree.tenant.clone(),
            function: ordered.order.function.clone(),
            image: ordered.order.image.id,
            code: None,
            memory_bytes: ordered.order.memory_bytes,
            cpu_millis: ordered.order.cpu_millis,
            ready: ordered.is_ready,
        };
        Hello {
            version: PROTOCOL_VERSION,
            memory_bytes: self.memory_bytes,
            cpu_millis: CPU_MILLIS,
            address: self.address,
            held: self.held(now),
            proofs: Vec::new(),
            instances: self.ordered.iter().map(running).collect(),
        }
    }

    fn held(&self, now: Instant) -> Vec<HeldTree> {
        let held = |(tree, known): (&TreeId, &Tree)| {
            let place = &known.record.place;
            self.counters(tree, now).held(tree.clone(), place.epoch, place.seat.place, known.preheat)
        };
        self.trees.iter().map(held).collect()
    }

    fn manager(&mut self, message: ToAgent, now: Instant, effects: &mut Vec<Effect>) {
        match message {
            ToAgent::Welcome { heartbeat_ms, .. } => {
                let heartbeat = Duration::from_millis(heartbeat_ms);
                self.session(agent_session::Event::Welcomed { heartbeat }, now, effects);
                for message in self.told.iter().cloned().collect::<Vec<_>>() {
                    self.session(agent_session::Event::Say(Box::new(message)), now, effects);
                }
            }
            ToAgent::Start(order) => self.start(*order, now, effects),
            ToAgent::Preheat(order) => self.preheat(*order, now, effects),
            ToAgent::Stop { start } if self.ordered.contains_key(&start) => {
                self.instance(&start, instance::Event::Stop, now, effects);
            }
            ToAgent::Stop { start } => {
                let (reason, report) = (EndReason::Stopped, StartReport::default());
                self.say(ToManager::Ended { start, reason, report }, now, effects);
            }
            ToAgent::Place(place) => {
                if let Some(known) = self.trees.get(&place.tree) {
                    let record = TreeRecord { image: known.record.image.clone(), place: place.clone() };
                    self.place(&place.tree, record, now, effects);
                }
            }
            ToAgent::Leave { tree, epoch } => {
                let is_newer = |known: &Tree| epoch >= known.record.place.epoch;
                if self.trees.get(&tree).is_some_and(is_newer) {
                    self.leave(&tree, now, effects);
                }
            }
            ToAgent::GiveUp { trees } => self.room(RoomEvent::Advised { trees }, now, effects),
            ToAgent::Origin { tree, answer } => {
                self.transfer(&tree, block_transfer::Event::OriginAnswered { answer }, now, effects);
            }
            ToAgent::Refused { .. }
            | ToAgent::Renewed { .. }
            | ToAgent::Observe { .. }
            | ToAgent::Yielded => {}
        }
    }
}

impl Tree {
    fn new(record: TreeRecord) -> Self {
        Self {
            record,
            is_left: false,
            is_mounted: false,
            transfer: None,
            hot: Vec::new(),
            recording: BTreeSet::new(),
            records: false,
            preheat: None,
        }
    }

    /// Takes what an order says of the image's use.
    fn starts(&mut self, order: &StartOrder) {
        if !order.hot.is_empty() {
            self.hot.clone_from(&order.hot);
        }
        if order.record {
            self.recording.insert(order.start.clone());
        }
    }
}

pub(super) fn image<'a>(images: &'a [Image], tree: &TreeId) -> Option<&'a Image> {
    images.iter().find(|image| image.description.id == tree.image)
}
