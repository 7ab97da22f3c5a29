//! What users see: questions that change nothing.

use super::{ControlError, FunctionKey, Image, Located, Phase, SchedulerCore, Start, Vm};
use crate::image::BlockImage;
use crate::support::{Snapshot, micros};
use crate::{
    id::{FunctionName, StartId, TenantId, TreeId, VmId},
    model::{
        ColdImageView, Counts, FunctionView, HeldImageView, ImageState, StartState, StartView, Timeline,
        VmState, VmView,
    },
    world::Source,
};
use std::sync::Arc;
use tokio::time::Instant;

fn micros_between(from: Instant, to: Instant) -> u64 {
    micros(to.saturating_duration_since(from))
}

impl SchedulerCore {
    /// Adds what waits here.
    pub fn observe(&self, snapshot: Snapshot) -> Snapshot {
        let limits = &self.limits;
        snapshot
            .queue("functions", self.functions.len(), limits.functions_max)
            .queue("starts without a VM", self.starts_waiting.total(), limits.starts_waiting_max)
            .queue("ended starts", self.ended.len(), limits.starts_kept)
            .queue("requests", self.waiters.len(), limits.requests_waiting_max)
    }

    pub fn function_view(&self, key: &FunctionKey) -> Option<FunctionView> {
        let function = self.functions.get(key)?;
        Some(FunctionView {
            name: key.1.clone(),
            spec: function.spec.clone(),
            image_state: self.image_state(&function.image, &Source::Image(function.spec.image.clone())),
            code_state: function
                .code
                .as_ref()
                .zip(function.spec.code)
                .map(|(code, package)| self.image_state(code, &Source::Code(key.0.clone(), package))),
            ready: function.routable.len() as u32,
            starting: function.unfinished.len() as u32 + function.accepting,
            waiting: function.requests_waiting as u32,
        })
    }

    fn image_state(&self, image: &Image, source: &Source) -> ImageState {
        match image {
            Image::Converting => {
                let progress = self.conversions.get(source);
                ImageState::Converting {
                    phase: progress.map_or("waiting", |progress| progress.phase().name()).into(),
                    done: progress.map_or(0, |progress| progress.done()),
                    total: progress.map_or(0, |progress| progress.total()),
                }
            }
            Image::Ready(image) => ImageState::Ready {
                id: image.id,
                source: image.source,
                plain_bytes: image.plain_bytes,
                stored_bytes: image.blob_bytes,
            },
            Image::Failed(reason) => ImageState::Failed { reason: reason.clone() },
        }
    }

    pub fn function_views(&self, tenant: &TenantId) -> Vec<FunctionView> {
        let own = self.functions.keys().filter(|(owner, _)| owner == tenant);
        own.filter_map(|key| self.function_view(key)).collect()
    }

    pub fn start_view(&self, tenant: &TenantId, id: &StartId) -> Result<StartView, ControlError> {
        let start = self.starts.get(id).filter(|start| start.key.0 == *tenant);
        start.map(|start| self.view(id, start)).ok_or(ControlError::NotFound("start"))
    }

    /// The newest first.
    pub fn start_views(&self, key: &FunctionKey, limit: usize) -> Result<Vec<StartView>, ControlError> {
        let Some(history) = self.history.get(key) else {
            let known = self.functions.contains_key(key);
            return if known { Ok(Vec::new()) } else { Err(ControlError::NotFound("function")) };
        };
        Ok(history.iter().rev().take(limit).map(|(_, id)| self.view(id, &self.starts[id])).collect())
    }

    pub fn locate(&self, tenant: &TenantId, id: &StartId) -> Result<Located, ControlError> {
        let start = self.starts.get(id).filter(|start| start.key.0 == *tenant);
        let start = start.ok_or(ControlError::NotFound("start"))?;
        let vm = start.vm.clone().ok_or(ControlError::NotFound("instance"))?;
        let address = self.vms.get(&vm).and_then(|vm| vm.address).ok_or(ControlError::NotFound("VM"))?;
        Ok(Located { start: id.clone(), vm, address })
    }

    pub fn vm_views(&self) -> Vec<VmView> {
        self.vms.iter().map(|(name, vm)| vm.view(name)).collect()
    }

    pub fn count(&self) -> Counts {
        let mut counts = Counts { functions: self.functions.len() as u64, ..Counts::default() };
        for function in self.functions.values() {
            counts.ready += function.routable.len() as u64;
            counts.starting += function.unfinished.len() as u64 + u64::from(function.accepting);
            counts.waiting += function.requests_waiting as u64;
        }
        for vm in self.vms.values() {
            *counts.vms.entry(vm.state()).or_default() += 1;
        }
        counts
    }

    pub fn vm_view(&self, name: &VmId) -> Option<VmView> {
        self.vms.get(name).map(|vm| vm.view(name))
    }

    /// The tree of a function's present image; that of its code is another one.
    pub fn tree_of(&self, tenant: &TenantId, name: &FunctionName) -> Result<TreeId, ControlError> {
        let (image, _) = self.image_of(tenant, name)?;
        Ok(TreeId { tenant: tenant.clone(), image: image.id })
    }

    /// The tree of a function's code, as far as it has any.
    pub fn code_tree_of(&self, tenant: &TenantId, name: &FunctionName) -> Result<TreeId, ControlError> {
        let function = self.functions.get(&(tenant.clone(), name.clone()));
        let function = function.ok_or(ControlError::NotFound("function"))?;
        let image = function.code_id().ok_or(ControlError::NotFound("block image of code"))?;
        Ok(TreeId { tenant: tenant.clone(), image })
    }

    /// A function's present image, and how it names the source.
    pub fn image_of(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
    ) -> Result<(Arc<BlockImage>, String), ControlError> {
        let function = self.functions.get(&(tenant.clone(), name.clone()));
        let function = function.ok_or(ControlError::NotFound("function"))?;
        match &function.image {
            Image::Ready(image) => Ok((Arc::clone(image), function.spec.image.clone())),
            Image::Converting => Err(ControlError::ImageNotReady { retry_after: super::RETRY_AFTER }),
            Image::Failed(reason) => Err(ControlError::ImageFailed(reason.clone())),
        }
    }

    pub(super) fn view(&self, id: &StartId, start: &Start) -> StartView {
        let mut timeline = Timeline {
            waiting: start.chosen_at.map(|chosen| micros_between(start.accepted_at, chosen)),
            placing: start
                .chosen_at
                .zip(start.ordered_at)
                .map(|(chosen, ordered)| micros_between(chosen, ordered)),
            ready: start.ready_at.map(|ready| micros_between(start.accepted_at, ready)),
            ..Timeline::default()
        };
        timeline.set_steps(&start.report.steps_us);
        StartView {
            id: id.clone(),
            function: start.key.1.clone(),
            accepted_at_ms: start.accepted_at_ms,
            request_id: start.request.clone(),
            vm: start.vm.clone(),
            state: match start.phase {
                Phase::Recovering | Phase::Waiting => StartState::Waiting,
                Phase::Chosen | Phase::Ordered => StartState::Starting,
                Phase::Ready => StartState::Ready,
                Phase::Ended => StartState::Ended,
            },
            reason: start.reason.clone(),
            timeline_us: timeline,
            bytes: start.report.bytes,
            stalls: start.report.stalls,
            stalled_us: start.report.stalled_us,
            longest_stall_us: self.longest_stall_us(start),
            waits: start.report.waits,
            worst_stall: start.report.worst_stall.clone(),
        }
    }

    fn longest_stall_us(&self, start: &Start) -> u64 {
        let vm = start.vm.as_ref().filter(|_| start.phase != Phase::Ended).and_then(|vm| self.vms.get(vm));
        let held = vm.into_iter().flat_map(|vm| start.trees().filter_map(|tree| vm.held.get(&tree)));
        held.map(|held| held.longest_stall_us).fold(start.report.longest_stall_us, u64::max)
    }
}

impl Vm {
    fn view(&self, name: &VmId) -> VmView {
        VmView {
            id: name.clone(),
            address: self.address,
            state: self.state(),
            draining: self.drain_by.is_some(),
            tenant: self.tenant.clone(),
            memory_bytes: self.capacity.memory_bytes,
            memory_used_bytes: self.used.memory_bytes,
            cpu_millis: self.capacity.cpu_millis,
            cpu_used_millis: self.used.cpu_millis,
            instances: self.functions.values().flatten().cloned().collect(),
            trees: (self.held.values())
                .map(|held| HeldImageView {
                    image: held.tree.image,
                    blocks_present: held.blocks_present,
                    blocks_total: held.blocks_total,
                    bytes: held.bytes,
                })
                .collect(),
            cold: (self.cold.values())
                .map(|cold| ColdImageView {
                    image: cold.tree.image,
                    blocks_present: cold.blocks_present,
                    blocks_total: cold.blocks_total,
                })
                .collect(),
        }
    }

    fn state(&self) -> VmState {
        match self.drain_by {
            _ if !self.up => VmState::Lost,
            None => VmState::Up,
            Some(_) if self.functions.is_empty() && self.is_in_no_tree() => VmState::Drained,
            Some(_) => VmState::Draining,
        }
    }
}
