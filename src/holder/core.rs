//! What the holder decides. Pure: an event and the time go in, effects come out.
//!
//! ```text
//! image:     Mount -> Mounting -> Mounted -> Unmount -> Unmounting -> (gone)
//!                         |  MountEnded(Err)                ^ a Mount waits here for the end
//!                         +-> (gone)
//! instance:  Run -> Starting -> Running -> Ended -> told to an agent -> (gone)
//!                       +-> (gone), RunFailed
//! ```

use super::reads::{ReadEffect, ReadId, Reads};
use faasnet_actors::{
    id::{ImageId, StartId},
    image::{BLOCK_BYTES, BLOCKS_MAX},
    wire::{
        PROTOCOL_VERSION,
        holder::{Exit, FromHolder, HeldInstance, Mount, Run, ToHolder},
    },
};
use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

/// Instances known at once, those that ended untold included. Far above what a VM runs
/// (`agent.instances_max`); it bounds what is kept while no agent comes.
const INSTANCES_MAX: usize = 4096;
/// Mounts at once. Each is a FUSE session with threads of its own.
const IMAGES_MAX: usize = 256;
/// Failed starts kept until an agent is told.
const UNTOLD_MAX: usize = 4096;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// An agent said hello; it replaces the one before.
    Joined,
    /// The agent's connection ended.
    Left,
    /// The agent gave an order.
    Order(ToHolder),
    /// A read of the kernel found blocks missing.
    ReadWaits {
        image: ImageId,
        read: ReadId,
        blocks: RangeInclusive<u32>,
    },
    MountEnded {
        image: ImageId,
        result: Result<(), String>,
    },
    UnmountEnded {
        image: ImageId,
    },
    Started {
        start: StartId,
        pid: u32,
    },
    StartFailed {
        start: StartId,
        reason: String,
    },
    /// The time of grace is over and the container was killed. A process that waits for a read ends
    /// only with that read.
    Killed {
        start: StartId,
    },
    Ended {
        start: StartId,
        exit: Exit,
    },
    /// The time of `HolderCore::next_deadline` has come.
    Tick,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    Tell(FromHolder),
    Answer(ImageId, ReadId),
    Fail(ImageId, ReadId),
    Mount(Mount),
    Unmount(ImageId),
    Start(Box<Run>),
    Stop {
        start: StartId,
        grace_ms: u64,
    },
    /// Everything is stopped and unmounted: the process ends.
    Exit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub read_deadline: Duration,
    pub call_deadline: Duration,
    pub reads_waiting_max: usize,
}

enum Stage {
    Mounting { deadline: Instant },
    Mounted,
    Unmounting { then: Option<Mount> },
}

struct Image {
    stage: Stage,
    reads: Reads,
}

struct Instance {
    image: ImageId,
    port: u16,
    pid: Option<u32>,
    exit: Option<Exit>,
}

pub struct HolderCore {
    limits: Limits,
    images: BTreeMap<ImageId, Image>,
    instances: BTreeMap<StartId, Instance>,
    /// Answers to orders whose agent is gone.
    untold: Vec<FromHolder>,
    has_agent: bool,
    closing: bool,
}

impl HolderCore {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            images: BTreeMap::new(),
            instances: BTreeMap::new(),
            untold: Vec::new(),
            has_agent: false,
            closing: false,
        }
    }

    pub fn apply(&mut self, event: Event, now: Instant, effects: &mut Vec<Effect>) {
        match event {
            Event::Joined => self.joined(effects),
            Event::Left => self.has_agent = false,
            Event::Order(order) => self.order(order, now, effects),
            Event::ReadWaits { image, read, blocks } => {
                let deadline = now + self.limits.read_deadline;
                match self.images.get_mut(&image) {
                    Some(held) => {
                        let mut reads = Vec::new();
                        held.reads.wait(read, blocks, now, deadline, &mut reads);
                        self.reads(image, reads, effects);
                    }
                    None => effects.push(Effect::Fail(image, read)),
                }
            }
            Event::MountEnded { image, result } => self.mount_ended(image, result, effects),
            Event::UnmountEnded { image } => self.unmount_ended(image, now, effects),
            Event::Started { start, pid } => {
                if let Some(instance) = self.instances.get_mut(&start) {
                    instance.pid = Some(pid);
                    self.tell(FromHolder::Running { start, pid }, effects);
                }
            }
            Event::StartFailed { start, reason } => {
                self.instances.remove(&start);
                self.tell(FromHolder::RunFailed { start, reason }, effects);
            }
            Event::Killed { start } => self.killed(&start, now, effects),
            Event::Ended { start, exit } => self.ended(start, exit, effects),
            Event::Tick => {}
        }
        self.expire(now, effects);
        self.close(effects);
    }

    /// When `Event::Tick` is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let mounts = self.images.values().filter_map(|image| match image.stage {
            Stage::Mounting { deadline } => Some(deadline),
            Stage::Mounted | Stage::Unmounting { .. } => None,
        });
        mounts.chain(self.images.values().filter_map(|image| image.reads.next_deadline())).min()
    }

    fn joined(&mut self, effects: &mut Vec<Effect>) {
        self.has_agent = true;
        let is_mounted = |image: &&Image| matches!(image.stage, Stage::Mounted);
        let mounts = self.images.iter().filter(|(_, image)| is_mounted(image)).map(|(id, _)| *id).collect();
        let held = |(start, instance): (&StartId, &Instance)| HeldInstance {
            start: start.clone(),
            image: instance.image,
            port: instance.port,
            exit: instance.exit,
        };
        let instances = self.instances.iter().map(held).collect();
        effects.push(Effect::Tell(FromHolder::State { version: PROTOCOL_VERSION, mounts, instances }));
        self.instances.retain(|_, instance| instance.exit.is_none());
        effects.extend(self.untold.drain(..).map(Effect::Tell));
        for image in self.images.keys().copied().collect::<Vec<_>>() {
            self.with_reads(image, effects, Reads::ask_again);
        }
    }

    fn order(&mut self, order: ToHolder, now: Instant, effects: &mut Vec<Effect>) {
        match order {
            ToHolder::Hello { .. } => {}
            ToHolder::Mount(mount) => self.mount(mount, now, effects),
            ToHolder::Present { image, blocks } => {
                self.with_reads(image, effects, |reads, out| reads.present(&blocks, out));
            }
            ToHolder::Unavailable { image, blocks } => {
                self.with_reads(image, effects, |reads, out| reads.unavailable(&blocks, out));
            }
            ToHolder::Run(run) => self.run(run, effects),
            ToHolder::Stop { start, grace_ms } => {
                if self.instances.get(&start).is_some_and(|instance| instance.exit.is_none()) {
                    effects.push(Effect::Stop { start, grace_ms });
                }
            }
            ToHolder::Unmount { image } => self.unmount(image, effects),
            ToHolder::Shutdown { grace_ms } => {
                self.closing = true;
                let live = self.instances.iter().filter(|(_, instance)| instance.exit.is_none());
                effects.extend(live.map(|(start, _)| Effect::Stop { start: start.clone(), grace_ms }));
            }
        }
    }

    fn mount(&mut self, mount: Mount, now: Instant, effects: &mut Vec<Effect>) {
        let image = mount.image;
        let held = match self.images.get_mut(&image) {
            Some(held) => held,
            None => return self.mount_new(mount, now, effects),
        };
        match &mut held.stage {
            Stage::Mounting { .. } => {}
            Stage::Mounted => effects.push(Effect::Tell(FromHolder::Mounted { image })),
            Stage::Unmounting { then } => *then = Some(mount.clone()),
        }
        self.with_reads(image, effects, |reads, out| reads.merge(&mount.present, out));
    }

    fn mount_new(&mut self, mount: Mount, now: Instant, effects: &mut Vec<Effect>) {
        let image = mount.image;
        let mut refuse = |reason: &str| {
            effects.push(Effect::Tell(FromHolder::MountFailed { image, reason: reason.to_owned() }));
        };
        if self.closing {
            return refuse("the holder is shutting down");
        }
        if self.images.len() >= IMAGES_MAX {
            return refuse("too many images are mounted; stop functions first");
        }
        let block_count = mount.plain_bytes.div_ceil(u64::from(BLOCK_BYTES));
        let count = u32::try_from(block_count).ok().filter(|count| (1..=BLOCKS_MAX).contains(count));
        let reads =
            count.and_then(|count| Reads::new(mount.present.clone(), count, self.limits.reads_waiting_max));
        let Some(reads) = reads else {
            return refuse("the size of the image does not match its map of present blocks");
        };
        let stage = Stage::Mounting { deadline: now + self.limits.call_deadline };
        self.images.insert(image, Image { stage, reads });
        effects.push(Effect::Mount(mount));
    }

    fn mount_ended(&mut self, image: ImageId, result: Result<(), String>, effects: &mut Vec<Effect>) {
        let Some(held) = self.images.get_mut(&image) else { return };
        match result {
            Ok(()) => {
                held.stage = Stage::Mounted;
                self.tell(FromHolder::Mounted { image }, effects);
            }
            Err(reason) => {
                self.with_reads(image, effects, Reads::close);
                self.images.remove(&image);
                self.tell(FromHolder::MountFailed { image, reason }, effects);
            }
        }
    }

    fn unmount(&mut self, image: ImageId, effects: &mut Vec<Effect>) {
        let user =
            self.instances.iter().find(|(_, instance)| instance.image == image && instance.exit.is_none());
        if let Some((start, _)) = user {
            let reason = format!("instance {start} uses it");
            return effects.push(Effect::Tell(FromHolder::MountFailed { image, reason }));
        }
        let Some(held) = self.images.get_mut(&image) else { return };
        if matches!(held.stage, Stage::Mounted) {
            held.stage = Stage::Unmounting { then: None };
            self.with_reads(image, effects, Reads::close);
            effects.push(Effect::Unmount(image));
        }
    }

    fn unmount_ended(&mut self, image: ImageId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(held) = self.images.remove(&image) else { return };
        if let Stage::Unmounting { then: Some(mount) } = held.stage {
            self.mount_new(mount, now, effects);
        }
    }

    fn run(&mut self, run: Box<Run>, effects: &mut Vec<Effect>) {
        let start = run.start.clone();
        if let Some(known) = self.instances.get(&start) {
            if let Some(pid) = known.pid {
                effects.push(Effect::Tell(FromHolder::Running { start, pid }));
            }
            return;
        }
        let mounted = self.images.get(&run.image).is_some_and(|held| matches!(held.stage, Stage::Mounted));
        let refusal = match (self.closing, mounted) {
            (true, _) => Some("the holder is shutting down"),
            (false, false) => Some("the image is not mounted"),
            (false, true) if self.instances.len() >= INSTANCES_MAX => Some("too many instances on this VM"),
            (false, true) => None,
        };
        if let Some(reason) = refusal {
            let reason = reason.to_owned();
            return effects.push(Effect::Tell(FromHolder::RunFailed { start, reason }));
        }
        let instance = Instance { image: run.image, port: run.port, pid: None, exit: None };
        self.instances.insert(start, instance);
        effects.push(Effect::Start(run));
    }

    /// Fails the reads that a killed container may hang on, if no other container needs them.
    fn killed(&mut self, start: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(image) = self.instances.get(start).map(|instance| instance.image) else { return };
        let others = self.instances.iter().filter(|(other, _)| *other != start);
        let needed = others.into_iter().any(|(_, other)| other.image == image && other.exit.is_none());
        if !needed || self.closing {
            self.with_reads(image, effects, |reads, out| reads.fail_all(now, out));
        }
    }

    fn ended(&mut self, start: StartId, exit: Exit, effects: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get_mut(&start) else { return };
        if self.has_agent {
            self.instances.remove(&start);
            effects.push(Effect::Tell(FromHolder::Exited { start, exit }));
        } else {
            instance.exit = Some(exit);
        }
    }

    /// Tells the agent, or the next one when none is connected.
    fn tell(&mut self, message: FromHolder, effects: &mut Vec<Effect>) {
        match (&message, self.has_agent) {
            (_, true) => effects.push(Effect::Tell(message)),
            (FromHolder::RunFailed { .. }, false) if self.untold.len() < UNTOLD_MAX => {
                self.untold.push(message)
            }
            // The rest is in `State`, or is asked for again.
            _ => {}
        }
    }

    fn with_reads(
        &mut self,
        image: ImageId,
        effects: &mut Vec<Effect>,
        call: impl FnOnce(&mut Reads, &mut Vec<ReadEffect>),
    ) {
        let Some(held) = self.images.get_mut(&image) else { return };
        let mut reads = Vec::new();
        call(&mut held.reads, &mut reads);
        self.reads(image, reads, effects);
    }

    fn reads(&self, image: ImageId, reads: Vec<ReadEffect>, effects: &mut Vec<Effect>) {
        for effect in reads {
            match effect {
                ReadEffect::Answer(read) => effects.push(Effect::Answer(image, read)),
                ReadEffect::Fail(read) => effects.push(Effect::Fail(image, read)),
                // Without an agent nobody is asked; the next one is, when it joins.
                ReadEffect::Miss(_) if !self.has_agent => {}
                ReadEffect::Miss(blocks) => effects.push(Effect::Tell(FromHolder::Miss { image, blocks })),
            }
        }
    }

    /// Fails late reads. A mount that takes too long hangs on reads, so they fail and end it.
    fn expire(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        for image in self.images.keys().copied().collect::<Vec<_>>() {
            let Some(held) = self.images.get_mut(&image) else { continue };
            match &mut held.stage {
                Stage::Mounting { deadline } if *deadline <= now => {
                    // The mount ends with an error of its own; it is not waited for twice.
                    *deadline = now + self.limits.call_deadline;
                    self.with_reads(image, effects, Reads::close);
                }
                Stage::Mounting { .. } | Stage::Mounted | Stage::Unmounting { .. } => {
                    self.with_reads(image, effects, |reads, out| reads.expire(now, out));
                }
            }
        }
    }

    /// On the way out: unmounts when no instance lives, ends when nothing is mounted.
    fn close(&mut self, effects: &mut Vec<Effect>) {
        let lives = self.instances.values().any(|instance| instance.exit.is_none());
        if !self.closing || lives {
            return;
        }
        for image in self.images.keys().copied().collect::<Vec<_>>() {
            self.with_reads(image, effects, Reads::close);
            self.unmount(image, effects);
        }
        if self.images.is_empty() {
            effects.push(Effect::Tell(FromHolder::Bye));
            effects.push(Effect::Exit);
        }
    }
}

#[cfg(test)]
mod tests {
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
        Mount { image: IMAGE, plain_path: "/cache".into(), plain_bytes, present: vec![0] }
    }

    fn run(name: &str) -> Box<Run> {
        Box::new(Run {
            start: start(name),
            image: IMAGE,
            runtime: RuntimeConfig::default(),
            env: BTreeMap::new(),
            port: 80,
            memory_bytes: 1,
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
    fn an_end_is_told_once_now_or_later() {
        let exit = Exit::Code(3);
        let ended = || Event::Ended { start: start("a"), exit };
        let mut bench = Bench::running("a");
        assert_eq!(bench.apply(ended()), [Effect::Tell(FromHolder::Exited { start: start("a"), exit })]);
        let mut bench = Bench::running("a");
        bench.apply(Event::Left);
        assert_eq!(bench.apply(ended()), []);
        assert_eq!(bench.apply(Event::Joined), [state(Some(exit))]);
        let none =
            FromHolder::State { version: PROTOCOL_VERSION, mounts: vec![IMAGE], instances: Vec::new() };
        assert_eq!(bench.apply(Event::Joined), [Effect::Tell(none)]);
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
}
