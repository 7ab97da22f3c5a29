//! What the scheduler tells whoever watches: starts at once, functions and VMs, which change with
//! each of them, from time to time.

use super::{Effect, FunctionKey, Image, SchedulerCore};
#[cfg(test)]
use crate::model::{FunctionView, StartView, VmView};
use crate::{
    event_log::{Happening, News},
    id::{StartId, VmId},
};
#[cfg(test)]
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use tokio::time::Instant;

/// Whose view may have changed since it was told.
#[derive(Default)]
pub(super) struct Changed {
    pub starts: BTreeSet<StartId>,
    pub functions: BTreeSet<FunctionKey>,
    pub vms: BTreeSet<VmId>,
    /// When functions and VMs are told again.
    next: Option<Instant>,
}

impl SchedulerCore {
    /// Tells what has changed. Called when an event is over.
    pub(super) fn tell(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        for id in std::mem::take(&mut self.changed.starts) {
            let Some(start) = self.starts.get(&id) else { continue };
            self.changed.functions.insert(start.key.clone());
            self.changed.vms.extend(start.vm.clone());
            let view = Box::new(self.view(&id, start));
            effects.push(Effect::Tell(News::of(&start.key.0, Happening::Start(view))));
        }
        if self.changed.next.is_some_and(|next| now < next) {
            return;
        }
        if !self.conversions.is_empty() {
            self.converting_changed();
        }
        for key in std::mem::take(&mut self.changed.functions) {
            let happening = match self.function_view(&key) {
                Some(view) => Happening::Function(Box::new(view)),
                None => Happening::FunctionDeleted { name: key.1.clone() },
            };
            effects.push(Effect::Tell(News::of(&key.0, happening)));
        }
        for id in std::mem::take(&mut self.changed.vms) {
            let happening = match self.vm_view(&id) {
                Some(view) => Happening::Vm(Box::new(view)),
                None => Happening::VmRemoved { id },
            };
            effects.push(Effect::Tell(News::of_all(happening)));
        }
        self.changed.next = Some(now + self.limits.coalesce);
    }

    /// Their conversions make progress without an event.
    fn converting_changed(&mut self) {
        let converts = |image: &Image| matches!(image, Image::Converting);
        let converting = self.functions.iter().filter(|(_, function)| {
            converts(&function.image) || function.code.as_ref().is_some_and(converts)
        });
        self.changed.functions.extend(converting.map(|(key, _)| key.clone()));
    }
}

#[cfg(test)]
impl SchedulerCore {
    /// Checks that whoever watches knows what it would be shown, but for what is told from time to time.
    pub fn check_told(
        &self,
        functions: &BTreeMap<FunctionKey, FunctionView>,
        starts: &BTreeMap<StartId, StartView>,
        vms: &BTreeMap<VmId, VmView>,
    ) {
        assert!(self.changed.starts.is_empty());
        for (id, start) in &self.starts {
            // The longest stall grows with each heartbeat, and is told with the next phase.
            let without_stall = |view: &StartView| StartView { longest_stall_us: 0, ..view.clone() };
            let is = without_stall(&self.view(id, start));
            assert_eq!(starts.get(id).map(without_stall), Some(is), "a start was not told");
        }
        for key in self.functions.keys().chain(functions.keys()) {
            let is_due = self.changed.functions.contains(key);
            assert!(is_due || functions.get(key) == self.function_view(key).as_ref(), "{key:?} was not told");
        }
        for id in self.vms.keys().chain(vms.keys()) {
            let is_due = self.changed.vms.contains(id);
            assert!(
                is_due || vms.get(id) == self.vm_view(id).as_ref(),
                "{id} was not told: {:?} for {:?}",
                vms.get(id),
                self.vm_view(id)
            );
        }
    }
}
