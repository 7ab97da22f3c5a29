//! When to connect to the manager, and what may be said to it.

use crate::wire::control::ToManager;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting {
        until: Instant,
    },
    Connecting,
    Open {
        heartbeat_at: Instant,
    },
    /// For good: another process has the next session.
    Left,
}

#[derive(Debug)]
pub enum Event {
    Welcomed {
        heartbeat: Duration,
    },
    Closed,
    Say(Box<ToManager>),
    /// Another process takes over.
    Yield,
    /// The manager sends no more orders.
    Yielded,
    Tick,
}

#[derive(Debug, PartialEq)]
pub enum Effect {
    Connect,
    Send(Box<ToManager>),
    Heartbeat,
    /// There is no session any more, nor will there be one.
    Leave,
}

/// Keeps the session alive. What is said while there is none is in the next `Hello`, or the agent says it
/// again.
pub struct SessionCore {
    state: State,
    failures: u32,
    yields: bool,
    heartbeat: Duration,
    retry_min: Duration,
    retry_max: Duration,
}

impl SessionCore {
    pub fn new(now: Instant, retry_min: Duration, retry_max: Duration) -> Self {
        Self {
            state: State::Waiting { until: now },
            failures: 0,
            yields: false,
            heartbeat: Duration::from_secs(1),
            retry_min,
            retry_max,
        }
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    pub fn has_left(&self) -> bool {
        self.state == State::Left
    }

    pub fn apply(&mut self, event: Event, now: Instant, effects: &mut Vec<Effect>) {
        match event {
            _ if self.has_left() => {}
            Event::Yield if self.is_open() => {
                self.yields = true;
                effects.push(Effect::Send(Box::new(ToManager::Yield)));
            }
            Event::Yield | Event::Yielded => self.leave(effects),
            Event::Closed if self.yields => self.leave(effects),
            Event::Welcomed { heartbeat } => {
                self.failures = 0;
                self.heartbeat = heartbeat;
                self.state = State::Open { heartbeat_at: now + heartbeat };
            }
            Event::Closed => {
                let pause = self.retry_min.saturating_mul(2_u32.saturating_pow(self.failures));
                self.failures += 1;
                self.state = State::Waiting { until: now + pause.min(self.retry_max) };
            }
            Event::Say(message) if self.is_open() => effects.push(Effect::Send(message)),
            Event::Say(_) => {}
            Event::Tick => self.tick(now, effects),
        }
    }

    fn leave(&mut self, effects: &mut Vec<Effect>) {
        self.state = State::Left;
        effects.push(Effect::Leave);
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        match self.state {
            State::Waiting { until } if until <= now => {
                self.state = State::Connecting;
                effects.push(Effect::Connect);
            }
            State::Open { heartbeat_at } if heartbeat_at <= now => {
                self.state = State::Open { heartbeat_at: now + self.heartbeat };
                effects.push(Effect::Heartbeat);
            }
            State::Waiting { .. } | State::Connecting | State::Open { .. } | State::Left => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core() -> (SessionCore, Instant) {
        let now = Instant::now();
        (SessionCore::new(now, Duration::from_millis(100), Duration::from_millis(400)), now)
    }

    #[test]
    fn pauses_between_attempts_grow_up_to_their_limit() {
        let (mut core, mut now) = core();
        let mut pauses = Vec::new();
        for _ in 0..4 {
            let mut effects = Vec::new();
            let from = now;
            while effects.is_empty() {
                core.apply(Event::Tick, now, &mut effects);
                now += Duration::from_millis(1);
            }
            assert_eq!(effects, [Effect::Connect]);
            pauses.push((now - from).as_millis() - 1);
            core.apply(Event::Closed, now, &mut effects);
        }
        assert_eq!(pauses, [0, 100, 200, 400]);
    }

    #[test]
    fn a_session_that_yields_is_left_when_the_manager_says_so_or_is_gone() {
        for end in [|| Event::Yielded, || Event::Closed] {
            let (mut core, now) = core();
            let mut effects = Vec::new();
            core.apply(Event::Welcomed { heartbeat: Duration::from_secs(1) }, now, &mut effects);
            core.apply(Event::Yield, now, &mut effects);
            core.apply(Event::Say(Box::new(ToManager::Heartbeat { held: Vec::new() })), now, &mut effects);
            assert!(!core.has_left(), "what is said before the answer is heard");
            core.apply(end(), now, &mut effects);
            core.apply(Event::Tick, now + Duration::from_secs(60), &mut effects);
            let said = Effect::Send(Box::new(ToManager::Heartbeat { held: Vec::new() }));
            assert_eq!(effects, [Effect::Send(Box::new(ToManager::Yield)), said, Effect::Leave]);
        }
        let (mut core, now) = core();
        let mut effects = Vec::new();
        core.apply(Event::Yield, now, &mut effects);
        core.apply(Event::Tick, now, &mut effects);
        assert_eq!(effects, [Effect::Leave], "without a session nobody has to be asked");
    }
}
