//! Starts: from acceptance to their end.

use super::{
    Answer, Change, ControlError, Effect, FunctionKey, Images, Phase, RETRY_AFTER, SchedulerCore, Start,
    StartRows, Ticket,
};
use crate::{
    id::{StartId, TenantId, TreeId},
    resources::Resources,
    scheduler::records::{self, StartRow},
    wire::control::{EndReason, StartReport},
    world::MetadataError,
};
use rand::Rng;
use std::collections::BTreeSet;
use tokio::time::Instant;

impl Start {
    pub(super) fn new(sequence: u64, key: FunctionKey, phase: Phase, accepted_at: Instant) -> Self {
        Self {
            sequence,
            key,
            phase,
            vm: None,
            images: Vec::new(),
            revision: 0,
            needs: Resources::default(),
            avoid: BTreeSet::new(),
            queued: false,
            stopping: false,
            draining: false,
            is_lost: false,
            recorded_for: None,
            has_served: false,
            idle_since: None,
            in_flight: 0,
            accepted_at,
            accepted_at_ms: None,
            request: None,
            chosen_at: None,
            ordered_at: None,
            ready_at: None,
            timer: None,
            report: StartReport::default(),
            reason: None,
            ends_as: None,
        }
    }
}

impl Start {
    /// The trees whose blocks it needs, once it has a VM.
    pub(super) fn trees(&self) -> impl Iterator<Item = TreeId> {
        self.images.iter().map(|image| TreeId { tenant: self.key.0.clone(), image: *image })
    }
}

impl SchedulerCore {
    pub(super) fn start(
        &mut self,
        ticket: Ticket,
        key: FunctionKey,
        count: u32,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(error) = self.refusal(&key, count) {
            return effects.push(Effect::Answer { ticket, answer: Err(error) });
        }
        self.accept(Some(ticket), &key, count, now, effects);
    }

    fn refusal(&self, key: &FunctionKey, count: u32) -> Option<ControlError> {
        let Some(function) = self.functions.get(key) else {
            return Some(ControlError::NotFound("function"));
        };
        if let Images::Failed(reason) = function.images() {
            return Some(ControlError::ImageFailed(reason.to_owned()));
        }
        let most = self.limits.starts_per_request_max;
        if count == 0 || count > most {
            return Some(ControlError::Invalid(format!("count must be 1 to {most}")));
        }
        if let Some(error) = self.above_max(function, count).or_else(|| self.too_large(function)) {
            return Some(error);
        }
        // Rows that cannot be written now wait in memory.
        let store_is_behind = self.rows.stale() > self.limits.starts_waiting_max;
        if count as usize > self.starts_waiting.free() || store_is_behind {
            return Some(ControlError::Overloaded { retry_after: RETRY_AFTER });
        }
        let what = "starts of this tenant";
        let too_many = ControlError::TooMany { what, retry_after: RETRY_AFTER };
        (count as usize > self.starts_waiting.room(&key.0)).then_some(too_many)
    }

    /// Makes ids and brings them to the disk; only then are they starts.
    pub(super) fn accept(
        &mut self,
        ticket: Option<Ticket>,
        key: &FunctionKey,
        count: u32,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let starts: Vec<StartId> = (0..count).map(|_| self.new_id()).collect();
        let rows = StartRows::divide(
            key,
            &starts,
            (self.unix_ms, self.request.as_ref()),
            self.limits.starts_per_row_max,
        );
        let writes = rows.iter().map(records::put_starts).collect();
        self.functions.get_mut(key).expect("callers looked").accepting += count;
        self.changed.functions.insert(key.clone());
        self.starts_waiting.add(&key.0, starts.len());
        self.persist(writes, Change::Accept { ticket, key: key.clone(), rows, accepted_at: now }, effects);
    }

    /// A random UUID (version 4) in its usual text.
    fn new_id(&mut self) -> StartId {
        let mut bytes = [0; 16];
        self.rng.fill_bytes(&mut bytes);
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let mut text = String::with_capacity(36);
        for (place, byte) in bytes.into_iter().enumerate() {
            if matches!(place, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            let digit = |half: u8| char::from_digit(half.into(), 16).expect("half a byte is a digit");
            text.extend([digit(byte >> 4), digit(byte & 0x0f)]);
        }
        text.parse().expect("hexadecimal digits and hyphens are a label")
    }

    pub(super) fn accepted(
        &mut self,
        ticket: Option<Ticket>,
        key: FunctionKey,
        rows: Vec<StartRow>,
        accepted_at: Instant,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let starts: Vec<StartId> = rows.iter().flat_map(|row| row.starts.clone()).collect();
        let accepted_at_ms = rows.first().and_then(|row| row.accepted_at_ms);
        let request = rows.first().and_then(|row| row.request.clone());
        rows.into_iter().for_each(|row| self.rows.insert(row));
        let exists = match self.functions.get_mut(&key) {
            Some(function) => {
                function.accepting -= starts.len() as u32;
                true
            }
            None => false,
        };
        for id in &starts {
            self.sequence += 1;
            let mut start = Start::new(self.sequence, key.clone(), Phase::Waiting, accepted_at);
            start.accepted_at_ms = accepted_at_ms;
            start.request.clone_from(&request);
            self.insert_start(id.clone(), start);
            if exists {
                self.wait_for_room(id, now);
            } else {
                self.end(id, EndReason::Stopped, now, effects);
            }
        }
        let answer = Ok(Answer::Started(starts));
        effects.extend(ticket.map(|ticket| Effect::Answer { ticket, answer }));
        self.fail_if_image_failed(&key, now, effects);
        // A function that was described or made anew meanwhile may want fewer.
        self.trim(&key, now, effects);
    }

    /// The starts could not be made durable, or nobody knows whether they are.
    pub(super) fn not_accepted(
        &mut self,
        ticket: Option<Ticket>,
        key: &FunctionKey,
        rows: Vec<StartRow>,
        reason: MetadataError,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let count: usize = rows.iter().map(|row| row.starts.len()).sum();
        self.starts_waiting.give_back(&key.0, count);
        if reason.is_uncertain() {
            rows.into_iter().for_each(|row| self.rows.insert_refused(row));
        }
        let error = ControlError::Metadata(reason);
        if let Some(function) = self.functions.get_mut(key) {
            function.accepting -= count as u32;
            self.changed.functions.insert(key.clone());
            self.ended_by_itself(key, now);
            self.keep_min(key, now, effects);
            self.fail_if_hopeless(key, &error, effects);
        }
        effects.extend(ticket.map(|ticket| Effect::Answer { ticket, answer: Err(error) }));
    }

    fn wait_for_room(&mut self, id: &StartId, now: Instant) {
        self.queue(id);
        let function = &self.functions[&self.starts[id].key];
        // While the image is converted nothing can be placed, and the time does not count.
        let ready = matches!(function.images(), Images::Ready(_));
        self.set_timer(id, ready.then_some(now + self.limits.placement_deadline));
    }

    fn fail_if_image_failed(&mut self, key: &FunctionKey, now: Instant, effects: &mut Vec<Effect>) {
        let Some(function) = self.functions.get_mut(key) else { return };
        let Images::Failed(reason) = function.images() else { return };
        let reason = EndReason::ImageUnavailable(reason.to_owned());
        for start in std::mem::take(&mut function.unplaced).into_values() {
            self.end(&start, reason.clone(), now, effects);
        }
    }

    pub(super) fn set_timer(&mut self, id: &StartId, at: Option<Instant>) {
        let start = self.starts.get_mut(id).expect("timers are of known starts");
        if let Some(before) = std::mem::replace(&mut start.timer, at) {
            self.timers.remove(&(before, id.clone()));
        }
        self.timers.extend(at.map(|at| (at, id.clone())));
    }

    /// The time that a start had in its phase is over.
    pub(super) fn overdue(&mut self, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        let start = self.starts.get_mut(id).expect("timers are of known starts");
        start.timer = None;
        match start.phase {
            // No agent runs it: it was lost with the manager, and is placed again.
            Phase::Recovering => {
                if let Some(reason) = start.ends_as.take() {
                    return self.end(id, reason, now, effects);
                }
                start.phase = Phase::Waiting;
                self.changed.starts.insert(id.clone());
                let tenant = start.key.0.clone();
                self.starts_waiting.add(&tenant, 1);
                self.wait_for_room(id, now);
            }
            Phase::Waiting => self.end(id, EndReason::NoRoom, now, effects),
            Phase::Chosen if start.queued => {
                let vm = start.vm.clone().expect("an order waits for a VM");
                effects.push(Effect::Stop { vm, start: id.clone() });
                self.end(id, EndReason::NoRoom, now, effects);
            }
            // The order was lost between the actors, one of which was rebuilt.
            Phase::Chosen => self.requeue(id, now, effects),
            Phase::Ordered => {
                let vm = start.vm.clone().expect("an order went to a VM");
                effects.push(Effect::Stop { vm, start: id.clone() });
                self.end(id, EndReason::NotReady, now, effects);
            }
            Phase::Ready => self.maybe_idle(id, now, effects),
            Phase::Ended => {}
        }
    }

    /// A start whose order did not reach its VM waits again, for another one.
    pub(super) fn requeue(&mut self, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        if self.starts[id].stopping {
            return self.end(id, EndReason::Stopped, now, effects);
        }
        self.unassign(id, now, effects);
        self.recorded_enough(id);
        let start = self.starts.get_mut(id).expect("callers looked");
        start.recorded_for = None;
        start.phase = Phase::Waiting;
        start.queued = false;
        start.chosen_at = None;
        start.needs = Resources::default();
        start.avoid.extend(start.vm.take());
        let place_by = start.accepted_at + self.limits.placement_deadline;
        let tenant = start.key.0.clone();
        self.starts_waiting.add(&tenant, 1);
        self.wait_for_room(id, now);
        self.set_timer(id, Some(place_by.max(now)));
        let key = self.starts[id].key.clone();
        self.recount(id);
        self.trim(&key, now, effects);
    }

    pub(super) fn stop_asked(
        &mut self,
        ticket: Ticket,
        tenant: &TenantId,
        id: &StartId,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let known = self.starts.get(id).is_some_and(|start| start.key.0 == *tenant);
        if known {
            self.stop(id, now, effects);
        }
        let answer = if known { Ok(Answer::Done) } else { Err(ControlError::NotFound("start")) };
        effects.push(Effect::Answer { ticket, answer });
    }

    pub(super) fn stop(&mut self, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        let start = self.starts.get_mut(id).expect("callers looked");
        let key = start.key.clone();
        match start.phase {
            Phase::Recovering | Phase::Waiting => return self.end(id, EndReason::Stopped, now, effects),
            Phase::Ended => return,
            // Told to stop when it is there: the order may still be on its way.
            Phase::Chosen if !start.queued => start.stopping = true,
            Phase::Chosen | Phase::Ordered | Phase::Ready => {
                start.stopping = true;
                let vm = start.vm.clone().expect("an order went to a VM");
                effects.push(Effect::Stop { vm, start: id.clone() });
            }
        }
        self.unroute(id);
        if let Some(function) = self.functions.get_mut(&key) {
            function.unfinished.remove(id);
            function.counted.remove(id);
        }
        self.scale(&key, now, effects);
    }

    /// The end of a start or its instance, once.
    pub(super) fn end(&mut self, id: &StartId, reason: EndReason, now: Instant, effects: &mut Vec<Effect>) {
        let Some(start) = self.starts.get(id).filter(|start| start.phase != Phase::Ended) else { return };
        let key = start.key.clone();
        let (sequence, was_waiting) = (start.sequence, start.phase == Phase::Waiting);
        // What failed by itself would fail again: only what ended for another reason is replaced.
        let innocent =
            start.phase == Phase::Ready || matches!(reason, EndReason::VmLost | EndReason::Stopped);
        let others = matches!(reason, EndReason::VmLost | EndReason::Stopped | EndReason::NoRoom);
        let failed_by_itself = !others && !start.stopping;
        self.starts_waiting.give_back(&key.0, usize::from(was_waiting));
        self.unroute(id);
        self.set_timer(id, None);
        self.unassign(id, now, effects);
        self.recorded_enough(id);
        self.changed.starts.insert(id.clone());
        let start = self.starts.get_mut(id).expect("it was just there");
        start.recorded_for = None;
        start.phase = Phase::Ended;
        let failed = ControlError::StartFailed(reason.to_string());
        let told = start.ends_as.take();
        start.reason = Some(if start.stopping { told.unwrap_or(EndReason::Stopped) } else { reason });
        let no_room = start.reason == Some(EndReason::NoRoom);
        self.ended.push_back(id.clone());
        self.rows.ended(id);
        if let Some(function) = self.functions.get_mut(&key) {
            function.live.remove(id);
            function.unfinished.remove(id);
            function.counted.remove(id);
            function.unplaced.remove(&sequence);
            if failed_by_itself {
                self.ended_by_itself(&key, now);
            }
            if innocent {
                self.scale(&key, now, effects);
            } else {
                self.keep_min(&key, now, effects);
            }
            let overloaded = ControlError::Overloaded { retry_after: RETRY_AFTER };
            let error = if no_room { overloaded } else { failed };
            self.fail_pinned(id, &error, effects);
            self.fail_if_hopeless(&key, &error, effects);
        }
        self.forget_oldest();
    }

    fn forget_oldest(&mut self) {
        while self.ended.len() > self.limits.starts_kept {
            let Some(id) = self.ended.pop_front() else { return };
            let Some(start) = self.starts.remove(&id) else { continue };
            if let Some(history) = self.history.get_mut(&start.key) {
                history.remove(&(start.sequence, id));
                if history.is_empty() {
                    self.history.remove(&start.key);
                }
            }
        }
    }

    /// The instance answers: it takes requests, and older ones of its function need not.
    pub(super) fn became_ready(&mut self, id: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        let start = self.starts.get_mut(id).expect("callers looked");
        if start.phase != Phase::Ready {
            start.phase = Phase::Ready;
            start.ready_at.get_or_insert(now);
        }
        let key = start.key.clone();
        self.changed.starts.insert(id.clone());
        if let Some(name) = start.vm.clone() {
            self.started(&name, id);
        }
        self.set_timer(id, None);
        self.recorded_enough(id);
        if let Some(function) = self.functions.get_mut(&key) {
            function.unfinished.remove(id);
        }
        self.route(id, now);
        self.drain_old(&key, now, effects);
        self.replace_old(&key, now, effects);
        self.serve(id, now, effects);
    }

    /// Stops instances of older descriptions, if one of the present one is ready.
    fn drain_old(&mut self, key: &FunctionKey, now: Instant, effects: &mut Vec<Effect>) {
        let Some(function) = self.functions.get(key) else { return };
        let newest = function.revision;
        let revision = |id: &StartId| self.starts[id].revision;
        if !function.routable.iter().any(|(_, id)| revision(id) == newest) {
            return;
        }
        let old: Vec<StartId> = (function.routable.iter().map(|(_, id)| id))
            .filter(|id| revision(id) < newest)
            .cloned()
            .collect();
        for id in old {
            self.drain(&id, now, effects);
        }
    }
}
