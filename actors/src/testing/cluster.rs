//! A manager and agents with all their actors on one thread. Sessions, connections, disks and holders are in
//! memory; every hop of blocks and orders takes a millisecond.

use crate::{
    agent::{
        Agent, AgentLimits, AgentWorld, OpenChildOf,
        world::{
            ChildLink, Disk, DiskError, FromManager, FromUpstream, Holder, HolderEvent, InstanceRecord,
            ManagerDialer, ManagerEvent, OpenedImage, Prober, Records, TaskLink, TreeRecord, UpstreamEvent,
            UpstreamTarget, Upstreams,
        },
    },
    block_store::RoomLimits,
    block_transfer::{ChildEvent, FromChild, TransferLimits},
    id::{BlockId, StartId, TreeId, VmId},
    image::{BLOCK_BYTES, BlockEntry, BlockImage, Codec, Index},
    instance::InstanceLimits,
    manager::{
        Manager, ManagerHandle, ManagerWorld,
        tests::{Disk as Store, deploy, tenant, world},
    },
    model::{StartState, StartView, TreeView},
    scheduler::ControlError,
    vm_node::{Opening, SessionId, ToFleet, ToVm, VmMessage},
    wire::{
        PROTOCOL_VERSION,
        control::{Hello, ToManager, Upstream},
        holder::{Exit, FromHolder, ToHolder},
        peer::{FromParent, ToParent, Urgency},
    },
};
use actix::prelude::*;
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::sleep,
};

const HOP: Duration = Duration::from_millis(1);
const BLOCKS: u32 = 4;

#[derive(Clone)]
pub struct Cluster {
    pub manager: ManagerHandle,
    pub store: Arc<Store>,
    pub agents: BTreeMap<VmId, Addr<Agent>>,
    network: Network,
    present: Present,
}

/// What became of a call for a start.
pub type Called = Result<StartId, ControlError>;

pub fn vm(number: usize) -> VmId {
    format!("vm-{number}").parse().expect("name")
}

impl Cluster {
    pub async fn new(vms: usize) -> Self {
        let store = Arc::new(Store::default());
        let manager = Manager::start(world(&store));
        let present = Arc::new(Mutex::new(manager.clone()));
        let (agents, network) = (BTreeMap::new(), Network::default());
        let mut cluster = Self { manager, store, agents, network, present };
        for number in 1..=vms {
            cluster.add(vm(number)).await;
        }
        cluster.until_up(vms).await;
        cluster
    }

    async fn add(&mut self, vm: VmId) {
        let (reply, answer) = oneshot::channel();
        self.manager.fleet.send(ToFleet::Register { vm: vm.clone(), key_hash: key_hash(&vm), reply });
        answer.await.expect("answered").expect("the name is free");
        let holder = Arc::new(MemHolder::default());
        let agent = Agent::new(self.agent_world(&vm, holder.clone()), Records::default()).start();
        holder.agent.set(agent.clone().recipient()).expect("once");
        let state =
            FromHolder::State { version: PROTOCOL_VERSION, mounts: Vec::new(), instances: Vec::new() };
        agent.do_send(HolderEvent::Says(state));
        self.network.0.lock().expect("one thread").insert(vm.clone(), (agent.clone(), Plugs::default()));
        self.agents.insert(vm, agent);
    }

    fn agent_world(&self, vm: &VmId, holder: Arc<MemHolder>) -> AgentWorld {
        let millis = Duration::from_millis;
        AgentWorld {
            vm: vm.clone(),
            address: ([127, 0, 0, 1], 1).into(),
            memory_bytes: 1 << 30,
            cpu_millis: 4000,
            limits: AgentLimits {
                instances_max: 100,
                memory_cache_bytes: 1 << 20,
                disk: RoomLimits { bytes_max: 1 << 30, patience: millis(400), wait_max: millis(5000) },
                reconnect_min: millis(100),
                reconnect_max: millis(400),
                stop_grace: millis(100),
                transfer: TransferLimits { stall: millis(1000), ..TransferLimits::SHIPPED },
                instance: InstanceLimits {
                    probe_interval: millis(20),
                    probe_timeout: millis(1000),
                    stop_grace: millis(100),
                    pids_max: 100,
                    writable_bytes: 1 << 20,
                    log_bytes_max: 1 << 20,
                },
            },
            upstreams: Arc::new(Wires { own: vm.clone(), network: self.network.clone() }),
            done: Arc::default(),
            disk: Arc::new(MemDisk::default()),
            holder,
            prober: Arc::new(Probes::default()),
            manager: Arc::new(Line {
                vm: vm.clone(),
                manager: self.present.clone(),
                network: self.network.clone(),
            }),
            capability_key: watch::Sender::new(Vec::new()),
            certificates: mpsc::channel(1).0,
        }
    }

    async fn until_up(&self, wanted: usize) {
        let up = |vms: Vec<crate::model::VmView>| vms.iter().filter(|vm| vm.address.is_some()).count();
        while self.manager.scheduler.vms().await.map_or(0, up) < wanted {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The manager ends, and another one begins with the rows that it left.
    pub async fn restart_manager(&mut self) {
        self.manager.shut_down().await;
        let world = world(&self.store);
        let world = ManagerWorld { term: world.term + 1, ..world };
        self.manager = Manager::start(world);
        *self.present.lock().expect("one thread") = self.manager.clone();
        self.until_up(self.agents.len()).await;
    }

    pub async fn deploy(&self, name: &str, image: &str) {
        deploy(&self.manager, name, image).await;
    }

    /// That many starts at once, each with a call of its own.
    pub async fn burst(&self, name: &str, starts: usize) -> Vec<Called> {
        let call = |_| async {
            let started = self.manager.scheduler.start(tenant(), name.parse().expect("name"), 1).await?;
            Ok(started.into_iter().next().expect("one was asked for"))
        };
        join_all((0..starts).map(call)).await
    }

    /// Waits until each of these starts is ready or has ended.
    pub async fn ends(&self, called: &[Called]) -> Vec<StartView> {
        let mut views = Vec::new();
        for start in called.iter().flatten() {
            // Each of its deadlines once, and twice for good measure.
            for _ in 0..6000 {
                match self.manager.scheduler.start_view(tenant(), start.clone()).await {
                    Ok(view) if matches!(view.state, StartState::Ready | StartState::Ended) => {
                        views.push(view);
                        break;
                    }
                    _ => sleep(Duration::from_millis(100)).await,
                }
            }
        }
        assert_eq!(views.len(), called.iter().flatten().count(), "invariant 10: a start hangs");
        views
    }

    pub async fn tree(&self, name: &str) -> Result<TreeView, ControlError> {
        self.manager.scheduler.tree(tenant(), name.parse().expect("name")).await
    }

    /// The container of that start ends with code 3, wherever it runs.
    pub fn exit(&self, start: &StartId) {
        for agent in self.agents.values() {
            let exited = FromHolder::Exited { start: start.clone(), exit: Exit::Code(3) };
            agent.do_send(HolderEvent::Says(exited));
        }
    }

    /// Cuts a VM off from everybody.
    pub fn unplug(&self, vm: &VmId) {
        self.cut(vm);
        self.plugs(vm).session.send_replace(false);
    }

    /// Nobody is served by the VM any more, although its agent says that it lives.
    pub fn cut(&self, vm: &VmId) {
        self.plugs(vm).blocks.send_replace(false);
    }

    fn plugs(&self, vm: &VmId) -> Plugs {
        self.network.0.lock().expect("one thread")[vm].1.clone()
    }
}

fn key_hash(vm: &VmId) -> Arc<[u8]> {
    vm.as_str().as_bytes().into()
}

fn stored(block: BlockId) -> Bytes {
    Bytes::from(block.0.to_le_bytes().to_vec())
}

fn index() -> Arc<Index> {
    let entry = |block: u32| BlockEntry {
        offset: u64::from(block) * 4,
        stored_bytes: 4,
        codec: Codec::Zstd,
        hash: *blake3::hash(&stored(BlockId(block))).as_bytes(),
    };
    let entries = (0..BLOCKS).map(entry).collect();
    Arc::new(Index::new(u64::from(BLOCKS) * u64::from(BLOCK_BYTES), 1, entries).expect("valid"))
}

/// Whether a VM's session and its connections with others work.
#[derive(Clone)]
struct Plugs {
    session: Arc<watch::Sender<bool>>,
    blocks: Arc<watch::Sender<bool>>,
}

impl Default for Plugs {
    fn default() -> Self {
        let plugged = || Arc::new(watch::Sender::new(true));
        Self { session: plugged(), blocks: plugged() }
    }
}

async fn pulled(plug: &watch::Sender<bool>) {
    // An error: the cluster is gone.
    let mut plug = plug.subscribe();
    let _gone = plug.wait_for(|plugged| !plugged).await;
}

/// All agents by their VMs.
#[derive(Clone, Default)]
struct Network(Arc<Mutex<BTreeMap<VmId, Reached>>>);

type Reached = (Addr<Agent>, Plugs);

impl Network {
    fn reach(&self, vm: &VmId) -> Option<Reached> {
        self.0.lock().expect("one thread").get(vm).cloned()
    }
}

/// The manager that is there now.
type Present = Arc<Mutex<ManagerHandle>>;

/// A VM's way to the manager.
#[derive(Clone)]
struct Line {
    vm: VmId,
    manager: Present,
    network: Network,
}

impl ManagerDialer for Line {
    fn open(&self, hello: Hello, link: u64, events: Recipient<FromManager>) -> TaskLink<ToManager> {
        let (commands, reports) = mpsc::channel(1000);
        let line = self.clone();
        let task = tokio::spawn(async move {
            let tell = |event| events.do_send(FromManager { link, event });
            line.session(hello, reports, &tell).await;
            tell(ManagerEvent::Closed { reason: "the session has ended".into() });
        });
        TaskLink { commands, task: task.abort_handle() }
    }
}

/// Says at the end of a session, however it comes, that it has ended.
struct Session {
    vm: VmId,
    manager: ManagerHandle,
    session: SessionId,
}

impl Session {
    fn say(&self, message: VmMessage) {
        self.manager.vms.send(ToVm { vm: self.vm.clone(), message });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.say(VmMessage::Closed { session: self.session });
    }
}

impl Line {
    async fn session(
        self,
        hello: Hello,
        mut reports: mpsc::Receiver<ToManager>,
        tell: &(impl Fn(ManagerEvent) + Sync),
    ) {
        let Some((_, plugs)) = self.network.reach(&self.vm) else { return };
        if !*plugs.session.borrow() {
            return;
        }
        let (orders, mut queue) = mpsc::channel(64);
        let (reply, answer) = oneshot::channel();
        let (vm, key_hash) = (self.vm.clone(), key_hash(&self.vm));
        let manager = self.manager.lock().expect("one thread").clone();
        manager.fleet.send(ToFleet::Open(Opening { vm, key_hash, hello, orders, reply }));
        let Ok(Ok(session)) = answer.await else { return };
        let session = Session { vm: self.vm, manager, session };
        let slots = Arc::new(Semaphore::new(64));
        let pulled = pulled(&plugs.session);
        tokio::pin!(pulled);
        loop {
            tokio::select! {
                () = &mut pulled => return,
                order = queue.recv() => match order {
                    Some(order) => {
                        sleep(HOP).await;
                        tell(ManagerEvent::Says(order));
                    }
                    None => return,
                },
                report = reports.recv() => match report {
                    Some(report) => {
                        let slot = Arc::clone(&slots).acquire_owned().await.expect("never closed");
                        let (slot, message) = (Some(Arc::new(slot)), Box::new(report));
                        session.say(VmMessage::Heard { session: session.session, message, slot });
                    }
                    None => return,
                },
            }
        }
    }
}

/// Connections between VMs, and to the origin.
#[derive(Clone)]
struct Wires {
    own: VmId,
    network: Network,
}

impl Upstreams for Wires {
    fn open(&self, target: UpstreamTarget, events: Recipient<FromUpstream>) -> TaskLink<ToParent> {
        let (commands, queue) = mpsc::channel(64);
        let wires = self.clone();
        let task = tokio::spawn(async move {
            let UpstreamTarget { upstream, link, tree, .. } = target;
            let tell = |event| events.do_send(FromUpstream { upstream: upstream.clone(), link, event });
            sleep(HOP).await;
            match &upstream {
                Upstream::Origin => origin(queue, &tell).await,
                Upstream::Vm { vm, .. } => wires.parent(vm, tree, queue, &tell).await,
            }
            tell(UpstreamEvent::Closed { reason: "the connection has ended".into() });
        });
        TaskLink { commands, task: task.abort_handle() }
    }
}

async fn origin(mut commands: mpsc::Receiver<ToParent>, tell: &(impl Fn(UpstreamEvent) + Sync)) {
    tell(UpstreamEvent::Opened);
    while let Some(command) = commands.recv().await {
        sleep(HOP).await;
        match command {
            ToParent::WantIndex { .. } => {
                let index = index();
                tell(UpstreamEvent::Index { encoded: index.encode().into(), index });
            }
            ToParent::Want { blocks, .. } => {
                let with_bytes = |block| (block, stored(block));
                tell(UpstreamEvent::Blocks(blocks.into_iter().map(with_bytes).collect()));
            }
            ToParent::Open { .. } | ToParent::Hurry { .. } | ToParent::Corrupt { .. } => {}
        }
    }
}

/// Says at the end of a child's connection, however it comes, that it has gone.
struct Child {
    opened: crate::block_transfer::Opened,
}

impl Child {
    fn say(&self, event: ChildEvent) {
        self.opened.requests.do_send(FromChild { child: self.opened.child, event });
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.say(ChildEvent::Gone);
    }
}

impl Wires {
    async fn parent(
        &self,
        vm: &VmId,
        tree: TreeId,
        mut commands: mpsc::Receiver<ToParent>,
        tell: &(impl Fn(UpstreamEvent) + Sync),
    ) {
        let Some((agent, plugs)) = self.network.reach(vm) else { return };
        if !*plugs.blocks.borrow() {
            return;
        }
        let (demand, mut demanded) = mpsc::channel(64);
        let (prefetch, mut prefetched) = mpsc::channel(64);
        let (background, mut of_background) = mpsc::channel(64);
        let link = ChildLink { demand, prefetch, background };
        let opening = OpenChildOf { tree, vm: self.own.clone(), link };
        let Ok(Ok(opened)) = agent.send(opening).await else { return };
        let child = Child { opened };
        tell(UpstreamEvent::Opened);
        let pulled = pulled(&plugs.blocks);
        tokio::pin!(pulled);
        loop {
            let (urgency, (header, body)) = tokio::select! {
                () = &mut pulled => return,
                command = commands.recv() => {
                    let Some(command) = command else { return };
                    match command {
                        ToParent::WantIndex { reach } => child.say(ChildEvent::WantsIndex { reach }),
                        ToParent::Want { blocks, urgency, path, reach, request } => {
                            child.say(ChildEvent::Wants { blocks, urgency, path, reach, request });
                        }
                        ToParent::Hurry { blocks } => child.say(ChildEvent::Hurries(blocks)),
                        ToParent::Corrupt { block } => child.say(ChildEvent::SaysCorrupt(block)),
                        ToParent::Open { .. } => {}
                    }
                    continue;
                }
                answer = demanded.recv() => match answer {
                    Some(answer) => (Urgency::Demand, answer),
                    None => return,
                },
                answer = prefetched.recv() => match answer {
                    Some(answer) => (Urgency::Prefetch, answer),
                    None => return,
                },
                answer = of_background.recv() => match answer {
                    Some(answer) => (Urgency::Background, answer),
                    None => return,
                },
            };
            sleep(HOP).await;
            if matches!(header, FromParent::Block { .. }) {
                child.say(ChildEvent::Sent(urgency));
            }
            tell(match header {
                FromParent::Opened => continue,
                FromParent::Refused { .. } => return,
                FromParent::Index => {
                    let index = Arc::new(Index::decode(&body).expect("the parent has a good one"));
                    UpstreamEvent::Index { index, encoded: body }
                }
                FromParent::Block { block } => UpstreamEvent::Blocks(vec![(block, body)]),
                FromParent::NotServed { block, reason } => UpstreamEvent::NotServed { block, reason },
                FromParent::Waiting { .. } => UpstreamEvent::Waits,
            });
        }
    }
}

/// A disk of one VM.
#[derive(Default)]
struct MemDisk {
    indexes: Mutex<BTreeMap<TreeId, Arc<Index>>>,
    blocks: Mutex<BTreeMap<(TreeId, BlockId), Bytes>>,
}

fn soon<T: Send + 'static>(value: T) -> BoxFuture<'static, T> {
    Box::pin(async {
        sleep(HOP).await;
        value
    })
}

impl Disk for MemDisk {
    fn open(&self, tree: &TreeId, _: &BlockImage) -> BoxFuture<'static, Result<OpenedImage, DiskError>> {
        let blocks = self.blocks.lock().expect("one thread");
        let unverified: BTreeSet<BlockId> =
            blocks.keys().filter(|(of, _)| of == tree).map(|(_, block)| *block).collect();
        let index = self.indexes.lock().expect("one thread").get(tree).cloned();
        soon(Ok(OpenedImage { index, unverified, plain_path: "/plain".into() }))
    }

    fn save_index(&self, tree: &TreeId, encoded: Bytes) -> BoxFuture<'static, Result<(), DiskError>> {
        let index = Arc::new(Index::decode(&encoded).expect("checked"));
        self.indexes.lock().expect("one thread").insert(tree.clone(), index);
        soon(Ok(()))
    }

    fn keep(
        &self,
        tree: &TreeId,
        _: Arc<Index>,
        block: BlockId,
        stored: Bytes,
    ) -> BoxFuture<'static, Result<(), DiskError>> {
        self.blocks.lock().expect("one thread").insert((tree.clone(), block), stored);
        soon(Ok(()))
    }

    fn load(
        &self,
        tree: &TreeId,
        _: Arc<Index>,
        block: BlockId,
    ) -> BoxFuture<'static, Result<Bytes, DiskError>> {
        let stored = self.blocks.lock().expect("one thread").get(&(tree.clone(), block)).cloned();
        soon(stored.ok_or(DiskError::Corrupt(block)))
    }

    fn check(
        &self,
        tree: &TreeId,
        _: Arc<Index>,
        block: BlockId,
    ) -> BoxFuture<'static, Result<bool, DiskError>> {
        soon(Ok(self.blocks.lock().expect("one thread").contains_key(&(tree.clone(), block))))
    }

    fn remove(&self, tree: &TreeId) -> BoxFuture<'static, Result<(), DiskError>> {
        self.indexes.lock().expect("one thread").remove(tree);
        self.blocks.lock().expect("one thread").retain(|(of, _), _| of != tree);
        soon(Ok(()))
    }

    fn save_place(&self, _: &TreeId, _: TreeRecord) -> BoxFuture<'static, Result<(), DiskError>> {
        soon(Ok(()))
    }

    fn save_left(&self, _: &TreeId, _: TreeRecord) -> BoxFuture<'static, Result<(), DiskError>> {
        soon(Ok(()))
    }

    fn save_instance(
        &self,
        _: &StartId,
        _: Option<InstanceRecord>,
    ) -> BoxFuture<'static, Result<(), DiskError>> {
        soon(Ok(()))
    }
}

/// Does at once what it is told; a fresh mount reads all blocks.
#[derive(Default)]
struct MemHolder {
    agent: OnceLock<Recipient<HolderEvent>>,
}

impl Holder for MemHolder {
    fn send(&self, message: ToHolder) -> bool {
        let Some(agent) = self.agent.get().cloned() else { return false };
        let answers = match message {
            ToHolder::Mount(mount) => {
                let blocks = (1..BLOCKS).map(BlockId).collect();
                let image = mount.image;
                vec![FromHolder::Mounted { image }, FromHolder::Miss { image, blocks }]
            }
            ToHolder::Run(run) => vec![FromHolder::Running { start: run.start, pid: 1 }],
            ToHolder::Stop { start, .. } => vec![FromHolder::Exited { start, exit: Exit::Signal(15) }],
            ToHolder::Shutdown { .. } => vec![FromHolder::Bye],
            ToHolder::EndRecording { image } => vec![FromHolder::Recorded { image, ranges: Vec::new() }],
            ToHolder::Hello { .. }
            | ToHolder::Present { .. }
            | ToHolder::Unavailable { .. }
            | ToHolder::Unmount { .. } => return true,
        };
        tokio::spawn(async move {
            sleep(HOP).await;
            answers.into_iter().for_each(|answer| agent.do_send(HolderEvent::Says(answer)));
        });
        true
    }
}

/// Every container is ready at once.
#[derive(Default)]
struct Probes {
    ports: AtomicU16,
}

impl Prober for Probes {
    fn probe(&self, _: u16, _: String, _: Duration) -> BoxFuture<'static, bool> {
        soon(true)
    }

    fn free_port(&self) -> Option<u16> {
        Some(1024 + self.ports.fetch_add(1, Ordering::Relaxed))
    }
}
