//! The world: what happens, in order, and what each effect of a core makes happen.

use super::{
    agent::{self, Agent, FromPeer, image},
    book::Book,
    host::{Container, Host},
    invariants::{self, Depth, Violation},
    manager::{Input, Manager, Output, Rows, SCHEDULER_TICK},
    model::{Image, MILLISECOND, Model, Spread, WorldLimits, nanos, rng},
    network::{Conn, Frame, Network, Node, Sent},
    queue::{Nanos, Queue},
};
use bytes::Bytes;
use faasnet_actors::{
    id::{BlockId, FunctionName, StartId, TenantId, TreeId, VmId},
    image::BlockImage,
    model::FunctionSpec,
    scheduler::{self, Ticket},
    wire::{
        control::{ToAgent, ToManager, Upstream},
        holder::Exit,
        peer::{FromParent, NotServed, ToParent, Urgency},
    },
    world::{Row, Source, Table, Write},
};
use rand::{RngExt, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Below the shortest deadline that an agent's cores keep.
const AGENT_TICK: Nanos = 50 * MILLISECOND;
/// Time after which the origin's adapter gives up while the registry is away.
const ORIGIN_GIVES_UP: Nanos = 700 * MILLISECOND;
const CONVERSION: Nanos = 10 * MILLISECOND;
const OPEN_CACHE: Nanos = MILLISECOND;
const STOP: Nanos = 10 * MILLISECOND;
/// Lines of a history that are printed when it fails.
const LINES_KEPT: usize = 60;

pub(super) enum Happening {
    ToHost {
        host: Node,
        life: u32,
        from: Node,
        event: Box<agent::Event>,
    },
    ToManager {
        life: u32,
        from: Node,
        input: Box<Input>,
    },
    /// A child's connection reaches its parent.
    Arrives {
        conn: u64,
    },
    /// A child has waited long enough for its connection.
    DialOver {
        conn: u64,
    },
    OriginAnswers {
        conn: u64,
        message: ToParent,
        is_up: bool,
    },
    Sent(Sent),
    AgentTick {
        host: Node,
        life: u32,
    },
    SessionOver {
        host: Node,
        life: u32,
        link: u64,
    },
    MountEnds {
        host: Node,
        life: u32,
        tree: TreeId,
    },
    RunEnds {
        host: Node,
        life: u32,
        start: StartId,
    },
    Reads {
        host: Node,
        life: u32,
        start: StartId,
    },
    ReadOver {
        host: Node,
        life: u32,
        start: StartId,
        block: BlockId,
    },
    StopEnds {
        host: Node,
        life: u32,
        start: StartId,
    },
    SchedulerTick {
        life: u32,
    },
    ManagerTick {
        life: u32,
    },
    ManagerStarts,
    Resumes {
        host: Node,
    },
    Heals {
        a: Node,
        b: Node,
    },
    /// Silence between two nodes has lasted so long that connections end.
    Vanished {
        a: Node,
        b: Node,
    },
    VmVanished {
        host: Node,
        life: u32,
    },
    OriginBack,
}

/// How often a history is printed, and how thoroughly it is checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    pub depth: Depth,
    pub prints: bool,
}

pub struct World {
    pub(super) model: Model,
    pub(super) limits: Arc<WorldLimits>,
    pub(super) images: Arc<Vec<Image>>,
    base: Instant,
    pub(super) now: Nanos,
    queue: Queue<Happening>,
    pub(super) rng: StdRng,
    pub(super) seed: u64,
    pub(super) manager: Option<Manager>,
    manager_life: u32,
    manager_busy: Nanos,
    term: u64,
    pub(super) rows: Rows,
    pub(super) hosts: Vec<Host>,
    numbers: BTreeMap<VmId, Node>,
    pub(super) network: Network,
    pub(super) origin_is_up: bool,
    origin_away_until: Nanos,
    pub(super) book: Book,
    tickets: u64,
    pub(super) events: u64,
    watch: Watch,
    lines: VecDeque<String>,
    /// Something but time has changed since the last check.
    has_changed: bool,
    pub(super) violation: Option<Violation>,
    /// Where no core said no: printed with the history when a core panics.
    is_over: bool,
}

impl World {
    /// A world in which the manager runs and all functions are deployed; no VM is up yet.
    pub(super) fn new(model: Model, seed: u64, watch: Watch) -> Self {
        let mut rng = rng(seed);
        let images = model.images.iter().enumerate();
        let images: Vec<Image> = images.map(|(number, image)| Image::new(number, image, &mut rng)).collect();
        let host = |number: usize, rng: &mut StdRng| {
            let id: VmId = format!("vm-{number:05}").parse().expect("a label");
            Host::new(id, rng.random_range(0..=model.latency / 2))
        };
        let hosts: Vec<Host> = (0..model.vms).map(|number| host(number, &mut rng)).collect();
        let numbers = hosts.iter().enumerate().map(|(number, host)| (host.id.clone(), number)).collect();
        let ends = (0..model.vms).map(|_| (model.uplink, model.downlink));
        let network = Network::new(ends.chain([(model.origin_rate, 1), (1, 1)]));
        let limits = Arc::new(model.limits.clone());
        let mut world = Self {
            model,
            limits,
            images: Arc::new(images),
            base: Instant::now(),
            now: 0,
            queue: Queue::default(),
            rng,
            seed,
            manager: None,
            manager_life: 0,
            manager_busy: 0,
            term: 0,
            rows: Rows::default(),
            hosts,
            numbers,
            network,
            origin_is_up: true,
            origin_away_until: 0,
            book: Book::default(),
            tickets: 0,
            events: 0,
            watch,
            lines: VecDeque::new(),
            has_changed: false,
            violation: None,
            is_over: false,
        };
        world.start_manager();
        world.deploy();
        world
    }

    pub(super) fn instant(&self) -> Instant {
        self.base + Duration::from_nanos(self.now)
    }

    pub(super) fn origin(&self) -> Node {
        self.hosts.len()
    }

    pub(super) fn manager_node(&self) -> Node {
        self.hosts.len() + 1
    }

    fn deploy(&mut self) {
        for function in self.model.functions.clone() {
            let spec = FunctionSpec {
                image: format!("image:{}", function.image),
                memory_mib: function.memory_mib,
                concurrency: 1,
                cpu_millis: 100,
                min_instances: 0,
                max_instances: None,
                // The simulated clients ask for starts, not for answers.
                keep_alive_ms: Some(86_400_000),
                probe_path: "/".into(),
                mode: function.mode,
                env: BTreeMap::new(),
                code: None,
                command: None,
            };
            let (tenant, name) = names(function.tenant, function.name);
            let ticket = self.ticket();
            let event = scheduler::Event::Put { ticket, key: (tenant, name), spec: Box::new(spec) };
            self.ask(event);
        }
        self.run_for(Duration::from_millis(100));
    }

    pub(super) fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// A client asks the manager, if it is there.
    pub(super) fn ask(&mut self, event: scheduler::Event) {
        self.tell_manager(Input::Client(event));
    }

    /// Asks for starts of a function by its number.
    pub(super) fn start(&mut self, function: usize, count: u32) {
        let function = &self.model.functions[function];
        let key = names(function.tenant, function.name);
        let ticket = self.ticket();
        self.book.asked(ticket, key.clone(), self.now);
        self.ask(scheduler::Event::Start { ticket, key, count });
    }

    /// Adds a line to the history.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.watch.depth == Depth::Light && !self.watch.prints {
            return;
        }
        let line = format!("{:>10.3} ms  {}", self.now as f64 / MILLISECOND as f64, line());
        if self.watch.prints {
            eprintln!("{line}");
        }
        if self.lines.len() == LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The last lines of the history.
    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }

    pub(super) fn at(&mut self, at: Nanos, happening: Happening) {
        self.queue.push(at.max(self.now), happening);
    }

    fn after(&mut self, delay: Nanos, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    pub(super) fn run_for(&mut self, length: Duration) {
        self.run_until(self.now + nanos(length), |_| false);
    }

    /// Runs to that moment, or until something holds, which is looked at every 10 ms.
    pub(super) fn run_until(&mut self, end: Nanos, holds: impl Fn(&Self) -> bool) -> bool {
        let mut look_at = self.now;
        while self.violation.is_none() {
            match self.queue.next_at() {
                Some(at) if at <= end => {
                    if at >= look_at {
                        look_at = at + 10 * MILLISECOND;
                        if holds(self) {
                            return true;
                        }
                    }
                    self.step();
                }
                _ => {
                    self.now = end;
                    return holds(self);
                }
            }
        }
        false
    }

    fn step(&mut self) {
        let Some((at, happening)) = self.queue.pop() else { return };
        self.now = at;
        self.events += 1;
        self.has_changed =
            !matches!(happening, Happening::AgentTick { .. } | Happening::SchedulerTick { .. });
        self.happen(happening);
        for sent in self.network.take_sent() {
            self.queue.push(sent.at, Happening::Sent(sent));
        }
        if self.violation.is_none() && self.has_changed {
            self.violation = invariants::check(self, self.watch.depth);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::ToHost { host, life, from, event } => self.deliver(host, life, from, event),
            Happening::ToManager { life, from, input } => self.deliver_to_manager(life, from, input),
            Happening::Arrives { conn } => self.arrives(conn),
            Happening::DialOver { conn } => self.dial_over(conn),
            Happening::OriginAnswers { conn, message, is_up } => self.origin_answers(conn, message, is_up),
            Happening::Sent(sent) => {
                if let Some(frame) = self.network.sent(sent, self.now) {
                    self.frame_left(sent.conn, frame);
                }
            }
            Happening::AgentTick { host, life } => {
                if self.hosts[host].life != life {
                    return;
                }
                if self.hosts[host].paused_until > self.now {
                    let resumes = self.hosts[host].paused_until;
                    return self.at(resumes, Happening::AgentTick { host, life });
                }
                self.agent(host, agent::Event::Tick);
                self.after(AGENT_TICK, Happening::AgentTick { host, life });
            }
            Happening::SessionOver { host, life, link } => {
                let now = self.instant();
                let mut effects = Vec::new();
                if let Some(agent) = self.agent_of(host, life) {
                    agent.session_timed_out(link, now, &mut effects);
                }
                self.effects(host, effects);
            }
            Happening::MountEnds { host, life, tree } => {
                if self.agent_of(host, life).is_some_and(|agent| agent.trees.contains_key(&tree)) {
                    self.hosts[host].holder.mounts.insert(tree.clone());
                    self.locally(host, 0, agent::Event::Mounted { tree });
                }
            }
            Happening::RunEnds { host, life, start } => self.run_ends(host, life, &start),
            Happening::Reads { host, life, start } => {
                if self.hosts[host].life == life {
                    self.reads(host, &start);
                }
            }
            Happening::ReadOver { host, life, start, block } => self.read_over(host, life, &start, block),
            Happening::StopEnds { host, life, start } => {
                if self.hosts[host].life == life {
                    self.hosts[host].holder.remove(&start);
                    self.locally(host, 0, agent::Event::Exited { start, exit: Exit::Signal(15) });
                }
            }
            Happening::SchedulerTick { life } if life == self.manager_life => {
                self.tell_manager(Input::SchedulerTick);
                self.after(nanos(SCHEDULER_TICK), Happening::SchedulerTick { life });
            }
            Happening::ManagerTick { life } if life == self.manager_life => {
                self.tell_manager(Input::Tick);
                self.after(nanos(self.limits.heartbeat), Happening::ManagerTick { life });
            }
            Happening::SchedulerTick { .. } | Happening::ManagerTick { .. } => {}
            Happening::ManagerStarts => self.start_manager(),
            Happening::Resumes { host } => {
                if self.hosts[host].paused_until <= self.now && !self.hosts[host].is_silent {
                    self.network.freeze(host, false, self.now);
                }
            }
            Happening::Heals { a, b } => self.network.heal(a, b, self.now),
            Happening::Vanished { a, b } => self.end_silent(a, b),
            Happening::VmVanished { host, life } => {
                if self.hosts[host].life == life && self.hosts[host].is_silent {
                    self.end_conns(host, "the other machine has vanished");
                }
            }
            Happening::OriginBack => self.origin_is_up |= self.origin_away_until <= self.now,
        }
    }

    /// One way between two nodes.
    fn latency(&self, a: Node, b: Node) -> Nanos {
        let distance = |node: Node| self.hosts.get(node).map_or(0, |host| host.distance);
        self.model.latency + distance(a) + distance(b)
    }

    fn spread(&mut self, spread: &Spread) -> Nanos {
        self.rng.random_range(spread.clone())
    }

    fn agent_of(&mut self, host: Node, life: u32) -> Option<&mut Agent> {
        let host = self.hosts.get_mut(host).filter(|host| host.life == life)?;
        host.agent.as_mut()
    }

    /// Sends something to a VM, in the order of sending.
    fn send_to_host(&mut self, from: Node, host: Node, event: agent::Event) {
        let life = self.hosts[host].life;
        let delay = self.latency(from, host);
        self.after(delay, Happening::ToHost { host, life, from, event: Box::new(event) });
    }

    /// Something that happens on the VM itself.
    pub(super) fn locally(&mut self, host: Node, delay: Nanos, event: agent::Event) {
        let life = self.hosts[host].life;
        self.after(delay, Happening::ToHost { host, life, from: host, event: Box::new(event) });
    }

    fn deliver(&mut self, host: Node, life: u32, from: Node, event: Box<agent::Event>) {
        let target = &self.hosts[host];
        if target.life != life || target.agent.is_none() {
            return;
        }
        let held = self.network.cut_until(from, host).filter(|until| *until > self.now);
        if let Some(until) = held.max((target.paused_until > self.now).then_some(target.paused_until)) {
            return self.at(until, Happening::ToHost { host, life, from, event });
        }
        self.agent(host, *event);
    }

    fn agent(&mut self, host: Node, event: agent::Event) {
        let now = self.instant();
        if !matches!(event, agent::Event::Tick) {
            self.note(|| format!("vm-{host:05}  {}", short(&event)));
        }
        self.watch_event(host, &event);
        let Some(agent) = self.hosts[host].agent.as_mut() else { return };
        let opened = match &event {
            agent::Event::CacheOpened { tree } => Some(tree.clone()),
            _ => None,
        };
        let mut effects = Vec::new();
        agent.apply(event, now, &mut effects);
        if let Some(tree) = opened.filter(|tree| agent.trees.contains_key(tree)) {
            let cached = self.hosts[host].cached.entry(tree.clone()).or_default().clone();
            let Some(agent) = self.hosts[host].agent.as_mut() else { return };
            agent.start_transfer(&tree, &cached, now, &mut effects);
        }
        self.effects(host, effects);
    }

    /// What survives the agent, and what the checks compare.
    fn watch_event(&mut self, host: Node, event: &agent::Event) {
        match event {
            agent::Event::Kept { tree, block } => {
                if let Some(cached) = self.hosts[host].cached.get_mut(tree) {
                    cached.blocks.insert(*block);
                }
            }
            agent::Event::Upstream { tree, said: FromPeer::Index, .. } => {
                if let Some(cached) = self.hosts[host].cached.get_mut(tree) {
                    cached.has_index = true;
                }
            }
            agent::Event::Manager { message: ToAgent::Place(place), .. } => {
                let place = place.clone();
                self.placed(host, &place);
            }
            agent::Event::Manager { message: ToAgent::Start(order), .. } => {
                let place = order.place.clone();
                self.placed(host, &place);
            }
            _ => {}
        }
    }

    /// Notes who gets another parent although the one before is there.
    fn placed(&mut self, host: Node, place: &faasnet_actors::wire::control::Place) {
        let known = self.hosts[host].agent.as_ref().and_then(|agent| agent.trees.get(&place.tree));
        let Some(known) = known.filter(|known| known.record.place.epoch <= place.epoch) else { return };
        let parents = |stripes: &Vec<Vec<Upstream>>| {
            stripes.iter().filter_map(|stripe| stripe.first().cloned()).collect::<Vec<_>>()
        };
        let (before, after) = (parents(&known.record.place.stripes), parents(&place.stripes));
        if before == after {
            return;
        }
        let lives = |upstream: &Upstream| match upstream {
            Upstream::Origin => true,
            Upstream::Vm { vm, .. } => self.numbers.get(vm).is_some_and(|number| self.hosts[*number].is_up()),
        };
        let needless = before.iter().all(lives);
        self.book.moved(self.now, needless);
    }

    pub(super) fn effects(&mut self, host: Node, effects: Vec<agent::Effect>) {
        self.has_changed |= !effects.is_empty();
        for effect in effects {
            self.effect(host, effect);
        }
    }

    fn effect(&mut self, host: Node, effect: agent::Effect) {
        let life = self.hosts[host].life;
        match effect {
            agent::Effect::DialManager { link, hello } => self.dial_manager(host, link, hello),
            agent::Effect::Say { link, message } => {
                let vm = self.hosts[host].id.clone();
                self.send_to_manager(host, Input::Heard { vm, link, message: Box::new(message) });
            }
            agent::Effect::CloseManager { link } => {
                let vm = self.hosts[host].id.clone();
                self.send_to_manager(host, Input::Closed { vm, link });
            }
            agent::Effect::Dial { conn, tree, upstream } => self.dial(host, conn, tree, upstream),
            agent::Effect::HangUp { conn } => self.hang_up(conn),
            agent::Effect::Ask { conn, message } => self.child_asks(host, conn, message),
            agent::Effect::Tell { conn, urgency, message, body } => {
                self.parent_tells(host, conn, urgency, message, body);
            }
            agent::Effect::Admit { conn } => {
                if let Some(known) = self.network.conns.get_mut(&conn) {
                    known.is_open = true;
                    self.tell_child(conn, FromPeer::Opened);
                }
            }
            agent::Effect::Refuse { conn, reason } => self.close_at_parent(conn, reason.to_string()),
            agent::Effect::DropChild { conn } => self.close_at_parent(conn, "the parent hung up".into()),
            agent::Effect::WaitForTree { conn } => {
                let patience = nanos(self.limits.transfer.early_child);
                self.locally(host, patience, agent::Event::ChildWaited { conn });
            }
            agent::Effect::OpenCache { tree } => {
                self.locally(host, OPEN_CACHE, agent::Event::CacheOpened { tree });
            }
            agent::Effect::RemoveCache { tree } => {
                self.hosts[host].cached.remove(&tree);
                self.hosts[host].places.remove(&tree);
                self.book.forget(host, &tree);
                self.locally(host, self.model.disk, agent::Event::CacheRemoved { tree });
            }
            agent::Effect::Keep { tree, block, stored } => {
                self.invariant_5(host, &tree, block, &stored);
                self.locally(host, self.model.disk, agent::Event::Kept { tree, block });
            }
            agent::Effect::Check { tree, block } => {
                self.locally(host, self.model.disk, agent::Event::Checked { tree, block });
            }
            agent::Effect::Load { tree, child, block, urgency } => {
                let event = agent::Event::Loaded { tree, child, block, urgency };
                self.locally(host, self.model.disk, event);
            }
            agent::Effect::Mount { tree } => {
                let length = self.spread(&self.model.mount.clone());
                self.after(length, Happening::MountEnds { host, life, tree });
            }
            agent::Effect::Unmount { tree } => {
                self.hosts[host].holder.mounts.remove(&tree);
            }
            agent::Effect::Present { tree, blocks } => self.reads_go_on(host, &tree, &blocks),
            agent::Effect::Unavailable { tree, blocks } => self.reads_fail(host, &tree, &blocks),
            agent::Effect::Run { start } => self.run_container(host, start),
            agent::Effect::Stop { start } => self.after(STOP, Happening::StopEnds { host, life, start }),
            agent::Effect::Probe { start } => {
                let container = self.hosts[host].holder.containers.get(&start);
                let is_ready = container.is_some_and(|container| container.is_ready);
                self.locally(host, self.model.probe, agent::Event::Probed { start, is_ready });
            }
            agent::Effect::ProbeAgain { start } => {
                let interval = nanos(self.limits.probe_interval);
                self.locally(host, interval, agent::Event::InstanceTick { start });
            }
            agent::Effect::SavePlace { tree, record } => {
                self.hosts[host].places.insert(tree, *record);
            }
            agent::Effect::SaveInstance { start, record } => {
                match record {
                    Some(record) => self.hosts[host].instances.insert(start, *record),
                    None => self.hosts[host].instances.remove(&start),
                };
            }
        }
    }

    fn invariant_5(&mut self, host: Node, tree: &TreeId, block: BlockId, stored: &Bytes) {
        let is_right = image(&self.images, tree).is_some_and(|image| image.verify(block, stored));
        if !is_right {
            self.violation = Some(Violation::new(5, format!("vm-{host:05} keeps a damaged {block:?}")));
        }
    }

    // The session of an agent.

    fn dial_manager(&mut self, host: Node, link: u64, hello: faasnet_actors::wire::control::Hello) {
        let (vm, life) = (self.hosts[host].id.clone(), self.hosts[host].life);
        // TCP and TLS take a round trip each.
        let delay = 5 * self.latency(host, self.manager_node());
        let input = Box::new(Input::Hello { vm, link, hello: Box::new(hello) });
        self.after(delay, Happening::ToManager { life: self.manager_life, from: host, input });
        let patience = nanos(self.limits.handshake);
        self.after(patience, Happening::SessionOver { host, life, link });
    }

    fn send_to_manager(&mut self, host: Node, input: Input) {
        let delay = self.latency(host, self.manager_node());
        let life = self.manager_life;
        self.after(delay, Happening::ToManager { life, from: host, input: Box::new(input) });
    }

    fn deliver_to_manager(&mut self, life: u32, from: Node, input: Box<Input>) {
        let node = self.manager_node();
        if let Some(until) = self.network.cut_until(from, node).filter(|until| *until > self.now) {
            return self.at(until, Happening::ToManager { life, from, input });
        }
        if life != self.manager_life || self.manager.is_none() {
            // Nobody listens there, or not to that connection.
            if let Input::Hello { link, .. } = *input
                && from < self.hosts.len()
            {
                self.send_to_host(node, from, agent::Event::ManagerClosed { link });
            }
            return;
        }
        if let Input::Heard { vm, message, .. } = &*input {
            self.hears(from, &vm.clone(), &message.clone());
        }
        self.tell_manager(*input);
    }

    fn hears(&mut self, from: Node, vm: &VmId, message: &ToManager) {
        if !matches!(message, ToManager::Heartbeat { .. }) {
            self.note(|| format!("manager   {vm} says {}", short(message)));
        }
        let life = self.hosts.get(from).map_or(0, |host| host.life);
        if let Err(text) = self.book.heard(from, life, message, self.now) {
            self.violation = Some(Violation::new(10, text));
        }
    }

    fn tell_manager(&mut self, input: Input) {
        let now = self.instant();
        let Some(manager) = self.manager.as_mut() else { return };
        let outputs = manager.apply(input, &mut self.rows, now);
        self.has_changed |= !outputs.is_empty();
        for output in outputs {
            self.output(output);
        }
    }

    fn output(&mut self, output: Output) {
        let node = self.manager_node();
        match output {
            Output::Send { vm, link, message } => {
                let Some(&host) = self.numbers.get(&vm) else { return };
                self.manager_busy = self.manager_busy.max(self.now) + self.model.order_cost;
                let at = self.manager_busy + self.latency(node, host);
                let life = self.hosts[host].life;
                let event = Box::new(agent::Event::Manager { link, message });
                self.at(at, Happening::ToHost { host, life, from: node, event });
            }
            Output::Close { vm, link } => {
                if let Some(&host) = self.numbers.get(&vm) {
                    self.send_to_host(node, host, agent::Event::ManagerClosed { link });
                }
            }
            Output::Commit => self.manager_later(self.model.commit, Input::Committed),
            Output::Convert { source } => {
                // Functions of the model have no code.
                let Source::Image(name) = &source else { return };
                let number = name.strip_prefix("image:").and_then(|number| number.parse::<usize>().ok());
                let image: Option<BlockImage> =
                    number.and_then(|number| self.images.get(number)).map(|image| image.description.clone());
                if let Some(image) = image.map(Box::new) {
                    self.manager_later(CONVERSION, Input::Converted { source, image });
                }
            }
            Output::Answer { ticket, answer } => {
                self.note(|| format!("manager   answers {ticket:?}: {}", short(&answer)));
                if let Err(text) = self.book.answered(ticket, &answer, &self.rows, self.now) {
                    self.violation = Some(Violation::new(9, text));
                }
            }
            Output::Left { tree, before, gone } => self.book.left(tree, before, gone),
        }
    }

    fn manager_later(&mut self, delay: Nanos, input: Input) {
        let life = self.manager_life;
        let from = self.manager_node();
        self.after(delay, Happening::ToManager { life, from, input: Box::new(input) });
    }

    fn start_manager(&mut self) {
        self.term += 1;
        let row = Row { table: Table::Values, key: "term".into(), value: self.term.to_be_bytes().to_vec() };
        self.rows.apply(vec![Write::Put(row)]);
        let seed = self.rng.random();
        let limits = (*self.limits).clone();
        let mut manager = Manager::new(limits, &self.rows, self.term, seed);
        manager.tells_departures = self.watch.depth == Depth::Full;
        self.manager = Some(manager);
        self.manager_life += 1;
        let life = self.manager_life;
        self.note(|| "manager   starts".into());
        self.tell_manager(Input::SchedulerTick);
        self.after(nanos(SCHEDULER_TICK), Happening::SchedulerTick { life });
        self.after(nanos(self.limits.heartbeat), Happening::ManagerTick { life });
    }

    // VMs that come and go.

    /// The VM is registered, and its agent starts with what its disk holds.
    pub(super) fn boot(&mut self, host: Node) {
        if self.hosts[host].is_up() {
            return;
        }
        self.end_conns(host, "the other machine was started again");
        let now = self.instant();
        let target = &mut self.hosts[host];
        target.is_silent = false;
        target.paused_until = 0;
        target.life += 1;
        let life = target.life;
        let row = Row { table: Table::Vms, key: target.id.as_str().to_owned(), value: Vec::new() };
        self.rows.apply(vec![Write::Put(row)]);
        let address = ([10, 0, (host / 250) as u8, (host % 250) as u8], 7000).into();
        let conns = ((host as u64) << 40) + (u64::from(life) << 24);
        let mut agent = Agent::new(
            target.id.clone(),
            address,
            self.model.memory_bytes,
            Arc::clone(&self.limits),
            Arc::clone(&self.images),
            conns,
            now,
        );
        let mut effects = Vec::new();
        agent.restore(&target.places, &target.instances, now, &mut effects);
        target.agent = Some(agent);
        self.network.freeze(host, false, self.now);
        self.note(|| format!("vm-{host:05}  boots"));
        self.effects(host, effects);
        // Agents do not tick in step.
        let offset = self.rng.random_range(0..AGENT_TICK);
        self.after(offset, Happening::AgentTick { host, life });
    }

    /// The VM is gone, with its containers; what is on its disk stays. Silently: nobody is told.
    pub(super) fn crash(&mut self, host: Node, is_silent: bool) {
        if !self.hosts[host].is_up() {
            return;
        }
        self.note(|| format!("vm-{host:05}  {}", if is_silent { "vanishes" } else { "crashes" }));
        let target = &mut self.hosts[host];
        let link = target.agent.take().map(|agent| agent.link());
        target.life += 1;
        target.is_silent = is_silent;
        target.holder = super::host::Holder::default();
        let (life, vm) = (target.life, target.id.clone());
        self.book.host_ended(host);
        self.network.freeze(host, true, self.now);
        if is_silent {
            return self.after(nanos(self.limits.vanished), Happening::VmVanished { host, life });
        }
        self.end_conns(host, "the other agent has ended");
        if let Some(link) = link {
            self.send_to_manager(host, Input::Closed { vm, link });
        }
    }

    /// Ends what connections a VM has that is not there any more.
    fn end_conns(&mut self, host: Node, reason: &str) {
        for id in self.network.conns_of(host) {
            self.break_conn(id, reason);
        }
    }

    /// Both ends of a connection learn that it is gone.
    pub(super) fn break_conn(&mut self, id: u64, reason: &str) {
        let Some(conn) = self.network.close(id, self.now) else { return };
        let Conn { tree, child, parent, upstream, .. } = conn;
        let said = FromPeer::Closed(reason.into());
        self.send_to_host(
            parent,
            child,
            agent::Event::Upstream { tree: tree.clone(), upstream, conn: id, said },
        );
        if parent < self.hosts.len() {
            self.send_to_host(child, parent, agent::Event::ChildGone { conn: id, tree });
        }
    }

    pub(super) fn pause(&mut self, host: Node, length: Nanos) {
        self.note(|| format!("vm-{host:05}  pauses for {} ms", length / MILLISECOND));
        let until = self.now + length;
        self.hosts[host].paused_until = self.hosts[host].paused_until.max(until);
        self.network.freeze(host, true, self.now);
        self.at(until, Happening::Resumes { host });
    }

    pub(super) fn cut(&mut self, a: Node, b: Node, length: Nanos) {
        self.note(|| format!("network   node {a} and node {b} are cut off for {} ms", length / MILLISECOND));
        self.network.cut(a, b, self.now + length, self.now);
        self.after(length, Happening::Heals { a, b });
        self.after(nanos(self.limits.vanished), Happening::Vanished { a, b });
    }

    fn end_silent(&mut self, a: Node, b: Node) {
        if self.network.cut_until(a, b).is_none_or(|until| until <= self.now) {
            return;
        }
        let between = |conn: &Conn| (conn.child.min(conn.parent), conn.child.max(conn.parent));
        for id in self.network.conns_of(a) {
            if self.network.conns.get(&id).map(between) == Some((a.min(b), a.max(b))) {
                self.break_conn(id, "the other machine is silent");
            }
        }
        let (host, node) = (a.min(b), a.max(b));
        if node == self.manager_node()
            && let Some(link) = self.hosts.get(host).and_then(|host| host.agent.as_ref()).map(Agent::link)
        {
            let vm = self.hosts[host].id.clone();
            self.locally(host, 0, agent::Event::ManagerClosed { link });
            self.tell_manager(Input::Closed { vm, link });
        }
    }

    pub(super) fn registry_away(&mut self, length: Nanos) {
        self.note(|| format!("registry  away for {} ms", length / MILLISECOND));
        self.origin_is_up = false;
        self.origin_away_until = self.origin_away_until.max(self.now + length);
        self.at(self.origin_away_until, Happening::OriginBack);
    }

    /// The manager dies with all but its rows, and is there again after a time.
    pub(super) fn restart_manager(&mut self, length: Nanos) {
        let Some(manager) = self.manager.take() else { return };
        self.note(|| format!("manager   dies for {} ms", length / MILLISECOND));
        manager.crash(self.rng.random(), &mut self.rows);
        self.manager_life += 1;
        self.manager_busy = 0;
        self.book.manager_died();
        let node = self.manager_node();
        for host in 0..self.hosts.len() {
            if let Some(link) = self.hosts[host].agent.as_ref().map(Agent::link) {
                self.send_to_host(node, host, agent::Event::ManagerClosed { link });
            }
        }
        self.after(length, Happening::ManagerStarts);
    }

    // Connections between VMs, and to the origin.

    fn dial(&mut self, child: Node, conn: u64, tree: TreeId, upstream: Upstream) {
        let parent = match &upstream {
            Upstream::Origin => self.origin(),
            Upstream::Vm { vm, .. } => match self.numbers.get(vm) {
                Some(&number) => number,
                None => return,
            },
        };
        let mut opened = Conn::new(tree, child, parent, upstream);
        if parent == self.origin() {
            opened.is_open = true;
            self.network.open(conn, opened);
            return self.tell_child_at_once(conn, FromPeer::Opened);
        }
        self.network.open(conn, opened);
        self.after(5 * self.latency(child, parent), Happening::Arrives { conn });
        self.after(nanos(self.limits.connect), Happening::DialOver { conn });
    }

    fn arrives(&mut self, conn: u64) {
        let Some(known) = self.network.conns.get(&conn) else { return };
        let (child, parent, tree) = (known.child, known.parent, known.tree.clone());
        let target = &self.hosts[parent];
        if !target.is_up() {
            if !target.is_silent {
                self.close_at_parent(conn, "nobody listens there".into());
            }
            return; // nobody answers; the child gives up by itself
        }
        let held = self.network.cut_until(child, parent).filter(|until| *until > self.now);
        if let Some(until) = held.max((target.paused_until > self.now).then_some(target.paused_until)) {
            return self.at(until, Happening::Arrives { conn });
        }
        let vm = self.hosts[child].id.clone();
        if let Some(known) = self.network.conns.get_mut(&conn) {
            known.has_arrived = true;
        }
        self.agent(parent, agent::Event::ChildCame { conn, tree, vm });
    }

    fn dial_over(&mut self, conn: u64) {
        let Some(known) = self.network.conns.get(&conn).filter(|known| !known.is_open) else { return };
        if known.has_arrived && !known.is_late {
            if let Some(known) = self.network.conns.get_mut(&conn) {
                known.is_late = true;
            }
            return self.after(nanos(self.limits.handshake), Happening::DialOver { conn });
        }
        self.tell_child_at_once(conn, FromPeer::Closed("it does not answer in time".into()));
        self.hang_up(conn);
    }

    /// The child ends the connection.
    fn hang_up(&mut self, conn: u64) {
        let Some(Conn { tree, child, parent, has_arrived, .. }) = self.network.close(conn, self.now) else {
            return;
        };
        if has_arrived {
            self.send_to_host(child, parent, agent::Event::ChildGone { conn, tree });
        }
    }

    /// The parent ends the connection.
    fn close_at_parent(&mut self, conn: u64, reason: String) {
        self.tell_child(conn, FromPeer::Closed(reason));
        self.network.close(conn, self.now);
    }

    fn tell_child(&mut self, conn: u64, said: FromPeer) {
        if let Some(known) = self.network.conns.get(&conn) {
            let (tree, upstream, child, parent) =
                (known.tree.clone(), known.upstream.clone(), known.child, known.parent);
            self.send_to_host(parent, child, agent::Event::Upstream { tree, upstream, conn, said });
        }
    }

    fn tell_child_at_once(&mut self, conn: u64, said: FromPeer) {
        if let Some(known) = self.network.conns.get(&conn) {
            let (tree, upstream, child) = (known.tree.clone(), known.upstream.clone(), known.child);
            self.locally(child, 0, agent::Event::Upstream { tree, upstream, conn, said });
        }
    }

    fn child_asks(&mut self, child: Node, conn: u64, message: ToParent) {
        let Some(known) = self.network.conns.get(&conn) else { return };
        let (parent, tree) = (known.parent, known.tree.clone());
        if let ToParent::Want { path, .. } = &message {
            let target = self.hosts.get(parent).map(|host| &host.id);
            let distinct = path.iter().chain(target).collect::<BTreeSet<_>>().len();
            if distinct != path.len() + usize::from(target.is_some()) {
                let text = format!("a demand of vm-{child:05} is to visit a VM twice: {path:?}");
                self.violation = Some(Violation::new(11, text));
            }
        }
        if parent < self.hosts.len() {
            return self.send_to_host(child, parent, agent::Event::Child { conn, tree, said: message });
        }
        let is_up = self.origin_is_up;
        if is_up {
            let stored = |image: &Image, blocks: &[BlockId]| {
                blocks.iter().map(|block| image.stored(*block).len() as u64).sum()
            };
            let bytes = match (&message, image(&self.images, &tree)) {
                (ToParent::Want { blocks, .. }, Some(image)) => stored(image, blocks),
                _ => 0,
            };
            self.book.read_origin(&tree, child, bytes);
        }
        let delay = if is_up { self.model.origin_latency } else { ORIGIN_GIVES_UP };
        self.after(delay, Happening::OriginAnswers { conn, message, is_up });
    }

    fn origin_answers(&mut self, conn: u64, message: ToParent, is_up: bool) {
        let Some(tree) = self.network.conns.get(&conn).map(|known| known.tree.clone()) else { return };
        let images = Arc::clone(&self.images);
        let Some(image) = image(&images, &tree) else { return };
        match message {
            ToParent::WantIndex { .. } if is_up => {
                let frame = Frame::new(Urgency::Demand, FromParent::Index, Bytes::new(), image.index_bytes);
                self.network.send(conn, frame, self.now);
            }
            ToParent::WantIndex { .. } => self.close_at_parent(conn, "the origin cannot be used".into()),
            ToParent::Want { blocks, urgency, .. } => {
                for block in blocks {
                    if is_up {
                        let body = image.stored(block);
                        let bytes = body.len() as u64;
                        let frame = Frame::new(urgency, FromParent::Block { block }, body, bytes);
                        self.network.send(conn, frame, self.now);
                    } else {
                        self.tell_child_at_once(conn, FromPeer::NotServed(block, NotServed::NoSource));
                    }
                }
            }
            ToParent::Hurry { .. } | ToParent::Corrupt { .. } | ToParent::Open { .. } => {}
        }
    }

    fn parent_tells(
        &mut self,
        parent: Node,
        conn: u64,
        urgency: Urgency,
        message: FromParent,
        mut body: Bytes,
    ) {
        let Some(tree) = self.network.conns.get(&conn).map(|known| known.tree.clone()) else { return };
        if self.network.queued(conn) >= 3 * self.limits.transfer.queued_blocks_max {
            self.close_at_parent(conn, "the child does not read".into());
            return self.locally(parent, 0, agent::Event::ChildGone { conn, tree });
        }
        let bytes = match &message {
            FromParent::Index => image(&self.images, &tree).map_or(0, |image| image.index_bytes),
            _ => body.len() as u64,
        };
        if let FromParent::Block { block } = &message {
            self.invariant_5(parent, &tree, *block, &body);
            if self.hosts[parent].is_faulty && !block.0.is_multiple_of(3) {
                let mut damaged = body.to_vec();
                damaged[0] ^= 1;
                body = damaged.into();
            }
        }
        self.network.send(conn, Frame::new(urgency, message, body, bytes), self.now);
    }

    /// A frame was sent completely; it is there after the latency, and is checked.
    fn frame_left(&mut self, conn: u64, Frame { message, body, urgency, .. }: Frame) {
        let Some(known) = self.network.conns.get(&conn) else { return };
        let (tree, parent) = (known.tree.clone(), known.parent);
        if matches!(message, FromParent::Block { .. }) && parent < self.hosts.len() {
            self.locally(parent, 0, agent::Event::ChildSent { conn, tree: tree.clone(), urgency });
        }
        let tree = &tree;
        let said = match message {
            FromParent::Index => FromPeer::Index,
            FromParent::Block { block } => match image(&self.images, tree) {
                Some(image) if image.verify(block, &body) => FromPeer::Block(block, body),
                _ => FromPeer::Corrupt(block),
            },
            FromParent::NotServed { block, reason } => FromPeer::NotServed(block, reason),
            FromParent::Waiting { .. } => FromPeer::Waits,
            FromParent::Opened => FromPeer::Opened,
            FromParent::Refused { reason } => FromPeer::Closed(reason.to_string()),
        };
        if let FromPeer::Block(_, stored) = &said {
            self.book.moved_bytes += stored.len() as u64;
        }
        self.tell_child(conn, said);
    }

    // Containers.

    fn run_container(&mut self, host: Node, start: StartId) {
        let Some(agent) = &self.hosts[host].agent else { return };
        let Some(ordered) = agent.ordered.get(&start) else { return };
        let tree = ordered.order.place.tree.clone();
        let container = Container { tree, is_running: false, read: 0, waits: None, is_ready: false };
        self.hosts[host].holder.containers.insert(start.clone(), container);
        let length = self.spread(&self.model.run.clone());
        let life = self.hosts[host].life;
        self.after(length, Happening::RunEnds { host, life, start });
    }

    fn run_ends(&mut self, host: Node, life: u32, start: &StartId) {
        if self.hosts[host].life != life {
            return;
        }
        if self.hosts[host].paused_until > self.now {
            let resumes = self.hosts[host].paused_until;
            return self.at(resumes, Happening::RunEnds { host, life, start: start.clone() });
        }
        let Some(container) = self.hosts[host].holder.containers.get_mut(start) else { return };
        container.is_running = true;
        self.locally(host, 0, agent::Event::Running { start: start.clone() });
        self.reads(host, start);
    }

    /// A container goes on to its next read.
    fn reads(&mut self, host: Node, start: &StartId) {
        if self.hosts[host].paused_until > self.now {
            let (at, life) = (self.hosts[host].paused_until, self.hosts[host].life);
            return self.at(at, Happening::Reads { host, life, start: start.clone() });
        }
        let life = self.hosts[host].life;
        let target = &mut self.hosts[host];
        let Some(container) = target.holder.containers.get_mut(start) else { return };
        let tree = container.tree.clone();
        let Some(image) = image(&self.images, &tree) else { return };
        let Some(&block) = image.reads.get(container.read) else {
            container.is_ready = true;
            return;
        };
        if target.has_block(&tree, block) {
            return self.read_done(host, start);
        }
        if let Some(container) = target.holder.containers.get_mut(start) {
            container.waits = Some((block, self.now));
        }
        let readers = target.holder.reads.entry((tree.clone(), block)).or_default();
        let is_first = readers.is_empty();
        readers.insert(start.clone());
        let deadline = nanos(self.limits.transfer.read_deadline);
        self.after(deadline, Happening::ReadOver { host, life, start: start.clone(), block });
        if is_first {
            self.locally(host, 0, agent::Event::Missed { tree, blocks: vec![block] });
        }
    }

    fn read_done(&mut self, host: Node, start: &StartId) {
        let life = self.hosts[host].life;
        if let Some(container) = self.hosts[host].holder.containers.get_mut(start) {
            container.read += 1;
            container.waits = None;
            self.after(self.model.think, Happening::Reads { host, life, start: start.clone() });
        }
    }

    fn reads_go_on(&mut self, host: Node, tree: &TreeId, blocks: &[BlockId]) {
        for &block in blocks {
            let readers = self.hosts[host].holder.reads.remove(&(tree.clone(), block));
            for start in readers.into_iter().flatten() {
                self.read_done(host, &start);
            }
        }
    }

    fn reads_fail(&mut self, host: Node, tree: &TreeId, blocks: &[BlockId]) {
        for &block in blocks {
            let readers = self.hosts[host].holder.reads.remove(&(tree.clone(), block));
            for start in readers.into_iter().flatten() {
                self.read_failed(host, start);
            }
        }
    }

    /// A container does not survive an I/O error.
    fn read_failed(&mut self, host: Node, start: StartId) {
        self.book.reads_failed += 1;
        self.hosts[host].holder.remove(&start);
        self.locally(host, 0, agent::Event::Exited { start, exit: Exit::Code(1) });
    }

    fn read_over(&mut self, host: Node, life: u32, start: &StartId, block: BlockId) {
        if self.hosts[host].life != life {
            return;
        }
        if self.hosts[host].paused_until > self.now {
            let resumes = self.hosts[host].paused_until;
            let start = start.clone();
            return self.at(resumes, Happening::ReadOver { host, life, start, block });
        }
        let deadline = nanos(self.limits.transfer.read_deadline);
        let is_late = |container: &Container| {
            container.waits.is_some_and(|(waits, since)| waits == block && self.now >= since + deadline)
        };
        if self.hosts[host].holder.containers.get(start).is_some_and(is_late) {
            self.read_failed(host, start.clone());
        }
    }
}

impl Drop for World {
    /// A core that finds its invariant broken panics: then the history tells how it came to that.
    fn drop(&mut self) {
        if std::thread::panicking() && !std::mem::replace(&mut self.is_over, true) {
            eprintln!("the history of seed {} before a core panicked:", self.seed);
            self.lines.iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

pub(super) fn names(tenant: &str, name: &str) -> (TenantId, FunctionName) {
    (tenant.parse().expect("a label"), name.parse().expect("a label"))
}

/// The beginning of a debug text, which is enough to follow a history.
fn short(value: &impl std::fmt::Debug) -> String {
    struct Short(String);

    impl std::fmt::Write for Short {
        /// The end of the text is never made: it may hold whole blocks.
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.push_str(text);
            if self.0.len() > 180 { Err(std::fmt::Error) } else { Ok(()) }
        }
    }

    let mut text = Short(String::new());
    let _cut_short = std::fmt::write(&mut text, format_args!("{value:?}"));
    text.0
}
