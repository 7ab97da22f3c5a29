//! Starts of functions with code: each of two trees gives its part of the order, and the agent gets one order.
//!
//! The trees know nothing of each other; they meet here, because all that they tell a VM passes through its
//! node in order: a place that changes meanwhile is changed in the part that waits. The other part comes
//! within milliseconds. If it was lost with an actor, this one is given up after a lease, when the scheduler
//! gives up the start as well.

use super::{
    core::{Effect, VmCore},
    messages::{StartPart, VmEvent},
};
use crate::{
    id::{StartId, TreeId},
    wire::control::Place,
};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// Parts that wait for their other one, each with when it is given up.
#[derive(Default)]
pub(super) struct Parts {
    waiting: BTreeMap<StartId, (Instant, StartPart)>,
}

impl Parts {
    pub fn places_mut(&mut self) -> impl Iterator<Item = &mut Place> {
        self.waiting.values_mut().map(|(_, part)| part.place_mut())
    }

    pub fn want(&self, tree: &TreeId) -> bool {
        self.waiting.values().any(|(_, part)| part.place().tree == *tree)
    }
}

impl VmCore {
    /// Takes one part of a start while there is a session.
    pub(super) fn part(&mut self, part: StartPart, now: Instant, effects: &mut Vec<Effect>) {
        self.renew(part.place());
        let start = part.start().clone();
        let other = self.parts.waiting.remove(&start).map(|(_, other)| other);
        match (part, other) {
            (StartPart::Runtime(mut order), Some(StartPart::Code { code, .. }))
            | (StartPart::Code { code, .. }, Some(StartPart::Runtime(mut order))) => {
                order.code = Some(Box::new(code));
                self.start(Box::new(order), effects);
            }
            // The same part again: its tree was rebuilt.
            (part, _) => self.keep_part(start, part, now, effects),
        }
    }

    fn keep_part(&mut self, start: StartId, part: StartPart, now: Instant, effects: &mut Vec<Effect>) {
        if self.parts.waiting.len() >= self.limits.queued_max {
            effects.push(Effect::News(VmEvent::Undeliverable { start }));
            let tree = &part.place().tree;
            if !self.trees.contains(tree) {
                // It has placed the VM for this start.
                self.leave(tree.clone(), effects);
            }
            return self.leave_unheard(tree, effects);
        }
        self.join_unheard(part.place(), effects);
        self.parts.waiting.insert(start, (now + self.limits.lease, part));
    }

    pub(super) fn expire_parts(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let late = |(_, (until, _)): &(&StartId, &(Instant, StartPart))| *until <= now;
        let late: Vec<StartId> =
            self.parts.waiting.iter().filter(late).map(|(start, _)| start.clone()).collect();
        let dropped = self.take_parts(|part| late.contains(part.start()), effects);
        effects.extend(dropped.into_iter().map(|start| Effect::News(VmEvent::Undeliverable { start })));
    }

    pub(super) fn take_parts(
        &mut self,
        which: impl Fn(&StartPart) -> bool,
        effects: &mut Vec<Effect>,
    ) -> Vec<StartId> {
        let taken: Vec<(StartId, (Instant, StartPart))> =
            self.parts.waiting.extract_if(.., |_, (_, part)| which(part)).collect();
        for (_, (_, part)) in &taken {
            self.leave_unheard(&part.place().tree, effects);
        }
        taken.into_iter().map(|(start, _)| start).collect()
    }

    #[cfg(test)]
    pub(super) fn check_parts(&self) {
        assert!(self.parts.waiting.len() <= self.limits.queued_max);
        let trees = self.parts.waiting.values().map(|(_, part)| &part.place().tree);
        assert!(trees.into_iter().all(|tree| self.trees.contains(tree)));
    }
}
