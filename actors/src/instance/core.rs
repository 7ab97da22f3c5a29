//! The life of one container, from the order to its end.
//!
//! ```text
//!       Mounted, whole if wanted  Running           Answered
//!   Image ----------> Launching ---------> Probing ----------> Ready
//!     |                   |                  |  deadline         |
//!     |  deadline,        |  RunFailed       |  Exited           |  Exited, Stop
//!     v  MountFailed      v                  v  Stop             v
//!   Ended               Ended             Stopping ---------> Ended
//! ```

use crate::{
    block_transfer::{FromImage, ImageEvent},
    id::ImageId,
    wire::{
        control::{EndReason, Mode, StartOrder, Step},
        holder::Exit,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Image,
    Launching,
    Probing,
    Ready,
    /// The container was told to end; why is reported when it has.
    Stopping(EndReason),
    Ended,
}

#[derive(Debug)]
pub enum Event {
    Image(FromImage),
    Running,
    RunFailed(String),
    Exited(Exit),
    /// The holder is there again and runs the container.
    Held,
    /// The holder is there again and does not know the container.
    NotHeld {
        is_mounted: bool,
    },
    /// The probe's answer.
    Probed(bool),
    Stop,
    Tick,
}

#[derive(Debug, PartialEq)]
pub enum Effect {
    Launch,
    Probe,
    Stop,
    Progress { step: Step, elapsed: Duration },
    Ready,
    Ended(EndReason),
}

/// What a container is made of, and how much of it has to be there before it is run.
#[derive(Debug, Clone)]
pub struct Wants {
    images: BTreeSet<ImageId>,
    mode: Mode,
}

impl Wants {
    pub fn of(order: &StartOrder) -> Self {
        Self { images: order.images().map(|(image, _)| image.id).collect(), mode: order.mode }
    }
}

pub struct InstanceCore {
    phase: Phase,
    ordered_at: Instant,
    deadline: Instant,
    probe_interval: Duration,
    probe_at: Option<Instant>,
    wants: Wants,
    /// Images that are not mounted.
    unmounted: BTreeSet<ImageId>,
    /// Images of which all blocks are waited for.
    incomplete: BTreeSet<ImageId>,
    steps: BTreeMap<Step, Duration>,
    /// The last thing that went wrong on the way to the image.
    trouble: Option<String>,
}

impl InstanceCore {
    pub fn new(now: Instant, ready_deadline: Duration, probe_interval: Duration, wants: Wants) -> Self {
        Self {
            phase: Phase::Image,
            ordered_at: now,
            deadline: now + ready_deadline,
            probe_interval,
            probe_at: None,
            unmounted: wants.images.clone(),
            incomplete: if wants.mode == Mode::Whole { wants.images.clone() } else { BTreeSet::new() },
            wants,
            steps: BTreeMap::new(),
            trouble: None,
        }
    }

    /// An instance that the holder runs already, when the agent comes back.
    pub fn resumed(now: Instant, ready_deadline: Duration, probe_interval: Duration, wants: Wants) -> Self {
        let mut core = Self::new(now, ready_deadline, probe_interval, wants);
        core.phase = Phase::Probing;
        core.probe_at = Some(now);
        core
    }

    /// An instance that was ready when another process of the agent had it.
    pub fn ready(now: Instant, ready_deadline: Duration, probe_interval: Duration, wants: Wants) -> Self {
        let mut core = Self::new(now, ready_deadline, probe_interval, wants);
        core.phase = Phase::Ready;
        core
    }

    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// When each step was done, counted from the order.
    pub fn steps(&self) -> &BTreeMap<Step, Duration> {
        &self.steps
    }

    pub fn apply(&mut self, event: Event, now: Instant, effects: &mut Vec<Effect>) {
        match event {
            Event::Image(event) => self.image(event, now, effects),
            Event::Running => self.running(now, effects),
            Event::RunFailed(reason) => self.gone(EndReason::RunFailed(reason), effects),
            Event::Exited(exit) => self.gone(EndReason::Exited(exit), effects),
            Event::Held => match self.phase {
                // The order was lost with the connection.
                Phase::Stopping(_) => effects.push(Effect::Stop),
                _ => self.running(now, effects),
            },
            Event::NotHeld { is_mounted } => self.not_held(is_mounted, effects),
            Event::Probed(is_ready) => self.probed(is_ready, now, effects),
            Event::Stop => self.stop(EndReason::Stopped, effects),
            Event::Tick => self.tick(now, effects),
        }
    }

    fn running(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Launching {
            return;
        }
        self.step(Step::Run, now, effects);
        self.phase = Phase::Probing;
        self.probe_at = None;
        effects.push(Effect::Probe);
    }

    /// There is no container, or none any more.
    fn gone(&mut self, reason: EndReason, effects: &mut Vec<Effect>) {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Ended => {}
            Phase::Stopping(reason) => effects.push(Effect::Ended(reason)),
            Phase::Image | Phase::Launching | Phase::Probing | Phase::Ready => {
                effects.push(Effect::Ended(reason));
            }
        }
    }

    fn not_held(&mut self, is_mounted: bool, effects: &mut Vec<Effect>) {
        // Each image is told of again when it is mounted, also one that still is.
        self.unmounted = if is_mounted { BTreeSet::new() } else { self.wants.images.clone() };
        match self.phase {
            Phase::Image | Phase::Ended => {}
            // The order was lost with the connection; a holder that has it takes it for one.
            Phase::Launching if is_mounted => effects.push(Effect::Launch),
            Phase::Launching => self.phase = Phase::Image,
            Phase::Probing | Phase::Ready | Phase::Stopping(_) => {
                self.gone(EndReason::RunFailed("the process that ran it is gone".into()), effects);
            }
        }
    }

    fn image(&mut self, FromImage { image, event }: FromImage, now: Instant, effects: &mut Vec<Effect>) {
        let is_waited_for = self.phase == Phase::Image;
        match event {
            // A container that is not ready yet would only see reads fail.
            ImageEvent::NotKept(reason) if self.phase != Phase::Ready => {
                self.stop(EndReason::ImageUnavailable(reason), effects);
            }
            _ if !is_waited_for => {}
            // Others do not wait for it.
            ImageEvent::Step(Step::Whole) if self.wants.mode != Mode::Whole => {}
            ImageEvent::Step(Step::Whole) => {
                self.incomplete.remove(&image);
                if self.incomplete.is_empty() {
                    self.step(Step::Whole, now, effects);
                }
                self.launch_if_there(now, effects);
            }
            ImageEvent::Step(step) => self.step(step, now, effects),
            ImageEvent::Mounted => {
                self.unmounted.remove(&image);
                self.launch_if_there(now, effects);
            }
            ImageEvent::MountFailed(reason) => {
                self.phase = Phase::Ended;
                effects.push(Effect::Ended(EndReason::MountFailed(reason)));
            }
            ImageEvent::Trouble(reason) => self.trouble = Some(reason),
            ImageEvent::NotKept(_) => {}
        }
    }

    /// Mounts are made as soon as they can be, also for a start that waits for whole images: others may use them.
    fn launch_if_there(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.unmounted.is_empty() && self.incomplete.is_empty() {
            self.step(Step::Mount, now, effects);
            self.phase = Phase::Launching;
            effects.push(Effect::Launch);
        }
    }

    fn step(&mut self, step: Step, now: Instant, effects: &mut Vec<Effect>) {
        let elapsed = now.duration_since(self.ordered_at);
        if self.steps.insert(step, elapsed).is_none() {
            effects.push(Effect::Progress { step, elapsed });
        }
    }

    fn probed(&mut self, is_ready: bool, now: Instant, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Probing {
            return;
        }
        if !is_ready {
            self.probe_at = Some(now + self.probe_interval);
            return;
        }
        self.step(Step::Probe, now, effects);
        self.phase = Phase::Ready;
        effects.push(Effect::Ready);
    }

    fn stop(&mut self, reason: EndReason, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Image => {
                self.phase = Phase::Ended;
                effects.push(Effect::Ended(reason));
            }
            Phase::Launching | Phase::Probing | Phase::Ready => {
                self.phase = Phase::Stopping(reason);
                effects.push(Effect::Stop);
            }
            Phase::Stopping(_) | Phase::Ended => {}
        }
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Probing && self.probe_at.is_some_and(|at| at <= now) {
            self.probe_at = None;
            effects.push(Effect::Probe);
        }
        if now < self.deadline {
            return;
        }
        match &self.phase {
            Phase::Image => {
                let trouble = self.trouble.take();
                let detail = trouble.unwrap_or_else(|| "no upstream gave its first blocks in time".into());
                self.stop(EndReason::ImageUnavailable(detail), effects);
            }
            Phase::Launching | Phase::Probing => self.stop(EndReason::NotReady, effects),
            Phase::Ready | Phase::Stopping(_) | Phase::Ended => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: ImageId = ImageId::from_bytes([1; 32]);
    const CODE: ImageId = ImageId::from_bytes([2; 32]);

    fn of_image(event: ImageEvent) -> Event {
        Event::Image(FromImage { image: IMAGE, event })
    }

    fn of_code(event: ImageEvent) -> Event {
        Event::Image(FromImage { image: CODE, event })
    }

    const DEADLINE: Duration = Duration::from_secs(10);
    const INTERVAL: Duration = Duration::from_millis(20);

    fn run(events: Vec<(u64, Event)>) -> (InstanceCore, Vec<Effect>) {
        run_for(wants([IMAGE], Mode::Lazy), events)
    }

    fn wants<const COUNT: usize>(images: [ImageId; COUNT], mode: Mode) -> Wants {
        Wants { images: images.into(), mode }
    }

    fn run_for(wants: Wants, events: Vec<(u64, Event)>) -> (InstanceCore, Vec<Effect>) {
        let start = Instant::now();
        let mut core = InstanceCore::new(start, DEADLINE, INTERVAL, wants);
        let mut effects = Vec::new();
        for (at_ms, event) in events {
            core.apply(event, start + Duration::from_millis(at_ms), &mut effects);
        }
        effects.retain(|effect| !matches!(effect, Effect::Progress { .. }));
        (core, effects)
    }

    #[test]
    fn a_start_goes_from_mount_to_probe() {
        let (core, effects) = run(vec![
            (1, of_image(ImageEvent::Step(Step::Index))),
            (5, of_image(ImageEvent::Mounted)),
            (30, Event::Running),
            (31, Event::Probed(false)),
            (40, Event::Tick),
            (52, Event::Tick),
            (53, Event::Probed(true)),
        ]);
        assert_eq!(effects, [Effect::Launch, Effect::Probe, Effect::Probe, Effect::Ready]);
        assert_eq!(core.steps()[&Step::Probe], Duration::from_millis(53));
    }

    #[test]
    fn only_a_start_that_wants_the_whole_image_waits_for_it() {
        let mounted = || of_image(ImageEvent::Mounted);
        let whole = || of_image(ImageEvent::Step(Step::Whole));
        let (core, effects) = run_for(wants([IMAGE], Mode::Whole), vec![(1, mounted()), (70, whole())]);
        assert_eq!(effects, [Effect::Launch]);
        assert_eq!([Step::Whole, Step::Mount].map(|step| core.steps()[&step].as_millis()), [70, 70]);
        let (core, effects) = run_for(wants([IMAGE], Mode::Whole), vec![(1, whole()), (5, mounted())]);
        assert_eq!((core.steps()[&Step::Mount].as_millis(), effects), (5, vec![Effect::Launch]));
        // A new holder has no mount.
        let lost = Event::NotHeld { is_mounted: false };
        let (_, effects) =
            run_for(wants([IMAGE], Mode::Whole), vec![(1, mounted()), (2, lost), (3, whole())]);
        assert_eq!(effects, []);
        for mode in [Mode::Lazy, Mode::LazyThenWhole] {
            let (core, effects) = run_for(wants([IMAGE], mode), vec![(1, whole()), (2, mounted())]);
            assert_eq!((core.steps().get(&Step::Whole), effects), (None, vec![Effect::Launch]));
        }
        // Code has to be whole as well.
        let both = || wants([IMAGE, CODE], Mode::Whole);
        let most = || vec![(1, mounted()), (2, of_code(ImageEvent::Mounted)), (3, whole())];
        assert_eq!(run_for(both(), most()).1, []);
        let last = (4, of_code(ImageEvent::Step(Step::Whole)));
        let (core, effects) = run_for(both(), most().into_iter().chain([last]).collect());
        assert_eq!((core.steps()[&Step::Whole].as_millis(), effects), (4, vec![Effect::Launch]));
    }

    #[test]
    fn a_start_with_code_waits_for_both_images() {
        let both = || wants([IMAGE, CODE], Mode::Lazy);
        let (core, effects) = run_for(
            both(),
            vec![
                (1, of_code(ImageEvent::Mounted)),
                (2, of_code(ImageEvent::Mounted)),
                (3, of_image(ImageEvent::Step(Step::Index))),
                (9, of_image(ImageEvent::Mounted)),
            ],
        );
        assert_eq!(effects, [Effect::Launch]);
        assert_eq!(core.steps()[&Step::Mount], Duration::from_millis(9));
        let full = of_code(ImageEvent::NotKept("the disk is full".into()));
        let (_, effects) = run_for(both(), vec![(1, of_image(ImageEvent::Mounted)), (2, full)]);
        let reason = EndReason::ImageUnavailable("the disk is full".into());
        assert_eq!(effects, [Effect::Ended(reason)]);
        // A new holder has neither, or lost only one.
        let lost = vec![
            (1, of_image(ImageEvent::Mounted)),
            (2, Event::NotHeld { is_mounted: false }),
            (3, of_code(ImageEvent::Mounted)),
        ];
        assert_eq!(run_for(both(), lost).1, []);
        let lost = vec![
            (1, of_image(ImageEvent::Mounted)),
            (2, of_code(ImageEvent::Mounted)),
            (3, Event::NotHeld { is_mounted: false }),
            (4, of_code(ImageEvent::Mounted)),
            (5, of_image(ImageEvent::Mounted)),
        ];
        assert_eq!(run_for(both(), lost).1, [Effect::Launch, Effect::Launch]);
    }

    #[test]
    fn an_image_that_does_not_come_is_told_with_the_last_trouble() {
        let trouble = of_image(ImageEvent::Trouble("the origin has no such object".into()));
        let (_, effects) = run(vec![(5, trouble), (9_999, Event::Tick), (10_000, Event::Tick)]);
        let reason = EndReason::ImageUnavailable("the origin has no such object".into());
        assert_eq!(effects, [Effect::Ended(reason)]);
    }

    #[test]
    fn a_container_that_never_answers_is_stopped_and_ends_as_not_ready() {
        let (_, effects) = run(vec![
            (1, of_image(ImageEvent::Mounted)),
            (2, Event::Running),
            (10_000, Event::Tick),
            (10_001, Event::Tick),
            (10_005, Event::Exited(Exit::Signal(15))),
        ]);
        let expected = [Effect::Launch, Effect::Probe, Effect::Stop, Effect::Ended(EndReason::NotReady)];
        assert_eq!(effects, expected);
    }

    #[test]
    fn a_full_cache_ends_a_start_at_once_and_leaves_a_ready_instance_alone() {
        let full = || of_image(ImageEvent::NotKept("the disk is full".into()));
        let reason = EndReason::ImageUnavailable("the disk is full".into());
        let (_, effects) = run(vec![(1, full())]);
        assert_eq!(effects, [Effect::Ended(reason.clone())]);
        let (mounted, running) = (of_image(ImageEvent::Mounted), Event::Running);
        let exited = Event::Exited(Exit::Code(1));
        let (_, effects) = run(vec![(1, mounted), (2, running), (3, full()), (4, exited)]);
        assert_eq!(effects, [Effect::Launch, Effect::Probe, Effect::Stop, Effect::Ended(reason)]);
        let (mounted, running) = (of_image(ImageEvent::Mounted), Event::Running);
        let (core, _) = run(vec![(1, mounted), (2, running), (3, Event::Probed(true)), (4, full())]);
        assert_eq!(core.phase(), &Phase::Ready);
    }

    #[test]
    fn orders_that_were_lost_with_the_holders_connection_are_given_again() {
        let mounted = || of_image(ImageEvent::Mounted);
        let not_held = |is_mounted| Event::NotHeld { is_mounted };
        let (_, effects) = run(vec![(1, mounted()), (2, not_held(true)), (3, Event::Held)]);
        assert_eq!(effects, [Effect::Launch, Effect::Launch, Effect::Probe]);
        // A new holder has no mounts: the image is mounted anew first.
        let (_, effects) = run(vec![(1, mounted()), (2, not_held(false)), (3, mounted())]);
        assert_eq!(effects, [Effect::Launch, Effect::Launch]);
        let (_, effects) = run(vec![(1, mounted()), (2, Event::Running), (3, Event::Stop), (4, Event::Held)]);
        assert_eq!(effects, [Effect::Launch, Effect::Probe, Effect::Stop, Effect::Stop]);
    }

    #[test]
    fn an_instance_that_a_new_holder_does_not_know_ends_in_every_phase() {
        let mounted = || of_image(ImageEvent::Mounted);
        let gone = EndReason::RunFailed("the process that ran it is gone".into());
        let not_held = || Event::NotHeld { is_mounted: false };
        let (_, effects) = run(vec![(1, mounted()), (2, Event::Running), (3, not_held())]);
        assert_eq!(effects.last(), Some(&Effect::Ended(gone.clone())));
        let ready = vec![(1, mounted()), (2, Event::Running), (3, Event::Probed(true)), (4, not_held())];
        assert_eq!(run(ready).1.last(), Some(&Effect::Ended(gone)));
        let stopping = vec![(1, mounted()), (2, Event::Running), (3, Event::Stop), (4, not_held())];
        assert_eq!(run(stopping).1.last(), Some(&Effect::Ended(EndReason::Stopped)));
    }

    #[test]
    fn what_was_ready_stays_so_without_a_probe_until_it_ends() {
        let start = Instant::now();
        let mut core = InstanceCore::ready(start, DEADLINE, INTERVAL, wants([IMAGE], Mode::Lazy));
        let mut effects = Vec::new();
        for event in [Event::Held, Event::Tick, Event::Exited(Exit::Code(1))] {
            core.apply(event, start + 2 * DEADLINE, &mut effects);
        }
        assert_eq!(effects, [Effect::Ended(EndReason::Exited(Exit::Code(1)))]);
    }

    #[test]
    fn each_instance_ends_once() {
        let (_, effects) = run(vec![
            (1, of_image(ImageEvent::Mounted)),
            (2, Event::Running),
            (3, Event::Exited(Exit::OutOfMemory)),
            (4, Event::Exited(Exit::Code(1))),
            (5, Event::Stop),
            (6, Event::RunFailed("late".into())),
        ]);
        assert_eq!(effects.last(), Some(&Effect::Ended(EndReason::Exited(Exit::OutOfMemory))));
        assert_eq!(effects.len(), 3);
    }
}
