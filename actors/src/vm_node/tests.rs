use super::{
    core::{Effect, Event, VmCore},
    messages::{Order, SessionId, VmEvent},
};
use crate::{
    function_tree::Event as TreeEvent,
    id::{Digest, Epoch, TreeId, VmId},
    wire::{
        PROTOCOL_VERSION,
        control::{BytesBySource, HeldTree, Hello, JoinRefusal, ToAgent, ToManager},
    },
};
use std::time::Duration;
use tokio::time::Instant;

const LEASE: Duration = Duration::from_secs(3);

fn vm() -> VmId {
    "vm-1".parse().expect("name")
}

fn tree(byte: u8) -> TreeId {
    TreeId { tenant: "acme".parse().expect("name"), image: Digest::from_bytes([byte; 32]) }
}

fn held(byte: u8) -> HeldTree {
    let (epoch, bytes) = (Epoch::default(), BytesBySource::default());
    HeldTree { tree: tree(byte), epoch, blocks_present: 1, blocks_total: 9, bytes, longest_stall_us: 0 }
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
        Self { core: VmCore::new(vm(), LEASE, now), now }
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.core.apply(event, self.now, &mut effects);
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
