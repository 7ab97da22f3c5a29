//! Random histories: what clients ask and what breaks, all from one seed.

use super::{
    invariants::{self, Depth, Violation},
    model::{FunctionModel, Hot, ImageModel, MILLISECOND, Model, Reads, SECOND, rng},
    network::Node,
    queue::Nanos,
    world::{Watch, World},
};
use faasnet_actors::{
    id::StartId,
    wire::control::{Mode, Warmth},
};
use rand::{RngExt, rngs::StdRng};
use serde::Serialize;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// Something that is asked for, or goes wrong.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Start {
        function: usize,
        count: u32,
    },
    /// The function's image is brought to as many VMs.
    Preheat {
        function: usize,
        vms: u32,
        what: Warmth,
    },
    /// Stops an instance: that of this number among those acknowledged, modulo their count.
    Stop {
        number: usize,
    },
    Boot {
        vm: Node,
    },
    Crash {
        vm: Node,
        is_silent: bool,
    },
    Pause {
        vm: Node,
        length: Nanos,
    },
    Cut {
        a: Node,
        b: Node,
        length: Nanos,
    },
    CutFromManager {
        vm: Node,
        length: Nanos,
    },
    /// One of the VM's connections ends.
    BreakConnection {
        vm: Node,
        number: usize,
    },
    Damages {
        vm: Node,
        is_faulty: bool,
    },
    RegistryAway {
        length: Nanos,
    },
    RestartManager {
        length: Nanos,
    },
}

/// What happens to a world, and when.
#[derive(Debug, Clone, Serialize)]
pub struct History {
    pub seed: u64,
    pub actions: Vec<(Nanos, Action)>,
}

/// A history in which an invariant does not hold.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    pub history: History,
    /// Absent when a core panicked.
    pub violation: Option<Violation>,
    pub what: String,
    /// The last lines of the history.
    pub lines: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(out, "seed {}: {}", self.history.seed, self.what)?;
        writeln!(out, "what was done:")?;
        for (at, action) in &self.history.actions {
            writeln!(out, "{:>10.3} ms  {action:?}", *at as f64 / MILLISECOND as f64)?;
        }
        writeln!(out, "the last that happened:")?;
        self.lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        write!(out, "replay: faasnet-loadtest simulate history --seed {} --trace", self.history.seed)
    }
}

/// How long things go wrong.
const TROUBLE: Nanos = 12 * SECOND;
/// How long afterwards everything has time to come to rest: the longest wait, which is the life of a
/// complaint (only when it is over asks everybody his parent again), and as much again.
const REST: Duration = Duration::from_secs(2 * 60);
const VMS: usize = 10;

/// A small world with short deadlines, in which rare things are frequent.
fn model() -> Model {
    let millis = Duration::from_millis;
    let image = |blocks, reads, hot| ImageModel {
        blocks,
        stored_bytes: 60_000,
        metadata_blocks: 2,
        reads,
        hot,
        packed_blocks: 6,
    };
    let function = |tenant: &str, name: &str, image, mode| FunctionModel {
        tenant: tenant.into(),
        name: name.into(),
        image,
        memory_mib: 256,
        mode,
    };
    let mut model = Model {
        vms: VMS,
        memory_bytes: 1 << 30,
        images: vec![
            image(24, Reads::Random(12), Hot::Unknown),
            image(12, Reads::Sequential(8), Hot::Pushed),
        ],
        functions: vec![
            function("acme", "web", 0, Mode::LazyThenWhole),
            function("acme", "api", 1, Mode::Lazy),
            function("other", "job", 1, Mode::Whole),
        ],
        uplink: 2_000_000,
        downlink: 2_000_000,
        origin_rate: 2_000_000,
        ..Model::default()
    };
    let limits = &mut model.limits;
    limits.scheduler.functions_per_vm_max = 2;
    limits.scheduler.placement_deadline = millis(8000);
    limits.scheduler.ready_deadline = millis(15_000);
    limits.orders_in_flight_max = 2;
    limits.orders_queued_max = 1;
    limits.transfer.in_flight_blocks_min = 4;
    limits.transfer.in_flight_blocks_max = 12;
    limits.transfer.queued_blocks_max = 12;
    limits.transfer.children_max = 6;
    limits.transfer.read_deadline = millis(6000);
    limits.memory_cache_bytes = 200_000;
    // The larger image and a part of the smaller one.
    limits.disk.bytes_max = 18_000_000;
    limits.disk.wait_max = millis(2000);
    model
}

impl History {
    /// The history of a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = rng(seed);
        let mut actions: Vec<(Nanos, Action)> =
            (0..VMS).map(|vm| (rng.random_range(0..2 * SECOND), Action::Boot { vm })).collect();
        let count = rng.random_range(8..40);
        actions.extend((0..count).map(|_| (rng.random_range(SECOND / 2..TROUBLE), action(&mut rng))));
        actions.sort_by_key(|(at, _)| *at);
        Self { seed, actions }
    }

    /// Plays the history and checks every invariant after every event.
    pub fn play(&self, prints: bool) -> Result<Outcome, Box<Failure>> {
        let played = catch_unwind(AssertUnwindSafe(|| self.play_to_end(prints)));
        played.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let what = format!("a core panicked: {}", text.unwrap_or_default());
            let history = self.clone();
            Err(Box::new(Failure { history, violation: None, what, lines: Vec::new() }))
        })
    }

    fn play_to_end(&self, prints: bool) -> Result<Outcome, Box<Failure>> {
        let mut world = World::new(model(), self.seed, Watch { depth: Depth::Full, prints });
        let base = world.now;
        for (at, action) in &self.actions {
            world.run_until(base + at, |_| false);
            world.act(*action);
        }
        world.calm();
        world.run_for(REST);
        let violation = match world.violation.take() {
            Some(violation) => Err(violation),
            None => invariants::every_start_ended(&world).and_then(|()| invariants::all_is_quiet(&world)),
        };
        violation.map_err(|violation| {
            let (what, lines) = (violation.to_string(), world.lines());
            Box::new(Failure { history: self.clone(), violation: Some(violation), what, lines })
        })?;
        Ok(Outcome {
            events: world.events,
            starts: world.book.acknowledged.len(),
            ready: world.book.ready.len(),
            reads_failed: world.book.reads_failed,
            evictions: world.book.evictions,
        })
    }

    /// Leaves out actions as long as the history fails, at most that many times.
    pub fn shrink(failure: Box<Failure>, tries: usize) -> Box<Failure> {
        let mut least = failure;
        let mut length = least.history.actions.len().div_ceil(2);
        let (mut from, mut tried) = (0, 0);
        while length > 0 && tried < tries {
            let mut history = least.history.clone();
            let end = (from + length).min(history.actions.len());
            if from >= end {
                (from, length) = (0, if length == 1 { 0 } else { length.div_ceil(2) });
                continue;
            }
            history.actions.drain(from..end);
            tried += 1;
            match history.play(false) {
                Err(smaller) => least = smaller,
                Ok(_) => from = end,
            }
        }
        least
    }
}

/// What a history came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub events: u64,
    pub starts: usize,
    pub ready: usize,
    pub reads_failed: u32,
    pub evictions: u32,
}

fn action(rng: &mut StdRng) -> Action {
    let vm = rng.random_range(0..VMS);
    let length = rng.random_range(50 * MILLISECOND..5 * SECOND);
    match rng.random_range(0..100) {
        0..26 => Action::Start { function: rng.random_range(0..3), count: rng.random_range(1..8) },
        26..30 => {
            let what = if rng.random() { Warmth::Hot } else { Warmth::Whole };
            Action::Preheat { function: rng.random_range(0..3), vms: rng.random_range(1..6), what }
        }
        30..40 => Action::Stop { number: rng.random_range(0..1000) },
        40..48 => Action::Crash { vm, is_silent: rng.random() },
        48..56 => Action::Boot { vm },
        56..66 => Action::Pause { vm, length },
        66..76 => Action::Cut { a: vm, b: (vm + rng.random_range(1..VMS)) % VMS, length: 3 * length },
        76..81 => Action::CutFromManager { vm, length: 3 * length },
        81..89 => Action::BreakConnection { vm, number: rng.random_range(0..100) },
        89..93 => Action::Damages { vm, is_faulty: rng.random() },
        93..96 => Action::RegistryAway { length },
        _ => Action::RestartManager { length: length / 2 },
    }
}

impl World {
    pub(super) fn act(&mut self, action: Action) {
        self.note(|| format!("---       {action:?}"));
        match action {
            Action::Start { function, count } => self.start(function, count),
            Action::Preheat { function, vms, what } => self.preheat(function, vms, what),
            Action::Stop { number } => self.stop(number),
            Action::Boot { vm } => self.boot(vm),
            Action::Crash { vm, is_silent } => self.crash(vm, is_silent),
            Action::Pause { vm, length } => self.pause(vm, length),
            Action::Cut { a, b, length } => self.cut(a, b, length),
            Action::CutFromManager { vm, length } => self.cut(vm, self.manager_node(), length),
            Action::BreakConnection { vm, number } => {
                let conns = self.network.conns_of(vm);
                if let Some(conn) = number.checked_rem(conns.len()).and_then(|number| conns.get(number)) {
                    self.break_conn(*conn, "the connection was lost");
                }
            }
            Action::Damages { vm, is_faulty } => self.hosts[vm].is_faulty = is_faulty,
            Action::RegistryAway { length } => self.registry_away(length),
            Action::RestartManager { length } => self.restart_manager(length),
        }
    }

    fn stop(&mut self, number: usize) {
        let starts = &self.book.acknowledged;
        let chosen = number.checked_rem(starts.len()).and_then(|number| starts.iter().nth(number));
        if let Some(start) = chosen.map(|(start, _)| start.clone()) {
            self.end(&start);
        }
    }

    /// A client ends an instance.
    pub(super) fn end(&mut self, start: &StartId) {
        let Some(((tenant, _), _)) = self.book.acknowledged.get(start) else { return };
        let (start, tenant, ticket) = (start.clone(), tenant.clone(), self.ticket());
        self.ask(faasnet_actors::scheduler::Event::Stop { ticket, tenant, start });
    }

    /// Faults end by themselves; no VM damages blocks any more.
    pub(super) fn calm(&mut self) {
        self.note(|| "---       no more trouble".into());
        self.hosts.iter_mut().for_each(|host| host.is_faulty = false);
    }
}
