//! Starts, and the instances that come of them.

use super::{transfers::from_image, *};

impl Agent {
    pub(super) fn start(&mut self, order: StartOrder, now: Instant, effects: &mut Vec<Effect>) {
        let start = order.start.clone();
        if self.ordered.contains_key(&start) {
            return; // the manager has asked again
        }
        let tree = order.place.tree.clone();
        let is_old = |known: &Tree| order.place.epoch < known.record.place.epoch;
        let others = || self.ordered.values().map(|other| &other.order.place.tree.tenant);
        let refusal = if self.trees.get(&tree).is_some_and(is_old) {
            Some("the order is older than its place in the tree")
        } else if self.ordered.len() >= self.limits.instances_max {
            Some("it has as many instances as it may")
        } else if others().any(|tenant| *tenant != tree.tenant) {
            Some("it serves another tenant")
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let reason = EndReason::Refused(refusal.into());
            let ended = ToManager::Ended { start, reason, report: StartReport::default() };
            return self.say(ended, now, effects);
        }
        self.leave_others(&tree, now, effects);
        let record = TreeRecord { image: order.image.clone(), place: order.place.clone() };
        let known = self.trees.entry(tree.clone()).or_insert_with(|| Tree::new(record.clone()));
        known.starts(&order);
        self.tell_ahead(&tree, now, effects);
        self.place(&tree, record, now, effects);
        let record = Some(Box::new(InstanceRecord { order: order.clone(), port: 0, is_ready: false }));
        effects.push(Effect::SaveInstance { start: start.clone(), record });
        let deadline = Duration::from_millis(order.ready_deadline_ms);
        let core = InstanceCore::new(now, deadline, self.limits.probe_interval, Wants::of(&order));
        let before = self.counters(&tree, now);
        self.ordered.insert(start.clone(), Ordered { order, core, is_ready: false, before });
        self.attach(&tree, &start, now, effects);
        self.settle(&tree, now, effects);
    }

    /// Takes a place in a tree for blocks that later starts will read. Refused orders are not answered.
    pub(super) fn preheat(&mut self, order: PreheatOrder, now: Instant, effects: &mut Vec<Effect>) {
        let PreheatOrder { number, image, place, what, hot } = order;
        let tree = place.tree.clone();
        let is_old = self.trees.get(&tree).is_some_and(|known| place.epoch < known.record.place.epoch);
        let is_others = |ordered: &Ordered| ordered.order.place.tree.tenant != tree.tenant;
        if is_old || self.ordered.values().any(is_others) {
            return;
        }
        self.leave_others(&tree, now, effects);
        let record = TreeRecord { image, place };
        let known = self.trees.entry(tree.clone()).or_insert_with(|| Tree::new(record.clone()));
        let what = known.preheat.map_or(what, |(_, before)| what.max(before));
        known.preheat = Some((number, what));
        if !hot.is_empty() {
            known.hot = hot;
        }
        self.tell_ahead(&tree, now, effects);
        self.place(&tree, record, now, effects);
        self.settle(&tree, now, effects);
    }

    /// Tells the transfer what is known of the starts on the image.
    pub(super) fn tell_ahead(&mut self, tree: &TreeId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(known) = self.trees.get_mut(tree) else { return };
        let (blocks, record) = (known.hot.clone(), !known.recording.is_empty());
        if known.transfer.is_some() && (record || !blocks.is_empty()) {
            known.records |= record && !known.is_mounted;
            self.transfer(tree, block_transfer::Event::Ahead { blocks }, now, effects);
        }
    }

    /// What is read of an image after the first start on it is ready tells nothing of starts.
    fn end_recording(&self, start: &StartId, tree: &TreeId, effects: &mut Vec<Effect>) {
        if self.trees.get(tree).is_some_and(|known| known.recording.contains(start)) {
            effects.push(Effect::EndRecording { tree: tree.clone() });
        }
    }

    /// The recording counts for one of the starts it was made for.
    pub(super) fn recorded(
        &mut self,
        tree: &TreeId,
        ranges: Vec<PlainRange>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let recording = self.trees.get_mut(tree).map(|known| std::mem::take(&mut known.recording));
        if let Some(start) = recording.unwrap_or_default().pop_first().filter(|_| !ranges.is_empty()) {
            self.say(ToManager::Recorded { start, image: tree.image, ranges }, now, effects);
        }
    }

    pub(super) fn counters(&self, tree: &TreeId, now: Instant) -> TransferReport {
        let transfer = self.trees.get(tree).and_then(|tree| tree.transfer.as_ref());
        transfer.map_or_else(TransferReport::default, |transfer| TransferReport::of(&transfer.core, now))
    }

    /// An instance follows the image. What has happened already is told at once.
    pub(super) fn attach(&mut self, tree: &TreeId, start: &StartId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(known) = self.trees.get(tree) else { return };
        let Some(transfer) = &known.transfer else { return };
        let is_mounted = known.is_mounted;
        for step in transfer.steps.clone() {
            self.instance(start, from_image(tree, ImageEvent::Step(step)), now, effects);
        }
        if is_mounted {
            self.instance(start, from_image(tree, ImageEvent::Mounted), now, effects);
        }
    }

    pub(super) fn tell_followers(
        &mut self,
        tree: &TreeId,
        event: &ImageEvent,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let follows = |ordered: &Ordered| ordered.order.place.tree == *tree && !ordered.is_ready;
        let followers = self.ordered.iter().filter(|(_, ordered)| follows(ordered));
        for start in followers.map(|(start, _)| start.clone()).collect::<Vec<_>>() {
            self.instance(&start, from_image(tree, event.clone()), now, effects);
        }
    }

    pub(super) fn instance(
        &mut self,
        start: &StartId,
        event: instance::Event,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(ordered) = self.ordered.get_mut(start) else { return };
        let mut done = Vec::new();
        ordered.core.apply(event, now, &mut done);
        for effect in done {
            match effect {
                instance::Effect::Launch => effects.push(Effect::Run { start: start.clone() }),
                instance::Effect::Probe => effects.push(Effect::Probe { start: start.clone() }),
                instance::Effect::Stop => effects.push(Effect::Stop { start: start.clone() }),
                instance::Effect::Progress { step, elapsed } => {
                    let elapsed_us = micros(elapsed);
                    let progress = ToManager::Progress { start: start.clone(), step, elapsed_us };
                    self.say(progress, now, effects);
                }
                instance::Effect::Ready => {
                    let report = self.report(start, now);
                    if let Some(ordered) = self.ordered.get_mut(start) {
                        ordered.is_ready = true;
                        let order = ordered.order.clone();
                        let tree = order.place.tree.clone();
                        let record = Some(Box::new(InstanceRecord { order, port: 0, is_ready: true }));
                        effects.push(Effect::SaveInstance { start: start.clone(), record });
                        self.end_recording(start, &tree, effects);
                        self.settle(&tree, now, effects);
                    }
                    self.say(ToManager::Ready { start: start.clone(), report }, now, effects);
                }
                instance::Effect::Ended(reason) => self.ended(start, reason, now, effects),
            }
        }
    }

    pub(super) fn ended(
        &mut self,
        start: &StartId,
        reason: EndReason,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let report = self.report(start, now);
        let Some(ordered) = self.ordered.remove(start) else { return };
        effects.push(Effect::SaveInstance { start: start.clone(), record: None });
        let tree = ordered.order.place.tree;
        if let Some(known) = self.trees.get_mut(&tree) {
            known.recording.remove(start);
        }
        self.settle(&tree, now, effects);
        if self.trees.get(&tree).is_some_and(|known| known.is_left) {
            self.leave(&tree, now, effects);
        }
        self.say(ToManager::Ended { start: start.clone(), reason, report }, now, effects);
    }

    pub(in crate::simulate) fn report(&self, start: &StartId, now: Instant) -> StartReport {
        let Some(ordered) = self.ordered.get(start) else { return StartReport::default() };
        let steps_us = ordered.core.steps().iter().map(|(step, at)| (*step, micros(*at))).collect();
        ordered.before.start_report(steps_us, &self.counters(&ordered.order.place.tree, now))
    }
}
