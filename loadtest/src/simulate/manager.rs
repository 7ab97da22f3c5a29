//! The manager: its cores, and between them messages in the order in which they were sent.

use super::{
    book::Parents,
    model::{BATCH, WorldLimits},
};
use faasnet_actors::{
    event_log::{Happening, News},
    function_tree::{self, TreeCore},
    id::{Epoch, StartId, TreeId, VmId},
    image::BlockImage,
    model::TreeView,
    profiles::{self, Hinted, ProfileKey, ProfilesCore, read_profiles},
    scheduler::{self, Answer, ControlError, Loaded, SchedulerCore, StartRow, Ticket, WriteId},
    vm_node::{self, NodeLimits, Order, SessionId, VmCore, VmEvent},
    wire::{
        PROTOCOL_VERSION,
        control::{Capability, Hello, ToAgent, ToManager},
    },
    world::{Batch, BatchLimits, Metadata, MetadataError, Row, Source, Table, Write},
};
use futures::{FutureExt, future::BoxFuture};
use rand::{SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// The metadata store: what is in it is durable.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows {
    rows: BTreeMap<(Table, String), Vec<u8>>,
    /// The starts that each row of that table names.
    starts: BTreeMap<String, Vec<StartId>>,
    started: BTreeSet<StartId>,
}

impl Rows {
    pub fn apply(&mut self, writes: Vec<Write>) {
        for write in writes {
            let (table, key) = write.place();
            let place = (table, key.to_owned());
            if table == Table::Starts {
                for start in self.starts.remove(&place.1).into_iter().flatten() {
                    self.started.remove(&start);
                }
            }
            match write {
                Write::Put(row) => {
                    if table == Table::Starts {
                        let starts = StartRow::read(&row).expect("the scheduler reads what it wrote").starts;
                        self.started.extend(starts.iter().cloned());
                        self.starts.insert(row.key, starts);
                    }
                    self.rows.insert(place, row.value);
                }
                Write::Delete { .. } => drop(self.rows.remove(&place)),
            }
        }
    }

    pub fn has_start(&self, start: &StartId) -> bool {
        self.started.contains(start)
    }
}

impl Metadata for Rows {
    fn scan(&self, table: Table) -> BoxFuture<'static, Result<Vec<Row>, MetadataError>> {
        let of_table = self.rows.iter().filter(|((of, _), _)| *of == table);
        let row = |((table, key), value): (&(Table, String), &Vec<u8>)| Row {
            table: *table,
            key: key.clone(),
            value: value.clone(),
        };
        std::future::ready(Ok(of_table.map(row).collect())).boxed()
    }

    fn limits(&self) -> BatchLimits {
        BATCH
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }

    fn commit(&self, _: Batch) -> BoxFuture<'static, Result<(), MetadataError>> {
        unreachable!("the simulated journal writes by itself")
    }
}

/// What comes to the manager from outside.
pub(super) enum Input {
    Client(scheduler::Event),
    Hello {
        vm: VmId,
        link: u64,
        hello: Box<Hello>,
    },
    Heard {
        vm: VmId,
        link: u64,
        message: Box<ToManager>,
    },
    /// The connection of that session is gone.
    Closed {
        vm: VmId,
        link: u64,
    },
    /// The commit under way is durable.
    Committed,
    /// For the keeper of profiles: from the surveyor, the converter, or a client.
    Profiles(Box<profiles::Event>),
    Converted {
        source: Source,
        image: Box<BlockImage>,
    },
    SchedulerTick,
    /// Leases and trees are looked at.
    Tick,
}

pub(super) enum Output {
    Send {
        vm: VmId,
        link: u64,
        message: ToAgent,
    },
    Close {
        vm: VmId,
        link: u64,
    },
    /// To be answered by `Committed`.
    Commit,
    Convert {
        source: Source,
    },
    /// Work of the surveyor or the converter that the keeper of profiles asks for.
    Survey(Box<profiles::Effect>),
    Answer {
        ticket: Ticket,
        answer: Result<Answer, ControlError>,
    },
    /// A tree has changed its shape because a member went.
    Left {
        tree: TreeId,
        before: Parents,
        gone: VmId,
    },
    /// What everybody who watches the event log sees.
    Told(Box<News>),
}

enum Work {
    Scheduler(scheduler::Event),
    Tree(TreeId, function_tree::Event),
    Vm(VmId, vm_node::Event),
    Profiles(profiles::Event),
}

/// Who waits for a commit.
#[derive(Debug)]
enum Writer {
    Scheduler(WriteId),
    Profiles { key: ProfileKey, version: u64 },
}

/// One life of the manager: from its start to its crash.
pub(super) struct Manager {
    limits: WorldLimits,
    term: u64,
    pub scheduler: SchedulerCore,
    pub trees: BTreeMap<TreeId, TreeCore>,
    /// No tree that is gone had a higher epoch.
    floor: u64,
    pub nodes: BTreeMap<VmId, VmCore>,
    /// The session of each VM and the number that its agent gave the connection.
    sessions: BTreeMap<VmId, (SessionId, u64)>,
    sessions_made: u64,
    profiles: ProfilesCore,
    waiting: Vec<(Writer, Vec<Write>)>,
    committing: Vec<(Writer, Vec<Write>)>,
    work: VecDeque<Work>,
    gathering: Option<Gathering>,
    /// Whether shapes before each departure are told.
    pub tells_departures: bool,
}

/// While a new manager waits for what VMs hold: trees are put together from reports.
struct Gathering {
    unreported: BTreeSet<VmId>,
    /// Known with the first input.
    until: Option<Instant>,
}

impl Manager {
    /// A manager that finds those rows.
    pub fn new(limits: WorldLimits, rows: &Rows, term: u64, seed: u64) -> Self {
        let loaded = Loaded::read(rows).now_or_never().expect("rows are in memory").expect("rows are whole");
        let scheduler = SchedulerCore::new(limits.scheduler, StdRng::seed_from_u64(seed));
        let profiles =
            read_profiles(rows).now_or_never().expect("rows are in memory").expect("rows are whole");
        let of_vms = rows.rows.keys().filter(|(table, _)| *table == Table::Vms);
        let unreported = of_vms.map(|(_, name)| name.parse().expect("VMs have names")).collect();
        Self {
            gathering: Some(Gathering { unreported, until: None }),
            profiles: ProfilesCore::new(limits.profiles),
            limits,
            term,
            scheduler,
            trees: BTreeMap::new(),
            floor: 0,
            nodes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            sessions_made: 0,
            waiting: Vec::new(),
            committing: Vec::new(),
            work: VecDeque::from([
                Work::Scheduler(scheduler::Event::Loaded(Box::new(loaded))),
                Work::Profiles(profiles::Event::Loaded(profiles)),
            ]),
            tells_departures: false,
        }
    }

    pub fn apply(&mut self, input: Input, rows: &mut Rows, now: Instant) -> Vec<Output> {
        let mut outputs = Vec::new();
        match input {
            Input::Client(event) => self.work.push_back(Work::Scheduler(event)),
            Input::Hello { vm, link, hello } => self.hello(vm, link, *hello, rows, now, &mut outputs),
            Input::Heard { vm, link, message } => {
                if let Some((session, _)) = self.session(&vm, link) {
                    let event = vm_node::Event::Heard { session, message: *message };
                    self.work.push_back(Work::Vm(vm, event));
                }
            }
            Input::Closed { vm, link } => {
                if let Some((session, _)) = self.session(&vm, link) {
                    self.work.push_back(Work::Vm(vm, vm_node::Event::Closed { session }));
                }
            }
            Input::Committed => {
                for (write, writes) in std::mem::take(&mut self.committing) {
                    rows.apply(writes);
                    self.work.push_back(match write {
                        Writer::Scheduler(write) => {
                            Work::Scheduler(scheduler::Event::Written { write, result: Ok(()) })
                        }
                        Writer::Profiles { key, version } => {
                            Work::Profiles(profiles::Event::Written { key, version, result: Ok(()) })
                        }
                    });
                }
            }
            Input::Converted { source, image } => {
                let event = scheduler::Event::Converted { source, result: Ok(image) };
                self.work.push_back(Work::Scheduler(event));
            }
            Input::Profiles(event) => self.work.push_back(Work::Profiles(*event)),
            Input::SchedulerTick => {
                self.work.push_back(Work::Scheduler(scheduler::Event::Tick));
                self.work.push_back(Work::Profiles(profiles::Event::Tick));
            }
            Input::Tick => self.tick(),
        }
        self.drain(now, &mut outputs);
        if self.has_gathered(now) {
            self.gathering = None;
            let gathered = |tree: &TreeId| Work::Tree(tree.clone(), function_tree::Event::Gathered);
            self.work.extend(self.trees.keys().map(gathered));
            self.drain(now, &mut outputs);
        }
        if self.committing.is_empty() && !self.waiting.is_empty() {
            self.committing = std::mem::take(&mut self.waiting);
            outputs.push(Output::Commit);
        }
        outputs
    }

    fn drain(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        while let Some(work) = self.work.pop_front() {
            self.perform(work, now, outputs);
        }
    }

    /// Whether all VMs have reported just now, or their time is over.
    fn has_gathered(&mut self, now: Instant) -> bool {
        let grace = self.limits.rejoin_grace;
        self.gathering.as_mut().is_some_and(|gathering| {
            let until = *gathering.until.get_or_insert(now + grace);
            gathering.unreported.is_empty() || now >= until
        })
    }

    /// The manager dies in the middle of a commit, which has reached the disk or not.
    pub fn crash(self, commit_is_durable: bool, rows: &mut Rows) {
        for (_, writes) in self.committing.into_iter().filter(|_| commit_is_durable) {
            rows.apply(writes);
        }
    }

    fn session(&self, vm: &VmId, link: u64) -> Option<(SessionId, u64)> {
        self.sessions.get(vm).filter(|(_, present)| *present == link).copied()
    }

    fn hello(
        &mut self,
        vm: VmId,
        link: u64,
        hello: Hello,
        rows: &Rows,
        now: Instant,
        outputs: &mut Vec<Output>,
    ) {
        if !rows.rows.contains_key(&(Table::Vms, vm.as_str().to_owned())) {
            return outputs.push(Output::Close { vm, link });
        }
        let limits = NodeLimits {
            lease: self.limits.scheduler.lease,
            in_flight_max: self.limits.orders_in_flight_max,
            queued_max: self.limits.orders_queued_max,
            functions_max: self.limits.scheduler.functions_per_vm_max,
        };
        let node = self.nodes.entry(vm.clone()).or_insert_with(|| VmCore::new(vm.clone(), limits, now));
        self.sessions_made += 1;
        let session = SessionId(self.sessions_made);
        let key_hash = vm.as_str().as_bytes().into();
        let mut effects = Vec::new();
        node.apply(vm_node::Event::Opened { session, key_hash, hello }, now, &mut effects);
        for effect in effects {
            match effect {
                vm_node::Effect::Accept { session } => {
                    if let Some(gathering) = &mut self.gathering {
                        gathering.unreported.remove(&vm);
                    }
                    self.sessions.insert(vm.clone(), (session, link));
                    let heartbeat_ms = self.limits.heartbeat.as_millis() as u64;
                    let message = ToAgent::Welcome {
                        version: PROTOCOL_VERSION,
                        heartbeat_ms,
                        capability_key: Vec::new(),
                    };
                    outputs.push(Output::Send { vm: vm.clone(), link, message });
                }
                vm_node::Effect::Refuse { .. } => outputs.push(Output::Close { vm: vm.clone(), link }),
                other => self.vm_effect(&vm, other, outputs),
            }
        }
    }

    fn tick(&mut self) {
        let nodes = self.nodes.keys().map(|vm| Work::Vm(vm.clone(), vm_node::Event::Tick));
        self.work.extend(nodes);
        let trees = self.trees.keys().map(|tree| Work::Tree(tree.clone(), function_tree::Event::Tick));
        self.work.extend(trees);
    }

    fn perform(&mut self, work: Work, now: Instant, outputs: &mut Vec<Output>) {
        match work {
            Work::Scheduler(event) => {
                let mut effects = Vec::new();
                self.scheduler.apply(event, now, &mut effects);
                effects.into_iter().for_each(|effect| self.scheduler_effect(effect, outputs));
            }
            Work::Profiles(event) => {
                let mut effects = Vec::new();
                self.profiles.apply(event, now, &mut effects);
                effects.into_iter().for_each(|effect| self.profiles_effect(effect, outputs));
            }
            Work::Tree(tree, event) => self.tree(tree, event, now, outputs),
            Work::Vm(vm, event) => {
                let Some(node) = self.nodes.get_mut(&vm) else {
                    if let vm_node::Event::Order(order) = event
                        && let Some(start) = order.start()
                    {
                        self.tell(vm, VmEvent::Undeliverable { start: start.clone() });
                    }
                    return;
                };
                let mut effects = Vec::new();
                node.apply(event, now, &mut effects);
                effects.into_iter().for_each(|effect| self.vm_effect(&vm, effect, outputs));
            }
        }
    }

    fn tell(&mut self, vm: VmId, event: VmEvent) {
        self.work.push_back(Work::Scheduler(scheduler::Event::News { vm, event }));
    }

    fn scheduler_effect(&mut self, effect: scheduler::Effect, outputs: &mut Vec<Output>) {
        use function_tree::Event as TreeEvent;
        match effect {
            scheduler::Effect::Answer { ticket, answer } => outputs.push(Output::Answer { ticket, answer }),
            scheduler::Effect::Persist { write, writes } => {
                self.waiting.push((Writer::Scheduler(write), writes));
            }
            scheduler::Effect::Convert { source, .. } => outputs.push(Output::Convert { source }),
            scheduler::Effect::Join { tree, vm, contact, start } => {
                self.work.push_back(Work::Tree(tree, TreeEvent::Join { vm, contact, start }));
            }
            scheduler::Effect::Preheat { tree, vm, contact, draft } => {
                self.work.push_back(Work::Tree(tree, TreeEvent::Preheat { vm, contact, draft }));
            }
            scheduler::Effect::Leave { tree, vm } => {
                self.work.push_back(Work::Tree(tree, TreeEvent::Leave { vm }));
            }
            scheduler::Effect::Dissolve { tree } => {
                self.work.push_back(Work::Tree(tree, TreeEvent::Dissolve));
            }
            scheduler::Effect::Stop { vm, start } => {
                self.work.push_back(Work::Vm(vm, vm_node::Event::Order(Order::Stop { start })));
            }
            scheduler::Effect::Recorded { tenant, recording } => {
                self.work.push_back(Work::Profiles(profiles::Event::Recorded { tenant, recording }));
            }
            scheduler::Effect::GiveUp { vm, trees } => {
                self.work.push_back(Work::Vm(vm, vm_node::Event::Order(Order::GiveUp { trees })));
            }
            scheduler::Effect::Forget { vm } => {
                self.work.push_back(Work::Vm(vm, vm_node::Event::Forgotten));
            }
            scheduler::Effect::Tell(news) => outputs.push(Output::Told(Box::new(news))),
        }
    }

    fn profiles_effect(&mut self, effect: profiles::Effect, outputs: &mut Vec<Output>) {
        match effect {
            profiles::Effect::Persist { key, version, writes } => {
                self.waiting.push((Writer::Profiles { key, version }, writes));
            }
            profiles::Effect::Tell { key, hint } => {
                self.work.push_back(Work::Scheduler(scheduler::Event::Hinted(Hinted { key, hint })));
            }
            // Nobody asks.
            profiles::Effect::Answer { .. } => {}
            work @ (profiles::Effect::TakeIn { .. }
            | profiles::Effect::Pack { .. }
            | profiles::Effect::Place { .. }) => outputs.push(Output::Survey(Box::new(work))),
        }
    }

    /// Joins, preheats and reports make the tree when it is not there; anything else is dropped then.
    fn tree(&mut self, tree: TreeId, event: function_tree::Event, now: Instant, outputs: &mut Vec<Output>) {
        use function_tree::Event as TreeEvent;
        let makes =
            matches!(event, TreeEvent::Join { .. } | TreeEvent::Preheat { .. } | TreeEvent::Reported { .. });
        if makes && !self.trees.contains_key(&tree) {
            let epoch = Epoch { term: self.term, counter: self.floor };
            let shape = self.limits.shape.shape();
            let make = if self.gathering.is_some() { TreeCore::rejoining } else { TreeCore::new };
            self.trees.insert(tree.clone(), make(self.limits.tree, shape, epoch));
        }
        let Some(core) = self.trees.get_mut(&tree) else { return };
        let gone = match &event {
            TreeEvent::Gone { vm } | TreeEvent::Leave { vm } if self.tells_departures => Some(vm.clone()),
            _ => None,
        };
        if let Some(gone) = gone {
            let before = parents(core.view(tree.image));
            outputs.push(Output::Left { tree: tree.clone(), before, gone });
        }
        let dissolves = matches!(event, TreeEvent::Dissolve);
        let mut effects = Vec::new();
        core.apply(event, now, &mut effects);
        if dissolves && let Some(core) = self.trees.remove(&tree) {
            self.floor = self.floor.max(core.epoch().counter);
        }
        for effect in effects {
            if let function_tree::Effect::Tell(news) = effect {
                let news = News::of(&tree.tenant, Happening::of_tree(tree.image, news));
                outputs.push(Output::Told(Box::new(news)));
            } else if let Some((vm, order)) = effect.into_order(&tree, |_, _| unsigned()) {
                self.work.push_back(Work::Vm(vm, vm_node::Event::Order(order)));
            }
        }
    }

    fn vm_effect(&mut self, vm: &VmId, effect: vm_node::Effect, outputs: &mut Vec<Output>) {
        let link = self.sessions.get(vm).map(|(_, link)| *link);
        match effect {
            // Only while a session opens, which answers both.
            vm_node::Effect::Accept { .. } | vm_node::Effect::Refuse { .. } => {}
            vm_node::Effect::Send(message) => {
                let vm = vm.clone();
                outputs.extend(link.map(|link| Output::Send { vm, link, message }));
            }
            vm_node::Effect::SendStart { start, message } => {
                let sent = link.map(|link| Output::Send { vm: vm.clone(), link, message });
                outputs.extend(sent);
                self.tell(vm.clone(), VmEvent::Ordered { start });
            }
            vm_node::Effect::CloseSession => {
                let closed = self.sessions.remove(vm);
                outputs.extend(closed.map(|(_, link)| Output::Close { vm: vm.clone(), link }));
            }
            vm_node::Effect::News(event) => self.tell(vm.clone(), event),
            vm_node::Effect::Tree { tree, event } => self.work.push_back(Work::Tree(tree, event)),
        }
    }
}

pub(super) fn parents(view: TreeView) -> Parents {
    view.members.into_iter().map(|member| (member.vm, member.parent)).collect()
}

/// Capabilities are not what is simulated.
fn unsigned() -> Capability {
    Capability { claims: Vec::new(), signature: Vec::new() }
}

/// How often the scheduler looks for deadlines.
pub(super) const SCHEDULER_TICK: Duration = Duration::from_millis(20);
