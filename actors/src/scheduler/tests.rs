mod code;
mod copies;
mod drains;
mod hot;
mod preheat;
mod vms;
mod watched;

use super::{
    core::{Answer, Effect, Event, Limits, SchedulerCore, Ticket, WriteId},
    messages::ControlError,
    records::{FunctionKey, Loaded, LoadedFunction, StartRow},
};
use crate::{
    function_tree::{PreheatDraft, Role, StartDraft},
    id::{Digest, StartId, TenantId, TreeId, VmId},
    image::BlockImage,
    model::{FunctionSpec, ImageState, StartState, VmState},
    profiles::Recording,
    resources::Resources,
    vm_node::{VmEvent, VmFacts},
    wire::control::{EndReason, RunningInstance, StartReport, Step},
    world::{BatchLimits, MetadataError, Row, Source, Table, Write},
};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use tokio::time::Instant;
use watched::Watched;

const LIMITS: Limits = Limits {
    functions_max: 5,
    functions_per_vm_max: 2,
    starts_per_request_max: 3000,
    starts_waiting_max: 6000,
    preheat_vms_max: 4,
    starts_kept: 100,
    instances_per_function_max: 3000,
    keep_alive: Duration::from_secs(900),
    keep_alive_max: Duration::from_secs(86_400),
    restart_min: Duration::from_millis(500),
    restart_max: Duration::from_secs(60),
    requests_waiting_per_function_max: 3,
    requests_waiting_max: 5,
    placement_deadline: Duration::from_secs(30),
    ready_deadline: Duration::from_secs(120),
    lease: Duration::from_secs(3),
    starts_at_once_per_vm: 1,
    vm_idle: Duration::from_secs(900),
    drain_deadline: Duration::from_secs(60),
    rejoin_grace: Duration::from_secs(10),
    recordings_max: 3,
    recordings_at_once_max: 2,
    starts_per_row_max: 100,
    batch: BatchLimits { operations_max: 200, bytes_max: 1 << 20 },
    coalesce: Duration::from_millis(250),
};

const GIB: u64 = 1 << 30;

/// The row of starts that were accepted together; it is named by the first.
fn row(starts: &[StartId]) -> StartRow {
    let (id, starts) = (starts[0].clone(), starts.to_vec());
    StartRow { id, key: api(), starts, accepted_at_ms: None, request: None }
}

fn vm(number: usize) -> VmId {
    format!("vm-{number}").parse().expect("name")
}

fn key(tenant: &str, name: &str) -> FunctionKey {
    (tenant.parse().expect("name"), name.parse().expect("name"))
}

fn api() -> FunctionKey {
    key("acme", "api")
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

fn limited(min: u32, max: u32, keep_alive: Duration) -> FunctionSpec {
    let keep_alive_ms = Some(keep_alive.as_millis() as u64);
    FunctionSpec { min_instances: min, max_instances: Some(max), keep_alive_ms, ..spec("app:1") }
}

/// A source in a word: an image as it is, code as `code:TENANT/DIGEST`.
fn name_of(source: &Source) -> String {
    match source {
        Source::Image(image) => image.clone(),
        Source::Code(tenant, package) => format!("code:{tenant}/{package}"),
    }
}

fn source(name: &str) -> Source {
    match name.strip_prefix("code:").and_then(|code| code.split_once('/')) {
        Some((tenant, package)) => {
            Source::Code(tenant.parse().expect("tenant"), package.parse().expect("digest"))
        }
        None => Source::Image(name.to_owned()),
    }
}

/// The block image that is made of a source of that name.
fn block_image(source: &str) -> BlockImage {
    let digest = Digest::from_bytes(*blake3::hash(source.as_bytes()).as_bytes());
    BlockImage::of_test(digest)
}

fn facts(number: usize, memory_bytes: u64) -> VmFacts {
    VmFacts {
        address: ([127, 0, 0, 1], 1000 + number as u16).into(),
        key_hash: vec![number as u8].into(),
        capacity: Resources { memory_bytes, cpu_millis: 2000 },
        held: Vec::new(),
        cold: Vec::new(),
        instances: Vec::new(),
    }
}

/// A function whose image is ready.
fn loaded(image: &str) -> LoadedFunction {
    LoadedFunction { spec: spec(image), image: Some(block_image(image).into()), code: None }
}

/// A scheduler, its disk, and what it asked of others.
struct World {
    core: SchedulerCore,
    now: Instant,
    tickets: u64,
    answers: BTreeMap<Ticket, Result<Answer, ControlError>>,
    abandoned: BTreeSet<Ticket>,
    rows: BTreeMap<(Table, String), Vec<u8>>,
    /// Writes on their way to the disk.
    writes: VecDeque<(WriteId, Vec<Write>)>,
    /// Whether writes wait for `write_one`.
    disk_is_slow: bool,
    conversions: Vec<String>,
    /// Starts that a VM was chosen for.
    joins: Vec<(VmId, StartId)>,
    /// All that trees were told of starts.
    drafts: Vec<(TreeId, Box<StartDraft>)>,
    /// What the last of them was told.
    draft: Option<StartDraft>,
    recorded: Vec<(TenantId, Recording)>,
    preheats: Vec<(VmId, PreheatDraft)>,
    stops: Vec<(VmId, StartId)>,
    /// Images that VMs with full caches were told to remove.
    given_up: Vec<(VmId, Vec<crate::id::TreeId>)>,
    /// What whoever watches knows.
    watched: Watched,
    /// Other effects in short.
    others: Vec<String>,
}

impl World {
    fn new() -> Self {
        Self::with(LIMITS)
    }

    fn with(limits: Limits) -> Self {
        Self {
            core: SchedulerCore::new(limits, StdRng::from_seed([7; 32])),
            now: Instant::now(),
            tickets: 0,
            answers: BTreeMap::new(),
            abandoned: BTreeSet::new(),
            rows: BTreeMap::new(),
            writes: VecDeque::new(),
            disk_is_slow: false,
            conversions: Vec::new(),
            joins: Vec::new(),
            drafts: Vec::new(),
            draft: None,
            recorded: Vec::new(),
            preheats: Vec::new(),
            stops: Vec::new(),
            given_up: Vec::new(),
            watched: Watched::default(),
            others: Vec::new(),
        }
    }

    /// A function that is ready to run, and VMs of 1 GiB.
    fn with_vms(count: usize) -> Self {
        let mut world = Self::new();
        world.deploy(api(), "app:1");
        (0..count).for_each(|number| world.up(number, facts(number, GIB)));
        world
    }

    fn apply(&mut self, event: Event) {
        self.step(event);
        self.core.check();
        self.watched.check(&self.core);
    }

    fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.core.apply(event, self.now, &mut effects);
        for effect in effects {
            match effect {
                Effect::Answer { ticket, answer } => {
                    assert!(self.answers.insert(ticket, answer).is_none(), "answered twice");
                }
                Effect::Persist { write, writes } => self.writes.push_back((write, writes)),
                Effect::Convert { source, .. } => self.conversions.push(name_of(&source)),
                Effect::Join { tree, vm, start, .. } => {
                    assert_eq!(tree.image, start.image.id);
                    self.drafts.push((tree, start.clone()));
                    assert!(!self.core.is_draining(&vm), "nothing is placed on {vm}, which is drained");
                    if start.role != Role::Code {
                        self.joins.push((vm, start.start.clone()));
                        self.draft = Some(*start);
                    }
                }
                Effect::Preheat { vm, draft, .. } => self.preheats.push((vm, *draft)),
                Effect::Leave { vm, .. } => self.others.push(format!("leave {vm}")),
                Effect::Dissolve { .. } => self.others.push("dissolve".into()),
                Effect::Stop { vm, start } => self.stops.push((vm, start)),
                Effect::Recorded { tenant, recording } => self.recorded.push((tenant, recording)),
                Effect::GiveUp { vm, trees } => self.given_up.push((vm, trees)),
                Effect::Forget { vm } => self.others.push(format!("forget {vm}")),
                Effect::Tell(news) => self.watched.hears(news),
            }
        }
        while !self.disk_is_slow && self.write_one(Ok(())) {}
    }

    fn write_one(&mut self, result: Result<(), MetadataError>) -> bool {
        let Some((write, writes)) = self.writes.pop_front() else { return false };
        for row in writes.into_iter().filter(|_| result.is_ok()) {
            match row {
                Write::Put(row) => {
                    self.rows.insert((row.table, row.key), row.value);
                }
                Write::Delete { table, key } => {
                    self.rows.remove(&(table, key));
                }
            }
        }
        self.step(Event::Written { write, result });
        true
    }

    fn ask(&mut self, event: impl FnOnce(Ticket) -> Event) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.apply(event(ticket));
        ticket
    }

    fn put(&mut self, key: FunctionKey, spec: FunctionSpec) -> Ticket {
        self.ask(|ticket| Event::Put { ticket, key, spec: Box::new(spec) })
    }

    fn deploy(&mut self, key: FunctionKey, image: &str) {
        self.put(key, spec(image));
        self.convert(image);
    }

    fn convert(&mut self, image: &str) {
        self.conversions.retain(|source| source != image);
        self.apply(Event::Converted { source: source(image), result: Ok(Box::new(block_image(image))) });
    }

    fn start(&mut self, key: FunctionKey, count: u32) -> Vec<StartId> {
        let ticket = self.ask(|ticket| Event::Start { ticket, key, count });
        match &self.answers[&ticket] {
            Ok(Answer::Started(starts)) => starts.clone(),
            other => panic!("not accepted: {other:?}"),
        }
    }

    fn acquire(&mut self) -> Ticket {
        self.acquire_of(api())
    }

    fn acquire_of(&mut self, key: FunctionKey) -> Ticket {
        let deadline = self.now + Duration::from_secs(60);
        self.ask(|ticket| Event::Acquire { ticket, key, on: None, deadline })
    }

    fn news(&mut self, vm: VmId, event: VmEvent) {
        self.apply(Event::News { vm, event });
    }

    fn up(&mut self, number: usize, facts: VmFacts) {
        self.news(vm(number), VmEvent::Up(Box::new(facts)));
    }

    fn vm_of(&self, start: &StartId) -> VmId {
        self.joins.iter().rev().find(|(_, joined)| joined == start).expect("it was placed").0.clone()
    }

    /// The VM gets its order, and the instance answers.
    fn run(&mut self, start: &StartId) {
        let vm = self.vm_of(start);
        self.news(vm.clone(), VmEvent::Ordered { start: start.clone() });
        self.news(vm, VmEvent::Ready { start: start.clone(), report: StartReport::default() });
    }

    fn end(&mut self, start: &StartId, reason: EndReason) {
        let event = VmEvent::Ended { start: start.clone(), reason, report: StartReport::default() };
        self.news(self.vm_of(start), event);
    }

    fn state(&self, start: &StartId) -> (StartState, Option<EndReason>) {
        let view = self.core.start_view(&api().0, start).expect("known");
        (view.state, view.reason)
    }

    fn granted(&self, ticket: Ticket) -> Option<StartId> {
        match self.answers.get(&ticket) {
            Some(Ok(Answer::Acquired(located))) => Some(located.start.clone()),
            _ => None,
        }
    }

    fn error(&self, ticket: Ticket) -> ControlError {
        self.answers[&ticket].as_ref().expect_err("refused").clone()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.apply(Event::Tick);
        self.core.check_idle(self.now);
        self.core.check_drains_end(self.now);
    }

    /// A function with these limits; VMs of 1 GiB, and what is started on them runs.
    fn scaled(min: u32, max: u32, keep_alive: Duration) -> Self {
        let mut world = Self::new();
        (0..4).for_each(|number| world.up(number, facts(number, GIB)));
        world.put(api(), limited(min, max, keep_alive));
        world.convert("app:1");
        world.run_all();
        world
    }

    /// All that was ordered runs, and all that was stopped has ended.
    fn run_all(&mut self) {
        for (vm, start) in std::mem::take(&mut self.joins) {
            self.news(vm.clone(), VmEvent::Ordered { start: start.clone() });
            self.news(vm, VmEvent::Ready { start, report: StartReport::default() });
        }
        for (vm, start) in std::mem::take(&mut self.stops) {
            let event = VmEvent::Ended { start, reason: EndReason::Stopped, report: StartReport::default() };
            self.news(vm, event);
        }
    }

    fn ready(&self, key: &FunctionKey) -> u32 {
        self.core.function_view(key).expect("known").ready
    }

    fn release(&mut self, start: &StartId) {
        self.apply(Event::Released { start: start.clone() });
    }
}

fn instance(start: &StartId, image: &str, ready: bool) -> RunningInstance {
    RunningInstance {
        start: start.clone(),
        tenant: api().0,
        function: api().1,
        image: block_image(image).id,
        code: None,
        memory_bytes: 256 << 20,
        cpu_millis: 100,
        ready,
    }
}

fn ended(reason: EndReason) -> (StartState, Option<EndReason>) {
    (StartState::Ended, Some(reason))
}

#[test]
fn a_start_is_answered_when_its_id_is_durable_and_placed_after_that() {
    let mut world = World::with_vms(1);
    world.disk_is_slow = true;
    let ticket = world.ask(|ticket| Event::Start { ticket, key: api(), count: 1 });
    assert!(!world.answers.contains_key(&ticket) && world.joins.is_empty());
    world.write_one(Ok(()));
    let Some(Ok(Answer::Started(starts))) = world.answers.get(&ticket) else { panic!("not accepted") };
    assert!(world.rows.contains_key(&(Table::Starts, starts[0].to_string())), "invariant 9");
    assert_eq!(world.joins, [(vm(0), starts[0].clone())]);
}

#[test]
fn what_could_not_be_made_durable_is_not_acknowledged_and_not_done() {
    let mut world = World::with_vms(1);
    world.disk_is_slow = true;
    let start = world.ask(|ticket| Event::Start { ticket, key: api(), count: 2 });
    let put = world.put(key("acme", "web"), spec("web:1"));
    world.write_one(Err(MetadataError::Full("disk".into())));
    world.write_one(Err(MetadataError::Full("disk".into())));
    assert_eq!(world.error(start), ControlError::Metadata(MetadataError::Full("disk".into())));
    assert_eq!(world.error(put), ControlError::Metadata(MetadataError::Full("disk".into())));
    assert!(world.joins.is_empty() && world.core.function_view(&key("acme", "web")).is_none());
    world.core.check();
}

#[test]
fn a_vm_serves_one_tenant_and_no_more_memory_than_it_has() {
    let mut world = World::with_vms(1);
    world.deploy(key("other", "api"), "app:1");
    let first = world.start(api(), 1).remove(0);
    let other = world.start(key("other", "api"), 1).remove(0);
    world.start(api(), 4);
    let on_vm: Vec<StartId> = world.joins.iter().map(|(_, start)| start.clone()).collect();
    assert_eq!(on_vm.len(), 4, "1 GiB holds four times 256 MiB");
    assert!(on_vm.contains(&first) && !on_vm.contains(&other), "invariant 8");
}

#[test]
fn a_start_without_room_waits_until_its_deadline() {
    let mut world = World::with_vms(0);
    let starts = world.start(api(), 2);
    world.pass(LIMITS.placement_deadline - Duration::from_secs(1));
    world.up(0, facts(0, 256 << 20));
    assert_eq!(world.joins, [(vm(0), starts[0].clone())]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state(&starts[1]), ended(EndReason::NoRoom));
}

#[test]
fn an_order_that_cannot_be_delivered_goes_to_another_vm() {
    let mut world = World::with_vms(2);
    let start = world.start(api(), 1).remove(0);
    let first = world.vm_of(&start);
    world.news(first.clone(), VmEvent::Undeliverable { start: start.clone() });
    assert_ne!(world.vm_of(&start), first);
    let second = world.vm_of(&start);
    // The second is not heard of: the actors between lost it.
    world.pass(LIMITS.lease);
    assert_eq!((world.joins.len(), world.state(&start).0), (2, StartState::Waiting));
    world.news(second.clone(), VmEvent::Ordered { start: start.clone() });
    assert_eq!(world.stops, [(second, start)], "it went there after all");
}

#[test]
fn requests_share_instances_up_to_their_concurrency_and_start_what_they_need() {
    let mut world = World::with_vms(4);
    let waiting: Vec<Ticket> = (0..3).map(|_| world.acquire()).collect();
    assert_eq!(world.joins.len(), 2, "three requests need two instances of two");
    let too_many = world.acquire();
    assert!(matches!(world.error(too_many), ControlError::TooMany { .. }));
    let starts: Vec<StartId> = world.joins.iter().map(|(_, start)| start.clone()).collect();
    world.run(&starts[0]);
    assert_eq!(world.granted(waiting[0]), Some(starts[0].clone()));
    assert_eq!(world.granted(waiting[1]), Some(starts[0].clone()));
    assert_eq!(world.granted(waiting[2]), None);
    world.apply(Event::Released { start: starts[0].clone() });
    assert_eq!(world.granted(waiting[2]), Some(starts[0].clone()));
    world.run(&starts[1]);
    let next = world.acquire();
    assert_eq!(world.granted(next), Some(starts[1].clone()), "fewest in flight");
}

#[test]
fn a_request_whose_deadline_passes_or_whose_caller_goes_waits_no_more() {
    let mut world = World::with_vms(0);
    let deadline = world.now + Duration::from_secs(1);
    let late = world.ask(|ticket| Event::Acquire { ticket, key: api(), on: None, deadline });
    let gone = world.acquire();
    world.apply(Event::Abandoned { ticket: gone });
    world.pass(Duration::from_secs(1));
    assert_eq!(world.error(late), ControlError::DeadlineExceeded);
    assert!(!world.answers.contains_key(&gone));
    world.up(0, facts(0, GIB));
    let start = world.joins[0].1.clone();
    world.run(&start);
    assert!(!world.answers.contains_key(&gone));
}

#[test]
fn a_request_that_would_be_granted_after_its_deadline_is_not_and_the_next_one_is() {
    let mut world = World::with_vms(1);
    let start = world.start(api(), 1).remove(0);
    let deadline = world.now + Duration::from_secs(1);
    let late = world.ask(|ticket| Event::Acquire { ticket, key: api(), on: None, deadline });
    let patient = world.acquire();
    // No tick comes before the instance does.
    world.now = deadline;
    world.run(&start);
    assert_eq!(world.error(late), ControlError::DeadlineExceeded);
    assert_eq!(world.granted(patient), Some(start));
    let over = world.ask(|ticket| Event::Acquire { ticket, key: api(), on: None, deadline });
    assert_eq!(world.error(over), ControlError::DeadlineExceeded, "though a place is free");
}

#[test]
fn requests_whose_callers_have_gone_start_nothing() {
    let mut world = World::with_vms(0);
    let gone: Vec<Ticket> = (0..3).map(|_| world.acquire()).collect();
    gone.into_iter().for_each(|ticket| world.apply(Event::Abandoned { ticket }));
    assert_eq!(world.core.function_view(&api()).expect("known").waiting, 0);
    world.pass(LIMITS.placement_deadline);
    world.up(0, facts(0, GIB));
    assert!(world.joins.is_empty(), "the starts for them had no room, and no others are made");
}

#[test]
fn one_tenants_requests_leave_room_for_those_of_others() {
    let mut world = World::with(Limits { requests_waiting_max: 4, ..LIMITS });
    for tenant in ["acme", "b", "c", "d"] {
        world.deploy(key(tenant, "api"), "app:1");
    }
    let mut ask = |tenant: &str| world.acquire_of(key(tenant, "api"));
    let [_, _, third, _, other, last, full] = ["acme", "acme", "acme", "b", "b", "c", "d"].map(&mut ask);
    let refused = |ticket| matches!(world.error(ticket), ControlError::TooMany { .. });
    assert!(refused(third), "a tenant alone has half");
    assert!(refused(other), "two tenants leave room for a third");
    assert!(!world.answers.contains_key(&last));
    assert!(matches!(world.error(full), ControlError::Overloaded { .. }));
}

#[test]
fn requests_fail_with_the_start_that_they_wait_for_and_not_before() {
    let mut world = World::with_vms(2);
    let waiting: Vec<Ticket> = (0..3).map(|_| world.acquire()).collect();
    let starts: Vec<StartId> = world.joins.iter().map(|(_, start)| start.clone()).collect();
    for start in &starts {
        world.news(world.vm_of(start), VmEvent::Ordered { start: start.clone() });
    }
    world.end(&starts[0], EndReason::MountFailed("x".into()));
    assert!(waiting.iter().all(|ticket| !world.answers.contains_key(ticket)), "another is under way");
    world.end(&starts[1], EndReason::MountFailed("x".into()));
    assert_eq!(world.joins.len(), 2, "what fails by itself is not tried again and again");
    assert!(waiting.iter().all(|ticket| matches!(world.error(*ticket), ControlError::StartFailed(_))));
}

#[test]
fn a_request_for_one_instance_gets_that_one_or_none() {
    let mut world = World::with_vms(2);
    let starts = world.start(api(), 2);
    starts.iter().for_each(|start| world.run(start));
    let deadline = world.now + Duration::from_secs(9);
    let mut on = |start: &StartId| {
        let on = Some(start.clone());
        world.ask(|ticket| Event::Acquire { ticket, key: api(), on, deadline })
    };
    let tickets = [on(&starts[1]), on(&starts[1]), on(&starts[1])];
    assert_eq!(world.granted(tickets[1]), Some(starts[1].clone()));
    assert_eq!(world.granted(tickets[2]), None);
    world.end(&starts[1], EndReason::NotReady);
    assert!(matches!(world.error(tickets[2]), ControlError::StartFailed(_)));
}

#[test]
fn a_vm_that_is_down_gets_no_requests_and_brings_its_instances_back() {
    let mut world = World::with_vms(1);
    let starts = world.start(api(), 3);
    world.run(&starts[0]);
    world.run(&starts[1]);
    world.news(vm(0), VmEvent::Ordered { start: starts[2].clone() });
    world.news(vm(0), VmEvent::Down);
    let waiting = world.acquire();
    assert_eq!(world.granted(waiting), None);
    assert_eq!(world.core.vm_views()[0].state, VmState::Lost);
    world.news(vm(0), VmEvent::LeaseOver);
    assert_eq!(world.state(&starts[2]), ended(EndReason::VmLost));
    assert_eq!(world.state(&starts[0]).0, StartState::Ready, "kept");
    let mut back = facts(0, GIB);
    back.instances = vec![instance(&starts[0], "app:1", true), instance(&starts[2], "app:1", true)];
    world.up(0, back);
    assert_eq!(world.granted(waiting), Some(starts[0].clone()));
    assert_eq!(world.state(&starts[1]), ended(EndReason::VmLost), "missing in the hello");
    assert_eq!(world.stops, [(vm(0), starts[2].clone())], "what has ended is stopped");
}

#[test]
fn starts_wait_for_the_conversion_and_end_when_it_fails() {
    let mut world = World::new();
    world.put(api(), spec("app:1"));
    world.up(0, facts(0, GIB));
    let start = world.start(api(), 1).remove(0);
    let request = world.acquire();
    world.pass(Duration::from_secs(3600));
    assert!(world.answers.get(&request).is_some_and(Result::is_err), "its own deadline");
    assert_eq!(world.state(&start).0, StartState::Waiting, "conversion does not count");
    let request = world.acquire();
    world.apply(Event::Converted { source: source("app:1"), result: Err("no such tag".into()) });
    assert_eq!(world.state(&start), ended(EndReason::ImageUnavailable("no such tag".into())));
    assert_eq!(world.error(request), ControlError::ImageFailed("no such tag".into()));
    let refused = world.ask(|ticket| Event::Start { ticket, key: api(), count: 1 });
    assert_eq!(world.error(refused), ControlError::ImageFailed("no such tag".into()));
    // Said again, it is tried again.
    world.deploy(api(), "app:1");
    assert_eq!(world.start(api(), 1).len(), 1);
    assert_eq!(world.joins.len(), 1);
}

#[test]
fn an_image_is_converted_once_however_many_functions_name_it() {
    let mut world = World::new();
    world.put(api(), spec("app:1"));
    world.put(key("acme", "web"), spec("app:1"));
    assert_eq!(world.conversions, ["app:1"]);
    world.convert("app:1");
    let ready = |key: &FunctionKey| world.core.function_view(key).expect("known").image_state;
    assert!(matches!(ready(&api()), ImageState::Ready { .. }));
    assert!(matches!(ready(&key("acme", "web")), ImageState::Ready { .. }));
    let image = (Table::Images, block_image("app:1").id.to_string());
    assert!(world.rows.contains_key(&image), "trusted only with its record");
}

#[test]
fn a_new_description_replaces_instances_when_a_new_one_is_ready() {
    let mut world = World::with_vms(2);
    let old = world.start(api(), 1).remove(0);
    world.run(&old);
    let busy = world.acquire();
    world.deploy(api(), "app:2");
    assert_eq!(world.joins.len(), 2, "one of the new is started");
    let new = world.joins[1].1.clone();
    let still_old = world.acquire();
    assert_eq!(world.granted(still_old), Some(old.clone()));
    world.run(&new);
    assert!(world.stops.is_empty(), "two requests are still there");
    let now_new = world.acquire();
    assert_eq!(world.granted(now_new), Some(new));
    assert_eq!(world.granted(busy), Some(old.clone()));
    world.apply(Event::Released { start: old.clone() });
    world.apply(Event::Released { start: old.clone() });
    assert_eq!(world.stops.len(), 1);
    world.end(&old, EndReason::Stopped);
    assert_eq!(world.others, ["dissolve"], "nobody uses the old image");
}

#[test]
fn a_deleted_function_is_stopped_everywhere_and_its_tree_dissolves_at_the_end() {
    let mut world = World::with_vms(1);
    let starts = world.start(api(), 5);
    world.run(&starts[0]);
    let deleted = world.ask(|ticket| Event::Delete { ticket, key: api() });
    assert_eq!(world.answers[&deleted], Ok(Answer::Done));
    assert_eq!(world.state(&starts[4]), ended(EndReason::Stopped), "it had no VM");
    assert_eq!(world.stops, [(vm(0), starts[0].clone())]);
    for start in &starts[1..4] {
        world.news(vm(0), VmEvent::Ordered { start: start.clone() });
    }
    assert_eq!(world.stops.len(), 4, "told as soon as the order is there");
    assert!(world.others.is_empty());
    starts[..4].iter().for_each(|start| world.end(start, EndReason::Stopped));
    assert_eq!(world.others, ["dissolve"]);
    world.apply(Event::Tick);
    assert!(world.rows.keys().all(|(table, _)| *table == Table::Images), "{:?}", world.rows.keys());
}

#[test]
fn a_new_manager_takes_over_what_runs_and_places_the_rest_again() {
    let mut before = World::with_vms(2);
    before.core.at(1_700_000_000_123).asked_by(Some("call-17".parse().expect("an id")));
    let starts = before.start(api(), 3);
    assert!(
        before
            .drafts
            .iter()
            .all(|(_, draft)| draft.request.as_ref().is_some_and(|id| id.as_str() == "call-17"))
    );
    assert!(!before.drafts.is_empty());
    before.core.asked_by(None);
    before.run(&starts[0]);
    let row = before.rows.iter().find(|((table, _), _)| *table == Table::Starts);
    let ((table, key), value) = row.expect("accepted starts are durable");
    let row =
        StartRow::read(&Row { table: *table, key: key.clone(), value: value.clone() }).expect("readable");

    let mut world = World::new();
    let loaded = Loaded {
        functions: BTreeMap::from([(api(), loaded("app:1"))]),
        vms: vec![vm(0), vm(1)],
        drains: BTreeSet::new(),
        starts: vec![row],
    };
    world.core.at(1_700_000_999_000);
    world.apply(Event::Loaded(Box::new(loaded)));
    for start in &starts {
        let view = world.core.start_view(&api().0, start).expect("known");
        assert_eq!(view.accepted_at_ms, Some(1_700_000_000_123), "when it was accepted, not found");
        assert_eq!(view.request_id.expect("kept").as_str(), "call-17");
    }
    assert_eq!(world.core.vm_views().len(), 2);
    let unknown: StartId = "unknown".parse().expect("name");
    let mut hello = facts(0, GIB);
    hello.instances = vec![instance(&starts[0], "app:1", true), instance(&unknown, "app:1", true)];
    world.up(0, hello);
    assert_eq!(world.state(&starts[0]).0, StartState::Ready);
    let request = world.acquire();
    assert!(world.granted(request).is_some());
    assert!(world.joins.is_empty());
    world.pass(LIMITS.rejoin_grace);
    let placed: BTreeSet<StartId> = world.joins.iter().map(|(_, start)| start.clone()).collect();
    assert_eq!(placed, starts[1..].iter().cloned().collect());
    assert_eq!(world.stops, [(vm(0), unknown)], "what is not known any more was ended by a manager before");
}

#[test]
fn an_instance_that_nobody_wants_is_stopped() {
    let mut world = World::with_vms(1);
    let start: StartId = "stray".parse().expect("name");
    let mut hello = facts(0, GIB);
    hello.instances =
        vec![RunningInstance { function: "gone".parse().expect("name"), ..instance(&start, "app:1", true) }];
    world.up(0, hello);
    assert_eq!(world.stops, [(vm(0), start)]);
}

#[test]
fn a_vm_is_removed_only_when_it_is_lost_and_its_instances_end() {
    let mut world = World::with_vms(1);
    let start = world.start(api(), 1).remove(0);
    world.run(&start);
    let refused = world.ask(|ticket| Event::RemoveVm { ticket, vm: vm(0) });
    assert!(matches!(world.error(refused), ControlError::Conflict(_)));
    world.news(vm(0), VmEvent::Down);
    let removed = world.ask(|ticket| Event::RemoveVm { ticket, vm: vm(0) });
    assert_eq!(world.answers[&removed], Ok(Answer::Done));
    assert_eq!(world.state(&start), ended(EndReason::VmLost));
    assert_eq!(world.others, ["forget vm-0"]);
    assert!(world.core.vm_views().is_empty());
}

#[test]
fn a_start_that_says_nothing_ends_after_its_deadline_and_a_lease() {
    let mut world = World::with_vms(1);
    let start = world.start(api(), 1).remove(0);
    world.news(vm(0), VmEvent::Ordered { start: start.clone() });
    world.pass(LIMITS.ready_deadline);
    assert_eq!(world.state(&start).0, StartState::Starting);
    world.pass(LIMITS.lease);
    assert_eq!(world.state(&start), ended(EndReason::NotReady));
    assert_eq!(world.stops, [(vm(0), start)]);
}

#[test]
fn the_timeline_says_how_long_each_phase_took() {
    let mut world = World::with_vms(0);
    let start = world.start(api(), 1).remove(0);
    world.now += Duration::from_millis(5);
    world.up(0, facts(0, GIB));
    world.now += Duration::from_millis(2);
    world.news(vm(0), VmEvent::Ordered { start: start.clone() });
    world.news(vm(0), VmEvent::Progress { start: start.clone(), step: Step::Connecting, elapsed_us: 700 });
    let timeline = world.core.start_view(&api().0, &start).expect("known").timeline_us;
    assert_eq!(
        (timeline.waiting, timeline.placing, timeline.connecting),
        (Some(5000), Some(2000), Some(700))
    );
    world.now += Duration::from_millis(93);
    let report = StartReport {
        steps_us: Step::ALL.into_iter().zip((1..).map(|n| n * 1000)).collect(),
        ..Default::default()
    };
    world.news(vm(0), VmEvent::Ready { start: start.clone(), report });
    let timeline = world.core.start_view(&api().0, &start).expect("known").timeline_us;
    assert_eq!((timeline.ready, timeline.mount, timeline.probe), (Some(100_000), Some(1000), Some(1000)));
}

#[test]
fn the_longest_stall_of_a_live_instance_is_that_of_the_last_heartbeat() {
    let mut world = World::with_vms(1);
    let start = world.start(api(), 1).remove(0);
    world.run(&start);
    let tree = vms::tree(&api(), "app:1");
    let held = crate::wire::control::HeldTree { longest_stall_us: 70, ..vms::held(tree) };
    let longest = |world: &World| world.core.start_view(&api().0, &start).expect("known").longest_stall_us;
    world.news(vm(0), VmEvent::Held(vec![held]));
    assert_eq!(longest(&world), 70);
    let report = StartReport { longest_stall_us: 90, ..Default::default() };
    let reason = EndReason::Stopped;
    world.news(vm(0), VmEvent::Ended { start: start.clone(), reason, report });
    assert_eq!(longest(&world), 90);
}

#[test]
fn only_so_many_ended_starts_are_kept_and_the_newest_come_first() {
    let mut world = World::with(Limits { starts_kept: 3, ..LIMITS });
    world.deploy(api(), "app:1");
    let starts = world.start(api(), 5);
    world.pass(LIMITS.placement_deadline);
    let kept: Vec<StartId> =
        world.core.start_views(&api(), 10).expect("known").into_iter().map(|view| view.id).collect();
    assert_eq!(kept.len(), 3);
    assert!(kept.iter().all(|kept| starts.contains(kept)));
    assert!(!world.rows.keys().any(|(table, _)| *table == Table::Starts));
}

#[test]
fn limits_are_answered_with_when_to_come_back() {
    let mut world = World::with(Limits { starts_waiting_max: 5, functions_max: 1, ..LIMITS });
    world.deploy(api(), "app:1");
    let ask = |count| move |ticket| Event::Start { ticket, key: api(), count };
    let (zero, many, share) = (world.ask(ask(0)), world.ask(ask(6)), world.ask(ask(4)));
    assert!(matches!(world.error(zero), ControlError::Invalid(_)));
    assert!(matches!(world.error(many), ControlError::Overloaded { .. }));
    assert!(matches!(world.error(share), ControlError::TooMany { .. }), "others need room too");
    let put = world.put(key("acme", "web"), spec("app:1"));
    assert!(matches!(world.error(put), ControlError::TooMany { .. }));
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn requests_start_no_more_instances_than_max_and_who_asks_for_more_is_told_the_limit() {
    let mut world = World::scaled(0, 1, MINUTE);
    let waiting: Vec<Ticket> = (0..3).map(|_| world.acquire()).collect();
    assert_eq!(world.joins.len(), 1, "three requests would need two instances of two");
    let refused = world.ask(|ticket| Event::Start { ticket, key: api(), count: 2 });
    let ControlError::Conflict(text) = world.error(refused) else { panic!("not a conflict") };
    assert!(text.contains("1 instances (max_instances); 0 more"), "{text}");
    world.run_all();
    let start = world.granted(waiting[0]).expect("granted");
    assert_eq!(world.granted(waiting[2]), None);
    world.release(&start);
    assert_eq!(world.granted(waiting[2]), Some(start));
}

#[test]
fn an_instance_ends_when_it_had_no_request_for_its_keep_alive() {
    let mut world = World::scaled(0, 3, MINUTE);
    world.start(api(), 1);
    let used = world.acquire();
    world.run_all();
    let used = world.granted(used).expect("granted");
    world.pass(2 * MINUTE);
    assert_eq!(world.ready(&api()), 1, "it has a request");
    world.release(&used);
    world.pass(MINUTE / 2);
    let next = world.acquire();
    assert_eq!(world.granted(next), Some(used.clone()));
    world.release(&used);
    world.pass(MINUTE - Duration::from_millis(1));
    assert!(world.stops.is_empty());
    world.pass(Duration::from_millis(1));
    assert_eq!(world.stops.len(), 1);
    world.run_all();
    assert_eq!(world.state(&used), ended(EndReason::Idle));
}

#[test]
fn idle_instances_stay_up_to_min_and_go_when_others_take_their_place() {
    let mut world = World::scaled(1, 4, MINUTE);
    assert_eq!(world.ready(&api()), 1, "started without a request");
    let first = world.core.start_views(&api(), 1).expect("known").remove(0).id;
    world.pass(5 * MINUTE);
    assert_eq!(world.ready(&api()), 1);
    let second = world.start(api(), 1).remove(0);
    world.run_all();
    world.pass(Duration::ZERO);
    assert_eq!(world.stops, [(world.core.locate(&api().0, &first).expect("there").vm, first)]);
    world.run_all();
    world.pass(5 * MINUTE);
    assert_eq!((world.ready(&api()), world.state(&second).0), (1, StartState::Ready));
}

#[test]
fn instances_that_keep_ending_are_replaced_up_to_min_with_growing_pauses() {
    let mut world = World::scaled(1, 2, MINUTE);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let last = world.core.start_views(&api(), 1).expect("known").remove(0);
        let (event, before) = (EndReason::NotReady, world.now);
        let ended = VmEvent::Ended { start: last.id, reason: event, report: StartReport::default() };
        world.news(last.vm.expect("it was placed"), ended);
        while world.joins.is_empty() {
            world.pass(Duration::from_millis(500));
        }
        world.run_all();
        pauses.push((world.now - before).as_millis() / 500);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 120, 120, 120], "up to a minute");
    // After a long time without a failure the pauses begin anew; a new description does not wait.
    world.pass(10 * MINUTE);
    let last = world.core.start_views(&api(), 1).expect("known").remove(0);
    let ended =
        VmEvent::Ended { start: last.id, reason: EndReason::NotReady, report: StartReport::default() };
    world.news(last.vm.expect("it was placed"), ended);
    assert!(world.joins.is_empty());
    world.put(api(), limited(1, 2, MINUTE));
    assert_eq!(world.joins.len(), 1);
}

#[test]
fn what_is_stopped_or_lost_with_its_vm_is_replaced_at_once_and_ends_when_the_vm_comes_back() {
    let mut world = World::new();
    // Each holds one instance.
    (0..4).for_each(|number| world.up(number, facts(number, 256 << 20)));
    world.put(api(), limited(2, 2, MINUTE));
    world.convert("app:1");
    world.run_all();
    let views = world.core.start_views(&api(), 2).expect("known");
    let (stopped, lost) = (views[0].id.clone(), views[1].clone());
    world.ask(|ticket| Event::Stop { ticket, tenant: api().0, start: stopped });
    assert_eq!(world.joins.len(), 1);
    world.run_all();
    let vm = lost.vm.expect("placed");
    world.news(vm.clone(), VmEvent::Down);
    assert!(world.joins.is_empty(), "its agent may only be restarted");
    world.news(vm.clone(), VmEvent::LeaseOver);
    assert_eq!(world.joins.len(), 1);
    world.run_all();
    let number = vm.as_str().trim_start_matches("vm-").parse().expect("a number");
    let back = VmFacts { instances: vec![instance(&lost.id, "app:1", true)], ..facts(number, 256 << 20) };
    world.up(number, back);
    assert_eq!((world.ready(&api()), world.stops.len()), (2, 1), "one too many");
}

#[test]
fn new_limits_alone_replace_no_instance_and_end_what_is_above_them() {
    let mut world = World::scaled(0, 3, MINUTE);
    world.start(api(), 3);
    world.run_all();
    let busy: Vec<StartId> = (0..4)
        .map(|_| {
            let ticket = world.acquire();
            world.granted(ticket).expect("granted")
        })
        .collect();
    world.put(api(), limited(1, 1, MINUTE));
    assert!(world.stops.is_empty() && world.joins.is_empty(), "all have requests");
    assert_eq!(world.ready(&api()), 1);
    let kept = world.acquire();
    let kept = world.granted(kept);
    busy.iter().for_each(|start| world.release(start));
    assert_eq!(world.stops.len(), 2);
    assert!(world.stops.iter().all(|(_, start)| Some(start) != kept.as_ref()));
    world.run_all();
    world.put(api(), limited(3, 3, MINUTE));
    assert_eq!(world.joins.len(), 2);
}

#[test]
fn instances_of_an_old_description_are_not_counted_and_end_when_the_new_ones_are_there() {
    let mut world = World::scaled(1, 1, MINUTE);
    world.put(api(), FunctionSpec { image: "app:2".into(), ..limited(1, 1, MINUTE) });
    world.convert("app:2");
    assert_eq!((world.ready(&api()), world.joins.len()), (1, 1), "the old one serves until then");
    world.run_all();
    world.run_all();
    assert_eq!((world.ready(&api()), world.core.start_views(&api(), 9).expect("known").len()), (1, 2));
}

#[test]
fn limits_that_contradict_each_other_or_the_managers_are_refused_with_the_reason() {
    let mut world = World::new();
    let mut refused = |spec: FunctionSpec| {
        let ticket = world.put(api(), spec);
        let ControlError::Invalid(text) = world.error(ticket) else { panic!("not invalid") };
        text
    };
    assert_eq!(refused(limited(3, 2, MINUTE)), "min_instances is 3, more than max_instances, which is 2");
    assert_eq!(refused(limited(0, 0, MINUTE)), "max_instances must be 1 to 3000");
    assert_eq!(refused(limited(0, 3001, MINUTE)), "max_instances must be 1 to 3000");
    let at_most = "keep_alive_ms must be 1000 to 86400000";
    assert_eq!(refused(limited(0, 1, Duration::from_millis(999))), at_most);
    assert_eq!(refused(limited(0, 1, 1441 * MINUTE)), at_most);
    world.put(api(), spec("app:1"));
    let filled = world.core.function_view(&api()).expect("known").spec;
    assert_eq!((filled.max_instances, filled.keep_alive_ms), (Some(3000), Some(900_000)));
}

#[test]
fn a_new_manager_has_min_instances_running_again_and_counts_those_that_it_finds() {
    let limits = limited(2, 2, MINUTE);
    let known: StartId = "known".parse().expect("name");
    let loaded = Loaded {
        functions: BTreeMap::from([(api(), LoadedFunction { spec: limits, ..loaded("app:1") })]),
        vms: vec![vm(0)],
        drains: BTreeSet::new(),
        starts: vec![row(std::slice::from_ref(&known))],
    };
    let mut world = World::new();
    world.apply(Event::Loaded(Box::new(loaded)));
    world.up(0, VmFacts { instances: vec![instance(&known, "app:1", true)], ..facts(0, GIB) });
    world.run_all();
    assert_eq!(world.ready(&api()), 2);
    assert_eq!(world.core.start_views(&api(), 9).expect("known").len(), 2);
}

#[test]
fn a_failed_conversion_is_tried_again_by_a_new_manager_and_a_new_description_only() {
    let mut world = World::new();
    world.up(0, facts(0, GIB));
    world.put(api(), limited(1, 1, MINUTE));
    let fail = |world: &mut World| {
        assert_eq!(world.conversions.pop().as_deref(), Some("app:1"));
        world.apply(Event::Converted { source: source("app:1"), result: Err("no such tag".into()) });
    };
    fail(&mut world);
    (0..100).for_each(|_| world.pass(MINUTE));
    world.acquire();
    assert!(world.conversions.is_empty() && world.joins.is_empty());
    world.put(api(), limited(1, 1, MINUTE));
    fail(&mut world);
    let mut next = World::new();
    let functions = BTreeMap::from([(api(), LoadedFunction { image: None, ..loaded("app:1") })]);
    next.apply(Event::Loaded(Box::new(Loaded { functions, ..Loaded::default() })));
    fail(&mut next);
    (0..100).for_each(|_| next.pass(MINUTE));
    assert!(next.conversions.is_empty());
}

/// A burst onto 1,000 VMs through the cores of the scheduler and of the tree. Prints how long it took.
#[test]
fn a_burst_of_2500_starts_on_1000_vms_is_placed_evenly() {
    use crate::function_tree::{Effect as TreeEffect, Event as TreeEvent, TreeCore, TreeLimits};
    let begin = Instant::now();
    let mut world = World::with_vms(1000);
    let up = Instant::now();
    let mut effects = Vec::new();
    world.core.apply(Event::Start { ticket: Ticket(999), key: api(), count: 2500 }, world.now, &mut effects);
    let Some(Effect::Persist { write, .. }) = effects.pop() else { panic!("ids are made durable first") };
    world.core.apply(Event::Written { write, result: Ok(()) }, world.now, &mut effects);
    let placed = Instant::now();
    let mut tree =
        TreeCore::new(TreeLimits::SHIPPED, Box::new(crate::tree::Complete::new(2)), Default::default());
    let (mut orders, mut per_vm) = (Vec::new(), BTreeMap::new());
    for effect in effects {
        if let Effect::Join { vm, contact, start, .. } = effect {
            *per_vm.entry(vm.clone()).or_insert(0) += 1;
            tree.apply(TreeEvent::Join { vm, contact, start }, world.now, &mut orders);
        }
    }
    println!(
        "1000 VMs up: {:?}; 2500 starts accepted and placed: {:?}; joined: {:?}",
        up - begin,
        placed - up,
        placed.elapsed()
    );
    let starts = orders.iter().filter(|order| matches!(order, TreeEffect::Start { .. })).count();
    orders.retain(|order| !matches!(order, TreeEffect::Tell(_)));
    assert_eq!((starts, orders.len(), per_vm.len()), (2500, 2500, 1000));
    assert!(per_vm.values().all(|count| (2..=3).contains(count)));
    assert_eq!(tree.view(block_image("app:1").id).height, 9);
    world.core.check();
}

/// What a random history is made of.
#[derive(Debug, Clone)]
enum Deed {
    Put(u8, u8, u8, u8),
    Delete(u8),
    Converted(bool),
    Start(u8, u8),
    Acquire(u8, u16),
    AcquireOn(u8),
    Abandon(u8),
    Release(u8),
    Up(u8, bool),
    Down(u8),
    LeaseOver(u8),
    Remove(u8),
    Drain(u8, bool),
    Undrain(u8),
    Queued(u8),
    Ordered(u8),
    Undeliverable(u8),
    Ready(u8),
    Ended(u8),
    Stop(u8),
    Write(bool),
    Pass(u16),
}

fn deed() -> impl Strategy<Value = Deed> {
    let small = 0_u8..6;
    prop_oneof![
        3 => (small.clone(), 0_u8..3, 0_u8..4, 1_u8..5).prop_map(|(function, image, min, max)| {
            Deed::Put(function, image, min, max)
        }),
        1 => small.clone().prop_map(Deed::Delete),
        3 => proptest::bool::weighted(0.8).prop_map(Deed::Converted),
        6 => (small.clone(), 1_u8..4).prop_map(|(function, count)| Deed::Start(function, count)),
        6 => (small.clone(), 0_u16..20_000).prop_map(|(function, millis)| Deed::Acquire(function, millis)),
        3 => any::<u8>().prop_map(Deed::AcquireOn),
        2 => any::<u8>().prop_map(Deed::Abandon),
        4 => any::<u8>().prop_map(Deed::Release),
        5 => (small.clone(), any::<bool>()).prop_map(|(vm, keeps)| Deed::Up(vm, keeps)),
        2 => small.clone().prop_map(Deed::Down),
        2 => small.clone().prop_map(Deed::LeaseOver),
        1 => small.clone().prop_map(Deed::Remove),
        3 => (small.clone(), any::<bool>()).prop_map(|(vm, force)| Deed::Drain(vm, force)),
        2 => small.prop_map(Deed::Undrain),
        3 => any::<u8>().prop_map(Deed::Queued),
        8 => any::<u8>().prop_map(Deed::Ordered),
        2 => any::<u8>().prop_map(Deed::Undeliverable),
        6 => any::<u8>().prop_map(Deed::Ready),
        4 => any::<u8>().prop_map(Deed::Ended),
        2 => any::<u8>().prop_map(Deed::Stop),
        12 => proptest::bool::weighted(0.9).prop_map(Deed::Write),
        3 => (0_u16..20_000).prop_map(Deed::Pass),
    ]
}

fn function_of(number: u8) -> FunctionKey {
    key(["acme", "other"][usize::from(number % 2)], ["api", "web", "job"][usize::from(number / 2 % 3)])
}

impl World {
    fn pick(&self, number: u8) -> Option<(VmId, StartId)> {
        (!self.joins.is_empty()).then(|| self.joins[usize::from(number) % self.joins.len()].clone())
    }

    fn run_told(&self, number: u8, keeps: bool) -> Vec<RunningInstance> {
        // What the agent runs: everything it was ordered that has not ended, or nothing.
        let name = vm(usize::from(number));
        let mut told = BTreeMap::new();
        for (vm, start) in self.joins.iter().filter(|_| keeps) {
            let view = [api().0, key("other", "x").0]
                .into_iter()
                .find_map(|tenant| Some((tenant.clone(), self.core.start_view(&tenant, start).ok()?)));
            let Some((tenant, view)) = view else { continue };
            if *vm == name && told.len() < 4 {
                let ready = view.state == StartState::Ready;
                let running =
                    RunningInstance { tenant, function: view.function, ..instance(start, "app:1", ready) };
                told.insert(start.clone(), running);
            }
        }
        told.into_values().collect()
    }

    fn act(&mut self, deed: Deed) {
        let report = StartReport::default();
        match deed {
            Deed::Put(function, image, min, max) => {
                let limits = limited(min.into(), max.into(), Duration::from_secs(u64::from(max) * 3));
                self.put(function_of(function), FunctionSpec { image: format!("app:{image}"), ..limits });
            }
            Deed::Delete(function) => {
                self.ask(|ticket| Event::Delete { ticket, key: function_of(function) });
            }
            Deed::Converted(works) => {
                if let Some(source) = self.conversions.pop() {
                    let result = if works { Ok(Box::new(block_image(&source))) } else { Err("no".into()) };
                    self.apply(Event::Converted { source: self::source(&source), result });
                }
            }
            Deed::Start(function, count) => {
                let (key, count) = (function_of(function), u32::from(count));
                self.ask(|ticket| Event::Start { ticket, key, count });
            }
            Deed::Acquire(function, millis) => {
                let deadline = self.now + Duration::from_millis(millis.into());
                let key = function_of(function);
                self.ask(|ticket| Event::Acquire { ticket, key, on: None, deadline });
            }
            Deed::AcquireOn(number) => {
                if let Some((_, start)) = self.pick(number) {
                    let deadline = self.now + Duration::from_secs(20);
                    let (key, on) = (function_of(number), Some(start));
                    self.ask(|ticket| Event::Acquire { ticket, key, on, deadline });
                }
            }
            Deed::Abandon(back) => {
                let ticket = Ticket(self.tickets.saturating_sub(u64::from(back % 8)));
                self.abandoned.insert(ticket);
                self.apply(Event::Abandoned { ticket });
            }
            Deed::Release(number) => {
                if let Some((_, start)) = self.pick(number) {
                    self.apply(Event::Released { start });
                }
            }
            Deed::Up(number, keeps) => {
                let instances = self.run_told(number, keeps);
                self.up(number.into(), VmFacts { instances, ..facts(number.into(), GIB) });
            }
            Deed::Down(number) => self.news(vm(number.into()), VmEvent::Down),
            Deed::LeaseOver(number) => self.news(vm(number.into()), VmEvent::LeaseOver),
            Deed::Remove(number) => {
                self.ask(|ticket| Event::RemoveVm { ticket, vm: vm(number.into()) });
            }
            Deed::Drain(number, force) => {
                self.ask(|ticket| Event::Drain { ticket, vm: vm(number.into()), force });
            }
            Deed::Undrain(number) => {
                self.ask(|ticket| Event::Undrain { ticket, vm: vm(number.into()) });
            }
            Deed::Queued(number) => {
                if let Some((vm, start)) = self.pick(number) {
                    self.news(vm, VmEvent::Queued { start });
                }
            }
            Deed::Ordered(number) => {
                if let Some((vm, start)) = self.pick(number) {
                    self.news(vm, VmEvent::Ordered { start });
                }
            }
            Deed::Undeliverable(number) => {
                if let Some((vm, start)) = self.pick(number) {
                    self.news(vm, VmEvent::Undeliverable { start });
                }
            }
            Deed::Ready(number) => {
                if let Some((vm, start)) = self.pick(number) {
                    self.news(vm, VmEvent::Ready { start, report });
                }
            }
            Deed::Ended(number) => {
                if let Some((vm, start)) = self.pick(number) {
                    self.news(vm, VmEvent::Ended { start, reason: EndReason::NotReady, report });
                }
            }
            Deed::Stop(number) => {
                if let Some((_, start)) = self.pick(number) {
                    self.ask(|ticket| Event::Stop { ticket, tenant: api().0, start });
                }
            }
            Deed::Write(works) => {
                self.write_one(if works { Ok(()) } else { Err(MetadataError::Full("disk".into())) });
                self.core.check();
            }
            Deed::Pass(millis) => self.pass(Duration::from_millis(millis.into())),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn whatever_happens_no_invariant_breaks_and_in_the_end_everything_is_answered(
        history in proptest::collection::vec(deed(), 1..250),
    ) {
        let mut world = World::new();
        world.disk_is_slow = true;
        history.into_iter().for_each(|deed| world.act(deed));
        // Faults stop: the disk works, conversions end, agents are silent for good.
        world.disk_is_slow = false;
        while world.write_one(Ok(())) {}
        while !world.conversions.is_empty() {
            world.act(Deed::Converted(true));
        }
        for number in 0..6 {
            world.news(vm(number), VmEvent::Down);
            world.news(vm(number), VmEvent::LeaseOver);
        }
        for _ in 0..4 {
            world.pass(LIMITS.ready_deadline + LIMITS.lease);
        }
        for ticket in (1..=world.tickets).map(Ticket) {
            let is_over = world.answers.contains_key(&ticket) || world.abandoned.contains(&ticket);
            prop_assert!(is_over, "{:?} was never answered", ticket);
        }
        // With room and without failures every function comes to its least number.
        (10..20).for_each(|number| world.up(number, facts(number, 4 * GIB)));
        for _ in 0..200 {
            world.run_all();
            world.pass(Duration::from_secs(1));
        }
        // So it does when these VMs are drained and others come, and nothing is left on them.
        (20..40).for_each(|number| world.up(number, facts(number, 4 * GIB)));
        for number in 10..20 {
            world.ask(|ticket| Event::Drain { ticket, vm: vm(number), force: false });
        }
        for _ in 0..100 {
            world.run_all();
            world.pass(Duration::from_secs(1));
        }
        for number in 10..20 {
            prop_assert_eq!(world.core.vm_view(&vm(number)).map(|view| view.state), Some(VmState::Drained));
        }
        for number in 0..6 {
            let Some(view) = world.core.function_view(&function_of(number)) else { continue };
            let min = view.spec.min_instances;
            let image_is_ready = matches!(view.image_state, ImageState::Ready { .. });
            prop_assert!(view.ready >= min || !image_is_ready, "{} of {min} instances", view.ready);
        }
        for tenant in [api().0, key("other", "x").0] {
            for (_, start) in &world.joins {
                if let Ok(view) = world.core.start_view(&tenant, start) {
                    prop_assert!(
                        matches!(view.state, StartState::Ready | StartState::Ended),
                        "invariant 10: {:?}",
                        view
                    );
                }
            }
        }
    }
}

/// Ids in the rows of starts, by row.
fn start_rows(world: &World) -> Vec<BTreeSet<StartId>> {
    let rows = world.rows.iter().filter(|((table, _), _)| *table == Table::Starts);
    rows.map(|((table, key), value)| Row { table: *table, key: key.clone(), value: value.clone() })
        .map(|row| StartRow::read(&row).expect("readable").starts.into_iter().collect())
        .collect()
}

#[test]
fn starts_of_one_request_share_rows_that_shrink_as_they_end() {
    let mut world = World::with(Limits { starts_per_row_max: 4, ..LIMITS });
    world.deploy(api(), "app:1");
    let starts = world.start(api(), 10);
    let mut sizes: Vec<usize> = start_rows(&world).iter().map(BTreeSet::len).collect();
    sizes.sort();
    assert_eq!(sizes, [2, 4, 4]);

    for start in &starts[1..9] {
        world.ask(|ticket| Event::Stop { ticket, tenant: api().0, start: start.clone() });
    }
    world.disk_is_slow = true;
    world.apply(Event::Tick);
    assert_eq!(world.writes.len(), 1, "one commit");
    assert_eq!(world.writes[0].1.len(), 3, "each row is written once");
    world.apply(Event::Tick);
    assert_eq!(world.writes.len(), 1, "the next one waits for it");
    world.write_one(Ok(()));
    let left: BTreeSet<StartId> = start_rows(&world).into_iter().flatten().collect();
    assert_eq!(left, BTreeSet::from([starts[0].clone(), starts[9].clone()]));
}

#[test]
fn rows_that_the_disk_did_not_take_are_written_later() {
    let mut world = World::with_vms(1);
    world.disk_is_slow = true;
    let refused = world.ask(|ticket| Event::Start { ticket, key: api(), count: 3 });
    let row = world.writes[0].1[0].clone();
    world.write_one(Err(MetadataError::Unavailable("no answer".into())));
    assert!(matches!(world.error(refused), ControlError::Metadata(MetadataError::Unavailable(_))));
    // It was written all the same, and its answer was lost.
    let Write::Put(row) = row else { panic!("starts are put") };
    world.rows.insert((row.table, row.key), row.value);
    world.apply(Event::Tick);
    world.write_one(Err(MetadataError::Unavailable("no answer".into())));
    world.apply(Event::Tick);
    assert!(world.writes.is_empty(), "a store that is away is given time");
    world.now += Duration::from_secs(2);
    world.apply(Event::Tick);
    assert!(world.write_one(Ok(())));
    assert_eq!(start_rows(&world), Vec::<BTreeSet<StartId>>::new(), "nobody may start it later");
}

#[test]
fn rows_are_written_in_commits_that_the_store_takes() {
    let batch = BatchLimits { operations_max: 2, bytes_max: 1 << 20 };
    let mut world = World::with(Limits { starts_per_row_max: 1, batch, ..LIMITS });
    world.deploy(api(), "app:1");
    let starts: Vec<StartId> = (0..5).flat_map(|_| world.start(api(), 1)).collect();
    for start in starts {
        world.ask(|ticket| Event::Stop { ticket, tenant: api().0, start });
    }
    world.disk_is_slow = true;
    let mut commits = Vec::new();
    while !start_rows(&world).is_empty() {
        world.apply(Event::Tick);
        commits.push(world.writes[0].1.len());
        world.write_one(Ok(()));
    }
    assert_eq!(commits, [2, 2, 1]);
}
