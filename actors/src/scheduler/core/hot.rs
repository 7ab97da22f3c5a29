//! What starts are told of what they will read, which of them are recorded, and the change to packed images.

use super::{Change, Effect, FunctionKey, Image, Phase, SchedulerCore};
use crate::{
    id::{BlockId, ImageId, StartId, TreeId, VmId},
    image::BlockImage,
    model::FunctionSpec,
    profiles::{Hint, ProfileKey, Recording},
    wire::holder::PlainRange,
};
use std::sync::Arc;
use tokio::time::Instant;

impl SchedulerCore {
    /// What a start on that VM is to fetch ahead, and whether it is to be recorded.
    pub(super) fn look_ahead(&self, vm: &VmId, tree: &TreeId, image: &BlockImage) -> (Arc<[BlockId]>, bool) {
        let key = (tree.tenant.clone(), image.source);
        let hint = self.hints.get(&key);
        let hot = hint.and_then(|hint| hint.hot.get(&image.id)).cloned().unwrap_or_default();
        let recorded = hint.map_or(0, |hint| hint.recordings);
        let is_packed =
            hint.and_then(|hint| hint.packed.as_ref()).is_some_and(|packed| packed.id == image.id);
        let under_way = self.recording.get(&key).map_or(0, |starts| starts.len());
        let wanted = self.limits.recordings_max.saturating_sub(recorded) as usize;
        // Only the first mount on a VM reads what a start reads: later ones find it in memory.
        let is_first = !self.vms[vm].member_of.contains(tree) && !self.vms[vm].trees.contains_key(tree);
        let record = is_first && !is_packed && under_way < wanted.min(self.limits.recordings_at_once_max);
        (hot, record)
    }

    /// A start is on its way with the order to be recorded.
    pub(super) fn records(&mut self, id: &StartId, key: ProfileKey) {
        self.recording.entry(key.clone()).or_default().insert(id.clone());
        self.starts.get_mut(id).expect("callers looked").recorded_for = Some(key);
    }

    /// A start is ready or has ended: another one may be recorded.
    pub(super) fn recorded_enough(&mut self, id: &StartId) {
        let Some(key) = self.starts.get(id).and_then(|start| start.recorded_for.clone()) else { return };
        if let Some(starts) = self.recording.get_mut(&key) {
            starts.remove(id);
            if starts.is_empty() {
                self.recording.remove(&key);
            }
        }
    }

    /// What a VM says that a start has read; taken once, of a start that was to be recorded there.
    pub(super) fn recorded(
        &mut self,
        vm: &VmId,
        id: &StartId,
        image: ImageId,
        ranges: Arc<[PlainRange]>,
        effects: &mut Vec<Effect>,
    ) {
        let is_there = |phase| matches!(phase, Phase::Ordered | Phase::Ready);
        let known = self.starts.get_mut(id).filter(|start| {
            start.vm.as_ref() == Some(vm) && start.images.first() == Some(&image) && is_there(start.phase)
        });
        let Some((tenant, source)) = known.and_then(|start| start.recorded_for.take()) else { return };
        if let Some(starts) = self.recording.get_mut(&(tenant.clone(), source)) {
            starts.remove(id);
        }
        let Some(function) = self.functions.get(&self.starts[id].key) else { return };
        let Image::Ready(present) = &function.image else { return };
        if present.id == image {
            let (source, image) = (function.spec.image.clone(), Arc::clone(present));
            effects.push(Effect::Recorded { tenant, recording: Recording { source, image, ranges } });
        }
    }

    pub(super) fn hinted(&mut self, key: ProfileKey, hint: Option<Hint>, effects: &mut Vec<Effect>) {
        let Some(hint) = hint else { return drop(self.hints.remove(&key)) };
        let packed = hint.packed.clone();
        self.hints.insert(key.clone(), hint);
        if let Some(packed) = packed {
            let own = self.functions.keys().filter(|(tenant, _)| *tenant == key.0);
            for function in own.cloned().collect::<Vec<_>>() {
                self.use_packed(&function, &packed, effects);
            }
        }
    }

    /// The same when functions have got an image.
    pub(super) fn use_packed_if_any(&mut self, key: &FunctionKey, effects: &mut Vec<Effect>) {
        let Some(Image::Ready(image)) = self.functions.get(key).map(|function| &function.image) else {
            return;
        };
        let hint = self.hints.get(&(key.0.clone(), image.source));
        if let Some(packed) = hint.and_then(|hint| hint.packed.clone()) {
            self.use_packed(key, &packed, effects);
        }
    }

    pub(super) fn pack_again(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while let Some((_, key)) = self.not_packed.first().filter(|(at, _)| *at <= now).cloned() {
            self.not_packed.pop_first();
            self.use_packed_if_any(&key, effects);
        }
    }

    /// Makes it durable that a function's starts use a packed image from now on, if it has another one of the
    /// same source.
    fn use_packed(&mut self, key: &FunctionKey, packed: &Arc<BlockImage>, effects: &mut Vec<Effect>) {
        let Image::Ready(present) = &self.functions[key].image else { return };
        let is_coming = |change: &Change| matches!(change, Change::Packed { key: of, image } if of == key && image.id == packed.id);
        if present.source != packed.source || present.id == packed.id || self.changes.values().any(is_coming)
        {
            return;
        }
        let code = self.functions[key].code_id();
        let Some(row) = self.row_with(key, Some(packed.id), code) else {
            return; // it gets another image, or goes
        };
        let (key, image) = (key.clone(), Arc::clone(packed));
        self.persist(vec![row], Change::Packed { key, image }, effects);
    }

    /// The description of a function that the store will have when all is written that was handed in. None if it
    /// will have none.
    pub(super) fn latest_spec(&self, key: &FunctionKey) -> Option<&FunctionSpec> {
        let coming = self.changes.values().rev().find_map(|change| match change {
            Change::Put { key: of, spec, .. } if of == key => Some(Some(&**spec)),
            Change::Delete { key: of, .. } if of == key => Some(None),
            _ => None,
        });
        coming.unwrap_or_else(|| self.functions.get(key).map(|function| &function.spec))
    }

    /// New starts use the packed image. Instances stay, and what they read comes along the tree of theirs until the
    /// last of them has ended.
    pub(super) fn packed_durable(
        &mut self,
        key: &FunctionKey,
        packed: &Arc<BlockImage>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(function) = self.functions.get_mut(key) else { return };
        let Image::Ready(present) = &function.image else { return };
        if present.source != packed.source || present.id == packed.id {
            return;
        }
        self.changed.functions.insert(key.clone());
        let old = TreeId { tenant: key.0.clone(), image: present.id };
        function.image = Image::Ready(Arc::clone(packed));
        if !self.is_current(&old) {
            let tree = TreeId { tenant: key.0.clone(), image: packed.id };
            self.preheat_instead(&old, &tree, packed, now, effects);
        }
        self.drain_tree(&old, effects);
        self.room_changed = true;
    }

    /// A tree that no start will use any more is left by VMs without an instance on it.
    pub(super) fn drain_tree(&self, tree: &TreeId, effects: &mut Vec<Effect>) {
        if self.is_current(tree) {
            return;
        }
        if !self.trees.contains_key(tree) {
            return effects.push(Effect::Dissolve { tree: tree.clone() });
        }
        let members =
            self.vms.iter().filter(|(_, vm)| vm.member_of.contains(tree) && !vm.trees.contains_key(tree));
        effects.extend(members.map(|(vm, _)| Effect::Leave { tree: tree.clone(), vm: vm.clone() }));
    }
}
