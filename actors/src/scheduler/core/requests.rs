//! Requests: who gets which instance, who waits, and how many instances that asks for.

use super::{
    Answer, ControlError, Effect, Function, FunctionKey, Images, Located, Phase, RETRY_AFTER, SchedulerCore,
    Ticket, Waiter,
};
use crate::{id::StartId, support::Full};
use std::mem;
use tokio::time::Instant;

impl Function {
    /// The request that a free place at that instance is for: of those who wait for it and those who wait
    /// for any, the one that waits longest.
    fn next_for(&self, id: &StartId) -> Option<Ticket> {
        let pinned = self.pinned.get(id).and_then(|tickets| tickets.first());
        [pinned, self.requests.first()].into_iter().flatten().min().copied()
    }

    fn enqueue(&mut self, ticket: Ticket, on: Option<&StartId>) {
        self.requests_waiting += 1;
        match on {
            None => self.requests.insert(ticket),
            Some(id) => self.pinned.entry(id.clone()).or_default().insert(ticket),
        };
    }

    fn dequeue(&mut self, ticket: Ticket, on: Option<&StartId>) {
        self.requests_waiting -= 1;
        let Some(id) = on else {
            self.requests.remove(&ticket);
            return;
        };
        let tickets = self.pinned.get_mut(id).expect("it waits for that instance");
        tickets.remove(&ticket);
        if tickets.is_empty() {
            self.pinned.remove(id);
        }
    }
}

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
        match self.admit(ticket, &key, on.as_ref(), deadline, now) {
            Ok(Some(id)) => self.grant(ticket, &id, effects),
            Ok(None) => {
                self.changed.functions.insert(key.clone());
                self.functions.get_mut(&key).expect("admitted").enqueue(ticket, on.as_ref());
                self.deadlines.insert((deadline, ticket));
                self.waiters.insert(ticket, Waiter { key: key.clone(), on, deadline });
                self.scale(&key, now, effects);
            }
            Err(error) => effects.push(Effect::Answer { ticket, answer: Err(error) }),
        }
    }

    /// The instance that has a place for the request, or none: then it has a place among those who wait.
    fn admit(
        &mut self,
        ticket: Ticket,
        key: &FunctionKey,
        on: Option<&StartId>,
        deadline: Instant,
        now: Instant,
    ) -> Result<Option<StartId>, ControlError> {
        debug_assert!(!self.waiters.contains_key(&ticket), "tickets are used once");
        let function = self.functions.get(key).ok_or(ControlError::NotFound("function"))?;
        if deadline <= now {
            return Err(ControlError::DeadlineExceeded);
        }
        if on.is_some_and(|id| !function.live.contains(id)) {
            return Err(ControlError::NotFound("instance"));
        }
        // Who waits already comes first, but a request for one instance waits for nobody else's.
        if (on.is_some() || function.requests.is_empty())
            && let Some(id) = self.free_instance(key, on)
        {
            return Ok(Some(id));
        }
        if let Images::Failed(reason) = function.images() {
            return Err(ControlError::ImageFailed(reason.to_owned()));
        }
        if function.live.is_empty()
            && let Some(error) = self.too_large(function)
        {
            return Err(error);
        }
        let too_many = |what| ControlError::TooMany { what, retry_after: RETRY_AFTER };
        if function.requests_waiting >= self.limits.requests_waiting_per_function_max {
            return Err(too_many("requests of this function"));
        }
        self.waiting.take(&key.0).map_err(|full| match full {
            Full::Owner => too_many("requests of this tenant"),
            Full::All => ControlError::Overloaded { retry_after: RETRY_AFTER },
        })?;
        Ok(None)
    }

    /// An instance with a place: the one with the fewest requests, or that one.
    fn free_instance(&self, key: &FunctionKey, on: Option<&StartId>) -> Option<StartId> {
        let id = match on {
            None => &self.functions[key].routable.first()?.1,
            Some(id) => id,
        };
        self.has_place(id).then(|| id.clone())
    }

    fn has_place(&self, id: &StartId) -> bool {
        let Some(start) = self.starts.get(id) else { return false };
        let Some(function) = self.functions.get(&start.key) else { return false };
        start.in_flight < function.spec.concurrency
            && function.routable.contains(&(start.in_flight, id.clone()))
    }

    fn grant(&mut self, ticket: Ticket, id: &StartId, effects: &mut Vec<Effect>) {
        self.change_in_flight(id, 1);
        self.busy(id);
        let start = self.starts.get_mut(id).expect("callers looked");
        start.has_served = true;
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
        let is_idle = start.in_flight == 0;
        if is_idle && start.draining {
            self.stop(id, now, effects);
        } else if is_idle && start.phase == Phase::Ready {
            self.idle_from(id, now);
        }
        self.serve(id, now, effects);
    }

    /// Gives free places of an instance to those who wait, the longest waiting first.
    pub(super) fn serve(&mut self, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        let key = self.starts[id].key.clone();
        while self.has_place(id) {
            let Some(ticket) = self.functions[&key].next_for(id) else { return };
            let waiter = self.take_waiter(ticket).expect("whoever is in a queue waits");
            if waiter.deadline <= now {
                effects.push(Effect::Answer { ticket, answer: Err(ControlError::DeadlineExceeded) });
            } else {
                self.grant(ticket, id, effects);
            }
        }
    }

    /// Serves those who wait when instances have got more places.
    pub(super) fn serve_all(&mut self, key: &FunctionKey, now: Instant, effects: &mut Vec<Effect>) {
        let Some(function) = self.functions.get(key) else { return };
        for (_, id) in function.routable.clone() {
            self.serve(&id, now, effects);
        }
    }

    /// Takes a request out of the queue, if it is still there.
    pub(super) fn take_waiter(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.waiters.remove(&ticket)?;
        self.deadlines.remove(&(waiter.deadline, ticket));
        self.waiting.give_back(&waiter.key.0, 1);
        self.changed.functions.insert(waiter.key.clone());
        let function = self.functions.get_mut(&waiter.key).expect("requests wait for known functions");
        function.dequeue(ticket, waiter.on.as_ref());
        Some(waiter)
    }

    pub(super) fn expire_requests(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while let Some((_, ticket)) = self.deadlines.first().filter(|(at, _)| *at <= now).copied() {
            self.refuse(ticket, ControlError::DeadlineExceeded, effects);
        }
    }

    fn refuse(&mut self, ticket: Ticket, error: ControlError, effects: &mut Vec<Effect>) {
        self.take_waiter(ticket);
        effects.push(Effect::Answer { ticket, answer: Err(error) });
    }

    /// Requests for whom no instance is there or under way get that answer.
    pub(super) fn fail_if_hopeless(
        &mut self,
        key: &FunctionKey,
        error: &ControlError,
        effects: &mut Vec<Effect>,
    ) {
        let Some(function) = self.functions.get_mut(key) else { return };
        let comes = !function.unfinished.is_empty() || function.accepting > 0;
        // Those that count and are not to be seen are on a VM that may be back in a moment, or is lost then.
        let is_there = !function.routable.is_empty() || !function.counted.is_empty();
        if !comes && !is_there {
            for ticket in mem::take(&mut function.requests) {
                self.refuse(ticket, error.clone(), effects);
            }
        }
    }

    /// Requests for one instance do not wait for another.
    pub(super) fn fail_pinned(&mut self, id: &StartId, error: &ControlError, effects: &mut Vec<Effect>) {
        let function = self.functions.get(&self.starts[id].key);
        let Some(tickets) = function.and_then(|function| function.pinned.get(id)) else { return };
        for ticket in tickets.clone() {
            self.refuse(ticket, error.clone(), effects);
        }
    }

    pub(super) fn fail_requests(
        &mut self,
        key: &FunctionKey,
        error: &ControlError,
        effects: &mut Vec<Effect>,
    ) {
        let Some(function) = self.functions.get(key) else { return };
        let pinned = function.pinned.values().flatten();
        for ticket in function.requests.iter().chain(pinned).copied().collect::<Vec<_>>() {
            self.refuse(ticket, error.clone(), effects);
        }
    }

    /// Lets an instance take requests, if it is ready and its VM is there.
    pub(super) fn route(&mut self, id: &StartId, now: Instant) {
        let start = &self.starts[id];
        let up = start.vm.as_ref().and_then(|vm| self.vms.get(vm)).is_some_and(|vm| vm.up);
        if start.phase != Phase::Ready || start.stopping || start.draining || !up {
            return;
        }
        let (place, key) = ((start.in_flight, id.clone()), start.key.clone());
        self.changed.functions.insert(key.clone());
        if let Some(function) = self.functions.get_mut(&key) {
            function.routable.insert(place);
        }
        if self.starts[id].in_flight == 0 {
            self.idle_from(id, now);
        }
        self.look_at_kept(&key, now);
    }

    pub(super) fn unroute(&mut self, id: &StartId) {
        let start = &self.starts[id];
        self.changed.functions.insert(start.key.clone());
        if let Some(function) = self.functions.get_mut(&start.key) {
            function.routable.remove(&(start.in_flight, id.clone()));
            function.kept.remove(id);
        }
    }

    /// Everybody who waits is counted, within the limits, and for something that is not there.
    #[cfg(test)]
    pub(super) fn check_requests(&self) {
        use std::collections::BTreeSet;
        let mut waiting = 0;
        for (key, function) in &self.functions {
            let pinned: usize = function.pinned.values().map(BTreeSet::len).sum();
            assert_eq!(function.requests_waiting, function.requests.len() + pinned, "{key:?}");
            assert!(function.requests_waiting <= self.limits.requests_waiting_per_function_max);
            waiting += function.requests_waiting;
            for (in_flight, id) in &function.routable {
                let is_full = *in_flight >= function.spec.concurrency;
                assert!(is_full || function.next_for(id).is_none(), "{id} has a place for one who waits");
            }
            let reachable = |(id, tickets): (&StartId, &BTreeSet<Ticket>)| {
                function.live.contains(id) && !tickets.is_empty()
            };
            assert!(function.pinned.iter().all(reachable), "nobody waits for what has ended");
        }
        assert_eq!((waiting, waiting), (self.waiters.len(), self.deadlines.len()));
        assert_eq!(self.waiting.total(), waiting);
        assert!(waiting <= self.limits.requests_waiting_max);
        let most = self.limits.requests_waiting_max.div_ceil(2);
        for (tenant, _) in self.functions.keys() {
            assert!(self.waiting.of(tenant) <= most, "{tenant} has more than half");
        }
    }
}
