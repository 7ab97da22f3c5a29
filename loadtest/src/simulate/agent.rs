//! One life of an agent: its cores, and what passes between them, the disk, the holder and others.
//!
//! This stands for the shells of `faasnet_actors::agent`: no decision of a core is made here.

use super::model::{Image, WorldLimits};
use bytes::Bytes;
use faasnet_actors::{
    agent::{
        Told,
        world::{InstanceRecord, TreeRecord},
    },
    agent_session::{self, SessionCore},
    block_store::MemoryCore,
    block_transfer::{self, ChildId, FromImage, ImageEvent, TransferCore, TransferReport, Wish},
    id::{BlockId, StartId, TreeId, VmId},
    instance::{self, InstanceCore, Wants},
    support::{micros, millis},
    wire::{
        PROTOCOL_VERSION,
        control::{
            EndReason, HeldTree, Hello, Place, RunningInstance, StartOrder, StartReport, Step, ToAgent,
            ToManager, Upstream,
        },
        holder::Exit,
        peer::{FromParent, NotServed, Refusal, ToParent, Urgency},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Of a VM: more than its memory ever lets in, for memory is what is simulated.
const CPU_MILLIS: u32 = 1_000_000;

/// What a connection to an upstream says, its blocks checked.
#[derive(Debug)]
pub(super) enum FromPeer {
    Opened,
    Index,
    Block(BlockId, Bytes),
    Corrupt(BlockId),
    NotServed(BlockId, NotServed),
    Waits,
    Closed(String),
}

#[derive(Debug)]
pub(super) enum Event {
    /// What the manager says on that session.
    Manager {
        link: u64,
        message: ToAgent,
    },
    ManagerClosed {
        link: u64,
    },
    /// The place of an image in the cache is open.
    CacheOpened {
        tree: TreeId,
    },
    CacheRemoved {
        tree: TreeId,
    },
    Upstream {
        tree: TreeId,
        upstream: Upstream,
        conn: u64,
        said: FromPeer,
    },
    /// A child with a valid capability.
    ChildCame {
        conn: u64,
        tree: TreeId,
        vm: VmId,
    },
    /// A child that came early has waited long enough.
    ChildWaited {
        conn: u64,
    },
    /// The connection has sent a block.
    ChildSent {
        conn: u64,
        tree: TreeId,
        urgency: Urgency,
    },
    Child {
        conn: u64,
        tree: TreeId,
        said: ToParent,
    },
    ChildGone {
        conn: u64,
        tree: TreeId,
    },
    Kept {
        tree: TreeId,
        block: BlockId,
    },
    /// A block that a former agent kept was verified.
    Checked {
        tree: TreeId,
        block: BlockId,
    },
    Loaded {
        tree: TreeId,
        child: ChildId,
        block: BlockId,
        urgency: Urgency,
    },
    Mounted {
        tree: TreeId,
    },
    /// Reads of a container wait.
    Missed {
        tree: TreeId,
        blocks: Vec<BlockId>,
    },
    Running {
        start: StartId,
    },
    Exited {
        start: StartId,
        exit: Exit,
    },
    Probed {
        start: StartId,
        is_ready: bool,
    },
    InstanceTick {
        start: StartId,
    },
    Tick,
}

#[derive(Debug)]
pub(super) enum Effect {
    DialManager {
        link: u64,
        hello: Hello,
    },
    Say {
        link: u64,
        message: ToManager,
    },
    CloseManager {
        link: u64,
    },
    Dial {
        conn: u64,
        tree: TreeId,
        upstream: Upstream,
    },
    HangUp {
        conn: u64,
    },
    Ask {
        conn: u64,
        message: ToParent,
    },
    /// To a child.
    Tell {
        conn: u64,
        urgency: Urgency,
        message: FromParent,
        body: Bytes,
    },
    /// A child is let in, or not.
    Admit {
        conn: u64,
    },
    Refuse {
        conn: u64,
        reason: Refusal,
    },
    /// A child's connection is ended.
    DropChild {
        conn: u64,
    },
    WaitForTree {
        conn: u64,
    },
    OpenCache {
        tree: TreeId,
    },
    RemoveCache {
        tree: TreeId,
    },
    Keep {
        tree: TreeId,
        block: BlockId,
        stored: Bytes,
    },
    Check {
        tree: TreeId,
        block: BlockId,
    },
    Load {
        tree: TreeId,
        child: ChildId,
        block: BlockId,
        urgency: Urgency,
    },
    Mount {
        tree: TreeId,
    },
    Unmount {
        tree: TreeId,
    },
    Present {
        tree: TreeId,
        blocks: Vec<BlockId>,
    },
    Unavailable {
        tree: TreeId,
        blocks: Vec<BlockId>,
    },
    Run {
        start: StartId,
    },
    Stop {
        start: StartId,
    },
    Probe {
        start: StartId,
    },
    ProbeAgain {
        start: StartId,
    },
    /// What is kept for the next life of the agent.
    SavePlace {
        tree: TreeId,
        record: Box<TreeRecord>,
    },
    SaveInstance {
        start: StartId,
        record: Option<Box<InstanceRecord>>,
    },
}

pub(super) struct Tree {
    pub record: TreeRecord,
    is_left: bool,
    is_opening: bool,
    pub is_mounted: bool,
    pub transfer: Option<Transfer>,
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
    removing: BTreeSet<TreeId>,
    pub ordered: BTreeMap<StartId, Ordered>,
    store: MemoryCore,
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
        Self {
            vm,
            address,
            memory_bytes,
            limits,
            images,
            session,
            link: conns,
            trees: BTreeMap::new(),
            removing: BTreeSet::new(),
            ordered: BTreeMap::new(),
            store,
            told,
            early: Vec::new(),
            conns_made: conns,
        }
    }

    /// Takes over what a former life of the agent left on disk; its containers are gone with the VM.
    pub fn restore(
        &mut self,
        trees: &BTreeMap<TreeId, TreeRecord>,
        instances: &BTreeMap<StartId, InstanceRecord>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        for (tree, record) in trees {
            self.trees.insert(tree.clone(), Tree::new(record.clone()));
            self.open(tree, effects);
        }
        for (start, InstanceRecord { order, is_ready, .. }) in instances {
            let deadline = Duration::from_millis(order.ready_deadline_ms);
            // What was not ready is begun anew.
            let make = if *is_ready { InstanceCore::ready } else { InstanceCore::new };
            let core = make(now, deadline, self.limits.probe_interval, Wants::of(order));
            let before = TransferReport::default();
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
            Event::CacheRemoved { tree } => {
                self.removing.remove(&tree);
                self.open(&tree, effects);
            }
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
                    effects.push(Effect::DialManager { link: self.link, hello: self.hello(now) });
                    continue;
                }
                agent_session::Effect::Send(message) => message,
                agent_session::Effect::Heartbeat => ToManager::Heartbeat { held: self.held(now) },
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
        self.session(agent_session::Event::Say(message), now, effects);
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
            self.counters(tree, now).held(tree.clone(), place.epoch, place.seat.place, None)
        };
        self.trees.iter().map(held).collect()
    }

    fn manager(&mut self, message: ToAgent, now: Instant, effects: &mut Vec<Effect>) {
        match message {
            ToAgent::Welcome { heartbeat_ms, .. } => {
                let heartbeat = Duration::from_millis(heartbeat_ms);
                self.session(agent_session::Event::Welcomed { heartbeat }, now, effects);
                for message in self.told.iter().cloned().collect::<Vec<_>>() {
                    self.session(agent_session::Event::Say(message), now, effects);
                }
            }
            ToAgent::Start(order) => self.start(*order, now, effects),
            ToAgent::Preheat(_) => unreachable!("nothing is preheated here"),
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
                    self.leave(&tree, effects);
                }
            }
            // Never asked for: caches never fill.
            ToAgent::GiveUp { .. } => {}
            ToAgent::Origin { tree, answer } => {
                self.transfer(&tree, block_transfer::Event::OriginAnswered { answer }, now, effects);
            }
            ToAgent::Refused { .. }
            | ToAgent::Renewed { .. }
            | ToAgent::Observe { .. }
            | ToAgent::Yielded => {}
        }
    }

    fn start(&mut self, order: StartOrder, now: Instant, effects: &mut Vec<Effect>) {
        let start = order.start.clone();
        if self.ordered.contains_key(&start) {
            return; // the manager has asked again
        }
        let tree = order.place.tree.clone();
        let others = || self.ordered.values().map(|other| &other.order.place.tree.tenant);
        let refusal = if self.ordered.len() >= self.limits.instances_max {
            Some("it has as many instances as it may")
        } else if others().any(|tenant| *tenant != tree.tenant) {
            Some("it serves another tenant")
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let reason = EndReason::Refused(refusal.into());
            let ended = ToManager::Ended { start, reason, report: StartReport::default() };
            return self.say(ended, now, effects);
        }
        let foreign = self.trees.keys().filter(|known| known.tenant != tree.tenant);
        for known in foreign.cloned().collect::<Vec<_>>() {
            self.leave(&known, effects);
        }
        let record = TreeRecord { image: order.image.clone(), place: order.place.clone() };
        self.place(&tree, record, now, effects);
        let record = Some(Box::new(InstanceRecord { order: order.clone(), port: 0, is_ready: false }));
        effects.push(Effect::SaveInstance { start: start.clone(), record });
        let deadline = Duration::from_millis(order.ready_deadline_ms);
        let core = InstanceCore::new(now, deadline, self.limits.probe_interval, Wants::of(&order));
        let before = self.counters(&tree, now);
        self.ordered.insert(start.clone(), Ordered { order, core, is_ready: false, before });
        self.attach(&tree, &start, now, effects);
        self.wish(&tree, now, effects);
    }

    /// Tells a transfer how much of its image the instances want; the strictest of them decides.
    fn wish(&mut self, tree: &TreeId, now: Instant, effects: &mut Vec<Effect>) {
        let of_tree = self.ordered.values().filter(|ordered| ordered.order.place.tree == *tree);
        let wishes = of_tree.map(|ordered| Wish::of(ordered.order.mode, ordered.is_ready));
        let wish = wishes.max().unwrap_or_default();
        self.transfer(tree, block_transfer::Event::Wished { wish }, now, effects);
    }

    fn counters(&self, tree: &TreeId, now: Instant) -> TransferReport {
        let transfer = self.trees.get(tree).and_then(|tree| tree.transfer.as_ref());
        transfer.map_or_else(TransferReport::default, |transfer| TransferReport::of(&transfer.core, now))
    }

    /// An instance follows the image. What has happened already is told at once.
    fn attach(&mut self, tree: &TreeId, start: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(known) = self.trees.get(tree) else { return };
        let Some(transfer) = &known.transfer else { return };
        let is_mounted = known.is_mounted;
        for step in transfer.steps.clone() {
            self.instance(start, from_image(tree, ImageEvent::Step(step)), now, effects);
        }
        if is_mounted {
            self.instance(start, from_image(tree, ImageEvent::Mounted), now, effects);
        }
    }

    fn tell_followers(&mut self, tree: &TreeId, event: &ImageEvent, now: Instant, effects: &mut Vec<Effect>) {
        let follows = |ordered: &Ordered| ordered.order.place.tree == *tree && !ordered.is_ready;
        let followers = self.ordered.iter().filter(|(_, ordered)| follows(ordered));
        for start in followers.map(|(start, _)| start.clone()).collect::<Vec<_>>() {
            self.instance(&start, from_image(tree, event.clone()), now, effects);
        }
    }

    fn instance(&mut self, start: &StartId, event: instance::Event, now: Instant, effects: &mut Vec<Effect>) {
        let Some(ordered) = self.ordered.get_mut(start) else { return };
        let mut done = Vec::new();
        ordered.core.apply(event, now, &mut done);
        for effect in done {
            match effect {
                instance::Effect::Launch => effects.push(Effect::Run { start: start.clone() }),
                instance::Effect::Probe => effects.push(Effect::Probe { start: start.clone() }),
                instance::Effect::Stop => effects.push(Effect::Stop { start: start.clone() }),
                instance::Effect::Progress { step, elapsed } => {
                    let elapsed_us = micros(elapsed);
                    let progress = ToManager::Progress { start: start.clone(), step, elapsed_us };
                    self.say(progress, now, effects);
                }
                instance::Effect::Ready => {
                    let report = self.report(start, now);
                    if let Some(ordered) = self.ordered.get_mut(start) {
                        ordered.is_ready = true;
                        let order = ordered.order.clone();
                        let tree = order.place.tree.clone();
                        let record = Some(Box::new(InstanceRecord { order, port: 0, is_ready: true }));
                        effects.push(Effect::SaveInstance { start: start.clone(), record });
                        self.wish(&tree, now, effects);
                    }
                    self.say(ToManager::Ready { start: start.clone(), report }, now, effects);
                }
                instance::Effect::Ended(reason) => self.ended(start, reason, now, effects),
            }
        }
    }

    fn ended(&mut self, start: &StartId, reason: EndReason, now: Instant, effects: &mut Vec<Effect>) {
        let report = self.report(start, now);
        let Some(ordered) = self.ordered.remove(start) else { return };
        effects.push(Effect::SaveInstance { start: start.clone(), record: None });
        let tree = ordered.order.place.tree;
        self.wish(&tree, now, effects);
        if self.trees.get(&tree).is_some_and(|known| known.is_left) {
            self.leave(&tree, effects);
        }
        self.say(ToManager::Ended { start: start.clone(), reason, report }, now, effects);
    }

    fn report(&self, start: &StartId, now: Instant) -> StartReport {
        let Some(ordered) = self.ordered.get(start) else { return StartReport::default() };
        let steps_us = ordered.core.steps().iter().map(|(step, at)| (*step, micros(*at))).collect();
        ordered.before.start_report(steps_us, &self.counters(&ordered.order.place.tree, now))
    }

    /// Takes over a place, and opens the cache if it is not.
    fn place(&mut self, tree: &TreeId, record: TreeRecord, now: Instant, effects: &mut Vec<Effect>) {
        let place = record.place.clone();
        match self.trees.get_mut(tree) {
            Some(known) if place.epoch < known.record.place.epoch => return,
            Some(known) => (known.record, known.is_left) = (record.clone(), false),
            None => drop(self.trees.insert(tree.clone(), Tree::new(record.clone()))),
        }
        effects.push(Effect::SavePlace { tree: tree.clone(), record: Box::new(record) });
        if self.trees[tree].transfer.is_some() {
            let placed = placed(place);
            self.transfer(tree, placed, now, effects);
        } else {
            self.open(tree, effects);
        }
    }

    fn open(&mut self, tree: &TreeId, effects: &mut Vec<Effect>) {
        let Some(known) = self.trees.get_mut(tree) else { return };
        if known.transfer.is_none() && !self.removing.contains(tree) && !known.is_opening {
            known.is_opening = true;
            effects.push(Effect::OpenCache { tree: tree.clone() });
        }
    }

    fn cache_opened(&mut self, tree: &TreeId, effects: &mut Vec<Effect>) {
        match self.trees.get_mut(tree) {
            Some(known) => known.is_opening = false,
            None => self.remove(tree, effects),
        }
    }

    /// The cache is open and holds that.
    pub fn start_transfer(
        &mut self,
        tree: &TreeId,
        cached: &Cached,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(image) = image(&self.images, tree) else { return };
        let Some(known) = self.trees.get_mut(tree).filter(|known| known.transfer.is_none()) else { return };
        let index = cached.has_index.then(|| Arc::clone(&image.index));
        let steps = index.iter().map(|_| Step::Index).collect();
        let (own, limits) = (self.vm.clone(), self.limits.transfer);
        let core =
            TransferCore::new(own, limits, index, BTreeSet::new(), now).with_found(cached.blocks.clone());
        let (links, children) = (BTreeMap::new(), BTreeSet::new());
        known.transfer = Some(Transfer { core, links, children, steps });
        let place = known.record.place.clone();
        let placed = placed(place);
        if self.limits.knows_reads {
            let blocks = image.reads.clone();
            self.transfer(tree, block_transfer::Event::Ahead { blocks }, now, effects);
        }
        self.transfer(tree, placed, now, effects);
        for (conn, tree, vm) in
            self.early.extract_if(.., |(_, awaited, _)| awaited == tree).collect::<Vec<_>>()
        {
            self.child_came(conn, tree, vm, now, effects);
        }
        let followers = self.ordered.iter().filter(|(_, ordered)| ordered.order.place.tree == *tree);
        for start in followers.map(|(start, _)| start.clone()).collect::<Vec<_>>() {
            self.attach(tree, &start, now, effects);
        }
        self.wish(tree, now, effects);
    }

    fn leave(&mut self, tree: &TreeId, effects: &mut Vec<Effect>) {
        if self.ordered.values().any(|ordered| ordered.order.place.tree == *tree) {
            // The instances need its blocks still.
            if let Some(known) = self.trees.get_mut(tree) {
                known.is_left = true;
            }
            return;
        }
        let Some(known) = self.trees.remove(tree) else { return };
        if let Some(transfer) = known.transfer {
            effects.extend(transfer.links.into_values().map(|conn| Effect::HangUp { conn }));
            effects.extend(transfer.children.into_iter().map(|ChildId(conn)| Effect::DropChild { conn }));
        }
        if known.is_mounted {
            effects.push(Effect::Unmount { tree: tree.clone() });
        }
        if !known.is_opening {
            self.remove(tree, effects);
        }
    }

    /// Empties the place of a tree in the cache. It is not opened anew before that is done.
    fn remove(&mut self, tree: &TreeId, effects: &mut Vec<Effect>) {
        if self.removing.insert(tree.clone()) {
            effects.push(Effect::RemoveCache { tree: tree.clone() });
        }
    }

    fn transfer(
        &mut self,
        tree: &TreeId,
        event: block_transfer::Event,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(transfer) = self.trees.get_mut(tree).and_then(|known| known.transfer.as_mut()) else {
            return;
        };
        let mut done = Vec::new();
        transfer.core.apply(event, now, &mut done);
        for effect in done {
            self.transfer_effect(tree, effect, now, effects);
        }
    }

    fn transfer_effect(
        &mut self,
        tree: &TreeId,
        effect: block_transfer::Effect,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        use block_transfer::Effect as Done;
        let Some(transfer) = self.trees.get_mut(tree).and_then(|known| known.transfer.as_mut()) else {
            return;
        };
        match effect {
            Done::Connect(upstream) => {
                self.conns_made += 1;
                let conn = self.conns_made;
                if let Some(conn) = transfer.links.insert(upstream.clone(), conn) {
                    effects.push(Effect::HangUp { conn });
                }
                effects.push(Effect::Dial { conn, tree: tree.clone(), upstream });
            }
            Done::Disconnect(upstream) => {
                let conn = transfer.links.remove(&upstream);
                effects.extend(conn.map(|conn| Effect::HangUp { conn }));
            }
            Done::AskIndex { upstream, reach } => {
                ask(transfer, &upstream, ToParent::WantIndex { reach }, effects);
            }
            Done::Ask { upstream, blocks, urgency, path, reach } => {
                ask(transfer, &upstream, ToParent::Want { blocks, urgency, path, reach }, effects);
            }
            Done::Hurry { upstream, blocks } => ask(transfer, &upstream, ToParent::Hurry { blocks }, effects),
            Done::TellCorrupt { upstream, block } => {
                ask(transfer, &upstream, ToParent::Corrupt { block }, effects);
                let trouble = format!("a damaged block {}", block.0);
                self.tell_followers(tree, &ImageEvent::Trouble(trouble), now, effects);
            }
            Done::Keep { block, stored } => {
                self.store.remember(tree, block, stored.clone());
                effects.push(Effect::Keep { tree: tree.clone(), block, stored });
            }
            Done::Check { block } => effects.push(Effect::Check { tree: tree.clone(), block }),
            Done::Serve { child, block, urgency, stored } => {
                self.serve(tree, child, block, urgency, stored, effects);
            }
            Done::ServeIndex { child } => {
                let (urgency, message, body) = (Urgency::Demand, FromParent::Index, Bytes::new());
                effects.push(Effect::Tell { conn: child.0, urgency, message, body });
            }
            Done::NotServed { child, block, reason } => {
                effects.push(not_served(child, block, reason));
            }
            Done::TellWaiting { child, silent } => {
                let message = FromParent::Waiting { silent_ms: millis(silent) };
                let (urgency, body) = (Urgency::Demand, Bytes::new());
                effects.push(Effect::Tell { conn: child.0, urgency, message, body });
            }
            Done::RefuseChild { child } => {
                transfer.children.remove(&child);
                effects.push(Effect::Refuse { conn: child.0, reason: Refusal::Busy });
            }
            Done::Present { blocks } => effects.push(Effect::Present { tree: tree.clone(), blocks }),
            Done::Unavailable { blocks } => {
                effects.push(Effect::Unavailable { tree: tree.clone(), blocks });
            }
            Done::Step(step) => {
                if transfer.steps.insert(step) {
                    self.tell_followers(tree, &ImageEvent::Step(step), now, effects);
                }
            }
            Done::Mount => effects.push(Effect::Mount { tree: tree.clone() }),
            Done::ReportLost { vm } => {
                let epoch = self.trees[tree].record.place.epoch;
                let lost = ToManager::UpstreamLost { tree: tree.clone(), epoch, vm };
                self.say(lost, now, effects);
            }
            Done::WantOrigin { blocks } => {
                self.say(ToManager::OriginWanted { tree: tree.clone(), blocks }, now, effects);
            }
        }
    }

    fn serve(
        &mut self,
        tree: &TreeId,
        child: ChildId,
        block: BlockId,
        urgency: Urgency,
        stored: Option<Bytes>,
        effects: &mut Vec<Effect>,
    ) {
        let message = FromParent::Block { block };
        if let Some(body) = stored.or_else(|| self.store.recall(tree, block)) {
            return effects.push(Effect::Tell { conn: child.0, urgency, message, body });
        }
        effects.push(Effect::Load { tree: tree.clone(), child, block, urgency });
    }

    fn loaded(
        &mut self,
        tree: &TreeId,
        child: ChildId,
        block: BlockId,
        urgency: Urgency,
        effects: &mut Vec<Effect>,
    ) {
        let Some(image) = image(&self.images, tree) else { return };
        let (message, body) = (FromParent::Block { block }, image.stored(block));
        self.store.remember(tree, block, body.clone());
        effects.push(Effect::Tell { conn: child.0, urgency, message, body });
    }

    fn upstream(
        &mut self,
        tree: &TreeId,
        upstream: Upstream,
        conn: u64,
        said: FromPeer,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(transfer) = self.trees.get_mut(tree).and_then(|known| known.transfer.as_mut()) else {
            return;
        };
        if transfer.links.get(&upstream) != Some(&conn) {
            return; // of an earlier connection
        }
        let event = match said {
            FromPeer::Opened => block_transfer::Event::Opened { upstream },
            FromPeer::Index => {
                let Some(image) = image(&self.images, tree) else { return };
                block_transfer::Event::IndexArrived { index: Arc::clone(&image.index) }
            }
            FromPeer::Block(block, stored) => {
                block_transfer::Event::Arrived { upstream, blocks: vec![(block, stored)] }
            }
            FromPeer::Corrupt(block) => block_transfer::Event::Corrupt { upstream, block },
            FromPeer::NotServed(block, reason) => {
                block_transfer::Event::NotServed { upstream, block, reason }
            }
            FromPeer::Waits => block_transfer::Event::UpstreamWaits { upstream },
            FromPeer::Closed(reason) => {
                transfer.links.remove(&upstream);
                self.tell_followers(tree, &ImageEvent::Trouble(reason), now, effects);
                block_transfer::Event::Lost { upstream }
            }
        };
        self.transfer(tree, event, now, effects);
    }

    fn child_came(&mut self, conn: u64, tree: TreeId, vm: VmId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(transfer) = self.trees.get_mut(&tree).and_then(|known| known.transfer.as_mut()) else {
            // In a burst a child may be here before the order that makes this VM its parent.
            self.early.push((conn, tree, vm));
            return effects.push(Effect::WaitForTree { conn });
        };
        let child = ChildId(conn);
        transfer.children.insert(child);
        let at = effects.len();
        self.transfer(&tree, block_transfer::Event::ChildOpened { child, vm }, now, effects);
        let is_in =
            |known: &Tree| known.transfer.as_ref().is_some_and(|transfer| transfer.children.contains(&child));
        if self.trees.get(&tree).is_some_and(is_in) {
            // Before whatever the transfer says to the child.
            effects.insert(at, Effect::Admit { conn });
        }
    }

    fn child(&mut self, conn: u64, tree: &TreeId, said: ToParent, now: Instant, effects: &mut Vec<Effect>) {
        let child = ChildId(conn);
        let event = match said {
            ToParent::WantIndex { reach } => block_transfer::Event::ChildWantsIndex { child, reach },
            ToParent::Want { blocks, urgency, path, reach } => {
                block_transfer::Event::ChildWanted { child, blocks, urgency, path, reach }
            }
            ToParent::Hurry { blocks } => block_transfer::Event::ChildHurries { child, blocks },
            // The disk is not at fault here: what it holds was checked when it was written.
            ToParent::Corrupt { block } => return self.store.forget(tree, block),
            ToParent::Open { .. } => return,
        };
        self.transfer(tree, event, now, effects);
    }

    fn child_lost(&mut self, tree: &TreeId, child: ChildId, now: Instant, effects: &mut Vec<Effect>) {
        let transfer = self.trees.get_mut(tree).and_then(|known| known.transfer.as_mut());
        if transfer.is_some_and(|transfer| transfer.children.remove(&child)) {
            self.transfer(tree, block_transfer::Event::ChildLost { child }, now, effects);
        }
    }
}

impl Tree {
    fn new(record: TreeRecord) -> Self {
        Self { record, is_left: false, is_opening: false, is_mounted: false, transfer: None }
    }
}

pub(super) fn image<'a>(images: &'a [Image], tree: &TreeId) -> Option<&'a Image> {
    images.iter().find(|image| image.description.id == tree.image)
}

fn ask(transfer: &Transfer, upstream: &Upstream, message: ToParent, effects: &mut Vec<Effect>) {
    let conn = transfer.links.get(upstream);
    effects.extend(conn.map(|&conn| Effect::Ask { conn, message }));
}

fn from_image(tree: &TreeId, event: ImageEvent) -> instance::Event {
    instance::Event::Image(FromImage { image: tree.image, event })
}

fn placed(place: Place) -> block_transfer::Event {
    let Place { epoch, stripes, seat, .. } = place;
    block_transfer::Event::Placed { epoch, stripes, seat }
}

fn not_served(child: ChildId, block: BlockId, reason: NotServed) -> Effect {
    let message = FromParent::NotServed { block, reason };
    Effect::Tell { conn: child.0, urgency: Urgency::Demand, message, body: Bytes::new() }
}
