//! One VM's agent: the parent of everything on it, and the place where messages find their actor.
//!
//! A start's way here: `Order(Start)` makes or finds the image's `BlockTransfer` and makes an
//! `Instance`, which follows the transfer; their news go to the manager through `AgentSession`. What each
//! message does is in `handlers`.

mod cold;
mod handlers;
mod messages;
mod told;
pub mod world;

pub use messages::{
    Cold, GetCold, GetHeld, GetHello, GetPort, OpenChildOf, Order, Renew, Shutdown, Welcomed, Yield, Yielded,
};

use crate::{
    agent_session::{self, AgentSession, Say, SessionCore},
    block_store::{Advised, BlockStore, Found, Removed, RoomLimits, Standing, Stands, StoreNews},
    block_transfer::{
        Ahead, Attach, BlockTransfer, Complaint, Demand, DoneByAll, FromImage, GetReport, HolderBack,
        ImageEvent, MountEnded, OpenChild, Opened, OriginAnswered, Placed, StoreBack, TransferLimits,
        TransferNews, TransferReport, TransferWorld, Wish, Wished,
    },
    id::{BlockId, ImageId, StartId, TreeId, VmId},
    instance::{
        FromHolderAbout, Instance, InstanceLimits, InstanceNews, InstanceReport, InstanceWorld, Stop,
    },
    support::{self, AfterExit, ChildExited, Children, Life, Observe, Snapshot, micros, millis, supervise},
    wire::{
        PROTOCOL_VERSION,
        control::{
            EndReason, HeldTree, Hello, Place, PreheatOrder, RunningInstance, StartOrder, StartReport,
            ToAgent, ToManager, Warmth,
        },
        holder::{FromHolder, HeldInstance, PlainRange, ToHolder},
        peer::Refusal,
    },
};
use actix::prelude::*;
use futures::{FutureExt, future::join_all};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
pub use told::Told;
use world::{
    ColdImage, Disk, Holder, HolderEvent, InstanceRecord, ManagerDialer, Prober, Records, TreeRecord,
    Upstreams,
};

/// The bounds of one agent.
#[derive(Debug, Clone, Copy)]
pub struct AgentLimits {
    pub instances_max: usize,
    pub memory_cache_bytes: u64,
    pub disk: RoomLimits,
    pub reconnect_min: Duration,
    pub reconnect_max: Duration,
    pub stop_grace: Duration,
    pub transfer: TransferLimits,
    pub instance: InstanceLimits,
}

/// What the agent uses of its VM.
#[derive(Clone)]
pub struct AgentWorld {
    pub vm: VmId,
    /// Where others reach this agent.
    pub address: SocketAddr,
    /// Memory for instances.
    pub memory_bytes: u64,
    /// CPU for instances, in thousandths of a core.
    pub cpu_millis: u32,
    pub limits: AgentLimits,
    pub upstreams: Arc<dyn Upstreams>,
    /// What its transfers have done, for whoever counts.
    pub done: Arc<DoneByAll>,
    pub disk: Arc<dyn Disk>,
    pub holder: Arc<dyn Holder>,
    pub prober: Arc<dyn Prober>,
    pub manager: Arc<dyn ManagerDialer>,
    /// The key with which the manager signs capabilities, for whoever checks them.
    pub capability_key: watch::Sender<Vec<u8>>,
    /// Takes new certificates of this VM, in PEM.
    pub certificates: mpsc::Sender<String>,
}

struct Tree {
    record: TreeRecord,
    is_mounted: bool,
    /// To be left when its last instance has ended.
    is_left: bool,
    /// What the last start that came with such was told to fetch ahead.
    hot: Vec<BlockId>,
    /// Starts whose reads are recorded, until the first of them is ready.
    recording: BTreeSet<StartId>,
    /// What it is to hold whatever runs, and the order that said so last.
    preheat: Option<(u64, Warmth)>,
}

impl Tree {
    fn new(record: TreeRecord) -> Self {
        let (hot, recording) = (Vec::new(), BTreeSet::new());
        Self { record, is_mounted: false, is_left: false, hot, recording, preheat: None }
    }

    /// Takes what an order says of the image's use.
    fn starts(&mut self, order: &StartOrder) {
        if !order.hot.is_empty() {
            self.hot = order.hot.clone();
        }
        if order.record {
            self.recording.insert(order.start.clone());
        }
    }
}

struct Ordered {
    record: InstanceRecord,
    /// What the transfer had done before this start.
    before: TransferReport,
}

pub struct Agent {
    world: AgentWorld,
    store: Children<&'static str, BlockStore>,
    session: Children<&'static str, AgentSession>,
    transfers: Children<TreeId, BlockTransfer>,
    instances: Children<StartId, Instance>,
    trees: BTreeMap<TreeId, Tree>,
    /// Starts whose report is on its way: the next one of the same start waits for it.
    reporting: BTreeMap<StartId, oneshot::Receiver<()>>,
    /// Images of trees that were left, with a number that says which was left later.
    cold: BTreeMap<TreeId, (u64, ColdImage)>,
    left: u64,
    /// Trees whose place in the cache is being opened.
    opening: BTreeSet<TreeId>,
    /// Trees whose place in the cache is being removed.
    removing: BTreeSet<TreeId>,
    ordered: BTreeMap<StartId, Ordered>,
    /// What a former agent of this VM was doing.
    former: Vec<(StartId, InstanceRecord)>,
    is_holder_known: bool,
    /// Children of trees that are not here yet, bounded by the connections of the agent.
    early_children: Vec<(TreeId, oneshot::Sender<Addr<BlockTransfer>>)>,
    told: Told,
    shutdown: Option<oneshot::Sender<()>>,
    is_shut_down: bool,
    yielding: Option<oneshot::Sender<()>>,
    /// Another process has taken over, or is about to.
    has_yielded: bool,
}

/// Time for the manager to answer that it keeps orders back; without its answer one may be lost.
const YIELD_WITHIN: Duration = Duration::from_secs(1);

const AGENT: &str = "agent";
const STORE: &str = "block_store";
const SESSION: &str = "agent_session";

impl Agent {
    /// `records` are those that a former agent left on disk.
    pub fn new(world: AgentWorld, records: Records) -> Self {
        let Records { trees, cold, instances } = records;
        let mut trees: BTreeMap<TreeId, Tree> =
            trees.into_iter().map(|(tree, record)| (tree, Tree::new(record))).collect();
        // What an instance reads is needed also if the record of its tree is lost.
        for (image, place) in instances.iter().flat_map(|(_, record)| record.order.images()) {
            let record = || TreeRecord { image: image.clone(), place: place.clone() };
            trees.entry(place.tree.clone()).or_insert_with(|| Tree::new(record()));
        }
        let left = cold.len() as u64;
        let cold = (0..).zip(cold).map(|(number, (tree, image))| (tree, (number, image)));
        let cold = cold.filter(|(tree, _)| !trees.contains_key(tree)).collect();
        let told = Told::new(2 * world.limits.instances_max);
        Self {
            world,
            store: Children::vital(AGENT, STORE),
            session: Children::vital(AGENT, SESSION),
            transfers: Children::many(AGENT, "block_transfer"),
            instances: Children::many(AGENT, "instance"),
            trees,
            reporting: BTreeMap::new(),
            cold,
            left,
            opening: BTreeSet::new(),
            removing: BTreeSet::new(),
            ordered: BTreeMap::new(),
            former: instances,
            is_holder_known: false,
            early_children: Vec::new(),
            told,
            shutdown: None,
            is_shut_down: false,
            yielding: None,
            has_yielded: false,
        }
    }

    fn say(&mut self, message: ToManager) {
        self.told.note(&message);
        self.session.send(&SESSION, Say(message));
    }

    fn start_store(&mut self, ctx: &mut Context<Self>) {
        let (disk, limits) = (Arc::clone(&self.world.disk), self.world.limits);
        let news = ctx.address().recipient();
        let store = self.store.start(&STORE, ctx.address().downgrade().recipient(), |life| {
            BlockStore::new(disk, limits.memory_cache_bytes, limits.disk, news, life).start()
        });
        let store = store.clone();
        self.tell_store_all();
        for (tree, _) in self.transfers.iter() {
            self.transfers.send(tree, StoreBack(store.clone()));
        }
        // Images that were opened while there was no store.
        if self.is_holder_known {
            self.open_all(ctx);
        }
    }

    fn open_all(&mut self, ctx: &mut Context<Self>) {
        for tree in self.trees.keys().filter(|tree| !self.transfers.knows(tree)).cloned().collect::<Vec<_>>()
        {
            self.open(tree, ctx);
        }
    }

    fn start_session(&mut self, ctx: &mut Context<Self>) {
        let limits = self.world.limits;
        let core = SessionCore::new(Instant::now(), limits.reconnect_min, limits.reconnect_max);
        let (agent, dialer) = (ctx.address().downgrade(), Arc::clone(&self.world.manager));
        self.session.start(&SESSION, ctx.address().downgrade().recipient(), |life| {
            AgentSession::new(core, agent, dialer, life).start()
        });
    }

    /// Tells the transfer what is known of the starts on the image.
    fn tell_ahead(&self, tree: &TreeId) {
        let Some(known) = self.trees.get(tree) else { return };
        let (hot, record) = (known.hot.clone(), !known.recording.is_empty());
        if record || !hot.is_empty() {
            self.transfers.send(tree, Ahead { hot, record });
        }
    }

    /// Takes over a place, and makes the transfer if it is not there.
    fn place(&mut self, tree: TreeId, record: TreeRecord, ctx: &mut Context<Self>) {
        if self.trees.get(&tree).is_some_and(|known| record.place.epoch < known.record.place.epoch) {
            return; // invariant 4
        }
        let place = record.place.clone();
        match self.trees.get_mut(&tree) {
            Some(known) => (known.record, known.is_left) = (record, false),
            None => drop(self.trees.insert(tree.clone(), Tree::new(record))),
        }
        self.cold.remove(&tree);
        self.settle(&tree);
        if !self.transfers.send(&tree, Placed(place)) {
            self.open(tree, ctx);
        }
    }

    fn open(&mut self, tree: TreeId, ctx: &mut Context<Self>) {
        let Some(known) = self.trees.get(&tree) else {
            return;
        };
        if self.has_yielded || self.transfers.get(&tree).is_some() || self.is_being_emptied_for(&tree) {
            return;
        }
        if !self.opening.insert(tree.clone()) {
            return;
        }
        let opening = self.world.disk.open(&tree, &known.record.image);
        ctx.spawn(opening.into_actor(self).map(move |opened, agent, ctx| {
            agent.opening.remove(&tree);
            match opened {
                _ if agent.cold.contains_key(&tree) => {}
                _ if !agent.trees.contains_key(&tree) => agent.remove(tree, ctx),
                Ok(opened) => agent.start_transfer(tree, opened, ctx),
                Err(error) => agent.cache_failed(&tree, &error.to_string()),
            }
        }));
    }

    fn start_transfer(&mut self, tree: TreeId, opened: world::OpenedImage, ctx: &mut Context<Self>) {
        let (Some(known), Some(store)) = (self.trees.get(&tree), self.store.get(&STORE)) else {
            return; // without a store it is opened again when there is one
        };
        let world = TransferWorld {
            vm: self.world.vm.clone(),
            limits: self.world.limits.transfer,
            upstreams: Arc::clone(&self.world.upstreams),
            disk: Arc::clone(&self.world.disk),
            holder: Arc::clone(&self.world.holder),
            store: store.clone(),
            done: Arc::clone(&self.world.done),
            news: ctx.address().recipient(),
        };
        let (record, place) = (known.record.clone(), known.record.place.clone());
        let is_mounted = known.is_mounted;
        let name = tree.clone();
        let transfer = self.transfers.start(&tree, ctx.address().downgrade().recipient(), |life| {
            BlockTransfer::new(name, record, opened, world, life).start()
        });
        let transfer = transfer.clone();
        self.tell_ahead(&tree);
        self.transfers.send(&tree, Placed(place));
        for (_, child) in self.early_children.extract_if(.., |(awaited, _)| *awaited == tree) {
            // It may have given up.
            let _ = child.send(transfer.clone());
        }
        if is_mounted {
            // It mounts again, so that the holder asks for what reads have waited for meanwhile.
            self.transfers.send(&tree, HolderBack { is_mounted });
        }
        for (start, instance) in self.instances_of(&tree) {
            let attach = Attach { start: start.clone(), events: instance.clone().recipient() };
            self.transfers.send(&tree, attach);
        }
        self.settle(&tree);
    }

    /// Takes a place in a tree for blocks that later starts will read. Refused orders are not answered: the
    /// VM does not become a member, or stays what it is.
    fn preheat(&mut self, order: PreheatOrder, ctx: &mut Context<Self>) {
        let PreheatOrder { number, image, place, what, hot } = order;
        let tree = place.tree.clone();
        let is_old = self.trees.get(&tree).is_some_and(|known| place.epoch < known.record.place.epoch);
        let is_others = |ordered: &Ordered| ordered.record.order.place.tree.tenant != tree.tenant;
        if is_old || self.ordered.values().any(is_others) {
            return; // invariants 4 and 8
        }
        self.leave_others(&tree, ctx);
        let record = TreeRecord { image, place };
        let known = self.trees.entry(tree.clone()).or_insert_with(|| Tree::new(record.clone()));
        // What is to be whole does not become less by a later order.
        let what = known.preheat.map_or(what, |(_, before)| what.max(before));
        known.preheat = Some((number, what));
        if !hot.is_empty() {
            known.hot = hot;
        }
        self.tell_ahead(&tree);
        self.place(tree.clone(), record, ctx);
        self.settle(&tree);
    }

    /// Leaves the trees of other tenants, and what is kept of others: the manager's order to do so may come later.
    fn leave_others(&mut self, tree: &TreeId, ctx: &mut Context<Self>) {
        let foreign = self.trees.keys().filter(|known| known.tenant != tree.tenant);
        for known in foreign.cloned().collect::<Vec<_>>() {
            self.leave(&known, ctx);
        }
        self.purge_foreign(&tree.tenant, ctx);
    }

    /// Tells a transfer how much of its image the instances want, the strictest of them decides, and the cache
    /// what the image is to this VM.
    fn settle(&self, tree: &TreeId) {
        let of_tree = self.ordered.values().filter(|ordered| ordered.record.order.is_of(tree));
        let wish = of_tree.map(|ordered| Wish::of(ordered.record.order.mode, ordered.record.is_ready)).max();
        let preheat = self.trees.get(tree).and_then(|known| known.preheat);
        let to_preheat = preheat.map(|(_, what)| Wish::to_preheat(what));
        let is_under_way = |ordered: &&Ordered| !ordered.record.is_ready && ordered.record.order.is_of(tree);
        let mut under_way = self.ordered.values().filter(is_under_way);
        let request = under_way.find_map(|ordered| ordered.record.order.request.clone());
        // None is below every wish.
        let wished = Wished { wish: wish.max(to_preheat).unwrap_or_default(), request };
        self.transfers.send(tree, wished);
        let standing = if wish.is_some() {
            Standing::Needed
        } else if self.trees.contains_key(tree) {
            Standing::Member
        } else {
            Standing::Cold
        };
        self.store.send(&STORE, Stands { tree: tree.clone(), standing });
    }

    fn instances_of(&self, tree: &TreeId) -> impl Iterator<Item = (&StartId, &Addr<Instance>)> {
        let is_of_tree =
            move |start| self.ordered.get(start).is_some_and(|ordered| ordered.record.order.is_of(tree));
        self.instances.iter().filter(move |(start, _)| is_of_tree(*start))
    }

    fn cache_failed(&mut self, tree: &TreeId, reason: &str) {
        tracing::error!(%tree, %reason, "the cache of an image cannot be used");
        self.tell_instances(tree, &ImageEvent::MountFailed(reason.to_owned()));
    }

    fn tell_instances(&self, tree: &TreeId, event: &ImageEvent) {
        for (start, _) in self.instances_of(tree) {
            self.instances.send(start, FromImage { image: tree.image, event: event.clone() });
        }
    }

    fn start(&mut self, order: StartOrder, ctx: &mut Context<Self>) {
        let start = order.start.clone();
        if self.ordered.contains_key(&start) {
            return; // the manager has asked again
        }
        let tree = order.place.tree.clone();
        let is_old = |place: &Place| {
            self.trees.get(&place.tree).is_some_and(|known| place.epoch < known.record.place.epoch)
        };
        let refusal = if order.images().any(|(_, place)| is_old(place)) {
            Some("the order is older than its place in the tree") // invariant 4
        } else if self.ordered.len() >= self.world.limits.instances_max {
            Some("it has as many instances as it may")
        } else if order.trees().any(|own| own.tenant != tree.tenant)
            || self.ordered.values().any(|other| other.record.order.place.tree.tenant != tree.tenant)
        {
            Some("it serves another tenant") // invariant 8
        } else {
            None
        };
        let request = order.request.as_ref().map(tracing::field::display);
        tracing::info!(%start, %tree, request, "a start was ordered");
        let is_free = |port: &u16| self.ordered.values().all(|other| other.record.port != *port);
        // A port that was given out may still be without its listener.
        let port = (0..=self.ordered.len()).find_map(|_| self.world.prober.free_port().filter(is_free));
        let (None, Some(port)) = (refusal, port) else {
            let reason = EndReason::Refused(refusal.unwrap_or("it has no free port").to_owned());
            return self.say(ToManager::Ended { start, reason, report: StartReport::default() });
        };
        self.leave_others(&tree, ctx);
        // What is recorded and fetched ahead is of the image; code is small.
        let record = TreeRecord { image: order.image.clone(), place: order.place.clone() };
        let known = self.trees.entry(tree.clone()).or_insert_with(|| Tree::new(record));
        known.starts(&order);
        self.tell_ahead(&tree);
        for (image, place) in order.images() {
            let record = TreeRecord { image: image.clone(), place: place.clone() };
            self.place(place.tree.clone(), record, ctx);
        }
        let record = InstanceRecord { order, port, is_ready: false };
        ctx.spawn(self.save_instance(&start, Some(record.clone())).into_actor(self));
        let asking = self.done_for(&record.order);
        self.ordered.insert(start.clone(), Ordered { record, before: TransferReport::default() });
        let asked = start.clone();
        ctx.spawn(asking.into_actor(self).map(move |before, agent, _| {
            if let Some(ordered) = agent.ordered.get_mut(&asked) {
                ordered.before = before;
            }
        }));
        self.start_instance(&start, Instance::new, ctx);
        if let Some(ordered) = self.ordered.get(&start) {
            ordered.record.order.trees().for_each(|tree| self.settle(tree));
        }
    }

    fn start_instance(
        &mut self,
        start: &StartId,
        make: impl FnOnce(StartOrder, u16, InstanceWorld, Life<StartId>) -> Instance,
        ctx: &mut Context<Self>,
    ) {
        let Some(ordered) = self.ordered.get(start) else {
            return;
        };
        let InstanceRecord { order, port, is_ready: _ } = ordered.record.clone();
        let trees: Vec<TreeId> = order.trees().cloned().collect();
        let world = InstanceWorld {
            holder: Arc::clone(&self.world.holder),
            prober: Arc::clone(&self.world.prober),
            limits: self.world.limits.instance,
            reports: ctx.address().recipient(),
        };
        let instance = self.instances.start(start, ctx.address().downgrade().recipient(), |life| {
            make(order, port, world, life).start()
        });
        let instance = instance.clone();
        for tree in trees {
            let attach = Attach { start: start.clone(), events: instance.clone().recipient() };
            self.transfers.send(&tree, attach);
        }
    }

    /// What the transfers of a start have done so far, together.
    fn done_for(&self, order: &StartOrder) -> impl Future<Output = TransferReport> + use<> {
        let transfers = order.trees().filter_map(|tree| self.transfers.get(tree));
        let asking = transfers.map(|transfer| transfer.send(GetReport)).collect::<Vec<_>>();
        async move {
            let reports = join_all(asking).await.into_iter().map(Result::unwrap_or_default);
            reports.fold(TransferReport::default(), TransferReport::plus)
        }
    }

    /// Writes are begun in the order of calls, and whether anybody waits for them or not.
    fn save_instance(
        &self,
        start: &StartId,
        record: Option<InstanceRecord>,
    ) -> impl Future<Output = ()> + use<> {
        let saving = self.world.disk.save_instance(start, record);
        let start = start.clone();
        async move {
            if let Err(error) = saving.await {
                tracing::error!(%start, %error, "the record of an instance was not kept");
            }
        }
    }

    fn leave(&mut self, tree: &TreeId, ctx: &mut Context<Self>) {
        let is_used = self.ordered.values().any(|ordered| ordered.record.order.is_of(tree));
        if is_used {
            // The instances need its blocks still.
            if let Some(known) = self.trees.get_mut(tree) {
                known.is_left = true;
            }
            return;
        }
        let Some(known) = self.trees.remove(tree) else { return };
        if known.is_mounted {
            self.world.holder.send(ToHolder::Unmount { image: tree.image });
        }
        let transfer = self.transfers.remove(tree);
        self.keep_cold(tree, known.record, transfer, ctx);
    }

    /// The holder tells what it has, after a new connection: instances are taken over, missed ends reported.
    fn holder_back(&mut self, mounts: &[ImageId], held: Vec<HeldInstance>, ctx: &mut Context<Self>) {
        for (tree, known) in &mut self.trees {
            known.is_mounted = mounts.contains(&tree.image);
            self.transfers.send(tree, HolderBack { is_mounted: known.is_mounted });
        }
        for (start, record) in std::mem::take(&mut self.former) {
            let before = TransferReport::default();
            if let Some(known) = self.trees.get_mut(&record.order.place.tree).filter(|_| !record.is_ready) {
                known.starts(&record.order);
            }
            self.ordered.insert(start, Ordered { record, before });
        }
        // A former agent may have been killed before it had done so.
        let tenant = self.ordered.values().next().map(|one| one.record.order.place.tree.tenant.clone());
        tenant.iter().for_each(|tenant| self.purge_foreign(tenant, ctx));
        let mut held: BTreeMap<StartId, HeldInstance> =
            held.into_iter().map(|instance| (instance.start.clone(), instance)).collect();
        let known: Vec<StartId> = self.ordered.keys().cloned().collect();
        for start in known {
            let held = held.remove(&start);
            if self.instances.get(&start).is_none() {
                let make = match &held {
                    _ if self.ordered[&start].record.is_ready => Instance::ready,
                    Some(_) => Instance::resumed,
                    // The agent before did not come to run it.
                    None => Instance::new,
                };
                self.start_instance(&start, make, ctx);
            }
            let about = match held {
                Some(HeldInstance { exit: None, .. }) => FromHolderAbout::Held,
                Some(HeldInstance { exit: Some(exit), .. }) => FromHolderAbout::Exited(exit),
                None => FromHolderAbout::NotHeld { is_mounted: self.is_mounted(&start) },
            };
            self.tell_instance(&start, about);
        }
        for start in held.into_keys() {
            self.end_container(start);
        }
        for image in mounts.iter().filter(|image| self.tree_of(image).is_none()) {
            self.world.holder.send(ToHolder::Unmount { image: *image });
        }
        if !std::mem::replace(&mut self.is_holder_known, true) {
            self.open_all(ctx);
            self.start_session(ctx);
        }
    }

    fn grace_ms(&self) -> u64 {
        millis(self.world.limits.stop_grace)
    }

    fn end_container(&self, start: StartId) {
        self.world.holder.send(ToHolder::Stop { start, grace_ms: self.grace_ms() });
    }

    fn is_mounted(&self, start: &StartId) -> bool {
        let is_mounted = |tree: &TreeId| self.trees.get(tree).is_some_and(|known| known.is_mounted);
        self.ordered.get(start).is_some_and(|ordered| ordered.record.order.trees().all(is_mounted))
    }

    fn tell_instance(&self, start: &StartId, message: FromHolderAbout) {
        self.instances.send(start, message);
    }

    fn tree_of(&self, image: &ImageId) -> Option<&TreeId> {
        self.trees.keys().find(|tree| tree.image == *image)
    }

    fn mount_ended(&mut self, image: ImageId, ended: Result<(), String>) {
        let Some(tree) = self.tree_of(&image).cloned() else {
            return;
        };
        if let Some(known) = self.trees.get_mut(&tree) {
            known.is_mounted = ended.is_ok();
        }
        self.transfers.send(&tree, MountEnded(ended));
    }

    /// Adds the transfer's counters to an instance's news and tells the manager.
    fn report(&mut self, report: InstanceReport, ctx: &mut Context<Self>) {
        let InstanceReport { start, news, steps_us } = report;
        if let InstanceNews::Progress { step, elapsed } = news {
            return self.say(ToManager::Progress { start, step, elapsed_us: micros(elapsed) });
        }
        let Some(ordered) = self.ordered.get_mut(&start).filter(|_| !self.has_yielded) else {
            return;
        };
        let (order, before) = (ordered.record.order.clone(), ordered.before.clone());
        let request = order.request.as_ref().map(tracing::field::display);
        tracing::info!(%start, request, ?news, "a start is ready or has ended");
        ordered.record.is_ready = news == InstanceNews::Ready;
        let record = (news == InstanceNews::Ready).then(|| ordered.record.clone());
        if matches!(news, InstanceNews::Ended(_)) {
            self.ordered.remove(&start);
            self.instances.remove(&start);
        }
        // Written before it is told: a process that comes after this one says the same.
        let saving = self.save_instance(&start, record);
        self.end_recording(&start, &order.place.tree, &news);
        let answer = self.done_for(&order);
        for tree in order.trees() {
            self.settle(tree);
            if self.trees.get(tree).is_some_and(|known| known.is_left) {
                self.leave(tree, ctx);
            }
        }
        // What is told of one start is told in order.
        let (told, next) = oneshot::channel::<()>();
        let previous = match news {
            InstanceNews::Ended(_) => self.reporting.remove(&start),
            InstanceNews::Ready | InstanceNews::Progress { .. } => self.reporting.insert(start.clone(), next),
        };
        let asking = async move {
            if let Some(previous) = previous {
                let _told = previous.await;
            }
            saving.await;
            answer.await
        };
        ctx.spawn(asking.into_actor(self).map(move |after, agent, _| {
            let report = before.start_report(steps_us, &after);
            drop(told);
            agent.say(match news {
                InstanceNews::Ready => ToManager::Ready { start, report },
                InstanceNews::Ended(reason) => ToManager::Ended { start, reason, report },
                InstanceNews::Progress { .. } => return,
            });
        }));
    }

    /// What is read of an image after the first start on it is ready tells nothing of starts.
    fn end_recording(&mut self, start: &StartId, tree: &TreeId, news: &InstanceNews) {
        let Some(known) = self.trees.get_mut(tree) else { return };
        match news {
            InstanceNews::Ready if known.recording.contains(start) => {
                self.world.holder.send(ToHolder::EndRecording { image: tree.image });
            }
            InstanceNews::Ended(_) => drop(known.recording.remove(start)),
            InstanceNews::Ready | InstanceNews::Progress { .. } => {}
        }
    }

    /// The recording counts for one of the starts it was made for; nobody knows which of them read what.
    fn recorded(&mut self, image: ImageId, ranges: Vec<PlainRange>) {
        let Some(tree) = self.tree_of(&image).cloned() else { return };
        let recording = self.trees.get_mut(&tree).map(|known| std::mem::take(&mut known.recording));
        if let Some(start) = recording.unwrap_or_default().pop_first().filter(|_| !ranges.is_empty()) {
            self.say(ToManager::Recorded { start, image, ranges });
        }
    }

    /// Ends all actors but this one, which still answers on whose port an instance listens.
    fn come_to_rest(&mut self) -> impl Future<Output = ()> + use<> {
        self.has_yielded = true;
        self.early_children.clear();
        let mut stopping = Vec::new();
        // What they have begun to write down is begun when they answer.
        for tree in self.trees.keys() {
            stopping.extend(self.transfers.remove(tree).map(|transfer| transfer.send(support::Stop)));
        }
        for start in self.ordered.keys() {
            if let Some(instance) = self.instances.remove(start) {
                instance.do_send(support::Stop);
            }
        }
        self.store.remove(&STORE);
        if let Some(session) = self.session.remove(&SESSION) {
            session.do_send(support::Stop);
        }
        join_all(stopping).map(drop)
    }

    fn held(&self) -> impl Future<Output = Vec<HeldTree>> + use<> {
        let asking = self.trees.iter().map(|(tree, known)| {
            let (tree, epoch, place) =
                (tree.clone(), known.record.place.epoch, known.record.place.seat.place);
            let preheat = known.preheat;
            let asking = self.transfers.get(&tree).map(|transfer| transfer.send(GetReport));
            async move {
                // While its cache is being opened the VM is a member all the same.
                let report = match asking {
                    Some(asking) => asking.await.unwrap_or_default(),
                    None => TransferReport::default(),
                };
                report.held(tree, epoch, place, preheat)
            }
        });
        join_all(asking.collect::<Vec<_>>())
    }
}

impl Actor for Agent {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.start_store(ctx);
    }
}
