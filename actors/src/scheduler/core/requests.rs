//! Requests: who gets which instance, who waits, and how many instances that asks for.

use super::{
    Answer, ControlError, Effect, FunctionKey, Image, Located, Phase, RETRY_AFTER, SchedulerCore, Ticket,
    Waiter,
};
use crate::id::StartId;
use tokio::time::Instant;

impl SchedulerCore {
    pub(super) fn acquire(
        &mut self,
        ticket: Ticket,
        key: FunctionKey,
        on: Option<StartId>,
        deadline: Instant,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let refuse = |error| Effect::Answer { ticket, answer: Err(error) };
        let Some(function) = self.functions.get(&key) else {
            return effects.push(refuse(ControlError::NotFound("function")));
        };
        if let Some(id) = &on
            && !function.live.contains(id)
        {
            return effects.push(refuse(ControlError::NotFound("instance")));
        }
        // Who waits already comes first, but a request for one instance waits for nobody else's.
        if (on.is_some() || function.requests.values().all(|waiter| waiter.on.is_some()))
            && let Some(id) = self.free_instance(&key, on.as_ref())
        {
            return self.grant(ticket, &id, effects);
        }
        let function = &self.functions[&key];
        if let Image::Failed(reason) = &function.image {
            return effects.push(refuse(ControlError::ImageFailed(reason.clone())));
        }
        if function.requests.len() >= self.limits.requests_waiting_per_function_max {
            let what = "requests of this function";
            return effects.push(refuse(ControlError::TooMany { what, retry_after: RETRY_AFTER }));
        }
        if self.waiters.len() >= self.limits.requests_waiting_max {
            return effects.push(refuse(ControlError::Overloaded { retry_after: RETRY_AFTER }));
        }
        let function = self.functions.get_mut(&key).expect("it was just there");
        function.requests.insert(ticket, Waiter { on, deadline });
        self.deadlines.insert((deadline, ticket));
        self.waiters.insert(ticket, key.clone());
        self.scale(&key, now, effects);
    }

    /// An instance with a place: the one with the fewest requests, or that one.
    fn free_instance(&self, key: &FunctionKey, on: Option<&StartId>) -> Option<StartId> {
        let function = &self.functions[key];
        let free = |in_flight: u32| in_flight < function.spec.concurrency;
        match on {
            None => {
                let (in_flight, id) = function.routable.first()?;
                free(*in_flight).then(|| id.clone())
            }
            Some(id) => {
                let in_flight = self.starts.get(id)?.in_flight;
                let routable = function.routable.contains(&(in_flight, id.clone()));
                (routable && free(in_flight)).then(|| id.clone())
            }
        }
    }

    fn grant(&mut self, ticket: Ticket, id: &StartId, effects: &mut Vec<Effect>) {
        self.change_in_flight(id, 1);
        let start = &self.starts[id];
        let vm = start.vm.clone().expect("a ready instance has a VM");
        let address = self.vms[&vm].address.expect("a VM that is up has an address");
        let located = Located { start: id.clone(), vm, address };
        effects.push(Effect::Answer { ticket, answer: Ok(Answer::Acquired(located)) });
    }

    fn change_in_flight(&mut self, id: &StartId, change: i32) {
        let start = self.starts.get_mut(id).expect("callers looked");
        let before = start.in_flight;
        // A request of before a crash of this actor may be given back to the one after.
        start.in_flight = before.saturating_add_signed(change);
        let after = start.in_flight;
        if let Some(function) = self.functions.get_mut(&start.key)
            && function.routable.remove(&(before, id.clone()))
        {
            function.routable.insert((after, id.clone()));
        }
    }

    pub(super) fn released(&mut self, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        if !self.starts.contains_key(id) {
            return;
        }
        self.change_in_flight(id, -1);
        let start = &self.starts[id];
        let key = start.key.clone();
        if start.draining && start.in_flight == 0 {
            self.stop(id, now, effects);
        }
        self.serve(&key, effects);
    }

    /// Gives free places to those who wait, the longest waiting first.
    pub(super) fn serve(&mut self, key: &FunctionKey, effects: &mut Vec<Effect>) {
        let Some(function) = self.functions.get(key) else { return };
        if function.requests.is_empty() || function.routable.is_empty() {
            return;
        }
        let mut any_full = false;
        for (ticket, on) in
            function.requests.iter().map(|(ticket, waiter)| (*ticket, waiter.on.clone())).collect::<Vec<_>>()
        {
            if on.is_none() && any_full {
                continue;
            }
            match self.free_instance(key, on.as_ref()) {
                Some(id) => {
                    self.take_waiter(ticket);
                    self.grant(ticket, &id, effects);
                }
                None => any_full |= on.is_none(),
            }
        }
    }

    /// Takes a request out of the queue, if it is still there.
    pub(super) fn take_waiter(&mut self, ticket: Ticket) -> bool {
        let Some(key) = self.waiters.remove(&ticket) else { return false };
        let waiter = self.functions.get_mut(&key).and_then(|function| function.requests.remove(&ticket));
        if let Some(waiter) = waiter {
            self.deadlines.remove(&(waiter.deadline, ticket));
        }
        true
    }

    pub(super) fn expire_requests(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while let Some((_, ticket)) = self.deadlines.first().filter(|(at, _)| *at <= now).copied() {
            self.take_waiter(ticket);
            effects.push(Effect::Answer { ticket, answer: Err(ControlError::DeadlineExceeded) });
        }
    }

    /// Accepts as many starts as waiting requests need beyond those under way.
    pub(super) fn scale(&mut self, key: &FunctionKey, now: Instant, effects: &mut Vec<Effect>) {
        let Some(function) = self.functions.get(key) else { return };
        if matches!(function.image, Image::Failed(_)) {
            return;
        }
        let waiting = function.requests.values().filter(|waiter| waiter.on.is_none()).count();
        let needed = waiting.div_ceil(function.spec.concurrency as usize);
        let coming = function.unfinished.len() + function.accepting as usize;
        let room = self.limits.starts_waiting_max.saturating_sub(self.starts_waiting);
        let more = needed.saturating_sub(coming).min(room).min(self.limits.starts_per_request_max as usize);
        if more > 0 {
            self.accept(None, key, more as u32, now, effects);
        } else if needed > 0 {
            self.fail_if_hopeless(key, ControlError::Overloaded { retry_after: RETRY_AFTER }, effects);
        }
    }

    /// Requests for whom no instance is there or under way get that answer.
    pub(super) fn fail_if_hopeless(
        &mut self,
        key: &FunctionKey,
        error: ControlError,
        effects: &mut Vec<Effect>,
    ) {
        let Some(function) = self.functions.get(key) else { return };
        let hopeless =
            function.routable.is_empty() && function.unfinished.is_empty() && function.accepting == 0;
        if hopeless {
            return self.fail_requests(key, &error, effects);
        }
        // Those who wait for one instance do not wait for another.
        let gone = |waiter: &Waiter| waiter.on.as_ref().is_some_and(|id| !function.live.contains(id));
        let gone: Vec<Ticket> = (function.requests.iter())
            .filter(|(_, waiter)| gone(waiter))
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in gone {
            self.take_waiter(ticket);
            effects.push(Effect::Answer { ticket, answer: Err(error.clone()) });
        }
    }

    pub(super) fn fail_requests(
        &mut self,
        key: &FunctionKey,
        error: &ControlError,
        effects: &mut Vec<Effect>,
    ) {
        let Some(function) = self.functions.get_mut(key) else { return };
        for (ticket, waiter) in std::mem::take(&mut function.requests) {
            self.waiters.remove(&ticket);
            self.deadlines.remove(&(waiter.deadline, ticket));
            effects.push(Effect::Answer { ticket, answer: Err(error.clone()) });
        }
    }

    /// Lets an instance take requests, if it is ready and its VM is there.
    pub(super) fn route(&mut self, id: &StartId) {
        let start = &self.starts[id];
        let up = start.vm.as_ref().and_then(|vm| self.vms.get(vm)).is_some_and(|vm| vm.up);
        if start.phase != Phase::Ready || start.stopping || start.draining || !up {
            return;
        }
        let place = (start.in_flight, id.clone());
        if let Some(function) = self.functions.get_mut(&start.key) {
            function.routable.insert(place);
        }
    }

    pub(super) fn unroute(&mut self, id: &StartId) {
        let start = &self.starts[id];
        if let Some(function) = self.functions.get_mut(&start.key) {
            function.routable.remove(&(start.in_flight, id.clone()));
        }
    }
}
