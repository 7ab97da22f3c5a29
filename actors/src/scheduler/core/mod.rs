//! The scheduler's decisions: admission, placement, routing, scaling.
//!
//! ```text
//!              durable            VM chosen           handed over           probe
//!   (accepted) -------> waiting ------------> chosen ------------> ordered -------> ready
//!                          ^  |                  |                    |               |
//!                          |  | no room in time  | undeliverable      | failed, lost  | exited, stopped
//!                          |  v                  |                    v               v
//!                          |  ended <------------+---------------------------------- ended
//!                          +---------------------+
//! ```
//!
//! Invariants: 8 (no VM runs two tenants, more functions or more memory than it may), 9 (what is
//! answered is durable) and 10 (each start ends, with a reason).

mod copies;
mod drains;
mod functions;
mod hot;
mod placement;
mod pools;
mod preheat;
mod requests;
mod rows;
mod scaling;
mod starts;
mod telling;
mod views;
mod vms;

use super::{
    messages::{ControlError, Located},
    records::{FunctionKey, Loaded, StartRow},
};
use crate::{
    event_log::News,
    function_tree::{Contact, PreheatDraft, StartDraft},
    id::{FunctionName, ImageId, RequestId, StartId, TenantId, TreeId, VmId},
    image::BlockImage,
    model::{FunctionSpec, FunctionView, PreheatSpec, PreheatView, VmView},
    profiles::{Hint, Hinted, ProfileKey, Recording},
    resources::Resources,
    support::Shares,
    vm_node::VmEvent,
    wire::control::{ColdTree, EndReason, HeldTree, StartReport},
    world::{BatchLimits, ConversionProgress, KeyHash, MetadataError, Source, Write},
};
use pools::{Entry, Pools};
use preheat::Preheats;
use rand::rngs::StdRng;
use rows::StartRows;
use scaling::Failures;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    iter,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use telling::Changed;
use tokio::time::Instant;

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub functions_max: usize,
    pub functions_per_vm_max: usize,
    pub starts_per_request_max: u32,
    pub starts_waiting_max: usize,
    /// VMs that one request may preheat.
    pub preheat_vms_max: usize,
    pub starts_kept: usize,
    /// Most, and default, of a function's `max_instances`.
    pub instances_per_function_max: u32,
    /// How long an instance is kept without a request, if its function does not say.
    pub keep_alive: Duration,
    pub keep_alive_max: Duration,
    /// First and longest pause before an instance that ended by itself is replaced to reach `min_instances`.
    pub restart_min: Duration,
    pub restart_max: Duration,
    pub requests_waiting_per_function_max: usize,
    /// Of all tenants; one tenant's are at most as many as places are left.
    pub requests_waiting_max: usize,
    /// How long a start waits for a VM with room.
    pub placement_deadline: Duration,
    /// From the order to ready.
    pub ready_deadline: Duration,
    /// Silence after which a VM is lost.
    pub lease: Duration,
    /// Starts under way on an active VM from which on a free one is preferred.
    pub starts_at_once_per_vm: u32,
    /// How long a VM on which nothing runs stays with its tenant.
    pub vm_idle: Duration,
    /// How long instances may stay on a VM that is drained.
    pub drain_deadline: Duration,
    /// How long a new manager waits for agents to tell of the starts that it found accepted.
    pub rejoin_grace: Duration,
    /// Starts that are recorded for one source image.
    pub recordings_max: u32,
    /// Of those, starts under way at once.
    pub recordings_at_once_max: usize,
    /// Starts of one request in one row of the metadata store.
    pub starts_per_row_max: usize,
    /// What the metadata store takes at once.
    pub batch: BatchLimits,
    /// How often at most one function or VM is told to whoever watches.
    pub coalesce: Duration,
}

/// Whoever waits for an answer; numbered by the shell, in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Writes on their way to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(pub u64);

#[derive(Debug)]
pub enum Event {
    /// What an earlier manager left. Comes first.
    Loaded(Box<Loaded>),
    Put {
        ticket: Ticket,
        key: FunctionKey,
        spec: Box<FunctionSpec>,
    },
    Delete {
        ticket: Ticket,
        key: FunctionKey,
    },
    Start {
        ticket: Ticket,
        key: FunctionKey,
        count: u32,
    },
    Stop {
        ticket: Ticket,
        tenant: TenantId,
        start: StartId,
    },
    Acquire {
        ticket: Ticket,
        key: FunctionKey,
        on: Option<StartId>,
        deadline: Instant,
    },
    Preheat {
        ticket: Ticket,
        key: FunctionKey,
        spec: PreheatSpec,
    },
    RemoveVm {
        ticket: Ticket,
        vm: VmId,
    },
    Drain {
        ticket: Ticket,
        vm: VmId,
        /// Also when no other VM takes starts.
        force: bool,
    },
    Undrain {
        ticket: Ticket,
        vm: VmId,
    },
    /// Nobody waits for that answer any more.
    Abandoned {
        ticket: Ticket,
    },
    /// A request at that instance is over.
    Released {
        start: StartId,
    },
    /// Those writes are durable, or they are not.
    Written {
        write: WriteId,
        result: Result<(), MetadataError>,
    },
    Converted {
        source: Source,
        result: Result<Box<BlockImage>, String>,
    },
    News {
        vm: VmId,
        event: VmEvent,
    },
    /// What is known of the starts on one source image.
    Hinted(Hinted),
    Tick,
}

#[derive(Debug)]
pub enum Effect {
    Answer {
        ticket: Ticket,
        answer: Result<Answer, ControlError>,
    },
    /// To be answered by `Event::Written`, in the order of these effects.
    Persist {
        write: WriteId,
        writes: Vec<Write>,
    },
    /// To be answered by `Event::Converted`.
    Convert {
        source: Source,
        progress: Arc<ConversionProgress>,
    },
    Join {
        tree: TreeId,
        vm: VmId,
        contact: Contact,
        start: Box<StartDraft>,
    },
    /// The VM is to hold blocks of the tree's image without a start.
    Preheat {
        tree: TreeId,
        vm: VmId,
        contact: Contact,
        draft: Box<PreheatDraft>,
    },
    Leave {
        tree: TreeId,
        vm: VmId,
    },
    Dissolve {
        tree: TreeId,
    },
    Stop {
        vm: VmId,
        start: StartId,
    },
    /// The images that a VM with a full cache removes, of those that it named.
    GiveUp {
        vm: VmId,
        trees: Vec<TreeId>,
    },
    Forget {
        vm: VmId,
    },
    /// For the keeper of profiles.
    Recorded {
        tenant: TenantId,
        recording: Recording,
    },
    /// For whoever watches.
    Tell(News),
}

#[derive(Debug, PartialEq)]
pub enum Answer {
    Done,
    Function(Box<FunctionView>),
    Started(Vec<StartId>),
    Acquired(Located),
    Vm(Box<VmView>),
    Preheat(Box<PreheatView>),
}

/// Where one block image of a function stands.
enum Image {
    Converting,
    Ready(Arc<BlockImage>),
    Failed(String),
}

/// Where all that a function is made of stands.
enum Images<'a> {
    Converting,
    Ready(ReadyImages<'a>),
    Failed(&'a str),
}

#[derive(Clone, Copy)]
struct ReadyImages<'a> {
    image: &'a Arc<BlockImage>,
    code: Option<&'a Arc<BlockImage>>,
}

impl<'a> ReadyImages<'a> {
    fn ids(self) -> impl Iterator<Item = ImageId> + use<'a> {
        iter::once(self.image).chain(self.code).map(|image| image.id)
    }
}

struct Function {
    spec: FunctionSpec,
    image: Image,
    /// Its package of code, if it has one.
    code: Option<Image>,
    /// Counts descriptions and images of this function.
    revision: u64,
    /// Starts and instances that have not ended.
    live: BTreeSet<StartId>,
    /// Those among them that are not ready, and are not being stopped.
    unfinished: BTreeSet<StartId>,
    /// Those among them that have no VM, by the order of acceptance.
    unplaced: BTreeMap<u64, StartId>,
    /// Those that count for the function's limits.
    counted: BTreeSet<StartId>,
    /// Instances that take requests, by the number of requests they have.
    routable: BTreeSet<(u32, StartId)>,
    /// Those that had no request for too long, and stay because of `min_instances`.
    kept: BTreeSet<StartId>,
    /// How many had served requests when a VM of theirs was drained; 0 when none is to be moved.
    had_served: usize,
    failures: Failures,
    /// Starts on their way to the disk.
    accepting: u32,
    /// Requests that any instance may serve; the lowest number waits longest.
    requests: BTreeSet<Ticket>,
    /// Requests for one instance.
    pinned: BTreeMap<StartId, BTreeSet<Ticket>>,
    /// How many there are of both kinds.
    requests_waiting: usize,
}

/// A request that waits for an instance.
struct Waiter {
    key: FunctionKey,
    on: Option<StartId>,
    deadline: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Found accepted by a new manager: it may run somewhere.
    Recovering,
    Waiting,
    Chosen,
    Ordered,
    Ready,
    Ended,
}

struct Start {
    /// The order of acceptance.
    sequence: u64,
    key: FunctionKey,
    phase: Phase,
    vm: Option<VmId>,
    /// What it is made of, once it has a VM.
    images: Vec<ImageId>,
    revision: u64,
    /// What it takes of its VM.
    needs: Resources,
    /// VMs that could not be given the order.
    avoid: BTreeSet<VmId>,
    /// Its order waits in the node of its VM.
    queued: bool,
    /// It was asked to end.
    stopping: bool,
    /// It takes no more requests, because a newer one of its function is ready or there are too many.
    draining: bool,
    /// It was ready when its VM was lost.
    is_lost: bool,
    /// It is to be recorded, and has not been.
    recorded_for: Option<ProfileKey>,
    /// It had a request, or may have had one before this manager.
    has_served: bool,
    in_flight: u32,
    /// Since when it has no request, while it takes some.
    idle_since: Option<Instant>,
    accepted_at: Instant,
    accepted_at_ms: Option<u64>,
    /// The request that it was accepted for; none if the function's scaling wanted it later.
    request: Option<RequestId>,
    chosen_at: Option<Instant>,
    ordered_at: Option<Instant>,
    ready_at: Option<Instant>,
    timer: Option<Instant>,
    report: StartReport,
    reason: Option<EndReason>,
    /// Why it ends, if that is known before it has: it was idle, or ended while the scheduler was away.
    ends_as: Option<EndReason>,
}

#[derive(Default)]
struct Vm {
    up: bool,
    address: Option<SocketAddr>,
    key_hash: Option<KeyHash>,
    capacity: Resources,
    used: Resources,
    functions: BTreeMap<FunctionKey, BTreeSet<StartId>>,
    /// Its instances and starts by tree.
    trees: BTreeMap<TreeId, u32>,
    /// Starts on it that are not ready.
    starting: BTreeSet<StartId>,
    /// What it holds, by its own word.
    held: BTreeMap<TreeId, HeldTree>,
    /// What it has kept of trees that it has left, by its own word.
    cold: BTreeMap<TreeId, ColdTree>,
    /// Images that it was told to give up and still has.
    going: BTreeSet<TreeId>,
    /// Trees that its node has sent it to.
    member_of: BTreeSet<TreeId>,
    /// What it was told to hold whether it runs anything or not.
    preheats: Preheats,
    /// Whose it is; None in the free pool.
    tenant: Option<TenantId>,
    rest: Rest,
    /// It is drained: what runs there is stopped then at the latest.
    drain_by: Option<Instant>,
    /// As the pools know it; None while it takes no starts.
    entry: Option<Entry>,
}

/// What becomes of a VM on which nothing runs.
///
/// ```text
///             last instance ended          idle for vm_idle, or          in no tree
///             or was never one             another tenant needs it,      any more
///                                          or it is drained
///   (busy) ------------------------> idle -----------------------> leaving ---------> (free)
///      ^                              |
///      +------------------------------+ a start
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Rest {
    /// It runs something, is free, or is not there.
    #[default]
    None,
    /// Stays with its tenant until then, and with its trees, so that it starts their images at once.
    Idle { until: Instant },
    /// Was told to leave its trees, and is told again then.
    Leaving { again: Instant },
}

/// What becomes true when it is durable.
enum Change {
    Put {
        ticket: Ticket,
        key: FunctionKey,
        spec: Box<FunctionSpec>,
    },
    Delete {
        ticket: Ticket,
        key: FunctionKey,
    },
    Accept {
        ticket: Option<Ticket>,
        key: FunctionKey,
        rows: Vec<StartRow>,
        accepted_at: Instant,
    },
    Image {
        source: Source,
        image: Arc<BlockImage>,
    },
    /// The function's starts use that image, packed for them, from now on.
    Packed {
        key: FunctionKey,
        image: Arc<BlockImage>,
    },
    RemoveVm {
        ticket: Ticket,
        vm: VmId,
    },
    Drain {
        ticket: Ticket,
        vm: VmId,
    },
    Undrain {
        ticket: Ticket,
        vm: VmId,
    },
    /// Rows without the starts that have ended.
    Rows,
    /// That functions have an image: without it a later manager looks for it again.
    Hint,
}

/// Starts that may find room now.
#[derive(Default)]
struct Tries {
    functions: BTreeSet<FunctionKey>,
    /// Of these all that wait.
    tenants: BTreeSet<TenantId>,
}

pub struct SchedulerCore {
    limits: Limits,
    rng: StdRng,
    functions: BTreeMap<FunctionKey, Function>,
    conversions: BTreeMap<Source, Arc<ConversionProgress>>,
    /// What is known of the starts on source images.
    hints: BTreeMap<ProfileKey, Hint>,
    /// Starts under way that are to be recorded.
    recording: BTreeMap<ProfileKey, BTreeSet<StartId>>,
    /// Functions whose packed image could not be made durable, by when that is tried again.
    not_packed: BTreeSet<(Instant, FunctionKey)>,
    starts: BTreeMap<StartId, Start>,
    /// All starts of a function that are known, in the order of acceptance.
    history: BTreeMap<FunctionKey, BTreeSet<(u64, StartId)>>,
    /// Ended starts, the oldest first.
    ended: VecDeque<StartId>,
    rows: StartRows,
    vms: BTreeMap<VmId, Vm>,
    /// Instances and starts that use a tree.
    trees: BTreeMap<TreeId, u32>,
    /// Who holds something of an image, members and others.
    holders: BTreeMap<TreeId, BTreeSet<VmId>>,
    timers: BTreeSet<(Instant, StartId)>,
    /// When functions are looked at that miss instances.
    retries: BTreeSet<(Instant, FunctionKey)>,
    deadlines: BTreeSet<(Instant, Ticket)>,
    waiters: BTreeMap<Ticket, Waiter>,
    /// How many of them each tenant has.
    waiting: Shares<TenantId>,
    changes: BTreeMap<WriteId, Change>,
    /// Starts that have no VM, or are on their way to the disk.
    starts_waiting: Shares<TenantId>,
    sequence: u64,
    writes: u64,
    pools: Pools,
    /// What VMs have that ever said so, with how many have the same.
    sizes: BTreeMap<Resources, u32>,
    /// VMs that rest, by when that ends.
    rests: BTreeSet<(Instant, VmId)>,
    /// How many of them leave their trees to be free.
    leaving: usize,
    /// Orders to preheat of which nothing is heard yet, by when they count as lost.
    preheats_awaited: BTreeSet<(Instant, VmId, TreeId)>,
    /// VMs that are drained.
    draining: BTreeSet<VmId>,
    /// Functions whose instances are moved because of that.
    moved: BTreeSet<FunctionKey>,
    /// Functions that may have starts without a VM; those that have none any more are dropped when they are met.
    queue: BTreeMap<TenantId, BTreeSet<FunctionName>>,
    /// Who is to be tried again because there may be room for it now.
    tries: Tries,
    /// Whose start was placed last: the next turn is another's.
    last_turn: Option<TenantId>,
    /// Something happened after which any start may find room.
    room_changed: bool,
    /// What is to be told when this event is over.
    changed: Changed,
    /// Unix time of this event.
    unix_ms: u64,
    /// The request that this event comes from.
    request: Option<RequestId>,
}

/// Pause suggested to a caller that met a limit: starts and requests come and go within a second.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl SchedulerCore {
    pub fn new(limits: Limits, rng: StdRng) -> Self {
        Self {
            limits,
            rng,
            functions: BTreeMap::new(),
            conversions: BTreeMap::new(),
            hints: BTreeMap::new(),
            recording: BTreeMap::new(),
            not_packed: BTreeSet::new(),
            starts: BTreeMap::new(),
            history: BTreeMap::new(),
            ended: VecDeque::new(),
            rows: StartRows::default(),
            vms: BTreeMap::new(),
            trees: BTreeMap::new(),
            holders: BTreeMap::new(),
            timers: BTreeSet::new(),
            retries: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            waiters: BTreeMap::new(),
            waiting: Shares::new(limits.requests_waiting_max),
            changes: BTreeMap::new(),
            starts_waiting: Shares::new(limits.starts_waiting_max),
            sequence: 0,
            writes: 0,
            pools: Pools::new(limits.starts_at_once_per_vm),
            sizes: BTreeMap::new(),
            rests: BTreeSet::new(),
            leaving: 0,
            preheats_awaited: BTreeSet::new(),
            draining: BTreeSet::new(),
            moved: BTreeSet::new(),
            queue: BTreeMap::new(),
            tries: Tries::default(),
            last_turn: None,
            room_changed: false,
            changed: Changed::default(),
            unix_ms: 0,
            request: None,
        }
    }

    /// Says what people's clocks show when the next event happens. Nothing is decided by it.
    pub fn at(&mut self, unix_ms: u64) -> &mut Self {
        self.unix_ms = unix_ms;
        self
    }

    /// Starts that are accepted from now on are accepted for that request.
    pub fn asked_by(&mut self, request: Option<RequestId>) {
        self.request = request;
    }

    pub fn apply(&mut self, event: Event, now: Instant, effects: &mut Vec<Effect>) {
        match event {
            Event::Loaded(loaded) => self.loaded(*loaded, now, effects),
            Event::Put { ticket, key, spec } => self.put(ticket, key, spec, effects),
            Event::Delete { ticket, key } => self.delete(ticket, key, effects),
            Event::Start { ticket, key, count } => self.start(ticket, key, count, now, effects),
            Event::Stop { ticket, tenant, start } => self.stop_asked(ticket, &tenant, &start, now, effects),
            Event::Acquire { ticket, key, on, deadline } => {
                self.acquire(ticket, key, on, deadline, now, effects);
            }
            Event::Preheat { ticket, key, spec } => self.preheat(ticket, &key, &spec, now, effects),
            Event::RemoveVm { ticket, vm } => self.remove_vm(ticket, vm, effects),
            Event::Drain { ticket, vm, force } => self.drain_vm(ticket, vm, force, effects),
            Event::Undrain { ticket, vm } => self.undrain_vm(ticket, vm, effects),
            Event::Abandoned { ticket } => {
                self.take_waiter(ticket);
            }
            Event::Released { start } => self.released(&start, now, effects),
            Event::Written { write, result } => self.written(write, result, now, effects),
            Event::Converted { source, result } => self.converted(source, result, now, effects),
            Event::News { vm, event } => self.news(vm, event, now, effects),
            Event::Hinted(Hinted { key, hint }) => self.hinted(key, hint, effects),
            Event::Tick => self.tick(now, effects),
        }
        self.place_waiting(now, effects);
        self.tell(now, effects);
    }

    fn persist(&mut self, writes: Vec<Write>, change: Change, effects: &mut Vec<Effect>) {
        self.writes += 1;
        let write = WriteId(self.writes);
        self.changes.insert(write, change);
        effects.push(Effect::Persist { write, writes });
    }

    fn written(
        &mut self,
        write: WriteId,
        result: Result<(), MetadataError>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(change) = self.changes.remove(&write) else { return };
        match (change, result) {
            (Change::Put { ticket, key, spec }, Ok(())) => self.put_durable(ticket, key, *spec, now, effects),
            (Change::Delete { ticket, key }, Ok(())) => self.delete_durable(ticket, &key, now, effects),
            (Change::Accept { ticket, key, rows, accepted_at }, Ok(())) => {
                self.accepted(ticket, key, rows, accepted_at, now, effects);
            }
            (Change::Accept { ticket, key, rows, .. }, Err(reason)) => {
                self.not_accepted(ticket, &key, rows, reason, now, effects);
            }
            (Change::Image { source, image }, Ok(())) => self.image_durable(&source, &image, now, effects),
            (Change::Image { source, .. }, Err(reason)) => {
                self.conversion_failed(&source, &reason.to_string(), now, effects);
            }
            (Change::Packed { key, image }, Ok(())) => self.packed_durable(&key, &image, now, effects),
            (Change::Packed { key, .. }, Err(_)) => {
                self.not_packed.insert((now + RETRY_AFTER, key));
            }
            (Change::RemoveVm { ticket, vm }, Ok(())) => self.vm_removed(ticket, &vm, now, effects),
            (Change::Drain { ticket, vm }, Ok(())) => self.drain_durable(ticket, &vm, now, effects),
            (Change::Undrain { ticket, vm }, Ok(())) => self.undrain_durable(ticket, &vm, now, effects),
            (
                Change::Put { ticket, .. }
                | Change::Delete { ticket, .. }
                | Change::RemoveVm { ticket, .. }
                | Change::Drain { ticket, .. }
                | Change::Undrain { ticket, .. },
                Err(reason),
            ) => effects.push(Effect::Answer { ticket, answer: Err(ControlError::Metadata(reason)) }),
            (Change::Hint, _) => {}
            (Change::Rows, result) => self.rows.written(result.is_ok(), now),
        }
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.expire_requests(now, effects);
        self.end_preheats(now);
        self.end_rests(now, effects);
        self.end_drains(now, effects);
        while let Some((at, start)) = self.timers.first().filter(|(at, _)| *at <= now).cloned() {
            self.timers.remove(&(at, start.clone()));
            self.overdue(&start, now, effects);
        }
        self.retry_due(now, effects);
        self.pack_again(now, effects);
        if let Some(writes) = self.rows.take_writes(self.limits.batch, now) {
            self.persist(writes, Change::Rows, effects);
        }
    }

    /// Checks the invariants over everything; for tests, because it looks at everyone.
    #[cfg(test)]
    pub fn check(&self) {
        for (name, vm) in &self.vms {
            let mut tenants = vm.functions.keys().map(|(tenant, _)| tenant);
            assert!(
                tenants.all(|tenant| Some(tenant) == vm.tenant.as_ref()),
                "invariant 8: {name} runs two tenants"
            );
            assert!(vm.functions.len() <= self.limits.functions_per_vm_max, "invariant 8: functions");
            let starts = || vm.functions.values().flatten().map(|start| &self.starts[start]);
            assert_eq!(starts().fold(Resources::default(), |sum, start| sum.plus(start.needs)), vm.used);
            assert!(vm.capacity.holds(vm.used) || !vm.up, "invariant 8: memory and CPU");
            assert!(starts().all(|start| start.vm.as_ref() == Some(name)));
            let trees = starts().fold(BTreeMap::new(), |mut trees, start| {
                start.trees().for_each(|tree| *trees.entry(tree).or_default() += 1);
                trees
            });
            assert_eq!(trees, vm.trees);
            let starting =
                |start: &&StartId| matches!(self.starts[*start].phase, Phase::Chosen | Phase::Ordered);
            let starting: BTreeSet<&StartId> = vm.functions.values().flatten().filter(starting).collect();
            assert_eq!(starting, vm.starting.iter().collect());
            self.check_pools(name, vm);
        }
        let coming = self.changes.values().map(|change| match change {
            Change::Accept { rows, .. } => rows.iter().map(|row| row.starts.len()).sum(),
            _ => 0,
        });
        let mut waiting = coming.sum::<usize>();
        assert_eq!(self.pools.len(), self.vms.values().filter(|vm| vm.is_pooled()).count());
        for (id, start) in &self.starts {
            let on_vm = matches!(start.phase, Phase::Chosen | Phase::Ordered | Phase::Ready);
            assert_eq!(start.vm.is_some() && start.phase != Phase::Ended, on_vm);
            assert_eq!(start.phase == Phase::Ended, start.reason.is_some(), "invariant 10");
            let timed = matches!(start.phase, Phase::Recovering | Phase::Chosen | Phase::Ordered);
            assert!(start.timer.is_some() || !timed, "invariant 10: {id} may hang");
            waiting += usize::from(start.phase == Phase::Waiting);
            if let Some(function) = self.functions.get(&start.key) {
                // A function that was made again does not know what the one before is still stopping.
                let lives = start.phase != Phase::Ended;
                assert!(function.live.contains(id) == lives || lives && start.stopping);
                let routable = function.routable.contains(&(start.in_flight, id.clone()));
                assert!(!routable || start.phase == Phase::Ready);
            }
        }
        assert_eq!(waiting, self.starts_waiting.total());
        self.check_waiting();
        let lives = |id| self.starts.get(id).is_some_and(|start| start.phase != Phase::Ended);
        assert!(self.rows.starts().all(lives), "a later manager would start again what has ended");
        for function in self.functions.values() {
            assert_eq!(function.routable.len(), {
                function.routable.iter().map(|(_, start)| start).collect::<BTreeSet<_>>().len()
            });
        }
        self.check_requests();
        self.check_holders();
        self.check_scaling();
        self.check_drains();
    }
}
