//! The life of one container, from the order to its end.
//!
//! ```text
//!              Mounted           Running             Answered
//!   Image ----------> Launching ---------> Probing ----------> Ready
//!     |                   |                  |  deadline         |
//!     |  deadline,        |  RunFailed       |  Exited           |  Exited, Stop
//!     v  MountFailed      v                  v  Stop             v
//!   Ended               Ended             Stopping ---------> Ended
//! ```

use crate::{
    block_transfer::ImageEvent,
    wire::{
        control::{EndReason, Step},
        holder::Exit,
    },
};
use std::{collections::BTreeMap, time::Duration};
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
    Image(ImageEvent),
    Running,
    RunFailed(String),
    Exited(Exit),
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

pub struct InstanceCore {
    phase: Phase,
    ordered_at: Instant,
    deadline: Instant,
    probe_interval: Duration,
    probe_at: Option<Instant>,
    steps: BTreeMap<Step, Duration>,
    /// The last thing that went wrong on the way to the image.
    trouble: Option<String>,
}

impl InstanceCore {
    pub fn new(now: Instant, ready_deadline: Duration, probe_interval: Duration) -> Self {
        Self {
            phase: Phase::Image,
            ordered_at: now,
            deadline: now + ready_deadline,
            probe_interval,
            probe_at: None,
            steps: BTreeMap::new(),
            trouble: None,
        }
    }

    /// An instance that the holder runs already, when the agent comes back.
    pub fn resumed(now: Instant, ready_deadline: Duration, probe_interval: Duration) -> Self {
        let mut core = Self::new(now, ready_deadline, probe_interval);
        core.phase = Phase::Probing;
        core.probe_at = Some(now);
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
            Event::Running if self.phase == Phase::Launching => {
                self.step(Step::Run, now, effects);
                self.phase = Phase::Probing;
                self.probe_at = None;
                effects.push(Effect::Probe);
            }
            Event::Running => {}
            Event::RunFailed(reason) => match std::mem::replace(&mut self.phase, Phase::Ended) {
                Phase::Ended => {}
                Phase::Stopping(reason) => effects.push(Effect::Ended(reason)),
                Phase::Image | Phase::Launching | Phase::Probing | Phase::Ready => {
                    effects.push(Effect::Ended(EndReason::RunFailed(reason)));
                }
            },
            Event::Exited(exit) => match std::mem::replace(&mut self.phase, Phase::Ended) {
                Phase::Ended => {}
                Phase::Stopping(reason) => effects.push(Effect::Ended(reason)),
                Phase::Image | Phase::Launching | Phase::Probing | Phase::Ready => {
                    effects.push(Effect::Ended(EndReason::Exited(exit)));
                }
            },
            Event::Probed(is_ready) => self.probed(is_ready, now, effects),
            Event::Stop => self.stop(EndReason::Stopped, effects),
            Event::Tick => self.tick(now, effects),
        }
    }

    fn image(&mut self, event: ImageEvent, now: Instant, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Image {
            return;
        }
        match event {
            ImageEvent::Step(step) => self.step(step, now, effects),
            ImageEvent::Mounted => {
                self.step(Step::Mount, now, effects);
                self.phase = Phase::Launching;
                effects.push(Effect::Launch);
            }
            ImageEvent::MountFailed(reason) => {
                self.phase = Phase::Ended;
                effects.push(Effect::Ended(EndReason::MountFailed(reason)));
            }
            ImageEvent::Trouble(reason) => self.trouble = Some(reason),
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

    const DEADLINE: Duration = Duration::from_secs(10);
    const INTERVAL: Duration = Duration::from_millis(20);

    fn run(events: Vec<(u64, Event)>) -> (InstanceCore, Vec<Effect>) {
        let start = Instant::now();
        let mut core = InstanceCore::new(start, DEADLINE, INTERVAL);
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
            (1, Event::Image(ImageEvent::Step(Step::Index))),
            (5, Event::Image(ImageEvent::Mounted)),
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
    fn an_image_that_does_not_come_is_told_with_the_last_trouble() {
        let trouble = Event::Image(ImageEvent::Trouble("the origin has no such object".into()));
        let (_, effects) = run(vec![(5, trouble), (9_999, Event::Tick), (10_000, Event::Tick)]);
        let reason = EndReason::ImageUnavailable("the origin has no such object".into());
        assert_eq!(effects, [Effect::Ended(reason)]);
    }

    #[test]
    fn a_container_that_never_answers_is_stopped_and_ends_as_not_ready() {
        let (_, effects) = run(vec![
            (1, Event::Image(ImageEvent::Mounted)),
            (2, Event::Running),
            (10_000, Event::Tick),
            (10_001, Event::Tick),
            (10_005, Event::Exited(Exit::Signal(15))),
        ]);
        let expected = [Effect::Launch, Effect::Probe, Effect::Stop, Effect::Ended(EndReason::NotReady)];
        assert_eq!(effects, expected);
    }

    #[test]
    fn each_instance_ends_once() {
        let (_, effects) = run(vec![
            (1, Event::Image(ImageEvent::Mounted)),
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
