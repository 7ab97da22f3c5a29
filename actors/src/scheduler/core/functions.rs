//! Functions and their images.

use super::{
    Answer, Change, ControlError, Effect, Function, FunctionKey, Image, Loaded, Phase, RETRY_AFTER,
    SchedulerCore, Start, Ticket, Vm,
    scaling::{Failures, differ_in_scaling_only},
};
use crate::{
    id::{StartId, TreeId},
    image::BlockImage,
    model::FunctionSpec,
    scheduler::records,
    wire::control::EndReason,
    world::ConversionProgress,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::time::Instant;

impl Function {
    fn new(spec: FunctionSpec, image: Image, revision: u64) -> Self {
        Self {
            spec,
            image,
            revision,
            live: BTreeSet::new(),
            unfinished: BTreeSet::new(),
            unplaced: BTreeMap::new(),
            counted: BTreeSet::new(),
            routable: BTreeSet::new(),
            kept: BTreeSet::new(),
            had_served: 0,
            failures: Failures::default(),
            accepting: 0,
            requests: BTreeSet::new(),
            pinned: BTreeMap::new(),
            requests_waiting: 0,
        }
    }
}

impl SchedulerCore {
    pub(super) fn loaded(&mut self, loaded: Loaded, now: Instant, effects: &mut Vec<Effect>) {
        for (key, (mut spec, image)) in loaded.functions {
            // Settings may have changed since it was accepted: it stays as it was, and is checked when it is changed.
            let _accepted_before = self.limits.complete(&mut spec);
            let image = match image {
                Some(image) => Image::Ready(image),
                None => {
                    self.convert(&spec.image, effects);
                    Image::Converting
                }
            };
            self.functions.insert(key, Function::new(spec, image, 1));
        }
        for vm in loaded.vms {
            self.vms.insert(vm, Vm::default());
        }
        for vm in loaded.drains {
            // Nobody knows how long it is drained already: what is there gets the whole time again.
            self.set_drain(&vm, Some(now + self.limits.drain_deadline), now);
        }
        for row in loaded.starts {
            self.rows.insert(row.clone());
            for id in row.starts {
                self.recover(&id, &row.key, now, effects);
            }
        }
        for key in self.functions.keys().cloned().collect::<Vec<_>>() {
            self.trim(&key, now, effects);
            self.keep_min(&key, now, effects);
        }
    }

    fn recover(&mut self, id: &StartId, key: &FunctionKey, now: Instant, effects: &mut Vec<Effect>) {
        self.sequence += 1;
        let start = Start::new(self.sequence, key.clone(), Phase::Recovering, now);
        self.insert_start(id.clone(), start);
        if self.functions.contains_key(key) {
            self.set_timer(id, Some(now + self.limits.rejoin_grace));
        } else {
            self.end(id, EndReason::Stopped, now, effects);
        }
    }

    pub(super) fn put(
        &mut self,
        ticket: Ticket,
        key: FunctionKey,
        mut spec: Box<FunctionSpec>,
        effects: &mut Vec<Effect>,
    ) {
        if let Err(error) = self.limits.complete(&mut spec) {
            return effects.push(Effect::Answer { ticket, answer: Err(error) });
        }
        let new =
            |change: &&Change| matches!(change, Change::Put { key, .. } if !self.functions.contains_key(key));
        let coming = self.changes.values().filter(new).count();
        if !self.functions.contains_key(&key) && self.functions.len() + coming >= self.limits.functions_max {
            let error = ControlError::TooMany { what: "functions", retry_after: RETRY_AFTER };
            return effects.push(Effect::Answer { ticket, answer: Err(error) });
        }
        let image = self.image_for(&key, &spec).map(|image| image.id);
        let writes = vec![records::put_function(&key, &spec, image)];
        self.persist(writes, Change::Put { ticket, key, spec }, effects);
    }

    pub(super) fn accepting(&self, key: &FunctionKey) -> u32 {
        let starts = |change: &Change| match change {
            Change::Accept { key: of, rows, .. } if of == key => {
                rows.iter().map(|row| row.starts.len() as u32).sum()
            }
            _ => 0,
        };
        self.changes.values().map(starts).sum()
    }

    /// The image that the function has already, if the description names the same source.
    fn image_for(&self, key: &FunctionKey, spec: &FunctionSpec) -> Option<Arc<BlockImage>> {
        let function = self.functions.get(key).filter(|function| function.spec.image == spec.image)?;
        match &function.image {
            Image::Ready(image) => Some(Arc::clone(image)),
            Image::Converting | Image::Failed(_) => None,
        }
    }

    pub(super) fn put_durable(
        &mut self,
        ticket: Ticket,
        key: FunctionKey,
        spec: FunctionSpec,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let image = match self.image_for(&key, &spec) {
            Some(image) => Image::Ready(image),
            None => {
                self.convert(&spec.image, effects);
                Image::Converting
            }
        };
        match self.functions.get_mut(&key) {
            None => {
                let mut function = Function::new(spec, image, 1);
                // Starts of a function of this name that was deleted, still on their way to the disk.
                function.accepting = self.accepting(&key);
                self.functions.insert(key.clone(), function);
            }
            Some(function) if function.spec == spec && matches!(image, Image::Ready(_)) => {}
            Some(function) => {
                let go_on = matches!(image, Image::Ready(_)) && differ_in_scaling_only(&function.spec, &spec);
                let before = std::mem::replace(&mut function.image, image);
                function.spec = spec;
                function.revision += u64::from(!go_on);
                if let Image::Ready(before) = before {
                    self.dissolve_if_unused(&TreeId { tenant: key.0.clone(), image: before.id }, effects);
                }
            }
        }
        self.use_packed_if_any(&key, effects);
        self.rescale(&key, now, effects);
        if let Some(view) = self.function_view(&key) {
            effects.push(Effect::Answer { ticket, answer: Ok(Answer::Function(Box::new(view))) });
        }
        self.room_changed = true;
    }

    fn convert(&mut self, source: &str, effects: &mut Vec<Effect>) {
        if self.conversions.contains_key(source) {
            return;
        }
        let progress = Arc::new(ConversionProgress::default());
        self.conversions.insert(source.to_owned(), Arc::clone(&progress));
        effects.push(Effect::Convert { source: source.to_owned(), progress });
    }

    pub(super) fn converted(
        &mut self,
        source: String,
        result: Result<Box<BlockImage>, String>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let image = match result {
            Ok(image) => Arc::from(image),
            Err(reason) => return self.conversion_failed(&source, &reason, now, effects),
        };
        let mut writes = vec![records::put_image(&image)];
        for key in self.converting(&source) {
            if writes.len() == self.limits.batch.operations_max {
                self.persist(std::mem::take(&mut writes), Change::Hint, effects);
            }
            // A description on its way to the store must not be written over by the one before.
            if let Some(spec) = self.latest_spec(&key).filter(|spec| spec.image == source) {
                writes.push(records::put_function(&key, spec, Some(image.id)));
            }
        }
        self.persist(writes, Change::Image { source, image }, effects);
    }

    /// Functions that wait for the conversion of that source image.
    fn converting(&self, source: &str) -> Vec<FunctionKey> {
        let waits = |function: &Function| {
            function.spec.image == source && matches!(function.image, Image::Converting)
        };
        self.functions.iter().filter(|(_, function)| waits(function)).map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn image_durable(
        &mut self,
        source: &str,
        image: &Arc<BlockImage>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.conversions.remove(source);
        for key in self.converting(source) {
            let function = self.functions.get_mut(&key).expect("it was just found");
            function.image = Image::Ready(Arc::clone(image));
            for start in function.unplaced.values().cloned().collect::<Vec<_>>() {
                self.set_timer(&start, Some(now + self.limits.placement_deadline));
            }
            self.replace_old(&key, now, effects);
            self.keep_min(&key, now, effects);
            self.use_packed_if_any(&key, effects);
        }
        self.room_changed = true;
    }

    pub(super) fn conversion_failed(
        &mut self,
        source: &str,
        reason: &str,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.conversions.remove(source);
        for key in self.converting(source) {
            let function = self.functions.get_mut(&key).expect("it was just found");
            function.image = Image::Failed(reason.to_owned());
            let unplaced = std::mem::take(&mut function.unplaced);
            self.fail_requests(&key, &ControlError::ImageFailed(reason.to_owned()), effects);
            for start in unplaced.into_values() {
                self.end(&start, EndReason::ImageUnavailable(reason.to_owned()), now, effects);
            }
        }
    }

    /// Instances of an older description serve until a newer one is ready; one is started here, and
    /// waiting requests start more.
    pub(super) fn replace_old(&mut self, key: &FunctionKey, now: Instant, effects: &mut Vec<Effect>) {
        let Some(function) = self.functions.get(key) else { return };
        let none_comes = function.counted.is_empty() && function.accepting == 0;
        // Those of the present description that do not count are moved from their VMs, or are not needed.
        let is_old = |(_, id): &(u32, StartId)| self.starts[id].revision < function.revision;
        let may_start = matches!(function.image, Image::Ready(_)) && none_comes;
        if may_start && function.routable.iter().any(is_old) {
            self.accept(None, key, 1, now, effects);
        }
    }

    pub(super) fn delete(&mut self, ticket: Ticket, key: FunctionKey, effects: &mut Vec<Effect>) {
        if !self.functions.contains_key(&key) {
            let answer = Err(ControlError::NotFound("function"));
            return effects.push(Effect::Answer { ticket, answer });
        }
        self.persist(vec![records::delete_function(&key)], Change::Delete { ticket, key }, effects);
    }

    pub(super) fn delete_durable(
        &mut self,
        ticket: Ticket,
        key: &FunctionKey,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.fail_requests(key, &ControlError::NotFound("function"), effects);
        // Taken out first: what ends now is not replaced.
        if let Some(function) = self.functions.remove(key) {
            for start in function.live {
                self.stop(&start, now, effects);
            }
            if let Image::Ready(image) = function.image {
                self.dissolve_if_unused(&TreeId { tenant: key.0.clone(), image: image.id }, effects);
            }
        }
        effects.push(Effect::Answer { ticket, answer: Ok(Answer::Done) });
    }

    /// Whether a function or an instance needs the tree.
    pub(super) fn tree_is_used(&self, tree: &TreeId) -> bool {
        self.trees.contains_key(tree) || self.is_current(tree)
    }

    /// Whether starts to come may use the tree.
    pub(super) fn is_current(&self, tree: &TreeId) -> bool {
        let of_tenant = self.functions.iter().filter(|((tenant, _), _)| *tenant == tree.tenant);
        let current =
            |function: &Function| matches!(&function.image, Image::Ready(image) if image.id == tree.image);
        of_tenant.into_iter().any(|(_, function)| current(function))
    }

    pub(super) fn dissolve_if_unused(&self, tree: &TreeId, effects: &mut Vec<Effect>) {
        if !self.tree_is_used(tree) {
            effects.push(Effect::Dissolve { tree: tree.clone() });
        }
    }

    pub(super) fn insert_start(&mut self, id: StartId, start: Start) {
        self.history.entry(start.key.clone()).or_default().insert((start.sequence, id.clone()));
        if let Some(function) = self.functions.get_mut(&start.key) {
            function.live.insert(id.clone());
            function.unfinished.insert(id.clone());
        }
        self.starts.insert(id.clone(), start);
        self.recount(&id);
    }
}
