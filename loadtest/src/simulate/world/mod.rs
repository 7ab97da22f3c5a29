//! The world: what happens, in order, and what each effect of a core makes happen.

mod agents;
mod clients;
mod containers;
mod control;
mod costs;
mod desk;
mod faults;
mod happening;
mod peers;
mod survey;

use clients::{Clients, Wish};
use desk::Desk;
pub(super) use happening::Happening;
use happening::Inbox;

use crate::distribute::Part;
use crate::simulate::{
    agent::{self, Agent, FromPeer, image},
    book::Book,
    costs::Costs,
    cpu::Cpu,
    host::{Container, Holder, Host},
    invariants::{self, Depth, Violation},
    manager::{Input, Manager, Output, Rows, SCHEDULER_TICK},
    model::{Cores, Hot, Image, MILLISECOND, Model, Spread, WorldLimits, nanos, rng},
    network::{Conn, Frame, Network, Node, Sent},
    queue::{Nanos, Queue},
};
use bytes::Bytes;
use faasnet_actors::{
    event_log::EventLogCore,
    id::{BlockId, FunctionName, StartId, TenantId, TreeId, VmId},
    image::BlockImage,
    model::{FunctionSpec, PreheatSpec},
    scheduler::{self, Ticket},
    wire::{
        control::{ToAgent, ToManager, Upstream, Warmth},
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

/// How often a history is printed, and how thoroughly it is checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    pub depth: Depth,
    pub prints: bool,
}

pub struct World {
    pub(super) model: Model,
    pub(super) limits: Arc<WorldLimits>,
    costs: Arc<Costs>,
    pub(super) images: Arc<Vec<Image>>,
    base: Instant,
    pub(super) now: Nanos,
    queue: Queue<Happening>,
    pub(super) rng: StdRng,
    pub(super) seed: u64,
    pub(super) manager: Option<Manager>,
    manager_life: u32,
    desk: Desk,
    clients: Clients,
    cpus: Vec<Cpu<Happening>>,
    /// Time of cores, by what used it.
    pub(super) used: BTreeMap<Part, Nanos>,
    inboxes: BTreeMap<Inbox, VecDeque<agent::Event>>,
    origin_free: Nanos,
    term: u64,
    pub(super) rows: Rows,
    pub(super) hosts: Vec<Host>,
    numbers: BTreeMap<VmId, Node>,
    pub(super) network: Network,
    pub(super) origin_is_up: bool,
    origin_away_until: Nanos,
    pub(super) book: Book,
    /// Everything that is told, for whoever compares it.
    pub(super) log: Option<EventLogCore>,
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
        let mut images: Vec<Image> =
            images.map(|(number, image)| Image::new(number, image, model.stand_ins, &mut rng)).collect();
        let packed = model.images.iter().enumerate();
        images.extend(
            packed.map(|(number, image)| Image::packed(number, image, model.stand_ins)).collect::<Vec<_>>(),
        );
        let host = |number: usize, rng: &mut StdRng| {
            let id: VmId = format!("vm-{number:05}").parse().expect("a label");
            Host::new(id, rng.random_range(0..=model.latency / 2))
        };
        let hosts: Vec<Host> = (0..model.vms).map(|number| host(number, &mut rng)).collect();
        let numbers = hosts.iter().enumerate().map(|(number, host)| (host.id.clone(), number)).collect();
        let ends = (0..model.vms).map(|_| (model.uplink, model.downlink));
        let network = Network::new(ends.chain([(model.origin_rate, 1), (1, 1)]));
        let limits = Arc::new(model.limits.clone());
        let costs = Arc::new(model.costs.clone());
        let mut world = Self {
            model,
            limits,
            costs,
            images: Arc::new(images),
            base: Instant::now(),
            now: 0,
            queue: Queue::default(),
            rng,
            seed,
            manager: None,
            manager_life: 0,
            desk: Desk::default(),
            clients: Clients::default(),
            cpus: Vec::new(),
            used: BTreeMap::new(),
            inboxes: BTreeMap::new(),
            origin_free: 0,
            term: 0,
            rows: Rows::default(),
            hosts,
            numbers,
            network,
            origin_is_up: true,
            origin_away_until: 0,
            book: Book::default(),
            log: None,
            tickets: 0,
            events: 0,
            watch,
            lines: VecDeque::new(),
            has_changed: false,
            violation: None,
            is_over: false,
        };
        world.cpus = match world.model.cores {
            Cores::Each(cores) => (0..world.hosts.len()).map(|_| Cpu::new(cores)).collect(),
            Cores::Shared(cores) => vec![Cpu::new(cores)],
        };
        world.start_manager();
        world.deploy();
        world.learn();
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
            let (tenant, name) = names(&function.tenant, &function.name);
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

    /// Asks once for starts of a function by its number.
    pub(super) fn start(&mut self, function: usize, count: u32) {
        let ticket = self.ticket();
        self.request(ticket, function, count);
    }

    fn request(&mut self, ticket: Ticket, function: usize, count: u32) {
        let function = &self.model.functions[function];
        let key = names(&function.tenant, &function.name);
        self.book.asked(ticket, key.clone(), self.now);
        self.ask(scheduler::Event::Start { ticket, key, count });
    }

    /// Asks that so many VMs hold what starts of a function read, or all of its image.
    pub(super) fn preheat(&mut self, function: usize, vms: u32, what: Warmth) {
        let function = &self.model.functions[function];
        let key = names(&function.tenant, &function.name);
        let spec = PreheatSpec { vms: Some(vms), names: Vec::new(), what };
        let ticket = self.ticket();
        self.ask(scheduler::Event::Preheat { ticket, key, spec });
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
            Happening::Handshake { conn, step } => self.handshake(conn, step),
            Happening::Send { conn, frame } => self.network.send(conn, *frame, self.now),
            Happening::Read { inbox, life } => self.read_inbox(inbox, life),
            Happening::Worked { cpu, version } => self.worked(cpu, version),
            Happening::Waits { length, then } => self.after(length, *then),
            Happening::ManagerFree { life } => self.manager_free(life),
            Happening::Asks(wish) => self.ask_again(wish),
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
                self.queue_for_manager(life, Box::new(Input::SchedulerTick));
                self.after(nanos(SCHEDULER_TICK), Happening::SchedulerTick { life });
            }
            Happening::ManagerTick { life } if life == self.manager_life => {
                self.queue_for_manager(life, Box::new(Input::Tick));
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
