//! What the holder decides. Pure: an event and the time go in, effects come out.
//!
//! ```text
//! image:     Mount -> Mounting -> Mounted -> Unmount -> Unmounting -> (gone)
//!                         |  MountEnded(Err)                ^ a Mount waits here for the end
//!                         +-> (gone)
//! instance:  Run -> Starting -> Running -> Ended -> in a `State` that an agent acted upon -> (gone)
//!                       +-> (gone), RunFailed
//! ```
//!
//! An end is told when it happens, and again to the next agent: the one that was told may have died
//! before it read the message. Only an order that follows a `State` shows that this was read.

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
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

/// Instances known at once, those that ended untold included. Far above what a VM runs
/// (`agent.instances_max`); it bounds what is kept while no agent comes.
const INSTANCES_MAX: usize = 4096;
/// Ended instances kept after an agent was told, for the next agent.
const ENDED_KEPT_MAX: usize = 64;
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
    /// The order to mount an image that is mounted already, whose cache file is another one now.
    OtherFile(Mount),
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
    /// What was read of the image is told, and recorded no longer.
    EndRecording(ImageId),
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
    code: Option<ImageId>,
    port: u16,
    pid: Option<u32>,
    exit: Option<Exit>,
    /// Whether the end was in the `State` of the present agent.
    is_in_state: bool,
}

impl Instance {
    /// Whether its container may read that image.
    fn uses(&self, image: ImageId) -> bool {
        self.exit.is_none() && (self.image == image || self.code == Some(image))
    }
}

pub struct HolderCore {
    limits: Limits,
    images: BTreeMap<ImageId, Image>,
    instances: BTreeMap<StartId, Instance>,
    /// Those that ended, the oldest first.
    ended: VecDeque<StartId>,
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
            ended: VecDeque::new(),
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
            Event::OtherFile(mount) => {
                let present = mount.present.clone();
                self.with_reads(mount.image, effects, |reads, out| reads.replace(present, out));
                self.order(ToHolder::Mount(mount), now, effects);
            }
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
        for instance in self.instances.values_mut() {
            instance.is_in_state = instance.exit.is_some();
        }
        effects.extend(self.untold.drain(..).map(Effect::Tell));
        for image in self.images.keys().copied().collect::<Vec<_>>() {
            self.with_reads(image, effects, Reads::ask_again);
        }
    }

    fn order(&mut self, order: ToHolder, now: Instant, effects: &mut Vec<Effect>) {
        self.instances.retain(|_, instance| !instance.is_in_state);
        match order {
            ToHolder::Hello { .. } => {}
            ToHolder::Mount(mount) => self.mount(mount, now, effects),
            ToHolder::Present { image, blocks } => {
                self.with_reads(image, effects, |reads, out| reads.present(&blocks, out));
            }
            ToHolder::Unavailable { image, blocks } => {
                self.with_reads(image, effects, |reads, out| reads.unavailable(&blocks, out));
            }
            ToHolder::EndRecording { image } => effects.push(Effect::EndRecording(image)),
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
        self.with_reads(image, effects, |reads, out| {
            reads.merge(&mount.present, out);
            // Who mounts again may have forgotten what was asked.
            reads.ask_again(out);
        });
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
        let user = self.instances.iter().find(|(_, instance)| instance.uses(image));
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
            match (known.exit, known.pid) {
                (Some(exit), _) => effects.push(Effect::Tell(FromHolder::Exited { start, exit })),
                (None, Some(pid)) => effects.push(Effect::Tell(FromHolder::Running { start, pid })),
                (None, None) => {}
            }
            return;
        }
        let is_mounted =
            |image: &ImageId| self.images.get(image).is_some_and(|held| matches!(held.stage, Stage::Mounted));
        let mounted = [Some(run.image), run.code].iter().flatten().all(is_mounted);
        let refusal = match (self.closing, mounted) {
            (true, _) => Some("the holder is shutting down"),
            (false, false) => Some("its image or code is not mounted"),
            (false, true) if self.instances.len() >= INSTANCES_MAX => Some("too many instances on this VM"),
            (false, true) => None,
        };
        if let Some(reason) = refusal {
            let reason = reason.to_owned();
            return effects.push(Effect::Tell(FromHolder::RunFailed { start, reason }));
        }
        let (image, code, port) = (run.image, run.code, run.port);
        let instance = Instance { image, code, port, pid: None, exit: None, is_in_state: false };
        self.instances.insert(start, instance);
        effects.push(Effect::Start(run));
    }

    /// Fails the reads that a killed container may hang on, if no other container needs them.
    fn killed(&mut self, start: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(killed) = self.instances.get(start) else { return };
        for image in [Some(killed.image), killed.code].into_iter().flatten() {
            let mut others = self.instances.iter().filter(|(other, _)| *other != start);
            let needed = others.any(|(_, other)| other.uses(image));
            if !needed || self.closing {
                self.with_reads(image, effects, |reads, out| reads.fail_all(now, out));
            }
        }
    }

    fn ended(&mut self, start: StartId, exit: Exit, effects: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get_mut(&start) else { return };
        instance.exit = Some(exit);
        self.ended.retain(|each| self.instances.contains_key(each));
        self.ended.push_back(start.clone());
        if self.has_agent {
            effects.push(Effect::Tell(FromHolder::Exited { start, exit }));
            if self.ended.len() > ENDED_KEPT_MAX
                && let Some(oldest) = self.ended.pop_front()
            {
                self.instances.remove(&oldest);
            }
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
mod tests;
