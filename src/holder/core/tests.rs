use super::*;
use faasnet_actors::{
    id::{BlockId, Digest},
    image::RuntimeConfig,
};

const IMAGE: ImageId = Digest::from_bytes([7; 32]);
const LIMITS: Limits = Limits {
    read_deadline: Duration::from_secs(30),
    call_deadline: Duration::from_secs(20),
    reads_waiting_max: 4,
};

struct Bench {
    core: HolderCore,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { core: HolderCore::new(LIMITS), now: Instant::now() }
    }

    /// With an agent and a mounted image whose two blocks are missing.
    fn mounted() -> Self {
        let mut bench = Self::new();
        bench.apply(Event::Joined);
        assert_eq!(bench.apply(Event::Order(ToHolder::Mount(mount()))), [Effect::Mount(mount())]);
        let told = bench.apply(Event::MountEnded { image: IMAGE, result: Ok(()) });
        assert_eq!(told, [Effect::Tell(FromHolder::Mounted { image: IMAGE })]);
        bench
    }

    fn running(name: &str) -> Self {
        let mut bench = Self::mounted();
        bench.run(name);
        bench
    }

    fn run(&mut self, name: &str) {
        assert_eq!(self.apply(Event::Order(ToHolder::Run(run(name)))), [Effect::Start(run(name))]);
        let running = FromHolder::Running { start: start(name), pid: 5 };
        assert_eq!(self.apply(Event::Started { start: start(name), pid: 5 }), [Effect::Tell(running)]);
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.core.apply(event, self.now, &mut effects);
        effects
    }

    fn read(&mut self, number: u64) -> Vec<Effect> {
        self.apply(Event::ReadWaits { image: IMAGE, read: ReadId(number), blocks: 0..=1 })
    }
}

fn start(name: &str) -> StartId {
    name.parse().expect("a name")
}

fn mount() -> Mount {
    let plain_bytes = u64::from(BLOCK_BYTES) + 1;
    Mount {
        image: IMAGE,
        plain_path: "/cache".into(),
        plain_bytes,
        present: vec![0],
        record: false,
        packed: false,
    }
}

fn run(name: &str) -> Box<Run> {
    Box::new(Run {
        start: start(name),
        image: IMAGE,
        code: None,
        runtime: RuntimeConfig::default(),
        command: None,
        env: BTreeMap::new(),
        port: 80,
        memory_bytes: 1,
        cpu_millis: 1,
        pids_max: 1,
        writable_bytes: 1,
        log_bytes_max: 1,
    })
}

fn miss() -> Effect {
    Effect::Tell(FromHolder::Miss { image: IMAGE, blocks: vec![BlockId(0), BlockId(1)] })
}

fn state(exit: Option<Exit>) -> Effect {
    let held = HeldInstance { start: start("a"), image: IMAGE, port: 80, exit };
    let (mounts, instances) = (vec![IMAGE], vec![held]);
    Effect::Tell(FromHolder::State { version: PROTOCOL_VERSION, mounts, instances })
}

const CODE: ImageId = Digest::from_bytes([8; 32]);

fn run_with_code(name: &str) -> Box<Run> {
    Box::new(Run { code: Some(CODE), ..*run(name) })
}

#[test]
fn code_must_be_mounted_before_a_container_runs_and_stays_mounted_while_it_does() {
    let mut bench = Bench::mounted();
    let refused = bench.apply(Event::Order(ToHolder::Run(run_with_code("a"))));
    assert!(matches!(&refused[..], [Effect::Tell(FromHolder::RunFailed { .. })]), "{refused:?}");
    bench.apply(Event::Order(ToHolder::Mount(Mount { image: CODE, ..mount() })));
    bench.apply(Event::MountEnded { image: CODE, result: Ok(()) });
    assert_eq!(
        bench.apply(Event::Order(ToHolder::Run(run_with_code("a")))),
        [Effect::Start(run_with_code("a"))]
    );
    bench.run("b");
    let unmount = || Event::Order(ToHolder::Unmount { image: CODE });
    let refused = bench.apply(unmount());
    assert!(matches!(&refused[..], [Effect::Tell(FromHolder::MountFailed { image: CODE, .. })]));
    bench.apply(Event::Ended { start: start("a"), exit: Exit::Code(0) });
    assert_eq!(bench.apply(unmount()), [Effect::Unmount(CODE)]);
}

#[test]
fn reads_of_code_fail_when_the_only_container_that_has_it_is_killed() {
    let mut bench = Bench::mounted();
    bench.apply(Event::Order(ToHolder::Mount(Mount { image: CODE, ..mount() })));
    bench.apply(Event::MountEnded { image: CODE, result: Ok(()) });
    bench.apply(Event::Order(ToHolder::Run(run_with_code("a"))));
    bench.run("b");
    bench.read(1);
    bench.apply(Event::ReadWaits { image: CODE, read: ReadId(2), blocks: 0..=1 });
    let failed = bench.apply(Event::Killed { start: start("a") });
    assert_eq!(failed, [Effect::Fail(CODE, ReadId(2))], "the other container reads the image still");
}

#[test]
fn a_read_without_an_agent_is_asked_for_when_one_joins() {
    let mut bench = Bench::running("a");
    bench.apply(Event::Left);
    assert_eq!(bench.read(1), []);
    assert_eq!(bench.apply(Event::Joined), [state(None), miss()]);
    let present = ToHolder::Present { image: IMAGE, blocks: vec![BlockId(0), BlockId(1)] };
    assert_eq!(bench.apply(Event::Order(present)), [Effect::Answer(IMAGE, ReadId(1))]);
}

#[test]
fn an_end_is_told_until_an_agent_acts_upon_it() {
    let exit = Exit::Code(3);
    let ended = || Event::Ended { start: start("a"), exit };
    let none = || {
        Effect::Tell(FromHolder::State { version: PROTOCOL_VERSION, mounts: vec![IMAGE], instances: vec![] })
    };
    let act = || Event::Order(ToHolder::Present { image: IMAGE, blocks: vec![] });
    let mut told = Bench::running("a");
    assert_eq!(told.apply(ended()), [Effect::Tell(FromHolder::Exited { start: start("a"), exit })]);
    told.apply(act());
    let mut untold = Bench::running("a");
    untold.apply(Event::Left);
    assert_eq!(untold.apply(ended()), []);
    for mut bench in [told, untold] {
        assert_eq!(bench.apply(Event::Joined), [state(Some(exit))]);
        assert_eq!(bench.apply(Event::Joined), [state(Some(exit))], "the first may not have read it");
        bench.apply(act());
        assert_eq!(bench.apply(Event::Joined), [none()]);
    }
}

#[test]
fn few_ends_are_kept_once_told() {
    let mut bench = Bench::mounted();
    for number in 0..2 * ENDED_KEPT_MAX {
        let name = format!("start-{number}");
        bench.run(&name);
        bench.apply(Event::Ended { start: start(&name), exit: Exit::Code(0) });
    }
    let effects = bench.apply(Event::Joined);
    let [Effect::Tell(FromHolder::State { instances, .. })] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(instances.len(), ENDED_KEPT_MAX);
    assert!(instances.iter().all(|held| held.start != start("start-0")), "the newest are kept");
}

#[test]
fn a_failed_start_is_told_to_the_next_agent() {
    let mut bench = Bench::mounted();
    bench.apply(Event::Order(ToHolder::Run(run("a"))));
    bench.apply(Event::Left);
    bench.apply(Event::StartFailed { start: start("a"), reason: "no".to_owned() });
    let failed = FromHolder::RunFailed { start: start("a"), reason: "no".to_owned() };
    assert_eq!(bench.apply(Event::Joined).pop(), Some(Effect::Tell(failed)));
}

#[test]
fn a_mount_that_takes_too_long_ends_by_its_reads() {
    let mut bench = Bench::new();
    bench.apply(Event::Joined);
    bench.apply(Event::Order(ToHolder::Mount(mount())));
    assert_eq!(bench.read(1), [miss()]);
    assert_eq!(bench.core.next_deadline(), Some(bench.now + LIMITS.call_deadline));
    bench.now += LIMITS.call_deadline;
    assert_eq!(bench.apply(Event::Tick), [Effect::Fail(IMAGE, ReadId(1))]);
    assert_eq!(bench.read(2), [Effect::Fail(IMAGE, ReadId(2))]);
    assert!(bench.core.next_deadline() > Some(bench.now), "or the desk would spin");
}

#[test]
fn an_image_in_use_stays_mounted_and_a_mount_waits_for_the_end_of_an_unmount() {
    let mut bench = Bench::running("a");
    let refused = bench.apply(Event::Order(ToHolder::Unmount { image: IMAGE }));
    assert!(matches!(&refused[..], [Effect::Tell(FromHolder::MountFailed { .. })]), "{refused:?}");
    bench.apply(Event::Ended { start: start("a"), exit: Exit::Code(0) });
    assert_eq!(bench.apply(Event::Order(ToHolder::Unmount { image: IMAGE })), [Effect::Unmount(IMAGE)]);
    assert_eq!(bench.apply(Event::Order(ToHolder::Mount(mount()))), []);
    assert_eq!(bench.apply(Event::UnmountEnded { image: IMAGE }), [Effect::Mount(mount())]);
}

#[test]
fn reads_of_a_killed_container_fail_unless_another_needs_them() {
    let mut bench = Bench::running("a");
    bench.run("b");
    bench.read(1);
    assert_eq!(bench.apply(Event::Killed { start: start("a") }), []);
    bench.apply(Event::Ended { start: start("a"), exit: Exit::Signal(9) });
    assert_eq!(bench.apply(Event::Killed { start: start("b") }), [Effect::Fail(IMAGE, ReadId(1))]);
}

#[test]
fn a_shutdown_stops_then_unmounts_then_says_goodbye() {
    let mut bench = Bench::running("a");
    bench.read(1);
    let stop = Effect::Stop { start: start("a"), grace_ms: 9 };
    assert_eq!(bench.apply(Event::Order(ToHolder::Shutdown { grace_ms: 9 })), [stop]);
    let refused = bench.apply(Event::Order(ToHolder::Run(run("b"))));
    assert!(matches!(&refused[..], [Effect::Tell(FromHolder::RunFailed { .. })]), "{refused:?}");
    let ended = bench.apply(Event::Ended { start: start("a"), exit: Exit::Signal(9) });
    assert_eq!(ended[1..], [Effect::Fail(IMAGE, ReadId(1)), Effect::Unmount(IMAGE)]);
    let last = bench.apply(Event::UnmountEnded { image: IMAGE });
    assert_eq!(last, [Effect::Tell(FromHolder::Bye), Effect::Exit]);
}
