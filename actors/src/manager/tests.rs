//! The actors together, on one thread under a paused clock: messages are recorded, sequences asserted.

use super::{Manager, ManagerHandle, ManagerLimits, ManagerWorld};
use crate::{
    event_log::{EventLogLimits, RingLimits},
    function_tree::TreeLimits,
    id::{BlockId, Digest, StartId, TenantId, TreeId, VmId},
    image::{BLOCK_BYTES, BlockImage},
    model::{FunctionSpec, ImageState, StartState, VmState},
    profile::{FilePath, Profile},
    profiles::ProfileLimits,
    scheduler::{ControlError, Limits},
    testing::simulate,
    tree::Complete,
    vm_node::{Opening, SessionId, ToFleet, ToVm, VmMessage},
    wire::{
        PROTOCOL_VERSION,
        control::{
            BytesBySource, Capability, EndReason, HeldTree, Hello, JoinRefusal, StartReport, Step, ToAgent,
            ToManager, Upstream,
        },
        holder::PlainRange,
    },
    world::{
        Batch, BatchLimits, CapabilityIssuer, Condition, ConversionProgress, ConvertFailure, Converter,
        HotSet, Metadata, MetadataError, Packing, Row, Source, Surveyor, Table, TakenIn, Write,
    },
};
use futures::future::BoxFuture;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// A disk that takes a millisecond, and remembers in which order things were done.
#[derive(Default)]
pub(crate) struct Disk {
    rows: Mutex<BTreeMap<(Table, String), Vec<u8>>>,
    commits: Mutex<Vec<usize>>,
}

impl Disk {
    /// Keys of all rows of a table.
    pub(crate) fn keys(&self, table: Table) -> Vec<String> {
        let rows = self.rows.lock().expect("one thread");
        rows.keys().filter(|(of, _)| *of == table).map(|(_, key)| key.clone()).collect()
    }
}

impl Metadata for Disk {
    fn scan(&self, table: Table) -> BoxFuture<'static, Result<Vec<Row>, MetadataError>> {
        let rows = self.rows.lock().expect("one thread");
        let of_table = rows.iter().filter(|((of, _), _)| *of == table);
        let rows = of_table
            .map(|((table, key), value)| Row { table: *table, key: key.clone(), value: value.clone() })
            .collect();
        Box::pin(async { Ok(rows) })
    }

    fn limits(&self) -> BatchLimits {
        BatchLimits { operations_max: 100, bytes_max: 1 << 20 }
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), MetadataError>> {
        self.commits.lock().expect("one thread").push(batch.writes.len());
        let mut rows = self.rows.lock().expect("one thread");
        for Condition { table, key, value } in batch.conditions {
            if rows.get(&(table, key.clone())) != value.as_ref() {
                return Box::pin(async move { Err(MetadataError::Conflict { table, key }) });
            }
        }
        for write in batch.writes {
            match write {
                Write::Put(row) => drop(rows.insert((row.table, row.key), row.value)),
                Write::Delete { table, key } => drop(rows.remove(&(table, key))),
            }
        }
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(())
        })
    }
}

struct Conversions;

impl Converter for Conversions {
    fn convert(
        &self,
        source: &Source,
        packing: Option<Packing>,
        _progress: Arc<ConversionProgress>,
    ) -> BoxFuture<'static, Result<BlockImage, ConvertFailure>> {
        let Source::Image(image) = source else { panic!("no function here has code") };
        let source = digest(image);
        let packed = packing.map(|packing| digest(&format!("{image} {}", packing.profile.fingerprint())));
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(BlockImage { id: packed.unwrap_or(source), ..BlockImage::of_test(source) })
        })
    }
}

/// Every image has one file, which is all of it.
struct Surveys;

const FILE: &[u8] = b"/app";

fn hot_set(image: &BlockImage, profile: &Profile) -> HotSet {
    let parts = profile.parts().iter();
    let blocks: BTreeSet<u32> = parts.map(|part| (part.start / u64::from(BLOCK_BYTES)) as u32).collect();
    HotSet { blocks: blocks.into_iter().map(BlockId).collect(), stored_bytes: image.blob_bytes / 2 }
}

impl Surveyor for Surveys {
    fn take_in(
        &self,
        image: Arc<BlockImage>,
        before: Arc<Profile>,
        ranges: Arc<[PlainRange]>,
    ) -> BoxFuture<'static, Result<TakenIn, String>> {
        let path = FilePath::new(FILE).expect("a path");
        let parts = ranges.iter().map(|range| (path.clone(), range.0..range.0 + range.1));
        let mut profile = (*before).clone();
        profile.merge(&Profile::recorded(parts), 3);
        let hot = hot_set(&image, &profile);
        Box::pin(async move { Ok(TakenIn { profile, hot }) })
    }

    fn place(
        &self,
        image: Arc<BlockImage>,
        profile: Arc<Profile>,
    ) -> BoxFuture<'static, Result<HotSet, String>> {
        Box::pin(async move { Ok(hot_set(&image, &profile)) })
    }
}

pub(crate) fn digest(image: &str) -> Digest {
    Digest::from_bytes(*blake3::hash(image.as_bytes()).as_bytes())
}

/// Issues readable capabilities; panics for one image, as a bug would.
struct Capabilities;

pub(crate) const PANICS: &str = "panics:1";

impl CapabilityIssuer for Capabilities {
    fn issue(&self, tree: &TreeId, vm: &VmId, key_hash: &[u8]) -> Capability {
        assert_ne!(tree.image, digest(PANICS), "injected");
        Capability { claims: vm.to_string().into_bytes(), signature: key_hash.to_vec() }
    }
}

pub(crate) fn world(disk: &Arc<Disk>) -> ManagerWorld {
    let lease = Duration::from_secs(3);
    ManagerWorld {
        metadata: Arc::clone(disk) as Arc<dyn Metadata>,
        converter: Arc::new(Conversions),
        surveyor: Arc::new(Surveys),
        capabilities: Arc::new(Capabilities),
        capability_key: vec![1; 32],
        topology: Arc::new(|| Box::new(Complete::new(2))),
        term: 7,
        seed: [3; 32],
        wall_clock: Arc::new(|| 1_000),
        limits: ManagerLimits {
            scheduler: Limits {
                starts_at_once_per_vm: 1,
                vm_idle: Duration::from_secs(900),
                drain_deadline: Duration::from_secs(300),
                functions_max: 10,
                functions_per_vm_max: 20,
                starts_per_request_max: 100,
                preheat_vms_max: 100,
                starts_waiting_max: 100,
                starts_kept: 100,
                instances_per_function_max: 3000,
                keep_alive: Duration::from_secs(900),
                keep_alive_max: Duration::from_secs(86_400),
                restart_min: Duration::from_millis(500),
                restart_max: Duration::from_secs(60),
                requests_waiting_per_function_max: 10,
                requests_waiting_max: 20,
                placement_deadline: Duration::from_secs(30),
                ready_deadline: Duration::from_secs(120),
                lease,
                rejoin_grace: Duration::from_secs(8),
                recordings_max: 3,
                recordings_at_once_max: 2,
                starts_per_row_max: 100,
                batch: BatchLimits { operations_max: 100, bytes_max: 1 << 20 },
                coalesce: Duration::from_millis(250),
            },
            profiles: ProfileLimits { optimize_after: 0, ..ProfileLimits::SHIPPED },
            tree: TreeLimits { lease, ..TreeLimits::SHIPPED },
            heartbeat: Duration::from_secs(1),
            lease,
            orders_in_flight_max: 16,
            orders_queued_max: 16,
            rejoin_grace: lease / 2,
            mailbox_permits: 100,
            tree_threads: 0,
            journal_bytes_max: 1 << 20,
            events: EventLogLimits {
                ring: RingLimits { events_max: 1000, bytes_max: 1 << 20 },
                waiting_max: 1000,
                counted_max: 1000,
                coalesce: Duration::from_millis(250),
            },
        },
    }
}

pub(crate) fn tenant() -> TenantId {
    "acme".parse().expect("name")
}

fn spec(image: &str) -> FunctionSpec {
    FunctionSpec {
        image: image.into(),
        memory_mib: 256,
        cpu_millis: 100,
        concurrency: 2,
        min_instances: 0,
        max_instances: None,
        keep_alive_ms: None,
        probe_path: "/".into(),
        mode: crate::wire::control::Mode::default(),
        env: BTreeMap::new(),
        code: None,
        command: None,
    }
}

/// An agent at the other end of a session.
struct TestAgent {
    vm: VmId,
    session: SessionId,
    orders: mpsc::Receiver<ToAgent>,
    manager: ManagerHandle,
}

impl TestAgent {
    async fn open(manager: &ManagerHandle, number: u8) -> Result<Self, JoinRefusal> {
        let vm: VmId = format!("vm-{number}").parse().expect("name");
        let key_hash: Arc<[u8]> = vec![number].into();
        let (reply, answer) = oneshot::channel();
        manager.fleet.send(ToFleet::Register { vm: vm.clone(), key_hash: key_hash.clone(), reply });
        answer.await.expect("answered")?;
        let hello = Hello {
            version: PROTOCOL_VERSION,
            memory_bytes: 1 << 30,
            cpu_millis: 1000,
            address: ([127, 0, 0, 1], 1000 + u16::from(number)).into(),
            held: Vec::new(),
            proofs: Vec::new(),
            instances: Vec::new(),
        };
        let (orders, queue) = mpsc::channel(16);
        let (reply, answer) = oneshot::channel();
        manager.fleet.send(ToFleet::Open(Opening { vm: vm.clone(), key_hash, hello, orders, reply }));
        let session = answer.await.expect("answered")?;
        Ok(Self { vm, session, orders: queue, manager: manager.clone() })
    }

    fn say(&self, message: ToManager) {
        let message = VmMessage::Heard { session: self.session, message: Box::new(message), slot: None };
        self.manager.vms.send(ToVm { vm: self.vm.clone(), message });
    }

    /// The next order, in short.
    async fn next(&mut self) -> String {
        let upstream = |upstream: &Upstream| match upstream {
            Upstream::Vm { vm, .. } => vm.to_string(),
            Upstream::Origin => "origin".into(),
        };
        let stripes = |place: &crate::wire::control::Place| {
            assert_eq!(place.capability.claims, self.vm.as_str().as_bytes());
            place.stripes[0].iter().map(upstream).collect::<Vec<_>>().join(",")
        };
        match self.orders.recv().await {
            None => "closed".into(),
            Some(ToAgent::Welcome { heartbeat_ms, .. }) => format!("welcome {heartbeat_ms}"),
            Some(ToAgent::Start(order)) => {
                format!("start {} from {}", order.function, stripes(&order.place))
            }
            Some(ToAgent::Place(place)) => {
                format!("place {}.{} at {}", place.epoch.term, place.epoch.counter, stripes(&place))
            }
            Some(ToAgent::Preheat(order)) => {
                format!("preheat {:?} from {}", order.what, stripes(&order.place))
            }
            Some(ToAgent::Stop { .. }) => "stop".into(),
            Some(ToAgent::Renewed { .. }) => "renewed".into(),
            Some(ToAgent::Leave { .. }) => "leave".into(),
            Some(ToAgent::Observe { number, .. }) => format!("observe {number}"),
            Some(ToAgent::Origin { answer, .. }) => format!("origin {answer:?}"),
            Some(ToAgent::GiveUp { trees }) => format!("give up {}", trees.len()),
            Some(ToAgent::Refused { reason }) => format!("refused {reason}"),
            Some(ToAgent::Yielded) => "yielded".to_owned(),
        }
    }

    fn ready(&self, start: &StartId) {
        let report = StartReport { steps_us: BTreeMap::from([(Step::Probe, 5)]), ..Default::default() };
        self.say(ToManager::Ready { start: start.clone(), report });
    }
}

pub(crate) async fn deploy(manager: &ManagerHandle, name: &str, image: &str) {
    let name: crate::id::FunctionName = name.parse().expect("name");
    manager.scheduler.put_function(tenant(), name.clone(), spec(image)).await.expect("put");
    loop {
        let view = manager.scheduler.function(tenant(), name.clone()).await.expect("known");
        if matches!(view.image_state, ImageState::Ready { .. }) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn start(manager: &ManagerHandle, name: &str) -> StartId {
    let starts = manager.scheduler.start(tenant(), name.parse().expect("name"), 1).await.expect("accepted");
    starts.into_iter().next().expect("one")
}

#[test]
fn a_start_walks_from_the_api_through_the_tree_to_the_agent_and_back() {
    simulate(async {
        let disk = Arc::new(Disk::default());
        let manager = Manager::start(world(&disk));
        let mut agents = [
            TestAgent::open(&manager, 1).await.expect("vm-1"),
            TestAgent::open(&manager, 2).await.expect("vm-2"),
        ];
        for agent in &mut agents {
            assert_eq!(agent.next().await, "welcome 1000");
        }
        deploy(&manager, "api", "app:1").await;
        let first = start(&manager, "api").await;
        let row = (Table::Starts, first.to_string());
        assert!(disk.rows.lock().expect("one thread").contains_key(&row), "invariant 9");
        tokio::time::sleep(Duration::from_millis(1)).await;
        let view = manager.scheduler.start_view(tenant(), first.clone()).await.expect("known");
        assert_eq!(view.state, StartState::Starting);
        let root = view.vm.expect("placed");
        let [one, two] = &mut agents;
        let (root, child) = if one.vm == root { (one, two) } else { (two, one) };
        assert_eq!(root.next().await, "start api from origin");
        // While the root still starts, a free VM comes before a second instance on it.
        let second = start(&manager, "api").await;
        assert_eq!(child.next().await, format!("start api from {}", root.vm));
        root.ready(&first);
        child.ready(&second);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let tree = manager.scheduler.tree(tenant(), "api".parse().expect("name")).await.expect("a tree");
        assert_eq!((tree.epoch.term, tree.epoch.counter, tree.height), (7, 2, 1));
        assert!(tree.members.iter().all(|member| member.ready));
        // The root's session ends: its child is told at once to read the origin.
        manager.vms.send(ToVm { vm: root.vm.clone(), message: VmMessage::Closed { session: root.session } });
        assert_eq!(child.next().await, "place 7.3 at origin");
        assert_eq!(root.next().await, "closed");
    });
}

#[test]
fn a_start_above_the_limit_of_its_vm_waits_in_the_node_and_is_ordered_when_the_one_before_is_ready() {
    simulate(async {
        let mut world = world(&Arc::default());
        world.limits.orders_in_flight_max = 1;
        let manager = Manager::start(world);
        let mut agent = TestAgent::open(&manager, 1).await.expect("vm-1");
        assert_eq!(agent.next().await, "welcome 1000");
        deploy(&manager, "api", "app:1").await;
        let first = start(&manager, "api").await;
        assert_eq!(agent.next().await, "start api from origin");
        let second = start(&manager, "api").await;
        // Longer than an order may be on its way: it is in its node, and nobody looks for another VM.
        for _ in 0..6 {
            agent.say(ToManager::Heartbeat { held: Vec::new() });
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(agent.orders.is_empty());
        agent.ready(&first);
        assert_eq!(agent.next().await, "start api from origin");
        agent.ready(&second);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let view = manager.scheduler.start_view(tenant(), second).await.expect("known");
        assert_eq!(view.state, StartState::Ready);
    });
}

#[test]
fn a_drained_vm_is_emptied_and_out_of_its_tree_and_stays_so_under_the_next_manager() {
    simulate(async {
        let disk = Arc::new(Disk::default());
        let manager = Manager::start(world(&disk));
        let mut agent = TestAgent::open(&manager, 1).await.expect("vm-1");
        assert_eq!(agent.next().await, "welcome 1000");
        deploy(&manager, "api", "app:1").await;
        let first = start(&manager, "api").await;
        assert_eq!(agent.next().await, "start api from origin");
        agent.ready(&first);
        let mut other = TestAgent::open(&manager, 2).await.expect("vm-2");
        assert_eq!(other.next().await, "welcome 1000");
        let soon = tokio::time::Instant::now() + Duration::from_secs(9);
        let place = manager.scheduler.acquire(tenant(), "api".parse().expect("name"), None, soon);
        drop(place.await.expect("a place"));
        let draining = manager.scheduler.drain_vm(agent.vm.clone(), false).await.expect("drained");
        assert_eq!(draining.state, VmState::Draining);
        assert_eq!(other.next().await, "start api from vm-1");
        let second = &manager.scheduler.vms().await.expect("listed")[1].instances[0];
        other.ready(second);
        assert_eq!(agent.next().await, "stop");
        let report = StartReport::default();
        agent.say(ToManager::Ended { start: first, reason: EndReason::Stopped, report });
        let Some(ToAgent::Place(place)) = other.orders.recv().await else { panic!("no new place") };
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(agent.orders.is_empty(), "those below it have their new places first");
        let held = HeldTree {
            tree: place.tree,
            epoch: place.epoch,
            place: place.seat.place,
            blocks_present: 1,
            blocks_total: 9,
            bytes: BytesBySource::default(),
            longest_stall_us: 0,
            preheated: None,
        };
        other.say(ToManager::Heartbeat { held: vec![held] });
        assert_eq!(agent.next().await, "leave");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let view = manager.scheduler.vms().await.expect("listed").remove(0);
        assert_eq!((view.state, view.draining), (VmState::Drained, true));
        manager.shut_down().await;

        let manager = Manager::start(world(&disk));
        let view = manager.scheduler.vms().await.expect("listed").remove(0);
        assert_eq!((view.state, view.draining), (VmState::Lost, true));
        let _agent = TestAgent::open(&manager, 1).await.expect("vm-1");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(manager.scheduler.vms().await.expect("listed")[0].state, VmState::Drained);
    });
}

#[test]
fn a_block_image_of_an_earlier_release_is_converted_again_once() {
    simulate(async {
        let disk = Arc::new(Disk::default());
        let manager = Manager::start(world(&disk));
        deploy(&manager, "api", "app:1").await;
        manager.shut_down().await;
        let image = BlockImage::of_test(digest("app:1"));
        let row = (Table::Images, image.id.to_string());
        let alone = crate::scheduler::encode(&image);
        let before = disk.rows.lock().expect("one thread").insert(row, alone);
        assert!(before.is_some(), "the row of the image");

        let state = async |manager: &ManagerHandle| {
            let name = "api".parse().expect("name");
            manager.scheduler.function(tenant(), name).await.expect("known").image_state
        };
        let manager = Manager::start(world(&disk));
        assert!(matches!(state(&manager).await, ImageState::Converting { .. }));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(matches!(state(&manager).await, ImageState::Ready { .. }));
        manager.shut_down().await;

        let manager = Manager::start(world(&disk));
        assert!(matches!(state(&manager).await, ImageState::Ready { .. }), "its row says the format now");
    });
}

#[test]
fn a_request_waits_for_the_start_that_it_causes_and_gives_its_place_back() {
    simulate(async {
        let manager = Manager::start(world(&Arc::default()));
        let mut agent = TestAgent::open(&manager, 1).await.expect("vm-1");
        deploy(&manager, "api", "app:1").await;
        assert_eq!(agent.next().await, "welcome 1000");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let acquire = || manager.scheduler.acquire(tenant(), "api".parse().expect("name"), None, deadline);
        let answer = async {
            let Some(ToAgent::Start(order)) = agent.orders.recv().await else { panic!("no start") };
            agent.ready(&order.start);
        };
        let (first, second, ()) = tokio::join!(acquire(), acquire(), answer);
        let (first, second) = (first.expect("granted"), second.expect("granted"));
        assert_eq!(first.located(), second.located());
        drop(first);
        let third = acquire().await.expect("the place is free again");
        drop((second, third));
    });
}

#[test]
fn a_caller_that_leaves_is_taken_out_at_once() {
    simulate(async {
        let manager = Manager::start(world(&Arc::default()));
        deploy(&manager, "api", "app:1").await;
        let name = || "api".parse().expect("name");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let caller = actix::spawn({
            let (scheduler, name) = (manager.scheduler.clone(), name());
            async move { scheduler.acquire(tenant(), name, None, deadline).await.map(|_| ()) }
        });
        let waiting = async || manager.scheduler.function(tenant(), name()).await.expect("known").waiting;
        tokio::task::yield_now().await;
        assert_eq!(waiting().await, 1);
        let before = tokio::time::Instant::now();
        caller.abort();
        assert!(caller.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(waiting().await, 0);
        assert_eq!(before.elapsed(), Duration::ZERO, "without a tick");
    });
}

#[test]
fn the_mailbox_has_room_for_one_tenant_when_another_fills_its_share() {
    simulate(async {
        let manager = Manager::start(world(&Arc::default()));
        let calls = (0..60).map(|_| manager.scheduler.functions(tenant()));
        let other = manager.scheduler.functions("other".parse().expect("name"));
        let (answers, other) = futures::future::join(futures::future::join_all(calls), other).await;
        let refused = |answer: &&Result<_, _>| matches!(answer, Err(ControlError::TooMany { .. }));
        assert_eq!(answers.iter().filter(refused).count(), 10, "100 places, of which one may have 50");
        assert!(other.is_ok());
        assert!(manager.scheduler.functions(tenant()).await.is_ok(), "places come back");
    });
}

#[test]
fn a_panic_in_one_tree_leaves_the_others_undisturbed() {
    simulate(async {
        let manager = Manager::start(world(&Arc::default()));
        let mut agent = TestAgent::open(&manager, 1).await.expect("vm-1");
        assert_eq!(agent.next().await, "welcome 1000");
        deploy(&manager, "bad", PANICS).await;
        deploy(&manager, "api", "app:1").await;
        let before = start(&manager, "api").await;
        assert_eq!(agent.next().await, "start api from origin");
        let bad = start(&manager, "bad").await;
        agent.ready(&before);
        tokio::time::sleep(Duration::from_millis(1)).await;
        start(&manager, "api").await;
        assert_eq!(agent.next().await, "start api from origin");
        let view = manager.scheduler.start_view(tenant(), before).await.expect("known");
        assert_eq!(view.state, StartState::Ready);
        let tree = manager.scheduler.tree(tenant(), "api".parse().expect("name")).await.expect("a tree");
        assert_eq!((tree.epoch.counter, tree.members.len()), (1, 1));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let view = manager.scheduler.start_view(tenant(), bad).await.expect("known");
        assert_eq!(view.state, StartState::Ended, "invariant 10");
    });
}

#[test]
fn a_name_belongs_to_one_key_and_a_vm_has_one_session() {
    simulate(async {
        let manager = Manager::start(world(&Arc::default()));
        let mut first = TestAgent::open(&manager, 1).await.expect("vm-1");
        assert_eq!(TestAgent::open(&manager, 1).await.err(), Some(JoinRefusal::NameTaken));
        let (reply, answer) = oneshot::channel();
        let vm = first.vm.clone();
        manager.fleet.send(ToFleet::Register { vm, key_hash: vec![99].into(), reply });
        assert_eq!(answer.await.expect("answered"), Err(JoinRefusal::NameTaken));
        // Silent for a lease, it loses its session, and may open another.
        assert_eq!(first.next().await, "welcome 1000");
        assert_eq!(first.next().await, "closed");
        assert!(TestAgent::open(&manager, 1).await.is_ok());
    });
}

#[test]
fn commits_that_come_together_are_made_together() {
    simulate(async {
        let disk = Arc::new(Disk::default());
        let manager = Manager::start(world(&disk));
        deploy(&manager, "api", "app:1").await;
        disk.commits.lock().expect("one thread").clear();
        let starts = (0..20).map(|_| start(&manager, "api"));
        futures::future::join_all(starts).await;
        assert_eq!(*disk.commits.lock().expect("one thread"), [1, 19]);
    });
}

#[test]
fn after_a_shutdown_sessions_are_closed_and_callers_are_told() {
    simulate(async {
        let manager = Manager::start(world(&Arc::default()));
        let mut agent = TestAgent::open(&manager, 1).await.expect("vm-1");
        assert_eq!(agent.next().await, "welcome 1000");
        manager.shut_down().await;
        assert_eq!(agent.next().await, "closed");
        assert!(!manager.is_up());
        assert_eq!(manager.scheduler.vms().await.err(), Some(ControlError::Closed));
    });
}
