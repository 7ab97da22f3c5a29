use super::{
    core::{Effect, Event, NodeLimits, VmCore},
    messages::{Order, SessionId, StartPart, VmEvent},
};
use crate::{
    function_tree::Event as TreeEvent,
    id::{Digest, Epoch, StartId, TreeId, VmId},
    image::BlockImage,
    wire::{
        PROTOCOL_VERSION,
        control::{
            BytesBySource, Capability, CodeOrder, EndReason, HeldTree, Hello, JoinRefusal, Place,
            RunningInstance, Seat, StartOrder, StartReport, ToAgent, ToManager,
        },
    },
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

const LEASE: Duration = Duration::from_secs(3);

const LIMITS: NodeLimits = NodeLimits { lease: LEASE, in_flight_max: 2, queued_max: 3, functions_max: 2 };

fn vm() -> VmId {
    "vm-1".parse().expect("name")
}

fn tree(byte: u8) -> TreeId {
    TreeId { tenant: "acme".parse().expect("name"), image: Digest::from_bytes([byte; 32]) }
}

fn held(byte: u8) -> HeldTree {
    let (epoch, bytes) = (Epoch::default(), BytesBySource::default());
    HeldTree {
        tree: tree(byte),
        epoch,
        place: 0,
        blocks_present: 1,
        blocks_total: 9,
        bytes,
        longest_stall_us: 0,
        preheated: None,
    }
}

fn hello(held: Vec<HeldTree>) -> Hello {
    let address = ([127, 0, 0, 1], 1000).into();
    Hello {
        version: PROTOCOL_VERSION,
        memory_bytes: 1 << 30,
        cpu_millis: 1000,
        address,
        held,
        proofs: Vec::new(),
        instances: Vec::new(),
    }
}

struct World {
    core: VmCore,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self { core: VmCore::new(vm(), LIMITS, now), now }
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.core.apply(event, self.now, &mut effects);
        self.core.check();
        effects
    }

    fn open(&mut self, session: u64, hello: Hello) -> Vec<Effect> {
        self.apply(Event::Opened { session: SessionId(session), key_hash: vec![1].into(), hello })
    }

    fn say(&mut self, session: u64, message: ToManager) -> Vec<Effect> {
        self.apply(Event::Heard { session: SessionId(session), message })
    }
}

fn gone(byte: u8) -> Effect {
    Effect::Tree { tree: tree(byte), event: TreeEvent::Gone { vm: vm() } }
}

#[test]
fn silence_for_a_lease_or_a_closed_session_takes_a_vm_down_and_out_of_its_trees() {
    let mut world = World::new();
    world.open(1, hello(vec![held(1)]));
    world.now += LEASE - Duration::from_millis(1);
    assert!(world.apply(Event::Tick).is_empty());
    world.say(1, ToManager::Heartbeat { held: vec![held(1)] });
    world.now += LEASE;
    let down = [Effect::CloseSession, Effect::News(VmEvent::Down), gone(1), Effect::News(VmEvent::LeaseOver)];
    assert_eq!(world.apply(Event::Tick), down);
    world.open(2, hello(Vec::new()));
    let closed = world.apply(Event::Closed { session: SessionId(2) });
    assert_eq!(closed, [Effect::CloseSession, Effect::News(VmEvent::Down)]);
    assert!(world.apply(Event::Tick).is_empty(), "the lease still runs");
    world.now += LEASE;
    assert_eq!(world.apply(Event::Tick), [Effect::News(VmEvent::LeaseOver)]);
    assert!(world.apply(Event::Tick).is_empty(), "said once");
}

#[test]
fn a_vm_whose_agent_is_replaced_stays_up_and_hears_what_was_meant_for_it() {
    let mut world = World::new();
    world.open(1, hello(vec![held(1), held(2)]));
    let stop = || ToAgent::Stop { start: "s1".parse().expect("name") };
    assert_eq!(world.say(1, ToManager::Yield), [Effect::Send(ToAgent::Yielded)]);
    assert!(world.say(1, ToManager::Yield).is_empty(), "said once");
    assert!(world.apply(Event::Order(Order::Stop { start: "s1".parse().expect("name") })).is_empty());
    assert!(world.apply(Event::Closed { session: SessionId(1) }).is_empty(), "its next process is awaited");
    let effects = world.open(2, hello(vec![held(1)]));
    let at = |wanted: &Effect| effects.iter().position(|effect| effect == wanted);
    assert_eq!(at(&Effect::Accept { session: SessionId(2) }), Some(0));
    assert_eq!(at(&Effect::News(VmEvent::Down)), None);
    assert!(at(&Effect::Send(stop())).is_some(), "{effects:?}");
    assert!(at(&gone(2)).is_some(), "the next process does not have that tree: {effects:?}");
    assert!(at(&gone(1)).is_none(), "{effects:?}");
    assert_eq!(
        world.apply(Event::Order(Order::Stop { start: "s1".parse().expect("name") })),
        [Effect::Send(stop())]
    );
}

#[test]
fn a_vm_whose_agent_yields_and_does_not_come_back_is_down_after_its_lease() {
    let mut world = World::new();
    world.open(1, hello(vec![held(1)]));
    world.say(1, ToManager::Yield);
    world.apply(Event::Closed { session: SessionId(1) });
    world.now += LEASE;
    let down = [Effect::CloseSession, Effect::News(VmEvent::Down), gone(1), Effect::News(VmEvent::LeaseOver)];
    assert_eq!(world.apply(Event::Tick), down);
    // What nobody takes does not pile up.
    let mut world = World::new();
    world.open(1, hello(vec![held(1)]));
    world.say(1, ToManager::Yield);
    let stop = || Event::Order(Order::Stop { start: "s1".parse().expect("name") });
    let ends_it = (0..10_000).position(|_| world.apply(stop()).contains(&Effect::News(VmEvent::Down)));
    assert_eq!(ends_it, Some(1024));
}

#[test]
fn a_second_session_is_refused_while_the_first_is_alive_and_replaces_a_silent_one() {
    let mut world = World::new();
    world.open(1, hello(Vec::new()));
    let refused = Effect::Refuse { session: SessionId(2), reason: JoinRefusal::NameTaken };
    assert_eq!(world.open(2, hello(Vec::new())), [refused]);
    world.now += LEASE;
    assert!(world.open(3, hello(Vec::new())).contains(&Effect::Accept { session: SessionId(3) }));
    assert!(
        world.say(1, ToManager::Heartbeat { held: vec![held(1)] }).is_empty(),
        "the old one is not heard"
    );
    assert!(world.apply(Event::Closed { session: SessionId(1) }).is_empty());
}

#[test]
fn another_version_is_refused() {
    let refused = World::new().open(1, Hello { version: PROTOCOL_VERSION + 1, ..hello(Vec::new()) });
    assert_eq!(refused, [Effect::Refuse { session: SessionId(1), reason: JoinRefusal::Version }]);
}

#[test]
fn a_tree_that_is_no_longer_held_is_left_and_one_that_was_never_ordered_is_not_joined() {
    let mut world = World::new();
    world.open(1, hello(vec![held(1)]));
    let effects = world.say(1, ToManager::Heartbeat { held: vec![held(2)] });
    let member = Effect::News(VmEvent::Member(Default::default()));
    assert_eq!(effects, [gone(1), member, Effect::News(VmEvent::Held(vec![held(2)]))]);
}

#[test]
fn an_agent_that_does_not_read_loses_its_session_and_its_start_goes_elsewhere() {
    let mut world = World::new();
    world.open(1, hello(Vec::new()));
    let start: crate::id::StartId = "start-1".parse().expect("name");
    let effects = world.apply(Event::QueueFull { start: Some(start.clone()) });
    let undeliverable = Effect::News(VmEvent::Undeliverable { start: start.clone() });
    assert_eq!(effects, [undeliverable, Effect::CloseSession, Effect::News(VmEvent::Down)]);
    assert!(world.apply(Event::Order(Order::Stop { start: start.clone() })).is_empty(), "nobody is there");
    world.open(2, hello(Vec::new()));
    assert_eq!(
        world.apply(Event::Order(Order::Stop { start: start.clone() })),
        [Effect::Send(ToAgent::Stop { start })]
    );
}

#[test]
fn a_vm_that_comes_back_tells_each_of_its_trees_that_an_instance_serves_there() {
    let mut world = World::new();
    let serving = |number, image, is_ready| RunningInstance {
        start: start_id(number),
        tenant: tree(image).tenant,
        function: "api".parse().expect("name"),
        image: tree(image).image,
        code: None,
        memory_bytes: 1 << 20,
        cpu_millis: 10,
        ready: is_ready,
    };
    let instances = vec![serving(1, 1, true), serving(2, 2, false)];
    let back = || Hello { instances: instances.clone(), ..hello(vec![held(1), held(2)]) };
    let ready = |effects: Vec<Effect>| {
        let about = |effect| match effect {
            Effect::Tree { tree, event: TreeEvent::Ready { .. } } => Some(tree),
            _ => None,
        };
        effects.into_iter().filter_map(about).collect::<Vec<_>>()
    };
    assert_eq!(ready(world.open(1, back())), [tree(1)], "its agent, or the manager, was restarted");
    assert_eq!(ready(world.apply(Event::Rejoin(Some(tree(1))))), [tree(1)], "the tree is rebuilt");
    assert_eq!(ready(world.apply(Event::Rejoin(Some(tree(2))))), []);
    world.say(1, ToManager::Ready { start: start_id(2), report: StartReport::default() });
    assert_eq!(ready(world.apply(Event::Rejoin(None))), [tree(1), tree(2)], "the forest is rebuilt");
}

fn start_id(number: u16) -> StartId {
    format!("start-{number}").parse().expect("name")
}

fn place(tree: TreeId, counter: u64) -> Place {
    let capability = Capability { claims: Vec::new(), signature: Vec::new() };
    let epoch = Epoch { term: 1, counter };
    Place { tree, epoch, stripes: vec![vec![]], seat: Seat::default(), capability }
}

fn order(number: u16, place: Place) -> Box<StartOrder> {
    Box::new(StartOrder {
        request: None,
        start: start_id(number),
        function: "api".parse().expect("name"),
        image: BlockImage::of_test(place.tree.image),
        place,
        code: None,
        env: BTreeMap::new(),
        command: None,
        memory_bytes: 1 << 20,
        cpu_millis: 1,
        probe_path: "/".into(),
        mode: crate::wire::control::Mode::default(),
        ready_deadline_ms: 1000,
        record: false,
        hot: Vec::new(),
    })
}

fn undeliverable(number: u16) -> Effect {
    Effect::News(VmEvent::Undeliverable { start: start_id(number) })
}

fn ended(number: u16, reason: EndReason) -> Effect {
    Effect::News(VmEvent::Ended { start: start_id(number), reason, report: StartReport::default() })
}

/// What became of starts, in short.
fn starts(effects: &[Effect]) -> Vec<String> {
    let word = |effect: &Effect| match effect {
        Effect::SendStart { start, message: ToAgent::Start(order) } => {
            Some(format!("{start} sent {}", order.place.epoch.counter))
        }
        Effect::News(VmEvent::Queued { start }) => Some(format!("{start} waits")),
        Effect::News(VmEvent::Undeliverable { start }) => Some(format!("{start} undeliverable")),
        Effect::News(VmEvent::Ended { start, .. }) => Some(format!("{start} ended")),
        _ => None,
    };
    effects.iter().filter_map(word).collect()
}

impl World {
    fn up() -> Self {
        let mut world = Self::new();
        world.open(1, hello(Vec::new()));
        world
    }

    fn order(&mut self, order: Order) -> Vec<Effect> {
        self.apply(Event::Order(order))
    }

    fn start(&mut self, number: u16, place: Place) -> Vec<String> {
        starts(&self.order(Order::Start(order(number, place))))
    }

    fn ready(&mut self, number: u16) -> Vec<Effect> {
        self.say(1, ToManager::Ready { start: start_id(number), report: StartReport::default() })
    }
}

#[test]
fn starts_above_the_limit_wait_in_their_order_until_one_is_ready_or_has_ended_and_a_full_queue_refuses() {
    let mut world = World::up();
    let sent: Vec<String> = (0..6).flat_map(|number| world.start(number, place(tree(1), 1))).collect();
    let expected = ["start-0 sent 1", "start-1 sent 1", "start-2 waits", "start-3 waits", "start-4 waits"];
    assert_eq!(sent[..5], expected);
    assert_eq!(sent[5], "start-5 undeliverable");
    assert_eq!(starts(&world.ready(1)), ["start-2 sent 1"]);
    let (start, reason, report) = (start_id(0), EndReason::NotReady, StartReport::default());
    let effects = world.say(1, ToManager::Ended { start, reason, report });
    assert_eq!(starts(&effects), ["start-0 ended", "start-3 sent 1"]);
    let stop = world.order(Order::Stop { start: start_id(3) });
    assert_eq!(stop, [Effect::Send(ToAgent::Stop { start: start_id(3) })], "overtakes those who wait");
}

#[test]
fn a_new_place_is_what_a_start_that_waited_is_sent_with() {
    let mut world = World::up();
    (0..4).for_each(|number| drop(world.start(number, place(tree(1), 1))));
    world.order(Order::Place(place(tree(1), 7)));
    world.order(Order::Place(place(tree(2), 9)));
    assert_eq!(starts(&world.ready(0)), ["start-2 sent 7"]);
    assert_eq!(world.start(4, place(tree(1), 8)), ["start-4 waits"]);
    assert_eq!(starts(&world.ready(1)), ["start-3 sent 8"]);
}

#[test]
fn a_start_that_waits_is_dropped_with_a_word_when_it_is_stopped_or_its_tree_is_left() {
    let mut world = World::up();
    (0..3).for_each(|number| drop(world.start(number, place(tree(1), 1))));
    world.start(3, place(tree(2), 1));
    let stopped = world.order(Order::Stop { start: start_id(3) });
    let member = |byte| Effect::News(VmEvent::Member([tree(byte)].into()));
    assert_eq!(stopped, [gone(2), member(1), ended(3, EndReason::Stopped)], "the agent never held that tree");
    let epoch = Epoch { term: 1, counter: 2 };
    let left = world.order(Order::Leave { tree: tree(1), epoch });
    let leave = Effect::Send(ToAgent::Leave { tree: tree(1), epoch });
    assert_eq!(left, [undeliverable(2), leave, Effect::News(VmEvent::Member(Default::default()))]);
}

#[test]
fn a_tree_that_sends_a_start_before_it_hears_that_the_vm_is_gone_gets_it_back() {
    let mut world = World::up();
    (0..2).for_each(|number| drop(world.start(number, place(tree(1), 1))));
    world.start(2, place(tree(2), 1));
    assert!(world.order(Order::Stop { start: start_id(2) }).contains(&gone(2)));
    let again = world.order(Order::Start(order(3, place(tree(2), 1))));
    let reported = |effect: &Effect| matches!(effect, Effect::Tree { tree: of, event: TreeEvent::Reported { .. } } if *of == tree(2));
    assert_eq!(again.iter().filter(|effect| reported(effect)).count(), 1);
}

#[test]
fn starts_that_wait_go_elsewhere_when_the_session_ends() {
    let mut world = World::up();
    (0..3).for_each(|number| drop(world.start(number, place(tree(1), 1))));
    let closed = world.apply(Event::Closed { session: SessionId(1) });
    assert_eq!(closed, [Effect::CloseSession, Effect::News(VmEvent::Down), gone(1), undeliverable(2)]);
}

#[test]
fn starts_that_wait_stay_when_their_trees_are_rebuilt() {
    let mut world = World::up();
    (0..3).for_each(|number| drop(world.start(number, place(tree(2), 1))));
    let waiting = world.core.starts();
    assert!(waiting.0 > 0);
    world.apply(Event::Rejoin(None));
    assert_eq!(world.core.starts(), waiting);
}

#[test]
fn a_start_for_which_the_vm_has_no_room_is_refused_whatever_the_scheduler_thinks() {
    let refused = |change: fn(&mut StartOrder)| {
        let mut world = World::up();
        world.start(0, place(tree(1), 1));
        let mut other = order(1, place(tree(1), 1));
        change(&mut other);
        starts(&world.order(Order::Start(other))) == ["start-1 undeliverable"]
    };
    assert!(!refused(|order| order.memory_bytes = (1 << 30) - (1 << 20)));
    assert!(refused(|order| order.memory_bytes = (1 << 30) - (1 << 20) + 1));
    assert!(!refused(|order| order.cpu_millis = 999));
    assert!(refused(|order| order.cpu_millis = 1000));
    assert!(refused(|order| order.place.tree.tenant = "other".parse().expect("name")));
    let mut world = World::up();
    let functions = ["api", "web", "job"].map(|name| name.parse().expect("name"));
    let said = (0..).zip(functions).flat_map(|(number, function)| {
        let order = StartOrder { function, ..*order(number, place(tree(1), 1)) };
        starts(&world.order(Order::Start(Box::new(order))))
    });
    assert_eq!(said.collect::<Vec<_>>()[2], "start-2 undeliverable", "functions_max");
}

fn runtime_part(number: u16, place: Place) -> Order {
    Order::Part(Box::new(StartPart::Runtime(*order(number, place))))
}

fn code_part(number: u16, place: Place) -> Order {
    let code = CodeOrder { image: BlockImage::of_test(place.tree.image), place };
    Order::Part(Box::new(StartPart::Code { start: start_id(number), code }))
}

#[test]
fn the_parts_of_a_start_with_code_become_one_order_with_the_last_places_of_both_trees() {
    for code_is_first in [false, true] {
        let mut world = World::up();
        let mut parts = [runtime_part(0, place(tree(1), 1)), code_part(0, place(tree(2), 1))];
        if code_is_first {
            parts.reverse();
        }
        let [first, second] = parts;
        assert_eq!(starts(&world.order(first)), Vec::<String>::new());
        // The tree of the first changes before the second is there.
        let of = if code_is_first { tree(2) } else { tree(1) };
        world.order(Order::Place(place(of, 5)));
        let effects = world.order(second);
        let sent = effects.iter().find_map(|effect| match effect {
            Effect::SendStart { message: ToAgent::Start(order), .. } => Some(order),
            _ => None,
        });
        let places: Vec<(TreeId, u64)> = (sent.expect("one order").images())
            .map(|(_, place)| (place.tree.clone(), place.epoch.counter))
            .collect();
        let (runtime, code) = if code_is_first { (1, 5) } else { (5, 1) };
        assert_eq!(places, [(tree(1), runtime), (tree(2), code)]);
        let ready = world.ready(0);
        let told = |byte| {
            let event = TreeEvent::Ready { vm: vm() };
            ready.contains(&Effect::Tree { tree: tree(byte), event })
        };
        assert!(told(1) && told(2), "both trees hear of it: {ready:?}");
    }
}

#[test]
fn a_part_whose_other_does_not_come_is_given_up_and_its_tree_left() {
    let mut world = World::up();
    world.order(runtime_part(0, place(tree(1), 1)));
    world.now += LEASE / 2;
    world.say(1, ToManager::Heartbeat { held: Vec::new() });
    assert_eq!(world.apply(Event::Tick), []);
    world.now += LEASE / 2;
    world.say(1, ToManager::Heartbeat { held: Vec::new() });
    let given_up = world.apply(Event::Tick);
    let member = Effect::News(VmEvent::Member(Default::default()));
    assert_eq!(given_up, [gone(1), member, undeliverable(0)]);
    assert_eq!(starts(&world.order(code_part(0, place(tree(2), 1)))), Vec::<String>::new(), "alone again");
}

#[test]
fn a_part_is_dropped_when_its_start_is_stopped_or_its_tree_left_and_only_so_many_wait() {
    let mut world = World::up();
    world.order(runtime_part(0, place(tree(1), 1)));
    let stopped = world.order(Order::Stop { start: start_id(0) });
    assert_eq!(starts(&stopped), ["start-0 ended"]);
    world.order(code_part(1, place(tree(2), 1)));
    let left = world.order(Order::Leave { tree: tree(2), epoch: Epoch { term: 1, counter: 2 } });
    assert_eq!(starts(&left), ["start-1 undeliverable"]);
    for number in 10..10 + LIMITS.queued_max as u16 {
        assert_eq!(starts(&world.order(code_part(number, place(tree(2), 3)))), Vec::<String>::new());
    }
    let refused = world.order(runtime_part(99, place(tree(1), 3)));
    assert_eq!(refused, [undeliverable(99), gone(1)]);
}

#[derive(Debug, Clone)]
enum Deed {
    Start(u8),
    /// The first part of a start with code, and the other part of one whose first was given.
    Part(u8),
    OtherPart(u8),
    Place(u8),
    Leave(u8),
    Stop(u8),
    Ready(u8),
    Ended(u8),
    QueueFull,
    Report,
    Closed,
    Forgets,
    Pass(u8),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        8 => (0_u8..3).prop_map(Deed::Start),
        3 => (0_u8..3).prop_map(Deed::Part),
        3 => (0_u8..3).prop_map(Deed::OtherPart),
        2 => (0_u8..3).prop_map(Deed::Place),
        1 => (0_u8..3).prop_map(Deed::Leave),
        2 => any::<u8>().prop_map(Deed::Stop),
        4 => any::<u8>().prop_map(Deed::Ready),
        3 => any::<u8>().prop_map(Deed::Ended),
        1 => Just(Deed::QueueFull),
        1 => Just(Deed::Report),
        1 => Just(Deed::Closed),
        1 => Just(Deed::Forgets),
        1 => (0_u8..4).prop_map(Deed::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_happens_no_more_starts_are_under_way_than_may_be_and_none_that_waits_is_lost(
        history in proptest::collection::vec(deed(), 1..200),
    ) {
        let mut world = World::new();
        let (mut session, mut is_up, mut orders) = (0, false, 0_u16);
        let mut epochs = [1_u64; 3];
        // Those that wait, and those that were sent and are neither ready nor ended.
        let (mut waiting, mut in_flight) = (Vec::<StartId>::new(), Vec::<StartId>::new());
        // Starts of which one part was given, and those among them of which the node keeps it.
        let (mut halves, mut kept) = (VecDeque::<u16>::new(), BTreeSet::<StartId>::new());
        for deed in history {
            if !is_up {
                session += 1;
                is_up = true;
                world.now += LEASE;
                let _ = world.open(session, hello(Vec::new()));
            }
            let pick = |from: &[StartId], number: u8| from.get(usize::from(number) % from.len().max(1)).cloned();
            let mut ordered = None;
            let event = match deed {
                Deed::Start(of) => {
                    let epoch = &mut epochs[usize::from(of)];
                    *epoch += 1;
                    orders += 1;
                    ordered = Some(start_id(orders));
                    Event::Order(Order::Start(order(orders, place(tree(of), *epoch))))
                }
                Deed::Part(of) => {
                    let epoch = &mut epochs[usize::from(of)];
                    *epoch += 1;
                    orders += 1;
                    halves.push_back(orders);
                    kept.insert(start_id(orders));
                    Event::Order(runtime_part(orders, place(tree(of), *epoch)))
                }
                Deed::OtherPart(of) => {
                    let Some(number) = halves.pop_front() else { continue };
                    let epoch = &mut epochs[usize::from(of)];
                    *epoch += 1;
                    ordered = kept.take(&start_id(number));
                    Event::Order(code_part(number, place(tree(of), *epoch)))
                }
                Deed::Place(of) => {
                    let epoch = &mut epochs[usize::from(of)];
                    *epoch += 1;
                    Event::Order(Order::Place(place(tree(of), *epoch)))
                }
                Deed::Leave(of) => {
                    Event::Order(Order::Leave { tree: tree(of), epoch: Epoch { term: 1, counter: epochs[usize::from(of)] } })
                }
                Deed::Stop(number) => {
                    let all: Vec<StartId> = waiting.iter().chain(&in_flight).cloned().collect();
                    let Some(start) = pick(&all, number) else { continue };
                    Event::Order(Order::Stop { start })
                }
                Deed::Ready(number) => {
                    let Some(start) = pick(&in_flight, number) else { continue };
                    in_flight.retain(|other| *other != start);
                    let message = ToManager::Ready { start, report: StartReport::default() };
                    Event::Heard { session: SessionId(session), message }
                }
                Deed::Ended(number) => {
                    let Some(start) = pick(&in_flight, number) else { continue };
                    let (reason, report) = (EndReason::NotReady, StartReport::default());
                    Event::Heard { session: SessionId(session), message: ToManager::Ended { start, reason, report } }
                }
                Deed::QueueFull => Event::QueueFull { start: None },
                Deed::Report => Event::Report,
                Deed::Closed => Event::Closed { session: SessionId(session) },
                Deed::Forgets => {
                    Event::Heard { session: SessionId(session), message: ToManager::Heartbeat { held: Vec::new() } }
                }
                Deed::Pass(seconds) => {
                    world.now += Duration::from_secs(seconds.into());
                    Event::Tick
                }
            };
            let mut words = 0;
            for effect in world.apply(event) {
                match effect {
                    Effect::SendStart { start, message: ToAgent::Start(order) } => {
                        words += usize::from(ordered.as_ref() == Some(&start));
                        let first = waiting.first().cloned();
                        prop_assert!(first.is_none_or(|first| first == start), "first in, first out");
                        waiting.retain(|other| *other != start);
                        for (_, place) in order.images() {
                            let of = (0..3).find(|byte| tree(*byte) == place.tree).expect("one of them");
                            prop_assert_eq!(place.epoch.counter, epochs[usize::from(of)], "a stale place");
                        }
                        in_flight.push(start);
                    }
                    Effect::News(VmEvent::Queued { start }) => {
                        words += 1;
                        waiting.push(start);
                    }
                    Effect::News(VmEvent::Undeliverable { start } | VmEvent::Ended { start, .. }) => {
                        words += usize::from(ordered.as_ref() == Some(&start));
                        kept.remove(&start);
                        waiting.retain(|other| *other != start);
                        in_flight.retain(|other| *other != start);
                    }
                    Effect::News(VmEvent::Down) => {
                        is_up = false;
                        in_flight.clear();
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(words, usize::from(ordered.is_some()), "an order is answered once");
            prop_assert!(in_flight.len() <= LIMITS.in_flight_max);
            prop_assert_eq!(world.core.starts(), (waiting.len(), in_flight.len()), "one is lost");
        }
    }
}
