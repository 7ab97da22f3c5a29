//! How many instances a function has: never more than its `max_instances`, at least its `min_instances`
//! where there is room, and none that had no request for its keep-alive.
//!
//! What counts for these limits takes requests, or will: starts and instances of the present description
//! that are not being stopped and whose VM is not lost. While a new description replaces instances, those
//! of the one before are not counted; they serve until a newer one is ready, and then end. Nor are those
//! on a VM that is drained (see `drains`).

use super::{ControlError, Effect, Function, FunctionKey, Images, Limits, Phase, SchedulerCore, Start};
use crate::{id::StartId, model::FunctionSpec, support::millis, wire::control::EndReason};
use std::{cmp::Reverse, mem, time::Duration};
use tokio::time::Instant;

/// Below it an instance could end between two requests of one caller.
const KEEP_ALIVE_MIN_MS: u64 = 1000;

/// A function's limits, with the manager's where it says nothing.
pub(super) struct Scaling {
    /// `min_instances`, or more while instances are moved.
    pub min: usize,
    max: usize,
    keep_alive: Duration,
}

/// Instances that end by themselves, again and again.
#[derive(Default)]
pub(super) struct Failures {
    /// Without a longer time between them.
    in_a_row: u32,
    /// Until then no instance is started to reach `min_instances`.
    retry_at: Option<Instant>,
    retried_at: Option<Instant>,
}

impl Limits {
    /// Checks what a description says of scaling, and fills in what it leaves out: so it stays as it was
    /// acknowledged when the settings change.
    pub(super) fn complete(&self, spec: &mut FunctionSpec) -> Result<(), ControlError> {
        let (most, keep_alive_max) = (self.instances_per_function_max, millis(self.keep_alive_max));
        let max = *spec.max_instances.get_or_insert(most);
        let keep_alive = *spec.keep_alive_ms.get_or_insert(millis(self.keep_alive));
        let min = spec.min_instances;
        let wrong = if !(1..=most).contains(&max) {
            format!("max_instances must be 1 to {most}")
        } else if min > max {
            format!("min_instances is {min}, more than max_instances, which is {max}")
        } else if !(KEEP_ALIVE_MIN_MS..=keep_alive_max).contains(&keep_alive) {
            format!("keep_alive_ms must be {KEEP_ALIVE_MIN_MS} to {keep_alive_max}")
        } else {
            return Ok(());
        };
        Err(ControlError::Invalid(wrong))
    }

    pub(super) fn scaling(&self, function: &Function) -> Scaling {
        let spec = &function.spec;
        let max = spec.max_instances.unwrap_or(self.instances_per_function_max) as usize;
        Scaling {
            min: function.had_served.min(max).max(spec.min_instances as usize),
            max,
            keep_alive: spec.keep_alive_ms.map_or(self.keep_alive, Duration::from_millis),
        }
    }
}

/// Whether instances of one description may go on under the other: neither its limits nor the way in which its
/// image comes change what runs.
pub(super) fn differ_in_scaling_only(one: &FunctionSpec, other: &FunctionSpec) -> bool {
    let FunctionSpec { min_instances, max_instances, keep_alive_ms, mode, .. } = *other;
    FunctionSpec { min_instances, max_instances, keep_alive_ms, mode, ..one.clone() } == *other
}

impl Start {
    /// Whether nothing has decided yet that it ends.
    pub(super) fn goes_on(&self) -> bool {
        !self.stopping && !self.draining && !self.is_lost
    }
}

impl SchedulerCore {
    fn counts(&self, start: &Start) -> bool {
        let Some(function) = self.functions.get(&start.key) else { return false };
        start.goes_on()
            && match start.phase {
                Phase::Recovering | Phase::Waiting => true,
                Phase::Chosen | Phase::Ordered | Phase::Ready => {
                    start.revision == function.revision && !self.is_on_draining_vm(start)
                }
                Phase::Ended => false,
            }
    }

    /// To be called when something has changed that decides whether a start counts.
    pub(super) fn recount(&mut self, id: &StartId) {
        let start = &self.starts[id];
        let counts = self.counts(start);
        let Some(function) = self.functions.get_mut(&start.key) else { return };
        if counts {
            function.counted.insert(id.clone());
        } else {
            function.counted.remove(id);
        }
    }

    /// How many more starts the function may have.
    pub(super) fn room_below_max(&self, function: &Function) -> usize {
        let has = function.counted.len() + function.accepting as usize;
        self.limits.scaling(function).max.saturating_sub(has)
    }

    pub(super) fn above_max(&self, function: &Function, count: u32) -> Option<ControlError> {
        let room = self.room_below_max(function);
        let max = self.limits.scaling(function).max;
        (count as usize > room).then(|| {
            let has = format!("the function may have {max} instances (max_instances)");
            ControlError::Conflict(format!("{has}; {room} more can be started now, not {count}"))
        })
    }

    /// Accepts as many starts as waiting requests need beyond those under way, and as `min_instances` asks for.
    pub(super) fn scale(&mut self, key: &FunctionKey, now: Instant, effects: &mut Vec<Effect>) {
        let Some(function) = self.functions.get(key) else { return };
        if matches!(function.images(), Images::Failed(_)) {
            return;
        }
        let needed = function.requests.len().div_ceil(function.spec.concurrency as usize);
        let coming = function.unfinished.len() + function.accepting as usize;
        let more =
            needed.saturating_sub(coming).min(self.room_below_max(function)).min(self.room_to_start(key));
        if more > 0 {
            self.accept(None, key, more as u32, now, effects);
        } else if needed > 0 {
            let error = ControlError::Overloaded { retry_after: super::RETRY_AFTER };
            self.fail_if_hopeless(key, &error, effects);
        }
        self.keep_min(key, now, effects);
    }

    /// Starts that may be accepted at once.
    fn room_to_start(&self, key: &FunctionKey) -> usize {
        self.starts_waiting.room(&key.0).min(self.limits.starts_per_request_max as usize)
    }

    /// Starts what is missing to `min_instances`.
    pub(super) fn keep_min(&mut self, key: &FunctionKey, now: Instant, effects: &mut Vec<Effect>) {
        let Some(function) = self.functions.get(key) else { return };
        if !matches!(function.images(), Images::Ready(_)) || function.failures.retry_at.is_some() {
            return;
        }
        // Its starts could only wait in vain; a VM of another size is a reason to look again.
        if !self.may_hold(function) {
            return;
        }
        let has = function.counted.len() + function.accepting as usize;
        let missing = self.limits.scaling(function).min.saturating_sub(has);
        let more = missing.min(self.room_to_start(key));
        if more > 0 {
            self.accept(None, key, more as u32, now, effects);
        }
        if more < missing {
            self.retry_at(key, now + self.limits.restart_min);
        }
    }

    pub(super) fn keep_each_min(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let wanted = self.functions.iter().filter(|(_, function)| self.limits.scaling(function).min > 0);
        for key in wanted.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.keep_min(&key, now, effects);
        }
    }

    /// An instance ended by itself: the next to reach `min_instances` waits, and longer each time that this
    /// happens again soon. Several that end together are one failure.
    pub(super) fn ended_by_itself(&mut self, key: &FunctionKey, now: Instant) {
        let Limits { restart_min, restart_max, .. } = self.limits;
        let Some(function) = self.functions.get_mut(key) else { return };
        let min = self.limits.scaling(function).min;
        let failures = &mut function.failures;
        if min == 0 || failures.retry_at.is_some() {
            return;
        }
        let is_soon = failures.retried_at.is_some_and(|at| now < at + restart_max);
        failures.in_a_row = if is_soon { failures.in_a_row.saturating_add(1) } else { 1 };
        let pause = restart_min.saturating_mul(2_u32.saturating_pow(failures.in_a_row - 1)).min(restart_max);
        self.retry_at(key, now + pause);
    }

    fn retry_at(&mut self, key: &FunctionKey, at: Instant) {
        let function = self.functions.get_mut(key).expect("callers looked");
        function.failures.retry_at = Some(at);
        self.retries.insert((at, key.clone()));
    }

    pub(super) fn retry_due(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while let Some((at, key)) = self.retries.first().filter(|(at, _)| *at <= now).cloned() {
            self.retries.remove(&(at, key.clone()));
            let Some(function) = self.functions.get_mut(&key) else { continue };
            // That of a function of the same name that was deleted, or described anew, is over.
            if function.failures.retry_at == Some(at) {
                function.failures.retry_at = None;
                function.failures.retried_at = Some(now);
                self.keep_min(&key, now, effects);
            }
        }
    }

    /// A function was described anew: its limits and its keep-alive hold from now on.
    pub(super) fn rescale(&mut self, key: &FunctionKey, now: Instant, effects: &mut Vec<Effect>) {
        let Some(function) = self.functions.get_mut(key) else { return };
        function.failures = Failures::default();
        function.kept.clear();
        for id in function.live.clone() {
            self.recount(&id);
        }
        let idle: Vec<StartId> = (self.functions[key].routable.iter())
            .take_while(|(in_flight, _)| *in_flight == 0)
            .map(|(_, id)| id.clone())
            .collect();
        for id in idle {
            self.set_timer(&id, Some(now));
        }
        self.trim(key, now, effects);
        self.replace_old(key, now, effects);
        self.serve_all(key, now, effects);
        self.scale(key, now, effects);
    }

    /// Ends what is above `max_instances`: first what has cost least, then what serves fewest requests.
    pub(super) fn trim(&mut self, key: &FunctionKey, now: Instant, effects: &mut Vec<Effect>) {
        let Some(function) = self.functions.get(key) else { return };
        let surplus = function.counted.len().saturating_sub(self.limits.scaling(function).max);
        if surplus == 0 {
            return;
        }
        let cost = |id: &StartId| {
            let start = &self.starts[id];
            let phase = match start.phase {
                Phase::Recovering | Phase::Waiting | Phase::Ended => 0,
                Phase::Chosen | Phase::Ordered => 1,
                Phase::Ready => 2,
            };
            (phase, start.in_flight, Reverse(start.sequence))
        };
        let mut counted: Vec<StartId> = function.counted.iter().cloned().collect();
        counted.sort_by_key(cost);
        for id in counted.into_iter().take(surplus) {
            self.drain(&id, now, effects);
        }
    }

    /// The instance takes no more requests, and ends when it has none.
    pub(super) fn drain(&mut self, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        self.unroute(id);
        let start = self.starts.get_mut(id).expect("callers looked");
        start.draining = true;
        let is_busy = start.phase == Phase::Ready && start.in_flight > 0;
        self.recount(id);
        if !is_busy {
            self.stop(id, now, effects);
        }
    }

    /// The VM of a ready instance is lost: others take its place, and it is surplus when it comes back.
    pub(super) fn lost(&mut self, id: &StartId) {
        self.starts.get_mut(id).expect("callers looked").is_lost = true;
        self.recount(id);
    }

    /// An agent says that it runs the instance.
    pub(super) fn found(&mut self, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(start) = self.starts.get_mut(id) else { return };
        start.is_lost = false;
        let key = start.key.clone();
        self.recount(id);
        self.trim(&key, now, effects);
        // It may be of an older description.
        self.keep_min(&key, now, effects);
        self.replace_old(&key, now, effects);
    }

    /// The instance has no request from now on.
    pub(super) fn idle_from(&mut self, id: &StartId, now: Instant) {
        let start = self.starts.get_mut(id).expect("callers looked");
        start.idle_since = Some(now);
        let Some(function) = self.functions.get_mut(&start.key) else { return };
        function.kept.remove(id);
        // A timer of before is left as it is, and looks again: cheaper than to move it with each request.
        if start.timer.is_none() {
            let at = now + self.limits.scaling(&self.functions[&start.key]).keep_alive;
            self.set_timer(id, Some(at));
        }
    }

    pub(super) fn busy(&mut self, id: &StartId) {
        let start = self.starts.get_mut(id).expect("callers looked");
        start.idle_since = None;
        if let Some(function) = self.functions.get_mut(&start.key) {
            function.kept.remove(id);
        }
    }

    /// An instance more takes requests: those kept only for `min_instances` are looked at again.
    pub(super) fn look_at_kept(&mut self, key: &FunctionKey, now: Instant) {
        let Some(function) = self.functions.get_mut(key) else { return };
        if function.routable.len() > self.limits.scaling(function).min {
            for id in mem::take(&mut function.kept) {
                self.set_timer(&id, Some(now));
            }
        }
    }

    /// The timer of a ready instance: it ends if it had no request for its keep-alive and is not needed.
    pub(super) fn maybe_idle(&mut self, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        let start = &self.starts[id];
        let Some(function) = self.functions.get_mut(&start.key) else { return };
        let is_routable = function.routable.contains(&(start.in_flight, id.clone()));
        let Some(since) = start.idle_since.filter(|_| is_routable) else { return };
        let Scaling { min, keep_alive, .. } = self.limits.scaling(function);
        if since + keep_alive > now {
            self.set_timer(id, Some(since + keep_alive));
        } else if function.routable.len() > min {
            self.starts.get_mut(id).expect("callers looked").ends_as = Some(EndReason::Idle);
            self.stop(id, now, effects);
        } else {
            function.kept.insert(id.clone());
        }
    }

    /// Limits hold; what is missing or idle has a timer.
    #[cfg(test)]
    pub(super) fn check_scaling(&self) {
        for (key, function) in &self.functions {
            let Scaling { min, max, .. } = self.limits.scaling(function);
            let counted = function.live.iter().filter(|id| self.counts(&self.starts[*id]));
            assert!(counted.eq(function.counted.iter()), "{key:?}");
            assert!(function.counted.len() <= max, "{key:?} has more than max_instances");
            assert_eq!(function.accepting, self.accepting(key));
            let has = function.counted.len() + function.accepting as usize;
            let retry = function.failures.retry_at.map(|at| (at, key.clone()));
            assert!(retry.as_ref().is_none_or(|retry| self.retries.contains(retry)));
            let is_ready = matches!(function.images(), Images::Ready(_));
            let may_miss = retry.is_some() || !is_ready || !self.may_hold(function);
            assert!(has >= min || may_miss, "{key:?} has fewer than min_instances, and does nothing");
            let is_kept = function.kept.len() <= function.routable.len() && function.routable.len() <= min;
            assert!(function.kept.is_empty() || is_kept, "{key:?} keeps more than it needs");
            for (in_flight, id) in &function.routable {
                let start = &self.starts[id];
                assert_eq!(*in_flight == 0, start.idle_since.is_some());
                let has_end = start.timer.is_some() || function.kept.contains(id);
                assert!(start.idle_since.is_none() || has_end, "{id} would be kept for ever");
            }
        }
    }

    /// After a tick: whoever had no request for its keep-alive has ended, or is one of `min_instances`.
    #[cfg(test)]
    pub fn check_idle(&self, now: Instant) {
        for function in self.functions.values() {
            let Scaling { min, keep_alive, .. } = self.limits.scaling(function);
            for (_, id) in function.routable.iter().filter(|_| function.routable.len() > min) {
                let since = self.starts[id].idle_since;
                assert!(since.is_none_or(|since| since + keep_alive > now), "{id} is idle for too long");
            }
        }
    }
}
