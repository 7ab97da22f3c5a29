//! Functions and their images.

use super::{
    Answer, Change, ControlError, Effect, Function, FunctionKey, Image, Images, Loaded, Phase, RETRY_AFTER,
    ReadyImages, SchedulerCore, Start, Ticket, Vm,
    scaling::{Failures, differ_in_scaling_only},
};
use crate::{
    id::{Digest, ImageId, StartId, TenantId, TreeId},
    image::BlockImage,
    model::FunctionSpec,
    scheduler::records::{self, LoadedFunction, StartRow},
    wire::control::EndReason,
    world::{ConversionProgress, Source, Write},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    sync::Arc,
};
use tokio::time::Instant;

impl Function {
    fn new(spec: FunctionSpec, image: Image, code: Option<Image>, revision: u64) -> Self {
        Self {
            spec,
            image,
            code,
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

    pub(super) fn images(&self) -> Images<'_> {
        let code = match &self.code {
            None => None,
            Some(Image::Ready(code)) => Some(code),
            Some(Image::Failed(reason)) => return Images::Failed(reason),
            Some(Image::Converting) => match &self.image {
                Image::Failed(reason) => return Images::Failed(reason),
                Image::Ready(_) | Image::Converting => return Images::Converting,
            },
        };
        match &self.image {
            Image::Ready(image) => Images::Ready(ReadyImages { image, code }),
            Image::Converting => Images::Converting,
            Image::Failed(reason) => Images::Failed(reason),
        }
    }

    /// The block image of its code, if that is ready.
    pub(super) fn code_id(&self) -> Option<ImageId> {
        self.code.as_ref()?.ready().map(|code| code.id)
    }

    /// The block images that it has.
    fn present(&self) -> impl Iterator<Item = &Arc<BlockImage>> {
        iter::once(&self.image).chain(&self.code).filter_map(Image::ready)
    }
}

impl Image {
    fn ready(&self) -> Option<&Arc<BlockImage>> {
        match self {
            Self::Ready(image) => Some(image),
            Self::Converting | Self::Failed(_) => None,
        }
    }
}

impl SchedulerCore {
    pub(super) fn loaded(&mut self, loaded: Loaded, now: Instant, effects: &mut Vec<Effect>) {
        for (key, LoadedFunction { mut spec, image, code }) in loaded.functions {
            // Settings may have changed since it was accepted: it stays as it was, and is checked when it is changed.
            let _accepted_before = self.limits.complete(&mut spec);
            let image = self.ready_or_convert(image, Source::Image(spec.image.clone()), effects);
            let package = spec.code.map(|package| Source::Code(key.0.clone(), package));
            let code = package.map(|package| self.ready_or_convert(code, package, effects));
            self.functions.insert(key, Function::new(spec, image, code, 1));
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
            for id in &row.starts {
                self.recover(id, &row, now, effects);
            }
        }
        self.changed.functions.extend(self.functions.keys().cloned());
        self.changed.vms.extend(self.vms.keys().cloned());
        for key in self.functions.keys().cloned().collect::<Vec<_>>() {
            self.trim(&key, now, effects);
            self.keep_min(&key, now, effects);
        }
    }

    fn recover(
        &mut self,
        id: &StartId,
        StartRow { key, accepted_at_ms, request, .. }: &StartRow,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.sequence += 1;
        let mut start = Start::new(self.sequence, key.clone(), Phase::Recovering, now);
        start.accepted_at_ms = *accepted_at_ms;
        start.request.clone_from(request);
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
        let (image, code) = self.images_for(&key, &spec);
        let id = |image: Option<Arc<BlockImage>>| image.map(|image| image.id);
        let writes = vec![records::put_function(&key, &spec, id(image), id(code))];
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

    /// The block images of image and code that the function has already, as far as the description names
    /// the same sources.
    fn images_for(
        &self,
        key: &FunctionKey,
        spec: &FunctionSpec,
    ) -> (Option<Arc<BlockImage>>, Option<Arc<BlockImage>>) {
        let function = self.functions.get(key);
        let image = function.filter(|function| function.spec.image == spec.image);
        let code = function.filter(|function| function.spec.code == spec.code);
        let image = image.and_then(|function| function.image.ready());
        let code = code.and_then(|function| function.code.as_ref()?.ready());
        (image.cloned(), code.cloned())
    }

    fn ready_or_convert(
        &mut self,
        image: Option<Arc<BlockImage>>,
        source: Source,
        effects: &mut Vec<Effect>,
    ) -> Image {
        match image {
            Some(image) => Image::Ready(image),
            None => {
                self.convert(source, effects);
                Image::Converting
            }
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
        let (image, code) = self.images_for(&key, &spec);
        let image = self.ready_or_convert(image, Source::Image(spec.image.clone()), effects);
        let package = spec.code.map(|package| Source::Code(key.0.clone(), package));
        let code = package.map(|package| self.ready_or_convert(code, package, effects));
        let is_ready = image.ready().is_some() && code.as_ref().is_none_or(|code| code.ready().is_some());
        self.changed.functions.insert(key.clone());
        match self.functions.get_mut(&key) {
            None => {
                let mut function = Function::new(spec, image, code, 1);
                // Starts of a function of this name that was deleted, still on their way to the disk.
                function.accepting = self.accepting(&key);
                self.functions.insert(key.clone(), function);
            }
            Some(function) if function.spec == spec && is_ready => {}
            Some(function) => {
                let go_on = is_ready && differ_in_scaling_only(&function.spec, &spec);
                let before: Vec<ImageId> = function.present().map(|image| image.id).collect();
                (function.image, function.code) = (image, code);
                function.spec = spec;
                function.revision += u64::from(!go_on);
                for image in before {
                    self.dissolve_if_unused(&TreeId { tenant: key.0.clone(), image }, effects);
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

    fn convert(&mut self, source: Source, effects: &mut Vec<Effect>) {
        if self.conversions.contains_key(&source) {
            return;
        }
        let progress = Arc::new(ConversionProgress::default());
        self.conversions.insert(source.clone(), Arc::clone(&progress));
        effects.push(Effect::Convert { source, progress });
    }

    pub(super) fn converted(
        &mut self,
        source: Source,
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
            let function = &self.functions[&key];
            let (own, code) = (function.image.ready().map(|own| own.id), function.code_id());
            let row = match source {
                Source::Image(_) => self.row_with(&key, Some(image.id), code),
                Source::Code(..) => self.row_with(&key, own, Some(image.id)),
            };
            if let Some(row) = row {
                writes.push(row);
            }
        }
        self.persist(writes, Change::Image { source, image }, effects);
    }

    /// The row of a function with these block images. None if a description that names other sources is on its
    /// way to the store.
    pub(super) fn row_with(
        &self,
        key: &FunctionKey,
        image: Option<ImageId>,
        code: Option<ImageId>,
    ) -> Option<Write> {
        let present = &self.functions[key].spec;
        let is_same = |spec: &&FunctionSpec| spec.image == present.image && spec.code == present.code;
        let spec = self.latest_spec(key).filter(is_same)?;
        Some(records::put_function(key, spec, image, code))
    }

    /// Functions that wait for the conversion of that source.
    fn converting(&self, source: &Source) -> Vec<FunctionKey> {
        let waits = |(key, function): &(&FunctionKey, &Function)| match source {
            Source::Image(image) => {
                function.spec.image == *image && matches!(function.image, Image::Converting)
            }
            Source::Code(tenant, package) => {
                key.0 == *tenant
                    && function.spec.code == Some(*package)
                    && matches!(function.code, Some(Image::Converting))
            }
        };
        self.functions.iter().filter(waits).map(|(key, _)| key.clone()).collect()
    }

    /// What became of a conversion that the function waited for.
    fn set_image(&mut self, key: &FunctionKey, source: &Source, image: Image) -> &mut Function {
        self.changed.functions.insert(key.clone());
        let function = self.functions.get_mut(key).expect("it was just found");
        match source {
            Source::Image(_) => function.image = image,
            Source::Code(..) => function.code = Some(image),
        }
        function
    }

    pub(super) fn image_durable(
        &mut self,
        source: &Source,
        image: &Arc<BlockImage>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.conversions.remove(source);
        for key in self.converting(source) {
            let function = self.set_image(&key, source, Image::Ready(Arc::clone(image)));
            let Images::Ready(ready) = function.images() else { continue };
            // The row of the first of two does not name the second, nor that of the second the first if that was
            // on its way to the disk.
            let (own, code) = (ready.image.id, ready.code.map(|code| code.id));
            if code.is_some()
                && let Some(row) = self.row_with(&key, Some(own), code)
            {
                self.persist(vec![row], Change::Hint, effects);
            }
            let function = &self.functions[&key];
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
        source: &Source,
        reason: &str,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.conversions.remove(source);
        for key in self.converting(source) {
            let function = self.set_image(&key, source, Image::Failed(reason.to_owned()));
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
        let may_start = matches!(function.images(), Images::Ready(_)) && none_comes;
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
        self.changed.functions.insert(key.clone());
        // Taken out first: what ends now is not replaced.
        if let Some(function) = self.functions.remove(key) {
            for start in &function.live {
                self.stop(start, now, effects);
            }
            for image in function.present() {
                self.dissolve_if_unused(&TreeId { tenant: key.0.clone(), image: image.id }, effects);
            }
        }
        effects.push(Effect::Answer { ticket, answer: Ok(Answer::Done) });
    }

    /// The packages of code that functions name, or will when their rows are durable.
    pub fn packages(&self) -> BTreeSet<(TenantId, Digest)> {
        let of = |key: &FunctionKey, spec: &FunctionSpec| Some((key.0.clone(), spec.code?));
        let present = self.functions.iter().filter_map(|(key, function)| of(key, &function.spec));
        let coming = self.changes.values().filter_map(|change| match change {
            Change::Put { key, spec, .. } => of(key, spec),
            _ => None,
        });
        present.chain(coming).collect()
    }

    /// Whether a function or an instance needs the tree.
    pub(super) fn tree_is_used(&self, tree: &TreeId) -> bool {
        self.trees.contains_key(tree) || self.is_current(tree)
    }

    /// Whether starts to come may use the tree.
    pub(super) fn is_current(&self, tree: &TreeId) -> bool {
        let of_tenant = self.functions.iter().filter(|((tenant, _), _)| *tenant == tree.tenant);
        let current = |function: &Function| function.present().any(|image| image.id == tree.image);
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
        self.changed.starts.insert(id.clone());
        self.starts.insert(id.clone(), start);
        self.recount(&id);
    }
}
